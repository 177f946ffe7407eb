"""Tables of the OAuth2 server. Secrets, codes and refresh tokens are kept as their SHA-256 only.

All that one sign-in or one request of a client led to is a family: one row, on which every access token is looked up. Without it they are worth nothing.
"""

import hmac
import re
from datetime import datetime

from authlib.oauth2.rfc6749 import AuthorizationCodeMixin, ClientMixin, TokenMixin
from sqlalchemy import ForeignKey, String, Text, delete, or_, select
from sqlalchemy.orm import Mapped, Session, mapped_column, relationship

from portal.identity.models import User, digest
from portal.kernel.db import Base, JsonColumn, UtcDateTime, now
from portal.kernel.ids import new_id

CODE, REFRESH, CREDENTIALS = "authorization_code", "refresh_token", "client_credentials"
GRANTS = (CODE, REFRESH, CREDENTIALS)
# The port of a program on the user's own machine is not known beforehand (RFC 8252, 7.3).
LOOPBACK = re.compile(r"(http://(?:127\.0\.0\.1|\[::1\]|localhost))(?::[0-9]{1,5})?(/[!-\[\]-~]*)?")


class OAuthClient(ClientMixin, Base):  # type: ignore[misc] # the library has no types
    """An application that asks for tokens. Without a secret it is public; with a service account it may act as that."""

    __tablename__ = "oauth_clients"

    id: Mapped[str] = mapped_column(String(64), primary_key=True, default=lambda: new_id("app"))
    name: Mapped[str] = mapped_column(String(100))
    owner_id: Mapped[str] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), index=True)
    secret_hash: Mapped[str] = mapped_column(String(64), default="")
    redirect_uris: Mapped[list[str]] = mapped_column(JsonColumn, default=list)
    grants: Mapped[list[str]] = mapped_column(JsonColumn, default=list)
    scopes: Mapped[list[str]] = mapped_column(JsonColumn, default=list)
    service_account_id: Mapped[str | None] = mapped_column(ForeignKey("users.id", ondelete="SET NULL"), index=True)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)

    owner: Mapped[User] = relationship(foreign_keys=[owner_id], lazy="joined")
    service_account: Mapped[User | None] = relationship(foreign_keys=[service_account_id], lazy="joined")

    @property
    def is_public(self) -> bool:
        """Whether it runs where no secret can be kept."""
        return not self.secret_hash

    def get_client_id(self) -> str:
        """The id."""
        return self.id

    def get_default_redirect_uri(self) -> None:
        """None: each request names where its answer goes."""
        return

    def get_allowed_scope(self, scope: str | None) -> str | None:
        """The scopes asked for, all of the application's where none are; None if one of them is not its own."""
        wanted = list(dict.fromkeys(scope.split())) if scope else list(self.scopes)
        return " ".join(wanted) if wanted and set(wanted) <= set(self.scopes) else None

    def check_redirect_uri(self, redirect_uri: str) -> bool:
        """Whether it is registered, to the letter; on loopback with any port."""
        if redirect_uri in self.redirect_uris:
            return True
        asked = LOOPBACK.fullmatch(redirect_uri)
        known = [found.groups() for uri in self.redirect_uris if (found := LOOPBACK.fullmatch(uri))]
        return asked is not None and asked.groups() in known

    def check_client_secret(self, client_secret: str) -> bool:
        """Whether it is the secret."""
        return bool(self.secret_hash) and hmac.compare_digest(digest(client_secret), self.secret_hash)

    def check_endpoint_auth_method(self, method: str, endpoint: str) -> bool:
        """A public application names itself, any other shows its secret."""
        return (method == "none") is self.is_public and not (self.is_public and endpoint == "introspection")

    def check_response_type(self, response_type: str) -> bool:
        """Codes only."""
        return response_type == "code" and CODE in self.grants

    def check_grant_type(self, grant_type: str) -> bool:
        """Whether it was registered with this grant."""
        return grant_type in self.grants


class OAuthConsent(Base):
    """What a user lets an application do in their name."""

    __tablename__ = "oauth_consents"

    user_id: Mapped[str] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), primary_key=True)
    client_id: Mapped[str] = mapped_column(ForeignKey("oauth_clients.id", ondelete="CASCADE"), primary_key=True, index=True)
    scopes: Mapped[list[str]] = mapped_column(JsonColumn, default=list)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)

    client: Mapped[OAuthClient] = relationship(lazy="joined")


class OAuthFamily(Base):
    """Everything that one authorization led to, for one user or service account."""

    __tablename__ = "oauth_families"

    id: Mapped[str] = mapped_column(String(64), primary_key=True, default=lambda: new_id("grant"))
    client_id: Mapped[str] = mapped_column(ForeignKey("oauth_clients.id", ondelete="CASCADE"), index=True)
    user_id: Mapped[str] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), index=True)
    scopes: Mapped[list[str]] = mapped_column(JsonColumn, default=list)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)
    expires_at: Mapped[datetime] = mapped_column(UtcDateTime, index=True)
    last_used_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    last_used_ip: Mapped[str] = mapped_column(String(64), default="")


class OAuthCode(AuthorizationCodeMixin, Base):  # type: ignore[misc] # the library has no types
    """An authorization code: good once, for a minute. Once used it is kept with what came of it, so that a second use is noticed."""

    __tablename__ = "oauth_codes"

    code_hash: Mapped[str] = mapped_column(String(64), primary_key=True)
    client_id: Mapped[str] = mapped_column(ForeignKey("oauth_clients.id", ondelete="CASCADE"), index=True)
    user_id: Mapped[str] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), index=True)
    family_id: Mapped[str | None] = mapped_column(ForeignKey("oauth_families.id", ondelete="CASCADE"), index=True)
    redirect_uri: Mapped[str] = mapped_column(Text)
    scopes: Mapped[list[str]] = mapped_column(JsonColumn, default=list)
    code_challenge: Mapped[str] = mapped_column(String(128))
    expires_at: Mapped[datetime] = mapped_column(UtcDateTime, index=True)

    code_challenge_method = "S256"

    def get_redirect_uri(self) -> str:
        """Where it was sent."""
        return self.redirect_uri

    def get_scope(self) -> str:
        """What was allowed."""
        return " ".join(self.scopes)


class OAuthRefreshToken(TokenMixin, Base):  # type: ignore[misc] # the library has no types
    """A refresh token: good once. A used one is kept as long as its family, so that a second use is noticed."""

    __tablename__ = "oauth_refresh_tokens"

    token_hash: Mapped[str] = mapped_column(String(64), primary_key=True)
    family_id: Mapped[str] = mapped_column(ForeignKey("oauth_families.id", ondelete="CASCADE"), index=True)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)
    used_at: Mapped[datetime | None] = mapped_column(UtcDateTime)

    family: Mapped[OAuthFamily] = relationship(lazy="joined", innerjoin=True)

    def check_client(self, client: OAuthClient) -> bool:
        """Whether it was given to this application."""
        return self.family.client_id == client.id

    def get_scope(self) -> str:
        """What was allowed."""
        return " ".join(self.family.scopes)


class OAuthKey(Base):
    """A key that signs access tokens; the private part is encrypted. A retired one verifies until its last token has expired."""

    __tablename__ = "oauth_keys"

    kid: Mapped[str] = mapped_column(String(64), primary_key=True)
    public_jwk: Mapped[dict[str, str]] = mapped_column(JsonColumn)
    private_sealed: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)
    retired_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


def lock_clients_of(session: Session, user_id: str) -> None:
    """Lock the applications that a user owns or that act as it, within the caller's transaction and before the user: grants lock in this order."""
    theirs = or_(OAuthClient.owner_id == user_id, OAuthClient.service_account_id == user_id)
    session.scalars(select(OAuthClient).where(theirs).order_by(OAuthClient.id).with_for_update(of=OAuthClient)).all()


def end_access(session: Session, *, user_id: str = "", client_id: str = "") -> None:
    """End everything that applications hold for a user, or that an application holds (of both: for that user), within the caller's transaction."""
    for model in (OAuthFamily, OAuthCode):
        ending = delete(model)
        if user_id or not client_id:
            ending = ending.where(model.user_id == user_id)
        session.execute(ending.where(model.client_id == client_id) if client_id else ending)
