"""Receivers of copies of the audit log, and how far each of them has got."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import BigInteger, Integer, String, Text, select
from sqlalchemy.orm import Mapped, Session, mapped_column

from portal.kernel.audit import AuditHead
from portal.kernel.db import Base, UtcDateTime, now
from portal.settings import Settings


class NotTaken(Exception):
    """The receiver did not take a batch; the text is for administrators."""


@dataclass(frozen=True, slots=True)
class Receiver:
    """Where copies go; `send` raises NotTaken unless all entries were taken."""

    name: str
    send: Callable[[Sequence[dict[str, object]]], None]


class AuditStream(Base):
    """How far a receiver has got, and what went wrong last."""

    __tablename__ = "audit_streams"

    name: Mapped[str] = mapped_column(String(32), primary_key=True)
    last_seq: Mapped[int] = mapped_column(BigInteger, default=0)
    last_error: Mapped[str] = mapped_column(Text, default="")
    failures: Mapped[int] = mapped_column(Integer, default=0)
    at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    next_try_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)
    # What was in the log no more when it was to be sent.
    passed_over: Mapped[str] = mapped_column(Text, default="")


def stream_names(settings: Settings) -> list[str]:
    """Receivers that are configured."""
    return [name for name, url in (("syslog", settings.audit_syslog_url), ("webhook", settings.audit_webhook_url)) if url]


def streams(session: Session, settings: Settings) -> list[tuple[AuditStream, int]]:
    """Every configured receiver and by how many entries it is behind."""
    head = session.get(AuditHead, 1)
    rows = {row.name: row for row in session.scalars(select(AuditStream))}
    found = [rows.get(name) or AuditStream(name=name, last_seq=0, last_error="", failures=0) for name in stream_names(settings)]
    return [(row, max(0, (head.seq if head else 0) - row.last_seq)) for row in found]
