"""Work that somebody asks for and that is no operation on a resource."""

from portal.identity import project_deletion
from portal.kernel.jobs import Job
from portal.kernel.runner import AskedRun, AskedTask
from portal.storage import emptying
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


TASKS = (EXPORT_TASK, VERIFY_TASK, AskedTask(project_deletion.DELETING, delete_project), AskedTask(emptying.EMPTYING, empty_bucket))
ASKED = {task.work.kind: task for task in TASKS}
