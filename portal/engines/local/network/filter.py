"""A router's rules as nft reads them: one table, loaded as one transaction, with counters that outlive changes.

Sender and receiver decide one after the other: what the sender's groups let out, with the address that it knows, comes to the receiver's, after
translation, with the address that it will see. Which guest sends is known by its MAC, which the guard in the fabric has checked; who receives, by where
the packet is routed next. Pure.
"""

from collections.abc import Collection, Iterable, Iterator
from ipaddress import IPv4Network

from portal.engines.local.network import names
from portal.engines.local.network.routing import covers, led
from portal.engines.network_checks import router_address
from portal.engines.network_ports import LIMITS, Bound, Direction, GroupSpec, IpProtocol, RuleSpec, SubnetSpec, Via, VpcSpec

TABLE = "atonix"
METADATA = "169.254.169.254"
LOG_GROUP = 5
ACCEPTED, REFUSED = "accepted", "refused"
# More connections than these are not noted: a scan must not keep the host busy.
LOG_RATE = "200/second burst 400 packets"
LOG_BYTES = 64
# A guest that has more connections than these begins no further ones: all of a VPC's are gone through after each change. From outside and over
# peerings one caller has so many to a guest, and all of them together no more than a guest may be called.
MOST_CONNECTIONS, MOST_OF_A_CALLER, MOST_CALLED = LIMITS[Bound.BEGUN], LIMITS[Bound.CALLER], LIMITS[Bound.CALLED]
# Which guests were concerned lately.
KEPT_MINUTES, MOST_KEPT = 10, 4096
ANYWHERE = "0.0.0.0/0"
LINK_LOCAL = "169.254.0.0/16"
INNER, PEERS, NATS = (f'"{word}*"' for word in (names.SUBNETS, names.PEERINGS, names.NATS))
# What the router itself says.
OWN = 1
OUTER = f'"{names.UPLINK}", "{names.NATS}*", {PEERS}'
OUTSIDE = f'{{ "{names.UPLINK}", "{names.NATS}*" }}'
SETS = {"owners": "ether_addr . ipv4_addr", "outward": "ipv4_addr", "ours": "ipv4_addr"}
MAPS = {
    "senders": "ether_addr : verdict", "receivers": "ipv4_addr : verdict", "floating": "ifname . ipv4_addr : ipv4_addr",
    "public": "ipv4_addr : ipv4_addr",
}  # fmt: skip
COUNTED = {"busy": "ether_addr", "called": "ipv4_addr", "callers": "ipv4_addr . ipv4_addr"}
HOOKS = {
    "sent": "filter hook forward priority -10; policy drop", "received": "filter hook postrouting priority 150; policy drop",
    "own": "filter hook output priority 0; policy accept", "noted": "filter hook postrouting priority 160; policy accept",
    "toward": "filter hook input priority 0; policy drop", "translate": "nat hook prerouting priority -100; policy accept",
    "translated": "nat hook postrouting priority 100; policy accept", "leaving": "filter hook postrouting priority 200; policy accept",
}  # fmt: skip
# What refers to others goes before them.
ORDER = ("chain", "set", "counter")
ANSWERS = "ct state vmap { established : accept, related : accept, invalid : drop }"


def counter(rule_id: str) -> str:
    """The counter of a rule."""
    return f"c_{names.short(rule_id)}"


def over(bound: Bound) -> str:
    """The chain, the counter and the set of a bound of connections: what it refused, and whose."""
    return f"over_{bound.value}"


def members(group_id: str) -> str:
    """The set with the addresses of a group's members."""
    return f"g_{names.short(group_id)}"


def _chain(group_id: str, direction: Direction) -> str:
    return f"{'i' if direction is Direction.INGRESS else 'o'}_{names.short(group_id)}"


def _combination(group_ids: Iterable[str], direction: Direction) -> str:
    return f"{'pi' if direction is Direction.INGRESS else 'po'}_{names.short(' '.join(sorted(set(group_ids))))}"


def objects(spec: VpcSpec) -> set[tuple[str, str]]:
    """Kind and name of everything in the table that a later state may no longer have."""
    found = {("counter", counter(rule.rule_id)) for group in spec.groups for rule in group.rules}
    for group in spec.groups:
        found |= {("set", members(group.group_id)), *(("chain", _chain(group.group_id, direction)) for direction in Direction)}
    return found | {("chain", _combination(port.group_ids, direction)) for port in spec.ports for direction in Direction}


def chains(known: Iterable[tuple[str, str]]) -> set[str]:
    """The names of all chains of the table, with those among `known` objects."""
    return {name for kind, name in known if kind == "chain"} | {"refuse", *HOOKS, *map(over, Bound)}


def render(spec: VpcSpec, former: Collection[tuple[str, str]], host: str) -> str:
    """The transaction that makes the table so, whatever it was; `former` are objects that may be left, `host` is the host's address outside."""
    wanted = objects(spec)
    stale = sorted(set(former) - wanted, key=lambda each: (ORDER.index(each[0]), each[1]))
    there = {kind: sorted(name for each, name in wanted | set(stale) if each == kind) for kind in ORDER}
    bounds = [over(bound) for bound in Bound]
    chains = [*there["chain"], "refuse", *bounds]
    return "\n".join(
        [
            f"table inet {TABLE} {{",
            *(f"  counter {name} {{ }}" for name in (*there["counter"], "refused", *bounds)),
            *(f"  set {name} {{ type ipv4_addr; }}" for name in there["set"]),
            *(f"  set {name} {{ type {kind}; }}" for name, kind in SETS.items()),
            *(f"  map {name} {{ type {kind}; }}" for name, kind in MAPS.items()),
            # The kernel counts in it from change to change.
            *(f"  set {name} {{ type {kind}; size 65535; flags dynamic; }}" for name, kind in COUNTED.items()),
            *(f"  set {name} {{ type ipv4_addr; size {MOST_KEPT}; flags dynamic,timeout; timeout {KEPT_MINUTES}m; }}" for name in bounds),
            *(f"  chain {name} {{\n  }}" for name in chains),
            *(f"  chain {name} {{\n    type {hook};\n  }}" for name, hook in HOOKS.items()),
            "}",
            *(f"flush map inet {TABLE} {name}" for name in MAPS),
            *(f"flush set inet {TABLE} {name}" for name in (*SETS, *there["set"])),
            *(f"flush chain inet {TABLE} {name}" for name in (*chains, *HOOKS)),
            *(f"delete {kind} inet {TABLE} {name}" for kind, name in stale),
            f"table inet {TABLE} {{",
            *_groups(spec.groups),
            *_combinations(spec),
            *_fixed(spec, host),
            "}",
            *_elements(spec),
            "",
        ]
    )


def _block(name: str, rules: Iterable[str]) -> Iterator[str]:
    yield f"  chain {name} {{"
    yield from (f"    {rule}" for rule in rules)
    yield "  }"


def _groups(groups: Iterable[GroupSpec]) -> Iterator[str]:
    for group in groups:
        for direction in Direction:
            yield from _block(_chain(group.group_id, direction), (_rule(rule) for rule in group.rules if rule.direction is direction))


def _rule(rule: RuleSpec) -> str:
    # What a guest sends to a floating address of its own VPC is judged by the address that it knows.
    side = "ip saddr" if rule.direction is Direction.INGRESS else "ct original ip daddr"
    where = f"{side} @{members(rule.group_id)} " if rule.group_id else f"{side} {rule.cidr} " if rule.cidr != ANYWHERE else ""
    return f'{where}{_what(rule)}counter name "{counter(rule.rule_id)}" accept'


def _what(rule: RuleSpec) -> str:
    match rule.protocol:
        case IpProtocol.ALL:
            return ""
        case IpProtocol.ICMP:
            return "meta l4proto icmp " if rule.icmp_type is None else f"icmp type {rule.icmp_type} "
    if rule.from_port is None:
        return f"meta l4proto {rule.protocol.value} "
    return (
        f"{rule.protocol.value} dport {rule.from_port}-{rule.to_port} "
        if rule.from_port != rule.to_port
        else f"{rule.protocol.value} dport {rule.to_port} "
    )


def _combinations(spec: VpcSpec) -> Iterator[str]:
    for groups in sorted({tuple(sorted(set(port.group_ids))) for port in spec.ports}):
        for direction in Direction:
            yield from _block(_combination(groups, direction), [*(f"jump {_chain(each, direction)}" for each in groups), "goto refuse"])


def _log(word: str) -> str:
    return f'limit rate {LOG_RATE} log prefix "{word}" group {LOG_GROUP} snaplen {LOG_BYTES} queue-threshold 1'


def _fixed(spec: VpcSpec, host: str) -> Iterator[str]:
    yield from _block("refuse", [*([_log(REFUSED)] if spec.flow_log else []), 'counter name "refused" drop'])
    for bound in Bound:
        whose = "saddr" if bound is Bound.BEGUN else "daddr"
        yield from _block(over(bound), [f'counter name "{over(bound)}" add @{over(bound)} {{ ip {whose} }} goto refuse'])
    yield from _block("sent", _sent(spec, host))
    yield from _block("received", _received(spec))
    yield from _block("own", [f"meta mark set {OWN}"])
    yield from _block("noted", [f"ct state new meta mark != {OWN} {_log(ACCEPTED)}"] if spec.flow_log else [])
    yield from _block("toward", _toward(spec))
    yield from _block("translate", ["dnat ip to iifname . ip daddr map @floating"])
    yield from _block("translated", _translated(spec))
    # Nothing leaves with an address that means something in here only, nor with somebody else's.
    yield from _block("leaving", [f"oifname {OUTSIDE} ip saddr != @ours drop"])


def _sent(spec: VpcSpec, host: str) -> Iterator[str]:
    # Who is called by a floating address answers by the internet gateway, not with a NAT gateway's address, nor over a peering.
    yield f"oifname {{ {NATS}, {PEERS} }} ct status dnat goto refuse"
    yield ANSWERS
    yield f"iifname {INNER} add @busy {{ ether saddr ct count over {MOST_CONNECTIONS} }} goto {over(Bound.BEGUN)}"
    yield f"iifname {OUTSIDE} ip saddr {spec.cidr} drop"
    for subnet in spec.subnets:
        # From outside comes only whom the subnet would answer by the internet gateway: nobody there sends as a peer, or as what lies behind a guest.
        back = [part for parts in led(spec, subnet, Via.INTERNET).values() for part in parts]
        others = f"ip saddr != {{ {', '.join(map(str, back))} }} " if back else ""
        yield f'iifname {OUTSIDE} oifname "{names.subnet_side(subnet)}" {others}drop'
    yield f"iifname {{ {OUTER} }} add @callers {{ ip saddr . ip daddr ct count over {MOST_OF_A_CALLER} }} goto {over(Bound.CALLER)}"
    yield f"iifname {{ {OUTER} }} add @called {{ ip daddr ct count over {MOST_CALLED} }} goto {over(Bound.CALLED)}"
    yield f"iifname {OUTSIDE} ct status dnat accept"
    for subnet in spec.subnets:
        # From a peer comes only who would be answered over the same peering.
        for peering_id, ranges in led(spec, subnet, Via.PEERING).items():
            way = f'iifname "{names.peering_side(peering_id)}" oifname "{names.subnet_side(subnet)}"'
            yield f"{way} ip saddr {{ {', '.join(map(str, ranges))} }} accept"
    if not spec.shared_nat:
        # Without an address of one's own there is no way out, nor back in by another's.
        yield f'iifname {INNER} oifname "{names.UPLINK}" ip saddr != @outward goto refuse'
        for subnet in spec.subnets:
            if outer := [each for each in _public(spec).values() if _leads(spec, subnet, each) is Via.INTERNET]:
                near = f'iifname "{names.subnet_side(subnet)}" ct status dnat'
                yield f"{near} ct original ip daddr {{ {', '.join(outer)} }} ip saddr != @outward goto refuse"
    yield f"iifname {INNER} oifname {OUTSIDE} ip daddr {{ {host}, {LINK_LOCAL} }} goto refuse"
    yield f"iifname {INNER} ether saddr vmap @senders"


def _received(spec: VpcSpec) -> Iterator[str]:
    yield ANSWERS
    yield f"meta mark {OWN} accept"
    yield f"oifname {INNER} rt ip nexthop vmap @receivers"
    yield f"oifname {OUTSIDE} accept"
    # The other router believes this one: it passes on what its own guests send, and nothing else.
    yield f"oifname {PEERS} ip saddr {spec.cidr} accept"


def _toward(spec: VpcSpec) -> Iterator[str]:
    """What guests may ask of their router: an address, names, who they are, and whether it is there."""
    yield ANSWERS
    yield 'iifname "lo" accept'
    yield f"iifname {INNER} udp sport 68 udp dport 67 accept"
    yield f"iifname {INNER} ether saddr . ip saddr != @owners drop"
    if spec.subnets:
        routers = ", ".join(str(router_address(subnet)) for subnet in spec.subnets)
        yield f"iifname {INNER} ip daddr {{ {routers} }} meta l4proto {{ tcp, udp }} th dport 53 accept"
        yield f"iifname {INNER} ip daddr {{ {routers} }} icmp type echo-request accept"
    yield f"iifname {INNER} ip daddr {METADATA} tcp dport 80 accept"


def _translated(spec: VpcSpec) -> Iterator[str]:
    """Source addresses on the way out; and on the way back in by a floating address, which is as if it had come from outside."""
    hairpin = f"oifname {INNER} ct status dnat ip saddr {spec.cidr}"
    for nat in spec.nats:
        yield f'oifname "{names.nat_side(nat)}" ip saddr {spec.cidr} snat ip to {nat.public_address}'
        for subnet in spec.subnets:
            if outer := [each for each in _public(spec).values() if covers(spec, subnet, IPv4Network(each)).target_id == nat.nat_id]:
                near = f"oifname {INNER} ct status dnat ip saddr {subnet.cidr}"
                yield f"{near} ct original ip daddr {{ {', '.join(outer)} }} snat ip to {nat.public_address}"
    yield f'oifname "{names.UPLINK}" snat ip to ip saddr map @public'
    yield f"{hairpin} snat ip to ip saddr map @public"
    if spec.shared_nat and spec.uplink_address:
        yield f'oifname "{names.UPLINK}" ip saddr {spec.cidr} snat ip to {spec.uplink_address}'
        yield f"{hairpin} snat ip to {spec.uplink_address}"


def _elements(spec: VpcSpec) -> Iterator[str]:
    yield from _element("owners", (f"{port.mac} . {port.address}" for port in spec.ports))
    yield from _element("senders", (f"{port.mac} : goto {_combination(port.group_ids, Direction.EGRESS)}" for port in spec.ports))
    yield from _element("receivers", (f"{port.address} : goto {_combination(port.group_ids, Direction.INGRESS)}" for port in spec.ports))
    for group in spec.groups:
        yield from _element(members(group.group_id), (port.address for port in spec.ports if group.group_id in port.group_ids))
    public = _public(spec)
    yield from _element("outward", public)
    own = [*public.values(), *(nat.public_address for nat in spec.nats), *([spec.uplink_address] if spec.uplink_address else [])]
    yield from _element("ours", own)
    yield from _element("public", (f"{inner} : {outer}" for inner, outer in public.items()))
    yield from _element("floating", (f'"{door}" . {outer} : {inner}' for inner, outer in public.items() for door in _doors(spec, inner, outer)))


def _public(spec: VpcSpec) -> dict[str, str]:
    """Floating addresses by the address that they lead to; without a way out there are none."""
    return {port.address: port.public_address for port in spec.ports if port.public_address} if spec.uplink_address else {}


def _leads(spec: VpcSpec, subnet: SubnetSpec, address: str) -> Via:
    return covers(spec, subnet, IPv4Network(address)).via


def _doors(spec: VpcSpec, inner: str, outer: str) -> Iterator[str]:
    """Interfaces through which a floating address is reached: the uplink, and subnets whose packets to it would leave, if answers would too."""
    yield names.UPLINK
    homes = {subnet.subnet_id: subnet for subnet in spec.subnets}
    home = next(homes[port.subnet_id] for port in spec.ports if port.address == inner)
    if _leads(spec, home, outer) is Via.INTERNET:
        for subnet in spec.subnets:
            if _leads(spec, subnet, outer) in {Via.INTERNET, Via.NAT}:
                yield names.subnet_side(subnet)


def _element(name: str, values: Iterable[str]) -> Iterator[str]:
    text = ", ".join(values)
    if text:
        yield f"add element inet {TABLE} {name} {{ {text} }}"
