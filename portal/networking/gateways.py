"""Gateways: the way of a VPC to the internet, and the way out of private subnets under one public address."""

from collections.abc import Mapping
from typing import Annotated, Any

from sqlalchemy import select
from sqlalchemy.orm import joinedload

from portal.kernel import fields as f
from portal.kernel.context import Context
from portal.kernel.declare import Effect, operation, update_operation
from portal.kernel.errors import Conflict
from portal.kernel.lifecycle import Lifecycle
from portal.kernel.operations import also_changes
from portal.kernel.resource import Column, ResourceType
from portal.networking import apply, ipam
from portal.networking.changes import named_rows, refuse_without_networks, vpc_locked, vpc_touch, wrong
from portal.networking.models import ElasticIp, InternetGateway, NatGateway, NetworkInterface, Route, Subnet, Vpc
from portal.networking.routes import routes_to
from portal.networking.subnets import VPC_FIELD
from portal.networking.vpc import applied

NAT = "networking.nat_gateway"
LIFECYCLE = Lifecycle(
    "pending",
    {
        "pending": frozenset({"available", "failed"}),
        "available": frozenset({"deleting", "pending"}),
        "failed": frozenset({"deleting", "pending", "available"}),
        "deleting": frozenset({"deleted", "failed"}),
    },
    transient=frozenset({"pending", "deleting"}),
    ended=frozenset({"deleted"}),
    tones={"failed": "bad"},
)
SUBNET_FIELD = f.FieldInfo(
    f.Ref("networking.subnet"), "Subnet", "A public one: its default route leads to the internet gateway.", aliases=("subnet_id",)
)
TARGET_FIELD = f.FieldInfo(f.Ref("networking.subnet"), "Subnet", aliases=("target_subnet_id",))
ELASTIC_FIELD = f.FieldInfo(
    f.Ref("networking.elastic_ip", exclusive=True),
    "Elastic IP",
    "An address of its own if left empty.",
    aliases=("eip_allocation_id", "elastic_ip_id"),
)
Force = Annotated[bool, f.FieldInfo(f.Bool(), "Also if routes lead to it", "They lead nowhere then.")]


# -- internet gateways -----------------------------------------------------------------------------------------------------------------------


@operation(
    InternetGateway, "create", label="Create", needs="write", effect=Effect.CREATE, icon="plus", along=lambda ctx, row, _: _join(ctx, row, row.vpc_id)
)
def internet_gateway_create(
    ctx: Context, *, name: str, vpc: Annotated[Vpc | None, VPC_FIELD] = None, description: str = "", tags: dict[str, str] | None = None
) -> InternetGateway:
    """Create an internet gateway, attached to a VPC if one is named."""
    if vpc is not None:
        _refuse_second(ctx, vpc)
    return InternetGateway(name=name, vpc=vpc, vpc_id=vpc.id if vpc else None, description=description, tags=tags or {})


def _refuse_second(ctx: Context, vpc: Vpc) -> None:
    there = ctx.db.scalar(select(InternetGateway.name).where(InternetGateway.vpc_id == vpc.id, InternetGateway.deleted_at.is_(None)))
    if there is not None:
        raise Conflict(f"{vpc.name} has the internet gateway {there} already; a VPC has one.", details={"vpc": ["has one already."]})


def _join(ctx: Context, gateway: InternetGateway, vpc_id: str | None) -> None:
    """Give the VPC an address outside, as long as it has a gateway."""
    if vpc_id is None:
        return
    vpc = vpc_locked(ctx, vpc_id)
    # It is a change of the VPC as well.
    also_changes(ctx, "networking.vpc.update", vpc)
    gateway.vpc_id = vpc_id
    vpc.uplink_address = ipam.take_public(ctx, ("networking.vpc", vpc.id))
    vpc_touch(ctx, vpc_id)


def _leave(ctx: Context, gateway: InternetGateway) -> None:
    if gateway.vpc_id is None:
        return
    vpc = ctx.db.scalars(select(Vpc).where(Vpc.id == gateway.vpc_id).with_for_update(key_share=True)).one()
    if not _goes(vpc):
        also_changes(ctx, "networking.vpc.update", vpc)
    ipam.release_of(ctx.db, vpc.id)
    vpc.uplink_address = ""
    gateway.vpc_id = None
    if not _goes(vpc):
        vpc_touch(ctx, vpc.id)


def _goes(vpc: Vpc) -> bool:
    return vpc.deleted_at is not None or vpc.state in {"deleting", "deleted"}


def _vpc_ahead(ctx: Context, gateway: InternetGateway, _: Mapping[str, Any]) -> None:
    """Lock the VPC before its gateway, as whoever attaches one does."""
    if gateway.vpc_id is not None:
        vpc_locked(ctx, gateway.vpc_id)


@operation(InternetGateway, "attach", label="Attach", needs="write")
def internet_gateway_attach(ctx: Context, gateway: InternetGateway, *, vpc: Annotated[Vpc, VPC_FIELD]) -> None:
    """Attach the gateway to a VPC."""
    if gateway.vpc_id is not None:
        raise Conflict(f"{gateway.name} is attached to {gateway.vpc_id}. Detach it first.", details={"vpc_id": gateway.vpc_id})
    _refuse_second(ctx, vpc)
    _join(ctx, gateway, vpc.id)


@operation(InternetGateway, "detach", label="Detach", needs="write", danger=True, ahead=_vpc_ahead)
def internet_gateway_detach(ctx: Context, gateway: InternetGateway) -> None:
    """Cut the VPC off the internet; public addresses in it have to be taken away first."""
    if gateway.vpc_id is None:
        raise Conflict(f"{gateway.name} is attached to no VPC.", details={"vpc_id": None})
    _refuse_in_use(ctx, gateway)
    _leave(ctx, gateway)


def _refuse_in_use(ctx: Context, gateway: InternetGateway) -> None:
    names = named_rows(ctx, NatGateway, NatGateway.vpc_id == gateway.vpc_id)
    names += named_rows(ctx, NetworkInterface, NetworkInterface.vpc_id == gateway.vpc_id, NetworkInterface.public_ip != "")
    if names:
        raise Conflict(f"{gateway.name} is needed by {', '.join(names)}, which have public addresses.", details={"in_the_way": names})


@operation(InternetGateway, "delete", label="Delete", needs="delete", effect=Effect.REMOVE, icon="trash", danger=True, ahead=_vpc_ahead)
def internet_gateway_delete(ctx: Context, gateway: InternetGateway, *, force: Force = False) -> None:
    """Delete a gateway that no route leads to."""
    if gateway.vpc_id is not None:
        if not force and (found := routes_to(ctx, gateway.id)):
            raise Conflict(f"Routes lead to {gateway.name}: {', '.join(found)}. Remove these first.", details={"in_the_way": found})
        _refuse_in_use(ctx, gateway)


def _eager_gateway() -> list[Any]:
    return [joinedload(InternetGateway.vpc)]


INTERNET_GATEWAY = ResourceType(
    InternetGateway, service="networking", name="internet_gateway", collection="internet-gateways", prefix="igw", label="Internet gateway",
    plural="Internet gateways", icon="globe", summary="The way of a VPC to the internet.",
    operations=[internet_gateway_create, internet_gateway_attach, internet_gateway_detach, internet_gateway_delete, update_operation(InternetGateway)],
    columns=[Column("name", "Name", sort="name"), Column("vpc_name", "VPC", css="md"), Column("status", "State"),
             Column("created_at", "Created", sort="created_at", css="lo")],
    eager=_eager_gateway, aliases={"vpc": "vpc_id", "ig_id": "id"}, at_end=_leave, goes_with="networking.vpc", part_of=lambda v: (v.vpc,) if v.vpc else (),
    show={"vpc_name": lambda v: v.vpc.name if v.vpc else None, "status": lambda v: applied(v.vpc if v.vpc_id else None)},
)  # fmt: skip


# -- NAT gateways ------------------------------------------------------------------------------------------------------------------------------


def _open(ctx: Context, nat: NatGateway, inputs: Any) -> None:
    elastic = inputs.get("elastic_ip")
    vpc_locked(ctx, nat.vpc_id)
    subnet = ctx.db.get_one(Subnet, nat.subnet_id)
    nat.private_ip = ipam.take(ctx.db, subnet, (NAT, nat.id), description=nat.name[:255])
    if elastic is not None:
        nat.public_ip, elastic.nat_gateway_id = elastic.public_ip, nat.id
    else:
        nat.public_ip = ipam.take_public(ctx, (NAT, nat.id))
    vpc_touch(ctx, nat.vpc_id, queue=False)


@operation(NatGateway, "create", label="Create", needs="write", effect=Effect.CREATE, icon="plus", steps=apply.APPLY_OF, settles="available", fails="failed",
           along=_open)  # fmt: skip
def nat_gateway_create(
    ctx: Context, *, name: str, subnet: Annotated[Subnet, SUBNET_FIELD], elastic_ip: Annotated[ElasticIp | None, ELASTIC_FIELD] = None,
    description: str = "", tags: dict[str, str] | None = None,
) -> NatGateway:  # fmt: skip
    """Create a NAT gateway in a public subnet."""
    refuse_without_networks(ctx)
    refuse_private(ctx, subnet)
    if elastic_ip is not None:
        # It is a change of the address as well.
        also_changes(ctx, "networking.elastic_ip.associate", elastic_ip)
    if elastic_ip is not None and (elastic_ip.interface_id or elastic_ip.nat_gateway_id):
        raise Conflict(f"{elastic_ip.public_ip} leads to {elastic_ip.interface_id or elastic_ip.nat_gateway_id} already. Disassociate it first.")
    return NatGateway(
        name=name,
        description=description,
        tags=tags or {},
        vpc_id=subnet.vpc_id,
        subnet_id=subnet.id,
        elastic_ip_id=elastic_ip.id if elastic_ip else None,
    )


def refuse_private(ctx: Context, subnet: Subnet) -> None:
    """Raise InvalidRequest unless a subnet's default route leads to an attached internet gateway."""
    vpc = ctx.db.get_one(Vpc, subnet.vpc_id)
    table_id = subnet.route_table_id or vpc.main_route_table_id
    default = ctx.db.scalars(select(Route).where(Route.route_table_id == table_id, Route.destination_cidr == "0.0.0.0/0")).first()
    if default is None or default.target_type != "internet-gateway" or not vpc.uplink_address:
        raise wrong("subnet", f"{subnet.name} is not public: it needs a route 0.0.0.0/0 to an internet gateway of {vpc.name}.")


@operation(
    NatGateway,
    "failover",
    label="Move",
    needs="write",
    steps=apply.APPLY_OF,
    when={"available"},
    holds="pending",
    settles="available",
    fails="failed",
)
def nat_gateway_failover(ctx: Context, nat: NatGateway, *, target_subnet: Annotated[Subnet, TARGET_FIELD]) -> None:
    """Move to another public subnet of the VPC; the public address stays."""
    if target_subnet.vpc_id != nat.vpc_id:
        raise wrong("target_subnet", f"{target_subnet.name} is a subnet of another VPC.")
    refuse_private(ctx, target_subnet)
    vpc_locked(ctx, nat.vpc_id)
    ipam.release(ctx.db, nat.subnet_id, nat.private_ip)
    nat.subnet_id = target_subnet.id
    nat.private_ip = ipam.take(ctx.db, target_subnet, (NAT, nat.id), description=nat.name[:255])
    vpc_touch(ctx, nat.vpc_id, queue=False)


@operation(NatGateway, "delete", label="Delete", needs="delete", effect=Effect.REMOVE, icon="trash", danger=True, steps=apply.APPLY_OF,
           when={"available", "failed"}, holds="deleting", settles="deleted", fails="failed",
           along=lambda ctx, row, _: vpc_touch(ctx, row.vpc_id, queue=False))  # fmt: skip
def nat_gateway_delete(ctx: Context, nat: NatGateway) -> None:
    """Delete a NAT gateway and free its address; routes to it lead nowhere from then on."""
    del ctx, nat


def nat_at_end(ctx: Context, nat: NatGateway) -> None:
    """Free its addresses."""
    ipam.release_of(ctx.db, nat.id)
    if nat.elastic_ip_id is not None:
        ctx.db.get_one(ElasticIp, nat.elastic_ip_id, with_for_update={"key_share": True}).nat_gateway_id = None
    if nat.state not in LIFECYCLE.ended:
        nat.state = "deleted"


def _eager_nat() -> list[Any]:
    return [joinedload(NatGateway.vpc)]


NAT_GATEWAY = ResourceType(
    NatGateway, service="networking", name="nat_gateway", collection="nat-gateways", prefix="nat", label="NAT gateway", plural="NAT gateways",
    icon="globe", summary="The way out of private subnets, under one public address.",
    operations=[nat_gateway_create, nat_gateway_failover, nat_gateway_delete, update_operation(NatGateway)],
    columns=[Column("name", "Name", sort="name"), Column("state", "State", sort="state"), Column("public_ip", "Public address", css="mono"),
             Column("vpc_name", "VPC", css="md"), Column("created_at", "Created", sort="created_at", css="lo")],
    lifecycle=LIFECYCLE, quota={"nat_gateways": 1}, eager=_eager_nat, at_end=nat_at_end, goes_with="networking.vpc", part_of=lambda v: (v.vpc,),
    aliases={"vpc": "vpc_id", "subnet": "subnet_id", "status": "state", "nat_gw_id": "id"}, show={"vpc_name": lambda v: v.vpc.name},
)  # fmt: skip
