"""Rules of security groups: what makes one sound, what it says in plain language, the usual ones by name, and which open a door to the world."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Network

from portal.engines.network_ports import Direction, IpProtocol, RuleSpec
from portal.networking.addresses import ANYWHERE, PRIVATE, parse_address, parse_range

HIGHEST_PORT = 65_535
HIGHEST_TYPE = 255
ECHO = 8
# Ports behind which a whole machine or database lies.
ADMIN_PORTS: Mapping[int, str] = {
    22: "SSH", 23: "Telnet", 445: "SMB", 1433: "SQL Server", 2375: "Docker", 2376: "Docker with TLS", 3306: "MySQL", 3389: "RDP", 5432: "PostgreSQL",
    5900: "VNC", 5985: "WinRM", 5986: "WinRM with TLS", 6379: "Redis", 6443: "Kubernetes", 9200: "Elasticsearch", 11211: "Memcached", 27017: "MongoDB",
}  # fmt: skip
# Who lets in as much as this of what is not private lets the world in, be it in parts.
WORLDLY = 8
SERVICES: Mapping[tuple[str, int], str] = {
    **{("tcp", port): name for port, name in ADMIN_PORTS.items()}, ("tcp", 80): "HTTP", ("tcp", 443): "HTTPS", ("tcp", 53): "DNS", ("udp", 53): "DNS",
}  # fmt: skip
TYPES: Mapping[int, str] = {0: "echo reply", 3: "destination unreachable", ECHO: "ping", 11: "time exceeded"}


@dataclass(frozen=True, slots=True)
class Template:
    """Rules under a name; from whom they let in is said when they are used."""

    name: str
    label: str
    rules: Sequence[RuleSpec]


def _tcp(*ports: int) -> list[RuleSpec]:
    return [RuleSpec("", Direction.INGRESS, IpProtocol.TCP, port, port) for port in ports]


PING = RuleSpec("", Direction.INGRESS, IpProtocol.ICMP, icmp_type=ECHO)
TEMPLATES: Mapping[str, Template] = {
    template.name: template
    for template in (
        Template("ssh", "SSH", _tcp(22)),
        Template("http", "HTTP", _tcp(80)),
        Template("https", "HTTPS", _tcp(443)),
        Template("web", "Web server: HTTP and HTTPS", _tcp(80, 443)),
        Template("postgresql", "PostgreSQL", _tcp(5432)),
        Template("mysql", "MySQL", _tcp(3306)),
        Template("database", "Database: PostgreSQL and MySQL", _tcp(5432, 3306)),
        Template("rdp", "RDP", _tcp(3389)),
        Template("dns", "DNS", [*_tcp(53), RuleSpec("", Direction.INGRESS, IpProtocol.UDP, 53, 53)]),
        Template("ping", "Ping", [PING]),
    )
}


def check(rule: RuleSpec) -> RuleSpec:
    """The rule as it is kept. Raises ValueError with (field, what is wrong)."""
    rule = _checked_ports(rule)
    if bool(rule.cidr) == bool(rule.group_id):
        raise ValueError("cidr", "or referenced_group is needed, exactly one of them: with whom the rule allows to talk.")
    if rule.cidr:
        try:
            return replace(rule, cidr=str(parse_range(rule.cidr)))
        except ValueError as error:
            raise ValueError("cidr", f"{error}.") from None
    return rule


def _checked_ports(rule: RuleSpec) -> RuleSpec:
    low, high = rule.from_port, rule.to_port
    if rule.protocol not in {IpProtocol.TCP, IpProtocol.UDP}:
        for name, port in (("from_port", low), ("to_port", high)):
            if port is not None:
                raise ValueError(name, f"is only for tcp and udp; {'icmp has icmp_type' if rule.protocol is IpProtocol.ICMP else 'all protocols'}.")
        return _checked_type(rule)
    if rule.icmp_type is not None:
        raise ValueError("icmp_type", f"is only for icmp, not {rule.protocol.value}.")
    if low is None and high is None:
        raise ValueError("from_port", "is required for tcp and udp: 0 to 65535 is every port.")
    low, high = (high if low is None else low), (low if high is None else high)
    for name, port in (("from_port", low), ("to_port", high)):
        if port is None or not 0 <= port <= HIGHEST_PORT:
            raise ValueError(name, f"must be from 0 to {HIGHEST_PORT}, not {port}.")
    if low is not None and high is not None and low > high:
        raise ValueError("to_port", f"must not be lower than from_port: {low} to {high} is no range.")
    return replace(rule, from_port=low, to_port=high)


def _checked_type(rule: RuleSpec) -> RuleSpec:
    if rule.icmp_type is not None and rule.protocol is not IpProtocol.ICMP:
        raise ValueError("icmp_type", "is only for icmp.")
    if rule.icmp_type is not None and not 0 <= rule.icmp_type <= HIGHEST_TYPE:
        raise ValueError("icmp_type", f"must be from 0 to {HIGHEST_TYPE}, not {rule.icmp_type}.")
    return rule


def peer(text: str) -> tuple[str, str]:
    """(range, group) that a text names, one of them empty: `anywhere`, an address, a range, else a group. Raises ValueError."""
    if text.casefold() == "anywhere":
        return ANYWHERE, ""
    if ":" not in text and ("." not in text or set(text) - set("0123456789./")):
        return "", text
    return str(parse_range(text if "/" in text or ":" in text else f"{parse_address(text)}/32")), ""


def fingerprint(rule: RuleSpec) -> str:
    """What two rules of a group that say the same have in common."""
    return f"{rule.direction.value} {rule.protocol.value} {rule.from_port} {rule.to_port} {rule.icmp_type} {rule.cidr or rule.group_id}"


def covers(rule: RuleSpec, protocol: str, port: int | None) -> bool:
    """Whether a rule is about this protocol and this port, or ICMP type; whom it is about is another question."""
    if rule.protocol is IpProtocol.ALL:
        return True
    if rule.protocol.value != protocol:
        return False
    if rule.protocol is IpProtocol.ICMP:
        return rule.icmp_type is None or rule.icmp_type == port
    return rule.from_port is None or (port is not None and rule.from_port <= port <= (rule.to_port if rule.to_port is not None else rule.from_port))


def what(rule: RuleSpec) -> str:
    """Which traffic a rule is about, in words."""
    if rule.protocol is IpProtocol.ALL:
        return "everything"
    if rule.protocol is IpProtocol.ICMP:
        return "ICMP of every type" if rule.icmp_type is None else traffic("icmp", rule.icmp_type)
    if rule.from_port is None or (rule.from_port == 0 and rule.to_port == HIGHEST_PORT):
        return f"every {rule.protocol.value.upper()} port"
    if rule.from_port == rule.to_port:
        return traffic(rule.protocol.value, rule.from_port)
    return f"{rule.protocol.value.upper()} ports {rule.from_port} to {rule.to_port}"


def traffic(protocol: str, port: int | None) -> str:
    """A protocol and port in words, such as `SSH (TCP port 22)`."""
    if protocol == "icmp":
        if port is None:
            return "ICMP"
        return f"ICMP type {port} ({TYPES[port]})" if port in TYPES else f"ICMP type {port}"
    text = f"{protocol.upper()} port {port}"
    name = SERVICES.get((protocol, port or 0))
    return f"{name} ({text})" if name else text


def sentence(rule: RuleSpec, names: Mapping[str, str] | None = None) -> str:
    """The rule in plain language; `names` are what groups are called."""
    whom = "anywhere" if rule.cidr == ANYWHERE else rule.cidr or f"members of {(names or {}).get(rule.group_id, rule.group_id)}"
    return f"Lets {what(rule)} {'in from' if rule.direction is Direction.INGRESS else 'out to'} {whom}."


def warning(rule: RuleSpec) -> str:
    """What is dangerous about a rule; empty where nothing is."""
    if rule.direction is not Direction.INGRESS or not rule.cidr or not _is_worldly(IPv4Network(rule.cidr)):
        return ""
    open_ports = [name for port, name in ADMIN_PORTS.items() if covers(rule, "tcp", port)]
    if not open_ports:
        return ""
    shown = ", ".join(open_ports) if len(open_ports) < len(ADMIN_PORTS) else "every port, also those of administrators and databases,"
    whom = "the whole internet" if rule.cidr == ANYWHERE else f"a large part of the internet ({rule.cidr})"
    return f"Opens {shown} to {whom}. Let only the addresses in that need it."


def _is_worldly(network: IPv4Network) -> bool:
    return network.prefixlen <= WORLDLY and network not in PRIVATE
