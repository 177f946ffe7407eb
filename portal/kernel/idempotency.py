"""Idempotency keys: the same key with the same request gives the same resources, with another request it is refused."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import String
from sqlalchemy.orm import Mapped, mapped_column

from portal.kernel.context import Context
from portal.kernel.db import Base, JsonColumn, UtcDateTime, now
from portal.kernel.errors import Conflict

if TYPE_CHECKING:
    from portal.kernel.operations import Outcome


class IdempotencyKey(Base):
    """A key that a user has used, and what came of it."""

    __tablename__ = "idempotency_keys"

    user_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    fingerprint: Mapped[str] = mapped_column(String(64))
    type_key: Mapped[str] = mapped_column(String(64))
    resource_ids: Mapped[list[str]] = mapped_column(JsonColumn)
    job_ids: Mapped[list[str]] = mapped_column(JsonColumn)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now, index=True)


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What makes two requests the same."""

    action: str
    target: str
    data: Mapping[str, Any]

    def digest(self) -> str:
        """SHA-256 in hex."""
        return hashlib.sha256(json.dumps([self.action, self.target, self.data], sort_keys=True, default=str).encode()).hexdigest()


def replay(ctx: Context, fingerprint: Fingerprint) -> "Outcome | None":
    """What the same request gave before; None if the key is new or there is none. Raises Conflict if it was used otherwise."""
    from portal.kernel.operations import Outcome

    if not ctx.idempotency_key:
        return None
    found = ctx.db.get(IdempotencyKey, (ctx.principal.user_id or "", ctx.idempotency_key))
    if found is None:
        return None
    if found.fingerprint != fingerprint.digest():
        raise Conflict(
            "This Idempotency-Key was used for another request. Use a fresh key for each new request.",
            details={"idempotency_key": ctx.idempotency_key},
        )
    model = next(t.model for t in ctx.registry if t.key == found.type_key)
    rows = [row for rid in found.resource_ids if (row := ctx.db.get(model, rid)) is not None]
    return Outcome(rows, found.job_ids, replayed=True)


def remember(ctx: Context, fingerprint: Fingerprint, rows: Sequence[Any], job_ids: Sequence[str]) -> None:
    """Keep what the key gave, in the transaction that did it."""
    if ctx.idempotency_key:
        ctx.db.add(
            IdempotencyKey(
                user_id=ctx.principal.user_id or "", key=ctx.idempotency_key, fingerprint=fingerprint.digest(),
                type_key=fingerprint.action.rpartition(".")[0], resource_ids=[row.id for row in rows], job_ids=list(job_ids),
            )
        )  # fmt: skip
