"""The guard in the fabric: from each tap pass only packets with its guest's own MAC and address, and without an entry nothing passes. Pure."""

from collections.abc import Collection, Iterable
from ipaddress import IPv4Network

from portal.engines.local.network import names
from portal.engines.local.network.routing import forwarded_by
from portal.engines.network_ports import PortSpec, VpcSpec

TABLE = "atonix"
HOOK = "pre"
# The hardware address that a DHCP message is about: 28 bytes into it, after the 8 of UDP.
CLIENT = f"@th,{8 * (8 + 28)},48"


def chain(tap: str) -> str:
    """The chain of a tap."""
    return f"g_{tap}"


def render(spec: VpcSpec | None, former: Collection[str]) -> str:
    """The transaction that sets the entries of a VPC's taps and takes away those of taps that it no longer has."""
    ports = names.taps_of(spec) if spec is not None else {}
    stale = sorted(set(former) - set(ports))
    routers = ", ".join(f'"{word}"' for word in (f"{names.ROUTER_ENDS}*", f"{names.UPLINK_ENDS}*", names.HOST_END))
    lines = [
        f"table bridge {TABLE} {{",
        "  map guard { type ifname : verdict; }",
        *(f"  chain {chain(tap)} {{\n  }}" for tap in (*ports, *stale)),
        f"  chain {HOOK} {{\n    type filter hook prerouting priority -300; policy drop;\n  }}",
        "}",
        f"flush chain bridge {TABLE} {HOOK}",
        *(f"flush chain bridge {TABLE} {chain(tap)}" for tap in (*ports, *stale)),
        f"table bridge {TABLE} {{",
        f"  chain {HOOK} {{\n    iifname {{ {routers} }} accept\n    iifname vmap @guard\n  }}",
    ]
    for tap, port in ports.items():
        lines += [f"  chain {chain(tap)} {{", *(f"    {rule}" for rule in _rules(spec, port)), "  }"]
    lines.append("}")
    lines += [f'add element bridge {TABLE} guard {{ "{tap}" : goto {chain(tap)} }}' for tap in (*ports, *stale)]
    for tap in stale:
        lines += [f'delete element bridge {TABLE} guard {{ "{tap}" }}', f"delete chain bridge {TABLE} {chain(tap)}"]
    return "\n".join(lines) + "\n"


def _rules(spec: VpcSpec | None, port: PortSpec) -> list[str]:
    passed_on = forwarded_by(spec, port.port_id) if spec is not None else ()
    return [
        f"ether saddr != {port.mac} drop",
        # Whoever asks for an address asks for their own, and declines no other's; a fragment too short to say whose is none of either.
        f"ip saddr {{ 0.0.0.0, {port.address} }} udp sport 68 udp dport 67 {CLIENT} 0x{port.mac.replace(':', '')} accept",
        "udp sport 68 udp dport 67 drop",
        f"ip saddr {port.address} accept",
        *(f"ip saddr {_set(sources)} ip daddr {_set(targets)} accept" for sources, targets in passed_on),
        f"arp saddr ether {port.mac} arp saddr ip {{ 0.0.0.0, {port.address} }} accept",
        "drop",
    ]


def _set(ranges: Iterable[IPv4Network]) -> str:
    return f"{{ {', '.join(map(str, ranges))} }}"
