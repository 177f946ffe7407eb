"""Who may do what, and why: a decision for somebody else with the path that led to it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy import or_, select

from portal.identity import iam
from portal.identity.accounts import principal_of
from portal.identity.iam import IamAttachment, IamPolicy
from portal.identity.models import Membership, User
from portal.kernel.authz import Decision, Step, Target, authorize, decide, target_of, trace
from portal.kernel.context import Context
from portal.kernel.errors import InvalidRequest
from portal.kernel.ids import storable
from portal.kernel.lookup import find

SIMULATE = "security.iam.simulate"
# How many users are asked about at once; each takes a decision of its own.
MAX_USERS = 500


@dataclass(frozen=True, slots=True)
class Question:
    """Whether `user` (name or id) may do `action` on `resource` (`type/id`, empty for the project), from `ip`, with a second factor or without."""

    user: str
    action: str
    resource: str = ""
    ip: str = ""
    mfa: bool = False
    inputs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Answer:
    """The decision, and every statement that was looked at."""

    user: User
    target: Target
    decision: Decision
    path: Sequence[Step]


def simulate(ctx: Context, question: Question) -> Answer:
    """Answer a question about oneself, or, with the permission to simulate, about anybody in the project. Raises InvalidRequest or Forbidden."""
    if question.action not in ctx.registry.permissions:
        raise InvalidRequest.fields({"action": [f"There is no action {question.action[:80]}."]})
    target = target_named(ctx, question.resource, question.action)
    user = user_named(ctx, question.user, target)
    seen = _as(ctx, user, question)
    return Answer(user, target, decide(seen, question.action, target), trace(seen, question.action, target))


def target_named(ctx: Context, resource: str, action: str) -> Target:
    """What `type/id` names, as far as the caller may see it; the current project where nothing is named. Raises InvalidRequest or NotFound."""
    if not resource:
        return Target(ctx.project_id, label="the project")
    key, slash, row_id = resource.partition("/")
    rtype = ctx.registry.get(key)
    if rtype is None or not slash:
        raise InvalidRequest.fields({"resource": ["must be a type and an id, such as compute.instance/i-0123."]})
    if action and not action.startswith(f"{key}."):
        raise InvalidRequest.fields({"resource": [f"{action} is no action on a {rtype.label.lower()}."]})
    return target_of(find(ctx, rtype, row_id))


def user_named(ctx: Context, named: str, target: Target) -> User:
    """Oneself, or, with the permission to simulate, somebody of the project. Raises InvalidRequest or Forbidden."""
    text = storable(named)
    if text in {ctx.principal.user_id, ctx.principal.username}:
        return ctx.db.get_one(User, ctx.principal.user_id)
    authorize(ctx, SIMULATE, Target(target.project_id, label="the rights of others"))
    query = select(User).where((User.id == text) | (User.username == text))
    if not decide(ctx, SIMULATE, Target(None)).allowed:
        query = query.where(User.id.in_(select(Membership.user_id).where(Membership.project_id == target.project_id)))
    user = ctx.db.scalars(query).first()
    if user is None:
        raise InvalidRequest.fields({"user": [f"There is no user {named[:80]} here."]})
    return user


def _as(ctx: Context, user: User, question: Question) -> Context:
    principal = replace(principal_of(user, "session:simulated"), mfa=question.mfa)
    whole = iam.with_access(ctx.db, principal, ctx.db.scalar(select(iam.REVISION)))
    return replace(ctx, principal=whole, source_ip=question.ip or ctx.source_ip, inputs=question.inputs)


@dataclass(frozen=True, slots=True)
class Able:
    """Those of a page of users who may do something, by name, and the name behind which the next page begins, empty at the end."""

    found: Sequence[tuple[User, Decision]]
    next_after: str


def who_can(ctx: Context, action: str, target: Target, *, after: str = "") -> Able:
    """Who may do an action on something, among the 500 users behind a name. Raises Forbidden or InvalidRequest."""
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
    asked = users[:MAX_USERS]
    answers = [(user, decide(_as(ctx, user, Question(user.id, action)), action, target)) for user in asked]
    return Able([(user, decision) for user, decision in answers if decision.allowed], asked[-1].username if len(users) > MAX_USERS else "")


def what_can(ctx: Context, named: str, resource: str = "") -> list[Decision]:
    """The decision for every action on something, or in the project. Raises Forbidden, InvalidRequest or NotFound."""
    target = target_named(ctx, resource, "")
    user = user_named(ctx, named, target)
    seen, prefix = _as(ctx, user, Question(user.id, "")), f"{resource.partition('/')[0]}." if resource else ""
    return [decide(seen, action, target) for action in sorted(ctx.registry.permissions) if action.startswith(prefix)]
