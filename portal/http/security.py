"""Headers, cookies, CSRF and request limits."""

from collections.abc import Callable
from typing import Any, TypeVar

from flask import Flask, Request, Response, g, request
from flask.sessions import SecureCookieSessionInterface
from flask_limiter import Limiter
from flask_wtf.csrf import CSRFProtect
from werkzeug.middleware.proxy_fix import ProxyFix

from portal.http.guard import Access, rule_of, takes_large_body, takes_large_form, takes_no_cookie
from portal.http.request import SESSION_COOKIE, session_cookie_name, signed_in, source_ip, token_from_header
from portal.kernel.errors import InvalidRequest, UnsupportedMedia
from portal.settings import Settings

CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'; manifest-src 'self'"
)
# The terminal writes its own style rules; that page alone may.
CSP_CONSOLE = CSP.replace("style-src 'self'", "style-src 'self' 'unsafe-inline'")
INLINE_STYLE = "inline_style"
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}
MAX_FORM_BYTES = 2 << 20
# Forms that bring files along; larger ones are sent in parts, by scripts and S3 clients.
MAX_FILES_BYTES = 32 << 20
FORM_TYPES = frozenset({"multipart/form-data", "application/x-www-form-urlencoded"})
GIB = 1 << 30
# How a view answers to what was guessed wrongly.
WRONG = frozenset({400, 401, 403})
ViewT = TypeVar("ViewT", bound=Callable[..., Any])


class FormCookie(SecureCookieSessionInterface):
    """The signed cookie that holds the CSRF token and nothing else; the session itself lives in the database."""

    def get_cookie_name(self, app: Flask) -> str:
        """With `__Host-` where the connection counts as secure."""
        del app
        return "__Host-atonix_form" if session_cookie_name() == SESSION_COOKIE else "atonix_form"

    def get_cookie_secure(self, app: Flask) -> bool:
        """As the session cookie."""
        del app
        return session_cookie_name() == SESSION_COOKIE


def install(app: Flask, settings: Settings) -> CSRFProtect:
    """Add all of it; gives the CSRF guard so that the API, which takes no cookies without a token, can be exempted by its blueprint."""
    app.config.update(SECRET_KEY=settings.secret(), SESSION_COOKIE_SAMESITE="Lax", SESSION_COOKIE_HTTPONLY=True, MAX_CONTENT_LENGTH=MAX_FORM_BYTES)
    app.config.update(WTF_CSRF_TIME_LIMIT=None, WTF_CSRF_SSL_STRICT=False, WTF_CSRF_CHECK_DEFAULT=False)
    app.session_interface = FormCookie()
    if settings.trusted_proxies:
        proxies = settings.trusted_proxies
        app.wsgi_app = ProxyFix(app.wsgi_app, x_for=proxies, x_proto=proxies, x_host=proxies)  # type: ignore[method-assign]
    csrf = CSRFProtect(app)

    @app.before_request
    def protect() -> None:
        _refuse_odd_text()
        if takes_large_body(app, request.endpoint):
            # Before anything looks at the body: its limit is fixed with the first look, and a form parser would keep gigabytes of it.
            request.max_content_length = settings.image_max_gib * GIB
            if request.mimetype in FORM_TYPES:
                raise UnsupportedMedia("Send the file itself as the body, with Content-Type: application/octet-stream.")
        elif takes_large_form(app, request.endpoint) and not _is_stranger(app):
            request.max_content_length = MAX_FILES_BYTES
        # A request with a token header carries no cookie that a foreign page could abuse.
        if request.method not in {"GET", "HEAD", "OPTIONS"} and not takes_no_cookie(app, request.endpoint) and _by_cookie() and not _is_stranger(app):
            csrf.protect()

    app.after_request(_headers)
    _limits(app, settings)
    return csrf


def _is_stranger(app: Flask) -> bool:
    """Whether the guard will refuse the request: nobody parses the form of one who has not signed in, except where signing in is what it is for."""
    return rule_of(app, request.endpoint) is not Access.PUBLIC and signed_in() is None


def _by_cookie() -> bool:
    return token_from_header() is None and (not request.path.startswith("/api") or signed_in() is not None)


def _refuse_odd_text() -> None:
    if "\x00" in request.path or "\x00" in request.query_string.decode("latin-1") or "%00" in request.query_string.decode("latin-1"):
        raise InvalidRequest("The address contains a null character.")


def _headers(response: Response) -> Response:
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)
    response.headers.setdefault("Content-Security-Policy", CSP_CONSOLE if request.environ.get(INLINE_STYLE) else CSP)
    # The limiter says it with every answer; it is meant for those that are to be asked again.
    response.headers.pop("Retry-After", None)
    if g.get("retry_after_s") is not None:
        response.headers["Retry-After"] = str(g.retry_after_s)
    if request.is_secure:
        response.headers.setdefault("Strict-Transport-Security", "max-age=31536000")
    if request.endpoint != "static":
        response.headers.setdefault("Cache-Control", "no-store")
        response.vary.update(["Cookie", "HX-Request", "HX-Boosted"])
    return response


def allow_inline_style(incoming: Request) -> None:
    """Relax the style rule for the response to this request (the terminal page)."""
    incoming.environ[INLINE_STYLE] = True


def _who() -> str:
    found = signed_in()
    return str(found.principal.user_id) if found else f"address:{source_ip()}"


def _limits(app: Flask, settings: Settings) -> None:
    # Processes that count each for itself share what one caller has.
    counting = settings.web_workers if settings.rate_limit_storage.startswith("memory:") else 1

    def share(limit: int) -> str:
        return f"{max(1, limit // counting) if limit else 10**9} per minute"

    def allowed() -> str:
        return share(settings.rate_limit_per_minute if signed_in() else settings.rate_limit_anonymous_per_minute)

    def free() -> bool:
        return request.endpoint in {"static", "probes.health", "probes.healthz", "probes.ready", "probes.metrics"}

    options: dict[str, Any] = {"headers_enabled": True, "storage_uri": settings.rate_limit_storage, "strategy": "fixed-window"}
    limiter = Limiter(_who, app=app, default_limits=[allowed], default_limits_exempt_when=free, **options)

    def guesses() -> str:
        return share(settings.rate_limit_anonymous_per_minute)

    def is_wrong(response: Response) -> bool:
        return response.status_code in WRONG

    app.extensions["portal_guesses"] = limiter.shared_limit(
        guesses, scope="guesses", key_func=lambda: f"address:{source_ip()}", deduct_when=is_wrong, override_defaults=False
    )


def guess_limit(app: Flask) -> Callable[[ViewT], ViewT]:
    """What holds for a view at which passwords, codes and secrets can be tried, whatever credential comes along.

    Wrong ones count, those of all such views together for each address.
    """
    limited: Callable[[ViewT], ViewT] = app.extensions["portal_guesses"]
    return limited
