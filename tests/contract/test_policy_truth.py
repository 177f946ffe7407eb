"""What a policy says holds for every way in which the same thing can be asked for, and the simulator says what would come of it."""

import itertools
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import update

from portal.engines.fake import FakeCompute
from portal.engines.fake_volumes import FakeVolumes
from portal.engines.ports import EngineRefused
from portal.identity.admin import detach_policies
from portal.identity.models import Membership, UserSession
from portal.kernel.db import now, transaction
from portal.kernel.jobs import Job
from tests.contract.test_iam import SMALL, allow, attach, write
from tests.support.draining import TestWorker
from tests.support.oauth import register
from tests.support.people import People
from tests.support.web import Api, api_client, browser, csrf_of

NUMBERS = itertools.count()
CREATE, RESIZE, STOP = "compute.instance.create", "compute.instance.resize", "compute.instance.stop"


@pytest.fixture
def admin(api_for: Callable[..., Api]) -> Api:
    """A project admin."""
    return api_for("project_admin")


@pytest.fixture
def developer(api_for: Callable[..., Api]) -> Api:
    """Somebody who makes machines."""
    return api_for("developer")


def deny(admin: Api, api: Api, *actions: str, **conditions: Any) -> None:
    attach(admin, write(admin, f"no-{next(NUMBERS)}", allow(*actions, effect="Deny", **conditions)), api.user.id)


def test_a_name_stands_for_no_id(admin: Api, api_for: Callable[..., Api]) -> None:
    tenant = api_for("viewer")
    attach(admin, write(admin, "only-tiny", allow(CREATE, StringEquals={"request.input/image": "atonix-tiny"})), tenant.user.id)
    attach(admin, write(admin, "images", allow("compute.image.*")), tenant.user.id)
    own = tenant.post("/compute/images", {"name": "atonix-tiny"}).json["id"]
    assert own != "atonix-tiny"
    assert tenant.post("/compute/instances", {"name": "x", "flavor": "t3-micro", "image": own}).status_code == 403


@pytest.mark.parametrize(("said", "expected"), [
    (("Allow", "StringEquals"), (201, 403, 403)), (("Deny", "StringNotEquals"), (201, 403, 403)), (("Deny", "StringEquals"), (403, 403, 201)),
])  # fmt: skip
def test_a_list_is_judged_entry_by_entry(
    admin: Api, api_for: Callable[..., Api], worker: TestWorker, said: tuple[str, str], expected: tuple[int, ...]
) -> None:
    effect, operator = said
    make = "networking.network_interface.create"
    tenant = api_for("viewer" if effect == "Allow" else "developer")
    vpc = admin.post("/networking/vpcs", {"name": "net", "cidr_block": "10.0.0.0/16"}).json["id"]
    worker.drain()
    subnet = admin.post("/networking/subnets", {"name": "front", "vpc": vpc, "cidr_block": "10.0.1.0/24"}).json["id"]
    allowed, other = (admin.post("/networking/security-groups", {"name": name, "vpc": vpc}).json["id"] for name in ("allowed", "other"))
    worker.drain()
    attach(admin, write(admin, "some", allow(make, effect=effect, **{operator: {"request.input/security_groups": allowed}})), tenant.user.id)
    wanted = (["allowed"], ["allowed", "other"], [other])
    answers = [
        tenant.post("/networking/network-interfaces", {"name": f"eni-{n}", "subnet": "front", "security_groups": each})
        for n, each in enumerate(wanted)
    ]
    assert tuple(answer.status_code for answer in answers) == expected, [answer.json for answer in answers]
    assert subnet


def test_what_was_chosen_for_somebody_is_judged_as_well(admin: Api, developer: Api, api_for: Callable[..., Api], worker: TestWorker) -> None:
    assert developer.post("/compute/instances", {"name": "first", **SMALL}).status_code == 202
    worker.drain()
    subnet = admin.get("/networking/subnets").json["results"][0]
    deny(admin, developer, CREATE, StringEquals={"request.input/subnet_id": subnet["id"]})
    for place in ({}, {"subnet_id": subnet["name"]}, {"subnet_id": subnet["id"]}):
        assert developer.post("/compute/instances", {"name": "second", **SMALL, **place}).status_code == 403, place
    other, group = api_for("developer"), admin.get(f"/networking/vpcs/{subnet['vpc_id']}").json["default_group_id"]
    deny(admin, other, CREATE, StringEquals={"request.input/security_groups": group})
    assert other.post("/compute/instances", {"name": "third", **SMALL}).status_code == 403


def test_each_of_several_is_judged_by_its_own_name(admin: Api, developer: Api) -> None:
    deny(admin, developer, CREATE, StringLike={"request.input/name": "prod-*"})
    assert developer.post("/compute/instances", {"name": "prod", "count": 2, **SMALL}).status_code == 403
    assert developer.post("/compute/instances", {"name": "test", "count": 2, **SMALL}).status_code == 202


@pytest.mark.parametrize("condition", [
    {"StringEquals": {"request.input/force": "true"}}, {"Bool": {"request.input/force": True}}, {"StringLike": {"request.input/force": "t*"}},
])  # fmt: skip
def test_yes_and_no_are_written_as_in_json(admin: Api, developer: Api, worker: TestWorker, condition: dict[str, Any]) -> None:
    made = developer.post("/compute/instances", {"name": "web", **SMALL}).json["instance_id"]
    worker.drain()
    deny(admin, developer, STOP, **condition)
    assert developer.post(f"/compute/instances/{made}/stop", {"force": True}).status_code == 403
    assert developer.post(f"/compute/instances/{made}/stop", {"force": False}).status_code == 202


@pytest.mark.parametrize("body", [{"flavor": "t3.micro"}, {"flavor": "t3-micro"}, {"instance_type": "t3.micro"}])
def test_what_a_field_names_is_known_by_its_id(admin: Api, developer: Api, body: dict[str, Any]) -> None:
    deny(admin, developer, CREATE, StringEquals={"request.input/flavor": "t3-micro"})
    request = {"name": "web", "image": "atonix-tiny", **body}
    assert developer.post("/compute/instances", request).status_code == 403
    context = {"inputs": {name: value for name, value in request.items() if name != "name"}}
    question = {"user": developer.user.username, "action": CREATE, "context": context}
    assert admin.post("/security/policies/simulate", question).json["decision"] == "deny"


@pytest.mark.parametrize("condition", [
    {"NumericGreaterThan": {"request.input/root_volume_size_gb": 4}}, {"NumericLessThan": {"request.input/count": 5}},
    {"StringEquals": {"resource.owner": "${principal.id}"}},
])  # fmt: skip
def test_the_simulator_knows_defaults_and_the_owner(admin: Api, developer: Api, condition: dict[str, Any]) -> None:
    deny(admin, developer, CREATE, **condition)
    body = {"name": "web", "root_volume_size_gb": 10, **SMALL}
    assert developer.post("/compute/instances", body).status_code == 403
    inputs = {} if "count" in str(condition) else {"root_volume_size_gb": 10}
    question = {"user": developer.user.username, "action": CREATE, "context": {"inputs": inputs}}
    assert admin.post("/security/policies/simulate", question).json["decision"] == "deny"


def test_the_simulator_imagines_no_field_that_there_is_not(admin: Api) -> None:
    question = {"user": admin.user.username, "action": "identity.service_account.create", "context": {"inputs": {"name": "sys"}}}
    refused = admin.post("/security/policies/simulate", question)
    assert (refused.status_code, "see none of its fields" in str(refused.json["details"])) == (400, True)


def test_who_may_not_see_it_may_not_change_it(admin: Api, developer: Api, worker: TestWorker) -> None:
    made = admin.post("/compute/instances", {"name": "web", **SMALL}).json["instance_id"]
    worker.drain()
    deny(admin, developer, "compute.instance.read")
    path, resource = f"/compute/instances/{made}", f"compute.instance/{made}"
    assert developer("PATCH", path, {"description": "x"}).status_code == 404
    answer = admin.post(
        "/security/policies/simulate", {"user": developer.user.username, "action": "compute.instance.update", "resource": resource}
    ).json
    assert (answer["decision"], "not there for who may not see it" in answer["because"]) == ("deny", True)
    holders = admin.get(f"/security/who-can?action=compute.instance.update&resource={resource}").json["results"]
    assert developer.user.username not in {row["username"] for row in holders}


@pytest.mark.parametrize("hidden", [{}, {"StringEquals": {"resource.tag/env": "prod"}}])
def test_what_is_hidden_is_told_by_nothing_else(admin: Api, developer: Api, worker: TestWorker, people: People, hidden: dict[str, Any]) -> None:
    made = admin.post("/compute/instances", {"name": "secret-1", "tags": {"env": "prod"}, **SMALL}).json["instance_id"]
    worker.drain()
    deny(admin, developer, "compute.instance.read", **hidden)
    for path in ("/jobs", "/events", f"/jobs?resource_id={made}", "/networking/network-interfaces", "/storage/volumes"):
        assert (made in admin.get(path).text, made in developer.get(path).text) == (True, False), path
    client = browser(admin.client.application, people, developer.user)
    card = developer.get("/networking/network-interfaces").json["results"][0]
    assert (card["name"], card["instance_id"], card["instance"]) == (card["id"], None, None)
    disk = developer.get("/storage/volumes").json["results"][0]
    assert (disk["name"], disk["instance_id"], disk["attached_to"]) == (disk["id"], None, None)
    pages = ("/", "/jobs", "/networking/network-interfaces", f"/networking/network-interfaces/{card['id']}", f"/storage/volumes/{disk['id']}")
    told = "".join(client.get(path).text for path in (*pages, "/storage/volumes"))
    assert (made in told, "secret-1" in told) == (False, False)


def test_a_job_is_retried_under_the_rules_of_today(admin: Api, developer: Api, worker: TestWorker, fake: FakeCompute) -> None:
    made = developer.post("/compute/instances", {"name": "web", **SMALL}).json["instance_id"]
    worker.drain()
    developer.post(f"/compute/instances/{made}/stop")
    worker.drain()
    fake.fail_next("ensure_defined", EngineRefused("no room"), times=9)
    job = developer.post(f"/compute/instances/{made}/resize", {"flavor": "t3-small"}).json["job_id"]
    worker.drain()
    assert developer.get(f"/jobs/{job}").json["state"] in {"failed", "dead"}
    deny(admin, developer, RESIZE, StringEquals={"request.input/flavor": "t3-small"})
    assert developer.post(f"/jobs/{job}/retry").status_code == 403
    assert admin.post(f"/jobs/{job}/retry").status_code in {200, 202}


def test_what_was_protected_since_is_not_terminated_by_a_retry(admin: Api, developer: Api, worker: TestWorker, fake: FakeCompute) -> None:
    made = developer.post("/compute/instances", {"name": "web", **SMALL}).json["instance_id"]
    worker.drain()
    fake.fail_next("remove_machine", EngineRefused("no"), times=9)
    job = developer("DELETE", f"/compute/instances/{made}").json["job_id"]
    worker.drain()
    assert developer.get(f"/jobs/{job}").json["state"] in {"failed", "dead"}
    assert admin("PATCH", f"/compute/instances/{made}", {"enable_termination_protection": True}).status_code == 200
    assert developer.post(f"/jobs/{job}/retry").status_code == 409
    assert admin("PATCH", f"/compute/instances/{made}", {"enable_termination_protection": False}).status_code == 200
    assert admin.post(f"/compute/instances/{made}/lock").status_code == 200
    assert developer.post(f"/jobs/{job}/retry").status_code == 409


def test_a_policy_is_attached_through_no_other_door(admin: Api, api_for: Callable[..., Api]) -> None:
    keeper = api_for("project_admin")
    policy = write(admin, "looks", allow("compute:read"))
    deny(admin, keeper, "security.policy.attach", "security.policy.detach")
    role = admin.post("/security/roles", {"name": "held", "permission_policies": [policy]}).json["id"]
    assert keeper.post("/security/roles", {"name": "made", "permission_policies": [policy]}).status_code == 403
    assert keeper("PATCH", f"/security/roles/{role}", {"permission_policies": []}).status_code == 403
    assert keeper.post("/security/roles", {"name": "empty"}).status_code == 201


def test_a_project_shuts_nobody_out_who_administers_the_platform(api_for: Callable[..., Api], people: People) -> None:
    boss, project = api_for("platform_admin"), people.project()
    pad, _ = api_for("project_admin", project), people.user("project_admin", project)
    assert pad.post(f"/projects/{project}/members", {"username": boss.user.username, "role": "viewer"}).status_code in {200, 201}
    policy = write(pad, "everything", allow("*", effect="Deny"))
    attach(pad, policy, boss.user.id)
    assert boss.get(f"/projects/{project}").status_code == 200
    in_project = {"headers": {"X-Project": project}}
    assert boss.get("/compute/instances", **in_project).status_code == 200
    assert boss.post("/compute/key-pairs", {"name": "x"}, **in_project).status_code == 403, "what is no administration is denied all the same"
    more = {"username": "more", "email": "more@example.org", "platform_role": "platform_admin"}
    assert boss.post("/users", more).status_code == 403, "nobody becomes administrator by a token alone"
    assert boss.signed_in().post("/users", more).status_code == 201
    assert boss("PATCH", f"/users/{pad.user.id}", {"is_active": False}).status_code == 200
    attached = {"principal_type": "user", "principal_id": boss.user.id}
    assert boss.post(f"/security/policies/{policy}/detach", attached, **in_project).status_code == 200


def test_the_last_who_could_sign_in_stays_project_admin(admin: Api, api_for: Callable[..., Api], people: People) -> None:
    boss, project = api_for("platform_admin"), people.project()
    first, second = people.user("project_admin", project), people.user("project_admin", project)
    assert boss("PATCH", f"/users/{first.id}", {"is_active": False}).status_code == 200
    assert boss("DELETE", f"/projects/{project}/members/{second.id}").status_code == 409
    assert boss.post(f"/projects/{project}/members", {"username": second.username, "role": "viewer"}).status_code == 409


def test_an_application_changes_no_accounts_for_anybody(api_for: Callable[..., Api], people: People) -> None:
    boss, victim = api_for("platform_admin"), api_for("developer")
    app = boss.client.application
    wide = register(api_for("developer"), app, scopes=["admin"])
    theirs = register(victim, app)
    token = wide.tokens(browser(app, people, boss.user), scope="admin")["access_token"]
    given = Api(app.test_client(), boss.user, "", {"Authorization": f"Bearer {token}"})
    assert given.get("/compute/instances").status_code == 200
    project = people.project_id
    tried = [
        given("PATCH", f"/oauth-clients/{theirs.client_id}", {"redirect_uris": ["https://thief.example/cb"]}), given.post(f"/oauth-clients/{theirs.client_id}/rotate-secret"),
        given("DELETE", f"/oauth-clients/{theirs.client_id}"), given.post("/users", {"username": "mine", "email": "mine@example.org", "password": "tulip-violin-anchor"}),
        given.post(f"/users/{victim.user.id}/sign-out"), given("PUT", f"/projects/{project}/boundary", {"policy": None}), given("DELETE", f"/projects/{project}"),
        given.post("/service-accounts", {"name": "mine"}), given.post("/security/groups", {"name": "mine"}),
    ]  # fmt: skip
    assert [answer.status_code for answer in tried] == [403] * len(tried)
    narrow = api_client(app, people, boss.user)
    scoped = Api(narrow.client, boss.user, narrow.post("/auth/keys", {"name": "n", "scopes": ["identity:*"]}).json["key"])
    assert scoped("DELETE", f"/oauth-clients/{theirs.client_id}").status_code == 403


@pytest.mark.parametrize(("action", "condition", "says"), [
    (CREATE, {"StringEquals": {"request.input/instance_type": "t3-micro"}}, "conditions know it as request.input/flavor"),
    (CREATE, {"StringEquals": {"request.input/nonsense": "x"}}, "can never hold"), (CREATE, {"StringNotEquals": {"request.input/nonsense": "x"}}, "always holds"),
    ("identity.service_account.create", {"StringLike": {"request.input/name": "sy*"}}, "can never hold"),
])  # fmt: skip
def test_fields_that_conditions_never_see_are_said(admin: Api, action: str, condition: dict[str, Any], says: str) -> None:
    found = admin.post("/security/policies/validate", {"document": allow(action, effect="Deny", **condition)}).json
    assert says in str(found["warnings"])
    fine = admin.post(
        "/security/policies/validate", {"document": allow("compute:*", effect="Deny", StringEquals={"request.input/flavor": "t3-micro"})}
    ).json
    assert fine["warnings"] == []
    named = admin.post(
        "/security/policies/validate", {"document": allow("compute:*", effect="Deny", StringEquals={"request.input/flavor": "t3.micro"})}
    ).json
    assert "the id, which is t3-micro" in str(named["warnings"])


def test_changing_who_may_do_what_asks_who_one_is(admin: Api, people: People) -> None:
    signed_in = admin.signed_in()
    policy = write(admin, "looks", allow("compute:read"))
    with people.sessions() as session, transaction(session):
        session.execute(update(UserSession).values(proved_at=now() - timedelta(hours=1)))
    project = people.project_id
    tried = [
        signed_in("PATCH", f"/security/policies/{policy}", {"document": allow("*")}), signed_in.post("/security/groups", {"name": "crew"}),
        signed_in.post(f"/security/policies/{policy}/attach", {"principal_type": "user", "principal_id": admin.user.id}),
        signed_in.post(f"/projects/{project}/members", {"username": admin.user.username, "role": "viewer"}), signed_in.post("/service-accounts", {"name": "robot"}),
    ]  # fmt: skip
    assert {answer.json["error"] for answer in tried} == {"CONFIRMATION_REQUIRED"}
    assert signed_in.post("/compute/key-pairs", {"name": "x"}).status_code == 201


@pytest.mark.parametrize("effect", ["Deny", "Allow"])
def test_tags_count_as_long_as_there_is_a_record(admin: Api, api_for: Callable[..., Api], worker: TestWorker, effect: str, people: People) -> None:
    viewer = api_for("viewer") if effect == "Deny" else api_for("")
    if effect == "Allow":
        with people.sessions() as session, transaction(session):
            session.add(Membership(user_id=viewer.user.id, project_id=people.project_id, role=""))
    made = admin.post("/compute/instances", {"name": "web", "tags": {"env": "prod"}, **SMALL}).json["instance_id"]
    worker.drain()
    document = allow("compute.instance.read", effect=effect, StringEquals={"resource.tag/env": "prod"})
    attach(admin, write(admin, "by-tag", document), viewer.user.id)
    path, is_seen = f"/compute/instances/{made}", effect == "Allow"
    seen = [viewer.get(path).status_code == 200]
    admin("DELETE", path)
    worker.drain()
    seen += [viewer.get(path).status_code == 200, made in viewer.get("/compute/instances?state=terminated").text]
    assert seen == [is_seen] * 3
    assert made not in admin.get("/tags").text


def test_a_retry_means_what_was_meant(admin: Api, developer: Api, worker: TestWorker, volumes: FakeVolumes, people: People) -> None:
    volumes.fail_next("ensure_volume", EngineRefused("no room"), times=9)
    made = developer.post("/compute/instances", {"name": "web", "flavor": "t3.micro", "image": "atonix-tiny"}).json
    worker.drain()
    job = developer.get(f"/jobs/{made['job_id']}").json
    assert job["state"] in {"failed", "dead"}
    with people.sessions() as session:
        assert session.get_one(Job, made["job_id"]).input["flavor"] == "t3-micro", "whatever is called t3.micro by then"
    deny(admin, developer, CREATE, StringEquals={"request.input/flavor": "t3-micro"})
    assert developer.post(f"/jobs/{made['job_id']}/retry").status_code == 403


def test_whoever_shut_themselves_out_is_let_in_on_the_machine(api_for: Callable[..., Api], people: People) -> None:
    boss = api_for("platform_admin")
    policy = write(boss, "nothing", allow("*", effect="Deny"), whole_platform=True)
    attach(boss, policy, boss.user.id)
    assert boss.get("/users").status_code == 403
    with people.sessions() as session:
        detach_policies(session, people.settings, boss.user.username)
    assert boss.get("/users").status_code == 200


def test_forms_ask_who_one_is_and_keep_what_was_typed(admin: Api, people: People) -> None:
    client = browser(admin.client.application, people, admin.user)
    form = {"name": "crew", "csrf_token": csrf_of(client.get("/security/groups/new"))}
    with people.sessions() as session, transaction(session):
        session.execute(update(UserSession).values(proved_at=now() - timedelta(hours=1)))
    page = client.post("/security/groups/new", data=form)
    assert page.status_code == 403
    assert 'action="/confirm"' in page.text
    assert 'value="crew"' in page.text
    inside = client.post("/security/groups/new", data=form, headers={"HX-Request": "true", "HX-Current-URL": "http://localhost/security/groups?x=1"})
    assert inside.headers["HX-Redirect"] == "/confirm?next=%2Fsecurity%2Fgroups%3Fx%3D1"
