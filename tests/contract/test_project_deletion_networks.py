"""Deleting a project with networks: what leads from one thing to another is no obstacle, one job comes to the end."""

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session, sessionmaker

from portal.kernel.audit import AuditEntry
from portal.networking.models import IpAllocation
from tests.support.draining import TestWorker
from tests.support.people import People
from tests.support.web import Api

NETWORK = "/networking"


@pytest.fixture
def apollo(people: People) -> str:
    return people.project("apollo")


@pytest.fixture
def owner(api_for: Callable[..., Api], apollo: str) -> Api:
    """A project admin of apollo."""
    return api_for("project_admin", apollo)


@pytest.fixture
def make(owner: Api, worker: TestWorker) -> Callable[..., dict[str, Any]]:
    """`make(collection, name, **body)`: a thing in apollo, settled."""

    def one(collection: str, name: str, **body: Any) -> dict[str, Any]:
        made = owner.post(f"{NETWORK}/{collection}", {"name": name, **body})
        assert made.status_code in {201, 202}, made.json
        worker.drain()
        found: dict[str, Any] = owner.get(f"{NETWORK}/{collection}/{made.json['id']}").json
        return found

    return one


@pytest.fixture
def public(make: Callable[..., dict[str, Any]], owner: Api) -> dict[str, Any]:
    """A subnet whose default route leads to the internet."""
    vpc = make("vpcs", "net", cidr_block="10.0.0.0/16")
    make("internet-gateways", "gate", vpc="net")
    table = owner.post(f"{NETWORK}/route-tables/{vpc['main_route_table_id']}/set-default-route", {"target_type": "internet-gateway"})
    assert table.status_code == 200, table.json
    return make("subnets", "front", vpc="net", cidr_block="10.0.1.0/24")


def gone(owner: Api, worker: TestWorker, database: sessionmaker[Session], project_id: str) -> None:
    """One job deletes the project to the end, and no address is left."""
    assert owner.get(f"/projects/{project_id}/deletion").json["in_the_way"] == []
    job_id = owner("DELETE", f"/projects/{project_id}").json["job_id"]
    worker.drain()
    job = worker.job(job_id)
    assert (job.state, job.error) == ("succeeded", "")
    assert owner.get(f"/projects/{project_id}").status_code == 404
    with database() as session:
        assert session.scalar(select(func.count()).select_from(IpAllocation)) == 0
        assert session.scalars(select(AuditEntry.action).where(AuditEntry.status == "failure")).all() == []


@pytest.mark.usefixtures("public")
def test_a_nat_gateway_goes_before_the_way_out_that_it_needs(
    make: Callable[..., dict[str, Any]], owner: Api, worker: TestWorker, database: sessionmaker[Session], apollo: str
) -> None:
    make("nat-gateways", "nat", subnet="front")
    gone(owner, worker, database, apollo)


@pytest.mark.usefixtures("public")
def test_elastic_ips_go_wherever_they_lead(
    make: Callable[..., dict[str, Any]], owner: Api, worker: TestWorker, database: sessionmaker[Session], apollo: str
) -> None:
    for name in ("of-nat", "of-card", "of-web", "of-nobody"):
        make("elastic-ips", name)
    make("internet-gateways", "spare")
    make("nat-gateways", "nat", subnet="front", elastic_ip="of-nat")
    make("network-interfaces", "card", subnet="front")
    web = owner.post("/compute/instances", {"name": "web", "flavor": "t3-micro", "image": "atonix-tiny", "subnet_id": "front"})
    assert web.status_code == 202, web.json
    worker.drain()
    ids = {each["name"]: each["id"] for each in owner.get(f"{NETWORK}/elastic-ips").json["results"]}
    for name, kind, target in (("of-card", "network-interface", "card"), ("of-web", "instance", "web")):
        assert owner.post(f"{NETWORK}/elastic-ips/{ids[name]}/associate", {"target_type": kind, "target_id": target}).status_code == 200
    worker.drain()
    gone(owner, worker, database, apollo)
