"""Finding rows that the caller may see: by id, by reference, by page. What may not be seen is not found."""

import base64
import binascii
import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Any

from pydantic import ConfigDict, Field, StrictFloat, StrictInt, StringConstraints, TypeAdapter
from sqlalchemy import ColumnElement, Select, and_, case, false, func, not_, or_, select, true
from sqlalchemy.orm import InstrumentedAttribute

from portal.kernel import quota
from portal.kernel.authz import reach
from portal.kernel.context import Context
from portal.kernel.declare import Param
from portal.kernel.errors import InvalidRequest, NotFound
from portal.kernel.fields import Bool, Choice, Int, Moment, Number, Ref, State
from portal.kernel.ids import is_storable, storable
from portal.kernel.resource import Resource, ResourceType, Tenancy
from portal.kernel.tags import ResourceTag
from portal.kernel.wording import within

# Order, value, id and direction: what a cursor holds.
Text = Annotated[str, StringConstraints(max_length=512, pattern=r"^[^\x00]*$")]
Whole = Annotated[StrictInt, Field(ge=-(2**63), lt=2**63)]
CURSOR = TypeAdapter(tuple[str, Whole | StrictFloat | Text, Text, bool], config=ConfigDict(allow_inf_nan=False))
WHOLE = re.compile(r"-?[0-9]{1,18}")
COUNT_LIMIT = 1000
MAX_PAGE_SIZE = 100
MAX_OFFSET = 10_000


def find(ctx: Context, rtype: ResourceType, row_id: str, *, lock: bool = False) -> Any:
    """The row with this id or resource_id. Raises NotFound if it is not there or not the caller's to see."""
    model = rtype.model
    if not is_storable(row_id):
        raise NotFound(f"There is no such {within(rtype.label)} here.")
    query = select(model).where(or_(model.id == row_id, model.resource_id == row_id), reach(ctx, f"{rtype.key}.read").rows(model))
    if rtype.lifecycle is None:
        query = query.where(model.deleted_at.is_(None))
    if lock:
        # Rows that refer to it may be written meanwhile: they hold its key, and often wait for what comes after it.
        query = query.with_for_update(of=model, key_share=True).execution_options(populate_existing=True)
    row = ctx.db.scalars(query.options(*rtype.eager())).first()
    if row is None:
        raise NotFound(f"There is no {within(rtype.label)} {row_id[:80]} here.")
    return row


def find_reference(ctx: Context, param: Param, value: str, *, project_id: str | None = None) -> Any:
    """The row that a request names by id, resource_id or name, locked against removal. Raises InvalidRequest naming the field.

    It belongs to the current project, or to `project_id`, or to everybody.
    """
    rtype = ctx.registry.of(param.ref_model)  # type: ignore[arg-type] # only reference parameters come here
    # A shared lock that has to become a whole one waits for others that want the same.
    shared = not (isinstance(param.info.kind, Ref) and param.info.kind.exclusive)
    query = _named(ctx, rtype, value, project_id).with_for_update(read=shared, key_share=not shared, of=rtype.model)
    rows = ctx.db.scalars(query.execution_options(populate_existing=not shared)).all()
    return _the_one(rows, rtype, value, param.name)


def seen_by_name(ctx: Context, rtype: ResourceType, value: str, *, project_id: str | None = None) -> Any | None:
    """The one row that a request would name so by id, resource_id or name, not locked; None where there is none, or several.

    It belongs to the current project, or to `project_id`. A name that looks like another's id stands for nothing but itself.
    """
    exact = _exactly(ctx.db.scalars(_named(ctx, rtype, storable(value), project_id)).all(), value)
    return exact[0] if len(exact) == 1 else None


def _named(ctx: Context, rtype: ResourceType, value: str, project_id: str | None = None) -> Select[Any]:
    model, project_id = rtype.model, project_id or ctx.project_id
    named = or_(model.id == value, model.resource_id == value, model.name == value)
    query = select(model).where(named, reach(ctx, f"{rtype.key}.read").rows(model), model.deleted_at.is_(None))
    # What a project uses is its own or everybody's, whatever else the caller may see elsewhere.
    if rtype.tenancy is Tenancy.PROJECT:
        query = query.where(model.project_id == project_id)
    elif rtype.tenancy is Tenancy.SHARED:
        query = query.where(or_(model.project_id == project_id, model.offered_to(project_id)))
    # Ids before names: however many are named like an id, the one that has it is among the first.
    return query.order_by(case((or_(model.id == value, model.resource_id == value), 0), else_=1), model.id).limit(3)


def _exactly(rows: Sequence[Any], value: str) -> list[Any]:
    return [row for row in rows if value in (row.id, row.resource_id)] or list(rows)


def _the_one(rows: Sequence[Any], rtype: ResourceType, value: str, field: str) -> Any:
    exact = _exactly(rows, value)
    if len(exact) != 1:
        why = f"There is no {within(rtype.label)} {value[:80]} here." if not exact else f"{value[:80]} names several; use the id."
        raise InvalidRequest.fields({field: [why]})
    return exact[0]


def seen(ctx: Context, model: Any) -> Any:
    """WHERE of the rows that the caller may see: what may not be seen is not found."""
    return reach(ctx, f"{ctx.registry.of(model).key}.read").rows(model)


def unseen(ctx: Context, model: Any, column: Any, *where: Any) -> Collection[str]:
    """A column of the live rows that the caller may not see."""
    covered = reach(ctx, f"{ctx.registry.of(model).key}.read")
    if covered.everything or (ctx.project_id is not None and covered.whole(ctx.project_id)):
        # As nearly everybody: nothing has to be looked for.
        return ()
    return ctx.db.scalars(select(column).where(*where, model.deleted_at.is_(None), ~covered.rows(model))).all()


def about_seen(ctx: Context, is_about: Callable[[str], ColumnElement[bool]], row_id: InstrumentedAttribute[str]) -> ColumnElement[bool]:
    """WHERE for records that tell of rows: not of those that the caller may not see. `is_about` gives the records of a type, by its key."""
    projects = {grant.project_id for grant in ctx.principal.grants}
    parts = []
    for rtype in ctx.registry:
        reading = reach(ctx, f"{rtype.key}.read")
        # Whoever sees all there is where they belong is the usual case, and costs nothing.
        if not all(reading.everything if each is None else reading.whole(each) for each in projects):
            parts.append(or_(not_(is_about(rtype.key)), row_id.in_(select(rtype.model.id).where(reading.rows(rtype.model)))))
    return and_(true(), *parts)


def named(ctx: Context, key: str, value: str, *, field: str, project_id: str | None = None) -> Any:
    """The row of a type, whose model the caller does not know, that a request names by id, resource_id or name. Raises InvalidRequest for `field`.

    It belongs to the current project, or to `project_id`, or to everybody.
    """
    rtype = ctx.registry.of(ctx.registry.model(key))
    return _the_one(ctx.db.scalars(_named(ctx, rtype, storable(value), project_id)).all(), rtype, value, field)


@dataclass(frozen=True, slots=True)
class ListQuery:
    """What a list is asked for; everything comes from the URL and is checked here."""

    filters: Mapping[str, Sequence[str]] = field(default_factory=dict)
    tags: Sequence[tuple[str, str]] = ()
    search: str = ""
    order: str = ""
    cursor: str = ""
    limit: int = 20
    offset: int = 0
    all_projects: bool = False
    # Without what is shared with the project.
    is_own: bool = False


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a list; `count` is exact unless `more_than_counted`."""

    rows: Sequence[Any]
    count: int
    more_than_counted: bool
    next_cursor: str
    previous_cursor: str
    order: str


def list_rows(ctx: Context, rtype: ResourceType, query: ListQuery) -> Page:
    """A page of the rows that the caller may see, in the current project. Cost does not grow with the number of rows."""
    order = query.order or rtype.default_order
    sort = _sort_column(rtype, order)
    condition = conditions(ctx, rtype, query)
    cursor = _Cursor.parse(query.cursor, order) if query.cursor else None
    descending = order.startswith("-") != (cursor is not None and cursor.backwards)
    statement = select(rtype.model).where(condition).options(*rtype.eager())
    if cursor is not None:
        statement = statement.where(_beyond(rtype, sort, cursor, descending=descending))
    keys = (sort.desc(), rtype.model.id.desc()) if descending else (sort.asc(), rtype.model.id.asc())
    statement = statement.order_by(*keys).limit(query.limit + 1)
    if not query.cursor and query.offset:
        statement = statement.offset(query.offset)
    found = list(ctx.db.scalars(statement))
    more, rows = len(found) > query.limit, found[: query.limit]
    backwards = cursor is not None and cursor.backwards
    if backwards:
        rows.reverse()
    count, capped = _count(ctx, rtype, query, condition)
    before = more if backwards else bool(query.cursor or query.offset)
    return Page(
        rows, count, capped,
        next_cursor=_Cursor.of(rows[-1], sort.key, order, backwards=False) if rows and (more or backwards) else "",
        previous_cursor=_Cursor.of(rows[0], sort.key, order, backwards=True) if rows and before else "",
        order=order,
    )  # fmt: skip


def found_rows(ctx: Context, rtype: ResourceType, query: ListQuery, *, limit: int, order: str = "name") -> Sequence[Any]:
    """The first rows that a query covers, without counting."""
    sort = _sort_column(rtype, order)
    keys = (sort.desc(), rtype.model.id.desc()) if order.startswith("-") else (sort.asc(), rtype.model.id.asc())
    statement = select(rtype.model).where(conditions(ctx, rtype, query)).options(*rtype.eager()).order_by(*keys).limit(limit)
    return ctx.db.scalars(statement).all()


def conditions(ctx: Context, rtype: ResourceType, query: ListQuery) -> ColumnElement[bool]:
    """WHERE of a list: what the caller may see, in the current project, as filtered."""
    model = rtype.model
    parts: list[ColumnElement[bool]] = [reach(ctx, f"{rtype.key}.read").rows(model)]
    if not query.all_projects and rtype.tenancy is Tenancy.PROJECT:
        parts.append(model.project_id == ctx.project_id)
    elif not query.all_projects and rtype.tenancy is Tenancy.SHARED:
        parts.append(
            model.project_id == ctx.project_id if query.is_own else or_(model.project_id == ctx.project_id, model.offered_to(ctx.project_id))
        )
    ended = rtype.lifecycle.ended if rtype.lifecycle else frozenset[str]()
    if not ended & set(query.filters.get("state", ())):
        parts.append(model.deleted_at.is_(None))
    parts += [_filter(rtype, name, values) for name, values in query.filters.items()]
    for key, value in query.tags:
        if not is_storable(key + value):
            parts.append(false())
            continue
        tagged = select(ResourceTag.resource_id).where(ResourceTag.key == key)
        parts.append(model.id.in_(tagged.where(ResourceTag.value == value) if value else tagged))
    if query.search:
        parts.append(_search(rtype, query.search))
    return and_(*parts)


def _filter(rtype: ResourceType, name: str, values: Sequence[str]) -> ColumnElement[bool]:
    info = rtype.fields().get(name)
    if info is None or not info.filterable:
        allowed = sorted(n for n, i in rtype.fields().items() if i.filterable)
        raise InvalidRequest.fields({name: [f"is no filter of this list; there are {', '.join(allowed) or 'none'}, tag and search."]})
    column: ColumnElement[Any] = getattr(rtype.model, name)
    try:
        typed = [_typed(rtype, info.kind, value) for value in values if is_storable(value)]
    except ValueError as error:
        raise InvalidRequest.fields({name: [str(error)]}) from None
    return column.in_(typed) if typed else false()


def _typed(rtype: ResourceType, kind: object, text: str) -> object:
    if isinstance(kind, Bool):
        if text.lower() not in {"true", "false", "1", "0"}:
            msg = "must be true or false"
            raise ValueError(msg)
        return text.lower() in {"true", "1"}
    if isinstance(kind, Int):
        if not WHOLE.fullmatch(text) or not kind.low <= int(text) <= kind.high:
            msg = f"must be a whole number from {kind.low} to {kind.high}"
            raise ValueError(msg)
        return int(text)
    words = kind.options if isinstance(kind, Choice) else rtype.states() if isinstance(kind, State) else ()
    if words and text not in words:
        msg = f"must be one of {', '.join(words)}"
        raise ValueError(msg)
    return text


def _search(rtype: ResourceType, text: str) -> ColumnElement[bool]:
    if not is_storable(text):
        return false()
    escaped = text.lower().replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    return or_(*(func.lower(getattr(rtype.model, name)).like(f"%{escaped}%", escape="\\") for name in rtype.search))


def _sort_column(rtype: ResourceType, order: str) -> Any:
    name = order.removeprefix("-")
    info = rtype.fields().get(name)
    if info is None or not info.sortable:
        allowed = sorted(n for n, i in rtype.fields().items() if i.sortable)
        raise InvalidRequest.fields(
            {"ordering": [f"{name[:80]} cannot be sorted by; use one of {', '.join(allowed)}, with - in front to turn it round."]}
        )
    return getattr(rtype.model, name)


def _beyond(rtype: ResourceType, sort: Any, cursor: "_Cursor", *, descending: bool) -> ColumnElement[bool]:
    value: Any = cursor.value
    kind = rtype.fields()[sort.key].kind
    try:
        value = datetime.fromisoformat(str(value)) if isinstance(kind, Moment) else value
    except ValueError:
        value = None
    fits = {Moment: datetime, Int: int, Number: float | int}.get(type(kind), str)
    outside = isinstance(kind, Int) and isinstance(value, int) and not kind.low <= value <= kind.high
    if not isinstance(value, fits) or outside or (isinstance(value, datetime) and value.tzinfo is None):
        raise InvalidRequest.fields({"cursor": ["is not one that this list gave."]})
    first, second = (sort < value, rtype.model.id < cursor.row_id) if descending else (sort > value, rtype.model.id > cursor.row_id)
    return or_(first, and_(sort == value, second))


def _count(ctx: Context, rtype: ResourceType, query: ListQuery, condition: ColumnElement[bool]) -> tuple[int, bool]:
    plain = not (query.filters or query.tags or query.search or query.all_projects)
    if plain and rtype.tenancy is Tenancy.PROJECT and ctx.project_id and reach(ctx, f"{rtype.key}.read").whole(ctx.project_id):
        return quota.count(ctx.db, ctx.project_id, rtype.count_dimension), False
    some: Select[Any] = select(rtype.model.id).where(condition).limit(COUNT_LIMIT + 1)
    number = ctx.db.scalar(select(func.count()).select_from(some.subquery())) or 0
    return min(number, COUNT_LIMIT), number > COUNT_LIMIT


@dataclass(frozen=True, slots=True)
class _Cursor:
    """The place in an ordered list after which the next page begins."""

    value: object
    row_id: str
    backwards: bool

    @classmethod
    def of(cls, row: Resource, key: str, order: str, *, backwards: bool) -> str:
        value = getattr(row, key)
        content = [order, value.isoformat() if isinstance(value, datetime) else value, row.id, backwards]
        return base64.urlsafe_b64encode(json.dumps(content).encode()).decode().rstrip("=")

    @classmethod
    def parse(cls, text: str, order: str) -> "_Cursor":
        try:
            given, value, row_id, backwards = CURSOR.validate_json(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)), strict=True)
        except (ValueError, binascii.Error):
            given = ""
        if given != order:
            raise InvalidRequest.fields({"cursor": ["is not one that this list gave for this order."]})
        return cls(value, row_id, backwards)
