"""Endpoints of roles that are not derived: assuming one, and the sessions that run in it."""

from collections.abc import Iterator
from typing import Annotated

from flask.typing import ResponseReturnValue
from pydantic import Field, StringConstraints

from portal.api import body as io
from portal.api.endpoints import Endpoint
from portal.api.resources import aliases, list_schema, only
from portal.api.schemas import MAYBE_TEXT, NUMBER, TEXT, WHEN, YES, Input, read, thing
from portal.http.request import context
from portal.kernel.db import now
from portal.kernel.fields import ONE_LINE
from portal.security.role_sessions import NAME_MAX, SHORTEST_S, role_assume, role_session_end, role_visible, sessions_shown
from portal.security.roles import ROLE

SESSION = thing(
    session_id=TEXT, session_name=TEXT, user_id=TEXT, username=TEXT, mfa=YES, created_at=WHEN, expires_at=WHEN, last_used_at=WHEN, last_used_ip=TEXT
)
CREDENTIALS = thing(
    access_token=TEXT, token_type=TEXT, expires_in=NUMBER, expires_at=WHEN, role_id=TEXT, project_id=MAYBE_TEXT, session_id=TEXT, session_name=TEXT
)
LONGEST_S = 12 * 3600


class AssumeInput(Input):
    """How the session is called in the audit log, and how long it lasts."""

    session_name: Annotated[str, StringConstraints(min_length=1, max_length=NAME_MAX, pattern=ONE_LINE)]
    duration: int | None = Field(
        None, ge=SHORTEST_S, le=LONGEST_S, description="In seconds; an hour unless said otherwise, at most what the role allows."
    )


def endpoints() -> Iterator[Endpoint]:
    """All of them."""
    one = "/security/roles/{role_id}"
    yield Endpoint("POST", f"{one}/assume", "security.roles.assume", assume, "A token that may do for a while what the role may; it is shown this once",
                   ROLE.plural, {201: CREDENTIALS}, (403, 404, 409), body=AssumeInput.model_json_schema(),
                   aliases=(*aliases(ROLE, "/{role_id}/assume"), "/api/v1/services/roles/{role_id}/assume_role"))  # fmt: skip
    yield Endpoint("GET", f"{one}/sessions", "security.roles.sessions", sessions, "Who acts in the role", ROLE.plural, {200: list_schema(SESSION)}, (403, 404),
                   aliases=aliases(ROLE, "/{role_id}/sessions"))  # fmt: skip
    yield Endpoint("DELETE", f"{one}/sessions/{{session_id}}", "security.roles.sessions.delete", session_end, "End a session in the role", ROLE.plural,
                   {204: None}, (403, 404), aliases=aliases(ROLE, "/{role_id}/sessions/{session_id}"))  # fmt: skip


def assume(role_id: str) -> ResponseReturnValue:
    """Credentials of a role."""
    given: AssumeInput = read(AssumeInput)
    secret, token, role = role_assume(context(), role_id, given.session_name, duration_s=given.duration)
    return io.answer({
        "access_token": secret, "token_type": "Token", "expires_in": round((token.expires_at - now()).total_seconds()),
        "expires_at": io.moment(token.expires_at), "role_id": role.id, "project_id": role.project_id, "session_id": token.id, "session_name": token.name,
    }, 201)  # fmt: skip


def sessions(role_id: str) -> ResponseReturnValue:
    """Who acts in it."""
    only()
    ctx = context()
    shown = [
        {"session_id": token.id, "session_name": token.name, "user_id": user.id, "username": user.username, "mfa": token.mfa,
         "created_at": io.moment(token.created_at), "expires_at": io.moment(token.expires_at), "last_used_at": io.moment(token.last_used_at),
         "last_used_ip": token.last_used_ip}
        for token, user in sessions_shown(ctx, role_visible(ctx, role_id))
    ]  # fmt: skip
    return io.answer(io.page_of(shown, count=len(shown)))


def session_end(role_id: str, session_id: str) -> ResponseReturnValue:
    """End one."""
    ctx = context()
    role_session_end(ctx, role_visible(ctx, role_id), session_id)
    return io.empty()
