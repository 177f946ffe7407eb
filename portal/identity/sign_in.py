"""Signing in: the first proof, the second factor where the user has one, and the session that follows; and proving again who one is.

Between two steps the browser holds a secret of its own kind, a challenge, which opens nothing: it is good for one purpose, a few minutes and a few
tries. The session's secret is made at the end, so that nobody can fix it beforehand.
"""

import secrets
from dataclasses import dataclass, replace
from datetime import timedelta

from sqlalchemy import delete, select, update

from portal.identity import factors, iam, passwords
from portal.identity.access import sign_ins_end, user_lock
from portal.identity.accounts import (
    SIGN_IN,
    SignedIn,
    check_password,
    home_project,
    note_failure,
    oneself,
    principal_of,
    session_renew,
)
from portal.identity.models import PERSON, Challenge, User, UserSession, digest
from portal.kernel import audit
from portal.kernel.context import Context
from portal.kernel.db import now, transaction
from portal.kernel.errors import Forbidden, Unauthorized
from portal.kernel.operations import acting
from portal.kernel.proof import require_proof

LIFETIME = timedelta(minutes=5)
MAX_TRIES = 5
SECOND, PASSKEY_ENTRY, PASSKEY_NEW, CONFIRM = "second", "passkey", "passkey-new", "confirm"
WRONG_CODE = "The code is wrong or was used before. Codes of an app change every 30 seconds; a recovery code works once."
OVER = "This sign-in took too long or had too many wrong codes. Begin again."


@dataclass(frozen=True, slots=True)
class Proof:
    """How somebody showed who they are: `method` is password, passkey or the name of a provider; `mfa` if that was more than one factor."""

    method: str
    mfa: bool = False
    password: str = ""
    # What the password was checked against.
    password_hash: str = ""
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
    step = enter(ctx, user, Proof("password", password=password, password_hash=user.password_hash))
    return second_step(ctx, step.secret, code) if code and step.signed_in is None else step


def check(ctx: Context, username: str, password: str, code: str) -> tuple[User, Proof]:
    """The user with this password and, where they have a second factor, this code, at once: for programs. Raises Unauthorized or Forbidden."""
    user = check_password(ctx, username, password)
    proof = Proof("api", password=password, password_hash=user.password_hash)
    if factors.devices_of(ctx.db, user.id):
        if not code:
            raise Unauthorized(
                "This account has a second factor: send a code of its app, or a recovery code, as otp.", details={"otp": ["is required."]}
            )
        with transaction(ctx.db):
            factor = _code_fits(ctx, _trying(ctx, user.id), code)
        if not factor:
            note_failure(ctx, user, user.username, counts=True, error="wrong second factor")
            raise Unauthorized(WRONG_CODE)
        proof = replace(proof, mfa=True)
    elif iam.with_access(ctx.db, principal_of(user, ""), ctx.db.scalar(select(iam.REVISION))).needs_factor:
        raise Forbidden("One of your roles asks for a second factor. Sign in to the console and add one; then tokens can be had.")
    return user, proof


def enter(ctx: Context, user: User, proof: Proof) -> Step:
    """Go on after the first proof: to a session, or to the second factor where the user has one and the proof was a single one."""
    if not proof.mfa and factors.devices_of(ctx.db, user.id):
        return Step(challenge_begin(ctx, SECOND, user.id, proof)[0])
    secret = secrets.token_urlsafe(32)
    with transaction(ctx.db):
        found = open_session(ctx, user.id, proof, secret)
    return Step(secret, found)


def open_session(ctx: Context, user_id: str, proof: Proof, secret: str) -> SignedIn:
    """Open a session under a secret, within the caller's transaction. Raises Unauthorized for who is disabled, or whose password is another now."""
    row = _locked(ctx, user_id, proof)
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


def _locked(ctx: Context, user_id: str, proof: Proof) -> User:
    """The user, locked. Raises Unauthorized where the password was changed after it was checked."""
    row = user_lock(ctx.db, user_id)
    if proof.password_hash and row.password_hash != proof.password_hash:
        raise Unauthorized(OVER)
    return row


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
        if user_id is not None:
            # What ends the sign-ins of a user ends this one too, or comes before it and is seen.
            _locked(ctx, user_id, proof)
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
        _use_up(ctx, row)
    return row


def _use_up(ctx: Context, row: Challenge) -> None:
    gone = delete(Challenge).where(Challenge.id_hash == row.id_hash).returning(Challenge.id_hash)
    if ctx.db.scalar(gone) is None:
        raise Unauthorized(OVER)


# -- the second step -------------------------------------------------------------------------------------------------------------------------


def second_step(ctx: Context, secret: str, code: str) -> Step:
    """Finish a sign-in with a code of an app or a recovery code. Raises Unauthorized; wrong codes count like wrong passwords."""
    row, fresh = challenge_of(ctx, secret, SECOND), secrets.token_urlsafe(32)
    with transaction(ctx.db):
        user = _trying(ctx, row.user_id)
        # The challenge is used up by whoever is first, in the transaction that opens the session.
        took = update(Challenge).where(Challenge.id_hash == digest(secret), Challenge.tries < MAX_TRIES).values(tries=Challenge.tries + 1)
        if ctx.db.scalar(took.returning(Challenge.tries)) is None:
            raise Unauthorized(OVER)
        factor = _code_fits(ctx, user, code)
        if factor:
            ctx.db.execute(delete(Challenge).where(Challenge.id_hash == digest(secret)))
            found = open_session(ctx, user.id, _with_factor(row), fresh)
    if not factor:
        note_failure(ctx, user, user.username, counts=True, error="wrong second factor")
        raise Unauthorized(WRONG_CODE)
    return Step(fresh, found)


def second_by_passkey(ctx: Context, row: Challenge) -> Step:
    """Finish a sign-in whose challenge a passkey has signed; it is used up in the transaction that opens the session. Raises Unauthorized."""
    fresh = secrets.token_urlsafe(32)
    with transaction(ctx.db):
        user_lock(ctx.db, row.user_id)
        _use_up(ctx, row)
        found = open_session(ctx, str(row.user_id), _with_factor(row), fresh)
    return Step(fresh, found)


def _trying(ctx: Context, user_id: str | None) -> User:
    """The user, locked, so that of many tries at once each sees those before it. Raises Unauthorized for one who has to wait."""
    user = user_lock(ctx.db, user_id)
    if user.locked_until is not None and user.locked_until > now():
        raise Unauthorized("Too many tries. Wait a while.")
    return user


def _code_fits(ctx: Context, user: User, code: str) -> str:
    """As `factors.code_fits`; a used recovery code is written down."""
    factor = factors.code_fits(ctx, user.id, code)
    if factor == "recovery":
        audit.record(ctx, "identity.mfa.use_recovery_code", audit.Subject("identity.user", user.id, user.username))
    return factor


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
    with transaction(ctx.db):
        secret = session_renew(ctx, is_factor=True) if _code_fits(ctx, _trying(ctx, user.id), code) else ""
    if not secret:
        note_failure(ctx, user, user.username, counts=True, error="wrong second factor")
        raise Unauthorized(WRONG_CODE)
    return secret


def sessions_end_others(ctx: Context, keep_session: str) -> int:
    """End every session of the caller but one; how many there were."""
    require_proof(ctx)
    with acting(ctx, "identity.session.delete_others", oneself(ctx)):
        return sign_ins_end(ctx.db, user_lock(ctx.db, ctx.principal.user_id).id, keep_session=keep_session)
