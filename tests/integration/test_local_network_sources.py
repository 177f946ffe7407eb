"""Whom a packet may claim to come from: over peerings, and from guests that pass on what others send."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from portal.engines.network_ports import GroupSpec, IpProtocol, PeeringSpec, PortSpec, RouteSpec, SubnetSpec, Via, VpcSpec
from tests.support.network import OUT, Guest, NetworkHost, local_network_host, rule, sends, why_no_networks, with_ports

MISSING = why_no_networks()
pytestmark = [pytest.mark.skipif(bool(MISSING), reason=MISSING or "networks can be made here")]
ANYTHING = GroupSpec("sg-all", [rule("rule-in", protocol=IpProtocol.ALL), OUT])


@pytest.fixture
def host() -> Iterator[NetworkHost]:
    with local_network_host() as found:
        yield found


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
