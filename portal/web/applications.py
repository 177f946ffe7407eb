"""Applications that ask the portal's OAuth2 server for access: the user's own, and for platform admins all."""

from collections.abc import Mapping
from typing import Any

from flask import Blueprint, request
from flask.typing import ResponseReturnValue

from portal.http.guard import Access, access
from portal.http.request import context
from portal.identity.oauth2.clients import (
    Registration,
    client_create,
    client_delete,
    client_find,
    client_rotate_secret,
    client_update,
    clients_of,
)
from portal.identity.oauth2.models import CODE, CREDENTIALS, GRANTS, REFRESH, OAuthClient
from portal.identity.service_accounts import READ, service_accounts_of
from portal.kernel.authz import Target, decide
from portal.kernel.errors import Conflict, InvalidRequest, PortalError
from portal.web.forms import check_named, scopes_of
from portal.web.page import field_errors, form_status, go, render

pages = Blueprint("applications", __name__)
BASE = "/security/applications"
FIELDS = ("name", "redirect_uris", "grants", "scopes", "service_account_id", "confirm")
LABELS = {
    CODE: "Sign users in (authorization code)",
    REFRESH: "Stay signed in (refresh token)",
    CREDENTIALS: "Act as a service account (client credentials)",
}


@pages.get(BASE)
@access(Access.SIGNED_IN)
def index() -> ResponseReturnValue:
    """All that the user may see."""
    return _list(200)


@pages.post(BASE)
@access(Access.SIGNED_IN)
def create() -> ResponseReturnValue:
    """Register one; its secret is shown once."""
    given = _given()
    try:
        secret, made = client_create(context(), given)
    except (InvalidRequest, Conflict) as error:
        return _list(form_status(error), error=error, typed=given)
    return _one(made.id, 201, secret=secret, is_new=True)


@pages.get(f"{BASE}/<client_id>")
@access(Access.SIGNED_IN)
def show(client_id: str) -> ResponseReturnValue:
    """One of them."""
    return _one(client_id, 200)


@pages.post(f"{BASE}/<client_id>")
@access(Access.SIGNED_IN)
def change(client_id: str) -> ResponseReturnValue:
    """Change it."""
    given = _given()
    try:
        changed = client_update(context(), client_id, given)
    except (InvalidRequest, Conflict) as error:
        return _one(client_id, form_status(error), error=error, typed=given)
    return go(f"{BASE}/{client_id}", f"{changed.name}: saved.")


@pages.post(f"{BASE}/<client_id>/secret")
@access(Access.SIGNED_IN)
def rotate(client_id: str) -> ResponseReturnValue:
    """A new secret, shown once; the old one ends."""
    secret, _ = client_rotate_secret(context(), client_id)
    return _one(client_id, 200, secret=secret)


@pages.post(f"{BASE}/<client_id>/delete")
@access(Access.SIGNED_IN)
def remove(client_id: str) -> ResponseReturnValue:
    """Remove it."""
    client = client_find(context(), client_id)
    try:
        check_named(client.name)
    except InvalidRequest as error:
        return _one(client_id, form_status(error), error=error)
    client_delete(context(), client_id)
    return go(BASE, f"{client.name} is removed. Its tokens have ended.")


def _given() -> Registration:
    form = request.form
    return Registration(
        form.get("name", "").strip()[:1000], form.get("redirect_uris", "")[:20_000].split(), form.getlist("grants")[:10], scopes_of(form.get("scopes", "")[:5000]),
        form.get("service_account_id", "").strip()[:64], "is_public" in form,
    )  # fmt: skip


def _list(status: int, *, error: PortalError | None = None, typed: Registration | None = None) -> ResponseReturnValue:
    shown = typed or Registration("")
    return render("security/applications.html", status, rows=clients_of(context()), typed=shown, accounts=_accounts(), **_form(error))


def _one(
    client_id: str, status: int, *, error: PortalError | None = None, typed: Registration | None = None, secret: str = "", is_new: bool = False
) -> ResponseReturnValue:  # fmt: skip
    client = client_find(context(), client_id)
    shown = typed or Registration(
        client.name, client.redirect_uris, client.grants, client.scopes, client.service_account_id or "", client.is_public
    )  # fmt: skip
    return render(
        "security/application.html", status, client=client, typed=shown, secret=secret, is_new=is_new, accounts=_accounts(client), **_form(error)
    )


def _accounts(client: OAuthClient | None = None) -> dict[str, str]:
    """Id → name of the service accounts that can be chosen: the project's, and the one that is."""
    ctx = context()
    may_see = decide(ctx, READ, Target(ctx.project_id)).allowed
    found = {each.user_id: each.user.username for each in service_accounts_of(ctx, ctx.project_id)} if may_see else {}
    chosen = client.service_account if client else None
    return {chosen.id: chosen.username, **found} if chosen is not None else found


def _form(error: PortalError | None) -> Mapping[str, Any]:
    errors, message = field_errors(error, FIELDS) if error else ({}, "")
    return {"errors": errors, "message": message, "grants": [(grant, LABELS[grant]) for grant in GRANTS]}
