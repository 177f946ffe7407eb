"""Addresses of clients in one form, whatever socket or proxy tells them."""

from functools import lru_cache
from ipaddress import IPv6Address, ip_address


@lru_cache(maxsize=1024)
def canonical(address: str) -> str:
    """The address as rules write it, an IPv4 address in IPv6 as the one that it is; empty for what is none."""
    try:
        found = ip_address(address)
    except ValueError:
        return ""
    return str((found.ipv4_mapped or found) if isinstance(found, IPv6Address) else found)
