"""Alerts: what a user should know without looking for it. Each belongs to one user, who reads and dismisses it; nobody else sees it."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ForeignKey, Index, ScalarSelect, String, Text, delete, func, select, update
from sqlalchemy.orm import Mapped, mapped_column

from portal.kernel.context import Context
from portal.kernel.db import Base, UtcDateTime, now, transaction
from portal.kernel.errors import Forbidden, NotFound
from portal.kernel.ids import new_id, storable

SEVERITIES = ("info", "warning", "critical")
MAX_SHOWN = 200


class Alert(Base):
    """Something that a user is told; `url` is where in the console it leads, or empty."""

    __tablename__ = "alerts"

    id: Mapped[str] = mapped_column(String(64), primary_key=True, default=lambda: new_id("alert"))
    user_id: Mapped[str] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    title: Mapped[str] = mapped_column(String(255))
    message: Mapped[str] = mapped_column(Text, default="")
    severity: Mapped[str] = mapped_column(String(16), default="info")
    resource_type: Mapped[str] = mapped_column(String(64), default="")
    resource_id: Mapped[str] = mapped_column(String(64), default="")
    url: Mapped[str] = mapped_column(String(255), default="")
    is_read: Mapped[bool] = mapped_column(default=False)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now, index=True)

    __table_args__ = (Index("ix_alerts_user", "user_id", "created_at", "id"),)


@dataclass(frozen=True, slots=True)
class Notice:
    """What an alert says and what it is about."""

    title: str
    message: str = ""
    severity: str = "info"
    resource_type: str = ""
    resource_id: str = ""
    url: str = ""


def alert(ctx: Context, user_id: str, notice: Notice) -> None:
    """Tell a user something within the caller's transaction."""
    ctx.db.add(
        Alert(
            user_id=user_id, title=notice.title[:255], message=notice.message, severity=notice.severity, resource_type=notice.resource_type,
            resource_id=notice.resource_id, url=notice.url,
        )
    )  # fmt: skip


def alerts(ctx: Context, *, severity: str = "", is_read: bool | None = None) -> Sequence[Alert]:
    """The caller's own, newest first; those beyond the newest 200 are not shown."""
    query = select(Alert).where(Alert.user_id == _me(ctx))
    if severity:
        query = query.where(Alert.severity == severity)
    if is_read is not None:
        query = query.where(Alert.is_read.is_(is_read))
    return ctx.db.scalars(query.order_by(Alert.created_at.desc(), Alert.id.desc()).limit(MAX_SHOWN)).all()


def unread(ctx: Context) -> ScalarSelect[int]:
    """How many the caller has not read, counted up to the number that is shown: a part of a query."""
    some = select(Alert.id).where(Alert.user_id == ctx.principal.user_id, Alert.is_read.is_(False)).limit(MAX_SHOWN)
    return select(func.count()).select_from(some.subquery()).scalar_subquery()


# Reading and dismissing concern nobody but the user, so they are not audited.


def alert_read(ctx: Context, alert_id: str) -> Alert:
    """Mark one as read; once more does nothing. Raises NotFound for one that is not the caller's."""
    with transaction(ctx.db):
        row = ctx.db.scalars(select(Alert).where(Alert.id == storable(alert_id), Alert.user_id == _me(ctx)).with_for_update()).first()
        if row is None:
            raise NotFound(f"You have no alert {alert_id[:80]}.")
        row.is_read = True
    return row


def alert_read_all(ctx: Context) -> int:
    """Mark all of the caller's as read; how many were not."""
    with transaction(ctx.db):
        mine = update(Alert).where(Alert.user_id == _me(ctx), Alert.is_read.is_(False)).values(is_read=True)
        return len(ctx.db.execute(mine.returning(Alert.id).execution_options(synchronize_session=False)).all())


def alert_dismiss(ctx: Context, alert_id: str) -> None:
    """Remove one. Raises NotFound for one that is not the caller's."""
    with transaction(ctx.db):
        mine = delete(Alert).where(Alert.id == storable(alert_id), Alert.user_id == _me(ctx))
        if ctx.db.execute(mine.returning(Alert.id).execution_options(synchronize_session=False)).first() is None:
            raise NotFound(f"You have no alert {alert_id[:80]}.")


def _me(ctx: Context) -> str:
    if ctx.principal.user_id is None or ctx.principal.is_restricted:
        raise Forbidden("Alerts are for their user alone: sign in, or use a token that is not restricted to scopes.")
    return ctx.principal.user_id
