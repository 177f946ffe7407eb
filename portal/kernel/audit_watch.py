"""Keeping watch over the audit log: verifications that are asked for and those that come by themselves, and the alarm when one fails."""

from datetime import timedelta

from portal.kernel import audit, events
from portal.kernel.audit_archives import archive_next, directory
from portal.kernel.audit_checkpoints import AuditVerification, checkpoint, newest_verification
from portal.kernel.audit_keys import signer, trust_of
from portal.kernel.audit_verify import Since, Verdict, verify
from portal.kernel.authz import Target, authorize
from portal.kernel.context import Context
from portal.kernel.db import now, transaction
from portal.kernel.files import remove_parts
from portal.kernel.operations import acting, refusals_audited

VERIFY = "security.audit.verify"
THE_LOG = audit.Subject("security.audit", "audit-log", "Audit log")
PART_KEPT = timedelta(days=1)
EVERYTHING = Target(None, label="the whole audit log")


def audit_verify(ctx: Context) -> Verdict:
    """Verify all of the log because somebody asks; that they asked, and what was found, is in the log. Raises Forbidden."""
    with refusals_audited(ctx, VERIFY, THE_LOG):
        authorize(ctx, VERIFY, EVERYTHING)
    verdict = verify(ctx.db, trust_of(ctx.settings))
    with acting(ctx, VERIFY, THE_LOG, target=EVERYTHING, details=_told(verdict)):
        _note(ctx, verdict)
    return verdict


def audit_checkpoint(ctx: Context) -> Verdict:
    """Verify what came since the last checkpoint and sign it; what does not hold is not signed."""
    key = signer(ctx.settings)
    verdict = verify(ctx.db, trust_of(ctx.settings), since=Since.CHECKPOINT)
    if verdict.broken_seq is None:
        checkpoint(ctx.db, ctx.settings, key, seq=verdict.to_seq, entry_hash=verdict.to_hash)
    else:
        _raise_alarm(ctx, verdict)
    return verdict


def audit_watch(ctx: Context) -> Verdict:
    """Verify what came since the last verification."""
    verdict = verify(ctx.db, trust_of(ctx.settings), since=Since.VERIFICATION)
    if verdict.broken_seq is not None:
        _raise_alarm(ctx, verdict)
    else:
        with transaction(ctx.db):
            _note(ctx, verdict)
    return verdict


def audit_archive(ctx: Context) -> int:
    """Move what is older than AUDIT_RETENTION_DAYS into archives; how many were made. Raises Damaged."""
    made = 0
    remove_parts(directory(ctx.settings), (now() - PART_KEPT).timestamp())
    if ctx.settings.audit_retention_days:
        key, trust = signer(ctx.settings), trust_of(ctx.settings)
        while archive_next(ctx, key, trust) is not None:
            made += 1
    return made


def _raise_alarm(ctx: Context, verdict: Verdict) -> None:
    """Tell of a broken log: once for each place, however often it is found."""
    last = newest_verification(ctx.db)
    if last is not None and last.broken_seq == verdict.broken_seq:
        return
    with transaction(ctx.db):
        _note(ctx, verdict)
        audit.record(ctx, VERIFY, THE_LOG, status="failure", error=verdict.problem, details=_told(verdict))


def _note(ctx: Context, verdict: Verdict) -> None:
    ctx.db.add(
        AuditVerification(
            from_seq=verdict.from_seq, to_seq=verdict.to_seq, broken_seq=verdict.broken_seq, problem=verdict.problem, username=ctx.principal.username
        )
    )  # fmt: skip
    if verdict.broken_seq is not None:
        payload = {"entry": verdict.broken_seq, "log_id": verdict.broken_id, "problem": verdict.problem}
        events.emit(ctx, "security.audit.broken", resource_id=THE_LOG.id, name=THE_LOG.name, payload=payload)


def _told(verdict: Verdict) -> dict[str, object]:
    return {"entries": verdict.entries, "broken_seq": verdict.broken_seq, "problem": verdict.problem}
