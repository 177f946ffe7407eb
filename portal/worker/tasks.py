"""Periodic work of the portal itself, queued by the scheduler and run by workers like any job."""

import logging
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, delete, or_, select
from sqlalchemy.orm import Session

from portal.compute.metrics import InstanceCounters, InstanceMetric, sample_metrics
from portal.compute.reconcile import reconcile_instances
from portal.identity.models import ApiToken, Challenge, Invitation, UserSession
from portal.identity.oauth2.keys import keys_rotate
from portal.identity.oauth2.models import OAuthCode, OAuthFamily
from portal.kernel import audit, quota, quota_history, tags
from portal.kernel.alerts import Alert
from portal.kernel.db import now, transaction
from portal.kernel.events import Event
from portal.kernel.idempotency import IdempotencyKey
from portal.kernel.jobs import ENDED, Job
from portal.kernel.runner import SystemTask, TaskRun
from portal.networking.hits import read_rule_hits
from portal.networking.reconcile import reconcile_networks
from portal.networking.retention import purge_networks
from portal.security.key_models import KeyUsage
from portal.security.key_tending import tend_keys
from portal.security.key_usage import KEPT as KEEP_KEY_USAGE
from portal.storage.tending import tend_volumes
from portal.worker.audit_export import expire_exports
from portal.worker.audit_tasks import AUDIT_TASKS
from portal.worker.storage_tasks import STORAGE_TASKS

MINUTE_S = 60.0
HOUR_S = 3600.0
DAY_S = 24 * HOUR_S
KEEP_KEYS = timedelta(days=1)
KEEP_HISTORY = timedelta(days=30)
KEEP_ALERTS = timedelta(days=90)
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
        (Invitation, Invitation.code_hash, Invitation.expires_at <= moment),
        (Challenge, Challenge.id_hash, Challenge.expires_at <= moment),
        (ApiToken, ApiToken.id, ApiToken.expires_at <= moment),
        (OAuthFamily, OAuthFamily.id, OAuthFamily.expires_at <= moment),
        # A used code stays with what came of it, so that a second use is noticed.
        (OAuthCode, OAuthCode.code_hash, OAuthCode.family_id.is_(None) & (OAuthCode.expires_at <= moment)),
        (Job, Job.id, Job.state.in_(ENDED) & (Job.finished_at < moment - KEEP_HISTORY)),
        (Event, Event.id, Event.at < moment - KEEP_HISTORY),
        (Alert, Alert.id, Alert.created_at < moment - KEEP_ALERTS),
        (IdempotencyKey, IdempotencyKey.created_at, IdempotencyKey.created_at < moment - KEEP_KEYS),
        (KeyUsage, KeyUsage.hour, KeyUsage.hour < moment - KEEP_KEY_USAGE),
    ):
        _delete(task, model, key, over)
    kept = timedelta(days=settings.terminated_retention_days)
    _purge_instances(task, moment - kept)
    purge_networks(task.ctx.db, moment - kept)
    for name in ("storage.volume", "storage.snapshot"):
        model = task.ctx.registry.model(name)
        _delete(task, model, model.id, model.deleted_at < moment - kept)
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
            quota.release(session, *gone)
            for instance_id in gone:
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


def rotate_keys(task: TaskRun) -> None:
    """Replace keys that have signed access tokens for long enough."""
    keys_rotate(task.ctx.db, task.ctx.settings)


def recount_quotas(task: TaskRun) -> None:
    """Compare the use of every quota with what resources hold; a difference is a fault of the portal: it is repaired, logged and audited."""
    projects, users = quota.holders(task.ctx.db)
    # A holder at a time: whoever creates something meanwhile waits for one, not for all.
    for project_id in projects:
        _recount(task, project_id, quota.recount, project_id)
    for user_id in users:
        _recount(task, user_id, quota.recount_users, None)


def _recount(task: TaskRun, holder: str, recount: Callable[[Session, str], list[quota.Repair]], project_id: str | None) -> None:
    ctx = task.ctx
    with transaction(ctx.db):
        for wrong in recount(ctx.db, holder):
            log.error("quota %s of %s said %s, resources hold %s: repaired", wrong.dimension, holder, wrong.before, wrong.after)
            about = audit.Subject("core.quota", holder, wrong.dimension, project_id)
            audit.record(ctx, "core.quota.recount", about, details={"before": {"used": wrong.before}, "after": {"used": wrong.after}})


def write_quota_history(task: TaskRun) -> None:
    """Keep how much of each quota was in use at most."""
    quota_history.write(task.ctx.db)


TASKS = {
    task.name: task
    for task in (
        SystemTask(
            "reconcile", "Compare instances with the host", lambda settings: settings.reconcile_interval_s, reconcile_instances, "instance_reconciler"
        ),
        SystemTask(
            "reconcile-networks",
            "Compare networks with the host",
            lambda settings: settings.reconcile_interval_s,
            reconcile_networks,
            "network_reconciler",
        ),
        SystemTask("volumes", "Look after volumes", lambda _: MINUTE_S, tend_volumes),
        SystemTask("metrics", "Measure instances", lambda settings: settings.metrics_interval_s, sample_metrics),
        SystemTask("rule-hits", "Count what rules let through", lambda settings: settings.metrics_interval_s, read_rule_hits),
        SystemTask("expiry", "Delete what has expired", lambda _: HOUR_S, expire),
        SystemTask("encryption-keys", "Rotate and delete encryption keys whose time has come", lambda _: HOUR_S, tend_keys),
        SystemTask("oauth-keys", "Rotate the keys that sign access tokens", lambda _: HOUR_S, rotate_keys),
        SystemTask("recount", "Recount quotas", lambda _: DAY_S, recount_quotas),
        SystemTask("quota-history", "Write the history of quotas", lambda _: HOUR_S, write_quota_history),
        *AUDIT_TASKS,
        *STORAGE_TASKS,
    )
}
