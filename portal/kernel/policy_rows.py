"""What statements say of the rows of a table, in SQL: as few comparisons as they come to together, with their values as one parameter each."""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from typing import Any

from sqlalchemy import Boolean, ColumnElement, String, and_, bindparam, case, false, literal_column, not_, or_, true
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import TypeDecorator

from portal.kernel.policy import OPERATORS, TARGET_ID, Asked, Columns, Condition, filled
from portal.kernel.policy_index import has_variables, test_of
from portal.kernel.tags import ResourceTag

# A database refuses a deep expression; a long one is written in groups of so many.
BREADTH = 30
TAG = "resource.tag/"
_tag_key = literal_column(f"{ResourceTag.__tablename__}.key", String())
_tag_value = literal_column(f"{ResourceTag.__tablename__}.value", String())
Entry = tuple[frozenset[str | None], frozenset[Condition]]


# -- comparisons with many values ------------------------------------------------------------------------------------------------------------


class _Texts(TypeDecorator[tuple[str, ...]]):
    """Texts as a JSON list."""

    impl = String
    cache_ok = True

    def process_bind_param(self, value: tuple[str, ...] | None, dialect: Any) -> str:  # noqa: ARG002 - SQLAlchemy calls it so
        """The list."""
        return json.dumps(value or ())


class _Patterns(_Texts):
    """Patterns as a JSON list of what the database calls patterns."""

    cache_ok = True

    def process_bind_param(self, value: tuple[str, ...] | None, dialect: Any) -> str:
        """The list, as GLOB or LIKE wants it."""
        return json.dumps([_glob(each) if dialect.name == "sqlite" else _like(each) for each in value or ()])


def _glob(text: str) -> str:
    return text.replace("[", "[[]")


def _like(text: str) -> str:
    return re.sub(r"[\\%_]", lambda found: "\\" + found.group(), text).replace("*", "%").replace("?", "_")


class _IsOneOf(FunctionElement[bool]):
    """A column that is one of some texts."""

    name = "is_one_of"
    type = Boolean()
    inherit_cache = True


class _IsLikeOne(FunctionElement[bool]):
    """A column that matches one of some patterns, case-sensitively on every database."""

    name = "is_like_one"
    type = Boolean()
    inherit_cache = True


class _IsTagged(FunctionElement[bool]):
    """An id whose resource has a tag for which something holds of `_tag_key` and `_tag_value`."""

    name = "is_tagged"
    type = Boolean()
    inherit_cache = True


class _AnyOf(FunctionElement[bool]):
    """One of many comparisons, written without depth."""

    name = "any_of"
    type = Boolean()
    inherit_cache = True


@compiles(_IsOneOf, "sqlite")
def _one_of_sqlite(element: _IsOneOf, compiler: Any, **more: Any) -> str:
    column, wanted = (compiler.process(each, **more) for each in element.clauses)
    return f"({column} IN (SELECT value FROM json_each({wanted})))"  # noqa: S608  # nosec B608 - of parameters and columns


@compiles(_IsOneOf)
def _one_of(element: _IsOneOf, compiler: Any, **more: Any) -> str:
    column, wanted = (compiler.process(each, **more) for each in element.clauses)
    return f"({column} IN (SELECT json_array_elements_text(CAST({wanted} AS json))))"  # nosec B608 - of parameters and columns


@compiles(_IsLikeOne, "sqlite")
def _like_one_sqlite(element: _IsLikeOne, compiler: Any, **more: Any) -> str:
    column, wanted = (compiler.process(each, **more) for each in element.clauses)
    return f"EXISTS (SELECT 1 FROM json_each({wanted}) AS wanted WHERE {column} GLOB wanted.value)"  # noqa: S608  # nosec B608 - of parameters and columns


@compiles(_IsLikeOne)
def _like_one(element: _IsLikeOne, compiler: Any, **more: Any) -> str:
    column, wanted = (compiler.process(each, **more) for each in element.clauses)
    texts = f"json_array_elements_text(CAST({wanted} AS json))"
    return f"EXISTS (SELECT 1 FROM {texts} AS wanted(value) WHERE {column} LIKE wanted.value ESCAPE '\\')"  # noqa: S608  # nosec B608 - of parameters and columns


@compiles(_IsTagged)
def _is_tagged(element: _IsTagged, compiler: Any, **more: Any) -> str:
    row_id, holds = (compiler.process(each, **more) for each in element.clauses)
    tags = ResourceTag.__tablename__
    return f"EXISTS (SELECT 1 FROM {tags} WHERE {tags}.resource_id = {row_id} AND ({holds}))"  # noqa: S608  # nosec B608 - as above


@compiles(_AnyOf)
def _any_of(element: _AnyOf, compiler: Any, **more: Any) -> str:
    parts = [compiler.process(each, **more) for each in element.clauses]
    while len(parts) > 1:
        parts = ["(" + " OR ".join(parts[place : place + BREADTH]) + ")" for place in range(0, len(parts), BREADTH)]
    return str(parts[0])


def _either(parts: Sequence[ColumnElement[bool]]) -> ColumnElement[bool]:
    return or_(false(), *parts) if len(parts) <= BREADTH else _AnyOf(*(each.self_group() for each in parts))


# -- rows ------------------------------------------------------------------------------------------------------------------------------------


def is_of_rows(need: Condition) -> bool:
    """Whether it depends on the row, not on the request alone."""
    return need.key.partition("/")[0].startswith(TARGET_ID)


def rows_of(entries: Iterable[Entry], columns: Columns, asked: Asked) -> ColumnElement[bool]:
    """The rows of a type for which all of what one entry needs holds, in one of its projects (None: anywhere); true or false for each, never NULL."""
    parts = defaultdict(list)
    joined = _joined(entries)
    tags = defaultdict(list)
    for scopes, needs in joined:
        alone = next(iter(needs)) if len(needs) == 1 else None
        if alone is not None and alone.key.startswith(TAG) and alone.operator in {"StringEquals", "StringLike"} and columns.id is not None:
            tags[scopes].append(_tag(alone, asked))
        else:
            parts[scopes].append(_all_of(sorted(needs, key=str), columns, asked, is_one_of_many=len(joined) > BREADTH))
    for scopes, wanted in tags.items():
        # One look at the tags of a row for all that ask for nothing else.
        parts[scopes].append(_IsTagged(columns.id, _either(wanted)))
    return _either([
        found if None in scopes else and_(in_project(columns, scopes), found) for scopes, there in parts.items() for found in [_either(there)]
    ])  # fmt: skip


def _all_of(needs: Sequence[Condition], columns: Columns, asked: Asked, *, is_one_of_many: bool) -> ColumnElement[bool]:
    tagged = [_rows(need, columns, asked) for need in needs if need.key.startswith(TAG)]
    own = [_rows(need, columns, asked) for need in needs if not need.key.startswith(TAG)]
    if is_one_of_many and own and tagged:
        # SQLite looks for the tags of every one of them otherwise, at a cost that grows with the square of their number.
        return case((and_(true(), *own), and_(true(), *tagged)), else_=false())
    return and_(true(), *own, *tagged)


def in_project(columns: Columns, projects: Collection[str | None]) -> ColumnElement[bool]:
    """The rows of some projects."""
    if columns.project is None:
        return false()
    return and_(columns.project.is_not(None), columns.project.in_(sorted(each for each in projects if each is not None)))


def _joined(entries: Iterable[Entry]) -> list[Entry]:
    """The same with fewer entries: those that differ in the values of one comparison alone have all of them in one."""
    scopes_of: dict[frozenset[Condition], frozenset[str | None]] = {}
    for scopes, needs in entries:
        scopes_of[needs] = scopes_of.get(needs, frozenset()) | scopes
    given = [(frozenset([None]) if None in scopes else scopes, needs) for needs, scopes in scopes_of.items()]
    likeness = Counter(each for scopes, needs in given for _, each in _without_one(scopes, needs))
    found: list[Entry] = []
    values: defaultdict[tuple[Any, ...], set[str]] = defaultdict(set)
    for scopes, needs in given:
        need, rest = max(_without_one(scopes, needs), key=lambda each: likeness[each[1]], default=(None, None))
        if need is None or rest is None:
            found.append((scopes, needs))
        else:
            values[rest].update(need.values)
    for (scopes, others, operator, key), wanted in values.items():
        found.append((scopes, others | {Condition(operator, key, tuple(sorted(wanted)))}))
    return found


def _without_one(scopes: frozenset[str | None], needs: frozenset[Condition]) -> list[tuple[Condition, tuple[Any, ...]]]:
    """(a comparison of which any value is enough, everything else) for each such comparison."""
    return [(need, (scopes, needs - {need}, need.operator, need.key)) for need in needs if need.operator in {"StringEquals", "StringLike"}]


def _rows(need: Condition, columns: Columns, asked: Asked) -> ColumnElement[bool]:
    kind, _, name = need.key.partition("/")
    if kind == "resource.tag":
        return _tagged_rows(need, name, columns, asked)
    column = {
        TARGET_ID: columns.id, "resource.id": columns.id, "resource.name": columns.name, "resource.project": columns.project,
        "resource.owner": columns.owner, "resource.shared": columns.shared,
    }[kind]  # fmt: skip
    if kind == "resource.shared":
        return _bool_rows(need, _shared(columns, asked))
    if column is None:
        return true() if test_of(need)("" if kind == TARGET_ID else None, asked) else false()
    if need.operator == "Null":
        is_absent: ColumnElement[bool] = column.is_(None)
        return is_absent if need.values[0] == "true" else not_(is_absent)
    found = and_(column.is_not(None), _any_wanted(need, column, asked))
    return not_(found) if OPERATORS[need.operator].negated else found


def _shared(columns: Columns, asked: Asked) -> Any:
    """Whether a row is everybody's or shared with a project of whoever asks."""
    if columns.shares is None or not asked.projects:
        return columns.shared
    patterns = tuple(f"* {project_id} *" for project_id in sorted(asked.projects))
    return or_(columns.shared, _IsLikeOne(columns.shares, bindparam(None, patterns, _Patterns())))


def _any_wanted(need: Condition, column: Any, asked: Asked) -> ColumnElement[bool]:
    values = sorted(set(filled(need.values, asked) if has_variables(need) else need.values))
    is_like = need.operator in {"StringLike", "StringNotLike"}
    patterns = tuple(each for each in values if is_like and ("*" in each or "?" in each))
    exact = tuple(each for each in values if not (is_like and ("*" in each or "?" in each)))
    parts: list[ColumnElement[bool]] = []
    if exact:
        parts.append(column == exact[0] if len(exact) == 1 else _IsOneOf(column, bindparam(None, exact, _Texts())))
    if patterns:
        parts.append(_IsLikeOne(column, bindparam(None, patterns, _Patterns())))
    return or_(false(), *parts)


def _bool_rows(need: Condition, column: Any) -> ColumnElement[bool]:
    """`resource.shared` is known of every row: false where the table has no such thing."""
    if need.operator == "Null":
        return true() if need.values[0] == "false" else false()
    wanted = {value == "true" for value in need.values}
    if len(wanted) > 1:
        return true()
    if column is None:
        return false() if True in wanted else true()
    found: ColumnElement[bool] = column.is_(True in wanted)
    return found


def _tagged_rows(need: Condition, key: str, columns: Columns, asked: Asked) -> ColumnElement[bool]:
    if columns.id is None:
        return true() if need.holds(None, asked) else false()
    if need.operator == "Null":
        there = _IsTagged(columns.id, _tag_key == key)
        return not_(there) if need.values[0] == "true" else there
    found = _IsTagged(columns.id, _tag(need, asked))
    return not_(found) if OPERATORS[need.operator].negated else found


def _tag(need: Condition, asked: Asked) -> ColumnElement[bool]:
    return and_(_tag_key == need.key.removeprefix(TAG), _any_wanted(need, _tag_value, asked))
