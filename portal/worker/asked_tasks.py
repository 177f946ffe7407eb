"""Work that somebody asks for and that is no operation on a resource."""

from portal.identity import project_deletion
from portal.kernel.jobs import Job
from portal.kernel.runner import AskedRun, AskedTask
from portal.storage import emptying, replicating
from portal.storage.replication import REPLICATING
from portal.worker.audit_export import EXPORT_TASK
from portal.worker.audit_tasks import VERIFY_TASK


def delete_project(run: AskedRun) -> None:
    """Take a project apart."""
    project_deletion.delete_project(run.ctx, run.claim)


def empty_bucket(run: AskedRun) -> None:
    """Delete what is in a bucket."""
    job = run.ctx.db.get_one(Job, run.claim.job_id)
    run.ctx.db.expunge_all()
    emptying.empty_bucket(run.ctx, job, run.report)


def replicate_bucket(run: AskedRun) -> None:
    """Carry over what is in a bucket."""
    job = run.ctx.db.get_one(Job, run.claim.job_id)
    replication_id = str(job.input["replication_id"])
    run.ctx.db.expunge_all()
    blobs = run.engines.blobs
    if blobs is not None:
        replicating.replicate_existing(run.ctx, blobs, replication_id, run.report)


TASKS = (
    EXPORT_TASK,
    VERIFY_TASK,
    AskedTask(project_deletion.DELETING, delete_project),
    AskedTask(emptying.EMPTYING, empty_bucket),
    AskedTask(REPLICATING, replicate_bucket),
)
ASKED = {task.work.kind: task for task in TASKS}
