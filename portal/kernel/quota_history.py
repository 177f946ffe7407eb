"""How much of each quota a project had in use at most, day by day: written by periodic work, read by pages and the API."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

from sqlalchemy import BigInteger, Date, ForeignKey, String, delete, func, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Mapped, Session, mapped_column

from portal.kernel.context import Context
from portal.kernel.db import Base, now, transaction
from portal.kernel.quota import DIMENSIONS, Quota

KEEP = timedelta(days=366)
SHOWN_DAYS = 90


class QuotaHistory(Base):
    """The peak of one dimension in one project on one day (UTC), and the limit at its end."""

    __tablename__ = "quota_history"

    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id", ondelete="CASCADE"), primary_key=True)
    dimension: Mapped[str] = mapped_column(String(96), primary_key=True)
    day: Mapped[date] = mapped_column(Date, primary_key=True, index=True)
    peak: Mapped[int] = mapped_column(BigInteger)
    limit: Mapped[int | None] = mapped_column("quota_limit", BigInteger)


@dataclass(frozen=True, slots=True)
class Day:
    """What was used at most on a day, and the limit at its end."""

    day: date
    peak: int
    limit: int | None


def write(session: Session, today: date) -> None:
    """Add to a day's peaks what was used since the last time, a project at a time; forget what is older than a year."""
    for project_id in session.scalars(select(Quota.project_id).distinct()).all():
        with transaction(session):
            rows = session.scalars(_counted(project_id).order_by(Quota.dimension).with_for_update().execution_options(populate_existing=True)).all()
            for row in rows:
                _add(session, row, today)
                row.peak = row.used
    with transaction(session):
        session.execute(delete(QuotaHistory).where(QuotaHistory.day < today - KEEP).execution_options(synchronize_session=False))


def _counted(project_id: str) -> Any:
    return select(Quota).where(Quota.project_id == project_id, Quota.dimension.in_(DIMENSIONS))


def _add(session: Session, row: Quota, today: date) -> None:
    on_postgresql = session.get_bind().dialect.name == "postgresql"
    insert: Callable[..., Any] = postgresql.insert if on_postgresql else sqlite.insert
    greatest = func.greatest if on_postgresql else func.max
    new = insert(QuotaHistory.__table__).values(
        project_id=row.project_id, dimension=row.dimension, day=today, peak=max(row.peak, row.used), quota_limit=row.limit
    )
    key = ("project_id", "dimension", "day")
    peak = greatest(QuotaHistory.peak, new.excluded.peak)
    session.execute(new.on_conflict_do_update(index_elements=key, set_={"peak": peak, "quota_limit": new.excluded.quota_limit}))


def history(ctx: Context, project_id: str, *, days: int = SHOWN_DAYS) -> Mapping[str, Sequence[Day]]:
    """Dimension → its days, oldest first, up to this moment; the caller has decided that the reader may."""
    today = now().date()
    query = select(QuotaHistory).where(QuotaHistory.project_id == project_id, QuotaHistory.day > today - timedelta(days=days))
    found: dict[str, dict[date, Day]] = {}
    for row in ctx.db.scalars(query.order_by(QuotaHistory.day).execution_options(populate_existing=True)):
        found.setdefault(row.dimension, {})[row.day] = Day(row.day, row.peak, row.limit)
    for now_used in ctx.db.scalars(_counted(project_id).execution_options(populate_existing=True)):
        past = found.setdefault(now_used.dimension, {})
        so_far = past[today].peak if today in past else 0
        past[today] = Day(today, max(so_far, now_used.peak, now_used.used), now_used.limit)
    return {dimension: list(past.values()) for dimension, past in found.items()}
