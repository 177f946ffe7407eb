"""A network engine that remembers what it was told, refuses what cannot be, and can be made to fail or to lose something."""

import threading
from collections.abc import Callable, Mapping, Sequence
from ipaddress import IPv4Address, IPv4Network

from portal.engines.network_ports import Drift, Flow, PeeringSpec, Refusals, VpcSpec, no_beat
from portal.engines.ports import Capability, EngineError, EngineRefused


class RecordingNetwork:
    """Networks in memory; several may have the same range."""

    def __init__(self) -> None:
        self.specs: dict[str, VpcSpec] = {}
        self.peerings: dict[str, PeeringSpec] = {}
        self.ensured: list[str] = []
        self.failures: list[EngineError] = []
        self.lost: list[Drift] = []
        self.seen: list[Flow] = []
        self.hits: dict[str, int] = {}
        self.refused = Refusals()
        self._lock = threading.Lock()

    def _call(self) -> None:
        if self.failures:
            raise self.failures.pop(0)

    def capability(self) -> Capability:
        return Capability("network", available=True, detail="in memory")

    def ensure_vpc(self, spec: VpcSpec) -> None:
        with self._lock:
            self._call()
            _refuse_unsound(spec)
            self.specs[spec.vpc_id] = spec
            self.ensured.append(spec.vpc_id)
            self.lost = [each for each in self.lost if each.vpc_id != spec.vpc_id]

    def remove_vpc(self, vpc_id: str) -> None:
        with self._lock:
            self._call()
            self.specs.pop(vpc_id, None)
            self.peerings = {key: each for key, each in self.peerings.items() if vpc_id not in each.vpc_ids}

    def ensure_peering(self, spec: PeeringSpec) -> None:
        with self._lock:
            self._call()
            if not set(spec.vpc_ids) <= set(self.specs):
                raise EngineRefused("Both VPCs have to be there.")
            self.peerings[spec.peering_id] = spec

    def remove_peering(self, peering_id: str) -> None:
        with self._lock:
            self.peerings.pop(peering_id, None)

    def tap_of(self, port_id: str) -> str:
        return f"tap{port_id[-10:]}"

    def rule_hits(self, vpc_id: str) -> Mapping[str, int]:
        self._call()
        spec = self.specs.get(vpc_id)
        return {rule.rule_id: self.hits.get(rule.rule_id, 0) for group in spec.groups for rule in group.rules} if spec is not None else {}

    def refusals(self, vpc_id: str) -> Refusals:
        self._call()
        return self.refused if vpc_id in self.specs else Refusals()

    def drift(self, beat: Callable[[], None] = no_beat) -> Sequence[Drift]:
        beat()
        return list(self.lost)

    def vpcs(self) -> Sequence[str]:
        return list(self.specs)

    def flows(self) -> Sequence[Flow]:
        seen, self.seen = self.seen, []
        return seen

    def close(self) -> None:
        """Nothing to let go."""


def _refuse_unsound(spec: VpcSpec) -> None:
    """What no engine could make."""
    whole, subnets = IPv4Network(spec.cidr), {each.subnet_id: IPv4Network(each.cidr) for each in spec.subnets}
    assert all(each.subnet_of(whole) for each in subnets.values())
    assert not any(one.overlaps(other) for one in subnets.values() for other in subnets.values() if one is not other)
    addresses = [(port.subnet_id, port.address) for port in spec.ports]
    assert len(set(addresses)) == len(addresses)
    assert all(IPv4Address(port.address) in subnets[port.subnet_id] for port in spec.ports)
    groups = {each.group_id for each in spec.groups}
    assert all(set(port.group_ids) <= groups for port in spec.ports)
    assert all(rule.group_id in groups for group in spec.groups for rule in group.rules if rule.group_id)
