"""How much one user, group or role may hold in a project: what everybody waits for must not depend on what somebody wrote."""

from collections import defaultdict
from collections.abc import Collection, Iterable

from sqlalchemy import select

from portal.identity.iam import IamAttachment, IamGroup, IamGroupMember, IamPolicy, IamRole
from portal.identity.models import User
from portal.kernel.context import Context
from portal.kernel.errors import Conflict
from portal.kernel.policy_documents import statements_in

MAX_STATEMENTS, MAX_VALUES = 1000, 10_000


def refuse_excess(ctx: Context, holders: Collection[str]) -> None:
    """Raise Conflict if a user (with groups), group or role, by id, now holds too much. Who bumped the revision before is alone in counting."""
    ctx.db.flush()
    held: defaultdict[str, set[str]] = defaultdict(set)
    direct = select(IamAttachment.principal_id, IamAttachment.policy_id).where(IamAttachment.principal_id.in_(holders))
    by_group = (
        select(IamGroupMember.user_id, IamAttachment.policy_id)
        .join(IamAttachment, IamAttachment.principal_id == IamGroupMember.group_id)
        .where(IamGroupMember.user_id.in_(holders), IamAttachment.principal_type == "group")
    )
    for holder, policy_id in (*ctx.db.execute(direct), *ctx.db.execute(by_group)):
        held[holder].add(policy_id)
    rows = ctx.db.scalars(select(IamPolicy).where(IamPolicy.id.in_(set().union(*held.values())), IamPolicy.deleted_at.is_(None)))
    policies = {policy.id: policy for policy in rows}
    sizes = {policy.id: _size(policy) for policy in policies.values()}
    roles = set(ctx.db.scalars(select(IamRole.id).where(IamRole.id.in_(holders))))
    for holder in sorted(held):
        # Whatever a role's policies count in otherwise, with the role they count in its project.
        there = [(None if holder in roles else policies[each].project_id, sizes[each]) for each in sorted(held[holder]) if each in policies]
        for project_id in {project_id for project_id, _ in there}:
            if excess := _excess(size for scope, size in there if scope in {None, project_id}):
                raise _conflict(_name(ctx, holder), excess)


def refuse_excess_of(name: str, policies: Iterable[IamPolicy]) -> None:
    """Raise Conflict if policies are too much for a new role."""
    if excess := _excess(map(_size, policies)):
        raise _conflict(name, excess)


def holders_by(ctx: Context, kind: str, holder: str) -> set[str]:
    """Whom it concerns what a user, group or role is given: with a group its members."""
    return {holder, *(ctx.db.scalars(select(IamGroupMember.user_id).where(IamGroupMember.group_id == holder)) if kind == "group" else ())}


def holders_through(ctx: Context, policy: IamPolicy) -> set[str]:
    """Whom it concerns what a policy says."""
    given = ctx.db.execute(select(IamAttachment.principal_type, IamAttachment.principal_id).where(IamAttachment.policy_id == policy.id)).all()
    return set().union(*(holders_by(ctx, kind, holder) for kind, holder in given))


def _size(policy: IamPolicy) -> tuple[int, int]:
    statements = statements_in(policy.document)
    return len(statements), sum(len(each.resources) + sum(len(condition.values) for condition in each.conditions) for each in statements)


def _excess(sizes: Iterable[tuple[int, int]]) -> tuple[int, str, int] | None:
    """(how many, of what, the most), of the first that is too much."""
    given = list(sizes)
    found = ((sum(each[0] for each in given), "statements", MAX_STATEMENTS), (sum(each[1] for each in given), "values in statements", MAX_VALUES))
    return next((each for each in found if each[0] > each[2]), None)


def _conflict(name: str, excess: tuple[int, str, int]) -> Conflict:
    held, what, most = excess
    return Conflict(
        f"{name} would hold {held:,} {what} in one project; the most is {most:,}. Detach a policy, or write one statement with several values "
        "where several differ in a value alone.",
        details={"holder": name, "held": held, "limit": most},
    )  # fmt: skip


def _name(ctx: Context, holder: str) -> str:
    names = (
        select(User.username).where(User.id == holder),
        select(IamGroup.name).where(IamGroup.id == holder),
        select(IamRole.name).where(IamRole.id == holder),
    )
    return next(name for query in names if (name := ctx.db.scalars(query).first()) is not None)
