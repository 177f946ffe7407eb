"""Verification of the audit log: every entry is there, as it was written, in its place, and what was signed of it holds."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from sqlalchemy.orm import Session

from portal.kernel.audit import GENESIS, AuditHead
from portal.kernel.audit_archives import archives_end
from portal.kernel.audit_checkpoints import Mark, checkpoints, marks_of, marks_since
from portal.kernel.audit_keys import Trust
from portal.kernel.audit_lines import HASH, LOG_ID, PREVIOUS, SEQ, Line, is_whole, lines_after
from portal.kernel.audit_verifications import believed

REPORT_EVERY = 50_000


@dataclass(frozen=True, slots=True)
class Verdict:
    """Outcome of a verification: how many entries hold, and the first that does not.

    `from_seq` and `to_seq` are the first and last entry that hold, `checkpoints` how many signatures do.
    """

    entries: int
    broken_seq: int | None = None
    problem: str = ""
    broken_id: str = ""
    from_seq: int = 1
    to_seq: int = 0
    to_hash: str = GENESIS
    checkpoints: int = 0


class Since(StrEnum):
    """Where a verification begins: at the first entry, at the last good checkpoint, or at the last one that an earlier verification had reached."""

    BEGINNING = "beginning"
    CHECKPOINT = "checkpoint"
    VERIFICATION = "verification"


def _nobody(_said: str) -> None:
    """Nobody wants to know how far it has got."""


def verify(
    session: Session,
    trust: Trust | None = None,
    *,
    since: Since = Since.BEGINNING,
    files: Path | None = None,
    report: Callable[[str], None] = _nobody,
) -> Verdict:
    """Walk the chain from the end of the archives and name the first broken entry; with `files`, their directory, the archives are read as well.

    Without `trust`, signatures are not checked. What does not begin at the first entry does not look at what was signed of those before either.
    `report` is told how far it has got, in words.
    """
    session.rollback()
    if session.get_bind().dialect.name == "postgresql":
        # One moment for entries, checkpoints and head: what others append meanwhile must not look like a head without its entries.
        session.connection(execution_options={"isolation_level": "REPEATABLE READ"})
    trust = trust or Trust()
    try:
        marks, begin = _marks(session, trust, since)
        archived = archives_end(session, trust, files=files, report=report, is_short=since is not Since.BEGINNING)
        if archived.broken_seq is not None:
            return Verdict(0, archived.broken_seq, archived.problem, to_seq=archived.seq)
        start = max((archived.seq, archived.hash), (begin, marks[begin].hash) if begin else (0, GENESIS))
        return _walk(session, start, marks, len(marks) if trust.keys else 0, report)
    finally:
        session.rollback()


def _marks(session: Session, trust: Trust, since: Since) -> tuple[dict[int, Mark], int]:
    """What was signed of the entries that are to be looked at, and the entry behind which to begin."""
    if since is Since.BEGINNING:
        return marks_of(checkpoints(session), trust), 0
    if since is Since.CHECKPOINT:
        return marks_since(session, trust)
    newest = believed(session, trust)
    return marks_since(session, trust, newest.to_seq if newest else 0)


def _walk(session: Session, start: tuple[int, str], marks: Mapping[int, Mark], signed: int, report: Callable[[str], None]) -> Verdict:
    head = session.get(AuditHead, 1)
    first, previous = start
    # The checkpoints up to the start stand for the entries there; that one of them is gone or wrong is seen all the same.
    wrong = next((at for at in sorted(marks) if at <= first and marks[at].problem), None)
    if wrong is not None:
        return Verdict(0, wrong, marks[wrong].problem, from_seq=first + 1, to_seq=first)
    seq, last_mark = first, first
    for line in lines_after(session, first):
        if line[SEQ] != seq + 1:
            return Verdict(seq - first, seq + 1, "entry is missing", "", first + 1, seq)
        mark = marks.get(line[SEQ])
        if problem := _problem_of(line, previous) or (mark is not None and _problem_of_mark(mark, line, last_mark)):
            return Verdict(seq - first, line[SEQ], problem, line[LOG_ID], first + 1, seq)
        previous, seq = line[HASH], line[SEQ]
        if seq % REPORT_EVERY == 0:
            report(f"{seq:,} of {head.seq if head else 0:,} entries.")
        last_mark = seq if mark is not None else last_mark
    if problem := _problem_at_end(head, marks, seq, previous):
        return Verdict(seq - first, seq + 1, problem, "", first + 1, seq)
    return Verdict(seq - first, from_seq=first + 1, to_seq=seq, to_hash=previous, checkpoints=signed)


def _problem_of(line: Line, previous: str) -> str:
    if line[PREVIOUS] != previous:
        return "does not follow the entry before it: re-ordered, or the one before was replaced"
    return "" if is_whole(line) else "content was changed"


def _problem_of_mark(mark: Mark, line: Line, last_mark: int) -> str:
    if mark.problem or mark.hash == line[HASH]:
        return mark.problem
    return f"the chain was rewritten after entry {last_mark}: checkpoint {mark.number} has another hash"


def _problem_at_end(head: AuditHead | None, marks: Mapping[int, Mark], seq: int, previous: str) -> str:
    if head is None or (head.seq, head.hash) != (seq, previous):
        return "the end of the log was cut off"
    beyond = min((at for at in marks if at > seq), default=0)
    return f"the end of the log was cut off: checkpoint {marks[beyond].number} tells of entry {beyond}" if beyond else ""
