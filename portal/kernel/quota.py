"""Quotas: reserved by a conditional UPDATE in the transaction that makes the row, released when the resource is really gone.

A resource is charged to its project, and to its owner across projects. `reservations` remembers what each resource holds and who was charged, so
that giving back twice gives back once, and a recount is a sum. Lock order: the users who are charged or told, rows of projects, then rows of users,
each sorted by holder and dimension.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, NamedTuple

from sqlalchemy import BigInteger, Date, ForeignKey, Index, String, case, delete, func, select, text, update
from sqlalchemy.orm import Mapped, Session, mapped_column, synonym

from portal.kernel import events
from portal.kernel.alerts import Notice, alert
from portal.kernel.context import Context
from portal.kernel.db import Base, by_codepoint, insert_of, now
from portal.kernel.errors import QuotaExceeded
from portal.kernel.quota_days import keep_peak
from portal.kernel.tables import lock_users

UNLIMITED = None
WARNING_THRESHOLD = 80
PENDING = text("pending > 0")


@dataclass(frozen=True, slots=True)
class Dimension:
    """Something that is limited per project, and for a user where an administrator says so; `default` is a project's.

    With `counted` it is limited for users alone, each of whom begins with `default`: what they have is counted when it is asked for.
    """

    name: str
    label: str
    unit: str
    default: int
    counted: Callable[[Session, str], int] | None = None


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
        Dimension("networks", "VPCs", "", 10),
        Dimension("subnets", "Subnets", "", 200),
        Dimension("security_groups", "Security groups", "", 200),
        Dimension("elastic_ips", "Elastic IPs", "", 20),
        Dimension("nat_gateways", "NAT gateways", "", 10),
        Dimension("network_interfaces", "Network interfaces", "", 500),
        Dimension("iam_policies", "IAM policies", "", 200),
        Dimension("buckets", "Buckets", "", 50),
        Dimension("object_gb", "Objects", "GiB", 1000),
    )
}

# What users have outside of projects, declared by whoever keeps it.
USER_DIMENSIONS: dict[str, Dimension] = {}


def declare(dimension: Dimension) -> Dimension:
    """Add a dimension; a type of resources that has one of its own does so beside its model."""
    if dimension.name in DIMENSIONS or dimension.name in USER_DIMENSIONS:
        msg = f"quota {dimension.name} is declared twice"
        raise TypeError(msg)
    (DIMENSIONS if dimension.counted is None else USER_DIMENSIONS)[dimension.name] = dimension
    return dimension


class Counted:
    """Limit and use of one dimension; without a limit it only counts. Mixin."""

    dimension: Mapped[str] = mapped_column(String(96), primary_key=True)
    limit: Mapped[int | None] = mapped_column("quota_limit", BigInteger)
    used: Mapped[int] = mapped_column(BigInteger, default=0)
    # Percent of the limit at which somebody is told.
    warning_threshold: Mapped[int] = mapped_column(default=WARNING_THRESHOLD, server_default=str(WARNING_THRESHOLD))


class Quota(Counted, Base):
    """What a project may use and uses."""

    __tablename__ = "quotas"

    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), primary_key=True, sort_order=-1)
    holder: Mapped[str] = synonym("project_id")
    # The most that was in use on a day (UTC): the last one on which the use changed or the history was written.
    peak: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")
    peak_day: Mapped[date | None] = mapped_column(Date)


class UserQuota(Counted, Base):
    """What a user may own and owns, in all projects together."""

    __tablename__ = "user_quotas"

    user_id: Mapped[str] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), primary_key=True, sort_order=-1)
    holder: Mapped[str] = synonym("user_id")


class Reservation(Base):
    """What one resource holds of one dimension; `pending` is the part of it that is for work not finished yet."""

    __tablename__ = "quota_reservations"

    resource_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    dimension: Mapped[str] = mapped_column(String(96), primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), index=True)
    owner_id: Mapped[str | None] = mapped_column(String(64), index=True)
    amount: Mapped[int] = mapped_column(BigInteger)
    pending: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")

    __table_args__ = (
        # Few rows of many: what is being made right now.
        Index("ix_quota_reservations_pending", "project_id", "dimension", sqlite_where=PENDING, postgresql_where=PENDING),
    )


@dataclass(frozen=True, slots=True)
class Crossing:
    """A limit that came near (`warning`) or was reached (`exhausted`); of a user where `user_id` says whose, else of the project."""

    kind: str
    dimension: str
    limit: int
    used: int
    user_id: str | None = None


class Repair(NamedTuple):
    """A quota whose use was counted wrongly: whose, which, what it said and what it says now."""

    holder: str
    dimension: str
    before: int
    after: int


Charges = dict[tuple[str, str], int]


def hold(ctx: Context, row: Any, amounts: Mapping[str, int], *, settled: bool) -> None:
    """Reserve for a row's project and owner, and tell who comes near a limit. Unless `settled`, what is new is for work that is not done yet."""
    hold_all(ctx, [(row, amounts, settled)])


def hold_all(ctx: Context, held: Sequence[tuple[Any, Mapping[str, int], bool]]) -> None:
    """Reserve for several rows at once: in the order in which everybody locks, whatever the order of the rows. The first one's project is told."""
    project_id = held[0][0].project_of() if held else None
    if project_id is None:
        return
    lock_users(ctx.db, *(row.owner_id for row, _, _ in held), ctx.principal.user_id)
    projects: Charges = {}
    users: Charges = {}
    for row, amounts, settled in held:
        _note(ctx.db, (projects, users), row.project_of(), row.id, amounts, owner_id=row.owner_id, settled=settled)
    tell(ctx, project_id, _take_all(ctx.db, projects, users))


def reserve(
    session: Session, project_id: str, resource_id: str, amounts: Mapping[str, int], *, owner_id: str | None = None, settled: bool = True
) -> list[Crossing]:
    """Make the resource hold exactly `amounts`. Raises QuotaExceeded where that needs more than is left; taking less always succeeds."""
    projects: Charges = {}
    users: Charges = {}
    _note(session, (projects, users), project_id, resource_id, amounts, owner_id=owner_id, settled=settled)
    return _take_all(session, projects, users)


def _note(
    session: Session,
    charges: tuple[Charges, Charges],
    project_id: str,
    resource_id: str,
    amounts: Mapping[str, int],
    *,
    owner_id: str | None,
    settled: bool,
) -> None:
    """Write what a resource holds, and add what that costs to what its project and its owner are to be charged."""
    projects, users = charges
    for dimension, amount in amounts.items():
        held = session.get(Reservation, (resource_id, dimension))
        if held is None:
            held = Reservation(resource_id=resource_id, dimension=dimension, project_id=project_id, owner_id=owner_id, amount=0, pending=0)
            session.add(held)
        _charge(projects, project_id, dimension, amount - held.amount)
        if dimension in DIMENSIONS:
            # Whoever was charged gets it back: a resource may have been given to somebody else meanwhile.
            _charge(users, held.owner_id, dimension, -held.amount)
            _charge(users, owner_id, dimension, amount)
            held.pending = 0 if settled else max(0, amount - (held.amount - held.pending))
        held.amount, held.owner_id = amount, owner_id


def release(session: Session, *resource_ids: str, dimensions: Sequence[str] | None = None) -> None:
    """Give back what resources hold, of all dimensions or the named ones; nothing held is nothing done."""
    gone = delete(Reservation).where(Reservation.resource_id.in_(resource_ids))
    if dimensions is not None:
        gone = gone.where(Reservation.dimension.in_(dimensions))
    projects: Charges = {}
    users: Charges = {}
    # Whoever deletes the row gives back what it held, nobody else.
    for row in session.execute(gone.returning(Reservation.project_id, Reservation.owner_id, Reservation.dimension, Reservation.amount)):
        _charge(projects, row.project_id, row.dimension, -row.amount)
        if row.dimension in DIMENSIONS:
            _charge(users, row.owner_id, row.dimension, -row.amount)
    _take_all(session, projects, users)


def hand_over(session: Session, user_id: str, heir_id: str | None) -> None:
    """Charge an heir, or nobody, for what a user owned, within the caller's transaction. Raises QuotaExceeded where the heir may not own that much."""
    users: Charges = {}
    lock_users(session, heir_id)
    moved = update(Reservation).where(Reservation.owner_id == user_id).values(owner_id=heir_id).returning(Reservation.dimension, Reservation.amount)
    for row in session.execute(moved.execution_options(synchronize_session=False)):
        if row.dimension in DIMENSIONS:
            _charge(users, user_id, row.dimension, -row.amount)
            _charge(users, heir_id, row.dimension, row.amount)
    _take_all(session, {}, users)


def _charge(charges: Charges, holder: str | None, dimension: str, amount: int) -> None:
    if holder is not None:
        charges[holder, dimension] = charges.get((holder, dimension), 0) + amount


def _take_all(session: Session, projects: Charges, users: Charges) -> list[Crossing]:
    """All of it or an exception. Sorted: transactions that touch the same rows lock them in the same order, projects before users."""
    crossed: list[Crossing] = []
    for model, charges in ((Quota, projects), (UserQuota, users)):
        for (holder, dimension), amount in sorted(charges.items()):
            if amount:
                crossed += _take(session, model, holder, dimension, amount)
    return crossed


def _take(session: Session, model: type[Quota | UserQuota], holder: str, dimension: str, amount: int) -> list[Crossing]:
    user_id, today = holder if model is UserQuota else None, now().date()
    mine = (model.holder == holder, model.dimension == dimension)
    values: dict[str, Any] = {"used": model.used + amount}
    statement = update(model).where(*mine)
    if model is Quota:
        statement = statement.where(Quota.peak_day == today)
    if amount > 0:
        statement = statement.where((model.limit.is_(None)) | (model.used + amount <= model.limit))
        if model is Quota:
            values["peak"] = case((Quota.used + amount > Quota.peak, Quota.used + amount), else_=Quota.peak)
    statement = statement.values(values).execution_options(synchronize_session=False)
    take = statement.returning(model.limit, model.used, model.warning_threshold)
    row = session.execute(take).first()
    if row is None:
        _ensure(session, model, holder, dimension)
        if model is Quota:
            _begin_day(session, holder, dimension, today)
        row = session.execute(take).first()
    if row is None:
        full = session.execute(select(model.limit, model.used).where(*mine)).one()
        raise QuotaExceeded(dimension, limit=full.limit or 0, used=full.used, requested=amount, of_user=user_id is not None)
    before = level(row.limit, row.used - amount, row.warning_threshold)
    return crossed(dimension, row.limit, row.used, row.warning_threshold, before=before, user_id=user_id)


def _begin_day(session: Session, project_id: str, dimension: str, today: date) -> None:
    query = select(Quota).where(Quota.project_id == project_id, Quota.dimension == dimension)
    close_day(session, session.scalars(query.with_for_update().execution_options(populate_existing=True)).one(), today)


def close_day(session: Session, row: Quota, today: date) -> None:
    """Write down the peak of an earlier day, if that is what a locked row has; the peak is today's from now on."""
    if row.peak_day == today:
        return
    if row.peak_day is not None and row.dimension in DIMENSIONS:
        keep_peak(session, row.project_id, row.dimension, row.peak_day, peak=row.peak, limit=row.limit)
    row.peak, row.peak_day = row.used if row.peak_day is not None else max(row.peak, row.used), today
    session.flush()


def level(limit: int | None, used: int, threshold: int) -> int:
    """0 where there is room, 1 from the threshold on, 2 where nothing is left."""
    if limit is None or not used:
        return 0
    return 2 if used >= limit else int(used * 100 >= limit * threshold)


def crossed(dimension: str, limit: int | None, used: int, threshold: int, *, before: int, user_id: str | None = None) -> list[Crossing]:
    """What was crossed upwards since the level was as `before`."""
    kinds = ("warning", "exhausted")[before : level(limit, used, threshold)]
    return [Crossing(kind, dimension, limit or 0, used, user_id) for kind in kinds]


def tell(ctx: Context, project_id: str, crossings: Sequence[Crossing]) -> None:
    """Write an event for each within the caller's transaction. What a user owns across projects is no affair of one of them."""
    for each in crossings:
        label, about = DIMENSIONS[each.dimension].label, "your own limit" if each.user_id else "the project's quota"
        payload = {"dimension": each.dimension, "limit": each.limit, "used": each.used}
        events.emit(
            ctx, f"core.quota.{each.kind}", resource_id=each.user_id or project_id, name=each.dimension, project_id=None if each.user_id else project_id,
            payload=payload,
        )  # fmt: skip
        # Whose limit it is, else whoever brought the project there.
        if (user_id := each.user_id or ctx.principal.user_id) is not None:
            is_full = each.kind == "exhausted"
            title = f"{label}: {about} is {'used up' if is_full else 'nearly used up'}"
            alert(
                ctx, user_id,
                Notice(title, f"{each.used:,} of {each.limit:,} used.", "critical" if is_full else "warning", "core.quota", each.dimension, "/quotas"),
            )  # fmt: skip


def held_by(session: Session, resource_id: str) -> dict[str, int]:
    """Dimension → amount that a resource holds."""
    rows = session.execute(select(Reservation.dimension, Reservation.amount).where(Reservation.resource_id == resource_id))
    return {dimension: amount for dimension, amount in rows}  # noqa: C416 - rows are no tuples for the type checker


def reserved(session: Session, project_id: str) -> dict[str, int]:
    """Dimension → how much of a project's use is for work that is not finished yet: resources being made, changes that need more."""
    query = select(Reservation.dimension, func.sum(Reservation.pending)).where(Reservation.project_id == project_id, PENDING)
    return {dimension: int(total) for dimension, total in session.execute(query.group_by(Reservation.dimension))}


def ensure(session: Session, project_id: str, dimension: str) -> None:
    """Make the row of a dimension with its default limit unless it is there; two at once make one."""
    _ensure(session, Quota, project_id, dimension)


def ensure_user(session: Session, user_id: str, dimension: str) -> None:
    """Make the row of a user, without a limit, unless it is there: whoever owns something has one."""
    _ensure(session, UserQuota, user_id, dimension)


def _ensure(session: Session, model: type[Quota | UserQuota], holder: str, dimension: str) -> None:
    known = DIMENSIONS.get(dimension) if model is Quota else None
    key: dict[str, Any] = {"project_id": holder, "peak_day": now().date()} if model is Quota else {"user_id": holder}
    values = {**key, "dimension": dimension, "quota_limit": known.default if known else UNLIMITED, "used": 0}
    session.execute(insert_of(session)(model.__table__).values(values).on_conflict_do_nothing())


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


def holders(session: Session) -> tuple[Sequence[str], Sequence[str]]:
    """(projects, users) that quotas are counted for."""
    projects, users = (session.scalars(select(model.holder).distinct()).all() for model in (Quota, UserQuota))
    return sorted(projects), sorted(users)


def recount(session: Session, project_id: str = "") -> list[Repair]:
    """Set `used` of a project, or of all, to the sum of reservations; gives whatever differed."""
    return _recount(session, Quota, Reservation.project_id, project_id)


def recount_users(session: Session, user_id: str = "") -> list[Repair]:
    """The same for what a user, or all of them, own; after `recount` where both are done."""
    return _recount(session, UserQuota, Reservation.owner_id, user_id)


def _recount(session: Session, model: type[Quota | UserQuota], charged: Any, holder: str) -> list[Repair]:
    is_this = [model.holder == holder] if holder else []
    # Locked before they are summed: what is being reserved meanwhile comes after, in both figures. In the order of `_take_all`.
    query = select(model).where(*is_this).order_by(by_codepoint(session, model.holder), by_codepoint(session, model.dimension)).with_for_update()
    rows: Sequence[Any] = session.scalars(query.execution_options(populate_existing=True)).all()
    totals = select(charged, Reservation.dimension, func.sum(Reservation.amount)).where(charged.is_not(None))
    if holder:
        totals = totals.where(charged == holder)
    sums = {(held_by, dimension): total for held_by, dimension, total in session.execute(totals.group_by(charged, Reservation.dimension))}
    repaired = []
    for row in rows:
        actual = int(sums.get((row.holder, row.dimension), 0))
        if actual != row.used:
            repaired.append(Repair(row.holder, row.dimension, row.used, actual))
            row.used = actual
    return repaired
