"""From a VPC's state to routes, rules and files: pure functions, of which the host needs to know nothing."""

import struct
from dataclasses import replace
from ipaddress import IPv4Network

import pytest

from portal.engines.local.network import filter as rules
from portal.engines.local.network import guard, names
from portal.engines.local.network.flows import PAYLOAD, PREFIX, TIMESTAMP, FlowReader, flows_of
from portal.engines.local.network.metadata import answers
from portal.engines.local.network.name_server import host_resolvers
from portal.engines.local.network.netlink import attribute, attributes
from portal.engines.local.network.routing import (
    FIRST_TABLE,
    PEER_GATEWAY,
    PEERING_TABLE,
    Lookup,
    Route,
    covers,
    forwarded_by,
    led,
    over_peerings,
    tables,
)
from portal.engines.local.network.verdict import Connection, Verdicts
from portal.engines.network_ports import (
    Direction,
    GroupSpec,
    GuestData,
    IpProtocol,
    NatSpec,
    PortSpec,
    RouteSpec,
    RuleSpec,
    SubnetSpec,
    Via,
    VpcSpec,
    tap_name,
)

EXTERNAL = IPv4Network("100.64.0.0/16")
EVERYWHERE = "0.0.0.0/0"
A, B = SubnetSpec("subnet-a", "10.0.1.0/24"), SubnetSpec("subnet-b", "10.0.2.0/24")
WEB = GroupSpec(
    "sg-web",
    [
        RuleSpec("rule-1", Direction.INGRESS, IpProtocol.TCP, 80, 90, cidr="10.0.0.0/8"),
        RuleSpec("rule-2", Direction.EGRESS, IpProtocol.ALL, cidr=EVERYWHERE),
        RuleSpec("rule-3", Direction.INGRESS, IpProtocol.ICMP, icmp_type=8, group_id="sg-web"),
    ],
)
ONE = PortSpec("eni-1", "subnet-a", "52:54:00:00:00:01", "10.0.1.5", ("sg-web",), names=("one",))
TWO = PortSpec("eni-2", "subnet-b", "52:54:00:00:00:02", "10.0.2.5", ("sg-web",))
VPC = VpcSpec("vpc-1", "10.0.0.0/16", "test.internal", [A, B], [WEB], [ONE, TWO], uplink_address="100.64.0.8")


def routed(*routes: RouteSpec, **changes: object) -> VpcSpec:
    return replace(VPC, subnets=[replace(A, routes=routes), B], **changes)  # type: ignore[arg-type]


def of_first(spec: VpcSpec, *linked: str) -> set[Route]:
    return {route for route in tables(spec, EXTERNAL, linked)[0] if route.table == FIRST_TABLE}


def test_subnets_of_a_vpc_are_connected_by_themselves_and_lead_nowhere_else() -> None:
    near, far = names.subnet_side(A), names.subnet_side(B)
    assert of_first(VPC) == {
        Route(1000, "10.0.1.0/24", near), Route(1000, "10.0.2.0/24", far), Route(1000, "10.0.0.0/16"), Route(1000, EVERYWHERE),
    }  # fmt: skip
    assert tables(VPC, EXTERNAL, ())[1] == {Lookup(near, 1000), Lookup(far, 1001)}


def test_the_internet_gateway_needs_an_uplink_and_neighbours_need_no_host() -> None:
    spec = routed(RouteSpec(EVERYWHERE, Via.INTERNET))
    assert {Route(1000, EVERYWHERE, "up", "100.64.0.1"), Route(1000, "100.64.0.0/16", "up")} <= of_first(spec)
    closed = of_first(replace(spec, uplink_address=""))
    assert Route(1000, EVERYWHERE) in closed
    assert not any(route.interface == "up" for route in closed)


def test_the_longest_prefix_wins_against_the_vpc_itself() -> None:
    spec = routed(RouteSpec("10.0.0.0/16", Via.LOCAL), RouteSpec("10.0.2.0/24", Via.INTERFACE, "eni-1"))
    assert Route(1000, "10.0.2.0/24", names.subnet_side(A), "10.0.1.5") in of_first(spec)
    assert Route(1000, "10.0.2.0/24", names.subnet_side(B)) not in of_first(spec)
    assert covers(spec, spec.subnets[0], IPv4Network("10.0.2.9/32")).via is Via.INTERFACE
    assert covers(spec, spec.subnets[0], IPv4Network("10.0.3.9/32")).via is Via.LOCAL
    assert covers(spec, spec.subnets[0], IPv4Network("8.8.8.8/32")).via is Via.BLACKHOLE


def test_a_peering_is_routed_while_it_is_there_and_lets_in_to_subnets_only() -> None:
    spec = routed(RouteSpec("10.9.0.0/16", Via.PEERING, "pcx-1"))
    assert Route(1000, "10.9.0.0/16") in of_first(spec)
    routes, lookups = tables(spec, EXTERNAL, ["pcx-1"])
    assert Route(1000, "10.9.0.0/16", names.peering_side("pcx-1"), PEER_GATEWAY) in routes
    assert Lookup(names.peering_side("pcx-1"), PEERING_TABLE) in lookups
    assert {route.destination for route in routes if route.table == PEERING_TABLE} == {"10.0.1.0/24", "10.0.2.0/24", EVERYWHERE}


def test_the_guard_lets_a_guest_pass_on_only_what_is_routed_to_it() -> None:
    spec = routed(RouteSpec("192.168.7.0/24", Via.INTERFACE, "eni-2"))
    near, behind = [IPv4Network("10.0.1.0/24")], [IPv4Network("192.168.7.0/24")]
    assert forwarded_by(spec, "eni-2") == [(near, behind), (behind, near)]
    assert forwarded_by(spec, "eni-1") == []
    text = guard.render(spec, {"tgone"})
    assert "ip saddr { 192.168.7.0/24 } ip daddr { 10.0.1.0/24 } accept" in text
    assert text.count("ether saddr != 52:54:00:00:00:01 drop") == 1
    assert 'delete element bridge atonix guard { "tgone" }' in text
    assert "policy drop" in text


@pytest.mark.parametrize("wide", [EVERYWHERE, "10.0.0.0/8"])
def test_a_route_wider_than_the_vpc_makes_nobody_somebody_else_in_it(wide: str) -> None:
    inside, everybody = IPv4Network("10.0.0.0/16"), IPv4Network(wide)
    for sources, targets in forwarded_by(routed(RouteSpec(wide, Via.INTERFACE, "eni-2")), "eni-2"):
        ends = [each for each in (*sources, *targets) if each.overlaps(inside)]
        assert ends == [IPv4Network("10.0.1.0/24")], "the subnet with the route, on one side only"
        assert sum(each.num_addresses for each in (*sources, *targets)) == everybody.num_addresses - inside.num_addresses + 256


def test_rules_are_one_text_that_takes_away_what_is_gone() -> None:
    former = rules.objects(VPC)
    text = rules.render(replace(VPC, groups=[replace(WEB, rules=WEB.rules[:1])]), former, "100.64.0.1")
    assert f"delete counter inet atonix {rules.counter('rule-2')}" in text
    assert f"delete counter inet atonix {rules.counter('rule-1')}" not in text
    assert f'ip saddr 10.0.0.0/8 tcp dport 80-90 counter name "{rules.counter("rule-1")}" accept' in text
    assert "group 5" not in text
    assert "group 5" in rules.render(replace(VPC, flow_log=True), (), "100.64.0.1")


def test_floating_addresses_have_doors_where_packets_would_leave() -> None:
    floating = replace(ONE, public_address="100.64.0.50")
    spec = routed(RouteSpec(EVERYWHERE, Via.INTERNET), ports=[floating, TWO])
    text = rules.render(spec, (), "100.64.0.1")
    assert '"up" . 100.64.0.50 : 10.0.1.5' in text
    assert f'"{names.subnet_side(A)}" . 100.64.0.50' in text
    assert f'"{names.subnet_side(B)}" . 100.64.0.50' not in text
    assert "100.64.0.50" not in rules.render(replace(spec, uplink_address=""), (), "100.64.0.1")


@pytest.mark.parametrize(
    ("connection", "may"),
    [
        (Connection(6, "10.0.1.5", "10.0.2.5", "10.0.2.5", "10.0.1.5", 85), True),
        (Connection(6, "10.0.1.5", "10.0.2.5", "10.0.2.5", "10.0.1.5", 91), False),
        (Connection(17, "10.0.1.5", "10.0.2.5", "10.0.2.5", "10.0.1.5", 85), False),
        (Connection(1, "10.0.1.5", "10.0.2.5", "10.0.2.5", "10.0.1.5", icmp_type=8), True),
        (Connection(1, "10.0.1.5", "10.0.2.5", "10.0.2.5", "10.0.1.5", icmp_type=13), False),
        (Connection(6, "10.0.1.5", "10.0.2.9", "10.0.2.9", "10.0.1.5", 85), False),  # nobody has this address any more
        (Connection(6, "10.0.1.5", "192.0.2.1", "192.0.2.1", "100.64.0.8", 443), True),
        (Connection(6, "10.0.1.5", "192.0.2.1", "192.0.2.1", "100.64.0.9", 443), False),  # nor this public one
        (Connection(6, "10.9.1.5", "100.64.0.50", "10.0.1.5", "10.9.1.5", 80), False),  # no longer a floating address
        (Connection(6, "10.9.1.5", "10.0.1.5", "10.0.1.5", "10.9.1.5", 80), False),  # no route leads there any more
        (Connection(17, "10.0.1.5", "10.0.1.1", "10.0.1.1", "10.0.1.5", 53), True),
        (Connection(6, "10.0.1.77", "169.254.169.254", "169.254.169.254", "10.0.1.77", 80), False),
    ],
)
def test_connections_are_judged_as_the_rules_would(connection: Connection, may: bool) -> None:
    assert Verdicts(VPC).may_go_on(connection) is may


def test_connections_of_a_peer_go_on_while_answers_would_go_over_a_peering() -> None:
    spec = routed(RouteSpec("10.9.0.0/16", Via.PEERING, "pcx-1"))
    assert Verdicts(spec).may_go_on(Connection(6, "10.9.1.5", "10.0.1.5", "10.0.1.5", "10.9.1.5", 80))
    assert not Verdicts(spec).may_go_on(Connection(1, "10.9.1.5", "10.0.2.5", "10.0.2.5", "10.9.1.5", icmp_type=8))


@pytest.mark.parametrize("way", ["in", "out"])
def test_connections_go_on_over_no_other_peering(way: str) -> None:
    spec = routed(RouteSpec("10.9.0.0/16", Via.PEERING, "pcx-1"))
    over = (
        Connection(6, "10.9.1.5", "10.0.1.5", "10.0.1.5", "10.9.1.5", 80)
        if way == "in"
        else Connection(6, "10.0.1.5", "10.9.1.5", "10.9.1.5", "10.0.1.5", 80)
    )
    noted = over_peerings(spec)
    assert [(each.cidr, each.peering_id) for each in noted] == [("10.9.0.0/16", "pcx-1")]
    assert Verdicts(spec, noted).may_go_on(over), "nothing has changed"
    assert not Verdicts(spec, [replace(noted[0], peering_id="")]).may_go_on(over), "the peering is another of the same name"
    exchanged = routed(RouteSpec("10.9.0.0/16", Via.PEERING, "pcx-2"))
    assert Verdicts(exchanged).may_go_on(over)
    assert not Verdicts(exchanged, noted).may_go_on(over)
    assert Verdicts(exchanged, [replace(noted[0], cidr="10.8.0.0/16")]).may_go_on(over), "it went elsewhere"


def test_what_a_table_leads_somewhere_is_without_what_it_leads_elsewhere() -> None:
    spec = routed(
        RouteSpec("10.0.0.0/8", Via.PEERING, "pcx-1"), RouteSpec("10.9.0.0/16", Via.PEERING, "pcx-2"), RouteSpec("10.9.9.0/24", Via.PEERING, "pcx-1")
    )
    found = led(spec, spec.subnets[0], Via.PEERING)
    for target, text in (("pcx-1", "10.1.0.0"), ("pcx-2", "10.9.1.0"), ("pcx-1", "10.9.9.0"), ("", "10.0.1.0")):
        assert [each for each in found if any(IPv4Network(f"{text}/32").subnet_of(part) for part in found[each])] == [target][: bool(target)]


def test_nat_gateways_keep_their_connections() -> None:
    spec = replace(VPC, nats=[NatSpec("nat-1", "100.64.0.60")])
    assert Verdicts(spec).may_go_on(Connection(6, "10.0.1.5", "192.0.2.1", "192.0.2.1", "100.64.0.60", 443))
    assert not Verdicts(replace(spec, shared_nat=False)).may_go_on(Connection(6, "10.0.1.5", "192.0.2.1", "192.0.2.1", "100.64.0.8", 443))


def test_names_of_links_fit_and_differ() -> None:
    every = [*names.links_of(replace(VPC, nats=[NatSpec("nat-1", "100.64.0.60")])), names.peering_side("pcx-1"), names.subnet_side(A)]
    assert len(set(every)) == len(every) == 10
    assert max(map(len, every)) <= 15
    assert tap_name("eni-1") in every
    assert names.mac("a", "b") == names.mac("a", "b") != names.mac("a", "c")
    assert int(names.mac("a")[:2], 16) & 3 == 2, "locally given, not shared"


def test_the_metadata_of_a_guest_is_listed_like_directories() -> None:
    guest = GuestData("i-1", "web", ("ssh-ed25519 AAAA me",), "#!/bin/sh\n", "100.64.0.50", {"team": "a"})
    found = {path: text.decode() for path, text in answers(replace(ONE, guest=guest)).items()}
    assert found["/latest/meta-data/public-keys/0/openssh-key"] == "ssh-ed25519 AAAA me"
    assert found["/latest/meta-data/public-keys/"] == "0/"
    assert found["/latest/meta-data/tags/instance/team"] == "a"
    assert "public-keys/" in found["/latest/meta-data/"].splitlines()
    assert found["/nocloud/user-data"] == found["/latest/user-data"] == "#!/bin/sh\n"
    assert answers(ONE) == {}


def test_netlink_attributes_are_read_as_they_were_written() -> None:
    body = attribute(1, b"abc") + attribute(0x8000 | 2, attribute(3, b"")) + b"\x01\x00"
    assert attributes(body) == {1: b"abc", 2: attribute(3, b"")}


def packet(protocol: int, rest: bytes = b"") -> bytes:
    return struct.pack(">BBHHHBBH4s4s", 0x45, 0, 60, 0, 0, 64, protocol, 0, bytes([10, 0, 1, 5]), bytes([10, 0, 2, 5])) + rest


def test_reading_no_flow_log_takes_no_notice_of_changes() -> None:
    reader = FlowReader()
    for _ in range(1000):
        reader.ensure("none", "vpc-1", wanted=False)
    reader.close()


def test_copied_packets_become_flows() -> None:
    stamp = attribute(TIMESTAMP, struct.pack(">QQ", 1000, 500_000))
    (flow,) = flows_of("vpc-1", attribute(PREFIX, b"accepted\0") + stamp + attribute(PAYLOAD, packet(6, struct.pack(">HH", 40_000, 80))))
    assert (flow.at_s, flow.accepted, flow.protocol, flow.source, flow.source_port) == (1000.5, True, "tcp", "10.0.1.5", 40_000)
    assert (flow.destination, flow.destination_port, flow.size_bytes) == ("10.0.2.5", 80, 60)
    (ping,) = flows_of("vpc-1", attribute(PREFIX, b"refused\0") + stamp + attribute(PAYLOAD, packet(1, b"\x08\x00\x00\x00")))
    assert (ping.accepted, ping.protocol, ping.destination_port) == (False, "icmp", 0)
    assert list(flows_of("vpc-1", attribute(PAYLOAD, b"\x60" + bytes(60)))) == []
    assert list(flows_of("vpc-1", attribute(PAYLOAD, b"short"))) == []


def test_name_servers_of_the_host_are_those_that_guests_could_reach(tmp_path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    first.write_text("# made by somebody\nnameserver 127.0.0.53\nnameserver ::1\n")
    second.write_text("search example\nnameserver 192.0.2.53\nnameserver fe80::1%eth0\nnameserver\n")
    assert host_resolvers([tmp_path / "absent", first, second]) == ["192.0.2.53"]
    assert host_resolvers([first]) == []
