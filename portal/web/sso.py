"""Single sign-on: away to a provider and back, linked identities, and the end of sessions that a provider tells of."""

import time

from flask import Blueprint, make_response, request, session
from flask.typing import ResponseReturnValue

from portal.http import sso as remote
from portal.http.guard import Access, access, no_cookie
from portal.http.request import context, signed_in
from portal.identity import accounts, sso
from portal.kernel.errors import Unauthorized
from portal.web.entry import after, form, leaving, own_path, with_session
from portal.web.page import go

pages = Blueprint("sso", __name__)
MAX_TOKEN = 16_384
LINKING = "sso_linking"


@pages.get("/sso/<name>")
@access(Access.PUBLIC)
def away(name: str) -> ResponseReturnValue:
    """To the provider; `again` asks whoever is signed in to prove it there, `link` to add that account to their own.

    A way that begins at another site ends at the form: nobody is signed in, perhaps as somebody else, without having asked for it.
    """
    purpose, provider = request.args.get("purpose", ""), remote.provider_named(name)
    if request.headers.get("Sec-Fetch-Site", "none") not in {"none", "same-origin"}:
        return form(own_path(request.args.get("next", "/")))
    is_known = _session_id() and ((purpose == "again" and provider.kind == "oidc") or (purpose == "link" and _began_linking(name)))
    purpose = purpose if is_known else "enter"
    return remote.send_away(provider, by=_session_id(), goal=own_path(request.args.get("next", "/")), purpose=purpose)


@pages.get("/sso/<name>/callback")
@access(Access.PUBLIC)
def back(name: str) -> ResponseReturnValue:
    """From the provider."""
    ctx, provider = context(), remote.provider_named(name)
    try:
        if any(len(given) > 1 for given in request.args.to_dict(flat=False).values()):
            raise Unauthorized("The provider's answer says something twice. Begin again.")  # noqa: TRY301 - told like all others
        claims, id_token, goal, purpose = remote.come_back(provider, by=_session_id(), issuer=request.args.get("iss", ""))
        if purpose == "link":
            sso.identity_link(ctx, provider, claims)
            return go("/account", f"{provider.label} is linked: you can sign in with it from now on.")
        if purpose == "again":
            return with_session(make_response(go(goal)), sso.confirm_by(ctx, provider, claims))
        step = sso.enter(ctx, provider, claims, id_token)
    except Unauthorized as error:
        accounts.note_failure(ctx, None, provider.method, counts=False, error=error.message)
        return form("/", 401, message=error.message)
    return after(step, goal, ())


@pages.post("/sso/<name>/logout")
@access(Access.PUBLIC)
@no_cookie
def logged_out(name: str) -> ResponseReturnValue:
    """What the provider itself sends when a session there has ended."""
    provider = remote.provider_named(name)
    claims = remote.logout_claims(provider, request.form.get("logout_token", "")[:MAX_TOKEN])
    said = sso.LogoutToken(str(claims.get("sub") or ""), str(claims.get("sid") or ""), str(claims["jti"]), float(claims["exp"]))
    sso.sessions_end(context(), provider, said)
    return make_response("", 200)


@pages.post("/account/identities/<name>/link")
@access(Access.SIGNED_IN)
def link(name: str) -> ResponseReturnValue:
    """Begin to link an account at a provider; only this form begins it, so that no foreign page can."""
    provider = remote.provider_named(name)
    accounts.require_person(context())
    session[LINKING] = {"name": name, "by": _session_id(), "until": int(time.time()) + remote.LIFETIME_S}
    return leaving(f"/sso/{name}?purpose=link&next=/account", f"You are going to {provider.label}.")


def _session_id() -> str:
    found = signed_in()
    return found.session.session_id if found and found.session else ""


def _began_linking(name: str) -> bool:
    """Whether this very session has just begun to link an account there; asked once."""
    begun = session.pop(LINKING, None)
    return isinstance(begun, dict) and (begun.get("name"), begun.get("by")) == (name, _session_id()) and begun.get("until", 0) > time.time()


@pages.post("/account/identities/<identity_id>/unlink")
@access(Access.SIGNED_IN)
def unlink(identity_id: str) -> ResponseReturnValue:
    """Take a linked identity away."""
    sso.identity_unlink(context(), identity_id)
    return go("/account", "The link is removed.")
