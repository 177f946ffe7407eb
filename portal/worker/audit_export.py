"""The job that writes an export of the audit log, as whoever asked for it, and the removal of files that are too old."""

from dataclasses import asdict
from datetime import timedelta

from sqlalchemy import select

from portal.identity import iam
from portal.identity.accounts import principal_of
from portal.identity.models import User
from portal.kernel import audit_export
from portal.kernel.audit_export import EXPORT, EXPORTING, KEEP, AuditExport
from portal.kernel.authz import Target, authorize
from portal.kernel.context import Context
from portal.kernel.db import now, transaction
from portal.kernel.errors import Forbidden
from portal.kernel.files import modified
from portal.kernel.jobs import Job, held
from portal.kernel.runner import AskedRun, AskedTask, TaskRun

PART_KEPT = timedelta(days=1)


def export_audit_log(run: AskedRun) -> None:
    """Write the file with what the asker may read now, not when they asked."""
    ctx = run.ctx
    row = ctx.db.scalars(select(AuditExport).where(AuditExport.job_id == run.claim.job_id)).one()
    ctx.db.expunge(row)
    asker = _as_asker(ctx, row)
    authorize(asker, EXPORT, Target(row.project_id, label="the audit log"))
    written = audit_export.write(asker, row, run.report)
    with transaction(ctx.db):
        job: Job = held(ctx.db, run.claim)
        row = ctx.db.get_one(AuditExport, job.resource_id, with_for_update=True, populate_existing=True)
        row.expires_at = now() + KEEP
        for name, value in asdict(written).items():
            setattr(row, name, value)


def _as_asker(ctx: Context, row: AuditExport) -> Context:
    user = ctx.db.scalars(select(User).where(User.id == row.user_id, User.is_active.is_(True))).first()
    if user is None:
        raise Forbidden("Whoever asked for the export may not sign in any more.")
    principal = iam.with_access(ctx.db, principal_of(user, f"job:{row.job_id}"), ctx.db.scalar(select(iam.REVISION)))
    return Context(ctx.db, ctx.settings, ctx.registry, principal, project_id=row.project_id, request_id=ctx.request_id)


def expire_exports(task: TaskRun) -> None:
    """Remove files that are too old, and parts of files whose writer died."""
    session, moment = task.ctx.db, now()
    with transaction(session):
        for row in session.scalars(select(AuditExport).where(AuditExport.created_at < moment - 2 * KEEP)):
            session.delete(row)
    kept = set(session.scalars(select(AuditExport.file).where(AuditExport.expires_at > moment)))
    session.rollback()
    home = audit_export.directory(task.ctx.settings)
    for path in home.iterdir() if home.is_dir() else ():
        if path.name not in kept and modified(path) < (moment - PART_KEPT).timestamp():
            path.unlink(missing_ok=True)


EXPORT_TASK = AskedTask(EXPORTING, export_audit_log)
