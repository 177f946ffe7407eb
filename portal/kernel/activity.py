"""What happened: jobs by page, and jobs with audit entries or events together for one resource or one project."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, func, or_, select

from portal.kernel.audit import AuditEntry
from portal.kernel.audit_query import HIGHEST, MAX_LIMIT, READ_AUDIT
from portal.kernel.authz import Target, decide, reach, target_of
from portal.kernel.context import Context
from portal.kernel.control import visible_jobs
from portal.kernel.events import Event
from portal.kernel.jobs import ACTIVE, Job
from portal.kernel.keyset import behind, cursor_of
from portal.kernel.lookup import about_seen
from portal.kernel.policy import Columns
from portal.kernel.resource import ResourceType


@dataclass(frozen=True, slots=True)
class JobsQuery:
    """Which jobs are asked for; the current project's unless `all_projects`."""

    state: str = ""
    kind: str = ""
    resource_id: str = ""
    search: str = ""
    all_projects: bool = False
    cursor: str = ""
    limit: int = 20


@dataclass(frozen=True, slots=True)
class JobsPage:
    """Jobs, newest first, and where the next page begins."""

    jobs: Sequence[Job]
    next_cursor: str


def jobs_page(ctx: Context, query: JobsQuery) -> JobsPage:
    """A page of the jobs that the caller may see. Raises InvalidRequest for a cursor that is none."""
    statement = _jobs(ctx, query)
    if query.cursor:
        statement = statement.where(behind(query.cursor, Job.created_at, Job.id))
    rows = ctx.db.scalars(statement.order_by(Job.created_at.desc(), Job.id.desc()).limit(query.limit + 1)).all()
    shown = rows[: query.limit]
    return JobsPage(shown, cursor_of(shown[-1].created_at, shown[-1].id) if len(rows) > query.limit else "")


def jobs_counts(ctx: Context) -> Mapping[str, int]:
    """State → number of the current project's jobs."""
    visible = _jobs(ctx, JobsQuery()).with_only_columns(Job.state, func.count(), maintain_column_froms=True).group_by(Job.state)
    return {state: number for state, number in ctx.db.execute(visible)}  # noqa: C416 - rows are no tuples for the type checker


def _jobs(ctx: Context, query: JobsQuery) -> Select[Job]:
    statement = select(Job).where(visible_jobs(ctx), Job.resource_type != "")
    if not query.all_projects:
        statement = statement.where(Job.project_id == ctx.project_id)
    states = [state for state in query.state.split(",") if state]
    if states:
        statement = statement.where(Job.state.in_(states))
    if query.kind:
        statement = statement.where(Job.kind == query.kind)
    if query.resource_id:
        statement = statement.where(Job.resource_id == query.resource_id)
    if query.search:
        statement = statement.where(
            or_(*(c.icontains(query.search[:100], autoescape=True) for c in (Job.label, Job.resource_id, Job.username, Job.id)))
        )
    return statement


@dataclass(frozen=True, slots=True)
class ActivityItem:
    """Something that happened to a resource, as one line."""

    at: datetime
    kind: str
    title: str
    actor: str
    status: str
    detail: str = ""
    job_id: str = ""
    request_id: str = ""
    resource_type: str = ""
    resource_id: str = ""
    resource_name: str = ""
    changes: Mapping[str, Any] = field(default_factory=dict)


def activity_of(ctx: Context, rtype: ResourceType, row: Any, *, limit: int = 50) -> list[ActivityItem]:
    """What happened to one resource, newest first: its audit entries for those who may read them, its events for the others, and its jobs."""
    visible = visible_jobs(ctx)
    jobs = ctx.db.scalars(select(Job).where(Job.resource_id == row.id, visible).order_by(Job.created_at.desc()).limit(limit)).all()
    may_audit = decide(ctx, READ_AUDIT, target_of(row)).allowed
    if may_audit:
        entries = ctx.db.scalars(select(AuditEntry).where(AuditEntry.resource_id == row.id).order_by(AuditEntry.seq.desc()).limit(limit)).all()
        told = [_of_entry(ctx, entry) for entry in entries]
    else:
        query = select(Event).where(_visible_events(ctx), Event.resource_id == row.id, Event.type.startswith(f"{rtype.key}.", autoescape=True))
        told = [_of_event(ctx, event) for event in ctx.db.scalars(query.order_by(Event.id.desc()).limit(limit))]
    # How a job ended is told already; one that has not ended has no other line.
    told_of = {item.job_id for item in told if item.job_id}
    return _newest([*told, *(_of_job(job) for job in jobs if job.state in ACTIVE or job.id not in told_of)], limit)


def recent(ctx: Context, *, limit: int = 15) -> list[ActivityItem]:
    """What happened in the current project lately: events, which everybody in it may read, newest first."""
    if ctx.project_id is None or not decide(ctx, "core.event.read", Target(ctx.project_id)).allowed:
        return []
    query = select(Event).where(Event.project_id == ctx.project_id, _visible_events(ctx)).order_by(Event.id.desc()).limit(limit)
    return [_of_event(ctx, event) for event in ctx.db.scalars(query)]


def events_after(ctx: Context, *, after_id: int = 0, resource_id: str = "", limit: int = 100) -> Sequence[Event]:
    """Events of the projects that the caller may see, oldest first, after a known one."""
    statement = select(Event).where(_visible_events(ctx), Event.id > min(after_id, HIGHEST))
    if resource_id:
        statement = statement.where(Event.resource_id == resource_id)
    return ctx.db.scalars(statement.order_by(Event.id).limit(min(limit, MAX_LIMIT))).all()


def _visible_events(ctx: Context) -> ColumnElement[bool]:
    allowed = reach(ctx, "core.event.read").where(Columns(Event.project_id))
    return and_(allowed, about_seen(ctx, lambda key: Event.type.startswith(f"{key}.", autoescape=True), Event.resource_id))


def _newest(items: list[ActivityItem], limit: int) -> list[ActivityItem]:
    return sorted(items, key=lambda item: item.at, reverse=True)[:limit]


def _title(ctx: Context, action: str) -> str:
    op = ctx.registry.operations().get(action)
    if op is not None:
        return op.label
    base, _, ending = action.rpartition(".")
    op = ctx.registry.operations().get(base)
    return f"{op.label}: {ending}" if op is not None else ending.replace("_", " ").capitalize()


def _missing(details: Mapping[str, object]) -> str:
    """What the reconciler did not find on the host, in words."""
    missing = details.get("missing")
    return " ".join(map(str, missing)) if isinstance(missing, list) else ""


def _of_entry(ctx: Context, entry: AuditEntry) -> ActivityItem:
    job_id = str(entry.details.get("job_id") or "")
    changes = {name: entry.details[name] for name in ("before", "after") if isinstance(entry.details.get(name), dict)}
    return ActivityItem(
        entry.timestamp, "audit", _title(ctx, entry.action), entry.username, entry.status, entry.error_message or _missing(entry.details), job_id,
        entry.request_id,
        entry.resource_type, entry.resource_id, entry.resource_name, changes,
    )  # fmt: skip


def _of_event(ctx: Context, event: Event) -> ActivityItem:
    job_id = str(event.payload.get("job_id") or "")
    return ActivityItem(
        event.at, "event", _title(ctx, event.type), event.actor, str(event.payload.get("state") or ""), _missing(event.payload), job_id,
        resource_type=event.type.rpartition(".")[0], resource_id=event.resource_id, resource_name=event.resource_name,
    )  # fmt: skip


def _of_job(job: Job) -> ActivityItem:
    return ActivityItem(
        job.finished_at or job.started_at or job.created_at, "job", job.label, job.username, job.state, job.error, job.id, job.request_id,
        job.resource_type, job.resource_id, job.resource_name,
    )  # fmt: skip
