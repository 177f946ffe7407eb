"""Roles: what whoever they trust may do for a while, in place of all else that they may. Those built in are shown here and held as memberships.

Nobody gives what they do not have: whoever gives a role a policy, or lets somebody assume it, must hold all of that without condition.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Annotated, Any

from sqlalchemy import delete, or_, select
from sqlalchemy.orm import Session, selectinload

from portal.identity import iam
from portal.identity.access import end_tokens
from portal.identity.iam import BUILTIN, CUSTOM, IamAttachment, IamGroup, IamPolicy, IamRole
from portal.identity.models import PERSON, SERVICE, ApiToken, Membership, User
from portal.kernel import fields as f
from portal.kernel.authz import ROLES, authorize, refuse_escalation, refuse_relief, target_of
from portal.kernel.context import Context
from portal.kernel.declare import Effect, Param, operation, update_operation
from portal.kernel.errors import Conflict, InvalidRequest
from portal.kernel.ids import storable
from portal.kernel.policy_documents import as_document, statements_in
from portal.kernel.resource import Column, ResourceType
from portal.security.bounds import refuse_excess, refuse_excess_of

TRUST_TYPES = ("user", "service_account", "group")
MAX_PRINCIPALS = 100
EXAMPLE = '{"principals": [{"type": "user", "id": "ada"}]}'
TRUST = f.FieldInfo(
    f.Document(), "Trust", f"Who may assume it: type ({', '.join(TRUST_TYPES)}) and id or name of members, such as {EXAMPLE}. Empty: nobody yet."
)  # fmt: skip
POLICIES = f.FieldInfo(f.Names(), "Policies", "What it may do. Names or ids, one per line.")
NAMES = {"type": "array", "items": {"type": "string"}}
FORCE = f.FieldInfo(f.Bool(), "End its sessions", "Whoever acts in the role is stopped at once.")


def trust_checked(ctx: Context, project_id: str, document: Mapping[str, Any]) -> dict[str, Any]:
    """A trust policy with ids for names. Raises InvalidRequest with the path to each error."""
    problems, kept = [f"{key[:80]}: is not known here; there is principals." for key in document if key != "principals"], []
    given = document.get("principals", [])
    if not isinstance(given, list) or len(given) > MAX_PRINCIPALS:
        problems.append(f"principals: must be a list of at most {MAX_PRINCIPALS}.")
        given = []
    for number, each in enumerate(given):
        path = f"principals[{number}]"
        if not isinstance(each, dict) or set(each) != {"type", "id"}:
            problems.append(f"{path}: must be an object with type and id.")
        elif each["type"] not in TRUST_TYPES:
            problems.append(f"{path}.type: must be one of {', '.join(TRUST_TYPES)}.")
        elif (found := _principal(ctx.db, project_id, each["type"], each["id"])) is None:
            problems.append(f"{path}.id: there is no {each['type'].replace('_', ' ')} {str(each['id'])[:80]} in this project.")
        elif (principal := {"type": each["type"], "id": found}) not in kept:
            kept.append(principal)
    if problems:
        raise InvalidRequest.fields({"trust_policy": problems})
    return {"principals": kept}


def _principal(session: Session, project_id: str, kind: str, named: object) -> str | None:
    if not isinstance(named, str):
        return None
    text = storable(named)
    if kind == "group":
        groups = select(IamGroup.id).where(IamGroup.project_id == project_id, IamGroup.deleted_at.is_(None))
        return session.scalars(groups.where(or_(IamGroup.id == text, IamGroup.name == text))).first()
    users = select(User.id).join(Membership, Membership.user_id == User.id).where(Membership.project_id == project_id)
    users = users.where(User.kind == (PERSON if kind == "user" else SERVICE))
    return session.scalars(users.where(or_(User.id == text, User.username == text))).first()


def _policies_named(ctx: Context, project_id: str, names: Sequence[str]) -> list[IamPolicy]:
    """The policies of the project or the platform with these names or ids. Raises InvalidRequest with the path to each error."""
    found, problems = {}, []
    mine = (or_(IamPolicy.project_id.is_(None), IamPolicy.project_id == project_id), IamPolicy.deleted_at.is_(None))
    for number, named in enumerate(names):
        text = storable(named)
        rows = ctx.db.scalars(select(IamPolicy).where(*mine, or_(IamPolicy.id == text, IamPolicy.name == text)).limit(2)).all()
        if len(rows) == 1:
            found[rows[0].id] = rows[0]
        else:
            why = f"there is no policy {named[:80]} of this project or the platform" if not rows else f"{named[:80]} names several; use the id"
            problems.append(f"[{number}]: {why}.")
    if problems:
        raise InvalidRequest.fields({"permission_policies": problems})
    return list(found.values())


def _attach(ctx: Context, role: IamRole, policies: Sequence[IamPolicy]) -> None:
    for policy in policies:
        _authorize(ctx, role, "attach", policy)
        refuse_escalation(ctx, statements_in(policy.document), policy.project_id)
        role.attachments.append(IamAttachment(policy_id=policy.id, principal_type="role", created_by=ctx.principal.username))


def _authorize(ctx: Context, role: IamRole, verb: str, policy: IamPolicy) -> None:
    """By this door as by the policy's own."""
    inputs = {"principal_type": "role", **({"principal_id": role.id} if role.id else {})}
    authorize(replace(ctx, inputs=inputs), f"security.policy.{verb}", target_of(policy))


def _refuse_builtin(role: IamRole) -> None:
    if role.origin == BUILTIN:
        raise Conflict(f"{role.name} is built in: it is held as a member, and neither changed, deleted nor assumed. Make a role of your own.")


@operation(IamRole, "create", label="Create", needs="manage", effect=Effect.CREATE)
def role_create(
    ctx: Context, *, name: str, permission_policies: Annotated[list[str] | None, POLICIES] = None,
    trust_policy: Annotated[dict[str, Any] | None, TRUST] = None, max_session_duration_hours: int = 1, description: str = "",
    tags: dict[str, str] | None = None,
) -> IamRole:  # fmt: skip
    """Make a role; whom it trusts can assume it."""
    if ctx.project_id is None:
        raise InvalidRequest("Choose a project first: you are a member of none.")
    policies = _policies_named(ctx, ctx.project_id, permission_policies or ())
    trust = trust_checked(ctx, ctx.project_id, trust_policy or {})
    role = IamRole(
        name=name, project_id=ctx.project_id, trust_policy=trust, max_session_duration_hours=max_session_duration_hours,
        description=description, tags=tags or {}, origin=CUSTOM,
    )  # fmt: skip
    _attach(ctx, role, policies)
    refuse_excess_of(name, policies)
    return role


def _before_update(ctx: Context, role: Any, changes: dict[str, Any]) -> None:
    """Whoever is trusted anew is given what the role may do; what it is given or freed of counts for all whom it trusts."""
    _refuse_builtin(role)
    iam.bump(ctx.db)
    if "permission_policies" in changes:
        _set_policies(ctx, role, changes.pop("permission_policies") or [])
    if "trust_policy" in changes:
        changes["trust_policy"] = trust = trust_checked(ctx, role.project_id, changes["trust_policy"] or {})
        if any(each not in role.trusted for each in trust["principals"]):
            ctx.db.flush()
            for grant in iam.role_grants(ctx.db, role):
                refuse_escalation(ctx, grant.statements, grant.project_id)
        role.trust_policy = trust
        iam.end_untrusted(ctx.db, role)


def _set_policies(ctx: Context, role: IamRole, names: Sequence[str]) -> None:
    wanted = {policy.id: policy for policy in _policies_named(ctx, str(role.project_id), names)}
    have = {policy.id: policy for policy in role.attached}
    for policy_id in have.keys() - wanted.keys():
        _authorize(ctx, role, "detach", have[policy_id])
        refuse_relief(ctx, statements_in(have[policy_id].document), have[policy_id].project_id)
    mine = (IamAttachment.principal_type == "role", IamAttachment.principal_id == role.id)
    ctx.db.execute(delete(IamAttachment).where(*mine, IamAttachment.policy_id.in_(have.keys() - wanted.keys())))
    _attach(ctx, role, [wanted[policy_id] for policy_id in sorted(wanted.keys() - have.keys())])
    refuse_excess(ctx, [role.id])
    ctx.db.expire(role, ["attached", "attachments"])


@operation(IamRole, "delete", label="Delete", needs="manage", effect=Effect.REMOVE, icon="trash", danger=True)
def role_delete(ctx: Context, role: IamRole, *, force: Annotated[bool, FORCE] = False) -> None:
    """Delete a role that nobody acts in, or end its sessions with it."""
    _refuse_builtin(role)
    running = len(iam.sessions_in(ctx.db, role))
    if running and not force:
        raise Conflict(
            f"{running} {'sessions run' if running > 1 else 'session runs'} in {role.name}. End them first, or delete it with force.",
            details={"sessions": running},
        )
    end_tokens(ctx.db, ApiToken.role_id == role.id)
    ctx.db.execute(delete(IamAttachment).where(IamAttachment.principal_type == "role", IamAttachment.principal_id == role.id))
    iam.bump(ctx.db)


def _with_attached() -> Sequence[Any]:
    return (selectinload(IamRole.attached),)


def _trusts(role: IamRole) -> str:
    return ", ".join(sorted({each["type"] for each in role.trusted}))


def _policy_names(role: IamRole) -> list[str]:
    return [role.name] if role.origin == BUILTIN else [policy.name for policy in role.attached]


def builtin_document(role: IamRole) -> dict[str, Any] | None:
    """What a built-in role may do, as a policy; None for others, whose policies say it."""
    return dict(as_document(ROLES[role.name].statements)) if role.origin == BUILTIN else None


def trusted_names(ctx: Context, role: IamRole) -> list[tuple[str, str, str]]:
    """(type, id, name) of whom a role trusts; the name is empty for what is gone."""
    ids = [each["id"] for each in role.trusted]
    users = ctx.db.execute(select(User.id, User.username).where(User.id.in_(ids)))
    groups = ctx.db.execute(select(IamGroup.id, IamGroup.name).where(IamGroup.id.in_(ids), IamGroup.deleted_at.is_(None)))
    names = {row.id: row[1] for row in (*users, *groups)}
    return [(each["type"], each["id"], names.get(each["id"], "")) for each in role.trusted]


def seed_roles(session: Session) -> None:
    """The built-in roles as rows that can be listed; what they may do is the code's."""
    for role in ROLES.values():
        row = session.get(IamRole, f"role-{role.name.replace('_', '-')}")
        if row is None:
            row = IamRole(id=f"role-{role.name.replace('_', '-')}", name=role.name, origin=BUILTIN, is_public=True, trust_policy={"principals": []})
            session.add(row)
        row.description = role.summary


_update = update_operation(IamRole, needs="manage", also=("trust_policy", "max_session_duration_hours"), before=_before_update)
_more = {
    "permission_policies": Param("permission_policies", POLICIES, required=False, default=None, nullable=True),
    # An emptied field withdraws all trust.
    "trust_policy": Param("trust_policy", TRUST, required=False, default=None, nullable=True),
}
role_update = replace(_update, params={"name": _update.params["name"], **_more, **{k: v for k, v in _update.params.items() if k not in _more}})
ROLE = ResourceType(
    IamRole, service="security", name="role", collection="roles", prefix="role", label="Role", plural="Roles", icon="users",
    summary="What whoever is trusted may do for a while, in place of all else that they may.",
    operations=[role_create, role_update, role_delete],
    columns=[Column("name", "Name", sort="name"), Column("origin", "Origin", css="md"), Column("policies", "Policies", css="md"),
             Column("trust_principal_type", "Trusts", css="lo"), Column("max_session_duration_hours", "Longest session, h", css="num lo")],
    show={"trust_principal_type": _trusts, "permission_policies": lambda v: v.permission_policies, "document": builtin_document,
          "policies": _policy_names},
    shapes={"permission_policies": NAMES, "policies": NAMES, "document": {"type": ["object", "null"]}},
    eager=_with_attached, extra_permissions={"assume": "read", "end_session": "manage"},
)  # fmt: skip
