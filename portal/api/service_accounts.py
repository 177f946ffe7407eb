"""Endpoints of service accounts and their keys, in the project that the request is about."""

from collections.abc import Iterator
from typing import Any

from flask.typing import ResponseReturnValue
from pydantic import BaseModel, ConfigDict, Field

from portal.api import body as io
from portal.api.endpoints import PREFIX, Endpoint, Schema
from portal.api.identity import TOKEN, NewToken, Rotation, show_token
from portal.api.resources import list_schema, only
from portal.api.schemas import TEXT, WHEN, YES, read, thing
from portal.http.request import context
from portal.identity import tokens
from portal.identity.models import Membership
from portal.identity.service_accounts import (
    ROLE_NAMES,
    service_account_create,
    service_account_delete,
    service_account_find,
    service_account_update,
    service_accounts_of,
)

TAG = "Service accounts"
BASE = "/service-accounts"
ONE = f"{BASE}/{{service_account_id}}"
ACCOUNT = thing(service_account_id=TEXT, id=TEXT, name=TEXT, project_id=TEXT, role=TEXT, is_active=YES, created_at=WHEN)
WITH_KEY: Schema = {**TOKEN, "properties": {**TOKEN["properties"], "key": TEXT}}


class AccountInput(BaseModel):
    """A service account."""

    model_config = ConfigDict(extra="forbid", strict=True)
    name: str = Field(max_length=150)
    role: str = Field("", description="Nothing: groups and policies alone say what it may do.", json_schema_extra={"enum": list(ROLE_NAMES)})


class AccountChange(BaseModel):
    """What may be changed of a service account."""

    model_config = ConfigDict(extra="forbid", strict=True)
    role: str | None = Field(None, json_schema_extra={"enum": [*ROLE_NAMES, None]})
    is_active: bool | None = Field(None, description="Disabled, all its keys end at once.")


def endpoints() -> Iterator[Endpoint]:
    """All of them."""
    yield Endpoint("GET", BASE, "service-accounts.list", accounts, "Service accounts of the project", TAG, {200: list_schema(ACCOUNT)}, (403,))
    yield Endpoint("POST", BASE, "service-accounts.create", create, "Make a service account", TAG, {201: ACCOUNT}, (403, 409),
                   body=AccountInput.model_json_schema())  # fmt: skip
    yield Endpoint("GET", ONE, "service-accounts.get", account, "One service account", TAG, {200: ACCOUNT}, (404,))
    yield Endpoint("PATCH", ONE, "service-accounts.patch", change, "Give it another role, disable or enable it", TAG, {200: ACCOUNT}, (403, 404),
                   body=AccountChange.model_json_schema())  # fmt: skip
    yield Endpoint("DELETE", ONE, "service-accounts.delete", remove, "Delete a service account; what it owns becomes nobody's own", TAG, {204: None},
                   (403, 404, 409))  # fmt: skip
    yield Endpoint("GET", f"{ONE}/keys", "service-accounts.keys", keys, "Its keys, without their secrets", TAG, {200: list_schema(TOKEN)}, (404,))
    yield Endpoint("POST", f"{ONE}/keys", "service-accounts.keys.create", key_create, "Make a key for it; `key` is shown this once", TAG, {201: WITH_KEY},
                   (403, 404, 409), body=NewToken.model_json_schema(), idempotent=True)  # fmt: skip
    yield Endpoint("POST", f"{ONE}/keys/{{api_key_id}}/rotate", "service-accounts.keys.rotate", key_rotate,
                   "Replace a key's secret; `key` is shown this once", TAG, {200: WITH_KEY}, (403, 404, 409), body=Rotation.model_json_schema(),
                   body_required=False, idempotent=True)  # fmt: skip
    yield Endpoint("DELETE", f"{ONE}/keys/{{api_key_id}}", "service-accounts.keys.delete", key_delete, "Revoke a key", TAG, {204: None}, (403, 404))


def accounts() -> ResponseReturnValue:
    """Those of the project."""
    only()
    ctx = context()
    rows = service_accounts_of(ctx, ctx.project_id)
    return io.answer(io.page_of([_show(row) for row in rows], count=len(rows)))


def create() -> ResponseReturnValue:
    """A new one."""
    given: AccountInput = read(AccountInput)
    made = service_account_create(context(), name=given.name, role=given.role)
    return io.answer(_show(made), 201, headers={"Location": f"{PREFIX}{BASE}/{made.user_id}"})


def account(service_account_id: str) -> ResponseReturnValue:
    """One of them."""
    return io.answer(_show(service_account_find(context(), service_account_id)))


def change(service_account_id: str) -> ResponseReturnValue:
    """Change it."""
    given: AccountChange = read(AccountChange)
    return io.answer(_show(service_account_update(context(), service_account_id, role=given.role, is_active=given.is_active)))


def remove(service_account_id: str) -> ResponseReturnValue:
    """Delete it."""
    service_account_delete(context(), service_account_id)
    return io.empty()


def keys(service_account_id: str) -> ResponseReturnValue:
    """Its keys."""
    only()
    ctx = context()
    rows = tokens.tokens_of(ctx, service_account_find(ctx, service_account_id).user)
    return io.answer(io.page_of([show_token(row) for row in rows], count=len(rows)))


def key_create(service_account_id: str) -> ResponseReturnValue:
    """A new key."""
    ctx = context()
    given: NewToken = read(NewToken)
    owner = service_account_find(ctx, service_account_id).user
    secret, row = tokens.token_create(ctx, owner, given.name, scopes=given.scopes, days=given.days)
    return io.answer({**show_token(row), "key": secret}, 201, headers={"Location": f"{PREFIX}{BASE}/{owner.id}/keys"})


def key_rotate(service_account_id: str, api_key_id: str) -> ResponseReturnValue:
    """A new secret for one."""
    ctx = context()
    given: Rotation = read(Rotation)
    owner = service_account_find(ctx, service_account_id).user
    secret, row = tokens.token_rotate(ctx, api_key_id, overlap_hours=given.overlap_hours, owner=owner)
    return io.answer({**show_token(row), "key": secret})


def key_delete(service_account_id: str, api_key_id: str) -> ResponseReturnValue:
    """Revoke one."""
    ctx = context()
    tokens.token_revoke(ctx, api_key_id, owner=service_account_find(ctx, service_account_id).user)
    return io.empty()


def _show(row: Membership) -> dict[str, Any]:
    return {
        "service_account_id": row.user_id, "id": row.user_id, "name": row.user.username, "project_id": row.project_id, "role": row.role,
        "is_active": row.user.is_active, "created_at": io.moment(row.user.created_at),
    }  # fmt: skip
