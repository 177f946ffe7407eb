"""The worker and the host's networks: what somebody breaks comes back and is told, whoever is killed is finished, and connections that may go on do."""

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker

from portal.engines.local.network import namespaces
from portal.engines.local.network.engine import LocalNetwork
from portal.kernel.context import Context
from portal.kernel.events import Event
from portal.kernel.jobs import Job, active_for
from portal.kernel.operations import run
from portal.networking.desired import desired_state
from portal.networking.models import FlowRecord, SecurityGroup, Vpc
from portal.settings import Settings
from tests.support.network import PATIENTLY_S, Guest, damage, free_external, why_no_networks
from tests.support.processes import kill, portal_process
from tests.support.servers import until

MISSING = why_no_networks()
pytestmark = [pytest.mark.skipif(bool(MISSING), reason=MISSING or "networks can be made here"), pytest.mark.timeout(240)]

DAMAGES = ("bridge", "router rules", "guard", "name server", "router", "uplink of the host")
WITHIN_S = 60
GROUP = "web"


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """An installation whose worker makes networks on this host, and looks after them every second."""
    quick = {"reconcile_interval_s": 1, "job_lease_s": 2, "engine_network": "local", "network_external_cidr": free_external()}
    return type(settings).load(**{**settings.model_dump(), **quick})


@dataclass
class Place:
    """A VPC with two guests that the portal's worker made, seen by a test that only looks."""

    ctx: Context
    database: sessionmaker[Session]
    engine: LocalNetwork
    vpc_id: str = ""
    guests: list[Guest] = field(default_factory=list)

    def do(self, name: str, target: str | None = None, /, **data: Any) -> Any:
        """Run an operation of networking."""
        return run(self.ctx, self.ctx.registry.operation(f"networking.{name}"), target, data).row

    def is_applied(self) -> bool:
        with self.database() as session:
            vpc = session.get_one(Vpc, self.vpc_id)
            return vpc.state == "available" and vpc.applied_revision == vpc.desired_revision and active_for(session, vpc.id) is None

    def told(self) -> list[str]:
        """What was found missing, oldest first."""
        with self.database() as session:
            events = session.scalars(select(Event).where(Event.type == "networking.vpc.drifted", Event.resource_id == self.vpc_id).order_by(Event.id))
            return [" ".join(map(str, event.payload["missing"])) for event in events]

    def build(self) -> None:
        """Draw it, and wait until it is there."""
        self.vpc_id = self.do("vpc.create", name="shop", cidr_block="10.0.0.0/16").id
        self.do("internet_gateway.create", name="door", vpc="shop")
        for number in (1, 2):
            self.do("subnet.create", name=f"s{number}", vpc="shop", cidr_block=f"10.0.{number}.0/24")
        self.do("security_group.create", name=GROUP, vpc="shop")
        for number in (22, 80):
            self.do("security_group.add_rule", self.group(), from_port=number, cidr="10.0.0.0/16")
        for number in (1, 2):
            self.do("network_interface.create", name=f"n{number}", subnet=f"s{number}", security_groups=[GROUP])
        until(self.is_applied, within_s=WITHIN_S, what="the network is on the host")
        with self.database() as session:
            wanted = desired_state(session, self.ctx.registry, self.vpc_id)
            assert wanted is not None
        self.guests = [Guest(self.engine, wanted.spec, port).configure() for port in sorted(wanted.spec.ports, key=lambda each: each.address)]
        for guest in self.guests:
            for number in (22, 80, 443):
                guest.serve(number)

    def group(self) -> str:
        return self.ctx.db.scalars(select(SecurityGroup.id).where(SecurityGroup.name == GROUP)).one()

    def rule(self, number: int) -> str:
        self.ctx.db.rollback()
        group = self.ctx.db.get_one(SecurityGroup, self.group())
        return next(rule.id for rule in group.rules if rule.from_port == number)

    def talks(self, number: int = 80, within_s: float = 0.4) -> bool:
        one, other = self.guests
        return bool(one.hears(other.port.address, number, within_s))

    def is_broken_and_healed(self, what: str) -> None:
        """Break something; wait until that is told and the worker has done what it does about it."""
        before = len(self.told())
        damage(self.engine, self.vpc_id, what)
        until(lambda: len(self.told()) > before and self.is_applied(), within_s=WITHIN_S, what=f"it is told and healed: {what}")

    def replug(self) -> None:
        """Machines connect to their taps again, which were made anew."""
        for guest in self.guests:
            guest.unplug()
            guest.plug()
            guest.configure()


@pytest.fixture
def place(settings: Settings, ctx: Context, database: sessionmaker[Session]) -> Iterator[Place]:
    engine = LocalNetwork(settings.data_dir, external_cidr=settings.network_external_cidr)
    found = Place(replace(ctx, settings=settings), database, engine)
    try:
        yield found
    finally:
        for guest in found.guests:
            guest.close()
        for vpc_id in engine.vpcs():
            engine.remove_vpc(vpc_id)
        engine.close()


def test_whatever_is_broken_comes_back_by_itself_and_is_told(place: Place, settings: Settings) -> None:
    with portal_process(settings, "worker"), portal_process(settings, "scheduler"):
        place.build()
        assert place.talks(within_s=PATIENTLY_S)
        for what in DAMAGES:
            place.is_broken_and_healed(what)
            until(place.talks, within_s=WITHIN_S, what=f"guests talk again: {what}")
            assert not place.talks(443), what
        place.is_broken_and_healed("fabric")
        place.replug()
        until(place.talks, within_s=WITHIN_S, what="guests talk over the new fabric")
    assert "name server does not answer" in " ".join(place.told())
    assert place.engine.drift() == []


def test_connections_that_stay_allowed_go_on_and_others_end(place: Place, settings: Settings) -> None:
    with portal_process(settings, "worker"):
        place.build()
        one, other = place.guests
        with one.connect(other.port.address, 80, PATIENTLY_S) as kept, one.connect(other.port.address, 22, PATIENTLY_S) as cut:
            for link in (kept, cut):
                assert link.recv(100)
            place.do("security_group.add_rule", place.group(), from_port=443, cidr="10.0.0.0/16")
            place.do("security_group.remove_rule", place.group(), rule_id=place.rule(22))
            until(place.is_applied, within_s=WITHIN_S, what="the change is in force")
            kept.sendall(b"still here\n")
            assert kept.recv(100) == b"still here\n"
            cut.sendall(b"hello?\n")
            with pytest.raises(TimeoutError):
                cut.recv(100)
        assert place.talks(443, PATIENTLY_S)
        assert not place.talks(22)


def test_what_flows_is_on_the_page_soon(place: Place, settings: Settings) -> None:
    def seen() -> set[tuple[bool, int]]:
        with place.database() as session:
            return {(row.is_accepted, row.destination_port) for row in session.scalars(select(FlowRecord).where(FlowRecord.vpc_id == place.vpc_id))}

    with portal_process(settings, "worker"), portal_process(settings, "scheduler"):
        place.build()
        place.do("vpc.configure_flow_logs", place.vpc_id, enabled=True)
        until(place.is_applied, within_s=WITHIN_S, what="the flow log is on")
        assert place.talks(80, PATIENTLY_S)
        assert not place.talks(443)
        until(lambda: seen() >= {(True, 80), (False, 443)}, within_s=5, what="both connections are in the flow log")


def test_a_worker_that_is_killed_in_the_middle_is_finished_by_the_next(place: Place, settings: Settings) -> None:
    def is_running() -> bool:
        with place.database() as session:
            return session.scalars(select(Job.id).where(Job.kind == "networking.vpc.apply", Job.state == "running")).first() is not None

    with portal_process(settings, "worker"):
        place.build()
    for number in (8001, 8002, 8003):
        with portal_process(settings, "worker") as doomed:
            until(place.is_applied, within_s=WITHIN_S, what="the worker is up to date")
            place.do("security_group.add_rule", place.group(), from_port=number, cidr="10.0.0.0/16")
            until(is_running, within_s=WITHIN_S, what="the change is being made", every_s=0.001)
            kill(doomed)
    with portal_process(settings, "worker"), portal_process(settings, "scheduler"):
        until(place.is_applied, within_s=WITHIN_S, what="the next worker has finished it")
        place.guests[1].serve(8003)
        until(lambda: place.talks(8003), within_s=WITHIN_S, what="the last rule is in force")
    assert place.engine.drift() == []


def test_after_a_restart_of_the_host_everything_comes_back(place: Place, settings: Settings) -> None:
    with portal_process(settings, "worker") as worker:
        place.build()
        kill(worker)
    server = place.engine._name_server(place.vpc_id).process()
    os.kill(server, 9)
    for name in (place.engine._router(place.vpc_id).name, place.engine._fabric.name):
        namespaces.remove(name)
    host_link = place.engine._installation.host_link
    if Path(f"/sys/class/net/{host_link}").exists():
        subprocess.run(["ip", "link", "delete", host_link], check=True)
    with portal_process(settings, "worker"), portal_process(settings, "scheduler"):
        until(lambda: bool(place.told()) and place.is_applied(), within_s=WITHIN_S, what="the network is there again")
        place.replug()
        until(place.talks, within_s=WITHIN_S, what="guests talk again")
        assert not place.talks(443)
    assert place.engine.drift() == []
