"""What verifications of the audit log found, signed by who made them: a row that says "whole" is believed only with such a signature.

A row that says "broken" needs none. It stands until a later verification, signed, has looked there again and found the log whole. What is later is
said by the moment, which is signed: a row that is put there once more is as old as it was.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import BigInteger, ColumnElement, Integer, String, Text, select
from sqlalchemy.orm import Mapped, Session, mapped_column

from portal.kernel.audit_keys import Trust
from portal.kernel.db import Base, UtcDateTime, now

# How many rows are looked at for one that is signed; with more that are not, none is believed.
MOST_LOOKED_AT = 50


class AuditVerification(Base):
    """When the log was verified, from where to where, and what was found."""

    __tablename__ = "audit_verifications"

    id: Mapped[int] = mapped_column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True)
    at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)
    from_seq: Mapped[int] = mapped_column(BigInteger)
    to_seq: Mapped[int] = mapped_column(BigInteger)
    to_hash: Mapped[str] = mapped_column(String(64), default="")
    # Every entry and every signature, the files of archives as well.
    is_whole: Mapped[bool] = mapped_column(default=False)
    entries: Mapped[int] = mapped_column(BigInteger, default=0)
    checkpoints: Mapped[int] = mapped_column(Integer, default=0)
    broken_seq: Mapped[int | None] = mapped_column(BigInteger)
    broken_id: Mapped[str] = mapped_column(String(64), default="")
    problem: Mapped[str] = mapped_column(Text)
    username: Mapped[str] = mapped_column(String(255))
    key_id: Mapped[str] = mapped_column(String(64), default="")
    signature: Mapped[str] = mapped_column(String(128), default="")

    def content(self) -> Mapping[str, object]:
        """What is signed."""
        return {
            "kind": "audit verification", "at": self.at.astimezone(UTC).isoformat(), "from_seq": self.from_seq, "to_seq": self.to_seq,
            "to_hash": self.to_hash, "is_whole": self.is_whole, "entries": self.entries, "broken_seq": self.broken_seq, "key_id": self.key_id,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Standing:
    """What is known of the log: where it is broken, when all of it was verified last, and the last verification of any part."""

    broken: AuditVerification | None = None
    whole: AuditVerification | None = None
    newest: AuditVerification | None = None


def standing(session: Session, trust: Trust) -> Standing:
    """How the log stands by the verifications that this host believes."""
    return Standing(open_break(session, trust), believed(session, trust, AuditVerification.is_whole.is_(True)), believed(session, trust))


def covering(session: Session, trust: Trust, seq: int) -> AuditVerification | None:
    """The last verification that looked at an entry and found it whole."""
    return believed(session, trust, AuditVerification.from_seq <= seq, AuditVerification.to_seq >= seq)


def open_break(session: Session, trust: Trust, seq: int | None = None) -> AuditVerification | None:
    """The last verification that found the log broken, at this entry if one is named, where none has looked again and found it whole."""
    row = AuditVerification
    whole = believed(session, trust, row.is_whole.is_(True))
    found = select(row).where(row.broken_seq.is_not(None), *([row.at > whole.at] if whole else []))
    if seq is not None:
        found = found.where(row.broken_seq == seq)
    for each in session.scalars(found.order_by(row.at.desc(), row.id.desc()).limit(MOST_LOOKED_AT)):
        if believed(session, trust, row.at > each.at, row.from_seq <= each.broken_seq, row.to_seq >= each.broken_seq) is None:
            return each
    return None


def believed(session: Session, trust: Trust, *conditions: ColumnElement[bool]) -> AuditVerification | None:
    """The newest verification, of those that these conditions name, that found its part whole and is signed."""
    query = select(AuditVerification).where(AuditVerification.broken_seq.is_(None), *conditions)
    rows = session.scalars(query.order_by(AuditVerification.at.desc(), AuditVerification.id.desc()).limit(MOST_LOOKED_AT))
    return next((row for row in rows if trust.is_signed(row.content(), row.key_id, row.signature)), None)
