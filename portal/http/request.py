"""From an HTTP request to a `Context`: the credential, the project, the request id."""

import re
import secrets
from collections.abc import Callable, Sequence
from datetime import timedelta
from enum import StrEnum
from urllib.parse import unquote_to_bytes, urlsplit

from flask import Flask, current_app, g, request
from flask_login import LoginManager, UserMixin
from werkzeug import Response

from portal.identity import accounts, factors, tokens
from portal.identity.accounts import ACCESS_PREFIX, SignedIn
from portal.identity.oauth2.bearer import bearer_user, looks_like_one
from portal.kernel.addresses import canonical
from portal.kernel.context import ANONYMOUS, Context, Principal
from portal.kernel.db import db
from portal.kernel.errors import InvalidRequest, NotFound, Unavailable
from portal.kernel.resource import Registry
from portal.settings import Settings

SESSION_COOKIE = "__Host-atonix_session"
PLAIN_SESSION_COOKIE = "atonix_session"
REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{8,64}")
TOKEN_SCHEMES = ("token", "apikey", "bearer")
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]", "::1")


class LoginUser(UserMixin):  # type: ignore[misc] # the library has no types
    """The signed-in user as Flask-Login and templates see them."""

    def __init__(self, found: SignedIn) -> None:
        """Wrap what the credential led to."""
        self.id = found.user.id
        self.found = found


def install(app: Flask, settings: Settings, registry: Registry, deliver: Callable[[Sequence[str]], None]) -> None:
    """Make `context()` work within requests of this app."""
    app.extensions["portal"] = (settings, registry, deliver)
    login = LoginManager(app)
    login.request_loader(_load_user)
    login.session_protection = None
    app.before_request(_begin)


def portal_settings() -> Settings:
    """Settings of the running app."""
    settings: Settings = current_app.extensions["portal"][0]
    return settings


def _begin() -> None:
    given = request.headers.get("X-Request-ID", "")
    g.request_id = given if REQUEST_ID.fullmatch(given) else f"req-{secrets.token_hex(8)}"
    _refuse_no_utf8()


def _refuse_no_utf8() -> None:
    """Refuse an address whose bytes are no text: decoded with replacements, one name would stand for another."""
    try:
        request.environ.get("PATH_INFO", "").encode("latin-1").decode()
        unquote_to_bytes(request.query_string).decode()
    except UnicodeError:
        raise InvalidRequest("The address is not UTF-8.") from None


def _load_user(_request: object) -> LoginUser | None:
    found = signed_in()
    return LoginUser(found) if found else None


def signed_in() -> SignedIn | None:
    """Who is behind the request's credential. A token header, even a wrong one, wins over the cookie."""
    if "signed_in" not in g:
        token = token_from_header()
        if token is not None:
            g.signed_in = _behind_token(token)
        elif secret := session_secret():
            g.signed_in = None if secret.startswith(ACCESS_PREFIX) else _behind_session(secret)
        else:
            g.signed_in = None
    found: SignedIn | None = g.signed_in
    return found


class Unfinished(StrEnum):
    """What somebody has to do before anything else."""

    NEW_PASSWORD = "choose a password of your own"  # noqa: S105 - what to do, not a secret
    ENROL = "add a second factor, which one of your roles asks for"
    FACTOR = "show your second factor"


def unfinished() -> Unfinished | None:
    """What whoever is behind a credential still has to do.

    A token says nothing of factors: it counts for somebody who has one, or whom a provider lets in, not for somebody who needs one and signs in
    with a password alone.
    """
    found = signed_in()
    if found is None:
        return None
    if found.session is None:
        lacks = found.principal.needs_factor and bool(found.user.password_hash)
        return Unfinished.ENROL if lacks and not factors.devices_of(db.session(), found.user.id) else None
    if found.user.must_change_password:
        return Unfinished.NEW_PASSWORD
    if not found.principal.needs_factor or found.principal.mfa:
        return None
    return Unfinished.FACTOR if factors.devices_of(db.session(), found.user.id) else Unfinished.ENROL


def _behind_session(secret: str) -> SignedIn | None:
    return accounts.session_user(db.session(), secret, idle=timedelta(minutes=portal_settings().session_idle_minutes))


def _behind_token(token: str) -> SignedIn | None:
    if token.startswith(ACCESS_PREFIX):
        return _behind_session(token)
    if not looks_like_one(token) or not request.headers.get("Authorization", "").lower().startswith("bearer "):
        return tokens.token_user(db.session(), token, source_ip=source_ip())
    try:
        return bearer_user(db.session(), token, issuer(), source_ip=source_ip())
    except Unavailable:
        return None


def own_origin() -> str:
    """The portal's own scheme, host and port, as browsers and others may be told them: of PUBLIC_URL, or of a request to loopback.

    Raises Unavailable where only a Host header says so, which anybody can send.
    """
    public = urlsplit(portal_settings().public_url)
    if public.netloc:
        return f"{public.scheme}://{public.netloc}"
    if (urlsplit(request.host_url).hostname or "") in LOOPBACK_NAMES:
        return request.host_url.rstrip("/")
    raise Unavailable("An administrator has to set PUBLIC_URL to the address of this portal first.")


def issuer() -> str:
    """The portal as tokens name it. Raises Unavailable where its address is not sure, or not encrypted though it is not on this machine."""
    origin = own_origin()
    address = urlsplit(origin)
    if address.scheme != "https" and (address.hostname or "") not in LOOPBACK_NAMES:
        raise Unavailable("Applications sign in over https only: PUBLIC_URL has to begin with it.")
    return portal_settings().public_url.rstrip("/") or origin


def token_from_header() -> str | None:
    """The API token of the request; empty text if there is a header that cannot be one."""
    if key := request.headers.get("X-API-Key"):
        return key
    header = request.headers.get("Authorization")
    if header is None:
        return None
    scheme, _, value = header.partition(" ")
    return value.strip() if scheme.lower() in TOKEN_SCHEMES else ""


def session_cookie_name() -> str:
    """`__Host-` where the browser treats the connection as secure, which loopback is; a plain name on bare HTTP."""
    host = request.host.rpartition(":")[0] or request.host
    return SESSION_COOKIE if request.is_secure or host in LOOPBACK_NAMES or request.host in LOOPBACK_NAMES else PLAIN_SESSION_COOKIE


def give_session(response: Response, secret: str) -> None:
    """Give the browser the secret of its session."""
    name, age_s = session_cookie_name(), portal_settings().session_absolute_hours * 3600
    response.set_cookie(name, secret, max_age=age_s, httponly=True, samesite="Lax", secure=name == SESSION_COOKIE, path="/")


def session_secret() -> str:
    """Value of the session cookie."""
    return request.cookies.get(session_cookie_name(), "")


def source_ip() -> str:
    """Address of the client, as the trusted proxies say."""
    return canonical(request.remote_addr or "")


def context() -> Context:
    """The context of this request; the same object throughout it."""
    if "context" not in g:
        settings, registry, deliver = current_app.extensions["portal"]
        found = signed_in()
        is_api = request.path.startswith("/api") or token_from_header() is not None
        g.context = Context(
            db.session(), settings, registry, found.principal if found else ANONYMOUS, request_id=g.get("request_id", ""),
            source="api" if is_api else "console", source_ip=source_ip(), user_agent=request.headers.get("User-Agent", "")[:255],
            idempotency_key=request.headers.get("Idempotency-Key", "")[:255], deliver=deliver, identify_again=_identify_again if found else None,
        )  # fmt: skip
        g.context.project_id = _project(g.context, found)
    ctx: Context = g.context
    return ctx


def _identify_again() -> Principal | None:
    """Who is behind the request's credential by now."""
    db.session().rollback()
    g.pop("signed_in", None)
    found = signed_in()
    return found.principal if found is not None else None


def _project(ctx: Context, found: SignedIn | None) -> str | None:
    """The project that the request is about: named by header, else the session's, else the user's own."""
    if found is None:
        return None
    named = request.headers.get("X-Project", "")
    if found.principal.assumed is not None and named in {"", found.principal.assumed.project_id}:
        return found.principal.assumed.project_id
    if named:
        if not accounts.may_enter(ctx, named):
            raise NotFound(f"There is no project {named[:80]} here.")
        return named
    if found.session is not None and found.session.project_id:
        current: str = found.session.project_id
        if any(grant.project_id in {None, current} for grant in found.principal.grants):
            return current
    return accounts.home_project(found.user)


def current_project() -> str:
    """Id of the project that the request is about. Raises InvalidRequest for a member of none."""
    project_id = context().project_id
    if project_id is None:
        raise InvalidRequest("Choose a project first: you are a member of none. An administrator can add you to one.")
    return project_id
