"""Documents of IAM policies: read with the path to each error, and written from statements.

A document is `{"Version": "2026-11-01", "Statement": [{"Sid", "Effect", "Action", "Resource", "Condition"}]}`. An action is the name of a
permission (`compute.instance.start`, with `*` and `?`) or a service and an access level (`compute:read`, `*:write`). A resource is `*` or a
type and an id (`compute.instance/i-12*`). Conditions compare what is known of resource, request and principal.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from portal.kernel.policy import BOOLEANS, KEYS, LEVELS, OPERATORS, PLAIN_KEYS, PREFIXES, TIME, Condition, Statement, covers, is_like

VERSION = "2026-11-01"
MAX_BYTES = 10 << 10
MAX_STATEMENTS = 100
MAX_VALUES = 100
MAX_TEXT = 255
STATEMENT_KEYS = ("Sid", "Effect", "Action", "Resource", "Condition")
SID = re.compile(r"[A-Za-z0-9_-]{1,64}")
ACTION = re.compile(r"[a-z0-9_.*?-]+(:[a-z*]+)?")
VARIABLES = ("${principal.id}", "${principal.name}")


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with a document, and where: `Statement[0].Action[1]`."""

    path: str
    message: str


class PolicyError(ValueError):
    """A document that cannot be used, with everything that is wrong with it."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("; ".join(f"{each.path}: {each.message}" for each in problems))
        self.problems = list(problems)


def parse(document: Any, permissions: Mapping[str, str]) -> tuple[Statement, ...]:
    """The statements of a document; `permissions` (name → level) are the actions that there are. Raises PolicyError with all problems."""
    problems: list[Problem] = []
    if not isinstance(document, dict):
        raise PolicyError([Problem("", 'must be an object with "Version" and "Statement"')])
    size = len(json.dumps(document, ensure_ascii=False).encode("utf-8", "surrogatepass"))
    if size > MAX_BYTES:
        raise PolicyError([Problem("", f"is {size:,} bytes long; a policy may have {MAX_BYTES:,}")])
    problems += [
        Problem(str(key)[:80], "is not known; a policy has Version and Statement") for key in document if key not in {"Version", "Statement"}
    ]
    if document.get("Version") != VERSION:
        problems.append(Problem("Version", f'must be "{VERSION}"'))
    given = document.get("Statement")
    if isinstance(given, dict):
        given = [given]
    if not isinstance(given, list) or not given:
        raise PolicyError([*problems, Problem("Statement", "must be a list of at least one statement")])
    if len(given) > MAX_STATEMENTS:
        raise PolicyError([*problems, Problem("Statement", f"has {len(given):,} statements; at most {MAX_STATEMENTS} are accepted")])
    statements = [_statement(f"Statement[{number}]", each, number, permissions, problems) for number, each in enumerate(given)]
    sids = [each.sid for each in statements]
    problems += [Problem(f"Statement[{n}].Sid", f"{sid} is there twice") for n, sid in enumerate(sids) if sid in sids[:n]]
    if problems:
        raise PolicyError(problems)
    return tuple(statements)


def statements_in(document: Mapping[str, Any]) -> tuple[Statement, ...]:
    """The statements of a document that was accepted once; an action that a later version no longer knows stands for nothing."""
    given = document["Statement"]
    problems: list[Problem] = []
    return tuple(_statement("", each, number, {}, problems) for number, each in enumerate(given if isinstance(given, list) else [given]))


def _statement(path: str, given: Any, number: int, permissions: Mapping[str, str], problems: list[Problem]) -> Statement:
    if not isinstance(given, dict):
        problems.append(Problem(path, "must be an object"))
        return Statement(f"Statement{number}", allows=False, actions=())
    problems += [
        Problem(f"{path}.{str(key)[:80]}", f"is not known; there are {', '.join(STATEMENT_KEYS)}") for key in given if key not in STATEMENT_KEYS
    ]
    sid = given.get("Sid", f"Statement{number}")
    if not isinstance(sid, str) or not SID.fullmatch(sid):
        problems.append(Problem(f"{path}.Sid", "must be 1 to 64 letters, digits, - or _"))
        sid = f"Statement{number}"
    if given.get("Effect") not in {"Allow", "Deny"}:
        problems.append(Problem(f"{path}.Effect", 'must be "Allow" or "Deny"'))
    actions = _texts(f"{path}.Action", given.get("Action"), problems)
    for place, action in actions:
        if why := _wrong_action(action, permissions):
            problems.append(Problem(place, why))
    resources = _texts(f"{path}.Resource", given.get("Resource"), problems)
    types = {name.rpartition(".")[0] for name in permissions}
    for place, resource in resources:
        kind, slash, wanted = resource.partition("/")
        if resource != "*" and (not slash or not kind or not wanted):
            problems.append(Problem(place, f"{resource} must be * or a type and an id, such as compute.instance/i-*"))
        elif resource != "*" and not any(is_like(name, kind) for name in types):
            problems.append(Problem(place, f"there is no resource type {kind}"))
    conditions = _conditions(f"{path}.Condition", given.get("Condition", {}), problems)
    named = [text for _, text in resources]
    everything = "*" in named
    return Statement(sid, given.get("Effect") == "Allow", tuple(text for _, text in actions), () if everything else tuple(named), tuple(conditions))


def _wrong_action(action: str, permissions: Mapping[str, str]) -> str:
    if not ACTION.fullmatch(action):
        return f"{action} must be an action such as compute.instance.start, or a service and a level such as compute:read"
    _, colon, level = action.partition(":")
    if colon and not any(is_like(each, level) for each in LEVELS):
        return f"there is no access level {level}; there are {', '.join(LEVELS)}"
    if not any(covers(action, name, of) for name, of in permissions.items()):
        return f"there is no action {action}"
    return ""


def _texts(path: str, given: Any, problems: list[Problem]) -> list[tuple[str, str]]:
    """(path, text) of one text or a list of them."""
    values = given if isinstance(given, list) else [given]
    if given is None or not values or len(values) > MAX_VALUES:
        problems.append(Problem(path, f"must be a text or a list of 1 to {MAX_VALUES} texts"))
        return []
    found = []
    for number, value in enumerate(values):
        place = f"{path}[{number}]" if isinstance(given, list) else path
        if isinstance(value, str) and 1 <= len(value) <= MAX_TEXT and value.isprintable():
            found.append((place, value))
        else:
            problems.append(Problem(place, f"must be a text of 1 to {MAX_TEXT} printable characters"))
    return found


def _conditions(path: str, given: Any, problems: list[Problem]) -> list[Condition]:
    found: list[Condition] = []
    if not isinstance(given, dict):
        problems.append(Problem(path, "must be an object of operators"))
        return found
    for operator, pairs in given.items():
        place = f"{path}.{str(operator)[:80]}"
        if operator not in OPERATORS:
            problems.append(Problem(place, f"is no operator; there are {', '.join(OPERATORS)}"))
        elif not isinstance(pairs, dict) or not pairs:
            problems.append(Problem(place, "must be an object of keys and values"))
        else:
            found += [_condition(f"{place}.{str(key)[:80]}", operator, key, values, problems) for key, values in pairs.items()]
    return found


def _condition(path: str, operator: str, key: str, given: Any, problems: list[Problem]) -> Condition:
    rule = OPERATORS[operator]
    if key not in PLAIN_KEYS and not any(key.startswith(prefix) and len(key) > len(prefix) for prefix in PREFIXES):
        problems.append(Problem(path, f"is no key; there are {', '.join(KEYS)}"))
    elif rule.keys and not any(key == each or (each.endswith("/") and key.startswith(each)) for each in rule.keys):
        problems.append(
            Problem(path, f"cannot be compared by {operator}, which is for {', '.join(f'{k}<name>' if k.endswith('/') else k for k in rule.keys)}")
        )
    elif (key in BOOLEANS and operator not in {"Bool", "Null"}) or (key in TIME and not operator.startswith(("Date", "Null"))):
        problems.append(Problem(path, f"cannot be compared by {operator}"))
    values = _texts(path, [_as_text(value) for value in given] if isinstance(given, list) else _as_text(given), problems)
    for place, value in values:
        if why := rule.check(value) or _wrong_variable(value):
            problems.append(Problem(place, f"{value} {why}"))
    if operator == "Null" and len(values) > 1:
        problems.append(Problem(path, "must be true or false, not both"))
    return Condition(operator, key, tuple(value for _, value in values) or ("",))


def _as_text(value: Any) -> Any:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, int | float) else value


def _wrong_variable(value: str) -> str:
    rest = value
    for name in VARIABLES:
        rest = rest.replace(name, "")
    return f"has an unknown variable; there are {', '.join(VARIABLES)}" if "${" in rest else ""


def as_document(statements: Iterable[Statement]) -> dict[str, Any]:
    """The document that a set of statements came from."""
    return {"Version": VERSION, "Statement": [_as_object(each) for each in statements]}


def _as_object(statement: Statement) -> dict[str, Any]:
    found: dict[str, Any] = {
        "Sid": statement.sid, "Effect": "Allow" if statement.allows else "Deny", "Action": list(statement.actions),
        "Resource": list(statement.resources) or ["*"],
    }  # fmt: skip
    conditions: dict[str, dict[str, list[str]]] = {}
    for condition in statement.conditions:
        conditions.setdefault(condition.operator, {})[condition.key] = list(condition.values)
    return found | ({"Condition": conditions} if conditions else {})
