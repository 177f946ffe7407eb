"""Users, as administrators of the platform see them."""

import re
from collections.abc import Sequence

from sqlalchemy import delete, func, or_, select

from portal.identity import passwords
from portal.identity.access import access_end, admins_lock, sign_ins_end, user_lock
from portal.identity.accounts import refuse_beyond, require_person
from portal.identity.models import PERSON, ApiToken, Invitation, Membership, Project, User, UserSession
from portal.identity.oauth2.models import end_access
from portal.kernel import audit
from portal.kernel.authz import ROLES, Target, authorize, refuse_escalation
from portal.kernel.context import Context
from portal.kernel.db import now
from portal.kernel.errors import Conflict, InvalidRequest, NotFound
from portal.kernel.ids import is_storable, new_id, storable
from portal.kernel.operations import acting, refuse_restricted

PLATFORM_ROLES = ("", "platform_admin", "auditor")
USERNAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,149}")
PLATFORM = "A role on the whole platform is given"
RESERVED = frozenset({"anonymous", "system", "unknown"})
USERNAME_RULE = "must have 2 to 150 letters, digits, dots, dashes or underscores and begin with a letter or digit."
EMAIL = re.compile(r"[^@\s\x00-\x1f\x7f]{1,64}@[^@\s\x00-\x1f\x7f]{1,189}")
EVERYWHERE = Target(None, label="the platform's users")


def users_list(ctx: Context, *, active: bool | None = None, role: str = "", search: str = "") -> Sequence[User]:
    """All people, or those who fit, by name. Raises Forbidden, or InvalidRequest for what is no role."""
    authorize(ctx, "identity.user.read", EVERYWHERE)
    query = select(User).where(User.kind == PERSON)
    if active is not None:
        query = query.where(User.is_active.is_(active))
    if role:
        if role not in ROLES:
            raise InvalidRequest.fields({"role": [f"{role[:40]!r} is no role; there are {', '.join(ROLES)}."]})
        query = query.where(or_(User.platform_role == role, User.memberships.any(Membership.role == role)))
    if search:
        query = query.where(or_(*(column.icontains(storable(search[:255]), autoescape=True) for column in (User.username, User.email))))
    return ctx.db.scalars(query.order_by(User.username)).all()


def user_find(ctx: Context, user_id: str) -> User:
    """One user. Raises Forbidden or NotFound."""
    authorize(ctx, "identity.user.read", EVERYWHERE)
    user = ctx.db.get(User, user_id) if is_storable(user_id) else None
    if user is None or user.kind != PERSON:
        raise NotFound(f"There is no user {user_id[:80]}.")
    return user


def user_create(ctx: Context, *, username: str, email: str, password: str = "", platform_role: str = "") -> User:
    """Create a user, who chooses a password of their own at the first sign-in, or by an invitation if there is none. Raises InvalidRequest or Conflict."""
    user = User(id=new_id("usr"), username=username, email=email, platform_role=platform_role, must_change_password=bool(password))
    with acting(
        ctx, "identity.user.create", _about(user), target=EVERYWHERE, details={"username": username[:150], "platform_role": platform_role[:32]}
    ):
        if platform_role:
            require_person(ctx, PLATFORM)
        if username.lower() in RESERVED:
            raise InvalidRequest.fields({"username": ["is what the audit log calls nobody in particular. Choose another name."]})
        _check(user)
        if platform_role:
            refuse_restricted(ctx, "identity.user.create")
        _refuse_higher(ctx, platform_role)
        if password:
            passwords.check_strength(ctx.settings, password, field="password", username=username, email=email)
        if name := taken_as(ctx, username, email):
            raise Conflict(f"{name}: is taken by another user.", details={name: ["is taken by another user"]})
        user.password_hash = passwords.hash_password(password) if password else ""
        ctx.db.add(user)
    return user


def user_update(ctx: Context, user_id: str, *, is_active: bool | None = None, platform_role: str | None = None) -> User:
    """Disable or enable a user, or change what they are on the platform; whoever is disabled is signed out everywhere."""
    user = user_find(ctx, user_id)
    before = {"is_active": user.is_active, "platform_role": user.platform_role}
    after = {name: value for name, value in {"is_active": is_active, "platform_role": platform_role}.items() if value is not None}
    details = {"before": {name: before[name] for name in after}, "after": after}
    with acting(ctx, "identity.user.update", _about(user), target=EVERYWHERE, details=details):
        refuse_restricted(ctx, "identity.user.update")
        if platform_role:
            require_person(ctx, PLATFORM)
        refuse_beyond(ctx, user)
        admins_lock(ctx.db)
        row = user_lock(ctx.db, user_id)
        row.is_active = row.is_active if is_active is None else is_active
        if platform_role is not None:
            row.platform_role, row.role_source = platform_role, ""
        _check(row)
        _refuse_higher(ctx, platform_role)
        keep_an_admin(ctx)
        # A link that was made for what they were does not open what they are.
        ctx.db.execute(delete(Invitation).where(Invitation.user_id == row.id))
        if not row.is_active:
            keep_project_admins(ctx, row)
            access_end(ctx.db, row.id)
    return user


def user_sign_out(ctx: Context, user_id: str) -> int:
    """End every session of a user, and what applications hold for them; how many sessions there were. API keys stay. Raises Forbidden or NotFound."""
    user = user_find(ctx, user_id)
    with acting(ctx, "identity.user.sign_out", _about(user), target=EVERYWHERE):
        ended = sign_ins_end(ctx.db, user_lock(ctx.db, user.id).id)
        end_access(ctx.db, user_id=user.id)
        return ended


def sessions_of_user(ctx: Context, user_id: str) -> Sequence[UserSession]:
    """The sessions of a user, the latest first. Raises Forbidden or NotFound."""
    user = user_find(ctx, user_id)
    query = select(UserSession).where(UserSession.user_id == user.id, UserSession.expires_at > now())
    return ctx.db.scalars(query.order_by(UserSession.last_seen_at.desc())).all()


def tokens_of_user(ctx: Context, user_id: str) -> Sequence[ApiToken]:
    """The tokens of a user, without their secrets. Raises Forbidden or NotFound."""
    user = user_find(ctx, user_id)
    return ctx.db.scalars(select(ApiToken).where(ApiToken.user_id == user.id, ApiToken.role_id.is_(None)).order_by(ApiToken.created_at.desc())).all()


def taken_as(ctx: Context, username: str, email: str) -> str:
    """`username` or `email`, whichever another user or service account, or the portal itself, has already; empty if neither."""
    if username.lower() in RESERVED:
        return "username"
    same = or_(func.lower(User.username) == username.lower(), func.lower(User.email) == email.lower())
    taken = ctx.db.scalars(select(User.username).where(same)).first()
    return "" if taken is None else "username" if taken.lower() == username.lower() else "email"


def _check(user: User) -> None:
    problems = {}
    if not USERNAME.fullmatch(user.username):
        problems["username"] = [USERNAME_RULE]
    if not EMAIL.fullmatch(user.email) or not is_storable(user.email):
        problems["email"] = ["must be an e-mail address."]
    if user.platform_role not in PLATFORM_ROLES:
        problems["platform_role"] = [f"must be empty or one of {', '.join(r for r in PLATFORM_ROLES if r)}."]
    if problems:
        raise InvalidRequest.fields(problems)


def _refuse_higher(ctx: Context, platform_role: str | None) -> None:
    if platform_role:
        refuse_escalation(ctx, ROLES[platform_role].statements, None)


def keep_an_admin(ctx: Context) -> None:
    """Raise Conflict if nobody would be left to administer the platform, within the caller's transaction, which began with `admins_lock`."""
    ctx.db.flush()
    if is_last_admin(ctx, ""):
        raise Conflict("This is the last platform admin. Make somebody else platform admin first.")


def keep_project_admins(ctx: Context, user: User) -> None:
    """Raise Conflict if a project would be left without anybody who administers it, within the caller's transaction."""
    administers = select(Membership.project_id).where(Membership.user_id == user.id, Membership.role == "project_admin")
    others = (
        select(Membership.project_id)
        .join(Membership.user)
        .where(Membership.role == "project_admin", User.kind == PERSON, User.is_active.is_(True), User.id != user.id)
    )
    alone = select(Project.name).where(Project.id.in_(administers), Project.id.not_in(others), Project.deleted_at.is_(None)).order_by(Project.name)
    if names := ctx.db.scalars(alone.limit(4)).all():
        shown = f"{', '.join(names[:3])}{' and others' if len(names) > 3 else ''}"  # noqa: PLR2004 - a handful
        raise Conflict(f"{user.username} alone administers {shown}. Make somebody else project admin there first, or delete the project.")


def is_last_admin(ctx: Context, user_id: str) -> bool:
    """Whether nobody else is an active administrator of the platform."""
    others = select(User.id).where(User.platform_role == "platform_admin", User.is_active.is_(True), User.kind == PERSON, User.id != user_id)
    return ctx.db.scalars(others.limit(1)).first() is None


def _about(user: User) -> audit.Subject:
    return audit.Subject("identity.user", user.id, user.username[:255])
