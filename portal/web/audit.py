"""The audit log: filtered, paged, opened entry by entry, exported, verified."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from urllib.parse import urlencode

from flask import Blueprint, Response, request, stream_with_context
from flask.typing import ResponseReturnValue

from portal.http.audit_filters import NAMES, audit_query, send_export
from portal.http.guard import Access, access
from portal.http.listing import whole
from portal.http.request import context
from portal.kernel.audit import AuditEntry
from portal.kernel.audit_checkpoints import newest_checkpoint
from portal.kernel.audit_export import AT_ONCE, FORMATS, audit_export_ask, audit_export_now, audit_export_open, audit_exports
from portal.kernel.audit_keys import trust_of
from portal.kernel.audit_query import HIGHEST, AuditQuery, audit_entries
from portal.kernel.audit_streams import streams
from portal.kernel.audit_verifications import Standing, covering, standing
from portal.kernel.audit_watch import EVERYTHING, VERIFY, audit_verify_ask, verification_under_way
from portal.kernel.authz import decide
from portal.kernel.context import Context
from portal.kernel.db import now
from portal.kernel.jobs import Job
from portal.web.page import go, render

pages = Blueprint("audit", __name__)
LIMIT, MOST_NEWER = 50, 200
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
    given, kept, state = {name: request.args.get(name, "").strip() for name in NAMES}, _kept(), _verification(ctx)
    may_follow = query.before_seq is None and _goes_on(query)
    follow = may_follow and request.args.get("follow") == "1"
    opened = next((entry for entry in page.entries if entry.log_id == request.args.get("open", "")), None)
    return render(
        "audit/index.html", page=page, given=given, kept=kept, labels=LABELS, cursor=request.args.get("cursor", ""), opened=opened,
        changes=changes_of(opened) if opened else [], url=_url, streams=streams(ctx.db, ctx.settings) if state.may_verify else [],
        verification=state, signed=newest_checkpoint(ctx.db),
        may_follow=may_follow, follow=follow, is_more=False, newest=(page.entries[0].seq if page.entries else 0) if follow else None,
        covered=covering(ctx.db, trust_of(ctx.settings), opened.seq) if opened else None,
    )  # fmt: skip


@pages.get("/audit/newer")
@access(Access.SIGNED_IN)
def newer() -> ResponseReturnValue:
    """What came since the page was shown, for who follows the log; nothing where no more can come."""
    query, after = _query(), whole(request.args, "after", 0, low=0, high=HIGHEST)
    page = audit_entries(context(), replace(query, limit=MOST_NEWER, after_seq=after))
    if not page.entries and _goes_on(query):
        return "", 204
    newest = (page.entries[0].seq if page.entries else after) if _goes_on(query) else None
    is_more = page.next_before_seq is not None
    return render("audit/_rows.html", page=page, kept=_kept(), newest=newest, opened=None, cursor="", url=_url, is_more=is_more)


def _goes_on(query: AuditQuery) -> bool:
    """Whether entries can still come: not where the time that was asked for is over."""
    return query.until is None or query.until > now()


def _kept() -> dict[str, str]:
    return {name: value for name in NAMES if (value := request.args.get(name, "").strip())}


@dataclass(frozen=True, slots=True)
class Verification:
    """What the head of the page says of verifications: what they found, which one runs, and whether the reader may start one."""

    found: Standing
    job: Job | None
    may_verify: bool


def _verification(ctx: Context) -> Verification:
    return Verification(standing(ctx.db, trust_of(ctx.settings)), verification_under_way(ctx.db), decide(ctx, VERIFY, EVERYTHING).allowed)


@pages.get("/audit/verification")
@access(Access.SIGNED_IN)
def verification() -> ResponseReturnValue:
    """The part of the head that tells of verifications, asked for again while one runs."""
    return render("audit/_verification.html", verification=_verification(context()))


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
    return render("audit/exports.html", exports=audit_exports(context()), kept=_kept(), formats=FORMATS, at_once=AT_ONCE, url=_url)


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
    """Have a job verify all of the log."""
    audit_verify_ask(context())
    return go("/audit", "The whole log is being verified.")


def _query() -> AuditQuery:
    return audit_query(request.args, limit=LIMIT)
