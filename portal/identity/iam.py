"""Policies that people wrote, groups, and who holds what through them: tables, and the grants of one user.

Whatever changes them bumps one revision number, which comes with every credential that is looked up: what a process has compiled for a user is
used as long as the number is the same, and a change counts from the next request on, in every process.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from threading import Lock
from typing import Any, cast

from sqlalchemy import ColumnElement, ForeignKey, Index, Select, String, Table, and_, delete, func, or_, select, update
from sqlalchemy.orm import Mapped, Session, column_property, mapped_column, relationship

from portal.identity.access import end_tokens
from portal.identity.models import ApiToken, Membership, Project, User
from portal.kernel import fields as f
from portal.kernel.authz import Access, compiled
from portal.kernel.context import Grant, Limit, Principal
from portal.kernel.db import Base, JsonColumn, UtcDateTime, now
from portal.kernel.ids import new_id
from portal.kernel.policy_documents import statements_in
from portal.kernel.resource import LIVE, ProjectOwned, Shareable

PRINCIPAL_TYPES = ("user", "group", "role")
GROUP_ROLES = ("", "project_admin", "developer", "viewer", "auditor")
CUSTOM, BUILTIN = "custom", "builtin"
MAX_ROLE_HOURS = 12
KEEP = 4096


class IamPolicy(Shareable, Base):
    """A policy document. In a project it counts there alone; without one, everywhere."""

    __tablename__ = "iam_policies"

    document: Mapped[dict[str, Any]] = f.field(f.Document(), label="Document", help="Version and Statement, as JSON.")
    number: Mapped[int] = f.field(f.Int(1, 2**31 - 1), label="Document version", default=1)

    versions: Mapped[list["IamPolicyVersion"]] = relationship(order_by="IamPolicyVersion.number.desc()")


class IamPolicyVersion(Base):
    """A document as it once was."""

    __tablename__ = "iam_policy_versions"

    policy_id: Mapped[str] = mapped_column(ForeignKey("iam_policies.id"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    document: Mapped[dict[str, Any]] = mapped_column(JsonColumn)
    username: Mapped[str] = mapped_column(String(255))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)


class IamGroup(ProjectOwned, Base):
    """Users of a project who hold the same role and policies."""

    __tablename__ = "iam_groups"

    role: Mapped[str] = f.field(f.Choice(GROUP_ROLES), label="Role", default="", help="Every member holds it in this project.")


class IamGroupMember(Base):
    """A user in a group."""

    __tablename__ = "iam_group_members"

    group_id: Mapped[str] = mapped_column(ForeignKey("iam_groups.id"), primary_key=True)
    user_id: Mapped[str] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), primary_key=True, index=True)
    # The provider whose groups put them in, as `sso:name`; empty if somebody here did.
    source: Mapped[str] = mapped_column(String(64), default="")
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)


IamGroup.members = column_property(
    select(func.count()).select_from(IamGroupMember).where(IamGroupMember.group_id == IamGroup.id).correlate_except(IamGroupMember).scalar_subquery()
)


class IamRole(Shareable, Base):
    """What whoever it trusts may do for a while in place of all else that they may. Those built in are of the platform, and are held, not assumed."""

    __tablename__ = "iam_roles"

    origin: Mapped[str] = f.field(f.Choice((CUSTOM, BUILTIN)), label="Origin", default=CUSTOM, filterable=True)
    trust_policy: Mapped[dict[str, Any]] = f.field(f.Document(), label="Trust", default=dict, help="Who may assume the role.")
    max_session_duration_hours: Mapped[int] = f.field(f.Int(1, MAX_ROLE_HOURS), label="Longest session", unit="h", default=1)

    attachments: Mapped[list["IamAttachment"]] = relationship(
        primaryjoin="and_(IamRole.id == IamAttachment.principal_id, IamAttachment.principal_type == 'role')",
        foreign_keys="IamAttachment.principal_id", order_by="IamAttachment.policy_id",
    )  # fmt: skip
    attached: Mapped[list["IamPolicy"]] = relationship(
        secondary="iam_attachments", primaryjoin="and_(IamRole.id == IamAttachment.principal_id, IamAttachment.principal_type == 'role')",
        secondaryjoin="and_(IamPolicy.id == IamAttachment.policy_id, IamPolicy.deleted_at.is_(None))", order_by="IamPolicy.name", viewonly=True,
        foreign_keys="[IamAttachment.principal_id, IamAttachment.policy_id]",
    )  # fmt: skip

    __table_args__ = (
        Index("uq_iam_roles_live_name", "project_id", "name", unique=True, sqlite_where=LIVE, postgresql_where=LIVE),
        Index("ix_iam_roles_page", "project_id", "deleted_at", "created_at", "id"),
    )

    @property
    def permission_policies(self) -> list[str]:
        """Ids of the policies that say what the role may do."""
        return [policy.id for policy in self.attached]

    @property
    def trusted(self) -> list[dict[str, str]]:
        """Whom it trusts: type and id of each."""
        return list(self.trust_policy.get("principals", ()))


class IamAttachment(Base):
    """A policy given to a user, a group or a role."""

    __tablename__ = "iam_attachments"

    id: Mapped[str] = mapped_column(String(64), primary_key=True, default=lambda: new_id("att"))
    policy_id: Mapped[str] = mapped_column(ForeignKey("iam_policies.id"))
    principal_type: Mapped[str] = mapped_column(String(16))
    principal_id: Mapped[str] = mapped_column(String(64))
    created_by: Mapped[str] = mapped_column(String(255), default="")
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)

    __table_args__ = (
        Index("uq_iam_attachments", "policy_id", "principal_type", "principal_id", unique=True),
        Index("ix_iam_attachments_principal", "principal_type", "principal_id"),
    )


class MfaRule(Base):
    """A role whose holders must use a second factor."""

    __tablename__ = "mfa_rules"

    role: Mapped[str] = mapped_column(String(32), primary_key=True)
    created_by: Mapped[str] = mapped_column(String(255))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)


class IamState(Base):
    """One row: how often anything about policies, groups and sign-in rules has changed."""

    __tablename__ = "iam_state"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    revision: Mapped[int] = mapped_column(default=0)


# Of the table and not of the model: a statement with a part of a model takes half as long again, and this one is asked with every request.
_STATE = cast("Table", IamState.__table__).c
REVISION = select(_STATE.revision).where(_STATE.id == 1).scalar_subquery()


def bump(session: Session) -> None:
    """Say, within the caller's transaction, that policies or groups have changed."""
    session.execute(update(IamState).where(IamState.id == 1).values(revision=IamState.revision + 1))


def leave_project(session: Session, user_id: str, project_id: str) -> None:
    """Take from a user what groups and policies of a project gave, within the caller's transaction, which says at its end that something changed."""
    groups = select(IamGroup.id).where(IamGroup.project_id == project_id)
    policies = select(IamPolicy.id).where(IamPolicy.project_id == project_id)
    session.execute(delete(IamGroupMember).where(IamGroupMember.user_id == user_id, IamGroupMember.group_id.in_(groups)))
    mine = (IamAttachment.principal_type == "user", IamAttachment.principal_id == user_id)
    session.execute(delete(IamAttachment).where(*mine, IamAttachment.policy_id.in_(policies)))
    # Whoever comes back is trusted again when somebody says so.
    roles = _distrust(session, user_id, IamRole.project_id == project_id)
    end_tokens(session, ApiToken.user_id == user_id, ApiToken.role_id.in_([role.id for role in roles]))


def _distrust(session: Session, principal_id: str, *these: ColumnElement[bool]) -> Sequence[IamRole]:
    """Take a user or a group out of the trust of these roles, which are locked by id; all of them."""
    roles = session.scalars(select(IamRole).where(IamRole.deleted_at.is_(None), *these).order_by(IamRole.id).with_for_update()).all()
    for role in roles:
        kept = [each for each in role.trusted if each["id"] != principal_id]
        if len(kept) < len(role.trusted):
            role.trust_policy, role.version = {**role.trust_policy, "principals": kept}, role.version + 1
    return roles


def leave_group(session: Session, group: IamGroup, *who: ColumnElement[bool]) -> Sequence[str]:
    """Take users out of a group, and out of what they do in roles by it, as `leave_project` does; their ids."""
    gone = session.scalars(delete(IamGroupMember).where(IamGroupMember.group_id == group.id, *who).returning(IamGroupMember.user_id)).all()
    for role in roles_trusting_group(session, group):
        end_untrusted(session, role)
    return gone


def end_untrusted(session: Session, role: IamRole) -> None:
    """End the sessions of whom a role does not trust, within the caller's transaction: nobody comes back into theirs by being trusted again."""
    end_tokens(session, ApiToken.role_id == role.id, ApiToken.user_id.not_in(_trusted(role)))


def forget_user(session: Session, user_id: str) -> None:
    """Take from a user every group, policy, role's trust and token, within the caller's transaction."""
    session.execute(delete(IamGroupMember).where(IamGroupMember.user_id == user_id))
    session.execute(delete(IamAttachment).where(IamAttachment.principal_type == "user", IamAttachment.principal_id == user_id))
    _distrust(session, user_id, IamRole.project_id.in_(select(Membership.project_id).where(Membership.user_id == user_id)))
    end_tokens(session, ApiToken.user_id == user_id)
    bump(session)


def forget_group(session: Session, group: IamGroup) -> None:
    """Take everybody out of a group, and the group out of the trust of roles, with the sessions that came by it, within the caller's transaction."""
    session.execute(delete(IamGroupMember).where(IamGroupMember.group_id == group.id))
    session.execute(delete(IamAttachment).where(IamAttachment.principal_type == "group", IamAttachment.principal_id == group.id))
    for role in _distrust(session, group.id, IamRole.id.in_([role.id for role in roles_trusting_group(session, group)])):
        end_untrusted(session, role)
    bump(session)


def groups_of(session: Session, user_id: str) -> Sequence[IamGroup]:
    """The groups that a user is in, by name."""
    query = select(IamGroup).join(IamGroupMember, IamGroupMember.group_id == IamGroup.id)
    return session.scalars(query.where(IamGroupMember.user_id == user_id, IamGroup.deleted_at.is_(None)).order_by(IamGroup.name, IamGroup.id)).all()


def grants_of(session: Session, user_id: str) -> tuple[Grant, ...]:
    """What a user holds through groups and attached policies."""
    groups = session.execute(
        select(IamGroup.id, IamGroup.name, IamGroup.role, IamGroup.project_id)
        .join(IamGroupMember, IamGroupMember.group_id == IamGroup.id)
        .where(IamGroupMember.user_id == user_id, IamGroup.deleted_at.is_(None))
    ).all()
    found = [Grant(role, project_id, via=f"group {name}") for _, name, role, project_id in groups if role]
    names = {group_id: name for group_id, name, _, _ in groups}
    of_user = and_(IamAttachment.principal_type == "user", IamAttachment.principal_id == user_id)
    of_groups = and_(IamAttachment.principal_type == "group", IamAttachment.principal_id.in_(names))
    policies = session.execute(
        select(IamPolicy, IamAttachment.principal_type, IamAttachment.principal_id)
        .join(IamAttachment, IamAttachment.policy_id == IamPolicy.id)
        .where(or_(of_user, of_groups), IamPolicy.deleted_at.is_(None))
        .order_by(IamPolicy.id, IamAttachment.principal_id)
    ).all()
    for policy, kind, holder in policies:
        via = f"group {names[holder]}" if kind == "group" else "attached"
        found.append(Grant(policy.id, policy.project_id, policy.name, statements_in(policy.document), via))
    return tuple(found)


def role_grants(session: Session, *roles: IamRole) -> tuple[Grant, ...]:
    """What roles may do, in all."""
    return tuple(grant for grants in grants_by_role(session, roles).values() for grant in grants)


def grants_by_role(session: Session, roles: Sequence[IamRole]) -> dict[str, tuple[Grant, ...]]:
    """What each of some roles may do, by its id: its policies, in the role's own project whatever else they count in."""
    mine = {role.id: role for role in roles}
    found: dict[str, tuple[Grant, ...]] = dict.fromkeys(mine, ())
    if not roles:
        return found
    rows = session.execute(
        select(IamPolicy.id, IamPolicy.name, IamPolicy.document, IamAttachment.principal_id)
        .join(IamAttachment, IamAttachment.policy_id == IamPolicy.id)
        .where(IamAttachment.principal_type == "role", IamAttachment.principal_id.in_(mine), IamPolicy.deleted_at.is_(None))
        .order_by(IamPolicy.id, IamAttachment.principal_id)
    )
    for row in rows:
        role = mine[row.principal_id]
        found[role.id] += (Grant(row.id, role.project_id, row.name, statements_in(row.document), f"role {role.name}"),)
    return found


def _trusted(role: IamRole) -> Select[str]:
    """Ids of the members of its project that a role trusts, by name or through a group."""
    ids = [each["id"] for each in role.trusted if each["type"] != "group"]
    groups = [each["id"] for each in role.trusted if each["type"] == "group"]
    live = select(IamGroup.id).where(IamGroup.id.in_(groups), IamGroup.deleted_at.is_(None))
    in_groups = select(IamGroupMember.user_id).where(IamGroupMember.group_id.in_(live))
    named = or_(Membership.user_id.in_(ids), Membership.user_id.in_(in_groups))
    return select(Membership.user_id).where(Membership.project_id == role.project_id, named)


def is_trusted(session: Session, role: IamRole, user_id: str) -> bool:
    """Whether a role trusts a user or service account of its project, by name or through a group."""
    return bool(role.trusted) and session.scalar(_trusted(role).where(Membership.user_id == user_id)) is not None


def trusted_by(session: Session, roles: Sequence[IamRole]) -> dict[str, set[str]]:
    """The ids of the active users and service accounts that may assume each of some roles, by the role's id."""
    if not any(role.trusted for role in roles):
        return {role.id: set() for role in roles}
    groups = {each["id"] for role in roles for each in role.trusted if each["type"] == "group"}
    members = select(Membership.project_id, Membership.user_id).join(User, User.id == Membership.user_id)
    members = members.where(User.is_active.is_(True), Membership.project_id.in_({role.project_id for role in roles}))
    in_groups = select(IamGroupMember.group_id, IamGroupMember.user_id).join(IamGroup, IamGroup.id == IamGroupMember.group_id)
    rows = [*session.execute(members), *session.execute(in_groups.where(IamGroup.id.in_(groups), IamGroup.deleted_at.is_(None)))]
    inside: dict[str, set[str]] = {}
    for place, user_id in rows:
        inside.setdefault(place, set()).add(user_id)
    return {
        role.id: inside.get(str(role.project_id), set())
        & {user_id for each in role.trusted for user_id in (inside.get(each["id"], ()) if each["type"] == "group" else (each["id"],))}
        for role in roles
    }


def running(*these: ColumnElement[bool]) -> Select[ApiToken]:
    """The sessions that run in roles; whatever ends one deletes its row, but time."""
    return select(ApiToken).where(ApiToken.role_id.is_not(None), ApiToken.expires_at > now(), *these)


def sessions_in(session: Session, role: IamRole, *these: ColumnElement[bool]) -> list[tuple[ApiToken, User]]:
    """The sessions that run in a role, or some of them, newest first, each with whose it is."""
    query = running(ApiToken.role_id == role.id, *these).join(User, User.id == ApiToken.user_id).add_columns(User)
    return [(row[0], row[1]) for row in session.execute(query.order_by(ApiToken.created_at.desc(), ApiToken.id))]


def roles_trusting(session: Session, user_id: str) -> list[IamRole]:
    """The roles that a user or service account may assume."""
    projects = select(Membership.project_id).where(Membership.user_id == user_id)
    rows = session.scalars(select(IamRole).where(IamRole.project_id.in_(projects), IamRole.deleted_at.is_(None)).order_by(IamRole.id)).all()
    mine = {("group", group.id) for group in groups_of(session, user_id)} if rows else set()
    return [role for role in rows if any(each["id"] == user_id or (each["type"], each["id"]) in mine for each in role.trusted)]


def roles_trusting_group(session: Session, group: IamGroup) -> list[IamRole]:
    """The roles that whoever is in a group may assume."""
    rows = session.scalars(select(IamRole).where(IamRole.project_id == group.project_id, IamRole.deleted_at.is_(None)).order_by(IamRole.id))
    return [role for role in rows.all() if any(each == {"type": "group", "id": group.id} for each in role.trusted)]


def boundaries(session: Session) -> tuple[Limit, ...]:
    """What limits everybody in the projects that have a permission boundary."""
    rows = session.execute(
        select(Project.id, Project.name, IamPolicy.document).join(IamPolicy, IamPolicy.id == Project.boundary_policy_id).order_by(Project.id)
    )
    return tuple(Limit(f"The permission boundary of project {row.name}", statements_in(row.document), row.id) for row in rows)


@dataclass(frozen=True, slots=True)
class Held:
    """What a principal holds in all, compiled, and whether a role among it asks for a second factor."""

    grants: tuple[Grant, ...]
    access: Access
    needs_factor: bool


class _Known:
    """What has been compiled for whom, the longest unused forgotten first."""

    def __init__(self) -> None:
        self._found: OrderedDict[tuple[object, ...], Held] = OrderedDict()
        self._lock = Lock()

    def get(self, key: tuple[object, ...]) -> Held | None:
        with self._lock:
            if key in self._found:
                self._found.move_to_end(key)
            return self._found.get(key)

    def put(self, key: tuple[object, ...], value: Held) -> None:
        with self._lock:
            self._found[key] = value
            while len(self._found) > KEEP:
                self._found.popitem(last=False)


_known = _Known()


def with_role(session: Session, principal: Principal, role: IamRole, revision: int | None) -> Principal:
    """Whoever assumed a role with what the role may do, compiled, and nothing else; kept until the revision changes."""
    key = (principal.user_id, revision, role.id)
    known = _known.get(key)
    if known is None:
        whole = replace(principal, grants=role_grants(session, role), limits=boundaries(session))
        known = Held(whole.grants, compiled(whole), needs_factor=False)
        _known.put(key, known)
    return replace(principal, grants=known.grants, access=known.access)


def with_access(session: Session, principal: Principal, revision: int | None) -> Principal:
    """The principal with everything they hold, compiled; kept until the revision changes."""
    key = (principal.user_id, revision, principal.grants, principal.limits)
    known = _known.get(key)
    if known is None:
        more = grants_of(session, principal.user_id) if principal.user_id else ()
        whole = replace(principal, grants=(*principal.grants, *more), limits=(*principal.limits, *boundaries(session)))
        required = set(session.scalars(select(MfaRule.role)))
        known = Held(whole.grants, compiled(whole), any(grant.role in required for grant in whole.grants))
        _known.put(key, known)
    return replace(principal, grants=known.grants, access=known.access, needs_factor=known.needs_factor)
