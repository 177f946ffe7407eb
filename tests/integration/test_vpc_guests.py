"""Real guests in real networks: two VPCs with the same addresses and a third one, and what their guests see of each other and of the world."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest

from portal.engines.local.network import namespaces
from portal.engines.local.network.engine import LocalNetwork
from portal.engines.local.network.links import Links
from portal.engines.network_ports import GroupSpec, GuestData, PeeringSpec, PortSpec, RouteSpec, SubnetSpec, Via, VpcSpec
from portal.engines.ports import MachineInterface, MachineSpec, MachineState
from tests.support.hosts import TINY, Host, local_host, process_directory, why_no_local_host
from tests.support.network import OUT, PING, NetworkHost, Outside, free_external, port, rule, why_no_networks, with_ports
from tests.support.servers import until

MISSING = why_no_local_host() or why_no_networks()
pytestmark = [pytest.mark.vm, pytest.mark.timeout(240), pytest.mark.skipif(bool(MISSING), reason=MISSING or "guests run here")]

SCRIPT = "#!/bin/sh\nmkdir -p /www\nhostname > /www/index.html\nhttpd -h /www\n"
GROUPS = [GroupSpec("sg-web", [rule("rule-http", port=80), PING, OUT])]


@dataclass
class Place:
    """Machines and networks of one host, with four guests that have come up."""

    host: Host
    networks: NetworkHost
    one: VpcSpec
    other: VpcSpec
    far: VpcSpec
    guests: dict[str, MachineSpec]

    def says(self, guest: str, command: str) -> str:
        """What a command prints in a guest."""
        return self.host.run(self.guests[guest], command).decode(errors="replace")


def card(port_spec: PortSpec, engine: LocalNetwork) -> MachineInterface:
    return MachineInterface(port_spec.port_id, port_spec.mac, engine.tap_of(port_spec.port_id))


def a_vpc(networks: NetworkHost, names: dict[str, str], public: str = "") -> VpcSpec:
    spec = networks.vpc(groups=GROUPS)
    ports = [
        replace(port(spec, address, name=name), guest=GuestData(f"i-of-{name}", name), public_address=public if number == 0 else "")
        for number, (name, address) in enumerate(names.items())
    ]
    return with_ports(spec, *ports)


def a_far_vpc(networks: NetworkHost) -> VpcSpec:
    spec = networks.vpc(
        groups=GROUPS, cidr="10.9.0.0/16", domain="far.internal", subnets=[SubnetSpec("subnet-far", "10.9.1.0/24")], uplink_address=""
    )
    return with_ports(
        spec, PortSpec("eni-far", "subnet-far", "52:54:00:09:01:05", "10.9.1.5", ("sg-web",), names=("c1",), guest=GuestData("i-of-c1", "c1"))
    )


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    with local_host() as host:
        external = free_external()
        engine = LocalNetwork(process_directory(), external_cidr=external)
        networks = NetworkHost("local", engine, lambda: engine, lambda _vpc_id, _what: None, external.removesuffix("/24"))
        host.engine.ensure_builtin_image(TINY)
        one = a_vpc(networks, {"a1": "10.0.1.5", "a2": "10.0.2.5"}, networks.public(50))
        other = a_vpc(networks, {"b1": "10.0.1.5"})
        far = a_far_vpc(networks)
        guests = {}
        for vpc in (one, other, far):
            engine.ensure_vpc(vpc)
            for each in vpc.ports:
                name = each.names[0]
                guests[name] = host.running(hostname=name, user_data=SCRIPT, interfaces=(card(each, engine),))
        for spec in guests.values():
            host.wait_for(spec, "READY")
        try:
            yield Place(host, networks, one, other, far, guests)
        finally:
            host.clear()
            networks.clear()
            engine.close()


def test_guests_get_their_addresses_and_know_who_they_are(place: Place) -> None:
    for name, address in (("a1", "10.0.1.5"), ("a2", "10.0.2.5"), ("b1", "10.0.1.5"), ("c1", "10.9.1.5")):
        assert f"inet {address}/24" in place.says(name, "ip -4 addr show eth0")
        assert f"i-of-{name}" in place.says(name, "timeout 9 wget -q -O - http://169.254.169.254/latest/meta-data/instance-id; echo")


def test_what_is_allowed_passes_by_name_and_nothing_else(place: Place) -> None:
    for name in ("a2.test.internal", "a2"):
        assert "a2" in place.says("a1", f"timeout 9 wget -q -O - http://{name}/ | sed s/^/GOT-/").split("GOT-")[-1], name
    assert "a2.test.internal" in place.says("a1", "nslookup 10.0.2.5")
    assert "CLOSED" in place.says("a1", "echo | timeout 3 nc 10.0.2.5 22 || echo CLO''SED")
    assert "NOBODY" in place.says("b1", "timeout 3 wget -q -O - http://10.0.2.5/ || echo NOB''ODY")
    assert "NOBODY" in place.says("b1", "timeout 3 ping -c 1 -W 2 10.0.2.5 > /dev/null || echo NOB''ODY")
    assert "SOMEBODY" in place.says("a1", "ping -c 1 -W 5 10.0.2.5 > /dev/null && echo SOME''BODY")


def test_a_spoofed_source_goes_nowhere(place: Place) -> None:
    said = place.says("a1", "ip addr add 10.0.1.99/24 dev eth0; ping -c 1 -W 2 -I 10.0.1.99 10.0.2.5 > /dev/null || echo DRO''PPED")
    assert "DROPPED" in said
    assert "SOMEBODY" in place.says("a1", "ip addr del 10.0.1.99/24 dev eth0; ping -c 1 -W 5 10.0.2.5 > /dev/null && echo SOME''BODY")


def test_a_floating_address_works_from_outside_and_within(place: Place) -> None:
    world = Outside(place.networks.engine, place.networks)
    try:
        assert world.fetch(place.networks.public(50), "/") == (200, "a1\n")
        assert world.hears(place.networks.public(50), 22) == ""
    finally:
        world.close()
    for name in ("a1", "a2", "b1"):
        assert "GOT-a1" in place.says(name, f"timeout 9 wget -q -O - http://{place.networks.public(50)}/ | sed s/^/GOT-/"), name


def test_a_peering_opens_what_its_routes_say_and_no_more(place: Place) -> None:
    engine, peering = place.networks.engine, PeeringSpec("pcx-1", (place.one.vpc_id, place.far.vpc_id))
    fetch = "timeout 3 wget -q -O - http://10.9.1.5/ | sed s/^/GOT-/"
    engine.ensure_peering(peering)
    assert "GOT-c1" not in place.says("a1", fetch), "no route yet"
    back = RouteSpec("10.0.1.0/24", Via.PEERING, "pcx-1")
    engine.ensure_vpc(replace(place.far, subnets=[replace(place.far.subnets[0], routes=[back])]))
    there = RouteSpec("10.9.0.0/16", Via.PEERING, "pcx-1")
    first, second = place.one.subnets
    engine.ensure_vpc(replace(place.one, subnets=[replace(first, routes=[*first.routes, there]), second]))
    try:
        assert "GOT-c1" in place.says("a1", "timeout 9 wget -q -O - http://c1.far.internal/ | sed s/^/GOT-/")
        assert "CLOSED" in place.says("a1", "echo | timeout 3 nc 10.9.1.5 22 || echo CLO''SED")
        assert "GOT-a1" in place.says("c1", "timeout 9 wget -q -O - http://10.0.1.5/ | sed s/^/GOT-/")
        assert "GOT-c1" not in place.says("a2", fetch), "the route of another subnet"
        assert "GOT-c1" not in place.says("b1", fetch), "another VPC"
    finally:
        engine.remove_peering("pcx-1")
        for spec in (place.one, place.far):
            engine.ensure_vpc(spec)
    assert "GOT-c1" not in place.says("a1", fetch)


def test_traffic_is_measured_at_the_tap(place: Place) -> None:
    def moved() -> tuple[int, int]:
        found = next(each for each in place.host.engine.samples() if each.machine_id == place.guests["a2"].machine_id)
        return found.net_out_bytes, found.net_in_bytes

    before = moved()
    place.says("a2", "ping -c 10 -i 0.1 -s 1000 10.0.2.1 > /dev/null")
    after = moved()
    assert all(10_000 <= now - then < 12_000 for then, now in zip(before, after, strict=True))


def test_an_interface_comes_and_goes_while_the_guest_runs_and_the_first_one_stays(place: Place) -> None:
    second = replace(port(place.one, "10.0.2.77"), is_primary=False)
    place.networks.engine.ensure_vpc(with_ports(place.one, *place.one.ports, second))
    spec = place.guests["a1"]
    both = replace(spec, interfaces=(*spec.interfaces, card(second, place.networks.engine)))  # type: ignore[arg-type]
    for _ in range(2):
        place.host.engine.ensure_interfaces(both)
    until(lambda: "inet 10.0.2.77/24" in place.says("a1", "ip -4 addr show eth1"), within_s=20, what="the second interface to be up by itself")
    world = Outside(place.networks.engine, place.networks)
    try:
        assert world.fetch(place.networks.public(50), "/") == (200, "a1\n")
    finally:
        world.close()
    for address in ("10.0.1.5", "10.0.2.77"):
        assert "GOT-a1" in place.says("a2", f"timeout 9 wget -q -O - http://{address}/ | sed s/^/GOT-/"), address
        assert "CLOSED" in place.says("a2", f"echo | timeout 3 nc {address} 22 || echo CLO''SED"), address
    assert "GOT-a2" in place.says("a1", "timeout 9 wget -q -O - http://a2/ | sed s/^/GOT-/")
    for _ in range(2):
        place.host.engine.ensure_interfaces(spec)
    until(lambda: "eth1" not in place.says("a1", "ls /sys/class/net"), within_s=20, what="it to be gone")
    place.networks.engine.ensure_vpc(place.one)
    assert "10.0.2.77" not in place.says("a1", "ip rule")
    assert "SOMEBODY" in place.says("a1", "ping -c 1 -W 5 10.0.2.5 > /dev/null && echo SOME''BODY")


def test_guests_stay_connected_when_somebody_takes_the_namespaces_away(place: Place) -> None:
    engine = place.networks.engine
    for namespace in (engine._fabric.name, engine._router(place.one.vpc_id).name):  # type: ignore[attr-defined]
        namespaces.remove(namespace)
    assert {each.vpc_id for each in engine.drift()} == {place.one.vpc_id, place.other.vpc_id, place.far.vpc_id}
    for spec in (place.one, place.other, place.far):
        engine.ensure_vpc(spec)
    assert engine.drift() == []
    assert "SOMEBODY" in place.says("a1", "ping -c 1 -W 5 10.0.2.5 > /dev/null && echo SOME''BODY")


def test_a_running_guest_whose_tap_somebody_deletes_is_noticed_and_plugged_in_again(place: Place) -> None:
    networks, machines, spec = place.networks.engine, place.host.engine, place.guests["a2"]
    assert machines.cut_off() == []
    with Links(networks._fabric.name) as fabric:  # type: ignore[attr-defined]
        fabric.remove(spec.interfaces[0].tap)
    assert machines.cut_off() == [spec.machine_id]
    networks.ensure_vpc(place.one)
    assert networks.drift() == []
    assert machines.cut_off() == [spec.machine_id], "its tap is there again, but nobody holds it"
    machines.ensure_interfaces(spec)
    assert machines.cut_off() == []
    until(lambda: "inet 10.0.2.5/24" in place.says("a2", "ip -4 addr show"), within_s=20, what="the card to be up again")
    assert "GOT-a2" in place.says("a1", "timeout 9 wget -q -O - http://10.0.2.5/ | sed s/^/GOT-/")


def test_a_machine_that_is_started_again_is_where_it_was(place: Place) -> None:
    spec = place.guests["b1"]
    place.host.kill_outside(spec.machine_id)
    assert place.host.engine.machine_state(spec.machine_id) is MachineState.CRASHED
    place.host.engine.ensure_running(spec.machine_id)
    place.host.wait_for(spec, "READY", times=2)
    assert "inet 10.0.1.5/24" in place.says("b1", "ip -4 addr show eth0")
    assert place.networks.engine.drift() == []
