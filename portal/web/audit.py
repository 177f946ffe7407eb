"""The audit log: filtered, paged, exported, verified."""

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime

from flask import Blueprint, Response, request, stream_with_context
from flask.typing import ResponseReturnValue

from portal.http.guard import Access, access
from portal.http.request import context
from portal.kernel.activity import AuditQuery, audit_count, audit_entries
from portal.kernel.audit import AuditEntry, verify
from portal.kernel.authz import Target, authorize, decide
from portal.kernel.errors import InvalidRequest
from portal.web.export import safe_cell
from portal.web.page import go, render

pages = Blueprint("audit", __name__)
LIMIT = 50
BATCH = 500
COLUMNS = (
    "timestamp", "username", "action", "resource_type", "resource_id", "resource_name", "project_id", "status", "error_message", "source", "source_ip",
    "request_id", "log_id", "seq", "entry_hash",
)  # fmt: skip
TEXT_FILTERS = ("username", "action", "resource_id", "resource_type", "status", "search")


@pages.get("/audit")
@access(Access.SIGNED_IN)
def index() -> ResponseReturnValue:
    """A page of the log."""
    ctx, query = context(), _query()
    page = audit_entries(ctx, query)
    may_verify = decide(ctx, "security.audit.read", Target(None)).allowed
    given = {name: request.args.get(name, "") for name in (*TEXT_FILTERS, "since", "until")}
    return render("audit/index.html", page=page, count=audit_count(ctx, query), given=given, may_verify=may_verify)


@pages.get("/audit/export.<kind>")
@access(Access.SIGNED_IN)
def export(kind: str) -> ResponseReturnValue:
    """The filtered log as CSV or JSON lines, sent as it is read."""
    if kind not in {"csv", "jsonl"}:
        raise InvalidRequest("The log is exported as csv or jsonl.")
    rows = _all(_query())
    lines = _as_csv(rows) if kind == "csv" else (json.dumps(_plain(entry) | {"details": entry.details}, ensure_ascii=False) + "\n" for entry in rows)
    media = "text/csv" if kind == "csv" else "application/x-ndjson"
    headers = {"Content-Disposition": f'attachment; filename="audit-log.{kind}"'}
    return Response(stream_with_context(lines), content_type=f"{media}; charset=utf-8", headers=headers)


@pages.post("/audit/verify")
@access(Access.SIGNED_IN)
def check() -> ResponseReturnValue:
    """Walk the chain."""
    ctx = context()
    authorize(ctx, "security.audit.read", Target(None, label="the whole audit log"))
    verdict = verify(ctx.db)
    if verdict.broken_seq is None:
        return go("/audit", f"The chain holds: {verdict.entries:,} entries.")
    return go("/audit", f"The chain is broken at entry {verdict.broken_seq}: {verdict.problem}.", "bad")


def _query() -> AuditQuery:
    args = request.args
    cursor = args.get("cursor", "")
    if cursor and not (cursor.isascii() and cursor.isdigit()):
        raise InvalidRequest.fields({"cursor": ["is not one that this list gave."]})
    return AuditQuery(
        **{name: args.get(name, "")[:255].strip() for name in TEXT_FILTERS}, since=_day("since"), until=_day("until"),
        before_seq=int(cursor[:18]) if cursor else None, limit=LIMIT,
    )  # fmt: skip


def _day(name: str) -> datetime | None:
    text = request.args.get(name, "")
    try:
        found = datetime.fromisoformat(text) if text else None
        return None if found is None else (found if found.tzinfo else found.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        raise InvalidRequest.fields({name: ["must be a day or moment, such as 2026-01-31."]}) from None


def _all(query: AuditQuery) -> Iterator[AuditEntry]:
    ctx, query = context(), replace(query, limit=BATCH)
    while True:
        page = audit_entries(ctx, query)
        yield from page.entries
        if page.next_before_seq is None:
            return
        query = replace(query, before_seq=page.next_before_seq)
        ctx.db.expunge_all()


def _plain(entry: AuditEntry) -> dict[str, object]:
    return {name: entry.timestamp.isoformat() if name == "timestamp" else getattr(entry, name) for name in COLUMNS}


def _as_csv(entries: Iterator[AuditEntry]) -> Iterator[str]:
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(COLUMNS)
    for entry in entries:
        writer.writerow([safe_cell(value) for value in _plain(entry).values()])
        yield out.getvalue()
        out.seek(0)
        out.truncate()
    yield out.getvalue()
