"""The fabric: the namespace with all bridges and taps of an installation, and the guard at its ports."""

from collections.abc import Collection
from dataclasses import replace

from portal.engines.local.network import guard, names, namespaces, nft
from portal.engines.local.network.links import Links
from portal.engines.local.network.names import Installation
from portal.engines.network_ports import VpcSpec
from portal.engines.network_store import FabricRecord, Store

KERNEL = {
    "ipv6/conf/default/disable_ipv6": 1,
    "ipv6/conf/all/disable_ipv6": 1,
    # What passes a bridge is judged by the guard alone.
    "bridge/bridge-nf-call-iptables": 0,
    "bridge/bridge-nf-call-ip6tables": 0,
    "bridge/bridge-nf-call-arptables": 0,
}


class Fabric:
    """The fabric of one installation; called by one thread at a time."""

    def __init__(self, installation: Installation, store: Store) -> None:
        self.name = installation.fabric
        self._sign = installation.folder
        self._store = store

    def ensure(self) -> None:
        """Make the namespace, or give it its name back."""
        noted = self._store.fabric()
        namespaces.ensure(self.name, noted.namespace, self._sign)
        namespaces.set_kernel(self.name, KERNEL)
        found = namespaces.identity(self.name)
        if found != noted.namespace:
            self._store.save_fabric(FabricRecord(found, 0, noted.epoch))

    def guard(self, spec: VpcSpec | None, former: Collection[str]) -> int:
        """Set the guard's entries for the taps of a VPC and drop those of `former` taps; gives the epoch in which they hold."""
        epoch = self.epoch()
        nft.apply(self.name, guard.render(spec, former))
        self._store.save_fabric(replace(self._store.fabric(), generation=nft.generation(self.name)))
        return epoch

    def epoch(self) -> int:
        """How often somebody else has changed the guard; what was set in an earlier epoch may be gone."""
        noted = self._store.fabric()
        found = nft.generation(self.name)
        if found != noted.generation:
            noted = replace(noted, generation=found, epoch=noted.epoch + 1)
            self._store.save_fabric(noted)
        return noted.epoch

    @staticmethod
    def connect(links: Links, spec: VpcSpec) -> None:
        """Make the taps of a VPC and put them into their bridges; the guard has its entries already."""
        bridges = {subnet.subnet_id: names.bridge(subnet) for subnet in spec.subnets}
        for tap, port in names.taps_of(spec).items():
            links.ensure_tap(tap)
            links.ensure_in_bridge(tap, bridges[port.subnet_id], is_isolated=True)
            links.ensure_up(tap)

    def remove(self) -> None:
        """Take the namespace away."""
        namespaces.remove(self.name)
