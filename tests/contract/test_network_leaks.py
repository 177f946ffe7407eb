"""Nothing leaks: after whatever was done, addresses belong to somebody who is there, and of what was deleted nothing is left when its time is over."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select
from sqlalchemy.orm import Session, sessionmaker

from portal.compute.instances import Instance
from portal.kernel.db import now, transaction
from portal.kernel.errors import PortalError
from portal.kernel.jobs import Job
from portal.kernel.operations import run
from portal.kernel.quota import recount
from portal.kernel.runner import TaskRun
from portal.networking.models import (
    EXTERNAL,
    ElasticIp,
    FlowRecord,
    GroupMembership,
    InternetGateway,
    IpAllocation,
    NatGateway,
    NetworkInterface,
    Route,
    RouteTable,
    SecurityGroup,
    SecurityGroupRule,
    Subnet,
    Vpc,
    VpcPeering,
)
from portal.networking.retention import FORGOTTEN
from portal.worker.tasks import expire
from tests.support.people import People
from tests.support.recording_network import RecordingNetwork
from tests.support.scenarios import TINY, Stage, running_instance

PARTS = (SecurityGroupRule, Route, GroupMembership, IpAllocation)
INTERNAL = 500
# What some acts are about, so that they are not refused each time.
SECOND_CARD = select(NetworkInterface.id).where(NetworkInterface.state == "in-use", NetworkInterface.is_primary.is_(False))
SPARE_CARD = select(NetworkInterface.id).where(NetworkInterface.state == "available")
EMPTY_SUBNET = select(Subnet.id).where(Subnet.deleted_at.is_(None), Subnet.taken == 0)
# Each may be refused; what counts is what is there afterwards.
ACTS: tuple[tuple[str, Any, Callable[["World"], dict[str, Any]]], ...] = (
    ("vpc.create", None, lambda w: {"name": w.name(), "cidr_block": f"10.{w.number(4)}.0.0/24"}),
    ("subnet.create", None, lambda w: w.new_subnet()),
    ("security_group.create", None, lambda w: {"name": w.name(), "vpc": w.some(Vpc)}),
    ("security_group.add_rule", SecurityGroup, lambda w: {"protocol": "-1", "referenced_group": w.some(SecurityGroup)}),
    ("route_table.create", None, lambda w: {"name": w.name(), "vpc": w.some(Vpc)}),
    ("route_table.associate", RouteTable, lambda w: {"subnet": w.some(Subnet)}),
    ("internet_gateway.create", None, lambda w: {"name": w.name(), "vpc": w.some(Vpc)}),
    ("route_table.set_default_route", RouteTable, lambda _: {"target_type": "internet-gateway"}),
    ("nat_gateway.create", None, lambda w: {"name": w.name(), "subnet": w.some(Subnet)}),
    ("elastic_ip.create", None, lambda w: {"name": w.name()}),
    ("elastic_ip.associate", ElasticIp, lambda w: {"target_type": "network-interface", "target_id": w.some(NetworkInterface)}),
    ("elastic_ip.associate", ElasticIp, lambda w: {"target_type": "nat-gateway", "target_id": w.some(NatGateway)}),
    ("network_interface.create", None, lambda w: {"name": w.name(), "subnet": w.some(Subnet)}),
    ("network_interface.attach", SPARE_CARD, lambda w: {"instance": w.some(Instance)}),
    ("network_interface.detach", SECOND_CARD, lambda _: {}),
    ("subnet.reserve_address", Subnet, lambda _: {}),
    ("instance.create", None, lambda w: {"name": w.name(), "flavor": "t3-micro", "image": TINY, "subnet_id": w.some(Subnet)}),
    ("vpc_peering.create", None, lambda w: {"name": w.name(), "vpc": w.some(Vpc), "peer_vpc": w.some(Vpc)}),
    ("vpc_peering.accept", VpcPeering, lambda _: {}),
    ("nat_gateway.failover", NatGateway, lambda w: {"target_subnet": w.some(Subnet)}),
    ("elastic_ip.disassociate", ElasticIp, lambda _: {}),
    ("internet_gateway.detach", InternetGateway, lambda _: {}),
    ("instance.terminate", Instance, lambda _: {}),
    ("network_interface.delete", NetworkInterface, lambda _: {}),
    ("elastic_ip.delete", ElasticIp, lambda _: {}),
    ("nat_gateway.delete", NatGateway, lambda _: {}),
    ("subnet.delete", EMPTY_SUBNET, lambda _: {}),
    ("security_group.delete", SecurityGroup, lambda _: {}),
    ("route_table.delete", RouteTable, lambda _: {}),
    ("vpc_peering.delete", VpcPeering, lambda _: {}),
    ("internet_gateway.delete", InternetGateway, lambda w: {"force": bool(w.number(2))}),
    ("vpc.delete", Vpc, lambda w: {"force": bool(w.number(2))}),
)
# Something to work on: VPCs with subnets, cards, an instance and the like; then each act once, in any order.
BEGINNING = tuple(
    next(number for number, (name, _, _) in enumerate(ACTS) if name == wanted)
    for wanted in ("vpc.create", "subnet.create", "subnet.create", "vpc.create", "vpc.create", "vpc_peering.create", "internet_gateway.create",
                   "route_table.set_default_route", "subnet.create", "instance.create", "network_interface.create", "network_interface.create", *["network_interface.attach"] * 4, "elastic_ip.create",
                   "elastic_ip.associate", "security_group.create", "route_table.create", "vpc_peering.create", "nat_gateway.create", "subnet.create", "subnet.create")
)  # fmt: skip


class World:
    """A project in which something is done, drawn from numbers."""

    def __init__(self, stage: Stage, numbers: st.DataObject) -> None:
        self.stage, self.drawn = stage, numbers
        self.done: dict[str, int] = {}

    def number(self, below: int) -> int:
        return self.drawn.draw(st.integers(0, below - 1))

    def name(self) -> str:
        return self.stage.name()

    def some(self, model: Any) -> str:
        """One that is there, by id; something that is not if none is."""
        ids = self.live(model) if isinstance(model, type) else list(self.stage.ctx.db.scalars(model.order_by("created_at")))
        return ids[self.number(len(ids))] if ids else "nothing"

    def new_subnet(self) -> dict[str, Any]:
        """A small one, often free, of a VPC that is there."""
        vpc = self.stage.ctx.db.get(Vpc, self.some(Vpc))
        inside = vpc.cidr_block.rpartition(".")[0] if vpc is not None else "10.0.0"
        return {"name": self.name(), "vpc": vpc.id if vpc is not None else "nothing", "cidr_block": f"{inside}.{16 * self.number(16)}/28"}

    def live(self, model: type[Any]) -> list[str]:
        self.stage.ctx.db.rollback()
        return list(self.stage.ctx.db.scalars(select(model.id).where(model.deleted_at.is_(None)).order_by(model.created_at, model.id)))

    def act(self, number: int) -> None:
        name, on, inputs = ACTS[number]
        service = "compute" if name.startswith("instance") else "networking"
        try:
            run(self.stage.ctx, self.stage.ctx.registry.operation(f"{service}.{name}"), self.some(on) if on is not None else None, inputs(self))
        except PortalError as error:
            self.stage.ctx.db.rollback()
            if error.status >= INTERNAL:
                raise
            return
        self.done[name] = self.done.get(name, 0) + 1
        self.stage.worker.drain()

    def end_everything(self) -> None:
        """Take all of it away, as somebody would who wants an empty project."""
        operation = self.stage.ctx.registry.operation
        for row_id in self.live(ElasticIp):
            try:
                self.stage.do(operation("networking.elastic_ip.disassociate"), row_id)
            except PortalError:
                self.stage.ctx.db.rollback()
        for verb, model, data in (
            ("compute.instance.terminate", Instance, {}), ("networking.vpc.delete", Vpc, {"force": True}),
            ("networking.elastic_ip.delete", ElasticIp, {}), ("networking.internet_gateway.delete", InternetGateway, {"force": True}),
        ):  # fmt: skip
            for row_id in self.live(model):
                self.stage.do(operation(verb), row_id, **data)


def refuse_leaks(sessions: sessionmaker[Session]) -> None:
    """Every address that is taken is somebody's who is there, in a subnet that is there; and everybody has theirs."""
    with sessions() as session:
        pools = {*session.scalars(select(Subnet.id).where(Subnet.deleted_at.is_(None))), EXTERNAL}
        taken = {(row.subnet_id, row.address): row.resource_id for row in session.scalars(select(IpAllocation))}
        cards = session.scalars(select(NetworkInterface).where(NetworkInterface.deleted_at.is_(None))).all()
        nats = session.scalars(select(NatGateway).where(NatGateway.deleted_at.is_(None))).all()
        elastic = session.scalars(select(ElasticIp).where(ElasticIp.deleted_at.is_(None))).all()
        vpcs = session.scalars(select(Vpc).where(Vpc.deleted_at.is_(None))).all()
        floating = {row.public_ip for row in elastic}
        held = {(row.subnet_id, row.private_ip): row.id for row in (*cards, *nats)}
        held |= {(EXTERNAL, row.public_ip): row.id for row in elastic}
        held |= {(EXTERNAL, row.public_ip): row.id for row in (*cards, *nats) if row.public_ip and row.public_ip not in floating}
        held |= {(EXTERNAL, row.uplink_address): row.id for row in vpcs if row.uplink_address}
        assert {place for place, _ in taken} <= pools
        assert {place: owner for place, owner in taken.items() if owner} == held


def forget(people: People, stage: Stage, database: sessionmaker[Session]) -> None:
    """As when the time of all that is gone is over."""
    later = people.settings.model_copy(update={"terminated_retention_days": 0})
    ctx = people.context(None)
    ctx.settings = later
    with database() as session, transaction(session):
        for model in (*FORGOTTEN, Instance):
            for row in session.scalars(select(model).where(model.deleted_at.is_not(None))):
                row.deleted_at = now() - timedelta(days=1)
    expire(TaskRun(ctx, stage.worker.runner.engines))


def test_nothing_is_left_of_what_was_deleted(stage: Stage, people: People, database: sessionmaker[Session]) -> None:
    done: dict[str, int] = {}

    @settings(max_examples=5, deadline=None, derandomize=True, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(acts=st.permutations(range(len(ACTS))), numbers=st.data())
    def once(acts: list[int], numbers: st.DataObject) -> None:
        world = World(stage, numbers)
        for act in (*BEGINNING, *acts):
            world.act(act)
            refuse_leaks(database)
        for name, count in world.done.items():
            done[name] = done.get(name, 0) + count
        world.end_everything()
        refuse_leaks(database)
        forget(people, stage, database)
        with database() as session:
            left = {model.__name__: session.scalar(select(func.count()).select_from(model)) for model in (*FORGOTTEN, *PARTS, Instance)}
            assert not any(left.values()), left
        with database() as session, transaction(session):
            assert recount(session) == []

    once()
    never = {name for name, _, _ in ACTS} - set(done)
    assert len(never) <= 3, never


def test_what_was_deleted_stays_for_a_while(stage: Stage, people: People, database: sessionmaker[Session], network: RecordingNetwork) -> None:
    machine = running_instance(stage)
    kept = stage.do(stage.ctx.registry.operation("networking.vpc.create"), name="kept", cidr_block="10.0.0.0/16")
    stage.do(stage.ctx.registry.operation("compute.instance.terminate"), machine.id)
    stage.do(stage.ctx.registry.operation("networking.vpc.delete"), machine.vpc_id, force=True)
    with database() as session, transaction(session):
        session.add(
            FlowRecord(
                at=now(),
                vpc_id=machine.vpc_id,
                is_accepted=True,
                protocol="tcp",
                source="",
                source_port=1,
                destination="",
                destination_port=1,
                size_bytes=1,
            )
        )
    expire(TaskRun(people.context(None), stage.worker.runner.engines))
    with database() as session:
        assert session.get_one(Vpc, machine.vpc_id).state == "deleted"
        assert session.scalars(select(Subnet).where(Subnet.vpc_id == machine.vpc_id)).all() != []
    forget(people, stage, database)
    with database() as session:
        assert session.scalars(select(Subnet).where(Subnet.vpc_id == machine.vpc_id)).all() == []
        # That the project had its default network is remembered; one that is there is left alone.
        assert set(session.scalars(select(Vpc.id))) == {machine.vpc_id, kept.id}
        assert len(session.scalars(select(SecurityGroup)).all()) == 1
    again = running_instance(stage).vpc_id
    forget(people, stage, database)
    with database() as session:
        assert set(session.scalars(select(Vpc.id))) == {again, kept.id}


def test_what_has_a_job_at_work_waits(stage: Stage, people: People, database: sessionmaker[Session]) -> None:
    vpc = stage.do(stage.ctx.registry.operation("networking.vpc.create"), name="net", cidr_block="10.0.0.0/16")
    stage.do(stage.ctx.registry.operation("networking.vpc.delete"), vpc.id, force=True)
    with database() as session, transaction(session):
        session.add(Job(kind="networking.vpc.apply", label="x", resource_type="networking.vpc", resource_id=vpc.id, resource_name="net"))
    forget(people, stage, database)
    with database() as session:
        assert session.get(Vpc, vpc.id) is not None
