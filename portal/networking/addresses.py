"""The arithmetic of addresses: which ranges are accepted, which addresses of a subnet can be given away, what overlaps what.

IPv4 only. Everything here is pure; a ValueError says what is wrong in words that fit behind the name of a field.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

PRIVATE = tuple(map(IPv4Network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")))
# What no router passes on.
UNROUTED = {
    IPv4Network("0.0.0.0/8"): "which means this host itself",
    IPv4Network("127.0.0.0/8"): "which every host keeps for itself",
    IPv4Network("169.254.0.0/16"): "which is known on one link alone, as the metadata service is",
    IPv4Network("224.0.0.0/3"): "which is for multicast and reserved",
}
WIDEST, NARROWEST = 16, 28
ANYWHERE = "0.0.0.0/0"
THIS_NETWORK = IPv4Network("0.0.0.0/8")
DOTTED = re.compile(r"[0-9]{1,3}(\.[0-9]{1,3}){3}")
DOMAIN = re.compile(r"(?=.{1,253}\Z)[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*")
SHAPE = "must be an IPv4 range such as 10.0.0.0/16"
# What the first addresses of a subnet are kept for, and the last.
ROLES = ("network", "router", "name server", "future use")
RESERVED = len(ROLES) + 1


@dataclass(frozen=True, slots=True)
class Usage:
    """How many addresses of a subnet there are, can be given away, and have been."""

    total: int
    usable: int
    taken: int

    @property
    def free(self) -> int:
        """How many are left."""
        return self.usable - self.taken


def parse_address(text: str) -> IPv4Address:
    """An IPv4 address. Raises ValueError."""
    if ":" in text:
        msg = "is an IPv6 address; only IPv4 is supported here, such as 10.0.0.10"
        raise ValueError(msg)
    try:
        return IPv4Address(text)
    except ValueError:
        msg = "must be an IPv4 address such as 10.0.0.10"
        raise ValueError(msg) from None


def check_server(text: str) -> None:
    """Raise ValueError for the address of a server that can answer nobody."""
    address = parse_address(text)
    kinds = (
        (address.is_unspecified or address in THIS_NETWORK, "means no host"), (address.is_loopback, "is the asking host itself"),
        (address.is_link_local, "is on nobody's network but the asking host's own"), (address.is_multicast, "is a group of hosts"),
        (address.is_reserved, "is nobody's, or everybody's"),
    )  # fmt: skip
    if why := next((why for is_so, why in kinds if is_so), ""):
        msg = f"{text} {why}, and answers nobody; name the address of a server"
        raise ValueError(msg)


def check_domain(text: str) -> None:
    """Raise ValueError for what is no name of a domain."""
    if not DOMAIN.fullmatch(text):
        msg = f"{text[:80]} is no domain; name one such as shop.internal"
        raise ValueError(msg)


def listed(text: str) -> list[str]:
    """The values of a list that is separated by commas."""
    return [each.strip() for each in text.split(",") if each.strip()]


def parse_range(text: str) -> IPv4Network:
    """An IPv4 range in CIDR form without host bits. Raises ValueError."""
    if ":" in text:
        msg = "is an IPv6 range; only IPv4 is supported here, such as 10.0.0.0/16"
        raise ValueError(msg)
    address, slash, length = text.partition("/")
    if not slash or not DOTTED.fullmatch(address):
        raise ValueError(SHAPE)
    if not length.isascii() or not length.isdigit() or len(length) > 2 or int(length) > 32:  # noqa: PLR2004 - bits of an address
        msg = f"has the prefix length /{length[:8]}; it goes from /0 to /32"
        raise ValueError(msg)
    try:
        first = IPv4Address(address)
    except ValueError:
        raise ValueError(SHAPE) from None
    found = IPv4Network((int(first), int(length)), strict=False)
    if found.network_address != first:
        msg = f"has bits set behind its prefix; did you mean {found}?"
        raise ValueError(msg)
    return found


def parse_destination(text: str) -> IPv4Network:
    """A range to which packets can be led. Raises ValueError."""
    found = parse_range(text)
    for range_, what in UNROUTED.items():
        if found.subnet_of(range_):
            msg = f"lies in {range_}, {what}: nothing is routed there"
            raise ValueError(msg)
    return found


def parse_vpc_range(text: str) -> IPv4Network:
    """The range of a VPC: private, /16 to /28. Raises ValueError."""
    found = _sized(text)
    if not any(found.subnet_of(private) for private in PRIVATE):
        msg = f"is not private; it must lie in {', '.join(map(str, PRIVATE[:-1]))} or {PRIVATE[-1]}"
        raise ValueError(msg)
    return found


def parse_subnet_range(text: str, vpc: str, others: Iterable[str]) -> IPv4Network:
    """The range of a new subnet: /16 to /28, inside its VPC, beside the others. Raises ValueError."""
    found, outer = _sized(text), IPv4Network(vpc)
    if not found.subnet_of(outer):
        msg = f"lies outside the VPC's range {outer}"
        raise ValueError(msg)
    if other := overlapping(found, others):
        free = free_range(vpc, others, found.prefixlen)
        msg = f"overlaps the subnet {other}; " + (f"{free} is free" if free else f"no /{found.prefixlen} is free in {outer}")
        raise ValueError(msg)
    return found


def _sized(text: str) -> IPv4Network:
    found = parse_range(text)
    if not WIDEST <= found.prefixlen <= NARROWEST:
        msg = f"is a /{found.prefixlen}; from /{WIDEST} ({2 ** (32 - WIDEST):,} addresses) to /{NARROWEST} ({2 ** (32 - NARROWEST)}) are accepted"
        raise ValueError(msg)
    return found


def overlapping(one: IPv4Network, others: Iterable[str]) -> IPv4Network | None:
    """The first of the others that shares addresses with it."""
    return next((other for other in map(IPv4Network, others) if one.overlaps(other)), None)


def free_range(outer: str, taken: Iterable[str], prefix_length: int) -> IPv4Network | None:
    """The first range of this size that is in the outer one and overlaps none that is taken."""
    whole = IPv4Network(outer)
    if prefix_length < whole.prefixlen:
        return None
    size, begin, end = 2 ** (32 - prefix_length), int(whole.network_address), int(whole.broadcast_address)
    for other in sorted(map(IPv4Network, taken)):
        if begin + size <= int(other.network_address):
            break
        # Behind the one in the way, at the next multiple of the size.
        begin = max(begin, -(-(int(other.broadcast_address) + 1) // size) * size)
    return IPv4Network((begin, prefix_length)) if begin + size - 1 <= end else None


def usage(subnet: str, taken: int) -> Usage:
    """The figures of a subnet."""
    total = IPv4Network(subnet).num_addresses
    return Usage(total, total - RESERVED, taken)


def reserved(subnet: str) -> dict[str, str]:
    """Address → what it is kept for, of the addresses that nobody can have."""
    network = IPv4Network(subnet)
    return {**{str(network[number]): role for number, role in enumerate(ROLES)}, str(network.broadcast_address): "broadcast"}


def candidates(subnet: str) -> Iterator[str]:
    """The addresses that can be given away, in order."""
    network = IPv4Network(subnet)
    first, last = int(network.network_address) + len(ROLES), int(network.broadcast_address)
    return (str(IPv4Address(number)) for number in range(first, last))


def check_address(text: str, subnet: str) -> str:
    """An address that somebody wants in a subnet. Raises ValueError where nobody can have it."""
    address, network = parse_address(text), IPv4Network(subnet)
    if address not in network:
        msg = f"lies outside the subnet's range {network}"
        raise ValueError(msg)
    if role := reserved(subnet).get(str(address)):
        msg = f"is kept for: {role}. In {network} {network[len(ROLES)]} to {network[-2]} can be had"
        raise ValueError(msg)
    return str(address)
