"""What a VPC's state says of one connection: the same answer as its rules give, for connections that began under former rules. Pure."""

from dataclasses import dataclass
from functools import cached_property
from ipaddress import IPv4Address, IPv4Network

from portal.engines.local.network.filter import METADATA
from portal.engines.local.network.routing import covers
from portal.engines.network_checks import router_address
from portal.engines.network_ports import Direction, IpProtocol, PortSpec, RuleSpec, Via, VpcSpec

NUMBERS = {1: IpProtocol.ICMP, 6: IpProtocol.TCP, 17: IpProtocol.UDP}


@dataclass(frozen=True, slots=True)
class Connection:
    """A connection as the kernel keeps it: as the sender began it, and as the answers come, which shows both translations."""

    protocol: int
    source: str
    destination: str
    answered_by: str
    answered_to: str
    port: int | None = None
    icmp_type: int | None = None


class Verdicts:
    """The rules of one VPC, ready to be asked often."""

    def __init__(self, spec: VpcSpec) -> None:
        self._spec = spec
        self._inner = IPv4Network(spec.cidr)
        self._ports = {port.address: port for port in spec.ports}
        self._groups = {group.group_id: group for group in spec.groups}
        self._members = {
            group_id: {port.address for port in spec.ports if group_id in port.group_ids} for group_id in self._groups
        }  # fmt: skip

    @cached_property
    def _own(self) -> set[str]:
        return {METADATA, *(str(router_address(subnet)) for subnet in self._spec.subnets)}

    @cached_property
    def _floating(self) -> dict[str, str]:
        return {port.public_address: port.address for port in self._spec.ports if port.public_address}

    def may_go_on(self, connection: Connection) -> bool:
        """Whether the connection could begin now."""
        sender, receiver = self._ports.get(connection.source), self._ports.get(connection.answered_by)
        if connection.source in self._own or connection.answered_by in self._own:
            return sender is not None or receiver is not None
        if self._is_gone(connection.source) or self._is_gone(connection.answered_by):
            return False
        if connection.destination != connection.answered_by and self._floating.get(connection.destination) != connection.answered_by:
            return False
        if sender is not None and connection.answered_to != connection.source and connection.answered_to not in self._outer(sender):
            return False
        return (
            (sender is None or self._lets(sender, Direction.EGRESS, connection))
            and (receiver is None or self._lets(receiver, Direction.INGRESS, connection))
            and self._passes_between(sender, connection)
        )

    def _is_gone(self, address: str) -> bool:
        return address not in self._ports and IPv4Address(address) in self._inner

    def _outer(self, sender: PortSpec) -> set[str]:
        shared = self._spec.uplink_address if self._spec.shared_nat else ""
        return {sender.public_address or shared, *(nat.public_address for nat in self._spec.nats)} - {""}

    def _passes_between(self, sender: PortSpec | None, connection: Connection) -> bool:
        """Whether the guest lets it through that the sender's packets are routed to, if they are."""
        if sender is None:
            return True
        subnet = next(subnet for subnet in self._spec.subnets if subnet.subnet_id == sender.subnet_id)
        route = covers(self._spec, subnet, IPv4Network(connection.answered_by))
        if route.via is not Via.INTERFACE or route.target_id == sender.port_id:
            return True
        between = next(port for port in self._spec.ports if port.port_id == route.target_id)
        return self._lets(between, Direction.INGRESS, connection) and self._lets(between, Direction.EGRESS, connection)

    def _lets(self, port: PortSpec, direction: Direction, connection: Connection) -> bool:
        # Each sees the other by the address that it knows.
        other = connection.answered_to if direction is Direction.INGRESS else connection.destination
        return any(
            rule.direction is direction and self._names(rule, other) and _fits(rule, connection)
            for group_id in port.group_ids
            for rule in self._groups[group_id].rules
        )

    def _names(self, rule: RuleSpec, other: str) -> bool:
        return other in self._members[rule.group_id] if rule.group_id else IPv4Address(other) in IPv4Network(rule.cidr)


def _fits(rule: RuleSpec, connection: Connection) -> bool:
    if rule.protocol is IpProtocol.ALL:
        return True
    if NUMBERS.get(connection.protocol) is not rule.protocol:
        return False
    if rule.icmp_type is not None:
        return connection.icmp_type == rule.icmp_type
    if rule.from_port is None or rule.to_port is None:
        return True
    return connection.port is not None and rule.from_port <= connection.port <= rule.to_port
