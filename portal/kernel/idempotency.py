"""Idempotency keys: the same key with the same request gives the same resources, with another request it is refused."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import String, select
from sqlalchemy.orm import Mapped, mapped_column

from portal.kernel.authz import reach
from portal.kernel.context import Context
from portal.kernel.db import Base, JsonColumn, UtcDateTime, insert_of, now
from portal.kernel.declare import Outcome
from portal.kernel.errors import Conflict, NotFound


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
    project_id: str | None
    target: str
    data: Mapping[str, Any]

    def digest(self) -> str:
        """SHA-256 in hex."""
        return hashlib.sha256(json.dumps([self.action, self.project_id, self.target, self.data], sort_keys=True, default=str).encode()).hexdigest()


def replay(ctx: Context, fingerprint: Fingerprint) -> Outcome | None:
    """What the same request gave before; None if the key is new or there is none. Raises Conflict if it was used otherwise."""
    found = _claimed_before(ctx, fingerprint)
    if found is None:
        return None
    rtype = next(t for t in ctx.registry if t.key == found.type_key)
    visible = select(rtype.model).where(rtype.model.id.in_(found.resource_ids), reach(ctx, f"{rtype.key}.read").rows(rtype.model))
    made = {row.id: row for row in ctx.db.scalars(visible.options(*rtype.eager()).execution_options(populate_existing=True))}
    rows = [made[rid] for rid in found.resource_ids if rid in made]
    if not rows:
        raise NotFound("What this Idempotency-Key gave is not here any more.")
    # A change concerns one row; what else was kept is the part that it made.
    part = next(iter(found.resource_ids[1:]), "") if fingerprint.target else ""
    return Outcome(rows, found.job_ids, replayed=True, part=part)


def _claimed_before(ctx: Context, fingerprint: Fingerprint) -> IdempotencyKey | None:
    """What an earlier request kept under the key; None where there is no key, or it is this request's now. Raises Conflict if it was used otherwise."""
    if not ctx.idempotency_key:
        return None
    mine = (ctx.principal.user_id or "", ctx.idempotency_key)
    claim = {
        "user_id": mine[0], "key": mine[1], "fingerprint": fingerprint.digest(), "type_key": fingerprint.action.rpartition(".")[0],
        "resource_ids": [], "job_ids": [], "created_at": now(),
    }  # fmt: skip
    # Claimed before anything else is done: the same request at the same time waits here until the first has ended.
    claimed = insert_of(ctx.db)(IdempotencyKey).values(claim).on_conflict_do_nothing().returning(IdempotencyKey.key)
    if ctx.db.scalar(claimed) is not None:
        return None
    found = ctx.db.get_one(IdempotencyKey, mine, populate_existing=True)
    if found.fingerprint != fingerprint.digest():
        raise Conflict(
            "This Idempotency-Key was used for another request. Use a fresh key for each new request.",
            details={"idempotency_key": ctx.idempotency_key},
        )
    return found


def refuse_repeat(ctx: Context, fingerprint: Fingerprint) -> None:
    """Refuse what the key gave already, where that held a secret which was shown then and is kept nowhere. Raises Conflict."""
    found = _claimed_before(ctx, fingerprint)
    if found is not None:
        made = ", ".join(found.resource_ids)
        raise Conflict(
            f"This request was done before under its Idempotency-Key: it concerned {made}. The secret was shown then and is kept nowhere. "
            "Use it, or ask for a new one under a fresh Idempotency-Key.",
            details={"idempotency_key": ctx.idempotency_key, "made": made},
        )


def remember_secret(ctx: Context, row_id: str) -> None:
    """Keep what a secret was given for, in the transaction that claimed the key; the secret itself is not kept."""
    if ctx.idempotency_key:
        ctx.db.get_one(IdempotencyKey, (ctx.principal.user_id or "", ctx.idempotency_key), populate_existing=True).resource_ids = [row_id]


def remember(ctx: Context, outcome: Outcome) -> None:
    """Keep what the key gave, in the transaction that claimed it."""
    if ctx.idempotency_key:
        claimed = ctx.db.get_one(IdempotencyKey, (ctx.principal.user_id or "", ctx.idempotency_key), populate_existing=True)
        claimed.resource_ids = [*(row.id for row in outcome.rows), *filter(None, [outcome.part])]
        claimed.job_ids = list(outcome.jobs)
