"""The language of IAM policies: documents of statements, checked with the path to each error, decided for one resource or turned into SQL.

A document is `{"Version": "2026-11-01", "Statement": [{"Sid", "Effect", "Action", "Resource", "Condition"}]}`. An action is the name of a
permission (`compute.instance.start`, with `*` and `?`) or a service and an access level (`compute:read`, `*:write`). A resource is `*` or a
type and an id (`compute.instance/i-12*`). Conditions compare what is known of resource, request and principal.

A key that is not known makes a positive comparison fail and a negative one (`…Not…`) hold; the SQL says the same.
"""

import ipaddress
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from sqlalchemy import Boolean, ColumnElement, String, and_, exists, false, literal, not_, or_, true
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.expression import ColumnElement as Expression

from portal.kernel.tags import ResourceTag

VERSION = "2026-11-01"
LEVELS = ("read", "audit", "write", "delete", "manage", "platform")
MAX_BYTES = 10 << 10
MAX_STATEMENTS = 100
MAX_VALUES = 100
MAX_TEXT = 255
STATEMENT_KEYS = ("Sid", "Effect", "Action", "Resource", "Condition")
SID = re.compile(r"[A-Za-z0-9_-]{1,64}")
ACTION = re.compile(r"[a-z0-9_.*?-]+(:[a-z*]+)?")
VARIABLES = ("${principal.id}", "${principal.name}")
KEYS = {
    "resource.id": "Id of the resource.",
    "resource.name": "Its name.",
    "resource.project": "Id of the project it belongs to.",
    "resource.owner": "Id of the user who owns it.",
    "resource.shared": "`true` for what every signed-in user may use.",
    "resource.tag/<key>": "Value of one of its tags.",
    "request.tag/<key>": "Value of a tag in the request.",
    "request.input/<field>": "Value of a field of the request.",
    "request.ip": "Address that the request comes from.",
    "request.time": "When it arrives, in UTC.",
    "principal.id": "Id of the user or service account.",
    "principal.name": "User name.",
    "principal.mfa": "`true` after a sign-in with a second factor.",
    "principal.credential": "`session`, `token`, `role` or `oauth`.",
}
PLAIN_KEYS = frozenset(key for key in KEYS if "<" not in key)
PREFIXES = tuple(key.partition("<")[0] for key in KEYS if "<" in key)
BOOLEANS = ("resource.shared", "principal.mfa")


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


@dataclass(frozen=True, slots=True)
class Target:
    """What an action is aimed at, as far as a decision needs to know."""

    project_id: str | None
    owner_id: str | None = None
    shared: bool = False
    label: str = ""
    id: str = ""
    name: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Asked:
    """Who asks, and what is known of the request."""

    principal_id: str | None = None
    principal_name: str = ""
    mfa: bool = False
    credential: str = ""
    ip: str = ""
    at: datetime | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    inputs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Columns:
    """SQL expressions for what is known of rows; None for what rows of a table do not have."""

    project: Any = None
    owner: Any = None
    shared: Any = None
    id: Any = None
    name: Any = None


# -- patterns --------------------------------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=4096)
def pattern(text: str) -> re.Pattern[str]:
    """`*` is any text, `?` any one character; everything else is itself."""
    return re.compile("".join(".*" if c == "*" else "." if c == "?" else re.escape(c) for c in text), re.DOTALL)


def is_like(text: str, wanted: str) -> bool:
    """Whether a text matches a pattern."""
    return pattern(wanted).fullmatch(text) is not None


class Like(Expression[bool]):
    """A column that matches a pattern, case-sensitively on every database."""

    inherit_cache = False
    type = Boolean()

    def __init__(self, column: Expression[Any], wanted: str) -> None:
        self.column, self.wanted = column, wanted


@compiles(Like, "sqlite")
def _glob(element: Like, compiler: Any, **more: Any) -> str:
    text = element.wanted.replace("[", "[[]")
    return f"({compiler.process(element.column, **more)} GLOB {compiler.process(literal(text, String()), **more)})"


@compiles(Like)
def _like(element: Like, compiler: Any, **more: Any) -> str:
    escaped = re.sub(r"[\\%_]", lambda found: "\\" + found.group(), element.wanted).replace("*", "%").replace("?", "_")
    return f"({compiler.process(element.column, **more)} LIKE {compiler.process(literal(escaped, String()), **more)} ESCAPE '\\')"


# -- comparisons -----------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Operator:
    """How a condition compares: one known value with one wanted text, any of which is enough; `negated` turns the answer round."""

    compare: Callable[[Any, str], bool]
    check: Callable[[str], str]
    keys: tuple[str, ...] = ()
    negated: bool = False


def _fine(_text: str) -> str:
    return ""


def _must(parse: Callable[[str], object], what: str) -> Callable[[str], str]:
    def check(text: str) -> str:
        try:
            parse(text)
        except (ValueError, OverflowError):
            return f"must be {what}"
        return ""

    return check


@lru_cache(maxsize=4096)
def moment(text: str) -> datetime:
    """ISO 8601; without a zone it is UTC. Raises ValueError."""
    found = datetime.fromisoformat(text)
    return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        msg = "not finite"
        raise ValueError(msg)
    return value


@lru_cache(maxsize=4096)
def _in_network(known: Any, wanted: str) -> bool:
    try:
        address, network = ipaddress.ip_address(str(known)), ipaddress.ip_network(wanted)
    except ValueError:
        return False
    return address.version == network.version and address in network


def _number(compare: Callable[[float, float], bool]) -> Callable[[Any, str], bool]:
    def both(known: Any, wanted: str) -> bool:
        try:
            return compare(_finite(str(known)), _finite(wanted))
        except ValueError:
            return False

    return both


def _date(compare: Callable[[datetime, datetime], bool]) -> Callable[[Any, str], bool]:
    return lambda known, wanted: isinstance(known, datetime) and compare(known, moment(wanted))


def _is_bool(known: Any, wanted: str) -> bool:
    return bool(known) is (wanted == "true")


_bool = _must(("true", "false").index, "true or false")
_cidr, _num = _must(ipaddress.ip_network, "an address or network such as 10.0.0.0/8"), _must(_finite, "a number")
_day = _must(moment, "a moment such as 2026-12-31T00:00:00Z")
NUMERIC, TIME, ADDRESS = ("request.input/", "request.tag/"), ("request.time",), ("request.ip",)
OPERATORS: Mapping[str, Operator] = {
    "StringEquals": Operator(lambda known, wanted: str(known) == wanted, _fine),
    "StringNotEquals": Operator(lambda known, wanted: str(known) == wanted, _fine, negated=True),
    "StringLike": Operator(lambda known, wanted: is_like(str(known), wanted), _fine),
    "StringNotLike": Operator(lambda known, wanted: is_like(str(known), wanted), _fine, negated=True),
    "NumericEquals": Operator(_number(lambda a, b: a == b), _num, NUMERIC),
    "NumericNotEquals": Operator(_number(lambda a, b: a == b), _num, NUMERIC, negated=True),
    "NumericLessThan": Operator(_number(lambda a, b: a < b), _num, NUMERIC),
    "NumericLessThanEquals": Operator(_number(lambda a, b: a <= b), _num, NUMERIC),
    "NumericGreaterThan": Operator(_number(lambda a, b: a > b), _num, NUMERIC),
    "NumericGreaterThanEquals": Operator(_number(lambda a, b: a >= b), _num, NUMERIC),
    "DateLessThan": Operator(_date(lambda a, b: a < b), _day, TIME),
    "DateLessThanEquals": Operator(_date(lambda a, b: a <= b), _day, TIME),
    "DateGreaterThan": Operator(_date(lambda a, b: a > b), _day, TIME),
    "DateGreaterThanEquals": Operator(_date(lambda a, b: a >= b), _day, TIME),
    "IpAddress": Operator(_in_network, _cidr, ADDRESS),
    "NotIpAddress": Operator(_in_network, _cidr, ADDRESS, negated=True),
    "Bool": Operator(_is_bool, _bool, BOOLEANS),
    "Null": Operator(lambda known, wanted: (known is None) is (wanted == "true"), _bool),
}


@dataclass(frozen=True, slots=True)
class Condition:
    """A comparison of a known value with the wanted ones."""

    operator: str
    key: str
    values: tuple[str, ...]

    def holds(self, known: Any, asked: Asked) -> bool:
        """Whether it holds for a known value, None where nothing is known."""
        rule = OPERATORS[self.operator]
        if self.operator == "Null":
            return rule.compare(known, self.values[0])
        if known is None:
            return rule.negated
        return any(rule.compare(known, value) for value in filled(self.values, asked)) is not rule.negated


def filled(values: Iterable[str], asked: Asked) -> list[str]:
    """Wanted values with the principal put in for variables; one that nobody can be is left out."""
    found = []
    for value in values:
        if "${" in value:
            if asked.principal_id is None:
                continue
            found.append(value.replace("${principal.id}", asked.principal_id).replace("${principal.name}", asked.principal_name))
        else:
            found.append(value)
    return found


def of_request(key: str, asked: Asked) -> Any:
    """What is known under a key that is not the resource's; None if nothing is."""
    kind, _, name = key.partition("/")
    if kind == "request.tag":
        return asked.tags.get(name)
    if kind == "request.input":
        return asked.inputs.get(name)
    return {
        "request.ip": asked.ip or None, "request.time": asked.at, "principal.id": asked.principal_id, "principal.name": asked.principal_name or None,
        "principal.mfa": asked.mfa, "principal.credential": asked.credential or None,
    }[kind]  # fmt: skip


def of_resource(key: str, target: Target) -> Any:
    """What is known of the target under a key of the resource; None if nothing is."""
    kind, _, name = key.partition("/")
    if kind == "resource.tag":
        return target.tags.get(name)
    return {
        "resource.id": target.id or None, "resource.name": target.name or None, "resource.project": target.project_id,
        "resource.owner": target.owner_id, "resource.shared": target.shared,
    }[kind]  # fmt: skip


# -- statements ------------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement of a document. `resources` is empty where it speaks of all."""

    sid: str
    allows: bool
    actions: tuple[str, ...]
    resources: tuple[str, ...] = ()
    conditions: tuple[Condition, ...] = ()

    @property
    def is_plain(self) -> bool:
        """Whether it speaks of every resource under every condition."""
        return not self.resources and not self.conditions

    def covers(self, action: str, level: str) -> bool:
        """Whether it speaks of an action of this level."""
        return any(covers(wanted, action, level) for wanted in self.actions)

    def mismatch(self, type_key: str, target: Target, asked: Asked) -> str:
        """Why it does not apply to a target of a type, empty if it does."""
        if self.resources and not any(_names(wanted, type_key, target.id) for wanted in self.resources):
            return f"Resource is {', '.join(self.resources)}"
        for condition in self.conditions:
            known = of_resource(condition.key, target) if condition.key.startswith("resource.") else of_request(condition.key, asked)
            if not condition.holds(known, asked):
                return f"Condition {condition.operator} {condition.key} {', '.join(condition.values)} does not hold"
        return ""

    def where(self, type_key: str, columns: Columns, asked: Asked) -> ColumnElement[bool]:
        """The rows of a type that it applies to; true or false for each, never NULL."""
        parts: list[ColumnElement[bool]] = []
        if self.resources:
            parts.append(or_(false(), *(_named_rows(wanted, type_key, columns) for wanted in self.resources)))
        parts += [_held_rows(condition, columns, asked) for condition in self.conditions]
        return and_(true(), *parts)


def covers(wanted: str, action: str, level: str) -> bool:
    """Whether an action of a policy stands for a permission of this level."""
    name, colon, of_level = wanted.partition(":")
    if not colon:
        return is_like(action, name)
    return is_like(level, of_level) and is_like(action.partition(".")[0], name)


def _names(wanted: str, type_key: str, target_id: str) -> bool:
    kind, _, wanted_id = wanted.partition("/")
    return is_like(type_key, kind) and is_like(target_id, wanted_id)


def _named_rows(wanted: str, type_key: str, columns: Columns) -> ColumnElement[bool]:
    kind, _, wanted_id = wanted.partition("/")
    if columns.id is None or not is_like(type_key, kind):
        return true() if columns.id is None and _names(wanted, type_key, "") else false()
    return true() if wanted_id == "*" else _like_or_equal(columns.id, wanted_id)


def _like_or_equal(column: Any, wanted: str) -> ColumnElement[bool]:
    found: ColumnElement[bool] = Like(column, wanted) if "*" in wanted or "?" in wanted else column == wanted
    return found


def _held_rows(condition: Condition, columns: Columns, asked: Asked) -> ColumnElement[bool]:
    kind, _, name = condition.key.partition("/")
    if not kind.startswith("resource."):
        return true() if condition.holds(of_request(condition.key, asked), asked) else false()
    if kind == "resource.tag":
        return _tagged_rows(condition, name, columns, asked)
    column = {
        "resource.id": columns.id, "resource.name": columns.name, "resource.project": columns.project, "resource.owner": columns.owner,
        "resource.shared": columns.shared,
    }[kind]  # fmt: skip
    if kind == "resource.shared":
        return _bool_rows(condition, column)
    if column is None:
        return true() if condition.holds(None, asked) else false()
    if condition.operator == "Null":
        is_absent: ColumnElement[bool] = column.is_(None)
        return is_absent if condition.values[0] == "true" else not_(is_absent)
    found = and_(column.is_not(None), _any_wanted(condition, column, asked))
    return not_(found) if OPERATORS[condition.operator].negated else found


def _any_wanted(condition: Condition, column: Any, asked: Asked) -> ColumnElement[bool]:
    is_pattern = condition.operator in {"StringLike", "StringNotLike"}
    values = filled(condition.values, asked)
    return or_(false(), *(_like_or_equal(column, value) if is_pattern else column == value for value in values))


def _bool_rows(condition: Condition, column: Any) -> ColumnElement[bool]:
    """`resource.shared` is known of every row: false where the table has no such thing."""
    if condition.operator == "Null":
        return true() if condition.values[0] == "false" else false()
    wanted = {value == "true" for value in condition.values}
    if len(wanted) > 1:
        return true()
    if column is None:
        return false() if True in wanted else true()
    found: ColumnElement[bool] = column.is_(True in wanted)
    return found


def _tagged_rows(condition: Condition, key: str, columns: Columns, asked: Asked) -> ColumnElement[bool]:
    if columns.id is None:
        return true() if condition.holds(None, asked) else false()
    there = exists().where(ResourceTag.resource_id == columns.id, ResourceTag.key == key)
    if condition.operator == "Null":
        return not_(there) if condition.values[0] == "true" else there
    found = there.where(_any_wanted(condition, ResourceTag.value, asked))
    return not_(found) if OPERATORS[condition.operator].negated else found


# -- documents -------------------------------------------------------------------------------------------------------------------------------


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
