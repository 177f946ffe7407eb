"""The drawing of a VPC: nothing lies on anything else, much is folded, and what needs somebody stands there."""

import re
from collections.abc import Iterator

import pytest

from portal.networking.view import Edge, Node, Topology
from portal.web.topology import BOX, GATE, LEFT, WIDTH, ZONE, Drawing, draw

VPC = Node("vpc-1", "vpc", "big", "10.0.0.0/16", "vpc-1")


def tone(state: str) -> str:
    return {"running": "ok", "error": "bad", "": ""}[state]


def some(subnets: int, guests: int, gates: tuple[str, ...] = (), state: str = "running", name: str = "node") -> Topology:
    """A VPC with so many subnets, so many instances spread over them, and gateways."""
    zones = [Node(f"subnet-{n}", "subnet", f"net-{n}", f"10.0.{n}.0/24", f"subnet-{n}") for n in range(subnets)]
    cards = [Node(f"eni-{n}", "instance", f"{name}-{n:03}", f"10.0.{n % subnets}.{n}", f"i-{n}", state) for n in range(guests)]
    ways = [Node(f"{kind}-{n}", kind, f"way-{n}", "100.64.0.2", f"{kind}-{n}") for n, kind in enumerate(gates)]
    edges = [Edge("vpc-1", each.id) for each in (*zones, *ways)] + [Edge(f"subnet-{n % subnets}", f"eni-{n}") for n in range(guests)]
    return Topology([VPC, *ways, *zones, *cards], edges)


def areas(drawing: Drawing) -> Iterator[tuple[float, float, float, float]]:
    """Left, top, right, bottom of whatever covers something."""
    yield from ((zone.x, zone.y, zone.x + ZONE, zone.y + zone.height) for zone in drawing.zones)
    yield from ((box.x, box.y, box.x + box.width, box.y + BOX) for box in drawing.boxes)


def segments(path: str) -> Iterator[tuple[float, float, float, float]]:
    """Straight pieces of a line."""
    x = y = 0.0
    for command, numbers in re.findall(r"([MHV])([\d. ]+)", path):
        values = [float(each) for each in numbers.split()]
        new = (values[0], values[1]) if command == "M" else (values[0], y) if command == "H" else (x, values[0])
        if command != "M":
            yield min(x, new[0]), min(y, new[1]), max(x, new[0]), max(y, new[1])
        x, y = new


GATES = ("internet-gateway", "nat-gateway", "nat-gateway", "vpc-peering", "vpc-peering")


@pytest.mark.parametrize(
    ("subnets", "guests", "gates"), [(1, 0, ()), (3, 17, GATES), (6, 200, ()), (20, 200, GATES), (40, 2000, GATES), (2, 5, GATES * 4)]
)
def test_nothing_lies_on_anything_else(subnets: int, guests: int, gates: tuple[str, ...]) -> None:
    drawing = draw(some(subnets, guests, gates), tone)
    places = list(areas(drawing))
    assert all(0 <= left < right <= WIDTH and 0 <= top < bottom <= drawing.height for left, top, right, bottom in places)
    for one in places:
        for other in places:
            if one is not other:
                assert one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1], (one, other)
    for line in drawing.lines:
        for left, top, right, bottom in segments(line):
            for area in places:
                crosses = left < area[2] and right > area[0] and top < area[3] and bottom > area[1]
                assert not crosses, (line, area)
    assert all((box.x >= LEFT and box.width == GATE) or box.x < LEFT for box in drawing.boxes)


def test_two_hundred_instances_are_still_a_drawing() -> None:
    drawing = draw(some(20, 200), tone)
    assert (len(drawing.zones), sum(len(zone.boxes) + zone.more for zone in drawing.zones)) == (20, 200)
    assert drawing.height < 2000
    assert sum(len(part.rows) for part in drawing.parts) == 200
    assert [part.is_open for part in draw(some(2, 200), tone).parts] == [False, False]


def test_what_needs_somebody_is_not_folded_away() -> None:
    found = some(1, 40)
    broken = Node("eni-39", "instance", "node-039", "10.0.0.39", "i-39", "error")
    public = Node("eni-38", "instance", "node-038", "10.0.0.38, 100.64.0.9", "i-38", "running")
    drawing = draw(Topology([*found.nodes[:-2], public, broken], found.edges), tone)
    (zone,) = drawing.zones
    assert [box.label for box in zone.boxes[-2:]] == ["node-038", "node-039"]
    assert (zone.boxes[-1].tone, zone.boxes[-2].is_public, zone.more, zone.states) == ("bad", True, 35, "35 running")
    assert drawing.parts[0].summary == "40 interfaces: 39 running, 1 error"


def test_long_names_keep_their_ends() -> None:
    drawing = draw(some(1, 2, name="a-very-long-name-of-a-node"), tone)
    assert [box.label for box in drawing.zones[0].boxes] == ["a-very-lon…de-000", "a-very-lon…de-001"]
    assert drawing.zones[0].boxes[0].full == "a-very-long-name-of-a-node-000 10.0.0.0, instance, running"
