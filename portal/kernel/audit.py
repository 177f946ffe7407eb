"""The audit log: append-only, every entry carries the hash of the one before it.

An entry is written in the transaction of the change it tells of; if it cannot be written, the change does not happen. The head of the chain is
locked last, so that it is the shortest lock of every transaction.
"""

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import BigInteger, Dialect, Index, String, Text, select
from sqlalchemy.dialects import sqlite
from sqlalchemy.orm import Mapped, mapped_column

from portal.kernel.context import Context
from portal.kernel.db import Base, JsonColumn, UtcDateTime, now
from portal.kernel.ids import new_id, storable

GENESIS = "0" * 64
SECRET_FIELDS = (
    "password", "passphrase", "secret", "private_key", "api_key", "token", "user_data", "recovery", "authorization", "cookie",
)  # fmt: skip

HIDDEN = "********"
# An address: who signs in there, the path, its parameters, and what follows.
ADDRESS = re.compile(r"://([^\s/?#]*@)?([^\s?#]*)(\?[^\s#]*)?(#\S*)?")


class CanonicalJson(sqlite.JSON):
    """JSON as it is hashed: what SQLite keeps as text need not be parsed to be verified."""

    def bind_processor(self, dialect: Dialect) -> Callable[[object], str]:
        """Keys sorted, no spaces."""
        del dialect
        return canonical


def canonical(value: object) -> str:
    """JSON of which there is one way to write it: the text that is hashed."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


class AuditHead(Base):
    """The newest entry's number and hash; one row, which also serialises the chain."""

    __tablename__ = "audit_head"

    id: Mapped[int] = mapped_column(primary_key=True)
    seq: Mapped[int] = mapped_column(BigInteger, default=0)
    hash: Mapped[str] = mapped_column(String(64), default=GENESIS)


class AuditEntry(Base):
    """Who did what to what, from where, with which outcome."""

    __tablename__ = "audit_entries"

    seq: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    log_id: Mapped[str] = mapped_column(String(64), unique=True)
    timestamp: Mapped[datetime] = mapped_column(UtcDateTime)
    user_id: Mapped[str | None] = mapped_column(String(64))
    username: Mapped[str] = mapped_column(String(255))
    credential: Mapped[str] = mapped_column(String(96))
    action: Mapped[str] = mapped_column(String(128))
    resource_type: Mapped[str] = mapped_column(String(64))
    resource_id: Mapped[str] = mapped_column(String(64))
    resource_name: Mapped[str] = mapped_column(String(255))
    project_id: Mapped[str | None] = mapped_column(String(64))
    status: Mapped[str] = mapped_column(String(16))
    error_message: Mapped[str] = mapped_column(Text)
    details: Mapped[dict[str, object]] = mapped_column(JsonColumn.with_variant(CanonicalJson(), "sqlite"))
    source: Mapped[str] = mapped_column(String(16))
    source_ip: Mapped[str] = mapped_column(String(64))
    user_agent: Mapped[str] = mapped_column(String(255))
    request_id: Mapped[str] = mapped_column(String(64))
    previous_hash: Mapped[str] = mapped_column(String(64))
    entry_hash: Mapped[str] = mapped_column(String(64))

    __table_args__ = (
        # Each filter of the log walks along an index of its own, newest first.
        *(Index(f"ix_audit_entries_{name}", column, "seq") for name, column in (
            ("user", "user_id"), ("username", "username"), ("credential", "credential"), ("action", "action"), ("type", "resource_type"),
            ("resource", "resource_id"), ("name", "resource_name"), ("project", "project_id"), ("status", "status"), ("address", "source_ip"),
            ("request", "request_id"), ("time", "timestamp"),
        )),
        # What somebody ever did in a project, newest first.
        Index("ix_audit_entries_done", "user_id", "action", "status", "project_id", "seq"),
    )  # fmt: skip


# Everything that an entry has; what is hashed of it as it is, the moment aside.
FIELDS = tuple(column.key for column in AuditEntry.__table__.columns)
HASHED = tuple(name for name in FIELDS if name not in {"entry_hash", "timestamp"})


@dataclass(frozen=True, slots=True)
class Subject:
    """What an entry is about."""

    type_key: str
    id: str = ""
    name: str = ""
    project_id: str | None = None


def record(
    ctx: Context, action: str, subject: Subject, *, status: str = "success", error: str = "", details: Mapping[str, object] | None = None
) -> AuditEntry:
    """Append an entry within the caller's transaction; `status` is success, failure or denied. Secrets in `details` are masked."""
    head = ctx.db.scalars(select(AuditHead).where(AuditHead.id == 1).with_for_update().execution_options(populate_existing=True)).one()
    entry = AuditEntry(
        seq=head.seq + 1, log_id=new_id("audit"), timestamp=now(), user_id=ctx.principal.user_id, username=ctx.principal.username,
        credential=ctx.principal.credential, action=action, resource_type=subject.type_key, resource_id=storable(subject.id)[:64],
        resource_name=storable(subject.name)[:255],
        project_id=subject.project_id, status=status, error_message=_without_keys(storable(error[:2000])), details=masked({**(details or {}), **_role_of(ctx)}),
        source=ctx.source,
        source_ip=ctx.source_ip, user_agent=storable(ctx.user_agent[:255]), request_id=ctx.request_id, previous_hash=head.hash,
    )  # fmt: skip
    entry.entry_hash = digest(entry)
    head.seq, head.hash = entry.seq, entry.entry_hash
    ctx.db.add(entry)
    ctx.db.flush()
    return entry


def _role_of(ctx: Context) -> dict[str, object]:
    """The role that somebody acts in, with the name of its session."""
    role = ctx.principal.assumed
    return {} if role is None else {"assumed_role": {"role_id": role.role_id, "name": role.role_name, "session_name": role.session_name}}


def masked(details: Mapping[str, object]) -> dict[str, object]:
    """A copy fit for the log: values of secret fields and what addresses are signed with are replaced, at any depth, and everything is plain JSON."""
    plain: dict[str, object] = json.loads(json.dumps(details, default=str))
    return {storable(key): _masked(key, value) for key, value in plain.items()}


def _masked(key: str, value: object) -> object:
    if any(word in key.lower() for word in SECRET_FIELDS) and value not in (None, "", False, True):
        return HIDDEN
    if isinstance(value, dict):
        return {storable(inner): _masked(inner, item) for inner, item in value.items()}
    if isinstance(value, list):
        return [_masked(key, item) for item in value]
    return _without_keys(storable(value)) if isinstance(value, str) else _number(value) if isinstance(value, float) else value


def _without_keys(text: str) -> str:
    """A text in which addresses keep host, path and names of parameters: values of parameters may be signatures or tokens."""
    return ADDRESS.sub(_address, text)


def _address(found: re.Match[str]) -> str:
    user, where, parameters, rest = found.groups("")
    names = "&".join(f"{name}={HIDDEN}" if is_named else HIDDEN for name, is_named, _ in (each.partition("=") for each in parameters[1:].split("&")))
    return f"://{HIDDEN + '@' if user else ''}{where}{'?' + names if parameters else ''}{'#' + HIDDEN if rest else ''}"


def _number(value: float) -> object:
    """A number that every database gives back as it was given: PostgreSQL has no -0.0 and no 1e16, and neither database has infinity."""
    if not math.isfinite(value):
        return str(value)
    return int(value) if value.is_integer() else value


def digest(entry: AuditEntry) -> str:
    """SHA-256 over the previous hash and every field of the entry, as canonical JSON."""
    content = plain(entry)
    del content["entry_hash"]
    return hashlib.sha256(canonical(content).encode("utf-8", "surrogatepass")).hexdigest()


def plain(entry: AuditEntry) -> dict[str, object]:
    """An entry as plain values, moments in ISO 8601."""
    return {name: entry.timestamp.isoformat() if name == "timestamp" else getattr(entry, name) for name in FIELDS}
