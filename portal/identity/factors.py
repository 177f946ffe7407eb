"""Second factors: authenticator apps (TOTP, RFC 6238), passkeys (WebAuthn) and recovery codes; and which roles must have one."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

import pyotp
from sqlalchemy import BigInteger, ForeignKey, String, Text, delete, select
from sqlalchemy.orm import Mapped, Session, mapped_column

from portal.identity.access import sign_ins_end, user_lock
from portal.identity.accounts import checked_name, oneself, refuse_beyond, require_person, session_renew
from portal.identity.iam import MfaRule, bump
from portal.identity.models import User, digest
from portal.identity.sealed import seal, unseal
from portal.kernel import audit
from portal.kernel.authz import ROLES, Target
from portal.kernel.context import Context
from portal.kernel.db import Base, UtcDateTime, now
from portal.kernel.errors import Conflict, InvalidRequest, NotFound
from portal.kernel.ids import new_id, storable
from portal.kernel.operations import acting, refuse_restricted
from portal.kernel.proof import require_proof

ISSUER = "Atonix Portal"
STEP_S = 30
MAX_DEVICES = 10
NAME_MAX = 100
RECOVERY_CODES = 10
# Without letters and digits that look alike: 32 of them, 5 bits each.
ALPHABET = "abcdefghijkmnpqrstuvwxyz23456789"
TOTP, PASSKEY = "totp", "passkey"
RULES = Target(None, label="the sign-in rules")


class MfaDevice(Base):
    """Something that a user has: an authenticator app or a passkey. Counts once it was confirmed."""

    __tablename__ = "mfa_devices"

    id: Mapped[str] = mapped_column(String(64), primary_key=True, default=lambda: new_id("mfa"))
    user_id: Mapped[str] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), index=True)
    device_type: Mapped[str] = mapped_column(String(16))
    name: Mapped[str] = mapped_column(String(NAME_MAX))
    # Of an app: the shared secret, and the newest time step whose code was used, so that no code works twice.
    sealed_secret: Mapped[str] = mapped_column(Text, default="")
    last_step: Mapped[int] = mapped_column(BigInteger, default=0)
    # Of a passkey, both in base64url.
    credential_id: Mapped[str | None] = mapped_column(String(1400), unique=True)
    public_key: Mapped[str] = mapped_column(Text, default="")
    sign_count: Mapped[int] = mapped_column(BigInteger, default=0)
    confirmed_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    last_used_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)


class RecoveryCode(Base):
    """A code for whoever has lost their devices; 120 random bits, so that SHA-256 without salt is enough, good once."""

    __tablename__ = "mfa_recovery_codes"

    code_hash: Mapped[str] = mapped_column(String(64), primary_key=True)
    user_id: Mapped[str] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), index=True)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)


@dataclass(frozen=True, slots=True)
class Activated:
    """What taking a device into use gives: recovery codes with the first one, and the session's new secret, empty where there is no session."""

    codes: list[str]
    session_secret: str


def devices_of(session: Session, user_id: str | None, device_type: str = "") -> Sequence[MfaDevice]:
    """What a user has confirmed, oldest first."""
    query = select(MfaDevice).where(MfaDevice.user_id == user_id, MfaDevice.confirmed_at.is_not(None))
    if device_type:
        query = query.where(MfaDevice.device_type == device_type)
    return session.scalars(query.order_by(MfaDevice.created_at, MfaDevice.id).execution_options(populate_existing=True)).all()


def recovery_left(session: Session, user_id: str | None) -> int:
    """How many recovery codes of a user are unused."""
    return len(session.scalars(select(RecoveryCode.code_hash).where(RecoveryCode.user_id == user_id)).all())


# -- authenticator apps ----------------------------------------------------------------------------------------------------------------------


def totp_begin(ctx: Context, name: str, *, with_password: bool = False) -> tuple[MfaDevice, str, str]:
    """Make the secret of a new app, which counts once a code of it was given: (device, secret in base32, otpauth URI), shown this once.

    In a session, or where the request came `with_password`, which the caller has checked.
    """
    if not with_password:
        require_person(ctx)
    user, secret = ctx.db.get_one(User, ctx.principal.user_id), pyotp.random_base32()
    device = MfaDevice(user_id=user.id, device_type=TOTP, name=checked_name(name, longest=NAME_MAX), sealed_secret=seal(ctx.settings, secret))
    with acting(ctx, "identity.mfa.begin", oneself(ctx), details={"device_type": TOTP, "name": device.name}):
        refuse_too_many(ctx)
        ctx.db.execute(delete(MfaDevice).where(MfaDevice.user_id == ctx.principal.user_id, MfaDevice.confirmed_at.is_(None)))
        ctx.db.add(device)
        ctx.db.flush()
    return device, secret, pyotp.TOTP(secret).provisioning_uri(name=user.username, issuer_name=ISSUER)


def totp_again(ctx: Context, device_id: str) -> tuple[MfaDevice, str, str]:
    """What `totp_begin` gave, for as long as the app is not confirmed. Raises NotFound."""
    require_person(ctx)
    device = _own(ctx, device_id)
    secret = unseal(ctx.settings, device.sealed_secret)
    if device.confirmed_at is not None or secret is None:
        raise NotFound("There is no app of yours that waits for its first code.")
    return device, secret, pyotp.TOTP(secret).provisioning_uri(name=ctx.principal.username, issuer_name=ISSUER)


def totp_confirm(ctx: Context, device_id: str, code: str) -> Activated:
    """Take an app into use with its first code. Raises NotFound, Conflict or InvalidRequest."""
    require_proof(ctx)
    with acting(ctx, "identity.mfa.create", oneself(ctx), details={"device": device_id[:64], "device_type": TOTP}):
        user_lock(ctx.db, ctx.principal.user_id)
        device = _own(ctx, device_id)
        if device.confirmed_at is not None:
            raise Conflict("This app is in use already.")
        if not _totp_fits(ctx, device, code):
            raise InvalidRequest.fields({"code": ["is not what the app shows now. Check that the clock of your phone is right."]})
        return activate(ctx, device)


def activate(ctx: Context, device: MfaDevice) -> Activated:
    """Let a device count from now on, within the caller's transaction that has locked the user, also for the present session."""
    is_first = not devices_of(ctx.db, ctx.principal.user_id)
    device.confirmed_at = device.last_used_at = now()
    # What was a session with one factor becomes one with two: not for whoever has a copy of its cookie.
    secret = session_renew(ctx, is_factor=True)
    return Activated(_fresh_codes(ctx) if is_first else [], secret)


def _totp_fits(ctx: Context, device: MfaDevice, code: str) -> bool:
    """Whether the code is of now or of one step before or after, and of a step that no code was used of."""
    secret = unseal(ctx.settings, device.sealed_secret)
    if secret is None:
        return False
    totp, present = pyotp.TOTP(secret), int(now().timestamp()) // STEP_S
    for step in (present - 1, present, present + 1):
        if secrets.compare_digest(totp.at(step * STEP_S).encode(), code.encode("utf-8", "replace")) and step > device.last_step:
            device.last_step, device.last_used_at = step, now()
            return True
    return False


# -- codes -----------------------------------------------------------------------------------------------------------------------------------


def code_fits(ctx: Context, user_id: str, code: str) -> str:
    """Which factor a code is of, `totp` or `recovery`; empty for a wrong one. A code works once: the caller's transaction has locked the user."""
    code = "".join(code.split())
    for device in devices_of(ctx.db, user_id, TOTP):
        if _totp_fits(ctx, device, code):
            return TOTP
    hashed = digest(storable(code.replace("-", "").lower()))
    used = delete(RecoveryCode).where(RecoveryCode.user_id == user_id, RecoveryCode.code_hash == hashed).returning(RecoveryCode.code_hash)
    return "recovery" if ctx.db.scalar(used) is not None else ""


def recovery_renew(ctx: Context) -> list[str]:
    """New recovery codes in place of the old ones, shown this once. Raises Conflict for a user without a device."""
    require_person(ctx)
    with acting(ctx, "identity.mfa.renew_recovery_codes", oneself(ctx)):
        user_lock(ctx.db, ctx.principal.user_id)
        if not devices_of(ctx.db, ctx.principal.user_id):
            raise Conflict("Recovery codes stand in for a lost device; add an app or a passkey first.")
        return _fresh_codes(ctx)


def _fresh_codes(ctx: Context) -> list[str]:
    codes = ["-".join("".join(secrets.choice(ALPHABET) for _ in range(4)) for _ in range(6)) for _ in range(RECOVERY_CODES)]
    ctx.db.execute(delete(RecoveryCode).where(RecoveryCode.user_id == ctx.principal.user_id))
    ctx.db.add_all(RecoveryCode(user_id=ctx.principal.user_id, code_hash=digest(code.replace("-", ""))) for code in codes)
    return codes


# -- devices ---------------------------------------------------------------------------------------------------------------------------------


def device_remove(ctx: Context, device_id: str) -> None:
    """Forget one of the caller's own devices; with the last one the recovery codes go. Raises NotFound."""
    require_person(ctx)
    with acting(ctx, "identity.mfa.delete", oneself(ctx), details={"device": device_id[:64]}):
        user_lock(ctx.db, ctx.principal.user_id)
        ctx.db.delete(_own(ctx, device_id))
        ctx.db.flush()
        if not devices_of(ctx.db, ctx.principal.user_id):
            ctx.db.execute(delete(RecoveryCode).where(RecoveryCode.user_id == ctx.principal.user_id))


def factors_reset(ctx: Context, user: User) -> None:
    """Forget everything that a user who lost it has; they are signed out everywhere. For administrators."""
    about = audit.Subject("identity.user", user.id, user.username)
    with acting(ctx, "identity.mfa.reset", about, target=Target(None, label="the platform's users")):
        refuse_restricted(ctx, "identity.mfa.reset")
        if ctx.principal.user_id is not None:
            require_person(ctx, "The second factors of a user are taken away")
        refuse_beyond(ctx, user)
        user_lock(ctx.db, user.id)
        sign_ins_end(ctx.db, user.id)
        for model in (MfaDevice, RecoveryCode):
            ctx.db.execute(delete(model).where(model.user_id == user.id))


def users_with_factors(session: Session) -> set[str]:
    """Ids of all users who have a second factor."""
    return set(session.scalars(select(MfaDevice.user_id).where(MfaDevice.confirmed_at.is_not(None)).distinct()))


def refuse_too_many(ctx: Context) -> None:
    """Raise Conflict at the limit; locks the user, so that two at once do not both pass."""
    user_lock(ctx.db, ctx.principal.user_id)
    if len(devices_of(ctx.db, ctx.principal.user_id)) >= MAX_DEVICES:
        raise Conflict(f"You have {MAX_DEVICES} apps and passkeys, which is the most. Remove one first.", details={"limit": MAX_DEVICES})


def _own(ctx: Context, device_id: str) -> MfaDevice:
    query = select(MfaDevice).where(MfaDevice.user_id == ctx.principal.user_id, MfaDevice.id == storable(device_id))
    device = ctx.db.scalars(query.execution_options(populate_existing=True)).first()
    if device is None:
        raise NotFound("There is no such device of yours.")
    return device


# -- who must ------------------------------------------------------------------------------------------------------------------------------


def roles_required(session: Session) -> set[str]:
    """Roles whose holders must use a second factor."""
    return set(session.scalars(select(MfaRule.role)))


def rules_update(ctx: Context, roles: Sequence[str]) -> None:
    """Say which roles must use a second factor; it holds from the next request of each holder. Raises InvalidRequest or Forbidden."""
    if wrong := [role for role in roles if role not in ROLES]:
        raise InvalidRequest.fields({"roles": [f"{wrong[0][:40]!r} is no role; there are {', '.join(ROLES)}."]})
    details = {"before": {"roles": sorted(roles_required(ctx.db))}, "after": {"roles": sorted(set(roles))}}
    about = audit.Subject("identity.mfa_rules", "mfa_rules", "second factors")
    with acting(ctx, "identity.mfa.require", about, target=RULES, details=details):
        refuse_restricted(ctx, "identity.mfa.require")
        require_person(ctx, "What is asked of whoever signs in is changed")
        ctx.db.execute(delete(MfaRule))
        ctx.db.add_all(MfaRule(role=role, created_by=ctx.principal.username) for role in sorted(set(roles)))
        bump(ctx.db)
