"""Compares what instances should be with what the host says, and heals or reports the difference. It takes no input: restart is the normal path."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import select

from portal.compute.instances import INSTANCE, Instance, instance_heal, instance_settle
from portal.engines.ports import MachineState
from portal.kernel.context import Context
from portal.kernel.db import now
from portal.kernel.errors import PortalError
from portal.kernel.operations import run
from portal.kernel.runner import TaskRun

MAX_HEALS = 3
HEAL_WINDOW = timedelta(minutes=10)
STEADY = ("running", "stopped", "error")


@dataclass(frozen=True, slots=True)
class Difference:
    """An instance that is not as it should be, and what to do about it: heal (boot it) or settle (believe the host)."""

    instance_id: str
    heal: bool
    state: str
    reason: str


def reconcile_instances(task: TaskRun) -> None:
    """Compare all instances that are at rest with the hypervisor, and act on each difference in a transaction of its own."""
    engine = task.engines.compute
    if engine is None:
        return
    ctx = task.ctx
    machines = engine.machines()
    ctx.db.rollback()
    rows = ctx.db.scalars(select(Instance).where(Instance.state.in_(STEADY), Instance.deleted_at.is_(None))).all()
    found = [difference for row in rows if (difference := compare(row, machines.get(row.id, MachineState.ABSENT))) is not None]
    ctx.db.rollback()
    for difference in found:
        _act(ctx, difference)
    for machine_id, state in machines.items():
        if state is MachineState.RUNNING and _should_be_off(ctx, machine_id):
            engine.ensure_stopped(machine_id, graceful_timeout_s=ctx.settings.stop_timeout_s)


def compare(row: Any, actual: MachineState) -> Difference | None:
    """What is to be done about one instance; None where row and host agree."""
    up = actual is MachineState.RUNNING
    if row.state == "running" and not up:
        if actual is MachineState.STOPPED:
            return Difference(row.id, heal=False, state="stopped", reason="The guest shut itself down.")
        if row.heals >= MAX_HEALS and row.healed_at is not None and now() - row.healed_at < HEAL_WINDOW:
            return Difference(row.id, heal=False, state="error", reason=f"The machine stopped {row.heals} times within minutes after it was restarted.")
        return Difference(row.id, heal=True, state="running", reason=f"The machine was {actual.value} on the host although it should run; it is being restarted.")
    if row.state == "error" and up and row.desired_power == "running":
        return Difference(row.id, heal=False, state="running", reason="The machine runs on the host.")
    if row.state == "error" and row.desired_power == "stopped" and actual in {MachineState.STOPPED, MachineState.CRASHED}:
        return Difference(row.id, heal=False, state="stopped", reason="The machine is stopped on the host.")
    return None


def _act(ctx: Context, difference: Difference) -> None:
    ctx.db.rollback()
    try:
        if difference.heal:
            run(ctx, instance_heal, difference.instance_id, {"reason": difference.reason})
        else:
            run(ctx, instance_settle, difference.instance_id, {"state": difference.state, "reason": difference.reason})
    except PortalError:
        # Somebody acted on it since it was compared; the next pass sees how that went. The refusal is in the audit log.
        ctx.db.rollback()


def _should_be_off(ctx: Context, machine_id: str) -> bool:
    """Whether a machine runs that the portal knows to be stopped. One it does not know at all is left alone: the database may be an old copy."""
    ctx.db.rollback()
    row = ctx.db.get(INSTANCE.model, machine_id)
    ctx.db.rollback()
    return row is not None and row.state == "stopped" and row.desired_power == "stopped"
