"""Policies that people wrote, groups, and who holds what through them: tables, and the grants of one user.

Whatever changes them bumps one revision number, which comes with every credential that is looked up: what a process has compiled for a user is
used as long as the number is the same, and a change counts from the next request on, in every process.
"""

from collections import OrderedDict
from dataclasses import dataclass, replace
from datetime import datetime
from threading import Lock
from typing import Any

from sqlalchemy import ForeignKey, Index, String, and_, delete, func, or_, select, update
from sqlalchemy.orm import Mapped, Session, column_property, mapped_column, relationship

from portal.identity.models import Project
from portal.kernel import fields as f
from portal.kernel.authz import Access, compiled
from portal.kernel.context import Grant, Limit, Principal
from portal.kernel.db import Base, JsonColumn, UtcDateTime, now
from portal.kernel.ids import new_id
from portal.kernel.policy_documents import statements_in
from portal.kernel.resource import ProjectOwned, Shareable

PRINCIPAL_TYPES = ("user", "group")
GROUP_ROLES = ("", "project_admin", "developer", "viewer", "auditor")
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


class IamAttachment(Base):
    """A policy given to a user or a group."""

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


REVISION = select(IamState.revision).where(IamState.id == 1).scalar_subquery()


def bump(session: Session) -> None:
    """Say, within the caller's transaction, that policies or groups have changed."""
    session.execute(update(IamState).where(IamState.id == 1).values(revision=IamState.revision + 1))


def leave_project(session: Session, user_id: str, project_id: str) -> None:
    """Take from a user what groups and policies of a project gave, within the caller's transaction."""
    groups = select(IamGroup.id).where(IamGroup.project_id == project_id)
    policies = select(IamPolicy.id).where(IamPolicy.project_id == project_id)
    session.execute(delete(IamGroupMember).where(IamGroupMember.user_id == user_id, IamGroupMember.group_id.in_(groups)))
    mine = (IamAttachment.principal_type == "user", IamAttachment.principal_id == user_id)
    session.execute(delete(IamAttachment).where(*mine, IamAttachment.policy_id.in_(policies)))
    bump(session)


def forget_user(session: Session, user_id: str) -> None:
    """Take from a user every group and policy, within the caller's transaction."""
    session.execute(delete(IamGroupMember).where(IamGroupMember.user_id == user_id))
    session.execute(delete(IamAttachment).where(IamAttachment.principal_type == "user", IamAttachment.principal_id == user_id))
    bump(session)


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
