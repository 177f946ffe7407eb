"""The drawing of a VPC: where each box and line is, as SVG has it. Subnets hang from the router in columns; one with many things in it folds.

The same as a list stands beside it: for those who do not see, and for small screens.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from portal.networking.view import Node, Topology

WIDTH, MARGIN = 1010, 8
OUTSIDE, GATE = 140, 150
LEFT, FIRST_ZONE = 166, 370
ZONE, GAP, COLUMNS = 194, 18, 3
BOX, STEP, HEAD = 40, 46, 34
# The router: a line down beside the gateways, and one above all columns of subnets.
SPINE, TRUNK, TOP = 340, 66, 84
GATES, GATE_STEP = 76, 58
SHOWN, SHOWN_OF_MANY, MANY_ZONES = 6, 4, 9
LONGEST, TAIL, SHORT_NAME = 17, 6, 14
# Below its box.
ROUTER = 48
LISTED = 12
PAGES: Mapping[str, str] = {
    "instance": "/compute/instances", "network-interface": "/networking/network-interfaces", "subnet": "/networking/subnets",
    "nat-gateway": "/networking/nat-gateways", "internet-gateway": "/networking/internet-gateways", "vpc-peering": "/networking/vpc-peerings",
    "vpc": "/networking/vpcs",
}  # fmt: skip
ICONS: Mapping[str, str] = {"instance": "compute", "nat-gateway": "globe", "internet-gateway": "globe", "vpc-peering": "chain"}
KINDS: Mapping[str, str] = {
    "instance": "Instance", "network-interface": "Interface", "nat-gateway": "NAT gateway", "internet-gateway": "Internet gateway", "vpc-peering": "Peering",
}  # fmt: skip
GATEWAYS = ("internet-gateway", "nat-gateway", "vpc-peering")
# State → colour family.
Tone = Callable[[str], str]


@dataclass(frozen=True, slots=True)
class Box:
    """A thing with a name, a line below it, an icon and a page; `full` is all that is known of it, `tone` the colour of its state."""

    x: float
    y: float
    width: float
    label: str
    detail: str
    icon: str
    url: str
    full: str
    tone: str = ""
    is_public: bool = False


@dataclass(frozen=True, slots=True)
class Zone:
    """A subnet with what is in it; `more` are those that are folded away, `states` what these are, `url` shows them."""

    x: float
    y: float
    height: float
    name: str
    label: str
    cidr: str
    url: str
    boxes: Sequence[Box]
    more: int
    states: str


@dataclass(frozen=True, slots=True)
class Row:
    """A thing in the list."""

    label: str
    kind: str
    url: str
    state: str
    tone: str
    addresses: str


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the list: a subnet, or the gateways and peerings."""

    label: str
    cidr: str
    url: str
    summary: str
    rows: Sequence[Row]

    @property
    def is_open(self) -> bool:
        """Whether it is short enough to stand there unasked."""
        return len(self.rows) <= LISTED


@dataclass(frozen=True, slots=True)
class Drawing:
    """All of it, in a box of WIDTH × `height`; `url` and `router` are the pages of the VPC and of its route tables."""

    height: float
    name: str
    label: str
    cidr: str
    url: str
    router: str
    boxes: Sequence[Box]
    zones: Sequence[Zone]
    lines: Sequence[str]
    summary: str
    parts: Sequence[Part]


def draw(found: Topology, tone: Tone) -> Drawing:
    """Give everything its place."""
    nodes = {node.id: node for node in found.nodes}
    inside: dict[str, list[Node]] = {node.id: [] for node in found.nodes if node.type == "subnet"}
    for edge in found.edges:
        if edge.source in inside and not edge.label and edge.target in nodes:
            inside[edge.source].append(nodes[edge.target])
    vpc = next(node for node in found.nodes if node.type == "vpc")
    subnets = [node for node in found.nodes if node.type == "subnet"]
    gates = [node for kind in GATEWAYS for node in found.nodes if node.type == kind]
    zones, (boxes, lines) = _zones(subnets, inside, tone), _gates(gates, tone)
    lowest = max([zone.y + zone.height for zone in zones] + [box.y + BOX for box in boxes] + [TOP + BOX])
    summary = f"{vpc.label} {vpc.detail}: {_count(len(zones), 'subnet')} with {_count(sum(map(len, inside.values())), 'interface')}"
    summary += f", {_count(sum(node.type != 'vpc-peering' for node in gates), 'gateway')}, {_count(sum(node.type == 'vpc-peering' for node in gates), 'peering')}"
    if found.hidden:
        summary += f"; besides, {_count(found.hidden, 'thing')} that you may not see"
    parts = [Part(node.label, node.detail, _url(node), _states(inside[node.id]), _rows(inside[node.id], tone)) for node in subnets]
    outer = [Part("Gateways and peerings", "", "", _count(len(gates), "way", " out"), _rows(gates, tone))] if gates else []
    # From the router down to where it is joined.
    lines = [*([f"M{SPINE} {ROUTER}V{TRUNK}"] if lines or zones else []), *lines, *_hangers(zones)]
    return Drawing(
        lowest + 28, vpc.label, _short(vpc.label, SHORT_NAME), vpc.detail, f"{PAGES['vpc']}/{vpc.id}", f"/networking/route-tables?vpc_id={vpc.id}", boxes, zones, lines,
        summary, [*outer, *parts],
    )  # fmt: skip


def _gates(gates: Sequence[Node], tone: Tone) -> tuple[list[Box], list[str]]:
    """Gateways inside the VPC, what they lead to outside of it, and lines to the router."""
    boxes, lines = [], []
    for number, node in enumerate(gates):
        y = GATES + number * GATE_STEP
        middle = y + BOX / 2
        box = _box(node, MARGIN if node.type == "vpc-peering" else LEFT + 14, y, OUTSIDE if node.type == "vpc-peering" else GATE, tone)
        boxes.append(box)
        lines.append(f"M{box.x + box.width:.0f} {middle:.0f}H{SPINE}")
        if node.type == "internet-gateway":
            boxes.append(
                Box(
                    MARGIN,
                    y,
                    OUTSIDE,
                    "Internet",
                    "0.0.0.0/0",
                    "globe",
                    "/networking/reachability?source=internet",
                    "Internet 0.0.0.0/0, what it reaches",
                )
            )
            lines.append(f"M{MARGIN + OUTSIDE} {middle:.0f}H{box.x:.0f}")
    if gates:
        lines.append(f"M{SPINE} {TRUNK}V{GATES + (len(gates) - 1) * GATE_STEP + BOX / 2:.0f}")
    return boxes, lines


def _zones(subnets: Sequence[Node], inside: Mapping[str, Sequence[Node]], tone: Tone) -> list[Zone]:
    """Each below the shortest column."""
    ends = [float(TOP)] * COLUMNS
    most = SHOWN if len(subnets) <= MANY_ZONES else SHOWN_OF_MANY
    zones = []
    for node in subnets:
        column = min(range(COLUMNS), key=lambda number: (ends[number], number))
        members = inside[node.id]
        # Of many, those stand there that something is wrong with, and those that the world reaches.
        telling = sorted(members, key=lambda each: (tone(each.state) in {"", "ok"}, "," not in each.detail))
        first = members if len(members) <= most else telling[: most - 1]
        shown = [each for each in members if each in first]
        x, y = FIRST_ZONE + column * (ZONE + GAP), ends[column]
        rows = max(1, len(shown) + (len(members) > len(shown)))
        boxes = [_box(each, x + 10, y + HEAD + number * STEP, ZONE - 20, tone) for number, each in enumerate(shown)]
        folded = [each for each in members if each not in first]
        zones.append(
            Zone(x, y, HEAD + rows * STEP + 4, node.label, _short(node.label, 14), node.detail, _url(node), boxes, len(folded), _states(folded))
        )
        ends[column] = y + zones[-1].height + GAP
    return zones


def _hangers(zones: Sequence[Zone]) -> list[str]:
    """The router above all columns, down beside each, and across to every subnet."""
    if not zones:
        return []
    columns = sorted({zone.x for zone in zones})
    lines = [f"M{SPINE} {TRUNK}H{columns[-1] - GAP / 2:.0f}"]
    lines += [f"M{x - GAP / 2:.0f} {TRUNK}V{max(zone.y for zone in zones if zone.x == x) + 17:.0f}" for x in columns]
    return lines + [f"M{zone.x - GAP / 2:.0f} {zone.y + 17:.0f}H{zone.x:.0f}" for zone in zones]


def _box(node: Node, x: float, y: float, width: float, tone: Tone) -> Box:
    address, _, public = node.detail.partition(", ")
    kind = KINDS.get(node.type, node.type)
    full = ", ".join(filter(None, (f"{node.label} {node.detail}".strip(), kind[:1].lower() + kind[1:] if kind[1:2].islower() else kind, node.state)))
    is_public = bool(public) and node.type in {"instance", "network-interface"}
    return Box(x, y, width, _short(node.label, LONGEST), address, ICONS.get(node.type, "net"), _url(node), full, tone(node.state), is_public)


def _rows(nodes: Sequence[Node], tone: Tone) -> list[Row]:
    return [Row(node.label, KINDS.get(node.type, node.type), _url(node), node.state, tone(node.state), node.detail) for node in nodes]


def _states(nodes: Sequence[Node]) -> str:
    """`120 interfaces: 118 running, 2 stopped`, or that all are alike."""
    if not nodes:
        return "nothing in it"
    counts = Counter(node.state or "without an instance" for node in nodes)
    told = ", ".join(f"{count:,} {state}" for state, count in sorted(counts.items(), key=lambda each: -each[1]))
    return f"{_count(len(nodes), 'interface')}: {told}" if len(counts) > 1 else told


def _count(number: int, one: str, rest: str = "") -> str:
    return f"{number:,} {one}{'s' if number != 1 else ''}{rest}"


def _url(node: Node) -> str:
    return f"{PAGES[node.type]}/{node.resource_id}"


def _short(text: str, longest: int) -> str:
    """The beginning and the end: names of many differ in their last letters."""
    return text if len(text) <= longest else f"{text[: longest - TAIL - 1]}…{text[-TAIL:]}"
