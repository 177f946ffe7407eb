"""Talking to providers of single sign-on: Authlib's client for each, and what of their answers is believed."""

import time
from typing import Any

from authlib.integrations.base_client import OAuthError
from authlib.integrations.flask_client import OAuth
from flask import Flask, current_app, session
from flask.typing import ResponseReturnValue
from joserfc import jwt
from joserfc.errors import InvalidKeyIdError, JoseError
from joserfc.jwk import KeySet
from joserfc.jws import JWSRegistry
from requests import RequestException

from portal.http.request import own_origin
from portal.identity.providers import Claims, Provider, claims_of, providers_load
from portal.kernel.db import db
from portal.kernel.errors import NotFound, Unauthorized, Unavailable
from portal.kernel.ids import is_storable
from portal.settings import Settings

TIMEOUT_S = 10
LEEWAY_S = 60
LIFETIME_S = 600
REFETCH_S = 60
FETCHED_AT = "_keys_fetched_at"
LOGOUT_TYPE = "logout+jwt"
LOGOUT_EVENT = "http://schemas.openid.net/event/backchannel-logout"
# Signatures by keys of which only the public half is published: neither "none" nor a shared secret.
ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA", "Ed25519")
NO_ANSWER = "does not answer as it should at the moment. Try again, or sign in another way."


def install(app: Flask, settings: Settings) -> None:
    """Make a client for every provider in the file that the settings name."""
    oauth = OAuth(app)
    found = providers_load(settings.sso_config)
    for provider in found.values():
        addresses = (
            {"server_metadata_url": provider.issuer.rstrip("/") + "/.well-known/openid-configuration"}
            if provider.kind == "oidc"
            else {"authorize_url": provider.authorize_url, "access_token_url": provider.token_url}
        )
        secret = provider.secret()
        oauth.register(
            provider.name, client_id=provider.client_id, client_secret=secret or None, **addresses,
            client_kwargs={
                "scope": provider.scopes, "code_challenge_method": "S256", "default_timeout": TIMEOUT_S,
                **({} if secret else {"token_endpoint_auth_method": "none"}),
            },
        )  # fmt: skip
    app.extensions["portal_sso"] = (oauth, found)


def providers() -> dict[str, Provider]:
    """All providers by name, in the order of the file."""
    found: dict[str, Provider] = current_app.extensions["portal_sso"][1]
    return found


def provider_named(name: str) -> Provider:
    """One of them. Raises NotFound."""
    if (provider := providers().get(name)) is None:
        raise NotFound(f"There is no provider {name[:40]} here.")
    return provider


def _client(provider: Provider) -> Any:
    """Authlib's client; what it knows of an OpenID provider is fetched and checked once. Raises Unavailable."""
    # Whatever was read is done with: no transaction waits for the provider.
    db.session().rollback()
    client = getattr(current_app.extensions["portal_sso"][0], provider.name)
    if provider.kind == "oidc":
        try:
            metadata = client.load_server_metadata()
        except (RequestException, ValueError):
            raise Unavailable(f"{provider.label} {NO_ANSWER}") from None
        if metadata.get("issuer") != provider.issuer:
            raise Unavailable(f"{provider.label} calls itself another issuer than this portal is set up for. Tell an administrator.")
        offered = metadata.get("id_token_signing_alg_values_supported") or ["RS256"]
        metadata["id_token_signing_alg_values_supported"] = [name for name in offered if name in ALGORITHMS]
    return client


def send_away(provider: Provider, *, by: str, goal: str, purpose: str) -> ResponseReturnValue:
    """Send the browser to the provider; state, nonce and PKCE verifier are bound to its form cookie, link and proof to the session. Raises Unavailable."""
    more = {"prompt": "login", "max_age": "0"} if purpose == "again" and provider.kind == "oidc" else {}
    client = _client(provider)
    session[_note(provider)] = {"goal": goal, "purpose": purpose, "by": by, "at": int(time.time())}
    away: ResponseReturnValue = client.authorize_redirect(f"{own_origin()}/sso/{provider.name}/callback", **more)
    return away


def _note(provider: Provider) -> str:
    return f"sso_{provider.name}"


def come_back(provider: Provider, *, by: str, issuer: str) -> tuple[Claims, str, str, str]:
    """(claims, id token, goal, purpose) of a browser that comes back. Raises Unauthorized for whatever was tampered with, is over or was used."""
    note = session.pop(_note(provider), None)
    if note is None or note["at"] + LIFETIME_S < time.time() or (note["purpose"] != "enter" and note["by"] != by):
        raise Unauthorized("This sign-in took too long, or was begun in another browser. Begin again.")
    client = _client(provider)
    is_told = issuer or client.server_metadata.get("authorization_response_iss_parameter_supported") is True
    if provider.kind == "oidc" and is_told and issuer != provider.issuer:
        raise Unauthorized("Another provider answered than was asked. Begin again.")
    given, token = _fetched(provider, client)
    if not isinstance(given, dict):
        raise Unauthorized(f"The answer of {provider.label} cannot be used. Begin again.")
    if note["purpose"] == "again" and provider.kind == "oidc" and int(given.get("auth_time") or 0) < note["at"] - LEEWAY_S:
        raise Unauthorized(f"{provider.label} did not ask you to sign in again.")
    claims = claims_of(provider, given)
    if not claims.subject or not is_storable(claims.subject):
        raise Unauthorized(f"{provider.label} did not say who you are.")
    return claims, str(token.get("id_token") or ""), note["goal"], note["purpose"]


def _fetched(provider: Provider, client: Any) -> tuple[Any, Any]:
    """(claims, tokens) for the code that the browser brought. Raises Unauthorized or Unavailable."""
    try:
        if provider.kind == "oidc":
            options = {"iss": {"essential": True, "values": [provider.issuer]}, "aud": {"essential": True, "values": [provider.client_id]}}
            token = client.authorize_access_token(claims_options=options, leeway=LEEWAY_S)
            given = dict(token.get("userinfo") or {})
            if provider.groups_claim not in given and client.server_metadata.get("userinfo_endpoint"):
                more = dict(client.userinfo(token=token))
                given = {**more, **given} if more.get("sub") == given.get("sub") else given
        else:
            token = client.authorize_access_token()
            answer = client.get(provider.userinfo_url, token=token)
            answer.raise_for_status()
            given = answer.json()
    except OAuthError as error:
        denied = error.error == "access_denied"
        text = f"{provider.label} did not let you in." if denied else f"The answer of {provider.label} cannot be used. Begin again."
        raise Unauthorized(text) from None
    except (JoseError, ValueError, KeyError, TypeError):
        raise Unauthorized(f"The answer of {provider.label} cannot be used. Begin again.") from None
    except RequestException:
        raise Unavailable(f"{provider.label} {NO_ANSWER}") from None
    return given, token


def sign_out_url(provider: Provider, id_token: str) -> str:
    """Where the browser ends its session at the provider too; empty where that is not offered."""
    try:
        client = _client(provider)
    except Unavailable:
        return ""
    if not provider.sign_out or not client.server_metadata.get("end_session_endpoint"):
        return ""
    found = client.create_logout_url(post_logout_redirect_uri=f"{own_origin()}/login", id_token_hint=id_token or None, client_id=provider.client_id)
    return str(found["url"])


def logout_claims(provider: Provider, token: str) -> dict[str, Any]:
    """The claims of a logout token (OpenID Connect Back-Channel Logout). Raises Unauthorized for one that is not the provider's, or not such a token."""
    if provider.kind != "oidc":
        raise Unauthorized(f"{provider.label} is no OpenID provider and ends no sessions here.")
    client = _client(provider)
    try:
        return _checked_logout(provider, client, token)
    except (JoseError, ValueError, TypeError, RuntimeError, RequestException):
        raise Unauthorized("This is no logout token of the provider.") from None


def _checked_logout(provider: Provider, client: Any, token: str) -> dict[str, Any]:
    registry = JWSRegistry(algorithms=client.server_metadata["id_token_signing_alg_values_supported"], strict_check_header=False)
    try:
        read = jwt.decode(token, KeySet.import_key_set(client.fetch_jwk_set()), registry=registry)
    except InvalidKeyIdError:
        # Its keys may have changed since they were fetched; but anybody can send a token with a strange key.
        if time.monotonic() - client.server_metadata.get(FETCHED_AT, -REFETCH_S) < REFETCH_S:
            raise
        client.server_metadata[FETCHED_AT] = time.monotonic()
        read = jwt.decode(token, KeySet.import_key_set(client.fetch_jwk_set(force=True)), registry=registry)
    rules = jwt.JWTClaimsRegistry(
        leeway=LEEWAY_S, iss={"essential": True, "value": provider.issuer}, aud={"essential": True, "value": provider.client_id},
        iat={"essential": True}, exp={"essential": True}, jti={"essential": True},
    )  # fmt: skip
    rules.validate(read.claims)
    claims: dict[str, Any] = read.claims
    events, typ = claims.get("events"), str(read.header.get("typ", "")).lower().removeprefix("application/")
    if (
        typ != LOGOUT_TYPE
        or not isinstance(events, dict)
        or LOGOUT_EVENT not in events
        or "nonce" in claims
        or not (claims.get("sub") or claims.get("sid"))
    ):
        msg = "no logout token"
        raise ValueError(msg)
    return claims
