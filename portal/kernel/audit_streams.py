"""Copies of the audit log elsewhere: each receiver gets every entry at least once and in order, from where its cursor stands.

The cursor moves on after the receiver has taken a batch. Who dies in between sends that batch again; nothing is left out.
"""

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice

from sqlalchemy import BigInteger, Integer, String, Text, select
from sqlalchemy.orm import Mapped, Session, mapped_column

from portal.kernel.audit import AuditHead
from portal.kernel.audit_lines import DETAILS, FIELDS, HASH, SEQ, TIMESTAMP, Line, lines_after, moment_of
from portal.kernel.db import Base, UtcDateTime, now, transaction
from portal.settings import Settings

BATCH = 200
FIRST_WAIT_S, LONGEST_WAIT_S = 5.0, 900.0

log = logging.getLogger("portal.audit")


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


def stream_on(session: Session, receiver: Receiver, *, until: Callable[[], bool]) -> None:
    """Send what a receiver does not have, batch by batch, until it has everything, does not take any more, or `until` says stop."""
    with transaction(session):
        row = session.get(AuditStream, receiver.name, with_for_update=True, populate_existing=True)
        if row is None:
            row = AuditStream(name=receiver.name)
            session.add(row)
            session.flush()
        seq, next_try_at = row.last_seq, row.next_try_at
    while next_try_at <= now() and not until():
        session.rollback()
        batch = [entry_of(line) for line in islice(lines_after(session, seq), BATCH)]
        session.rollback()
        if not batch:
            return
        try:
            receiver.send(batch)
        except NotTaken as error:
            next_try_at = _failed(session, receiver.name, str(error))
            continue
        seq = _moved(session, receiver.name, int(str(batch[-1]["seq"])))


def entry_of(line: Line) -> dict[str, object]:
    """An entry as receivers get it: all of its fields, the hash included."""
    found = dict(zip(FIELDS, line, strict=False))
    details: object = json.loads(line[DETAILS])
    return {"seq": line[SEQ], **found, FIELDS[DETAILS]: details, FIELDS[TIMESTAMP]: moment_of(line), "entry_hash": line[HASH]}


def _moved(session: Session, name: str, seq: int) -> int:
    with transaction(session):
        row = session.get_one(AuditStream, name, with_for_update=True, populate_existing=True)
        row.last_seq, row.last_error, row.failures, row.at = max(row.last_seq, seq), "", 0, now()
        return row.last_seq


def _failed(session: Session, name: str, problem: str) -> datetime:
    with transaction(session):
        row = session.get_one(AuditStream, name, with_for_update=True, populate_existing=True)
        wait_s = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** min(row.failures, 16))
        row.last_error, row.failures, row.next_try_at = problem[:2000], row.failures + 1, now() + timedelta(seconds=wait_s)
        log.warning("audit stream %s: %s; trying again in %.0f s", name, problem, wait_s)
        return row.next_try_at
