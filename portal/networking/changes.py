"""A change in a VPC: its desired revision goes up in the same transaction, and one job brings the host there, however many changes come meanwhile."""

from typing import Any

from sqlalchemy import ColumnElement, func, select

from portal.kernel.capabilities import capability
from portal.kernel.context import Context
from portal.kernel.errors import InvalidRequest, StateConflict, Unavailable
from portal.kernel.jobs import active_for
from portal.kernel.lookup import seen, seen_by_name
from portal.kernel.operations import enqueue
from portal.kernel.rows import reserve_for_change
from portal.kernel.wording import within
from portal.networking.models import Vpc

APPLY = "networking.vpc.apply"
NETWORK = "network"
NAMED = 5
UNSEEN = "something that you may not see"
GOING = frozenset({"deleting", "deleted"})


def vpc_locked(ctx: Context, vpc_id: str) -> Vpc:
    """The VPC, locked: after references and the target, before addresses and quotas. Raises StateConflict for one that goes."""
    # Nobody who holds something in a VPC waits for one that goes: what ends it waits for what is in it.
    _refuse_going(ctx, ctx.db.execute(select(Vpc.id, Vpc.name, Vpc.state, Vpc.project_id).where(Vpc.id == vpc_id)).one())
    vpc = ctx.db.scalars(select(Vpc).where(Vpc.id == vpc_id).with_for_update(key_share=True).execution_options(populate_existing=True)).one()
    _refuse_going(ctx, vpc)
    return vpc


def _refuse_going(ctx: Context, vpc: Any) -> None:
    if vpc.state in GOING:
        named = vpc.name if vpc.project_id == ctx.project_id else vpc.id
        raise StateConflict(f"{named} is {vpc.state}: nothing is changed in it.", details={"state": vpc.state})


def vpc_touch(ctx: Context, *vpc_ids: str, queue: bool = True) -> None:
    """Say that something in these VPCs is to be otherwise from now on, within the caller's transaction; `queue` unless the caller's own job applies it."""
    for vpc_id in sorted(set(vpc_ids)):
        vpc = vpc_locked(ctx, vpc_id)
        vpc.desired_revision += 1
        ctx.db.flush()
        # One of another project that failed is left to the reconciler: what it takes of quotas is no affair of the caller.
        if queue and (vpc.state != "failed" or vpc.project_id == ctx.project_id):
            vpc_queue(ctx, vpc)


def vpc_queue(ctx: Context, vpc: Any) -> None:
    """Have the host brought up to date, unless a job is about to do so: whatever it has not seen when it ends, `vpc_again` queues anew."""
    if active_for(ctx.db, vpc.id) is not None:
        return
    rtype = ctx.registry.of(Vpc)
    if vpc.state == "failed":
        # What a failed creation gave back is taken again.
        reserve_for_change(ctx, rtype, vpc)
    ctx.also_queued.append(enqueue(ctx, ctx.registry.operation(APPLY), rtype, vpc, {}))


def vpc_again(ctx: Context, vpc: Any) -> None:
    """Queue another job if something was changed while the last one ended."""
    if vpc.deleted_at is None and vpc.desired_revision > vpc.applied_revision:
        vpc_queue(ctx, vpc)


def why_no_networks(ctx: Context) -> str:
    """Why networks cannot be made here, as far as a worker has said; empty if they can."""
    found = capability(ctx.db, NETWORK)
    if found is None:
        return "No worker has reported yet that it can make networks. Start one, or wait a moment."
    return "" if found.available else f"Networks cannot be made here: {found.reason} {found.remedy}".strip()


def refuse_without_networks(ctx: Context) -> None:
    """Raise Unavailable with the reason where networks cannot be made here."""
    if reason := why_no_networks(ctx):
        found = capability(ctx.db, NETWORK)
        raise Unavailable(reason, details={"reason": found.reason, "remedy": found.remedy} if found is not None else {})


def named_rows(ctx: Context, model: Any, *where: ColumnElement[bool]) -> list[str]:
    """The live rows of a type for which something holds, by name; those that the caller may not see are only counted."""
    rtype = ctx.registry.of(model)
    label, live = within(rtype.label), (*where, model.deleted_at.is_(None))
    count = ctx.db.scalar(select(func.count()).select_from(model).where(*live)) or 0
    if not count:
        return []
    names = ctx.db.scalars(select(model.name).where(*live, seen(ctx, model)).order_by(model.name).limit(NAMED)).all()
    more = count - len(names)
    rest = f"{more} {'more ' if names else ''}{within(rtype.plural) if more > 1 else label}{'' if names else ' that you may not see'}"
    return [f"{label} {name}" for name in names] + ([rest] if more else [])


def vpc_named(ctx: Context, value: str) -> Vpc | None:
    """The VPC of the current project that is named by id or name, if the caller may see it."""
    return seen_by_name(ctx, ctx.registry.of(Vpc), value)


def wrong(field: str, text: str) -> InvalidRequest:
    """A refusal of one field."""
    return InvalidRequest.fields({field: [text]})
