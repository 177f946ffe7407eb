"""Who may do what: roles are policies, a decision names the statement that made it, lists are filtered in SQL by the same statements.

Levels of permissions, from weakest to strongest: `read`, `audit` (read what others did), `write`, `delete`, `manage` (a project's members),
`platform` (flavors, users, all projects). What a statement denies is denied; what none allows is denied too; what a limit (the scopes of a token,
the permission boundary of a project) does not allow is denied even where a statement allows it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from sqlalchemy import ColumnElement, and_, not_, or_, true

from portal.kernel.context import Context, Grant, Limit, Principal
from portal.kernel.db import now
from portal.kernel.errors import Forbidden
from portal.kernel.policy import LEVELS, Asked, Columns, Condition, Statement, Target
from portal.kernel.policy_index import Rule
from portal.kernel.policy_rows import in_project
from portal.kernel.policy_rules import Rules, RuleSet
from portal.kernel.resource import Resource

__all__ = [
    "EVERYONE", "IMAGINED", "LEVELS", "ROLES", "Access", "Decision", "Policy", "Reach", "Target", "authorize", "beyond_limits", "decide", "reach", "refuse_escalation",
    "refuse_relief", "role_matrix", "statements_of", "target_of", "trace",
]  # fmt: skip
ADMIN, AUDITOR = "platform_admin", "auditor"
LOOKING = frozenset({"read", "audit"})
# Services by which a platform is administered.
MANAGED = frozenset({"identity", "security", "core"})
ByLimit = tuple[Rules, tuple[tuple[Limit, Rules], ...]]
# How the credential ends of somebody about whom another asks.
IMAGINED = ":simulated"


@dataclass(frozen=True, slots=True)
class Policy:
    """A named set of statements."""

    name: str
    label: str
    summary: str
    statements: tuple[Statement, ...]


OWN = Condition("StringEquals", "resource.owner", ("${principal.id}",))
SHARED = Condition("Bool", "resource.shared", ("true",))
ROLES = {
    policy.name: policy
    for policy in (
        Policy("platform_admin", "Platform admin", "May do everything everywhere.", (Statement("Everything", allows=True, actions=("*",)),)),
        Policy(
            "auditor", "Auditor", "Reads everything, audit log included, and changes nothing.",
            (Statement("ReadAll", allows=True, actions=("*:read", "*:audit")),),
        ),
        Policy(
            "project_admin", "Project admin", "May do everything in the project.",
            (Statement("AllInProject", allows=True, actions=("*:read", "*:audit", "*:write", "*:delete", "*:manage")),),
        ),
        Policy(
            "developer", "Developer", "Creates, changes and runs resources; deletes what is their own.",
            (Statement("Build", allows=True, actions=("*:read", "*:write")),
             Statement("DeleteOwn", allows=True, actions=("*:delete",), conditions=(OWN,))),
        ),
        Policy("viewer", "Viewer", "Sees everything in the project and changes nothing.", (Statement("Look", allows=True, actions=("*:read",)),)),
    )
}  # fmt: skip
EVERYONE = Policy(
    "everyone",
    "Everyone",
    "What every signed-in user may do.",
    (Statement("ReadShared", allows=True, actions=("*:read",), conditions=(SHARED,)),),
)


def statements_of(grant: Grant) -> tuple[Statement, ...]:
    """The statements of a built-in role, or of the policy that the grant carries."""
    return grant.statements or (ROLES[grant.role].statements if grant.role in ROLES else ())


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether an action is allowed, and which statement of which policy decided; both are empty where nothing allowed it."""

    allowed: bool
    action: str
    policy: str = ""
    statement: str = ""
    because: str = ""


@dataclass(frozen=True, slots=True)
class Step:
    """One statement that was looked at on the way to a decision: why it did not apply, empty if it did."""

    policy: str
    via: str
    project_id: str | None
    statement: str
    effect: str
    mismatch: str


class Access:
    """What a principal may do, compiled once per action and then kept; actions of a type for which the same statements count share it.

    What a project lays on people does not keep an administrator of the platform from administering it, nor its auditor from looking: of the services
    in `MANAGED`, denials of projects and permission boundaries do not count for them. Otherwise whoever made a project could shut out everybody else,
    themselves included.
    """

    def __init__(self, grants: Sequence[Grant], limits: Sequence[Limit]) -> None:
        """`limits` must all allow what a grant allows."""
        self.grants, self.limits = grants, limits
        self.projects = frozenset(grant.project_id for grant in grants if grant.project_id is not None)
        self._parts = [[Rule(statement, grant) for grant in part for statement in statements_of(grant)] for part in (
            grants, *([Grant(limit.label, None, statements=limit.statements)] for limit in limits)
        )]  # fmt: skip
        everywhere = {grant.role for grant in grants if grant.project_id is None and not grant.statements}
        self._is_admin, self._is_auditor = ADMIN in everywhere, AUDITOR in everywhere
        self._of_action: dict[tuple[str, bool, bool], ByLimit] = {}
        self._shared: dict[tuple[Any, ...], Rules] = {}

    def of(self, action: str, level: str) -> "ByLimit":
        """(rules of the grants, rules of each limit) for an action."""
        manages = (self._is_admin or (self._is_auditor and level in LOOKING)) and action.partition(".")[0] in MANAGED
        return self._found(action, level, denials=not manages, boundaries=not manages)

    def to_give(self, action: str, level: str) -> "ByLimit":
        """As `of`, where it is asked what somebody could give: of administrators of the platform, all that they have beside what projects lay on them."""
        return self._found(action, level, denials=not self._is_admin, boundaries=not self._is_admin)

    def _found(self, action: str, level: str, *, denials: bool, boundaries: bool) -> "ByLimit":
        """With the `denials` of projects and with `boundaries`, or without."""
        key = (action, denials, boundaries)
        found = self._of_action.get(key)
        if found is None:
            first = self._rules(0, action, level, denials=denials)
            counting = [(number, limit) for number, limit in enumerate(self.limits, 1) if boundaries or limit.project_id is None]
            found = self._of_action[key] = (first, tuple((limit, self._rules(number, action, level)) for number, limit in counting))
        return found

    def _rules(self, part: int, action: str, level: str, *, denials: bool = True) -> Rules:
        rules = [rule for rule in self._parts[part] if rule.statement.covers(action, level)]
        if not denials:
            rules = [rule for rule in rules if rule.statement.allows or rule.scope is None]
        type_key = action.rpartition(".")[0]
        key = (part, type_key, *map(id, rules))
        if key not in self._shared:
            denies, allows = [rule for rule in rules if not rule.statement.allows], [rule for rule in rules if rule.statement.allows]
            self._shared[key] = Rules(RuleSet(type_key, denies), RuleSet(type_key, allows))
        return self._shared[key]


NOTHING = Rules(RuleSet("", ()), RuleSet("", ()))


@lru_cache(maxsize=1024)
def _compiled(grants: tuple[Grant, ...], limits: tuple[Limit, ...], *, signed_in: bool) -> Access:
    everyone = (Grant(EVERYONE.name, None, label=EVERYONE.label, statements=EVERYONE.statements),) if signed_in else ()
    return Access((*everyone, *grants), limits)


def access_of(principal: Principal) -> Access:
    """What the principal may do."""
    return principal.access or _compiled(principal.grants, principal.limits, signed_in=principal.user_id is not None)


def compiled(principal: Principal) -> Access:
    """What a principal may do, for whoever keeps it with the principal."""
    return _compiled.__wrapped__(principal.grants, principal.limits, signed_in=principal.user_id is not None)


def asked_of(ctx: Context) -> Asked:
    """What is known of the request."""
    who = ctx.principal
    return Asked(
        who.user_id, who.username, who.mfa, who.credential.partition(":")[0], ctx.source_ip, ctx.at or now(), _tags(ctx.inputs.get("tags")), ctx.inputs,
        access_of(who).projects,
    )  # fmt: skip


def _tags(given: object) -> Mapping[str, str]:
    return {str(key): str(value) for key, value in given.items()} if isinstance(given, dict) else {}


def target_of(row: Resource) -> Target:
    """A row as the target of an action."""
    return Target(row.project_of(), row.owner_id, row.is_shared(), f"{row.name} ({row.id})", row.id, row.name, row.tags or {}, row.shared_projects())


def decide(ctx: Context, action: str, target: Target) -> Decision:
    """Decide without raising. An action that was never declared is denied."""
    if ctx.principal.is_system:
        return Decision(allowed=True, action=action, policy="system")
    level = ctx.registry.permissions.get(action)
    if level is None:
        return Decision(allowed=False, action=action, because="There is no such permission.")
    asked = asked_of(ctx)
    rules, limits = access_of(ctx.principal).of(action, level)
    allowed, rule = rules.decide(target, asked)
    if rule is None:
        return Decision(allowed=False, action=action, because=_why_not(ctx, action, level, target))
    policy, sid = rule.grant.name, rule.statement.sid
    if not allowed:
        return Decision(allowed=False, action=action, policy=policy, statement=sid, because=f"Statement {sid} of {policy} denies it.")
    return _beyond(limits, action, target, asked) or Decision(allowed=True, action=action, policy=rule.grant.role, statement=sid)


def beyond_limits(ctx: Context, action: str, target: Target) -> Decision | None:
    """The refusal of a limit of the caller's that does not allow an action, whoever else would; None where all of them do."""
    level = ctx.registry.permissions.get(action)
    if level is None or ctx.principal.is_system:
        return None
    return _beyond(access_of(ctx.principal).of(action, level)[1], action, target, asked_of(ctx))


def _beyond(limits: Iterable[tuple[Limit, Rules]], action: str, target: Target, asked: Asked) -> Decision | None:
    for limit, its_rules in limits:
        if limit.project_id in {None, target.project_id} and not its_rules.decide(target, asked)[0]:
            return Decision(allowed=False, action=action, policy=limit.label, because=f"{limit.label} does not allow it.")
    return None


def _why_not(ctx: Context, action: str, level: str, target: Target) -> str:
    held = sorted({grant.name for grant in ctx.principal.grants if grant.project_id in {None, target.project_id}})
    enough = [p.label for p in ROLES.values() if any(s.covers(action, level) and s.is_plain for s in p.statements)]
    whose, who = ("Their", "They") if ctx.principal.credential.endswith(IMAGINED) else ("Your", "You")
    nothing = f"{who} have no role {'here' if target.project_id is not None else 'on the platform'}"
    mine = f"{whose} role here is {', '.join(held)}" if held else nothing
    return f"{mine}; no statement of it allows this. Roles that do: {', '.join(enough) or 'none'}."


def trace(ctx: Context, action: str, target: Target) -> list[Step]:
    """Every statement that speaks of an action, and whether it applies to the target: the path to the decision."""
    level = ctx.registry.permissions.get(action)
    if level is None or ctx.principal.is_system:
        return []
    asked, access = asked_of(ctx), access_of(ctx.principal)
    rules, limits = access.of(action, level)
    found = [(rules, "")] + [(its, limit.label) for limit, its in limits if limit.project_id in {None, target.project_id}]
    return [
        _step(rule, label, target, asked, each.type_key) for part, label in found for each in (part.denies, part.allows) for rule in each.rules
    ]  # fmt: skip


def _step(rule: Rule, limit: str, target: Target, asked: Asked, type_key: str) -> Step:
    elsewhere = "" if rule.scope in {None, target.project_id} else "Holds in another project"
    mismatch = elsewhere or rule.statement.mismatch(type_key, target, asked)
    effect = "Allow" if rule.statement.allows else "Deny"
    return Step(limit or rule.grant.name, rule.grant.via, rule.scope, rule.statement.sid, effect, mismatch)


def authorize(ctx: Context, action: str, target: Target) -> Decision:
    """Decide, and raise Forbidden with the reason if the answer is no."""
    decision = decide(ctx, action, target)
    if not decision.allowed:
        raise Forbidden(
            f"{action} on {target.label or 'this project'} is not allowed. {decision.because}",
            details={
                "action": action, "resource": target.label, "reason": decision.because, "policy": decision.policy, "statement": decision.statement,
            },
        )  # fmt: skip
    return decision


def refuse_escalation(ctx: Context, statements: Iterable[Statement], project_id: str | None, *, below: str = "") -> None:
    """Raise Forbidden unless the caller may do, without condition and in all of a project (None: everywhere), whatever statements allow.

    Stricter than needed for statements with conditions of their own, and therefore safe: nobody gives what they do not have. With `below`, actions
    of that level are not looked at.
    """
    allowing = [statement for statement in statements if statement.allows]
    if allowing and (ctx.principal.assumed is not None or ctx.principal.credential.startswith("oauth:")):
        whose = "A session of a role" if ctx.principal.assumed is not None else "An application"
        raise Forbidden(f"{whose} gives nobody rights: they would outlive it. Do that as yourself.", details={"actions": []})
    # What the portal does by itself is offered to nobody: it is no right that could be given.
    own = {name for name, op in ctx.registry.operations().items() if op.internal} if allowing else set()
    missing = [
        action
        for action, level in ctx.registry.permissions.items()
        if level != below
        and action not in own
        and any(statement.covers(action, level) for statement in allowing)
        and not _has_all(_reach_to_give(ctx, action, level), project_id)
    ]
    if missing:
        where = "on the whole platform" if project_id is None else "in this project"
        shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")  # noqa: PLR2004 - a handful
        raise Forbidden(f"You cannot give what you do not have {where}: {shown}.", details={"actions": missing[:100]})


def refuse_relief(ctx: Context, statements: Iterable[Statement], project_id: str | None) -> None:
    """Raise Forbidden unless the caller is free of what statements deny: nobody lifts what was laid on them.

    Inside a project, actions of the platform are not looked at: there is nothing to be lifted.
    """
    denied = [Statement(each.sid, allows=True, actions=each.actions) for each in statements if not each.allows]
    refuse_escalation(ctx, denied, project_id, below="" if project_id is None else "platform")


def _has_all(covered: "Reach", project_id: str | None) -> bool:
    return covered.everything if project_id is None else covered.whole(project_id)


def _reach_to_give(ctx: Context, action: str, level: str) -> "Reach":
    return Reach(Asked(), None) if ctx.principal.is_system else Reach(asked_of(ctx), *access_of(ctx.principal).to_give(action, level))


@dataclass(frozen=True, slots=True)
class Reach:
    """The rows for which an action is allowed, for a WHERE clause. Without rules it is everything."""

    asked: Asked
    rules: Rules | None
    limits: tuple[tuple[Limit, Rules], ...] = ()

    @property
    def everything(self) -> bool:
        """Whether every row is covered, whatever it is."""
        return self.rules is None or (self.rules.is_whole(None) and all(rules.is_whole(None) for _, rules in self.limits))

    @property
    def nothing(self) -> bool:
        """Whether no row can be covered, so that none need be looked for."""
        return self.rules is not None and not self.rules.allows.rules

    def whole(self, project_id: str) -> bool:
        """Whether every row of a project is covered, whatever it is."""
        if self.rules is None:
            return True
        limits = [rules for limit, rules in self.limits if limit.project_id in {None, project_id}]
        return self.rules.is_whole(project_id) and all(rules.is_whole(project_id) for rules in limits)

    def where(self, columns: Columns) -> ColumnElement[bool]:
        """The rows of a table that are covered."""
        if self.rules is None:
            return true()
        parts = [self.rules.where(columns, self.asked)]
        for limit, rules in self.limits:
            inside = rules.where(columns, self.asked)
            parts.append(inside if limit.project_id is None else or_(not_(in_project(columns, [limit.project_id])), inside))
        return and_(*parts)

    def rows(self, model: type[Any]) -> ColumnElement[bool]:
        """The rows of a resource type that are covered."""
        return self.where(model.facts())


def reach(ctx: Context, action: str) -> Reach:
    """The rows that the principal may do an action on."""
    if ctx.principal.is_system:
        return Reach(Asked(), None)
    level = ctx.registry.permissions.get(action)
    rules, limits = access_of(ctx.principal).of(action, level) if level is not None else (NOTHING, ())
    return Reach(asked_of(ctx), rules, limits)


def role_matrix(permissions: Sequence[str], levels: Sequence[str]) -> list[tuple[str, dict[str, str]]]:
    """(permission, role → `yes`, `own` or ``) for documents and the golden file."""
    rows = []
    for action, level in zip(permissions, levels, strict=True):
        answers = {}
        for role in ROLES.values():
            matching = [s for s in role.statements if s.covers(action, level)]
            answers[role.name] = "yes" if any(s.is_plain for s in matching) else "own" if matching else ""
        rows.append((action, answers))
    return rows
