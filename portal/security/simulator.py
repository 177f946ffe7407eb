"""Who may do what, and why: a decision for somebody else with the path that led to it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from sqlalchemy import or_, select

from portal.identity import iam
from portal.identity.accounts import principal_of
from portal.identity.iam import BUILTIN, IamAttachment, IamPolicy, IamRole
from portal.identity.models import Membership, User
from portal.kernel.authz import IMAGINED, Decision, Step, Target, authorize, compiled, decide, target_of, trace
from portal.kernel.context import Context, Grant, Principal
from portal.kernel.declare import Effect
from portal.kernel.errors import InvalidRequest
from portal.kernel.ids import storable
from portal.kernel.inputs import as_understood, fields_of, variants
from portal.kernel.lookup import find
from portal.kernel.wording import within
from portal.security.role_sessions import ASSUME, with_trust
from portal.security.roles import ROLE

SIMULATE = "security.iam.simulate"
# How many users are asked about at once; each takes a decision of its own.
MAX_USERS = 500
CREDENTIALS = ("session", "token", "oauth")
# What a role is named by, where users are named, too.
ROLE_ID, ROLE_NAME = "role-", "role/"


@dataclass(frozen=True, slots=True)
class Circumstances:
    """How a request comes that is imagined: from which address (empty: the asker's), with a second factor or without, by which credential, when."""

    ip: str = ""
    mfa: bool = False
    inputs: Mapping[str, Any] = field(default_factory=dict)
    credential: str = "session"
    at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Question:
    """Whether `user` (name or id; of a role its id or `role/name`) may do `action` on `resource` (`type/id`, empty for the project)."""

    user: str
    action: str
    resource: str = ""
    under: Circumstances = field(default_factory=Circumstances)


PLAIN = Circumstances()


@dataclass(frozen=True, slots=True)
class Answer:
    """The decision, and every statement that was looked at."""

    name: str
    target: Target
    decision: Decision
    path: Sequence[Step]


@dataclass(frozen=True, slots=True)
class Holder:
    """Somebody who may do something; `via` says which role they have to assume for it, if any."""

    user: User
    decision: Decision
    via: str = ""


def simulate(ctx: Context, question: Question) -> Answer:
    """Answer a question about oneself, or, with the permission to simulate, about anybody in the project. Raises InvalidRequest or Forbidden."""
    if question.action not in ctx.registry.permissions:
        raise InvalidRequest.fields({"action": [f"There is no action {question.action[:80]}."]})
    target = target_named(ctx, question.resource, question.action)
    somebody = _somebody_named(ctx, question.user, target)
    if (op := ctx.registry.operations().get(question.action)) is not None and op.effect is Effect.CREATE and not target.id:
        # What somebody makes is theirs.
        target = replace(target, owner_id=somebody.id)
    seen = _as(ctx, somebody, replace(question.under, inputs=_understood(ctx, question)))
    if question.action == ASSUME:
        role = _role_named(ctx, target)
        seen = with_trust(seen, role, trusts=iam.is_trusted(ctx.db, role, somebody.id))
    decision, unseen = _decide(seen, question.action, target)
    path = [*(trace(seen, unseen, target) if unseen else ()), *trace(seen, question.action, target)]
    return Answer(_name(somebody), target, decision, path)


def _understood(ctx: Context, question: Question) -> Mapping[str, Any]:
    """The fields of an imagined request as conditions see them. Raises InvalidRequest for one that no such request has."""
    op = ctx.registry.operations().get(question.action)
    known = fields_of(op) if op is not None else {}
    found = {} if op is None else {name: param.default for name, param in op.params.items() if not param.required and not op.partial}
    for name, value in question.under.inputs.items():
        if op is None or name not in known:
            has = f"there are {', '.join(sorted(op.params))}" if op is not None and op.params else "conditions see none of its fields"
            raise InvalidRequest.fields({"inputs": [f"A request for {question.action} has no {name[:80]}; {has}."]})
        found[known[name]] = value
    return as_understood(ctx, op, found, {known[name] for name in question.under.inputs}) if op is not None else found


def _decide(seen: Context, action: str, target: Target) -> tuple[Decision, str]:
    """What comes of an action on something: who may not see it is told that it is not there. Gives that permission as well, if it decided."""
    reading = f"{action.rpartition('.')[0]}.read"
    decisions = [decide(replace(seen, inputs=each), action, target) for each in variants(seen.inputs)]
    decision = next((each for each in decisions if not each.allowed), decisions[0])
    if not (decision.allowed and target.id) or action in {ASSUME, reading} or reading not in seen.registry.permissions:
        return decision, ""
    first = decide(seen, reading, target)
    if first.allowed:
        return decision, ""
    return replace(first, action=action, because=f"It is not there for who may not see it ({reading}). {first.because}"), reading


def target_named(ctx: Context, resource: str, action: str) -> Target:
    """What `type/id` names, as far as the caller may see it; the current project where nothing is named. Raises InvalidRequest or NotFound."""
    if not resource:
        return Target(ctx.project_id, label="the project")
    key, slash, row_id = resource.partition("/")
    rtype = ctx.registry.get(key)
    if rtype is None or not slash:
        raise InvalidRequest.fields({"resource": ["must be a type and an id, such as compute.instance/i-0123."]})
    if action and not action.startswith(f"{key}."):
        raise InvalidRequest.fields({"resource": [f"{action} is no action on a {within(rtype.label)}."]})
    return target_of(find(ctx, rtype, row_id))


def _role_named(ctx: Context, target: Target) -> IamRole:
    """The role that is to be assumed. Raises InvalidRequest where none is named: which one trusts whom decides."""
    if not target.id:
        raise InvalidRequest.fields({"resource": [f"Whether somebody may {ASSUME} is up to the role: name one, such as security.role/role-0123."]})
    return ctx.db.get_one(IamRole, target.id)


def role_principal(ctx: Context, role: IamRole, revision: int | None, *, mfa: bool = False) -> Principal:
    """Somebody who acts in a role, or who holds it in the current project if it is built in."""
    nobody = _acting_in(role, mfa=mfa)
    if role.origin == BUILTIN:
        return iam.with_access(ctx.db, replace(nobody, grants=(Grant(role.name, ctx.project_id),)), revision)
    return iam.with_role(ctx.db, nobody, role, revision)


def user_named(ctx: Context, named: str, target: Target) -> User:
    """Oneself, or, with the permission to simulate, somebody of the project. Raises InvalidRequest or Forbidden."""
    text = storable(named)
    if text in {ctx.principal.user_id, ctx.principal.username} and ctx.principal.assumed is None:
        return ctx.db.get_one(User, ctx.principal.user_id)
    authorize(ctx, SIMULATE, Target(target.project_id, label="the rights of others"))
    query = select(User).where((User.id == text) | (User.username == text))
    if not decide(ctx, SIMULATE, Target(None)).allowed:
        query = query.where(User.id.in_(select(Membership.user_id).where(Membership.project_id == target.project_id)))
    user = ctx.db.scalars(query).first()
    if user is None:
        raise InvalidRequest.fields({"user": [f"There is no user {named[:80]} here."]})
    return user


def _somebody_named(ctx: Context, named: str, target: Target) -> User | IamRole:
    """As `user_named`; a role, too, which takes the permission to simulate. Raises NotFound for one that is not there."""
    is_role = named.startswith(ROLE_NAME) or (named.startswith(ROLE_ID) and ctx.db.get(IamRole, storable(named)) is not None)
    if not is_role or named == ctx.principal.username:
        return user_named(ctx, named, target)
    authorize(ctx, SIMULATE, Target(target.project_id, label="the rights of others"))
    if named.startswith(ROLE_ID):
        role: IamRole = find(ctx, ROLE, named)
        return role
    mine = or_(IamRole.project_id == target.project_id, IamRole.project_id.is_(None))
    query = select(IamRole).where(IamRole.name == storable(named.removeprefix(ROLE_NAME)), mine, IamRole.deleted_at.is_(None))
    found = ctx.db.scalars(query.order_by(IamRole.project_id.is_(None))).first()
    if found is None:
        raise InvalidRequest.fields({"user": [f"There is no role {named.removeprefix(ROLE_NAME)[:80]} here."]})
    return found


def _name(somebody: User | IamRole) -> str:
    return f"role {somebody.name}" if isinstance(somebody, IamRole) else somebody.username


def _as(ctx: Context, somebody: User | IamRole, under: Circumstances) -> Context:
    if under.credential not in CREDENTIALS:
        raise InvalidRequest.fields({"credential": [f"must be one of {', '.join(CREDENTIALS)}."]})
    revision = ctx.db.scalar(select(iam.REVISION))
    if isinstance(somebody, IamRole):
        whole = role_principal(ctx, somebody, revision, mfa=under.mfa)
    else:
        whole = iam.with_access(ctx.db, replace(principal_of(somebody, under.credential + IMAGINED), mfa=under.mfa), revision)
    return replace(ctx, principal=whole, source_ip=under.ip or ctx.source_ip, inputs=under.inputs, at=under.at)


@dataclass(frozen=True, slots=True)
class Able:
    """Those of a page of users who may do something, by name, and the name behind which the next page begins, empty at the end."""

    found: Sequence[Holder]
    next_after: str


def who_can(ctx: Context, action: str, target: Target, under: Circumstances = PLAIN, *, after: str = "") -> Able:
    """Who may do an action on something, themselves or by assuming a role, among the 500 users behind a name. Raises Forbidden or InvalidRequest."""
    if action not in ctx.registry.permissions:
        raise InvalidRequest.fields({"action": [f"There is no action {action[:80]}."]})
    authorize(ctx, SIMULATE, Target(target.project_id, label="the rights of others"))
    everywhere = select(IamPolicy.id).where(IamPolicy.project_id.is_(None))
    given = select(IamAttachment.principal_id).where(IamAttachment.principal_type == "user", IamAttachment.policy_id.in_(everywhere))
    members = select(Membership.user_id).where(Membership.project_id == target.project_id)
    query = select(User).where(User.is_active.is_(True), or_(User.platform_role != "", User.id.in_(members), User.id.in_(given)))
    if after:
        query = query.where(User.username > storable(after))
    users = ctx.db.scalars(query.order_by(User.username).limit(MAX_USERS + 1)).all()
    assumed = _role_named(ctx, target) if action == ASSUME else None
    trusted_by_it = iam.trusted_by(ctx.db, [assumed])[assumed.id] if assumed is not None else set()
    # From within a role none is assumed.
    asked, roles = users[:MAX_USERS], [] if assumed is not None else _roles_that_can(ctx, action, target, under)
    found = []
    for user in asked:
        seen = _as(ctx, user, under)
        decision, _ = _decide(with_trust(seen, assumed, trusts=user.id in trusted_by_it) if assumed is not None else seen, action, target)
        if decision.allowed:
            found.append(Holder(user, decision))
        else:
            found += [Holder(user, its, f"by assuming role {role.name}") for role, its, trusted in roles if user.id in trusted]
    return Able(found, asked[-1].username if len(users) > MAX_USERS else "")


def _roles_that_can(ctx: Context, action: str, target: Target, under: Circumstances) -> list[tuple[IamRole, Decision, set[str]]]:
    """The project's roles that may do it, each with what decides and the ids of those whom it trusts."""
    query = select(IamRole).where(IamRole.project_id == target.project_id, IamRole.deleted_at.is_(None)).order_by(IamRole.name)
    roles = ctx.db.scalars(query).all()
    grants, trusted, limits = iam.grants_by_role(ctx.db, roles), iam.trusted_by(ctx.db, roles), iam.boundaries(ctx.db)
    found = []
    for role in roles:
        whole = replace(_acting_in(role, mfa=under.mfa), grants=grants[role.id], limits=limits)
        acting_in = replace(ctx, principal=replace(whole, access=compiled(whole)), source_ip=under.ip or ctx.source_ip, inputs={}, at=under.at)
        decision, _ = _decide(acting_in, action, target)
        if decision.allowed:
            found.append((role, decision, trusted[role.id]))
    return found


def _acting_in(role: IamRole, *, mfa: bool = False) -> Principal:
    return Principal(role.id, f"role {role.name}", "role" + IMAGINED, mfa=mfa)


def what_can(ctx: Context, named: str, resource: str = "") -> list[Decision]:
    """The decision for every action on something, or in the project, where no role is named that could be assumed.

    Raises Forbidden, InvalidRequest or NotFound.
    """
    target = target_named(ctx, resource, "")
    somebody = _somebody_named(ctx, named, target)
    seen, prefix = _as(ctx, somebody, PLAIN), f"{resource.partition('/')[0]}." if resource else ""
    actions = [action for action in sorted(ctx.registry.permissions) if action.startswith(prefix)]
    if prefix == f"{ROLE.key}.":
        role = _role_named(ctx, target)
        seen = with_trust(seen, role, trusts=iam.is_trusted(ctx.db, role, somebody.id))
    else:
        actions = [action for action in actions if action != ASSUME]
    return [_decide(seen, action, target)[0] for action in actions]
