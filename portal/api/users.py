"""Endpoints with which administrators let users in and send them out."""

from collections.abc import Iterator

from flask import request
from flask.typing import ResponseReturnValue

from portal.api import body as io
from portal.api.endpoints import Endpoint, Query
from portal.api.resources import only
from portal.api.schemas import NUMBER, TEXT, thing
from portal.http.request import context, own_origin
from portal.identity import users
from portal.identity.deletion import user_delete, user_leaving
from portal.identity.invitations import user_invite

TAG = "Users"
OWNED = thing(label=TEXT, count=NUMBER, names={"type": "array", "items": TEXT})


def endpoints() -> Iterator[Endpoint]:
    """All of them."""
    yield Endpoint("POST", "/users/{user_id}/invite", "users.invite", invite, "Make a link by which the user chooses a password; shown this once", TAG,
                   {201: thing(code=TEXT, url=TEXT)}, (403, 404, 409), aliases=("/api/v1/security/users/{user_id}/invite",))  # fmt: skip
    leaving = thing(owned={"type": "array", "items": OWNED}, gone={"type": "array", "items": thing(label=TEXT, count=NUMBER)})
    yield Endpoint(
        "GET", "/users/{user_id}/deletion", "users.deletion", deletion, "What the deletion of a user would do", TAG, {200: leaving}, (403, 404)
    )
    yield Endpoint("DELETE", "/users/{user_id}", "users.delete", user_remove, "Delete a user; another takes over what they own", TAG, {204: None},
                   (403, 404, 409, 429), query=[Query("heir", "User name of whoever takes over what they own.", required=True)],
                   aliases=("/api/v1/security/users/{user_id}",))  # fmt: skip
    yield Endpoint("POST", "/users/{user_id}/sign-out", "users.sign-out", sign_out, "End every session of a user", TAG,
                   {200: thing(ended=NUMBER)}, (403, 404), aliases=("/api/v1/security/users/{user_id}/sign-out",))  # fmt: skip


def invite(user_id: str) -> ResponseReturnValue:
    """A link."""
    origin = own_origin()
    code = user_invite(context(), user_id)
    return io.answer({"code": code, "url": f"{origin}/invite#{code}"}, 201)


def deletion(user_id: str) -> ResponseReturnValue:
    """Everything that would go, and what would change hands."""
    found = user_leaving(context(), user_id)
    owned = [{"label": each.label, "count": each.count, "names": list(each.names)} for each in found.owned]
    return io.answer({"owned": owned, "gone": [{"label": label, "count": count} for label, count in found.gone]})


def user_remove(user_id: str) -> ResponseReturnValue:
    """The end of a user."""
    only("heir")
    user_delete(context(), user_id, request.args.get("heir", ""))
    return io.empty()


def sign_out(user_id: str) -> ResponseReturnValue:
    """Out everywhere."""
    return io.answer({"ended": users.user_sign_out(context(), user_id)})
