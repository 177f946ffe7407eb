"""Who may do what: roles are policies, a decision names the statement that made it, lists are filtered in SQL.

Levels of permissions, from weakest to strongest: `read`, `audit` (read what others did), `write`, `delete`, `manage` (a project's members),
`platform` (flavors, users, all projects). Whatever no statement allows is denied.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from portal.kernel.context import Context, Principal
from portal.kernel.errors import Forbidden
from portal.kernel.resource import Reach, Resource

LEVELS = ("read", "audit", "write", "delete", "manage", "platform")


@dataclass(frozen=True, slots=True)
class Statement:
    """Allows the actions that match a pattern and a level; `own` restricts it to rows the principal owns, `shared` to shared rows."""

    sid: str
    levels: frozenset[str]
    actions: tuple[str, ...] = ("*",)
    own: bool = False
    shared: bool = False

    def covers(self, action: str, level: str) -> bool:
        """Whether the statement speaks of this action at all."""
        return level in self.levels and any(fnmatchcase(action, pattern) for pattern in self.actions)


@dataclass(frozen=True, slots=True)
class Policy:
    """A named set of statements."""

    name: str
    label: str
    summary: str
    statements: tuple[Statement, ...]


ROLES = {
    policy.name: policy
    for policy in (
        Policy("platform_admin", "Platform admin", "May do everything everywhere.", (Statement("Everything", frozenset(LEVELS)),)),
        Policy(
            "auditor", "Auditor", "Reads everything, audit log included, and changes nothing.",
            (Statement("ReadAll", frozenset({"read", "audit"})),),
        ),
        Policy(
            "project_admin", "Project admin", "May do everything in the project.",
            (Statement("AllInProject", frozenset({"read", "audit", "write", "delete", "manage"})),),
        ),
        Policy(
            "developer", "Developer", "Creates, changes and runs resources; deletes what is their own.",
            (Statement("Build", frozenset({"read", "write"})), Statement("DeleteOwn", frozenset({"delete"}), own=True)),
        ),
        Policy("viewer", "Viewer", "Sees everything in the project and changes nothing.", (Statement("Look", frozenset({"read"})),)),
    )
}  # fmt: skip
EVERYONE = Policy("everyone", "Everyone", "What every signed-in user may do.", (Statement("ReadShared", frozenset({"read"}), shared=True),))


@dataclass(frozen=True, slots=True)
class Target:
    """What an action is aimed at, as far as a decision needs to know."""

    project_id: str | None
    owner_id: str | None = None
    shared: bool = False
    label: str = ""


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether an action is allowed, and which statement of which policy decided; both are empty where nothing allowed it."""

    allowed: bool
    action: str
    policy: str = ""
    statement: str = ""
    because: str = ""


def target_of(row: Resource) -> Target:
    """A row as the target of an action."""
    return Target(row.project_of(), row.owner_id, row.is_shared(), f"{row.name} ({row.id})")


def decide(ctx: Context, action: str, target: Target) -> Decision:
    """Decide without raising. An action that was never declared is denied."""
    level = ctx.registry.permissions.get(action, "")
    if ctx.principal.is_system:
        return Decision(allowed=True, action=action, policy="system")
    for policy in _policies(ctx.principal, target.project_id):
        for statement in policy.statements:
            if statement.covers(action, level) and _holds(statement, ctx.principal, target):
                return Decision(allowed=True, action=action, policy=policy.name, statement=statement.sid)
    return Decision(allowed=False, action=action, because=_why_not(ctx, level, target))


def _policies(principal: Principal, project_id: str | None) -> Iterable[Policy]:
    if principal.user_id is not None:
        yield EVERYONE
    for grant in principal.grants:
        if grant.project_id is None or grant.project_id == project_id:
            yield ROLES[grant.role]


def _holds(statement: Statement, principal: Principal, target: Target) -> bool:
    if statement.shared and not target.shared:
        return False
    return not statement.own or (target.owner_id is not None and target.owner_id == principal.user_id)


def _why_not(ctx: Context, level: str, target: Target) -> str:
    held = sorted({ROLES[g.role].label for g in ctx.principal.grants if g.project_id in {None, target.project_id}})
    enough = [p.label for p in ROLES.values() if any(level in s.levels and not s.own for s in p.statements)]
    mine = f"Your role here is {', '.join(held)}" if held else "You have no role here"
    return f"{mine}; no statement of it allows this. Roles that do: {', '.join(enough) or 'none'}."


def authorize(ctx: Context, action: str, target: Target) -> Decision:
    """Decide, and raise Forbidden with the reason if the answer is no."""
    decision = decide(ctx, action, target)
    if not decision.allowed:
        raise Forbidden(
            f"{action} on {target.label or 'this project'} is not allowed. {decision.because}",
            details={"action": action, "resource": target.label, "reason": decision.because},
        )
    return decision


def reach(ctx: Context, action: str) -> Reach:
    """The rows that the principal's grants of an action cover, for a WHERE clause."""
    principal = ctx.principal
    if principal.is_system:
        return Reach(None, everything=True)
    level = ctx.registry.permissions.get(action, "")
    whole, own = set[str | None](), set[str | None]()
    for grant in principal.grants:
        for statement in ROLES[grant.role].statements:
            if statement.covers(action, level) and not statement.shared:
                (own if statement.own else whole).add(grant.project_id)
    if None in whole:
        return Reach(principal.user_id, everything=True, shared=True)
    shared = principal.user_id is not None and any(statement.covers(action, level) for statement in EVERYONE.statements)
    return Reach(principal.user_id, projects=frozenset(p for p in whole if p), own_in=frozenset(p for p in own if p), shared=shared)


def role_matrix(permissions: Sequence[str], levels: Sequence[str]) -> list[tuple[str, dict[str, str]]]:
    """(permission, role → `yes`, `own` or ``) for documents and the golden file."""
    rows = []
    for action, level in zip(permissions, levels, strict=True):
        answers = {}
        for role in ROLES.values():
            matching = [s for s in role.statements if s.covers(action, level)]
            answers[role.name] = "yes" if any(not s.own for s in matching) else "own" if matching else ""
        rows.append((action, answers))
    return rows
