"""What every network engine refuses, before it touches anything: a VPC that contradicts itself, and words that are no addresses or names."""

import re
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv4Network
from itertools import pairwise

from portal.engines.confinement import checked_id
from portal.engines.network_ports import GroupSpec, IpProtocol, PeeringSpec, PortSpec, RouteSpec, RuleSpec, SubnetSpec, Via, VpcSpec
from portal.engines.ports import EngineRefused

# Where nothing else is said, the external network is this one.
EXTERNAL = "100.64.0.0/16"
MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}", re.ASCII)
LABEL = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
NAME = re.compile(rf"{LABEL}(\.{LABEL})*", re.ASCII)
LONGEST_NAME = 253
SMALLEST_PREFIX = 29
PORTS = 65_535
ICMP_TYPES = 255
MULTICAST_MAC = 1


def checked(spec: VpcSpec, external: IPv4Network) -> VpcSpec:
    """The spec itself, if it can be made on a host with this external network. Raises EngineRefused."""
    checked_id(spec.vpc_id)
    _name(spec.domain)
    whole = network(spec.cidr)
    for domain in spec.search_domains:
        _name(domain)
    for server in (*spec.dns_servers, *spec.ntp_servers):
        address(server)
    subnets = _subnets(spec.subnets, whole)
    groups = _once("security group", (group.group_id for group in spec.groups))
    for group in spec.groups:
        _group(group, groups)
    _ports(spec.ports, subnets, groups)
    _public(spec, external)
    for subnet in spec.subnets:
        _routes(subnet, spec)
    return spec


def checked_peering(peering: PeeringSpec, ends: Sequence[VpcSpec | None]) -> PeeringSpec:
    """The peering itself, if its two VPCs are there and can be told apart. Raises EngineRefused."""
    checked_id(peering.peering_id)
    here, there = ends
    if here is None or there is None:
        raise EngineRefused("A peering needs two VPCs that are there.")
    if here.vpc_id == there.vpc_id or network(here.cidr).overlaps(network(there.cidr)):
        raise EngineRefused("A peering needs two VPCs whose address ranges do not overlap.")
    return peering


def network(text: str) -> IPv4Network:
    """A CIDR without host bits. Raises EngineRefused."""
    try:
        found = IPv4Network(text)
    except ValueError:
        raise EngineRefused("An address range is written like 10.0.0.0/16, without host bits.") from None
    return found


def address(text: str) -> IPv4Address:
    """An IPv4 address. Raises EngineRefused."""
    try:
        return IPv4Address(text)
    except ValueError:
        raise EngineRefused("An address is written like 10.0.0.5.") from None


def router_address(subnet: SubnetSpec) -> IPv4Address:
    """The address of the router in a subnet."""
    return IPv4Network(subnet.cidr)[1]


def _subnets(subnets: Sequence[SubnetSpec], whole: IPv4Network) -> dict[str, IPv4Network]:
    _once("subnet", (subnet.subnet_id for subnet in subnets))
    found = {subnet.subnet_id: network(subnet.cidr) for subnet in subnets}
    for cidr in found.values():
        if not cidr.subnet_of(whole) or cidr.prefixlen > SMALLEST_PREFIX:
            raise EngineRefused(f"The subnet {cidr} must lie in the VPC's range {whole} and be a /{SMALLEST_PREFIX} or larger.")
    ordered = sorted(found.values())
    for lower, upper in pairwise(ordered):
        if lower.overlaps(upper):
            raise EngineRefused(f"The subnets {lower} and {upper} overlap.")
    return found


def _group(group: GroupSpec, groups: set[str]) -> None:
    _once("rule", (rule.rule_id for rule in group.rules))
    for rule in group.rules:
        if bool(rule.cidr) == bool(rule.group_id):
            raise EngineRefused("A rule names either an address range or a security group.")
        if rule.cidr:
            network(rule.cidr)
        elif rule.group_id not in groups:
            raise EngineRefused("A rule names a security group that this VPC does not have.")
        _rule_numbers(rule)


def _rule_numbers(rule: RuleSpec) -> None:
    has_ports = rule.from_port is not None or rule.to_port is not None
    if has_ports:
        low, high = rule.from_port, rule.to_port
        if rule.protocol not in {IpProtocol.TCP, IpProtocol.UDP}:
            raise EngineRefused("Only rules for TCP and UDP have ports.")
        if low is None or high is None or not 0 <= low <= high <= PORTS:
            raise EngineRefused(f"Ports of a rule go from a lower to a higher number, 0 to {PORTS}.")
    if rule.icmp_type is not None and (rule.protocol is not IpProtocol.ICMP or not 0 <= rule.icmp_type <= ICMP_TYPES):
        raise EngineRefused(f"Only rules for ICMP have a type, 0 to {ICMP_TYPES}.")


def _ports(ports: Sequence[PortSpec], subnets: dict[str, IPv4Network], groups: set[str]) -> None:
    _once("network interface", (port.port_id for port in ports))
    _once("address", (port.address for port in ports))
    _once("MAC", (port.mac for port in ports))
    for port in ports:
        subnet = subnets.get(port.subnet_id)
        if subnet is None:
            raise EngineRefused("A network interface is in a subnet that this VPC does not have.")
        own = address(port.address)
        if own not in subnet or own in {subnet[0], subnet[1], subnet[-1]}:
            raise EngineRefused(f"{own} cannot be given to a guest in {subnet}.")
        if MAC.fullmatch(port.mac) is None or int(port.mac[:2], 16) & MULTICAST_MAC:
            raise EngineRefused("A MAC is written like 52:54:00:12:34:56.")
        if not set(port.group_ids) <= groups:
            raise EngineRefused("A network interface names a security group that this VPC does not have.")
        for name in port.names:
            _name(name)


def _public(spec: VpcSpec, external: IPv4Network) -> None:
    given = [port.public_address for port in spec.ports] + [nat.public_address for nat in spec.nats] + [spec.uplink_address]
    taken = [text for text in given if text]
    _once("public address", taken)
    _once("NAT gateway", (nat.nat_id for nat in spec.nats))
    for text in taken:
        if address(text) not in external or address(text) in {external[0], external[1], external[-1]}:
            raise EngineRefused(f"{text} is not an address of the external network {external} that can be given away.")


def _routes(subnet: SubnetSpec, spec: VpcSpec) -> None:
    _once("destination", (route.destination for route in subnet.routes))
    ports, nats = {port.port_id for port in spec.ports}, {nat.nat_id for nat in spec.nats}
    for route in subnet.routes:
        network(route.destination)
        if _leads_nowhere(route, ports, nats):
            raise EngineRefused(f"The route to {route.destination} leads to a {route.via.value} that this VPC does not have.")


def _leads_nowhere(route: RouteSpec, ports: set[str], nats: set[str]) -> bool:
    match route.via:
        case Via.INTERFACE:
            return route.target_id not in ports
        case Via.NAT:
            return route.target_id not in nats
        case Via.PEERING:
            return not route.target_id
    return False


def _name(text: str) -> None:
    if len(text) > LONGEST_NAME or NAME.fullmatch(text) is None:
        raise EngineRefused("A name in DNS has letters a to z, digits, hyphens and dots.")


def _once(what: str, values: Iterable[str]) -> set[str]:
    found: set[str] = set()
    for value in values:
        if value in found:
            raise EngineRefused(f"The same {what} is there twice: {value}.")
        found.add(value)
    return found
