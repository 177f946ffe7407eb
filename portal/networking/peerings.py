"""Peerings: links between two VPCs of a project; what goes over one, its routes on both sides say."""

from ipaddress import IPv4Network
from typing import Annotated, Any

from sqlalchemy import select
from sqlalchemy.orm import joinedload

from portal.kernel import fields as f
from portal.kernel.context import Context
from portal.kernel.declare import Effect, operation, update_operation
from portal.kernel.errors import Conflict
from portal.kernel.lifecycle import Lifecycle
from portal.kernel.operations import set_state
from portal.kernel.resource import Column, ResourceType
from portal.networking.changes import GOING, vpc_touch, wrong
from portal.networking.models import Vpc, VpcPeering
from portal.networking.vpc import applied

LIFECYCLE = Lifecycle(
    "pending",
    {"pending": frozenset({"active", "rejected", "deleted"}), "active": frozenset({"deleted"}), "rejected": frozenset({"deleted"})},
    ended=frozenset({"deleted"}),
    tones={"pending": "warn", "rejected": "off"},
)
MINE = f.FieldInfo(f.Ref("networking.vpc"), "VPC", aliases=("vpc_id",))
PEER = f.FieldInfo(f.Ref("networking.vpc"), "Peer VPC", "Its range must not overlap.", aliases=("peer_vpc_id",))


@operation(VpcPeering, "create", label="Request", needs="write", effect=Effect.CREATE, icon="plus")
def vpc_peering_create(
    ctx: Context, *, name: str, vpc: Annotated[Vpc, MINE], peer_vpc: Annotated[Vpc, PEER], description: str = "", tags: dict[str, str] | None = None
) -> VpcPeering:
    """Request a peering of two VPCs whose ranges do not overlap."""
    if vpc.id == peer_vpc.id:
        raise wrong("peer_vpc", "is the VPC itself.")
    if IPv4Network(vpc.cidr_block).overlaps(IPv4Network(peer_vpc.cidr_block)):
        raise wrong("peer_vpc", f"{peer_vpc.name} ({peer_vpc.cidr_block}) overlaps {vpc.name} ({vpc.cidr_block}): an address would be in both.")
    pair = (vpc.id, peer_vpc.id)
    same = select(VpcPeering.name).where(VpcPeering.vpc_id.in_(pair), VpcPeering.peer_vpc_id.in_(pair), VpcPeering.deleted_at.is_(None))
    if (other := ctx.db.scalar(same.where(VpcPeering.state != "rejected"))) is not None:
        raise Conflict(f"{vpc.name} and {peer_vpc.name} have the peering {other} already.", details={"in_the_way": [other]})
    return VpcPeering(name=name, description=description, tags=tags or {}, vpc=vpc, vpc_id=vpc.id, peer_vpc=peer_vpc, peer_vpc_id=peer_vpc.id)


@operation(VpcPeering, "accept", label="Accept", needs="write", icon="check", when={"pending"})
def vpc_peering_accept(ctx: Context, row: VpcPeering) -> None:
    """Accept a request: the VPCs are linked, and routes may name the peering."""
    set_state(ctx.registry.of(VpcPeering), row, "active")
    vpc_touch(ctx, row.vpc_id, row.peer_vpc_id)


@operation(VpcPeering, "reject", label="Reject", needs="write", when={"pending"})
def vpc_peering_reject(ctx: Context, row: VpcPeering) -> None:
    """Refuse a request."""
    set_state(ctx.registry.of(VpcPeering), row, "rejected")


@operation(VpcPeering, "delete", label="Delete", needs="delete", effect=Effect.REMOVE, icon="trash", danger=True)
def vpc_peering_delete(ctx: Context, row: VpcPeering) -> None:
    """Take the link down; routes over it lead nowhere from then on."""
    del ctx, row


def peering_at_end(ctx: Context, row: VpcPeering) -> None:
    """Let the hosts of both VPCs know."""
    was_active = row.state == "active"
    set_state(ctx.registry.of(VpcPeering), row, "deleted")
    ctx.db.flush()
    if was_active:
        both = select(Vpc.id).where(Vpc.id.in_((row.vpc_id, row.peer_vpc_id)), Vpc.deleted_at.is_(None), Vpc.state.not_in(GOING))
        vpc_touch(ctx, *ctx.db.scalars(both).all())


def _status(row: VpcPeering) -> str:
    return "applying" if row.state == "active" and "applying" in (applied(row.vpc), applied(row.peer_vpc)) else row.state


def _eager() -> list[Any]:
    return [joinedload(VpcPeering.vpc), joinedload(VpcPeering.peer_vpc)]


VPC_PEERING = ResourceType(
    VpcPeering, service="networking", name="vpc_peering", collection="vpc-peerings", prefix="pcx", label="VPC peering", plural="VPC peerings", icon="chain",
    summary="Links between VPCs.",
    operations=[vpc_peering_create, vpc_peering_accept, vpc_peering_reject, vpc_peering_delete, update_operation(VpcPeering)],
    columns=[Column("name", "Name", sort="name"), Column("state", "State", sort="state"), Column("vpc_name", "VPC", css="md"),
             Column("peer_vpc_name", "Peer VPC", css="md"), Column("created_at", "Created", sort="created_at", css="lo")],
    lifecycle=LIFECYCLE, eager=_eager, at_end=peering_at_end, goes_with="networking.vpc",
    aliases={"requester": "vpc_id", "accepter": "peer_vpc_id", "peering_id": "id"},
    show={"vpc_name": lambda v: v.vpc.name, "peer_vpc_name": lambda v: v.peer_vpc.name, "status": _status},
)  # fmt: skip
