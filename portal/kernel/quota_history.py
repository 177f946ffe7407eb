"""How much of each quota a project had in use at most, day by day: written by periodic work, read by pages and the API."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from portal.kernel.context import Context
from portal.kernel.db import by_codepoint, now, transaction
from portal.kernel.quota import DIMENSIONS, Quota, close_day
from portal.kernel.quota_days import QuotaHistory, keep_peak

KEEP = timedelta(days=366)
SHOWN_DAYS = 90


@dataclass(frozen=True, slots=True)
class Day:
    """What was used at most on a day, and the limit at its end."""

    day: date
    peak: int
    limit: int | None


def write(session: Session) -> None:
    """Add the peaks so far to their days, a project at a time; forget what is older than a year."""
    today = now().date()
    for project_id in session.scalars(select(Quota.project_id).distinct()).all():
        with transaction(session):
            query = _counted(project_id).order_by(by_codepoint(session, Quota.dimension)).with_for_update()
            for row in session.scalars(query.execution_options(populate_existing=True)).all():
                close_day(session, row, today)
                keep_peak(session, project_id, row.dimension, today, peak=max(row.peak, row.used), limit=row.limit)
    with transaction(session):
        session.execute(delete(QuotaHistory).where(QuotaHistory.day < today - KEEP).execution_options(synchronize_session=False))


def _counted(project_id: str) -> Any:
    return select(Quota).where(Quota.project_id == project_id, Quota.dimension.in_(DIMENSIONS))


def history(ctx: Context, project_id: str, *, days: int = SHOWN_DAYS) -> Mapping[str, Sequence[Day]]:
    """Dimension → its days, oldest first, up to this moment; the caller has decided that the reader may."""
    today = now().date()
    before = today - timedelta(days=days)
    query = select(QuotaHistory).where(QuotaHistory.project_id == project_id, QuotaHistory.day > before)
    found: dict[str, dict[date, Day]] = {}
    for row in ctx.db.scalars(query.order_by(QuotaHistory.day).execution_options(populate_existing=True)):
        found.setdefault(row.dimension, {})[row.day] = Day(row.day, row.peak, row.limit)
    for row in ctx.db.scalars(_counted(project_id).execution_options(populate_existing=True)):
        past = found.setdefault(row.dimension, {})
        # The peak is that of the day on which the use last changed; it has been the same since.
        for day, peak in ((row.peak_day or today, row.peak), (today, row.used)):
            if day > before:
                past[day] = Day(day, max(peak, past[day].peak if day in past else 0), row.limit)
    return {dimension: [past[day] for day in sorted(past)] for dimension, past in found.items()}
