"""Periodic work on the audit log."""

import logging

from portal.kernel.audit_verify import Verdict
from portal.kernel.audit_watch import audit_checkpoint, audit_watch
from portal.kernel.runner import SystemTask, TaskRun

DAY_S = 24 * 3600.0

log = logging.getLogger("portal.audit")


def sign_audit_log(task: TaskRun) -> None:
    """Verify and sign what was written since the last checkpoint."""
    _complain(audit_checkpoint(task.ctx))


def verify_audit_log(task: TaskRun) -> None:
    """Verify what was written since the last verification."""
    _complain(audit_watch(task.ctx))


def _complain(verdict: Verdict) -> None:
    if verdict.broken_seq is not None:
        log.critical("the audit log is broken at entry %s: %s", verdict.broken_seq, verdict.problem)


AUDIT_TASKS = (
    SystemTask("audit-checkpoint", "Sign the end of the audit log", lambda settings: 60.0 * settings.audit_checkpoint_minutes, sign_audit_log),
    SystemTask("audit-verify", "Verify the audit log since the last verification", lambda _: DAY_S, verify_audit_log),
)
