"""Networks lock in the order of the portal: instances, their interfaces, elastic addresses, VPCs, quotas, the head of the audit log."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import Select, select
from sqlalchemy.orm import Session, sessionmaker

from portal.compute.instances import Instance, instance_create, instance_terminate
from portal.kernel.audit import AuditHead
from portal.kernel.db import transaction
from portal.kernel.declare import Operation, Outcome
from portal.kernel.errors import Conflict, StateConflict
from portal.kernel.operations import run
from portal.kernel.quota import Quota
from portal.networking.elastic_ips import elastic_ip_associate, elastic_ip_create, elastic_ip_disassociate
from portal.networking.gateways import internet_gateway_create, internet_gateway_delete, internet_gateway_detach, nat_gateway_create
from portal.networking.interfaces import network_interface_attach, network_interface_create, network_interface_delete
from portal.networking.models import ElasticIp, InternetGateway, NatGateway, NetworkInterface, Vpc
from portal.networking.vpc import vpc_create, vpc_delete
from tests.contract.test_lock_order import held, refuse_out_of_order
from tests.contract.test_network_races import calls_of
from tests.support.people import People
from tests.support.racing import race
from tests.support.scenarios import TINY, Stage, public_subnet, some_vpc


def _create(stage: Stage) -> Callable[[], object]:
    return lambda: run(stage.ctx, vpc_create, None, {"name": "net", "cidr_block": "10.0.0.0/16"})


def _delete(stage: Stage) -> Callable[[], object]:
    run(stage.ctx, vpc_delete, some_vpc(stage).id, {"force": True})
    return stage.worker.drain


@pytest.fixture(autouse=True)
def _with_row_locks(database: sessionmaker[Session]) -> None:
    if database.kw["bind"].dialect.name != "postgresql":
        pytest.skip("SQLite has one writer at a time")


@pytest.mark.parametrize("begin", [_create, _delete])
def test_quotas_are_locked_before_the_audit_log(
    stage: Stage, database: sessionmaker[Session], begin: Callable[[Stage], Callable[[], object]]
) -> None:
    act = begin(stage)
    groups = select(Quota).where(Quota.project_id == stage.ctx.project_id, Quota.dimension == "security_groups")
    refuse_out_of_order(database, groups, [select(AuditHead)], act)


class Guest:
    """An instance with its first interface in a public subnet, a second interface, a NAT gateway and an elastic address."""

    def __init__(self, stage: Stage) -> None:
        self.stage, self.subnet = stage, public_subnet(stage)
        self.instance = stage.do(instance_create, name="web", flavor="t3-micro", image=TINY, subnet_id=self.subnet.id).id
        self.second = stage.do(network_interface_create, name="second", subnet=self.subnet.id).id
        self.elastic = stage.do(elastic_ip_create, name="eip").id
        self.nat = stage.do(nat_gateway_create, name="nat", subnet=self.subnet.id).id

    def associate(self, kind: str, target: str) -> object:
        """Let the address lead there."""
        return run(self.stage.ctx, elastic_ip_associate, self.elastic, {"target_type": kind, "target_id": target})

    def disassociate(self) -> object:
        """Let the address lead nowhere."""
        return run(self.stage.ctx, elastic_ip_disassociate, self.elastic, {})

    def rows(self, model: type[Instance | NetworkInterface | ElasticIp | NatGateway | Vpc]) -> Select[Any]:
        """All of a kind that there are."""
        return select(model).where(model.deleted_at.is_(None))


def test_the_instance_is_locked_before_what_leads_to_it(stage: Stage, database: sessionmaker[Session]) -> None:
    guest = Guest(stage)
    later = [guest.rows(NetworkInterface), guest.rows(ElasticIp), guest.rows(Vpc)]
    for act in (
        lambda: guest.associate("instance", guest.instance),
        guest.disassociate,
        lambda: run(stage.ctx, network_interface_attach, guest.second, {"instance": guest.instance}),
        lambda: run(stage.ctx, instance_terminate, guest.instance, {}),
    ):
        refuse_out_of_order(database, guest.rows(Instance), later, act)
        stage.ctx.db.rollback()
        stage.worker.drain()


def test_the_nat_gateway_is_locked_before_its_address(stage: Stage, database: sessionmaker[Session]) -> None:
    guest = Guest(stage)
    for act in (lambda: guest.associate("nat-gateway", guest.nat), guest.disassociate):
        refuse_out_of_order(database, guest.rows(NatGateway), [guest.rows(ElasticIp), guest.rows(Vpc)], act)


def test_addresses_come_and_go_while_the_instance_is_renamed_and_terminated(stage: Stage, people: People) -> None:
    guest, update = Guest(stage), stage.ctx.registry.operation("compute.instance.update")
    asked: list[tuple[Operation, str | None, dict[str, Any]]] = [
        (elastic_ip_associate, guest.elastic, {"target_type": "instance", "target_id": guest.instance}), (elastic_ip_disassociate, guest.elastic, {}),
    ]  # fmt: skip
    for turn in range(12):
        given = race(calls_of(people, [*asked, (update, guest.instance, {"name": f"web-{turn}"})]))
        assert all(isinstance(one, Outcome | Conflict) for one in given), given
        assert isinstance(given[-1], Outcome), given
    run(stage.ctx, instance_terminate, guest.instance, {})
    drained, *given = race([stage.worker.drain, *calls_of(people, [asked[1], asked[1]])])
    assert not isinstance(drained, Exception), drained
    assert all(isinstance(one, Outcome | Conflict) for one in given), given
    stage.ctx.db.rollback()
    assert stage.ctx.db.get_one(Instance, guest.instance, populate_existing=True).state == "terminated"


@pytest.mark.parametrize("op", [internet_gateway_detach, internet_gateway_delete])
def test_the_vpc_is_locked_before_its_gateway(stage: Stage, database: sessionmaker[Session], op: Operation) -> None:
    vpc = some_vpc(stage)
    gateway = stage.do(internet_gateway_create, name="gate", vpc=vpc.id).id
    refuse_out_of_order(
        database,
        select(Vpc).where(Vpc.id == vpc.id),
        [select(InternetGateway).where(InternetGateway.id == gateway)],
        lambda: run(stage.ctx, op, gateway, {}),
    )


def test_nobody_waits_for_a_vpc_that_goes(stage: Stage, database: sessionmaker[Session]) -> None:
    subnet = public_subnet(stage)
    card = stage.do(network_interface_create, name="card", subnet=subnet.id).id
    with database() as session, transaction(session):
        session.get_one(Vpc, subnet.vpc_id).state = "deleting"
    with ThreadPoolExecutor(1) as pool, held(database, select(Vpc).where(Vpc.id == subnet.vpc_id)):
        refused = pool.submit(run, stage.ctx, network_interface_delete, card, {}).exception(10)
    assert isinstance(refused, StateConflict), refused
