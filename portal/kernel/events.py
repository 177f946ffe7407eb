"""The outbox: what happened, written in the transaction in which it happened, read by live pages, the event feed and webhooks."""

from collections.abc import Mapping
from datetime import datetime

from sqlalchemy import BigInteger, Index, Integer, String
from sqlalchemy.orm import Mapped, mapped_column

from portal.kernel.audit import masked
from portal.kernel.context import Context
from portal.kernel.db import Base, JsonColumn, UtcDateTime, now


class Event(Base):
    """Something that happened to a resource."""

    __tablename__ = "events"

    id: Mapped[int] = mapped_column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True)
    at: Mapped[datetime] = mapped_column(UtcDateTime, default=now, index=True)
    type: Mapped[str] = mapped_column(String(96))
    project_id: Mapped[str | None] = mapped_column(String(64))
    resource_id: Mapped[str] = mapped_column(String(64))
    resource_name: Mapped[str] = mapped_column(String(255))
    actor: Mapped[str] = mapped_column(String(255))
    payload: Mapped[dict[str, object]] = mapped_column(JsonColumn)

    __table_args__ = (Index("ix_events_resource", "resource_id", "id"), Index("ix_events_project", "project_id", "id"))


def emit(
    ctx: Context, event_type: str, *, resource_id: str, name: str = "", project_id: str | None = None, payload: Mapping[str, object] | None = None
) -> None:
    """Write an event such as `compute.instance.running` within the caller's transaction."""
    ctx.db.add(
        Event(
            type=event_type,
            resource_id=resource_id,
            resource_name=name,
            project_id=project_id,
            actor=ctx.principal.username,
            payload=masked(payload or {}),
        )
    )
