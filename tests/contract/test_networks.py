"""Networks: what is made, what the host is told of it, and how it gets there however things go."""

from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session, sessionmaker

from portal.compute.instances import Instance, instance_create, instance_start, instance_stop, instance_terminate
from portal.engines.network_ports import Drift, Flow, Via
from portal.engines.ports import Capability, EngineError, EngineRefused, mac_address
from portal.kernel.activity import activity_of
from portal.kernel.capabilities import report
from portal.kernel.db import now, transaction
from portal.kernel.declare import Outcome
from portal.kernel.errors import Conflict, InvalidRequest, Unavailable
from portal.kernel.events import Event
from portal.kernel.ids import hostname
from portal.kernel.jobs import Job
from portal.kernel.operations import run
from portal.kernel.quota import recount
from portal.kernel.runner import TaskRun
from portal.networking.elastic_ips import elastic_ip_associate, elastic_ip_create, elastic_ip_disassociate
from portal.networking.flow_log import flows_kept
from portal.networking.gateways import internet_gateway_detach, nat_gateway_delete
from portal.networking.interfaces import network_interface_attach, network_interface_create, network_interface_detach
from portal.networking.models import FlowRecord, InternetGateway, IpAllocation, NetworkInterface, RouteTable, SecurityGroup, Subnet, Vpc
from portal.networking.peerings import vpc_peering_accept, vpc_peering_create, vpc_peering_delete
from portal.networking.reconcile import reconcile_networks
from portal.networking.routes import route_table_add_route
from portal.networking.security_groups import security_group_add_rule
from portal.networking.subnets import subnet_create
from portal.networking.vpc import vpc_configure_flow_logs, vpc_create, vpc_delete
from tests.support.people import People
from tests.support.racing import race
from tests.support.recording_network import RecordingNetwork
from tests.support.scenarios import TINY, Stage, nat_gateway, public_subnet, running_instance, some_vpc

CREATE = {"flavor": "t3-micro", "image": TINY}


def live(stage: Stage, model: Any) -> list[Any]:
    stage.ctx.db.rollback()
    query = select(model).where(model.deleted_at.is_(None)).order_by(model.created_at)
    return list(stage.ctx.db.scalars(query.execution_options(populate_existing=True)))


def taken(sessions: sessionmaker[Session]) -> int:
    with sessions() as session:
        return session.scalar(select(func.count()).select_from(IpAllocation)) or 0


# -- the first instance ------------------------------------------------------------------------------------------------------------------------


def test_the_first_instance_needs_no_thought(stage: Stage, network: RecordingNetwork) -> None:
    first = running_instance(stage)
    second = running_instance(stage)
    (vpc,) = live(stage, Vpc)
    assert (vpc.state, vpc.is_default, vpc.name, vpc.applied_revision) == ("available", True, "default", vpc.desired_revision)
    assert [first.private_ip, second.private_ip] == ["172.31.0.4", "172.31.0.5"]
    assert first.vpc_id == vpc.id
    spec = network.specs[vpc.id]
    assert [port.address for port in sorted(spec.ports, key=lambda each: each.address)] == ["172.31.0.4", "172.31.0.5"]
    guest = next(port for port in spec.ports if port.address == first.private_ip)
    assert guest.guest is not None
    assert (guest.guest.instance_id, list(guest.names)) == (first.id, [guest.guest.hostname])
    assert [route.via for route in spec.subnets[0].routes] == [Via.LOCAL, Via.INTERNET]
    assert spec.uplink_address == "100.64.0.2"


def test_what_an_instance_had_is_free_when_it_is_gone(stage: Stage, network: RecordingNetwork, database: sessionmaker[Session]) -> None:
    row = running_instance(stage)
    before = taken(database)
    stage.do(instance_terminate, row.id)
    assert live(stage, NetworkInterface) == []
    assert taken(database) == before - 1
    assert network.specs[row.vpc_id].ports == []
    again = running_instance(stage)
    assert again.private_ip == "172.31.0.4"
    with database() as session, transaction(session):
        assert recount(session) == []


def test_many_that_are_made_at_once_come_to_the_host_with_the_first(stage: Stage, network: RecordingNetwork) -> None:
    subnet = public_subnet(stage)
    network.ensured.clear()
    made = run(stage.ctx, instance_create, None, {"name": "web", "subnet_id": subnet.id, "count": 8, **CREATE})
    stage.worker.drain()
    assert {row.state for row in live(stage, Instance)} == {"running"}
    assert (network.ensured, len(network.specs[subnet.vpc_id].ports)) == ([subnet.vpc_id], len(made.rows))
    # What is missing on the host is not taken for done.
    network.specs.clear()
    stage.do(instance_create, name="late", subnet_id=subnet.id, **CREATE)
    assert len(network.specs[subnet.vpc_id].ports) == 9


def test_several_first_instances_at_once_share_one_network(people: People, database: sessionmaker[Session]) -> None:
    contexts = [people.context(people.user("developer")) for _ in range(6)]
    given = race([lambda ctx=ctx, n=n: run(ctx, instance_create, None, {"name": f"w{n}", **CREATE}) for n, ctx in enumerate(contexts)])
    assert all(isinstance(one, Outcome) for one in given), given
    with database() as session:
        assert session.scalar(select(func.count()).select_from(Vpc)) == 1
        addresses = session.scalars(select(Instance.private_ip)).all()
    assert len(set(addresses)) == len(addresses) == 6


def test_a_place_of_ones_choice(stage: Stage) -> None:
    subnet = public_subnet(stage)
    row = stage.do(instance_create, name="web", subnet_id=subnet.id, private_ip="10.0.1.77", **CREATE)
    assert (row.private_ip, row.subnet_id, row.vpc_id) == ("10.0.1.77", subnet.id, subnet.vpc_id)
    group = stage.ctx.db.get_one(Vpc, subnet.vpc_id).default_group_id
    other = stage.do(instance_create, name="web2", vpc_id=subnet.vpc_id, security_groups=[group], **CREATE)
    assert other.private_ip == "10.0.1.4"


@pytest.mark.parametrize(
    ("given", "field", "says"),
    [
        ({"private_ip": "10.0.1.1"}, "private_ip", "router"), ({"private_ip": "10.9.0.1"}, "private_ip", "outside"), ({"private_ip": "::1"}, "private_ip", "IPv6"),
        ({"private_ip": "10.0.1.9", "count": 2}, "private_ip", "several"), ({"subnet_id": "subnet-nope"}, "subnet_id", "no subnet"),
        ({"security_groups": ["sg-nope"]}, "security_groups", "no security group"), ({"vpc_id": "vpc-nope"}, "vpc_id", "no network"),
    ],
)  # fmt: skip
def test_a_place_that_is_none_is_refused(stage: Stage, given: dict[str, Any], field: str, says: str) -> None:
    subnet = public_subnet(stage)
    with pytest.raises(InvalidRequest, match=says) as refused:
        run(stage.ctx, instance_create, None, {"name": "web", **CREATE, "subnet_id": subnet.id, **given})
    assert list(refused.value.details) == [field]


def test_without_a_network_engine_instances_have_user_networking(stage: Stage, database: sessionmaker[Session]) -> None:
    with database() as session:
        report(session, Capability("network", available=False, detail="", reason="No network namespaces.", remedy="Run it as root."), worker="w")
    row = running_instance(stage)
    assert (row.state, row.private_ip, row.vpc_id) == ("running", None, "vpc-12345678")
    assert live(stage, Vpc) == []
    job = stage.ctx.db.scalars(select(Job).where(Job.resource_id == row.id)).one()
    assert any("user networking" in step.detail for step in job.steps)
    with pytest.raises(Unavailable, match=r"No network namespaces\. Run it as root\."):
        run(stage.ctx, vpc_create, None, {"name": "n", "cidr_block": "10.0.0.0/16"})
    with pytest.raises(InvalidRequest, match="makes no networks"):
        run(stage.ctx, instance_create, None, {"name": "web", "private_ip": "10.0.0.9", **CREATE})


# -- getting it onto the host --------------------------------------------------------------------------------------------------------------------


def test_many_changes_are_one_job_and_all_of_them_arrive(stage: Stage, network: RecordingNetwork) -> None:
    vpc = some_vpc(stage)
    for port in range(1, 21):
        run(stage.ctx, security_group_add_rule, vpc.default_group_id, {"from_port": port, "cidr": "192.0.2.0/24"})
    waiting = stage.ctx.db.scalars(select(Job).where(Job.resource_id == vpc.id, Job.state == "queued")).all()
    assert len(waiting) == 1
    stage.ctx.db.rollback()
    rtype = stage.ctx.registry.of(SecurityGroup)
    group = stage.ctx.db.get_one(SecurityGroup, vpc.default_group_id, populate_existing=True)
    assert rtype.show["status"](group) == "applying"
    network.ensured.clear()
    stage.worker.drain()
    assert network.ensured == [vpc.id]
    assert len(next(each for each in network.specs[vpc.id].groups if each.group_id == group.id).rules) == 22
    (fresh,) = live(stage, Vpc)
    assert fresh.applied_revision == fresh.desired_revision


def test_a_change_while_it_is_applied_is_not_lost(stage: Stage, network: RecordingNetwork, monkeypatch: pytest.MonkeyPatch, people: People) -> None:
    vpc = some_vpc(stage)
    other = people.context(people.user("project_admin"))
    really, left = network.ensure_vpc, [101, 102]

    def meanwhile(spec: Any) -> None:
        really(spec)
        if left:
            run(other, security_group_add_rule, vpc.default_group_id, {"from_port": left.pop(), "cidr": "192.0.2.0/24"})

    monkeypatch.setattr(network, "ensure_vpc", meanwhile)
    run(stage.ctx, security_group_add_rule, vpc.default_group_id, {"from_port": 100, "cidr": "192.0.2.0/24"})
    stage.worker.drain()
    assert {rule.from_port for group in network.specs[vpc.id].groups for rule in group.rules} >= {100, 101, 102}


def test_a_failure_is_shown_and_tried_again(stage: Stage, network: RecordingNetwork, people: People) -> None:
    vpc = some_vpc(stage)
    network.failures = [EngineRefused("nft: no such table")]
    run(stage.ctx, security_group_add_rule, vpc.default_group_id, {"from_port": 80, "cidr": "0.0.0.0/0"})
    stage.worker.drain()
    (row,) = live(stage, Vpc)
    assert (row.state, row.state_reason) == ("failed", "nft: no such table")
    reconcile_networks(TaskRun(people.context(None), stage.worker.runner.engines))
    stage.worker.drain()
    row = next(each for each in live(stage, Vpc) if each.id == vpc.id)
    assert (row.state, row.state_reason, row.applied_revision) == ("available", "", row.desired_revision)
    network.failures = [EngineError("busy"), EngineError("busy")]
    run(stage.ctx, security_group_add_rule, vpc.default_group_id, {"from_port": 81, "cidr": "0.0.0.0/0"})
    stage.worker.drain()
    assert {each.state for each in live(stage, Vpc)} == {"available"}


def test_what_went_missing_on_the_host_comes_back_and_is_told(stage: Stage, network: RecordingNetwork, people: People) -> None:
    vpc = some_vpc(stage)
    network.lost = [Drift(vpc.id, "the bridge of 10.0.1.0/24 is gone"), Drift("vpc-of-somebody", "whatever")]
    reconcile_networks(TaskRun(people.context(None), stage.worker.runner.engines))
    stage.worker.drain()
    assert [each.vpc_id for each in network.lost] == ["vpc-of-somebody"]
    stage.ctx.db.rollback()
    told = stage.ctx.db.scalars(select(Event).where(Event.type == "networking.vpc.drifted")).one()
    assert (told.resource_id, told.payload) == (vpc.id, {"missing": ["the bridge of 10.0.1.0/24 is gone"]})
    # Those who read the audit log, and those who do not, see it on the page of the VPC.
    for role in ("project_admin", "viewer"):
        ctx = people.context(people.user(role))
        assert "the bridge of 10.0.1.0/24 is gone" in [item.detail for item in activity_of(ctx, ctx.registry.of(Vpc), vpc)], role
    before = {*network.specs}
    network.specs.clear()
    reconcile_networks(TaskRun(people.context(None), stage.worker.runner.engines))
    stage.worker.drain()
    assert {*network.specs} == before


def test_a_change_that_is_under_way_is_no_drift(stage: Stage, network: RecordingNetwork, people: People) -> None:
    vpc = some_vpc(stage)
    run(stage.ctx, security_group_add_rule, vpc.default_group_id, {"from_port": 80, "cidr": "0.0.0.0/0"})
    network.lost = [Drift(vpc.id, "A change was not finished.")]
    reconcile_networks(TaskRun(people.context(None), stage.worker.runner.engines))
    stage.ctx.db.rollback()
    assert stage.ctx.db.scalars(select(Event).where(Event.type == "networking.vpc.drifted")).all() == []
    stage.worker.drain()
    assert network.lost == []


def test_what_cannot_be_brought_back_is_told_once(stage: Stage, network: RecordingNetwork, people: People) -> None:
    vpc = some_vpc(stage)
    network.lost = [Drift(vpc.id, "the router is gone")]
    network.failures = [EngineRefused("no"), EngineRefused("no")]
    for _ in range(3):
        reconcile_networks(TaskRun(people.context(None), stage.worker.runner.engines))
        stage.worker.drain()
    stage.ctx.db.rollback()
    assert len(stage.ctx.db.scalars(select(Event).where(Event.type == "networking.vpc.drifted")).all()) == 1
    assert (live(stage, Vpc)[0].state, network.lost) == ("available", [])


def test_a_change_that_is_being_made_is_no_damage(stage: Stage, network: RecordingNetwork, people: People) -> None:
    vpc = some_vpc(stage)
    run(stage.ctx, security_group_add_rule, vpc.default_group_id, {"from_port": 80, "cidr": "0.0.0.0/0"})
    network.lost = [Drift(vpc.id, "A change was not finished.")]
    for _ in range(2):
        reconcile_networks(TaskRun(people.context(None), stage.worker.runner.engines))
    stage.worker.drain()
    stage.ctx.db.rollback()
    assert stage.ctx.db.scalars(select(Event).where(Event.type == "networking.vpc.drifted")).all() == []
    assert network.lost == []


def test_what_flowed_is_kept_where_it_is_wanted(stage: Stage, network: RecordingNetwork, people: People) -> None:
    vpc = some_vpc(stage)
    flow = Flow(1_700_000_000.5, vpc.id, True, "tcp", "10.0.0.4", 40_000, "10.0.0.5", 80, 60)
    system = TaskRun(people.context(None), stage.worker.runner.engines)
    network.seen = [flow]
    reconcile_networks(system)
    stage.do(vpc_configure_flow_logs, vpc.id, enabled=True, traffic_type="reject")
    moment = now().timestamp()
    network.seen = [replace(flow, at_s=moment), replace(flow, at_s=moment, accepted=False), replace(flow, vpc_id="vpc-gone")]
    reconcile_networks(system)
    stage.ctx.db.rollback()
    assert [(row.is_accepted, row.vpc_id) for row in stage.ctx.db.scalars(select(FlowRecord))] == [(False, vpc.id)]


def test_the_flow_log_does_not_grow_for_ever(stage: Stage) -> None:
    vpcs = [some_vpc(stage) for _ in range(2)]
    for vpc in vpcs:
        stage.do(vpc_configure_flow_logs, vpc.id, enabled=True)
    moment, session = now().timestamp(), stage.ctx.db
    some = Flow(moment, vpcs[0].id, True, "tcp", "10.0.0.4", 40_000, "10.0.0.5", 80, 60)

    def ports(vpc: Vpc) -> list[int]:
        session.rollback()
        return list(session.scalars(select(FlowRecord.source_port).where(FlowRecord.vpc_id == vpc.id).order_by(FlowRecord.id)))

    flows_kept(session, [replace(some, vpc_id=vpcs[1].id), *(replace(some, source_port=number) for number in range(1, 8))], most=5)
    assert (ports(vpcs[0]), ports(vpcs[1])) == ([3, 4, 5, 6, 7], [40_000])
    flows_kept(session, [replace(some, at_s=moment - 8 * 24 * 3600, source_port=9), replace(some, source_port=8)], most=5)
    assert ports(vpcs[0])[-1] == 8
    assert 9 not in ports(vpcs[0])


def test_the_cost_of_reading_a_network_does_not_grow(stage: Stage, network: RecordingNetwork) -> None:
    from portal.networking.desired import desired_state
    from tests.support.web import Queries

    vpc = some_vpc(stage)
    counts = []
    for number in range(1, 9):
        stage.do(subnet_create, name=f"s{number}", vpc=vpc.id, cidr_block=f"10.0.{number}.0/24")
        stage.do(instance_create, name=f"i{number}", subnet_id=f"s{number}", **CREATE)
        with stage.worker.sessions() as session, Queries(session.get_bind()) as queries:
            assert desired_state(session, stage.ctx.registry, vpc.id) is not None
        counts.append(queries.count)
    assert len(set(counts)) == 1
    assert counts[0] <= 14


# -- gateways, addresses, peerings -----------------------------------------------------------------------------------------------------------------


def test_a_nat_gateway_and_the_end_of_it(stage: Stage, network: RecordingNetwork, database: sessionmaker[Session]) -> None:
    nat = nat_gateway(stage)
    assert nat.state == "available"
    assert [(each.nat_id, each.public_address) for each in network.specs[nat.vpc_id].nats] == [(nat.id, nat.public_ip)]
    private = stage.do(stage.ctx.registry.operation("networking.route_table.create"), name="private", vpc=nat.vpc_id)
    stage.do(route_table_add_route, private.id, destination_cidr="0.0.0.0/0", target_type="nat-gateway", target_id=nat.id)
    subnet = stage.do(subnet_create, name="back", vpc=nat.vpc_id, cidr_block="10.0.9.0/24")
    stage.do(stage.ctx.registry.operation("networking.route_table.associate"), private.id, subnet=subnet.id)
    routes = {each.subnet_id: list(each.routes) for each in network.specs[nat.vpc_id].subnets}
    assert (routes[subnet.id][1].via, routes[subnet.id][1].target_id) == (Via.NAT, nat.id)
    before = taken(database)
    stage.do(nat_gateway_delete, nat.id)
    assert taken(database) == before - 2
    routes = {each.subnet_id: list(each.routes) for each in network.specs[nat.vpc_id].subnets}
    assert routes[subnet.id][1].via is Via.BLACKHOLE


def test_an_elastic_ip_leads_to_an_instance_and_away(stage: Stage, network: RecordingNetwork) -> None:
    machine = running_instance(stage)
    elastic = stage.do(elastic_ip_create, name="www")
    stage.do(elastic_ip_associate, elastic.id, target_type="instance", target_id=machine.id)
    assert [port.public_address for port in network.specs[machine.vpc_id].ports] == [elastic.public_ip]
    assert stage.ctx.db.get_one(Instance, machine.id, populate_existing=True).public_ip == elastic.public_ip
    with pytest.raises(Conflict, match="leads to"):
        run(stage.ctx, elastic_ip_associate, elastic.id, {"target_type": "instance", "target_id": machine.id})
    (gateway,) = live(stage, InternetGateway)
    with pytest.raises(Conflict, match="public addresses"):
        run(stage.ctx, internet_gateway_detach, gateway.id)
    stage.do(elastic_ip_disassociate, elastic.id)
    assert [port.public_address for port in network.specs[machine.vpc_id].ports] == [""]
    assert stage.ctx.db.get_one(Instance, machine.id, populate_existing=True).public_ip is None


def test_a_peering_joins_and_parts(stage: Stage, network: RecordingNetwork) -> None:
    one, two = (stage.do(vpc_create, name=name, cidr_block=cidr) for name, cidr in (("one", "10.0.0.0/16"), ("two", "10.1.0.0/16")))
    peering = stage.do(vpc_peering_create, name="link", vpc="one", peer_vpc="two")
    assert (peering.state, network.peerings) == ("pending", {})
    stage.do(vpc_peering_accept, peering.id)
    assert set(network.peerings) == {peering.id}
    stage.do(route_table_add_route, one.main_route_table_id, destination_cidr="10.1.0.0/16", target_type="vpc-peering", target_id=peering.id)
    subnet = stage.do(subnet_create, name="s", vpc="one", cidr_block="10.0.0.0/24")
    assert network.specs[one.id].subnets[0].routes[1].via is Via.PEERING
    stage.do(vpc_peering_delete, peering.id)
    assert network.peerings == {}
    assert network.specs[one.id].subnets[0].routes[1].via is Via.BLACKHOLE
    assert (subnet.vpc_id, two.state) == (one.id, "available")


def test_a_second_interface_comes_and_goes(stage: Stage, network: RecordingNetwork) -> None:
    machine = running_instance(stage)
    spare = stage.do(network_interface_create, name="second", subnet=machine.subnet_id)
    spare = stage.do(network_interface_attach, spare.id, instance=machine.id)
    assert (spare.state, spare.instance_id) == ("in-use", machine.id)
    assert {port.guest.instance_id for port in network.specs[machine.vpc_id].ports if port.guest} == {machine.id}
    first = next(each for each in live(stage, NetworkInterface) if each.is_primary)
    with pytest.raises(Conflict, match="goes with it"):
        run(stage.ctx, network_interface_detach, first.id)
    spare = stage.do(network_interface_detach, spare.id)
    assert (spare.state, spare.instance_id) == ("available", None)
    assert [port.guest for port in network.specs[machine.vpc_id].ports if port.port_id == spare.id] == [None]


def outside_any_network(stage: Stage, database: sessionmaker[Session]) -> tuple[Any, Any]:
    """A machine from before there were networks, and an interface now that there are."""
    with database() as session:
        report(session, Capability("network", available=False, detail="", reason="No.", remedy=""), worker="w")
    machine = running_instance(stage)
    with database() as session:
        report(session, Capability("network", available=True, detail=""), worker="w")
    return machine, stage.do(network_interface_create, name="card", subnet=public_subnet(stage).id)


def test_a_machine_outside_any_network_gets_a_place_when_it_is_stopped(
    stage: Stage, network: RecordingNetwork, database: sessionmaker[Session]
) -> None:
    machine, card = outside_any_network(stage, database)
    with pytest.raises(Conflict, match=r"runs outside any network.*Stop it, attach card, which becomes its first interface"):
        run(stage.ctx, network_interface_attach, card.id, {"instance": machine.id})
    stage.do(instance_stop, machine.id, force=True)
    card = stage.do(network_interface_attach, card.id, instance=machine.id)
    stage.do(instance_start, machine.id)
    machine = stage.ctx.db.get_one(Instance, machine.id, populate_existing=True)
    assert (card.state, card.is_primary, card.mac_address) == ("in-use", True, mac_address(machine.id))
    assert (machine.state, machine.vpc_id, machine.subnet_id, machine.private_ip) == ("running", card.vpc_id, card.subnet_id, card.private_ip)
    assert tuple(stage.engine.taps_of(machine.id)) == (network.tap_of(card.id),)
    (port,) = network.specs[card.vpc_id].ports
    assert (port.mac, list(port.names), port.guest is not None) == (card.mac_address, [hostname(machine.name)], True)
    with pytest.raises(Conflict, match="first interface of its instance"):
        run(stage.ctx, network_interface_detach, card.id)
    stage.do(instance_terminate, machine.id)
    assert live(stage, NetworkInterface) == []


def test_a_first_interface_that_cannot_be_given_leaves_all_as_it_was(
    stage: Stage, network: RecordingNetwork, database: sessionmaker[Session]
) -> None:
    machine, card = outside_any_network(stage, database)
    stage.do(instance_stop, machine.id, force=True)
    network.failures = [EngineRefused("no")]
    after = stage.do(network_interface_attach, card.id, instance=machine.id)
    assert (after.state, after.instance_id, after.is_primary, after.mac_address != mac_address(machine.id)) == ("available", None, False, True)
    machine = stage.ctx.db.get_one(Instance, machine.id, populate_existing=True)
    assert (machine.vpc_id, machine.private_ip) == ("vpc-12345678", None)


# -- the end -----------------------------------------------------------------------------------------------------------------------------------------


def test_deleting_names_what_is_in_the_way_and_all_of_it_goes_if_wanted(
    stage: Stage, network: RecordingNetwork, database: sessionmaker[Session]
) -> None:
    nat = nat_gateway(stage)
    machine = stage.do(instance_create, name="web", subnet_id=nat.subnet_id, **CREATE)
    stage.do(network_interface_create, name="spare", subnet=nat.subnet_id)
    with pytest.raises(Conflict, match="instance web") as refused:
        run(stage.ctx, vpc_delete, nat.vpc_id, {"force": True})
    assert refused.value.details["in_the_way"] == ["instance web"]
    stage.do(instance_terminate, machine.id)
    with pytest.raises(Conflict, match=r"NAT gateway .*network interface spare, internet gateway .*subnet "):
        run(stage.ctx, vpc_delete, nat.vpc_id)
    row = stage.do(vpc_delete, nat.vpc_id, force=True)
    assert (row.state, network.specs, taken(database)) == ("deleted", {}, 0)
    assert [live(stage, model) for model in (Vpc, Subnet, SecurityGroup, RouteTable, NetworkInterface)] == [[]] * 5
    with database() as session, transaction(session):
        assert recount(session) == []


def test_two_networks_may_have_the_same_range(stage: Stage, network: RecordingNetwork) -> None:
    for name in ("one", "two"):
        vpc = stage.do(vpc_create, name=name, cidr_block="10.0.0.0/16")
        stage.do(subnet_create, name=f"{name}-a", vpc=vpc.id, cidr_block="10.0.0.0/24")
        assert stage.do(instance_create, name=f"{name}-web", subnet_id=f"{name}-a", **CREATE).private_ip == "10.0.0.4"
    assert len(network.specs) == 2
