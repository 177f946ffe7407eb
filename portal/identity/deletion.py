"""Deleting a user: what would go with them, who takes over what they own, and the end of it."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import delete, select, update

from portal.identity import iam
from portal.identity.access import admins_lock, user_lock
from portal.identity.accounts import refuse_beyond
from portal.identity.factors import MfaDevice, recovery_left
from portal.identity.models import PERSON, ApiToken, Membership, Project, User, UserSession
from portal.identity.oauth2.models import OAuthClient, OAuthConsent, lock_clients_of
from portal.identity.s3_keys import s3_key_names
from portal.identity.sso import Identity
from portal.identity.users import EVERYWHERE, keep_an_admin, keep_project_admins, user_find
from portal.kernel import audit, quota, quota_requests
from portal.kernel.authz import authorize
from portal.kernel.context import Context
from portal.kernel.errors import Conflict, InvalidRequest
from portal.kernel.ids import storable
from portal.kernel.leaving import SHOWN, Listed, listed
from portal.kernel.operations import acting, refuse_restricted
from portal.kernel.quota_requests import QuotaRequest


@dataclass(frozen=True, slots=True)
class UserLeaving:
    """Everything that the deletion of a user concerns: what goes over to an heir, and what else goes away."""

    owned: Sequence[Listed]
    gone: Sequence[Listed]


def user_leaving(ctx: Context, user_id: str) -> UserLeaving:
    """What the deletion of a user would do. Raises Forbidden or NotFound."""
    user = user_find(ctx, user_id)
    authorize(ctx, "identity.user.delete", EVERYWHERE)
    owned = []
    for rtype in ctx.registry:
        names = select(rtype.model.name).where(rtype.model.owner_id == user.id, rtype.model.deleted_at.is_(None))
        if found := listed(ctx, rtype.label, names, plural=rtype.plural):
            owned.append(found)
    groups = select(iam.IamGroup.name).join(iam.IamGroupMember, iam.IamGroupMember.group_id == iam.IamGroup.id)
    consented = select(OAuthClient.name).join(OAuthConsent, OAuthConsent.client_id == OAuthClient.id)
    held = select(iam.IamPolicy.name).join(iam.IamAttachment, iam.IamAttachment.policy_id == iam.IamPolicy.id)
    going = [
        ("Memberships", select(Project.name).join(Membership, Membership.project_id == Project.id).where(Membership.user_id == user.id)),
        ("Memberships of groups", groups.where(iam.IamGroupMember.user_id == user.id)),
        ("Sessions", select(UserSession.source_ip).where(UserSession.user_id == user.id)),
        ("API tokens", select(ApiToken.name).where(ApiToken.user_id == user.id, ApiToken.role_id.is_(None))),
        ("S3 access keys", s3_key_names(user.id)),
        ("Sessions in roles", select(ApiToken.name).where(ApiToken.user_id == user.id, ApiToken.role_id.is_not(None))),
        ("Applications that they registered", select(OAuthClient.name).where(OAuthClient.owner_id == user.id)),
        ("Applications that act for them", consented.where(OAuthConsent.user_id == user.id)),
        ("Apps and passkeys", select(MfaDevice.name).where(MfaDevice.user_id == user.id)),
        ("Requests for more quota", select(QuotaRequest.dimension).where(QuotaRequest.user_id == user.id, QuotaRequest.state == "pending")),
        ("Linked accounts", select(Identity.email).where(Identity.user_id == user.id)),
        ("Attached policies", held.where(iam.IamAttachment.principal_type == "user", iam.IamAttachment.principal_id == user.id)),
    ]
    gone = [found for label, names in going if (found := listed(ctx, label, names))]
    if codes := recovery_left(ctx.db, user.id):
        gone.append(Listed("Recovery codes", codes, ()))
    if trusting := sorted(role.name for role in iam.roles_trusting(ctx.db, user.id)):
        gone.append(Listed("Roles that they could assume", len(trusting), trusting[:SHOWN]))
    return UserLeaving(owned, gone)


def user_delete(ctx: Context, user_id: str, heir: str) -> None:
    """Delete a user; what they own, if anything, goes over to the heir, a user by name. Their entries in the audit log stay.

    Raises NotFound, InvalidRequest for an heir who is none, QuotaExceeded where the heir may not own that much, Forbidden for somebody who may do
    more than the caller, and Conflict for oneself or the last administrator.
    """
    user = user_find(ctx, user_id)
    details = {"username": user.username, "heir": heir[:150]}
    with acting(ctx, "identity.user.delete", audit.Subject("identity.user", user.id, user.username), target=EVERYWHERE, details=details):
        refuse_restricted(ctx, "identity.user.delete")
        if user.id == ctx.principal.user_id:
            raise Conflict("Nobody deletes their own account. Another administrator can.")
        refuse_beyond(ctx, user)
        keep_project_admins(ctx, user)
        heirs = select(User).where(User.username == storable(heir[:254]), User.kind == PERSON, User.is_active.is_(True), User.id != user.id)
        taking = ctx.db.scalars(heirs).first()
        if taking is None and (heir or _owns(ctx, user.id)):
            problem = f"There is no active user {heir[:80]} who could take over" if heir else "Name the user who takes over"
            raise InvalidRequest.fields({"heir": [f"{problem} what {user.username} owns."]})
        remove(ctx, user.id, heir_id=taking.id if taking is not None else None)
        keep_an_admin(ctx)


def _owns(ctx: Context, user_id: str) -> bool:
    mine = (select(rtype.model.id).where(rtype.model.owner_id == user_id, rtype.model.deleted_at.is_(None)) for rtype in ctx.registry)
    return any(ctx.db.scalar(query.limit(1)) is not None for query in mine)


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
