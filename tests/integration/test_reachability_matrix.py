"""The answer to "can A reach B on port P?" is what really happens: three VPCs, a peering, NAT, a guest as router and floating addresses."""

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import pytest

from portal.engines.network_ports import (
    Direction,
    GroupSpec,
    IpProtocol,
    NatSpec,
    PeeringSpec,
    PortSpec,
    RouteSpec,
    RuleSpec,
    SubnetSpec,
    Via,
    VpcSpec,
)
from tests.support.network import EVERYWHERE, PATIENTLY_S, Guest, NetworkHost, Outside, local_network_host, port, why_no_networks, with_ports

reachability: Any = pytest.importorskip("portal.networking.reachability")

MISSING = why_no_networks()
pytestmark = [pytest.mark.skipif(bool(MISSING), reason=MISSING or "networks can be made here")]

PORTS = (22, 80, 443)
GROUPS = ("sg-0", "sg-1", "sg-2")
WAIT_S = 0.8
LOCAL = RouteSpec("10.0.0.0/16", Via.LOCAL)
OVER = RouteSpec("10.9.0.0/16", Via.PEERING, "pcx-1")
BACK = RouteSpec("10.0.0.0/16", Via.PEERING, "pcx-1")
OUT_BY_GATEWAY, OUT_BY_NAT = RouteSpec(EVERYWHERE, Via.INTERNET), RouteSpec(EVERYWHERE, Via.NAT, "nat-1")


@dataclass
class Case:
    """Who calls whom, and from where the call is made."""

    source: str
    caller: Guest
    target: str
    number: int


class World:
    """One VPC with everything, a second one with the same addresses, a third one over a peering."""

    def __init__(self, host: NetworkHost, seed: int) -> None:
        self._chance = random.Random(seed)  # noqa: S311 - the same world each time
        self._host = host
        self.floating = [host.public(number) for number in (50, 51, 52)]
        self._ranges = [EVERYWHERE, EVERYWHERE, "10.0.0.0/16", "10.9.0.0/16", "10.0.1.0/24"]
        self._ranges += [f"{host.public(number)}/32" for number in (11, 12, 50, 51, 52, 60, 250)]
        self.vpcs = [self._full(shared_nat=seed % 2 == 0), self._twin(), self._far()]
        self.peering = PeeringSpec("pcx-1", (self.vpcs[0].vpc_id, self.vpcs[2].vpc_id))

    def _full(self, *, shared_nat: bool) -> VpcSpec:
        spec = self._host.vpc(groups=self._groups(), uplink_address=self._host.public(11), shared_nat=shared_nat)
        # What the public subnet sends to the private one goes through a guest.
        self.through = PortSpec(f"eni-{spec.vpc_id[4:]}-mid", f"{spec.vpc_id}-s3", "52:54:00:00:03:05", "10.0.3.5", self._some())
        closer = RouteSpec("10.0.2.0/24", Via.INTERFACE, self.through.port_id)
        public = SubnetSpec(f"{spec.vpc_id}-s1", "10.0.1.0/24", [LOCAL, OUT_BY_GATEWAY, OVER, closer])
        private = SubnetSpec(f"{spec.vpc_id}-s2", "10.0.2.0/24", [LOCAL, OUT_BY_NAT, OVER])
        between = SubnetSpec(f"{spec.vpc_id}-s3", "10.0.3.0/24", [LOCAL])
        spec = replace(spec, subnets=[public, private, between], nats=[NatSpec("nat-1", self._host.public(60))])
        return with_ports(
            spec,
            self.through,
            port(spec, "10.0.1.5", *self._some(), public_address=self.floating[0]),
            port(spec, "10.0.1.6", *self._some()),
            port(spec, "10.0.2.5", *self._some()),
            port(spec, "10.0.2.6", *self._some(), public_address=self.floating[1]),
        )

    def _twin(self) -> VpcSpec:
        spec = self._host.vpc(groups=self._groups(), uplink_address=self._host.public(12))
        return with_ports(spec, port(spec, "10.0.1.5", *self._some(), public_address=self.floating[2]), port(spec, "10.0.1.7", *self._some()))

    def _far(self) -> VpcSpec:
        subnet = SubnetSpec("subnet-far", "10.9.1.0/24", [BACK])
        spec = self._host.vpc(groups=self._groups(), cidr="10.9.0.0/16", uplink_address="", subnets=[subnet])
        return with_ports(spec, *(PortSpec(f"eni-far{n}", "subnet-far", f"52:54:00:09:01:0{n}", f"10.9.1.{n}", self._some()) for n in (5, 6)))

    def _some(self) -> list[str]:
        return self._chance.sample(GROUPS, self._chance.randint(1, 2))

    def _groups(self) -> list[GroupSpec]:
        return [
            GroupSpec(each, [*(self._rule(Direction.INGRESS) for _ in range(4)), *(self._rule(Direction.EGRESS) for _ in range(5))])
            for each in GROUPS
        ]

    def _rule(self, direction: Direction) -> RuleSpec:
        protocol = self._chance.choice((IpProtocol.TCP, IpProtocol.TCP, IpProtocol.ALL))
        number = self._chance.choice((None, *PORTS)) if protocol is IpProtocol.TCP else None
        where: dict[str, str] = (
            {"group_id": self._chance.choice(GROUPS)} if self._chance.random() < 0.25 else {"cidr": self._chance.choice(self._ranges)}
        )
        return RuleSpec(f"rule-{self._chance.random()}", direction, protocol, number, number, **where)

    def cases(self, guests: dict[str, Guest], outside: Outside) -> list[Case]:
        """Everybody calls every address that they could know, on every port."""
        full, twin, far = self.vpcs
        found = []
        for vpc in self.vpcs:
            inner = [each.address for other in ((full, far) if vpc is not twin else (twin,)) for each in other.ports]
            for each in vpc.ports:
                targets = [text for text in (*inner, *self.floating, outside.address) if text != each.address]
                found += [Case(each.port_id, guests[each.port_id], text, number) for text in targets for number in PORTS]
        return found + [Case(outside.address, outside, text, number) for text in (*self.floating, self._host.public(11)) for number in PORTS]


@pytest.fixture
def host() -> Iterator[NetworkHost]:
    with local_network_host() as found:
        yield found


@pytest.mark.parametrize("seed", [11, 14])
def test_what_is_said_is_what_happens(host: NetworkHost, seed: int) -> None:
    world = World(host, seed)
    for vpc in world.vpcs:
        host.engine.ensure_vpc(vpc)
    host.engine.ensure_peering(world.peering)
    guests = {each.port_id: Guest(host.engine, vpc, each).configure() for vpc in world.vpcs for each in vpc.ports}
    outside = Outside(host.engine, host)
    guests[world.through.port_id].run("sysctl", "-qw", "net.ipv4.ip_forward=1")
    try:
        for guest in (*guests.values(), outside):
            for number in PORTS:
                guest.serve(number)
        cases = world.cases(guests, outside)
        assert len(cases) >= 200
        with ThreadPoolExecutor(24) as pool:
            came = list(pool.map(lambda case: bool(case.caller.hears(case.target, case.number, WAIT_S)), cases))
        specs = reachability.Specs(world.vpcs, [world.peering])
        wrong = []
        for case, has_come in zip(cases, came, strict=True):
            answer = reachability.reach(specs, case.source, case.target, "tcp", case.number)
            # What should have come is tried once more, alone: the machine may have been busy.
            if answer.allowed is not has_come and not (answer.allowed and case.caller.hears(case.target, case.number, PATIENTLY_S)):
                wrong.append((case.source, case.target, case.number, answer.sentence))
        assert wrong == []
        assert 0.1 < sum(came) / len(came) < 0.9, "some of both"
    finally:
        for guest in (*guests.values(), outside):
            guest.close()
