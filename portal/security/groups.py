"""Groups: users of a project who hold the same role and the same policies."""

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any

from sqlalchemy import select

from portal.identity import iam
from portal.identity.iam import IamAttachment, IamGroup, IamGroupMember, IamPolicy
from portal.identity.models import Membership, User
from portal.kernel import fields as f
from portal.kernel.authz import ROLES, refuse_escalation, refuse_relief
from portal.kernel.context import Context
from portal.kernel.declare import Effect, operation, update_operation
from portal.kernel.errors import Conflict, InvalidRequest
from portal.kernel.ids import storable
from portal.kernel.policy import Statement
from portal.kernel.policy_documents import statements_in
from portal.kernel.resource import Column, ResourceType
from portal.security.bounds import refuse_excess

MEMBER = f.FieldInfo(f.Line(254, min_length=1), "User", "Name or id of a member of the project.")


def _of_role(role: str) -> tuple[Statement, ...]:
    return ROLES[role].statements if role else ()


@operation(IamGroup, "create", label="Create", needs="manage", effect=Effect.CREATE)
def group_create(ctx: Context, *, name: str, role: str = "", description: str = "", tags: dict[str, str] | None = None) -> IamGroup:
    """Make a group without members."""
    refuse_escalation(ctx, _of_role(role), ctx.project_id)
    return IamGroup(name=name, role=role, description=description, tags=tags or {})


def _before_update(ctx: Context, group: Any, changes: dict[str, Any]) -> None:
    """A role that is given must be held; who holds what is looked at anew."""
    refuse_escalation(ctx, _of_role(changes.get("role", "")), group.project_id)
    iam.bump(ctx.db)


def _policies_of(ctx: Context, group: IamGroup) -> Sequence[IamPolicy]:
    query = select(IamPolicy).join(IamAttachment, IamAttachment.policy_id == IamPolicy.id)
    return ctx.db.scalars(query.where(IamAttachment.principal_type == "group", IamAttachment.principal_id == group.id)).all()


def _refuse_relief(ctx: Context, group: IamGroup) -> None:
    for policy in _policies_of(ctx, group):
        refuse_relief(ctx, statements_in(policy.document), policy.project_id)


@operation(IamGroup, "add_member", label="Add member", needs="manage", icon="plus")
def group_add_member(ctx: Context, group: IamGroup, *, user: Annotated[str, MEMBER]) -> None:
    """Put a member of the project into the group; what the group holds, they hold."""
    refuse_escalation(ctx, _of_role(group.role), group.project_id)
    for policy in _policies_of(ctx, group):
        refuse_escalation(ctx, statements_in(policy.document), policy.project_id)
    for grant in iam.role_grants(ctx.db, *iam.roles_trusting_group(ctx.db, group)):
        refuse_escalation(ctx, grant.statements, grant.project_id)
    found = _user(ctx, group, user)
    ctx.inputs = {**ctx.inputs, "user": found.id}
    if ctx.db.get(IamGroupMember, (group.id, found.id)) is not None:
        raise Conflict(f"{found.username} is in {group.name} already.")
    ctx.db.add(IamGroupMember(group_id=group.id, user_id=found.id))
    iam.bump(ctx.db)
    refuse_excess(ctx, [found.id])


@operation(IamGroup, "remove_member", label="Remove member", needs="manage", icon="x")
def group_remove_member(ctx: Context, group: IamGroup, *, user: Annotated[str, MEMBER]) -> None:
    """Take a user out of the group, by somebody who is free of what the group's policies deny."""
    _refuse_relief(ctx, group)
    text = storable(user)
    users = select(User.id).where((User.id == text) | (User.username == text))
    if not (gone := iam.leave_group(ctx.db, group, IamGroupMember.user_id.in_(users))):
        raise InvalidRequest.fields({"user": [f"{user[:80]} is not in {group.name}."]})
    ctx.inputs = {**ctx.inputs, "user": gone[0]}
    iam.bump(ctx.db)


def group_members(ctx: Context, group: IamGroup) -> Sequence[tuple[User, datetime]]:
    """Who is in a group, and since when, by name."""
    query = select(User, IamGroupMember.created_at).join(IamGroupMember, IamGroupMember.user_id == User.id).where(IamGroupMember.group_id == group.id)
    return [(user, at) for user, at in ctx.db.execute(query.order_by(User.username))]


def _user(ctx: Context, group: IamGroup, named: str) -> User:
    text = storable(named)
    members = select(Membership.user_id).where(Membership.project_id == group.project_id)
    found = ctx.db.scalars(select(User).where((User.id == text) | (User.username == text), User.id.in_(members))).first()
    if found is None:
        raise InvalidRequest.fields({"user": [f"There is no member {named[:80]} of this project. Add them to the project first."]})
    return found


@operation(IamGroup, "delete", label="Delete", needs="manage", effect=Effect.REMOVE, icon="trash", danger=True)
def group_delete(ctx: Context, group: IamGroup) -> None:
    """Delete a group; its members lose what they held through it, and are free of what it denied them."""
    _refuse_relief(ctx, group)
    iam.forget_group(ctx.db, group)


group_update = update_operation(IamGroup, needs="manage", also=("role",), before=_before_update)
GROUP = ResourceType(
    IamGroup, service="security", name="group", collection="groups", prefix="grp", label="Group", plural="Groups", icon="users",
    summary="Users who hold the same role and the same policies.",
    operations=[group_create, group_update, group_add_member, group_remove_member, group_delete],
    columns=[Column("name", "Name", sort="name"), Column("role_name", "Role", css="md"), Column("members", "Members", css="num"),
             Column("created_at", "Created", sort="created_at", css="lo")],
    show={"role_name": lambda v: ROLES[v.role].label if v.role else "", "members": lambda v: v.members},
)  # fmt: skip
