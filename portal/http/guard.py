"""Every route says who may call it; one that does not keeps the portal from starting."""

from collections.abc import Callable
from enum import StrEnum
from typing import Any, TypeVar

from flask import Flask, request
from flask.typing import ResponseReturnValue

from portal.http.request import context, session_secret, signed_in, token_from_header, unfinished
from portal.kernel.authz import Target, authorize
from portal.kernel.errors import Forbidden, Unauthorized

ViewT = TypeVar("ViewT", bound=Callable[..., Any])
ATTRIBUTE = "_portal_access"


LARGE_BODY = "_portal_large_body"
NO_COOKIE = "_portal_no_cookie"
LARGE_FORM = "_portal_large_form"


class Access(StrEnum):
    """Who may call a route: anybody, or whoever is signed in (operations and queries then decide on their own)."""

    PUBLIC = "public"
    SIGNED_IN = "signed in"


def access(rule: Access | str) -> Callable[[ViewT], ViewT]:
    """Mark a view: an `Access`, or the name of a permission that is needed in the current project."""

    def mark(view: ViewT) -> ViewT:
        setattr(view, ATTRIBUTE, rule)
        return view

    return mark


def large_body(view: ViewT) -> ViewT:
    """Mark a view that streams a body of an image's size; all others take forms and JSON only."""
    setattr(view, LARGE_BODY, True)
    return view


def large_form(view: ViewT) -> ViewT:
    """Mark a view whose form brings small files along."""
    setattr(view, LARGE_FORM, True)
    return view


def takes_large_form(app: Flask, endpoint: str | None) -> bool:
    """Whether a route's view was marked so."""
    return bool(getattr(app.view_functions.get(endpoint or ""), LARGE_FORM, False))


def no_cookie(view: ViewT) -> ViewT:
    """Mark a view that never looks at a cookie, so that no foreign page can abuse one."""
    setattr(view, NO_COOKIE, True)
    return view


def takes_no_cookie(app: Flask, endpoint: str | None) -> bool:
    """Whether a route's view was marked so."""
    return bool(getattr(app.view_functions.get(endpoint or ""), NO_COOKIE, False))


def takes_large_body(app: Flask, endpoint: str | None) -> bool:
    """Whether a route's view was marked so."""
    return bool(getattr(app.view_functions.get(endpoint or ""), LARGE_BODY, False))


def rule_of(app: Flask, endpoint: str | None) -> Access | str | None:
    """What a route's view was marked with."""
    view = app.view_functions.get(endpoint or "")
    return getattr(view, ATTRIBUTE, Access.PUBLIC if endpoint == "static" else None)


def install(app: Flask) -> None:
    """Enforce the marks before every request."""

    @app.before_request
    def enforce() -> ResponseReturnValue | None:
        if request.endpoint is None:
            return None
        rule = rule_of(app, request.endpoint)
        if rule is Access.PUBLIC:
            return None
        found = signed_in()
        if found is None:
            raise Unauthorized("Sign in first." if not session_secret() else "Your session has ended. Sign in again.")
        if rule is None:
            msg = f"{request.endpoint} has no access rule"
            raise RuntimeError(msg)
        if request.path.startswith("/api"):
            _refuse_unfinished()
        elif found.session is None or token_from_header() is not None:
            raise Forbidden("Pages are for whoever sits at a browser and has signed in there. With a token, use the API.")
        if rule is not Access.SIGNED_IN:
            ctx = context()
            authorize(ctx, rule, Target(ctx.project_id))
        return None


def _refuse_unfinished() -> None:
    """Whoever has yet to choose a password or to show a second factor does that in the console first; pages lead there by themselves."""
    if todo := unfinished():
        raise Forbidden(f"Sign in to the console first: you have to {todo.value}.")


def check(app: Flask) -> None:
    """Raise, at start-up, for a route without a rule or with a permission that was never declared."""
    registry = app.extensions["portal"][1]
    for route in app.url_map.iter_rules():
        rule = rule_of(app, route.endpoint)
        if rule is None or (not isinstance(rule, Access) and rule not in registry.permissions):
            msg = f"route {route.rule} ({route.endpoint}) has no valid access rule: {rule}"
            raise TypeError(msg)


def public_routes(app: Flask) -> list[str]:
    """Paths that anybody may call, for the golden file."""
    return sorted({route.rule for route in app.url_map.iter_rules() if rule_of(app, route.endpoint) is Access.PUBLIC})
