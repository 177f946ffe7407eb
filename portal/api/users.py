"""Endpoints with which administrators let users in and send them out."""

from collections.abc import Iterator

from flask.typing import ResponseReturnValue

from portal.api import body as io
from portal.api.endpoints import Endpoint
from portal.api.identity import TEXT, thing
from portal.http.request import context, own_origin
from portal.identity import users
from portal.identity.invitations import user_invite

TAG = "Users"


def endpoints() -> Iterator[Endpoint]:
    """All of them."""
    yield Endpoint("POST", "/users/{user_id}/invite", "users.invite", invite, "Make a link by which the user chooses a password; shown this once", TAG,
                   {201: thing(code=TEXT, url=TEXT)}, (403, 404, 409), aliases=("/api/v1/security/users/{user_id}/invite",))  # fmt: skip
    yield Endpoint("POST", "/users/{user_id}/sign-out", "users.sign-out", sign_out, "End every session of a user", TAG,
                   {200: thing(ended={"type": "integer"})}, (403, 404), aliases=("/api/v1/security/users/{user_id}/sign-out",))  # fmt: skip


def invite(user_id: str) -> ResponseReturnValue:
    """A link."""
    origin = own_origin()
    code = user_invite(context(), user_id)
    return io.answer({"code": code, "url": f"{origin}/invite#{code}"}, 201)


def sign_out(user_id: str) -> ResponseReturnValue:
    """Out everywhere."""
    return io.answer({"ended": users.user_sign_out(context(), user_id)})
