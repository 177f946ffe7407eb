"""What goes with a VPC: what is in it, in an order in which it can go, what of that is in the way, and the end of it."""

from collections.abc import Iterator
from typing import Any

from sqlalchemy import ColumnElement, select

from portal.kernel.context import Context
from portal.kernel.leaving import Leaving, refusals, rows_listed
from portal.kernel.rows import end_along
from portal.networking.changes import named_rows
from portal.networking.models import InternetGateway, NatGateway, NetworkInterface, RouteTable, SecurityGroup, Subnet, Vpc, VpcPeering


def _joined(vpc: Vpc) -> ColumnElement[bool]:
    return (VpcPeering.vpc_id == vpc.id) | (VpcPeering.peer_vpc_id == vpc.id)


def _inside(vpc: Vpc) -> Iterator[tuple[Any, tuple[ColumnElement[bool], ...]]]:
    """Whose rows are in a VPC, and which, but for what it cannot be without: nothing refers to what comes later."""
    yield VpcPeering, (_joined(vpc), VpcPeering.project_id == vpc.project_id)
    for model in (NatGateway, NetworkInterface, InternetGateway, Subnet):
        yield model, (model.vpc_id == vpc.id,)
    yield RouteTable, (RouteTable.vpc_id == vpc.id, RouteTable.is_main.is_(False))
    yield SecurityGroup, (SecurityGroup.vpc_id == vpc.id, SecurityGroup.is_default.is_(False))


def vpc_leaving(ctx: Context, vpc: Vpc) -> Leaving:
    """What the deletion of a VPC with all that is in it would take along, and what is in the way."""
    listed = (rows_listed(ctx, ctx.registry.of(model), *where) for model, where in _inside(vpc))
    instances = [f"{each}: terminate first." for each in instances_in(ctx, vpc)]
    return Leaving([found for found in listed if found], [*instances, *refused_in(ctx, vpc)])


def refused_in(ctx: Context, vpc: Vpc) -> list[str]:
    """Why something in a VPC cannot go with it: it is locked, or not the caller's to delete."""
    return [reason for model, where in _inside(vpc) for reason in refusals(ctx, ctx.registry.of(model), *where)]


def instances_in(ctx: Context, vpc: Vpc) -> list[str]:
    """The instances with an interface in a VPC."""
    model = ctx.registry.model("compute.instance")
    used = select(NetworkInterface.instance_id).where(NetworkInterface.vpc_id == vpc.id, NetworkInterface.deleted_at.is_(None))
    return named_rows(ctx, model, model.id.in_(used))


def things_in(ctx: Context, vpc: Vpc) -> list[str]:
    """What else has to be deleted before a VPC: a peering that was refused is in nobody's way."""
    found = []
    for model, where in _inside(vpc):
        live = (*where, VpcPeering.state != "rejected") if model is VpcPeering else where
        found += named_rows(ctx, model, *live)
    return found


def vpc_emptied(ctx: Context, vpc: Vpc) -> None:
    """End everything that is in a VPC that is gone, and what it could not be without."""
    own: tuple[tuple[Any, tuple[ColumnElement[bool], ...]], ...] = (
        (VpcPeering, (_joined(vpc),)), (RouteTable, (RouteTable.vpc_id == vpc.id,)), (SecurityGroup, (SecurityGroup.vpc_id == vpc.id,)),
    )  # fmt: skip
    for model, where in (*_inside(vpc), *own):
        for row in ctx.db.scalars(select(model).where(*where, model.deleted_at.is_(None)).order_by(model.id)).all():
            # One side of a peering takes the other along.
            if row.deleted_at is None:
                end_along(ctx, row)
