"""Periodic work on the audit log."""

import logging
import time

from portal.kernel.audit_archives import Damaged, directory
from portal.kernel.audit_sending import stream_on
from portal.kernel.audit_streams import stream_names
from portal.kernel.audit_verify import Verdict
from portal.kernel.audit_watch import THE_LOG, VERIFYING, WHOLE_TASK, audit_archive, audit_checkpoint, audit_verify, audit_watch
from portal.kernel.jobs import active_for
from portal.kernel.runner import AskedRun, AskedTask, SystemTask, TaskRun
from portal.worker.audit_receivers import receivers

DAY_S = 24 * 3600.0
STREAM_EVERY_S = 5.0
STREAM_TURN_S = 60.0

log = logging.getLogger("portal.audit")


def sign_audit_log(task: TaskRun) -> None:
    """Verify and sign what was written since the last checkpoint."""
    _complain(audit_checkpoint(task.ctx))


def verify_audit_log(task: TaskRun) -> None:
    """Verify what was written since the last verification."""
    _complain(audit_watch(task.ctx))


def verify_whole_audit_log(task: TaskRun) -> None:
    """Verify all of it, unless somebody's job is doing so now."""
    if active_for(task.ctx.db, THE_LOG.id) is None:
        _complain(audit_verify(task.ctx, log.debug))


def verify_as_asked(run: AskedRun) -> None:
    """Verify all of it because somebody asked; they are told last, for what was found counts although they cancel meanwhile."""
    found = audit_verify(run.ctx, run.report)
    _complain(found)
    run.report(f"{found.entries:,} entries hold." if found.broken_seq is None else f"Broken at entry {found.broken_seq:,}: {found.problem}.")


def archive_audit_log(task: TaskRun) -> None:
    """Move old entries into archives; what does not hold stays where it is, and the verification tells of it."""
    try:
        audit_archive(task.ctx)
    except Damaged as error:
        log.critical("entries of the audit log cannot be archived: %s", error)


def stream_audit_log(task: TaskRun) -> None:
    """Send to every receiver what it does not have yet; each for a while, so that a slow one does not hold up the others for long."""
    for receiver in receivers(task.ctx.settings):
        end = time.monotonic() + STREAM_TURN_S
        stream_on(task.ctx.db, receiver, directory(task.ctx.settings), until=lambda end=end: time.monotonic() > end)  # type: ignore[misc]


def _complain(verdict: Verdict) -> None:
    if verdict.broken_seq is not None:
        log.critical("the audit log is broken at entry %s: %s", verdict.broken_seq, verdict.problem)


AUDIT_TASKS = (
    SystemTask("audit-checkpoint", "Sign the end of the audit log", lambda settings: 60.0 * settings.audit_checkpoint_minutes, sign_audit_log),
    SystemTask("audit-verify", "Verify the audit log since the last verification", lambda _: DAY_S, verify_audit_log),
    SystemTask(
        WHOLE_TASK, "Verify the whole audit log, archives included", lambda settings: DAY_S * settings.audit_verify_days, verify_whole_audit_log
    ),
    SystemTask("audit-archive", "Move old entries of the audit log into archives", lambda _: DAY_S, archive_audit_log),
    SystemTask(
        "audit-stream", "Send copies of the audit log", lambda settings: STREAM_EVERY_S if stream_names(settings) else DAY_S, stream_audit_log
    ),
)
VERIFY_TASK = AskedTask(VERIFYING, verify_as_asked)
