"""What the portal asks of whatever makes networks: one desired state per VPC, and one per peering between two.

As in `ports`: frozen dataclasses, units in names, `ensure_*` and `remove_*` may be called again at any time. A VPC's state is whole: what it does
not name (a subnet, a port, a route) is to be gone after `ensure_vpc`. Addresses are IPv4 in text, CIDRs have no host bits.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from portal.engines.ports import Capability


class Direction(StrEnum):
    """Seen from the guest."""

    INGRESS = "ingress"
    EGRESS = "egress"


class IpProtocol(StrEnum):
    """Protocols that rules name; ALL is every protocol."""

    TCP = "tcp"
    UDP = "udp"
    ICMP = "icmp"
    ALL = "-1"


@dataclass(frozen=True, slots=True)
class RuleSpec:
    """What a security group lets through: a protocol, ports or an ICMP type (None: any), to or from a CIDR or the members of a group, exactly one."""

    rule_id: str
    direction: Direction
    protocol: IpProtocol
    from_port: int | None = None
    to_port: int | None = None
    icmp_type: int | None = None
    cidr: str = ""
    group_id: str = ""


@dataclass(frozen=True, slots=True)
class GroupSpec:
    """A security group: what any rule lets through passes, everything else does not. Answers to what passed always pass."""

    group_id: str
    rules: Sequence[RuleSpec] = ()


class Via(StrEnum):
    """Where a route leads. BLACKHOLE is a route whose target is gone."""

    LOCAL = "local"
    INTERNET = "internet-gateway"
    NAT = "nat-gateway"
    PEERING = "vpc-peering"
    INTERFACE = "network-interface"
    BLACKHOLE = "blackhole"


@dataclass(frozen=True, slots=True)
class RouteSpec:
    """A route of a subnet's table; the longest prefix wins. `target_id` is the NAT gateway, peering or port; empty for LOCAL and INTERNET.

    Without a route for the VPC's own range, that is LOCAL. A closer one than that may lead to an INTERFACE, whose guest then passes packets on: its
    groups' rules hold for them as well. A peering that is not there, or a gateway of a VPC without uplink, is a BLACKHOLE.
    """

    destination: str
    via: Via
    target_id: str = ""


@dataclass(frozen=True, slots=True)
class SubnetSpec:
    """A subnet; its first usable address is the router, which is also name server and, as 169.254.169.254, the metadata service."""

    subnet_id: str
    cidr: str
    routes: Sequence[RouteSpec] = ()


@dataclass(frozen=True, slots=True)
class GuestData:
    """What the metadata service tells the one guest behind a port."""

    instance_id: str
    hostname: str
    ssh_public_keys: Sequence[str] = ()
    user_data: str = ""
    public_address: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PortSpec:
    """A network interface: its guest sends from this MAC and address alone. The rules of all its groups hold; without a group nothing passes.

    `public_address` is a floating address that leads here (1:1 NAT), or empty; its subnet needs a route to the internet gateway. Guests of the same VPC
    reach it as from outside: the sender's rules see the floating address, the receiver's rules the sender's public one. `names` are what its address
    is called in the VPC's DNS; one without a dot is in the VPC's domain. Its guest is told a router by DHCP only at its primary one: what leaves by
    another one with the first one's address does not pass.
    """

    port_id: str
    subnet_id: str
    mac: str
    address: str
    group_ids: Sequence[str] = ()
    public_address: str = ""
    names: Sequence[str] = ()
    guest: GuestData | None = None
    is_primary: bool = True


@dataclass(frozen=True, slots=True)
class NatSpec:
    """A NAT gateway: what is routed to it leaves with this public address."""

    nat_id: str
    public_address: str


@dataclass(frozen=True, slots=True)
class VpcSpec:
    """All of one VPC.

    `uplink_address` is its own address on the external network, empty where it has no internet gateway. With `shared_nat`, guests without a
    public address that are routed to the internet gateway leave with the uplink's address; without it they do not leave. `dns_servers` are asked for
    names outside the VPC's domain, by its own name server, which guests always ask; empty: those of the host. With their addresses guests are told the
    `search_domains` (the VPC's own, if there are none), the `ntp_servers`, and the `mtu` in bytes, if it is not 0.
    """

    vpc_id: str
    cidr: str
    domain: str
    subnets: Sequence[SubnetSpec] = ()
    groups: Sequence[GroupSpec] = ()
    ports: Sequence[PortSpec] = ()
    nats: Sequence[NatSpec] = ()
    uplink_address: str = ""
    shared_nat: bool = True
    dns_names: bool = True
    dns_servers: Sequence[str] = ()
    search_domains: Sequence[str] = ()
    ntp_servers: Sequence[str] = ()
    mtu: int = 0
    flow_log: bool = False


@dataclass(frozen=True, slots=True)
class PeeringSpec:
    """A link between the routers of two VPCs whose CIDRs do not overlap; only routes that name it lead over it.

    Guests find the names of the other VPC, in full, as long as both VPCs have names.
    """

    peering_id: str
    vpc_ids: tuple[str, str]


@dataclass(frozen=True, slots=True)
class Flow:
    """A connection that was seen beginning, sampled: accepted, or refused with the port at which it was. Ports are 0 where the protocol has none."""

    at_s: float
    vpc_id: str
    accepted: bool
    protocol: str
    source: str
    source_port: int
    destination: str
    destination_port: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Drift:
    """Something of a VPC that is not as it was last ensured, in words for the reconciler's event."""

    vpc_id: str
    what: str


def tap_name(port_id: str) -> str:
    """The tap device of a port, named alike by every engine; a name of an interface has at most 15 characters."""
    return "t" + hashlib.sha256(port_id.encode()).hexdigest()[:12]


class Bound(StrEnum):
    """A bound of connections at a time: those that a guest begins, those of one caller to a guest, those of all callers to a guest."""

    BEGUN = "begun"
    CALLER = "caller"
    CALLED = "called"


# How many connections there may be.
LIMITS: Mapping[Bound, int] = {Bound.BEGUN: 8192, Bound.CALLER: 1024, Bound.CALLED: 16384}


@dataclass(frozen=True, slots=True)
class Refusals:
    """What bounds of connections have refused in a VPC: packets by bound since its router is there, and the guests' addresses concerned lately."""

    packets: Mapping[Bound, int] = field(default_factory=dict)
    addresses: Mapping[Bound, Sequence[str]] = field(default_factory=dict)


def no_beat() -> None:
    """Nobody waits for signs of life."""


class NetworkEngine(Protocol):
    """Makes networks on one host. Called by workers only; safe to call from several threads."""

    def capability(self) -> Capability:
        """Say whether networks can be made here; never raises."""
        ...

    def ensure_vpc(self, spec: VpcSpec) -> None:
        """Make the VPC exactly so, or change what differs, without breaking established connections that stay allowed. Raises EngineError."""
        ...

    def remove_vpc(self, vpc_id: str) -> None:
        """Remove a VPC with everything in it, its peerings' ends included."""
        ...

    def ensure_peering(self, spec: PeeringSpec) -> None:
        """Link two VPCs that are there. Raises EngineError."""
        ...

    def remove_peering(self, peering_id: str) -> None:
        """Unlink."""
        ...

    def rule_hits(self, vpc_id: str) -> Mapping[str, int]:
        """How many connections each rule has let through since it was first made; empty for a VPC that is not there."""
        ...

    def refusals(self, vpc_id: str) -> Refusals:
        """What bounds of connections have refused; nothing for a VPC that is not there."""
        ...

    def tap_of(self, port_id: str) -> str:
        """Name of the tap device of a port, to which the hypervisor connects the guest; the same for the same id."""
        ...

    def drift(self, beat: Callable[[], None] = no_beat) -> Sequence[Drift]:
        """What is missing or different on the host from what was ensured last: bridges, rules, addresses, name servers. `ensure_vpc` heals it.

        Before each VPC that is looked at, `beat` is called.
        """
        ...

    def vpcs(self) -> Sequence[str]:
        """Every VPC that the portal made on this host."""
        ...

    def flows(self) -> Sequence[Flow]:
        """Connections seen since the last call, of VPCs whose flow log is on; the oldest are dropped when there are too many."""
        ...

    def close(self) -> None:
        """Let go; networks, names and guests' traffic go on, metadata with the next call of `ensure_vpc` or `drift` by any process."""
        ...
