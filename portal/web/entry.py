"""Cookies of signing in, and the page that comes after each step."""

from collections.abc import Sequence
from urllib.parse import urlsplit

from flask import make_response, redirect, request
from flask.typing import ResponseReturnValue
from werkzeug import Response

from portal.http.passkey_site import passkey_site, takes_passkeys
from portal.http.request import SESSION_COOKIE, context, give_session, session_cookie_name, session_secret
from portal.http.sso import providers
from portal.identity import accounts, factors, passkeys, sign_in, sso
from portal.identity.models import User
from portal.identity.providers import Provider
from portal.identity.sign_in import Step
from portal.web.page import is_fragment, render

Carried = Sequence[tuple[str, str]]
CARRY = "carry."


def challenge_cookie_name() -> str:
    """Of the cookie between two steps, with `__Host-` like the session's."""
    return "__Host-atonix_step" if session_cookie_name() == SESSION_COOKIE else "atonix_step"


def challenge_secret() -> str:
    """Value of that cookie."""
    return request.cookies.get(challenge_cookie_name(), "")


def carried_fields() -> Carried:
    """What somebody had typed before they had to sign in or confirm, as the form brings it along."""
    return [(name.removeprefix(CARRY), value) for name in request.form if name.startswith(CARRY) for value in request.form.getlist(name)]


def own_path(text: str) -> str:
    """A path of this portal; `/` for anything that leads elsewhere."""
    try:
        parts = urlsplit(text)
    except ValueError:
        return "/"
    leads_away = parts.scheme or parts.netloc or not text.startswith("/") or text.startswith(("//", "/\\")) or any(c < " " or c == "\\" for c in text)
    return "/" if leads_away else text


def form(goal: str, status: int = 200, *, message: str = "", username: str = "", carried: Carried = ()) -> Response:
    """The form to sign in with."""
    return render(
        "auth/sign_in.html",
        status,
        message=message,
        username=username,
        next=goal,
        carried=carried,
        passkeys=takes_passkeys(),
        providers=providers().values(),
    )


def confirmation(goal: str, status: int = 200, *, message: str = "", carried: Carried = ()) -> Response:
    """The form that asks again who one is, for what the account can be proved with."""
    ctx = context()
    devices = factors.devices_of(ctx.db, ctx.principal.user_id)
    has_passkey = takes_passkeys() and any(device.device_type == factors.PASSKEY for device in devices)
    asked = passkeys.passkey_confirm_ask(ctx, passkey_site()) if has_passkey else None
    user = ctx.db.get_one(User, ctx.principal.user_id)
    response = render(
        "auth/confirm.html", status, options=asked.options if asked else "", next=goal, carried=carried, message=message,
        has_password=bool(user.password_hash) and not devices, has_codes=bool(devices), again_at=_linked_providers(),
    )  # fmt: skip
    if asked:
        set_challenge(response, asked.secret)
    return response


def _linked_providers() -> list[Provider]:
    linked = {identity.provider for identity in sso.identities_of(context())}
    # Only who can be told to ask again, and says when they did.
    return [provider for provider in providers().values() if provider.name in linked and provider.kind == "oidc"]


def after(step: Step, goal: str, carried: Carried) -> ResponseReturnValue:
    """The answer to a step of signing in: on to where one wanted, or the form for the second factor."""
    if step.signed_in is None:
        response = second_form(step.secret, goal, carried)
        set_challenge(response, step.secret)
        return response
    if before := session_secret():
        accounts.session_replace(context(), before)
    return with_session(onwards(goal, carried), step.secret)


def with_session(response: Response, secret: str) -> Response:
    """Give the browser the secret of its session; what it held between two steps is done with."""
    give_session(response, secret)
    forget_challenge(response)
    return response


def onwards(goal: str, carried: Carried) -> Response:
    """To where one wanted; what had been typed is shown and can be sent."""
    if is_fragment():
        return make_response("", 204)
    return render("auth/continue.html", goal=goal, carried=carried) if carried else make_response(redirect(goal, 303))


def second_form(secret: str, goal: str, carried: Carried, *, message: str = "", status: int = 200) -> Response:
    """The form for the second factor."""
    options = passkeys.second_options(context(), passkey_site(), secret) if takes_passkeys() else ""
    return render("auth/second.html", status, options=options, next=goal, carried=carried, message=message)


def leaving(url: str, text: str) -> Response:
    """A page that leads away by itself: what follows a form may not leave the portal, for other pages could abuse that."""
    response = render("auth/leaving.html", url=url, text=text)
    response.headers["Refresh"] = f"0; url={url}"
    return response


def set_challenge(response: Response, secret: str) -> None:
    """Give the browser the secret of a challenge for the few minutes that it holds."""
    name, age_s = challenge_cookie_name(), int(sign_in.LIFETIME.total_seconds())
    response.set_cookie(name, secret, max_age=age_s, httponly=True, samesite="Lax", secure=name.startswith("__Host-"), path="/")


def forget_challenge(response: Response) -> None:
    """Take that cookie away."""
    name = challenge_cookie_name()
    response.delete_cookie(name, path="/", secure=name.startswith("__Host-"), httponly=True, samesite="Lax")
