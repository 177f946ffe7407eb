"""Users whom a provider vouches for: who they are here, what their groups there give them here, and the end of their sessions."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, ForeignKey, String, UniqueConstraint, and_, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Mapped, mapped_column

from portal.identity import factors, sign_in
from portal.identity.access import admins_lock, end_sessions, user_lock
from portal.identity.accounts import oneself, require_person, session_renew
from portal.identity.iam import IamGroup, IamGroupMember, bump, leave_group, leave_project
from portal.identity.models import Challenge, Membership, Project, User, UserSession, digest
from portal.identity.projects import PROJECT_ROLES
from portal.identity.providers import Claims, Provider
from portal.identity.sealed import seal
from portal.identity.sign_in import Proof, Step
from portal.identity.users import EMAIL, RESERVED, USERNAME, is_last_admin, keep_an_admin
from portal.kernel import audit
from portal.kernel.context import Context, Principal
from portal.kernel.db import Base, UtcDateTime, insert_of, now, transaction
from portal.kernel.errors import Conflict, NotFound, Unauthorized
from portal.kernel.ids import is_storable, new_id, storable
from portal.kernel.operations import acting
from portal.kernel.projects import is_open

TRIES = 3
# How long a logout token may be taken beyond its end, and how long one is remembered at most.
LEEWAY_S, REMEMBERED_S = 60.0, 30 * 86_400.0


class Identity(Base):
    """Somebody at a provider who is a user here. Who it is, is told by issuer and subject; names and addresses there may change hands."""

    __tablename__ = "identities"

    id: Mapped[str] = mapped_column(String(64), primary_key=True, default=lambda: new_id("idn"))
    user_id: Mapped[str] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), index=True)
    provider: Mapped[str] = mapped_column(String(64))
    issuer: Mapped[str] = mapped_column(String(255))
    subject: Mapped[str] = mapped_column(String(255))
    email: Mapped[str] = mapped_column(String(254), default="")
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)
    last_used_at: Mapped[datetime | None] = mapped_column(UtcDateTime)

    __table_args__ = (UniqueConstraint("issuer", "subject"),)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a provider's groups give: the role on the platform, roles by project, and groups."""

    platform_role: str
    roles: dict[str, str]
    groups: frozenset[str]


def enter(ctx: Context, provider: Provider, claims: Claims, id_token: str = "") -> Step:
    """Sign in whoever a provider vouches for, as a new user if they are none yet. Raises Unauthorized."""
    if not claims.subject or not is_storable(claims.subject):
        raise Unauthorized(f"{provider.label} did not say who you are.")
    ctx.principal = Principal(None, provider.method, "sso")
    for left in reversed(range(TRIES)):
        try:
            with transaction(ctx.db):
                known = _known(ctx, claims)
                if any(rule.platform_role for rule in provider.groups) or (known and known.role_source == provider.method):
                    admins_lock(ctx.db)
                user = _user(ctx, provider, claims, known)
                _follow_groups(ctx, provider, claims, user)
            break
        except IntegrityError:
            # Two first sign-ins at once, or a name that was taken a moment ago: look again.
            if not left:
                raise
    sealed = seal(ctx.settings, id_token) if id_token else ""
    return sign_in.enter(ctx, user, Proof(provider.method, mfa=claims.mfa, provider_sid=claims.sid, sealed_id_token=sealed))


def _known(ctx: Context, claims: Claims) -> User | None:
    return ctx.db.scalars(select(User).join(Identity, Identity.user_id == User.id).where(_is_of(claims))).first()


def _is_of(claims: Claims) -> ColumnElement[bool]:
    return and_(Identity.issuer == claims.issuer, Identity.subject == claims.subject)


def _user(ctx: Context, provider: Provider, claims: Claims, known: User | None) -> User:
    user = _new_user(ctx, provider, claims) if known is None else user_lock(ctx.db, known.id)
    # Looked for with the user locked: the link may have been taken away meanwhile.
    identity = ctx.db.scalars(select(Identity).where(_is_of(claims), Identity.user_id == user.id)).first()
    if identity is None and known is not None:
        raise Unauthorized(f"Your link with {provider.label} was taken away a moment ago.")
    if identity is None:
        identity = Identity(user_id=user.id, provider=provider.name, issuer=claims.issuer, subject=claims.subject)
        ctx.db.add(identity)
    identity.email, identity.last_used_at = storable(claims.email), now()
    ctx.db.flush()
    return user


def _new_user(ctx: Context, provider: Provider, claims: Claims) -> User:
    if not provider.new_users:
        raise Unauthorized(f"{provider.label} vouches for you, but you have no account here. Ask an administrator for one.")
    email = claims.email if EMAIL.fullmatch(claims.email) and is_storable(claims.email) else f"{new_id('sso')}@{provider.name}.invalid"
    if ctx.db.scalar(select(User.id).where(User.email.ilike(email.replace("%", r"\%").replace("_", r"\_"), escape="\\"))) is not None:
        raise Unauthorized(
            f"There is an account here with the e-mail address that {provider.label} gave. Sign in to it and link {provider.label} under Account."
        )
    user = User(id=new_id("usr"), username=_free_name(ctx, claims), email=email, memberships=[])
    ctx.db.add(user)
    ctx.db.flush()
    details = {"provider": provider.name, "issuer": claims.issuer, "subject": claims.subject}
    audit.record(ctx, "identity.user.create", audit.Subject("identity.user", user.id, user.username), details=details)
    return user


def _free_name(ctx: Context, claims: Claims) -> str:
    wish = re.sub(r"[^A-Za-z0-9._-]", "-", claims.username or claims.email.partition("@")[0]).lstrip("._-")[:140]
    wish = wish if USERNAME.fullmatch(wish) and wish.lower() not in RESERVED else "user"
    taken = set(ctx.db.scalars(select(User.username).where(User.username.istartswith(wish, autoescape=True))))
    names = (wish, *(f"{wish}-{number}" for number in range(2, len(taken) + 3)))
    return next(name for name in names if name.lower() not in {each.lower() for each in taken})


def _follow_groups(ctx: Context, provider: Provider, claims: Claims, user: User) -> None:
    """Make what the provider once gave the user what it gives now; what people here gave stays as it is."""
    before = _given(ctx, provider, user)
    wanted = _without_own(ctx, provider, user, _wanted(ctx, provider, claims))
    if wanted == before:
        return
    _set_roles(ctx, provider, user, wanted.roles)
    for group in ctx.db.scalars(select(IamGroup).where(IamGroup.id.in_(before.groups - wanted.groups)).order_by(IamGroup.id)).all():
        leave_group(ctx.db, group, IamGroupMember.user_id == user.id)
    for group_id in sorted(wanted.groups - before.groups):
        if ctx.db.get(IamGroupMember, (group_id, user.id)) is None:
            ctx.db.add(IamGroupMember(group_id=group_id, user_id=user.id, source=provider.method))
    if wanted.platform_role != before.platform_role:
        user.platform_role, user.role_source = wanted.platform_role, provider.method if wanted.platform_role else ""
        keep_an_admin(ctx)
    bump(ctx.db)
    ctx.db.refresh(user, ["memberships"])
    details = {"provider": provider.name, "before": _plain(before), "after": _plain(wanted)}
    audit.record(ctx, "identity.user.follow_groups", audit.Subject("identity.user", user.id, user.username), details=details)


def _wanted(ctx: Context, provider: Provider, claims: Claims) -> Wanted:
    mine = [rule for rule in provider.groups if rule.group in claims.groups]
    projects = dict(ctx.db.execute(select(Project.name, Project.id).where(Project.name.in_({rule.project for rule in mine if rule.project}))).all())
    roles: dict[str, str] = {}
    for rule in mine:
        if rule.role and (project_id := projects.get(rule.project)) is not None:
            roles[project_id] = min(rule.role, roles.get(project_id, rule.role), key=PROJECT_ROLES.index)
    named = {(projects[rule.project], rule.iam_group) for rule in mine if rule.iam_group and rule.project in projects}
    found = ctx.db.execute(
        select(IamGroup.id, IamGroup.project_id, IamGroup.name).where(IamGroup.project_id.in_({p for p, _ in named}), IamGroup.deleted_at.is_(None))
    )
    groups = frozenset(row.id for row in found if (row.project_id, row.name) in named)
    platform = sorted({rule.platform_role for rule in mine if rule.platform_role}, key=("platform_admin", "auditor").index)
    return Wanted(platform[0] if platform else "", roles, groups)


def _given(ctx: Context, provider: Provider, user: User) -> Wanted:
    rows = ctx.db.execute(select(Membership.project_id, Membership.role).where(Membership.user_id == user.id, Membership.source == provider.method))
    groups = ctx.db.scalars(select(IamGroupMember.group_id).where(IamGroupMember.user_id == user.id, IamGroupMember.source == provider.method))
    return Wanted(user.platform_role if user.role_source == provider.method else "", {row.project_id: row.role for row in rows}, frozenset(groups))


def _without_own(ctx: Context, provider: Provider, user: User, wanted: Wanted) -> Wanted:
    """What of it is not given by people here already, or by another provider; and the last administrator of the platform stays one."""
    other = Membership.user_id == user.id, Membership.source != provider.method
    mine = set(ctx.db.scalars(select(Membership.project_id).where(*other)))
    in_groups = set(
        ctx.db.scalars(select(IamGroupMember.group_id).where(IamGroupMember.user_id == user.id, IamGroupMember.source != provider.method))
    )
    platform_role = "" if user.platform_role and user.role_source != provider.method else wanted.platform_role
    if user.role_source == provider.method and user.platform_role == "platform_admin" and is_last_admin(ctx, user.id):
        platform_role = user.platform_role
    return Wanted(platform_role, {p: r for p, r in wanted.roles.items() if p not in mine}, wanted.groups - in_groups)


def _set_roles(ctx: Context, provider: Provider, user: User, roles: dict[str, str]) -> None:
    have = {row.project_id: row for row in ctx.db.scalars(select(Membership).where(Membership.user_id == user.id).with_for_update(of=Membership))}
    for project_id, row in have.items():
        if row.source == provider.method and project_id not in roles:
            ctx.db.delete(row)
            leave_project(ctx.db, user.id, project_id)
        elif row.source == provider.method:
            row.role = roles[project_id]
    # A project that is being deleted takes nobody in.
    for project_id in [each for each in roles.keys() - have.keys() if is_open(ctx.db, each)]:
        ctx.db.add(Membership(user_id=user.id, project_id=project_id, role=roles[project_id], source=provider.method))


def _plain(wanted: Wanted) -> dict[str, object]:
    return {"platform_role": wanted.platform_role, "roles": wanted.roles, "groups": sorted(wanted.groups)}


# -- the own account ---------------------------------------------------------------------------------------------------------------------------


def identities_of(ctx: Context, user_id: str = "") -> Sequence[Identity]:
    """Where else a user signs in, the caller unless named."""
    return ctx.db.scalars(select(Identity).where(Identity.user_id == (user_id or ctx.principal.user_id)).order_by(Identity.created_at)).all()


def identity_link(ctx: Context, provider: Provider, claims: Claims) -> None:
    """Let the caller sign in as whom the provider vouches for, too. Raises Conflict if that is a user here already."""
    require_person(ctx)
    with acting(ctx, "identity.link.create", oneself(ctx), details={"provider": provider.name, "subject": claims.subject}):
        taken = ctx.db.scalar(select(Identity.user_id).where(_is_of(claims)))
        if taken is not None:
            mine = "is linked already" if taken == ctx.principal.user_id else "belongs to another user here"
            raise Conflict(f"This account of {provider.label} {mine}.")
        user_id, email = str(ctx.principal.user_id), storable(claims.email)
        ctx.db.add(Identity(user_id=user_id, provider=provider.name, issuer=claims.issuer, subject=claims.subject, email=email))


def identity_unlink(ctx: Context, identity_id: str) -> None:
    """End that. Raises NotFound, or Conflict where the caller could not sign in any more."""
    require_person(ctx)
    with acting(ctx, "identity.link.delete", oneself(ctx), details={"identity": identity_id[:64]}):
        user = user_lock(ctx.db, ctx.principal.user_id)
        mine = identities_of(ctx)
        found = next((row for row in mine if row.id == identity_id), None)
        if found is None:
            raise NotFound("There is no such link of yours.")
        if len(mine) == 1 and not user.password_hash and not factors.devices_of(ctx.db, user.id, factors.PASSKEY):
            raise Conflict("This is your only way to sign in. Link another provider or add a passkey first.")
        ctx.db.delete(found)


def confirm_by(ctx: Context, provider: Provider, claims: Claims) -> str:
    """Take a fresh sign-in at a linked provider as proof of who the caller is. The session's new secret. Raises Unauthorized if it was somebody else."""
    if ctx.db.scalar(select(Identity.id).where(_is_of(claims), Identity.user_id == ctx.principal.user_id)) is None:
        raise Unauthorized(f"You signed in at {provider.label} as somebody who is not linked to this account.")
    with transaction(ctx.db):
        return session_renew(ctx, is_factor=claims.mfa)


@dataclass(frozen=True, slots=True)
class LogoutToken:
    """What a provider says is over: a session by its name there (`sid`), or all of a subject. The token is good once, until it expires (in seconds)."""

    subject: str
    sid: str
    token_id: str
    expires_at_s: float


def sessions_end(ctx: Context, provider: Provider, said: LogoutToken) -> int:
    """End the sessions that a provider says are over; how many there were. Raises Unauthorized for a token that was used before."""
    ctx.principal = Principal(None, provider.method, "sso")
    these = [UserSession.method == provider.method]
    if said.sid:
        these.append(UserSession.provider_sid == said.sid)
    if said.subject:
        users = select(Identity.user_id).where(Identity.issuer == provider.issuer, Identity.subject == said.subject)
        these.append(UserSession.user_id.in_(users))
    with transaction(ctx.db):
        _use_up(ctx, provider, said)
        rows = end_sessions(ctx.db, *these)
        for row in rows:
            user = ctx.db.get_one(User, row.user_id)
            about = audit.Subject("identity.user", user.id, user.username)
            audit.record(ctx, "identity.session.delete", about, details={"session": row.session_id, "provider": provider.name})
    return len(rows)


def _use_up(ctx: Context, provider: Provider, said: LogoutToken) -> None:
    values = {
        "id_hash": digest(f"{provider.issuer} {said.token_id}"), "purpose": "logout-token", "challenge": "", "method": provider.method[:64],
        "provider_sid": "", "sealed_id_token": "", "tries": 0,
        "expires_at": now() + timedelta(seconds=min(max(0.0, said.expires_at_s - now().timestamp()) + LEEWAY_S, REMEMBERED_S)),
    }  # fmt: skip
    taken = insert_of(ctx.db)(Challenge).values(values).on_conflict_do_nothing().returning(Challenge.id_hash)
    if ctx.db.scalar(taken) is None:
        raise Unauthorized("This logout token was used before.")
