"""The job that writes an export of the audit log, as whoever asked for it, and the removal of files that are too old."""

from dataclasses import asdict
from datetime import timedelta

from sqlalchemy import select

from portal.identity.askers import as_asker
from portal.kernel import audit_export
from portal.kernel.audit_export import EXPORT, EXPORTING, KEEP, AuditExport
from portal.kernel.authz import Target, authorize
from portal.kernel.db import now, transaction
from portal.kernel.files import modified
from portal.kernel.jobs import Job, held
from portal.kernel.runner import AskedRun, AskedTask, TaskRun

PART_KEPT = timedelta(days=1)


def export_audit_log(run: AskedRun) -> None:
    """Write the file with what the asker may read now, not when they asked."""
    ctx = run.ctx
    row = ctx.db.scalars(select(AuditExport).where(AuditExport.job_id == run.claim.job_id)).one()
    ctx.db.expunge(row)
    asker = as_asker(ctx, row.user_id, run.claim.job_id, row.project_id)
    authorize(asker, EXPORT, Target(row.project_id, label="the audit log"))
    written = audit_export.write(asker, row, run.report)
    with transaction(ctx.db):
        job: Job = held(ctx.db, run.claim)
        row = ctx.db.get_one(AuditExport, job.resource_id, with_for_update=True, populate_existing=True)
        row.expires_at = now() + KEEP
        for name, value in asdict(written).items():
            setattr(row, name, value)


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
