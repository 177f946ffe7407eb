"""The highest use of each quota on each day (UTC): a row for each quota and day on which it was looked at."""

from datetime import date

from sqlalchemy import BigInteger, Date, ForeignKey, String, case
from sqlalchemy.orm import Mapped, Session, mapped_column

from portal.kernel.db import Base, insert_of


class QuotaHistory(Base):
    """The peak of one dimension in one project on one day (UTC), and the limit at its end."""

    __tablename__ = "quota_history"

    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id", ondelete="CASCADE"), primary_key=True)
    dimension: Mapped[str] = mapped_column(String(96), primary_key=True)
    day: Mapped[date] = mapped_column(Date, primary_key=True, index=True)
    peak: Mapped[int] = mapped_column(BigInteger)
    limit: Mapped[int | None] = mapped_column("quota_limit", BigInteger)


def keep_peak(session: Session, project_id: str, dimension: str, day: date, *, peak: int, limit: int | None) -> None:
    """Write down what was in use at most on a day, unless more is known of it already, within the caller's transaction."""
    new = insert_of(session)(QuotaHistory.__table__).values(project_id=project_id, dimension=dimension, day=day, peak=peak, quota_limit=limit)
    higher = case((new.excluded.peak > QuotaHistory.peak, new.excluded.peak), else_=QuotaHistory.peak)
    key = ("project_id", "dimension", "day")
    session.execute(new.on_conflict_do_update(index_elements=key, set_={"peak": higher, "quota_limit": new.excluded.quota_limit}))
