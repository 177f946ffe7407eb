"""Quotas: reserved by a conditional UPDATE in the transaction that makes the row, released when the resource is really gone.

`reservations` remembers what each resource holds, so that giving back twice gives back once, and a recount is a sum.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import BigInteger, ForeignKey, String, delete, func, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Mapped, Session, mapped_column

from portal.kernel.db import Base
from portal.kernel.errors import QuotaExceeded

UNLIMITED = None


@dataclass(frozen=True, slots=True)
class Dimension:
    """Something that is limited per project."""

    name: str
    label: str
    unit: str
    default: int


DIMENSIONS = {
    d.name: d
    for d in (
        Dimension("instances", "Instances", "", 100),
        Dimension("cpus", "vCPU", "", 400),
        Dimension("memory_gb", "Memory", "GiB", 1600),
        Dimension("gpus", "GPUs", "", 8),
        Dimension("storage_gb", "Storage", "GiB", 10_000),
        Dimension("images", "Images", "", 50),
        Dimension("key_pairs", "Key pairs", "", 100),
        Dimension("iam_policies", "IAM policies", "", 200),
    )
}


class Quota(Base):
    """Limit and use of one dimension in one project; a dimension without a limit only counts."""

    __tablename__ = "quotas"

    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), primary_key=True)
    dimension: Mapped[str] = mapped_column(String(96), primary_key=True)
    limit: Mapped[int | None] = mapped_column("quota_limit", BigInteger)
    used: Mapped[int] = mapped_column(BigInteger, default=0)


class Reservation(Base):
    """What one resource holds of one dimension."""

    __tablename__ = "quota_reservations"

    resource_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    dimension: Mapped[str] = mapped_column(String(96), primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), index=True)
    amount: Mapped[int] = mapped_column(BigInteger)


def reserve(session: Session, project_id: str, resource_id: str, amounts: Mapping[str, int]) -> None:
    """Make the resource hold exactly `amounts`. Raises QuotaExceeded where that needs more than is left; taking less always succeeds."""
    # Sorted: two transactions that touch the same dimensions lock them in the same order.
    for dimension in sorted(amounts):
        held = session.get(Reservation, (resource_id, dimension))
        more = amounts[dimension] - (held.amount if held else 0)
        if more:
            _take(session, project_id, dimension, more)
        if held is None:
            session.add(Reservation(resource_id=resource_id, dimension=dimension, project_id=project_id, amount=amounts[dimension]))
        else:
            held.amount = amounts[dimension]


def release(session: Session, resource_id: str, *, dimensions: Sequence[str] | None = None) -> None:
    """Give back what the resource holds, of all dimensions or the named ones; nothing held is nothing done."""
    held = session.scalars(select(Reservation).where(Reservation.resource_id == resource_id).order_by(Reservation.dimension)).all()
    for row in held:
        if dimensions is None or row.dimension in dimensions:
            _take(session, row.project_id, row.dimension, -row.amount)
            session.execute(delete(Reservation).where(Reservation.resource_id == resource_id, Reservation.dimension == row.dimension))


def held_by(session: Session, resource_id: str) -> dict[str, int]:
    """Dimension → amount that a resource holds."""
    rows = session.execute(select(Reservation.dimension, Reservation.amount).where(Reservation.resource_id == resource_id))
    return {dimension: amount for dimension, amount in rows}  # noqa: C416 - rows are no tuples for the type checker


def _take(session: Session, project_id: str, dimension: str, amount: int) -> None:
    ensure(session, project_id, dimension)
    statement = update(Quota).where(Quota.project_id == project_id, Quota.dimension == dimension).values(used=Quota.used + amount)
    if amount > 0:
        statement = statement.where((Quota.limit.is_(None)) | (Quota.used + amount <= Quota.limit))
    if session.execute(statement.execution_options(synchronize_session=False)).rowcount:  # type: ignore[attr-defined] # an UPDATE has one
        return
    row = session.execute(select(Quota.limit, Quota.used).where(Quota.project_id == project_id, Quota.dimension == dimension)).one()
    raise QuotaExceeded(dimension, limit=row.limit or 0, used=row.used, requested=amount)


def ensure(session: Session, project_id: str, dimension: str) -> None:
    """Make the row of a dimension with its default limit unless it is there; two at once make one."""
    known = DIMENSIONS.get(dimension)
    insert = postgresql.insert if session.get_bind().dialect.name == "postgresql" else sqlite.insert
    values = {"project_id": project_id, "dimension": dimension, "quota_limit": known.default if known else UNLIMITED, "used": 0}
    session.execute(insert(Quota.__table__).values(values).on_conflict_do_nothing())  # type: ignore[arg-type]


def usage(session: Session, project_id: str) -> dict[str, tuple[int | None, int]]:
    """Dimension → (limit, used) of a project, defaults where nothing was ever used."""
    found = {d.name: (d.default, 0) for d in DIMENSIONS.values()}
    result: dict[str, tuple[int | None, int]] = dict(found)
    for row in session.execute(select(Quota.dimension, Quota.limit, Quota.used).where(Quota.project_id == project_id)):
        result[row.dimension] = (row.limit, row.used)
    return result


def count(session: Session, project_id: str, dimension: str) -> int:
    """How much of a dimension is in use."""
    return session.scalar(select(Quota.used).where(Quota.project_id == project_id, Quota.dimension == dimension)) or 0


def recount(session: Session) -> list[tuple[str, str, int, int]]:
    """Set `used` to the sum of reservations; gives (project, dimension, before, after) of whatever differed."""
    # Locked before they are summed: what is being reserved meanwhile comes after, in both figures.
    rows = session.scalars(
        select(Quota).order_by(Quota.project_id, Quota.dimension).with_for_update().execution_options(populate_existing=True)
    ).all()
    sums = {
        (project, dimension): total
        for project, dimension, total in session.execute(
            select(Reservation.project_id, Reservation.dimension, func.sum(Reservation.amount)).group_by(
                Reservation.project_id, Reservation.dimension
            )
        )
    }
    repaired = []
    for row in rows:
        actual = int(sums.get((row.project_id, row.dimension), 0))
        if actual != row.used:
            repaired.append((row.project_id, row.dimension, row.used, actual))
            row.used = actual
    return repaired
