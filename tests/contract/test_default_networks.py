"""The network that a project begins with: made with it, brought later where it could not be, and gone with it."""

from collections.abc import Callable
from typing import Any

import pytest
from flask.testing import FlaskClient
from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker

from portal.bootstrap import initialise
from portal.engines.ports import Capability
from portal.identity.project_deletion import project_delete
from portal.identity.projects import network_of, project_create
from portal.kernel.capabilities import report
from portal.kernel.context import Context
from portal.kernel.db import transaction
from portal.kernel.jobs import Job
from portal.kernel.quota import Quota, recount
from portal.kernel.runner import TaskRun
from portal.networking.models import InternetGateway, IpAllocation, RouteTable, SecurityGroup, Subnet, Vpc
from portal.networking.reconcile import reconcile_networks
from portal.networking.vpc import vpc_delete
from portal.settings import Settings
from tests.support.draining import TestWorker
from tests.support.people import People
from tests.support.recording_network import RecordingNetwork
from tests.support.scenarios import Stage, running_instance
from tests.support.web import Api, csrf_of, one_of_each

OF_IT = (Vpc, Subnet, SecurityGroup, RouteTable, InternetGateway)


def of(sessions: sessionmaker[Session], project_id: str) -> dict[str, int]:
    """How many of each there are in a project."""
    with sessions() as session:
        rows = {m.__name__: session.scalars(select(m.id).where(m.project_id == project_id, m.deleted_at.is_(None))).all() for m in OF_IT}  # type: ignore[attr-defined]
    return {name: len(ids) for name, ids in rows.items() if ids}


ALL_OF_IT = {model.__name__: 1 for model in OF_IT}


def unavailable(sessions: sessionmaker[Session]) -> None:
    with sessions() as session:
        report(session, Capability("network", available=False, detail="", reason="No network namespaces.", remedy="Run it as root."), worker="w")


def compare(people: People, worker: TestWorker) -> None:
    """What a worker does at its start and then again and again."""
    reconcile_networks(TaskRun(people.context(None), worker.runner.engines))


def test_a_project_begins_with_its_network(people: People, worker: TestWorker, network: RecordingNetwork, database: sessionmaker[Session]) -> None:
    ctx, told = people.context(people.user("platform_admin")), list[str]()
    ctx.deliver = told.extend
    project = project_create(ctx, name="apollo")
    assert of(database, project.id) == ALL_OF_IT
    with database() as session:
        vpc = session.scalars(select(Vpc).where(Vpc.project_id == project.id)).one()
        # Whoever makes the project may die now: the job is in the ledger.
        job = session.scalars(select(Job).where(Job.resource_id == vpc.id)).one()
        assert (vpc.state, job.state, told) == ("pending", "queued", [job.id])
        used = {row.dimension: row.used for row in session.scalars(select(Quota).where(Quota.project_id == project.id)) if row.used}
        assert (used["networks"], used["subnets"], used["security_groups"], used["rows:networking.internet_gateway"]) == (1, 1, 1, 1)
    worker.drain()
    spec = network.specs[vpc.id]
    assert (spec.cidr, [each.cidr for each in spec.subnets], spec.uplink_address != "") == ("172.31.0.0/16", ["172.31.0.0/20"], True)
    with database() as session:
        assert session.get_one(Vpc, vpc.id).state == "available"
    with database() as session, transaction(session):
        assert recount(session) == []


def test_api_and_console_say_what_it_is(
    api_for: Callable[..., Api], client_for: Callable[..., FlaskClient], database: sessionmaker[Session], worker: TestWorker
) -> None:
    api, client = api_for("platform_admin"), client_for("platform_admin")
    made = api.post("/projects", {"name": "apollo"})
    assert (made.status_code, made.json["network_reason"]) == (201, "")
    vpc = api.get(f"/networking/vpcs?all_projects=true&search={made.json['default_vpc_id']}").json["results"]
    assert [(each["is_default"], each["project_id"]) for each in vpc] == [(True, made.json["project_id"])]
    page = client.get(f"/projects/{made.json['project_id']}").text
    assert f'href="/networking/vpcs/{made.json["default_vpc_id"]}"' in page
    unavailable(database)
    bare = api.post("/projects", {"name": "bare"}).json
    assert (bare["default_vpc_id"], bare["network_reason"]) == (None, "Networks cannot be made here: No network namespaces. Run it as root.")
    assert of(database, bare["project_id"]) == {}
    sent = client.post("/projects", data={"csrf_token": csrf_of(client.get("/projects")), "name": "barer"}, follow_redirects=True).text
    assert "Project barer is created. It has no network yet: Networks cannot be made here: No network namespaces. Run it as root." in sent


def test_projects_from_before_get_theirs_from_a_worker(
    people: People, worker: TestWorker, network: RecordingNetwork, database: sessionmaker[Session], settings: Settings
) -> None:
    older = people.project("older")
    with database() as session:
        assert initialise(session, settings) is None
    assert "A worker brings it" in network_of(people.context(None), people.context(None).db.get_one(_project(), older)).reason
    compare(people, worker)
    worker.drain()
    assert [of(database, each) for each in (older, people.project_id)] == [ALL_OF_IT, ALL_OF_IT]
    assert len(network.specs) == 2
    compare(people, worker)
    assert of(database, older) == ALL_OF_IT


def _project() -> Any:
    from portal.identity.models import Project

    return Project


def test_no_room_for_a_network_is_no_reason_against_a_project(
    people: People, worker: TestWorker, database: sessionmaker[Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    full = people.project("full")
    with database() as session, transaction(session):
        session.add(Quota(project_id=full, dimension="subnets", limit=0, used=0))
    compare(people, worker)
    assert of(database, full) == {}
    with database() as session:
        assert session.scalars(select(IpAllocation).where(IpAllocation.subnet_id == "external")).all() != []
    with database() as session, transaction(session):
        assert recount(session) == []
        session.get_one(Quota, (full, "subnets")).limit = 5
    compare(people, worker)
    assert of(database, full) == ALL_OF_IT
    nothing = people.settings.model_copy(update={"network_external_cidr": "100.64.0.0/30"})
    ctx: Context = people.context(people.user("platform_admin"))
    ctx.settings = nothing
    apollo = project_create(ctx, name="apollo")
    assert of(database, apollo.id) == {}


def test_one_that_was_deleted_stays_away_until_it_is_needed(
    stage: Stage, people: People, network: RecordingNetwork, database: sessionmaker[Session]
) -> None:
    compare(people, stage.worker)
    stage.worker.drain()
    (vpc_id,) = network.specs
    stage.do(vpc_delete, vpc_id, force=True)
    compare(people, stage.worker)
    stage.worker.drain()
    assert of(database, people.project_id) == {}
    assert "It was deleted" in network_of(stage.ctx, stage.ctx.db.get_one(_project(), people.project_id)).reason
    assert running_instance(stage).private_ip == "172.31.0.4"
    assert of(database, people.project_id) == ALL_OF_IT


def test_a_first_instance_that_fails_leaves_a_network_that_gets_there(
    stage: Stage, people: People, network: RecordingNetwork, database: sessionmaker[Session]
) -> None:
    from portal.compute.instances import instance_create
    from portal.kernel.operations import run

    outcome = run(stage.ctx, instance_create, None, {"name": "web", "flavor": "t3-micro", "image": "atonix-tiny"})
    with database() as session, transaction(session):
        session.get_one(Job, outcome.job_id).cancel_requested = True
    stage.worker.drain()
    # Its job was to make the network as well; where that did not come so far, the reconciler goes on.
    compare(people, stage.worker)
    stage.worker.drain()
    with database() as session:
        assert [each.state for each in session.scalars(select(Vpc))] == ["available"]


def test_it_goes_with_its_project(people: People, worker: TestWorker, network: RecordingNetwork, database: sessionmaker[Session]) -> None:
    ctx = people.context(people.user("platform_admin"))
    project = project_create(ctx, name="apollo")
    worker.drain()
    before = network.specs.keys()
    assert len(before) == 1
    job = project_delete(ctx, project.id)
    run_out(worker, database, job.id)
    assert (of(database, project.id), network.specs) == ({}, {})
    with database() as session:
        assert session.scalars(select(IpAllocation)).all() == []
    compare(people, worker)
    assert of(database, project.id) == {}


def test_whatever_is_in_its_networks_goes_with_a_project(
    api_for: Callable[..., Api], people: People, worker: TestWorker, network: RecordingNetwork, database: sessionmaker[Session]
) -> None:
    here, there = (project_create(people.context(people.user("platform_admin")), name=name).id for name in ("apollo", "gemini"))
    owner, other = api_for("project_admin", here), api_for("project_admin", there)
    worker.drain()
    one_of_each(owner, worker.drain, "full")
    for name, kind in (("card", "network-interface"), ("nat", "nat-gateway")):
        eip = owner.post("/networking/elastic-ips", {"name": name}).json["id"]
        target = {"network-interface": "full", "nat-gateway": "full"}[kind]
        done = owner.post(f"/networking/elastic-ips/{eip}/associate", {"target_type": kind, "target_id": target})
        assert done.status_code == 200, done.json
    far = other.post("/networking/vpcs", {"name": "far", "cidr_block": "10.9.0.0/16"}).json["id"]
    worker.drain()
    assert owner.post("/networking/vpc-peerings", {"name": "across", "vpc": "full", "peer_vpc": far}).status_code == 201
    asked = other.get("/networking/vpc-peerings").json["results"][0]["id"]
    assert other.post(f"/networking/vpc-peerings/{asked}/accept").status_code == 200
    worker.drain()
    job = owner("DELETE", f"/projects/{here}").json["job_id"]
    run_out(worker, database, job)
    assert (of(database, here), other.get("/networking/vpc-peerings").json["results"]) == ({}, [])
    assert set(network.specs) == {far, *_defaults(database, there)}
    with database() as session, transaction(session):
        assert recount(session) == []
        assert {row.resource_id for row in session.scalars(select(IpAllocation))} == _defaults(database, there)


def _defaults(sessions: sessionmaker[Session], project_id: str) -> set[str]:
    with sessions() as session:
        return set(session.scalars(select(Vpc.id).where(Vpc.project_id == project_id, Vpc.is_default)))


def run_out(worker: TestWorker, sessions: sessionmaker[Session], job_id: str) -> None:
    """Let a job run that waits for others between its rounds."""
    for _ in range(30):
        worker.drain()
        with sessions() as session, transaction(session):
            waiting = session.get_one(Job, job_id)
            if waiting.state not in {"queued", "running", "retrying"}:
                break
            waiting.run_at = waiting.created_at
    job = worker.job(job_id)
    assert job.state == "succeeded", job.error
