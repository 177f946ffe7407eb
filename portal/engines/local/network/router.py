"""A VPC's router: a namespace with a link to each subnet, uplinks and peerings, its addresses, routes and rules."""

import logging
from collections.abc import Collection, Iterator, Sequence
from ipaddress import IPv4Network

from portal.engines.local.network import filter as rules
from portal.engines.local.network import names, namespaces, nft
from portal.engines.local.network.external import External
from portal.engines.local.network.links import Links
from portal.engines.local.network.names import Installation
from portal.engines.local.network.routing import PEER_GATEWAY, Lookup, Route, tables
from portal.engines.network_checks import router_address
from portal.engines.network_ports import PeeringSpec, VpcSpec
from portal.engines.ports import EngineError

log = logging.getLogger("portal.engines.network")

KERNEL = {
    "ipv6/conf/default/disable_ipv6": 1,
    "ipv6/conf/all/disable_ipv6": 1,
    "ipv4/conf/default/rp_filter": 0,
    "ipv4/conf/all/rp_filter": 0,
    "ipv4/conf/default/send_redirects": 0,
    "ipv4/conf/all/send_redirects": 0,
    "ipv4/conf/default/accept_redirects": 0,
    "ipv4/conf/all/accept_redirects": 0,
    # A connection that was ended does not begin again in its middle.
    "netfilter/nf_conntrack_tcp_loose": 0,
    "ipv4/ip_forward": 1,
}


class Router:
    """The router of one VPC; called by one thread at a time."""

    def __init__(self, installation: Installation, external: External, vpc_id: str) -> None:
        self.name = installation.router(vpc_id)
        self._fabric, self._installation, self._external = installation.fabric, installation, external

    def ensure_namespace(self, former: int) -> int:
        """Make the namespace, or give the one of the number `former` its name back; gives its number."""
        namespaces.ensure(self.name, former, self._installation.folder)
        namespaces.set_kernel(self.name, KERNEL)
        return namespaces.identity(self.name)

    def ensure_rules(self, spec: VpcSpec, former: Collection[tuple[str, str]]) -> int:
        """Set the rules; gives the number of this change."""
        nft.apply(self.name, rules.render(spec, former, str(self._external.host)))
        return nft.generation(self.name)

    def ensure_links(self, fabric: Links, router: Links, spec: VpcSpec) -> None:
        """Make bridges and the links to them; rules hold already."""
        for subnet in spec.subnets:
            bridge, outer, inner = names.bridge(subnet), names.router_end(subnet), names.subnet_side(subnet)
            fabric.ensure_bridge(bridge)
            self._pair(fabric, router, outer, inner, bridge)
        if spec.uplink_address:
            self._pair(fabric, router, names.uplink_end(spec.vpc_id), names.UPLINK, names.EXTERNAL_BRIDGE)
        for nat in spec.nats:
            self._pair(fabric, router, names.uplink_end(nat.nat_id), names.nat_side(nat), names.EXTERNAL_BRIDGE)
        router.ensure_up("lo")
        namespaces.set_kernel(self.name, self.settings(spec))

    def _pair(self, fabric: Links, router: Links, outer: str, inner: str, bridge: str) -> None:
        if not (fabric.has(outer) and router.has(inner)):
            fabric.remove(outer)
            router.remove(inner)
            fabric.ensure_veth(outer, inner, self.name, (names.mac(self.name, outer), names.mac(self.name, inner)))
            router.look_again(inner)
        fabric.ensure_in_bridge(outer, bridge)
        fabric.ensure_up(outer)
        router.ensure_up(inner)

    def settings(self, spec: VpcSpec) -> dict[str, int]:
        """What the kernel is told about the router and its links."""
        sides = [names.subnet_side(subnet) for subnet in spec.subnets]
        # Guests reach each other through the router only: it answers for all of them, and nobody else would, so at once.
        found = {f"ipv4/conf/{side}/proxy_arp_pvlan": 1 for side in sides} | {f"ipv4/neigh/{side}/proxy_delay": 0 for side in sides}
        found |= {f"ipv4/conf/{side}/rp_filter": 0 for side in sides} | {f"ipv4/conf/{side}/forwarding": 1 for side in sides}
        return KERNEL | found | {f"ipv4/conf/{name}/arp_ignore": 1 for name in self._outer_sides(spec)}

    @staticmethod
    def _outer_sides(spec: VpcSpec) -> list[str]:
        return [*([names.UPLINK] if spec.uplink_address else []), *(names.nat_side(nat) for nat in spec.nats)]

    def addresses(self, spec: VpcSpec) -> set[tuple[str, str]]:
        """Which addresses the router has, by link."""
        found = {("lo", f"{rules.METADATA}/32")}
        for subnet in spec.subnets:
            found.add((names.subnet_side(subnet), f"{router_address(subnet)}/{IPv4Network(subnet.cidr).prefixlen}"))
        found |= {(names.nat_side(nat), f"{nat.public_address}/32") for nat in spec.nats}
        if spec.uplink_address:
            public = (spec.uplink_address, *(port.public_address for port in spec.ports if port.public_address))
            found |= {(names.UPLINK, f"{address}/32") for address in public}
        return found

    def routes(self, spec: VpcSpec, linked: Collection[str]) -> tuple[set[Route], set[Lookup]]:
        """Which way packets go."""
        return tables(spec, self._external.cidr, linked)

    def ensure_ways(self, router: Links, spec: VpcSpec, linked: Collection[str]) -> None:
        """Set addresses and routes."""
        router.sync_addresses(self.addresses(spec))
        routes, lookups = self.routes(spec, linked)
        router.sync_routes(routes)
        router.sync_lookups(lookups)

    def ensure_peering(self, router: Links, peering: PeeringSpec, vpc_id: str) -> bool:
        """Link this router to the other one of a peering; False if that is not there."""
        (other,) = (each for each in peering.vpc_ids if each != vpc_id)
        there = self._installation.router(other)
        if not namespaces.exists(there):
            return False
        name = names.peering_side(peering.peering_id)
        mine, others = (names.mac(peering.peering_id, each) for each in (vpc_id, other))
        router.ensure_veth(name, name, there, (mine, others))
        router.ensure_up(name)
        router.ensure_neighbour(name, PEER_GATEWAY, others)
        with Links(there) as far:
            far.ensure_up(name)
            far.ensure_neighbour(name, PEER_GATEWAY, mine)
        return True

    def neighbours(self, spec: VpcSpec, peerings: Sequence[PeeringSpec]) -> Iterator[tuple[str, str]]:
        """Link and MAC of the other end of each peering."""
        for peering in peerings:
            (other,) = (each for each in peering.vpc_ids if each != spec.vpc_id)
            yield names.peering_side(peering.peering_id), names.mac(peering.peering_id, other)

    def remove_foreign(self, own: Collection[str]) -> None:
        """Take away what somebody else made in the namespace, which is this router's alone: tables, and chains in its table besides its `own`."""
        for family, table in nft.tables(self.name):
            if (family, table) != ("inet", rules.TABLE):
                log.warning("somebody's table %s %s was in the router %s; it is removed", family, table, self.name)
                self._try("table", f"delete table {family} {table}")
        foreign = set(nft.chains(self.name, rules.TABLE)) - set(own)
        for chain in sorted(foreign):
            log.warning("somebody's chain %s was in the table of the router %s; it is removed", chain, self.name)
        # All are emptied before the first goes: one may lead to another.
        text = "".join(f"{verb} chain inet {rules.TABLE} {chain}\n" for verb in ("flush", "delete") for chain in sorted(foreign))
        if text:
            self._try("chains", text)

    def _try(self, what: str, text: str) -> None:
        try:
            nft.apply(self.name, text)
        except EngineError as error:
            # It has an owner with whom it goes, or is gone meanwhile: that keeps nobody's network from being made.
            log.warning("somebody's %s in the router %s stays: %s", what, self.name, error.message)

    def remove(self) -> None:
        """Take the namespace away."""
        namespaces.remove(self.name)


def linked(router: Links, peerings: Sequence[PeeringSpec]) -> list[str]:
    """Those of a VPC's peerings whose link is there."""
    return [peering.peering_id for peering in peerings if router.has(names.peering_side(peering.peering_id))]
