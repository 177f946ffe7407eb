"""The language of IAM policies: what a statement says of one resource. `policy_index` decides by many, `policy_rows` says the same in SQL.

A key that is not known makes a positive comparison fail and a negative one (`…Not…`) hold.
"""

import ipaddress
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

LEVELS = ("read", "audit", "write", "delete", "manage", "platform")
KEYS = {
    "resource.id": "Id of the resource.",
    "resource.name": "Its name.",
    "resource.project": "Id of the project it belongs to.",
    "resource.owner": "Id of the user who owns it.",
    "resource.shared": "`true` for what every signed-in user, or a project of theirs, may use.",
    "resource.tag/<key>": "Value of one of its tags.",
    "request.tag/<key>": "Value of a tag in the request.",
    "request.input/<field>": "Value of a field of the request.",
    "request.ip": "Address that the request comes from.",
    "request.time": "When it arrives, in UTC.",
    "principal.id": "Id of the user or service account.",
    "principal.name": "User name.",
    "principal.mfa": "`true` after a sign-in with a second factor.",
    "principal.credential": "`session`, `token`, `role`, `oauth` or `s3`.",
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
    # Projects that it is shared with.
    shared_with: frozenset[str] = frozenset()


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
    # Where the principal has a role or a policy.
    projects: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Columns:
    """SQL expressions for what is known of rows; None for what rows of a table do not have. `shares` are ids of projects, each between blanks."""

    project: Any = None
    owner: Any = None
    shared: Any = None
    id: Any = None
    name: Any = None
    shares: Any = None


# -- patterns --------------------------------------------------------------------------------------------------------------------------------


def glob(text: str) -> str:
    """A pattern as a regular expression for `match`: `*` is any text, `?` any one character. It never tries the same place twice."""
    first, *more = ("".join("." if c == "?" else re.escape(c) for c in part) for part in re.split(r"\*+", text))
    if not more:
        return first + r"\Z"
    return first + "".join(f"(?>.*?{part})" for part in more[:-1]) + f".*{more[-1]}" + r"\Z"


@lru_cache(maxsize=4096)
def pattern(text: str) -> re.Pattern[str]:
    """A pattern, ready for use."""
    return re.compile(glob(text), re.DOTALL)


def is_like(text: str, wanted: str) -> bool:
    """Whether a text matches a pattern."""
    return pattern(wanted).match(text) is not None


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
    return text_of(known) == wanted


def text_of(known: Any) -> str:
    """A known value as a document writes it: yes and no as in JSON."""
    return ("true" if known else "false") if isinstance(known, bool) else str(known)


_bool = _must(("true", "false").index, "true or false")
_cidr, _num = _must(ipaddress.ip_network, "an address or network such as 10.0.0.0/8"), _must(_finite, "a number")
_day = _must(moment, "a moment such as 2026-12-31T00:00:00Z")
NUMERIC, TIME, ADDRESS = ("request.input/", "request.tag/"), ("request.time",), ("request.ip",)
OPERATORS: Mapping[str, Operator] = {
    "StringEquals": Operator(lambda known, wanted: text_of(known) == wanted, _fine),
    "StringNotEquals": Operator(lambda known, wanted: text_of(known) == wanted, _fine, negated=True),
    "StringLike": Operator(lambda known, wanted: is_like(text_of(known), wanted), _fine),
    "StringNotLike": Operator(lambda known, wanted: is_like(text_of(known), wanted), _fine, negated=True),
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
    "Bool": Operator(_is_bool, _bool, (*BOOLEANS, "request.input/")),
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


@lru_cache(maxsize=4096)
def known_of(key: str) -> Callable[[Target, Asked], Any]:
    """What looks up what is known under a key; it answers None if nothing is."""
    kind, _, name = key.partition("/")
    if kind in NAMED:
        named = NAMED[kind]
        return lambda target, asked: named(target, asked).get(name)
    return LOOKUPS[kind]


# What is known under many names, and what is known under one. `TARGET_ID` is what `Resource` compares with: known of every target.
NAMED: Mapping[str, Callable[[Target, Asked], Mapping[str, Any]]] = {
    "resource.tag": lambda target, _asked: target.tags,
    "request.tag": lambda _target, asked: asked.tags,
    "request.input": lambda _target, asked: asked.inputs,
}
TARGET_ID = "resource"
LOOKUPS: Mapping[str, Callable[[Target, Asked], Any]] = {
    TARGET_ID: lambda target, _asked: target.id,
    "resource.id": lambda target, _asked: target.id or None,
    "resource.name": lambda target, _asked: target.name or None,
    "resource.project": lambda target, _asked: target.project_id,
    "resource.owner": lambda target, _asked: target.owner_id,
    "resource.shared": lambda target, asked: target.shared or not target.shared_with.isdisjoint(asked.projects),
    "request.ip": lambda _target, asked: asked.ip or None,
    "request.time": lambda _target, asked: asked.at,
    "principal.id": lambda _target, asked: asked.principal_id,
    "principal.name": lambda _target, asked: asked.principal_name or None,
    "principal.mfa": lambda _target, asked: asked.mfa,
    "principal.credential": lambda _target, asked: asked.credential or None,
}


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
            if not condition.holds(known_of(condition.key)(target, asked), asked):
                return f"Condition {condition.operator} {condition.key} {', '.join(condition.values)} does not hold"
        return ""


def covers(wanted: str, action: str, level: str) -> bool:
    """Whether an action of a policy stands for a permission of this level."""
    name, colon, of_level = wanted.partition(":")
    if not colon:
        return is_like(action, name)
    return is_like(level, of_level) and is_like(action.partition(".")[0], name)


def _names(wanted: str, type_key: str, target_id: str) -> bool:
    kind, _, wanted_id = wanted.partition("/")
    return is_like(type_key, kind) and is_like(target_id, wanted_id)
