"""Which way packets go: one table of routes per subnet, found by where they come from, and one for what comes over peerings.

Pure: from a VPC's state to routes, without touching the host.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Network, collapse_addresses

from portal.engines.local.network import names
from portal.engines.network_ports import RouteSpec, SubnetSpec, Via, VpcSpec
from portal.engines.network_store import Formerly

# Numbers of tables and of the rules that lead to them; the kernel's own are 0, 253, 254 and 255.
FIRST_TABLE = 1000
PEERING_TABLE = 999
RULE_PRIORITY = 1000
EVERYWHERE = IPv4Network("0.0.0.0/0")
# Never anybody's own: the other router of a peering, whose hardware address is known beforehand.
PEER_GATEWAY = "169.254.255.254"


@dataclass(frozen=True, slots=True)
class Route:
    """A route as the kernel has it; without an interface packets are refused."""

    table: int
    destination: str
    interface: str = ""
    gateway: str = ""


@dataclass(frozen=True, slots=True)
class Lookup:
    """What comes in through an interface is routed by a table."""

    interface: str
    table: int


def tables(spec: VpcSpec, external: IPv4Network, linked: Collection[str]) -> tuple[set[Route], set[Lookup]]:
    """All routes and lookups of a router; the host is the first of the external network, `linked` are the peerings that are there."""
    routes, lookups = set[Route](), set[Lookup]()
    for number, subnet in enumerate(spec.subnets):
        table = FIRST_TABLE + number
        routes |= set(_of_subnet(spec, subnet, table, external, linked))
        lookups.add(Lookup(names.subnet_side(subnet), table))
    for peering_id in linked:
        lookups.add(Lookup(names.peering_side(peering_id), PEERING_TABLE))
    if linked:
        routes |= {Route(PEERING_TABLE, subnet.cidr, names.subnet_side(subnet)) for subnet in spec.subnets}
        routes.add(Route(PEERING_TABLE, str(EVERYWHERE)))
    # What comes from outside, and the router's own questions and answers.
    routes |= {Route(0, subnet.cidr, names.subnet_side(subnet)) for subnet in spec.subnets}
    if spec.uplink_address:
        routes |= {Route(0, str(EVERYWHERE), names.UPLINK, str(external[1])), Route(0, str(external), names.UPLINK)}
    return routes, lookups


def _of_subnet(spec: VpcSpec, subnet: SubnetSpec, table: int, external: IPv4Network, linked: Collection[str]) -> Iterator[Route]:
    wanted = {route.destination: route for route in subnet.routes}
    for neighbour in spec.subnets:
        # The route that covers a subnet most closely decides, and by itself every VPC is connected.
        covering = covers(spec, subnet, IPv4Network(neighbour.cidr))
        if covering.via is Via.LOCAL:
            yield Route(table, neighbour.cidr, names.subnet_side(neighbour))
    for destination, route in wanted.items():
        if route.via is not Via.LOCAL:
            yield _route(spec, route, table, external, linked)
        elif destination not in {neighbour.cidr for neighbour in spec.subnets}:
            yield Route(table, destination)
    nearby = covers(spec, subnet, external)
    if nearby.via in {Via.INTERNET, Via.NAT} and spec.uplink_address and nearby.destination != str(external):
        # Neighbours on the external network are reached without the host.
        yield _route(spec, replace(nearby, destination=str(external)), table, external, linked)
    # Nothing is to fall through to the router's own routes.
    for closed in {spec.cidr, str(EVERYWHERE)} - set(wanted) - {neighbour.cidr for neighbour in spec.subnets}:
        yield Route(table, closed)


def covers(spec: VpcSpec, subnet: SubnetSpec, target: IPv4Network) -> RouteSpec:
    """The route by which a subnet reaches all of a range: the longest prefix, BLACKHOLE without any."""
    covering = [route for route in _known(spec, subnet) if target.subnet_of(IPv4Network(route.destination))]
    return max(covering, key=lambda route: IPv4Network(route.destination).prefixlen, default=RouteSpec(str(EVERYWHERE), Via.BLACKHOLE))


def led(spec: VpcSpec, subnet: SubnetSpec, via: Via) -> dict[str, list[IPv4Network]]:
    """What a subnet's table leads that way, by target: without what a closer route leads elsewhere."""
    ranges = {IPv4Network(route.destination): route for route in _known(spec, subnet)}
    found: dict[str, list[IPv4Network]] = {}
    for whole, route in ranges.items():
        if route.via is via:
            found.setdefault(route.target_id, []).extend(_without(whole, [each for each in ranges if each != whole and each.subnet_of(whole)]))
    return {target_id: list(collapse_addresses(parts)) for target_id, parts in found.items()}


def over_peerings(spec: VpcSpec, peering_id: str = "") -> list[Formerly]:
    """What is led over peerings, or over one: as it is noted before that changes."""
    return [
        Formerly(subnet.subnet_id, str(part), each)
        for subnet in spec.subnets
        for each, parts in led(spec, subnet, Via.PEERING).items()
        for part in parts
        if peering_id in {"", each}
    ]


def _known(spec: VpcSpec, subnet: SubnetSpec) -> Sequence[RouteSpec]:
    """A subnet's table with the route that every VPC has by itself."""
    return [*subnet.routes, RouteSpec(spec.cidr, Via.LOCAL)] if all(r.destination != spec.cidr for r in subnet.routes) else subnet.routes


def _without(whole: IPv4Network, holes: Collection[IPv4Network]) -> list[IPv4Network]:
    left = [whole]
    for hole in sorted(holes, key=lambda each: each.prefixlen):
        left = [part for each in left for part in (each.address_exclude(hole) if hole.subnet_of(each) else [each])]
    return left


def _route(spec: VpcSpec, route: RouteSpec, table: int, external: IPv4Network, linked: Collection[str]) -> Route:
    destination = route.destination
    gateway = "" if IPv4Network(destination).subnet_of(external) else str(external[1])
    match route.via:
        case Via.INTERNET if spec.uplink_address:
            return Route(table, destination, names.UPLINK, gateway)
        case Via.NAT if spec.uplink_address:
            nat = next(nat for nat in spec.nats if nat.nat_id == route.target_id)
            return Route(table, destination, names.nat_side(nat), gateway)
        case Via.PEERING if route.target_id in linked:
            return Route(table, destination, names.peering_side(route.target_id), PEER_GATEWAY)
        case Via.INTERFACE:
            port = next(port for port in spec.ports if port.port_id == route.target_id)
            home = next(subnet for subnet in spec.subnets if subnet.subnet_id == port.subnet_id)
            return Route(table, destination, names.subnet_side(home), port.address)
    return Route(table, destination)


def forwarded_by(spec: VpcSpec, port_id: str) -> list[tuple[list[IPv4Network], list[IPv4Network]]]:
    """What a port's guest passes on as a router, as sources and targets: whoever is routed to it, to where its table says, and what lies behind back."""
    inside = IPv4Network(spec.cidr)
    found = []
    for subnet in spec.subnets:
        targets = led(spec, subnet, Via.INTERFACE).get(port_id, [])
        if targets:
            found.append(([IPv4Network(subnet.cidr)], targets))
            # Who is in the VPC sends for himself, or is routed to the port as well.
            if behind := [each for each in targets if not each.subnet_of(inside)]:
                found.append((behind, [IPv4Network(subnet.cidr)]))
    return found
