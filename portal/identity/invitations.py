"""Links by which somebody chooses a password: for new users, and for those who have forgotten theirs."""

import secrets
from dataclasses import replace
from datetime import timedelta

from sqlalchemy import delete, select

from portal.identity import iam, passwords, sign_in
from portal.identity.access import access_end, user_lock
from portal.identity.accounts import note_failure, oneself, principal_of, refuse_beyond, require_person
from portal.identity.models import Invitation, User, digest
from portal.identity.sign_in import Proof, Step
from portal.identity.users import EVERYWHERE, user_find
from portal.kernel import audit
from portal.kernel.authz import authorize
from portal.kernel.context import Context
from portal.kernel.db import now
from portal.kernel.errors import Conflict, Forbidden, Unauthorized
from portal.kernel.operations import acting, refuse_restricted

LIFETIME = timedelta(days=7)
OVER = "This invitation is not known, was used, or is older than seven days. Ask for another one."


def user_invite(ctx: Context, user_id: str) -> str:
    """Make the code with which a user chooses a password, shown this once; one made before no longer works.

    Raises NotFound, Forbidden for a user who may do more than the caller, and Conflict for a disabled one.
    """
    user, code = user_find(ctx, user_id), secrets.token_urlsafe(32)
    with acting(ctx, "identity.user.invite", audit.Subject("identity.user", user.id, user.username), target=EVERYWHERE):
        refuse_restricted(ctx, "identity.user.invite")
        if user.last_login_at is not None or user.platform_role:
            require_person(ctx, "A password for somebody who has signed in before, or has a role on the platform, is asked for")
        # Whoever holds the code becomes that user.
        refuse_beyond(ctx, user)
        if not user_lock(ctx.db, user.id).is_active:
            raise Conflict(f"{user.username} is disabled. Enable the account first.")
        ctx.db.execute(delete(Invitation).where(Invitation.user_id == user.id))
        ctx.db.add(Invitation(code_hash=digest(code), user_id=user.id, created_by=str(ctx.principal.user_id), expires_at=now() + LIFETIME))
    return code


def invitation_accept(ctx: Context, code: str, password: str) -> Step:
    """Choose a password with a code and go on signing in; sessions and tokens from before end. Raises Unauthorized or InvalidRequest."""
    user = _invited(ctx, code)
    passwords.check_strength(ctx.settings, password, field="new", username=user.username, email=user.email)
    ctx.db.rollback()
    fresh = passwords.hash_password(password)
    ctx.principal = principal_of(user, "invitation")
    with acting(ctx, "identity.user.accept_invitation", oneself(ctx)):
        row = user_lock(ctx.db, user.id)
        used = delete(Invitation).where(Invitation.code_hash == digest(code), Invitation.expires_at > now()).returning(Invitation.user_id)
        if ctx.db.scalar(used) is None:
            raise Unauthorized(OVER)
        row.password_hash, row.must_change_password, row.failed_sign_ins, row.locked_until = fresh, False, 0, None
        access_end(ctx.db, row.id)
    return sign_in.enter(ctx, user, Proof("invitation"))


def _invited(ctx: Context, code: str) -> User:
    query = select(User).join(Invitation, Invitation.user_id == User.id).where(Invitation.code_hash == digest(code), Invitation.expires_at > now())
    user = ctx.db.scalars(query.where(User.is_active.is_(True))).first()
    if user is None or not _still_may(ctx, code, user):
        note_failure(ctx, None, "invitation", counts=False, error="unknown, used or expired link")
        raise Unauthorized(OVER)
    return user


def _still_may(ctx: Context, code: str, user: User) -> bool:
    """Whether the one who made a link is still there, and may still do all that the invited may."""
    makers = select(User).join(Invitation, Invitation.created_by == User.id).where(Invitation.code_hash == digest(code), User.is_active.is_(True))
    maker = ctx.db.scalars(makers).first()
    if maker is None:
        return False
    principal = iam.with_access(ctx.db, principal_of(maker, "invitation"), ctx.db.scalar(select(iam.REVISION)))
    try:
        makers_ctx = replace(ctx, principal=principal)
        authorize(makers_ctx, "identity.user.invite", EVERYWHERE)
        refuse_beyond(makers_ctx, user)
    except Forbidden:
        return False
    return True
