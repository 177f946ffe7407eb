"""Service accounts of the current project, and their keys."""

from collections.abc import Mapping
from typing import Any

from flask import Blueprint, request
from flask.typing import ResponseReturnValue

from portal.http.guard import Access, access
from portal.http.object_keys import key_end, key_make, why_no_keys
from portal.http.request import context
from portal.identity import tokens
from portal.identity.s3_keys import s3_keys_of
from portal.identity.service_accounts import (
    role_labels,
    service_account_create,
    service_account_delete,
    service_account_find,
    service_account_update,
    service_accounts_of,
)
from portal.kernel.errors import Conflict, InvalidRequest, PortalError, QuotaExceeded, Unavailable
from portal.web.forms import check_named, days_of, scopes_of
from portal.web.page import field_errors, form_status, go, render

pages = Blueprint("service_accounts", __name__)
BASE = "/security/service-accounts"
FIELDS = ("name", "role", "scopes", "days", "confirm")


@pages.get(BASE)
@access(Access.SIGNED_IN)
def index() -> ResponseReturnValue:
    """All of the project."""
    return _list(200)


@pages.post(BASE)
@access(Access.SIGNED_IN)
def create() -> ResponseReturnValue:
    """A new one."""
    given = {name: request.form.get(name, "").strip()[:255] for name in ("name", "role")}
    try:
        made = service_account_create(context(), name=given["name"], role=given["role"])
    except (InvalidRequest, Conflict) as error:
        return _list(form_status(error), error=error, typed=given)
    return go(f"{BASE}/{made.user_id}", f"Service account {made.user.username} is created. It does nothing until it has a key.")


@pages.get(f"{BASE}/<account_id>")
@access(Access.SIGNED_IN)
def show(account_id: str) -> ResponseReturnValue:
    """One with its keys."""
    return _one(account_id, 200)


@pages.post(f"{BASE}/<account_id>")
@access(Access.SIGNED_IN)
def change(account_id: str) -> ResponseReturnValue:
    """Another role; disable or enable."""
    form = request.form
    active = None if "is_active" not in form else form["is_active"] == "true"
    try:
        changed = service_account_update(context(), account_id, role=form.get("role"), is_active=active)
    except (InvalidRequest, Conflict) as error:
        return _one(account_id, form_status(error), error=error)
    return go(f"{BASE}/{account_id}", f"{changed.user.username}: saved." if active is not False else f"{changed.user.username} is disabled.")


@pages.post(f"{BASE}/<account_id>/delete")
@access(Access.SIGNED_IN)
def remove(account_id: str) -> ResponseReturnValue:
    """Delete it."""
    found = service_account_find(context(), account_id)
    try:
        check_named(found.user.username)
    except InvalidRequest as error:
        return _one(account_id, form_status(error), error=error)
    service_account_delete(context(), account_id)
    return go(BASE, "The service account is deleted.")


@pages.post(f"{BASE}/<account_id>/keys")
@access(Access.SIGNED_IN)
def create_key(account_id: str) -> ResponseReturnValue:
    """A new key, shown once."""
    ctx = context()
    owner = service_account_find(ctx, account_id).user
    given = {name: request.form.get(name, "").strip()[:1000] for name in ("name", "scopes", "days")}
    try:
        secret, _ = tokens.token_create(ctx, owner, given["name"], scopes=scopes_of(given["scopes"]), days=days_of(given["days"]))
    except (InvalidRequest, Conflict, QuotaExceeded) as error:
        return _one(account_id, form_status(error), error=error, typed=given)
    return _one(account_id, 201, secret=secret)


@pages.post(f"{BASE}/<account_id>/keys/<key_id>/rotate")
@access(Access.SIGNED_IN)
def rotate_key(account_id: str, key_id: str) -> ResponseReturnValue:
    """A new secret for a key, shown once; the old one holds for a day."""
    ctx = context()
    secret, _ = tokens.token_rotate(ctx, key_id, owner=service_account_find(ctx, account_id).user)
    return _one(account_id, 200, secret=secret)


@pages.post(f"{BASE}/<account_id>/keys/<key_id>/revoke")
@access(Access.SIGNED_IN)
def revoke_key(account_id: str, key_id: str) -> ResponseReturnValue:
    """End a key."""
    ctx = context()
    tokens.token_revoke(ctx, key_id, owner=service_account_find(ctx, account_id).user)
    return go(f"{BASE}/{account_id}", "The key is revoked.")


@pages.post(f"{BASE}/<account_id>/s3-keys")
@access(Access.SIGNED_IN)
def create_s3_key(account_id: str) -> ResponseReturnValue:
    """A new access key for the S3 interface, whose secret is shown once."""
    ctx, name = context(), request.form.get("s3_name", "").strip()
    owner = service_account_find(ctx, account_id).user
    try:
        secret, key = key_make(ctx, owner, name, project_id=None)
    except (InvalidRequest, Conflict, QuotaExceeded, Unavailable) as error:
        ctx.db.rollback()
        return _one(account_id, form_status(error), typed={"s3_name": name}, s3_message=error.message)
    return _one(account_id, 201, s3_secret=secret, s3_made=key)


@pages.post(f"{BASE}/<account_id>/s3-keys/<key_id>/end")
@access(Access.SIGNED_IN)
def end_s3_key(account_id: str, key_id: str) -> ResponseReturnValue:
    """End an access key."""
    ctx = context()
    key_end(ctx, key_id, owner=service_account_find(ctx, account_id).user)
    return go(f"{BASE}/{account_id}", "The access key has ended.")


def _list(status: int, *, error: PortalError | None = None, typed: Mapping[str, str] | None = None) -> ResponseReturnValue:
    ctx = context()
    errors, message = field_errors(error, FIELDS) if error else ({}, "")
    rows = service_accounts_of(ctx, ctx.project_id)
    return render("security/service_accounts.html", status, rows=rows, errors=errors, message=message, typed=typed or {}, roles=role_labels())


def _one(
    account_id: str, status: int, *, error: PortalError | None = None, typed: Mapping[str, str] | None = None, secret: str = "", **more: Any
) -> ResponseReturnValue:  # fmt: skip
    ctx = context()
    found = service_account_find(ctx, account_id)
    errors, message = field_errors(error, FIELDS) if error else ({}, "")
    return render(
        "security/service_account.html", status, account=found, keys=tokens.tokens_of(ctx, found.user), errors=errors, message=message, typed=typed or {},
        secret=secret, roles=role_labels(), s3_keys=s3_keys_of(ctx, found.user_id), why_no_keys=why_no_keys(), **more,
    )  # fmt: skip
