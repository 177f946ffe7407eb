"""Whom a packet may claim to come from: over peerings, and from guests that pass on what others send."""

import socket
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from portal.engines.local.network import filter as rules
from portal.engines.local.network.namespaces import inside
from portal.engines.network_ports import Bound, GroupSpec, IpProtocol, PeeringSpec, PortSpec, RouteSpec, SubnetSpec, Via, VpcSpec
from tests.support.network import (
    EVERYWHERE,
    OUT,
    PATIENTLY_S,
    Guest,
    NetworkHost,
    Outside,
    dhcp,
    dhcp_answer,
    local_network_host,
    port,
    rule,
    sends,
    why_no_networks,
    with_ports,
)
from tests.support.servers import until

MISSING = why_no_networks()
pytestmark = [pytest.mark.skipif(bool(MISSING), reason=MISSING or "networks can be made here")]
ANYTHING = GroupSpec("sg-all", [rule("rule-in", protocol=IpProtocol.ALL), OUT])


@pytest.fixture
def host() -> Iterator[NetworkHost]:
    with local_network_host() as found:
        yield found


def connections(host: NetworkHost, spec: VpcSpec) -> int:
    """How many the router of a VPC knows."""
    with inside(host.engine._router(spec.vpc_id).name):  # type: ignore[attr-defined]
        return int(Path("/proc/sys/net/netfilter/nf_conntrack_count").read_text())


def one_guest(host: NetworkHost, net: int, *routes: RouteSpec) -> VpcSpec:
    """A VPC 10.net.0.0/16 with one guest, 10.net.1.5, that lets in everything."""
    spec = host.vpc(cidr=f"10.{net}.0.0/16", groups=[ANYTHING], uplink_address="")
    spec = replace(spec, subnets=[SubnetSpec(f"{spec.vpc_id}-s", f"10.{net}.1.0/24", routes)])
    number = len(host.made)
    mac = f"52:54:00:{number:02x}:01:05"
    return with_ports(spec, PortSpec(f"eni-{spec.vpc_id}", f"{spec.vpc_id}-s", mac, f"10.{net}.1.5", ("sg-all",)))


def test_a_peer_without_a_route_back_sends_nothing_in_and_is_not_taken_for_another(host: NetworkHost, guest: Callable[..., Guest]) -> None:
    to_q, to_p = RouteSpec("10.2.0.0/16", Via.PEERING, "pcx-pq"), RouteSpec("10.1.0.0/16", Via.PEERING, "pcx-pq")
    p, q, r = one_guest(host, 1, to_q), one_guest(host, 2, to_p), one_guest(host, 1, replace(to_q, target_id="pcx-qr"))
    for spec in (p, q, r):
        host.engine.ensure_vpc(spec)
    host.engine.ensure_peering(PeeringSpec("pcx-pq", (p.vpc_id, q.vpc_id)))
    host.engine.ensure_peering(PeeringSpec("pcx-qr", (q.vpc_id, r.vpc_id)))
    in_p, in_q, in_r = (guest(spec, 0) for spec in (p, q, r))
    assert sends(in_p, "10.1.1.5", in_q) == "10.1.1.5"
    assert sends(in_r, "10.1.1.5", in_q) == ""
    host.engine.ensure_vpc(replace(q, subnets=[replace(q.subnets[0], routes=[])]))
    assert sends(in_p, "10.1.1.5", in_q) == "", "what was let in before, too"


@pytest.mark.parametrize("wide", ["10.0.0.0/8", EVERYWHERE])
def test_a_guest_that_routes_lead_to_sends_as_nobody_else_of_the_vpc(host: NetworkHost, guest: Callable[..., Guest], wide: str) -> None:
    spec = host.vpc(groups=[ANYTHING])
    spec = with_ports(spec, *(port(spec, address, "sg-all") for address in ("10.0.1.5", "10.0.2.5", "10.0.2.9")))
    to_first = RouteSpec(wide, Via.INTERFACE, spec.ports[0].port_id)
    one, two = spec.subnets
    host.engine.ensure_vpc(replace(spec, subnets=[one, replace(two, routes=[to_first])]))
    router, client, victim = (guest(spec, number) for number in range(3))
    # The router is known before anybody asks for it with an address that is not his.
    assert router.pings(router.gateway)
    router.run("ip", "address", "add", "10.0.2.5/32", "dev", "lo")
    assert sends(client, "10.0.2.5", victim) == "10.0.2.5"
    assert sends(router, "10.0.2.5", victim) == "", "a subnet that is routed to it is so for what lies behind, not for neighbours"
    router.run("ip", "address", "add", "10.0.1.77/32", "dev", "lo")
    assert sends(router, "10.0.1.77", victim) == ""
    # What lies behind it is its own to send.
    behind = "10.77.0.1"
    router.run("ip", "address", "add", f"{behind}/32", "dev", "lo")
    assert sends(router, behind, victim) == behind


def test_nobody_takes_an_address_away_by_asking_in_anothers_name(host: NetworkHost, guest: Callable[..., Guest]) -> None:
    discover, request, decline = 1, 3, 4
    spec = host.vpc(groups=[ANYTHING])
    spec = with_ports(spec, *(port(spec, address, "sg-all") for address in ("10.0.1.5", "10.0.1.6")))
    host.engine.ensure_vpc(spec)
    one, other = guest(spec, 0), guest(spec, 1)
    mine = bytes([50, 4]) + socket.inet_aton("10.0.1.6")
    assert dhcp(other, other.port.mac, discover) == "10.0.1.6"
    assert dhcp(other, other.port.mac, request, mine) == "10.0.1.6"
    assert dhcp(one, other.port.mac, discover) == ""
    dhcp(one, other.port.mac, decline, mine, bytes([54, 4]) + socket.inet_aton("10.0.1.1"))
    assert dhcp(other, other.port.mac, discover) == "10.0.1.6"
    assert dhcp(one, one.port.mac, discover) == "10.0.1.5"


def test_guests_are_told_what_the_vpc_says_with_their_addresses(host: NetworkHost, guest: Callable[..., Guest]) -> None:
    spec = host.vpc(search_domains=["shop.example", "corp.example"], ntp_servers=["10.0.1.9"], mtu=1400)
    spec = with_ports(spec, port(spec, "10.0.1.5"))
    host.engine.ensure_vpc(spec)
    # What clients ask for: domain search, NTP servers, MTU.
    wanted = bytes([55, 3, 119, 42, 26])
    answer = dhcp_answer(guest(spec, 0), spec.ports[0].mac, 1, wanted)
    assert bytes([26, 2]) + (1400).to_bytes(2, "big") in answer
    assert bytes([42, 4]) + socket.inet_aton("10.0.1.9") in answer
    assert b"\x04shop\x07example" in answer


def test_nobody_outside_sends_as_a_peer_or_as_what_lies_behind_a_guest(
    host: NetworkHost, guest: Callable[..., Guest], outside: Callable[[], Outside]
) -> None:
    spec = host.vpc(groups=[ANYTHING])
    spec = with_ports(spec, port(spec, "10.0.1.5", "sg-all", public_address=host.public(53)), port(spec, "10.0.1.6", "sg-all"))
    away = [RouteSpec("10.2.0.0/16", Via.PEERING, "pcx-1"), RouteSpec("10.3.0.0/16", Via.INTERFACE, spec.ports[1].port_id)]
    spec = replace(spec, subnets=[replace(subnet, routes=[*subnet.routes, *away]) for subnet in spec.subnets])
    host.engine.ensure_vpc(spec)
    web, world = guest(spec, 0), outside()
    for source in ("10.2.2.4", "10.3.2.4", "10.4.2.4"):
        world.run("ip", "address", "add", f"{source}/32", "dev", "lo")
    assert sends(world, world.address, web, host.public(53)) == world.address
    assert [sends(world, source, web, host.public(53)) for source in ("10.2.2.4", "10.3.2.4", "10.4.2.4")] == ["", "", "10.4.2.4"]


def test_whoever_calls_from_outside_leaves_room_for_others(
    host: NetworkHost, guest: Callable[..., Guest], outside: Callable[..., Outside], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rules, "MOST_OF_A_CALLER", 100)
    spec = host.vpc(groups=[ANYTHING])
    spec = with_ports(spec, port(spec, "10.0.1.5", "sg-all", public_address=host.public(53)))
    host.engine.ensure_vpc(spec)
    web, busy, other = guest(spec, 0), outside(251), outside(252)
    assert sends(busy, busy.address, web, host.public(53)) == busy.address
    with inside(busy.name), closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as mouth:
        for number in range(1000, 1300):
            mouth.sendto(b"hello", (host.public(53), number))
    until(lambda: connections(host, spec) == 100, within_s=5, what="all that may begin")
    assert not busy.hears(host.public(53), 80)
    assert other.hears(host.public(53), 80, PATIENTLY_S)
    told = host.engine.refusals(spec.vpc_id)
    assert told.packets[Bound.CALLER] > 0
    assert (told.packets[Bound.CALLED], told.packets[Bound.BEGUN], told.addresses) == (0, 0, {Bound.CALLER: ["10.0.1.5"]})


def test_a_guest_passes_on_what_is_routed_to_it(host: NetworkHost, guest: Callable[..., Guest], outside: Callable[[], Outside]) -> None:
    spec = host.vpc(groups=[ANYTHING])
    spec = with_ports(spec, port(spec, "10.0.1.5", "sg-all"), port(spec, "10.0.2.5", "sg-all"))
    one, two = spec.subnets
    host.engine.ensure_vpc(replace(spec, subnets=[one, replace(two, routes=[RouteSpec(EVERYWHERE, Via.INTERFACE, spec.ports[0].port_id)])]))
    router, client = guest(spec, 0), guest(spec, 1)
    router.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
    router.run("nft", "add table ip nat; add chain ip nat out { type nat hook postrouting priority 100; }; add rule ip nat out oif eth0 masquerade")
    world = outside()
    assert client.hears(world.address, 80, PATIENTLY_S) == f"{world.address} saw {spec.uplink_address}"


def test_a_guest_begins_only_so_many_connections_and_its_neighbour_is_free(
    host: NetworkHost, guest: Callable[..., Guest], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rules, "MOST_CONNECTIONS", 100)
    spec = host.vpc(groups=[ANYTHING])
    spec = with_ports(spec, *(port(spec, address, "sg-all") for address in ("10.0.1.5", "10.0.1.6")))
    host.engine.ensure_vpc(spec)
    busy, other = guest(spec, 0), guest(spec, 1)
    assert sends(busy, "10.0.1.5", other) == "10.0.1.5"
    with inside(busy.name), closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as mouth:
        for number in range(1000, 1300):
            mouth.sendto(b"hello", ("10.0.1.6", number))
    until(lambda: connections(host, spec) == 100, within_s=5, what="all that may begin")
    # A change does not let it begin anew.
    host.engine.ensure_vpc(replace(spec, groups=[replace(ANYTHING, rules=[*ANYTHING.rules, rule("rule-more", port=80)])]))
    assert not busy.hears("10.0.1.6", 80)
    assert other.hears("10.0.1.5", 80, PATIENTLY_S)
    told = host.engine.refusals(spec.vpc_id)
    assert told.packets[Bound.BEGUN] >= 200, "counted on over the change"
    assert (told.packets[Bound.CALLER], told.addresses) == (0, {Bound.BEGUN: ["10.0.1.5"]})
