"""IAM policies: documents that people write, their versions, and to whom they are given.

Nobody gives what they do not have: whoever writes, changes, attaches or joins must hold every allowed action without condition where it counts.
"""

from typing import Annotated, Any

from sqlalchemy import func, select

from portal.identity import iam
from portal.identity.iam import PRINCIPAL_TYPES, IamAttachment, IamGroup, IamPolicy, IamPolicyVersion, IamRole
from portal.identity.models import Membership, Project, User
from portal.kernel import fields as f
from portal.kernel.authz import Target, decide, refuse_escalation, refuse_relief
from portal.kernel.context import Context
from portal.kernel.declare import Created, Effect, operation, update_operation
from portal.kernel.errors import Conflict, InvalidRequest
from portal.kernel.ids import storable
from portal.kernel.policy import Statement
from portal.kernel.policy_documents import VERSION, PolicyError, parse, statements_in
from portal.kernel.resource import Column, ResourceType
from portal.security.bounds import holders_by, holders_through, refuse_excess

EXAMPLE = {
    "Version": VERSION,
    "Statement": [
        {
            "Sid": "OperateTests", "Effect": "Allow", "Action": ["compute.instance.start", "compute.instance.stop"], "Resource": ["compute.instance/*"],
            "Condition": {"StringEquals": {"resource.tag/env": ["test"]}},
        }
    ],
}  # fmt: skip
DOCUMENT = f.FieldInfo(f.Document(), "Document", "Version and Statement, as JSON. The example is yours to change.", example=EXAMPLE)
WHOLE_PLATFORM = f.FieldInfo(f.Bool(), "Whole platform", "Counts in every project, not only in this one. For platform admins.")
# Service accounts are users of their project, and their attachments are listed as users'.
KIND = f.FieldInfo(f.Choice((*PRINCIPAL_TYPES, "service_account")), "Kind")
WHO = f.FieldInfo(f.Line(255, min_length=1), "User, group or role", "Name or id.")
NUMBER = f.FieldInfo(f.Int(1, 2**31 - 1), "Document version")


def checked(ctx: Context, document: dict[str, Any]) -> tuple[Statement, ...]:
    """The statements of a document. Raises InvalidRequest with the path to each error."""
    try:
        return parse(document, ctx.registry.permissions)
    except PolicyError as error:
        raise InvalidRequest.fields(
            {"document": [f"{each.path}: {each.message}" if each.path else each.message for each in error.problems]}
        ) from None


@operation(IamPolicy, "create", label="Create", needs="manage", effect=Effect.CREATE)
def policy_create(
    ctx: Context, *, name: str, document: Annotated[dict[str, Any], DOCUMENT], whole_platform: Annotated[bool, WHOLE_PLATFORM] = False,
    description: str = "", tags: dict[str, str] | None = None,
) -> Created:  # fmt: skip
    """Write a policy. It does nothing until it is attached."""
    statements = checked(ctx, document)
    if whole_platform and not decide(ctx, "security.policy.create", Target(None)).allowed:
        raise InvalidRequest.fields({"whole_platform": ["Only a platform admin writes policies for the whole platform."]})
    refuse_escalation(ctx, statements, None if whole_platform else ctx.project_id)
    first = IamPolicyVersion(number=1, document=document, username=ctx.principal.username)
    policy = IamPolicy(name=name, description=description, document=document, tags=tags or {}, number=1, versions=[first])
    return Created([policy], everywhere=whole_platform)


def _before_update(ctx: Context, policy: Any, changes: dict[str, Any]) -> None:
    """A changed document is a new version and counts at once, and who changes it must hold all that it allows."""
    iam.bump(ctx.db)
    if "document" in changes:
        _keep_version(ctx, policy, changes["document"])


def _keep_version(ctx: Context, policy: IamPolicy, document: dict[str, Any]) -> None:
    refuse_escalation(ctx, checked(ctx, document), policy.project_id)
    refuse_relief(ctx, statements_in(policy.document), policy.project_id)
    policy.number += 1
    policy.document = document
    ctx.db.add(IamPolicyVersion(policy_id=policy.id, number=policy.number, document=document, username=ctx.principal.username))
    refuse_excess(ctx, holders_through(ctx, policy))


@operation(IamPolicy, "restore", label="Restore version", needs="manage", icon="redo")
def policy_restore(ctx: Context, policy: IamPolicy, *, number: Annotated[int, NUMBER]) -> None:
    """Make an earlier version of the document the newest one."""
    version = ctx.db.get(IamPolicyVersion, (policy.id, number))
    if version is None:
        raise InvalidRequest.fields({"number": [f"There is no version {number}; the newest is {policy.number}."]})
    iam.bump(ctx.db)
    _keep_version(ctx, policy, version.document)


@operation(IamPolicy, "attach", label="Attach", needs="manage", icon="plus")
def policy_attach(ctx: Context, policy: IamPolicy, *, principal_type: Annotated[str, KIND], principal_id: Annotated[str, WHO]) -> None:
    """Give the policy to a user, a group or a role."""
    refuse_escalation(ctx, statements_in(policy.document), policy.project_id)
    principal_type = "user" if principal_type == "service_account" else principal_type
    holder = _holder(ctx, policy, principal_type, principal_id)
    ctx.inputs = {**ctx.inputs, "principal_id": holder}
    known = (IamAttachment.policy_id == policy.id, IamAttachment.principal_type == principal_type, IamAttachment.principal_id == holder)
    if ctx.db.scalars(select(IamAttachment.id).where(*known)).first() is not None:
        raise Conflict(f"{policy.name} is attached to {principal_id} already.")
    ctx.db.add(IamAttachment(policy_id=policy.id, principal_type=principal_type, principal_id=holder, created_by=ctx.principal.username))
    iam.bump(ctx.db)
    refuse_excess(ctx, holders_by(ctx, principal_type, holder))


@operation(IamPolicy, "detach", label="Detach", needs="manage", icon="x")
def policy_detach(ctx: Context, policy: IamPolicy, *, principal_type: Annotated[str, KIND], principal_id: Annotated[str, WHO]) -> None:
    """Take the policy from a user, a group or a role."""
    refuse_relief(ctx, statements_in(policy.document), policy.project_id)
    principal_type = "user" if principal_type == "service_account" else principal_type
    holder = _holder(ctx, policy, principal_type, principal_id)
    ctx.inputs = {**ctx.inputs, "principal_id": holder}
    known = (IamAttachment.policy_id == policy.id, IamAttachment.principal_type == principal_type, IamAttachment.principal_id == holder)
    found = ctx.db.scalars(select(IamAttachment).where(*known)).first()
    if found is None:
        raise Conflict(f"{policy.name} is not attached to {principal_id}.")
    ctx.db.delete(found)
    iam.bump(ctx.db)


def _holder(ctx: Context, policy: IamPolicy, kind: str, named: str) -> str:
    """Id of whom a policy can be given to: of the policy's project, or anybody for one of the platform. Raises InvalidRequest."""
    text = storable(named)
    if kind in {"group", "role"}:
        model: type[IamGroup | IamRole] = IamGroup if kind == "group" else IamRole
        query = select(model.id).where((model.id == text) | (model.name == text), model.deleted_at.is_(None), model.project_id.is_not(None))
        if policy.project_id is not None:
            query = query.where(model.project_id == policy.project_id)
        # Not while it is being deleted: what was given to it would be left behind.
        query = query.with_for_update(read=True)
    else:
        query = select(User.id).where((User.id == text) | (User.username == text))
        if policy.project_id is not None:
            query = query.where(User.id.in_(select(Membership.user_id).where(Membership.project_id == policy.project_id)))
    found = ctx.db.scalars(query.limit(2)).all()
    if len(found) != 1:
        where = "" if policy.project_id is None else " in this project"
        raise InvalidRequest.fields(
            {"principal_id": [f"There is no {kind} {named[:80]}{where}." if not found else f"{named[:80]} names several; use the id."]}
        )
    return found[0]


def holders_of(ctx: Context, policy: IamPolicy) -> list[tuple[IamAttachment, str]]:
    """To whom a policy is given, oldest first, each with the name of the user, group or role; empty for one that is gone."""
    rows = ctx.db.scalars(select(IamAttachment).where(IamAttachment.policy_id == policy.id).order_by(IamAttachment.created_at)).all()
    ids = [each.principal_id for each in rows]
    users = ctx.db.execute(select(User.id, User.username).where(User.id.in_(ids)))
    groups = ctx.db.execute(select(IamGroup.id, IamGroup.name).where(IamGroup.id.in_(ids)))
    roles = ctx.db.execute(select(IamRole.id, IamRole.name).where(IamRole.id.in_(ids)))
    names = {row.id: row[1] for row in (*users, *groups, *roles)}
    return [(each, names.get(each.principal_id, "")) for each in rows]


@operation(IamPolicy, "delete", label="Delete", needs="manage", effect=Effect.REMOVE, icon="trash", danger=True)
def policy_delete(ctx: Context, policy: IamPolicy) -> None:
    """Delete a policy that nobody holds."""
    number = ctx.db.scalar(select(func.count()).select_from(IamAttachment).where(IamAttachment.policy_id == policy.id)) or 0
    bounded = ctx.db.scalars(select(Project.name).where(Project.boundary_policy_id == policy.id)).first()
    if bounded is not None:
        raise Conflict(f"{policy.name} is the permission boundary of project {bounded}. Take it away there first.")
    if number:
        raise Conflict(f"{policy.name} is attached to {number} {'users, groups or roles' if number > 1 else 'user, group or role'}. Detach it first.")


policy_update = update_operation(IamPolicy, needs="manage", also=("document",), before=_before_update)
POLICY = ResourceType(
    IamPolicy, service="security", name="policy", collection="policies", prefix="pol", label="Policy", plural="Policies", icon="shield",
    summary="Documents that say who may do what to which resources, and when.",
    operations=[policy_create, policy_update, policy_attach, policy_detach, policy_restore, policy_delete],
    columns=[Column("name", "Name", sort="name"), Column("scope", "Counts in", css="md"), Column("statements", "Statements", css="num lo"),
             Column("number", "Version", css="num lo"), Column("created_at", "Created", sort="created_at", css="lo")],
    show={"scope": lambda v: "This project" if v.project_id else "Whole platform", "statements": lambda v: len(statements_in(v.document))},
    quota={"iam_policies": 1},
)  # fmt: skip
