"""What a change of a policy's document does to those who hold it, before it is made: by the statements that would count, not by trying resources."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Select, func, or_, select

from portal.identity import iam
from portal.identity.accounts import principal_of
from portal.identity.iam import IamAttachment, IamGroupMember, IamPolicy, IamRole
from portal.identity.models import Project, User
from portal.kernel.authz import IMAGINED, Access, Target, access_of, compiled, decide
from portal.kernel.context import Context, Principal
from portal.kernel.fields import Ref, RefList
from portal.kernel.inputs import fields_by_action
from portal.kernel.lookup import find, seen_by_name
from portal.kernel.policy import Statement
from portal.kernel.policy_documents import Problem
from portal.kernel.policy_rules import Rules
from portal.security.advice import FIELD, Advice, actions_of, advice, impossible
from portal.security.policies import POLICY
from portal.security.simulator import SIMULATE, role_principal

MAX_HOLDERS = 500
# How much of an action somebody may do: nothing, on some resources or under conditions, or everywhere that the policy counts.
NOTHING, SOME, ALL = 0, 1, 2


@dataclass(frozen=True, slots=True)
class Effect:
    """What a user, or whoever acts in a role, may do after the change that they may not now, and the other way round; `changed` is allowed under other conditions."""

    user_id: str
    username: str
    gained: tuple[str, ...]
    lost: tuple[str, ...]
    changed: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Review:
    """What there is to say of a document; `effects` is None where nobody holds it, or where the reader may not know.

    `holders` is how many users hold the policy, `compared` for how many of them, the first by name, effects were worked out.
    """

    problems: Sequence[Problem]
    warnings: Sequence[Problem]
    effects: Sequence[Effect] | None = None
    holders: int = 0
    compared: int = 0


def review(ctx: Context, document: Any, policy_id: str = "") -> Review:
    """Look at a document as if it were saved as a policy's (empty: a new one, that nobody holds). Raises NotFound."""
    policy = find(ctx, POLICY, policy_id) if policy_id else None
    found = advice(document, ctx.registry.permissions, fields_by_action(ctx.registry))
    found = replace(found, warnings=[*found.warnings, *_names_for_ids(ctx, found.statements)])
    if policy is None or found.problems or not decide(ctx, SIMULATE, Target(policy.project_id)).allowed:
        return Review(found.problems, found.warnings)
    bounded = ctx.db.scalars(select(Project.name).where(Project.boundary_policy_id == policy.id).order_by(Project.name)).all()
    limiting = [Problem("", f"is the permission boundary of project {name}: it limits everybody there, who are not listed here") for name in bounded]
    holders = _first_holders(ctx, policy)
    revision = ctx.db.scalar(select(iam.REVISION))
    roles = [role_principal(ctx, role, revision) for role in _roles_with(ctx, policy)]
    now_held = [*roles, *(principal_with(ctx, user) for user in holders)]
    effects = [each for principal in now_held if (each := _effect(ctx, policy, found.statements, principal)) is not None]
    idle = _idle_denials(ctx, policy, found, now_held) if now_held else []
    count = ctx.db.scalar(select(func.count()).select_from(holding(ctx, policy).subquery())) if len(holders) == MAX_HOLDERS else len(holders)
    return Review((), [*found.warnings, *limiting, *idle], effects, count or 0, len(holders))


def _names_for_ids(ctx: Context, statements: Sequence[Statement]) -> Iterator[Problem]:
    """Conditions that ask for the name of something where its id is known."""
    for number, statement in enumerate(statements):
        covered = actions_of(statement, ctx.registry.permissions)
        for condition in statement.conditions:
            name = condition.key.removeprefix(FIELD)
            params = [op.params[name] for action, op in ctx.registry.operations().items() if action in covered and name in op.params]
            keys = {param.info.kind.type_key for param in params if isinstance(param.info.kind, Ref | RefList)}
            if not condition.key.startswith(FIELD) or len(keys) != 1 or (rtype := ctx.registry.get(keys.pop())) is None:
                continue
            for value in condition.values:
                row = seen_by_name(ctx, rtype, value)
                if row is not None and row.id != value:
                    yield Problem(f"Statement[{number}].Condition", f"{value} is a name: {condition.key} is known by the id, which is {row.id}")


def holding(ctx: Context, policy: IamPolicy) -> Select[str]:
    """Ids of the active users who hold a policy, themselves, through a group or by assuming a role."""
    given = select(IamAttachment.principal_id).where(IamAttachment.policy_id == policy.id)
    of_users = given.where(IamAttachment.principal_type == "user")
    of_groups = select(IamGroupMember.user_id).where(IamGroupMember.group_id.in_(given.where(IamAttachment.principal_type == "group")))
    by_role = set().union(*iam.trusted_by(ctx.db, _roles_with(ctx, policy)).values())
    return select(User.id).where(User.is_active.is_(True), or_(User.id.in_(of_users.union(of_groups)), User.id.in_(by_role)))


def _first_holders(ctx: Context, policy: IamPolicy) -> Sequence[User]:
    return ctx.db.scalars(select(User).where(User.id.in_(holding(ctx, policy))).order_by(User.username).limit(MAX_HOLDERS)).all()


def _roles_with(ctx: Context, policy: IamPolicy) -> Sequence[IamRole]:
    given = select(IamAttachment.principal_id).where(IamAttachment.policy_id == policy.id, IamAttachment.principal_type == "role")
    return ctx.db.scalars(select(IamRole).where(IamRole.id.in_(given), IamRole.deleted_at.is_(None)).order_by(IamRole.name)).all()


def principal_with(ctx: Context, user: User) -> Principal:
    """A user with everything that they hold."""
    return iam.with_access(ctx.db, principal_of(user, "session" + IMAGINED), ctx.db.scalar(select(iam.REVISION)))


def reaches(access: Access, permissions: Mapping[str, str], project_id: str | None) -> dict[str, tuple[int, object]]:
    """Action → how much of it is allowed in a project (None: what counts everywhere), and a mark that differs where the statements do."""
    return {action: _reach(access, action, level, project_id) for action, level in permissions.items()}


def _reach(access: Access, action: str, level: str, project_id: str | None) -> tuple[int, object]:
    rules, limits = access.of(action, level)
    parts = [rules, *(its for limit, its in limits if limit.project_id in {None, project_id})]
    marks = [_marks(part, project_id) for part in parts]
    return min(_much(*mark) for mark in marks), tuple((frozenset(denies), frozenset(allows)) for denies, allows in marks)


def _marks(rules: Rules, project_id: str | None) -> tuple[list[Statement], list[Statement]]:
    denies, allows = (
        [rule.statement for rule in part.rules if rule.scope in {None, project_id} and not impossible(rule.statement)]
        for part in (rules.denies, rules.allows)
    )
    # The name of a statement, and other actions that it speaks of, are no difference for this one.
    same = [[replace(each, sid="", actions=()) for each in part] for part in (denies, allows)]
    return same[0], same[1]


def _much(denies: Sequence[Statement], allows: Sequence[Statement]) -> int:
    if not allows or any(each.is_plain for each in denies):
        return NOTHING
    return ALL if not denies and any(each.is_plain for each in allows) else SOME


def _changed(policy: IamPolicy, statements: tuple[Statement, ...], principal: Principal) -> Access:
    grants = tuple(replace(grant, statements=statements) if grant.role == policy.id else grant for grant in principal.grants)
    return compiled(replace(principal, grants=grants, limits=tuple(access_of(principal).limits), access=None))


def _effect(ctx: Context, policy: IamPolicy, statements: tuple[Statement, ...], principal: Principal) -> Effect | None:
    # In a role a policy of the platform counts in the role's project alone.
    permissions, project_id = (
        ctx.registry.permissions,
        policy.project_id or next((g.project_id for g in principal.grants if g.role == policy.id), None),
    )
    before = reaches(access_of(principal), permissions, project_id)
    after = reaches(_changed(policy, statements, principal), permissions, project_id)
    actions = sorted(permissions)
    gained = tuple(action for action in actions if before[action][0] < after[action][0])
    lost = tuple(action for action in actions if before[action][0] > after[action][0])
    changed = tuple(action for action in actions if before[action][0] == after[action][0] == SOME and before[action][1] != after[action][1])
    return Effect(str(principal.user_id), principal.username, gained, lost, changed) if gained or lost or changed else None


def _idle_denials(ctx: Context, policy: IamPolicy, found: Advice, principals: Sequence[Principal]) -> list[Problem]:
    """Denials of what nobody who holds the policy is allowed anyway."""
    permissions, project_id = ctx.registry.permissions, policy.project_id
    compiled_ones = [_changed(policy, found.statements, principal) for principal in principals]
    warnings = []
    for number, statement in enumerate(found.statements):
        if statement.allows:
            continue
        actions = actions_of(statement, permissions)
        if not any(_marks(access.of(action, permissions[action])[0], project_id)[1] for access in compiled_ones for action in actions):
            warnings.append(Problem(f"Statement[{number}]", "has no effect now: nobody who holds the policy is allowed any of this anyway"))
    return warnings
