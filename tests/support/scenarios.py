"""For every operation that runs as a job: a resource it can be aimed at, and input that is accepted.

An operation without a scenario fails the contract tests: whoever adds one adds the other.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import partial
from typing import Any

from sqlalchemy import select, update

from portal.compute.images import staging_path
from portal.engines.fake import FakeCompute
from portal.engines.ports import EngineRefused, MachineState
from portal.engines.volume_ports import VolumeEngine
from portal.kernel.audit_verify import verify
from portal.kernel.context import SYSTEM, Context
from portal.kernel.db import now, transaction
from portal.kernel.declare import Operation, Outcome
from portal.kernel.jobs import ACTIVE, Job
from portal.kernel.operations import run
from portal.kernel.quota import Reservation, recount
from portal.kernel.resource import Registry
from portal.kernel.runner import TaskRun
from portal.storage.tending import tend_volumes
from portal.storage.volume_models import Snapshot, Volume
from tests.support.draining import TestWorker

TINY = "atonix-tiny"
GIB = 1 << 30


def qcow2(size_bytes: int = GIB) -> bytes:
    """An empty qcow2 image, version 3: a header, and clusters that say that nothing is allocated."""
    cluster = 1 << 16
    header = struct.pack(
        ">4sIQIIQIIQQIIQQQQII", b"QFI\xfb", 3, 0, 0, 16, size_bytes, 0, -(-size_bytes // (cluster * cluster // 8)), 3 * cluster, cluster, 1, 0, 0, 0, 0, 0, 4, 104
    )  # fmt: skip
    counts = struct.pack(">Q", 2 * cluster).ljust(cluster, b"\0") + (b"\0\x01" * 4).ljust(cluster, b"\0")
    return header.ljust(cluster, b"\0") + counts + b"\0" * cluster


@dataclass
class Stage:
    """What a scenario plays on: a context that may do everything needed, a worker, an engine, and a place to fetch an image from."""

    ctx: Context
    worker: TestWorker
    engine: FakeCompute
    image_url: str = ""
    made: int = field(default=0)

    @property
    def volumes(self) -> VolumeEngine:
        """The engine for volumes."""
        engine = self.worker.runner.engines.volumes
        if engine is None:
            raise AssertionError("this stage keeps no volumes")
        return engine

    def name(self) -> str:
        """A name that is not taken."""
        self.made += 1
        return f"thing-{self.made}-{id(self)}"

    def do(self, op: Operation, target: str | None = None, **data: Any) -> Any:
        """Run an operation and its job; the row after it."""
        outcome = run(self.ctx, op, target, data)
        self.worker.drain()
        return self.row(outcome)

    def tend(self) -> None:
        """Let the portal look after volumes, and do what comes of it."""
        self.ctx.db.rollback()
        tend_volumes(TaskRun(replace(self.ctx, principal=SYSTEM), self.worker.runner.engines))
        self.worker.drain()
        self.ctx.db.rollback()

    def row(self, outcome: Outcome) -> Any:
        """The row of an outcome as it stands now."""
        self.ctx.db.rollback()
        return self.ctx.db.get_one(type(outcome.row), outcome.row.id, populate_existing=True)


@dataclass(frozen=True)
class Play:
    """An operation ready to be run: its target (None for a create) and its input."""

    target: str | None
    data: dict[str, Any]


def _operation(stage: Stage, name: str) -> Operation:
    return stage.ctx.registry.operation(name)


def running_instance(stage: Stage) -> Any:
    """A machine that runs."""
    return stage.do(_operation(stage, "compute.instance.create"), name=stage.name(), flavor="t3-micro", image=TINY)


def stopped_instance(stage: Stage) -> Any:
    """A machine that was stopped."""
    return stage.do(_operation(stage, "compute.instance.stop"), running_instance(stage).id, force=True)


def _create_instance(stage: Stage) -> Play:
    return Play(None, {"name": stage.name(), "flavor": "t3-micro", "image": TINY, "tags": {"role": "web"}})


def _with(given: Callable[[Stage], Any], stage: Stage, **data: Any) -> Play:
    return Play(given(stage).id, data)


def _halt(stage: Stage) -> Play:
    row = stopped_instance(stage)
    stage.engine.ensure_running(row.id)
    return Play(row.id, {"reason": "it runs"})


def _heal(stage: Stage) -> Play:
    row = running_instance(stage)
    stage.engine.ensure_stopped(row.id, graceful_timeout_s=0)
    return Play(row.id, {"reason": "it does not run"})


def _import_image(stage: Stage) -> Play:
    return Play(None, {"name": stage.name(), "source_url": stage.image_url})


def announced_image(stage: Stage) -> Any:
    """An image whose file has arrived and waits to be taken."""
    row = stage.do(_operation(stage, "compute.image.create"), name=stage.name())
    staging_path(stage.ctx.settings, row.id).write_bytes(qcow2())
    return row


def stored_image(stage: Stage) -> Any:
    """An image that machines can be made from."""
    return stage.do(_operation(stage, "compute.image.upload"), announced_image(stage).id, sha256="0" * 64)


def some_vpc(stage: Stage) -> Any:
    """A VPC of its own with nothing in it."""
    return stage.do(_operation(stage, "networking.vpc.create"), name=stage.name(), cidr_block="10.0.0.0/16")


def public_subnet(stage: Stage) -> Any:
    """A subnet whose default route leads to the internet."""
    vpc = some_vpc(stage)
    stage.do(_operation(stage, "networking.internet_gateway.create"), name=stage.name(), vpc=vpc.id)
    stage.do(_operation(stage, "networking.route_table.set_default_route"), vpc.main_route_table_id, target_type="internet-gateway")
    return stage.do(_operation(stage, "networking.subnet.create"), name=stage.name(), vpc=vpc.id, cidr_block="10.0.1.0/24")


def nat_gateway(stage: Stage) -> Any:
    """A NAT gateway that works."""
    return stage.do(_operation(stage, "networking.nat_gateway.create"), name=stage.name(), subnet=public_subnet(stage).id)


def _failover(stage: Stage) -> Play:
    nat = nat_gateway(stage)
    other = stage.do(_operation(stage, "networking.subnet.create"), name=stage.name(), vpc=nat.vpc_id, cidr_block="10.0.2.0/24")
    return Play(nat.id, {"target_subnet": other.id})


def spare_interface(stage: Stage) -> tuple[Any, Any]:
    """An interface that no machine has, and a machine in its VPC."""
    machine = running_instance(stage)
    return stage.do(_operation(stage, "networking.network_interface.create"), name=stage.name(), subnet=machine.subnet_id), machine


def _attach(stage: Stage) -> Play:
    interface, machine = spare_interface(stage)
    return Play(interface.id, {"instance": machine.id})


def _detach(stage: Stage) -> Play:
    play = _attach(stage)
    return Play(stage.do(_operation(stage, "networking.network_interface.attach"), play.target, **play.data).id, {})


def volume(stage: Stage) -> Any:
    """A volume that no machine has."""
    return stage.do(_operation(stage, "storage.volume.create"), name=stage.name(), size_gb=2)


def attached_volume(stage: Stage) -> Any:
    """A volume that a running machine has."""
    return stage.do(_operation(stage, "storage.volume.attach"), volume(stage).id, instance=running_instance(stage).id)


def root_of(stage: Stage, instance: Any) -> Volume:
    """The volume that a machine boots from."""
    stage.ctx.db.rollback()
    return stage.ctx.db.scalars(select(Volume).where(Volume.instance_id == instance.id, Volume.is_root)).one()


def snapshot(stage: Stage) -> Any:
    """A snapshot of a volume."""
    return stage.do(_operation(stage, "storage.snapshot.create"), name=stage.name(), volume=volume(stage).id)


def due_volume(stage: Stage) -> Any:
    """A volume whose schedule wants a snapshot now."""
    row = stage.do(_operation(stage, "storage.volume.set_snapshot_schedule"), volume(stage).id, frequency="hourly", retention_count=2)
    with transaction(stage.ctx.db):
        row.next_snapshot_at = now() - timedelta(seconds=1)
    return stage.ctx.db.get_one(type(row), row.id)


def _take_scheduled(stage: Stage) -> Play:
    row = due_volume(stage)
    return Play(None, {"volume": row.id, "due": row.next_snapshot_at.isoformat()})


def failed_snapshot(stage: Stage) -> Any:
    """A snapshot that could not be taken."""
    stage.volumes.fail_next("ensure_snapshot", EngineRefused("The pool is full."))  # type: ignore[attr-defined] # the fake
    return snapshot(stage)


def encryption_key(stage: Stage) -> Any:
    """A key of the project."""
    return stage.do(_operation(stage, "security.key.create"), name=stage.name())


def _restore(stage: Stage) -> Play:
    kept = snapshot(stage)
    return Play(kept.volume_id, {"snapshot": kept.id})


def _over_volume(stage: Stage) -> Play:
    row = volume(stage)
    run(stage.ctx, _operation(stage, "storage.volume.trash"), row.id)
    with transaction(stage.ctx.db):
        stage.ctx.db.execute(update(Volume).where(Volume.id == row.id).values(trash_until=now()))
    return Play(row.id, {})


def _over_snapshot(stage: Stage) -> Play:
    row = snapshot(stage)
    with transaction(stage.ctx.db):
        stage.ctx.db.execute(update(Snapshot).where(Snapshot.id == row.id).values(expires_at=now()))
    return Play(row.id, {})


PLAYS: dict[str, Callable[[Stage], Play]] = {
    "compute.instance.create": _create_instance,
    "compute.instance.start": partial(_with, stopped_instance),
    "compute.instance.stop": partial(_with, running_instance, force=True),
    "compute.instance.reboot": partial(_with, running_instance, type="hard"),
    "compute.instance.resize": partial(_with, stopped_instance, flavor="t3-small"),
    "compute.instance.rebuild": partial(_with, running_instance, image=TINY),
    "compute.instance.terminate": partial(_with, running_instance),
    "compute.instance.heal": _heal,
    "compute.instance.halt": _halt,
    "compute.instance.replug": partial(_with, running_instance, reason="a network card has lost its place"),
    "compute.image.create": _import_image,
    "compute.image.upload": partial(_with, announced_image, sha256="0" * 64),
    "compute.image.delete": partial(_with, stored_image),
    "networking.vpc.create": lambda stage: Play(None, {"name": stage.name(), "cidr_block": "10.0.0.0/16"}),
    "networking.vpc.apply": partial(_with, some_vpc),
    "networking.vpc.delete": partial(_with, some_vpc),
    "networking.nat_gateway.create": lambda stage: Play(None, {"name": stage.name(), "subnet": public_subnet(stage).id}),
    "networking.nat_gateway.failover": _failover,
    "networking.nat_gateway.delete": partial(_with, nat_gateway),
    "networking.network_interface.attach": _attach,
    "networking.network_interface.detach": _detach,
    "storage.volume.create": lambda stage: Play(None, {"name": stage.name(), "source_volume": volume(stage).id}),
    "storage.volume.attach": lambda stage: Play(volume(stage).id, {"instance": running_instance(stage).id}),
    "storage.volume.detach": partial(_with, attached_volume),
    "storage.volume.resize": partial(_with, volume, size_gb=3),
    "storage.volume.restore": _restore,
    "storage.volume.apply_limits": partial(_with, volume),
    "storage.volume.refit": partial(_with, attached_volume, reason="it has others"),
    "storage.volume.delete": partial(_with, volume),
    "storage.snapshot.create": lambda stage: Play(None, {"name": stage.name(), "volume": volume(stage).id}),
    "storage.snapshot.take_scheduled": _take_scheduled,
    "storage.snapshot.discard": partial(_with, failed_snapshot, reason="The pool is full."),
    "storage.snapshot.delete": partial(_with, snapshot),
    "storage.snapshot.expire": _over_snapshot,
    "storage.volume.expire": _over_volume,
    "security.key.rotate": partial(_with, encryption_key),
}


def job_operations(registry: Registry) -> dict[str, Operation]:
    """Every operation that runs as a job wherever the portal is, by full name; those of an external engine's buckets have tests of their own."""
    return {name: op for name, op in registry.operations().items() if op.steps and op.by_job is None}


def start(stage: Stage, name: str) -> Outcome:
    """Set the scene of an operation and run it; its job waits. What is the portal's own business, the portal does."""
    play, op = PLAYS[name](stage), _operation(stage, name)
    if op.internal and op.needs == "platform":
        stage.ctx = replace(stage.ctx, principal=SYSTEM)
    return run(stage.ctx, op, play.target, play.data)


def assert_sound(stage: Stage) -> None:
    """Whatever happened: nothing is under way, quotas are what resources hold, the audit log holds, and the host has what the rows say."""
    session = stage.ctx.db
    session.rollback()
    assert session.query(Job).filter(Job.state.in_(ACTIVE)).all() == []
    with transaction(session):
        assert recount(session) == []
    assert verify(session).broken_seq is None
    session.rollback()
    machines = stage.engine.machines()
    kept = {each.content_id for each in stage.volumes.kept()}
    for name in ("storage.volume", "storage.snapshot"):
        model = stage.ctx.registry.model(name)
        rows = session.query(model).filter(model.deleted_at.is_(None), model.state.in_(("available", "in-use", "completed"))).all()
        # Of what an operator has to look at, nothing is promised.
        dead = set(session.scalars(select(Job.resource_id).where(Job.state == "dead")))
        assert {row.id for row in rows if row.id not in dead and getattr(row, "instance_id", None) not in dead} <= kept
        for row in [row for row in rows if row.id not in dead] if name == "storage.volume" else ():
            assert (row.state == "in-use") == (row.instance_id is not None)
            has_it = {machine_id for machine_id in machines if row.id in stage.engine.volumes_of(machine_id)}
            assert has_it == ({row.instance_id} & machines.keys()) or row.instance_id in dead
        assert not {row.id for row in session.query(model).filter(model.deleted_at.is_not(None))} & kept
    for row in session.query(stage.ctx.registry.model("compute.instance")):
        actual = machines.get(row.id, MachineState.ABSENT)
        if row.state == "running":
            assert actual is MachineState.RUNNING, row.state
        elif row.state in {"terminated", "cancelled"}:
            assert_nothing_left(stage, row.id)
        elif row.state == "stopped":
            assert actual is MachineState.STOPPED, row.state
    session.rollback()


def assert_nothing_left(stage: Stage, resource_id: str) -> None:
    """No machine, disk, seed, image or staged file of a resource is on the host, and no quota is held for it."""
    assert resource_id not in stage.engine.machines()
    assert not stage.engine.has_image(resource_id)
    data = stage.ctx.settings.data_dir
    left = [path for path in data.rglob("*") if resource_id in path.name]
    assert left == []
    assert stage.ctx.db.query(Reservation).filter(Reservation.resource_id == resource_id).all() == []
    stage.ctx.db.rollback()
