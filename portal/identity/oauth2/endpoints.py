"""What the endpoints of the OAuth2 server do, each in one transaction: authorize, token, revoke, introspect, and what discovery says."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from portal.identity.accounts import oneself
from portal.identity.models import User
from portal.identity.oauth2.consents import consent_covers, consent_keep
from portal.identity.oauth2.models import GRANTS, OAuthClient
from portal.identity.oauth2.server import Asked, OAuth2Error, Reply, Server
from portal.kernel import audit
from portal.kernel.context import Context
from portal.kernel.db import transaction
from portal.kernel.errors import Forbidden, InvalidRequest
from portal.kernel.operations import acting
from portal.kernel.proof import require_proof

AUTHORIZE, TOKEN, REVOKE, INTROSPECT, JWKS = "/oauth2/authorize", "/oauth2/token", "/oauth2/revoke", "/oauth2/introspect", "/oauth2/jwks"
CONSENT = "identity.oauth_consent.create"
MAX_STATE = 2000


@dataclass(frozen=True, slots=True)
class Question:
    """A valid authorization request: who asks, for what, and where the answer goes. `remembered` if the user has said yes before."""

    client: OAuthClient
    redirect_uri: str
    scopes: tuple[str, ...]
    remembered: bool


@dataclass(frozen=True, slots=True)
class Answer:
    """What comes of an authorization request: a question for the user, or where the browser goes.

    It goes there by itself if the user `trusts` the application, which is if they have said yes to it before; whoever may register one would
    otherwise have a link here that leads anywhere.
    """

    question: Question | None = None
    location: str = ""
    client: OAuthClient | None = None
    problem: str = ""
    trusts: bool = False


def authorize(ctx: Context, issuer: str, user: User, asked: Asked) -> Answer:
    """Judge an authorization request. Raises InvalidRequest where nobody may be sent anywhere: unknown application, or an address that is not its own."""
    server = Server(ctx, issuer)
    try:
        client, redirect_uri = _addressee(server, asked)
    except InvalidRequest as error:
        with transaction(ctx.db):
            details = {"client_id": asked.first("client_id")[:64], "redirect_uri": asked.first("redirect_uri")[:200]}
            audit.record(ctx, CONSENT, oneself(ctx), status="failure", error=error.message, details=details)
        raise
    try:
        _refuse_malformed(asked)
        grant = server.get_consent_grant(asked, end_user=user)
    except OAuth2Error as error:
        said = dict(error.get_body())
        problem = said.get("error_description") or said["error"]
        return Answer(None, _back(issuer, redirect_uri, asked, said), client, problem, consent_covers(ctx, client, ()))
    scopes = tuple(grant.request.scope.split())
    return Answer(Question(client, redirect_uri, scopes, consent_covers(ctx, client, scopes)))


def _addressee(server: Server, asked: Asked) -> tuple[OAuthClient, str]:
    client = server.query_client(asked.first("client_id")) if len(asked.values.get("client_id", ())) == 1 else None
    if client is None:
        raise InvalidRequest("No application of this portal sent you here: client_id is unknown. Nothing was given to anybody.")
    uri = asked.first("redirect_uri")
    if len(asked.values.get("redirect_uri", ())) != 1 or not client.check_redirect_uri(uri):
        raise InvalidRequest(f"The address that {client.name} wants its answer at is not registered for it. Nothing was given to anybody.")
    return client, uri


def _refuse_malformed(asked: Asked) -> None:
    from authlib.oauth2.rfc6749.errors import InvalidRequestError, UnsupportedResponseTypeError

    if any(len(given) > 1 for given in asked.values.values()):
        raise InvalidRequestError("A parameter is there twice.")
    if asked.first("response_type") != "code":
        raise UnsupportedResponseTypeError(asked.first("response_type"), description="Only response_type=code is supported.")
    if len(asked.first("state")) > MAX_STATE:
        raise InvalidRequestError("The state is too long.")


def decide(ctx: Context, issuer: str, user: User, asked: Asked, *, allowed: bool) -> str:
    """What the user decided, as an address for the browser: with a code, or with the refusal. Raises InvalidRequest."""
    found = authorize(ctx, issuer, user, asked)
    question = found.question
    if question is None:
        return found.location
    if allowed and not question.remembered:
        require_proof(ctx)
    details = {"client_id": question.client.id, "client": question.client.name, "scopes": list(question.scopes), "allowed": allowed}
    server = Server(ctx, issuer)
    with acting(ctx, CONSENT, oneself(ctx), details=details):
        try:
            server.lock(question.client, user.id)
        except OAuth2Error:
            raise InvalidRequest("The application was removed a moment ago.") from None
        row = server.user
        if row is None or not row.is_active:
            raise Forbidden("Your account was disabled a moment ago.")
        grant = server.get_consent_grant(asked, end_user=row)
        if allowed:
            consent_keep(ctx, row, question.client.id, question.scopes)
        reply = server.create_authorization_response(grant.request, grant_user=row if allowed else None, grant=grant)
    return _with_issuer(reply.location, issuer)


def _back(issuer: str, redirect_uri: str, asked: Asked, said: Mapping[str, str]) -> str:
    state = asked.first("state") if len(asked.values.get("state", ())) == 1 else ""
    pairs = {**said, **({"state": state} if state and len(state) <= MAX_STATE else {})}
    return _with_issuer(f"{redirect_uri}{'&' if '?' in redirect_uri else '?'}{urlencode(pairs)}", issuer)


def _with_issuer(location: str, issuer: str) -> str:
    """With the parameter of RFC 9207, by which an application that knows several servers tells whose answer it is."""
    return f"{location}&{urlencode({'iss': issuer})}"


def token(ctx: Context, issuer: str, asked: Asked) -> Reply:
    """Exchange a code, a refresh token or an application's own credentials for an access token."""
    return _answer(ctx, issuer, asked, "identity.oauth_token.create", lambda server: server.create_token_response(asked))


def revoke(ctx: Context, issuer: str, asked: Asked) -> Reply:
    """End a token, and with it everything that the same authorization led to (RFC 7009)."""
    return _answer(ctx, issuer, asked, "identity.oauth_token.delete", lambda server: server.create_endpoint_response("revocation", asked))


def introspect(ctx: Context, issuer: str, asked: Asked) -> Reply:
    """Tell a confidential application about a token of its own (RFC 7662)."""
    return _answer(ctx, issuer, asked, "identity.oauth_token.introspect", lambda server: server.create_endpoint_response("introspection", asked))


def _answer(ctx: Context, issuer: str, asked: Asked, action: str, respond: Callable[[Server], Reply]) -> Reply:
    if any(len(given) > 1 for given in asked.values.values()):
        return Reply(400, {"error": "invalid_request", "error_description": "A parameter is there twice."}, {})
    if action == "identity.oauth_token.create" and asked.first("grant_type") not in GRANTS:
        return Reply(400, {"error": "unsupported_grant_type", "error_description": f"grant_type is one of {', '.join(GRANTS)}."}, {})
    server = Server(ctx, issuer)
    with transaction(ctx.db):
        reply = respond(server)
        if reply.status >= 400:  # noqa: PLR2004 - a refusal
            _note_refusal(ctx, server, asked, action, reply)
    return reply


def _note_refusal(ctx: Context, server: Server, asked: Asked, action: str, reply: Reply) -> None:
    about = audit.Subject("identity.oauth_client", server.named)
    details = {"grant_type": asked.first("grant_type")[:32]}
    audit.record(ctx, action, about, status="failure", error=f"{reply.body.get('error')}: {reply.body.get('error_description', '')}", details=details)


def metadata(issuer: str, scopes: list[str]) -> dict[str, Any]:
    """The document of RFC 8414."""
    with_secret = ["client_secret_basic", "client_secret_post"]
    return {
        "issuer": issuer, "authorization_endpoint": issuer + AUTHORIZE, "token_endpoint": issuer + TOKEN, "jwks_uri": issuer + JWKS,
        "revocation_endpoint": issuer + REVOKE, "introspection_endpoint": issuer + INTROSPECT, "scopes_supported": scopes,
        "response_types_supported": ["code"], "response_modes_supported": ["query"], "grant_types_supported": list(GRANTS),
        "token_endpoint_auth_methods_supported": [*with_secret, "none"], "revocation_endpoint_auth_methods_supported": [*with_secret, "none"],
        "introspection_endpoint_auth_methods_supported": with_secret, "code_challenge_methods_supported": ["S256"],
        "authorization_response_iss_parameter_supported": True,
    }  # fmt: skip
