"""Cancelling and retrying jobs: allowed to whoever may do the job's operation."""

from typing import Any

from sqlalchemy import ColumnElement, and_, select

from portal.kernel import audit, authz
from portal.kernel.context import Context
from portal.kernel.db import now
from portal.kernel.declare import Effect, Operation
from portal.kernel.errors import NotFound, StateConflict
from portal.kernel.ids import is_storable
from portal.kernel.jobs import ACTIVE, Job, active_for
from portal.kernel.lookup import about_seen
from portal.kernel.operations import acting, run_again
from portal.kernel.policy import Columns
from portal.kernel.resource import ResourceType
from portal.kernel.rows import reserve_for_change, set_state
from portal.kernel.runner import close, settle_failure


def find_job(ctx: Context, job_id: str, *, lock: bool = False) -> Job:
    """A job of a project that the caller may see. Raises NotFound."""
    if not is_storable(job_id):
        raise NotFound("There is no such job here.")
    query = select(Job).where(Job.id == job_id, visible_jobs(ctx))
    if lock:
        query = query.with_for_update().execution_options(populate_existing=True)
    job = ctx.db.scalars(query).one_or_none()
    if job is None:
        raise NotFound(f"There is no job {job_id[:80]} here.")
    return job


def visible_jobs(ctx: Context) -> ColumnElement[bool]:
    """WHERE for the jobs that the caller may see; jobs of the platform itself are for those who see everything."""
    allowed = authz.reach(ctx, "core.job.read").where(Columns(Job.project_id, Job.user_id))
    return and_(allowed, about_seen(ctx, lambda key: Job.resource_type == key, Job.resource_id))


def is_cancellable(ctx: Context, job: Job) -> bool:
    """Operations and work that is asked for say so themselves; nothing else can be."""
    op = ctx.registry.operations().get(job.kind)
    return bool(op.cancelled if op is not None else left_of(ctx, job))


def left_of(ctx: Context, job: Job) -> str:
    """What stays of asked work that is cancelled; empty for an operation, which is undone, and for what cannot be cancelled."""
    work = ctx.registry.asked.get(job.kind)
    return work.cancelled if work is not None else ""


def job_cancel(ctx: Context, job_id: str) -> Job:
    """Stop a job: at once if no step has begun, else after the step that is running; what an operation made is undone, other work says what stays of it."""
    job, op, rtype, subject, target = _load(ctx, job_id)
    with acting(ctx, f"{job.kind}", subject, target=target, details={"job_id": job_id, "control": "cancel"}):
        job = find_job(ctx, job_id, lock=True)
        if job.state not in ACTIVE:
            raise StateConflict(f"The job is {job.state}; only a job that has not ended can be cancelled.", details={"state": job.state})
        if not is_cancellable(ctx, job):
            raise StateConflict(f"{job.label} cannot be cancelled: half of it would be worse than all of it. Wait until it ends.")
        job.cancel_requested = True
        if all(step.state == "todo" for step in job.steps) and job.state == "queued":
            if op is not None and rtype is not None:
                settle_failure(ctx, op, rtype, job)
            else:
                close(job, "cancelled")
        elif job.state == "retrying":
            job.run_at = now()
    ctx.deliver([job_id])
    return job


def job_retry(ctx: Context, job_id: str) -> Job:
    """Queue a failed job again, from its first step; what the operation asks, checks and sets is asked, checked and set anew."""
    job, op, rtype, subject, target = _load(ctx, job_id)
    with acting(ctx, f"{job.kind}", subject, target=target, details={"job_id": job_id, "control": "retry"}):
        job = find_job(ctx, job_id, lock=True)
        if job.state not in {"failed", "dead"} or op is None or rtype is None:
            raise StateConflict(f"The job is {job.state}; only a failed one can be retried.", details={"state": job.state})
        row = run_again(ctx, op, job.resource_id, job.input, lambda row: _refuse_changed(ctx, job, op, row))
        if op.effect is not Effect.REMOVE:
            reserve_for_change(ctx, rtype, row)
        if op.holds:
            set_state(rtype, row, op.holds)
        job.state, job.phase, job.attempts, job.crashes, job.error = "queued", "do", 0, 0, ""
        job.run_at, job.finished_at, job.cancel_requested = now(), None, False
        for step in job.steps:
            step.state, step.detail, step.started_at, step.finished_at = "todo", "", None, None
    ctx.deliver([job_id])
    return job


def _refuse_changed(ctx: Context, job: Job, op: Operation, row: Any) -> None:
    if row is None or row.deleted_at is not None or getattr(row, "state", op.failed(row)) != op.failed(row) or active_for(ctx.db, row.id):
        raise StateConflict(
            f"{job.resource_name} has changed since the job failed. Start the operation anew.", details={"state": getattr(row, "state", "")}
        )


def _load(ctx: Context, job_id: str) -> tuple[Job, Operation | None, ResourceType | None, audit.Subject, authz.Target]:
    job = find_job(ctx, job_id)
    op = ctx.registry.operations().get(job.kind)
    rtype = ctx.registry.of(op.model) if op else None
    row = ctx.db.get(rtype.model, job.resource_id) if rtype else None
    target = authz.target_of(row) if row is not None else authz.Target(job.project_id, job.user_id, label=job.label)
    return job, op, rtype, audit.Subject(job.resource_type, job.resource_id, job.resource_name, job.project_id), target
