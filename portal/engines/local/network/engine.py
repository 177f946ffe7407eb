"""Networks on this host. One namespace, the fabric, holds all bridges and the guests' taps; each VPC has a router in a namespace of its own.

Ports of a bridge are isolated from each other, so that every packet between guests passes their router, where the rules are. What is wanted is noted
before anything is changed, so that whoever is killed in between is finished by the next call.
"""

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from ipaddress import IPv4Network
from pathlib import Path

from portal.engines.local.locks import KeyedLocks
from portal.engines.local.network import filter as rules
from portal.engines.local.network import names, namespaces, nft
from portal.engines.local.network.conntrack import purge
from portal.engines.local.network.differences import SENTENCES, differences
from portal.engines.local.network.external import External
from portal.engines.local.network.fabric import Fabric
from portal.engines.local.network.flows import FlowReader
from portal.engines.local.network.links import Links
from portal.engines.local.network.listing import Link, listed
from portal.engines.local.network.metadata_service import MetadataService
from portal.engines.local.network.name_server import NameServer, host_resolvers, names_of
from portal.engines.local.network.names import Installation
from portal.engines.local.network.requirements import REMEDY, missing_piece
from portal.engines.local.network.router import Router, linked
from portal.engines.local.network.routing import over_peerings
from portal.engines.local.network.rule_watch import RuleWatch
from portal.engines.local.paths import LocalPaths
from portal.engines.network_checks import EXTERNAL, checked, checked_peering
from portal.engines.network_ports import Bound, Drift, Flow, PeeringSpec, Refusals, VpcSpec, no_beat, tap_name
from portal.engines.network_store import Store, VpcRecord, same
from portal.engines.ports import Capability, EngineError, EngineUnavailable

log = logging.getLogger("portal.engines.network")

CAPABILITY = "network"
NOT_EMBEDDED = "Machines of a libvirt of the host's own (LIBVIRT_URI) cannot be in the portal's networks."
REMEDY_EMBEDDED = "Start the portal without LIBVIRT_URI."


class LocalNetwork:
    """NetworkEngine on network namespaces, nftables and dnsmasq. One process per installation owns it: the worker."""

    def __init__(self, data_dir: Path, *, external_cidr: str = EXTERNAL, external_nat: bool = False, is_embedded: bool = True) -> None:
        """Make nothing before the first use. With `external_nat`, this host passes on to the Internet what leaves the external network.

        Machines come into networks only with the libvirt that `is_embedded` in this process.
        """
        self._is_embedded = is_embedded
        paths = LocalPaths(data_dir)
        self._paths = paths
        self._installation = Installation(paths.installation, str(paths.root))
        self._store = Store(paths.root / "network")
        self._external = External(self._installation, IPv4Network(external_cidr), external_nat, paths.root / "network" / "external.rules")
        self._fabric = Fabric(self._installation, self._store)
        # Changes take some tens of milliseconds each; one after the other they need no further order.
        self._guard = threading.RLock()
        # Whatever takes long is done for one VPC at a time, without the guard.
        self._locks = KeyedLocks()
        self._purging = set[str]()
        self._metadata: MetadataService | None = None
        self._flows: FlowReader | None = None
        self._watch: RuleWatch | None = None
        # Rules that were set again between two looks, by VPC, as the number of that change.
        self._restored: dict[str, int] = {}
        self._is_external_right = False

    def capability(self) -> Capability:
        """Say whether networks can be made here, and what is missing."""
        missing = missing_piece() if self._is_embedded else NOT_EMBEDDED
        detail = f"network namespaces, nftables and dnsmasq; external network {self._external.cidr}"
        if missing:
            return Capability(CAPABILITY, available=False, detail=detail, reason=missing, remedy=REMEDY if self._is_embedded else REMEDY_EMBEDDED)
        onward = "with" if self._external.has_nat else "without"
        return Capability(CAPABILITY, available=True, detail=f"{detail}, {onward} NAT to the Internet")

    # -- VPCs --------------------------------------------------------------------------------------------------------------------------------

    def ensure_vpc(self, spec: VpcSpec) -> None:
        """Make the VPC exactly so."""
        spec = same(checked(spec, self._external.cidr))
        with self._locks.of(spec.vpc_id):
            with self._guard:
                record = self._make(spec)
                if record.is_purged:
                    return
                self._purging.add(spec.vpc_id)
            try:
                self._purge(record)
            finally:
                self._purging.discard(spec.vpc_id)

    def _purge(self, record: VpcRecord) -> None:
        """End what may not go on. A guest can have so many connections that the others' networks must not wait for it."""
        vpc_id = record.spec.vpc_id
        stopped = purge(self._router(vpc_id).name, record.spec, record.formerly)
        log.info("%s changed; %s connections may not go on", vpc_id, stopped)
        with self._guard:
            # Whoever took a peering away meanwhile goes through them once more.
            if self._store.vpc(vpc_id) == record:
                self._store.save_vpc(replace(record, is_purged=True, formerly=()))

    def _purge_again(self, vpc_id: str) -> None:
        """End what went over a peering that is gone; where a change has not been finished, that does it."""
        with self._locks.of(vpc_id):
            try:
                with self._guard:
                    record = self._store.vpc(vpc_id)
                    if record is None or record.is_purged or not record.is_finished or not namespaces.exists(self._router(vpc_id).name):
                        return
                    self._purging.add(vpc_id)
                self._purge(record)
            finally:
                self._purging.discard(vpc_id)

    def _make(self, spec: VpcSpec) -> VpcRecord:
        """Make everything of a VPC but an end of its connections; gives what was noted."""
        metadata, flows, watch = self._open()
        before = self._store.vpc(spec.vpc_id)
        former = [] if before is None else [*before.formerly, *(each for state in before.states if state != spec for each in over_peerings(state))]
        record = replace((before or VpcRecord([])).wanting(spec), formerly=list(dict.fromkeys(former)))
        if before is None or before.states != record.states or before.epoch >= 0:
            self._store.save_vpc(record)
        self._fabric.ensure()
        if spec.uplink_address or spec.nats:
            self._ensure_external()
        router = self._router(spec.vpc_id)
        namespace = router.ensure_namespace(record.namespace)
        if namespace != record.namespace:
            record = replace(record, namespace=namespace)
            self._store.save_vpc(record)
        known = {found for state in record.states for found in rules.objects(state)}
        is_foreign = before is not None and nft.generation(router.name) != before.generation
        generation = router.ensure_rules(spec, known)
        if is_foreign:
            # After its own rules, which no longer lead into what goes.
            router.remove_foreign(rules.chains(known))
            # Once more: what somebody took away meanwhile is not to count as ours.
            generation = router.ensure_rules(spec, known)
        epoch = self._connect(router, record)
        self._name(spec)
        if before is None or any((state.domain, names_of(state)) != (spec.domain, names_of(spec)) for state in before.states):
            self._name_peers(spec.vpc_id)
        metadata.ensure(router.name, spec)
        flows.ensure(router.name, spec.vpc_id, wanted=spec.flow_log)
        watch.ensure(router.name, spec.vpc_id)
        # What began while somebody else's rules held, or none, is gone through as well.
        is_purged = before is not None and before.is_purged and before.states == [spec] and not is_foreign
        record = VpcRecord([spec], namespace, generation, epoch, is_purged=is_purged, formerly=record.formerly)
        self._store.save_vpc(record)
        return record

    def _connect(self, router: Router, record: VpcRecord) -> int:
        """Make the links of a VPC as they should be; gives the epoch of the guard."""
        spec = record.spec
        former = {name for state in record.states for name in names.links_of(state)}
        stale = former - names.links_of(spec)
        with Links(self._fabric.name) as fabric, Links(router.name) as inner:
            # Taps go before their entries and come after them: none is ever open and unguarded.
            for name in sorted(stale):
                fabric.remove(name)
            epoch = self._fabric.guard(spec, {name for name in former if name.startswith(names.TAPS)})
            router.ensure_links(fabric, inner, spec)
            peerings = self._peerings_of(spec.vpc_id)
            for peering in peerings:
                if router.ensure_peering(inner, peering, spec.vpc_id):
                    self._relink(peering, spec.vpc_id)
            router.ensure_ways(inner, spec, linked(inner, peerings))
            self._fabric.connect(fabric, spec)
        return epoch

    def remove_vpc(self, vpc_id: str) -> None:
        """Remove a VPC with everything in it."""
        peerings = self._peerings_of(vpc_id)
        try:
            self._remove(vpc_id)
        finally:
            for other in sorted({each for peering in peerings for each in peering.vpc_ids} - {vpc_id}):
                self._purge_again(other)

    def _remove(self, vpc_id: str) -> None:
        with self._locks.of(vpc_id), self._guard:
            record = self._store.vpc(vpc_id)
            if record is None:
                return
            for each in self._open():
                each.remove(vpc_id)
            self._restored.pop(vpc_id, None)
            for peering in self._peerings_of(vpc_id):
                self._unlink(peering)
            # Last: what is taken from its peers is told to it as well.
            self._name_server(vpc_id).remove()
            former = {name for state in record.states for name in names.links_of(state)}
            if namespaces.exists(self._fabric.name):
                with Links(self._fabric.name) as fabric:
                    for name in sorted(former):
                        fabric.remove(name)
                self._fabric.guard(None, {name for name in former if name.startswith(names.TAPS)})
            self._router(vpc_id).remove()
            if self._store.vpcs() == [vpc_id]:
                self._external.remove()
                self._fabric.remove()
                self._is_external_right = False
            self._store.forget_vpc(vpc_id)

    def vpcs(self) -> Sequence[str]:
        """Every VPC that was made, or begun."""
        return self._store.vpcs()

    def tap_of(self, port_id: str) -> str:
        """The tap of a port."""
        return tap_name(port_id)

    def rule_hits(self, vpc_id: str) -> Mapping[str, int]:
        """How many connections each rule has let through."""
        with self._guard:
            record = self._store.vpc(vpc_id)
            if record is None or not namespaces.exists(self._router(vpc_id).name):
                return {}
            counted = nft.counters(self._router(vpc_id).name, rules.TABLE)
        return {rule.rule_id: counted.get(rules.counter(rule.rule_id), 0) for group in record.spec.groups for rule in group.rules}

    def refusals(self, vpc_id: str) -> Refusals:
        """What bounds of connections have refused."""
        with self._guard:
            record, router = self._store.vpc(vpc_id), self._router(vpc_id)
            if record is None or not record.is_finished or not namespaces.exists(router.name):
                return Refusals()
            counted = nft.counters(router.name, rules.TABLE)
            packets = {bound: counted.get(rules.over(bound), 0) for bound in Bound}
            return Refusals(packets, {bound: nft.members(router.name, rules.TABLE, rules.over(bound)) for bound in Bound if packets[bound]})

    # -- peerings ----------------------------------------------------------------------------------------------------------------------------

    def ensure_peering(self, spec: PeeringSpec) -> None:
        """Link two VPCs, and let routes that name the peering lead over it."""
        with self._guard:
            ends = [self._store.vpc(vpc_id) for vpc_id in spec.vpc_ids]
            checked_peering(spec, [end.spec if end is not None else None for end in ends])
            self._store.save_peering(spec)
            here, there = spec.vpc_ids
            router = self._router(here)
            with Links(router.name) as links:
                if not router.ensure_peering(links, spec, here):
                    raise EngineError("The other VPC's router is not there yet.")
            for vpc_id in (here, there):
                self._reroute(vpc_id)
                self._name_again(vpc_id)

    def remove_peering(self, peering_id: str) -> None:
        """Unlink."""
        peering = {each.peering_id: each for each in self._store.peerings()}.get(peering_id)
        if peering is None:
            self._store.forget_peering(peering_id)
            return
        try:
            with self._guard:
                # Until its connections are gone through as well, a look is told nothing.
                self._purging.update(peering.vpc_ids)
                self._unlink(peering)
        finally:
            try:
                for vpc_id in peering.vpc_ids:
                    self._purge_again(vpc_id)
            finally:
                # What could not be gone through, the next look finds.
                self._purging.difference_update(peering.vpc_ids)

    def _unlink(self, peering: PeeringSpec) -> None:
        for vpc_id in peering.vpc_ids:
            # Noted first: whoever is killed in between is finished by the next look, which finds connections that were not gone through.
            if (record := self._store.vpc(vpc_id)) is not None:
                over = [replace(each, peering_id="") for state in record.states for each in over_peerings(state, peering.peering_id)]
                self._store.save_vpc(replace(record, is_purged=record.is_purged and not over, formerly=[*record.formerly, *over]))
        self._store.forget_peering(peering.peering_id)
        for vpc_id in peering.vpc_ids:
            if namespaces.exists(self._router(vpc_id).name):
                with Links(self._router(vpc_id).name) as links:
                    links.remove(names.peering_side(peering.peering_id))
                self._reroute(vpc_id)
                self._name_again(vpc_id)

    def _peerings_of(self, vpc_id: str) -> list[PeeringSpec]:
        return [peering for peering in self._store.peerings() if vpc_id in peering.vpc_ids]

    def _relink(self, peering: PeeringSpec, vpc_id: str) -> None:
        """A link that was made anew needs its routes on the other side as well."""
        (other,) = (each for each in peering.vpc_ids if each != vpc_id)
        self._reroute(other)

    def _reroute(self, vpc_id: str) -> None:
        record, router = self._store.vpc(vpc_id), self._router(vpc_id)
        if record is not None and record.is_finished and namespaces.exists(router.name):
            with Links(router.name) as links:
                router.ensure_ways(links, record.spec, linked(links, self._peerings_of(vpc_id)))

    # -- names -------------------------------------------------------------------------------------------------------------------------------

    def _name(self, spec: VpcSpec) -> None:
        """Let guests find names: their own VPC's, and those of its peers."""
        others = {vpc_id for peering in self._peerings_of(spec.vpc_id) for vpc_id in peering.vpc_ids} - {spec.vpc_id}
        records = [self._store.vpc(vpc_id) for vpc_id in sorted(others)]
        self._name_server(spec.vpc_id).ensure(spec, self._upstream(spec), [record.spec for record in records if record is not None])

    def _name_again(self, vpc_id: str) -> None:
        record = self._store.vpc(vpc_id)
        if record is not None and record.is_finished and namespaces.exists(self._router(vpc_id).name):
            self._name(record.spec)

    def _name_peers(self, vpc_id: str) -> None:
        """Names that changed are others' as well."""
        for peering in self._peerings_of(vpc_id):
            for other in set(peering.vpc_ids) - {vpc_id}:
                self._name_again(other)

    # -- looking -----------------------------------------------------------------------------------------------------------------------------

    def drift(self, beat: Callable[[], None] = no_beat) -> Sequence[Drift]:
        """What is not as it was last made."""
        with self._guard:
            vpc_ids = self._store.vpcs()
            if not vpc_ids:
                return []
            self._open()
            fabric = self._fabric_links()
            self._is_external_right = self._uses_external(vpc_ids) and self._external.is_right()
        found = []
        for vpc_id in vpc_ids:
            beat()
            with self._guard:
                # The list is a moment old: what it says of a VPC that was changed since is looked up anew.
                different = self._drift_of(vpc_id, fabric) and self._drift_of(vpc_id, self._fabric_links())
            found += [Drift(vpc_id, SENTENCES[what]) for what in different]
        return found

    def _drift_of(self, vpc_id: str, fabric: dict[str, Link]) -> Sequence[str]:
        record = self._store.vpc(vpc_id)
        if record is None or vpc_id in self._purging:
            return []
        router, metadata = self._router(vpc_id), self._open()[0]
        found = [] if self._is_external_right or not (record.spec.uplink_address or record.spec.nats) else ["external"]
        found += differences(
            record, router, fabric, self._peerings_of(vpc_id), epoch=self._fabric.epoch() if fabric else -1, server=self._name_server(vpc_id),
            is_answered=lambda: metadata.is_right(router.name, vpc_id),
        )  # fmt: skip
        return found

    def _fabric_links(self) -> dict[str, Link]:
        if not namespaces.exists(self._fabric.name):
            return {}
        return listed(self._fabric.name)

    def _uses_external(self, vpc_ids: Sequence[str]) -> bool:
        records = (self._store.vpc(vpc_id) for vpc_id in vpc_ids)
        return any(record is not None and (record.spec.uplink_address or record.spec.nats) for record in records)

    def flows(self) -> Sequence[Flow]:
        """Connections seen since the last call."""
        with self._guard:
            return self._flows.taken() if self._flows is not None else []

    def close(self) -> None:
        """Let go of what this process serves itself."""
        with self._guard:
            served = (self._metadata, self._flows)
            watch, self._watch, self._metadata, self._flows = self._watch, None, None, None
            for each in served:
                if each is not None:
                    each.close()
        if watch is not None:
            watch.close()

    # -- inside ------------------------------------------------------------------------------------------------------------------------------

    def _open(self) -> tuple[MetadataService, FlowReader, RuleWatch]:
        """What this process serves itself, begun at the first use for all VPCs that are there. Raises EngineUnavailable."""
        if self._metadata is None or self._flows is None or self._watch is None:
            missing = missing_piece()
            if missing:
                raise EngineUnavailable(f"{missing} {REMEDY}")
            self._paths.make()
            self._metadata, self._flows, self._watch = MetadataService(), FlowReader(), RuleWatch(self._rules_changed)
            for vpc_id in self._store.vpcs():
                self._resume(vpc_id)
        return self._metadata, self._flows, self._watch

    def _resume(self, vpc_id: str) -> None:
        record, router = self._store.vpc(vpc_id), self._router(vpc_id)
        if record is None or self._metadata is None or self._flows is None or self._watch is None:
            return
        if not record.is_finished or namespaces.identity(router.name) != record.namespace:
            return
        try:
            self._metadata.ensure(router.name, record.spec)
            self._flows.ensure(router.name, vpc_id, wanted=record.spec.flow_log)
            self._watch.ensure(router.name, vpc_id)
        except (EngineError, OSError) as error:
            log.warning("the metadata service of %s does not go on yet: %s", vpc_id, error)

    def _rules_changed(self, vpc_id: str) -> None:
        """Set a router's rules again at once if somebody else has changed them; the next look tells of it, and mends what else there is."""
        with self._guard:
            record, router = self._store.vpc(vpc_id), self._router(vpc_id)
            if record is None or not record.is_finished or namespaces.identity(router.name) != record.namespace:
                return
            if nft.generation(router.name) in {record.generation, self._restored.get(vpc_id)}:
                return
            log.warning("somebody changed the rules of the router of %s; they are set again", vpc_id)
            self._restored[vpc_id] = router.ensure_rules(record.spec, rules.objects(record.spec))

    def _ensure_external(self) -> None:
        if not self._is_external_right:
            self._external.ensure()
            self._is_external_right = True

    def _upstream(self, spec: VpcSpec) -> Sequence[str]:
        if spec.dns_servers:
            return spec.dns_servers
        return host_resolvers() if spec.uplink_address else []

    def _router(self, vpc_id: str) -> Router:
        return Router(self._installation, self._external, vpc_id)

    def _name_server(self, vpc_id: str) -> NameServer:
        return NameServer(self._store.folder / "names" / names.short(vpc_id), self._installation.router(vpc_id))
