"""Signing in and out, the theme, and the switch of projects."""

from urllib.parse import urlsplit

from flask import Blueprint, make_response, redirect, request
from flask.typing import ResponseReturnValue

from portal.http.guard import Access, access
from portal.http.request import SESSION_COOKIE, context, portal_settings, session_cookie_name, session_secret, signed_in
from portal.identity import accounts
from portal.kernel.errors import Unauthorized
from portal.web.page import THEME_COOKIE, THEMES, go, render

pages = Blueprint("auth", __name__)
YEAR_S = 365 * 86_400
CARRY = "carry."


def own_path(text: str) -> str:
    """A path of this portal; `/` for anything that leads elsewhere."""
    parts = urlsplit(text)
    leads_away = parts.scheme or parts.netloc or not text.startswith("/") or text.startswith(("//", "/\\")) or any(c < " " or c == "\\" for c in text)
    return "/" if leads_away else text


@pages.get("/login")
@access(Access.PUBLIC)
def sign_in() -> ResponseReturnValue:
    """The form."""
    if signed_in() is not None:
        return redirect(own_path(request.args.get("next", "/")), 303)
    return render("auth/sign_in.html", message="", username="", next=own_path(request.args.get("next", "/")), carried=[])


@pages.post("/login")
@access(Access.PUBLIC)
def sign_in_now() -> ResponseReturnValue:
    """Check name and password, open a session."""
    username, password, goal = request.form.get("username", ""), request.form.get("password", ""), own_path(request.form.get("next", "/"))
    carried = [(name.removeprefix(CARRY), value) for name in request.form if name.startswith(CARRY) for value in request.form.getlist(name)]
    try:
        secret, _ = accounts.sign_in(context(), username, password)
    except Unauthorized as error:
        return render("auth/sign_in.html", 401, message=error.message, username=username[:254], next=goal, carried=carried)
    if request.headers.get("HX-Request") == "true":
        response = make_response("", 204)
    elif carried:
        response = render("auth/continue.html", goal=goal, carried=carried)
    else:
        response = make_response(redirect(goal, 303))
    name = session_cookie_name()
    age_s = portal_settings().session_absolute_hours * 3600
    response.set_cookie(name, secret, max_age=age_s, httponly=True, samesite="Lax", secure=name == SESSION_COOKIE, path="/")
    return response


@pages.get("/login/again")
@access(Access.PUBLIC)
def sign_in_again() -> ResponseReturnValue:
    """The form as a dialog, for a page whose session has ended."""
    return render("auth/again.html")


@pages.post("/logout")
@access(Access.PUBLIC)
def logout() -> ResponseReturnValue:
    """End the session."""
    if secret := session_secret():
        accounts.sign_out(context(), secret)
    response = make_response(redirect("/login", 303))
    response.delete_cookie(session_cookie_name(), path="/", secure=session_cookie_name() == SESSION_COOKIE, httponly=True, samesite="Lax")
    return response


@pages.post("/theme")
@access(Access.PUBLIC)
def theme() -> ResponseReturnValue:
    """Light, dark, or as the system."""
    wanted = request.form.get("theme", "system")
    response = make_response(go(own_path(request.form.get("next", "/"))))
    if wanted in THEMES:
        response.set_cookie(THEME_COOKIE, wanted, max_age=YEAR_S, samesite="Lax", secure=session_cookie_name() == SESSION_COOKIE, httponly=True)
    return response


@pages.post("/project")
@access(Access.SIGNED_IN)
def switch_project() -> ResponseReturnValue:
    """Make another project the current one."""
    found = signed_in()
    if found is None or found.session is None:
        raise Unauthorized("Sign in first.")
    accounts.switch_project(context(), found.session.id_hash, request.form.get("project_id", ""))
    return go("/")
