"""The reconciler: what differs is healed or said, once, and never on the ground of what has changed meanwhile."""

from collections.abc import Collection, Mapping
from datetime import timedelta

import pytest
from sqlalchemy import update

from portal.compute.instances import Instance, instance_stop, instance_terminate
from portal.compute.reconcile import MAX_HEALS, compare, reconcile_instances
from portal.engines.ports import Engines, MachineState, Shortage
from portal.kernel.audit import AuditEntry
from portal.kernel.db import now, transaction
from portal.kernel.jobs import Job
from portal.kernel.operations import run
from portal.kernel.runner import TaskRun
from tests.support.people import People
from tests.support.scenarios import Stage, assert_sound, running_instance, stopped_instance


class Seen:
    """An engine that shows other machines than there are: crashed ones, or what was there a moment ago."""

    def __init__(self, stage: Stage, **states: MachineState) -> None:
        self._stage, self._states = stage, states
        self.before = lambda: None
        self.without_network: Collection[str] = ()
        self.full: Mapping[str, Shortage] = {}

    def machines(self) -> Mapping[str, MachineState]:
        self.before()
        return {**self._stage.engine.machines(), **self._states}

    def cut_off(self) -> Collection[str]:
        return self.without_network

    def shortages(self) -> Mapping[str, Shortage]:
        return self.full


@pytest.fixture
def reconcile(stage: Stage, people: People):
    def once(engine: object = None) -> None:
        reconcile_instances(TaskRun(people.context(None), Engines(compute=engine or stage.engine)))
        stage.worker.drain()
        stage.ctx.db.rollback()

    return once


def row_of(stage: Stage, row: Instance) -> Instance:
    stage.ctx.db.rollback()
    return stage.ctx.db.get_one(Instance, row.id, populate_existing=True)


def entries(stage: Stage, action: str) -> int:
    return stage.ctx.db.query(AuditEntry).filter(AuditEntry.action == action).count()


def test_a_machine_that_has_lost_its_network_card_gets_it_back_and_is_not_asked_for_ever(stage: Stage, reconcile) -> None:
    row = running_instance(stage)
    seen = Seen(stage)
    seen.without_network = [row.id]
    launched = row_of(stage, row).launch_time
    for _ in range(MAX_HEALS + 2):
        reconcile(seen)
    assert entries(stage, "compute.instance.replug") == MAX_HEALS
    assert (row_of(stage, row).state, row_of(stage, row).launch_time) == ("running", launched)
    assert stage.ctx.db.query(Job).filter(Job.kind == "compute.instance.replug", Job.state == "succeeded").count() == MAX_HEALS
    assert_sound(stage)


def test_what_agrees_is_left_alone(stage: Stage, reconcile) -> None:
    running_instance(stage)
    stopped_instance(stage)
    told, jobs = stage.ctx.db.query(AuditEntry).count(), stage.ctx.db.query(Job).count()
    reconcile()
    assert (stage.ctx.db.query(AuditEntry).count(), stage.ctx.db.query(Job).count()) == (told, jobs)
    assert_sound(stage)


def test_a_machine_that_was_killed_is_booted_again(stage: Stage, reconcile) -> None:
    row = running_instance(stage)
    stage.engine.outside_kill(row.id)
    reconcile()
    row = row_of(stage, row)
    assert (row.state, row.heals, stage.engine.machine_state(row.id)) == ("running", 1, MachineState.RUNNING)
    assert_sound(stage)


@pytest.mark.parametrize("state", [MachineState.CRASHED, MachineState.PAUSED, MachineState.ABSENT])
def test_whatever_else_a_machine_is_it_is_brought_back(stage: Stage, reconcile, state: MachineState) -> None:
    row = running_instance(stage)
    reconcile(Seen(stage, **{row.id: state}))
    row = row_of(stage, row)
    assert (row.state, row.heals) == ("running", 1)
    assert entries(stage, "compute.instance.heal") == 1
    assert_sound(stage)


def test_a_guest_that_shut_down_stays_down(stage: Stage, reconcile) -> None:
    row = running_instance(stage)
    stage.engine.ensure_stopped(row.id, graceful_timeout_s=0)
    reconcile()
    row = row_of(stage, row)
    assert (row.state, row.desired_power, row.state_reason) == ("stopped", "stopped", "The guest shut itself down.")
    reconcile()
    assert entries(stage, "compute.instance.settle") == 1
    assert_sound(stage)


def test_a_machine_that_runs_and_should_not_is_stopped_by_a_job(stage: Stage, reconcile) -> None:
    row = stopped_instance(stage)
    stage.engine.ensure_running(row.id)
    reconcile()
    assert row_of(stage, row).state == "stopped"
    assert entries(stage, "compute.instance.halt.succeeded") == 1
    assert_sound(stage)


def test_a_guest_whose_pool_is_full_waits_until_there_is_room(stage: Stage, reconcile) -> None:
    row = running_instance(stage)
    seen = Seen(stage, **{row.id: MachineState.PAUSED})
    seen.full = {row.id: Shortage("hdd", has_room=False)}
    for _ in range(MAX_HEALS + 2):
        reconcile(seen)
    waiting = row_of(stage, row)
    assert (waiting.state, waiting.heals, entries(stage, "compute.instance.settle")) == ("error", 0, 1)
    assert waiting.state_reason.startswith("Pool hdd is full")
    seen.full = {row.id: Shortage("hdd", has_room=True)}
    reconcile(seen)
    on = row_of(stage, row)
    assert (on.state, on.state_reason) == ("running", "")
    assert_sound(stage)


def test_healing_ends_when_it_does_not_help(stage: Stage, reconcile) -> None:
    row = running_instance(stage)
    for _ in range(MAX_HEALS):
        reconcile(Seen(stage, **{row.id: MachineState.CRASHED}))
    assert row_of(stage, row).heals == MAX_HEALS
    reconcile(Seen(stage, **{row.id: MachineState.CRASHED}))
    row = row_of(stage, row)
    assert row.state == "error"
    assert "within minutes" in row.state_reason


def test_healing_counts_afresh_after_a_quiet_time(stage: Stage, reconcile) -> None:
    row = running_instance(stage)
    with transaction(stage.ctx.db):
        stage.ctx.db.execute(update(Instance).values(heals=MAX_HEALS, healed_at=now() - timedelta(hours=1)))
    reconcile(Seen(stage, **{row.id: MachineState.CRASHED}))
    assert (row_of(stage, row).state, row_of(stage, row).heals) == ("running", 1)


@pytest.mark.parametrize(
    ("desired", "actual", "after"),
    [
        ("running", MachineState.RUNNING, "running"),
        ("stopped", MachineState.STOPPED, "stopped"),
        ("running", MachineState.ABSENT, "error"),
        ("stopped", MachineState.RUNNING, "error"),
    ],
)
def test_an_error_that_is_over_is_said_to_be(stage: Stage, reconcile, desired: str, actual: MachineState, after: str) -> None:
    row = running_instance(stage)
    with transaction(stage.ctx.db):
        stage.ctx.db.execute(update(Instance).values(state="error", desired_power=desired))
    reconcile(Seen(stage, **{row.id: actual}))
    assert row_of(stage, row).state == after


def test_what_changed_while_the_host_was_asked_is_left_to_the_next_pass(stage: Stage, reconcile) -> None:
    row = running_instance(stage)
    engine = Seen(stage)
    engine.before = lambda: stage.do(instance_stop, row.id, force=True)
    before = stage.ctx.db.query(AuditEntry).filter(AuditEntry.status != "success").count()
    reconcile(engine)
    row = row_of(stage, row)
    assert (row.state, row.state_reason) == ("stopped", "")
    assert entries(stage, "compute.instance.settle") == 0
    assert stage.ctx.db.query(AuditEntry).filter(AuditEntry.status != "success").count() == before


def test_instances_under_way_and_gone_are_not_compared(stage: Stage, reconcile) -> None:
    gone, stopping = running_instance(stage), running_instance(stage)
    stage.do(instance_terminate, gone.id)
    run(stage.ctx, instance_stop, stopping.id, {"force": True})
    reconcile(Seen(stage, **{gone.id: MachineState.RUNNING, stopping.id: MachineState.CRASHED}))
    assert row_of(stage, gone).state == "terminated"
    assert row_of(stage, stopping).state == "stopped"
    assert entries(stage, "compute.instance.heal") == 0


def test_machines_without_a_row_are_left_alone(stage: Stage, reconcile) -> None:
    reconcile(Seen(stage, **{"i-of-another-database": MachineState.RUNNING}))
    assert stage.ctx.db.query(Job).count() == 0


def test_without_an_engine_there_is_nothing_to_compare(stage: Stage, people: People) -> None:
    row = running_instance(stage)
    reconcile_instances(TaskRun(people.context(None), Engines()))
    assert row_of(stage, row).state == "running"
    assert compare(row, MachineState.RUNNING) is None
