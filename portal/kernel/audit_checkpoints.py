"""Signed checkpoints of the audit log: who can write to the database can rewrite the log, but not what was signed of it.

A checkpoint says: entry `seq` has this hash. It is made from a part of the chain that was verified the moment before, and leaves the database at
once: as a line of the structured log, and as a file on the host that signed it.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import BigInteger, Integer, String, select, true
from sqlalchemy.orm import Mapped, Session, mapped_column

from portal.kernel.audit_keys import Anchor, Signer, Trust, keep_anchor
from portal.kernel.db import Base, UtcDateTime, now, transaction
from portal.settings import Settings

# Checkpoints that are read at once, looking back for one that is good.
PAGE = 50

log = logging.getLogger("portal.audit")


class AuditCheckpoint(Base):
    """A signed word on the hash of one entry, numbered without gaps."""

    __tablename__ = "audit_checkpoints"

    number: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    seq: Mapped[int] = mapped_column(BigInteger, unique=True)
    hash: Mapped[str] = mapped_column(String(64))
    at: Mapped[datetime] = mapped_column(UtcDateTime)
    key_id: Mapped[str] = mapped_column(String(64))
    signature: Mapped[str] = mapped_column(String(128))

    def content(self) -> Mapping[str, object]:
        """What is signed."""
        moment = self.at.astimezone(UTC).isoformat()
        return {"kind": "audit checkpoint", "number": self.number, "seq": self.seq, "hash": self.hash, "at": moment, "key_id": self.key_id}


class AuditKey(Base):
    """A public key that signed checkpoints, for whoever verifies elsewhere; this portal believes only those that its host keeps."""

    __tablename__ = "audit_keys"

    key_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    public_key: Mapped[str] = mapped_column(String(64))
    at: Mapped[datetime] = mapped_column(UtcDateTime)


@dataclass(frozen=True, slots=True)
class Mark:
    """What a checkpoint says of an entry, or why it is not to be believed."""

    number: int
    hash: str
    problem: str = ""


def checkpoints(session: Session) -> Sequence[AuditCheckpoint]:
    """All of them, oldest first."""
    return session.scalars(select(AuditCheckpoint).order_by(AuditCheckpoint.number)).all()


def newest_checkpoint(session: Session) -> AuditCheckpoint | None:
    """The last one."""
    return session.scalars(select(AuditCheckpoint).order_by(AuditCheckpoint.number.desc()).limit(1)).first()


def marks_of(found: Sequence[AuditCheckpoint], trust: Trust, *, first: int = 1) -> dict[int, Mark]:
    """Entry number → what was signed of it. One that is missing, changed or not in order is a problem at the entry of the next that is there.

    `first` is the number that the first one must have; the host's own newest checkpoint must be among them unless it has a lower one.
    """
    marks = {each.seq: Mark(each.number, each.hash, _problem_of(each, place, trust)) for place, each in enumerate(found, start=first)}
    anchor = trust.anchor
    if anchor is not None and anchor.number >= first:
        mark = marks.get(anchor.seq)
        if mark is None or (not mark.problem and (mark.number, mark.hash) != (anchor.number, anchor.hash)):
            marks[anchor.seq] = _forgotten(anchor)
    return marks


def marks_since(session: Session, trust: Trust, reached: int | None = None) -> tuple[dict[int, Mark], int]:
    """The same from the last checkpoint on that is good (and not beyond the entry that was reached), and its entry: 0 if none is."""
    found: list[AuditCheckpoint] = []
    while page := session.scalars(
        select(AuditCheckpoint)
        .where(AuditCheckpoint.number < found[-1].number if found else true())
        .order_by(AuditCheckpoint.number.desc())
        .limit(PAGE)
    ).all():
        for each in page:
            found.append(each)
            if (reached is None or each.seq <= reached) and not _problem_of(each, each.number, trust):
                marks = marks_of(found[::-1], trust, first=each.number)
                anchor = trust.anchor
                if anchor is not None and anchor.number < each.number:
                    row = session.get(AuditCheckpoint, anchor.number)
                    if row is None or (row.seq, row.hash) != (anchor.seq, anchor.hash):
                        marks[anchor.seq] = _forgotten(anchor)
                return marks, each.seq
    return marks_of(found[::-1], trust), 0


def _problem_of(each: AuditCheckpoint, place: int, trust: Trust) -> str:
    if each.number != place:
        return f"checkpoint {place} is missing"
    if trust.keys and each.key_id not in trust.keys:
        return f"checkpoint {each.number} is signed with the key {each.key_id[:16]}…, which this host does not know"
    if trust.keys and not trust.is_signed(each.content(), each.key_id, each.signature):
        return f"the signature of checkpoint {each.number} is wrong"
    return ""


def _forgotten(anchor: Anchor) -> Mark:
    return Mark(anchor.number, anchor.hash, f"checkpoint {anchor.number}, which this host keeps outside the database, is not in it")


def checkpoint(session: Session, settings: Settings, key: Signer, *, seq: int, entry_hash: str) -> AuditCheckpoint | None:
    """Sign an entry up to which the log was verified a moment ago; None if that is signed already."""
    with transaction(session):
        last = newest_checkpoint(session)
        if seq <= (last.seq if last else 0):
            return None
        made = AuditCheckpoint(number=(last.number if last else 0) + 1, seq=seq, hash=entry_hash, at=now(), key_id=key.key_id)
        made.signature = key.sign(made.content())
        session.add(made)
        if session.get(AuditKey, key.key_id) is None:
            session.add(AuditKey(key_id=key.key_id, public_key=key.public, at=made.at))
    log.info("audit checkpoint %s: entry %s, hash %s, signed by %s: %s", made.number, made.seq, made.hash, made.key_id, made.signature)
    keep_anchor(settings, Anchor(made.number, made.seq, made.hash))
    return made
