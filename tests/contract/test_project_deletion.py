"""Deleting a project: shown beforehand, taken apart by a job, and gone; what cannot go is named, and nothing is made meanwhile."""

import re
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session, sessionmaker

from portal.bootstrap import initialise
from portal.compute.instances import Instance
from portal.compute.key_pairs import key_pair_create
from portal.engines.fake import FakeCompute
from portal.engines.fake_volumes import FakeVolumes
from portal.engines.ports import EngineRefused
from portal.identity.iam import IamAttachment, IamGroup, IamPolicy, IamRole
from portal.identity.models import ApiToken, Membership, Project, User, UserSession
from portal.identity.project_deletion import project_delete, project_leaving
from portal.identity.projects import member_set, project_create
from portal.identity.service_accounts import service_account_create
from portal.kernel.audit import AuditEntry
from portal.kernel.context import Context
from portal.kernel.db import now
from portal.kernel.errors import ConfirmationRequired, Forbidden, NotFound, PortalError, StateConflict
from portal.kernel.jobs import Job, reap
from portal.kernel.operations import run
from portal.kernel.policy_documents import VERSION
from portal.kernel.quota import Quota, Reservation
from portal.kernel.quota_requests import quota_request_create
from portal.settings import Settings
from tests.support.draining import TestWorker
from tests.support.people import People
from tests.support.racing import race
from tests.support.web import Api, browser, csrf_of

SMALL = {"flavor": "t3-micro", "image": "atonix-tiny"}
ALLOW = {"Version": VERSION, "Statement": [{"Effect": "Allow", "Action": "compute.key_pair.read", "Resource": "*"}]}


@pytest.fixture
def apollo(people: People) -> str:
    return people.project("apollo")


@pytest.fixture
def owner(api_for: Callable[..., Api], apollo: str) -> Api:
    """A project admin of apollo."""
    return api_for("project_admin", apollo)


@pytest.fixture
def full(owner: Api, people: People, worker: TestWorker, apollo: str) -> str:
    """Apollo with instances, volumes, a key, a group, an attached policy, a member, a service account with a key and a request."""
    for name in ("web-1", "web-2"):
        assert owner.post("/compute/instances", {"name": name, **SMALL}).status_code == 202
    owner.post("/compute/key-pairs", {"name": "laptop"})
    data = owner.post("/storage/volumes", {"name": "data", "size_gb": 1, "encryption_enabled": True}).json["id"]
    worker.drain()
    owner.post(f"/storage/volumes/{data}/attach", {"instance": "web-1"})
    worker.drain()
    assert owner.post(f"/storage/volumes/{data}/snapshots", {"name": "kept"}).status_code == 202
    worker.drain()
    member = people.user("developer", apollo)
    group = owner.post("/security/groups", {"name": "crew", "role": "viewer"}).json["id"]
    assert owner.post(f"/security/groups/{group}/members", {"user_id": member.id}).status_code in {200, 201}
    policy = owner.post("/security/policies", {"name": "look", "document": ALLOW}).json["id"]
    attached = owner.post(f"/security/policies/{policy}/attach", {"principal_type": "user", "principal_id": member.id})
    assert attached.status_code in {200, 201}, attached.json
    role = owner.post("/security/roles", {"name": "operator", "trust_policy": {"principals": [{"type": "user", "id": member.id}]}}).json["id"]
    owner.post(f"/security/policies/{policy}/attach", {"principal_type": "role", "principal_id": role})
    account = owner.post("/service-accounts", {"name": "robot", "role": "developer"}).json["id"]
    assert owner.post(f"/service-accounts/{account}/keys", {"name": "ci"}).status_code == 201
    assert owner.post("/quota-requests", {"resource_type": "cpus", "limit": 900, "reason": "More."}).status_code == 201
    return apollo


def test_everything_is_shown_and_then_gone(
    full: str, owner: Api, people: People, worker: TestWorker, fake: FakeCompute, *, volumes: FakeVolumes
) -> None:
    shown = owner.get(f"/projects/{full}/deletion").json
    assert {"label": "Instances", "count": 2, "names": ["web-1", "web-2"]} in shown["resources"]
    network = {"VPC", "Subnet", "Security group", "Route table", "Internet gateway", "Network interfaces"}
    assert {each["label"] for each in shown["resources"]} == {
        "Instances",
        "Key pair",
        "Encryption key",
        "Group",
        "Policy",
        "Role",
        "Volumes",
        "Snapshot",
        *network,
    }
    gone = {each["label"]: each["names"] for each in shown["gone"]}
    assert list(gone) == ["Memberships", "Service accounts with their keys", "Requests for more quota"]
    assert (len(gone["Memberships"]), gone["Service accounts with their keys"], gone["Requests for more quota"]) == (2, ["robot"], ["cpus"])
    assert shown["in_the_way"] == []
    begun = owner("DELETE", f"/projects/{full}")
    assert begun.status_code == 202
    assert worker.job(begun.json["job_id"]).label == "Delete project apollo"
    worker.drain()
    assert worker.job(begun.json["job_id"]).state == "succeeded"
    assert (fake.machines(), volumes.kept()) == ({}, [])
    assert owner.get(f"/projects/{full}").status_code == 404
    boss = people.context(people.user("platform_admin"))
    with pytest.raises(NotFound):
        project_leaving(boss, full)
    with people.sessions() as session:
        for model in (Membership, Quota, Reservation):
            assert session.scalar(select(func.count()).select_from(model).where(model.project_id == full)) == 0
        for model in (IamGroup, IamPolicy, IamRole):
            assert session.scalars(select(model.name).where(model.project_id == full, model.deleted_at.is_(None))).all() == []
        assert session.scalars(select(IamAttachment)).all() == []
        assert session.scalars(select(User.username).where(User.username == "robot")).all() == []
        assert session.scalars(select(User.id).where(User.default_project_id == full)).all() == []
        said = session.scalars(select(AuditEntry.action).where(AuditEntry.resource_id == full).order_by(AuditEntry.seq)).all()
    assert said[-2:] == ["identity.project.delete", "identity.project.delete.succeeded"]
    alerts = owner.get("/alerts").json["results"]
    assert alerts[0]["title"] == "Project apollo is deleted"
    # Its name is free again.
    assert project_create(boss, name="apollo").id != full


def test_what_does_not_go_stays_and_is_named(full: str, owner: Api, worker: TestWorker, fake: FakeCompute, database: sessionmaker[Session]) -> None:
    fake.fail_next("remove_machine", EngineRefused("the host holds on to it"), times=1)
    job_id = owner("DELETE", f"/projects/{full}").json["job_id"]
    worker.drain()
    job = worker.job(job_id)
    assert job.state == "failed"
    assert "the host holds on to it" in job.error
    assert owner.get(f"/projects/{full}").status_code == 200
    assert owner.get("/alerts").json["results"][0]["title"] == "Project apollo is not deleted"
    with database() as session:
        assert len(session.scalars(select(Instance.name).where(Instance.project_id == full, Instance.deleted_at.is_(None))).all()) == 1
        assert session.scalars(select(Membership).where(Membership.project_id == full)).all() != []
    # The project is its members' again, and the second try ends it.
    assert owner.post("/compute/key-pairs", {"name": "another"}).status_code == 201
    assert owner("DELETE", f"/projects/{full}").status_code == 202
    worker.drain()
    assert owner.get(f"/projects/{full}").status_code == 404


def test_what_is_in_the_way_is_said_before(full: str, owner: Api, people: People, database: sessionmaker[Session]) -> None:
    with database() as session:
        instance = session.scalars(select(Instance.id).where(Instance.name == "web-1")).one()
    assert owner.post(f"/compute/instances/{instance}/lock").status_code == 200
    boss = people.context(people.user("platform_admin"), full)
    denial = {"Version": VERSION, "Statement": [{"Effect": "Deny", "Action": "compute.key_pair.delete", "Resource": "*"}]}
    policy = owner.post("/security/policies", {"name": "keep-keys", "document": denial}).json["id"]
    owner.post(f"/security/policies/{policy}/attach", {"principal_type": "user", "principal_id": owner.user.id})
    shown = owner.get(f"/projects/{full}/deletion").json["in_the_way"]
    assert shown == ["Instance web-1 is locked against changes: unlock first.", "Key pair laptop is not yours to delete (compute.key_pair.delete)."]
    refused = owner("DELETE", f"/projects/{full}")
    assert refused.status_code == 409
    assert refused.json["details"]["in_the_way"] == shown
    assert project_leaving(boss, full).in_the_way == shown[:1]


def test_a_protected_instance_is_in_the_way(full: str, owner: Api, worker: TestWorker, database: sessionmaker[Session]) -> None:
    with database() as session:
        instance = session.scalars(select(Instance.id).where(Instance.name == "web-1")).one()
    assert owner("PATCH", f"/compute/instances/{instance}", {"enable_termination_protection": True}).status_code == 200
    shown = owner.get(f"/projects/{full}/deletion").json["in_the_way"]
    assert shown == ["Instance web-1 is protected: switch termination protection off first."]
    assert owner("DELETE", f"/projects/{full}").status_code == 409
    worker.drain()
    assert len(owner.get("/compute/instances").json["results"]) == 2


def test_nothing_is_made_or_changed_meanwhile(full: str, owner: Api, people: People, worker: TestWorker, database: sessionmaker[Session]) -> None:
    ctx = people.context(owner.user, full)
    robot = owner.post("/service-accounts", {"name": "clerk", "role": "viewer"}).json["id"]
    trust = {"principals": [{"type": "user", "id": owner.user.id}]}
    role = owner.post("/security/roles", {"name": "late-helper", "trust_policy": trust}).json["id"]
    assert owner("DELETE", f"/projects/{full}").status_code == 202
    with database() as session:
        instance = session.scalars(select(Instance.id).where(Instance.name == "web-1")).one()
    refusals: list[Callable[[], object]] = [
        lambda: run(ctx, key_pair_create, None, {"name": "late"}), lambda: member_set(ctx, full, people.user("viewer").username, "viewer"),
        lambda: service_account_create(ctx, name="late-robot"), lambda: quota_request_create(ctx, full, "instances", limit=900, reason="More."),
        lambda: project_delete(ctx, full),
    ]  # fmt: skip
    for call in refusals:
        with pytest.raises(StateConflict, match="being deleted"):
            call()
    assert owner.post(f"/compute/instances/{instance}/stop").status_code == 409
    signed_in = owner.signed_in()
    application = {"name": "x", "grants": ["client_credentials"], "scopes": ["compute:read"], "service_account_id": robot}
    assert signed_in.post(f"/service-accounts/{robot}/keys", {"name": "late"}).status_code == 409
    assert signed_in.post(f"/security/roles/{role}/assume", {"session_name": "late"}).status_code == 409
    assert signed_in.post("/oauth-clients", application).status_code == 409
    worker.drain()
    with pytest.raises(NotFound):
        run(ctx, key_pair_create, None, {"name": "too-late"})


def test_a_key_made_at_the_same_moment_is_refused_or_goes_with_it(people: People, worker: TestWorker, database: sessionmaker[Session]) -> None:
    for number in range(4):
        project_id = people.project()
        owner, maker = people.user("project_admin", project_id), people.user("developer", project_id)
        deleting, making = people.context(owner, project_id), people.context(maker, project_id)

        def delete(ctx: Context = deleting, project_id: str = project_id) -> object:
            return project_delete(ctx, project_id)

        def make(ctx: Context = making, name: str = f"key-{number}") -> object:
            return run(ctx, key_pair_create, None, {"name": name})

        outcome = race([delete, make])
        assert isinstance(outcome[0], Job)
        assert not isinstance(outcome[1], Exception) or isinstance(outcome[1], PortalError)
        worker.drain()
        with database() as session:
            assert session.get_one(Project, project_id).deleted_at is not None
            assert session.scalars(select(Reservation).where(Reservation.project_id == project_id)).all() == []


def test_a_worker_that_dies_on_the_way_is_followed_by_another(full: str, owner: Api, worker: TestWorker) -> None:
    job_id = owner("DELETE", f"/projects/{full}").json["job_id"]
    while (claim := worker.claim()) is not None and claim.job_id != job_id:
        worker.runner.run(claim)
    assert claim is not None
    worker.let_lease_run_out(job_id)
    with worker.sessions() as session:
        assert reap(session) == [job_id]
    worker.drain()
    assert worker.job(job_id).state == "succeeded"


def test_a_deletion_can_be_cancelled_on_the_way(full: str, owner: Api, people: People, worker: TestWorker) -> None:
    job_id = owner("DELETE", f"/projects/{full}").json["job_id"]
    while worker.job(job_id).steps[0].state == "todo":
        assert worker.run_one()
    assert owner.post(f"/jobs/{job_id}/cancel").status_code == 202
    worker.drain()
    step = worker.job(job_id).steps[0]
    assert (worker.job(job_id).state, step.state) == ("cancelled", "stopped")
    assert re.fullmatch(r"(\d+ things are|One thing is) left\. What was deleted by then is gone; the project stays with what is left\.", step.detail)
    page = browser(owner.client.application, people, owner.user).get(f"/jobs/{job_id}").text
    assert ("stopped" in page, "undone" in page, step.detail in page) == (True, False, True)
    # What had begun is finished; the rest stays, and the project is its members' again.
    assert owner.get(f"/projects/{full}").status_code == 200
    assert owner.post("/compute/key-pairs", {"name": "another"}).status_code == 201


def test_an_old_proof_is_not_enough(full: str, owner: Api, people: People) -> None:
    ctx = people.context(owner.user, full)
    ctx.principal = replace(ctx.principal, proved_at=now() - timedelta(hours=1))
    with pytest.raises(ConfirmationRequired):
        project_delete(ctx, full)


def test_sessions_in_its_roles_end_with_it(full: str, owner: Api, worker: TestWorker, database: sessionmaker[Session]) -> None:
    role = owner.post("/security/roles", {"name": "own", "trust_policy": {"principals": [{"type": "user", "id": owner.user.id}]}}).json["id"]
    assert owner.post(f"/security/roles/{role}/assume", {"session_name": "last"}).status_code == 201
    owner("DELETE", f"/projects/{full}")
    worker.drain()
    with database() as session:
        assert session.scalars(select(ApiToken).where(ApiToken.role_id == role)).all() == []


def test_who_may(full: str, people: People) -> None:
    for user in (people.user("developer", full), people.user("auditor")):
        with pytest.raises(Forbidden):
            project_delete(people.context(user, full), full)
    with pytest.raises(NotFound):
        project_delete(people.context(people.user("project_admin")), full)
    assert project_delete(people.context(people.user("platform_admin")), full).state == "queued"


def test_a_deleted_default_project_does_not_come_back(
    people: People, worker: TestWorker, settings: Settings, database: sessionmaker[Session]
) -> None:
    other, default = people.project("other"), people.project_id
    project_delete(people.context(people.admin()), default)
    worker.drain()
    with database() as session:
        initialise(session, settings)
        assert session.scalars(select(Project.id).where(Project.deleted_at.is_(None))).all() == [other]


def test_the_page_asks_for_the_name(full: str, owner: Api, people: People, worker: TestWorker, database: sessionmaker[Session]) -> None:
    client = browser(owner.client.application, people, owner.user)
    page = client.get(f"/projects/{full}/delete")
    assert "web-1, web-2" in page.text
    wrong = client.post(f"/projects/{full}/delete", data={"csrf_token": csrf_of(page), "confirm": "apolo"})
    assert wrong.status_code == 422
    begun = client.post(f"/projects/{full}/delete", data={"csrf_token": csrf_of(page), "confirm": "apollo"})
    assert begun.status_code == 303
    assert "Delete project apollo" in client.get(begun.location).text
    worker.drain()
    with database() as session:
        assert session.scalars(select(UserSession.project_id).where(UserSession.user_id == owner.user.id)).all() == [None]
    # Whoever was in no other project sees that, not an error.
    assert client.get("/").status_code == 200
    assert client.get(f"/projects/{full}").status_code == 404
