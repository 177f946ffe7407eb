"""Service accounts: users of one project that are no people. They have no password and no session; they hold a role, groups and policies, and own keys.

Nobody makes, strengthens or takes a key of an account that may do more than they themselves may.
"""

from collections.abc import Sequence

from sqlalchemy import Select, select
from sqlalchemy.orm import joinedload

from portal.identity.access import access_end, user_lock
from portal.identity.accounts import account_target, refuse_beyond
from portal.identity.deletion import remove
from portal.identity.models import SERVICE, Membership, User
from portal.identity.projects import PROJECT_ROLES
from portal.identity.users import USERNAME, USERNAME_RULE, taken_as
from portal.kernel import audit
from portal.kernel.authz import ROLES, Target, authorize, decide, refuse_escalation
from portal.kernel.context import Context
from portal.kernel.errors import Conflict, InvalidRequest, NotFound
from portal.kernel.ids import new_id, storable
from portal.kernel.operations import acting
from portal.kernel.projects import refuse_ending

READ = "identity.service_account.read"
PREFIX = "sa"
# Without a role, groups and policies alone say what the account may do.
ROLE_NAMES = ("", *PROJECT_ROLES)


def service_accounts_of(ctx: Context, project_id: str | None) -> Sequence[Membership]:
    """The service accounts of a project with their roles, by name. Raises Forbidden."""
    authorize(ctx, READ, Target(project_id, label="the project's service accounts"))
    return ctx.db.scalars(_accounts().where(Membership.project_id == project_id).order_by(User.username)).all()


def service_account_find(ctx: Context, account_id: str) -> Membership:
    """One service account with its role. Raises NotFound."""
    found = ctx.db.scalars(_accounts().where(User.id == storable(account_id))).first()
    if found is None or not decide(ctx, READ, account_target(found.user)).allowed:
        raise NotFound(f"There is no service account {account_id[:80]} here.")
    return found


def _accounts() -> Select[Membership]:
    return select(Membership).join(Membership.user).where(User.kind == SERVICE).options(joinedload(Membership.user))


def service_account_create(ctx: Context, *, name: str, role: str = "") -> Membership:
    """Make a service account in the current project. Raises InvalidRequest, Conflict or Forbidden."""
    if ctx.project_id is None:
        raise InvalidRequest("Choose a project first: you are a member of none.")
    account_id = new_id(PREFIX)
    # Addresses are unique and must be there; this one reaches nobody.
    account = User(id=account_id, kind=SERVICE, username=name, email=f"{account_id}@service-account.invalid", default_project_id=ctx.project_id)
    target = Target(ctx.project_id, label="a new service account")
    details = {"name": name[:150], "role": role[:32]}
    with acting(ctx, "identity.service_account.create", _about(account), target=target, details=details):
        if not USERNAME.fullmatch(name):
            raise InvalidRequest.fields({"name": [USERNAME_RULE]})
        _check_role(ctx, role, ctx.project_id)
        if taken_as(ctx, name, account.email):
            raise Conflict("name: is taken by another user or service account.", details={"name": ["is taken by another user or service account"]})
        ctx.db.add(account)
        ctx.db.flush()
        ctx.db.add(Membership(user_id=account.id, project_id=ctx.project_id, role=role))
        ctx.db.flush()
        refuse_ending(ctx.db, ctx.project_id)
    return service_account_find(ctx, account_id)


def service_account_update(ctx: Context, account_id: str, *, role: str | None = None, is_active: bool | None = None) -> Membership:
    """Give a service account another role, disable or enable it; disabled, its keys end at once. Raises NotFound, InvalidRequest or Forbidden."""
    found = service_account_find(ctx, account_id)
    before = {"role": found.role, "is_active": found.user.is_active}
    details = {"before": before, "after": {"role": None if role is None else role[:32], "is_active": is_active}}
    with acting(ctx, "identity.service_account.update", _about(found.user), target=account_target(found.user), details=details):
        user = user_lock(ctx.db, found.user_id)
        held = ctx.db.get_one(Membership, (found.user_id, found.project_id), populate_existing=True)
        if role is not None:
            _check_role(ctx, role, held.project_id)
            held.role = role
            ctx.db.flush()
        if is_active and not user.is_active:
            refuse_beyond(ctx, user)
        user.is_active = user.is_active if is_active is None else is_active
        if not user.is_active:
            access_end(ctx.db, user.id)
    return held


def service_account_delete(ctx: Context, account_id: str) -> None:
    """Delete a service account with its keys. What it owns stays in the project and is nobody's own: who deletes gains no right by it.

    Raises NotFound or Forbidden.
    """
    found = service_account_find(ctx, account_id)
    with acting(ctx, "identity.service_account.delete", _about(found.user), target=account_target(found.user)):
        remove(ctx, found.user_id, heir_id=None)


def _check_role(ctx: Context, role: str, project_id: str) -> None:
    if role not in ROLE_NAMES:
        raise InvalidRequest.fields({"role": [f"must be empty or one of {', '.join(PROJECT_ROLES)}."]})
    if role:
        refuse_escalation(ctx, ROLES[role].statements, project_id)


def _about(user: User) -> audit.Subject:
    return audit.Subject("identity.service_account", user.id, user.username[:255], user.default_project_id)


def role_labels() -> dict[str, str]:
    """Role → label, of the roles that a service account can hold."""
    return {name: ROLES[name].label if name else "No role" for name in ROLE_NAMES}
