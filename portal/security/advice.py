"""What is wrong or odd about a policy's document, said while it is being written: problems with their path, and statements that do nothing."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from ipaddress import ip_network
from typing import Any

from portal.kernel.db import now
from portal.kernel.policy import OPERATORS, Asked, Condition, Statement, is_like, moment
from portal.kernel.policy_documents import PolicyError, Problem, parse

BELOW, ABOVE = ("LessThan", "LessThanEquals"), ("GreaterThan", "GreaterThanEquals")
NO_ONE = Asked()
FIELD = "request.input/"
ALWAYS_KNOWN = frozenset({"resource.shared", "principal.mfa", "request.time"})


@dataclass(frozen=True, slots=True)
class Advice:
    """Problems keep a document from being used; warnings do not. `statements` is empty where there are problems."""

    problems: Sequence[Problem]
    warnings: Sequence[Problem]
    statements: tuple[Statement, ...] = ()


def advice(document: Any, permissions: Mapping[str, str], fields: Mapping[str, Mapping[str, str]]) -> Advice:
    """Everything that can be said of a document by itself.

    `permissions` (name → level) are the actions that there are, `fields` (action → name in a request → name for conditions) what their requests hold.
    """
    try:
        statements = parse(document, permissions)
    except PolicyError as error:
        return Advice(error.problems, ())
    found = [warning for number, _ in enumerate(statements) for warning in _warnings(statements, number, permissions)]
    for number, statement in enumerate(statements):
        found += _unknown_fields(statement, f"Statement[{number}].Condition", [fields.get(each, {}) for each in actions_of(statement, permissions)])
    return Advice((), found, statements)


def _warnings(statements: Sequence[Statement], number: int, permissions: Mapping[str, str]) -> Iterable[Problem]:
    statement, path = statements[number], f"Statement[{number}]"
    covered = actions_of(statement, permissions)
    if statement.allows and len(covered) == len(permissions) and _is_unbounded(statement, {action.rpartition(".")[0] for action in covered}):
        yield Problem(path, "allows every action on every resource, without a condition: whoever holds it may do everything where it counts")
    yield from _foreign_resources(statement, path, covered)
    yield from _never(statement, path)
    others = [each for each in statements if each is not statement and not each.allows and each.is_plain]
    denying = next((each for each in others if covered <= actions_of(each, permissions)), None)
    # Of two denials that say the same, the second is the one too many.
    if denying is not None and (
        statement.allows or not statement.is_plain or statements.index(denying) < number or covered < actions_of(denying, permissions)
    ):
        yield Problem(path, f"has no effect: {denying.sid} denies all of it")


def _is_unbounded(statement: Statement, types: Iterable[str]) -> bool:
    """Whether a statement speaks of every resource under every condition, however it says so."""
    named = [resource.partition("/") for resource in statement.resources]
    everywhere = not named or any(set(row_id) == {"*"} and all(is_like(each, kind) for each in types) for kind, _, row_id in named)
    return everywhere and all(_holds_always(condition) for condition in statement.conditions)


def _holds_always(condition: Condition) -> bool:
    # Whoever asks over the network has an address, and whatever there is has an id.
    if condition.key not in {*ALWAYS_KNOWN, "request.ip", "resource.id"}:
        return False
    if condition.operator == "Null":
        return condition.values == ("false",)
    return condition.operator == "StringLike" and any(set(value) == {"*"} for value in condition.values)


def actions_of(statement: Statement, permissions: Mapping[str, str]) -> set[str]:
    """The actions that a statement speaks of."""
    return {action for action, level in permissions.items() if statement.covers(action, level)}


def _foreign_resources(statement: Statement, path: str, covered: set[str]) -> Iterable[Problem]:
    types = {action.rpartition(".")[0] for action in covered}
    for number, resource in enumerate(statement.resources):
        kind = resource.partition("/")[0]
        if not any(is_like(each, kind) for each in types):
            yield Problem(f"{path}.Resource[{number}]", f"does nothing: none of the actions is one on {kind}")


def _unknown_fields(statement: Statement, path: str, held: Sequence[Mapping[str, str]]) -> Iterable[Problem]:
    for condition in statement.conditions:
        name = condition.key.removeprefix(FIELD)
        if not condition.key.startswith(FIELD) or any(name in each.values() for each in held):
            continue
        meant = sorted({each[name] for each in held if name in each})
        why = f"requests may write it so, conditions know it as {FIELD}{meant[0]}" if meant else "no request for any of the actions has such a field"
        holds = OPERATORS[condition.operator].negated or (condition.operator == "Null" and condition.values == ("true",))
        yield Problem(path, f"{'always' if holds else 'can never'} hold{'s' if holds else ''}: {condition.key}: {why}")


# -- conditions that never hold --------------------------------------------------------------------------------------------------------------


def _never(statement: Statement, path: str) -> Iterable[Problem]:
    for key, why in impossible(statement):
        yield Problem(f"{path}.Condition", f"can never hold: {key} {why}, so the statement does nothing")


def impossible(statement: Statement) -> list[tuple[str, str]]:
    """(key, why) of every condition that can never hold; with one of them the statement says nothing."""
    by_key: dict[str, list[Condition]] = {}
    for condition in statement.conditions:
        by_key.setdefault(condition.key, []).append(condition)
    return [(key, why) for key, conditions in by_key.items() if (why := _why_never(conditions))]


def _why_never(conditions: Sequence[Condition]) -> str:
    """Why conditions on one key, all of which have to hold, cannot; empty where they can, or where that depends on who asks."""
    if any("${" in value for each in conditions for value in each.values):
        return ""
    if conditions[0].key in ALWAYS_KNOWN and any(each.operator == "Null" and each.values == ("true",) for each in conditions):
        return "is never absent"
    asking = [each for each in conditions if each.operator != "Null" and not OPERATORS[each.operator].negated]
    if asking and any(each.operator == "Null" and each.values == ("true",) for each in conditions):
        return "has to be absent and to have a value"
    candidates = _candidates(conditions)
    if candidates is not None and not any(all(each.holds(value, NO_ONE) for each in conditions) for value in candidates):
        return "would have to have several values at once" if len(asking) > 1 else "is required and excluded"
    if _is_covered(conditions):
        return "is required and excluded"
    return _empty_range(conditions)


def _candidates(conditions: Sequence[Condition]) -> Sequence[Any] | None:
    """Every value that can be meant, where a condition names them one by one."""
    operators = {each.operator: each.values for each in conditions}
    if "StringEquals" in operators:
        return operators["StringEquals"]
    # A number can be written in several ways: where its text is compared as well, the ways cannot be counted.
    if "NumericEquals" in operators and not any(name.startswith("String") for name in operators):
        return operators["NumericEquals"]
    return (True, False) if any(each.operator == "Bool" for each in conditions) else None


def _is_covered(conditions: Sequence[Condition]) -> bool:
    """Whether whatever a pattern or network lets in is shut out by the same one, or by one that is wider."""
    for wanted, shut in (("StringLike", ("StringNotLike",)), ("IpAddress", ("NotIpAddress",))):
        inside = [each.values for each in conditions if each.operator == wanted]
        outside = [value for each in conditions if each.operator in shut for value in each.values]
        if inside and all(any(_is_within(wanted, value, other) for other in outside) for value in inside[0]):
            return True
    return False


def _is_within(operator: str, value: str, other: str) -> bool:
    if operator == "StringLike":
        # A pattern is text, too; but `?` in the wider one must not stand for a `*` that may be nothing.
        return value == other or (("?" not in other or "*" not in value) and is_like(value, other))
    inner, outer = ip_network(value), ip_network(other)
    return inner.version == outer.version and inner.subnet_of(outer)  # type: ignore[arg-type] # of one version


def _empty_range(conditions: Sequence[Condition]) -> str:
    for kind, parse_bound in (("Numeric", float), ("Date", moment)):
        # Of several values one is enough: the widest counts.
        top = [_bound(each, max, parse_bound) for each in conditions if each.operator in {kind + end for end in BELOW}]
        bottom = [_bound(each, min, parse_bound) for each in conditions if each.operator in {kind + end for end in ABOVE}]
        if any(low > high or (low == high and not (with_low and with_high)) for high, with_high in top for low, with_low in bottom):
            return "would have to be above its upper bound"
        if kind == "Date" and any(isinstance(high, datetime) and high < now() for high, _ in top):
            return "is over by now"
    return ""


def _bound(condition: Condition, widest: Any, parse_bound: Any) -> tuple[Any, bool]:
    return widest(parse_bound(value) for value in condition.values), condition.operator.endswith("Equals")
