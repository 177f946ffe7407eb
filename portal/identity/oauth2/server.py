"""The grants of the OAuth2 server, on Authlib's frame: code with PKCE, refresh with rotation, client credentials; revocation and introspection.

One server object serves one request, inside one transaction. Rows are locked in the order application, user, code or refresh token, so that of two
exchanges of the same one exactly one wins.
"""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from authlib.oauth2.rfc6749 import AuthorizationServer, OAuth2Error, OAuth2Payload, OAuth2Request, TokenMixin, grants
from authlib.oauth2.rfc6749.errors import InvalidClientError, InvalidGrantError, InvalidRequestError, InvalidScopeError, UnauthorizedClientError
from authlib.oauth2.rfc7009 import RevocationEndpoint
from authlib.oauth2.rfc7636 import CodeChallenge
from authlib.oauth2.rfc7662 import IntrospectionEndpoint
from sqlalchemy import delete

from portal.identity.accounts import principal_of
from portal.identity.models import User, digest
from portal.identity.oauth2.bearer import CREDENTIAL, TYPE, Claims, access_token, audience, claims_of, looks_like_one, new_family
from portal.identity.oauth2.models import OAuthClient, OAuthCode, OAuthFamily, OAuthRefreshToken
from portal.kernel import audit
from portal.kernel.context import Context
from portal.kernel.db import now
from portal.kernel.ids import storable

CODE_HOLDS = timedelta(seconds=60)
WITH_SECRET = ["client_secret_basic", "client_secret_post"]
ANY_WAY = [*WITH_SECRET, "none"]
PKCE_NEEDED = "PKCE is required: send code_challenge with code_challenge_method=S256."


@dataclass(frozen=True, slots=True)
class Asked:
    """A request to one of the endpoints: its parameters, each with every value that was given."""

    method: str
    values: Mapping[str, Sequence[str]]
    headers: Mapping[str, str] = field(default_factory=dict)

    def first(self, name: str) -> str:
        """A parameter, empty if it was not given."""
        return next(iter(self.values.get(name, ())), "")


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer: a body of JSON, or a place to go to."""

    status: int
    body: dict[str, Any]
    headers: Mapping[str, str]

    @property
    def location(self) -> str:
        """Where a browser is sent."""
        return self.headers.get("Location", "")


class _Payload(OAuth2Payload):  # type: ignore[misc] # the library has no types
    def __init__(self, values: Mapping[str, Sequence[str]]) -> None:
        self._all = {name: list(given) for name, given in values.items()}
        self._first = {name: given[0] for name, given in self._all.items()}

    @property
    def data(self) -> dict[str, str]:
        return self._first

    @property
    def datalist(self) -> dict[str, list[str]]:
        return self._all


class _Request(OAuth2Request):  # type: ignore[misc] # the library has no types
    def __init__(self, asked: Asked) -> None:
        # Whether the transport is safe was judged with the issuer, which knows about proxies.
        super().__init__(asked.method, "https://portal.invalid/", headers=asked.headers)
        self.payload = _Payload(asked.values)

    @property
    def form(self) -> dict[str, str]:
        found: dict[str, str] = self.payload.data
        return found


class S256Only(CodeChallenge):  # type: ignore[misc] # the library has no types
    """PKCE for every application, confidential ones as well, and never `plain`."""

    SUPPORTED_CODE_CHALLENGE_METHOD = ["S256"]  # noqa: RUF012 - the library's own form

    def validate_code_challenge(self, grant: Any, redirect_uri: str) -> None:
        """Refuse a request without a challenge."""
        data = grant.request.payload.data
        if not data.get("code_challenge") or data.get("code_challenge_method") != "S256":
            raise InvalidRequestError(PKCE_NEEDED)
        super().validate_code_challenge(grant, redirect_uri)


class _CodeGrant(grants.AuthorizationCodeGrant):  # type: ignore[misc] # the library has no types
    TOKEN_ENDPOINT_AUTH_METHODS = ANY_WAY

    def save_authorization_code(self, code: str, request: Any) -> None:
        data = request.payload.data
        self.server.ctx.db.add(
            OAuthCode(
                code_hash=digest(code), client_id=request.client.id, user_id=request.user.id, redirect_uri=data["redirect_uri"],
                scopes=request.scope.split(), code_challenge=data["code_challenge"], expires_at=now() + CODE_HOLDS,
            )
        )  # fmt: skip

    def query_authorization_code(self, code: str, client: OAuthClient) -> OAuthCode | None:
        server: Server = self.server
        seen = server.ctx.db.get(OAuthCode, digest(code))
        if seen is None or seen.client_id != client.id:
            return None
        server.lock(client, seen.user_id)
        row = server.ctx.db.get(OAuthCode, seen.code_hash, with_for_update=True, populate_existing=True)
        if row is not None and row.family_id is not None:
            server.end_family(row.family_id, "a code was used twice")
            return None
        return row if row is not None and row.expires_at > now() else None

    def authenticate_user(self, authorization_code: OAuthCode) -> User | None:
        del authorization_code
        return self.server.user if self.server.user and self.server.user.is_active else None

    def delete_authorization_code(self, authorization_code: OAuthCode) -> None:
        authorization_code.family_id = self.server.family.id


class _RefreshGrant(grants.RefreshTokenGrant):  # type: ignore[misc] # the library has no types
    TOKEN_ENDPOINT_AUTH_METHODS = ANY_WAY
    INCLUDE_NEW_REFRESH_TOKEN = True

    def authenticate_refresh_token(self, refresh_token: str) -> OAuthRefreshToken | None:
        server: Server = self.server
        seen = server.ctx.db.get(OAuthRefreshToken, digest(refresh_token))
        if seen is None or not seen.check_client(self.request.client):
            return None
        server.lock(self.request.client, seen.family.user_id)
        row = server.ctx.db.get(OAuthRefreshToken, seen.token_hash, with_for_update={"of": OAuthRefreshToken}, populate_existing=True)
        if row is not None and row.used_at is not None:
            server.end_family(row.family_id, "a refresh token was used twice")
            return None
        if row is None or row.family.expires_at <= now():
            return None
        server.family = row.family
        return row

    def authenticate_user(self, refresh_token: OAuthRefreshToken) -> User | None:
        del refresh_token
        if self.server.user is None or not self.server.user.is_active:
            raise InvalidGrantError("The user is disabled.")
        found: User = self.server.user
        return found

    def revoke_old_credential(self, refresh_token: OAuthRefreshToken) -> None:
        refresh_token.used_at = now()


class _CredentialsGrant(grants.ClientCredentialsGrant):  # type: ignore[misc] # the library has no types
    TOKEN_ENDPOINT_AUTH_METHODS = WITH_SECRET

    def create_token_response(self) -> tuple[int, dict[str, Any], list[tuple[str, str]]]:
        """A token for the application's service account."""
        server, client = self.server, self.request.client
        if client.service_account_id is not None:
            server.lock(client, client.service_account_id)
        if server.user is None or not server.user.is_active:
            raise UnauthorizedClientError("The service account of this application is gone or disabled.")
        token = self.generate_token(user=server.user, scope=self.request.payload.scope, include_refresh_token=False)
        self.save_token(token)
        return 200, token, self.TOKEN_RESPONSE_HEADER


class _Seen(TokenMixin):  # type: ignore[misc] # the library has no types
    """A token that was shown to revocation or introspection, access or refresh."""

    def __init__(self, server: "Server", family: OAuthFamily, claims: Claims | None = None, *, used: bool = False) -> None:
        self.server, self.family, self.claims, self.used = server, family, claims, used

    def check_client(self, client: OAuthClient) -> bool:
        return self.family.client_id == client.id

    def is_expired(self) -> bool:
        return self.family.expires_at <= now()

    def is_revoked(self) -> bool:
        user = self.server.ctx.db.get(User, self.family.user_id)
        return self.used or user is None or not user.is_active


class _Tokens:
    """How revocation and introspection find what they are shown."""

    server: "Server"

    def query_token(self, token_string: str, token_type_hint: str | None) -> _Seen | None:
        del token_type_hint
        session = self.server.ctx.db
        if looks_like_one(token_string):
            claims = claims_of(session, token_string, self.server.issuer)
            family = session.get(OAuthFamily, claims.family_id) if claims else None
            return _Seen(self.server, family, claims) if family is not None else None
        row = session.get(OAuthRefreshToken, digest(token_string))
        return _Seen(self.server, row.family, used=row.used_at is not None) if row is not None else None


class _Revocation(_Tokens, RevocationEndpoint):  # type: ignore[misc] # the library has no types
    CLIENT_AUTH_METHODS = ANY_WAY

    def revoke_token(self, token: _Seen, request: Any) -> None:
        del request
        self.server.end_family(token.family.id, "", action="identity.oauth_token.delete")


class _Introspection(_Tokens, IntrospectionEndpoint):  # type: ignore[misc] # the library has no types
    CLIENT_AUTH_METHODS = WITH_SECRET

    def check_permission(self, token: _Seen, client: OAuthClient, request: Any) -> bool:
        """An application is told of its own tokens only."""
        del request
        return token.check_client(client)

    def introspect_token(self, token: _Seen) -> dict[str, Any]:
        family, claims, issuer = token.family, token.claims, self.server.issuer
        user = self.server.ctx.db.get_one(User, family.user_id)
        said: dict[str, Any] = {"active": True, "client_id": family.client_id, "sub": family.user_id, "username": user.username, "iss": issuer}
        if claims is None:
            return {**said, "token_type": "refresh_token", "scope": " ".join(family.scopes), "exp": int(family.expires_at.timestamp())}
        return {
            **said, "token_type": "Bearer", "scope": " ".join(claims.scopes), "aud": audience(issuer), "jti": claims.token_id, "iat": claims.issued_at,
            "exp": claims.expires_at,
        }  # fmt: skip


class Server(AuthorizationServer):  # type: ignore[misc] # the library has no types
    """Authlib's server for one request. `named` is the application that it names, `user` whoever a token is for, `family` what it belongs to."""

    def __init__(self, ctx: Context, issuer: str) -> None:
        """`issuer` is the portal's own address, as tokens and answers name it."""
        super().__init__()
        self.ctx, self.issuer = ctx, issuer
        self.named = ""
        self.user: User | None = None
        self.family: OAuthFamily | None = None
        self._issued: tuple[audit.Subject, dict[str, object]] = (audit.Subject("identity.oauth_client"), {})
        self.register_grant(_CodeGrant, [S256Only(required=True)])
        self.register_grant(_RefreshGrant)
        self.register_grant(_CredentialsGrant)
        self.register_endpoint(_Revocation)
        self.register_endpoint(_Introspection)
        self.register_token_generator("default", self._generate)

    def create_oauth2_request(self, request: Asked) -> _Request:
        """The request in Authlib's words."""
        return _Request(request)

    def handle_response(self, status: int, body: Any, headers: Sequence[tuple[str, str]]) -> Reply:
        """The answer in ours."""
        return Reply(status, body if isinstance(body, dict) else {}, dict(headers))

    def send_signal(self, name: str, *args: Any, **kwargs: Any) -> None:
        """Nobody listens."""

    def query_client(self, client_id: str) -> OAuthClient | None:
        """An application by its id."""
        self.named = storable(client_id)[:64]
        return self.ctx.db.get(OAuthClient, storable(client_id))

    def authenticate_client(self, request: Any, methods: Sequence[str], endpoint: str = "token") -> Any:
        """The application that asks; whoever cannot show that they are one learns nothing of why."""
        try:
            return super().authenticate_client(request, methods, endpoint)
        except (InvalidClientError, ValueError):
            raise InvalidClientError(description="Unknown application, or wrong credentials.", status_code=401) from None

    def lock(self, client: OAuthClient, user_id: str) -> None:
        """Lock the application against its removal, then the user: who is disabled at this moment gets nothing."""
        if self.ctx.db.get(OAuthClient, client.id, with_for_update={"read": True, "of": OAuthClient}, populate_existing=True) is None:
            raise InvalidGrantError("The application is gone.")
        self.user = self.ctx.db.get(User, user_id, with_for_update=True, populate_existing=True)

    def end_family(self, family_id: str, because: str, *, action: str = "identity.oauth_token.reuse") -> None:
        """End everything that one authorization led to, within the caller's transaction; written down as a failure where there is a reason."""
        family = self.ctx.db.get_one(OAuthFamily, family_id)
        about = audit.Subject("identity.oauth_client", family.client_id)
        details = {"user_id": family.user_id, "grant": family_id}
        self.ctx.db.execute(delete(OAuthFamily).where(OAuthFamily.id == family_id))
        self.ctx.db.expire_all()
        audit.record(self.ctx, action, about, status="failure" if because else "success", error=because, details=details)

    def _generate(
        self, grant_type: str, client: OAuthClient, user: User, scope: str | None, expires_in: int | None = None, *, include_refresh_token: bool = True
    ) -> dict[str, Any]:  # fmt: skip
        """Sign an access token, and make a refresh token where the grant has one."""
        del expires_in
        allowed = client.get_allowed_scope(scope)
        if allowed is None:
            raise InvalidScopeError
        if self.family is None:
            self.family = new_family(self.ctx, client, user.id, allowed.split(), refreshable=include_refresh_token)
        text, seconds = access_token(self.ctx, self.issuer, self.family, allowed.split())
        token: dict[str, Any] = {"access_token": text, "token_type": "Bearer", "expires_in": seconds, "scope": allowed}
        if include_refresh_token:
            token["refresh_token"] = secrets.token_urlsafe(32)
        self.ctx.principal = principal_of(user, CREDENTIAL + client.id)
        about = audit.Subject(
            "identity.oauth_client", client.id, client.name, user.default_project_id if grant_type == "client_credentials" else None
        )
        self._issued = (about, {"grant_type": grant_type, "scopes": allowed.split(), "grant": self.family.id})
        return token

    def save_token(self, token: dict[str, Any], request: Any) -> None:
        """Keep the refresh token's hash, and write down that a token was issued."""
        del request
        family = self.family
        if family is not None and "refresh_token" in token:
            self.ctx.db.add(OAuthRefreshToken(token_hash=digest(token["refresh_token"]), family_id=family.id))
            self.ctx.db.flush()
        about, details = self._issued
        audit.record(self.ctx, "identity.oauth_token.create", about, details=details)


__all__ = ["PKCE_NEEDED", "TYPE", "Asked", "OAuth2Error", "Reply", "Server"]
