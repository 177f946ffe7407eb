"""Can A reach B on a port? Answered from the desired state, with the way a packet takes and the rule or route that decides.

The same specs that the engine makes networks from are read here, so that the answer is about what is, not about what was meant. Pure.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network

from portal.engines.network_checks import router_address
from portal.engines.network_ports import Direction, PeeringSpec, PortSpec, RouteSpec, RuleSpec, SubnetSpec, Via, VpcSpec
from portal.networking.addresses import ANYWHERE
from portal.networking.rules import covers, sentence, traffic

INTERNET = "internet"
LOCAL_ROUTE = "local"
METADATA = "169.254.169.254"
LINK_LOCAL = IPv4Network("169.254.0.0/16")
DNS, HTTP, ECHO = 53, 80, 8


@dataclass(frozen=True, slots=True)
class Specs:
    """All that an answer may need: VPCs, the peerings between them, what things are called, and the external network, whose first address is the host's.

    Of what is `hidden`, by id, an answer tells neither the id nor, of a group, what its rules say.
    """

    vpcs: Sequence[VpcSpec]
    peerings: Sequence[PeeringSpec] = ()
    names: Mapping[str, str] = field(default_factory=dict)
    external: str = ""
    hidden: Collection[str] = ()

    def told(self, group_id: str, rule: RuleSpec) -> tuple[str, str]:
        """The id of a rule and the rule in words; of a hidden group, none."""
        return ("", "") if group_id in self.hidden else (rule.rule_id, sentence(rule, self.names))

    def name(self, some_id: str) -> str:
        """What people call it."""
        return self.names.get(some_id, some_id)


@dataclass(frozen=True, slots=True)
class Hop:
    """One place on the way: what it is, its id where it has one, and what happens there."""

    kind: str
    id: str
    text: str


@dataclass(frozen=True, slots=True)
class Answer:
    """Whether it gets there, the way so far, and what decided: a rule, a route, an address or a gateway.

    It is certain unless somebody decides about the rest of the way of whom nothing is known here; `allowed` says then that nothing here is in the way.
    """

    allowed: bool
    sentence: str
    hops: Sequence[Hop] = ()
    decided_by: str = ""
    decider_id: str = ""
    is_certain: bool = True


@dataclass(frozen=True, slots=True)
class _Place:
    vpc: VpcSpec
    subnet: SubnetSpec
    port: PortSpec


class _Stop(Exception):
    """The way ends."""

    def __init__(self, why: str, decided_by: str, decider_id: str = "") -> None:
        super().__init__(why)
        self.why, self.decided_by, self.decider_id = why, decided_by, decider_id


def reach(specs: Specs, source: str, target: str, protocol: str, port: int | None) -> Answer:
    """Whether a new connection from `source` comes to `target`; each is a port's id, an address, or "internet".

    `protocol` is tcp, udp or icmp; `port` is the destination port, or the ICMP type. An address between VPCs is one as the source sees it.
    Raises ValueError for a source or target that is none of these.
    """
    world = _World(specs)
    start, ends = world.place(source), world.ends(source, target)
    answers = []
    for end in ends:
        way = _Way(world, protocol, port)
        answers.append(way.answer(start, source, target, end))
        if answers[-1].allowed:
            return answers[-1]
    return answers[0]


class _World:
    """The specs, looked up by port and address."""

    def __init__(self, specs: Specs) -> None:
        self.specs = specs
        self.ports: dict[str, _Place] = {}
        self.public: dict[str, _Place] = {}
        self.vpcs = {vpc.vpc_id: vpc for vpc in specs.vpcs}
        self.peerings = {peering.peering_id: peering.vpc_ids for peering in specs.peerings}
        self.gateways = {text for vpc in specs.vpcs for text in public_of(vpc)} - {port.public_address for vpc in specs.vpcs for port in vpc.ports}
        self.host = str(IPv4Network(specs.external)[1]) if specs.external else ""
        for vpc in specs.vpcs:
            subnets = {subnet.subnet_id: subnet for subnet in vpc.subnets}
            for port in vpc.ports:
                place = _Place(vpc, subnets[port.subnet_id], port)
                self.ports[port.port_id] = place
                if port.public_address:
                    self.public[port.public_address] = place

    def place(self, text: str) -> _Place | None:
        """The port that is meant; None for what lies outside. Raises ValueError."""
        if text in self.ports:
            return self.ports[text]
        if text != INTERNET:
            try:
                IPv4Address(text)
            except ValueError:
                msg = f"{text[:80]} is no network interface here, no IPv4 address and not the word {INTERNET}."
                raise ValueError(msg) from None
        return None

    def ends(self, source: str, target: str) -> list[str]:
        """The addresses under which the target may be tried, the most direct first."""
        goal, start = self.place(target), self.ports.get(source)
        if goal is None:
            return [target]
        within = start is not None and start.vpc.vpc_id == goal.vpc.vpc_id
        private = [goal.port.address] if within or (start is not None and self.linked(start.vpc.vpc_id, goal.vpc.vpc_id)) else []
        public = [goal.port.public_address] if goal.port.public_address and not within else []
        return private + public or [""]

    def linked(self, one: str, other: str) -> bool:
        """Whether a peering joins two VPCs."""
        return any(set(pair) == {one, other} for pair in self.peerings.values())

    def home(self, vpc: VpcSpec, address: str) -> VpcSpec | None:
        """The other VPC in whose range an address lies; one that a peering joins rather than another."""
        others = [other for other in self.specs.vpcs if other is not vpc and IPv4Address(address) in IPv4Network(other.cidr)]
        return max(others, key=lambda other: self.linked(vpc.vpc_id, other.vpc_id), default=None)

    def at(self, vpc: VpcSpec, address: str) -> _Place | None:
        """The port with a private address."""
        return next((self.ports[port.port_id] for port in vpc.ports if port.address == address), None)


class _Way:
    """One packet on its way."""

    def __init__(self, world: _World, protocol: str, port: int | None) -> None:
        self.world, self.protocol, self.port = world, protocol, port
        self.hops: list[Hop] = []
        self.decided = ("", "")
        self.is_certain = True

    def answer(self, start: _Place | None, source: str, target: str, address: str) -> Answer:
        """Where it comes to."""
        name = self.world.specs.name
        asked = f"{'The internet' if source == INTERNET else name(source)} {{}} {'the internet' if target == INTERNET else name(target)}"
        asked += f" with {traffic(self.protocol, self.port)}: "
        try:
            end = self._go(start, source, target, address)
        except _Stop as stop:
            return Answer(False, asked.format("cannot reach") + stop.why, tuple(self.hops), stop.decided_by, stop.decider_id)
        return Answer(True, asked.format("can reach" if self.is_certain else "may reach") + end, tuple(self.hops), *self.decided, self.is_certain)

    def _go(self, start: _Place | None, source: str, target: str, address: str) -> str:
        if start is None:
            return self._from_outside(source, target, address)
        if not address:
            raise _Stop("They are in different VPCs, no peering joins these, and the target has no public address.", "address", target)
        self._hop("interface", start.port.port_id, f"leaves {self._name(start.port.port_id)} ({start.port.address})")
        if address in {METADATA, *(str(router_address(subnet)) for subnet in start.vpc.subnets)}:
            return self._to_router(start.vpc, address)
        self._pass(start, Direction.EGRESS, ANYWHERE if address == INTERNET else f"{address}/32")
        return self._onward(start, start, address)

    # -- the pieces ----------------------------------------------------------------------------------------------------------------------

    def _to_router(self, vpc: VpcSpec, address: str) -> str:
        """A router says its few words to every guest of its VPC, whatever the groups say."""
        asked = (self.protocol, self.port)
        known = {("tcp", HTTP)} if address == METADATA else {("tcp", DNS), ("udp", DNS), ("icmp", ECHO)}
        what = "the metadata service, which answers HTTP" if address == METADATA else "a router, which answers DNS and ping"
        self._hop("router", vpc.vpc_id, f"{address} is {what}")
        self.decided = ("router", vpc.vpc_id)
        if asked not in known:
            raise _Stop(f"{address} is {what} and nothing else.", *self.decided)
        return f"{address} is {what} of every guest in {self._name(vpc.vpc_id)}."

    def _onward(self, start: _Place, sender: _Place, address: str) -> str:
        """The way of what `start` began and `sender`, a guest as router if it is another, sends."""
        route = route_of(sender.vpc, sender.subnet, address)
        if route is not None and route.via is Via.LOCAL:
            return self._local(start, address)
        return self._routed(start, sender, address, route)

    def _local(self, start: _Place, address: str) -> str:
        self._hop("route", LOCAL_ROUTE, f"{start.vpc.cidr} is routed within the VPC")
        end = self.world.at(start.vpc, address)
        if end is None:
            raise _Stop(f"No network interface in {self._name(start.vpc.vpc_id)} has the address {address}.", "address", address)
        back = route_of(end.vpc, end.subnet, start.port.address)
        if back is None or back.via not in {Via.LOCAL, Via.INTERFACE}:
            why = f"Answers would not come back: the route {back.destination if back else ''} of {self._name(end.subnet.subnet_id)} leads elsewhere."
            raise _Stop(why, "route", end.subnet.subnet_id)
        return self._arrive(end, f"{start.port.address}/32")

    def _routed(self, start: _Place, sender: _Place, address: str, route: RouteSpec | None) -> str:
        subnet = self._name(sender.subnet.subnet_id)
        if route is None:
            raise _Stop(f"No route of {subnet} leads to {_shown(address)}.", "route", sender.subnet.subnet_id)
        self._hop("route", route.destination, f"{route.destination} leads to {self._name(route.target_id) if route.target_id else _SAYS[route.via]}")
        self.decided = ("route", route.destination)
        match route.via:
            case Via.INTERNET:
                return self._out(start, address, self._leaving(start), route)
            case Via.NAT:
                return self._out(start, address, self._through_nat(start, route), route)
            case Via.PEERING:
                return self._over(start, address, route)
            case Via.INTERFACE:
                return self._handed(start, sender, address, route)
        raise _Stop(f"The route {route.destination} of {subnet} leads nowhere: its target is gone.", "route", route.destination)

    def _leaving(self, start: _Place) -> str:
        """The address with which a guest leaves through the internet gateway."""
        vpc = start.vpc
        self._need_gateway(vpc)
        if start.port.public_address:
            return start.port.public_address
        if not vpc.shared_nat:
            raise _Stop(
                f"{self._name(start.port.port_id)} has no public address, and {self._name(vpc.vpc_id)} lends it none.", "address", start.port.port_id
            )
        return vpc.uplink_address

    def _through_nat(self, start: _Place, route: RouteSpec) -> str:
        self._need_gateway(start.vpc)
        nat = next((each for each in start.vpc.nats if each.nat_id == route.target_id), None)
        if nat is None:
            raise _Stop(f"The route {route.destination} leads to a NAT gateway that is gone.", "route", route.destination)
        self._hop("nat-gateway", nat.nat_id, f"continues from {nat.public_address}")
        return nat.public_address

    def _need_gateway(self, vpc: VpcSpec) -> None:
        if not vpc.uplink_address:
            raise _Stop(f"{self._name(vpc.vpc_id)} has no internet gateway.", "gateway", vpc.vpc_id)

    def _out(self, start: _Place, address: str, seen_from: str, route: RouteSpec) -> str:
        self._hop("internet-gateway", start.vpc.vpc_id, f"leaves {self._name(start.vpc.vpc_id)} from {seen_from}")
        end = self.world.public.get(address)
        if end is not None:
            return self._public(end, f"{seen_from}/32", within=end.vpc is start.vpc)
        if address != INTERNET:
            self._refuse_nobody(start, address, route)
            # Who has it, and whether they answer, is known there only.
            self.is_certain = False
        return f"the route {route.destination} leads there, and the rules let it out."

    def _refuse_nobody(self, start: _Place, address: str, route: RouteSpec) -> None:
        """Stop at addresses of which it is known that nobody outside has them, or answers there."""
        if address in self.world.gateways:
            raise _Stop(f"{address} belongs to a gateway, which answers nobody.", "address", address)
        if address == self.world.host or IPv4Address(address) in LINK_LOCAL:
            raise _Stop(f"{address} is the host's, which guests do not reach.", "address", address)
        home = self.world.home(start.vpc, address)
        if home is not None:
            named = self._name(home.vpc_id)
            why = f"{address} lies in {named}, and the route {route.destination} of {self._name(start.subnet.subnet_id)} leads out to the internet instead. "
            way_out = "over the peering" if self.world.linked(start.vpc.vpc_id, home.vpc_id) else "to a peering, which there is not yet"
            raise _Stop(f"{why}A route for {home.cidr} has to lead {way_out}.", "route", route.destination)

    def _over(self, start: _Place, address: str, route: RouteSpec) -> str:
        pair = self.world.peerings.get(route.target_id, ())
        other = next((self.world.vpcs.get(vpc_id) for vpc_id in pair if vpc_id != start.vpc.vpc_id), None)
        if other is None and start.vpc.vpc_id in pair:
            self._hop("vpc-peering", route.target_id, "crosses to a VPC of another project")
            self.is_certain = False
            return f"it crosses {self._name(route.target_id)}; the routes and rules of the other project decide about the rest of the way."
        if other is None or start.vpc.vpc_id not in pair:
            raise _Stop(f"The route {route.destination} leads to a peering that is not active.", "route", route.destination)
        self._hop("vpc-peering", route.target_id, f"crosses to {self._name(other.vpc_id)}")
        end = None if address == INTERNET else self.world.at(other, address)
        if end is None:
            raise _Stop(f"No network interface in {self._name(other.vpc_id)} has the address {_shown(address)}.", "address", address)
        back = best_route(end.subnet.routes, start.port.address)
        if back is None or back.via is not Via.PEERING or back.target_id != route.target_id:
            why = f"Answers would not come back: no route of {self._name(end.subnet.subnet_id)} leads to {start.port.address} over this peering."
            raise _Stop(why, "route", end.subnet.subnet_id)
        return self._arrive(end, f"{start.port.address}/32")

    def _handed(self, start: _Place, sender: _Place, address: str, route: RouteSpec) -> str:
        through = self.world.ports.get(route.target_id)
        if through is None or through.vpc.vpc_id != start.vpc.vpc_id:
            raise _Stop(f"The route {route.destination} leads to a network interface that is gone.", "route", route.destination)
        if through is sender:
            raise _Stop(
                f"The route {route.destination} leads back to {self._name(route.target_id)}, from where it comes.", "route", route.destination
            )
        if address in public_of(start.vpc):
            why = f"{address} is a public address of {self._name(start.vpc.vpc_id)} itself: its router keeps what is sent there, and no route leads it on."
            raise _Stop(why, "address", address)
        self._arrive(through, f"{start.port.address}/32")
        # The guest decides whether it passes anything on.
        self.is_certain = False
        if address == INTERNET or IPv4Address(address) not in IPv4Network(start.vpc.cidr):
            return f"it comes to {self._name(route.target_id)}, whose guest decides about the rest of the way."
        if sender is not start:
            raise _Stop(f"Routes lead it from one guest to another and not to {address}.", "route", route.destination)
        # Within the VPC its own rules hold for what it passes on as well.
        self._hop("interface", route.target_id, f"{self._name(route.target_id)} has to pass it on as it is")
        self._pass(through, Direction.EGRESS, f"{address}/32")
        return f"if {self._name(route.target_id)} passes it on, {self._onward(start, through, address)}"

    def _from_outside(self, source: str, target: str, address: str) -> str:
        if not address:
            raise _Stop(f"{self._name(target)} has no public address.", "address", target)
        end = self.world.public.get(address)
        if end is None:
            raise _Stop(f"Nothing in a network here answers at {_shown(address)}.", "address", address)
        if source != INTERNET and IPv4Address(source) in IPv4Network(end.vpc.cidr):
            raise _Stop(
                f"{source} lies in {self._name(end.vpc.vpc_id)} itself, so nothing with this address is let in from outside.", "address", source
            )
        return self._public(end, ANYWHERE if source == INTERNET else f"{source}/32")

    def _public(self, end: _Place, seen_from: str, *, within: bool = False) -> str:
        self._need_gateway(end.vpc)
        self._hop("internet-gateway", end.vpc.vpc_id, f"{end.port.public_address} belongs to {self._name(end.port.port_id)} ({end.port.address})")
        # Within a VPC answers turn back at the router; the address itself has to be one that leads out.
        caller = end.port.public_address if within else seen_from.partition("/")[0]
        back = best_route(end.subnet.routes, INTERNET if seen_from == ANYWHERE else caller)
        if back is None or back.via is not Via.INTERNET:
            why = f"Answers would not come back: no route of {self._name(end.subnet.subnet_id)} leads to the internet gateway."
            raise _Stop(why, "route", end.subnet.subnet_id)
        return self._arrive(end, seen_from)

    def _arrive(self, end: _Place, seen_from: str) -> str:
        rule = self._pass(end, Direction.INGRESS, seen_from)
        self._hop("interface", end.port.port_id, f"arrives at {self._name(end.port.port_id)} ({end.port.address})")
        return f"a rule of {self._name(rule[0])} decides. {self.world.specs.told(*rule)[1]}".strip()

    def _pass(self, place: _Place, direction: Direction, other: str) -> tuple[str, RuleSpec]:
        """The group and rule that let it through a port."""
        groups = [group for group in place.vpc.groups if group.group_id in place.port.group_ids]
        for group in groups:
            for rule in group.rules:
                if rule.direction is direction and covers(rule, self.protocol, self.port) and self._is_about(rule, place.vpc, other):
                    named, (rule_id, words) = self._name(group.group_id), self.world.specs.told(group.group_id, rule)
                    self._hop("rule", rule_id, f"{named}: {words}" if words else f"a rule of {named}")
                    self.decided = ("rule", rule_id)
                    return group.group_id, rule
        way = "in" if direction is Direction.INGRESS else "out"
        whom = f"{'from' if way == 'in' else 'to'} {_shown(other.removesuffix('/32'))}"
        if not groups:
            raise _Stop(f"{self._name(place.port.port_id)} has no security group, so nothing passes.", "group", place.port.port_id)
        named = ", ".join(self._name(group.group_id) for group in groups)
        raise _Stop(f"No rule of {named} lets {traffic(self.protocol, self.port)} {way} {whom}.", "group", groups[0].group_id)

    def _is_about(self, rule: RuleSpec, vpc: VpcSpec, other: str) -> bool:
        if rule.cidr:
            return IPv4Network(other).subnet_of(IPv4Network(rule.cidr))
        return any(rule.group_id in port.group_ids and other == f"{port.address}/32" for port in vpc.ports)

    def _hop(self, kind: str, some_id: str, text: str) -> None:
        self.hops.append(Hop(kind, "" if some_id in self.world.specs.hidden else some_id, text))

    def _name(self, some_id: str) -> str:
        return self.world.specs.name(some_id)


_SAYS = {
    Via.LOCAL: "the VPC", Via.INTERNET: "the internet gateway", Via.NAT: "a NAT gateway", Via.PEERING: "a peering", Via.INTERFACE: "a network interface",
    Via.BLACKHOLE: "nowhere",
}  # fmt: skip


def _shown(address: str) -> str:
    return "the internet" if address in {INTERNET, ANYWHERE} else address


def best_route(routes: Sequence[RouteSpec], address: str) -> RouteSpec | None:
    """The route of a subnet with the longest prefix that covers an address; for the internet, the one that covers everything."""
    wanted = IPv4Network(ANYWHERE if address == INTERNET else f"{address}/32")
    fitting = [route for route in routes if route.via is not Via.LOCAL and wanted.subnet_of(IPv4Network(route.destination))]
    return max(fitting, key=lambda route: IPv4Network(route.destination).prefixlen, default=None)


def public_of(vpc: VpcSpec) -> set[str]:
    """The addresses that a VPC has outside: its gateways' and those that lead to its guests."""
    return {vpc.uplink_address, *(nat.public_address for nat in vpc.nats), *(port.public_address for port in vpc.ports)} - {""}


def route_of(vpc: VpcSpec, subnet: SubnetSpec, address: str) -> RouteSpec | None:
    """The route that packets from a subnet take: the VPC's own range is routed within it, unless a closer route leads elsewhere."""
    found = best_route(subnet.routes, address)
    inside = IPv4Network(vpc.cidr)
    if address == INTERNET or IPv4Address(address) not in inside:
        return found
    is_closer = found is not None and IPv4Network(found.destination).prefixlen > inside.prefixlen
    return found if is_closer else RouteSpec(vpc.cidr, Via.LOCAL)
