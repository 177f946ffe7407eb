"""Peerings: links between two VPCs; what goes over one, its routes on both sides say.

Between VPCs of one project a peering is one row. Between two projects each has a row of its own, which says what it has to know and no more: its own
VPC, the id of the other, and the other's range as soon as that is its business. The rows of both sides have the same link and change together.
"""

from collections.abc import Mapping
from ipaddress import IPv4Network
from typing import Annotated, Any

from sqlalchemy import select
from sqlalchemy.orm import joinedload

from portal.kernel import fields as f
from portal.kernel.context import Context
from portal.kernel.declare import Effect, operation, update_operation
from portal.kernel.errors import Conflict, StateConflict
from portal.kernel.ids import new_id
from portal.kernel.lifecycle import Lifecycle
from portal.kernel.projects import is_open
from portal.kernel.resource import Column, ResourceType
from portal.kernel.rows import end_along, insert_along, set_state
from portal.networking.changes import GOING, vpc_named, vpc_touch, wrong
from portal.networking.models import Vpc, VpcPeering
from portal.networking.vpc import applied, free_name

PREFIX = "pcx"
LIFECYCLE = Lifecycle(
    "pending",
    {
        # Waits for the other project's answer.
        "requested": frozenset({"active", "rejected", "deleted"}),
        "pending": frozenset({"active", "rejected", "deleted"}),
        "active": frozenset({"deleted"}),
        "rejected": frozenset({"deleted"}),
    },
    ended=frozenset({"deleted"}),
    tones={"requested": "warn", "pending": "warn", "rejected": "off"},
)
MINE = f.FieldInfo(f.Ref("networking.vpc"), "VPC", aliases=("vpc_id",))
PEER = f.FieldInfo(
    f.Ref("networking.vpc", elsewhere=True),
    "Peer VPC",
    "Its range must not overlap. A VPC of another project is named by its id, and somebody there has to accept.",
    aliases=("peer_vpc_id",),
)


@operation(VpcPeering, "create", label="Request", needs="write", effect=Effect.CREATE, icon="plus", along=lambda ctx, row, _: _ask(ctx, row))
def vpc_peering_create(
    ctx: Context, *, name: str, vpc: Annotated[str, MINE], peer_vpc: Annotated[str, PEER], description: str = "", tags: dict[str, str] | None = None
) -> VpcPeering:
    """Request a peering of two VPCs whose ranges do not overlap; the other may be of another project."""
    mine, peer = _both(ctx, vpc, peer_vpc)
    ctx.inputs = {**ctx.inputs, "vpc": mine.id, "peer_vpc": peer.id}
    if IPv4Network(mine.cidr_block).overlaps(IPv4Network(peer.cidr_block)):
        # Of a VPC of another project, the range is not told.
        whose = f"{peer.name} ({peer.cidr_block})" if peer.project_id == mine.project_id else f"The range of {peer.id}"
        raise wrong("peer_vpc", f"{whose} overlaps {mine.name} ({mine.cidr_block}): an address would be in both.")
    pair = (mine.id, peer.id)
    same = select(VpcPeering.name).where(VpcPeering.vpc_id.in_(pair), VpcPeering.peer_vpc_id.in_(pair), VpcPeering.deleted_at.is_(None))
    if (other := ctx.db.scalar(same.where(VpcPeering.state != "rejected", VpcPeering.project_id == mine.project_id))) is not None:
        raise Conflict(f"{mine.name} and {_called(peer, mine)} have the peering {other} already.", details={"in_the_way": [other]})
    row_id = new_id(PREFIX)
    return VpcPeering(
        id=row_id, link_id=row_id, name=name, description=description, tags=tags or {}, vpc=mine, vpc_id=mine.id, peer_vpc=peer, peer_vpc_id=peer.id,
        state="requested" if peer.project_id != mine.project_id else "pending",
    )  # fmt: skip


def _both(ctx: Context, vpc: str, peer_vpc: str) -> tuple[Vpc, Vpc]:
    """The caller's VPC and the other one, both locked: of two requests for the same pair, the second sees the first. Raises InvalidRequest."""
    mine = vpc_named(ctx, vpc)
    if mine is None:
        raise wrong("vpc", f"There is no VPC {vpc[:80]} here.")
    peer = vpc_named(ctx, peer_vpc)
    if peer is None:
        peer = ctx.db.scalars(select(Vpc).where(Vpc.id == peer_vpc, Vpc.project_id != mine.project_id, Vpc.deleted_at.is_(None))).first()
    if peer is None:
        raise wrong("peer_vpc", f"There is no VPC {peer_vpc[:80]} here; one of another project is named by its id.")
    if mine.id == peer.id:
        raise wrong("peer_vpc", "is the VPC itself.")
    locked = select(Vpc).where(Vpc.id.in_((mine.id, peer.id))).order_by(Vpc.id).with_for_update(key_share=True)
    ctx.db.scalars(locked.execution_options(populate_existing=True)).all()
    if mine.state in GOING:
        raise StateConflict(f"{mine.name} is {mine.state}: nothing is changed in it.", details={"state": mine.state})
    if peer.state in GOING or not is_open(ctx.db, peer.project_id):
        raise wrong("peer_vpc", f"There is no VPC {peer_vpc[:80]} here; one of another project is named by its id.")
    return mine, peer


def _ask(ctx: Context, row: VpcPeering) -> None:
    """Give the other project a row of its own."""
    if not is_foreign(row):
        return
    theirs = VpcPeering(
        link_id=row.link_id, name=free_name(ctx, VpcPeering, row.name[:200], row.peer_vpc, mark=row.id), vpc=row.peer_vpc, vpc_id=row.peer_vpc_id,
        peer_vpc=row.vpc, peer_vpc_id=row.vpc_id, tags={}, state="pending",
    )  # fmt: skip
    insert_along(ctx, theirs, row.peer_vpc.project_id)


def is_foreign(row: VpcPeering) -> bool:
    """Whether the other VPC is of another project."""
    return row.vpc.project_id != row.peer_vpc.project_id


def _sides(ctx: Context, row: VpcPeering) -> list[VpcPeering]:
    """The row and that of the other project, if there is one, locked. Raises StateConflict while somebody there is at it: nobody waits for the other."""
    if not is_foreign(row):
        return [row]
    other = select(VpcPeering).where(VpcPeering.link_id == row.link_id, VpcPeering.id != row.id, VpcPeering.deleted_at.is_(None))
    found = ctx.db.scalars(other.with_for_update(of=VpcPeering, key_share=True, skip_locked=True).execution_options(populate_existing=True)).first()
    if found is None:
        raise StateConflict(f"{row.name} is just being changed by the other side. Try again.", details={"state": row.state})
    return [row, found]


@operation(VpcPeering, "accept", label="Accept", needs="write", icon="check", when={"pending"})
def vpc_peering_accept(ctx: Context, row: VpcPeering) -> None:
    """Accept a request: the VPCs are linked, and routes may name the peering."""
    sides = _sides(ctx, row)
    if row.peer_vpc.state in GOING:
        raise StateConflict("The other VPC is being deleted.", details={"state": row.state})
    for side in sides:
        set_state(ctx.registry.of(VpcPeering), side, "active")
    vpc_touch(ctx, row.vpc_id, row.peer_vpc_id)


@operation(VpcPeering, "reject", label="Reject", needs="write", when={"pending"})
def vpc_peering_reject(ctx: Context, row: VpcPeering) -> None:
    """Refuse a request."""
    for side in _sides(ctx, row):
        set_state(ctx.registry.of(VpcPeering), side, "rejected")


@operation(VpcPeering, "delete", label="Delete", needs="delete", effect=Effect.REMOVE, icon="trash", danger=True)
def vpc_peering_delete(ctx: Context, row: VpcPeering) -> None:
    """Take the link down for both sides; routes over it lead nowhere from then on."""
    _sides(ctx, row)


def peering_at_end(ctx: Context, row: VpcPeering) -> None:
    """End the other side's row as well, and let the hosts of both VPCs know."""
    was_active = row.state == "active"
    set_state(ctx.registry.of(VpcPeering), row, "deleted")
    ctx.db.flush()
    other = select(VpcPeering).where(VpcPeering.link_id == row.link_id, VpcPeering.state != "deleted").with_for_update(of=VpcPeering, key_share=True)
    for side in ctx.db.scalars(other).all():
        end_along(ctx, side)
    if was_active:
        both = select(Vpc.id).where(Vpc.id.in_((row.vpc_id, row.peer_vpc_id)), Vpc.deleted_at.is_(None), Vpc.state.not_in(GOING))
        vpc_touch(ctx, *ctx.db.scalars(both).all())


def _called(vpc: Vpc, mine: Vpc) -> str:
    """The name of a VPC of the same project, the id of another's."""
    return vpc.name if vpc.project_id == mine.project_id else vpc.id


def _status(row: VpcPeering) -> str:
    if row.state == "requested":
        return "pending"
    return "applying" if row.state == "active" and "applying" in (applied(row.vpc), applied(row.peer_vpc)) else row.state


def asks(row: VpcPeering) -> bool:
    """Whether the row is of the side that asked."""
    return row.id == row.link_id


def _peer_range(row: VpcPeering) -> str | None:
    """The range of the other VPC: who is asked has to know it, who asks in another project learns it once that has accepted."""
    return row.peer_vpc.cidr_block if not is_foreign(row) or not asks(row) or row.state == "active" else None


def _eager() -> list[Any]:
    return [joinedload(VpcPeering.vpc), joinedload(VpcPeering.peer_vpc)]


ID: Mapping[str, Any] = {"type": "string"}
MAYBE: Mapping[str, Any] = {"type": ["string", "null"]}

VPC_PEERING = ResourceType(
    VpcPeering, service="networking", name="vpc_peering", collection="vpc-peerings", prefix=PREFIX, label="VPC peering", plural="VPC peerings", icon="chain",
    summary="Links between VPCs.",
    operations=[vpc_peering_create, vpc_peering_accept, vpc_peering_reject, vpc_peering_delete, update_operation(VpcPeering)],
    columns=[Column("name", "Name", sort="name"), Column("state", "State", sort="state"), Column("vpc_name", "VPC", css="md"),
             Column("peer", "Peer VPC", css="md"), Column("peer_cidr_block", "Peer range", css="mono md"),
             Column("created_at", "Created", sort="created_at", css="lo")],
    lifecycle=LIFECYCLE, eager=_eager, at_end=peering_at_end, goes_with="networking.vpc",
    part_of=lambda v: (v.vpc,) if is_foreign(v) else (v.vpc, v.peer_vpc), aliases={"peering_id": "id"},
    show={"vpc_name": lambda v: v.vpc.name, "peer_vpc_name": lambda v: None if is_foreign(v) else v.peer_vpc.name,
          "peer": lambda v: _called(v.peer_vpc, v.vpc), "peer_cidr_block": _peer_range,
          "requester": lambda v: v.vpc_id if asks(v) else v.peer_vpc_id, "accepter": lambda v: v.peer_vpc_id if asks(v) else v.vpc_id, "status": _status},
    shapes={"peer_vpc_name": MAYBE, "peer": ID, "peer_cidr_block": MAYBE, "requester": ID, "accepter": ID},
)  # fmt: skip
