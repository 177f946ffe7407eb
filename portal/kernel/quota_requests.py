"""Requests for a higher limit: asked for by who works in a project, decided by who may set its limits, applied in the transaction of the decision."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import BigInteger, ColumnElement, ForeignKey, Index, ScalarSelect, String, Text, func, or_, select, text, update
from sqlalchemy.orm import Mapped, Session, mapped_column

from portal.kernel import audit, events, limits, quota
from portal.kernel.alerts import Notice, alert
from portal.kernel.authz import Target, reach
from portal.kernel.context import Context
from portal.kernel.db import Base, UtcDateTime, now
from portal.kernel.errors import Conflict, Forbidden, InvalidRequest, NotFound, StateConflict
from portal.kernel.ids import is_storable, new_id, storable
from portal.kernel.keyset import behind, cursor_of
from portal.kernel.operations import acting
from portal.kernel.policy import Columns
from portal.kernel.projects import refuse_ending
from portal.kernel.tables import PROJECTS, USERS, lock_users

ASK = "core.quota.request"
STATES = ("pending", "approved", "denied", "withdrawn")
TEXT_MAX = 2000
MAX_WAITING = 200
IS_PENDING = text("state = 'pending'")


class QuotaRequest(Base):
    """Somebody's wish for a higher limit of one dimension in one project, and what became of it."""

    __tablename__ = "quota_requests"

    id: Mapped[str] = mapped_column(String(64), primary_key=True, default=lambda: new_id("qr"))
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    dimension: Mapped[str] = mapped_column(String(96))
    # What the limit was when somebody asked, what they asked for, and what they got.
    limit_then: Mapped[int | None] = mapped_column(BigInteger)
    limit_asked: Mapped[int] = mapped_column(BigInteger)
    limit_granted: Mapped[int | None] = mapped_column(BigInteger)
    reason: Mapped[str] = mapped_column(Text)
    note: Mapped[str] = mapped_column(Text, default="")
    state: Mapped[str] = mapped_column(String(16), default="pending")
    # No foreign key: what was asked and decided outlives whoever asked.
    user_id: Mapped[str] = mapped_column(String(64), index=True)
    username: Mapped[str] = mapped_column(String(255))
    decided_by: Mapped[str | None] = mapped_column(String(64))
    decided_by_name: Mapped[str] = mapped_column(String(255), default="")
    decided_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)

    __table_args__ = (
        # One at a time, whatever the code above it thinks.
        Index("uq_quota_requests_pending", "project_id", "dimension", unique=True, sqlite_where=IS_PENDING, postgresql_where=IS_PENDING),
        Index("ix_quota_requests_page", "state", "created_at", "id"),
        Index("ix_quota_requests_decided", "decided_at", "id"),
    )

    @property
    def label(self) -> str:
        """What people call the dimension."""
        known = quota.DIMENSIONS.get(self.dimension)
        return known.label if known else self.dimension


@dataclass(frozen=True, slots=True)
class RequestInView:
    """A request as whoever decides sees it: the project's name, and how much of which limit is used now."""

    request: QuotaRequest
    project_name: str
    limit: int | None
    used: int

    @property
    def unit(self) -> str:
        """Unit of the dimension."""
        known = quota.DIMENSIONS.get(self.request.dimension)
        return known.unit if known else ""


@dataclass(frozen=True, slots=True)
class RequestsQuery:
    """Which requests are asked for; empty means all. With `to_decide` only those that are the caller's to decide."""

    states: Sequence[str] = ()
    project_id: str = ""
    request_id: str = ""
    to_decide: bool = False
    cursor: str = ""
    limit: int = 50


@dataclass(frozen=True, slots=True)
class RequestsPage:
    """Requests, and where the next page begins."""

    found: Sequence[RequestInView]
    next_cursor: str


def quota_requests(ctx: Context, query: RequestsQuery) -> RequestsPage:
    """The caller's own and those of projects whose quotas they may read.

    What waits longest comes first where only that is asked for; what is decided by its decision, newest first; else by when it was asked, newest first.
    Raises InvalidRequest for a state or cursor that is none.
    """
    if unknown := [state for state in query.states if state not in STATES]:
        raise InvalidRequest.fields({"state": [f"{unknown[0][:80]} must be one of {', '.join(STATES)}."]})
    is_waiting = tuple(query.states) == ("pending",)
    at = QuotaRequest.decided_at if query.states and "pending" not in query.states else QuotaRequest.created_at
    statement = (
        select(QuotaRequest, PROJECTS.c.name, quota.Quota.limit, quota.Quota.used)
        .join(PROJECTS, PROJECTS.c.id == QuotaRequest.project_id)
        .outerjoin(quota.Quota, (quota.Quota.project_id == QuotaRequest.project_id) & (quota.Quota.dimension == QuotaRequest.dimension))
        .where(_decidable(ctx) if query.to_decide else _visible(ctx))
    )
    if query.states:
        statement = statement.where(QuotaRequest.state.in_(query.states))
    for of, wanted in ((QuotaRequest.project_id, query.project_id), (QuotaRequest.id, query.request_id)):
        if wanted:
            statement = statement.where(of == storable(wanted))
    if query.cursor:
        statement = statement.where(behind(query.cursor, at, QuotaRequest.id, newest_first=not is_waiting))
    order = (at, QuotaRequest.id) if is_waiting else (at.desc(), QuotaRequest.id.desc())
    rows = ctx.db.execute(statement.order_by(*order).limit(query.limit + 1).execution_options(populate_existing=True)).all()
    found = [RequestInView(row, name, limit, used or 0) for row, name, limit, used in rows[: query.limit]]
    last = found[-1].request if len(rows) > query.limit else None
    return RequestsPage(found, cursor_of(getattr(last, at.key), last.id) if last is not None else "")


def decides(ctx: Context) -> bool:
    """Whether the caller decides requests, of some project at least."""
    return not reach(ctx, limits.UPDATE).nothing


def waiting(ctx: Context) -> ScalarSelect[int] | None:
    """How many requests wait for the caller's decision: a part of a query; None for whoever decides nothing."""
    if not decides(ctx):
        return None
    some = select(QuotaRequest.id).where(QuotaRequest.state == "pending", _decidable(ctx)).limit(MAX_WAITING)
    return select(func.count()).select_from(some.subquery()).scalar_subquery()


def _decidable(ctx: Context) -> ColumnElement[bool]:
    return reach(ctx, limits.UPDATE).where(Columns(QuotaRequest.project_id))


def _visible(ctx: Context) -> ColumnElement[bool]:
    own = [QuotaRequest.user_id == ctx.principal.user_id] if ctx.principal.user_id is not None and not ctx.principal.is_restricted else []
    return or_(reach(ctx, "core.quota.read").where(Columns(QuotaRequest.project_id)), *own)


def quota_request_find(ctx: Context, request_id: str) -> QuotaRequest:
    """A request that the caller may see. Raises NotFound."""
    query = select(QuotaRequest).where(QuotaRequest.id == request_id, _visible(ctx)).execution_options(populate_existing=True)
    found = ctx.db.scalars(query).first() if is_storable(request_id) else None
    if found is None:
        raise NotFound(f"There is no quota request {request_id[:80]} here.")
    return found


def quota_request_create(ctx: Context, project_id: str, dimension: str, *, limit: int, reason: str) -> QuotaRequest:
    """Ask for a higher limit. Raises NotFound, Forbidden, InvalidRequest, or Conflict while the same is asked for already."""
    known = limits.known_dimension(dimension)
    limits.require(ctx, project_id)
    row = QuotaRequest(id=new_id("qr"), project_id=project_id, dimension=dimension, limit_asked=limit, reason=reason.strip())
    with acting(ctx, ASK, _about(row), target=Target(project_id, ctx.principal.user_id, label=f"quota {dimension}"), details=_wish(row)):
        if ctx.principal.user_id is None:
            raise Forbidden("A request needs somebody who can be told what became of it: sign in as a user.")
        if ctx.settings.quota_four_eyes and ctx.db.scalar(select(USERS.c.kind).where(USERS.c.id == ctx.principal.user_id)) == "service":
            # Whoever made the account could decide what it asks for.
            raise Forbidden("Service accounts ask for nothing here (QUOTA_FOUR_EYES): two people have to agree.", details={"four_eyes": True})
        row.user_id, row.username = ctx.principal.user_id, ctx.principal.username
        # Locked: a limit that is being raised at this moment counts as raised, and two who ask at once come one after the other.
        quota.ensure(ctx.db, project_id, dimension)
        row.limit_then = limits.quota_locked(ctx, project_id, dimension).limit
        _refuse_odd(row, known.label)
        _refuse_second(ctx, row)
        ctx.db.add(row)
        ctx.db.flush()
        refuse_ending(ctx.db, project_id)
        _tell(ctx, row, "requested")
    return row


def _refuse_odd(row: QuotaRequest, label: str) -> None:
    problems: dict[str, list[str]] = {}
    if row.limit_then is None:
        problems["limit"] = [f"{label} has no limit in this project; there is nothing to ask for."]
    elif not row.limit_then < row.limit_asked <= limits.HIGHEST:
        problems["limit"] = [f"must be more than the present limit, {row.limit_then:,}, and at most {limits.HIGHEST:,}."]
    problems |= _odd_text("reason", row.reason, least=1)
    if problems:
        raise InvalidRequest.fields(problems)


def _odd_text(name: str, given: str, *, least: int = 0) -> dict[str, list[str]]:
    if least <= len(given) <= TEXT_MAX and is_storable(given):
        return {}
    return {name: [f"must have {least} to {TEXT_MAX} characters; this one has {len(given)}."]}


def _refuse_second(ctx: Context, row: QuotaRequest) -> None:
    same = (QuotaRequest.project_id == row.project_id, QuotaRequest.dimension == row.dimension, QuotaRequest.state == "pending")
    other = ctx.db.scalars(select(QuotaRequest).where(*same)).first()
    if other is not None:
        raise Conflict(
            f"{other.username} has asked for {other.limit_asked:,} already ({other.id}), and that is not decided yet. "
            "Wait for the decision, or have it withdrawn and ask anew.",
            details={"request_id": other.id},
        )


def withdraw_all(session: Session, *, user_id: str = "", project_id: str = "") -> None:
    """Take back what a user, or anybody in a project, still asks for, within the caller's transaction: nobody is left who wants it."""
    whose = QuotaRequest.user_id == user_id if user_id else QuotaRequest.project_id == project_id
    pending = (whose, QuotaRequest.state == "pending")
    session.execute(update(QuotaRequest).where(*pending).values(state="withdrawn", decided_at=now()))


def quota_request_withdraw(ctx: Context, request_id: str) -> QuotaRequest:
    """Take back what one has asked for. Raises NotFound, Forbidden or StateConflict."""
    seen = quota_request_find(ctx, request_id)
    target = Target(seen.project_id, seen.user_id, label=f"quota request {seen.id}")
    with acting(ctx, f"{ASK}.withdraw", _about(seen), target=target, permission=ASK, details=_wish(seen)):
        if seen.user_id != ctx.principal.user_id:
            raise Forbidden(f"{seen.id} is {seen.username}'s; nobody else can withdraw it. Whoever may set limits can deny it.")
        row = _locked_pending(ctx, request_id)
        row.state, row.decided_at = "withdrawn", now()
        _tell(ctx, row, "withdrawn")
    return row


@dataclass(frozen=True, slots=True)
class RequestDecision:
    """What was decided; `limit` is what is granted, None for what was asked."""

    approve: bool
    limit: int | None = None
    note: str = ""


def quota_request_decide(ctx: Context, request_id: str, decision: RequestDecision) -> QuotaRequest:
    """Approve, which sets the limit, or deny; of two who decide at once the second is refused. Raises NotFound, Forbidden, InvalidRequest or Conflict."""
    seen = quota_request_find(ctx, request_id)
    outcome, note = "approved" if decision.approve else "denied", decision.note.strip()
    details: dict[str, object] = {**_wish(seen), "note": note[:TEXT_MAX]}
    target = Target(seen.project_id, label=f"quota {seen.dimension}")
    with acting(ctx, f"{ASK}.{outcome}", _about(seen), target=target, permission=limits.UPDATE, details=details):
        if ctx.settings.quota_four_eyes and seen.user_id == ctx.principal.user_id:
            raise Forbidden(
                "You have asked for this yourself, and nobody decides their own request here (QUOTA_FOUR_EYES). Another administrator has to.",
                details={"four_eyes": True},
            )
        if problems := _odd_text("note", note):
            raise InvalidRequest.fields(problems)
        lock_users(ctx.db, seen.user_id, ctx.principal.user_id)
        row = _locked_pending(ctx, request_id)
        if decision.approve:
            _grant(ctx, row, row.limit_asked if decision.limit is None else decision.limit, details)
        row.state, row.note, row.decided_at = outcome, note, now()
        row.decided_by, row.decided_by_name = ctx.principal.user_id, ctx.principal.username
        _tell(ctx, row, outcome)
        alert(ctx, row.user_id, _notice(row))
    return row


def _locked_pending(ctx: Context, request_id: str) -> QuotaRequest:
    row = ctx.db.get_one(QuotaRequest, request_id, with_for_update=True, populate_existing=True)
    if row.state != "pending":
        by = f" by {row.decided_by_name}" if row.decided_by_name else ""
        raise StateConflict(f"{row.id} was {row.state}{by} already.", details={"state": row.state})
    return row


def _grant(ctx: Context, row: QuotaRequest, limit: int, details: dict[str, object]) -> None:
    quota.ensure(ctx.db, row.project_id, row.dimension)
    locked = limits.quota_locked(ctx, row.project_id, row.dimension)
    present = locked.limit
    if present is None or present >= row.limit_asked:
        what = "has no limit any more" if present is None else f"is {present:,} by now"
        raise Conflict(f"The limit {what}, which is as much as was asked for. Deny the request: there is nothing left to grant.")
    if not present < limit <= row.limit_asked:
        raise InvalidRequest.fields(
            {"limit": [f"must be more than the present limit, {present:,}, and at most what was asked, {row.limit_asked:,}."]}
        )
    change: dict[str, object] = {}
    limits.limit_set(ctx, locked, limit, change)
    row.limit_granted = limit
    details |= change
    audit.record(ctx, limits.UPDATE, limits.subject_of(row.project_id, row.dimension), details={**change, "request_id": row.id})


def _notice(row: QuotaRequest) -> Notice:
    if row.limit_granted is None:
        said = f"The limit stays; you asked for {row.limit_asked:,}."
    else:
        less = f"; you asked for {row.limit_asked:,}" if row.limit_granted != row.limit_asked else ""
        said = f"The limit is {row.limit_granted:,} now{less}."
    return Notice(
        f"{row.label}: your request was {row.state}", f"{said} {row.decided_by_name}: {row.note}" if row.note else said,
        "info" if row.state == "approved" else "warning", "core.quota_request", row.id, "/quotas/requests",
    )  # fmt: skip


def _tell(ctx: Context, row: QuotaRequest, what: str) -> None:
    payload = {"dimension": row.dimension, "limit_asked": row.limit_asked, "limit_granted": row.limit_granted, "username": row.username}
    events.emit(ctx, f"{ASK}.{what}", resource_id=row.id, name=row.dimension, project_id=row.project_id, payload=payload)


def _wish(row: QuotaRequest) -> dict[str, object]:
    return {"dimension": row.dimension, "limit": row.limit_asked, "reason": row.reason[:TEXT_MAX]}


def _about(row: QuotaRequest) -> audit.Subject:
    return audit.Subject("core.quota_request", row.id, row.dimension, row.project_id)


def pending_of(ctx: Context, project_id: str) -> Mapping[str, QuotaRequest]:
    """Dimension → what a project is waiting for."""
    rows: Sequence[QuotaRequest] = ctx.db.scalars(
        select(QuotaRequest).where(QuotaRequest.project_id == project_id, QuotaRequest.state == "pending", _visible(ctx))
    ).all()
    return {row.dimension: row for row in rows}
