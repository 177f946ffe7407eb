"""Addresses of clients as rules about networks read them."""

import ipaddress


def canonical(address: str) -> str:
    """The one form of an address; empty for what is none. IPv4 that a socket for both tells as IPv6 is IPv4: rules about its networks hold."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return ""
    return str(found.ipv4_mapped or found) if isinstance(found, ipaddress.IPv6Address) else str(found)
