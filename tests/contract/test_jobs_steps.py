"""Every operation that runs as a job: each step may fail, be repeated, be cancelled before; the end is always a sound one."""

from collections.abc import Callable

import pytest

from portal.catalogue import build_registry
from portal.engines.ports import EngineError, EngineRefused
from portal.kernel.audit import AuditEntry
from portal.kernel.control import job_cancel, job_retry
from portal.kernel.declare import Effect
from portal.kernel.errors import StateConflict
from portal.kernel.quota import held_by
from portal.kernel.resource import Registry
from portal.worker.asked_tasks import ASKED
from tests.support.draining import TestWorker
from tests.support.sabotage import both, failing, repeated, sabotaged
from tests.support.scenarios import PLAYS, Stage, assert_nothing_left, assert_sound, job_operations, start

OPERATIONS = job_operations(build_registry())
STEPS = [(name, position) for name, op in OPERATIONS.items() for position in range(len(op.steps))]
UNDOS = [(name, position) for name, position in STEPS if OPERATIONS[name].steps[position].undo is not None]
CANCELS = [(name, position) for name, position in STEPS if OPERATIONS[name].cancelled]
WorkerWith = Callable[[Registry], TestWorker]


def test_every_job_has_a_scenario() -> None:
    assert set(OPERATIONS) == set(PLAYS)


@pytest.mark.parametrize("name", OPERATIONS)
def test_succeeds(stage: Stage, worker: TestWorker, name: str) -> None:
    outcome = start(stage, name)
    worker.drain()
    job, row, op = worker.job(outcome.job_id), stage.row(outcome), OPERATIONS[name]
    assert (job.state, row.state, job.error) == ("succeeded", op.settles, "")
    assert [step.state for step in job.steps] == ["done"] * len(op.steps)
    assert job.progress == 100
    assert (row.deleted_at is not None) == (op.effect is Effect.REMOVE)
    if op.effect is Effect.REMOVE:
        assert_nothing_left(stage, row.id)
    else:
        assert held_by(stage.ctx.db, row.id).items() >= stage.ctx.registry.of(op.model).amounts(row).items()
    assert_sound(stage)


@pytest.mark.parametrize(("name", "position"), STEPS)
@pytest.mark.parametrize("after", [True, False], ids=["after-its-work", "before-its-work"])
def test_a_step_that_cannot_succeed_is_undone(stage: Stage, worker_with: WorkerWith, name: str, position: int, after: bool) -> None:
    op = OPERATIONS[name]
    outcome = start(stage, name)
    worker = worker_with(sabotaged(name, failing("do", position, EngineRefused("no room on the host"), after=after)))
    worker.drain()
    job, row = worker.job(outcome.job_id), stage.row(outcome)
    assert (job.state, row.state) == ("failed", op.fails)
    assert row.state_reason == job.error == "no room on the host"
    assert [step.state for step in job.steps] == ["undone"] * position + ["failed"] + ["todo"] * (len(op.steps) - position - 1)
    if op.effect is Effect.CREATE:
        assert_nothing_of_quota(stage, row)
        assert row.id not in stage.engine.machines()
    assert_sound(stage)
    entry = stage.ctx.db.query(AuditEntry).filter(AuditEntry.action == f"{name}.failed").one()
    assert (entry.status, entry.error_message, entry.resource_id) == ("failure", "no room on the host", row.id)


def assert_nothing_of_quota(stage: Stage, row: object) -> None:
    rtype = stage.ctx.registry.of(type(row))
    assert not set(held_by(stage.ctx.db, row.id)) & set(rtype.quota)


@pytest.mark.parametrize(("name", "position"), STEPS)
def test_a_step_that_fails_once_is_tried_again(stage: Stage, worker_with: WorkerWith, name: str, position: int) -> None:
    outcome = start(stage, name)
    worker = worker_with(sabotaged(name, failing("do", position, EngineError("busy"), times=2)))
    worker.drain()
    job, row = worker.job(outcome.job_id), stage.row(outcome)
    assert (job.state, row.state, job.error) == ("succeeded", OPERATIONS[name].settles, "")
    assert_sound(stage)


@pytest.mark.parametrize(("name", "position"), STEPS)
def test_a_step_that_never_gets_better_is_given_up(stage: Stage, worker_with: WorkerWith, name: str, position: int) -> None:
    outcome = start(stage, name)
    worker = worker_with(sabotaged(name, failing("do", position, RuntimeError("secret detail"))))
    runs = worker.drain()
    job, row = worker.job(outcome.job_id), stage.row(outcome)
    assert (job.state, row.state) == ("failed", OPERATIONS[name].fails)
    assert runs == stage.ctx.settings.job_max_attempts
    assert "secret detail" not in row.state_reason + job.error + "".join(step.detail for step in job.steps)
    assert_sound(stage)


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_step_may_be_repeated(stage: Stage, worker_with: WorkerWith, name: str) -> None:
    outcome = start(stage, name)
    worker = worker_with(sabotaged(name, repeated))
    worker.drain()
    assert (worker.job(outcome.job_id).state, stage.row(outcome).state) == ("succeeded", OPERATIONS[name].settles)
    assert_sound(stage)


@pytest.mark.parametrize(("name", "position"), UNDOS)
def test_every_undo_may_be_repeated(stage: Stage, worker_with: WorkerWith, name: str, position: int) -> None:
    outcome = start(stage, name)
    worker = worker_with(sabotaged(name, both(failing("do", position, EngineRefused("no")), repeated)))
    worker.drain()
    assert (worker.job(outcome.job_id).state, stage.row(outcome).state) == ("failed", OPERATIONS[name].fails)
    assert_sound(stage)


@pytest.mark.parametrize(("name", "position"), UNDOS)
def test_an_undo_that_fails_once_is_tried_again(stage: Stage, worker_with: WorkerWith, name: str, position: int) -> None:
    op = OPERATIONS[name]
    outcome = start(stage, name)
    plan = both(failing("do", len(op.steps) - 1, EngineRefused("no room")), failing("undo", position, EngineError("busy"), times=1))
    worker = worker_with(sabotaged(name, plan))
    worker.drain()
    job = worker.job(outcome.job_id)
    assert (job.state, job.error, stage.row(outcome).state) == ("failed", "no room", op.fails)
    assert_sound(stage)


@pytest.mark.parametrize(("name", "position"), UNDOS)
def test_an_undo_that_never_succeeds_leaves_a_dead_job(stage: Stage, worker_with: WorkerWith, name: str, position: int) -> None:
    op = OPERATIONS[name]
    outcome = start(stage, name)
    plan = both(failing("do", len(op.steps) - 1, EngineRefused("no room")), failing("undo", position, EngineRefused("disk on fire"), after=False))
    worker = worker_with(sabotaged(name, plan))
    worker.drain()
    job, row = worker.job(outcome.job_id), stage.row(outcome)
    assert (job.state, row.state) == ("dead", op.fails)
    assert "no room" in job.error
    assert "disk on fire" in job.error
    if op.effect is Effect.CREATE:
        # Something may still be there: it counts until the resource is removed.
        assert held_by(stage.ctx.db, row.id).items() >= stage.ctx.registry.of(op.model).amounts(row).items()
    assert_sound(stage)


@pytest.mark.parametrize(("name", "position"), CANCELS)
@pytest.mark.parametrize("during", [True, False], ids=["during", "before"])
def test_cancelled_at_each_step(stage: Stage, worker_with: WorkerWith, name: str, position: int, during: bool) -> None:
    op, outcome, worker = OPERATIONS[name], start(stage, name), stage.worker

    def cancelling(phase: str, this: int, call: Callable[..., None]) -> Callable[..., None]:
        def instead(run: object) -> None:
            if (phase, this) == ("do", position):
                job_cancel(stage.ctx, outcome.job_id)
            call(run)

        return instead

    if position == 0 and not during:
        job_cancel(stage.ctx, outcome.job_id)
        worker.drain()
        assert worker.job(outcome.job_id).started_at is None
    elif during:
        worker_with(sabotaged(name, cancelling)).drain()
    else:
        # The step before it went well; the one after it fails for the moment; the user loses patience.
        worker_with(sabotaged(name, failing("do", position, EngineError("busy"), times=1, after=False))).run_one()
        job_cancel(stage.ctx, outcome.job_id)
        worker.drain()
    job, row = worker.job(outcome.job_id), stage.row(outcome)
    assert (job.state, row.state, row.state_reason) == ("cancelled", op.cancelled, "Cancelled.")
    assert row.deleted_at is not None
    assert_nothing_left(stage, row.id)
    assert_sound(stage)


@pytest.mark.parametrize("name", [name for name, op in OPERATIONS.items() if not op.cancelled])
def test_what_cannot_be_cancelled_says_so(stage: Stage, name: str) -> None:
    outcome = start(stage, name)
    with pytest.raises(StateConflict, match="cannot be cancelled"):
        job_cancel(stage.ctx, outcome.job_id)


@pytest.mark.parametrize(("name", "position"), STEPS)
def test_a_failed_job_can_be_retried(stage: Stage, worker: TestWorker, worker_with: WorkerWith, name: str, position: int) -> None:
    outcome = start(stage, name)
    worker_with(sabotaged(name, failing("do", position, EngineRefused("no room")))).drain()
    if name == "compute.image.upload":
        # What was uploaded is thrown away with the failed attempt; only a new upload helps.
        job_retry(stage.ctx, outcome.job_id)
        worker.drain()
        assert stage.row(outcome).state == "failed"
    else:
        job_retry(stage.ctx, outcome.job_id)
        worker.drain()
        assert (worker.job(outcome.job_id).state, stage.row(outcome).state) == ("succeeded", OPERATIONS[name].settles)
    assert_sound(stage)


def test_work_that_is_asked_for_is_declared_where_pages_see_it(registry: Registry) -> None:
    assert {kind: task.work for kind, task in ASKED.items()} == registry.asked
