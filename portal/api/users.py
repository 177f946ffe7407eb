"""Endpoints of users, with which administrators let them in and send them out."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from flask import request
from flask.typing import ResponseReturnValue
from pydantic import Field

from portal.api import body as io
from portal.api.endpoints import PREFIX, Endpoint, Query
from portal.api.resources import list_schema, only
from portal.api.schemas import LISTED, MAYBE_TEXT, NUMBER, TEXT, WHEN, YES, Input, read, thing
from portal.http.listing import flag
from portal.http.request import context, own_origin
from portal.identity import factors, users
from portal.identity.deletion import user_delete, user_leaving
from portal.identity.invitations import user_invite
from portal.identity.models import User
from portal.kernel.authz import ROLES

TAG = "Users"
ROLE = thing(role=TEXT, project_id=MAYBE_TEXT)
USER = thing(
    user_id=TEXT, id=TEXT, username=TEXT, email=TEXT, is_active=YES, platform_role=TEXT, roles={"type": "array", "items": ROLE}, mfa_enabled=YES,
    last_login_at=WHEN, created_at=WHEN,
)  # fmt: skip
FILTERS = (
    Query("active", "Only those who are active, or only those who are not.", YES),
    Query("role", "Only those who hold this role, on the platform or in a project.", {"type": "string", "enum": list(ROLES)}),
    Query("search", "A part of the user name or e-mail address."),
)


class UserInput(Input):
    """A new user, who has to change the password at the first sign-in, or chooses one by invitation."""

    username: str = Field(max_length=150)
    email: str = Field(max_length=254)
    password: str = Field("", max_length=1024, description="Nothing: the user chooses one by invitation.")
    platform_role: str = Field("", json_schema_extra={"enum": list(users.PLATFORM_ROLES)})


class UserChange(Input):
    """What an administrator may change of a user."""

    is_active: bool | None = None
    platform_role: str | None = Field(None, json_schema_extra={"enum": [*users.PLATFORM_ROLES, None]})


def endpoints() -> Iterator[Endpoint]:
    """All of them."""

    def at(rest: str = "") -> dict[str, Any]:
        return {"tag": TAG, "aliases": (f"{PREFIX}/security/users{rest}", f"/api/security/users{rest}")}

    one = at("/{user_id}")
    yield Endpoint("GET", "/users", "users.list", user_list, "All users", answers={200: list_schema(USER)}, refuses=(403,), query=FILTERS, **at())
    yield Endpoint("POST", "/users", "users.create", user_create, "Create a user", answers={201: USER}, refuses=(403, 409), body=UserInput.model_json_schema(),
                   **at())  # fmt: skip
    yield Endpoint("GET", "/users/{user_id}", "users.get", user, "One user", answers={200: USER}, refuses=(403, 404), **one)
    yield Endpoint("PATCH", "/users/{user_id}", "users.patch", user_change, "Disable or enable a user, or change their role on the platform",
                   answers={200: USER}, refuses=(403, 404, 409), body=UserChange.model_json_schema(), **one)  # fmt: skip
    yield Endpoint("DELETE", "/users/{user_id}", "users.delete", user_remove, "Delete a user; another takes over what they own", answers={204: None},
                   refuses=(403, 404, 409, 429), query=[Query("heir", "User name of whoever takes over what they own, if anything.")], **one)  # fmt: skip
    yield Endpoint("POST", "/users/{user_id}/invite", "users.invite", invite, "Make a link by which the user chooses a password; shown this once",
                   answers={201: thing(code=TEXT, url=TEXT)}, refuses=(403, 404, 409), **at("/{user_id}/invite"))  # fmt: skip
    leaving = thing(owned=LISTED, gone=LISTED)
    yield Endpoint("GET", "/users/{user_id}/deletion", "users.deletion", deletion, "What the deletion of a user would do", answers={200: leaving},
                   refuses=(403, 404), **at("/{user_id}/deletion"))  # fmt: skip
    yield Endpoint("POST", "/users/{user_id}/sign-out", "users.sign-out", sign_out, "End every session of a user", answers={200: thing(ended=NUMBER)},
                   refuses=(403, 404), **at("/{user_id}/sign-out"))  # fmt: skip


def user_list() -> ResponseReturnValue:
    """Users."""
    only("active", "role", "search")
    ctx, args = context(), request.args
    active = flag(args, "active") if "active" in args else None
    rows = users.users_list(ctx, active=active, role=args.get("role", ""), search=args.get("search", ""))
    protected = factors.users_with_factors(ctx.db)
    return io.answer(io.page_of([show_user(row, mfa_enabled=row.id in protected) for row in rows], count=len(rows)))


def user_create() -> ResponseReturnValue:
    """A new user."""
    given: UserInput = read(UserInput)
    made = users.user_create(context(), username=given.username, email=given.email, password=given.password, platform_role=given.platform_role)
    return io.answer(show_user(made, mfa_enabled=False), 201, headers={"Location": f"{PREFIX}/users/{made.id}"})


def user(user_id: str) -> ResponseReturnValue:
    """One user."""
    return io.answer(_shown(users.user_find(context(), user_id)))


def user_change(user_id: str) -> ResponseReturnValue:
    """Change one."""
    given: UserChange = read(UserChange)
    return io.answer(_shown(users.user_update(context(), user_id, is_active=given.is_active, platform_role=given.platform_role)))


def _shown(row: User) -> dict[str, Any]:
    return show_user(row, mfa_enabled=bool(factors.devices_of(context().db, row.id)))


def show_user(row: User, *, mfa_enabled: bool) -> dict[str, Any]:
    """A user without anything secret."""
    roles: list[dict[str, str | None]] = [{"role": each.role, "project_id": each.project_id} for each in row.memberships]
    if row.platform_role:
        roles.insert(0, {"role": row.platform_role, "project_id": None})
    return {
        "user_id": row.id, "id": row.id, "username": row.username, "email": row.email, "is_active": row.is_active, "platform_role": row.platform_role,
        "roles": roles, "mfa_enabled": mfa_enabled, "last_login_at": io.moment(row.last_login_at), "created_at": io.moment(row.created_at),
    }  # fmt: skip


def invite(user_id: str) -> ResponseReturnValue:
    """A link."""
    origin = own_origin()
    code = user_invite(context(), user_id)
    return io.answer({"code": code, "url": f"{origin}/invite#{code}"}, 201)


def deletion(user_id: str) -> ResponseReturnValue:
    """Everything that would go, and what would change hands."""
    found = user_leaving(context(), user_id)
    return io.answer({"owned": [asdict(each) for each in found.owned], "gone": [asdict(each) for each in found.gone]})


def user_remove(user_id: str) -> ResponseReturnValue:
    """The end of a user."""
    only("heir")
    user_delete(context(), user_id, request.args.get("heir", ""))
    return io.empty()


def sign_out(user_id: str) -> ResponseReturnValue:
    """Out everywhere."""
    return io.answer({"ended": users.user_sign_out(context(), user_id)})
