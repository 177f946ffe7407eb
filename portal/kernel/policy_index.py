"""Many statements, arranged so that a decision looks only at those that can apply.

What a statement asks for (its resources, each of its conditions) becomes a path of comparisons; statements that ask for the same share the path.
A step is found by what is known: by equality in a dictionary, by the fixed beginning or end of a pattern, by network. Only other comparisons are
tried one after the other.
"""

import re
from bisect import bisect_left, bisect_right, insort
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from ipaddress import ip_address, ip_network
from operator import itemgetter
from typing import Any

from portal.kernel.context import Grant
from portal.kernel.policy import (
    NAMED,
    OPERATORS,
    TARGET_ID,
    Asked,
    Condition,
    Statement,
    Target,
    filled,
    glob,
    is_like,
    known_of,
    moment,
    text_of,
)

# For so many people the values of what depends on who asks are kept.
KEPT = 64
# Comparisons that do not hold for the date itself when it is later than what is known, or that do when it is earlier.
AFTER = ("DateLessThan", "DateGreaterThanEquals")
Test = Callable[[Any, Asked], bool]
Address = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Rule:
    """A statement as the principal holds it: whose it is, and in which project it counts (None: everywhere)."""

    statement: Statement
    grant: Grant

    @property
    def scope(self) -> str | None:
        """The project in which it counts."""
        return self.grant.project_id


def needs_of(statement: Statement, type_key: str) -> tuple[Condition, ...] | None:
    """All that must hold for a statement to apply to something of a type, each once; None if it cannot."""
    needs = list(statement.conditions)
    if statement.resources:
        ids = [wanted for kind, _, wanted in (each.partition("/") for each in statement.resources) if is_like(type_key, kind)]
        if not ids:
            return None
        if "*" not in ids:
            operator = "StringLike" if any(_is_pattern(each) for each in ids) else "StringEquals"
            needs.append(Condition(operator, TARGET_ID, tuple(sorted(set(ids)))))
    return tuple(dict.fromkeys(needs))


def has_variables(need: Condition) -> bool:
    """Whether its values depend on who asks."""
    return need.key != TARGET_ID and any("${" in value for value in need.values)


def _is_pattern(text: str) -> bool:
    return "*" in text or "?" in text


def test_of(need: Condition) -> Test:
    """The comparison of a known value (None: nothing is known), prepared."""
    operator, wanted = need.operator, frozenset(need.values)
    if has_variables(need):
        return need.holds
    if operator == "StringEquals":
        return lambda known, _asked: known is not None and text_of(known) in wanted
    if operator == "StringNotEquals":
        return lambda known, _asked: known is None or text_of(known) not in wanted
    if operator in {"StringLike", "StringNotLike"}:
        match, is_negated = _matching(wanted), operator == "StringNotLike"
        return lambda known, _asked: (known is not None and match(text_of(known))) is not is_negated
    if operator in MOMENTS:
        compare, edge = MOMENTS[operator], _edge(need)
        return lambda known, _asked: known is not None and compare(known, edge)
    return need.holds


def _matching(wanted: Iterable[str]) -> Callable[[str], bool]:
    """Whether a text matches one of some patterns, which are made ready when they are first needed."""

    @cache
    def ready() -> re.Pattern[str]:
        return re.compile("|".join(f"(?:{glob(each)})" for each in wanted), re.DOTALL)

    return lambda text: ready().match(text) is not None


MOMENTS: Mapping[str, Callable[[Any, Any], bool]] = {
    "DateLessThan": lambda known, edge: known < edge, "DateLessThanEquals": lambda known, edge: known <= edge,
    "DateGreaterThan": lambda known, edge: known > edge, "DateGreaterThanEquals": lambda known, edge: known >= edge,
}  # fmt: skip


def _edge(need: Condition) -> datetime:
    """The date that decides, where any of several is enough."""
    return (max if need.operator.startswith("DateLess") else min)(map(moment, need.values))


# -- one step of the way ---------------------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Steps:
    """The steps that are taken only if something is known under one key."""

    equal: dict[str, list["_Node"]] = field(default_factory=dict)
    starts: dict[int, dict[str, list[tuple[Test, "_Node"]]]] = field(default_factory=dict)
    ends: dict[int, dict[str, list[tuple[Test, "_Node"]]]] = field(default_factory=dict)
    parts: list[tuple[str, "_Node"]] = field(default_factory=list)
    networks: dict[Address, dict[int, list["_Node"]]] = field(default_factory=dict)
    edges: dict[str, list[tuple[datetime, "_Node"]]] = field(default_factory=dict)
    # With variables, and what they come to for whoever asks.
    personal: list[tuple[Condition, "_Node"]] = field(default_factory=list)
    filled: dict[tuple[str | None, str], dict[str, list["_Node"]]] = field(default_factory=dict)
    tests: list[tuple[Test, "_Node"]] = field(default_factory=list)

    def add(self, need: Condition, child: "_Node") -> None:
        """Put a step where it is found."""
        by_start, by_end, inner = _fixed(need, 0), _fixed(need, -1), _inner(need)
        if need.operator == "StringEquals" and has_variables(need):
            self.personal.append((need, child))
        elif need.operator == "StringEquals":
            for value in need.values:
                self.equal.setdefault(value, []).append(child)
        elif need.operator == "IpAddress" and not has_variables(need):
            for network in map(ip_network, need.values):
                bits = network.max_prefixlen - network.prefixlen
                self.networks.setdefault((network.version, bits), {}).setdefault(int(network.network_address) >> bits, []).append(child)
        elif by_start or by_end:
            place, fixed = (self.starts, by_start) if sum(map(len, by_start)) >= sum(map(len, by_end)) else (self.ends, by_end)
            for text in fixed:
                place.setdefault(len(text), {}).setdefault(text, []).append((test_of(need), child))
        elif inner:
            self.parts += [(part, child) for part in inner]
        elif need.operator in MOMENTS:
            insort(self.edges.setdefault(need.operator, []), (_edge(need), child), key=itemgetter(0))
        else:
            self.tests.append((test_of(need), child))

    def taken(self, known: Any, asked: Asked) -> Iterator["_Node"]:
        """The steps that what is known allows."""
        yield from self._by_text(text_of(known), asked)
        if self.networks:
            yield from self._around(str(known))
        for operator, edges in self.edges.items():
            place = (bisect_right if operator in AFTER else bisect_left)(edges, known, key=itemgetter(0))
            for _, child in edges[place:] if operator.startswith("DateLess") else edges[:place]:
                yield child
        for test, child in self.tests:
            if test(known, asked):
                yield child

    def _by_text(self, text: str, asked: Asked) -> Iterator["_Node"]:
        yield from self.equal.get(text, ())
        if self.personal:
            yield from self._mine(asked).get(text, ())
        if self.parts:
            yield from [child for part, child in self.parts if part in text]
        tried = [found for length, by_text in self.starts.items() for found in by_text.get(text[:length], ())]
        tried += [found for length, by_text in self.ends.items() for found in by_text.get(text[-length:], ())]
        for test, child in tried:
            if test(text, asked):
                yield child

    def _mine(self, asked: Asked) -> dict[str, list["_Node"]]:
        who = (asked.principal_id, asked.principal_name)
        found = self.filled.get(who)
        if found is None:
            found = {}
            for need, child in self.personal:
                for value in filled(need.values, asked):
                    found.setdefault(value, []).append(child)
            if len(self.filled) >= KEPT:
                self.filled.clear()
            self.filled[who] = found
        return found

    def _around(self, text: str) -> Iterator["_Node"]:
        try:
            address = ip_address(text)
        except ValueError:
            return
        number = int(address)
        for (version, bits), children in self.networks.items():
            if version == address.version:
                yield from children.get(number >> bits, ())


def _fixed(need: Condition, end: int) -> set[str]:
    """How texts that a pattern matches begin (0) or end (-1); empty unless all values say."""
    if need.operator != "StringLike" or has_variables(need):
        return set()
    found = {re.split(r"[*?]", value)[end] for value in need.values}
    return set() if "" in found else found


def _inner(need: Condition) -> set[str]:
    """The parts of which a text must hold one; empty unless all values ask for that and nothing else."""
    found = {value.strip("*") for value in need.values if value[0] == value[-1] == "*"}
    is_all = need.operator == "StringLike" and not has_variables(need) and len(found) == len(set(need.values))
    return found if is_all and not any(part == "" or _is_pattern(part) for part in found) else set()


class _Node:
    """Where a decision stands after some comparisons have held."""

    __slots__ = ("always", "children", "named", "plain", "rule")

    def __init__(self) -> None:
        self.rule: Rule | None = None
        self.children: dict[Condition, _Node] = {}
        self.plain: dict[str, tuple[Callable[[Target, Asked], Any], _Steps]] = {}
        self.named: dict[str, dict[str, _Steps]] = {}
        # A comparison that may hold where nothing is known.
        self.always: list[tuple[Callable[[Target, Asked], Any], Test, _Node]] = []

    def after(self, need: Condition) -> "_Node":
        """Where it stands if one more comparison holds."""
        child = self.children.get(need)
        if child is None:
            child = self.children[need] = _Node()
            kind, _, name = need.key.partition("/")
            if OPERATORS[need.operator].negated or need.operator == "Null":
                self.always.append((known_of(need.key), test_of(need), child))
            elif kind in NAMED:
                self.named.setdefault(kind, {}).setdefault(name, _Steps()).add(need, child)
            else:
                self.plain.setdefault(kind, (known_of(kind), _Steps()))[1].add(need, child)
        return child

    def first(self, target: Target, asked: Asked) -> Rule | None:
        """A rule at the end of a way on which everything holds."""
        if self.rule is not None:
            return self.rule
        for child in self._taken(target, asked):
            if (found := child.first(target, asked)) is not None:
                return found
        return None

    def _taken(self, target: Target, asked: Asked) -> Iterator["_Node"]:
        for look_up, steps in self.plain.values():
            if (known := look_up(target, asked)) is not None:
                yield from steps.taken(known, asked)
        for kind, by_name in self.named.items():
            for name, known in NAMED[kind](target, asked).items():
                if known is not None and name in by_name:
                    yield from by_name[name].taken(known, asked)
        for look_up, test, child in self.always:
            if test(look_up(target, asked), asked):
                yield child


class Index:
    """The rules that count in one scope."""

    def __init__(self, rules: Iterable[tuple[Rule, Sequence[Condition]]]) -> None:
        """Each rule with all that it asks for."""
        given = list(rules)
        seen = Counter(part for _, needs in given for need in needs for part in _parts(need))
        self._root = _Node()
        for rule, needs in given:
            node = self._root
            for need in sorted(needs, key=lambda need: _order(need, seen)):
                node = node.after(need)
            node.rule = node.rule or rule

    def first(self, target: Target, asked: Asked) -> Rule | None:
        """A rule that applies to a target."""
        return self._root.first(target, asked)


def _parts(need: Condition) -> Iterator[tuple[str, str, str]]:
    return ((need.operator, need.key, value) for value in set(need.values))


def _order(need: Condition, seen: Mapping[tuple[str, str, str], int]) -> tuple[bool, int, Condition]:
    """What can be looked up comes first, the rarest before others; then what must be tried, the most common first, so that it is tried once."""
    shared = max(seen[part] for part in _parts(need))
    is_found = (
        need.operator == "StringEquals" or bool(_fixed(need, 0) or _fixed(need, -1)) or (need.operator == "IpAddress" and not has_variables(need))
    )
    return not is_found, shared if is_found else -shared, _sortable(need)


def _sortable(need: Condition) -> Any:
    return need.operator, need.key, need.values
