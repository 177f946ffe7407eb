"""Quotas of the current project with their history, and limits of users; administrators of the platform change both."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flask import Blueprint, request
from flask.typing import ResponseReturnValue

from portal.http.guard import Access, access
from portal.http.request import context, current_project
from portal.kernel.authz import Target, decide
from portal.kernel.context import Context
from portal.kernel.errors import Forbidden, InvalidRequest, NotFound, PortalError
from portal.kernel.limits import (
    HIGHEST,
    UPDATE,
    QuotaLine,
    may_limit_users,
    own_limits,
    quota_lines,
    quota_update,
    user_dimensions,
    user_limits,
    user_quota_update,
)
from portal.kernel.quota_history import SHOWN_DAYS, Day, history
from portal.kernel.quota_requests import ASK, QuotaRequest, pending_of
from portal.web.page import field_errors, form_status, go, render

pages = Blueprint("quotas", __name__)
FIELDS = ("limit", "warning_threshold")
USER_FIELDS = ("username", "dimension", *FIELDS)
WIDTH, HEIGHT = 100, 20


@dataclass(frozen=True, slots=True)
class Trend:
    """The peaks of the last days as an SVG path in a box of 100 × 20, and in words."""

    path: str
    text: str


@dataclass(frozen=True, slots=True)
class Row:
    """One quota of the project, what became of it, and what is asked for."""

    line: QuotaLine
    trend: Trend
    request: QuotaRequest | None


@dataclass(frozen=True, slots=True)
class Refused:
    """A form that is shown again: for which quota (empty: the one about users), what was typed, and what is wrong with it."""

    error: PortalError
    typed: Mapping[str, str]
    dimension: str = ""


@pages.get("/quotas")
@access(Access.SIGNED_IN)
def index() -> ResponseReturnValue:
    """Limits and use."""
    return _page(200)


@pages.post("/quotas/<dimension>")
@access(Access.SIGNED_IN)
def change(dimension: str) -> ResponseReturnValue:
    """Set one limit."""
    typed = {name: request.form.get(name, "").strip()[:20] for name in FIELDS}
    try:
        threshold = whole_number(typed["warning_threshold"], "warning_threshold") if typed["warning_threshold"] else None
        line = quota_update(context(), current_project(), dimension, whole_number(typed["limit"], "limit"), warning_threshold=threshold)
    except (InvalidRequest, Forbidden) as error:
        return _page(form_status(error), Refused(error, typed, dimension))
    return go("/quotas", f"{line.label}: the limit is {line.limit:,} now.")


@pages.post("/quotas/users")
@access(Access.SIGNED_IN)
def change_user() -> ResponseReturnValue:
    """Set or take away what one user may own."""
    typed = {name: request.form.get(name, "").strip()[:254] for name in USER_FIELDS}
    try:
        limit = whole_number(typed["limit"], "limit") if typed["limit"] else None
        threshold = whole_number(typed["warning_threshold"], "warning_threshold") if typed["warning_threshold"] else None
        found = user_quota_update(context(), typed["username"], typed["dimension"], limit, warning_threshold=threshold)
    except NotFound as error:
        wrong = "dimension" if typed["dimension"] not in user_dimensions() else "username"
        return _page(422, Refused(InvalidRequest.fields({wrong: [error.message]}), typed))
    except (InvalidRequest, Forbidden) as error:
        return _page(form_status(error), Refused(error, typed))
    return go(
        "/quotas#users",
        f"{found.username}, {found.line.label}: "
        + (f"the limit is {found.line.limit:,} now." if found.line.limit is not None else "no limit any more."),
    )


def whole_number(text: str, name: str) -> int:
    """A number that was typed. Raises InvalidRequest naming the field."""
    if not text.isascii() or not text.isdigit() or len(text) > len(str(HIGHEST)):
        raise InvalidRequest.fields({name: ["must be a whole number, 0 or more."]})
    return int(text)


def _page(status: int, refused: Refused | None = None) -> ResponseReturnValue:
    ctx, project_id = context(), current_project()
    errors, message = field_errors(refused.error, USER_FIELDS) if refused else ({}, "")
    of_users = refused is not None and not refused.dimension
    return render(
        "quotas/index.html", status, rows=_rows(ctx, project_id), own=own_limits(ctx), users=user_limits(ctx), may_limit_users=may_limit_users(ctx),
        may_change=decide(ctx, UPDATE, Target(project_id)).allowed, may_ask=decide(ctx, ASK, Target(project_id, ctx.principal.user_id)).allowed,
        dimensions=user_dimensions().values(), days=SHOWN_DAYS, refused=refused, typed=refused.typed if of_users and refused else {},
        errors=errors if of_users else {}, message=message if of_users else "",
    )  # fmt: skip


def _rows(ctx: Context, project_id: str) -> list[Row]:
    lines = quota_lines(ctx, project_id)
    past, asked = history(ctx, project_id), pending_of(ctx, project_id)
    return [Row(line, _trend(line, past.get(line.dimension, ())), asked.get(line.dimension)) for line in lines]


def _trend(line: QuotaLine, days: Sequence[Day]) -> Trend:
    if not days:
        return Trend("", f"{line.label}: nothing was in use yet")
    peaks = [day.peak for day in days]
    top, most = max(*peaks, 1), max(days, key=lambda day: day.peak)
    start, span = days[0].day, max((days[-1].day - days[0].day).days, 1)
    places: list[tuple[float, float]] = [((day.day - start).days / span * WIDTH, HEIGHT - day.peak / top * HEIGHT) for day in days]
    if len(days) == 1:
        places.append((WIDTH, places[0][1]))
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
    unit = f" {line.unit}" if line.unit else ""
    text = f"{line.label} since {start:%-d %B}: most {most.peak:,}{unit} on {most.day:%-d %B}, least {min(peaks):,}, now {line.used:,}"
    return Trend(path, text)
