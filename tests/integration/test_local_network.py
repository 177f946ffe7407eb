"""Packets, not rules: what guests of the local network engine reach and what they do not."""

import socket
from collections.abc import Callable
from dataclasses import replace

import pytest

from portal.engines.local.network import names
from portal.engines.local.network.links import Links
from portal.engines.network_ports import Direction, GroupSpec, IpProtocol, NatSpec, PeeringSpec, PortSpec, RouteSpec, SubnetSpec, Via
from tests.support.network import (
    EVERYWHERE,
    OUT,
    PATIENTLY_S,
    PING,
    Guest,
    NetworkHost,
    Outside,
    fabric_of,
    made_vpc,
    port,
    rule,
    sends,
    why_no_networks,
    with_ports,
)

MISSING = why_no_networks()
pytestmark = [pytest.mark.skipif(bool(MISSING), reason=MISSING or "networks can be made here")]


# -- who reaches whom ------------------------------------------------------------------------------------------------------------------------


def test_what_a_group_lets_in_passes_within_and_across_subnets_and_nothing_else(host: NetworkHost, guest: Callable[..., Guest]) -> None:
    spec = made_vpc(host, "10.0.1.5", "10.0.1.6", "10.0.2.5")
    a, b, c = (guest(spec, number) for number in range(3))
    assert a.hears("10.0.1.6", 80, PATIENTLY_S) == "10.0.1.6 saw 10.0.1.5"
    assert a.hears("10.0.2.5", 80, PATIENTLY_S) == "10.0.2.5 saw 10.0.1.5"
    assert c.hears("10.0.1.5", 80, PATIENTLY_S) == "10.0.1.5 saw 10.0.2.5"
    assert not a.hears("10.0.1.6", 22)
    assert not a.hears("10.0.2.5", 22)
    assert not b.pings("10.0.2.5")
    assert b.pings("10.0.1.1"), "the router is there for everybody"
    assert host.engine.rule_hits(spec.vpc_id)["rule-http"] == 3


def test_vpcs_with_the_same_addresses_do_not_meet(host: NetworkHost, guest: Callable[..., Guest]) -> None:
    one, other = made_vpc(host, "10.0.1.5", "10.0.1.6"), made_vpc(host, "10.0.1.5", "10.0.1.7")
    here, there = guest(one, 0), guest(other, 0)
    neighbour = guest(one, 1)
    guest(other, 1)
    assert here.hears("10.0.1.6", 80, PATIENTLY_S)
    assert not here.hears("10.0.1.7", 80)
    assert not there.hears("10.0.1.6", 80)
    assert there.hears("10.0.1.7", 80, PATIENTLY_S)
    assert neighbour.fetch("169.254.169.254", "/latest/user-data")[1].split() == ["#!/bin/sh", "echo", one.vpc_id, "10.0.1.6"]


def test_groups_name_each_other_and_rules_hold_for_what_goes_out(host: NetworkHost, guest: Callable[..., Guest]) -> None:
    groups = [
        GroupSpec("sg-app", [rule("rule-to-db", Direction.EGRESS, port=80, group_id="sg-db")]),
        GroupSpec("sg-db", [rule("rule-from-app", port=80, group_id="sg-app"), rule("rule-ssh", port=22)]),
    ]
    spec = host.vpc(groups=groups)
    spec = with_ports(spec, port(spec, "10.0.1.5", "sg-app"), port(spec, "10.0.1.6", "sg-db"), port(spec, "10.0.1.7", "sg-db"))
    host.engine.ensure_vpc(spec)
    app, db, other = (guest(spec, number) for number in range(3))
    assert app.hears("10.0.1.6", 80, PATIENTLY_S)
    assert not app.hears("10.0.1.6", 22), "let in, but not out"
    assert not other.hears("10.0.1.6", 80), "not a member"
    assert not db.hears("10.0.1.5", 80)


def test_a_guest_without_a_group_is_alone_but_knows_who_it_is(host: NetworkHost, guest: Callable[..., Guest]) -> None:
    spec = host.vpc()
    spec = with_ports(spec, replace(port(spec, "10.0.1.5"), group_ids=()), port(spec, "10.0.1.6"))
    host.engine.ensure_vpc(spec)
    lonely, other = guest(spec, 0), guest(spec, 1)
    assert not lonely.hears("10.0.1.6", 80)
    assert not other.hears("10.0.1.5", 80)
    assert lonely.fetch("169.254.169.254", "/latest/meta-data/instance-id") == (200, "i-10015")


def test_nobody_sends_with_another_address_or_mac(host: NetworkHost, guest: Callable[..., Guest]) -> None:
    spec = made_vpc(host, "10.0.1.5", "10.0.1.6", groups=[GroupSpec("sg-web", [PING, rule("rule-http", port=80), OUT])])
    a, b = guest(spec, 0), guest(spec, 1)
    assert b.pings("10.0.1.5")
    assert a.pings("10.0.1.1")
    a.run("ip", "address", "add", "10.0.1.6/32", "dev", "lo")
    a.run("ip", "address", "add", "10.0.1.99/24", "dev", "eth0")
    assert not a.pings("10.0.1.1", source="10.0.1.99")
    assert not a.pings("10.0.2.1", source="10.0.1.6")
    a.run("ip", "link", "set", "eth0", "address", "52:54:00:99:99:99")
    assert not a.pings("10.0.1.1")


def test_nobody_borrows_the_mac_of_somebody_who_may_more(host: NetworkHost, guest: Callable[..., Guest]) -> None:
    anything = GroupSpec("sg-all", [rule("rule-in", protocol=IpProtocol.ALL), OUT])
    spec = host.vpc(groups=[anything, GroupSpec("sg-mute", [])])
    spec = with_ports(spec, port(spec, "10.0.1.5", "sg-mute"), port(spec, "10.0.1.6", "sg-all"), port(spec, "10.0.2.5", "sg-all"))
    host.engine.ensure_vpc(spec)
    mute, free, ear = (guest(spec, number) for number in range(3))
    assert sends(free, "10.0.1.6", ear) == "10.0.1.6"
    assert sends(mute, "10.0.1.5", ear) == ""
    router = next(link.split()[4] for link in mute.run("ip", "neigh", "show", mute.gateway).splitlines())
    mute.run("ip", "link", "set", "eth0", "down")
    mute.run("ip", "link", "set", "eth0", "address", free.port.mac)
    mute.run("ip", "link", "set", "eth0", "up")
    mute.run("ip", "route", "add", "default", "via", mute.gateway)
    mute.run("ip", "neigh", "replace", mute.gateway, "lladdr", router, "dev", "eth0")
    assert sends(mute, "10.0.1.5", ear) == ""


def test_a_tap_without_an_entry_of_the_guard_is_closed(host: NetworkHost, guest: Callable[..., Guest]) -> None:
    spec = made_vpc(host, "10.0.1.5", "10.0.1.6")
    a = guest(spec, 0)
    assert a.pings("10.0.1.1")
    a.unplug()
    host.engine.ensure_vpc(with_ports(spec, spec.ports[1]))
    # Somebody makes a tap of the old name, in the right bridge.
    tap = host.engine.tap_of(spec.ports[0].port_id)
    with Links(fabric_of(host)) as fabric:
        fabric.ensure_tap(tap)
        fabric.ensure_in_bridge(tap, names.bridge(spec.subnets[0]))
        fabric.ensure_up(tap)
    a.plug()
    a.configure()
    assert not a.pings("10.0.1.1")


# -- outside ---------------------------------------------------------------------------------------------------------------------------------


def test_a_floating_address_works_from_outside_and_inside_and_only_as_rules_say(
    host: NetworkHost, guest: Callable[..., Guest], outside: Callable[[], Outside]
) -> None:
    spec = host.vpc(groups=[GroupSpec("sg-web", [rule("rule-http", port=80), rule("rule-udp", protocol=IpProtocol.UDP), OUT])])
    public = host.public(50)
    spec = with_ports(spec, port(spec, "10.0.1.5", public_address=public), port(spec, "10.0.1.6"), port(spec, "10.0.2.5"))
    host.engine.ensure_vpc(spec)
    a, b, c = (guest(spec, number) for number in range(3))
    world = outside()
    assert world.hears(public, 80, PATIENTLY_S) == f"10.0.1.5 saw {world.address}"
    assert not world.hears(public, 22)
    assert a.hears(world.address, 80, PATIENTLY_S) == f"{world.address} saw {public}"
    assert b.hears(public, 80, PATIENTLY_S) == f"10.0.1.5 saw {spec.uplink_address}"
    assert c.hears(public, 80, PATIENTLY_S) == f"10.0.1.5 saw {spec.uplink_address}"
    assert a.hears(public, 80, PATIENTLY_S) == f"10.0.1.5 saw {public}", "its own"
    world.run("ip", "route", "add", "10.0.0.0/16", "via", spec.uplink_address)
    assert sends(world, world.address, a, public) == world.address
    assert sends(world, world.address, a) == "", "not by the inner address"
    assert not world.hears("10.0.1.6", 80)


def test_nat_shared_by_gateway_or_none(host: NetworkHost, guest: Callable[..., Guest], outside: Callable[[], Outside]) -> None:
    spec = host.vpc()
    first, second = spec.subnets
    gateway = NatSpec("nat-1", host.public(60))
    spec = replace(spec, nats=[gateway], subnets=[first, replace(second, routes=[RouteSpec(EVERYWHERE, Via.NAT, "nat-1")])])
    spec = with_ports(spec, port(spec, "10.0.1.5"), port(spec, "10.0.2.5"))
    host.engine.ensure_vpc(spec)
    a, b = guest(spec, 0), guest(spec, 1)
    world = outside()
    assert a.hears(world.address, 80, PATIENTLY_S) == f"{world.address} saw {spec.uplink_address}"
    assert b.hears(world.address, 80, PATIENTLY_S) == f"{world.address} saw {gateway.public_address}"
    public = host.public(61)
    floating = with_ports(spec, replace(spec.ports[0], public_address=public), spec.ports[1])
    host.engine.ensure_vpc(floating)
    assert b.hears(public, 80, PATIENTLY_S) == f"10.0.1.5 saw {gateway.public_address}"
    only_nat = [GroupSpec("sg-web", [rule("rule-http", port=80, cidr=f"{gateway.public_address}/32"), OUT])]
    host.engine.ensure_vpc(replace(floating, groups=only_nat))
    assert b.hears(public, 80, PATIENTLY_S) == f"10.0.1.5 saw {gateway.public_address}", "rules see who comes as it comes"
    assert not b.hears("10.0.1.5", 80)
    host.engine.ensure_vpc(replace(floating, shared_nat=False))
    assert b.hears(public, 80, PATIENTLY_S)
    host.engine.ensure_vpc(replace(spec, shared_nat=False))
    assert not a.hears(world.address, 80)
    assert b.hears(world.address, 80, PATIENTLY_S)
    assert a.hears("10.0.2.5", 80, PATIENTLY_S)


def test_guests_do_not_reach_the_host(host: NetworkHost, guest: Callable[..., Guest]) -> None:
    spec = made_vpc(host, "10.0.1.5")
    a = guest(spec, 0)
    with socket.create_server((host.public(1), 0)) as service:
        number = service.getsockname()[1]
        assert not a.hears(host.public(1), number)
        with socket.create_connection((host.public(1), number)):
            pass
    assert not a.pings(host.public(1))


def test_a_subnet_without_a_way_out_has_none(host: NetworkHost, guest: Callable[..., Guest], outside: Callable[[], Outside]) -> None:
    spec = host.vpc()
    spec = replace(spec, subnets=[spec.subnets[0], replace(spec.subnets[1], routes=[])])
    public = host.public(51)
    spec = with_ports(spec, port(spec, "10.0.1.5", public_address=public), port(spec, "10.0.2.5"))
    host.engine.ensure_vpc(spec)
    a, b = guest(spec, 0), guest(spec, 1)
    world = outside()
    assert a.hears(world.address, 80, PATIENTLY_S)
    assert not b.hears(world.address, 80)
    assert not b.hears(public, 80)
    assert b.hears("10.0.1.5", 80, PATIENTLY_S)


# -- between VPCs and through guests ---------------------------------------------------------------------------------------------------------


def test_a_peering_opens_what_routes_of_both_sides_say(host: NetworkHost, guest: Callable[..., Guest]) -> None:
    one = made_vpc(host, "10.0.1.5", "10.0.2.5")
    other = host.vpc(cidr="10.9.0.0/16", subnets=[SubnetSpec("subnet-far", "10.9.1.0/24")])
    far = PortSpec("eni-far", "subnet-far", "52:54:00:09:01:05", "10.9.1.5", ("sg-web",))
    other = with_ports(other, far)
    host.engine.ensure_vpc(other)
    peering = PeeringSpec("pcx-1", (one.vpc_id, other.vpc_id))
    host.engine.ensure_peering(peering)
    a, b, c = guest(one, 0), guest(one, 1), guest(other, 0)
    assert not a.hears("10.9.1.5", 80)
    there = RouteSpec("10.9.0.0/16", Via.PEERING, "pcx-1")
    one = replace(one, subnets=[replace(one.subnets[0], routes=[*one.subnets[0].routes, there]), one.subnets[1]])
    host.engine.ensure_vpc(one)
    assert not a.hears("10.9.1.5", 80), "no way back yet"
    other = replace(other, subnets=[replace(other.subnets[0], routes=[RouteSpec("10.0.0.0/16", Via.PEERING, "pcx-1")])])
    host.engine.ensure_vpc(other)
    assert a.hears("10.9.1.5", 80, PATIENTLY_S) == "10.9.1.5 saw 10.0.1.5"
    assert not a.hears("10.9.1.5", 22)
    assert c.hears("10.0.1.5", 80, PATIENTLY_S) == "10.0.1.5 saw 10.9.1.5"
    assert not b.hears("10.9.1.5", 80), "its subnet has no route"
    host.damage(one.vpc_id, "neighbour")
    assert not a.hears("10.9.1.5", 80)
    assert [each.vpc_id for each in host.engine.drift()] == [one.vpc_id]
    host.engine.ensure_vpc(one)
    assert (host.engine.drift(), a.hears("10.9.1.5", 80, PATIENTLY_S)) == ([], "10.9.1.5 saw 10.0.1.5")
    host.engine.remove_peering("pcx-1")
    assert not a.hears("10.9.1.5", 80)
    host.engine.ensure_peering(peering)
    assert a.hears("10.9.1.5", 80, PATIENTLY_S)


def test_a_guest_passes_packets_on_where_a_route_leads_to_it(host: NetworkHost, guest: Callable[..., Guest], outside: Callable[[], Outside]) -> None:
    spec = host.vpc()
    middle = port(spec, "10.0.2.9", "sg-router")
    groups = [
        *spec.groups,
        GroupSpec("sg-router", [OUT, rule("rule-in", protocol=IpProtocol.TCP, port=80)]),
    ]
    routed = replace(spec.subnets[0], routes=[*spec.subnets[0].routes, RouteSpec("192.168.7.0/24", Via.INTERFACE, middle.port_id)])
    spec = replace(spec, groups=groups, subnets=[routed, spec.subnets[1]])
    spec = with_ports(spec, port(spec, "10.0.1.5"), middle)
    host.engine.ensure_vpc(spec)
    a, router = guest(spec, 0), guest(spec, 1)
    router.run("ip", "address", "add", "192.168.7.1/32", "dev", "lo")
    router.serve(8080, address="192.168.7.1")
    assert a.hears("192.168.7.1", 80, PATIENTLY_S) == "10.0.2.9 saw 10.0.1.5"
    assert not a.hears("192.168.7.1", 8080), "the router's own rules hold"
    world = outside()
    assert sends(router, "10.0.2.9", world) == spec.uplink_address
    assert sends(router, "192.168.7.1", world) == "", "out there it is nobody's"


def test_who_is_called_by_a_floating_address_does_not_answer_over_a_peering(host: NetworkHost, guest: Callable[..., Guest]) -> None:
    one = made_vpc(host, "10.0.1.5")
    back = RouteSpec(EVERYWHERE, Via.PEERING, "pcx-1")
    other = host.vpc(cidr="10.9.0.0/16", subnets=[SubnetSpec("subnet-far", "10.9.1.0/24", [back])])
    other = with_ports(other, PortSpec("eni-far", "subnet-far", "52:54:00:09:01:05", "10.9.1.5", ("sg-web",), public_address=host.public(60)))
    host.engine.ensure_vpc(other)
    host.engine.ensure_peering(PeeringSpec("pcx-1", (one.vpc_id, other.vpc_id)))
    a, _ = guest(one, 0), guest(other, 0)
    assert not a.hears(host.public(60), 80), "its route leads elsewhere than the call came from"
    host.engine.ensure_vpc(replace(other, subnets=[SubnetSpec("subnet-far", "10.9.1.0/24", [RouteSpec(EVERYWHERE, Via.INTERNET)])]))
    assert a.hears(host.public(60), 80, PATIENTLY_S)
