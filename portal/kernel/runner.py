"""Runs the steps of one claimed job, undoes them when they fail, and settles the resource.

Engines are called outside of transactions; after each step, what it made is saved under the lease before the next one begins. A worker may die
between any two lines here: the next one repeats at most the step that was running.
"""

import logging
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from sqlalchemy.orm import Session

from portal.engines.ports import EngineError, Engines
from portal.kernel import audit, events, quota
from portal.kernel.context import Context, Principal
from portal.kernel.db import now, transaction
from portal.kernel.declare import AskedWork, Effect, Operation, Step
from portal.kernel.errors import PortalError
from portal.kernel.jobs import MAX_CRASHES, Claim, Job, JobStep, LeaseLost, give_back, held
from portal.kernel.resource import Registry, ResourceType
from portal.kernel.rounds import Rounds
from portal.kernel.rows import end, set_state
from portal.settings import Settings

log = logging.getLogger("portal.jobs")
UNEXPECTED = "Something unexpected went wrong in the portal itself; its log has the details under this job's id."


class StepFailed(Exception):
    """A step cannot succeed, however often it is tried; the text is for the user."""


class NotYet(Exception):
    """Work that was asked for waits for other work, and goes on a little later; the text is shown with its step and says how far it is."""


@dataclass(slots=True)
class StepRun:
    """What a step gets: the row as it was loaded (read it, do not change it), the input, the engines; and how it reports back.

    `sessions` opens one on the database, for what belongs to other rows; no transaction may be open while an engine is asked.
    """

    row: Any
    input: dict[str, Any]
    engines: Engines
    settings: Settings
    job_id: str
    registry: Registry
    sessions: Callable[[], Session]
    changes: dict[str, Any] = field(default_factory=dict)
    detail: str = ""

    def save(self, **columns: Any) -> None:
        """Set columns of the row in the transaction that marks the step done."""
        self.changes.update(columns)
        for name, value in columns.items():
            setattr(self.row, name, value)


@dataclass(frozen=True, slots=True)
class SystemTask:
    """Periodic work that belongs to no resource; `interval_s` gives its period from the settings.

    What is `watched_as` a capability ends the worker in which it hangs.
    """

    name: str
    label: str
    interval_s: Callable[[Settings], float]
    do: Callable[["TaskRun"], None]
    watched_as: str = ""


def _nothing() -> None:
    """Nobody watches."""


@dataclass(frozen=True, slots=True)
class TaskRun:
    """What periodic work gets: a context of its own, the engines, and `beat`, which it calls whenever it has come a little further."""

    ctx: Context
    engines: Engines
    beat: Callable[[], None] = _nothing


class Cancelled(Exception):
    """Somebody cancelled work that was asked for while it ran."""


@dataclass(frozen=True, slots=True)
class AskedRun:
    """What work that somebody asked for gets: a context of the portal's own, in the asker's project, and the claim under which it may write.

    `report` says how far it has got, for people to read, and is called again and again while it runs: that is where it can be cancelled.
    """

    ctx: Context
    claim: Claim
    report: Callable[[str], None]
    engines: Engines


@dataclass(frozen=True, slots=True)
class AskedTask:
    """How work that somebody asked for is done: one step, begun anew after a crash. It raises PortalError for what the asker is told."""

    work: AskedWork
    do: Callable[[AskedRun], None]


def _never() -> bool:
    return False


@dataclass(frozen=True, slots=True)
class Runner:
    """Runs claimed jobs of one installation; once `stopping` says so, a job goes back to the queue instead of to its next step."""

    sessions: Callable[[], Session]
    registry: Registry
    settings: Settings
    engines: Engines
    tasks: Mapping[str, SystemTask]
    stopping: Callable[[], bool] = _never
    asked: Mapping[str, AskedTask] = field(default_factory=dict)
    rounds: Rounds = field(default_factory=Rounds)

    def run(self, claim: Claim) -> None:
        """Work on a job until it ends, waits for another try, or belongs to somebody else."""
        with self.sessions() as session:
            try:
                self._run(session, claim)
            except LeaseLost:
                log.warning("lease lost", extra={"job_id": claim.job_id})

    def _run(self, session: Session, claim: Claim) -> None:
        with transaction(session):
            job = held(session, claim)
            _give_up_on_killer(job)
        if job.kind.startswith("system."):
            self._run_task(session, claim, job)
            return
        if job.kind in self.asked:
            self._run_asked(session, claim, job, self.asked[job.kind])
            return
        op = self.registry.operation(job.kind)
        rtype = self.registry.of(op.model)
        if job.phase == "do" and not self._do(session, claim, op, rtype):
            return
        if job.phase == "dead" or self._undo(session, claim, op, rtype):
            self._give_up(session, claim, op, rtype)

    # -- forward -------------------------------------------------------------------------------------------------------------------

    def _do(self, session: Session, claim: Claim, op: Operation, rtype: ResourceType) -> bool:
        """Run what is left to do; True if the job is to be undone, False if it is done, waits for another try or went back to the queue."""
        for position, step in enumerate(op.steps):
            with transaction(session):
                job = held(session, claim)
                if job.cancel_requested:
                    job.phase = "undo"
                    return True
                record = job.steps[position]
                if record.state == "done":
                    continue
                if self.stopping():
                    give_back(job)
                    return False
                row = session.get_one(rtype.model, job.resource_id, options=rtype.eager(), populate_existing=True)
                record.state, record.started_at = "running", record.started_at or now()
                run = StepRun(row, dict(job.input), self.engines, self.settings, job.id, self.registry, self.sessions)
            session.expunge_all()
            problem = self._attempt(step.do, run)
            if problem is not None:
                return self._failed(session, claim, position, problem)
            self._save(session, claim, rtype, position, run, state="done")
        return not self._succeed(session, claim, op, rtype)

    def _attempt(self, call: Callable[[StepRun], None], run: StepRun) -> EngineError | StepFailed | None:
        try:
            call(run)
        except (EngineError, StepFailed) as error:
            log.warning("step failed: %s", error, extra={"job_id": run.job_id})
            return error
        except Exception:
            log.exception("step raised", extra={"job_id": run.job_id})
            return EngineError(UNEXPECTED)
        return None

    def _save(self, session: Session, claim: Claim, rtype: ResourceType, position: int, run: StepRun, *, state: str) -> None:
        with transaction(session):
            job = held(session, claim)
            record = job.steps[position]
            record.state, record.finished_at, record.detail = state, now(), run.detail[:2000]
            if state != "failed":
                # A failed step is undone anew with each try; that is no progress from which to count afresh.
                job.attempts = 0
            if run.changes:
                row = session.get_one(rtype.model, job.resource_id, with_for_update={"key_share": True}, populate_existing=True)
                for name, value in run.changes.items():
                    setattr(row, name, value)
                row.version, row.updated_at = row.version + 1, now()

    def _failed(self, session: Session, claim: Claim, position: int, problem: EngineError | StepFailed) -> bool:
        """Decide between another try (False) and undoing (True)."""
        message = str(problem)
        again = isinstance(problem, EngineError) and problem.retryable
        with transaction(session):
            job = held(session, claim)
            record: JobStep = job.steps[position]
            record.detail = message[:2000]
            job.attempts += 1
            job.error = message[:2000]
            if again and job.attempts < self.settings.job_max_attempts:
                self._wait(job)
                return False
            record.state, record.finished_at = "failed", now()
            job.phase, job.attempts = "undo", 0
        return True

    def _wait(self, job: Job) -> None:
        job.state, job.lease_owner, job.lease_until = "retrying", None, None
        job.run_at = now() + timedelta(seconds=self.settings.job_retry_base_s * 2 ** (job.attempts - 1))

    def _succeed(self, session: Session, claim: Claim, op: Operation, rtype: ResourceType) -> bool:
        """Settle the resource; False if somebody cancelled during the last step, so that all of it is to be undone."""
        with transaction(session):
            job = held(session, claim)
            if job.cancel_requested:
                job.phase = "undo"
                return False
            ctx = self.context(session, job)
            if op.ahead is not None:
                op.ahead(ctx, session.get_one(rtype.model, job.resource_id), job.input)
            row = session.get_one(rtype.model, job.resource_id, with_for_update={"key_share": True}, populate_existing=True)
            if op.finish is not None:
                op.finish(row)
            if state := op.settled(row):
                set_state(rtype, row, state)
            if op.effect is Effect.REMOVE:
                end(ctx, row)
            else:
                quota.hold(ctx, row, rtype.amounts(row), settled=True)
            row.version, row.updated_at = row.version + 1, now()
            self._close(job, "succeeded")
            job.error = ""
            settle_told(ctx, rtype, job, row, "success")
            session.flush()
            if op.follow is not None:
                op.follow(ctx, row)
        return True

    # -- back ----------------------------------------------------------------------------------------------------------------------

    def _undo(self, session: Session, claim: Claim, op: Operation, rtype: ResourceType) -> bool:
        """Undo in reverse what was begun; False if that waits for another try or went back to the queue."""
        for position, step in reversed(list(enumerate(op.steps))):
            with transaction(session):
                job = held(session, claim)
                record = job.steps[position]
                if record.state in {"todo", "undone"} or (step.undo is None and record.state == "failed"):
                    continue
                if self.stopping():
                    give_back(job)
                    return False
                row = session.get_one(rtype.model, job.resource_id, options=rtype.eager(), populate_existing=True)
                run = StepRun(row, dict(job.input), self.engines, self.settings, job.id, self.registry, self.sessions, detail=record.detail)
            session.expunge_all()
            if step.undo is not None and (problem := self._attempt(step.undo, run)) is not None:
                return self._undo_failed(session, claim, step, problem)
            self._save(session, claim, rtype, position, run, state="failed" if record.state == "failed" else "undone")
        return True

    def _undo_failed(self, session: Session, claim: Claim, step: Step, problem: Exception) -> bool:
        """Try again later; True when there were enough tries and an operator has to look."""
        with transaction(session):
            job = held(session, claim)
            job.attempts += 1
            if job.attempts < self.settings.job_max_attempts:
                self._wait(job)
                return False
            job.error = f"{job.error} Undoing “{step.label}” failed as well: {problem}"[:2000]
            job.phase = "dead"
        return True

    def _give_up(self, session: Session, claim: Claim, op: Operation, rtype: ResourceType) -> None:
        with transaction(session):
            job = held(session, claim)
            settle_failure(self.context(session, job), op, rtype, job)

    # -- periodic work -------------------------------------------------------------------------------------------------------------

    def _run_task(self, session: Session, claim: Claim, job: Job) -> None:
        task = self.tasks.get(job.kind.removeprefix("system."))
        problem = job.error if job.phase != "do" else "" if task else "This version of the portal knows no such work."
        if task is not None and not problem:
            try:
                with self.rounds.of(task.watched_as) if task.watched_as else nullcontext(_nothing) as beat, self.sessions() as own:
                    task.do(TaskRun(self.context(own, job), self.engines, beat))
            except EngineError as error:
                problem = error.message
            except Exception:
                log.exception("periodic work failed", extra={"job_id": job.id, "kind": job.kind})
                problem = UNEXPECTED
        if problem:
            log.warning("%s: %s", job.kind, problem, extra={"job_id": job.id})
        with transaction(session):
            # The schedule is the record of periodic work; thousands of rows a day would bury the jobs of users.
            session.delete(held(session, claim))

    def _run_asked(self, session: Session, claim: Claim, job: Job, task: AskedTask) -> None:
        problem = job.error if job.phase != "do" else ""
        is_cancelled = job.cancel_requested and not problem

        def report(detail: str) -> None:
            with transaction(session):
                mine = held(session, claim)
                if mine.cancel_requested:
                    raise Cancelled
                step = mine.steps[0]
                step.state, step.started_at, step.detail = "running", step.started_at or now(), detail[:2000]

        if not problem and not is_cancelled:
            try:
                report(job.steps[0].detail)
                with self.sessions() as own:
                    task.do(AskedRun(self.context(own, job), claim, report, self.engines))
            except NotYet as waiting:
                self._postpone(session, claim, waiting)
                return
            except PortalError as error:
                problem = error.message
            except Cancelled:
                is_cancelled = True
            except LeaseLost:
                raise
            except Exception:
                log.exception("work that was asked for failed", extra={"job_id": job.id, "kind": job.kind})
                problem = UNEXPECTED
        with transaction(session):
            job = held(session, claim)
            step = job.steps[0]
            if step.state != "todo" or not is_cancelled:
                step.state, step.finished_at = "failed" if problem else "stopped" if is_cancelled else "done", now()
                step.detail = problem[:2000] or " ".join(filter(None, (step.detail, task.work.cancelled if is_cancelled else "")))
            job.error = problem[:2000]
            close(job, "failed" if problem else "cancelled" if is_cancelled else "succeeded")

    def _postpone(self, session: Session, claim: Claim, waiting: NotYet) -> None:
        with transaction(session):
            job = held(session, claim)
            # That it came so far is progress from which crashes count afresh.
            job.steps[0].detail, job.crashes = str(waiting)[:2000], 0
            job.state, job.lease_owner, job.lease_until = "queued", None, None
            job.run_at = now() + timedelta(seconds=self.settings.job_retry_base_s)

    def context(self, session: Session, job: Job) -> Context:
        """The context in which a job settles: the portal acts for whoever asked."""
        principal = Principal(job.user_id, job.username, f"job:{job.id}", is_system=True)
        return Context(session, self.settings, self.registry, principal, project_id=job.project_id, request_id=job.request_id)

    @staticmethod
    def _close(job: Job, state: str) -> None:
        close(job, state)


def _give_up_on_killer(job: Job) -> None:
    """A job that takes its worker down again and again is undone; if its undoing does so as well, an operator has to look."""
    if job.phase == "do" and job.crashes > MAX_CRASHES:
        job.phase, job.error = "undo", f"The worker died {job.crashes} times at this job."
    elif job.phase == "undo" and job.crashes > 2 * MAX_CRASHES:
        job.phase, job.error = "dead", f"The worker died {job.crashes} times at this job, at last while undoing it."


def close(job: Job, state: str) -> None:
    """End a job."""
    job.state, job.finished_at, job.lease_owner, job.lease_until = state, now(), None, None


def settle_failure(ctx: Context, op: Operation, rtype: ResourceType, job: Job) -> None:
    """End a job that was undone: the resource gets its state after failure, and quota that was reserved for more than it has goes back."""
    session = ctx.db
    row = session.get_one(rtype.model, job.resource_id, with_for_update={"key_share": True}, populate_existing=True)
    dead, cancelled = job.phase == "dead", job.cancel_requested
    close(job, "dead" if dead else "cancelled" if cancelled else "failed")
    reason = "Cancelled." if cancelled and not dead else job.error
    if op.restore is not None:
        op.restore(row)
    if rtype.lifecycle is not None and (state := (op.cancelled if cancelled and not dead else "") or op.failed(row)):
        set_state(rtype, row, state, reason)
    if op.effect is Effect.CREATE:
        if rtype.lifecycle is not None and row.state in rtype.lifecycle.ended:
            end(ctx, row)
        elif not dead:
            # Of a dead job, something may still be there: it counts until the resource is removed.
            quota.release(session, row.id, dimensions=list(rtype.quota))
    elif op.effect is Effect.CHANGE:
        quota.hold(ctx, row, rtype.amounts(row), settled=True)
    row.version, row.updated_at = row.version + 1, now()
    settle_told(ctx, rtype, job, row, "failure" if job.state != "cancelled" else "success")


def settle_told(ctx: Context, rtype: ResourceType, job: Job, row: Any, status: str) -> None:
    """Write the outcome of a job into the audit log and the outbox."""
    state = getattr(row, "state", "")
    about = audit.Subject(rtype.key, row.id, row.name, row.project_of())
    details = {"job_id": job.id, "job_state": job.state, "state": state}
    audit.record(ctx, f"{job.kind}.{job.state}", about, status=status, error=job.error, details=details)
    payload = {"job_id": job.id, "job_state": job.state, "state": state}
    events.emit(ctx, f"{rtype.key}.{state or job.state}", resource_id=row.id, name=row.name, project_id=about.project_id, payload=payload)
