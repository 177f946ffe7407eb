"""What access control shows besides the derived pages: who holds a policy, its versions, members of groups, and the simulator."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlencode

from flask import Blueprint, request
from flask.typing import ResponseReturnValue

from portal.http.guard import Access, access
from portal.http.request import context
from portal.identity.iam import IamPolicy, IamPolicyVersion
from portal.kernel.authz import Target, decide
from portal.kernel.context import Context
from portal.kernel.errors import InvalidRequest, PortalError
from portal.kernel.policy_documents import Problem
from portal.security.effects import Review, review
from portal.security.groups import group_members
from portal.security.policies import holders_of
from portal.security.simulator import CREDENTIALS, SIMULATE, Circumstances, Question, simulate, target_named, what_can, who_can
from portal.security.unused import PERIOD, unused
from portal.web.derived import Tab
from portal.web.forms import as_json, from_json
from portal.web.page import field_errors, form_status, render

pages = Blueprint("security", __name__)
FIELDS = ("user", "action", "resource", "ip", "credential", "time")


@dataclass(frozen=True, slots=True)
class Version:
    """A document as it was, with what it changed in the one before, as lines of a unified diff."""

    row: IamPolicyVersion
    changes: Sequence[str]


def _load_holders(ctx: Context, policy: IamPolicy) -> Mapping[str, Any]:
    return {"holders": holders_of(ctx, policy)}


def _load_versions(ctx: Context, policy: IamPolicy) -> Mapping[str, Any]:
    del ctx
    rows, found = policy.versions, []
    for number, row in enumerate(rows):
        before = as_json(rows[number + 1].document).splitlines() if number + 1 < len(rows) else []
        lines = list(difflib.unified_diff(before, as_json(row.document).splitlines(), lineterm="", n=2))[2:]
        found.append(Version(row, lines))
    return {"versions": found}


def _load_members(ctx: Context, group: Any) -> Mapping[str, Any]:
    return {"members": group_members(ctx, group)}


TABS: dict[str, Sequence[Tab]] = {
    "security.policy": (
        Tab("holders", "Attached to", "holders.html", _load_holders),
        Tab("versions", "Versions", "versions.html", _load_versions),
    ),
    "security.group": (Tab("members", "Members", "members.html", _load_members),),
}


def review_of(ctx: Context, text: str, policy_id: str) -> Review:
    """What there is to say of a document as it was typed."""
    try:
        document = from_json(text)
    except ValueError as error:
        return Review((Problem("", str(error)),), ())
    return review(ctx, document, policy_id)


@pages.post("/security/policies/check")
@access(Access.SIGNED_IN)
def check() -> ResponseReturnValue:
    """The document of the form as it is now: what is wrong, odd, and different for whom. Nothing is saved."""
    found = review_of(context(), request.form.get("document", ""), request.args.get("policy", ""))
    return render("security/policy/_review.html", review=found)


@pages.get("/security/simulator")
@access(Access.SIGNED_IN)
def simulator() -> ResponseReturnValue:
    """Ask who may do what, and why. The question stands in the address, so that the answer can be sent to somebody."""
    ctx, args = context(), request.args
    given = {name: args.get(name, "").strip()[:255] for name in FIELDS}
    values: dict[str, Any] = {
        "given": given, "credentials": CREDENTIALS, "mfa": args.get("mfa") == "true", "actions": sorted(ctx.registry.permissions), "errors": {}, "message": "",
        "may_simulate": decide(ctx, SIMULATE, Target(ctx.project_id)).allowed, "answer": None, "holders": None, "more": "", "decisions": None,
    }  # fmt: skip
    status = 200
    try:
        values |= _answers(ctx, given, mfa=values["mfa"])
    except PortalError as error:
        ctx.db.rollback()
        values["errors"], values["message"] = field_errors(error, FIELDS)
        status = form_status(error)
    return render("security/simulator.html", status, **values)


@pages.get("/security/unused")
@access(Access.SIGNED_IN)
def unused_permissions() -> ResponseReturnValue:
    """What a user or the holders of a policy may do and did not."""
    ctx = context()
    given = {name: request.args.get(name, "").strip()[:255] for name in ("user", "policy")}
    values: dict[str, Any] = {"given": given, "days": PERIOD.days, "found": None, "document": "", "errors": {}, "message": ""}
    status = 200
    try:
        if any(given.values()):
            found = unused(ctx, **given)
            values |= {"found": found, "document": as_json(found.document) if found.document else ""}
    except PortalError as error:
        ctx.db.rollback()
        values["errors"], values["message"] = field_errors(error, ("user", "policy"))
        status = form_status(error)
    return render("security/unused.html", status, **values)


def _imagined(given: Mapping[str, str], *, mfa: bool) -> Circumstances:
    """How the request comes that is asked about. Raises InvalidRequest."""
    try:
        at = datetime.fromisoformat(given["time"]).replace(tzinfo=UTC) if given["time"] else None
    except ValueError:
        raise InvalidRequest.fields({"time": ["must be a date and a time, such as 2026-11-21T14:00."]}) from None
    return Circumstances(given["ip"], mfa, credential=given["credential"] or "session", at=at)


def _answers(ctx: Context, given: Mapping[str, str], *, mfa: bool) -> dict[str, Any]:
    user, action, resource = given["user"], given["action"], given["resource"]
    if user and action:
        return {"answer": simulate(ctx, Question(user, action, resource, _imagined(given, mfa=mfa)))}
    if action:
        able = who_can(ctx, action, target_named(ctx, resource, action), _imagined(given, mfa=mfa), after=request.args.get("cursor", ""))
        more = urlencode({**given, "mfa": str(mfa).lower(), "cursor": able.next_after}) if able.next_after else ""
        return {"holders": able.found, "more": more}
    if user:
        return {"decisions": what_can(ctx, user, resource)}
    if resource or given["ip"]:
        raise InvalidRequest.fields({"user": ["Name a user, an action, or both."]})
    return {}
