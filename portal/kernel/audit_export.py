"""Exports of the audit log: the entries that a query covers, as CSV or JSON lines, sent at once or written to a file by a job.

A file is written under another name first and gets its own when it is whole; only its owner gets it, and only while they may still export.
"""

import csv
import gzip
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from sqlalchemy import BigInteger, Column, Index, Select, String, Text, select
from sqlalchemy.orm import Mapped, column_property, mapped_column

from portal.kernel import audit
from portal.kernel.audit import FIELDS, AuditEntry, plain
from portal.kernel.audit_query import READ_AUDIT, AuditQuery, audit_count, audit_entries
from portal.kernel.authz import Target, authorize, decide
from portal.kernel.cells import safe_cell
from portal.kernel.context import Context
from portal.kernel.db import Base, JsonColumn, UtcDateTime, now, transaction
from portal.kernel.declare import AskedWork
from portal.kernel.errors import Conflict, Forbidden, InvalidRequest, NotFound
from portal.kernel.files import part_of, publish, sha256_of, writing
from portal.kernel.ids import is_storable, new_id
from portal.kernel.jobs import ACTIVE, Job, JobStep
from portal.kernel.operations import acting, refusals_audited
from portal.settings import Settings

EXPORT = "security.audit.export"
JOB_KIND = "security.audit.export"
EXPORTING = AskedWork(JOB_KIND, cancelled="No file is made.")
FORMATS = {"csv": "text/csv", "jsonl": "application/x-ndjson"}
KEEP = timedelta(days=7)
AT_ONCE = 10_000
BATCH = 1000
MOST_WAITING, MOST_LISTED = 3, 50
REPORT_EVERY = 10_000


class AuditExport(Base):
    """A file with entries of the log that somebody asked for."""

    __tablename__ = "audit_exports"

    id: Mapped[str] = mapped_column(String(64), primary_key=True, default=lambda: new_id("axp"))
    user_id: Mapped[str] = mapped_column(String(64))
    project_id: Mapped[str | None] = mapped_column(String(64))
    format: Mapped[str] = mapped_column(String(8))
    query: Mapped[dict[str, object]] = mapped_column(JsonColumn)
    job_id: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)
    expires_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    file: Mapped[str] = mapped_column(String(255), default="")
    size_bytes: Mapped[int] = mapped_column(BigInteger, default=0)
    entries: Mapped[int] = mapped_column(BigInteger, default=0)
    sha256: Mapped[str] = mapped_column(String(64), default="")
    # Project ("" for none) → whether the file tells of others there, not of the owner alone.
    covers: Mapped[dict[str, bool]] = mapped_column(JsonColumn, default=dict)
    job_state: Mapped[str | None] = column_property(select(Job.state).where(Job.id == job_id).correlate_except(Job).scalar_subquery())
    job_error: Mapped[str | None] = column_property(select(Job.error).where(Job.id == job_id).correlate_except(Job).scalar_subquery())

    # `error` is the version before's: this one neither reads nor writes it, so that it can go with the next.
    __table_args__ = (Index("ix_audit_exports_user", "user_id", "created_at"), Column("error", Text, nullable=False, server_default=""))

    @property
    def state(self) -> str:
        """`waiting`, `ready`, `cancelled` or `failed`: as its job ended, however that was."""
        if self.file:
            return "ready"
        return "waiting" if self.job_state in ACTIVE else "cancelled" if self.job_state == "cancelled" else "failed"

    @property
    def error(self) -> str:
        """Why there is no file; empty unless it failed."""
        return self.job_error or "" if self.state == "failed" else ""


@dataclass(frozen=True, slots=True)
class Written:
    """A file that is whole and on the disk."""

    file: str
    size_bytes: int
    entries: int
    sha256: str
    covers: Mapping[str, bool]


def audit_export_ask(ctx: Context, query: AuditQuery, format_: str) -> AuditExport:
    """Queue an export of what the query covers and the caller may read. Raises InvalidRequest, Forbidden or Conflict."""
    _check_format(format_)
    about = audit.Subject("security.audit_export", name=format_, project_id=ctx.project_id)
    given = {name: value for name, value in _plain(query).items() if value}
    with acting(ctx, EXPORT, about, target=_target(ctx.project_id), details={"format": format_, "filters": given}):
        _refuse_restricted(ctx)
        waiting = ctx.db.scalars(select(AuditExport.id).join(Job, Job.id == AuditExport.job_id).where(
            AuditExport.user_id == ctx.principal.user_id, Job.state.in_(ACTIVE))).all()  # fmt: skip
        if len(waiting) >= MOST_WAITING:
            raise Conflict(
                f"{MOST_WAITING} exports of yours are waiting, which is the most. Wait until one is done.", details={"limit": MOST_WAITING}
            )
        row = AuditExport(id=new_id("axp"), user_id=ctx.principal.user_id, project_id=ctx.project_id, format=format_, query=given)
        job = Job(
            kind=JOB_KIND, label="Export the audit log", resource_type="security.audit_export", resource_id=row.id, resource_name=format_,
            project_id=ctx.project_id, user_id=ctx.principal.user_id, username=ctx.principal.username, request_id=ctx.request_id,
            steps=[JobStep(position=0, name="write", label="Write the file")],
        )  # fmt: skip
        ctx.db.add(job)
        ctx.db.flush()
        row.job_id = job.id
        ctx.db.add(row)
    ctx.deliver([job.id])
    return row


def audit_exports(ctx: Context) -> Sequence[AuditExport]:
    """The caller's own, newest first. Raises Forbidden."""
    with refusals_audited(ctx, EXPORT, audit.Subject("security.audit_export", project_id=ctx.project_id)):
        _refuse_restricted(ctx)
    return ctx.db.scalars(_mine(ctx).order_by(AuditExport.created_at.desc()).limit(MOST_LISTED)).all()


def audit_export_find(ctx: Context, export_id: str) -> AuditExport:
    """One of the caller's own. Raises NotFound or Forbidden."""
    with refusals_audited(ctx, EXPORT, audit.Subject("security.audit_export", export_id, project_id=ctx.project_id)):
        _refuse_restricted(ctx)
    row = ctx.db.scalars(_mine(ctx).where(AuditExport.id == export_id)).first() if is_storable(export_id) else None
    if row is None:
        raise NotFound(f"There is no export {export_id[:80]} of yours.")
    return row


def audit_export_open(ctx: Context, export_id: str) -> tuple[AuditExport, Path]:
    """The file of one of the caller's own exports; that they took it is in the log. Raises NotFound, Forbidden or Conflict."""
    row = audit_export_find(ctx, export_id)
    path = directory(ctx.settings) / row.file
    with acting(ctx, EXPORT, audit.Subject("security.audit_export", row.id, row.format, row.project_id), target=_target(row.project_id),
                details={"download": True, "entries": row.entries, "sha256": row.sha256}):  # fmt: skip
        for project, of_others in row.covers.items():
            authorize(ctx, EXPORT, _target(project or None))
            if of_others:
                authorize(ctx, READ_AUDIT, _target(project or None))
        if row.state != "ready":
            raise Conflict(f"The export is {row.state}. {row.error}".strip())
        if (row.expires_at or now()) <= now() or not path.is_file():
            raise NotFound("The file is gone; exports are kept for 7 days. Export again.")
    return row, path


def audit_export_now(ctx: Context, query: AuditQuery, format_: str) -> Iterator[str]:
    """What a query covers, sent as it is read; only so much that it takes seconds. Raises InvalidRequest or Forbidden."""
    _check_format(format_)
    about = audit.Subject("security.audit_export", name=format_, project_id=ctx.project_id)
    with refusals_audited(ctx, EXPORT, about):
        authorize(ctx, EXPORT, _target(ctx.project_id))
        if audit_count(ctx, query, at_most=AT_ONCE + 1) > AT_ONCE:
            raise InvalidRequest(f"This is more than {AT_ONCE:,} entries. Narrow the filters, or start an export: a job writes the file.")
    given = {name: value for name, value in _plain(query).items() if value}
    with transaction(ctx.db):
        audit.record(ctx, EXPORT, about, details={"format": format_, "filters": given})
    return lines(ctx, query, format_)


def lines(ctx: Context, query: AuditQuery, format_: str, covers: dict[str, bool] | None = None) -> Iterator[str]:
    """The text of an export, newest entry first; `covers` is told which projects are in it."""
    entries = _all(ctx, query, {} if covers is None else covers)
    return _csv(entries) if format_ == "csv" else (json.dumps(plain(entry), ensure_ascii=False) + "\n" for entry in entries)


def write(ctx: Context, row: AuditExport, report: Callable[[str], None]) -> Written:
    """Write the file of an export: under a name that nobody looks for until it is whole and on the disk. `report` is told how far it has got."""
    home = directory(ctx.settings)
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    path, count, covers = home / f"{row.id}-{new_id('part')}.{row.format}.gz", 0, dict[str, bool]()
    part = part_of(path)
    with writing(part) as out, gzip.GzipFile(fileobj=out, mode="wb", mtime=0, filename="") as packed:
        for line in lines(ctx, _query_of(row), row.format, covers):
            packed.write(line.encode("utf-8", "surrogatepass"))
            count += 1
            if count % REPORT_EVERY == 0:
                report(f"{count:,} entries written.")
    hashed, size = sha256_of(part), part.stat().st_size
    publish(part, path)
    return Written(path.name, size, count - (row.format == "csv"), hashed, covers)


def directory(settings: Settings) -> Path:
    """Where files of exports are."""
    return settings.data_dir / "exports"


def _mine(ctx: Context) -> Select[AuditExport]:
    return select(AuditExport).where(AuditExport.user_id == ctx.principal.user_id)


def _refuse_restricted(ctx: Context) -> None:
    """What a file holds was read with all that its owner may do, their own doings included."""
    if ctx.principal.is_restricted or ctx.principal.user_id is None:
        raise Forbidden("A token that is restricted to scopes neither starts nor reads exports; sign in, or use a token that is not.")


def _all(ctx: Context, query: AuditQuery, covers: dict[str, bool]) -> Iterator[AuditEntry]:
    query, may = replace(query, limit=BATCH), dict[str | None, bool]()
    while True:
        page = audit_entries(ctx, query)
        for entry in page.entries:
            # To read in a project is not yet to take away from there.
            if entry.project_id not in may:
                may[entry.project_id] = decide(ctx, EXPORT, _target(entry.project_id)).allowed
            if may[entry.project_id]:
                where = entry.project_id or ""
                covers[where] = covers.get(where, False) or entry.user_id != ctx.principal.user_id
                yield entry
        ctx.db.expunge_all()
        ctx.db.rollback()
        if page.next_before_seq is None:
            return
        query = replace(query, before_seq=page.next_before_seq)


def _csv(entries: Iterable[AuditEntry]) -> Iterator[str]:
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(FIELDS)
    for entry in entries:
        yield _taken(out)
        values = {**plain(entry), "details": json.dumps(entry.details, ensure_ascii=False)}
        writer.writerow([safe_cell(value) for value in values.values()])
    yield _taken(out)


def _taken(out: io.StringIO) -> str:
    text = out.getvalue()
    out.seek(0)
    out.truncate()
    return text


def _check_format(format_: str) -> None:
    if format_ not in FORMATS:
        raise InvalidRequest.fields({"format": ["must be csv or jsonl."]})


def _target(project_id: str | None) -> Target:
    return Target(project_id, label="the audit log")


def _plain(query: AuditQuery) -> dict[str, object]:
    kept = {name: value for name, value in asdict(query).items() if name not in {"limit", "before_seq", "after_seq"}}
    return {name: value.astimezone(UTC).isoformat() if isinstance(value, datetime) else value for name, value in kept.items()}


def _query_of(row: AuditExport) -> AuditQuery:
    moments = {name: datetime.fromisoformat(str(row.query[name])) for name in ("since", "until") if row.query.get(name)}
    texts = {name: str(value) for name, value in row.query.items() if name not in moments}
    return AuditQuery(**texts, **moments)  # type: ignore[arg-type]
