"""The audit log: filtered, paged, opened entry by entry, exported, verified."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlencode

from flask import Blueprint, Response, request, stream_with_context
from flask.typing import ResponseReturnValue

from portal.http.audit_filters import NAMES, audit_query, send_export
from portal.http.guard import Access, access
from portal.http.request import context
from portal.kernel.audit import AuditEntry
from portal.kernel.audit_checkpoints import newest_checkpoint, newest_verification
from portal.kernel.audit_export import AT_ONCE, FORMATS, audit_export_ask, audit_export_now, audit_export_open, audit_exports
from portal.kernel.audit_query import AuditQuery, audit_entries
from portal.kernel.audit_streams import streams
from portal.kernel.audit_watch import EVERYTHING, VERIFY, audit_verify
from portal.kernel.authz import decide
from portal.web.page import go, render

pages = Blueprint("audit", __name__)
LIMIT = 50
# Filter → its name on the page; search, outcome and days have fields of their own there.
LABELS = {
    "username": "User name", "user_id": "User id", "credential": "Credential", "action": "Action", "resource_type": "Resource type",
    "resource_id": "Resource", "source_ip": "Address", "project_id": "Project", "request_id": "Request",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Change:
    """One field of a resource before and after."""

    name: str
    before: str
    after: str


@pages.get("/audit")
@access(Access.SIGNED_IN)
def index() -> ResponseReturnValue:
    """A page of the log, one entry of it opened."""
    ctx, query = context(), _query()
    page = audit_entries(ctx, query)
    given = {name: request.args.get(name, "").strip() for name in NAMES}
    kept = {name: value for name, value in given.items() if value}
    may_verify = decide(ctx, VERIFY, EVERYTHING).allowed
    opened = next((entry for entry in page.entries if entry.log_id == request.args.get("open", "")), None)
    return render(
        "audit/index.html", page=page, given=given, kept=kept, labels=LABELS, cursor=request.args.get("cursor", ""), opened=opened,
        changes=changes_of(opened) if opened else [], may_verify=may_verify, url=_url, streams=streams(ctx.db, ctx.settings) if may_verify else [],
        verified=newest_verification(ctx.db), signed=newest_checkpoint(ctx.db),
    )  # fmt: skip


def _url(kept: Mapping[str, str], **changed: object) -> str:
    """This page with other filters; an empty one is left out."""
    wanted = {name: value for name, value in {**kept, **changed}.items() if value}
    return "/audit" + (f"?{urlencode(wanted)}" if wanted else "")


def changes_of(entry: AuditEntry) -> list[Change]:
    """What an entry changed, field by field; fields within fields are named with dots."""
    before, after = ({} if not isinstance(part := entry.details.get(side), dict) else _flat(part) for side in ("before", "after"))
    names = sorted({*before, *after})
    return [Change(name, before.get(name, ""), after.get(name, "")) for name in names if before.get(name) != after.get(name)]


def _flat(values: Mapping[str, object], path: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, dict) and value:
            found |= _flat(value, f"{path}{name}.")
        elif value not in (None, "", [], {}):
            found[path + name] = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return found


@pages.get("/audit/export.<kind>")
@access(Access.SIGNED_IN)
def export(kind: str) -> ResponseReturnValue:
    """A small part of the log, sent as it is read."""
    lines = audit_export_now(context(), _query(), kind)
    headers = {"Content-Disposition": f'attachment; filename="audit-log.{kind}"'}
    return Response(stream_with_context(lines), content_type=f"{FORMATS[kind]}; charset=utf-8", headers=headers)


@pages.get("/audit/exports")
@access(Access.SIGNED_IN)
def exports() -> ResponseReturnValue:
    """My exports, and the form for another one with the filters of the page that led here."""
    kept = {name: value for name in NAMES if (value := request.args.get(name, "").strip())}
    return render("audit/exports.html", exports=audit_exports(context()), kept=kept, formats=FORMATS, at_once=AT_ONCE, url=_url)


@pages.post("/audit/exports")
@access(Access.SIGNED_IN)
def export_ask() -> ResponseReturnValue:
    """Queue one."""
    audit_export_ask(context(), audit_query(request.form, limit=1), request.form.get("format", ""))
    return go("/audit/exports", "The export is being written.")


@pages.get("/audit/exports/<export_id>/file")
@access(Access.SIGNED_IN)
def export_file(export_id: str) -> ResponseReturnValue:
    """The file of one."""
    return send_export(*audit_export_open(context(), export_id))


@pages.post("/audit/verify")
@access(Access.SIGNED_IN)
def check() -> ResponseReturnValue:
    """Walk the chain."""
    verdict = audit_verify(context())
    if verdict.broken_seq is None:
        return go("/audit", f"The chain holds: {verdict.entries:,} entries.")
    return go("/audit", f"The chain is broken at entry {verdict.broken_seq}: {verdict.problem}.", "bad")


def _query() -> AuditQuery:
    return audit_query(request.args, limit=LIMIT)
