"""The user's own account: sessions, tokens, password, preferences."""

from collections.abc import Mapping

from flask import Blueprint, request
from flask.typing import ResponseReturnValue

from portal.http.guard import Access, access
from portal.http.request import context, signed_in
from portal.http.sso import providers
from portal.identity import accounts, sign_in, sso, tokens
from portal.identity.accounts import SignedIn
from portal.identity.oauth2.consents import consent_revoke, consents_of, in_words
from portal.identity.preferences import LANGUAGES, locale_update, preferences_update, zones_by_area
from portal.kernel.db import now
from portal.kernel.errors import Conflict, Forbidden, InvalidRequest, PortalError, QuotaExceeded, Unauthorized
from portal.web.forms import days_of, scopes_of
from portal.web.page import field_errors, form_status, go, render, with_theme

pages = Blueprint("account", __name__)


def _me() -> SignedIn:
    found = signed_in()
    if found is None:
        raise Unauthorized("Sign in first.")
    return found


@pages.get("/account")
@access(Access.SIGNED_IN)
def index() -> ResponseReturnValue:
    """Everything about the account."""
    return _page(200)


@pages.post("/account/sessions/<session_id>/revoke")
@access(Access.SIGNED_IN)
def revoke_session(session_id: str) -> ResponseReturnValue:
    """End one of the own sessions."""
    accounts.session_revoke(context(), session_id)
    return go("/account", "The session has ended.")


@pages.post("/account/sessions/end-others")
@access(Access.SIGNED_IN)
def end_other_sessions() -> ResponseReturnValue:
    """End every session but this one."""
    session = _me().session
    ended = sign_in.sessions_end_others(context(), session.session_id if session else "")
    return go("/account", f"{ended} other {'session has' if ended == 1 else 'sessions have'} ended.")


@pages.post("/account/tokens")
@access(Access.SIGNED_IN)
def create_token() -> ResponseReturnValue:
    """A new token, shown once."""
    given = {name: request.form.get(name, "").strip()[:1000] for name in ("name", "scopes", "days")}
    try:
        scopes, days = scopes_of(given["scopes"]), days_of(given["days"])
        secret, token = tokens.token_create(context(), _me().user, given["name"], scopes=scopes, days=days)
    except (InvalidRequest, Forbidden, Conflict, QuotaExceeded) as error:
        return _page(form_status(error), error=error, typed=given)
    return _page(201, secret=secret, new_token=token.id)


@pages.post("/account/tokens/<token_id>/rotate")
@access(Access.SIGNED_IN)
def rotate_token(token_id: str) -> ResponseReturnValue:
    """A new secret for one of the own tokens, shown once; the old one holds for a day."""
    secret, token = tokens.token_rotate(context(), token_id)
    return _page(200, secret=secret, new_token=token.id)


@pages.post("/account/tokens/<token_id>/revoke")
@access(Access.SIGNED_IN)
def revoke_token(token_id: str) -> ResponseReturnValue:
    """End one of the own tokens."""
    tokens.token_revoke(context(), token_id)
    return go("/account", "The token is revoked.")


@pages.post("/account/applications/<client_id>/revoke")
@access(Access.SIGNED_IN)
def revoke_application(client_id: str) -> ResponseReturnValue:
    """Take back what an application was allowed."""
    consent_revoke(context(), client_id)
    return go("/account", "The application has no access any more.")


@pages.route("/account/password", methods=["GET", "POST"])
@access(Access.SIGNED_IN)
def password() -> ResponseReturnValue:
    """Choose another password."""
    found, errors, message, status = _me(), dict[str, list[str]](), "", 200
    if request.method == "POST":
        form = request.form
        try:
            if form.get("new", "") != form.get("again", ""):
                raise InvalidRequest.fields({"again": ["is not the same as the new password."]})
            keep = found.session.session_id if found.session else ""
            accounts.password_change(context(), form.get("old", ""), form.get("new", ""), keep_session=keep)
        except PortalError as error:
            errors, message = field_errors(error, ("old", "new", "again"))
            status = form_status(error)
        else:
            return go("/account", "Your password is changed. Other sessions, all tokens and the access of applications have ended.")
    return render(
        "account/password.html", status, errors=errors, message=message, forced=found.user.must_change_password, has_none=not found.user.password_hash
    )


@pages.post("/account/preferences")
@access(Access.SIGNED_IN)
def preferences() -> ResponseReturnValue:
    """Language, time zone, theme, keys and density."""
    form, ctx = request.form, context()
    try:
        locale_update(ctx, language=form.get("language"), time_zone=form.get("time_zone"))
    except InvalidRequest as error:
        return _page(form_status(error), wrong=error.details)
    preferences_update(ctx, {"single_keys": "single_keys" in form, "compact": "compact" in form})
    return with_theme(go("/account", "Saved."), form.get("theme", ""))


def _page(
    status: int, *, error: PortalError | None = None, typed: Mapping[str, str] | None = None, secret: str = "", new_token: str = "",
    wrong: Mapping[str, object] | None = None,
) -> ResponseReturnValue:  # fmt: skip
    ctx = context()
    session = _me().session
    return render(
        "account/index.html", status, sessions=accounts.sessions_of(ctx), tokens=tokens.tokens_of(ctx), error=error, typed=typed or {}, secret=secret,
        new_token=new_token, current=session.session_id if session else "", identities=sso.identities_of(ctx), providers=providers(),
        applications=consents_of(ctx), in_words=in_words, wrong=wrong or {}, languages=LANGUAGES, zones=zones_by_area(), now=now(),
    )  # fmt: skip
