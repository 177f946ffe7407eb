"""Subnets: parts of a VPC's range, and the addresses of them that are kept for something."""

from typing import Annotated, Any

from sqlalchemy import select
from sqlalchemy.orm import joinedload

from portal.kernel import fields as f
from portal.kernel.context import Context
from portal.kernel.declare import Effect, operation, update_operation
from portal.kernel.errors import Conflict, NotFound
from portal.kernel.resource import Column, ResourceType
from portal.networking import ipam
from portal.networking.addresses import parse_subnet_range, usage
from portal.networking.changes import named_rows, vpc_locked, vpc_touch, wrong
from portal.networking.models import TIERS, IpAllocation, NatGateway, NetworkInterface, Subnet, Vpc
from portal.networking.vpc import applied

VPC_FIELD = f.FieldInfo(f.Ref("networking.vpc", exclusive=True), "VPC", aliases=("vpc_id",))
Tier = Annotated[str, f.FieldInfo(f.Choice(TIERS), "Tier")]
Address = Annotated[str, f.FieldInfo(f.Line(15), "Address", "The lowest free one if left empty.", aliases=("address",))]
TheAddress = Annotated[str, f.FieldInfo(f.Line(15), "Address", aliases=("address",))]


@operation(Subnet, "create", label="Create", needs="write", effect=Effect.CREATE, icon="plus", along=lambda ctx, row, _: vpc_touch(ctx, row.vpc_id))
def subnet_create(
    ctx: Context, *, name: str, vpc: Annotated[Vpc, VPC_FIELD], cidr_block: str, availability_zone: str = "local-a",
    map_public_ip_on_launch: bool = False, tier: str = "private", description: str = "", tags: dict[str, str] | None = None,
) -> Subnet:  # fmt: skip
    """Create a subnet; no other of its VPC may have an address of its range."""
    others = ctx.db.scalars(select(Subnet.cidr_block).where(Subnet.vpc_id == vpc.id, Subnet.deleted_at.is_(None))).all()
    try:
        block = parse_subnet_range(cidr_block, vpc.cidr_block, others)
    except ValueError as error:
        if "overlaps" in str(error):
            raise Conflict(f"cidr_block: {error}.", details={"cidr_block": [f"{error}."]}) from None
        raise wrong("cidr_block", f"{error}.") from None
    return Subnet(
        name=name, vpc=vpc, vpc_id=vpc.id, cidr_block=str(block), availability_zone=availability_zone, map_public_ip_on_launch=map_public_ip_on_launch,
        tier=tier, description=description, tags=tags or {},
    )  # fmt: skip


@operation(Subnet, "enable_public_ips", label="Give public addresses", needs="write")
def subnet_enable_public_ips(ctx: Context, subnet: Subnet) -> None:
    """Give each new instance in it a public address."""
    del ctx
    subnet.map_public_ip_on_launch = True


@operation(Subnet, "set_tier", label="Set tier", needs="write")
def subnet_set_tier(ctx: Context, subnet: Subnet, *, tier: Tier) -> None:
    """Say what the subnet is meant for."""
    del ctx
    subnet.tier = tier


@operation(Subnet, "reserve_address", label="Reserve an address", needs="write", in_menu=False)
def subnet_reserve_address(ctx: Context, subnet: Subnet, *, ip: Address = "", description: str = "") -> str:
    """Keep an address from being given away."""
    vpc_locked(ctx, subnet.vpc_id)
    taken = ipam.take(ctx.db, subnet, ("", ""), wanted=ip, field="ip", description=description[:255] or "reserved")
    return ctx.db.scalars(select(IpAllocation.id).where(IpAllocation.subnet_id == subnet.id, IpAllocation.address == taken)).one()


@operation(Subnet, "release_address", label="Release an address", needs="write", in_menu=False)
def subnet_release_address(ctx: Context, subnet: Subnet, *, ip: TheAddress) -> None:
    """Let a reserved address be given away again."""
    vpc_locked(ctx, subnet.vpc_id)
    found = ctx.db.scalars(select(IpAllocation).where(IpAllocation.subnet_id == subnet.id, IpAllocation.address == ip)).first()
    if found is None:
        raise NotFound(f"{ip[:40]} is not taken in {subnet.name}.")
    if found.resource_id:
        raise Conflict(f"{ip} belongs to {found.resource_id}, which has to be deleted first.", details={"resource_id": found.resource_id})
    ipam.release(ctx.db, subnet.id, ip)


@operation(Subnet, "delete", label="Delete", needs="delete", effect=Effect.REMOVE, icon="trash", danger=True, bulk=True)
def subnet_delete(ctx: Context, subnet: Subnet) -> None:
    """Delete a subnet in which no address is in use."""
    vpc_locked(ctx, subnet.vpc_id)
    names = [each for model in (NetworkInterface, NatGateway) for each in named_rows(ctx, model, model.subnet_id == subnet.id)]
    names += ctx.db.scalars(select(IpAllocation.address).where(IpAllocation.subnet_id == subnet.id, IpAllocation.resource_id == "").limit(5)).all()
    if names:
        raise Conflict(f"{subnet.name} is in use by {', '.join(names)}. Delete or release these first.", details={"in_the_way": names})
    vpc_touch(ctx, subnet.vpc_id)


def subnet_at_end(ctx: Context, subnet: Subnet) -> None:
    """Forget its addresses."""
    for address in ctx.db.scalars(select(IpAllocation.address).where(IpAllocation.subnet_id == subnet.id)).all():
        ipam.release(ctx.db, subnet.id, address)


def _eager() -> list[Any]:
    return [joinedload(Subnet.vpc)]


SUBNET = ResourceType(
    Subnet, service="networking", name="subnet", collection="subnets", prefix="subnet", label="Subnet", plural="Subnets", icon="net",
    summary="Parts of a VPC's range in which instances live.",
    operations=[subnet_create, subnet_enable_public_ips, subnet_set_tier, subnet_reserve_address, subnet_release_address, subnet_delete,
                update_operation(Subnet)],
    columns=[Column("name", "Name", sort="name"), Column("vpc_name", "VPC", css="md"), Column("cidr_block", "Range", css="mono", sort="cidr_block"),
             Column("available_ip_count", "Free addresses", css="num md"), Column("tier", "Tier", css="lo"),
             Column("created_at", "Created", sort="created_at", css="lo")],
    quota={"subnets": 1}, search=("name", "id", "cidr_block"), eager=_eager, aliases={"vpc": "vpc_id"}, at_end=subnet_at_end, goes_with="networking.vpc",
    part_of=lambda v: (v.vpc,),
    show={"vpc_name": lambda v: v.vpc.name, "status": lambda v: applied(v.vpc),
          "available_ip_count": lambda v: usage(v.cidr_block, v.taken or 0).free, "address_count": lambda v: usage(v.cidr_block, 0).usable},
    describe=lambda v: (v.vpc.name, v.cidr_block),
)  # fmt: skip
