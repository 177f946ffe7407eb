"""Endpoints of the audit log: entries by filter, one entry, verification, exports."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from flask import Response, request, stream_with_context
from flask.typing import ResponseReturnValue

from portal.api import body as io
from portal.api.endpoints import PREFIX, Endpoint, Query, Schema
from portal.api.resources import PAGING, link, list_schema, only
from portal.api.schemas import MAYBE, MAYBE_TEXT, NUMBER, TEXT, WHEN, thing
from portal.http.audit_filters import MEANINGS, NAMES, audit_query, send_export
from portal.http.listing import paging
from portal.http.request import context
from portal.kernel.audit import AuditEntry, plain
from portal.kernel.audit_export import (
    AT_ONCE,
    FORMATS,
    AuditExport,
    audit_export_ask,
    audit_export_find,
    audit_export_now,
    audit_export_open,
    audit_exports,
)
from portal.kernel.audit_query import COUNTED, audit_count, audit_entries, audit_entry
from portal.kernel.audit_watch import audit_standing, audit_verify_ask, verification_under_way
from portal.kernel.errors import InvalidRequest

# What is told of an entry is what is kept of it.
ENTRY = thing(**{
    column.key: {"type": "object"} if column.key == "details" else WHEN if column.key == "timestamp" else NUMBER if column.key == "seq"
    else MAYBE_TEXT if column.nullable else TEXT for column in AuditEntry.__table__.columns
})  # fmt: skip
VERDICT = thing(
    entries=NUMBER, is_intact={"type": ["boolean", "null"], "description": "null: never verified as a whole."}, broken_seq=MAYBE, first_broken_id=MAYBE_TEXT,
    problem=TEXT, checkpoints=NUMBER, from_seq=NUMBER, to_seq=NUMBER, verified_at=WHEN, job_id={**MAYBE_TEXT, "description": "The job that verifies now."},
)  # fmt: skip
VERIFYING = thing(job_id=TEXT, status=TEXT)
EXPORTED = thing(
    export_id=TEXT, format=TEXT, state=TEXT, entries=NUMBER, size_bytes=NUMBER, sha256=TEXT, error=TEXT, job_id=TEXT, created_at=WHEN, expires_at=WHEN,
    filters={"type": "object"}, file=MAYBE_TEXT,
)  # fmt: skip
ASKED = thing(job_id=TEXT, export_id=TEXT, status=TEXT, export=EXPORTED)
LOGS = "/security/audit-logs"
FILTERS = [Query(name, text) for name, text in MEANINGS.items()]


def endpoints() -> Iterator[Endpoint]:
    """All of them."""
    query = [*FILTERS, Query("user", "The same as username."), Query("cursor", "From `next`.", NUMBER), *PAGING[:1]]
    yield Endpoint("GET", LOGS, "audit.list", entries, f"The audit log, newest first; `count` goes up to {COUNTED:,}", "Security", {200: list_schema(ENTRY)}, query=query,
                   aliases=("/api/security/audit-logs",))  # fmt: skip
    text: Schema = {"type": "string", "enum": list(FORMATS), "default": "jsonl"}
    yield Endpoint("GET", f"{LOGS}/export", "audit.export.now", export_now, f"At most {AT_ONCE:,} entries as a file", "Security", {200: None}, (403,),
                   query=[*FILTERS, Query("format", "csv or jsonl.", text)])  # fmt: skip
    asked: Schema = {"type": "object", "additionalProperties": False, "properties": {"format": text, **{name: {"type": "string"} for name in NAMES}}}
    yield Endpoint("POST", f"{LOGS}/export", "audit.export", export, "Have a job write any number of entries to a file", "Security", {202: ASKED},
                   (403, 409, 412), body=asked, body_required=False)  # fmt: skip
    yield Endpoint("GET", "/security/audit-exports", "audit.exports", exports, "My newest exports, at most 50", "Security",
                   {200: list_schema(EXPORTED)}, (403,))  # fmt: skip
    yield Endpoint("GET", "/security/audit-exports/{export_id}", "audit.exports.get", exported, "One export", "Security",
                   {200: EXPORTED}, (403, 404))  # fmt: skip
    yield Endpoint("GET", "/security/audit-exports/{export_id}/file", "audit.exports.file", file, "The file of an export, packed with gzip", "Security",
                   {200: None}, (403, 404, 409, 412))  # fmt: skip
    yield Endpoint("GET", f"{LOGS}/{{log_id}}", "audit.get", entry, "One entry", "Security", {200: ENTRY}, (403, 404))
    yield Endpoint("GET", f"{LOGS}/verify", "audit.verify.get", verification, "What the last verification of the whole log found", "Security",
                   {200: VERDICT}, (403,))  # fmt: skip
    yield Endpoint("POST", f"{LOGS}/verify", "audit.verify.post", verify, "Have a job verify the whole log, archives included", "Security",
                   {202: VERIFYING}, (403, 409))  # fmt: skip


def entries() -> ResponseReturnValue:
    """A page of the log."""
    only(*NAMES, "user", "cursor", "limit", "page_size")
    args = request.args.to_dict()
    args.setdefault("username", args.get("user", ""))
    query = audit_query(args, limit=paging(request.args)[0])
    ctx = context()
    page = audit_entries(ctx, query)
    following = link(str(page.next_before_seq)) if page.next_before_seq else None
    return io.answer(
        io.page_of([show_entry(each) for each in page.entries], count=audit_count(ctx, replace(query, before_seq=None)), following=following)
    )


def entry(log_id: str) -> ResponseReturnValue:
    """One entry."""
    return io.answer(show_entry(audit_entry(context(), log_id)))


def verification() -> ResponseReturnValue:
    """Where the log is broken, else when it was found whole."""
    ctx = context()
    found, job = audit_standing(ctx), verification_under_way(ctx.db)
    row = found.broken or found.whole
    answer: dict[str, Any] = {
        "entries": 0, "is_intact": None, "broken_seq": None, "first_broken_id": None, "problem": "", "checkpoints": 0, "from_seq": 0, "to_seq": 0,
        "verified_at": None, "job_id": job.id if job else None,
    }  # fmt: skip
    if row is not None:
        answer |= {
            "entries": row.entries, "is_intact": row.broken_seq is None, "broken_seq": row.broken_seq, "first_broken_id": row.broken_id or None,
            "problem": row.problem, "checkpoints": row.checkpoints, "from_seq": row.from_seq, "to_seq": row.to_seq, "verified_at": io.moment(row.at),
        }  # fmt: skip
    return io.answer(answer)


def verify() -> ResponseReturnValue:
    """Begin to verify all of it."""
    io.read_object()
    job = audit_verify_ask(context())
    return io.answer({"job_id": job.id, "status": job.state}, 202)


def export_now() -> ResponseReturnValue:
    """A small file, sent as it is read."""
    only(*NAMES, "format")
    args = request.args.to_dict()
    kind = args.get("format", "jsonl")
    lines = audit_export_now(context(), audit_query(args, limit=1), kind)
    headers = {"Content-Disposition": f'attachment; filename="audit-log.{kind}"'}
    return Response(stream_with_context(lines), content_type=f"{FORMATS[kind]}; charset=utf-8", headers=headers)


def export() -> ResponseReturnValue:
    """Queue one."""
    given = io.read_object()
    problems = {name: ["is not a field of this request."] for name in given if name not in {*NAMES, "format"}}
    problems |= {name: ["must be text."] for name, value in given.items() if not isinstance(value, str)}
    if problems:
        raise InvalidRequest.fields(problems)
    row = audit_export_ask(context(), audit_query(given, limit=1), given.get("format", "jsonl"))
    return io.answer({"job_id": row.job_id, "export_id": row.id, "status": row.state, "export": show_export(row)}, 202)


def exports() -> ResponseReturnValue:
    """All of them."""
    only()
    shown = [show_export(row) for row in audit_exports(context())]
    return io.answer(io.page_of(shown, count=len(shown)))


def exported(export_id: str) -> ResponseReturnValue:
    """One of them."""
    return io.answer(show_export(audit_export_find(context(), export_id)))


def file(export_id: str) -> ResponseReturnValue:
    """The file itself."""
    return send_export(*audit_export_open(context(), export_id))


def show_export(row: AuditExport) -> dict[str, Any]:
    """An export with the place of its file."""
    return {
        "export_id": row.id, "format": row.format, "state": row.state, "entries": row.entries, "size_bytes": row.size_bytes, "sha256": row.sha256,
        "error": row.error, "job_id": row.job_id, "created_at": io.moment(row.created_at), "expires_at": io.moment(row.expires_at), "filters": row.query,
        "file": f"{PREFIX}/security/audit-exports/{row.id}/file" if row.state == "ready" else None,
    }  # fmt: skip


def show_entry(entry: AuditEntry) -> dict[str, Any]:
    """An entry with its place in the chain."""
    return {**plain(entry), "timestamp": io.moment(entry.timestamp)}
