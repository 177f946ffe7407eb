"""Verification of the audit log: every entry is there, as it was written, in its place."""

from dataclasses import dataclass

from sqlalchemy.orm import Session

from portal.kernel.audit import GENESIS, AuditHead
from portal.kernel.audit_lines import HASH, PREVIOUS, SEQ, hash_of, lines_after


@dataclass(frozen=True, slots=True)
class Verdict:
    """Outcome of a verification: how many entries hold, and the first that does not."""

    entries: int
    broken_seq: int | None = None
    problem: str = ""


def verify(session: Session) -> Verdict:
    """Walk the chain from its beginning; an edited, removed, re-ordered or cut-off entry is named."""
    session.rollback()
    if session.get_bind().dialect.name == "postgresql":
        # One moment for entries and head: what others append meanwhile must not look like a head without its entries.
        session.connection(execution_options={"isolation_level": "REPEATABLE READ"})
    try:
        return _walk(session)
    finally:
        session.rollback()


def _walk(session: Session) -> Verdict:
    head = session.get(AuditHead, 1)
    previous, seq = GENESIS, 0
    for line in lines_after(session, 0):
        if line[SEQ] != seq + 1:
            return Verdict(seq, seq + 1, "entry is missing")
        if line[PREVIOUS] != previous:
            return Verdict(seq, line[SEQ], "does not follow the entry before it")
        if hash_of(line) != line[HASH]:
            return Verdict(seq, line[SEQ], "content was changed")
        previous, seq = line[HASH], line[SEQ]
    if head is None or (head.seq, head.hash) != (seq, previous):
        return Verdict(seq, seq + 1, "the end of the log was cut off")
    return Verdict(seq)
