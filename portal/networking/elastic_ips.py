"""Elastic IPs: public addresses that a project keeps, and lets lead to an instance, an interface or a NAT gateway."""

from collections.abc import Mapping
from typing import Annotated, Any

from sqlalchemy import select

from portal.kernel import fields as f
from portal.kernel.context import Context
from portal.kernel.declare import Effect, operation, update_operation
from portal.kernel.errors import Conflict
from portal.kernel.lookup import seen, seen_by_name
from portal.kernel.operations import also_changes
from portal.kernel.resource import Column, ResourceType
from portal.networking import ipam
from portal.networking.changes import refuse_without_networks, vpc_locked, vpc_touch, wrong
from portal.networking.interfaces import interface_locked, set_public
from portal.networking.models import EXTERNAL, ElasticIp, NatGateway, NetworkInterface

KEY = "networking.elastic_ip"
TARGETS = ("instance", "network-interface", "nat-gateway")
TargetType = Annotated[str, f.FieldInfo(f.Choice(TARGETS), "Leads to")]
TargetId = Annotated[str, f.FieldInfo(f.Line(64), "Id or name of that")]


def _allocate(ctx: Context, row: ElasticIp) -> None:
    row.public_ip = ipam.take_public(ctx, (KEY, row.id))


@operation(ElasticIp, "create", label="Allocate", needs="write", effect=Effect.CREATE, icon="plus", along=lambda ctx, row, _: _allocate(ctx, row))
def elastic_ip_create(ctx: Context, *, name: str, description: str = "", tags: dict[str, str] | None = None) -> ElasticIp:
    """Allocate a public address."""
    refuse_without_networks(ctx)
    return ElasticIp(name=name, description=description, tags=tags or {})


def _target_ahead(ctx: Context, row: ElasticIp, inputs: Mapping[str, Any]) -> None:
    """Lock what the address is to lead to before the address."""
    if inputs["target_type"] == "nat-gateway":
        _lock_nat(ctx, _nat(ctx, row, inputs["target_id"]).id)
    else:
        interface_locked(ctx, _interface(ctx, row, inputs["target_type"], inputs["target_id"]).id)


def _led_ahead(ctx: Context, row: ElasticIp, _: Mapping[str, Any]) -> None:
    """Lock what the address leads to before the address."""
    if row.nat_gateway_id is not None:
        _lock_nat(ctx, row.nat_gateway_id)
    if row.interface_id is not None:
        interface_locked(ctx, row.interface_id)


def _lock_nat(ctx: Context, nat_id: str) -> NatGateway:
    return ctx.db.get_one(NatGateway, nat_id, with_for_update={"key_share": True}, populate_existing=True)


@operation(ElasticIp, "associate", label="Associate", needs="write", ahead=_target_ahead)
def elastic_ip_associate(ctx: Context, row: ElasticIp, *, target_type: TargetType, target_id: TargetId) -> None:
    """Let the address lead to an instance, an interface or a NAT gateway."""
    if row.interface_id or row.nat_gateway_id:
        raise Conflict(f"{row.public_ip} leads to {row.interface_id or row.nat_gateway_id} already. Disassociate it first.")
    if target_type == "nat-gateway":
        _to_nat(ctx, row, target_id)
        return
    target = interface_locked(ctx, _interface(ctx, row, target_type, target_id).id)
    # It is a change of the interface as well.
    also_changes(ctx, "networking.network_interface.update", target)
    vpc = vpc_locked(ctx, target.vpc_id)
    if not vpc.uplink_address:
        raise Conflict(f"{vpc.name} has no internet gateway, so no public address leads into it. Attach one first.", details={"vpc_id": vpc.id})
    taken = ctx.db.scalar(select(ElasticIp.public_ip).where(ElasticIp.interface_id == target.id, ElasticIp.deleted_at.is_(None)))
    if taken is not None:
        raise Conflict(f"{target.name} has the public address {taken} already. Disassociate that first.", details={"public_ip": taken})
    row.interface_id = target.id
    set_public(ctx, target, row.public_ip)
    vpc_touch(ctx, target.vpc_id)


def _interface(ctx: Context, row: ElasticIp, target_type: str, target_id: str) -> NetworkInterface:
    model = ctx.registry.model("compute.instance") if target_type == "instance" else NetworkInterface
    found = seen_by_name(ctx, ctx.registry.of(model), target_id, project_id=row.project_id)
    if found is not None and model is not NetworkInterface:
        first = (NetworkInterface.instance_id == found.id, NetworkInterface.is_primary, NetworkInterface.deleted_at.is_(None))
        found = ctx.db.scalars(select(NetworkInterface).where(*first, seen(ctx, NetworkInterface))).first()
    if found is None:
        raise wrong("target_id", f"There is no {target_type.replace('-', ' ')} {target_id[:64]} here that has an interface in a VPC.")
    interface: NetworkInterface = found
    return interface


def _nat(ctx: Context, row: ElasticIp, target_id: str) -> NatGateway:
    found: NatGateway | None = seen_by_name(ctx, ctx.registry.of(NatGateway), target_id, project_id=row.project_id)
    if found is None or found.state != "available":
        raise wrong("target_id", f"There is no available NAT gateway {target_id[:64]} here.")
    return found


def _to_nat(ctx: Context, row: ElasticIp, target_id: str) -> None:
    nat = _nat(ctx, row, target_id)
    also_changes(ctx, "networking.nat_gateway.update", nat)
    if nat.elastic_ip_id is not None:
        raise Conflict(f"{nat.name} has the elastic IP {nat.public_ip} already. Disassociate that first.")
    vpc_locked(ctx, nat.vpc_id)
    ipam.release(ctx.db, EXTERNAL, nat.public_ip)
    nat.elastic_ip_id, nat.public_ip, row.nat_gateway_id = row.id, row.public_ip, nat.id
    vpc_touch(ctx, nat.vpc_id)


@operation(ElasticIp, "disassociate", label="Disassociate", needs="write", ahead=_led_ahead)
def elastic_ip_disassociate(ctx: Context, row: ElasticIp) -> None:
    """Let the address lead nowhere; it stays the project's."""
    if row.interface_id is None and row.nat_gateway_id is None:
        raise Conflict(f"{row.public_ip} leads nowhere as it is.", details={"status": "allocated"})
    if row.nat_gateway_id is not None:
        nat = _lock_nat(ctx, row.nat_gateway_id)
        also_changes(ctx, "networking.nat_gateway.update", nat)
        vpc_locked(ctx, nat.vpc_id)
        # It may not be without one: what is behind it would be cut off.
        nat.elastic_ip_id, nat.public_ip = None, ipam.take_public(ctx, ("networking.nat_gateway", nat.id))
        row.nat_gateway_id = None
        vpc_touch(ctx, nat.vpc_id)
        return
    target = interface_locked(ctx, row.interface_id or "")
    also_changes(ctx, "networking.network_interface.update", target)
    row.interface_id = None
    set_public(ctx, target, "")
    vpc_touch(ctx, target.vpc_id)


@operation(ElasticIp, "delete", label="Release", needs="delete", effect=Effect.REMOVE, icon="trash", danger=True, bulk=True)
def elastic_ip_delete(ctx: Context, row: ElasticIp) -> None:
    """Give the address back; somebody else may get it."""
    del ctx
    if row.interface_id or row.nat_gateway_id:
        target = row.interface_id or row.nat_gateway_id
        raise Conflict(f"{row.public_ip} leads to {target}. Disassociate it first.", details={"in_the_way": [target]})


def elastic_ip_at_end(ctx: Context, row: ElasticIp) -> None:
    """Let the address be given away again."""
    ipam.release(ctx.db, EXTERNAL, row.public_ip)


def _leads_to(row: ElasticIp) -> str | None:
    return row.interface_id or row.nat_gateway_id


ELASTIC_IP = ResourceType(
    ElasticIp, service="networking", name="elastic_ip", collection="elastic-ips", prefix="eip", label="Elastic IP", plural="Elastic IPs", icon="globe",
    summary="Public addresses that a project keeps.",
    operations=[elastic_ip_create, elastic_ip_associate, elastic_ip_disassociate, elastic_ip_delete, update_operation(ElasticIp)],
    columns=[Column("name", "Name", sort="name"), Column("public_ip", "Address", css="mono"), Column("status", "State", css="md"),
             Column("associated_with", "Leads to", css="mono md"), Column("created_at", "Created", sort="created_at", css="lo")],
    quota={"elastic_ips": 1}, search=("name", "id", "public_ip"), at_end=elastic_ip_at_end, goes_with="networking.vpc",
    also_at=("/api/v1/services/cloud/floating-ips",), aliases={"eip_id": "id"},
    show={"status": lambda v: "associated" if _leads_to(v) else "allocated", "associated_with": _leads_to},
    describe=lambda v: (v.public_ip,), usable=lambda v: not _leads_to(v),
)  # fmt: skip
