"""Addresses are exact under concurrency: whoever asks for the last one by whichever door, one gets it, and nobody sees an error of the portal."""

from collections import Counter
from collections.abc import Callable
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker

from portal.compute.instances import Instance, instance_create, instance_terminate
from portal.kernel.context import Context
from portal.kernel.db import transaction
from portal.kernel.declare import Operation, Outcome
from portal.kernel.errors import Conflict
from portal.kernel.operations import run
from portal.kernel.quota import recount
from portal.networking.addresses import overlapping, parse_range
from portal.networking.elastic_ips import elastic_ip_create
from portal.networking.gateways import nat_gateway_create
from portal.networking.interfaces import network_interface_create, network_interface_delete
from portal.networking.models import EXTERNAL, IpAllocation, NatGateway, NetworkInterface, Subnet
from portal.networking.subnets import subnet_create, subnet_reserve_address
from tests.support.people import People
from tests.support.racing import race
from tests.support.scenarios import TINY, Stage, public_subnet, some_vpc

MACHINE = {"flavor": "t3-micro", "image": TINY}
FIRST = ("10.0.2.0/28", [f"10.0.2.{number}" for number in range(4, 15)])


def small(stage: Stage) -> Any:
    """A public subnet of 11 addresses."""
    return stage.do(subnet_create, name="small", vpc=public_subnet(stage).vpc_id, cidr_block=FIRST[0])


def calls_of(people: People, asked: list[tuple[Operation, str | None, dict[str, Any]]]) -> list[Callable[[], Any]]:
    """Each in a context of its own."""
    user = people.user("project_admin")
    contexts: list[Context] = [people.context(user) for _ in asked]
    return [lambda ctx=ctx, each=each: run(ctx, *each) for ctx, each in zip(contexts, asked, strict=True)]


def refuse_unsound(database: sessionmaker[Session], subnet_id: str, given: list[Any]) -> None:
    """Nobody saw anything but an answer or a refusal, no address is given twice, and what is taken is what somebody has."""
    assert all(isinstance(one, Outcome | Conflict) for one in given), given
    with database() as session, transaction(session):
        taken = session.execute(select(IpAllocation.address, IpAllocation.resource_id).where(IpAllocation.subnet_id == subnet_id)).all()
        held = [row for model in (NetworkInterface, NatGateway) for row in session.scalars(select(model).where(model.deleted_at.is_(None)))]
        owned = {(row.private_ip, row.id) for row in held if row.subnet_id == subnet_id}
        assert {(address, owner) for address, owner in taken if owner} == owned
        assert max(Counter(address for address, _ in taken).values()) == 1
        assert recount(session) == []


def test_the_last_address_by_every_door_goes_to_one(stage: Stage, people: People, database: sessionmaker[Session]) -> None:
    subnet = small(stage)
    for number in range(10):
        stage.do(network_interface_create, name=f"first-{number}", subnet=subnet.id)
    asked: list[tuple[Operation, str | None, dict[str, Any]]] = []
    for number in range(5):
        asked += [
            (network_interface_create, None, {"name": f"card-{number}", "subnet": subnet.id}),
            (instance_create, None, {"name": f"web-{number}", "subnet_id": subnet.id, **MACHINE}),
            (nat_gateway_create, None, {"name": f"nat-{number}", "subnet": subnet.id}),
            (subnet_reserve_address, subnet.id, {}),
        ]
    given = race(calls_of(people, asked))
    refuse_unsound(database, subnet.id, given)
    assert sum(isinstance(one, Outcome) for one in given) == 1, given
    assert all("free address" in one.message for one in given if isinstance(one, Conflict)), given
    with database() as session:
        taken = session.scalars(select(IpAllocation.address).where(IpAllocation.subnet_id == subnet.id)).all()
        assert sorted(taken, key=FIRST[1].index) == FIRST[1]
        assert len(session.scalars(select(Instance)).all()) <= 1


def test_one_address_that_many_want_goes_to_one(stage: Stage, people: People, database: sessionmaker[Session]) -> None:
    subnet = small(stage)
    wanted = "10.0.2.9"
    asked: list[tuple[Operation, str | None, dict[str, Any]]] = []
    for number in range(4):
        asked += [
            (network_interface_create, None, {"name": f"card-{number}", "subnet": subnet.id, "private_ip": wanted}),
            (instance_create, None, {"name": f"web-{number}", "subnet_id": subnet.id, "private_ip": wanted, **MACHINE}),
            (subnet_reserve_address, subnet.id, {"ip": wanted}),
        ]
    given = race(calls_of(people, asked))
    refuse_unsound(database, subnet.id, given)
    assert sum(isinstance(one, Outcome) for one in given) == 1, given
    assert all(f"{wanted} is in use already" in one.message for one in given if isinstance(one, Conflict)), given


def test_giving_back_and_taking_at_once_loses_nothing(stage: Stage, people: People, database: sessionmaker[Session]) -> None:
    subnet = small(stage)
    cards = [stage.do(network_interface_create, name=f"first-{number}", subnet=subnet.id).id for number in range(9)]
    machines = [stage.do(instance_create, name=f"old-{number}", subnet_id=subnet.id, **MACHINE).id for number in range(2)]
    asked: list[tuple[Operation, str | None, dict[str, Any]]] = [(network_interface_delete, card, {}) for card in cards[:6]]
    asked += [(instance_terminate, machine, {}) for machine in machines]
    asked += [(network_interface_create, None, {"name": f"card-{number}", "subnet": subnet.id}) for number in range(12)]
    given = race(calls_of(people, asked))
    stage.worker.drain()
    refuse_unsound(database, subnet.id, given)
    assert all(isinstance(one, Outcome) for one in given[:8]), given
    made = sum(isinstance(one, Outcome) for one in given[8:])
    with database() as session:
        assert len(session.scalars(select(IpAllocation.id).where(IpAllocation.subnet_id == subnet.id)).all()) == 3 + made


def test_the_last_public_addresses_go_to_as_many_as_there_are(stage: Stage, people: People, database: sessionmaker[Session]) -> None:
    asked: list[tuple[Operation, str | None, dict[str, Any]]] = [(elastic_ip_create, None, {"name": f"eip-{number}"}) for number in range(12)]
    few = people.settings.model_copy(update={"network_external_cidr": "100.64.0.0/29"})
    user = people.user("project_admin")
    contexts = [people.context(user) for _ in asked]
    for ctx in contexts:
        ctx.settings = few
    given = race([lambda ctx=ctx, each=each: run(ctx, *each) for ctx, each in zip(contexts, asked, strict=True)])
    assert Counter(type(one).__name__ for one in given) == {"Outcome": 5, "Conflict": 7}, given
    with database() as session, transaction(session):
        addresses = session.scalars(select(IpAllocation.address).where(IpAllocation.subnet_id == EXTERNAL)).all()
        assert sorted(addresses) == [f"100.64.0.{number}" for number in range(2, 7)]
        assert recount(session) == []


def test_the_last_addresses_go_to_as_many_as_there_are(stage: Stage, people: People, database: sessionmaker[Session]) -> None:
    vpc = some_vpc(stage)
    subnet = stage.do(subnet_create, name="small", vpc=vpc.id, cidr_block="10.0.1.0/27")
    for number in range(7):
        stage.do(network_interface_create, name=f"first-{number}", subnet=subnet.id)
    user = people.user("developer")
    contexts: list[Context] = [people.context(user) for _ in range(40)]
    given = race(
        [lambda ctx=ctx, n=n: run(ctx, network_interface_create, None, {"name": f"n{n}", "subnet": subnet.id}) for n, ctx in enumerate(contexts)]
    )
    made = [one for one in given if isinstance(one, Outcome)]
    refused = [one for one in given if isinstance(one, Conflict)]
    assert (len(made), len(refused)) == (20, 20), [one for one in given if not isinstance(one, Outcome | Conflict)]
    assert all("no free address: 27 of 27" in one.message for one in refused)
    with database() as session, transaction(session):
        addresses = session.scalars(select(NetworkInterface.private_ip).where(NetworkInterface.subnet_id == subnet.id)).all()
        assert len(set(addresses)) == len(addresses) == 27
        assert recount(session) == []


def test_overlapping_subnets_at_once_are_one(stage: Stage, people: People) -> None:
    vpc = some_vpc(stage)
    user = people.user("developer")
    ranges = ["10.0.0.0/24", "10.0.0.0/25", "10.0.0.128/25", "10.0.0.0/23", "10.0.0.64/26", "10.0.0.0/20"]
    contexts = [people.context(user) for _ in ranges]
    given = race([
        lambda ctx=ctx, cidr=cidr: run(ctx, subnet_create, None, {"name": cidr.replace("/", "-"), "vpc": vpc.id, "cidr_block": cidr})
        for ctx, cidr in zip(contexts, ranges, strict=True)
    ])  # fmt: skip
    assert all(isinstance(one, Outcome | Conflict) for one in given), given
    stage.ctx.db.rollback()
    made = stage.ctx.db.scalars(select(Subnet.cidr_block).where(Subnet.deleted_at.is_(None))).all()
    assert made
    assert all(overlapping(parse_range(one), [other for other in made if other != one]) is None for one in made)
