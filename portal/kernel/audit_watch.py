"""Keeping watch over the audit log: verifications that are asked for and those that come by themselves, and the alarm when one fails."""

from collections.abc import Callable
from datetime import timedelta

from sqlalchemy import select
from sqlalchemy.orm import Session

from portal.kernel import audit, events
from portal.kernel.audit_archives import archive_next, directory
from portal.kernel.audit_checkpoints import checkpoint
from portal.kernel.audit_keys import signer, trust_of
from portal.kernel.audit_verifications import AuditVerification, Standing, open_break, standing
from portal.kernel.audit_verify import Since, Verdict, verify
from portal.kernel.authz import Target, authorize
from portal.kernel.context import Context
from portal.kernel.db import now, transaction
from portal.kernel.declare import AskedWork
from portal.kernel.errors import Conflict
from portal.kernel.files import remove_parts
from portal.kernel.jobs import ACTIVE, Job, JobStep
from portal.kernel.operations import acting, refusals_audited

VERIFY = "security.audit.verify"
VERIFYING = AskedWork(VERIFY, cancelled="What was found by then is kept.")
THE_LOG = audit.Subject("security.audit", "audit-log", "Audit log")
WHOLE_TASK = "audit-verify-whole"
PART_KEPT = timedelta(days=1)
EVERYTHING = Target(None, label="the whole audit log")


def audit_verify_ask(ctx: Context) -> Job:
    """Have a job verify all of the log, because somebody asks. Raises Forbidden, or Conflict while another one is at it."""
    job = Job(
        kind=VERIFY, label="Verify the audit log", resource_type=THE_LOG.type_key, resource_id=THE_LOG.id, resource_name=THE_LOG.name,
        user_id=ctx.principal.user_id, username=ctx.principal.username, request_id=ctx.request_id,
        steps=[JobStep(position=0, name="verify", label="Verify every entry, every signature and every archive")],
    )  # fmt: skip
    with acting(ctx, VERIFY, THE_LOG, target=EVERYTHING):
        if (other := verification_under_way(ctx.db)) is not None:
            raise Conflict("The whole log is being verified already. Wait for the result.", details={"job_id": other.id})
        ctx.db.add(job)
        ctx.db.flush()
    ctx.deliver([job.id])
    return job


def verification_under_way(session: Session) -> Job | None:
    """The job that verifies all of the log or is about to, asked for or by itself."""
    return session.scalars(select(Job).where(Job.resource_id.in_((THE_LOG.id, f"system:{WHOLE_TASK}")), Job.state.in_(ACTIVE)).limit(1)).first()


def audit_standing(ctx: Context) -> Standing:
    """What verifications have found, for those who may verify. Raises Forbidden."""
    with refusals_audited(ctx, VERIFY, THE_LOG):
        authorize(ctx, VERIFY, EVERYTHING)
    return standing(ctx.db, trust_of(ctx.settings))


def audit_verify(ctx: Context, report: Callable[[str], None]) -> Verdict:
    """Verify every entry, every signature and the files of archives; what was found is noted, and in the log if somebody asked."""
    verdict = verify(ctx.db, trust_of(ctx.settings), files=directory(ctx.settings), report=report)
    _note(ctx, verdict, is_whole=True)
    return verdict


def audit_checkpoint(ctx: Context) -> Verdict:
    """Verify what came since the last checkpoint and sign it; what does not hold is not signed."""
    key = signer(ctx.settings)
    verdict = verify(ctx.db, trust_of(ctx.settings), since=Since.CHECKPOINT)
    if verdict.broken_seq is None:
        checkpoint(ctx.db, ctx.settings, key, seq=verdict.to_seq, entry_hash=verdict.to_hash)
    else:
        _note(ctx, verdict)
    return verdict


def audit_watch(ctx: Context) -> Verdict:
    """Verify what came since the last verification."""
    verdict = verify(ctx.db, trust_of(ctx.settings), since=Since.VERIFICATION)
    _note(ctx, verdict)
    return verdict


def audit_archive(ctx: Context) -> int:
    """Move what is older than AUDIT_RETENTION_DAYS into archives; how many were made. Raises Damaged."""
    made = 0
    remove_parts(directory(ctx.settings), (now() - PART_KEPT).timestamp())
    if ctx.settings.audit_retention_days:
        key, trust = signer(ctx.settings), trust_of(ctx.settings)
        while archive_next(ctx, key, trust, is_first=not made) is not None:
            made += 1
    return made


def _note(ctx: Context, verdict: Verdict, *, is_whole: bool = False) -> None:
    """Keep what was found, signed. Of a broken log it is told once for each place, however often it is found; who asks is always answered."""
    key, trust = signer(ctx.settings), trust_of(ctx.settings)
    is_asked = is_whole and ctx.principal.user_id is not None
    row = AuditVerification(
        at=now(), from_seq=verdict.from_seq, to_seq=verdict.to_seq, to_hash=verdict.to_hash, is_whole=is_whole, entries=verdict.entries,
        checkpoints=verdict.checkpoints, broken_seq=verdict.broken_seq, broken_id=verdict.broken_id, problem=verdict.problem,
        username=ctx.principal.username, key_id=key.key_id,
    )  # fmt: skip
    row.signature = key.sign(row.content())
    with transaction(ctx.db):
        is_new = verdict.broken_seq is not None and open_break(ctx.db, trust, verdict.broken_seq) is None
        if is_new or is_whole or verdict.broken_seq is None:
            ctx.db.add(row)
        if is_new:
            payload = {"entry": verdict.broken_seq, "log_id": verdict.broken_id, "problem": verdict.problem}
            events.emit(ctx, "security.audit.broken", resource_id=THE_LOG.id, name=THE_LOG.name, payload=payload)
        if is_new or is_asked:
            status = "success" if verdict.broken_seq is None else "failure"
            audit.record(ctx, VERIFY, THE_LOG, status=status, error=verdict.problem, details=_told(verdict))


def _told(verdict: Verdict) -> dict[str, object]:
    return {"entries": verdict.entries, "broken_seq": verdict.broken_seq, "problem": verdict.problem}
