"""Endpoints of the audit log: entries by filter, one entry, verification."""

from collections.abc import Iterator
from typing import Any

from flask import request
from flask.typing import ResponseReturnValue

from portal.api import body as io
from portal.api.endpoints import Endpoint, Query, Schema
from portal.api.identity import TEXT, WHEN, thing
from portal.api.resources import PAGING, link, list_schema, only
from portal.http.audit_filters import MEANINGS, NAMES, audit_query
from portal.http.listing import paging
from portal.http.request import context
from portal.kernel.audit import AuditEntry
from portal.kernel.audit_query import audit_count, audit_entries, audit_entry
from portal.kernel.audit_watch import audit_verify

NUMBER: Schema = {"type": "integer"}
MAYBE_TEXT: Schema = {"type": ["string", "null"]}
ENTRY = thing(
    log_id=TEXT, seq=NUMBER, timestamp=WHEN, user_id=MAYBE_TEXT, username=TEXT, credential=TEXT, action=TEXT, resource_type=TEXT, resource_id=TEXT,
    resource_name=TEXT, project_id=MAYBE_TEXT, status=TEXT, error_message=TEXT, details={"type": "object"}, source=TEXT, source_ip=TEXT,
    user_agent=TEXT, request_id=TEXT, entry_hash=TEXT, previous_hash=TEXT,
)  # fmt: skip
VERDICT = thing(
    entries=NUMBER, is_intact={"type": "boolean"}, broken_seq={"type": ["integer", "null"]}, first_broken_id=MAYBE_TEXT, problem=TEXT, checkpoints=NUMBER,
)  # fmt: skip
LOGS = "/security/audit-logs"
FILTERS = [Query(name, text) for name, text in MEANINGS.items()]


def endpoints() -> Iterator[Endpoint]:
    """All of them."""
    query = [*FILTERS, Query("user", "The same as username."), Query("cursor", "From `next`.", NUMBER), *PAGING[:1]]
    yield Endpoint("GET", LOGS, "audit.list", entries, "The audit log, newest first", "Security", {200: list_schema(ENTRY)}, query=query,
                   aliases=("/api/security/audit-logs",))  # fmt: skip
    yield Endpoint("GET", f"{LOGS}/{{log_id}}", "audit.get", entry, "One entry", "Security", {200: ENTRY}, (403, 404))
    for method in ("GET", "POST"):
        yield Endpoint(method, f"{LOGS}/verify", f"audit.verify.{method.lower()}", verification, "Walk the chain of hashes from its beginning", "Security",
                       {200: VERDICT}, (403,))  # fmt: skip


def entries() -> ResponseReturnValue:
    """A page of the log."""
    only(*NAMES, "user", "cursor", "limit", "page_size")
    args = request.args.to_dict()
    args.setdefault("username", args.get("user", ""))
    query = audit_query(args, limit=paging(request.args)[0])
    ctx = context()
    page = audit_entries(ctx, query)
    following = link(str(page.next_before_seq)) if page.next_before_seq else None
    return io.answer(io.page_of([show_entry(each) for each in page.entries], count=audit_count(ctx, query), following=following))


def entry(log_id: str) -> ResponseReturnValue:
    """One entry."""
    return io.answer(show_entry(audit_entry(context(), log_id)))


def verification() -> ResponseReturnValue:
    """Check the whole chain."""
    if request.method == "POST":
        io.read_object()
    found = audit_verify(context())
    return io.answer({
        "entries": found.entries, "is_intact": found.broken_seq is None, "broken_seq": found.broken_seq, "first_broken_id": found.broken_id or None,
        "problem": found.problem, "checkpoints": found.checkpoints,
    })  # fmt: skip


def show_entry(entry: AuditEntry) -> dict[str, Any]:
    """An entry with its place in the chain."""
    return {
        "log_id": entry.log_id, "seq": entry.seq, "timestamp": io.moment(entry.timestamp), "user_id": entry.user_id, "username": entry.username,
        "credential": entry.credential, "action": entry.action, "resource_type": entry.resource_type, "resource_id": entry.resource_id,
        "resource_name": entry.resource_name, "project_id": entry.project_id, "status": entry.status, "error_message": entry.error_message,
        "details": entry.details, "source": entry.source, "source_ip": entry.source_ip, "user_agent": entry.user_agent, "request_id": entry.request_id,
        "entry_hash": entry.entry_hash, "previous_hash": entry.previous_hash,
    }  # fmt: skip
