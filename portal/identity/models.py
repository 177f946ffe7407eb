"""Tables of identity. Secrets are kept as hashes only."""

import hashlib
from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, Index, String, Text
from sqlalchemy.orm import Mapped, mapped_column, relationship

from portal.kernel.db import Base, JsonColumn, UtcDateTime, now
from portal.kernel.ids import new_id

PERSON, SERVICE = "person", "service"


def digest(secret: str) -> str:
    """SHA-256 in hex: for secrets of 256 random bits, which need no salt."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def role_digest(secret: str) -> str:
    """The same of a session in a role, marked by what no digest has: a version that knows no roles finds no token of the user's by it."""
    return f"r:{digest(secret)[2:]}"


class User(Base):
    """Who acts: a person who signs in, or a service account, which belongs to its default project and has keys only.

    `platform_role` is a role held everywhere, or empty. Ids of service accounts begin with `sa-`, so that the audit log says what they were.
    """

    __tablename__ = "users"

    id: Mapped[str] = mapped_column(String(64), primary_key=True, default=lambda: new_id("usr"))
    kind: Mapped[str] = mapped_column(String(16), default=PERSON)
    username: Mapped[str] = mapped_column(String(150), unique=True)
    email: Mapped[str] = mapped_column(String(254), unique=True)
    password_hash: Mapped[str] = mapped_column(Text, default="")
    is_active: Mapped[bool] = mapped_column(default=True)
    platform_role: Mapped[str] = mapped_column(String(32), default="")
    # The provider whose groups gave that role, as `sso:name`; empty if somebody here did.
    role_source: Mapped[str] = mapped_column(String(64), default="")
    default_project_id: Mapped[str | None] = mapped_column(ForeignKey("projects.id"))
    failed_sign_ins: Mapped[int] = mapped_column(default=0)
    locked_until: Mapped[datetime | None] = mapped_column(UtcDateTime)
    last_login_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    last_login_ip: Mapped[str] = mapped_column(String(64), default="")
    must_change_password: Mapped[bool] = mapped_column(default=False)
    preferences: Mapped[dict[str, Any]] = mapped_column(JsonColumn, default=dict)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)

    memberships: Mapped[list["Membership"]] = relationship(back_populates="user", lazy="selectin")


class Project(Base):
    """What resources belong to and quotas are given to."""

    __tablename__ = "projects"

    id: Mapped[str] = mapped_column(String(64), primary_key=True, default=lambda: new_id("prj"))
    name: Mapped[str] = mapped_column(String(100), unique=True)
    description: Mapped[str] = mapped_column(Text, default="")
    # A policy that must allow whatever anybody does in the project.
    boundary_policy_id: Mapped[str | None] = mapped_column(String(64))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)
    # What has been in it still names it; its own name is free again.
    deleted_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class Membership(Base):
    """A role that a user holds in a project."""

    __tablename__ = "memberships"

    user_id: Mapped[str] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id", ondelete="CASCADE"), primary_key=True, index=True)
    role: Mapped[str] = mapped_column(String(32))
    # The provider whose groups gave it, as `sso:name`; empty if somebody here did.
    source: Mapped[str] = mapped_column(String(64), default="")
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)

    user: Mapped[User] = relationship(back_populates="memberships")
    project: Mapped[Project] = relationship(lazy="joined")


class UserSession(Base):
    """A browser that is signed in; the cookie's value is known only as its SHA-256."""

    __tablename__ = "sessions"

    id_hash: Mapped[str] = mapped_column(String(64), primary_key=True)
    session_id: Mapped[str] = mapped_column(String(64), unique=True, default=lambda: new_id("ses"))
    user_id: Mapped[str] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), index=True)
    project_id: Mapped[str | None] = mapped_column(ForeignKey("projects.id", ondelete="SET NULL"))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)
    last_seen_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)
    expires_at: Mapped[datetime] = mapped_column(UtcDateTime)
    source_ip: Mapped[str] = mapped_column(String(64), default="")
    user_agent: Mapped[str] = mapped_column(String(255), default="")
    # How its user came in, and the provider's own name of the session where one let them in.
    method: Mapped[str] = mapped_column(String(64), default="password")
    provider_sid: Mapped[str] = mapped_column(String(255), default="")
    sealed_id_token: Mapped[str] = mapped_column(Text, default="")
    # When the user last proved who they are, and when with a second factor.
    proved_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)
    mfa_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    # Of a session that a program holds, whose access token stands in the cookie's place; it is worth nothing in a cookie.
    access_expires_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class SessionRefresh(Base):
    """A refresh token of a session, known as its SHA-256: good once. A used one is kept as long as the session, so that a second use is noticed."""

    __tablename__ = "session_refresh_tokens"

    token_hash: Mapped[str] = mapped_column(String(64), primary_key=True)
    session_id: Mapped[str] = mapped_column(ForeignKey("sessions.session_id", ondelete="CASCADE"), index=True)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)
    used_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class Challenge(Base):
    """A step of signing in or of proving something that was begun; its secret is known only as SHA-256."""

    __tablename__ = "sign_in_challenges"

    id_hash: Mapped[str] = mapped_column(String(64), primary_key=True)
    user_id: Mapped[str | None] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), index=True)
    purpose: Mapped[str] = mapped_column(String(16))
    # Random bytes in base64url that a passkey signs.
    challenge: Mapped[str] = mapped_column(Text)
    # How the first step was made, and what came of it.
    method: Mapped[str] = mapped_column(String(64), default="password")
    provider_sid: Mapped[str] = mapped_column(String(255), default="")
    sealed_id_token: Mapped[str] = mapped_column(Text, default="")
    tries: Mapped[int] = mapped_column(default=0)
    expires_at: Mapped[datetime] = mapped_column(UtcDateTime)


class ApiToken(Base):
    """A credential for scripts; shown once, kept as its SHA-256."""

    __tablename__ = "api_tokens"

    id: Mapped[str] = mapped_column(String(64), primary_key=True, default=lambda: new_id("ak"))
    user_id: Mapped[str] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    name: Mapped[str] = mapped_column(String(255))
    token_hash: Mapped[str] = mapped_column(String(64), unique=True)
    prefix: Mapped[str] = mapped_column(String(16))
    # What it may be used for, as actions of policies; empty for everything that its user may do.
    scopes: Mapped[list[str]] = mapped_column(JsonColumn, default=list)
    is_active: Mapped[bool] = mapped_column(default=True)
    # The secret before the last rotation, and until when it still holds.
    previous_hash: Mapped[str | None] = mapped_column(String(64), index=True)
    previous_until: Mapped[datetime | None] = mapped_column(UtcDateTime)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)
    expires_at: Mapped[datetime] = mapped_column(UtcDateTime)
    last_used_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    last_used_ip: Mapped[str] = mapped_column(String(64), default="")
    # How long it was made for.
    days: Mapped[int] = mapped_column(default=90, server_default="90")
    # The credential that made it, with which it ends if that is a token or it is a session in a role.
    origin: Mapped[str] = mapped_column(String(96), default="")
    # Of a session in a role: which role, and whether what assumed it had shown a second factor. The name is the session's.
    role_id: Mapped[str | None] = mapped_column(String(64), index=True)
    mfa: Mapped[bool] = mapped_column(default=False)

    __table_args__ = (Index("ix_api_tokens_user", "user_id", "created_at"),)


class S3AccessKey(Base):
    """A key for the S3 interface. Signatures are made with its secret, so the portal has to know that: it is kept sealed."""

    __tablename__ = "s3_access_keys"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    user_id: Mapped[str] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), index=True)
    # Where its new buckets belong, and whose buckets it lists.
    project_id: Mapped[str | None] = mapped_column(ForeignKey("projects.id"))
    name: Mapped[str] = mapped_column(String(255), default="")
    sealed_secret: Mapped[str] = mapped_column(Text)
    is_active: Mapped[bool] = mapped_column(default=True)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)
    last_used_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    last_used_ip: Mapped[str] = mapped_column(String(64), default="")
    # The token that made it, with which it ends.
    origin: Mapped[str] = mapped_column(String(96), default="", index=True)


class Invitation(Base):
    """A link by which a user chooses a password; its code is known only as SHA-256."""

    __tablename__ = "invitations"

    code_hash: Mapped[str] = mapped_column(String(64), primary_key=True)
    user_id: Mapped[str] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), unique=True)
    # Whoever made it; the link ends with them.
    created_by: Mapped[str] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)
    expires_at: Mapped[datetime] = mapped_column(UtcDateTime)
