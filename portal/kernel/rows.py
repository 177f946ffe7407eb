"""How rows begin, what they are charged, how what comes and goes with them is told, and how they end: within a transaction that is somebody else's."""

from collections.abc import Mapping
from typing import Any

from portal.kernel import audit, events, quota, tags
from portal.kernel.context import Context
from portal.kernel.db import now
from portal.kernel.errors import Conflict
from portal.kernel.ids import new_id
from portal.kernel.projects import refuse_ending
from portal.kernel.resource import ResourceType, Tenancy
from portal.kernel.wording import within


def complete(ctx: Context, rtype: ResourceType, row: Any, project_id: str | None, *, state: str = "") -> None:
    """Give a new row what every row has: id, owner, project, first state."""
    if rtype.tenancy is not Tenancy.PLATFORM and row.project_id is None:
        row.project_id = project_id
    row.owner_id = row.owner_id or ctx.principal.user_id
    if row.id is None:
        row.id = new_id(rtype.prefix)
    if rtype.lifecycle is not None and row.state is None:
        row.state = state or rtype.lifecycle.initial


def write(ctx: Context, rtype: ResourceType, row: Any) -> None:
    """Write a new row and its tags. Raises Conflict for a name that is taken, and refuses a project that ends."""
    refuse_duplicate(ctx, rtype, row)
    ctx.db.add(row)
    ctx.db.flush()
    refuse_ending(ctx.db, row.project_of())
    tags.store(ctx.db, rtype.key, row)


def counted(rtype: ResourceType, row: Any) -> dict[str, int]:
    """What a row takes of quotas, itself among them."""
    return {**rtype.amounts(row), rtype.count_dimension: 1}


def insert_along(ctx: Context, row: Any, project_id: str | None) -> None:
    """Make a row that comes with a new one (`along`): charged together with it, audited and told like one that was asked for."""
    rtype = ctx.registry.of(type(row))
    complete(ctx, rtype, row, project_id)
    write(ctx, rtype, row)
    ctx.made_along.append(row)


def hold_along(ctx: Context, *held: tuple[Any, Mapping[str, int], bool]) -> None:
    """Charge for rows and for what came along with them, then tell of that: quota rows are locked before the head of the audit log."""
    came = [*ctx.made_along]
    ctx.made_along.clear()
    quota.hold_all(ctx, [*held, *((each, counted(ctx.registry.of(type(each)), each), True) for each in came)])
    for each in came:
        _tell_along(ctx, each, "create", details={"after": snapshot(ctx.registry.of(type(each)), each)})


def end_along(ctx: Context, row: Any) -> None:
    """End a row that goes with another, within the caller's transaction; it is audited and told like one that was deleted."""
    _leave(ctx, row)
    ctx.gone_along.append(row)


def _tell_along(ctx: Context, row: Any, verb: str, *, details: Mapping[str, object] | None = None) -> None:
    action = f"{ctx.registry.of(type(row)).key}.{verb}"
    audit.record(ctx, action, audit.Subject(action.rpartition(".")[0], row.id, row.name, row.project_of()), details=details)
    events.emit(ctx, action, resource_id=row.id, name=row.name, project_id=row.project_of(), payload={})


def end(ctx: Context, row: Any) -> None:
    """Take a row out of the lists and give its quota back, with what goes when it does; its record stays for a while."""
    _leave(ctx, row)
    went = [*ctx.gone_along]
    ctx.gone_along.clear()
    quota.release(ctx.db, row.id, *(each.id for each in went))
    for each in went:
        _tell_along(ctx, each, "delete")


def _leave(ctx: Context, row: Any) -> None:
    ctx.registry.of(type(row)).at_end(ctx, row)
    # Its tags stay as long as its record: policies that speak of them go on counting.
    row.deleted_at = row.updated_at = now()


def refuse_duplicate(ctx: Context, rtype: ResourceType, row: Any) -> None:
    """Raise Conflict if a live row of the same owner has this name already; the database's own constraint is the second line."""
    model = rtype.model
    query = ctx.db.query(model.id).filter(model.name == row.name, model.deleted_at.is_(None), model.id != (row.id or ""))
    if hasattr(model, "project_id"):
        query = query.filter(model.project_id.is_(None) if row.project_id is None else model.project_id == row.project_id)
    with ctx.db.no_autoflush:
        if query.first() is not None:
            problem = f'"{row.name}" is taken by another {within(rtype.label)} here. Choose another name.'
            raise Conflict(f"name: {problem}", details={"name": [problem]})


def reserve_for_change(ctx: Context, rtype: ResourceType, row: Any) -> None:
    """While a change is under way the project holds the larger of before and after; what was given back after a failure is taken again."""
    held = quota.held_by(ctx.db, row.id)
    quota.hold(ctx, row, {d: max(n, held.get(d, 0)) for d, n in rtype.amounts(row).items()}, settled=False)


def set_state(rtype: ResourceType, row: Any, state: str, reason: str = "") -> None:
    """Move a row to another state, if its life cycle allows that."""
    if rtype.lifecycle is None or row.state == state:
        row.state_reason = reason
        return
    rtype.lifecycle.check(row.state, state)
    row.state, row.state_reason, row.state_at = state, reason, now()


def snapshot(rtype: ResourceType, row: Any) -> dict[str, object]:
    """Field values of a row, for the audit entry's before and after."""
    return {
        name: getattr(row, name) for name, info in rtype.fields().items() if info.exposed and name not in {"created_at", "owner_id", "project_id"}
    }


def forget_along(ctx: Context) -> None:
    """Leave behind what came along with an earlier attempt in this context that was refused."""
    for left in (ctx.also_queued, ctx.made_along, ctx.gone_along):
        left.clear()
