"""Peerings, within a project and between two: both ends see the state, either ends it, and neither learns more of the other than it needs."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from flask.testing import FlaskClient
from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker

from portal.api.represent import represent
from portal.engines.network_ports import Via
from portal.kernel.context import Context
from portal.kernel.db import transaction
from portal.kernel.declare import Operation, Outcome
from portal.kernel.errors import Conflict, Forbidden, InvalidRequest, NotFound, PortalError, StateConflict
from portal.kernel.lookup import ListQuery, find, list_rows
from portal.kernel.operations import run
from portal.kernel.quota import recount
from portal.networking.models import RouteTable, VpcPeering
from portal.networking.peerings import VPC_PEERING, vpc_peering_accept, vpc_peering_create, vpc_peering_delete, vpc_peering_reject
from portal.networking.routes import live_targets, route_table_add_route
from portal.networking.security_groups import security_group_add_rule
from portal.networking.subnets import subnet_create
from portal.networking.view import reach, topology_of
from portal.networking.vpc import vpc_create, vpc_delete
from tests.support.draining import TestWorker
from tests.support.people import People
from tests.support.racing import race
from tests.support.recording_network import RecordingNetwork


@dataclass
class Side:
    """A project with a VPC, and somebody who works there."""

    ctx: Context
    worker: TestWorker
    vpc: Any

    def do(self, op: Operation, target: str | None = None, **data: Any) -> Any:
        outcome = run(self.ctx, op, target, data)
        self.worker.drain()
        self.ctx.db.rollback()
        return self.ctx.db.get_one(type(outcome.row), outcome.row.id, populate_existing=True)

    def peerings(self) -> list[VpcPeering]:
        self.ctx.db.rollback()
        self.ctx.db.expire_all()
        page = list_rows(self.ctx, VPC_PEERING, ListQuery(filters={}))
        assert page.count == len(page.rows)
        return list(page.rows)

    def shown(self) -> dict[str, Any]:
        (row,) = self.peerings()
        return represent(self.ctx, VPC_PEERING, row)

    def states(self) -> list[str]:
        return [row.state for row in self.peerings()]


def side(people: People, worker: TestWorker, name: str, cidr: str) -> Side:
    project = people.project(f"project-{name}")
    made = Side(people.context(people.user("project_admin", project), project), worker, None)
    made.vpc = made.do(vpc_create, name=f"vpc-of-{name}", cidr_block=cidr)
    return made


@pytest.fixture
def east(people: People, worker: TestWorker) -> Side:
    return side(people, worker, "east", "10.0.0.0/16")


@pytest.fixture
def west(people: People, worker: TestWorker) -> Side:
    return side(people, worker, "west", "10.1.0.0/16")


@pytest.fixture(autouse=True)
def _quotas_are_right(database: sessionmaker[Session]) -> Iterator[None]:
    yield
    with database() as session, transaction(session):
        assert recount(session) == []


def asked(east: Side, west: Side) -> VpcPeering:
    row: VpcPeering = east.do(vpc_peering_create, name="link", vpc=east.vpc.id, peer_vpc=west.vpc.id)
    return row


def linked(east: Side, west: Side) -> VpcPeering:
    row = asked(east, west)
    west.do(vpc_peering_accept, west.peerings()[0].id)
    return row


def test_the_other_project_accepts_and_both_see_it(east: Side, west: Side, network: RecordingNetwork) -> None:
    row = asked(east, west)
    assert (row.state, east.shown()["status"], west.shown()["status"], network.peerings) == ("requested", "pending", "pending", {})
    with pytest.raises(StateConflict, match="requested"):
        run(east.ctx, vpc_peering_accept, row.id)
    (theirs,) = west.peerings()
    assert theirs.id != row.id
    west.do(vpc_peering_accept, theirs.id)
    assert (east.states(), west.states()) == (["active"], ["active"])
    (spec,) = network.peerings.values()
    assert set(spec.vpc_ids) == {east.vpc.id, west.vpc.id}
    for one, shown in ((east, east.shown()), (west, west.shown())):
        assert (shown["vpc_id"], shown["requester"], shown["accepter"], shown["status"]) == (one.vpc.id, east.vpc.id, west.vpc.id, "active")
    assert (east.shown()["peer_cidr_block"], west.shown()["peer_cidr_block"]) == ("10.1.0.0/16", "10.0.0.0/16")


def test_neither_learns_more_than_it_needs(east: Side, west: Side, people: People) -> None:
    asked(east, west)
    told, seen = json.dumps(east.shown()), json.dumps(west.shown())
    for secret in ("vpc-of-west", west.ctx.project_id or "", "10.1.0.0", "project-west"):
        assert secret not in told
    for secret in ("vpc-of-east", east.ctx.project_id or "", "project-east"):
        assert secret not in seen
    assert "10.0.0.0/16" in seen
    third = people.context(people.user("project_admin", people.project("third")))
    for row in (*east.peerings(), *west.peerings()):
        with pytest.raises(NotFound):
            find(third, VPC_PEERING, row.id)
    for one, other in ((east, west), (west, east)):
        with pytest.raises(NotFound):
            find(one.ctx, VPC_PEERING, other.peerings()[0].id)
    west.do(vpc_peering_accept, west.peerings()[0].id)
    east.ctx.db.rollback()
    drawn = [node for node in topology_of(east.ctx, east.vpc).nodes if node.type == "vpc-peering"]
    assert [(node.label, node.detail, node.resource_id) for node in drawn] == [("link", "10.1.0.0/16, of another project", east.peerings()[0].id)]
    west.ctx.db.rollback()
    drawn = [node for node in topology_of(west.ctx, west.vpc).nodes if node.type == "vpc-peering"]
    assert [node.resource_id for node in drawn] == [west.peerings()[0].id]


def test_only_who_may_there_answers(east: Side, west: Side, people: People) -> None:
    asked(east, west)
    (theirs,) = west.peerings()
    viewer = people.context(people.user("viewer", west.ctx.project_id), west.ctx.project_id)
    for op in (vpc_peering_accept, vpc_peering_reject, vpc_peering_delete):
        with pytest.raises(Forbidden):
            run(viewer, op, theirs.id)
        with pytest.raises(NotFound):
            run(east.ctx, op, theirs.id)
    assert west.states() == ["pending"]


def test_a_request_that_was_refused_may_be_made_again(east: Side, west: Side, network: RecordingNetwork) -> None:
    asked(east, west)
    west.do(vpc_peering_reject, west.peerings()[0].id)
    assert (east.states(), west.states(), network.peerings) == (["rejected"], ["rejected"], {})
    again = east.do(vpc_peering_create, name="again", vpc=east.vpc.id, peer_vpc=west.vpc.id)
    assert again.state == "requested"
    assert sorted(west.states()) == ["pending", "rejected"]


@pytest.mark.parametrize("who", ["east", "west"])
@pytest.mark.parametrize("accepted", [True, False])
def test_either_side_ends_it(east: Side, west: Side, network: RecordingNetwork, who: str, accepted: bool) -> None:
    linked(east, west) if accepted else asked(east, west)
    one = {"east": east, "west": west}[who]
    one.do(vpc_peering_delete, one.peerings()[0].id)
    assert (east.states(), west.states(), network.peerings) == ([], [], {})


def test_routes_once_it_is_accepted_and_nowhere_when_it_is_gone(east: Side, west: Side, network: RecordingNetwork) -> None:
    for one, cidr in ((east, "10.0.1.0/24"), (west, "10.1.1.0/24")):
        one.do(subnet_create, name="front", vpc=one.vpc.id, cidr_block=cidr)
    row = asked(east, west)
    route = {"destination_cidr": "10.1.0.0/16", "target_type": "vpc-peering"}
    with pytest.raises(InvalidRequest, match="once it is accepted"):
        run(east.ctx, route_table_add_route, east.vpc.main_route_table_id, {**route, "target_id": row.id})
    west.do(vpc_peering_accept, west.peerings()[0].id)
    table = east.do(route_table_add_route, east.vpc.main_route_table_id, **route, target_id=row.id)
    west.do(
        route_table_add_route,
        west.vpc.main_route_table_id,
        destination_cidr="10.0.0.0/16",
        target_type="vpc-peering",
        target_id=west.peerings()[0].id,
    )
    (link,) = network.peerings
    for one in (east, west):
        via = network.specs[one.vpc.id].subnets[0].routes[1]
        assert (via.via, via.target_id) == (Via.PEERING, link)
    assert live_targets(east.ctx, table) == {row.id}
    west.do(vpc_peering_delete, west.peerings()[0].id)
    assert [network.specs[one.vpc.id].subnets[0].routes[1].via for one in (east, west)] == [Via.BLACKHOLE] * 2
    east.ctx.db.rollback()
    assert live_targets(east.ctx, east.ctx.db.get_one(RouteTable, table.id)) == set()


def test_an_answer_says_where_the_other_project_begins_to_decide(east: Side, west: Side) -> None:
    row = linked(east, west)
    subnet = east.do(subnet_create, name="front", vpc=east.vpc.id, cidr_block="10.0.1.0/24")
    east.do(route_table_add_route, east.vpc.main_route_table_id, destination_cidr="10.1.0.0/16", target_type="vpc-peering", target_id=row.id)
    create = east.ctx.registry.operation("networking.network_interface.create")
    east.do(create, name="card", subnet=subnet.id)
    answer = reach(east.ctx, "card", "10.1.1.4", "tcp", 80)
    assert answer.allowed
    assert answer.sentence.endswith("it crosses link; the routes and rules of the other project decide about the rest of the way.")
    assert "west" not in str(answer)


@pytest.mark.parametrize(
    ("peer", "says"),
    [("vpc-000000000000", "There is no VPC"), ("vpc-of-west", "There is no VPC"), ("vpc-of-east", "itself")],
)
def test_what_is_not_there_is_not_named(east: Side, west: Side, peer: str, says: str) -> None:
    assert west.vpc.name == "vpc-of-west"
    with pytest.raises(InvalidRequest, match=says) as refused:
        run(east.ctx, vpc_peering_create, None, {"name": "link", "vpc": "vpc-of-east", "peer_vpc": peer})
    assert list(refused.value.details) == ["peer_vpc"]


def test_an_overlap_is_refused_without_telling_the_others_range(east: Side, people: People, worker: TestWorker) -> None:
    near = side(people, worker, "near", "10.0.64.0/20")
    with pytest.raises(InvalidRequest, match=r"overlaps vpc-of-east \(10\.0\.0\.0/16\)") as refused:
        run(east.ctx, vpc_peering_create, None, {"name": "link", "vpc": east.vpc.id, "peer_vpc": near.vpc.id})
    assert "10.0.64.0" not in refused.value.message
    assert "vpc-of-near" not in refused.value.message
    assert (east.peerings(), near.peerings()) == ([], [])


def test_the_same_pair_at_once_from_both_sides_is_one_peering(east: Side, west: Side, people: People) -> None:
    calls = []
    for number in range(4):
        one, other = (east, west) if number % 2 else (west, east)
        ctx = people.context(people.user("developer", one.ctx.project_id), one.ctx.project_id)
        data = {"name": f"link-{number}", "vpc": one.vpc.id, "peer_vpc": other.vpc.id}
        calls.append(lambda ctx=ctx, data=data: run(ctx, vpc_peering_create, None, data))
    given = race(calls)
    assert sum(isinstance(one, Outcome) for one in given) == 1, given
    assert all(isinstance(one, Outcome | Conflict) for one in given), given
    assert (len(east.peerings()), len(west.peerings())) == (1, 1)


def test_both_sides_at_once_end_with_one_state(east: Side, west: Side, people: People, worker: TestWorker) -> None:
    asked(east, west)
    for one in (east, west):
        one.ctx = people.context(people.user("project_admin", one.ctx.project_id), one.ctx.project_id)
    mine, theirs = east.peerings()[0].id, west.peerings()[0].id
    for one in (east, west):
        one.ctx.db.rollback()
    given = race([lambda: run(east.ctx, vpc_peering_delete, mine), lambda: run(west.ctx, vpc_peering_accept, theirs)])
    assert all(isinstance(one, Outcome | PortalError) for one in given), given
    assert not any(getattr(one, "status", 0) >= 500 for one in given), given
    worker.drain()
    # Where each found the other at it, both are told to try again.
    assert (east.states(), west.states()) in [([], []), (["active"], ["active"]), (["requested"], ["pending"])]


def test_it_ends_with_either_vpc(east: Side, west: Side, network: RecordingNetwork) -> None:
    row = linked(east, west)
    west.do(security_group_add_rule, west.vpc.default_group_id, from_port=80, cidr="10.0.0.0/16")
    with pytest.raises(Conflict) as refused:
        run(west.ctx, vpc_delete, west.vpc.id)
    assert refused.value.details["in_the_way"] == ["VPC peering link"]
    east.do(vpc_peering_delete, row.id)
    row = east.do(vpc_peering_create, name="again", vpc=east.vpc.id, peer_vpc=west.vpc.id)
    west.do(vpc_peering_accept, west.peerings()[0].id)
    east.do(vpc_delete, east.vpc.id, force=True)
    assert (east.states(), west.states(), network.peerings) == ([], [], {})
    assert list(network.specs) == [west.vpc.id]
    rows = east.ctx.db.scalars(select(VpcPeering.state)).all()
    assert set(rows) == {"deleted"}


def test_within_a_project_it_is_one_row(east: Side, network: RecordingNetwork) -> None:
    east.do(vpc_create, name="near", cidr_block="10.2.0.0/16")
    row = east.do(vpc_peering_create, name="link", vpc="vpc-of-east", peer_vpc="near")
    assert (row.state, east.shown()["peer_vpc_name"], east.shown()["peer_cidr_block"]) == ("pending", "near", "10.2.0.0/16")
    east.do(vpc_peering_accept, row.id)
    assert list(network.peerings) == [row.id]
    with pytest.raises(Conflict, match="have the peering link already"):
        run(east.ctx, vpc_peering_create, None, {"name": "twice", "vpc": "near", "peer_vpc": "vpc-of-east"})
    east.do(vpc_peering_delete, row.id)
    assert (east.peerings(), network.peerings) == ([], {})


def test_the_page_tells_each_side_what_it_has_to_know(east: Side, west: Side, client_for: Callable[..., FlaskClient]) -> None:
    asked(east, west)
    browsers = {one.vpc.name: client_for("project_admin", one.ctx.project_id) for one in (east, west)}

    def page(one: Side) -> str:
        return browsers[one.vpc.name].get(f"/networking/vpc-peerings/{one.peerings()[0].id}").text

    assert "its range is told once it is accepted" in page(east)
    assert "waits for somebody of the other project" in page(east)
    assert "link is requested; accept needs it to be pending." in page(east)
    assert "10.0.0.0/16" in page(west)
    assert "vpc-of-east" not in page(west)
    west.do(vpc_peering_accept, west.peerings()[0].id)
    assert "10.1.0.0/16" in page(east)
