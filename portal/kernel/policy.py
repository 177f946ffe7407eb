"""The language of IAM policies: statements, decided for one resource or turned into SQL with the same meaning.

A key that is not known makes a positive comparison fail and a negative one (`…Not…`) hold; the SQL says the same.
"""

import ipaddress
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from sqlalchemy import Boolean, ColumnElement, String, and_, exists, false, literal, not_, or_, true
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.expression import ColumnElement as Expression

from portal.kernel.tags import ResourceTag

LEVELS = ("read", "audit", "write", "delete", "manage", "platform")
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
