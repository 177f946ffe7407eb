"""What networks do for instances: a place when one is made, network cards when it boots, and everything back when it is gone."""

from collections.abc import Sequence

from sqlalchemy import select

from portal.engines.ports import MachineInterface
from portal.kernel.context import Context
from portal.kernel.errors import Conflict
from portal.kernel.guests import Placement, ProjectNetwork
from portal.kernel.ids import new_id
from portal.kernel.lookup import seen_by_name
from portal.kernel.rows import end_along, insert_along
from portal.kernel.runner import StepRun
from portal.networking import ipam
from portal.networking.addresses import usage
from portal.networking.apply import apply_vpc, in_force, network_engine
from portal.networking.changes import vpc_locked, vpc_named, vpc_touch, why_no_networks, wrong
from portal.networking.defaults import default_begin, default_of, vpc_default
from portal.networking.interfaces import KEY, check_place, new_mac, settle_in, tell_instance
from portal.networking.models import ElasticIp, NetworkInterface, Subnet, Vpc
from portal.networking.security_groups import group_in

# What the default network was called before there were others; programs still send it.
DEFAULT_VPC = "vpc-12345678"
USER_NETWORKING = "outbound user networking: this installation makes no networks"


class GuestNetworks:
    """Networks as instances see them."""

    def begin(self, ctx: Context, project_id: str) -> None:
        """Give a new project its default network, if networks can be made here."""
        if not why_no_networks(ctx):
            default_begin(ctx, project_id)

    def of_project(self, ctx: Context, project_id: str) -> ProjectNetwork:
        """The default network of a project, or why there is none."""
        return default_of(ctx, project_id)

    def check(self, ctx: Context, wanted: Placement, *, count: int) -> None:
        """Raise InvalidRequest or Conflict for a place that instances cannot have; nothing is written."""
        if wanted.vpc_id not in ("", DEFAULT_VPC):
            _vpc(ctx, wanted.vpc_id)
        if why_no_networks(ctx):
            if wanted.subnet_id or wanted.group_ids or wanted.private_ip:
                raise wrong("subnet_id", "cannot be chosen: this installation makes no networks, and instances have outbound user networking.")
            return
        if wanted.private_ip and count > 1:
            raise wrong("private_ip", "is one address; several instances cannot share it.")
        subnet = self._subnet(ctx, wanted)
        if subnet is None:
            if wanted.private_ip or wanted.group_ids:
                raise wrong("subnet_id", "is required with private_ip and security_groups, as long as the project has no default VPC.")
            return
        check_place(subnet, wanted.private_ip, wanted.group_ids)
        figures = usage(subnet.cidr_block, subnet.taken)
        if count > figures.free:
            raise Conflict(
                f"{subnet.name} ({subnet.cidr_block}) has {figures.free} free addresses, {count} are needed. Release some or use another subnet.",
                details={"subnet_id": subnet.id, "limit": figures.usable, "used": figures.taken, "requested": count},
            )
        for each in wanted.group_ids:
            group_in(ctx, subnet.vpc, each, field="security_groups")

    def connect(self, ctx: Context, instance: object, wanted: Placement) -> None:
        """Give a new instance its first interface."""
        row: NetworkInterfaceOwner = instance  # type: ignore[assignment]
        if why_no_networks(ctx):
            row.vpc_id = wanted.vpc_id or DEFAULT_VPC
            return
        subnet = self._subnet(ctx, wanted)
        if subnet is None:
            vpc_default(ctx, row.project_id)
            subnet = self._subnet(ctx, wanted)
        if subnet is None:
            raise wrong("vpc_id", "has no subnet. Create one first, or name one of another VPC.")
        # It is called after itself: whoever may not see the instance learns nothing of that from its interface.
        own = new_id(ctx.registry.of(NetworkInterface).prefix)
        interface = NetworkInterface(
            id=own, name=own, vpc_id=subnet.vpc_id, subnet_id=subnet.id, private_ip=wanted.private_ip, mac_address=new_mac(),
            instance_id=row.id, is_primary=True, state="in-use",
        )  # fmt: skip
        interface.owner_id = row.owner_id
        insert_along(ctx, interface, row.project_id)
        settle_in(ctx, interface, wanted.group_ids, queue=False)
        if subnet.map_public_ip_on_launch and ctx.db.get_one(Vpc, subnet.vpc_id).uplink_address:
            interface.public_ip = ipam.take_public(ctx, (KEY, interface.id))
        row.vpc_id, row.subnet_id = subnet.vpc_id, subnet.id
        tell_instance(ctx, interface)
        row.private_ip, row.public_ip = interface.private_ip, interface.public_ip or None
        ctx.db.flush()
        # Conditions of policies see what was chosen for whoever left it out.
        groups = [each.group_id for each in interface.memberships]
        ctx.inputs = {**ctx.inputs, "vpc_id": row.vpc_id, "subnet_id": row.subnet_id, "security_groups": groups}

    def _subnet(self, ctx: Context, wanted: Placement) -> Subnet | None:
        """The subnet that is meant; None while the default VPC is still to be made, or where a VPC has none. Raises InvalidRequest."""
        query = select(Subnet).where(Subnet.project_id == ctx.project_id, Subnet.deleted_at.is_(None))
        if wanted.subnet_id:
            found: Subnet | None = seen_by_name(ctx, ctx.registry.of(Subnet), wanted.subnet_id)
            if found is None:
                raise wrong("subnet_id", f"There is no subnet {wanted.subnet_id[:80]} here.")
            if wanted.vpc_id not in ("", DEFAULT_VPC) and _vpc(ctx, wanted.vpc_id).id != found.vpc_id:
                raise wrong("subnet_id", f"{found.name} is a subnet of another VPC than {wanted.vpc_id}.")
            return found
        if wanted.vpc_id not in ("", DEFAULT_VPC):
            inside = query.where(Subnet.vpc_id == _vpc(ctx, wanted.vpc_id).id).order_by(Subnet.is_default.desc(), Subnet.created_at, Subnet.id)
            first = ctx.db.scalars(inside).first()
            if first is None:
                raise wrong("vpc_id", "has no subnet. Create one first.")
            return first
        default = select(Vpc.id).where(Vpc.project_id == ctx.project_id, Vpc.is_default, Vpc.deleted_at.is_(None))
        inside = query.where(Subnet.vpc_id.in_(default)).order_by(Subnet.is_default.desc(), Subnet.created_at, Subnet.id)
        return ctx.db.scalars(inside).first()

    def ensure(self, run: StepRun, instance_id: str) -> str:
        """Have the VPC of every interface on the host."""
        vpcs = sorted({row.vpc_id for row in _rows(run, instance_id)})
        if not vpcs:
            return USER_NETWORKING
        is_new = run.row.launch_time is None
        for vpc_id in vpcs:
            # Of many that are made at once, the first brings the places of all to the host.
            if not (is_new and in_force(run, vpc_id)):
                apply_vpc(run, vpc_id)
        return ", ".join(row.private_ip for row in _rows(run, instance_id))

    def interfaces(self, run: StepRun, instance_id: str, *, without: str = "") -> Sequence[MachineInterface]:
        """The network cards, the first one first."""
        rows = [row for row in _rows(run, instance_id) if row.id != without]
        return [MachineInterface(row.id, row.mac_address, network_engine(run).tap_of(row.id)) for row in rows]

    def renamed(self, ctx: Context, instance_id: str) -> None:
        """Let the names in the VPC follow."""
        query = select(NetworkInterface.vpc_id).where(NetworkInterface.instance_id == instance_id, NetworkInterface.deleted_at.is_(None))
        vpc_touch(ctx, *ctx.db.scalars(query).all())

    def disconnect(self, ctx: Context, instance: object) -> None:
        """End what was made with the instance, and free what it was given."""
        row: NetworkInterfaceOwner = instance  # type: ignore[assignment]
        query = select(NetworkInterface).where(NetworkInterface.instance_id == row.id, NetworkInterface.deleted_at.is_(None))
        interfaces = ctx.db.scalars(query.order_by(NetworkInterface.id).with_for_update(of=NetworkInterface, key_share=True)).all()
        leading = select(ElasticIp.id).where(ElasticIp.interface_id.in_([each.id for each in interfaces]))
        ctx.db.scalars(leading.order_by(ElasticIp.id).with_for_update()).all()
        vpcs = sorted({each.vpc_id for each in interfaces})
        for vpc_id in vpcs:
            vpc_locked(ctx, vpc_id)
        for interface in interfaces:
            if interface.is_primary:
                end_along(ctx, interface)
            else:
                interface.instance_id, interface.state = None, "available"
        row.public_ip = None
        vpc_touch(ctx, *vpcs)


class NetworkInterfaceOwner:
    """What is read and written of an instance here."""

    id: str
    name: str
    project_id: str
    owner_id: str | None
    vpc_id: str
    subnet_id: str | None
    private_ip: str | None
    public_ip: str | None


def _vpc(ctx: Context, value: str) -> Vpc:
    found = vpc_named(ctx, value)
    if found is None:
        raise wrong("vpc_id", f"There is no network {value[:80]} here. The default network is {DEFAULT_VPC}.")
    return found


def _rows(run: StepRun, instance_id: str) -> Sequence[NetworkInterface]:
    query = select(NetworkInterface).where(NetworkInterface.instance_id == instance_id, NetworkInterface.deleted_at.is_(None))
    with run.sessions() as session:
        return session.scalars(query.order_by(NetworkInterface.is_primary.desc(), NetworkInterface.created_at, NetworkInterface.id)).all()
