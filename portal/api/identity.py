"""Endpoints of identity: signing in, tokens, the own account."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Annotated, Any

from flask import Flask
from flask.typing import ResponseReturnValue
from pydantic import Field, StringConstraints

from portal.api import body as io
from portal.api.endpoints import PREFIX, Endpoint
from portal.api.resources import list_schema, only
from portal.api.schemas import NUMBER, TEXT, WHEN, Input, read, thing
from portal.api.users import USER, show_user
from portal.http.request import context, session_secret, signed_in, token_from_header
from portal.http.security import guess_limit
from portal.identity import accounts, api_sessions, factors, iam, sign_in, tokens
from portal.identity.models import ApiToken, User, UserSession
from portal.identity.preferences import LANGUAGES, language_of, locale_update, zone_of
from portal.identity.sign_in import Proof
from portal.kernel.errors import Forbidden, InvalidRequest, NotFound
from portal.kernel.fields import ONE_LINE
from portal.security.role_sessions import role_leave

Line = Field(max_length=255)


class Credentials(Input):
    """User name or e-mail address, and password."""

    username: str = Field(min_length=1, max_length=254)
    password: str = Field(min_length=1, max_length=1024)
    otp: str = Field("", max_length=100, description="A code of the authenticator app or a recovery code, for users who have a second factor.")


class Refresh(Input):
    """What renews a program's session."""

    refresh_token: str = Field(min_length=1, max_length=255)


class ProfileChange(Input):
    """What may be changed of the own profile."""

    language: str | None = Field(None, json_schema_extra={"enum": [*LANGUAGES, None]})
    time_zone: str | None = Field(None, max_length=64, description="As IANA names it, such as Europe/Ljubljana.")


class NewToken(Input):
    """A token for scripts."""

    name: str = Field(min_length=1, max_length=255, pattern=ONE_LINE)
    scopes: list[Annotated[str, StringConstraints(max_length=64)]] = Field(
        default_factory=list, max_length=50, description="What it may be used for, such as compute:read; nothing means everything that you may do."
    )
    days: int | None = Field(None, ge=1, le=3650, description="How long it holds; 90 days unless the installation says otherwise.")


class TokenChange(Input):
    """What of a token is to be different."""

    name: str | None = Field(None, min_length=1, max_length=255, pattern=ONE_LINE)
    scopes: list[Annotated[str, StringConstraints(max_length=64)]] | None = Field(None, max_length=50)
    is_active: bool | None = None


class Rotation(Input):
    """How a token's secret is replaced."""

    overlap_hours: int = Field(24, ge=0, le=720, description="How long the old secret still holds.")


class PasswordChange(Input):
    """The present password and the new one."""

    old: str = Field(max_length=1024)
    new: str = Field(max_length=1024)


TOKEN = thing(
    api_key_id=TEXT,
    id=TEXT,
    name=TEXT,
    prefix=TEXT,
    scopes={"type": "array", "items": TEXT},
    is_active={"type": "boolean"},
    created_at=WHEN,
    expires_at=WHEN,
    last_used_at=WHEN,
    last_used_ip=TEXT,
)
SESSION = thing(session_id=TEXT, created_at=WHEN, last_seen_at=WHEN, expires_at=WHEN, source_ip=TEXT, user_agent=TEXT, is_current={"type": "boolean"})


def endpoints(app: Flask) -> Iterator[Endpoint]:
    """All of them. Passwords may be tried only so often."""
    from portal.http.guard import Access

    tries = guess_limit(app)
    public: dict[str, Any] = {"tag": "Identity", "refuses": (403,), "rule": Access.PUBLIC, "body": Credentials.model_json_schema()}
    yield Endpoint("POST", "/api-token-auth/", "token", tries(token), "Exchange user name and password for a token", answers={200: thing(token=TEXT)},
                   aliases=("/api/auth/token",), **public)  # fmt: skip
    pair = {"access_token": TEXT, "refresh_token": TEXT, "token_type": TEXT, "expires_in": NUMBER}
    yield Endpoint("POST", "/auth/login", "auth.login", tries(login), "Open a session for a program: a short access token, and one to renew it with",
                   answers={200: thing(**pair, user=USER)}, aliases=("/api/auth/login",), **public)  # fmt: skip
    yield Endpoint("POST", "/auth/refresh", "auth.refresh", tries(refresh), "Replace both tokens of a program's session; each refresh token is good once",
                   answers={200: thing(**pair)}, aliases=("/api/auth/refresh",), **{**public, "refuses": (), "body": Refresh.model_json_schema()})  # fmt: skip
    yield Endpoint("POST", "/auth/logout", "auth.logout", logout, "End the session or token that this request carries", "Identity", {204: None})
    yield Endpoint("GET", "/auth/me", "auth.me", me, "Who I am, in which roles", "Identity", {200: {"type": "object"}}, aliases=("/api/auth/me",))
    yield Endpoint("PATCH", "/auth/me", "auth.me.patch", me_change, "Choose how pages write dates and times for me; the API itself gives ISO in UTC", "Identity",
                   {200: {"type": "object"}}, (403,), body=ProfileChange.model_json_schema(), aliases=("/api/auth/me",))  # fmt: skip
    yield Endpoint("POST", "/auth/change-password", "auth.change-password", change_password, "Change my password; other sessions and all tokens end",
                   "Identity", {204: None}, (403,), body=PasswordChange.model_json_schema())  # fmt: skip
    yield Endpoint("GET", "/auth/sessions", "auth.sessions", sessions, "My sessions", "Identity", {200: list_schema(SESSION)})
    yield Endpoint("DELETE", "/auth/sessions/{session_id}", "auth.sessions.delete", session_delete, "End one of my sessions", "Identity", {204: None},
                   refuses=(403, 404))  # fmt: skip
    yield from _key_endpoints()


def _key_endpoints() -> Iterator[Endpoint]:
    def at(rest: str = "") -> dict[str, Any]:
        return {"tag": "Identity", "aliases": (f"{PREFIX}/auth/keys{rest}",)}

    yield Endpoint(
        "GET", "/api-keys", "api-keys.list", keys, "My tokens for scripts, without their secrets", answers={200: list_schema(TOKEN)}, **at()
    )
    yield Endpoint("POST", "/api-keys", "api-keys.create", key_create, "Make a token; `key` is shown this once", refuses=(403, 409), idempotent=True,
                   answers={201: {**TOKEN, "properties": {**TOKEN["properties"], "key": TEXT}}}, body=NewToken.model_json_schema(), **at())  # fmt: skip
    yield Endpoint(
        "GET", "/api-keys/{api_key_id}", "api-keys.get", key, "One of my tokens", answers={200: TOKEN}, refuses=(404,), **at("/{api_key_id}")
    )
    yield Endpoint("PATCH", "/api-keys/{api_key_id}", "api-keys.patch", key_change, "Rename one of my tokens, restrict it, switch it off or on",
                   answers={200: TOKEN}, refuses=(403, 404), body=TokenChange.model_json_schema(), **at("/{api_key_id}"))  # fmt: skip
    yield Endpoint("POST", "/api-keys/{api_key_id}/rotate", "api-keys.rotate", key_rotate, "Replace a token's secret; `key` is shown this once", idempotent=True,
                   answers={200: {**TOKEN, "properties": {**TOKEN["properties"], "key": TEXT}}}, refuses=(403, 404, 409), body=Rotation.model_json_schema(),
                   body_required=False, **at("/{api_key_id}/rotate"))  # fmt: skip
    yield Endpoint("DELETE", "/api-keys/{api_key_id}", "api-keys.delete", key_delete, "Revoke one of my tokens", answers={204: None}, refuses=(403, 404),
                   **at("/{api_key_id}"))  # fmt: skip


# -- signing in ------------------------------------------------------------------------------------------------------------------------------


def _checked() -> tuple[User, Proof]:
    given: Credentials = read(Credentials)
    user, proof = sign_in.check(context(), given.username, given.password, given.otp)
    if user.must_change_password:
        raise Forbidden("Your password was given to you. Sign in to the console and choose your own; then tokens can be had.")
    return user, proof


def token() -> ResponseReturnValue:
    """A token for user name and password."""
    ctx, (user, proof) = context(), _checked()
    ctx.principal = accounts.principal_of(user, "password")
    secret, row = tokens.token_create(ctx, user, "Signed in with a password", replace_oldest=True, checked_hash=proof.password_hash)
    return io.answer({"token": secret, "expires_at": io.moment(row.expires_at)})


def login() -> ResponseReturnValue:
    """A session for user name and password."""
    user, proof = _checked()
    pair = api_sessions.session_begin(context(), user, proof)
    return io.answer({**_show_pair(pair), "user": show_user(user, mfa_enabled=proof.mfa)})


def refresh() -> ResponseReturnValue:
    """New tokens of it."""
    given: Refresh = read(Refresh)
    return io.answer(_show_pair(api_sessions.session_refresh(context(), given.refresh_token)))


def _show_pair(pair: api_sessions.Pair) -> dict[str, Any]:
    return {"access_token": pair.access, "refresh_token": pair.refresh, "token_type": "Bearer", "expires_in": pair.expires_in}


def logout() -> ResponseReturnValue:
    """End what this request was made with."""
    ctx = context()
    kind, _, name = ctx.principal.credential.partition(":")
    if kind == "token":
        tokens.token_revoke(ctx, name)
    elif kind == "role":
        role_leave(ctx)
    elif kind == "oauth":
        raise InvalidRequest("An application ends its tokens at /oauth2/revoke.")
    else:
        accounts.sign_out(ctx, token_from_header() or session_secret())
    return io.empty()


def me() -> ResponseReturnValue:
    """The caller, their roles and projects."""
    found = signed_in()
    ctx = context()
    if found is None:
        raise NotFound("Nobody is signed in.")
    user, assumed = found.user, found.principal.assumed
    shown = {
        **show_user(user, mfa_enabled=bool(factors.devices_of(ctx.db, user.id))), "kind": user.kind, "current_project_id": ctx.project_id,
        "memberships": [{"role": m.role, "project_id": m.project_id, "project": m.project.name} for m in user.memberships],
        "groups": [{"group_id": group.id, "name": group.name, "project_id": group.project_id} for group in iam.groups_of(ctx.db, user.id)],
        "scopes": [scope for limit in ctx.principal.limits for scope in limit.statements[0].actions], "credential": ctx.principal.credential,
        "assumed_role": None if assumed is None else asdict(assumed), "language": language_of(user), "time_zone": zone_of(user).key,
    }  # fmt: skip
    if ctx.principal.is_restricted:
        # What stands for a part of somebody learns who that is, and nothing else of them.
        shown |= {"email": "", "platform_role": "", "roles": [], "memberships": [], "groups": [], "last_login_at": None}
    return io.answer(shown)


def me_change() -> ResponseReturnValue:
    """Change what the caller likes."""
    given: ProfileChange = read(ProfileChange)
    locale_update(context(), language=given.language, time_zone=given.time_zone)
    return me()


def change_password() -> ResponseReturnValue:
    """Change the own password."""
    given: PasswordChange = read(PasswordChange)
    found = signed_in()
    accounts.password_change(context(), given.old, given.new, keep_session=found.session.session_id if found and found.session else "")
    return io.empty()


def sessions() -> ResponseReturnValue:
    """The own sessions."""
    only()
    rows = accounts.sessions_of(context())
    return io.answer(io.page_of([_show_session(row) for row in rows], count=len(rows)))


def session_delete(session_id: str) -> ResponseReturnValue:
    """End one."""
    accounts.session_revoke(context(), session_id)
    return io.empty()


def _show_session(row: UserSession) -> dict[str, Any]:
    found = signed_in()
    return {
        "session_id": row.session_id, "created_at": io.moment(row.created_at), "last_seen_at": io.moment(row.last_seen_at), "expires_at": io.moment(row.expires_at),
        "source_ip": row.source_ip, "user_agent": row.user_agent,
        "is_current": bool(found and found.session and found.session.session_id == row.session_id),
    }  # fmt: skip


# -- tokens ----------------------------------------------------------------------------------------------------------------------------------


def keys() -> ResponseReturnValue:
    """The own tokens."""
    only()
    rows = tokens.tokens_of(context())
    return io.answer(io.page_of([show_token(row) for row in rows], count=len(rows)))


def key_create() -> ResponseReturnValue:
    """A new token."""
    given: NewToken = read(NewToken)
    found = signed_in()
    if found is None:
        raise NotFound("Nobody is signed in.")
    secret, row = tokens.token_create(context(), found.user, given.name, scopes=given.scopes, days=given.days)
    return io.answer({**show_token(row), "key": secret}, 201, headers={"Location": f"{PREFIX}/api-keys/{row.id}"})


def key(api_key_id: str) -> ResponseReturnValue:
    """One token."""
    return io.answer(show_token(_own_token(api_key_id)))


def key_change(api_key_id: str) -> ResponseReturnValue:
    """Change it."""
    given: TokenChange = read(TokenChange)
    return io.answer(show_token(tokens.token_update(context(), api_key_id, name=given.name, scopes=given.scopes, is_active=given.is_active)))


def key_rotate(api_key_id: str) -> ResponseReturnValue:
    """A new secret."""
    given: Rotation = read(Rotation)
    secret, row = tokens.token_rotate(context(), api_key_id, overlap_hours=given.overlap_hours)
    return io.answer({**show_token(row), "key": secret})


def key_delete(api_key_id: str) -> ResponseReturnValue:
    """Revoke it."""
    tokens.token_revoke(context(), api_key_id)
    return io.empty()


def _own_token(token_id: str) -> ApiToken:
    found = next((row for row in tokens.tokens_of(context()) if row.id == token_id), None)
    if found is None:
        raise NotFound("There is no such token of yours.")
    return found


def show_token(row: ApiToken) -> dict[str, Any]:
    """A token without its secret."""
    return {
        "api_key_id": row.id, "id": row.id, "name": row.name, "prefix": row.prefix, "scopes": row.scopes, "is_active": row.is_active,
        "created_at": io.moment(row.created_at),
        "expires_at": io.moment(row.expires_at), "last_used_at": io.moment(row.last_used_at), "last_used_ip": row.last_used_ip,
    }  # fmt: skip
