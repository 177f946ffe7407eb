"""What becomes of networks and of connections when something changes, breaks or is restarted; names, metadata and the flow log."""

import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from portal.engines.local.network import engine, nft
from portal.engines.local.network import filter as filter_
from portal.engines.network_ports import Flow, GroupSpec, PeeringSpec, PortSpec, RouteSpec, SubnetSpec, Via, VpcSpec
from portal.engines.ports import EngineError
from tests.support.network import (
    OUT,
    PATIENTLY_S,
    Guest,
    NetworkHost,
    Outside,
    made_vpc,
    port,
    rule,
    why_no_networks,
    with_ports,
)
from tests.support.servers import until

MISSING = why_no_networks()
pytestmark = [pytest.mark.skipif(bool(MISSING), reason=MISSING or "networks can be made here")]


# -- changes ---------------------------------------------------------------------------------------------------------------------------------


def test_connections_survive_other_changes_and_end_with_their_rule(host: NetworkHost, guest: Callable[..., Guest]) -> None:
    spec = made_vpc(host, "10.0.1.5", "10.0.1.6")
    a, _ = guest(spec, 0), guest(spec, 1)
    with a.connect("10.0.1.6", 80, PATIENTLY_S) as link:
        link.recv(100)

        def echoes() -> bool:
            with suppress(OSError):
                link.sendall(b"still there?\n")
                return link.recv(100) != b""
            return False

        assert echoes()
        with_ssh = replace(spec, groups=[GroupSpec("sg-web", [*spec.groups[0].rules, rule("rule-ssh", port=22)])])
        host.engine.ensure_vpc(with_ssh)
        assert a.hears("10.0.1.6", 22, PATIENTLY_S)
        assert echoes()
        host.engine.ensure_vpc(replace(spec, groups=[GroupSpec("sg-web", [rule("rule-ssh", port=22), OUT])]))
        link.settimeout(1)
        assert not echoes()
    assert host.engine.rule_hits(spec.vpc_id)["rule-ssh"] == 1, "counted before the change"


def peered(host: NetworkHost) -> tuple[VpcSpec, VpcSpec]:
    """Two VPCs with a guest each, and a peering that both lead to."""
    one, other = host.vpc(), host.vpc(cidr="10.9.0.0/16", subnets=[SubnetSpec("subnet-far", "10.9.1.0/24")])
    one = with_ports(one, port(one, "10.0.1.5"))
    other = with_ports(other, PortSpec("eni-far", "subnet-far", "52:54:00:09:01:05", "10.9.1.5", ("sg-web",)))
    one, other = led(one, "10.9.0.0/16", "pcx-1"), led(other, "10.0.0.0/16", "pcx-1")
    for spec in (one, other):
        host.engine.ensure_vpc(spec)
    host.engine.ensure_peering(PeeringSpec("pcx-1", (one.vpc_id, other.vpc_id)))
    return one, other


def led(spec: VpcSpec, cidr: str, peering_id: str) -> VpcSpec:
    first = spec.subnets[0]
    others = [route for route in first.routes if route.destination != cidr]
    return replace(spec, subnets=[replace(first, routes=[*others, RouteSpec(cidr, Via.PEERING, peering_id)]), *spec.subnets[1:]])


@pytest.mark.parametrize("how", ["by another", "by the same again"])
def test_connections_over_a_peering_end_with_it(host: NetworkHost, guest: Callable[..., Guest], how: str) -> None:
    one, other = peered(host)
    a, _ = guest(one, 0), guest(other, 0)
    stays = with_ports(one, *one.ports, port(one, "10.0.1.6"))
    host.engine.ensure_vpc(stays)
    b = guest(stays, 1)
    with a.connect("10.9.1.5", 80, PATIENTLY_S) as link, b.connect("10.0.1.5", 80, PATIENTLY_S) as near:
        for each in (link, near):
            each.recv(100)
            assert goes_on(each)
        host.engine.remove_peering("pcx-1")
        link.settimeout(1)
        assert goes_on(near)
        renamed = "pcx-1" if how == "by the same again" else "pcx-2"
        for spec, cidr in ((stays, "10.9.0.0/16"), (other, "10.0.0.0/16")):
            host.engine.ensure_vpc(led(spec, cidr, renamed))
        host.engine.ensure_peering(PeeringSpec(renamed, (one.vpc_id, other.vpc_id)))
        assert not goes_on(link), "it began over what is gone"
        assert goes_on(near), "the others have nothing to do with that"
    assert a.hears("10.9.1.5", 80, PATIENTLY_S)
    assert host.engine.drift() == []


def test_connections_end_whose_peering_is_exchanged_for_another(host: NetworkHost, guest: Callable[..., Guest]) -> None:
    one, other = peered(host)
    a, _ = guest(one, 0), guest(other, 0)
    with a.connect("10.9.1.5", 80, PATIENTLY_S) as link:
        link.recv(100)
        assert goes_on(link)
        # A second peering of the same two: what began over the first does not go on over it.
        host.engine.ensure_peering(PeeringSpec("pcx-2", (one.vpc_id, other.vpc_id)))
        for spec, cidr in ((one, "10.9.0.0/16"), (other, "10.0.0.0/16")):
            host.engine.ensure_vpc(led(spec, cidr, "pcx-2"))
        link.settimeout(1)
        assert not goes_on(link)
    assert a.hears("10.9.1.5", 80, PATIENTLY_S)
    assert host.engine.drift() == []


def goes_on(link: socket.socket) -> bool:
    with suppress(OSError):
        link.sendall(b"still there?\n")
        return link.recv(100) != b""
    return False


def test_a_floating_address_that_moves_takes_its_connections_along(
    host: NetworkHost, guest: Callable[..., Guest], outside: Callable[[], Outside]
) -> None:
    spec, public = host.vpc(), host.public(52)
    first, second = port(spec, "10.0.1.5", public_address=public), port(spec, "10.0.1.6")
    spec = with_ports(spec, first, second)
    host.engine.ensure_vpc(spec)
    guest(spec, 0), guest(spec, 1)
    world = outside()
    with world.connect(public, 80, PATIENTLY_S) as link:
        assert link.recv(100).startswith(b"10.0.1.5")
        host.engine.ensure_vpc(with_ports(spec, replace(first, public_address=""), replace(second, public_address=public)))
        link.settimeout(1)
        link.sendall(b"hello\n")
        with pytest.raises(TimeoutError):
            link.recv(100)
    assert world.hears(public, 80, PATIENTLY_S).startswith("10.0.1.6")


# -- names and metadata ----------------------------------------------------------------------------------------------------------------------

SCRIPT = """#!/bin/sh
[ "$1" = bound ] || exit 0
ip addr add "$ip/$mask" dev "$interface"
ip route replace default via "$router" dev "$interface"
echo "BOUND $ip $router $dns $domain"
"""


def test_guests_get_addresses_and_names_by_asking(host: NetworkHost, guest: Callable[..., Guest], tmp_path: object) -> None:
    spec = made_vpc(host, "10.0.1.5", "10.0.2.5")
    a = Guest(host.engine, spec, spec.ports[0])
    script = tmp_path / "script"  # type: ignore[operator]
    script.write_text(SCRIPT)
    script.chmod(0o755)
    try:
        said = a.run("busybox", "udhcpc", "-i", "eth0", "-n", "-q", "-f", "-t", "5", "-T", "1", "-s", str(script), timeout_s=20)
        assert "BOUND 10.0.1.5 10.0.1.1 10.0.1.1 test.internal" in said
        assert "10.0.2.5" in a.run("busybox", "nslookup", "g1.test.internal", "10.0.1.1")
        assert "10.0.1.5" in a.run("busybox", "nslookup", "g0.test.internal", "10.0.2.1")
    finally:
        a.close()


def test_the_metadata_service_tells_each_guest_about_itself_alone(host: NetworkHost, guest: Callable[..., Guest]) -> None:
    spec = made_vpc(host, "10.0.1.5", "10.0.1.6")
    a, b = guest(spec, 0), guest(spec, 1)
    for each in (a, b):
        own = each.port.guest
        assert own is not None
        assert each.fetch("169.254.169.254", "/latest/meta-data/instance-id") == (200, own.instance_id)
        assert each.fetch("169.254.169.254", "/latest/meta-data/local-ipv4") == (200, each.port.address)
        assert each.fetch("169.254.169.254", "/latest/user-data") == (200, own.user_data)
        assert f"local-hostname: {own.hostname}" in each.fetch("169.254.169.254", "/nocloud/meta-data")[1]
    assert "instance-id" in a.fetch("169.254.169.254", "/latest/meta-data/")[1].splitlines()
    assert a.fetch("169.254.169.254", "/latest/meta-data/public-ipv4")[0] == 404
    host.reopen().drift()
    assert a.fetch("169.254.169.254", "/latest/meta-data/instance-id")[0] == 200


# -- flow log and repair ---------------------------------------------------------------------------------------------------------------------


def test_the_flow_log_shows_what_was_accepted_and_refused(host: NetworkHost, guest: Callable[..., Guest]) -> None:
    spec = made_vpc(host, "10.0.1.5", "10.0.1.6", flow_log=True)
    a, _ = guest(spec, 0), guest(spec, 1)
    assert a.hears("10.0.1.6", 80, PATIENTLY_S)
    assert not a.hears("10.0.1.6", 22)
    seen: list[Flow] = []

    def has_both() -> bool:
        seen.extend(host.engine.flows())
        return {(flow.accepted, flow.destination_port) for flow in seen} >= {(True, 80), (False, 22)}

    until(has_both, within_s=5, what="both connections in the flow log")
    accepted = next(flow for flow in seen if flow.accepted)
    assert (accepted.vpc_id, accepted.protocol, accepted.source, accepted.destination) == (spec.vpc_id, "tcp", "10.0.1.5", "10.0.1.6")
    assert accepted.source_port > 0
    host.engine.ensure_vpc(replace(spec, flow_log=False))
    host.engine.flows()
    assert a.hears("10.0.1.6", 80, PATIENTLY_S)
    assert host.engine.flows() == []


def test_after_a_restart_of_the_host_everything_comes_back(host: NetworkHost, guest: Callable[..., Guest]) -> None:
    specs = [made_vpc(host, "10.0.1.5", "10.0.1.6", flow_log=True) for _ in range(2)]
    for spec in specs:
        host.damage(spec.vpc_id, "router")
    host.damage(specs[0].vpc_id, "fabric")
    host.damage(specs[0].vpc_id, "uplink of the host")
    host.reopen()
    assert {each.vpc_id for each in host.engine.drift()} == {spec.vpc_id for spec in specs}
    for spec in specs:
        host.engine.ensure_vpc(spec)
    assert host.engine.drift() == []
    a, _ = guest(specs[0], 0), guest(specs[0], 1)
    assert a.hears("10.0.1.6", 80, PATIENTLY_S)
    assert not a.hears("10.0.1.6", 22)


def test_a_namespace_of_somebody_else_is_never_taken_for_ours(host: NetworkHost) -> None:
    spec = made_vpc(host, "10.0.1.5")
    stranger = subprocess.Popen(["unshare", "--net", "cat"], stdin=subprocess.PIPE)
    try:
        home = Path(f"/proc/{stranger.pid}/ns/net")
        until(lambda: home.stat().st_ino != Path("/proc/self/ns/net").stat().st_ino, within_s=5, what="a namespace of its own")
        # The kernel gives the number of a namespace that has ended to the next one.
        store = host.engine._store  # type: ignore[attr-defined]
        store.save_vpc(replace(store.vpc(spec.vpc_id), namespace=home.stat().st_ino))
        host.damage(spec.vpc_id, "router")
        host.engine.ensure_vpc(spec)
        assert host.engine.drift() == []
        assert store.vpc(spec.vpc_id).namespace != home.stat().st_ino
    finally:
        stranger.communicate()


DAMAGES = (
    "bridge", "router rules", "guard", "name server", "hanging name server", "address", "route", "tap", "metadata", "router's name", "router",
    "uplink of the host", "forwarding", "proxy", "loose connections", "rules of the host", "somebody's rules", "somebody's chains",
)  # fmt: skip


@pytest.mark.parametrize("what", DAMAGES)
def test_whatever_is_broken_is_seen_and_healed(host: NetworkHost, guest: Callable[..., Guest], what: str) -> None:
    spec = host.vpc()
    spec = with_ports(spec, port(spec, "10.0.1.5", name="g0"), port(spec, "10.0.2.5", name="g1", public_address=host.public(53)))
    host.engine.ensure_vpc(spec)
    a, b = guest(spec, 0), guest(spec, 1)
    assert a.hears("10.0.2.5", 80, PATIENTLY_S)
    assert host.engine.drift() == []
    host.damage(spec.vpc_id, what)
    assert {each.vpc_id for each in host.engine.drift()} == {spec.vpc_id}
    if what == "tap":
        a.unplug()
    host.engine.ensure_vpc(spec)
    if what == "tap":
        a.plug()
        a.configure()
    assert host.engine.drift() == []
    assert a.hears("10.0.2.5", 80, PATIENTLY_S) == "10.0.2.5 saw 10.0.1.5"
    assert not b.hears("10.0.1.5", 22)
    assert a.fetch("169.254.169.254", "/latest/meta-data/instance-id")[0] == 200
    assert "10.0.2.5" in a.run("busybox", "nslookup", "g1.test.internal", "10.0.1.1")


def test_rules_that_somebody_takes_away_are_back_before_anybody_looks(host: NetworkHost, guest: Callable[..., Guest]) -> None:
    spec = made_vpc(host, "10.0.1.5", "10.0.1.6")
    a, _ = guest(spec, 0), guest(spec, 1)
    router = host.engine._router(spec.vpc_id).name  # type: ignore[attr-defined]
    for _ in range(3):
        host.damage(spec.vpc_id, "router rules")
        until(lambda: ("inet", filter_.TABLE) in nft.tables(router), within_s=10, what="the rules are back")
        assert a.hears("10.0.1.6", 80, PATIENTLY_S)
        assert not a.hears("10.0.1.6", 22)
    assert [each.vpc_id for each in host.engine.drift()] == [spec.vpc_id], "it is told all the same"
    host.engine.ensure_vpc(spec)
    assert host.engine.drift() == []
    host.damage(spec.vpc_id, "router rules")
    until(lambda: ("inet", filter_.TABLE) in nft.tables(router), within_s=10, what="the rules are back once more")


def test_what_began_under_somebody_elses_rules_ends_with_the_next_look(
    host: NetworkHost, guest: Callable[..., Guest], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = made_vpc(host, "10.0.1.5", "10.0.1.6")
    a, _ = guest(spec, 0), guest(spec, 1)
    # As if nobody heard of it at once: who listens is made anew with the next look.
    monkeypatch.setattr(host.engine, "_rules_changed", lambda _vpc_id: None)
    host.engine.close()
    host.engine.drift()
    opened = "".join(f"insert rule inet {filter_.TABLE} {chain} accept\n" for chain in ("sent", "received"))
    nft.apply(host.engine._router(spec.vpc_id).name, opened)  # type: ignore[attr-defined]
    with a.connect("10.0.1.6", 22, PATIENTLY_S) as link:
        link.recv(100)
        assert goes_on(link)
        assert [each.vpc_id for each in host.engine.drift()] == [spec.vpc_id]
        host.engine.ensure_vpc(spec)
        link.settimeout(1)
        assert not goes_on(link)
    assert host.engine.drift() == []


def test_the_first_way_out_of_an_installation_is_made_after_networks_were_looked_at(host: NetworkHost) -> None:
    closed = made_vpc(host, "10.0.1.5", uplink_address="")
    assert host.engine.drift() == []
    host.engine.ensure_vpc(replace(closed, uplink_address=host.public(10)))
    assert host.engine.drift() == []


def test_others_do_not_wait_while_connections_of_a_vpc_are_gone_through(host: NetworkHost, monkeypatch: pytest.MonkeyPatch) -> None:
    long, other = made_vpc(host, "10.0.1.5"), made_vpc(host, "10.0.1.5")
    begun, over = threading.Event(), threading.Event()

    def slowly(_namespace: str, spec: VpcSpec, _formerly: object) -> int:
        if spec.vpc_id == long.vpc_id:
            begun.set()
            assert over.wait(30)
        return 0

    monkeypatch.setattr(engine, "purge", slowly)
    with ThreadPoolExecutor(2) as pool:
        try:
            first = pool.submit(host.engine.ensure_vpc, replace(long, ports=[]))
            assert begun.wait(10)
            pool.submit(host.engine.ensure_vpc, replace(other, ports=[])).result(5)
            assert host.engine.drift() == [], "what is being done is no damage"
            assert not first.done()
        finally:
            over.set()
        first.result(10)
    assert host.engine.drift() == []


def test_what_is_made_while_others_are_looked_at_is_no_damage(host: NetworkHost, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = sorted((made_vpc(host), made_vpc(host)), key=lambda spec: spec.vpc_id)
    bigger = with_ports(second, port(second, "10.0.1.5"))
    looked = engine.differences

    def look(*given: Any, **more: Any) -> Iterator[str]:
        if given[0].spec.vpc_id == first.vpc_id:
            host.engine.ensure_vpc(bigger)
        return looked(*given, **more)

    monkeypatch.setattr(engine, "differences", look)
    assert host.engine.drift() == []


def test_connections_that_were_not_gone_through_are_so_by_the_next_try(
    host: NetworkHost, guest: Callable[..., Guest], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = made_vpc(host, "10.0.1.5", "10.0.1.6")
    a, _ = guest(spec, 0), guest(spec, 1)
    closed = replace(spec, groups=[GroupSpec("sg-web", [])])
    with a.connect("10.0.1.6", 80, PATIENTLY_S) as link, link.makefile() as words:
        assert words.readline()
        with monkeypatch.context() as patch:
            patch.setattr(engine, "purge", fails)
            with pytest.raises(EngineError):
                host.engine.ensure_vpc(closed)
        assert [each.vpc_id for each in host.engine.drift()] == [spec.vpc_id]
        host.engine.ensure_vpc(closed)
        link.sendall(b"still there?")
        link.settimeout(1)
        with pytest.raises(TimeoutError):
            link.recv(100)
    assert host.engine.drift() == []


def fails(*_given: object) -> int:
    raise EngineError("The kernel does not list its connections.")
