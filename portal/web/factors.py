"""Apps, passkeys and recovery codes of the own account; and, for administrators, which roles must have a second factor."""

import segno
from flask import Blueprint, make_response, request
from flask.typing import ResponseReturnValue

from portal.http.guard import Access, access
from portal.http.passkey_site import passkey_site, takes_passkeys
from portal.http.request import context, unfinished
from portal.identity import factors, passkeys
from portal.kernel.authz import ROLES, authorize
from portal.kernel.errors import Conflict, InvalidRequest
from portal.web.entry import challenge_secret, set_challenge, with_session
from portal.web.page import form_status, go, render

pages = Blueprint("factors", __name__)
HOME = "/account/factors"


@pages.get("/account/factors")
@access(Access.SIGNED_IN)
def index() -> ResponseReturnValue:
    """What the account has."""
    return _page(200)


@pages.post("/account/factors/totp")
@access(Access.SIGNED_IN)
def totp_begin() -> ResponseReturnValue:
    """A new authenticator app."""
    try:
        device, _, _ = factors.totp_begin(context(), request.form.get("name", "").strip() or "Authenticator app")
    except (InvalidRequest, Conflict) as error:
        return _page(form_status(error), message=error.message)
    return go(f"{HOME}/totp/{device.id}")


@pages.get("/account/factors/totp/<device_id>")
@access(Access.SIGNED_IN)
def totp(device_id: str) -> ResponseReturnValue:
    """Its secret, and the form for its first code."""
    return _totp_page(device_id, 200)


@pages.post("/account/factors/totp/<device_id>")
@access(Access.SIGNED_IN)
def totp_confirm(device_id: str) -> ResponseReturnValue:
    """Take it into use."""
    try:
        activated = factors.totp_confirm(context(), device_id, request.form.get("code", "").replace(" ", "")[:10])
    except InvalidRequest as error:
        return _totp_page(device_id, form_status(error), error=error)
    return _done(activated, "The app is in use.")


@pages.get("/account/factors/passkey")
@access(Access.SIGNED_IN)
def passkey() -> ResponseReturnValue:
    """The form for a new passkey."""
    return _passkey_page(200)


@pages.post("/account/factors/passkey")
@access(Access.SIGNED_IN)
def passkey_create() -> ResponseReturnValue:
    """Keep what the authenticator made."""
    form = request.form
    try:
        name = form.get("name", "").strip() or "Passkey"
        activated = passkeys.passkey_create(context(), passkey_site(), challenge_secret(), name, form.get("credential", ""))
    except (InvalidRequest, Conflict) as error:
        return _passkey_page(form_status(error), message=error.message)
    return _done(activated, "The passkey is in use.")


@pages.post("/account/factors/<device_id>/remove")
@access(Access.SIGNED_IN)
def remove(device_id: str) -> ResponseReturnValue:
    """Forget a device."""
    factors.device_remove(context(), device_id)
    return go(HOME, "The device is removed.")


@pages.post("/account/factors/recovery")
@access(Access.SIGNED_IN)
def recovery() -> ResponseReturnValue:
    """New recovery codes."""
    try:
        codes = factors.recovery_renew(context())
    except Conflict as error:
        return _page(form_status(error), message=error.message)
    return render("account/recovery.html", codes=codes)


@pages.get("/security/sign-in")
@access(Access.SIGNED_IN)
def rules() -> ResponseReturnValue:
    """Which roles must have a second factor."""
    ctx = context()
    authorize(ctx, "identity.mfa.require", factors.RULES)
    return render("security/sign_in.html", roles=ROLES, required=factors.roles_required(ctx.db))


@pages.post("/security/sign-in")
@access(Access.SIGNED_IN)
def rules_update() -> ResponseReturnValue:
    """Change that."""
    factors.rules_update(context(), request.form.getlist("role"))
    return go("/security/sign-in", "Saved. Whoever holds such a role adds a second factor before doing anything else.")


def _done(activated: factors.Activated, message: str) -> ResponseReturnValue:
    response = render("account/recovery.html", codes=activated.codes) if activated.codes else make_response(go(HOME, message))
    return with_session(response, activated.session_secret)


def _page(status: int, *, message: str = "") -> ResponseReturnValue:
    ctx = context()
    user_id = ctx.principal.user_id
    devices, codes_left = factors.devices_of(ctx.db, user_id), factors.recovery_left(ctx.db, user_id)
    return render(
        "account/factors.html", status, devices=devices, left=codes_left, message=message, passkeys=takes_passkeys(), required=bool(unfinished())
    )


def _totp_page(device_id: str, status: int, *, error: InvalidRequest | None = None) -> ResponseReturnValue:
    device, secret, uri = factors.totp_again(context(), device_id)
    picture = segno.make(uri, error="m").svg_data_uri(scale=5, border=3, light="white")
    spaced = " ".join(secret[at : at + 4] for at in range(0, len(secret), 4))
    return render("account/totp.html", status, device=device, secret=spaced, picture=picture, errors=error.details if error else {})


def _passkey_page(status: int, *, message: str = "") -> ResponseReturnValue:
    asked = passkeys.passkey_begin(context(), passkey_site())
    response = render("account/passkey.html", status, options=asked.options, message=message)
    set_challenge(response, asked.secret)
    return response
