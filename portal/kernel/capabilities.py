"""What the engines of this installation can do, as the worker that owns them last said.

The web process never asks an engine; it reads this table, so that pages, forms and `/ready` can say what is missing and what would add it.
"""

from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import String, Text, select
from sqlalchemy.orm import Mapped, Session, mapped_column

from portal.engines.ports import Capability, HostCapacity
from portal.kernel.db import Base, JsonColumn, UtcDateTime, insert_of, now, transaction

STALE_AFTER = timedelta(seconds=60)
HANGS = "hangs"


class CapabilityStatus(Base):
    """One capability, as last reported."""

    __tablename__ = "capabilities"

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    available: Mapped[bool]
    detail: Mapped[str] = mapped_column(Text, default="")
    reason: Mapped[str] = mapped_column(Text, default="")
    remedy: Mapped[str] = mapped_column(Text, default="")
    facts: Mapped[dict[str, Any]] = mapped_column(JsonColumn, default=dict)
    worker: Mapped[str] = mapped_column(String(128), default="")
    reported_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)

    @property
    def fresh(self) -> bool:
        """Whether the worker has spoken lately."""
        return now() - self.reported_at < STALE_AFTER


def capability(session: Session, name: str) -> CapabilityStatus | None:
    """The last report of a capability; None before the first."""
    return session.get(CapabilityStatus, name)


def capabilities(session: Session) -> list[CapabilityStatus]:
    """All reports, by name."""
    return list(session.scalars(select(CapabilityStatus).order_by(CapabilityStatus.name)))


def hangs(session: Session) -> dict[str, int]:
    """How many workers have ended themselves because something did not come on in them, by what is watched."""
    return {row.name: int(row.facts[HANGS]) for row in capabilities(session) if HANGS in row.facts}


def report_watched(session: Session, found: Capability, *, worker: str) -> None:
    """Say whether something that is watched comes on; each time that it does not is counted."""
    said = {
        "available": found.available,
        "detail": found.detail,
        "reason": found.reason,
        "remedy": found.remedy,
        "worker": worker,
        "reported_at": now(),
    }
    more = 0 if found.available else 1
    with transaction(session):
        session.execute(insert_of(session)(CapabilityStatus).values(name=found.name, facts={}, **said).on_conflict_do_nothing())
        row = session.get_one(CapabilityStatus, found.name, with_for_update=True, populate_existing=True)
        for name, value in (said | {"facts": {HANGS: int(row.facts.get(HANGS, 0)) + more}}).items():
            setattr(row, name, value)


def report(session: Session, found: Capability, *, worker: str, capacity: HostCapacity | None = None, facts: Mapping[str, Any] | None = None) -> None:
    """Say what an engine can do and what there is of it, in place of what was said before."""
    found_out = asdict(capacity) if capacity else dict(facts or {})
    said = {
        "available": found.available, "detail": found.detail, "reason": found.reason, "remedy": found.remedy, "facts": found_out, "worker": worker,
        "reported_at": now(),
    }  # fmt: skip
    with transaction(session):
        session.execute(
            insert_of(session)(CapabilityStatus).values(name=found.name, **said).on_conflict_do_update(index_elements=["name"], set_=said)
        )
