"""Endpoints of the platform itself: index, jobs, events, tags, search, regions, audit log, capabilities and overview."""

from collections.abc import Callable, Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from flask import request
from flask.typing import ResponseReturnValue
from sqlalchemy import select

from portal.api import body as io
from portal.api.endpoints import PREFIX, Endpoint, Query, Schema
from portal.api.identity import TEXT, WHEN, thing
from portal.api.quotas import show_quota
from portal.api.resources import EVENT_SCHEMA, PAGING, event_feed, link, list_schema, only
from portal.compute.summary import compute_summary
from portal.http.guard import Access
from portal.http.listing import flag, paging, whole
from portal.http.probes import SERVICE, VERSION
from portal.http.request import context
from portal.kernel import control, limits
from portal.kernel.activity import AuditQuery, JobsQuery, audit_count, audit_entries, jobs_counts, jobs_page
from portal.kernel.audit import AuditEntry, verify
from portal.kernel.authz import Target, authorize, reach
from portal.kernel.capabilities import capabilities
from portal.kernel.errors import InvalidRequest, NotFound
from portal.kernel.jobs import ACTIVE, ENDED, Job
from portal.kernel.search import search
from portal.kernel.tags import ResourceTag

REGION = "local"
NUMBER: Schema = {"type": "integer"}
STEP = thing(name=TEXT, label=TEXT, state=TEXT, detail=TEXT, started_at=WHEN, finished_at=WHEN)
JOB = thing(
    job_id=TEXT, id=TEXT, kind=TEXT, label=TEXT, state=TEXT, status=TEXT, progress=NUMBER, error=TEXT, resource_type=TEXT, resource_id=TEXT, resource_name=TEXT,
    username=TEXT, request_id=TEXT, created_at=WHEN, started_at=WHEN, finished_at=WHEN, steps={"type": "array", "items": STEP},
)  # fmt: skip
AUDIT = thing(
    log_id=TEXT, seq=NUMBER, timestamp=WHEN, user_id={"type": ["string", "null"]}, username=TEXT, action=TEXT, resource_type=TEXT, resource_id=TEXT,
    resource_name=TEXT, project_id={"type": ["string", "null"]}, status=TEXT, error_message=TEXT, details={"type": "object"}, source=TEXT, source_ip=TEXT,
    user_agent=TEXT, request_id=TEXT, entry_hash=TEXT, previous_hash=TEXT,
)  # fmt: skip
AUDIT_FILTERS = ("resource_id", "resource_type", "action", "username", "user_id", "status", "project_id", "search")


def endpoints(document: Callable[[], dict[str, Any]]) -> Iterator[Endpoint]:
    """All of them; `document` makes the OpenAPI document."""

    def openapi() -> ResponseReturnValue:
        """This API, for machines."""
        return io.answer(document())

    tag = "Platform"
    anything: Schema = {"type": "object"}
    yield Endpoint("GET", "/", "index", index, "What there is", tag, {200: anything}, rule=Access.PUBLIC)
    yield Endpoint("GET", "/openapi.json", "openapi", openapi, "This document", tag, {200: anything}, rule=Access.PUBLIC)
    yield Endpoint("GET", "/regions", "regions", regions, "Regions of this installation", tag, {200: list_schema(anything)})
    yield Endpoint(
        "GET", "/capabilities", "capabilities", capability_list, "What engines of this installation can do", tag, {200: list_schema(anything)}
    )
    yield Endpoint("GET", "/overview", "overview", overview, "Figures of the overview page", tag, {200: anything}, (403,))
    yield Endpoint(
        "GET", "/events", "events", events, "What happened, oldest first; follow `next`", tag, {200: list_schema(EVENT_SCHEMA)}, query=PAGING[:2]
    )
    q = Query("q", "Text in name or id.", {"type": "string", "maxLength": 100}, required=True)
    hit = thing(type=TEXT, id=TEXT, name=TEXT, state=TEXT, href=TEXT)
    yield Endpoint("GET", "/resources", "resources", resources, "Search everything that I may see", tag, {200: list_schema(hit)}, query=[q])
    tag_query = [Query("key", "Only this key."), Query("value", "Only this value."), *PAGING[:1]]
    yield Endpoint("GET", "/tags", "tags", tags, "Tags of resources in the current project", tag, {200: list_schema(anything)}, query=tag_query)
    yield from _job_endpoints()
    yield from _audit_endpoints()


def _job_endpoints() -> Iterator[Endpoint]:
    states: Schema = {"type": "string", "enum": [*ACTIVE, *ENDED]}
    query = [Query("state", "Only in this state; several with commas.", states), Query("kind", "Such as compute.instance.create."),
             Query("resource_id", "Only of this resource."), Query("search", "Text in label, id or user name."),
             Query("all_projects", "Of all projects that I may see.", {"type": "boolean"}), *PAGING[:2]]  # fmt: skip
    yield Endpoint("GET", "/jobs", "jobs.list", jobs, "Background work, newest first", "Jobs", {200: list_schema(JOB)}, query=query)
    yield Endpoint("GET", "/jobs/{job_id}", "jobs.get", job, "One job with its steps", "Jobs", {200: JOB}, (404,))
    yield Endpoint(
        "POST", "/jobs/{job_id}/cancel", "jobs.cancel", job_cancel, "Stop a job and undo what it made", "Jobs", {202: JOB}, (403, 404, 409)
    )
    yield Endpoint("POST", "/jobs/{job_id}/retry", "jobs.retry", job_retry, "Queue a failed job again", "Jobs", {202: JOB}, (403, 404, 409, 412))


def _audit_endpoints() -> Iterator[Endpoint]:
    query = [*(Query(name, f"Only entries with this {name.replace('_', ' ')}.") for name in AUDIT_FILTERS), Query("since", "Not before this moment (ISO 8601)."),
             Query("until", "Before this moment (ISO 8601)."), Query("cursor", "From `next`.", NUMBER), *PAGING[:1]]  # fmt: skip
    alias = ("/api/security/audit-logs",)
    yield Endpoint("GET", "/security/audit-logs", "audit.list", audit_logs, "The audit log, newest first", "Security", {200: list_schema(AUDIT)}, query=query,
                   aliases=alias)  # fmt: skip
    yield Endpoint("GET", "/security/audit-logs/{log_id}", "audit.get", audit_log, "One entry", "Security", {200: AUDIT}, (404,))
    verdict = thing(entries=NUMBER, is_intact={"type": "boolean"}, broken_seq={"type": ["integer", "null"]}, problem=TEXT)
    yield Endpoint("POST", "/security/audit-logs/verify", "audit.verify", audit_verify, "Walk the chain of hashes from its beginning", "Security", {200: verdict},
                   (403,))  # fmt: skip


# -- platform --------------------------------------------------------------------------------------------------------------------------------


def index() -> ResponseReturnValue:
    """Where to find what."""
    services: dict[str, list[str]] = {}
    for rtype in context().registry:
        services.setdefault(rtype.service, []).append(f"{PREFIX}/{rtype.service}/{rtype.collection}")
    links = {"documentation": f"{PREFIX}/docs", "openapi": f"{PREFIX}/openapi.json", "token": "/api-token-auth/", "health": "/health"}
    return io.answer({"service": SERVICE, "version": VERSION, "services": services, "links": links})


def regions() -> ResponseReturnValue:
    """The regions: this installation is one."""
    only()
    zone = {"name": f"{REGION}-a", "status": "available"}
    return io.answer(io.page_of([{"region_id": REGION, "name": "This installation", "status": "available", "availability_zones": [zone]}], count=1))


def capability_list() -> ResponseReturnValue:
    """Capabilities as workers reported them."""
    only()
    rows = capabilities(context().db)
    shown = [
        {
            "name": r.name,
            "available": r.available,
            "detail": r.detail,
            "reason": r.reason,
            "remedy": r.remedy,
            "reported_at": io.moment(r.reported_at),
        }
        for r in rows
    ]
    return io.answer(io.page_of(shown, count=len(shown)))


def overview() -> ResponseReturnValue:
    """Counts, quotas and the host."""
    ctx = context()
    found = compute_summary(ctx)
    lines = limits.quota_lines(ctx, ctx.project_id) if ctx.project_id else []
    return io.answer({
        "instances": dict(found.states), "host": [asdict(use) for use in found.host], "accelerator": found.accelerator, "jobs": dict(jobs_counts(ctx)),
        "quotas": [show_quota(line) for line in lines],
    })  # fmt: skip


def events() -> ResponseReturnValue:
    """Events of every project that the caller may see."""
    only("limit", "page_size", "cursor")
    return io.answer(event_feed())


def resources() -> ResponseReturnValue:
    """Whatever matches a text."""
    only("q", "search", "limit")
    hits = search(context(), request.args.get("q") or request.args.get("search", ""), limit=whole(request.args, "limit", 20, low=1, high=100))
    shown = [
        {
            "type": hit.type_key, "id": hit.id, "name": hit.name, "state": hit.state, "project_id": hit.project_id,
            "href": f"{PREFIX}/{hit.service}/{hit.collection}/{hit.id}",
        }
        for hit in hits
    ]  # fmt: skip
    return io.answer(io.page_of(shown, count=len(shown)))


def tags() -> ResponseReturnValue:
    """Tags with the resources that carry them."""
    only("key", "value", "limit")
    ctx = context()
    covered = {rtype.key for rtype in ctx.registry if _covers(ctx, f"{rtype.key}.read")}
    query = select(ResourceTag).where(ResourceTag.project_id == ctx.project_id, ResourceTag.resource_type.in_(covered))
    for column, name in ((ResourceTag.key, "key"), (ResourceTag.value, "value")):
        if request.args.get(name):
            query = query.where(column == request.args[name])
    rows = ctx.db.scalars(query.order_by(ResourceTag.key, ResourceTag.value, ResourceTag.resource_id).limit(paging(request.args)[0]))
    shown = [{"key": row.key, "value": row.value, "resource_type": row.resource_type, "resource_id": row.resource_id} for row in rows]
    return io.answer(io.page_of(shown, count=len(shown)))


def _covers(ctx: Any, action: str) -> bool:
    return ctx.project_id is not None and reach(ctx, action).whole(ctx.project_id)


# -- jobs ------------------------------------------------------------------------------------------------------------------------------------


def jobs() -> ResponseReturnValue:
    """A page of jobs."""
    only("state", "status", "kind", "resource_id", "search", "all_projects", "cursor", "limit", "page_size")
    args = request.args
    limit, _ = paging(args)
    state = args.get("state") or args.get("status", "")
    query = JobsQuery(
        state, args.get("kind", ""), args.get("resource_id", ""), args.get("search", ""), flag(args, "all_projects"), args.get("cursor", ""), limit
    )
    page = jobs_page(context(), query)
    shown = [show_job(row) for row in page.jobs]
    return io.answer(io.page_of(shown, count=len(shown), following=link(page.next_cursor)))


def job(job_id: str) -> ResponseReturnValue:
    """One job."""
    return io.answer(show_job(control.find_job(context(), job_id)))


def job_cancel(job_id: str) -> ResponseReturnValue:
    """Ask it to stop."""
    io.read_object()
    return io.answer(show_job(control.job_cancel(context(), job_id)), 202)


def job_retry(job_id: str) -> ResponseReturnValue:
    """Queue it again."""
    io.read_object()
    return io.answer(show_job(control.job_retry(context(), job_id)), 202)


def show_job(row: Job) -> dict[str, Any]:
    """A job with its steps."""
    steps = [
        {
            "name": step.name, "label": step.label, "state": step.state, "detail": step.detail, "started_at": io.moment(step.started_at),
            "finished_at": io.moment(step.finished_at),
        }
        for step in row.steps
    ]  # fmt: skip
    return {
        "job_id": row.id, "id": row.id, "kind": row.kind, "label": row.label, "state": row.state, "status": row.state, "progress": row.progress,
        "error": row.error, "resource_type": row.resource_type, "resource_id": row.resource_id, "resource_name": row.resource_name, "username": row.username,
        "request_id": row.request_id, "created_at": io.moment(row.created_at), "started_at": io.moment(row.started_at),
        "finished_at": io.moment(row.finished_at), "steps": steps,
    }  # fmt: skip


# -- audit -----------------------------------------------------------------------------------------------------------------------------------


def audit_query() -> AuditQuery:
    """Filters of the audit log from the query string. Raises InvalidRequest."""
    only(*AUDIT_FILTERS, "since", "until", "cursor", "limit", "page_size")
    args = request.args
    limit, _ = paging(args)
    before = whole(args, "cursor", 0, low=0, high=2**62)
    return AuditQuery(
        **{name: args.get(name, "") for name in AUDIT_FILTERS}, since=_moment("since"), until=_moment("until"), before_seq=before or None, limit=limit
    )


def _moment(name: str) -> datetime | None:
    text = request.args.get(name, "")
    if not text:
        return None
    try:
        found = datetime.fromisoformat(text)
        # Without a zone it is UTC; what lies beyond the calendar in UTC is no moment either.
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        raise InvalidRequest.fields({name: ["must be a moment in ISO 8601, such as 2026-01-31T12:00:00Z."]}) from None


def audit_logs() -> ResponseReturnValue:
    """A page of the log."""
    ctx, query = context(), audit_query()
    page = audit_entries(ctx, query)
    following = link(str(page.next_before_seq)) if page.next_before_seq else None
    return io.answer(io.page_of([show_entry(entry) for entry in page.entries], count=audit_count(ctx, query), following=following))


def audit_log(log_id: str) -> ResponseReturnValue:
    """One entry."""
    from portal.kernel.activity import audit_conditions

    ctx = context()
    entry = ctx.db.scalars(select(AuditEntry).where(AuditEntry.log_id == log_id, *audit_conditions(ctx, AuditQuery()))).first()
    if entry is None:
        raise NotFound(f"There is no entry {log_id[:80]} that you may read.")
    return io.answer(show_entry(entry))


def audit_verify() -> ResponseReturnValue:
    """Check the whole chain."""
    io.read_object()
    ctx = context()
    authorize(ctx, "security.audit.read", Target(None, label="the whole audit log"))
    found = verify(ctx.db)
    return io.answer({"entries": found.entries, "is_intact": found.broken_seq is None, "broken_seq": found.broken_seq, "problem": found.problem})


def show_entry(entry: AuditEntry) -> dict[str, Any]:
    """An entry with its place in the chain."""
    return {
        "log_id": entry.log_id, "seq": entry.seq, "timestamp": io.moment(entry.timestamp), "user_id": entry.user_id, "username": entry.username,
        "action": entry.action, "resource_type": entry.resource_type, "resource_id": entry.resource_id, "resource_name": entry.resource_name,
        "project_id": entry.project_id, "status": entry.status, "error_message": entry.error_message, "details": entry.details, "source": entry.source,
        "source_ip": entry.source_ip, "user_agent": entry.user_agent, "request_id": entry.request_id, "entry_hash": entry.entry_hash,
        "previous_hash": entry.previous_hash,
    }  # fmt: skip
