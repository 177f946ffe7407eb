"""What every network engine promises, tried with the fake one here and with the real one in tests/integration."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from portal.engines.network_ports import (
    Direction,
    GroupSpec,
    IpProtocol,
    NatSpec,
    NetworkEngine,
    PeeringSpec,
    Refusals,
    RouteSpec,
    SubnetSpec,
    Via,
    VpcSpec,
)
from portal.engines.ports import EngineError, EngineRefused
from tests.support.network import EVERYWHERE, NetworkHost, fake_network_host, port, rule, with_ports


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> NetworkHost:
    """One engine for all tests here. The tests of a driver that needs a host of its own replace this."""
    return fake_network_host(tmp_path_factory.mktemp("fake"))


@pytest.fixture
def host(installation: NetworkHost) -> Iterator[NetworkHost]:
    """The engine, without networks of earlier tests."""
    yield installation
    installation.clear()


@pytest.fixture
def engine(host: NetworkHost) -> NetworkEngine:
    return host.engine


def test_says_that_it_can_work(engine: NetworkEngine) -> None:
    found = engine.capability()
    assert (found.name, found.available, found.reason) == ("network", True, "")
    assert found.detail


def test_everything_may_be_asked_for_twice(host: NetworkHost, engine: NetworkEngine) -> None:
    one = host.vpc()
    other = host.vpc(cidr="10.9.0.0/16", subnets=[SubnetSpec("subnet-9", "10.9.1.0/24")])
    peering = PeeringSpec("pcx-1", (one.vpc_id, other.vpc_id))
    for _ in range(2):
        engine.ensure_vpc(with_ports(one, port(one, "10.0.1.5")))
        engine.ensure_vpc(other)
        engine.ensure_peering(peering)
    assert set(engine.vpcs()) == {one.vpc_id, other.vpc_id}
    assert engine.drift() == []
    engine.ensure_vpc(replace(one, subnets=one.subnets[:1]))
    assert engine.drift() == []
    for _ in range(2):
        engine.remove_peering(peering.peering_id)
    assert engine.drift() == []
    for _ in range(2):
        engine.remove_vpc(one.vpc_id)
    assert list(engine.vpcs()) == [other.vpc_id]


def test_what_is_not_there_is_removed_already(engine: NetworkEngine) -> None:
    engine.remove_vpc("vpc-absent0")
    engine.remove_peering("pcx-absent0")
    assert engine.vpcs() == []
    assert engine.drift() == []
    assert engine.flows() == []
    assert engine.rule_hits("vpc-absent0") == {}
    assert engine.refusals("vpc-absent0") == Refusals()


def test_taps_have_short_names_that_stay(host: NetworkHost) -> None:
    first = host.engine.tap_of("eni-0123456789abcdef0123")
    assert len(first) <= 15
    assert first == host.reopen().tap_of("eni-0123456789abcdef0123")
    assert first != host.engine.tap_of("eni-0123456789abcdef0124")


def test_another_process_finds_what_is_there(host: NetworkHost, engine: NetworkEngine) -> None:
    spec = host.vpc()
    engine.ensure_vpc(spec)
    host.reopen()
    assert list(host.engine.vpcs()) == [spec.vpc_id]
    assert host.engine.drift() == []
    assert host.engine.rule_hits(spec.vpc_id) == {"rule-http": 0, "rule-out": 0}


def test_what_was_changed_from_outside_is_told_until_it_is_healed(host: NetworkHost, engine: NetworkEngine) -> None:
    spec, other = host.vpc(), host.vpc()
    engine.ensure_vpc(spec)
    engine.ensure_vpc(other)
    host.damage(spec.vpc_id, "router rules")
    for _ in range(2):
        (found,) = engine.drift()
        assert found.vpc_id == spec.vpc_id
        assert found.what
    engine.ensure_vpc(spec)
    assert engine.drift() == []


def test_a_removed_vpc_takes_its_peerings_along(host: NetworkHost, engine: NetworkEngine) -> None:
    one = host.vpc()
    other = host.vpc(cidr="10.9.0.0/16", subnets=[])
    engine.ensure_vpc(one)
    engine.ensure_vpc(other)
    engine.ensure_peering(PeeringSpec("pcx-1", (one.vpc_id, other.vpc_id)))
    engine.remove_vpc(one.vpc_id)
    assert engine.drift() == []
    with pytest.raises(EngineRefused, match="two VPCs that are there"):
        engine.ensure_peering(PeeringSpec("pcx-1", (one.vpc_id, other.vpc_id)))


def test_a_peering_needs_ranges_that_do_not_overlap(host: NetworkHost, engine: NetworkEngine) -> None:
    one, same = host.vpc(), host.vpc()
    engine.ensure_vpc(one)
    engine.ensure_vpc(same)
    for ends in ((one.vpc_id, same.vpc_id), (one.vpc_id, one.vpc_id)):
        with pytest.raises(EngineRefused, match="do not overlap"):
            engine.ensure_peering(PeeringSpec("pcx-1", ends))


def test_a_vpc_changes_as_a_whole(host: NetworkHost, engine: NetworkEngine) -> None:
    spec = host.vpc()
    full = replace(
        with_ports(spec, port(spec, "10.0.1.5"), port(spec, "10.0.2.5", public_address=host.public(77))), nats=[NatSpec("nat-1", host.public(78))]
    )
    bare = replace(spec, subnets=[], groups=[], uplink_address="")
    for state in (spec, full, bare, full, spec, bare):
        engine.ensure_vpc(state)
        assert engine.drift() == []


Change = Callable[[VpcSpec], VpcSpec]


def with_routes(*routes: RouteSpec) -> Change:
    return lambda spec: replace(spec, subnets=[replace(spec.subnets[0], routes=routes), spec.subnets[1]])


def with_rules(*rules: object) -> Change:
    return lambda spec: replace(spec, groups=[GroupSpec("sg-web", rules)])  # type: ignore[arg-type]


def with_subnets(*cidrs: str) -> Change:
    return lambda spec: replace(spec, subnets=[SubnetSpec(f"subnet-{number}", cidr) for number, cidr in enumerate(cidrs)])


def one_port(**changes: object) -> Change:
    return lambda spec: with_ports(spec, replace(port(spec, "10.0.1.5"), **changes))  # type: ignore[arg-type]


WRONG: dict[str, tuple[Change, str]] = {
    "vpc with host bits": (lambda spec: replace(spec, cidr="10.0.0.1/16"), "without host bits"),
    "vpc with IPv6": (lambda spec: replace(spec, cidr="fd00::/64"), "address range"),
    "domain with a line": (lambda spec: replace(spec, domain="a\nserver=/x/1.2.3.4"), "name in DNS"),
    "name server that is none": (lambda spec: replace(spec, dns_servers=["resolver"]), "address is written"),
    "subnets that overlap": (with_subnets("10.0.0.0/23", "10.0.1.0/24"), "overlap"),
    "subnet outside": (with_subnets("10.1.0.0/24"), "must lie in"),
    "subnet too small": (with_subnets("10.0.0.0/30"), "or larger"),
    "subnet twice": (lambda spec: replace(spec, subnets=[spec.subnets[0], replace(spec.subnets[1], subnet_id=spec.subnets[0].subnet_id)]), "twice"),
    "rule for nobody": (with_rules(rule("rule-1", cidr="")), "either an address range or"),
    "rule for both": (with_rules(rule("rule-1", cidr=EVERYWHERE, group_id="sg-web")), "either an address range or"),
    "rule for a strange group": (with_rules(rule("rule-1", group_id="sg-other")), "does not have"),
    "ports from high to low": (with_rules(replace(rule("rule-1", port=80), to_port=70)), "lower to a higher"),
    "port too high": (with_rules(rule("rule-1", port=70_000)), "65535"),
    "half a range": (with_rules(replace(rule("rule-1", port=80), to_port=None)), "lower to a higher"),
    "ports of ICMP": (with_rules(rule("rule-1", protocol=IpProtocol.ICMP, port=80)), "Only rules for TCP"),
    "type of TCP": (with_rules(rule("rule-1", icmp_type=8)), "Only rules for ICMP"),
    "rule twice": (with_rules(rule("rule-1"), rule("rule-1", Direction.EGRESS)), "twice"),
    "port in no subnet": (one_port(subnet_id="subnet-other"), "does not have"),
    "port with the router's address": (one_port(address="10.0.1.1"), "cannot be given"),
    "port with the broadcast address": (one_port(address="10.0.1.255"), "cannot be given"),
    "port of another subnet": (one_port(address="10.0.2.5"), "cannot be given"),
    "port without a MAC": (one_port(mac="52:54:00"), "MAC"),
    "port with a shared MAC": (one_port(mac="53:54:00:00:00:01"), "MAC"),
    "port in a strange group": (one_port(group_ids=("sg-other",)), "does not have"),
    "port with a strange name": (one_port(names=("a b",)), "name in DNS"),
    "address twice": (lambda spec: with_ports(spec, port(spec, "10.0.1.5"), replace(port(spec, "10.0.1.5"), port_id="eni-x")), "twice"),
    "MAC twice": (lambda spec: with_ports(spec, port(spec, "10.0.1.5"), replace(port(spec, "10.0.1.6"), mac="52:54:00:00:01:05")), "twice"),
    "public address from elsewhere": (one_port(public_address="192.0.2.9"), "external network"),
    "public address twice": (lambda spec: one_port(public_address=spec.uplink_address)(spec), "twice"),
    "route to nowhere": (with_routes(RouteSpec(EVERYWHERE, Via.NAT, "nat-none")), "does not have"),
    "route through nobody": (with_routes(RouteSpec(EVERYWHERE, Via.INTERFACE, "eni-none")), "does not have"),
    "route over no peering": (with_routes(RouteSpec(EVERYWHERE, Via.PEERING)), "does not have"),
    "route twice": (with_routes(RouteSpec(EVERYWHERE, Via.INTERNET), RouteSpec(EVERYWHERE, Via.BLACKHOLE)), "twice"),
    "route with host bits": (with_routes(RouteSpec("10.0.0.1/8", Via.INTERNET)), "without host bits"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_contradicts_itself_is_refused_and_nothing_is_changed(host: NetworkHost, engine: NetworkEngine, what: str) -> None:
    change, message = WRONG[what]
    spec = host.vpc()
    with pytest.raises(EngineRefused, match=message):
        engine.ensure_vpc(change(spec))
    assert engine.vpcs() == []


@pytest.mark.parametrize("name", ["", "../../etc", "vpc-a/b", "vpc-" + "x" * 100, "-vpc", "vpc-a\n", "VPC-1"])
def test_refuses_ids_that_could_lead_elsewhere(host: NetworkHost, engine: NetworkEngine, name: str) -> None:
    calls: list[Callable[[], object]] = [
        lambda: engine.ensure_vpc(replace(host.vpc(), vpc_id=name)),
        lambda: engine.remove_vpc(name),
        lambda: engine.remove_peering(name),
        lambda: engine.rule_hits(name),
        lambda: engine.refusals(name),
    ]
    for call in calls:
        with pytest.raises(EngineRefused, match="not one of the portal's"):
            call()


def test_the_fake_fails_when_it_is_told_to(host: NetworkHost) -> None:
    if host.name != "fake":
        pytest.skip("only the fake can be told to")
    spec = host.vpc()
    host.engine.fail_next("ensure_vpc")  # type: ignore[attr-defined]
    with pytest.raises(EngineError, match="told to fail"):
        host.engine.ensure_vpc(spec)
    host.engine.ensure_vpc(spec)
