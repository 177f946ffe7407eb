"""The worker is killed at every place there is; the next one finishes or undoes: nothing lost, nothing doubled, nothing stuck."""

from collections.abc import Callable

import pytest
from sqlalchemy import func, select

from portal.catalogue import build_registry
from portal.engines.ports import EngineRefused
from portal.kernel.audit import AuditEntry
from portal.kernel.declare import Effect
from portal.kernel.jobs import MAX_CRASHES, reap
from portal.kernel.resource import Registry
from tests.contract.crash_worker import Place, dying, run_and_die
from tests.support.draining import TestWorker
from tests.support.sabotage import Do, Wrap, failing, sabotaged
from tests.support.scenarios import Stage, assert_nothing_left, assert_sound, job_operations, start

OPERATIONS = job_operations(build_registry())
WorkerWith = Callable[[Registry], TestWorker]


def undisturbed(_phase: str, _position: int, call: Do) -> Do:
    return call


def last_step_fails(name: str) -> Wrap:
    return failing("do", len(OPERATIONS[name].steps) - 1, EngineRefused("no room"))


def forward_places(name: str) -> list[Place]:
    steps = len(OPERATIONS[name].steps)
    # One commit to begin, two for each step, one to settle.
    places = [Place("commit", number, before) for number in range(2 * steps + 2) for before in (True, False)]
    return places + [Place("do", position, before) for position in range(steps) for before in (True, False)]


def backward_places(name: str) -> list[Place]:
    op = OPERATIONS[name]
    steps = len(op.steps)
    undos = [position for position, step in enumerate(op.steps) if step.undo is not None]
    # As above up to the step that fails, then two commits for each step that is undone, one to settle.
    commits = range(2 * steps, 4 * steps + 3)
    places = [Place("commit", number, before) for number in commits for before in (True, False)]
    return places + [Place("undo", position, before) for position in undos for before in (True, False)]


FORWARD = [pytest.param(name, place, id=f"{name}-{place}") for name in OPERATIONS for place in forward_places(name)]
BACKWARD = [
    pytest.param(name, place, id=f"{name}-{place}")
    for name, op in OPERATIONS.items()
    if any(s.undo for s in op.steps)
    for place in backward_places(name)
]


def finish(stage: Stage, job_id: str, worker: TestWorker) -> None:
    """What the living do: the lease of the dead runs out, the job is reaped, another worker takes it."""
    if worker.job(job_id).state == "running":
        worker.let_lease_run_out(job_id)
    with stage.worker.sessions() as session:
        reap(session)
    worker.drain()


def settled_once(stage: Stage, name: str, outcome_state: str, resource_id: str) -> bool:
    told = select(func.count()).where(AuditEntry.resource_id == resource_id, AuditEntry.action == f"{name}.{outcome_state}")
    return stage.ctx.db.scalar(told) == 1


@pytest.mark.parametrize(("name", "place"), FORWARD)
def test_killed_on_the_way(stage: Stage, name: str, place: Place) -> None:
    op, outcome = OPERATIONS[name], start(stage, name)
    died = run_and_die(stage.ctx.settings, outcome.job_id, name, place, undisturbed)
    assert died
    finish(stage, outcome.job_id, stage.worker)
    job, row = stage.worker.job(outcome.job_id), stage.row(outcome)
    assert (job.state, row.state, [step.state for step in job.steps]) == ("succeeded", op.settles, ["done"] * len(op.steps))
    assert settled_once(stage, name, "succeeded", row.id)
    if op.effect is Effect.REMOVE:
        assert_nothing_left(stage, row.id)
    assert_sound(stage)


@pytest.mark.parametrize(("name", "place"), BACKWARD)
def test_killed_on_the_way_back(stage: Stage, worker_with: WorkerWith, name: str, place: Place) -> None:
    op, outcome = OPERATIONS[name], start(stage, name)
    run_and_die(stage.ctx.settings, outcome.job_id, name, place, last_step_fails(name))
    finish(stage, outcome.job_id, worker_with(sabotaged(name, last_step_fails(name))))
    job, row = stage.worker.job(outcome.job_id), stage.row(outcome)
    assert (job.state, row.state) == ("failed", op.fails)
    assert settled_once(stage, name, "failed", row.id)
    if op.effect is Effect.CREATE:
        assert row.id not in stage.engine.machines()
        assert not stage.engine.has_image(row.id)
    assert_sound(stage)


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_job_that_kills_every_worker_is_undone(stage: Stage, name: str) -> None:
    op, outcome = OPERATIONS[name], start(stage, name)
    last = len(op.steps) - 1
    for _ in range(MAX_CRASHES + 1):
        assert run_and_die(stage.ctx.settings, outcome.job_id, name, Place("do", last, before=False), undisturbed)
        stage.worker.let_lease_run_out(outcome.job_id)
        with stage.worker.sessions() as session:
            assert reap(session) == [outcome.job_id]
    stage.worker.drain()
    job, row = stage.worker.job(outcome.job_id), stage.row(outcome)
    assert (job.state, row.state) == ("failed", op.fails)
    assert "worker died 6 times" in job.error
    assert_sound(stage)


def test_undoing_that_kills_every_worker_ends_as_a_dead_job(stage: Stage) -> None:
    name = "compute.instance.create"
    outcome = start(stage, name)
    deadly = Place("undo", 4, before=False)
    for _ in range(2 * MAX_CRASHES + 1):
        assert run_and_die(stage.ctx.settings, outcome.job_id, name, deadly, failing("do", 4, EngineRefused("no room")))
        finish_reaping(stage, outcome.job_id)
    stage.worker.drain()
    job, row = stage.worker.job(outcome.job_id), stage.row(outcome)
    assert (job.state, row.state) == ("dead", "error")
    assert "while undoing" in job.error
    assert_sound(stage)


def finish_reaping(stage: Stage, job_id: str) -> None:
    stage.worker.let_lease_run_out(job_id)
    with stage.worker.sessions() as session:
        assert reap(session) == [job_id]


def test_dying_wrap_is_harmless_elsewhere(stage: Stage, worker_with: WorkerWith) -> None:
    outcome = start(stage, "compute.instance.create")
    worker_with(sabotaged("compute.instance.create", dying(Place("do", 99, before=True)))).drain()
    assert stage.row(outcome).state == "running"
