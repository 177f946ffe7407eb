"""Work that somebody asks for and that is no operation on a resource."""

from portal.identity import project_deletion
from portal.kernel.runner import AskedRun, AskedTask
from portal.worker.audit_export import EXPORT_TASK
from portal.worker.audit_tasks import VERIFY_TASK


def delete_project(run: AskedRun) -> None:
    """Take a project apart."""
    project_deletion.delete_project(run.ctx, run.claim)


ASKED = {task.work.kind: task for task in (EXPORT_TASK, VERIFY_TASK, AskedTask(project_deletion.DELETING, delete_project))}
