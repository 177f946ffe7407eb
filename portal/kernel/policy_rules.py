"""The statements that a principal holds for an action, compiled: one decision by an index, the rows of a list by one expression that is kept."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from sqlalchemy import ColumnElement, and_, false, not_, true

from portal.kernel.policy import Asked, Columns, Condition, Target, known_of
from portal.kernel.policy_index import Index, Rule, Test, has_variables, needs_of, test_of
from portal.kernel.policy_rows import in_project, is_of_rows, rows_of

# So many expressions are kept: of each table, for each outcome of what is asked of the request.
KEPT = 32
NOBODY = Target(None)


class RuleSet:
    """The rules of one effect for one action of a type."""

    def __init__(self, type_key: str, rules: Sequence[Rule]) -> None:
        """All rules must speak of the action."""
        self.type_key, self.rules = type_key, rules
        self._plain: dict[str | None, Rule] = {}
        for rule in rules:
            if rule.statement.is_plain:
                self._plain.setdefault(rule.scope, rule)
        self._kept: dict[tuple[Any, ...], tuple[Columns, ColumnElement[bool]]] = {}

    @cached_property
    def _needs(self) -> list[tuple[Rule, tuple[Condition, ...]]]:
        """Rules that can apply, with all that they need, where none covers everything; what says the same once."""
        found: dict[tuple[str | None, frozenset[Condition]], tuple[Rule, tuple[Condition, ...]]] = {}
        for rule in self.rules:
            if not {None, rule.scope} & self._plain.keys() and (needs := needs_of(rule.statement, self.type_key)) is not None:
                found.setdefault((rule.scope, frozenset(needs)), (rule, needs))
        return list(found.values())

    @cached_property
    def _indexes(self) -> dict[str | None, Index]:
        scopes: dict[str | None, list[tuple[Rule, tuple[Condition, ...]]]] = {}
        for rule, needs in self._needs:
            scopes.setdefault(rule.scope, []).append((rule, needs))
        return {scope: Index(there) for scope, there in scopes.items()}

    def first(self, target: Target, asked: Asked) -> Rule | None:
        """A rule that applies to a target."""
        for scope in (None, target.project_id) if target.project_id is not None else (None,):
            if (plain := self._plain.get(scope)) is not None:
                return plain
            index = self._indexes.get(scope)
            if index is not None and (found := index.first(target, asked)) is not None:
                return found
        return None

    @cached_property
    def _of_request(self) -> dict[Condition, Test]:
        """Comparisons that are the same for every row."""
        return {need: test_of(need) for _, needs in self._needs for need in needs if not is_of_rows(need)}

    @cached_property
    def _is_personal(self) -> bool:
        return any(has_variables(need) for _, needs in self._needs for need in needs)

    def where(self, columns: Columns, asked: Asked) -> ColumnElement[bool]:
        """The rows that a rule applies to; never NULL."""
        if None in self._plain:
            return true()
        held = tuple(test(known_of(need.key)(NOBODY, asked), asked) for need, test in self._of_request.items())
        who = (asked.principal_id, asked.principal_name) if self._is_personal else ()
        shares = (id(columns.shares), asked.projects) if columns.shares is not None else ()
        key = (*(id(each) for each in (columns.project, columns.owner, columns.shared, columns.id, columns.name)), who, held, shares)
        kept = self._kept.get(key)
        if kept is None:
            # With the columns, so that their ids stay theirs.
            holding = frozenset(need for need, holds in zip(self._of_request, held, strict=True) if holds)
            kept = (columns, self._where(columns, asked, holding))
            if len(self._kept) >= KEPT:
                self._kept.clear()
            self._kept[key] = kept
        return kept[1]

    def _where(self, columns: Columns, asked: Asked, holding: frozenset[Condition]) -> ColumnElement[bool]:
        plain = in_project(columns, self._plain) if self._plain else false()
        entries = [
            (frozenset([rule.scope]), frozenset(need for need in needs if is_of_rows(need)))
            for rule, needs in self._needs
            if all(need in holding for need in needs if not is_of_rows(need))
        ]
        return plain | rows_of(entries, columns, asked)

    def is_whole(self, project_id: str | None) -> bool:
        """Whether a rule without conditions covers a project (None: everything)."""
        return None in self._plain or (project_id is not None and project_id in self._plain)


@dataclass(frozen=True, slots=True)
class Rules:
    """Everything that a principal's grants, or one limit, say of an action."""

    denies: RuleSet
    allows: RuleSet

    def decide(self, target: Target, asked: Asked) -> tuple[bool, Rule | None]:
        """(allowed, the rule that decided); nothing that applies means no."""
        denied = self.denies.first(target, asked) if self.denies.rules else None
        if denied is not None:
            return False, denied
        allowed = self.allows.first(target, asked)
        return allowed is not None, allowed

    def where(self, columns: Columns, asked: Asked) -> ColumnElement[bool]:
        """The rows for which `decide` says yes."""
        allowed = self.allows.where(columns, asked)
        return and_(allowed, not_(self.denies.where(columns, asked))) if self.denies.rules else allowed

    def is_whole(self, project_id: str | None) -> bool:
        """Whether every row of a project (None: every row) is allowed without a look at it."""
        return not self.denies.rules and self.allows.is_whole(project_id)
