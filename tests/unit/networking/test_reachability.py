"""Reachability: against an evaluator written in another way, over worlds that hypothesis makes; and what the answers say."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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
from portal.networking.reachability import INTERNET, Specs, best_route, reach
from portal.networking.rules import covers

# -- an evaluator of integers and tables -----------------------------------------------------------------------------------------------------


def number(address: str) -> int:
    value = 0
    for part in address.split("."):
        value = value * 256 + int(part)
    return value


def span(cidr: str) -> tuple[int, int]:
    first, length = cidr.split("/")
    return number(first), number(first) + 2 ** (32 - int(length)) - 1


class Brute:
    """Every question looked up in lists of (first, last) pairs; it knows no CIDR arithmetic of the library and no hops."""

    def __init__(self, specs: Specs) -> None:
        self.specs = specs
        self.owner = {port.port_id: (vpc, port) for vpc in specs.vpcs for port in vpc.ports}
        self.outside = {port.public_address: port.port_id for vpc in specs.vpcs for port in vpc.ports if port.public_address}

    def passes(self, port_id: str, direction: str, protocol: str, number_: int, first: int, last: int) -> bool:
        vpc, port = self.owner[port_id]
        for group in vpc.groups:
            for rule in group.rules if group.group_id in port.group_ids else ():
                if rule.direction.value != direction or rule.protocol.value not in ("-1", protocol):
                    continue
                if rule.protocol.value in ("tcp", "udp") and rule.from_port is not None and number_ not in range(rule.from_port, rule.to_port + 1):
                    continue
                if rule.protocol.value == "icmp" and rule.icmp_type not in (None, number_):
                    continue
                if rule.cidr:
                    low, high = span(rule.cidr)
                    if low <= first and last <= high:
                        return True
                elif first == last and first in {number(each.address) for each in vpc.ports if rule.group_id in each.group_ids}:
                    return True
        return False

    def route(self, port_id: str, first: int, last: int) -> RouteSpec | None:
        vpc, port = self.owner[port_id]
        (subnet,) = (each for each in vpc.subnets if each.subnet_id == port.subnet_id)
        table = sorted(subnet.routes, key=lambda route: -int(route.destination.split("/")[1]))
        return next((route for route in table if span(route.destination)[0] <= first and last <= span(route.destination)[1]), None)

    def ask(self, source: str, target: str, protocol: str, number_: int) -> bool:
        if target in self.owner:
            vpc, port = self.owner[target]
            mine = self.owner.get(source)
            if mine and mine[0].vpc_id == vpc.vpc_id:
                return self.sent(source, port.address, protocol, number_)
            over = mine and any(sorted((mine[0].vpc_id, vpc.vpc_id)) == sorted(peering.vpc_ids) for peering in self.specs.peerings)
            return bool(
                (over and self.sent(source, port.address, protocol, number_))
                or (port.public_address and self.sent(source, port.public_address, protocol, number_))
            )
        return self.sent(source, target, protocol, number_)

    def sent(self, source: str, address: str, protocol: str, number_: int) -> bool:
        world = (0, 2**32 - 1)
        first, last = world if address == INTERNET else (number(address),) * 2
        if source not in self.owner:
            if address not in self.outside or (source != INTERNET and self.is_inside(self.owner[self.outside[address]][0], source)):
                return False
            return self.public(self.outside[address], *(world if source == INTERNET else (number(source),) * 2), protocol, number_)
        vpc, _ = self.owner[source]
        if (0 if address == INTERNET else number(address)) in {span(subnet.cidr)[0] + 1 for subnet in vpc.subnets}:
            return (protocol, number_) in {("tcp", 53), ("udp", 53), ("icmp", 8)}
        if address == "169.254.169.254":
            return (protocol, number_) == ("tcp", 80)
        return self.passes(source, "egress", protocol, number_, first, last) and self.goes(source, source, address, protocol, number_)

    @staticmethod
    def is_inside(vpc: VpcSpec, address: str) -> bool:
        low, high = span(vpc.cidr)
        return address != INTERNET and low <= number(address) <= high

    def closer(self, port_id: str, address: str) -> RouteSpec | None:
        """A route that goes before the VPC's own."""
        route = self.route(port_id, number(address), number(address))
        own = int(self.owner[port_id][0].cidr.split("/")[1])
        return route if route is not None and int(route.destination.split("/")[1]) > own else None

    def goes(self, source: str, holder: str, address: str, protocol: str, number_: int) -> bool:
        """Where it goes from `holder`, which passes on what `source` began unless they are one."""
        vpc, port = self.owner[source]
        first, last = (0, 2**32 - 1) if address == INTERNET else (number(address),) * 2
        inside = self.is_inside(vpc, address)
        route = self.closer(holder, address) if inside else self.route(holder, first, last)
        if inside and route is None:
            ends = [each.port_id for each in vpc.ports if each.address == address]
            backs = [self.closer(each, port.address) for each in ends]
            return any(
                (back is None or back.via is Via.INTERFACE) and self.arrives(end, port, protocol, number_)
                for end, back in zip(ends, backs, strict=True)
            )
        if route is None or route.via is Via.BLACKHOLE:
            return False
        if route.via is Via.PEERING:
            return self.crosses(vpc, port, route, address, protocol, number_)
        if route.via is Via.INTERFACE:
            there = route.target_id
            own = {vpc.uplink_address, *(each.public_address for each in vpc.nats), *(each.public_address for each in vpc.ports)}
            if (
                address in own
                or there == holder
                or there not in {each.port_id for each in vpc.ports}
                or not self.arrives(there, port, protocol, number_)
            ):
                return False
            return not inside or (
                holder == source
                and self.passes(there, "egress", protocol, number_, first, last)
                and self.goes(source, there, address, protocol, number_)
            )
        return bool(vpc.uplink_address) and self.leaves(vpc, port, route, address, protocol, number_)

    def leaves(self, vpc: VpcSpec, port: PortSpec, route: RouteSpec, address: str, protocol: str, number_: int) -> bool:
        nat = {each.nat_id: each.public_address for each in vpc.nats}
        shown = nat.get(route.target_id, "") if route.via is Via.NAT else port.public_address or (vpc.uplink_address if vpc.shared_nat else "")
        if not shown:
            return False
        if address in self.outside:
            end = self.outside[address]
            here = self.owner[end][0] is vpc
            return self.public(end, number(shown), number(shown), protocol, number_, turns=number(address) if here else None)
        taken = {text for each in self.specs.vpcs for text in (each.uplink_address, *(one.public_address for one in each.nats))}
        return address not in {*taken, "100.64.0.1"} and not any(self.is_inside(each, address) for each in self.specs.vpcs)

    def arrives(self, target: str, sender: PortSpec, protocol: str, number_: int) -> bool:
        return self.passes(target, "ingress", protocol, number_, number(sender.address), number(sender.address))

    def crosses(self, vpc: VpcSpec, port: PortSpec, route: RouteSpec, address: str, protocol: str, number_: int) -> bool:
        for peering in self.specs.peerings:
            if peering.peering_id != route.target_id or vpc.vpc_id not in peering.vpc_ids:
                continue
            for target, (other, there) in self.owner.items():
                if other.vpc_id in peering.vpc_ids and other.vpc_id != vpc.vpc_id and there.address == address:
                    back = self.route(target, number(port.address), number(port.address))
                    return (
                        back is not None
                        and (back.via, back.target_id) == (Via.PEERING, peering.peering_id)
                        and self.arrives(target, port, protocol, number_)
                    )
        return False

    def public(self, target: str, first: int, last: int, protocol: str, number_: int, *, turns: int | None = None) -> bool:
        back = self.route(target, first, last) if turns is None else self.route(target, turns, turns)
        return (
            bool(self.owner[target][0].uplink_address)
            and back is not None
            and back.via is Via.INTERNET
            and self.passes(target, "ingress", protocol, number_, first, last)
        )


# -- worlds ------------------------------------------------------------------------------------------------------------------------------------

PORTS = st.sampled_from([22, 53, 80, 443])


@st.composite
def rules(draw: st.DrawFn, label: str, cidrs: list[str], groups: list[str]) -> RuleSpec:
    protocol = draw(st.sampled_from(IpProtocol))
    low, high = sorted((draw(PORTS), draw(PORTS)))
    ports = (low, high) if protocol in {IpProtocol.TCP, IpProtocol.UDP} else (None, None)
    icmp = draw(st.sampled_from([None, 8, 22])) if protocol is IpProtocol.ICMP else None
    whom = draw(st.sampled_from(["0.0.0.0/0", "0.0.0.0/0", *cidrs, *groups]))
    return RuleSpec(label, draw(st.sampled_from(Direction)), protocol, *ports, icmp, **({"cidr": whom} if "/" in whom else {"group_id": whom}))


@st.composite
def vpcs(draw: st.DrawFn, key: str, cidr: str) -> VpcSpec:
    base = cidr.rsplit(".", 2)[0]
    groups = [f"sg-{key}{n}" for n in range(3)]
    cidrs = ["0.0.0.0/0", cidr, f"{base}.1.0/24", f"{base}.1.4/32", "10.0.0.0/8", "100.64.0.0/16", "192.0.2.0/24", "128.0.0.0/1"]
    ports = [
        PortSpec(f"eni-{key}{n}", f"subnet-{key}{draw(st.integers(1, 2))}", "02:00:00:00:00:01", "", tuple(draw(st.sampled_from([groups, groups[:2], groups[1:], groups[:1], []]))),
                 f"100.64.{ord(key)}.{n}" if n < 3 else "")
        for n in range(4)
    ]  # fmt: skip
    ports = [replace(port, address=f"{base}.{port.subnet_id[-1]}.{4 + n}") for n, port in enumerate(ports)]
    targets = [
        (Via.INTERNET, ""),
        (Via.NAT, f"nat-{key}"),
        (Via.NAT, "nat-gone"),
        (Via.PEERING, "pcx-1"),
        (Via.INTERFACE, f"eni-{key}0"),
        (Via.BLACKHOLE, ""),
    ]
    destinations = st.lists(st.sampled_from(["0.0.0.0/0", "10.0.0.0/8", "10.1.0.0/16", "10.0.0.0/16", "100.64.0.0/16", "192.0.2.0/24"]), unique=True)
    routes = [[RouteSpec(each, *draw(st.sampled_from(targets))) for each in draw(destinations) if each != cidr] for _ in range(2)]
    # Most packets get out of the door: what comes behind it is to be tried as well.
    routes[0] = [RouteSpec("0.0.0.0/0", Via.INTERNET), RouteSpec("10.1.0.0/16" if key != "b" else "10.0.0.0/16", Via.PEERING, "pcx-1")]
    if draw(st.booleans()):
        closer = draw(st.sampled_from([(Via.INTERFACE, f"eni-{key}0"), (Via.INTERFACE, f"eni-{key}1"), (Via.BLACKHOLE, "")]))
        routes[draw(st.integers(0, 1))].append(RouteSpec(f"{base}.{draw(st.integers(1, 2))}.0/24", *closer))
    doors = [RuleSpec(f"out-{key}", Direction.EGRESS, IpProtocol.ALL, cidr="0.0.0.0/0")] if draw(st.integers(0, 3)) else []
    return VpcSpec(
        f"vpc-{key}", cidr, "x", [SubnetSpec(f"subnet-{key}{n}", f"{base}.{n}.0/24", routes[n - 1]) for n in (1, 2)],
        [GroupSpec(group, [*doors, *draw(st.lists(rules(f"r-{group}", cidrs, groups), max_size=5))]) for group in groups], ports, [NatSpec(f"nat-{key}", f"100.64.{ord(key)}.100")],
        uplink_address=draw(st.sampled_from(["", *[f"100.64.{ord(key)}.200"] * 4])), shared_nat=draw(st.booleans()),
    )  # fmt: skip


@st.composite
def worlds(draw: st.DrawFn) -> Specs:
    # The third has the range of the first.
    made = [draw(vpcs("a", "10.0.0.0/16")), draw(vpcs("b", "10.1.0.0/16")), draw(vpcs("c", "10.0.0.0/16"))]
    return Specs(made, [PeeringSpec("pcx-1", ("vpc-a", "vpc-b"))] if draw(st.booleans()) else [], external="100.64.0.0/10")


PLACES = st.sampled_from(
    [
        *(f"eni-{key}{n}" for key in "abc" for n in range(4)),
        INTERNET,
        "192.0.2.7",
        "100.64.0.1",
        "100.64.97.200",
        "100.64.97.100",
        "169.254.169.254",
        "10.0.1.1",
        "10.0.1.4",
        "10.0.2.6",
        "10.1.1.5",
        "100.64.97.1",
        "100.64.98.2",
    ]
)


@settings(max_examples=100, deadline=None)
@given(
    worlds(),
    st.lists(st.tuples(PLACES, PLACES, st.sampled_from(["tcp", "udp", "icmp"]), st.sampled_from([8, 22, 53, 80, 443])), min_size=20, max_size=40),
)
def test_the_same_as_an_evaluator_written_otherwise(world: Specs, questions: list[tuple[str, str, str, int]]) -> None:
    brute = Brute(world)
    for question in questions:
        answer = reach(world, *question)
        assert answer.allowed == brute.ask(*question), (question, answer)
        assert answer.sentence.endswith(".")
        word = "cannot" if not answer.allowed else "can" if answer.is_certain else "may"
        assert f" {word} reach " in answer.sentence
        assert answer.decided_by


# -- what the answers say ------------------------------------------------------------------------------------------------------------------------

NAMES = {"eni-1": "web", "eni-2": "db", "sg-web": "web-group", "sg-db": "db-group", "subnet-1": "front", "vpc-1": "shop"}
OUT = RuleSpec("rule-out", Direction.EGRESS, IpProtocol.ALL, cidr="0.0.0.0/0")


DB = RuleSpec("rule-pg", Direction.INGRESS, IpProtocol.TCP, 5432, 5432, cidr="0.0.0.0/0")


def with_peer(*routes: RouteSpec) -> Specs:
    """The shop, peered with a VPC of databases."""
    one = shop(RouteSpec("0.0.0.0/0", Via.INTERNET), *routes)
    back = RouteSpec("10.0.0.0/16", Via.PEERING, "pcx-1")
    other = VpcSpec(
        "vpc-2", "10.1.0.0/16", "y", [SubnetSpec("subnet-9", "10.1.1.0/24", [back])], [GroupSpec("sg-9", [DB])],
        [PortSpec("eni-9", "subnet-9", "", "10.1.1.4", ["sg-9"])],
    )  # fmt: skip
    peering = PeeringSpec("pcx-1", ("vpc-1", "vpc-2"))
    return replace(one, vpcs=[*one.vpcs, other], peerings=[peering], names={**NAMES, "vpc-2": "data", "eni-9": "store", "sg-9": "store-group"})


def shop(*routes: RouteSpec, public: str = "", uplink: str = "100.64.0.5") -> Specs:
    groups = [
        GroupSpec("sg-web", [OUT, RuleSpec("rule-http", Direction.INGRESS, IpProtocol.TCP, 80, 80, cidr="0.0.0.0/0")]),
        GroupSpec("sg-db", [RuleSpec("rule-pg", Direction.INGRESS, IpProtocol.TCP, 5432, 5432, group_id="sg-web")]),
    ]
    ports = [PortSpec("eni-1", "subnet-1", "", "10.0.1.4", ["sg-web"], public), PortSpec("eni-2", "subnet-1", "", "10.0.1.5", ["sg-db"])]
    return Specs(
        [VpcSpec("vpc-1", "10.0.0.0/16", "x", [SubnetSpec("subnet-1", "10.0.1.0/24", routes)], groups, ports, uplink_address=uplink)],
        names=NAMES,
        external="100.64.0.0/16",
    )


@pytest.mark.parametrize(
    ("specs", "question", "decider", "says"),
    [
        (shop(), ("eni-1", "eni-2", "tcp", 5432), "rule-pg", "web can reach db with PostgreSQL (TCP port 5432): a rule of db-group decides. Lets PostgreSQL (TCP port 5432) in from members of web-group."),
        (shop(), ("eni-1", "eni-2", "tcp", 22), "sg-db", "web cannot reach db with SSH (TCP port 22): No rule of db-group lets SSH (TCP port 22) in from 10.0.1.4."),
        (shop(), ("eni-2", "eni-1", "tcp", 80), "sg-db", "db cannot reach web with HTTP (TCP port 80): No rule of db-group lets HTTP (TCP port 80) out to 10.0.1.4."),
        (shop(), ("eni-1", INTERNET, "tcp", 443), "subnet-1", "web cannot reach the internet with HTTPS (TCP port 443): No route of front leads to the internet."),
        (shop(RouteSpec("0.0.0.0/0", Via.INTERNET)), ("eni-1", INTERNET, "tcp", 443), "0.0.0.0/0", "the route 0.0.0.0/0 leads there, and the rules let it out."),
        (shop(RouteSpec("0.0.0.0/0", Via.INTERNET), uplink=""), ("eni-1", INTERNET, "tcp", 443), "vpc-1", "shop has no internet gateway."),
        (shop(RouteSpec("0.0.0.0/0", Via.INTERNET)), (INTERNET, "eni-1", "tcp", 80), "eni-1", "The internet cannot reach web with HTTP (TCP port 80): web has no public address."),
        (shop(RouteSpec("0.0.0.0/0", Via.INTERNET), public="100.64.0.9"), (INTERNET, "eni-1", "tcp", 80), "rule-http", "The internet can reach web"),
        (shop(public="100.64.0.9"), ("192.0.2.1", "eni-1", "tcp", 80), "subnet-1", "Answers would not come back"),
        (with_peer(), ("eni-1", "eni-9", "tcp", 5432), "0.0.0.0/0", "10.1.1.4 lies in data, and the route 0.0.0.0/0 of front leads out to the internet instead. A route for 10.1.0.0/16 has to lead over the peering."),
        (with_peer(RouteSpec("10.1.0.0/16", Via.PEERING, "pcx-1")), ("eni-1", "eni-9", "tcp", 5432), "rule-pg", "a rule of store-group decides."),
        (shop(RouteSpec("0.0.0.0/0", Via.INTERNET)), ("eni-1", "100.64.0.1", "tcp", 80), "100.64.0.1", "is the host's, which guests do not reach"),
        (shop(RouteSpec("0.0.0.0/0", Via.INTERNET)), ("eni-1", "100.64.0.5", "tcp", 80), "100.64.0.5", "belongs to a gateway, which answers nobody"),
        (shop(RouteSpec("100.64.0.0/24", Via.INTERFACE, "eni-2")), ("eni-1", "100.64.0.5", "tcp", 80), "100.64.0.5", "its router keeps what is sent there"),
        (shop(RouteSpec("10.1.0.0/16", Via.INTERFACE, "eni-1")), ("eni-1", "10.1.0.5", "tcp", 80), "10.1.0.0/16", "leads back to web, from where it comes"),
        (shop(RouteSpec("10.0.1.5/32", Via.BLACKHOLE)), ("eni-1", "eni-2", "tcp", 5432), "10.0.1.5/32", "leads nowhere"),
        (shop(), ("eni-2", "10.0.1.1", "udp", 53), "vpc-1", "10.0.1.1 is a router, which answers DNS and ping of every guest in shop."),
        (shop(), ("eni-1", "10.0.1.1", "tcp", 22), "vpc-1", "which answers DNS and ping and nothing else"),
        (shop(), ("eni-2", "169.254.169.254", "tcp", 80), "vpc-1", "is the metadata service"),
        (shop(RouteSpec("0.0.0.0/0", Via.INTERNET), public="100.64.0.9"), ("10.0.1.99", "100.64.0.9", "tcp", 80), "10.0.1.99", "nothing with this address is let in from outside"),
        (shop(), ("eni-1", "10.0.1.77", "tcp", 80), "10.0.1.77", "No network interface in shop has the address 10.0.1.77."),
    ],
)  # fmt: skip
def test_answers_name_what_decides(specs: Specs, question: tuple[str, str, str, int], decider: str, says: str) -> None:
    answer = reach(specs, *question)
    assert answer.decider_id == decider
    assert says in answer.sentence
    assert "eni-" not in answer.sentence


def test_a_closer_route_leads_through_the_guest_that_it_names() -> None:
    back, front = SubnetSpec("subnet-2", "10.0.2.0/24"), SubnetSpec("subnet-1", "10.0.1.0/24", [RouteSpec("10.0.2.0/24", Via.INTERFACE, "eni-mid")])
    groups = [GroupSpec("sg-all", [OUT, RuleSpec("rule-in", Direction.INGRESS, IpProtocol.ALL, cidr="10.0.0.0/16")]), GroupSpec("sg-db", [DB])]
    ports = [
        PortSpec("eni-1", "subnet-1", "", "10.0.1.4", ["sg-all"]), PortSpec("eni-2", "subnet-2", "", "10.0.2.4", ["sg-db"]),
        PortSpec("eni-mid", "subnet-3", "", "10.0.3.4", ["sg-all"]),
    ]  # fmt: skip
    world = Specs([VpcSpec("vpc-1", "10.0.0.0/16", "x", [front, back, SubnetSpec("subnet-3", "10.0.3.0/24")], groups, ports)], names=NAMES)
    answer = reach(world, "eni-1", "eni-2", "tcp", 5432)
    assert answer.sentence.startswith("web may reach db with PostgreSQL (TCP port 5432): if eni-mid passes it on, a rule of db-group decides.")
    assert not answer.is_certain
    assert [hop.id for hop in answer.hops if hop.kind == "interface"] == ["eni-1", "eni-mid", "eni-mid", "eni-2"]
    # Who passes on is asked as well.
    mute = [replace(port, group_ids=["sg-db"]) if port.port_id == "eni-mid" else port for port in ports]
    refused = reach(replace(world, vpcs=[replace(world.vpcs[0], ports=mute)]), "eni-1", "eni-2", "tcp", 5432)
    assert (refused.allowed, refused.decider_id) == (False, "sg-db")
    assert "out to 10.0.2.4" in refused.sentence


def test_a_place_that_is_none_is_refused() -> None:
    for question in (("eni-9", "eni-1"), ("eni-1", "10.0.0.256"), ("the web", INTERNET)):
        with pytest.raises(ValueError, match="no network interface here"):
            reach(shop(), *question, "tcp", 80)


def test_the_longest_prefix_wins() -> None:
    routes = [RouteSpec("0.0.0.0/0", Via.INTERNET), RouteSpec("10.0.0.0/8", Via.PEERING, "pcx-1"), RouteSpec("10.2.0.0/16", Via.BLACKHOLE)]
    assert [best_route(routes, address).via for address in ("10.1.0.1", "10.2.0.1", "9.9.9.9", INTERNET)] == [
        Via.PEERING,
        Via.BLACKHOLE,
        Via.INTERNET,
        Via.INTERNET,
    ]
    assert best_route(routes[1:], INTERNET) is None
    assert not covers(RuleSpec("", Direction.INGRESS, IpProtocol.TCP, 80, 90), "tcp", None)
