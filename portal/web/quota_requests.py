"""Requests for higher limits: the form that asks, and the inbox of whoever decides."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from urllib.parse import urlencode

from flask import Blueprint, request
from flask.typing import ResponseReturnValue

from portal.compute.summary import Use, compute_summary
from portal.http.guard import Access, access
from portal.http.request import context, current_project
from portal.kernel import authz
from portal.kernel.context import Context
from portal.kernel.errors import Conflict, Forbidden, InvalidRequest, PortalError
from portal.kernel.limits import quota_lines
from portal.kernel.quota import DIMENSIONS
from portal.kernel.quota_requests import (
    ASK,
    RequestDecision,
    RequestInView,
    RequestsQuery,
    decides,
    pending_of,
    quota_request_create,
    quota_request_decide,
    quota_request_withdraw,
    quota_requests,
)
from portal.web.page import field_errors, form_status, go, render
from portal.web.quotas import whole_number

pages = Blueprint("quota_requests", __name__)
FIELDS = ("dimension", "limit", "reason")
SHOWN = {"pending": "Waiting", "approved": "Approved", "denied": "Denied"}
# Which figure of the host tells what a quota promises; the others promise nothing that runs out at once.
ON_HOST = {"cpus": "vCPU", "memory_gb": "Memory"}
RECENT = 5
LIMIT = 50


@dataclass(frozen=True, slots=True)
class Card:
    """A request with what the host would be asked for if the project used all of it; `after` is empty where the host does not matter."""

    asked: RequestInView
    after: str
    is_short: bool = False


@pages.get("/quotas/requests/new")
@access(Access.SIGNED_IN)
def ask() -> ResponseReturnValue:
    """The form."""
    return _form(200, {"dimension": request.args.get("dimension", "")[:96]})


@pages.post("/quotas/requests/new")
@access(Access.SIGNED_IN)
def create() -> ResponseReturnValue:
    """Ask for more."""
    typed = {name: request.form.get(name, "").strip() for name in FIELDS}
    try:
        if typed["dimension"] not in DIMENSIONS:
            raise InvalidRequest.fields({"dimension": ["Choose one of the list."]})
        limit = whole_number(typed["limit"], "limit")
        made = quota_request_create(context(), current_project(), typed["dimension"], limit=limit, reason=typed["reason"])
    except (InvalidRequest, Conflict, Forbidden) as error:
        return _form(form_status(error), typed, error)
    return go("/quotas/requests", f"{made.label}: {made.limit_asked:,} is asked for. You are told what becomes of it.")


def _form(status: int, typed: dict[str, str], error: PortalError | None = None) -> ResponseReturnValue:
    ctx, project_id = context(), current_project()
    errors, message = field_errors(error, FIELDS) if error else ({}, "")
    lines = [line for line in quota_lines(ctx, project_id) if line.limit is not None]
    return render(
        "quotas/request.html", status, lines=lines, pending=pending_of(ctx, project_id), typed=typed, errors=errors, message=message
    )  # fmt: skip


@pages.get("/quotas/requests")
@access(Access.SIGNED_IN)
def inbox() -> ResponseReturnValue:
    """What waits, and what was decided."""
    return _page(200)


@pages.post("/quotas/requests/<request_id>/decide")
@access(Access.SIGNED_IN)
def decide(request_id: str) -> ResponseReturnValue:
    """Approve or deny."""
    form = request.form
    typed = {"limit": form.get("limit", "").strip()[:20], "note": form.get("note", "")}
    if form.get("decision") not in {"approve", "deny"}:
        raise InvalidRequest("Approve the request or deny it.")
    is_approved = form["decision"] == "approve"
    try:
        limit = whole_number(typed["limit"], "limit") if is_approved and typed["limit"] else None
        row = quota_request_decide(context(), request_id, RequestDecision(is_approved, limit, typed["note"]))
    except (InvalidRequest, Conflict, Forbidden) as error:
        return _page(form_status(error), chosen=request_id, typed=typed, error=error)
    if is_approved:
        return go("/quotas/requests", f"{row.label}: the limit is {row.limit_granted:,} now. {row.username} is told.")
    return go("/quotas/requests", f"{row.label}: denied. {row.username} is told.")


@pages.post("/quotas/requests/<request_id>/withdraw")
@access(Access.SIGNED_IN)
def withdraw(request_id: str) -> ResponseReturnValue:
    """Take one's own back."""
    row = quota_request_withdraw(context(), request_id)
    return go("/quotas/requests", f"{row.label}: your request is withdrawn.")


def _page(status: int, *, chosen: str = "", typed: dict[str, str] | None = None, error: PortalError | None = None) -> ResponseReturnValue:
    ctx = context()
    ctx.db.rollback()
    errors, message = field_errors(error, ("limit", "note")) if error else ({}, "")
    is_decider, cursor = decides(ctx), request.args.get("cursor", "")
    state = request.args.get("state", "pending") if is_decider else ""
    state = state if state in SHOWN or not is_decider else "pending"
    query = RequestsQuery((state,) if state else (), to_decide=is_decider, cursor=cursor, limit=LIMIT)
    page = quota_requests(ctx, query)
    host = compute_summary(ctx).host if is_decider else ()
    cards = [_card(each, host) for each in page.found]
    wanted = chosen or request.args.get("request", "")
    first = next((card for card in cards if card.asked.request.id == wanted), None) or _named(ctx, query, wanted, host)
    first = first or (cards[0] if cards and not chosen else None)
    recent = RequestsQuery(("approved", "denied"), to_decide=True, limit=RECENT)
    decided = quota_requests(ctx, recent).found if is_decider else ()
    older = f"/quotas/requests?{urlencode({'state': state, 'cursor': page.next_cursor})}" if page.next_cursor else ""
    may_ask = authz.decide(ctx, ASK, authz.Target(ctx.project_id, ctx.principal.user_id)).allowed
    return render(
        "quotas/inbox.html" if is_decider else "quotas/requests.html", status, cards=cards, first=first, older=older, has_newer=bool(cursor),
        state=state, tabs=SHOWN, host=host, decided=decided,
        may_ask=may_ask, typed=typed or {}, errors=errors, message=message, me=ctx.principal.user_id, four_eyes=ctx.settings.quota_four_eyes,
    )  # fmt: skip


def _named(ctx: Context, query: RequestsQuery, request_id: str, host: Sequence[Use]) -> Card | None:
    """One that is on another page of the list."""
    found = quota_requests(ctx, replace(query, request_id=request_id, cursor="")).found if request_id else ()
    return _card(found[0], host) if found else None


def _card(asked: RequestInView, host: Sequence[Use]) -> Card:
    name = ON_HOST.get(asked.request.dimension)
    use = next((use for use in host if use.label == name), None)
    if use is None or not use.limit:
        return Card(asked, "")
    promised = use.used + max(0, asked.request.limit_asked - asked.used)
    unit = f" {use.unit}" if use.unit else ""
    return Card(asked, f"{promised:,} of {use.limit:,}{unit}", promised > use.limit)
