"""What lists and pages of every resource type share: which type an address names, which columns and actions are shown, and why not."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flask import current_app
from jinja2 import TemplateNotFound
from sqlalchemy import select

from portal.http.request import context, signed_in
from portal.kernel.authz import Target, decide, target_of
from portal.kernel.context import Context
from portal.kernel.declare import Effect, Operation
from portal.kernel.errors import NotFound
from portal.kernel.fields import Ref
from portal.kernel.lookup import seen
from portal.kernel.operations import lock_reason, protection, state_reason
from portal.kernel.resource import Column, ResourceType


@dataclass(frozen=True, slots=True)
class Action:
    """An operation as a button: why it cannot be used now stands beside it."""

    op: Operation
    url: str
    reason: str

    @property
    def is_open(self) -> bool:
        """Whether it can be used now."""
        return not self.reason


@dataclass(frozen=True, slots=True)
class Tab:
    """A tab of a row's page; `load` gives what its template needs, `needs` the permission to see it, `script` what it runs."""

    name: str
    label: str
    template: str
    load: Callable[[Context, Any], Mapping[str, Any]] | None = None
    needs: str = ""
    script: str = ""


def type_of(service: str, collection: str) -> ResourceType:
    """The type at an address. Raises NotFound."""
    rtype = context().registry.by_collection(service, collection)
    if rtype is None:
        raise NotFound("There is nothing at this address.")
    return rtype


def base_of(rtype: ResourceType) -> str:
    """Address of a type's list."""
    return f"/{rtype.service}/{rtype.collection}"


def template(rtype: ResourceType, page: str) -> str:
    """The type's own template of a page, or the general one."""
    own = f"{rtype.service}/{rtype.name}/{page}"
    try:
        current_app.jinja_env.get_template(own)
    except TemplateNotFound:
        return f"resource/{page}"
    return own


def cells(ctx: Context, rtype: ResourceType, rows: Sequence[Any]) -> Callable[[ResourceType, Any, str], Any]:
    """What a column shows of each of these rows to the user."""
    veils = rtype.veil(ctx, rows)

    def cell(rtype: ResourceType, row: Any, key: str) -> Any:
        veil = veils.get(row.id, {})
        if key in veil:
            return veil[key]
        return rtype.show[key](row) if key in rtype.show else getattr(row, key)

    return cell


def links(ctx: Context, rtype: ResourceType, rows: Sequence[Any], columns: Sequence[Column]) -> Mapping[tuple[str, str], tuple[str, str]]:
    """(Row, column) → name and address of what a column refers to and the user may see: one query for each type that is referred to."""
    kinds = {name: info.kind for name, info in rtype.fields().items() if isinstance(info.kind, Ref)}
    wanted: dict[str, set[str]] = {}
    for column in columns:
        if (kind := kinds.get(column.key)) is not None:
            wanted.setdefault(kind.type_key, set()).update(value for row in rows if (value := getattr(row, column.key)))
    known: dict[str, tuple[str, str]] = {}
    for type_key, ids in wanted.items():
        target = ctx.registry.get(type_key)
        if target is not None and ids:
            found = ctx.db.execute(select(target.model.id, target.model.name).where(target.model.id.in_(ids), seen(ctx, target.model)))
            known.update({row_id: (name, f"{base_of(target)}/{row_id}") for row_id, name in found})
    return {
        (row.id, column.key): known[value]
        for row in rows
        for column in columns
        if column.key in kinds and (value := getattr(row, column.key)) in known
    }


def shown_columns(rtype: ResourceType) -> list[Column]:
    """The columns that the user wants to see; the name is always there."""
    found = signed_in()
    chosen = found.user.preferences.get(f"columns.{rtype.key}") if found else None
    if not isinstance(chosen, list):
        return [column for column in rtype.columns if not column.hidden]
    return [column for column in rtype.columns if column.key in chosen or column is rtype.columns[0]]


def create_action(ctx: Context, rtype: ResourceType) -> Action | None:
    """The way to the form for a new row; None for a type that is not made by hand."""
    op = next((op for op in rtype.operations if op.effect is Effect.CREATE and not op.internal), None)
    if op is None:
        return None
    decision = decide(ctx, f"{rtype.key}.{op.verb}", Target(ctx.project_id, ctx.principal.user_id))
    return Action(op, f"{base_of(rtype)}/new", "" if decision.allowed else decision.because)


def actions_of(ctx: Context, rtype: ResourceType, row: Any) -> list[Action]:
    """What can be done to a row, each with the reason why not now."""
    base = f"{base_of(rtype)}/{row.id}/actions"
    found = []
    for op in rtype.operations:
        if op.internal or not op.in_menu or op.effect is Effect.CREATE or _is_so_already(op, row):
            continue
        found.append(Action(op, f"{base}/{op.verb}", why_not(ctx, rtype, op, row)))
    return found


def _is_so_already(op: Operation, row: Any) -> bool:
    """Whether an operation would change nothing: it locks what is locked, or shares with everybody what is."""
    shared = getattr(row, "is_public", None)
    return (op.verb, bool(row.locked)) in {("lock", True), ("unlock", False)} or (op.verb, shared) in {("make_public", True), ("make_private", False)}


def why_not(ctx: Context, rtype: ResourceType, op: Operation, row: Any) -> str:
    """Why an operation is not open for a row now: permission, lock or state; empty if it is."""
    decision = decide(ctx, f"{rtype.key}.{op.verb}", target_of(row))
    if not decision.allowed:
        return decision.because
    locked = "" if op.while_locked else lock_reason(rtype, row)
    return locked or protection(rtype, op, row) or state_reason(op, row)
