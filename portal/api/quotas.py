"""Endpoints of quotas: limits of projects and users with their history, requests for more, and the alerts that tell of both."""

from collections.abc import Iterator, Sequence
from typing import Any

from flask import request
from flask.typing import ResponseReturnValue
from pydantic import Field

from portal.api import body as io
from portal.api.endpoints import Endpoint, Query, Schema
from portal.api.resources import PAGING, link, list_schema, only
from portal.api.schemas import MAYBE, MAYBE_TEXT, NUMBER, TEXT, WHEN, YES, Input, read, thing
from portal.http.listing import flag, paging
from portal.http.request import context, current_project
from portal.kernel import alerts, limits, quota_history, quota_requests
from portal.kernel.alerts import Alert
from portal.kernel.errors import InvalidRequest, NotFound
from portal.kernel.limits import QuotaLine, UserLimit
from portal.kernel.quota_requests import STATES, QuotaRequest, RequestDecision, RequestsQuery

FIGURES: dict[str, Schema] = {
    "resource_type": TEXT, "label": TEXT, "unit": TEXT, "limit": MAYBE, "used": NUMBER, "reserved": NUMBER, "available": MAYBE,
    "usage_percentage": {"type": ["number", "null"]}, "warning_threshold": NUMBER,
}  # fmt: skip
QUOTA = thing(**FIGURES)
DAY = thing(day={"type": "string", "format": "date"}, peak=NUMBER, limit=MAYBE)
QUOTA_WITH_HISTORY = thing(**FIGURES, history={"type": "array", "items": DAY})
USER_QUOTA = thing(**FIGURES, user_id=TEXT, username=TEXT)
REQUEST = thing(
    request_id=TEXT, id=TEXT, project_id=TEXT, resource_type=TEXT, limit=NUMBER, limit_then=MAYBE, limit_granted=MAYBE, reason=TEXT, note=TEXT,
    state={"type": "string", "enum": list(STATES)}, status={"type": "string", "enum": list(STATES)}, user_id=TEXT, username=TEXT, decided_by=MAYBE_TEXT,
    decided_by_name=TEXT, decided_at=WHEN, created_at=WHEN,
)  # fmt: skip
ALERT = thing(
    alert_id=TEXT, id=TEXT, title=TEXT, message=TEXT, severity={"type": "string", "enum": list(alerts.SEVERITIES)}, resource_type=TEXT, resource_id=TEXT,
    url=TEXT, is_read=YES, created_at=WHEN,
)  # fmt: skip


class LimitInput(Input):
    """A limit of a project."""

    limit: int
    warning_threshold: int | None = Field(None, description="Percent of the limit at which somebody is told; as it was where it is left out.")


class UserLimitInput(Input):
    """What a user may own, in all projects together."""

    limit: int | None = Field(description="Nothing (null) takes the limit away.")
    warning_threshold: int | None = Field(None, description="Percent of the limit at which the user is told; as it was where it is left out.")


class RequestInput(Input):
    """A wish for a higher limit of the current project."""

    resource_type: str = Field(max_length=96, description="The quota, such as cpus.")
    limit: int
    reason: str = Field(max_length=quota_requests.TEXT_MAX)


class DecisionInput(Input):
    """What becomes of a request."""

    decision: str = Field(json_schema_extra={"enum": ["approve", "deny"]})
    limit: int | None = Field(None, description="What is granted, if less than what was asked.")
    note: str = Field("", max_length=quota_requests.TEXT_MAX, description="Told to whoever asked.")


def endpoints() -> Iterator[Endpoint]:
    """All of them."""
    user = Query("user_id", "What this user may own in all projects together, by id or name, instead of the project's quotas.")
    tag = "Quotas"
    yield Endpoint(
        "GET", "/quotas", "quotas.list", quotas, "Limits and use of the current project", tag, {200: list_schema(QUOTA)}, (403, 404), query=(user,)
    )
    yield Endpoint(
        "GET", "/quotas/{resource_type}", "quotas.get", quota, "One limit, and the peak of its use by day", tag, {200: QUOTA_WITH_HISTORY}, (403, 404)
    )
    yield Endpoint("PUT", "/quotas/{resource_type}", "quotas.put", quota_put, "Set a limit of the current project", tag, {200: QUOTA}, (403, 404),
                   body=LimitInput.model_json_schema())  # fmt: skip
    yield Endpoint("PUT", "/quotas/{user_id}/{resource_type}", "quotas.users.put", user_quota_put, "Limit what a user may own in all projects together", tag,
                   {200: USER_QUOTA}, (403, 404), body=UserLimitInput.model_json_schema())  # fmt: skip
    yield from _request_endpoints(tag)
    yield from _alert_endpoints("Alerts")


def _request_endpoints(tag: str) -> Iterator[Endpoint]:
    state = Query("state", "Only in this state.", {"type": "string", "enum": list(STATES)})
    project = Query("project_id", "Only of this project.")
    base, one = "/quota-requests", "/quota-requests/{request_id}"
    yield Endpoint("GET", base, "quota-requests.list", requests, "Requests for higher limits: one's own, and those of one's projects", tag,
                   {200: list_schema(REQUEST)}, query=(state, project, *PAGING[:2]))  # fmt: skip
    yield Endpoint("POST", base, "quota-requests.create", request_create, "Ask for a higher limit of the current project", tag, {201: REQUEST}, (403, 404, 409),
                   body=RequestInput.model_json_schema())  # fmt: skip
    yield Endpoint("GET", one, "quota-requests.get", request_get, "One request", tag, {200: REQUEST}, (404,))
    yield Endpoint("POST", f"{one}/decide", "quota-requests.decide", request_decide, "Approve, which sets the limit, or deny", tag, {200: REQUEST},
                   (403, 404, 409), body=DecisionInput.model_json_schema())  # fmt: skip
    yield Endpoint(
        "POST", f"{one}/withdraw", "quota-requests.withdraw", request_withdraw, "Take one's own request back", tag, {200: REQUEST}, (403, 404, 409)
    )


def _alert_endpoints(tag: str) -> Iterator[Endpoint]:
    query = (
        Query("severity", "Only of this severity.", {"type": "string", "enum": list(alerts.SEVERITIES)}),
        Query("is_read", "Only read or unread ones.", YES),
    )
    yield Endpoint("GET", "/alerts", "alerts.list", alert_list, "One's own alerts, newest first", tag, {200: list_schema(ALERT)}, (403,), query=query)
    yield Endpoint("POST", "/alerts/read-all", "alerts.read-all", alert_read_all, "Mark all as read", tag, {200: thing(count=NUMBER)}, (403,))
    yield Endpoint("POST", "/alerts/{alert_id}/read", "alerts.read", alert_read, "Mark one as read", tag, {200: ALERT}, (403, 404))
    yield Endpoint("DELETE", "/alerts/{alert_id}", "alerts.delete", alert_dismiss, "Dismiss one", tag, {204: None}, (403, 404))


# -- limits ----------------------------------------------------------------------------------------------------------------------------------


def quotas() -> ResponseReturnValue:
    """All limits."""
    only("user_id")
    user = request.args.get("user_id", "")
    lines = limits.user_lines(context(), user) if user else limits.quota_lines(context(), current_project())
    return io.answer(io.page_of([show_quota(line) for line in lines], count=len(lines)))


def quota(resource_type: str) -> ResponseReturnValue:
    """One limit."""
    ctx, project_id = context(), current_project()
    line = next((line for line in limits.quota_lines(ctx, project_id) if line.dimension == resource_type), None)
    if line is None:
        raise NotFound(f"There is no quota {resource_type[:80]}.")
    days = quota_history.history(ctx, project_id).get(resource_type, ())
    return io.answer({**show_quota(line), "history": [{"day": each.day.isoformat(), "peak": each.peak, "limit": each.limit} for each in days]})


def quota_put(resource_type: str) -> ResponseReturnValue:
    """Set a limit."""
    given: LimitInput = read(LimitInput)
    return io.answer(
        show_quota(limits.quota_update(context(), current_project(), resource_type, given.limit, warning_threshold=given.warning_threshold))
    )


def user_quota_put(user_id: str, resource_type: str) -> ResponseReturnValue:
    """Limit a user."""
    given: UserLimitInput = read(UserLimitInput)
    return io.answer(_user_limit(limits.user_quota_update(context(), user_id, resource_type, given.limit, warning_threshold=given.warning_threshold)))


def show_quota(line: QuotaLine) -> dict[str, Any]:
    """A limit with its use."""
    percentage = round(100 * line.used / line.limit, 1) if line.limit else None
    return {
        "resource_type": line.dimension, "label": line.label, "unit": line.unit, "limit": line.limit, "used": line.used, "reserved": line.reserved,
        "available": line.left, "usage_percentage": percentage, "warning_threshold": line.warning_threshold,
    }  # fmt: skip


def _user_limit(found: UserLimit) -> dict[str, Any]:
    return {**show_quota(found.line), "user_id": found.user_id, "username": found.username}


# -- requests --------------------------------------------------------------------------------------------------------------------------------


def requests() -> ResponseReturnValue:
    """Requests that the caller may see."""
    only("state", "status", "project_id", "cursor", "limit", "page_size")
    args = request.args
    limit, _ = paging(args)
    state = args.get("state") or args.get("status", "")
    query = RequestsQuery((state,) if state else (), args.get("project_id", ""), cursor=args.get("cursor", ""), limit=limit)
    page = quota_requests.quota_requests(context(), query)
    return io.answer(io.page_of([_request(each.request) for each in page.found], count=len(page.found), following=link(page.next_cursor)))


def request_create() -> ResponseReturnValue:
    """Ask for more."""
    given: RequestInput = read(RequestInput)
    made = quota_requests.quota_request_create(context(), current_project(), given.resource_type, limit=given.limit, reason=given.reason)
    return io.answer(_request(made), 201)


def request_get(request_id: str) -> ResponseReturnValue:
    """One of them."""
    return io.answer(_request(quota_requests.quota_request_find(context(), request_id)))


def request_decide(request_id: str) -> ResponseReturnValue:
    """Approve or deny."""
    given: DecisionInput = read(DecisionInput)
    if given.decision not in {"approve", "deny"}:
        raise InvalidRequest.fields({"decision": ["must be approve or deny."]})
    if given.decision == "deny" and given.limit is not None:
        raise InvalidRequest.fields({"limit": ["is granted by approving; who denies grants none."]})
    decision = RequestDecision(given.decision == "approve", given.limit, given.note)
    return io.answer(_request(quota_requests.quota_request_decide(context(), request_id, decision)))


def request_withdraw(request_id: str) -> ResponseReturnValue:
    """Take it back."""
    io.read_object()
    return io.answer(_request(quota_requests.quota_request_withdraw(context(), request_id)))


def _request(row: QuotaRequest) -> dict[str, Any]:
    return {
        "request_id": row.id, "id": row.id, "project_id": row.project_id, "resource_type": row.dimension, "limit": row.limit_asked,
        "limit_then": row.limit_then, "limit_granted": row.limit_granted, "reason": row.reason, "note": row.note, "state": row.state, "status": row.state,
        "user_id": row.user_id, "username": row.username, "decided_by": row.decided_by, "decided_by_name": row.decided_by_name,
        "decided_at": io.moment(row.decided_at), "created_at": io.moment(row.created_at),
    }  # fmt: skip


# -- alerts ----------------------------------------------------------------------------------------------------------------------------------


def alert_list() -> ResponseReturnValue:
    """The caller's own."""
    only("severity", "is_read")
    severity = request.args.get("severity", "")
    if severity and severity not in alerts.SEVERITIES:
        raise InvalidRequest.fields({"severity": [f"must be one of {', '.join(alerts.SEVERITIES)}."]})
    is_read = flag(request.args, "is_read") if "is_read" in request.args else None
    found: Sequence[Alert] = alerts.alerts(context(), severity=severity, is_read=is_read)
    return io.answer(io.page_of([_alert(row) for row in found], count=len(found)))


def alert_read(alert_id: str) -> ResponseReturnValue:
    """Mark one."""
    io.read_object()
    return io.answer(_alert(alerts.alert_read(context(), alert_id)))


def alert_read_all() -> ResponseReturnValue:
    """Mark all."""
    io.read_object()
    return io.answer({"count": alerts.alert_read_all(context())})


def alert_dismiss(alert_id: str) -> ResponseReturnValue:
    """Remove one."""
    alerts.alert_dismiss(context(), alert_id)
    return io.empty()


def _alert(row: Alert) -> dict[str, Any]:
    return {
        "alert_id": row.id, "id": row.id, "title": row.title, "message": row.message, "severity": row.severity, "resource_type": row.resource_type,
        "resource_id": row.resource_id, "url": row.url, "is_read": row.is_read, "created_at": io.moment(row.created_at),
    }  # fmt: skip
