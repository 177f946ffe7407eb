"""Networks as people look at them: names, the drawing of a VPC, its addresses, and answers to who reaches whom."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import joinedload

from portal.engines.network_ports import PeeringSpec, Via
from portal.kernel.authz import reach as may_see
from portal.kernel.context import Context
from portal.kernel.lookup import seen, seen_by_name
from portal.networking import reachability
from portal.networking.addresses import usage
from portal.networking.changes import UNSEEN, wrong
from portal.networking.desired import desired_state
from portal.networking.hits import hits_of
from portal.networking.models import (
    InternetGateway,
    IpAllocation,
    NatGateway,
    NetworkInterface,
    SecurityGroup,
    Subnet,
    Vpc,
    VpcPeering,
)
from portal.networking.reachability import Answer, Specs
from portal.networking.security_groups import rule_shown
from portal.networking.sight import Sight, sight_of

MOST_ADDRESSES = 10_000
MOST_NAMED = 5


@dataclass(frozen=True, slots=True)
class Node:
    """One thing in the drawing of a VPC; `resource_id` is the instance that an interface belongs to, else its own id; `state` is the instance's."""

    id: str
    type: str
    label: str
    detail: str = ""
    resource_id: str = ""
    state: str = ""


@dataclass(frozen=True, slots=True)
class Edge:
    """What one thing has to do with another."""

    source: str
    target: str
    label: str = ""


@dataclass(frozen=True, slots=True)
class Topology:
    """A VPC as a graph."""

    nodes: Sequence[Node]
    edges: Sequence[Edge]
    # How many things are there besides that the caller may not see.
    hidden: int = 0


def names_in(ctx: Context, vpc_ids: Sequence[str], sight: Sight | None = None) -> dict[str, str]:
    """Id → what people call it, of everything in these VPCs; an interface of an instance is called like that if the caller may see that."""
    sight = sight or sight_of(ctx, vpc_ids)
    instance = ctx.registry.model("compute.instance")
    found: dict[str, str] = {}
    for model in (Subnet, SecurityGroup, NatGateway, InternetGateway, NetworkInterface):
        found.update(_pairs(ctx, select(model.id, model.name).where(model.vpc_id.in_(vpc_ids), model.deleted_at.is_(None))))
    # Answers and drawings call a link by what the project calls it.
    projects = select(Vpc.project_id).where(Vpc.id.in_(vpc_ids))
    joins = VpcPeering.vpc_id.in_(vpc_ids) | VpcPeering.peer_vpc_id.in_(vpc_ids)
    peerings = select(VpcPeering.link_id, VpcPeering.name).where(joins, VpcPeering.project_id.in_(projects))
    found.update(_pairs(ctx, peerings.where(VpcPeering.deleted_at.is_(None))))
    guests = select(NetworkInterface.id, instance.name).join(instance, instance.id == NetworkInterface.instance_id)
    visible = seen(ctx, instance)
    found.update(
        _pairs(ctx, guests.where(NetworkInterface.vpc_id.in_(vpc_ids), NetworkInterface.deleted_at.is_(None), NetworkInterface.is_primary, visible))
    )
    found.update(_pairs(ctx, select(Vpc.id, Vpc.name).where(Vpc.id.in_(vpc_ids))))
    return found | dict.fromkeys(sight.hidden, UNSEEN)


def _pairs(ctx: Context, query: Any) -> dict[str, str]:
    return {row_id: name for row_id, name in ctx.db.execute(query)}  # noqa: C416 - rows are no tuples for the type checker


def specs_seen(ctx: Context) -> tuple[Specs, Sight]:
    """The VPCs of the project that the caller may see, as the engine is told of them, and what may be told of what is in them."""
    mine = select(Vpc.id).where(Vpc.project_id == ctx.project_id, Vpc.deleted_at.is_(None), may_see(ctx, "networking.vpc.read").rows(Vpc))
    ids = ctx.db.scalars(mine.order_by(Vpc.id)).all()
    states = [state for vpc_id in ids if (state := desired_state(ctx.db, ctx.registry, vpc_id)) is not None]
    peerings: dict[str, PeeringSpec] = {each.peering_id: each for state in states for each in state.peerings}
    sight = sight_of(ctx, ids)
    names = names_in(ctx, ids, sight)
    return Specs([state.spec for state in states], list(peerings.values()), names, ctx.settings.network_external_cidr, sight.hidden), sight


def reach(ctx: Context, source: str, target: str, protocol: str, port: int | None) -> Answer:
    """Whether a connection from one place comes to another; an instance stands for its first interface. Raises InvalidRequest."""
    specs, sight = specs_seen(ctx)
    places = _places(ctx, (source, target))
    if protocol != "icmp" and port is None:
        raise wrong("port", "is required for tcp and udp.")
    if port is not None and not 0 <= port <= (255 if protocol == "icmp" else 65_535):
        raise wrong("port", f"must be from 0 to {255 if protocol == 'icmp' else 65_535}, not {port}.")
    known = {each.port_id for vpc in specs.vpcs for each in vpc.ports}
    for field, value in (("source", source), ("target", target)):
        if (found := places.get(value, value)) not in known and found != reachability.INTERNET:
            try:
                reachability.reach(Specs([]), found, reachability.INTERNET, protocol, port)
            except ValueError as error:
                raise wrong(field, _outside(ctx, found) or str(error)) from None
    start = places.get(source, source)
    answer = reachability.reach(specs, start if start in known else _behind(specs, start), places.get(target, target), protocol, port)
    return replace(answer, decider_id="" if answer.decider_id in sight.hidden else answer.decider_id)


def _outside(ctx: Context, value: str) -> str:
    """What is said of an instance in no network; empty where there is none."""
    found = seen_by_name(ctx, ctx.registry.of(ctx.registry.model("compute.instance")), value)
    if found is None:
        return ""
    return f"{found.name} is in no network: it has outbound user networking, with which it reaches the internet and nothing reaches it."


def _behind(specs: Specs, source: str) -> str:
    """The interface that has an address, or the address itself if none has: it lies outside then. Raises InvalidRequest if several have it."""
    found = [port.port_id for vpc in specs.vpcs for port in vpc.ports if source in {port.address, port.public_address}]
    if len(found) > 1:
        named = ", ".join(sorted(specs.name(each) for each in found[:MOST_NAMED]))
        raise wrong("source", f"is the address of several interfaces in different VPCs: {named}. Name one of them.")
    return found[0] if found else source


def _places(ctx: Context, values: Sequence[str]) -> Mapping[str, str]:
    """Id or name of an instance or interface → id of the interface. What is an address, or the internet, is that, whatever else is called so."""
    values = [value for value in values if value != reachability.INTERNET and not _is_address(value)]
    instance = ctx.registry.model("compute.instance")
    mine = (NetworkInterface.project_id == ctx.project_id, NetworkInterface.deleted_at.is_(None))
    query = select(instance.id, instance.name, NetworkInterface.id).join(NetworkInterface, NetworkInterface.instance_id == instance.id)
    wanted = instance.id.in_(values) | instance.name.in_(values)
    rows = ctx.db.execute(query.where(*mine, NetworkInterface.is_primary, wanted, seen(ctx, instance))).all()
    by_name = {name: interface_id for _, name, interface_id in rows}
    by_id = {instance_id: interface_id for instance_id, _, interface_id in rows}
    own = select(NetworkInterface.name, NetworkInterface.id).where(*mine, NetworkInterface.name.in_(values), seen(ctx, NetworkInterface))
    ids = select(NetworkInterface.id).where(*mine, NetworkInterface.id.in_(values), seen(ctx, NetworkInterface))
    return {**_pairs(ctx, own), **by_name, **by_id, **{each: each for each in ctx.db.scalars(ids)}}


def _is_address(value: str) -> bool:
    try:
        IPv4Address(value)
    except ValueError:
        return False
    return True


def topology_of(ctx: Context, vpc: Vpc) -> Topology:
    """The graph of a VPC: subnets, gateways, interfaces with their instances, peerings."""
    state = desired_state(ctx.db, ctx.registry, vpc.id)
    if state is None:
        return Topology([], [])
    sight = sight_of(ctx, [vpc.id])
    spec, names = state.spec, names_in(ctx, [vpc.id], sight)
    nodes = [Node(vpc.id, "vpc", vpc.name, vpc.cidr_block)]
    edges = []
    if spec.uplink_address:
        gateway = ctx.db.scalar(select(InternetGateway.id).where(InternetGateway.vpc_id == vpc.id, InternetGateway.deleted_at.is_(None)))
        if gateway is not None:
            nodes.append(Node(gateway, "internet-gateway", names.get(gateway, gateway), spec.uplink_address))
            edges.append(Edge(vpc.id, gateway))
    for nat in spec.nats:
        nodes.append(Node(nat.nat_id, "nat-gateway", names.get(nat.nat_id, nat.nat_id), nat.public_address))
        edges.append(Edge(vpc.id, nat.nat_id))
    joins = (VpcPeering.vpc_id == vpc.id) | (VpcPeering.peer_vpc_id == vpc.id)
    links = select(VpcPeering).where(
        joins, VpcPeering.project_id == vpc.project_id, VpcPeering.link_id.in_([each.peering_id for each in state.peerings])
    )
    for row in (
        ctx.db.scalars(links.options(joinedload(VpcPeering.vpc), joinedload(VpcPeering.peer_vpc)).order_by(VpcPeering.id)) if state.peerings else ()
    ):
        peer = row.peer_vpc if row.vpc_id == vpc.id else row.vpc
        detail = f"{peer.cidr_block}, {peer.name if peer.project_id == vpc.project_id else 'of another project'}"
        nodes.append(Node(row.link_id, "vpc-peering", row.name, detail, row.id))
        edges.append(Edge(vpc.id, row.link_id))
    for subnet in sorted(spec.subnets, key=lambda each: IPv4Network(each.cidr)):
        nodes.append(Node(subnet.subnet_id, "subnet", names.get(subnet.subnet_id, subnet.subnet_id), subnet.cidr))
        edges.append(Edge(vpc.id, subnet.subnet_id))
        edges += [
            Edge(subnet.subnet_id, route.target_id, route.destination) for route in subnet.routes if route.target_id and route.via is not Via.LOCAL
        ]
    instance = ctx.registry.model("compute.instance")
    guests = [port.guest.instance_id for port in spec.ports if port.guest is not None]
    states = _pairs(ctx, select(instance.id, instance.state).where(instance.id.in_(guests))) if guests else {}
    for port in sorted(spec.ports, key=lambda each: IPv4Address(each.address)):
        label = names.get(port.port_id, port.port_id)
        is_guest = port.guest is not None and sight.sees(port.guest.instance_id)
        kind, owner = ("instance", port.guest.instance_id) if is_guest and port.guest is not None else ("network-interface", port.port_id)
        addresses = ", ".join(filter(None, (port.address, port.public_address)))
        nodes.append(Node(port.port_id, kind, label, addresses, owner, states.get(owner, "")))
        edges.append(Edge(port.subnet_id, port.port_id))
    shown = [replace(node, resource_id=node.resource_id or node.id) for node in nodes if sight.sees(node.id)]
    edges = [edge for edge in edges if sight.sees(edge.source) and sight.sees(edge.target)]
    return Topology(shown, edges, len(nodes) - len(shown))


def allocations_of(ctx: Context, vpc: Vpc, *, subnet_id: str = "") -> tuple[Sequence[IpAllocation], Mapping[str, int]]:
    """The addresses of a VPC that are taken, and the totals of its subnets."""
    mine = (Subnet.vpc_id == vpc.id, Subnet.deleted_at.is_(None), seen(ctx, Subnet))
    subnets = ctx.db.scalars(select(Subnet).where(*mine).order_by(Subnet.cidr_block)).all()
    wanted = [each for each in subnets if subnet_id in ("", each.id)]
    if subnet_id and not wanted:
        raise wrong("subnet_id", f"{vpc.name} has no subnet {subnet_id[:64]}.")
    query = select(IpAllocation).where(IpAllocation.subnet_id.in_([each.id for each in wanted])).order_by(IpAllocation.allocated_at, IpAllocation.id)
    figures = [usage(each.cidr_block, each.taken) for each in wanted]
    totals = {
        "total": sum(each.total for each in figures), "usable": sum(each.usable for each in figures), "allocated": sum(each.taken for each in figures),
        "free": sum(each.free for each in figures),
    }  # fmt: skip
    return ctx.db.scalars(query.limit(MOST_ADDRESSES)).all(), totals


def group_names(ctx: Context, group: SecurityGroup) -> Mapping[str, str]:
    """Id → name of the groups that a group's rules refer to, as far as the caller may see them."""
    ids = {rule.referenced_group_id for rule in group.rules if rule.referenced_group_id}
    named = _pairs(ctx, select(SecurityGroup.id, SecurityGroup.name).where(SecurityGroup.id.in_(ids), seen(ctx, SecurityGroup))) if ids else {}
    return dict.fromkeys(ids, UNSEEN) | named


def rules_shown(ctx: Context, group: SecurityGroup) -> list[dict[str, Any]]:
    """The rules of a group as API and console show them: in words, and with what the host has counted; null where it has counted nothing."""
    names, hits = group_names(ctx, group), hits_of(ctx.db, group.vpc_id)
    return [
        {**rule_shown(rule, names), "connections": hits.connections.get(rule.id), "connections_read_at": hits.read_at, "created_at": rule.created_at}
        for rule in group.rules
    ]


def owners_of(ctx: Context, interfaces: Sequence[NetworkInterface]) -> Mapping[str, str]:
    """Id → name of the instances that have these interfaces."""
    model = ctx.registry.model("compute.instance")
    ids = {each.instance_id for each in interfaces if each.instance_id}
    return _pairs(ctx, select(model.id, model.name).where(model.id.in_(ids), may_see(ctx, "compute.instance.read").rows(model))) if ids else {}
