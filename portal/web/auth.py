"""Signing in and out, the second factor, proving again who one is, the theme, and the switch of projects."""

from flask import Blueprint, make_response, redirect, request
from flask.typing import ResponseReturnValue

from portal.http.guard import Access, access
from portal.http.passkey_site import passkey_site
from portal.http.request import SESSION_COOKIE, context, portal_settings, session_cookie_name, session_secret, signed_in
from portal.http.sso import providers, sign_out_url
from portal.identity import accounts, passkeys, sign_in
from portal.identity.sealed import unseal
from portal.kernel.errors import Unauthorized
from portal.web.entry import (
    after,
    carried_fields,
    challenge_secret,
    confirmation,
    form,
    leaving,
    onwards,
    own_path,
    second_form,
    set_challenge,
    with_session,
)  # fmt: skip
from portal.web.page import go, is_fragment, render, with_theme

pages = Blueprint("auth", __name__)


@pages.get("/login")
@access(Access.PUBLIC)
def sign_in_form() -> ResponseReturnValue:
    """The form."""
    if signed_in() is not None:
        return redirect(own_path(request.args.get("next", "/")), 303)
    return form(own_path(request.args.get("next", "/")))


@pages.post("/login")
@access(Access.PUBLIC)
def sign_in_now() -> ResponseReturnValue:
    """Check name and password, and a code if one came along."""
    username, password, goal = request.form.get("username", ""), request.form.get("password", ""), own_path(request.form.get("next", "/"))
    carried = carried_fields()
    try:
        step = sign_in.sign_in(context(), username, password, code=request.form.get("code", "")[:100])
    except Unauthorized as error:
        if is_fragment():
            return make_response(error.message, 401)
        return form(goal, 401, message=error.message, username=username[:254], carried=carried)
    if step.signed_in is None and is_fragment():
        return make_response("Your account has a second factor: give a code of your app or a recovery code too.", 401)
    return after(step, goal, carried)


@pages.post("/login/second")
@access(Access.PUBLIC)
def second_factor() -> ResponseReturnValue:
    """A code, or the answer of a passkey."""
    ctx, goal, carried, secret = context(), own_path(request.form.get("next", "/")), carried_fields(), challenge_secret()
    try:
        if answer := request.form.get("credential", ""):
            step = passkeys.passkey_second(ctx, passkey_site(), secret, answer)
        else:
            step = sign_in.second_step(ctx, secret, request.form.get("code", "")[:100])
    except Unauthorized as error:
        try:
            return second_form(secret, goal, carried, message=error.message, status=401)
        except Unauthorized:
            return form(goal, 401, message=error.message, carried=carried)
    return after(step, goal, carried)


@pages.post("/login/passkey/ask")
@access(Access.PUBLIC)
def passkey_ask() -> ResponseReturnValue:
    """What the browser is to ask an authenticator for, as JSON."""
    asked = passkeys.passkey_ask(context(), passkey_site())
    response = make_response(asked.options)
    response.mimetype = "application/json"
    set_challenge(response, asked.secret)
    return response


@pages.post("/login/passkey")
@access(Access.PUBLIC)
def passkey_enter() -> ResponseReturnValue:
    """Sign in with a passkey alone."""
    goal, carried = own_path(request.form.get("next", "/")), carried_fields()
    try:
        step = passkeys.passkey_enter(context(), passkey_site(), challenge_secret(), request.form.get("credential", ""))
    except Unauthorized as error:
        return form(goal, 401, message=error.message, carried=carried)
    return after(step, goal, carried)


@pages.get("/confirm")
@access(Access.SIGNED_IN)
def confirm_form() -> ResponseReturnValue:
    """Who one is, asked again before something dangerous."""
    return confirmation(own_path(request.args.get("next", "/")))


@pages.post("/confirm")
@access(Access.SIGNED_IN)
def confirm_now() -> ResponseReturnValue:
    """Take a password, a code or a passkey's answer as proof."""
    ctx, goal, carried, given = context(), own_path(request.form.get("next", "/")), carried_fields(), request.form
    try:
        if answer := given.get("credential", ""):
            fresh = passkeys.passkey_confirm(ctx, passkey_site(), challenge_secret(), answer)
        else:
            fresh = sign_in.confirm(ctx, password=given.get("password", ""), code=given.get("code", "")[:100])
    except Unauthorized as error:
        return confirmation(goal, 401, message=error.message, carried=carried)
    return with_session(onwards(goal, carried), fresh)


@pages.get("/login/again")
@access(Access.PUBLIC)
def sign_in_again() -> ResponseReturnValue:
    """The form as a dialog, for a page whose session has ended."""
    return render("auth/again.html")


@pages.post("/logout")
@access(Access.PUBLIC)
def logout() -> ResponseReturnValue:
    """End the session."""
    found, elsewhere = signed_in(), ""
    if found and found.session and (provider := providers().get(found.session.method.removeprefix("sso:"))) is not None:
        elsewhere = sign_out_url(provider, unseal(portal_settings(), found.session.sealed_id_token) or "")
    if secret := session_secret():
        accounts.sign_out(context(), secret)
    response = (
        leaving(elsewhere, "You are signed out here. Your provider ends its session too.") if elsewhere else make_response(redirect("/login", 303))
    )
    response.delete_cookie(session_cookie_name(), path="/", secure=session_cookie_name() == SESSION_COOKIE, httponly=True, samesite="Lax")
    return response


@pages.post("/theme")
@access(Access.PUBLIC)
def theme() -> ResponseReturnValue:
    """Light, dark, or as the system."""
    return with_theme(go(own_path(request.form.get("next", "/"))), request.form.get("theme", "system"))


@pages.post("/project")
@access(Access.SIGNED_IN)
def switch_project() -> ResponseReturnValue:
    """Make another project the current one."""
    found = signed_in()
    if found is None or found.session is None:
        raise Unauthorized("Sign in first.")
    accounts.switch_project(context(), found.session.id_hash, request.form.get("project_id", ""))
    return go("/")
