"""What a VPC should be, read from its rows in a number of queries that does not grow with them."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import or_, select
from sqlalchemy.orm import Session, selectinload

from portal.engines.network_ports import GroupSpec, GuestData, NatSpec, PeeringSpec, PortSpec, RouteSpec, SubnetSpec, Via, VpcSpec
from portal.kernel.ids import hostname
from portal.kernel.resource import Registry
from portal.networking.addresses import listed
from portal.networking.dns_names import domain_of, labels
from portal.networking.models import InternetGateway, NatGateway, NetworkInterface, Route, RouteTable, SecurityGroup, Subnet, Vpc, VpcPeering

INSTANCE, KEY_PAIR = "compute.instance", "compute.key_pair"
LEAVING = ("deleting", "deleted", "failed")


@dataclass(frozen=True, slots=True)
class Desired:
    """One VPC as it should be at a revision, the peerings that are to join it and those that are to go."""

    revision: int
    spec: VpcSpec
    peerings: Sequence[PeeringSpec]
    gone: Sequence[str]


def desired_state(session: Session, registry: Registry, vpc_id: str) -> Desired | None:
    """The VPC as it should be; None if it is gone."""
    vpc = session.scalars(select(Vpc).where(Vpc.id == vpc_id, Vpc.deleted_at.is_(None)).execution_options(populate_existing=True)).first()
    if vpc is None:
        return None
    # Of a peering with another project, this side's row.
    mine = or_(VpcPeering.vpc_id == vpc_id, VpcPeering.peer_vpc_id == vpc_id) & (VpcPeering.project_id == vpc.project_id)
    peerings = session.scalars(select(VpcPeering).where(mine, VpcPeering.state != "rejected").execution_options(populate_existing=True)).all()
    active = [each for each in peerings if each.state == "active" and each.deleted_at is None]
    nats = session.scalars(_live(NatGateway, vpc_id).where(NatGateway.state.not_in(LEAVING)).order_by(NatGateway.id)).all()
    has_gateway = session.scalar(_live(InternetGateway, vpc_id).with_only_columns(InternetGateway.id)) is not None
    interfaces = session.scalars(
        _live(NetworkInterface, vpc_id).options(selectinload(NetworkInterface.memberships)).order_by(NetworkInterface.id)
    ).all()
    groups = session.scalars(_live(SecurityGroup, vpc_id).options(selectinload(SecurityGroup.rules)).order_by(SecurityGroup.id)).all()
    targets = {**{each.id: each.id for each in (*nats, *interfaces)}, **{each.id: each.link_id for each in active}}
    spec = VpcSpec(
        vpc_id, vpc.cidr_block, domain_of(vpc), _subnets(session, vpc, targets, has_gateway=has_gateway),
        [GroupSpec(each.id, [rule.spec() for rule in each.rules if rule.is_enabled]) for each in groups],
        _ports(session, registry, vpc, interfaces), [NatSpec(each.id, each.public_ip) for each in nats], uplink_address=vpc.uplink_address,
        shared_nat=vpc.enable_network_address_translation, dns_names=vpc.enable_dns_support,
        dns_servers=listed(vpc.dns_servers), search_domains=listed(vpc.search_domains), ntp_servers=listed(vpc.ntp_servers), mtu=vpc.mtu or 0,
        flow_log=vpc.flow_logs_enabled,
    )  # fmt: skip
    return Desired(
        vpc.desired_revision, spec, [PeeringSpec(each.link_id, _pair(each)) for each in active],
        [each.link_id for each in peerings if each.is_linked and each not in active],
    )  # fmt: skip


def _pair(row: VpcPeering) -> tuple[str, str]:
    """The ends of a link, alike on both sides."""
    first, second = sorted((row.vpc_id, row.peer_vpc_id))
    return first, second


def _live(model: Any, vpc_id: str) -> Any:
    return select(model).where(model.vpc_id == vpc_id, model.deleted_at.is_(None)).execution_options(populate_existing=True)


def _subnets(session: Session, vpc: Vpc, targets: Mapping[str, str], *, has_gateway: bool) -> list[SubnetSpec]:
    tables: dict[str, list[RouteSpec]] = defaultdict(list)
    of_vpc = select(RouteTable.id).where(RouteTable.vpc_id == vpc.id, RouteTable.deleted_at.is_(None))
    for route in session.scalars(select(Route).where(Route.route_table_id.in_(of_vpc)).order_by(Route.destination_cidr)):
        tables[route.route_table_id].append(route_spec(route, targets, has_gateway=has_gateway))
    subnets = session.scalars(_live(Subnet, vpc.id).order_by(Subnet.id))
    local = RouteSpec(vpc.cidr_block, Via.LOCAL)
    return [SubnetSpec(each.id, each.cidr_block, [local, *tables[each.route_table_id or vpc.main_route_table_id or ""]]) for each in subnets]


def route_spec(route: Route, targets: Mapping[str, str], *, has_gateway: bool) -> RouteSpec:
    """A route as engines read it, given what its targets are called on the host; one whose target is gone leads nowhere."""
    via = Via(route.target_type)
    if via is Via.INTERNET:
        return RouteSpec(route.destination_cidr, via if has_gateway else Via.BLACKHOLE)
    if route.target_id not in targets:
        return RouteSpec(route.destination_cidr, Via.BLACKHOLE)
    return RouteSpec(route.destination_cidr, via, targets[route.target_id])


def _ports(session: Session, registry: Registry, vpc: Vpc, interfaces: Sequence[NetworkInterface]) -> list[PortSpec]:
    attached = {each.id: each.instance_id for each in interfaces if each.instance_id and each.state != "detaching"}
    instances = _guests(session, registry, [*attached.values()])
    guests = {instance_id: guest for instance_id, (_, guest) in instances.items()}
    first = {each.instance_id for each in interfaces if each.id in attached and each.is_primary}
    called = labels((instance_id, name) for instance_id, (name, _) in instances.items() if instance_id in first)
    ports = []
    for each in interfaces:
        guest = guests.get(attached.get(each.id, ""))
        names = [called[guest.instance_id]] if guest is not None and each.is_primary and vpc.enable_dns_hostnames else []
        if guest is not None and each.public_ip:
            guest = GuestData(guest.instance_id, guest.hostname, guest.ssh_public_keys, guest.user_data, each.public_ip, guest.metadata)
        groups = [membership.group_id for membership in each.memberships]
        ports.append(PortSpec(each.id, each.subnet_id, each.mac_address, each.private_ip, groups, each.public_ip, names, guest, each.is_primary))
    return ports


def _guests(session: Session, registry: Registry, instance_ids: Sequence[str]) -> Mapping[str, tuple[str, GuestData]]:
    """The name of each machine, and what the metadata service tells it; the oldest first."""
    instance, key_pair = registry.model(INSTANCE), registry.model(KEY_PAIR)
    query = (
        select(instance.id, instance.name, instance.public_key, instance.user_data, instance.project_id, key_pair.public_key.label("pair"))
        .outerjoin(key_pair, instance.key_pair_id == key_pair.id)
        .where(instance.id.in_(instance_ids), instance.deleted_at.is_(None))
        .order_by(instance.created_at, instance.id)
    )
    return {
        row.id: (
            row.name,
            GuestData(
                row.id,
                hostname(row.name),
                tuple(key for key in (row.pair, row.public_key) if key),
                row.user_data,
                metadata={"project_id": row.project_id},
            ),
        )
        for row in (session.execute(query) if instance_ids else ())
    }
