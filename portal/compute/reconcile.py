"""Compares what instances should be with what the host says, and heals or reports the difference. It takes no input: restart is the normal path."""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import select

from portal.compute.instances import HEAL_WINDOW, Instance, instance_halt, instance_heal, instance_replug, instance_settle
from portal.engines.ports import MachineState, Shortage
from portal.kernel.context import Context
from portal.kernel.db import now
from portal.kernel.declare import Operation
from portal.kernel.errors import PortalError
from portal.kernel.operations import run
from portal.kernel.runner import TaskRun

MAX_HEALS = 3
STEADY = ("running", "stopped", "error")
COMPARED = (Instance.id, Instance.version, Instance.state, Instance.desired_power, Instance.heals, Instance.healed_at)


@dataclass(frozen=True, slots=True)
class Difference:
    """An instance that is not as it should be, and what to do about it: heal (boot it), halt (stop it), replug (its network cards) or settle (believe the host)."""

    operation: Operation
    reason: str
    state: str = ""


def reconcile_instances(task: TaskRun) -> None:
    """Compare all instances that are at rest with the hypervisor, and act on each difference in a transaction of its own."""
    engine = task.engines.compute
    if engine is None:
        return
    ctx = task.ctx
    # Rows first: if a row is still unchanged when it is acted on, what the host said afterwards was said of that state.
    ctx.db.rollback()
    rows = ctx.db.execute(select(*COMPARED).where(Instance.state.in_(STEADY), Instance.deleted_at.is_(None))).all()
    ctx.db.rollback()
    machines, cut_off, shortages = engine.machines(), engine.cut_off(), engine.shortages()
    for row in rows:
        task.beat()
        # A machine without a row is left alone: the database may be an old copy.
        difference = compare(row, machines.get(row.id, MachineState.ABSENT), is_cut_off=row.id in cut_off, shortage=shortages.get(row.id))
        if difference is not None:
            _act(ctx, row, difference)


def compare(row: Any, actual: MachineState, *, is_cut_off: bool = False, shortage: Shortage | None = None) -> Difference | None:
    """What is to be done about one instance; None where row and host agree."""
    if shortage is not None and actual is MachineState.PAUSED and row.desired_power == "running":
        return _when_full(row, shortage)
    up = actual is MachineState.RUNNING
    if row.state == "running":
        return _when_up(row, is_cut_off=is_cut_off) if up else _when_down(row, actual)
    if row.state == "stopped" and up:
        return Difference(instance_halt, "The machine ran on the host although it should be stopped; it is being stopped.")
    if row.state == "error" and up and row.desired_power == "running":
        return Difference(instance_settle, "The machine runs on the host.", "running")
    if row.state == "error" and row.desired_power == "stopped" and actual in {MachineState.STOPPED, MachineState.CRASHED}:
        return Difference(instance_settle, "The machine is stopped on the host.", "stopped")
    return None


def _when_full(row: Any, shortage: Shortage) -> Difference | None:
    place = f"Pool {shortage.pool}" if shortage.pool else "The host's disk"
    if shortage.has_room:
        return Difference(instance_heal, f"{place} was full, and the guest paused; there is room again, and it goes on.")
    if row.state == "error":
        return None
    return Difference(
        instance_settle, f"{place} is full, and the guest is paused where it could not write; nothing that it had written is lost. Delete volumes or "
        "snapshots there, or have an administrator free space: it goes on by itself when there is room.", "error",
    )  # fmt: skip


def _when_up(row: Any, *, is_cut_off: bool) -> Difference | None:
    # A guest that does not let go of a card is not asked for ever.
    if not is_cut_off or _is_healed_enough(row):
        return None
    return Difference(instance_replug, "A network card of the machine had lost its place on the host; it is being plugged in again.")


def _is_healed_enough(row: Any) -> bool:
    return bool(row.heals >= MAX_HEALS and row.healed_at is not None and now() - row.healed_at < HEAL_WINDOW)


def _when_down(row: Any, actual: MachineState) -> Difference:
    if actual is MachineState.STOPPED:
        return Difference(instance_settle, "The guest shut itself down.", "stopped")
    if _is_healed_enough(row):
        return Difference(instance_settle, f"The machine stopped {row.heals} times within minutes after it was restarted.", "error")
    return Difference(instance_heal, f"The machine was {actual.value} on the host although it should run; it is being restarted.")


def _act(ctx: Context, row: Any, difference: Difference) -> None:
    ctx.db.rollback()
    if ctx.db.scalar(select(Instance.version).where(Instance.id == row.id)) != row.version:
        return
    given = {"reason": difference.reason} | ({"state": difference.state} if difference.state else {})
    try:
        run(ctx, difference.operation, row.id, given, expected_version=row.version)
    except PortalError:
        # Somebody acted on it a moment ago; the next pass sees how that went. The refusal is in the audit log.
        ctx.db.rollback()
