"""What a VPC's state says of one connection: the same answer as its rules give, for connections that began under former rules. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from ipaddress import IPv4Address, IPv4Network

from portal.engines.local.network.filter import METADATA
from portal.engines.local.network.routing import covers
from portal.engines.network_checks import router_address
from portal.engines.network_ports import Direction, IpProtocol, PortSpec, RouteSpec, RuleSpec, Via, VpcSpec
from portal.engines.network_store import Formerly

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
    """The rules of one VPC, ready to be asked often: what depends on addresses alone is found out once."""

    def __init__(self, spec: VpcSpec, formerly: Sequence[Formerly] = ()) -> None:
        self._spec, self._formerly = spec, formerly
        self._inner = IPv4Network(spec.cidr)
        self._ports = {port.address: port for port in spec.ports}
        self._rules = {(group.group_id, way): [rule for rule in group.rules if rule.direction is way] for group in spec.groups for way in Direction}
        self._members = {group.group_id: {port.address for port in spec.ports if group.group_id in port.group_ids} for group in spec.groups}
        self._own = {METADATA, *(str(router_address(subnet)) for subnet in spec.subnets)}
        self._floating = {port.public_address: port.address for port in spec.ports if port.public_address}
        self._is_gone = cache(self._look_whether_gone)
        self._is_expected = cache(self._look_whether_expected)
        self._was_led_elsewhere = cache(self._look_whether_led_elsewhere)
        self._between = cache(self._find_between)
        self._rules_about = cache(self._find_rules_about)

    def may_go_on(self, connection: Connection) -> bool:
        """Whether the connection could begin now."""
        sender, receiver = self._ports.get(connection.source), self._ports.get(connection.answered_by)
        if connection.source in self._own or connection.answered_by in self._own:
            return sender is not None or receiver is not None
        if self._is_gone(connection.source) or self._is_gone(connection.answered_by):
            return False
        if not self._keeps_its_way(connection, sender, receiver):
            return False
        if connection.destination != connection.answered_by and self._floating.get(connection.destination) != connection.answered_by:
            return False
        if sender is not None and connection.answered_to != connection.source and connection.answered_to not in self._outer(sender):
            return False
        between = self._between(sender.address, connection.answered_by) if sender is not None else None
        return (
            (sender is None or self._lets(sender, Direction.EGRESS, connection))
            and (receiver is None or self._lets(receiver, Direction.INGRESS, connection))
            and (between is None or all(self._lets(between, way, connection) for way in Direction))
        )

    def _keeps_its_way(self, connection: Connection, sender: PortSpec | None, receiver: PortSpec | None) -> bool:
        """Whether a guest and a foreign address would still find each other the way that they did."""
        if sender is None and receiver is not None:
            is_inner = connection.destination == receiver.address
            if is_inner and not self._is_expected(receiver.address, connection.source):
                return False
            return not self._was_led_elsewhere(receiver.address, connection.source)
        return sender is None or receiver is not None or not self._was_led_elsewhere(sender.address, connection.answered_by)

    def _look_whether_gone(self, address: str) -> bool:
        return address not in self._ports and IPv4Address(address) in self._inner

    def _outer(self, sender: PortSpec) -> set[str]:
        shared = self._spec.uplink_address if self._spec.shared_nat else ""
        return {sender.public_address or shared, *(nat.public_address for nat in self._spec.nats)} - {""}

    def _look_whether_expected(self, receiver_address: str, source: str) -> bool:
        """Whether a foreign address that calls a guest by its inner one is where the guest's subnet would answer it."""
        return self._route(self._ports[receiver_address], source).via in {Via.PEERING, Via.INTERFACE}

    def _look_whether_led_elsewhere(self, inner: str, outer: str) -> bool:
        """Whether packets of a guest to a foreign address went over a peering that they do not take any more."""
        port, other = self._ports[inner], IPv4Address(outer)
        former = [each for each in self._formerly if each.subnet_id == port.subnet_id and other in IPv4Network(each.cidr)]
        if not former:
            return False
        route = self._route(port, outer)
        return any(route.via is not Via.PEERING or route.target_id != each.peering_id for each in former)

    def _route(self, port: PortSpec, target: str) -> RouteSpec:
        subnet = next(subnet for subnet in self._spec.subnets if subnet.subnet_id == port.subnet_id)
        return covers(self._spec, subnet, IPv4Network(target))

    def _find_between(self, source: str, target: str) -> PortSpec | None:
        """The port of the guest that a sender's packets are routed to, if they are."""
        sender = self._ports[source]
        route = self._route(sender, target)
        if route.via is not Via.INTERFACE or route.target_id == sender.port_id:
            return None
        return next(port for port in self._spec.ports if port.port_id == route.target_id)

    def _lets(self, port: PortSpec, direction: Direction, connection: Connection) -> bool:
        # Each sees the other by the address that it knows.
        other = connection.answered_to if direction is Direction.INGRESS else connection.destination
        return any(_fits(rule, connection) for rule in self._rules_about(port.address, direction, other))

    def _find_rules_about(self, address: str, direction: Direction, other: str) -> Sequence[RuleSpec]:
        """Rules of a port's groups that are about another address."""
        rules = (rule for group_id in self._ports[address].group_ids for rule in self._rules[group_id, direction])
        return [
            rule
            for rule in rules
            if (other in self._members[rule.group_id] if rule.group_id else IPv4Address(other) in IPv4Network(rule.cidr))
        ]  # fmt: skip


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
