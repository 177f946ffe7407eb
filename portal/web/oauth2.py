"""The OAuth2 server's own addresses: the consent page for people, and what applications ask directly."""

from collections.abc import Callable
from urllib.parse import urlsplit

from flask import Blueprint, Flask, Response, g, jsonify, make_response, redirect, request
from flask.typing import ResponseReturnValue
from werkzeug.datastructures import MultiDict
from werkzeug.exceptions import HTTPException

from portal.http.errors import from_http
from portal.http.guard import Access, access, no_cookie
from portal.http.request import context, issuer, portal_settings, signed_in
from portal.http.security import CSP, guess_limit
from portal.identity.models import User
from portal.identity.oauth2 import endpoints
from portal.identity.oauth2.consents import in_words, may_skip_question
from portal.identity.oauth2.endpoints import AUTHORIZE, INTROSPECT, JWKS, REVOKE, TOKEN, Question
from portal.identity.oauth2.keys import public_keys
from portal.identity.oauth2.server import Asked, Reply
from portal.identity.tokens import scopes_known
from portal.kernel.context import ANONYMOUS, Context
from portal.kernel.errors import Forbidden, PortalError
from portal.kernel.proof import require_proof
from portal.web.page import render

pages = Blueprint("oauth2", __name__)
PARAMETERS = ("response_type", "client_id", "redirect_uri", "scope", "state", "code_challenge", "code_challenge_method")
WORDS = {400: "invalid_request", 401: "invalid_client", 403: "access_denied", 429: "temporarily_unavailable", 503: "temporarily_unavailable"}


def install(app: Flask) -> None:
    """Register both; credentials of applications may be tried only so often."""
    direct = Blueprint("oauth2_direct", __name__)
    tries = guess_limit(app)
    for path, view, method in (
        (TOKEN, token, "POST"), (REVOKE, revoke, "POST"), (INTROSPECT, introspect, "POST"), (JWKS, jwks, "GET"),
        ("/.well-known/oauth-authorization-server", discovery, "GET"),
    ):  # fmt: skip
        limited: Callable[[], ResponseReturnValue] = tries(view) if method == "POST" else view
        direct.add_url_rule(path, view.__name__, access(Access.PUBLIC)(no_cookie(limited)), methods=[method])
    direct.register_error_handler(PortalError, refused)
    direct.register_error_handler(HTTPException, refused_by_http)
    app.register_blueprint(pages)
    app.register_blueprint(direct)


# -- for people ------------------------------------------------------------------------------------------------------------------------------


@pages.get(AUTHORIZE)
@access(Access.SIGNED_IN)
def ask() -> ResponseReturnValue:
    """May this application act in your name? Not asked again where it was answered before and the answer can reach nobody else."""
    user, asked = _person(), _asked(request.args)
    answer = endpoints.authorize(context(), issuer(), user, asked)
    question = answer.question
    if question is None and answer.trusts:
        return redirect(answer.location, 303)
    if question is None:
        return render("auth/application_error.html", 400, answer=answer, host=urlsplit(answer.location).netloc)
    if question.remembered and may_skip_question(question.redirect_uri) and not _from_own_form():
        return redirect(endpoints.decide(context(), issuer(), user, asked, allowed=True), 303)
    if not question.remembered:
        # Asked before the page, not after it: what follows its form leads away from the portal.
        require_proof(context())
    return _consent(question, asked)


@pages.post(AUTHORIZE)
@access(Access.SIGNED_IN)
def decided() -> ResponseReturnValue:
    """Yes or no."""
    allowed = request.form.get("decision") == "allow"
    return redirect(endpoints.decide(context(), issuer(), _person(), _asked(request.form), allowed=allowed), 303)


def _person() -> User:
    """Who sits at the browser. A token, which may be restricted, gives no access away."""
    found = signed_in()
    if found is None or found.session is None:
        raise Forbidden("Access is given by a person who is signed in to the console, not with a token.")
    return found.user


def _from_own_form() -> bool:
    """Whether a form of the portal led here, such as the sign-in: browsers do not let its answer leave the portal."""
    return (request.referrer or "").startswith(request.host_url)


def _consent(question: Question, asked: Asked) -> Response:
    kept = {name: asked.first(name) for name in PARAMETERS if asked.first(name)} | {"scope": " ".join(question.scopes)}
    target = urlsplit(question.redirect_uri)
    response = render(
        "auth/consent.html", question=question, words=list(dict.fromkeys(in_words(scope) for scope in question.scopes)), kept=kept,
        host=target.netloc, user=_person(), holds=_holds(question),
    )  # fmt: skip
    # The answer to this form leads to the application; names in brackets cannot be said in a policy.
    leads_to = f"{target.scheme}:" if "[" in target.netloc else f"{target.scheme}://{target.netloc}"
    response.headers["Content-Security-Policy"] = CSP.replace("form-action 'self'", f"form-action 'self' {leads_to}")
    return response


def _holds(question: Question) -> str:
    """How long an application has access without coming back."""
    number, unit = portal_settings().oauth2_access_token_minutes, "minute"
    if "refresh_token" in question.client.grants:
        number, unit = portal_settings().oauth2_refresh_token_days, "day"
    return f"{number} {unit}{'' if number == 1 else 's'}"


# -- for applications ------------------------------------------------------------------------------------------------------------------------


def token() -> ResponseReturnValue:
    """Exchange a code, a refresh token or credentials."""
    return _reply(endpoints.token(_nobody(), issuer(), _asked(request.form)))


def revoke() -> ResponseReturnValue:
    """End a token."""
    return _reply(endpoints.revoke(_nobody(), issuer(), _asked(request.form)))


def introspect() -> ResponseReturnValue:
    """Tell about a token."""
    return _reply(endpoints.introspect(_nobody(), issuer(), _asked(request.form)))


def jwks() -> ResponseReturnValue:
    """Public keys that verify access tokens."""
    return jsonify(keys=public_keys(context().db))


def discovery() -> ResponseReturnValue:
    """What this server can do and where."""
    return jsonify(endpoints.metadata(issuer(), scopes_known(context())))


def _nobody() -> Context:
    """Applications show who they are in the request itself; a cookie says nothing here."""
    ctx = context()
    ctx.principal, ctx.project_id, ctx.source = ANONYMOUS, None, "api"
    return ctx


def _asked(values: "MultiDict[str, str]") -> Asked:
    headers = {"Authorization": request.headers["Authorization"]} if "Authorization" in request.headers else {}
    return Asked(request.method, {name: values.getlist(name) for name in values}, headers)


def _reply(reply: Reply) -> Response:
    response = make_response(jsonify(reply.body), reply.status)
    response.headers.update({name: value for name, value in reply.headers.items() if name != "Content-Type"})
    return response


def refused(error: PortalError) -> ResponseReturnValue:
    """A refusal in the words of RFC 6749."""
    g.retry_after_s = error.retry_after_s
    return jsonify(error=WORDS.get(error.status, "server_error"), error_description=error.message), error.status


def refused_by_http(error: HTTPException) -> ResponseReturnValue:
    """The same for what HTTP refuses."""
    return refused(from_http(error))
