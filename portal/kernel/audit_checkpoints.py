"""Signed checkpoints of the audit log: who can write to the database can rewrite the log, but not what was signed of it.

A checkpoint says: entry `seq` has this hash. It is made from a part of the chain that was verified the moment before, and leaves the database at
once: as a line of the structured log, and as a file on the host that signed it.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import BigInteger, Integer, String, Text, func, or_, select
from sqlalchemy.orm import Mapped, Session, mapped_column

from portal.kernel.audit_keys import Anchor, Signer, Trust, keep_anchor
from portal.kernel.db import Base, UtcDateTime, now, transaction
from portal.settings import Settings

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


class AuditVerification(Base):
    """When the log was verified, from where to where, and what was found."""

    __tablename__ = "audit_verifications"

    id: Mapped[int] = mapped_column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True)
    at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)
    from_seq: Mapped[int] = mapped_column(BigInteger)
    to_seq: Mapped[int] = mapped_column(BigInteger)
    broken_seq: Mapped[int | None] = mapped_column(BigInteger)
    problem: Mapped[str] = mapped_column(Text)
    username: Mapped[str] = mapped_column(String(255))


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


def newest_verification(session: Session) -> AuditVerification | None:
    """The last one; one that found the log broken, for as long as none has looked there again and found it whole."""
    latest = select(func.max(AuditVerification.id)).scalar_subquery()
    worst = select(func.max(AuditVerification.id)).where(AuditVerification.broken_seq.is_not(None)).scalar_subquery()
    rows = session.scalars(
        select(AuditVerification).where(or_(AuditVerification.id == latest, AuditVerification.id == worst)).order_by(AuditVerification.id)
    ).all()
    if len(rows) < 2:  # noqa: PLR2004 - the newest one is the broken one, or none is broken
        return rows[0] if rows else None
    broken, newest = rows
    again = (AuditVerification.id > broken.id, AuditVerification.broken_seq.is_(None), AuditVerification.from_seq <= broken.broken_seq)
    return newest if session.scalars(select(AuditVerification.id).where(*again).limit(1)).first() is not None else broken


def marks_of(found: Sequence[AuditCheckpoint], trust: Trust) -> dict[int, Mark]:
    """Entry number → what was signed of it. One that is missing, changed or not in order is a problem at the entry of the next that is there."""
    marks: dict[int, Mark] = {}
    for place, each in enumerate(found, start=1):
        problem = ""
        if each.number != place:
            problem = f"checkpoint {place} is missing"
        elif trust.keys and each.key_id not in trust.keys:
            problem = f"checkpoint {each.number} is signed with the key {each.key_id[:16]}…, which this host does not know"
        elif trust.keys and not trust.is_signed(each.content(), each.key_id, each.signature):
            problem = f"the signature of checkpoint {each.number} is wrong"
        marks[each.seq] = Mark(each.number, each.hash, problem)
    anchor = trust.anchor
    if anchor is not None:
        mark = marks.get(anchor.seq)
        if mark is None or (not mark.problem and (mark.number, mark.hash) != (anchor.number, anchor.hash)):
            problem = f"checkpoint {anchor.number}, which this host keeps outside the database, is not in it"
            marks[anchor.seq] = Mark(anchor.number, anchor.hash, problem)
    return marks


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
