"""Deleting a user: what would go with them, who takes over what they own, and the end of it."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import delete, func, select, update

from portal.identity import iam
from portal.identity.access import admins_lock, user_lock
from portal.identity.accounts import refuse_beyond, require_proof
from portal.identity.factors import MfaDevice
from portal.identity.models import PERSON, ApiToken, Membership, User, UserSession
from portal.identity.oauth2.models import OAuthClient, OAuthConsent, lock_clients_of
from portal.identity.sso import Identity
from portal.identity.users import EVERYWHERE, keep_an_admin, user_find
from portal.kernel import audit, quota, quota_requests
from portal.kernel.authz import authorize
from portal.kernel.context import Context
from portal.kernel.errors import Conflict, InvalidRequest
from portal.kernel.ids import storable
from portal.kernel.operations import acting, refuse_restricted

SHOWN = 20


@dataclass(frozen=True, slots=True)
class Owned:
    """What a user owns of one type: how many, and the names of the first."""

    label: str
    count: int
    names: Sequence[str]


@dataclass(frozen=True, slots=True)
class Leaving:
    """Everything that the deletion of a user concerns: what goes over to an heir, and how much of what else goes away, by its name."""

    owned: Sequence[Owned]
    gone: Sequence[tuple[str, int]]


def user_leaving(ctx: Context, user_id: str) -> Leaving:
    """What the deletion of a user would do. Raises Forbidden or NotFound."""
    user = user_find(ctx, user_id)
    authorize(ctx, "identity.user.delete", EVERYWHERE)
    owned = []
    for rtype in ctx.registry:
        mine = (rtype.model.owner_id == user.id, rtype.model.deleted_at.is_(None))
        if count := ctx.db.scalar(select(func.count()).select_from(rtype.model).where(*mine)):
            names = ctx.db.scalars(select(rtype.model.name).where(*mine).order_by(rtype.model.name).limit(SHOWN)).all()
            owned.append(Owned(rtype.label if count == 1 else rtype.plural, count, names))
    gone = [
        ("Memberships", Membership.user_id), ("Memberships of groups", iam.IamGroupMember.user_id), ("Sessions", UserSession.user_id),
        ("API tokens", ApiToken.user_id), ("Applications that they registered", OAuthClient.owner_id), ("Applications that act for them", OAuthConsent.user_id),
        ("Apps and passkeys", MfaDevice.user_id), ("Linked accounts", Identity.user_id),
    ]  # fmt: skip
    counts = [(label, ctx.db.scalar(select(func.count()).where(column == user.id)) or 0) for label, column in gone]
    attached = (iam.IamAttachment.principal_type == "user", iam.IamAttachment.principal_id == user.id)
    counts.append(("Attached policies", ctx.db.scalar(select(func.count()).select_from(iam.IamAttachment).where(*attached)) or 0))
    return Leaving(owned, [(label, count) for label, count in counts if count])


def user_delete(ctx: Context, user_id: str, heir: str) -> None:
    """Delete a user; what they own goes over to the heir, a user by name. Their entries in the audit log stay.

    Raises NotFound, InvalidRequest for an heir who is none, QuotaExceeded where the heir may not own that much, Forbidden for somebody who may do
    more than the caller, and Conflict for oneself or the last administrator.
    """
    require_proof(ctx)
    user = user_find(ctx, user_id)
    details = {"username": user.username, "heir": heir[:150]}
    with acting(ctx, "identity.user.delete", audit.Subject("identity.user", user.id, user.username), target=EVERYWHERE, details=details):
        refuse_restricted(ctx, "identity.user.delete")
        if user.id == ctx.principal.user_id:
            raise Conflict("Nobody deletes their own account. Another administrator can.")
        refuse_beyond(ctx, user)
        heirs = select(User).where(User.username == storable(heir[:254]), User.kind == PERSON, User.is_active.is_(True), User.id != user.id)
        taking = ctx.db.scalars(heirs).first()
        if taking is None:
            raise InvalidRequest.fields({"heir": [f"There is no active user {heir[:80]} who could take over what {user.username} owns."]})
        remove(ctx, user.id, heir_id=taking.id)
        keep_an_admin(ctx)


def remove(ctx: Context, user_id: str, *, heir_id: str | None) -> None:
    """Delete a user or service account within the caller's transaction; what it owns is the heir's, or nobody's own."""
    for rtype in sorted(ctx.registry, key=lambda rtype: rtype.key):
        ctx.db.execute(update(rtype.model).where(rtype.model.owner_id == user_id).values(owner_id=heir_id))
    lock_clients_of(ctx.db, user_id)
    admins_lock(ctx.db)
    user = user_lock(ctx.db, user_id)
    iam.forget_user(ctx.db, user_id)
    quota_requests.withdraw_all(ctx.db, user_id=user_id)
    quota.hand_over(ctx.db, user_id, heir_id)
    ctx.db.expunge(user)
    # Sessions, tokens, factors and everything else of the account goes with it, by the database's own rule.
    ctx.db.execute(delete(User).where(User.id == user_id))
