"""What is in the database: everything that a change may touch, as one value that two moments can be compared by."""

from sqlalchemy import func, select
from sqlalchemy.orm import Session, sessionmaker

from portal.kernel.audit import AuditEntry
from portal.kernel.db import Base

# Written by refusals on purpose, so compared on their own.
LOG = {"audit_entries", "audit_head"}


def way(dimension: str) -> dict[str, str]:
    """What a refusal for a project's quota says besides its figures."""
    return {"scope": "project", "request_url": f"/quotas/requests/new?dimension={dimension}"}


def rows_of(sessions: sessionmaker[Session]) -> dict[str, list[tuple[object, ...]]]:
    """Table → its rows, of all tables but the audit log."""
    with sessions() as session:
        tables = [table for table in Base.metadata.sorted_tables if table.name not in LOG]
        return {table.name: sorted(map(tuple, session.execute(select(table))), key=repr) for table in tables}


def entries(sessions: sessionmaker[Session]) -> list[AuditEntry]:
    """The audit log, oldest first."""
    with sessions() as session:
        return list(session.scalars(select(AuditEntry).order_by(AuditEntry.seq)))


def entries_since(sessions: sessionmaker[Session], seq: int) -> list[AuditEntry]:
    """What was written to the audit log after an entry."""
    return [entry for entry in entries(sessions) if entry.seq > seq]


def last_seq(sessions: sessionmaker[Session]) -> int:
    """Number of the newest entry of the audit log."""
    with sessions() as session:
        return session.scalar(select(func.max(AuditEntry.seq))) or 0
