"""What roles show besides the derived pages: what they may do, whom they trust, who acts in them, and the way to assume one."""

import shlex
from collections.abc import Mapping
from typing import Any

from flask import Blueprint, request
from flask.typing import ResponseReturnValue

from portal.http.guard import Access, access
from portal.http.request import context
from portal.identity import iam
from portal.identity.iam import CUSTOM, IamRole
from portal.kernel.authz import decide, target_of
from portal.kernel.context import Context
from portal.kernel.errors import InvalidRequest, PortalError
from portal.kernel.policy_documents import statements_in
from portal.security.role_sessions import END, HOUR_S, SHORTEST_S, role_assume, role_session_end, role_visible, sessions_shown
from portal.security.roles import builtin_document, trusted_names
from portal.web.derived import Tab
from portal.web.page import field_errors, form_status, go, render

pages = Blueprint("roles", __name__)
BASE = "/security/roles"
FIELDS = ("session_name", "duration")


def _load_permissions(ctx: Context, role: IamRole) -> Mapping[str, Any]:
    del ctx
    return {"document": builtin_document(role), "policies": [(policy, len(statements_in(policy.document))) for policy in role.attached]}


def _load_trust(ctx: Context, role: IamRole) -> Mapping[str, Any]:
    return {"trusted": trusted_names(ctx, role)}


def _load_sessions(ctx: Context, role: IamRole) -> Mapping[str, Any]:
    sees_all = decide(ctx, END, target_of(role)).allowed
    may_assume = role.origin == CUSTOM and iam.is_trusted(ctx.db, role, str(ctx.principal.user_id))
    return {"sessions": sessions_shown(ctx, role), "sees_all": sees_all, "may_assume": may_assume}


TABS = {
    "security.role": (
        Tab("permissions", "Permissions", "permissions.html", _load_permissions),
        Tab("trust", "Trust", "trust.html", _load_trust),
        Tab("sessions", "Sessions", "sessions.html", _load_sessions),
    )
}


@pages.get(f"{BASE}/<role_id>/assume")
@access(Access.SIGNED_IN)
def ask(role_id: str) -> ResponseReturnValue:
    """How the session is to be called, and how long it is to last."""
    return _form(role_id, 200)


@pages.post(f"{BASE}/<role_id>/assume")
@access(Access.SIGNED_IN)
def assume(role_id: str) -> ResponseReturnValue:
    """The token of a session in the role, shown once."""
    given = {name: request.form.get(name, "").strip()[:255] for name in FIELDS}
    try:
        secret, token, role = role_assume(context(), role_id, given["session_name"], duration_s=_seconds(given["duration"]))
    except InvalidRequest as error:
        return _form(role_id, form_status(error), error=error, given=given)
    command = f"curl {shlex.quote(request.host_url + 'api/v1/auth/me')} \\\n  -H {shlex.quote(f'Authorization: Token {secret}')}"
    return render("security/role/assumed.html", 201, role=role, token=token, secret=secret, command=command, base=BASE)


@pages.post(f"{BASE}/<role_id>/sessions/<session_id>/end")
@access(Access.SIGNED_IN)
def end(role_id: str, session_id: str) -> ResponseReturnValue:
    """End a session."""
    ctx = context()
    role = role_visible(ctx, role_id)
    role_session_end(ctx, role, session_id)
    return go(f"{BASE}/{role.id}/sessions", "The session has ended.")


def _seconds(text: str) -> int | None:
    if text and not (text.isascii() and text.isdigit()):
        raise InvalidRequest.fields({"duration": ["must be a number of seconds."]})
    return int(text[:9]) if text else None


def _form(role_id: str, status: int, *, error: PortalError | None = None, given: Mapping[str, str] | None = None) -> ResponseReturnValue:
    ctx = context()
    role = role_visible(ctx, role_id)
    errors, message = field_errors(error, FIELDS) if error else ({}, "")
    lengths = [
        (SHORTEST_S, "15 minutes"),
        *((hours * HOUR_S, "1 hour" if hours == 1 else f"{hours} hours") for hours in range(1, role.max_session_duration_hours + 1)),
    ]
    may = role.origin == CUSTOM and iam.is_trusted(ctx.db, role, str(ctx.principal.user_id))
    return render(
        "security/role/assume.html", status, role=role, given=given or {}, errors=errors, message=message, lengths=lengths, may=may, base=BASE
    )
