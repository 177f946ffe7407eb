"""The drawing of a VPC: where each box and line is, as SVG has it. Subnets stand in columns; one with many things in it folds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from portal.networking.view import Node, Topology

WIDTH, MARGIN = 1010, 8
OUTSIDE, ROUTER = 132, 156
LEFT, FIRST_ZONE = 166, 364
ZONE, GAP, COLUMNS = 196, 18, 3
BOX, STEP, HEAD = 40, 46, 34
SHOWN = 6
LONGEST = 20
PAGES: Mapping[str, str] = {
    "instance": "/compute/instances", "network-interface": "/networking/network-interfaces", "subnet": "/networking/subnets",
    "nat-gateway": "/networking/nat-gateways", "internet-gateway": "/networking/internet-gateways", "vpc-peering": "/networking/vpc-peerings",
    "vpc": "/networking/vpcs",
}  # fmt: skip
ICONS: Mapping[str, str] = {"instance": "compute", "nat-gateway": "globe", "internet-gateway": "globe", "vpc-peering": "chain"}


@dataclass(frozen=True, slots=True)
class Box:
    """A thing with a name, a line below it, an icon and a page."""

    x: float
    y: float
    width: float
    label: str
    detail: str
    icon: str
    url: str
    full: str


@dataclass(frozen=True, slots=True)
class Zone:
    """A subnet with what is in it; `more` are those that are folded away, `url` shows them."""

    x: float
    y: float
    height: float
    label: str
    cidr: str
    url: str
    boxes: Sequence[Box]
    more: int


@dataclass(frozen=True, slots=True)
class Drawing:
    """All of it, in a box of WIDTH × `height`."""

    height: float
    label: str
    cidr: str
    outside: Sequence[Box]
    zones: Sequence[Zone]
    lines: Sequence[str]
    summary: str


def draw(found: Topology) -> Drawing:
    """Give everything its place."""
    nodes = {node.id: node for node in found.nodes}
    inside: dict[str, list[Node]] = {node.id: [] for node in found.nodes if node.type == "subnet"}
    for edge in found.edges:
        if edge.source in inside and not edge.label and edge.target in nodes:
            inside[edge.source].append(nodes[edge.target])
    vpc = next(node for node in found.nodes if node.type == "vpc")
    zones = _zones([node for node in found.nodes if node.type == "subnet"], inside)
    gates = [node for node in found.nodes if node.type in {"internet-gateway", "nat-gateway", "vpc-peering"}]
    height = max([zone.y + zone.height for zone in zones] + [70 + STEP * 1.4 * len(gates), 130]) + 26
    middle = height / 2
    outside, lines = [], []
    for number, node in enumerate(gates):
        y = middle + (number - (len(gates) - 1) / 2) * STEP * 1.4 - BOX / 2
        x = MARGIN if node.type == "vpc-peering" else LEFT + 16
        outside.append(_box(node, x, y, OUTSIDE if node.type == "vpc-peering" else ROUTER))
    lines = [_line(FIRST_ZONE - 26, middle, zone.x, zone.y + 17) for zone in zones]
    lines += [_line(box.x + box.width, box.y + BOX / 2, FIRST_ZONE - 26, middle) for box in outside]
    count = sum(len(each) for each in inside.values())
    summary = f"{vpc.label} {vpc.detail}: {len(zones)} subnets with {count} interfaces, {len(gates)} gateways and peerings"
    return Drawing(height, vpc.label, vpc.detail, outside, zones, lines, summary)


def _zones(subnets: Sequence[Node], inside: Mapping[str, Sequence[Node]]) -> list[Zone]:
    """Each below the shortest column."""
    ends = [64.0] * COLUMNS
    zones = []
    for node in subnets:
        column = min(range(COLUMNS), key=lambda number: (ends[number], number))
        members = inside[node.id]
        shown = members if len(members) <= SHOWN else members[: SHOWN - 1]
        x, y = FIRST_ZONE + column * (ZONE + GAP), ends[column]
        rows = max(1, len(shown) + (len(members) > len(shown)))
        boxes = [_box(each, x + 10, y + HEAD + number * STEP, ZONE - 20) for number, each in enumerate(shown)]
        zones.append(Zone(x, y, HEAD + rows * STEP + 4, _short(node.label), node.detail, _url(node), boxes, len(members) - len(shown)))
        ends[column] = y + zones[-1].height + GAP
    return zones


def _box(node: Node, x: float, y: float, width: float) -> Box:
    address = node.detail.partition(",")[0]
    return Box(x, y, width, _short(node.label), address, ICONS.get(node.type, "net"), _url(node), f"{node.label} {node.detail}".strip())


def _url(node: Node) -> str:
    return f"{PAGES[node.type]}/{node.resource_id}"


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    middle = (x1 + x2) / 2
    return f"M{x1:.0f} {y1:.0f}H{middle:.0f}V{y2:.0f}H{x2:.0f}"
