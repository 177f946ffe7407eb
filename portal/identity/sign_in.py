"""Signing in: the first proof, the second factor where the user has one, and the session that follows; and proving again who one is.

Between two steps the browser holds a secret of its own kind, a challenge, which opens nothing: it is good for one purpose, a few minutes and a few
tries. The session's secret is made at the end, so that nobody can fix it beforehand.
"""

import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import ForeignKey, String, Text, delete, select, update
from sqlalchemy.orm import Mapped, mapped_column

from portal.identity import factors, iam, passwords
from portal.identity.accounts import (
    SIGN_IN,
    SignedIn,
    check_password,
    end_assumed,
    home_project,
    note_failure,
    oneself,
    principal_of,
    session_renew,
)
from portal.identity.models import PERSON, User, UserSession, digest
from portal.kernel import audit
from portal.kernel.context import Context
from portal.kernel.db import Base, UtcDateTime, now, transaction
from portal.kernel.errors import Forbidden, Unauthorized
from portal.kernel.operations import acting

LIFETIME = timedelta(minutes=5)
MAX_TRIES = 5
SECOND, PASSKEY_ENTRY, PASSKEY_NEW, CONFIRM = "second", "passkey", "passkey-new", "confirm"
WRONG_CODE = "The code is wrong or was used before. Codes of an app change every 30 seconds; a recovery code works once."
OVER = "This sign-in took too long or had too many wrong codes. Begin again."


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


@dataclass(frozen=True, slots=True)
class Proof:
    """How somebody showed who they are: `method` is password, passkey or the name of a provider; `mfa` if that was more than one factor."""

    method: str
    mfa: bool = False
    password: str = ""
    provider_sid: str = ""
    sealed_id_token: str = ""


@dataclass(frozen=True, slots=True)
class Step:
    """Where a sign-in stands: the secret is of a session if somebody is `signed_in`, else of a challenge for the second factor."""

    secret: str
    signed_in: SignedIn | None = None


def sign_in(ctx: Context, username: str, password: str, *, code: str = "") -> Step:
    """The first step with a password, and the second at once if a code came along. Raises Unauthorized."""
    user = check_password(ctx, username, password)
    step = enter(ctx, user, Proof("password", password=password))
    return second_step(ctx, step.secret, code) if code and step.signed_in is None else step


def check(ctx: Context, username: str, password: str, code: str) -> User:
    """The user with this password and, where they have a second factor, this code: for what opens no session. Raises Unauthorized or Forbidden."""
    user = check_password(ctx, username, password)
    if factors.devices_of(ctx.db, user.id):
        if not code:
            raise Unauthorized(
                "This account has a second factor: send a code of its app, or a recovery code, as otp.", details={"otp": ["is required."]}
            )
        with transaction(ctx.db):
            factor = factors.code_fits(ctx, user.id, code)
            if factor == "recovery":
                audit.record(ctx, "identity.mfa.use_recovery_code", audit.Subject("identity.user", user.id, user.username))
        if not factor:
            note_failure(ctx, user, user.username, counts=True, error="wrong second factor")
            raise Unauthorized(WRONG_CODE)
    elif iam.with_access(ctx.db, principal_of(user, ""), ctx.db.scalar(select(iam.REVISION))).needs_factor:
        raise Forbidden("One of your roles asks for a second factor. Sign in to the console and add one; then tokens can be had.")
    return user


def enter(ctx: Context, user: User, proof: Proof) -> Step:
    """Go on after the first proof: to a session, or to the second factor where the user has one and the proof was a single one."""
    if not proof.mfa and factors.devices_of(ctx.db, user.id):
        secret = challenge_begin(ctx, SECOND, user.id, proof)[0]
        return Step(secret)
    secret = secrets.token_urlsafe(32)
    with transaction(ctx.db):
        found = _open(ctx, user.id, proof, secret)
    return Step(secret, found)


def _open(ctx: Context, user_id: str, proof: Proof, secret: str) -> SignedIn:
    row = ctx.db.get_one(User, user_id, with_for_update=True, populate_existing=True)
    if row.kind != PERSON:
        raise Unauthorized("A service account does not sign in; it has keys.")
    if not row.is_active:
        raise Unauthorized("This account is disabled. An administrator of the platform can enable it.")
    row.failed_sign_ins, row.locked_until = 0, None
    row.last_login_at, row.last_login_ip = now(), ctx.source_ip
    if proof.password and passwords.needs_rehash(row.password_hash):
        row.password_hash = passwords.hash_password(proof.password)
    session = UserSession(
        id_hash=digest(secret), user_id=row.id, project_id=home_project(row), source_ip=ctx.source_ip, user_agent=ctx.user_agent[:255],
        expires_at=now() + timedelta(hours=ctx.settings.session_absolute_hours), method=proof.method, provider_sid=proof.provider_sid[:255],
        sealed_id_token=proof.sealed_id_token, mfa_at=now() if proof.mfa else None,
    )  # fmt: skip
    ctx.db.add(session)
    ctx.db.flush()
    ctx.principal = principal_of(row, f"session:{session.session_id}", mfa=proof.mfa, proved_at=session.proved_at)
    audit.record(ctx, SIGN_IN, audit.Subject("identity.user", row.id, row.username), details={"method": proof.method, "second_factor": proof.mfa})
    return SignedIn(row, ctx.principal, session)


# -- challenges ------------------------------------------------------------------------------------------------------------------------------


def challenge_begin(ctx: Context, purpose: str, user_id: str | None, proof: Proof | None = None) -> tuple[str, Challenge]:
    """Write a challenge down; gives the secret that the browser is to bring back."""
    secret = secrets.token_urlsafe(32)
    proof = proof or Proof("")
    row = Challenge(
        id_hash=digest(secret), user_id=user_id, purpose=purpose, challenge=secrets.token_urlsafe(32), expires_at=now() + LIFETIME,
        method=proof.method, provider_sid=proof.provider_sid[:255], sealed_id_token=proof.sealed_id_token,
    )  # fmt: skip
    with transaction(ctx.db):
        ctx.db.add(row)
    return secret, row


def challenge_of(ctx: Context, secret: str, purpose: str) -> Challenge:
    """The challenge behind a secret. Raises Unauthorized if it is unknown, over, or for something else."""
    row = ctx.db.get(Challenge, digest(secret)) if secret else None
    if row is None or row.purpose != purpose or row.expires_at <= now() or row.tries >= MAX_TRIES:
        raise Unauthorized(OVER)
    # What it said is needed after it was used up.
    ctx.db.expunge(row)
    return row


def challenge_take(ctx: Context, secret: str, purpose: str) -> Challenge:
    """Use a challenge up, so that an answer counts once. Raises Unauthorized."""
    row = challenge_of(ctx, secret, purpose)
    with transaction(ctx.db):
        gone = delete(Challenge).where(Challenge.id_hash == row.id_hash).returning(Challenge.id_hash)
        if ctx.db.scalar(gone) is None:
            raise Unauthorized(OVER)
    return row


# -- the second step -------------------------------------------------------------------------------------------------------------------------


def second_step(ctx: Context, secret: str, code: str) -> Step:
    """Finish a sign-in with a code of an app or a recovery code. Raises Unauthorized; wrong codes count like wrong passwords."""
    row = challenge_of(ctx, secret, SECOND)
    user = ctx.db.get_one(User, row.user_id)
    if user.locked_until is not None and user.locked_until > now():
        raise Unauthorized(OVER)
    fresh = secrets.token_urlsafe(32)
    with transaction(ctx.db):
        # The challenge is used up by whoever is first, in the transaction that opens the session.
        took = update(Challenge).where(Challenge.id_hash == digest(secret), Challenge.tries < MAX_TRIES).values(tries=Challenge.tries + 1)
        if ctx.db.scalar(took.returning(Challenge.tries)) is None:
            raise Unauthorized(OVER)
        factor = factors.code_fits(ctx, user.id, code)
        if factor:
            ctx.db.execute(delete(Challenge).where(Challenge.id_hash == digest(secret)))
            found = _open(ctx, user.id, _with_factor(row), fresh)
            if factor == "recovery":
                audit.record(ctx, "identity.mfa.use_recovery_code", oneself(ctx))
    if not factor:
        note_failure(ctx, user, user.username, counts=True, error="wrong second factor")
        raise Unauthorized(WRONG_CODE)
    return Step(fresh, found)


def second_by_passkey(ctx: Context, row: Challenge) -> Step:
    """Finish a sign-in whose challenge a passkey has signed and `challenge_take` has used up."""
    fresh = secrets.token_urlsafe(32)
    with transaction(ctx.db):
        found = _open(ctx, str(row.user_id), _with_factor(row), fresh)
    return Step(fresh, found)


def _with_factor(row: Challenge) -> Proof:
    return Proof(row.method, mfa=True, provider_sid=row.provider_sid, sealed_id_token=row.sealed_id_token)


# -- proving it again ------------------------------------------------------------------------------------------------------------------------


def confirm(ctx: Context, *, password: str = "", code: str = "") -> str:
    """Prove again, with the password or a code, who one is; dangerous actions are open for a while. The session's new secret. Raises Unauthorized."""
    user = ctx.db.get_one(User, ctx.principal.user_id)
    if password:
        if factors.devices_of(ctx.db, user.id):
            raise Unauthorized("You have a second factor: confirm with that, not with the password.")
        check_password(ctx, user.username, password)
        with transaction(ctx.db):
            return session_renew(ctx, is_factor=False)
    if user.locked_until is not None and user.locked_until > now():
        raise Unauthorized("Too many tries. Wait a while.")
    with transaction(ctx.db):
        secret = session_renew(ctx, is_factor=True) if factors.code_fits(ctx, user.id, code) else ""
    if not secret:
        note_failure(ctx, user, user.username, counts=True, error="wrong second factor")
        raise Unauthorized(WRONG_CODE)
    return secret


def sessions_end_others(ctx: Context, keep_session: str) -> int:
    """End every session of the caller but one; how many there were."""
    with acting(ctx, "identity.session.delete_others", oneself(ctx)):
        others = (UserSession.user_id == ctx.principal.user_id, UserSession.session_id != keep_session)
        gone = ctx.db.scalars(delete(UserSession).where(*others).returning(UserSession.session_id)).all()
        end_assumed(ctx.db, str(ctx.principal.user_id), gone)
        return len(gone)
