"""Whoever is killed in the middle of a change of networks is finished by the next call, wherever it was."""

import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from portal.engines.local.network import namespaces
from portal.engines.local.network.links import Links
from portal.engines.network_ports import NatSpec, PeeringSpec, RouteSpec, SubnetSpec, Via, VpcSpec
from tests.support.network import NetworkHost, local_network_host, port, rule, why_no_networks, with_ports

MISSING = why_no_networks()
pytestmark = [pytest.mark.skipif(bool(MISSING), reason=MISSING or "networks can be made here"), pytest.mark.timeout(300)]
# Every so many doings, so that all of it takes half a minute.
STRIDE = 5


class Killed(BaseException):
    """The process ends here."""


class Sabotage:
    """Lets the process end before its nth doing: a program that is run, a message to the kernel, a file that is put in place."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.left: int | None = None
        self.seen = 0
        work, run, rename = Links._work, subprocess.run, Path.replace

        def counted(original: Callable[..., object]) -> Callable[..., object]:
            def wrapper(*arguments: object, **more: object) -> object:
                self.count()
                return original(*arguments, **more)

            return wrapper

        patch.setattr(Links, "_work", counted(work))
        patch.setattr(subprocess, "run", counted(run))
        patch.setattr(Path, "replace", counted(rename))

    def count(self) -> None:
        self.seen += 1
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                self.left = None
                raise Killed

    def kills(self, after: int, call: Callable[[], object]) -> bool:
        """Whether the call was ended after so many doings."""
        self.left = after
        try:
            call()
        except Killed:
            return True
        finally:
            self.left = None
        return False


@pytest.fixture
def host() -> Iterator[NetworkHost]:
    with local_network_host() as found:
        yield found


def states(host: NetworkHost) -> tuple[VpcSpec, VpcSpec]:
    small = host.vpc()
    small = with_ports(small, port(small, "10.0.1.5", name="a"))
    routes = [*small.subnets[0].routes, RouteSpec("10.9.0.0/16", Via.PEERING, "pcx-1")]
    large = replace(
        small, subnets=[replace(small.subnets[0], routes=routes), SubnetSpec(f"{small.vpc_id}-s3", "10.0.3.0/24")],
        nats=[NatSpec("nat-1", host.public(40))], groups=[replace(small.groups[0], rules=[*small.groups[0].rules, rule("rule-new", port=22)])],
    )  # fmt: skip
    return small, with_ports(large, replace(port(small, "10.0.1.5", name="b"), public_address=host.public(41)), port(large, "10.0.1.6"))


def test_a_change_that_was_cut_off_anywhere_is_finished_by_the_next_call(host: NetworkHost, monkeypatch: pytest.MonkeyPatch) -> None:
    small, large = states(host)
    far = host.vpc(cidr="10.9.0.0/16", subnets=[SubnetSpec("subnet-far", "10.9.1.0/24")])
    host.engine.ensure_vpc(far)
    sabotage = Sabotage(monkeypatch)
    after, went_on = 0, True
    while went_on:
        went_on = False
        for state in (small, large):
            went_on = sabotage.kills(after, lambda state=state: host.engine.ensure_vpc(state)) or went_on  # type: ignore[misc]
            host.reopen()
            host.engine.ensure_vpc(state)
            host.engine.ensure_peering(PeeringSpec("pcx-1", (small.vpc_id, far.vpc_id)))
            assert host.engine.drift() == [], f"after {after} doings"
        after += STRIDE
    assert sabotage.seen > 500, "something was done at all"


def test_a_removal_that_was_cut_off_anywhere_leaves_nothing_after_the_next_call(host: NetworkHost, monkeypatch: pytest.MonkeyPatch) -> None:
    _, large = states(host)
    sabotage = Sabotage(monkeypatch)
    after, went_on = 0, True
    while went_on:
        host.engine.ensure_vpc(large)
        went_on = sabotage.kills(after, lambda: host.engine.remove_vpc(large.vpc_id))
        host.reopen()
        host.engine.remove_vpc(large.vpc_id)
        assert host.engine.vpcs() == []
        assert left_of(host) == []
        after += STRIDE


def left_of(host: NetworkHost) -> list[str]:
    word = host.engine._installation.word  # type: ignore[attr-defined]
    left = [name for _, name in socket.if_nameindex() if word in name]
    with suppress(FileNotFoundError):
        left += [path.name for path in namespaces.RUN.iterdir() if word in path.name]
    return left
