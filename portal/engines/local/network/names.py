"""What things are called on the host: short, the same for the same id, and never another installation's."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from portal.engines.network_ports import NatSpec, PortSpec, SubnetSpec, VpcSpec, tap_name

RUN = Path("/run/netns")
# Inside a router: its way out, one interface per subnet, per NAT gateway and per peering.
UPLINK = "up"
SUBNETS, NATS, PEERINGS = "s", "n", "p"
# Inside the fabric: bridges, ports of guests, ends of routers, ends of their uplinks, and the host's.
EXTERNAL_BRIDGE, HOST_END = "ext", "xhost"
BRIDGES, TAPS, ROUTER_ENDS, UPLINK_ENDS = "b", "t", "r", "u"
HOST_LINKS = "atx"
LENGTH = 12


def short(identifier: str) -> str:
    """A word of 12 hexadecimal digits for an id; an interface's name has room for it."""
    return hashlib.sha256(identifier.encode()).hexdigest()[:LENGTH]


def mac(*words: str) -> str:
    """A MAC that is the same whenever the link is made again: neighbours remember it."""
    digits = short(" ".join(words))[:10]
    return ":".join(("0a", *(digits[place : place + 2] for place in range(0, len(digits), 2))))


def bridge(subnet: SubnetSpec) -> str:
    """The bridge of a subnet."""
    return BRIDGES + short(subnet.subnet_id)


def router_end(subnet: SubnetSpec) -> str:
    """The bridge's side of the link between a subnet and its router."""
    return ROUTER_ENDS + short(subnet.subnet_id)


def subnet_side(subnet: SubnetSpec) -> str:
    """The router's interface in a subnet."""
    return SUBNETS + short(subnet.subnet_id)


def nat_side(nat: NatSpec) -> str:
    """The router's interface that a NAT gateway sends through."""
    return NATS + short(nat.nat_id)


def peering_side(peering_id: str) -> str:
    """The interface of either router of a peering."""
    return PEERINGS + short(peering_id)


def uplink_end(identifier: str) -> str:
    """The external bridge's side of an uplink, of a VPC's own or of a NAT gateway's."""
    return UPLINK_ENDS + short(identifier)


@dataclass(frozen=True, slots=True)
class Installation:
    """The names of one installation of the portal; `folder` is what its own processes have on their command lines."""

    word: str
    folder: str = ""

    @property
    def fabric(self) -> str:
        """The namespace with all bridges and taps."""
        return f"atonix-{self.word}"

    def router(self, vpc_id: str) -> str:
        """The namespace of a VPC's router."""
        return f"{self.fabric}-{short(vpc_id)}"

    @property
    def host_link(self) -> str:
        """The host's own interface on the external network."""
        return f"{HOST_LINKS}{self.word[:LENGTH]}"

    @property
    def host_table(self) -> str:
        """The host's own nftables table."""
        return f"atonix_net_{self.word}"


def path_of(namespace: str) -> Path:
    """Where a named namespace can be opened."""
    return RUN / namespace


def taps_of(spec: VpcSpec) -> dict[str, PortSpec]:
    """The taps of a VPC with their ports."""
    return {tap_name(port.port_id): port for port in spec.ports}


def links_of(spec: VpcSpec) -> set[str]:
    """Every link that a VPC has in the fabric."""
    found = set(taps_of(spec))
    for subnet in spec.subnets:
        found |= {bridge(subnet), router_end(subnet)}
    return found | {uplink_end(nat.nat_id) for nat in spec.nats} | ({uplink_end(spec.vpc_id)} if spec.uplink_address else set())
