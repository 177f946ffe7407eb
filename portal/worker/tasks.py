"""Periodic work of the portal itself, queued by the scheduler and run by workers like any job."""

import logging
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, delete, or_, select

from portal.compute.metrics import InstanceCounters, InstanceMetric, sample_metrics
from portal.compute.reconcile import reconcile_instances
from portal.identity.models import ApiToken, UserSession
from portal.kernel import audit, quota, tags
from portal.kernel.db import now, transaction
from portal.kernel.events import Event
from portal.kernel.idempotency import IdempotencyKey
from portal.kernel.jobs import ENDED, Job
from portal.kernel.runner import SystemTask, TaskRun
from portal.worker.audit_export import expire_exports
from portal.worker.audit_tasks import AUDIT_TASKS

HOUR_S = 3600.0
DAY_S = 24 * HOUR_S
KEEP_KEYS = timedelta(days=1)
KEEP_HISTORY = timedelta(days=30)
KEEP_STAGED = timedelta(days=1)
# Rows that go in one transaction: others want to write meanwhile.
BATCH = 500

log = logging.getLogger("portal.tasks")


def expire(task: TaskRun) -> None:
    """Delete what nobody may use or wants to see any more."""
    settings, moment = task.ctx.settings, now()
    idle = moment - timedelta(minutes=settings.session_idle_minutes)
    for model, key, over in (
        (UserSession, UserSession.id_hash, or_(UserSession.expires_at <= moment, UserSession.last_seen_at <= idle)),
        (ApiToken, ApiToken.id, ApiToken.expires_at <= moment),
        (Job, Job.id, Job.state.in_(ENDED) & (Job.finished_at < moment - KEEP_HISTORY)),
        (Event, Event.id, Event.at < moment - KEEP_HISTORY),
        (IdempotencyKey, IdempotencyKey.created_at, IdempotencyKey.created_at < moment - KEEP_KEYS),
    ):
        _delete(task, model, key, over)
    _purge_instances(task, moment - timedelta(days=settings.terminated_retention_days))
    _clear_staging(task, moment - KEEP_STAGED)
    expire_exports(task)


def _delete(task: TaskRun, model: type[Any], key: Any, over: ColumnElement[bool]) -> None:
    session = task.ctx.db
    while True:
        with transaction(session):
            keys = session.scalars(select(key).where(over).limit(BATCH)).all()
            session.execute(delete(model).where(key.in_(keys), over).execution_options(synchronize_session=False))
        if len(keys) < BATCH:
            return


def _purge_instances(task: TaskRun, before: datetime) -> None:
    """Forget instances that have been gone for long, with everything that was kept about them; the audit log keeps its entries."""
    session, instance = task.ctx.db, task.ctx.registry.model("compute.instance")
    while True:
        with transaction(session):
            over = select(instance.id).where(instance.deleted_at.is_not(None), instance.deleted_at < before).limit(BATCH)
            gone: Sequence[str] = session.scalars(over).all()
            for instance_id in gone:
                quota.release(session, instance_id)
                tags.drop(session, instance_id)
            for key in (InstanceMetric.instance_id, InstanceCounters.instance_id, instance.id):
                session.execute(delete(key.class_).where(key.in_(gone)).execution_options(synchronize_session=False))
        if len(gone) < BATCH:
            return


def _clear_staging(task: TaskRun, before: datetime) -> None:
    """Remove files of images that arrived and were never taken: their worker died, or their job was given up."""
    staging = task.ctx.settings.data_dir / "staging"
    for path in staging.iterdir() if staging.is_dir() else ():
        if path.stat().st_mtime < before.timestamp():
            path.unlink(missing_ok=True)


def recount_quotas(task: TaskRun) -> None:
    """Compare the use of every quota with what resources hold; a difference is a fault of the portal: it is repaired, logged and audited."""
    ctx = task.ctx
    with transaction(ctx.db):
        for project_id, dimension, before, after in quota.recount(ctx.db):
            log.error("quota %s of project %s said %s, resources hold %s: repaired", dimension, project_id, before, after)
            about = audit.Subject("core.quota", project_id, dimension, project_id)
            audit.record(ctx, "core.quota.recount", about, details={"before": {"used": before}, "after": {"used": after}})


TASKS = {
    task.name: task
    for task in (
        SystemTask("reconcile", "Compare instances with the host", lambda settings: settings.reconcile_interval_s, reconcile_instances),
        SystemTask("metrics", "Measure instances", lambda settings: settings.metrics_interval_s, sample_metrics),
        SystemTask("expiry", "Delete what has expired", lambda _: HOUR_S, expire),
        SystemTask("recount", "Recount quotas", lambda _: DAY_S, recount_quotas),
        *AUDIT_TASKS,
    )
}
