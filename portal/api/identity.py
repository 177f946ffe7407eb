"""Endpoints of identity: signing in, tokens, the own account, projects with their members, users."""

from collections.abc import Iterator
from dataclasses import asdict
from typing import Annotated, Any

from flask.typing import ResponseReturnValue
from flask_limiter import Limiter
from pydantic import Field, StringConstraints

from portal.api import body as io
from portal.api.endpoints import PREFIX, Endpoint
from portal.api.resources import list_schema, only
from portal.api.schemas import TEXT, WHEN, Input, read, thing
from portal.http.request import context, portal_settings, session_secret, signed_in
from portal.identity import accounts, projects, sign_in, tokens, users
from portal.identity.models import ApiToken, Membership, Project, User, UserSession
from portal.kernel.errors import Forbidden, InvalidRequest, NotFound
from portal.kernel.fields import ONE_LINE
from portal.security.role_sessions import role_leave

DAY_S = 86_400
Line = Field(max_length=255)


class Credentials(Input):
    """User name or e-mail address, and password."""

    username: str = Field(min_length=1, max_length=254)
    password: str = Field(min_length=1, max_length=1024)
    otp: str = Field("", max_length=100, description="A code of the authenticator app or a recovery code, for users who have a second factor.")


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


class Boundary(Input):
    """The permission boundary of a project."""

    policy: str | None = Field(None, max_length=255, pattern=ONE_LINE, description="Name or id; nothing takes the boundary away.")


class Rotation(Input):
    """How a token's secret is replaced."""

    overlap_hours: int = Field(24, ge=0, le=720, description="How long the old secret still holds.")


class PasswordChange(Input):
    """The present password and the new one."""

    old: str = Field(max_length=1024)
    new: str = Field(max_length=1024)


class ProjectInput(Input):
    """A project."""

    name: str = Field(max_length=255)
    description: str = Field("", max_length=2000)


class ProjectChange(Input):
    """What may be changed of a project."""

    name: str | None = Field(None, max_length=255)
    description: str | None = Field(None, max_length=2000)


class MemberInput(Input):
    """A user's role in a project."""

    username: str = Field(min_length=1, max_length=254)
    role: str = Field(json_schema_extra={"enum": list(projects.PROJECT_ROLES)})


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


USER = thing(user_id=TEXT, id=TEXT, username=TEXT, email=TEXT, is_active={"type": "boolean"}, platform_role=TEXT, last_login_at=WHEN, created_at=WHEN)
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
PROJECT = thing(project_id=TEXT, id=TEXT, name=TEXT, description=TEXT, boundary_policy_id={"type": ["string", "null"]}, created_at=WHEN)
MEMBER = thing(user_id=TEXT, username=TEXT, role=TEXT, created_at=WHEN)
SESSION = thing(session_id=TEXT, created_at=WHEN, last_seen_at=WHEN, expires_at=WHEN, source_ip=TEXT, user_agent=TEXT, is_current={"type": "boolean"})


def endpoints(limiter: Limiter) -> Iterator[Endpoint]:
    """All of them. Passwords may be tried only so often."""
    from portal.http.guard import Access

    tries = limiter.limit(lambda: f"{portal_settings().rate_limit_anonymous_per_minute or 10**9} per minute")
    public: dict[str, Any] = {"tag": "Identity", "refuses": (403,), "rule": Access.PUBLIC, "body": Credentials.model_json_schema()}
    yield Endpoint("POST", "/api-token-auth/", "token", tries(token), "Exchange user name and password for a token", answers={200: thing(token=TEXT)},
                   aliases=("/api/auth/token",), **public)  # fmt: skip
    login_answer = thing(access_token=TEXT, token_type=TEXT, expires_in={"type": "integer"}, user=USER)
    yield Endpoint(
        "POST", "/auth/login", "auth.login", tries(login), "Sign in for a token", answers={200: login_answer}, aliases=("/api/auth/login",), **public
    )
    yield Endpoint("POST", "/auth/logout", "auth.logout", logout, "End the session or token that this request carries", "Identity", {204: None})
    yield Endpoint("GET", "/auth/me", "auth.me", me, "Who I am, in which roles", "Identity", {200: {"type": "object"}}, aliases=("/api/auth/me",))
    yield Endpoint("POST", "/auth/change-password", "auth.change-password", change_password, "Change my password; other sessions and all tokens end",
                   "Identity", {204: None}, (403,), body=PasswordChange.model_json_schema())  # fmt: skip
    yield Endpoint("GET", "/auth/sessions", "auth.sessions", sessions, "My sessions", "Identity", {200: list_schema(SESSION)})
    yield Endpoint("DELETE", "/auth/sessions/{session_id}", "auth.sessions.delete", session_delete, "End one of my sessions", "Identity", {204: None},
                   refuses=(403, 404))  # fmt: skip
    yield from _key_endpoints()
    yield from _project_endpoints()
    yield from _user_endpoints()


def _key_endpoints() -> Iterator[Endpoint]:
    def at(rest: str = "") -> dict[str, Any]:
        return {"tag": "Identity", "aliases": (f"{PREFIX}/auth/keys{rest}",)}

    yield Endpoint(
        "GET", "/api-keys", "api-keys.list", keys, "My tokens for scripts, without their secrets", answers={200: list_schema(TOKEN)}, **at()
    )
    yield Endpoint("POST", "/api-keys", "api-keys.create", key_create, "Make a token; `key` is shown this once", refuses=(403, 409),
                   answers={201: {**TOKEN, "properties": {**TOKEN["properties"], "key": TEXT}}}, body=NewToken.model_json_schema(), **at())  # fmt: skip
    yield Endpoint(
        "GET", "/api-keys/{api_key_id}", "api-keys.get", key, "One of my tokens", answers={200: TOKEN}, refuses=(404,), **at("/{api_key_id}")
    )
    yield Endpoint("PATCH", "/api-keys/{api_key_id}", "api-keys.patch", key_change, "Rename one of my tokens, restrict it, switch it off or on",
                   answers={200: TOKEN}, refuses=(403, 404), body=TokenChange.model_json_schema(), **at("/{api_key_id}"))  # fmt: skip
    yield Endpoint("POST", "/api-keys/{api_key_id}/rotate", "api-keys.rotate", key_rotate, "Replace a token's secret; `key` is shown this once",
                   answers={200: {**TOKEN, "properties": {**TOKEN["properties"], "key": TEXT}}}, refuses=(403, 404), body=Rotation.model_json_schema(),
                   body_required=False, **at("/{api_key_id}/rotate"))  # fmt: skip
    yield Endpoint("DELETE", "/api-keys/{api_key_id}", "api-keys.delete", key_delete, "Revoke one of my tokens", answers={204: None}, refuses=(403, 404),
                   **at("/{api_key_id}"))  # fmt: skip


def _project_endpoints() -> Iterator[Endpoint]:
    tag = "Projects"
    yield Endpoint("GET", "/projects", "projects.list", project_list, "Projects that I may see", tag, {200: list_schema(PROJECT)})
    yield Endpoint(
        "POST",
        "/projects",
        "projects.create",
        project_create,
        "Create a project",
        tag,
        {201: PROJECT},
        (403, 409),
        body=ProjectInput.model_json_schema(),
    )
    yield Endpoint("GET", "/projects/{project_id}", "projects.get", project, "One project", tag, {200: PROJECT}, (404,))
    yield Endpoint("PATCH", "/projects/{project_id}", "projects.patch", project_change, "Change name or description", tag, {200: PROJECT}, (403, 404, 409),
                   body=ProjectChange.model_json_schema())  # fmt: skip
    yield Endpoint("PUT", "/projects/{project_id}/boundary", "projects.boundary", project_boundary,
                   "Make a policy the project's permission boundary, or take it away", tag, {200: PROJECT}, (403, 404, 409),
                   body=Boundary.model_json_schema())  # fmt: skip
    yield Endpoint(
        "GET", "/projects/{project_id}/members", "projects.members", members, "Members of a project", tag, {200: list_schema(MEMBER)}, (404,)
    )
    yield Endpoint("POST", "/projects/{project_id}/members", "projects.members.set", member_set, "Give a user a role, in place of the one they had", tag,
                   {200: MEMBER}, (403, 404, 409), body=MemberInput.model_json_schema())  # fmt: skip
    yield Endpoint("DELETE", "/projects/{project_id}/members/{user_id}", "projects.members.delete", member_delete, "Take a user out of a project", tag,
                   {204: None}, (403, 404, 409))  # fmt: skip


def _user_endpoints() -> Iterator[Endpoint]:
    tag = "Users"
    yield Endpoint("GET", "/users", "users.list", user_list, "All users", tag, {200: list_schema(USER)}, (403,))
    yield Endpoint("POST", "/users", "users.create", user_create, "Create a user", tag, {201: USER}, (403, 409), body=UserInput.model_json_schema())
    yield Endpoint("GET", "/users/{user_id}", "users.get", user, "One user", tag, {200: USER}, (403, 404))
    yield Endpoint("PATCH", "/users/{user_id}", "users.patch", user_change, "Disable or enable a user, or change their role on the platform", tag, {200: USER},
                   (403, 404, 409), body=UserChange.model_json_schema())  # fmt: skip


# -- signing in ------------------------------------------------------------------------------------------------------------------------------


def _fresh_token() -> tuple[str, ApiToken, User]:
    given: Credentials = read(Credentials)
    ctx = context()
    user = sign_in.check(ctx, given.username, given.password, given.otp)
    if user.must_change_password:
        raise Forbidden("An administrator chose your password. Sign in to the console and choose your own; then tokens can be had.")
    ctx.principal = accounts.principal_of(user, "password")
    secret, row = tokens.token_create(ctx, user, "Signed in with a password", replace_oldest=True)
    return secret, row, user


def token() -> ResponseReturnValue:
    """A token for user name and password."""
    secret, row, _ = _fresh_token()
    return io.answer({"token": secret, "expires_at": io.moment(row.expires_at)})


def login() -> ResponseReturnValue:
    """The same in the words of OAuth."""
    secret, _, user = _fresh_token()
    expires_in = portal_settings().api_token_days * DAY_S
    return io.answer({"access_token": secret, "token_type": "Token", "expires_in": expires_in, "user": show_user(user)})


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
        accounts.sign_out(ctx, session_secret())
    return io.empty()


def me() -> ResponseReturnValue:
    """The caller, their roles and projects."""
    found = signed_in()
    ctx = context()
    if found is None:
        raise NotFound("Nobody is signed in.")
    assumed = found.principal.assumed
    roles = [{"role": m.role, "project_id": m.project_id, "project": m.project.name} for m in found.user.memberships if assumed is None]
    return io.answer(
        {
            **show_user(found.user),
            "kind": found.user.kind,
            "current_project_id": ctx.project_id,
            "memberships": roles,
            "credential": ctx.principal.credential,
            "assumed_role": None if assumed is None else asdict(assumed),
        }
    )


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


# -- projects --------------------------------------------------------------------------------------------------------------------------------


def project_list() -> ResponseReturnValue:
    """Projects."""
    only()
    rows = projects.projects_visible(context())
    return io.answer(io.page_of([show_project(row) for row in rows], count=len(rows)))


def project_create() -> ResponseReturnValue:
    """A new project."""
    given: ProjectInput = read(ProjectInput)
    row = projects.project_create(context(), name=given.name, description=given.description)
    return io.answer(show_project(row), 201, headers={"Location": f"{PREFIX}/projects/{row.id}"})


def project(project_id: str) -> ResponseReturnValue:
    """One project."""
    return io.answer(show_project(projects.project_find(context(), project_id)))


def project_change(project_id: str) -> ResponseReturnValue:
    """Change it."""
    given: ProjectChange = read(ProjectChange)
    return io.answer(show_project(projects.project_update(context(), project_id, name=given.name, description=given.description)))


def project_boundary(project_id: str) -> ResponseReturnValue:
    """Its permission boundary."""
    given: Boundary = read(Boundary)
    return io.answer(show_project(projects.boundary_set(context(), project_id, given.policy or "")))


def members(project_id: str) -> ResponseReturnValue:
    """Its members."""
    only()
    rows = projects.members_of(context(), project_id)
    return io.answer(io.page_of([_show_member(row) for row in rows], count=len(rows)))


def member_set(project_id: str) -> ResponseReturnValue:
    """Add or change one."""
    given: MemberInput = read(MemberInput)
    return io.answer(_show_member(projects.member_set(context(), project_id, given.username, given.role)))


def member_delete(project_id: str, user_id: str) -> ResponseReturnValue:
    """Take one out."""
    projects.member_remove(context(), project_id, user_id)
    return io.empty()


def show_project(row: Project) -> dict[str, Any]:
    """A project."""
    return {
        "project_id": row.id, "id": row.id, "name": row.name, "description": row.description,
        "boundary_policy_id": row.boundary_policy_id, "created_at": io.moment(row.created_at),
    }  # fmt: skip


def _show_member(row: Membership) -> dict[str, Any]:
    return {"user_id": row.user_id, "username": row.user.username, "role": row.role, "created_at": io.moment(row.created_at)}


# -- users -----------------------------------------------------------------------------------------------------------------------------------


def user_list() -> ResponseReturnValue:
    """Users."""
    only()
    rows = users.users_list(context())
    return io.answer(io.page_of([show_user(row) for row in rows], count=len(rows)))


def user_create() -> ResponseReturnValue:
    """A new user."""
    given: UserInput = read(UserInput)
    made = users.user_create(context(), username=given.username, email=given.email, password=given.password, platform_role=given.platform_role)
    return io.answer(show_user(made), 201, headers={"Location": f"{PREFIX}/users/{made.id}"})


def user(user_id: str) -> ResponseReturnValue:
    """One user."""
    return io.answer(show_user(users.user_find(context(), user_id)))


def user_change(user_id: str) -> ResponseReturnValue:
    """Change one."""
    given: UserChange = read(UserChange)
    return io.answer(show_user(users.user_update(context(), user_id, is_active=given.is_active, platform_role=given.platform_role)))


def show_user(row: User) -> dict[str, Any]:
    """A user without anything secret."""
    return {
        "user_id": row.id, "id": row.id, "username": row.username, "email": row.email, "is_active": row.is_active, "platform_role": row.platform_role,
        "last_login_at": io.moment(row.last_login_at), "created_at": io.moment(row.created_at),
    }  # fmt: skip
