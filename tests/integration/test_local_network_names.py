"""What things are called in a VPC: by short and full name, by address, and over peerings."""

import subprocess
from collections.abc import Iterator
from dataclasses import replace

import pytest

from portal.engines.network_ports import PeeringSpec, PortSpec, SubnetSpec, VpcSpec
from tests.support.network import Guest, NetworkHost, local_network_host, made_vpc, why_no_networks, with_ports

MISSING = why_no_networks()
pytestmark = [pytest.mark.skipif(bool(MISSING), reason=MISSING or "networks can be made here")]


@pytest.fixture
def host() -> Iterator[NetworkHost]:
    with local_network_host() as found:
        yield found


def asked(guest: Guest, name: str) -> str:
    """What the name server says about a name or address; empty for what it does not know."""
    command = ["nsenter", f"--net=/run/netns/{guest.name}", "busybox", "nslookup", name, guest.gateway]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    return done.stdout.partition("\n\n")[2].strip() if done.returncode == 0 else ""


def far_vpc(host: NetworkHost, *names: str, net: int = 9) -> VpcSpec:
    subnet = SubnetSpec(f"subnet-far{net}", f"10.{net}.1.0/24")
    spec = host.vpc(cidr=f"10.{net}.0.0/16", domain="far.internal", subnets=[subnet])
    ports = [
        PortSpec(f"eni-far{net}-{n}", subnet.subnet_id, f"52:54:00:0{net}:01:0{n}", f"10.{net}.1.{n}", ("sg-web",), names=(name,))
        for n, name in enumerate(names, 4)
    ]
    return with_ports(spec, *ports)


def test_names_are_found_short_and_in_full_and_addresses_are_called_something(host: NetworkHost) -> None:
    spec = made_vpc(host, "10.0.1.5", "10.0.2.5")
    guest = Guest(host.engine, spec, spec.ports[0]).configure()
    try:
        for name in ("g1", "g1.test.internal"):
            assert "10.0.2.5" in asked(guest, name), name
        assert "g1.test.internal" in asked(guest, "10.0.2.5")
        assert asked(guest, "nobody.test.internal") == ""
        assert asked(guest, "10.0.2.77") == ""
        host.engine.ensure_vpc(replace(spec, dns_names=False))
        assert asked(guest, "g1.test.internal") == ""
        assert asked(guest, "10.0.2.5") == ""
    finally:
        guest.close()


def test_peers_find_each_others_full_names_as_long_as_they_are_joined(host: NetworkHost) -> None:
    one, other = made_vpc(host, "10.0.1.5"), far_vpc(host, "store")
    host.engine.ensure_vpc(other)
    here, there = Guest(host.engine, one, one.ports[0]).configure(), Guest(host.engine, other, other.ports[0]).configure()
    try:
        assert asked(here, "store.far.internal") == ""
        host.engine.ensure_peering(PeeringSpec("pcx-1", (one.vpc_id, other.vpc_id)))
        assert "10.9.1.4" in asked(here, "store.far.internal")
        assert "store.far.internal" in asked(here, "10.9.1.4")
        assert "10.0.1.5" in asked(there, "g0.test.internal")
        assert asked(here, "store") == "", "a short name is one of its own"
        # What changes over there is known here, and a name server that was killed comes back with it.
        other = with_ports(other, *far_vpc(host, "store", "archive").ports)
        host.engine.ensure_vpc(other)
        assert "10.9.1.5" in asked(here, "archive.far.internal")
        host.damage(one.vpc_id, "name server")
        host.engine.ensure_vpc(one)
        assert "10.9.1.5" in asked(here, "archive.far.internal")
        host.engine.ensure_vpc(replace(other, dns_names=False))
        assert asked(here, "store.far.internal") == ""
        host.engine.ensure_vpc(other)
        host.engine.remove_peering("pcx-1")
        assert asked(here, "store.far.internal") == ""
        assert asked(there, "g0.test.internal") == ""
    finally:
        here.close()
        there.close()


def test_a_peer_of_the_same_name_takes_no_names_over(host: NetworkHost) -> None:
    one, other, third = made_vpc(host, "10.0.1.5"), replace(far_vpc(host, "g0", "store"), domain="test.internal"), far_vpc(host, "store", net=8)
    for spec in (other, third):
        host.engine.ensure_vpc(spec)
    here = Guest(host.engine, one, one.ports[0]).configure()
    try:
        host.engine.ensure_peering(PeeringSpec("pcx-1", (one.vpc_id, other.vpc_id)))
        host.engine.ensure_peering(PeeringSpec("pcx-2", (one.vpc_id, third.vpc_id)))
        assert "10.8.1.4" in asked(here, "store.far.internal")
        assert asked(here, "store.test.internal") == ""
        found = asked(here, "g0.test.internal")
        assert ("10.0.1.5" in found, "10.9.1.4" in found) == (True, False)
        host.engine.ensure_vpc(replace(other, domain="far.internal"))
        assert asked(here, "store.far.internal") == "", "whose of the two is not certain"
        host.engine.ensure_vpc(replace(other, domain="else.internal"))
        assert ("10.8.1.4" in asked(here, "store.far.internal"), "10.9.1.5" in asked(here, "store.else.internal")) == (True, True)
    finally:
        here.close()


def test_names_of_a_peer_that_was_removed_are_gone(host: NetworkHost) -> None:
    one, other = made_vpc(host, "10.0.1.5"), far_vpc(host, "store")
    host.engine.ensure_vpc(other)
    host.engine.ensure_peering(PeeringSpec("pcx-1", (one.vpc_id, other.vpc_id)))
    guest = Guest(host.engine, one, one.ports[0]).configure()
    try:
        assert "10.9.1.4" in asked(guest, "store.far.internal")
        host.engine.remove_vpc(other.vpc_id)
        assert asked(guest, "store.far.internal") == ""
        folder = str(host.engine._name_server(other.vpc_id).folder)  # type: ignore[attr-defined]
        assert folder not in subprocess.run(["ps", "-ewwo", "args"], capture_output=True, text=True, check=True).stdout, "its name server has ended"
    finally:
        guest.close()
