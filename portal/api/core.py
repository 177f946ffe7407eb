"""Endpoints of the platform itself: index, jobs, events, tags, search, regions, capabilities and overview."""

from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

from flask import request
from flask.typing import ResponseReturnValue
from sqlalchemy import and_, false, or_, select

from portal.api import body as io
from portal.api.endpoints import PREFIX, Endpoint, Query, Schema
from portal.api.quotas import show_quota
from portal.api.resources import EVENT_SCHEMA, PAGING, event_feed, link, list_schema, only
from portal.api.schemas import NUMBER, TEXT, WHEN, thing
from portal.compute.summary import compute_summary
from portal.http.guard import Access
from portal.http.listing import flag, paging, whole
from portal.http.probes import SERVICE, VERSION
from portal.http.request import context
from portal.kernel import control, limits
from portal.kernel.activity import JobsQuery, jobs_counts, jobs_page
from portal.kernel.authz import reach
from portal.kernel.capabilities import capabilities
from portal.kernel.jobs import ACTIVE, ENDED, Job
from portal.kernel.search import search
from portal.kernel.tags import ResourceTag

REGION = "local"
STEP = thing(name=TEXT, label=TEXT, state=TEXT, detail=TEXT, started_at=WHEN, finished_at=WHEN)
JOB = thing(
    job_id=TEXT, id=TEXT, kind=TEXT, label=TEXT, state=TEXT, status=TEXT, progress=NUMBER, error=TEXT, resource_type=TEXT, resource_id=TEXT, resource_name=TEXT,
    username=TEXT, request_id=TEXT, created_at=WHEN, started_at=WHEN, finished_at=WHEN, steps={"type": "array", "items": STEP},
)  # fmt: skip


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
    covered = [rtype for rtype in ctx.registry if _covers(ctx, f"{rtype.key}.read")]
    live = (select(rtype.model.id).where(rtype.model.deleted_at.is_(None)) for rtype in covered)
    carried = (and_(ResourceTag.resource_type == rtype.key, ResourceTag.resource_id.in_(ids)) for rtype, ids in zip(covered, live, strict=True))
    query = select(ResourceTag).where(ResourceTag.project_id == ctx.project_id, or_(false(), *carried))
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
