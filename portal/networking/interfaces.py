"""Network interfaces: addresses in subnets that instances have, and the groups whose rules hold for them."""

import secrets
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from sqlalchemy import select
from sqlalchemy.orm import joinedload, selectinload

from portal.engines.ports import mac_address
from portal.kernel import fields as f
from portal.kernel.context import Context
from portal.kernel.declare import Effect, operation, update_operation
from portal.kernel.errors import Conflict
from portal.kernel.lifecycle import Lifecycle
from portal.kernel.lookup import seen_by_name, unseen
from portal.kernel.operations import also_changes
from portal.kernel.resource import Column, ResourceType
from portal.networking import apply, ipam
from portal.networking.addresses import check_address
from portal.networking.changes import UNSEEN, refuse_without_networks, vpc_locked, vpc_touch, wrong
from portal.networking.models import EXTERNAL, ElasticIp, GroupMembership, NetworkInterface, SecurityGroup, Subnet, Vpc
from portal.networking.security_groups import group_named

KEY = "networking.network_interface"
MAX_GROUPS = 5
LIFECYCLE = Lifecycle(
    "available",
    {
        "available": frozenset({"attaching", "in-use", "deleted"}),
        "attaching": frozenset({"in-use", "available"}),
        "in-use": frozenset({"detaching", "available", "deleted"}),
        "detaching": frozenset({"available", "in-use"}),
    },
    transient=frozenset({"attaching", "detaching"}),
    ended=frozenset({"deleted"}),
    tones={"available": "off"},
)
SUBNET_FIELD = f.FieldInfo(f.Ref("networking.subnet"), "Subnet", aliases=("subnet_id",))
Groups = Annotated[
    list[str] | None,
    f.FieldInfo(f.RefList("networking.security_group"), "Security groups", "The VPC's default group if left empty.", aliases=("groups",)),
]
TheGroups = Annotated[list[str], f.FieldInfo(f.RefList("networking.security_group"), "Security groups", aliases=("groups",))]
InstanceId = Annotated[str, f.FieldInfo(f.Ref("compute.instance"), "Instance", aliases=("instance_id",))]


@operation(NetworkInterface, "create", label="Create", needs="write", effect=Effect.CREATE, icon="plus",
           along=lambda ctx, row, inputs: settle_in(ctx, row, inputs.get("security_groups") or ()))  # fmt: skip
def network_interface_create(
    ctx: Context, *, name: str, subnet: Annotated[Subnet, SUBNET_FIELD], security_groups: Groups = None, private_ip: str = "", description: str = "",
    tags: dict[str, str] | None = None,
) -> NetworkInterface:  # fmt: skip
    """Create an interface with an address of a subnet."""
    refuse_without_networks(ctx)
    check_place(subnet, private_ip, security_groups or ())
    return NetworkInterface(
        name=name, description=description, tags=tags or {}, vpc_id=subnet.vpc_id, subnet_id=subnet.id, private_ip=private_ip, mac_address=new_mac(),
    )  # fmt: skip


def check_place(subnet: Subnet, private_ip: str, groups: Sequence[str]) -> None:
    """Raise InvalidRequest for an address that nobody can have there, or too many groups."""
    if private_ip:
        try:
            check_address(private_ip, subnet.cidr_block)
        except ValueError as error:
            raise wrong("private_ip", f"{error}.") from None
    if len(set(groups)) > MAX_GROUPS:
        raise wrong("security_groups", f"takes at most {MAX_GROUPS} groups, not {len(set(groups))}.")


def new_mac() -> str:
    """A hardware address of our own: locally administered, and 32 random bits."""
    return "02:a7:" + ":".join(f"{byte:02x}" for byte in secrets.token_bytes(4))


def settle_in(ctx: Context, row: NetworkInterface, groups: Sequence[str], *, queue: bool = True) -> None:
    """Give a new interface its address and groups, within the caller's transaction."""
    vpc = vpc_locked(ctx, row.vpc_id)
    subnet = ctx.db.get_one(Subnet, row.subnet_id)
    set_groups(ctx, row, vpc, groups)
    row.private_ip = ipam.take(ctx.db, subnet, (KEY, row.id), wanted=row.private_ip, description=row.name[:255])
    vpc_touch(ctx, row.vpc_id, queue=queue)


def set_groups(ctx: Context, row: NetworkInterface, vpc: Vpc, groups: Sequence[str]) -> None:
    """Put an interface into groups of its VPC, in place of those it is in; no group named is the default one."""
    ids = {group_named(ctx, vpc.id, each, field="security_groups") for each in groups} or {vpc.default_group_id or ""}
    row.memberships = [GroupMembership(group_id=each) for each in sorted(ids)]
    ctx.db.flush()


@operation(NetworkInterface, "set_security_groups", label="Set security groups", needs="write")
def network_interface_set_security_groups(ctx: Context, row: NetworkInterface, *, security_groups: TheGroups) -> None:
    """Put the interface into these groups, in place of those it is in."""
    check_place(row.subnet, "", security_groups)
    vpc = vpc_locked(ctx, row.vpc_id)
    ids = sorted({group_named(ctx, vpc.id, each, field="security_groups") for each in security_groups})
    if not ids:
        raise wrong("security_groups", "needs at least one group: without any, nothing passes.")
    kept = [each for each in row.memberships if each.group_id in ids]
    row.memberships = kept + [GroupMembership(group_id=each) for each in ids if each not in {one.group_id for one in kept}]
    vpc_touch(ctx, row.vpc_id)


def _let_go(row: NetworkInterface) -> None:
    if row.is_primary:
        # The address of the instance's own card stays the instance's.
        row.is_primary, row.mac_address = False, new_mac()
    row.instance_id = None


def _moved_in(ctx: Context, row: NetworkInterface) -> None:
    """Let an instance whose first interface this is live where that is."""
    instance = ctx.db.get(ctx.registry.model("compute.instance"), row.instance_id) if row.is_primary else None
    if instance is not None:
        instance.vpc_id, instance.subnet_id = row.vpc_id, row.subnet_id
        tell_instance(ctx, row)


def interface_locked(ctx: Context, interface_id: str) -> NetworkInterface:
    """An interface, locked after the instance that has it and is told its addresses. Raises Conflict if another got it meanwhile."""
    holder = ctx.db.scalar(select(NetworkInterface.instance_id).where(NetworkInterface.id == interface_id))
    _lock_instance(ctx, holder)
    row = ctx.db.get_one(NetworkInterface, interface_id, with_for_update={"key_share": True}, populate_existing=True)
    if row.instance_id != holder:
        raise Conflict(f"Another change came first: {row.name} was attached or detached meanwhile. Try again.")
    return row


def _lock_instance(ctx: Context, instance_id: str | None) -> None:
    model = ctx.registry.model("compute.instance")
    locked = select(model).where(model.id == instance_id).with_for_update(of=model, key_share=True)
    ctx.db.scalars(locked.execution_options(populate_existing=True)).all()


def _instance_ahead(ctx: Context, row: NetworkInterface, inputs: Mapping[str, Any]) -> None:
    """Lock the instance before the interface that it gets."""
    found = None if row.instance_id else _instance_named(ctx, row, inputs["instance"])
    _lock_instance(ctx, found.id if found is not None else row.instance_id)


def _instance_named(ctx: Context, row: NetworkInterface, instance: str) -> Any:
    return seen_by_name(ctx, ctx.registry.of(ctx.registry.model("compute.instance")), instance, project_id=row.project_id)


@operation(NetworkInterface, "attach", label="Attach", needs="write", steps=apply.ATTACH, when={"available"}, holds="attaching", settles="in-use",
           fails="available", restore=_let_go, ahead=_instance_ahead, follow=_moved_in, along=lambda ctx, row, _: vpc_touch(ctx, row.vpc_id, queue=False))  # fmt: skip
def network_interface_attach(ctx: Context, row: NetworkInterface, *, instance: InstanceId) -> None:
    """Give the interface to an instance of its VPC, also while that runs; or to a stopped one outside any network, as its first."""
    found = _instance_named(ctx, row, instance)
    if found is None:
        raise wrong("instance", f"There is no instance {instance[:80]} here.")
    _lock_instance(ctx, found.id)
    # It is a change of the instance as well.
    also_changes(ctx, "compute.instance.update", found)
    others = select(NetworkInterface.id).where(NetworkInterface.instance_id == found.id, NetworkInterface.deleted_at.is_(None))
    if ctx.db.scalar(others.limit(1)) is None:
        _be_first(row, found)
    elif found.vpc_id != row.vpc_id:
        raise wrong("instance", f"{found.name} is not in the VPC of {row.name}.")
    if found.state not in {"running", "stopped"}:
        raise Conflict(f"{found.name} is {found.state}; it has to be running or stopped.", details={"state": found.state})
    row.instance_id = found.id


def _be_first(row: NetworkInterface, instance: Any) -> None:
    """Make the interface the first of an instance that was made while networks could not be. Raises Conflict while that runs."""
    if instance.state == "running":
        raise Conflict(
            f"{instance.name} runs outside any network, with outbound user networking: the card that it has cannot be exchanged while it runs. Stop it, attach "
            f"{row.name}, which becomes its first interface and goes with it from then on, and start it again.",
            details={"state": instance.state},
        )  # fmt: skip
    row.is_primary, row.mac_address = True, mac_address(instance.id)


@operation(NetworkInterface, "detach", label="Detach", needs="write", steps=apply.DETACH, when={"in-use"}, holds="detaching", settles="available",
           fails="in-use", finish=_let_go)  # fmt: skip
def network_interface_detach(ctx: Context, row: NetworkInterface) -> None:
    """Take the interface from its instance; it keeps its address."""
    if row.is_primary:
        raise Conflict(f"{row.name} is the first interface of its instance and goes with it.", details={"is_primary": True})
    if (instance := ctx.db.get(ctx.registry.model("compute.instance"), row.instance_id)) is not None:
        # It is a change of the instance as well.
        also_changes(ctx, "compute.instance.update", instance)
    vpc_touch(ctx, row.vpc_id, queue=False)


@operation(NetworkInterface, "delete", label="Delete", needs="delete", effect=Effect.REMOVE, icon="trash", danger=True, bulk=True, when={"available"})
def network_interface_delete(ctx: Context, row: NetworkInterface) -> None:
    """Delete an interface that no instance has, and free its address."""
    vpc_touch(ctx, row.vpc_id)


def interface_at_end(ctx: Context, row: NetworkInterface) -> None:
    """Free its addresses; an elastic one stays the project's."""
    ipam.release_of(ctx.db, row.id)
    for elastic in ctx.db.scalars(select(ElasticIp).where(ElasticIp.interface_id == row.id).order_by(ElasticIp.id).with_for_update()):
        elastic.interface_id = None
    row.memberships, row.public_ip, row.state = [], "", "deleted"


def set_public(ctx: Context, row: NetworkInterface, address: str) -> None:
    """Let a public address lead to an interface, or none; one that it was given at launch goes back."""
    if row.public_ip and row.public_ip != address:
        elastic = ctx.db.scalar(select(ElasticIp.id).where(ElasticIp.public_ip == row.public_ip, ElasticIp.deleted_at.is_(None)))
        if elastic is None:
            ipam.release(ctx.db, EXTERNAL, row.public_ip)
    row.public_ip = address
    tell_instance(ctx, row)


def tell_instance(ctx: Context, row: NetworkInterface) -> None:
    """Keep the addresses of an instance's first interface with the instance."""
    if not row.is_primary or row.instance_id is None:
        return
    model = ctx.registry.model("compute.instance")
    instance = ctx.db.get(model, row.instance_id)
    if instance is not None:
        instance.private_ip, instance.public_ip = row.private_ip or None, row.public_ip or None


def _veil(ctx: Context, rows: Sequence[NetworkInterface]) -> Mapping[str, Mapping[str, Any]]:
    """Instances and groups are told to those who may see them."""
    instance = ctx.registry.model("compute.instance")
    instances = unseen(ctx, instance, instance.id, instance.id.in_([row.instance_id for row in rows if row.instance_id]))
    inside = select(GroupMembership.group_id).where(GroupMembership.interface_id.in_([row.id for row in rows]))
    groups = unseen(ctx, SecurityGroup, SecurityGroup.id, SecurityGroup.id.in_(inside))
    veils: dict[str, dict[str, Any]] = {row.id: {"instance_id": None} for row in rows if row.instance_id in instances}
    for row in rows:
        if any(each.group_id in groups for each in row.memberships):
            shown = [UNSEEN if each.group_id in groups else each.group.name for each in row.memberships]
            veils.setdefault(row.id, {})["security_group_names"] = ", ".join(dict.fromkeys(shown))
    return veils


def _groups_of(row: NetworkInterface) -> str:
    return ", ".join(each.group.name for each in row.memberships)


def _eager() -> list[Any]:
    return [
        joinedload(NetworkInterface.vpc), joinedload(NetworkInterface.subnet),
        selectinload(NetworkInterface.memberships).joinedload(GroupMembership.group),
    ]  # fmt: skip


NETWORK_INTERFACE = ResourceType(
    NetworkInterface, service="networking", name="network_interface", collection="network-interfaces", prefix="eni", label="Network interface",
    plural="Network interfaces", icon="compute", summary="Addresses in subnets that instances have.",
    operations=[network_interface_create, network_interface_attach, network_interface_detach, network_interface_set_security_groups,
                network_interface_delete, update_operation(NetworkInterface)],
    columns=[Column("name", "Name", sort="name"), Column("state", "State", sort="state", css="md"), Column("private_ip", "Address", css="mono"),
             Column("public_ip", "Public address", css="mono md"), Column("subnet_name", "Subnet", css="md"),
             Column("security_group_names", "Security groups", css="lo"), Column("created_at", "Created", sort="created_at", css="lo")],
    lifecycle=LIFECYCLE, quota={"network_interfaces": 1}, eager=_eager, at_end=interface_at_end, veil=_veil, goes_with="networking.vpc", part_of=lambda v: (v.vpc,),
    search=("name", "id", "private_ip"),
    aliases={"vpc": "vpc_id", "subnet": "subnet_id", "instance": "instance_id", "status": "state", "eni_id": "id"},
    show={"vpc_name": lambda v: v.vpc.name, "subnet_name": lambda v: v.subnet.name, "security_group_names": _groups_of,
          "applied": lambda v: "applying" if v.vpc.applied_revision < v.vpc.desired_revision else "available"},
)  # fmt: skip
