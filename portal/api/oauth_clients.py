"""Endpoints of applications: registering them, and what the caller lets them do."""

from collections.abc import Iterator
from typing import Annotated, Any

from flask.typing import ResponseReturnValue
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from portal.api import body as io
from portal.api.endpoints import PREFIX, Endpoint, Schema
from portal.api.resources import list_schema, only
from portal.api.schemas import MAYBE_TEXT, TEXT, WHEN, YES, read, thing
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
from portal.identity.oauth2.consents import Allowed, consent_revoke, consents_of
from portal.identity.oauth2.models import CODE, GRANTS, REFRESH, OAuthClient

TAG = "Applications"
BASE = "/oauth-clients"
ONE = f"{BASE}/{{client_id}}"
TEXTS: Schema = {"type": "array", "items": TEXT}
CLIENT = thing(
    client_id=TEXT, id=TEXT, name=TEXT, owner=TEXT, redirect_uris=TEXTS, grants=TEXTS, scopes=TEXTS, service_account_id=MAYBE_TEXT,
    is_public=YES, created_at=WHEN,
)  # fmt: skip
SECRET: Schema = {**CLIENT, "properties": {**CLIENT["properties"], "client_secret": MAYBE_TEXT}}
ALLOWED = thing(client_id=TEXT, name=TEXT, owner=TEXT, scopes=TEXTS, created_at=WHEN, last_used_at=WHEN)
Scope = Annotated[str, StringConstraints(max_length=64)]
Address = Annotated[str, StringConstraints(max_length=1000)]


class ClientInput(BaseModel):
    """An application."""

    model_config = ConfigDict(extra="forbid", strict=True)
    name: str = Field(max_length=100)
    redirect_uris: list[Address] = Field(default_factory=list, max_length=10, description="https, or http on loopback, where any port will do.")
    grants: list[str] = Field(
        default_factory=lambda: [CODE, REFRESH], max_length=3, json_schema_extra={"items": {"type": "string", "enum": list(GRANTS)}}
    )
    scopes: list[Scope] = Field(max_length=50, description="The most that it may ask for, such as compute:read.")
    service_account_id: str | None = Field(None, max_length=64, description="Who it acts as with client_credentials.")
    is_public: bool = Field(False, description="It runs where no secret can be kept: in a browser, on a phone, on users' machines.")


class ClientChange(BaseModel):
    """What may be changed of an application; what is left out stays."""

    model_config = ConfigDict(extra="forbid", strict=True)
    name: str | None = Field(None, max_length=100)
    redirect_uris: list[Address] | None = Field(None, max_length=10)
    grants: list[str] | None = Field(None, max_length=3)
    scopes: list[Scope] | None = Field(None, max_length=50)
    service_account_id: str | None = Field(None, max_length=64)


def endpoints() -> Iterator[Endpoint]:
    """All of them."""
    yield Endpoint(
        "GET", BASE, "oauth-clients.list", clients, "My registered applications; for platform admins, all", TAG, {200: list_schema(CLIENT)}
    )
    yield Endpoint("POST", BASE, "oauth-clients.create", create, "Register an application; `client_secret` is shown this once", TAG, {201: SECRET},
                   (403, 409), body=ClientInput.model_json_schema())  # fmt: skip
    yield Endpoint("GET", ONE, "oauth-clients.get", client, "One application", TAG, {200: CLIENT}, (404,))
    yield Endpoint(
        "PATCH", ONE, "oauth-clients.patch", change, "Change an application", TAG, {200: CLIENT}, (403, 404), body=ClientChange.model_json_schema()
    )
    yield Endpoint("POST", f"{ONE}/rotate-secret", "oauth-clients.rotate-secret", rotate, "Replace its secret; `client_secret` is shown this once", TAG,
                   {200: SECRET}, (403, 404, 409))  # fmt: skip
    yield Endpoint("DELETE", ONE, "oauth-clients.delete", remove, "Remove an application; every token of it ends", TAG, {204: None}, (403, 404, 409))
    yield Endpoint("GET", "/auth/applications", "auth.applications", allowed, "Applications that act in my name", TAG, {200: list_schema(ALLOWED)})
    yield Endpoint("DELETE", "/auth/applications/{client_id}", "auth.applications.delete", take_back,
                   "Take back what I allowed an application; every token that it has for me ends", TAG, {204: None}, (403, 404))  # fmt: skip


def clients() -> ResponseReturnValue:
    """Applications."""
    only()
    rows = clients_of(context())
    return io.answer(io.page_of([_show(row) for row in rows], count=len(rows)))


def create() -> ResponseReturnValue:
    """A new one."""
    given: ClientInput = read(ClientInput)
    wanted = Registration(given.name, given.redirect_uris, given.grants, given.scopes, given.service_account_id or "", given.is_public)
    secret, made = client_create(context(), wanted)
    return io.answer({**_show(made), "client_secret": secret or None}, 201, headers={"Location": f"{PREFIX}{BASE}/{made.id}"})


def client(client_id: str) -> ResponseReturnValue:
    """One of them."""
    return io.answer(_show(client_find(context(), client_id)))


def change(client_id: str) -> ResponseReturnValue:
    """Change it."""
    given: ClientChange = read(ClientChange)
    ctx = context()
    known = client_find(ctx, client_id)
    told = given.model_fields_set
    account = given.service_account_id if "service_account_id" in told else known.service_account_id
    wanted = Registration(
        known.name if given.name is None else given.name, known.redirect_uris if given.redirect_uris is None else given.redirect_uris,
        known.grants if given.grants is None else given.grants, known.scopes if given.scopes is None else given.scopes, account or "",
    )  # fmt: skip
    return io.answer(_show(client_update(ctx, client_id, wanted)))


def rotate(client_id: str) -> ResponseReturnValue:
    """A new secret."""
    secret, row = client_rotate_secret(context(), client_id)
    return io.answer({**_show(row), "client_secret": secret})


def remove(client_id: str) -> ResponseReturnValue:
    """Remove it."""
    client_delete(context(), client_id)
    return io.empty()


def allowed() -> ResponseReturnValue:
    """What the caller allowed."""
    only()
    rows = consents_of(context())
    return io.answer(io.page_of([_show_allowed(row) for row in rows], count=len(rows)))


def take_back(client_id: str) -> ResponseReturnValue:
    """Take it back."""
    consent_revoke(context(), client_id)
    return io.empty()


def _show(row: OAuthClient) -> dict[str, Any]:
    return {
        "client_id": row.id, "id": row.id, "name": row.name, "owner": row.owner.username, "redirect_uris": row.redirect_uris, "grants": row.grants,
        "scopes": row.scopes, "service_account_id": row.service_account_id, "is_public": row.is_public, "created_at": io.moment(row.created_at),
    }  # fmt: skip


def _show_allowed(row: Allowed) -> dict[str, Any]:
    return {
        "client_id": row.client.id, "name": row.client.name, "owner": row.client.owner.username, "scopes": row.consent.scopes,
        "created_at": io.moment(row.consent.created_at), "last_used_at": io.moment(row.last_used_at),
    }  # fmt: skip
