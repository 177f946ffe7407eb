"""Policies that people write, groups and token scopes: what they give, what they take, and that nobody gives what they do not have."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import update
from sqlalchemy.orm import Session, sessionmaker

from portal.identity.models import ApiToken
from portal.identity.tokens import token_create
from portal.kernel.db import now
from portal.kernel.policy_documents import VERSION
from tests.support.draining import TestWorker
from tests.support.people import PASSWORD, People
from tests.support.web import Api, api_client, browser

SMALL = {"flavor": "t3-micro", "image": "atonix-tiny"}


def allow(*actions: str, effect: str = "Allow", resource: str = "*", **conditions: Any) -> dict[str, Any]:
    """A document of one statement."""
    statement = {"Sid": "One", "Effect": effect, "Action": list(actions), "Resource": resource}
    return {"Version": VERSION, "Statement": [{**statement, "Condition": conditions} if conditions else statement]}


def write(api: Api, name: str, document: dict[str, Any], **more: Any) -> str:
    """A new policy's id."""
    made = api.post("/security/policies", {"name": name, "document": document, **more})
    assert made.status_code == 201, made.json
    return made.json["policy_id"]


def attach(api: Api, policy: str, who: str, kind: str = "user") -> None:
    """Give a policy."""
    done = api.post(f"/security/policies/{policy}/attach", {"principal_type": kind, "principal_id": who})
    assert done.status_code == 200, done.json


@pytest.fixture
def admin(api_for: Callable[..., Api]) -> Api:
    """A project admin."""
    return api_for("project_admin")


@pytest.fixture
def viewer(api_for: Callable[..., Api]) -> Api:
    """Somebody who may look."""
    return api_for("viewer")


def test_a_policy_gives_and_takes_at_once(admin: Api, viewer: Api, worker: TestWorker) -> None:
    web = admin.post("/compute/instances", {"name": "web-1", "tags": {"env": "test"}, **SMALL}).json["instance_id"]
    prod = admin.post("/compute/instances", {"name": "db-1", "tags": {"env": "prod"}, **SMALL}).json["instance_id"]
    worker.drain()
    assert viewer.post(f"/compute/instances/{web}/stop").status_code == 403
    policy = write(admin, "stop-tests", allow("compute.instance.stop", StringEquals={"resource.tag/env": "test"}))
    attach(admin, policy, viewer.user.username)
    assert viewer.post(f"/compute/instances/{web}/stop").status_code == 202
    refused = viewer.post(f"/compute/instances/{prod}/stop")
    assert refused.status_code == 403
    assert refused.json["details"]["action"] == "compute.instance.stop"
    hide = write(admin, "hide-prod", allow("compute:*", effect="Deny", StringEquals={"resource.tag/env": "prod"}))
    attach(admin, hide, viewer.user.username)
    assert viewer.get(f"/compute/instances/{prod}").status_code == 404
    assert [row["name"] for row in viewer.get("/compute/instances").json["results"]] == ["web-1"]
    assert viewer.get("/compute/instances").json["count"] == 1
    assert admin.get("/compute/instances").json["count"] == 2
    assert admin.post(f"/security/policies/{hide}/detach", {"principal_type": "user", "principal_id": viewer.user.id}).status_code == 200
    assert viewer.get(f"/compute/instances/{prod}").status_code == 200


def test_a_denial_names_its_statement(admin: Api, api_for: Callable[..., Api], worker: TestWorker) -> None:
    developer = api_for("developer")
    made = developer.post("/compute/instances", {"name": "web-1", **SMALL}).json["instance_id"]
    worker.drain()
    attach(admin, write(admin, "freeze", allow("compute.instance.stop", effect="Deny")), developer.user.id)
    refused = developer.post(f"/compute/instances/{made}/stop")
    assert refused.status_code == 403
    assert (refused.json["details"]["policy"], refused.json["details"]["statement"]) == ("freeze", "One")
    assert "Statement One of freeze denies it" in refused.json["message"]


def test_conditions_look_at_the_request(admin: Api, viewer: Api) -> None:
    document = allow("compute.instance.create", NumericLessThanEquals={"request.input/count": 2}, StringEquals={"request.tag/env": "test"})
    attach(admin, write(admin, "small", document), viewer.user.id)
    assert viewer.post("/compute/instances", {"name": "a", **SMALL}).status_code == 403
    assert viewer.post("/compute/instances", {"name": "a", "count": 3, "tags": {"env": "test"}, **SMALL}).status_code == 403
    assert viewer.post("/compute/instances", {"name": "a", "count": 2, "tags": {"env": "test"}, **SMALL}).status_code == 202


@pytest.mark.parametrize(
    ("condition", "refused", "allowed"),
    [
        # However a row is named, its id is what conditions see; what is left out is what is taken then.
        ({"StringEquals": {"request.input/flavor": "t3-micro"}}, [{}, {"flavor": "t3.micro"}], [{"flavor": "t3.small"}]),
        ({"NumericGreaterThan": {"request.input/root_volume_size_gb": 4}}, [{}, {"root_volume_size_gb": 20}], [{"root_volume_size_gb": 4}]),
        ({"NumericEquals": {"request.input/count": 1}}, [{}, {"count": 1}], [{"count": 2}]),
        ({"Null": {"request.input/user_data": False}}, [{"user_data": "#!/bin/sh"}], [{}]),
    ],
)
def test_a_denial_holds_however_the_request_is_written(
    admin: Api, api_for: Callable[..., Api], condition: dict[str, Any], refused: list[dict[str, Any]], allowed: list[dict[str, Any]]
) -> None:
    developer = api_for("developer")
    attach(admin, write(admin, "deny", allow("compute.instance.create", effect="Deny", **condition)), developer.user.id)
    for number, more in enumerate(refused):
        assert developer.post("/compute/instances", {"name": f"no-{number}", **SMALL, **more}).status_code == 403, more
    for number, more in enumerate(allowed):
        assert developer.post("/compute/instances", {"name": f"yes-{number}", **SMALL, **more}).status_code == 202, more


def test_what_is_left_out_is_allowed_as_its_default(admin: Api, viewer: Api) -> None:
    attach(admin, write(admin, "few", allow("compute.instance.create", NumericLessThanEquals={"request.input/count": 2})), viewer.user.id)
    assert viewer.post("/compute/instances", {"name": "one", **SMALL}).status_code == 202


def test_a_denial_holds_for_a_member_by_id_and_by_name(admin: Api, api_for: Callable[..., Api]) -> None:
    boss, member = api_for("project_admin"), api_for("viewer").user
    group = admin.post("/security/groups", {"name": "crew"}).json["id"]
    deny = allow("security.group.add_member", effect="Deny", StringEquals={"request.input/user": member.id})
    attach(admin, write(admin, "not-them", deny), boss.user.id)
    for named in (member.id, member.username):
        assert boss.post(f"/security/groups/{group}/add-member", {"user": named}).status_code == 403


def test_a_field_may_be_kept_from_somebody(admin: Api, api_for: Callable[..., Api], worker: TestWorker) -> None:
    """A policy names fields of a change; what no field is open for (owner, project, state) nobody writes."""
    developer = api_for("developer")
    made = developer.post("/compute/instances", {"name": "web-1", **SMALL}).json["instance_id"]
    worker.drain()
    keep = allow("compute.instance.update", effect="Deny", Null={"request.input/description": False})
    attach(admin, write(admin, "keep-descriptions", keep), developer.user.id)
    path = f"/compute/instances/{made}"
    assert developer("PATCH", path, {"description": "mine"}).status_code == 403
    assert developer("PATCH", path, {"name": "web-2"}).status_code == 200
    for field, value in (("owner_id", developer.user.id), ("project_id", "default"), ("state", "running"), ("created_at", "2020-01-01T00:00:00Z")):
        refused = developer("PATCH", path, {field: value})
        assert (refused.status_code, field in refused.json["details"]) == (400, True), field


def test_a_group_gives_role_and_policies(admin: Api, people: People, app: Flask, viewer: Api) -> None:
    group = admin.post("/security/groups", {"name": "operators", "role": "developer"}).json["group_id"]
    assert viewer.post("/compute/key-pairs", {"name": "mine"}).status_code == 403
    assert admin.post(f"/security/groups/{group}/add-member", {"user": viewer.user.username}).status_code == 200
    assert viewer.post("/compute/key-pairs", {"name": "mine"}).status_code == 201
    assert admin.get(f"/security/groups/{group}").json["members"] == 1
    attach(admin, write(admin, "no-keys", allow("compute.key_pair.create", effect="Deny")), "operators", "group")
    assert viewer.post("/compute/key-pairs", {"name": "more"}).status_code == 403
    assert admin.post(f"/security/groups/{group}/remove-member", {"user": viewer.user.id}).status_code == 200
    refused = viewer.post("/compute/key-pairs", {"name": "more"})
    assert (refused.status_code, "no-keys" in refused.json["message"]) == (403, False)
    outsider = people.user("")
    assert admin.post(f"/security/groups/{group}/add-member", {"user": outsider.username}).status_code == 400
    assert admin("DELETE", f"/security/groups/{group}").status_code == 204
    del app


def test_versions_are_kept_and_restored(admin: Api, viewer: Api) -> None:
    policy = write(admin, "keys", allow("compute.key_pair.create"))
    attach(admin, policy, viewer.user.id)
    assert viewer.post("/compute/key-pairs", {"name": "one"}).status_code == 201
    assert admin("PATCH", f"/security/policies/{policy}", {"document": allow("compute.key_pair.read")}).json["number"] == 2
    assert viewer.post("/compute/key-pairs", {"name": "two"}).status_code == 403
    assert admin.post(f"/security/policies/{policy}/restore", {"number": 1}).json["number"] == 3
    assert viewer.post("/compute/key-pairs", {"name": "two"}).status_code == 201
    assert admin.post(f"/security/policies/{policy}/restore", {"number": 9}).status_code == 400
    assert admin("DELETE", f"/security/policies/{policy}").status_code == 409


def test_a_bad_document_is_refused_with_its_paths(admin: Api) -> None:
    document = {"Version": VERSION, "Statement": [{"Effect": "Maybe", "Action": ["compute.instance.fly"], "Resource": "*"}]}
    refused = admin.post("/security/policies", {"name": "bad", "document": document})
    assert refused.status_code == 400
    assert refused.json["details"]["document"][0].startswith("Statement[0].Effect: ")
    assert refused.json["details"]["document"][1].startswith("Statement[0].Action[0]: ")
    large = allow("compute.instance.read", StringEquals={"resource.name": ["x" * 250] * 50})
    assert "10,240" in str(admin.post("/security/policies", {"name": "large", "document": large}).json["details"])
    assert admin.post("/security/policies", {"name": "text", "document": "{}"}).status_code == 400


# -- nobody gives what they do not have ------------------------------------------------------------------------------------------------------


@pytest.fixture
def keeper(admin: Api, api_for: Callable[..., Api]) -> Api:
    """A developer who was given the management of policies, groups and members, and nothing else of an admin."""
    api = api_for("developer")
    attach(admin, write(admin, "keeper", allow("security:manage", "security:read", "identity:manage", "identity.project.read")), api.user.id)
    return api


def test_policies_give_no_more_than_their_writer_has(keeper: Api, admin: Api) -> None:
    for document in (
        allow("*"), allow("*:delete"), allow("compute.instance.terminate"), allow("compute.instance.terminate", resource="compute.instance/i-1"),
        allow("core.quota.update"), allow("*:platform"), allow("compute.instance.terminate", StringEquals={"resource.owner": "${principal.id}"}),
    ):  # fmt: skip
        refused = keeper.post("/security/policies", {"name": "more", "document": document})
        assert refused.status_code == 403, document
        assert "cannot give what you do not have" in refused.json["message"]
    mine = write(keeper, "mine", allow("compute.instance.start"))
    assert keeper("PATCH", f"/security/policies/{mine}", {"document": allow("*")}).status_code == 403
    strong = write(admin, "strong", allow("compute:delete"))
    assert keeper.post(f"/security/policies/{strong}/attach", {"principal_type": "user", "principal_id": keeper.user.id}).status_code == 403
    denial = write(admin, "denial", allow("compute.instance.terminate", effect="Deny"))
    attach(admin, denial, keeper.user.id)
    assert keeper.post(f"/security/policies/{denial}/detach", {"principal_type": "user", "principal_id": keeper.user.id}).status_code == 403
    assert keeper("PATCH", f"/security/policies/{denial}", {"document": allow("compute.instance.read")}).status_code == 403
    assert keeper.post("/security/policies", {"name": "all", "document": allow("compute.instance.read"), "whole_platform": True}).status_code == 400


def test_groups_and_memberships_give_no_more_than_their_keeper_has(keeper: Api, admin: Api) -> None:
    assert keeper.post("/security/groups", {"name": "bosses", "role": "project_admin"}).status_code == 403
    group = keeper.post("/security/groups", {"name": "lookers", "role": "viewer"}).json["group_id"]
    assert keeper("PATCH", f"/security/groups/{group}", {"role": "project_admin"}).status_code == 403
    bosses = admin.post("/security/groups", {"name": "bosses", "role": "project_admin"}).json["group_id"]
    assert keeper.post(f"/security/groups/{bosses}/add-member", {"user": keeper.user.username}).status_code == 403
    project = keeper.get("/auth/me").json["current_project_id"]
    raised = keeper.post(f"/projects/{project}/members", {"username": keeper.user.username, "role": "project_admin"})
    assert raised.status_code == 403
    plain = admin.post("/security/groups", {"name": "plain"}).json["group_id"]
    attach(admin, write(admin, "strong", allow("compute:delete")), "plain", "group")
    assert keeper.post(f"/security/groups/{plain}/add-member", {"user": keeper.user.username}).status_code == 403


def test_nobody_leaves_a_denial_by_way_of_a_group(keeper: Api, admin: Api) -> None:
    group = admin.post("/security/groups", {"name": "frozen"}).json["group_id"]
    attach(admin, write(admin, "freeze", allow("compute.instance.start", effect="Deny")), "frozen", "group")
    assert admin.post(f"/security/groups/{group}/members", {"user_id": keeper.user.id}).status_code == 200
    assert keeper("DELETE", f"/security/groups/{group}/members/{keeper.user.id}").status_code == 403
    assert keeper("DELETE", f"/security/groups/{group}").status_code == 403
    assert admin("DELETE", f"/security/groups/{group}/members/{keeper.user.id}").status_code == 204


def test_another_projects_policies_and_groups_are_unknown(admin: Api, api_for: Callable[..., Api], people: People) -> None:
    policy, group = write(admin, "mine", allow("compute.instance.read")), admin.post("/security/groups", {"name": "mine"}).json["group_id"]
    other = api_for("project_admin", people.project())
    for path in (f"/security/policies/{policy}", f"/security/groups/{group}"):
        assert other.get(path).status_code == 404
        assert other("PATCH", path, {"name": "theirs"}).status_code == 404
    theirs = write(other, "theirs", allow("compute.instance.read"))
    assert other.post(f"/security/policies/{theirs}/attach", {"principal_type": "group", "principal_id": group}).status_code == 400
    assert other.post(f"/security/policies/{theirs}/attach", {"principal_type": "user", "principal_id": admin.user.id}).status_code == 400
    # What is attached in one project counts there alone.
    attach(other, write(other, "everything", allow("*:read")), other.user.id)
    assert other.get("/compute/instances?all_projects=true").json["count"] == 0


def test_a_platform_admin_writes_for_everybody(api_for: Callable[..., Api], people: People, viewer: Api) -> None:
    boss = api_for("platform_admin")
    policy = write(boss, "readers", allow("compute.instance.read"), whole_platform=True)
    assert boss.get(f"/security/policies/{policy}").json["project_id"] is None
    attach(boss, policy, viewer.user.id)
    elsewhere = api_for("project_admin", people.project())
    elsewhere.post("/compute/instances", {"name": "far", **SMALL})
    assert [row["name"] for row in viewer.get("/compute/instances?all_projects=true").json["results"]] == ["far"]


# -- scopes of tokens ------------------------------------------------------------------------------------------------------------------------


def test_a_token_does_what_its_scopes_say(admin: Api, app: Flask, people: People) -> None:
    made = admin.post("/auth/keys", {"name": "reader", "scopes": ["compute:read"]})
    assert (made.status_code, made.json.get("scopes")) == (201, ["compute:read"]), made.json
    reader = api_client(app, people, admin.user)
    reader.token = made.json["key"]
    assert reader.get("/compute/instances").status_code == 200
    refused = reader.post("/compute/key-pairs", {"name": "k"})
    assert (refused.status_code, "The token's scope does not allow it" in refused.json["message"]) == (403, True)
    assert reader.get("/security/policies").json["count"] == 0
    assert reader.get("/security/audit-logs").json["count"] == 0
    assert reader.get("/api/v1/jobs").json["count"] == 0
    for scopes in (["fly"], ["compute:fly"], ["nowhere:read"], [""], ["compute:read"] * 51, "compute:read", [7]):
        assert admin.post("/auth/keys", {"name": "bad", "scopes": scopes}).status_code == 400, scopes


def test_a_token_makes_no_stronger_token(admin: Api, app: Flask, people: People) -> None:
    secret, _ = token_create(people.context(admin.user), admin.user, "reader", scopes=["compute:read", "*:write"])
    reader = Api(app.test_client(), admin.user, secret)
    assert reader.post("/auth/keys", {"name": "all"}).status_code == 403
    assert reader.post("/auth/keys", {"name": "more", "scopes": ["compute:delete"]}).status_code == 403
    assert reader.post("/auth/keys", {"name": "admin", "scopes": ["admin"]}).status_code == 403
    assert reader.post("/auth/keys", {"name": "less", "scopes": ["compute:read"]}).status_code == 201


def test_a_token_is_rotated_without_a_gap(admin: Api, app: Flask, people: People, database: sessionmaker[Session]) -> None:
    made = admin.post("/auth/keys", {"name": "ci", "scopes": ["compute:read"], "days": 7}).json
    path = f"/auth/keys/{made['api_key_id']}"
    script = api_client(app, people, admin.user)
    rotated = admin.post(f"{path}/rotate", {"overlap_hours": 1}).json
    assert (rotated["api_key_id"], rotated["key"] == made["key"]) == (made["api_key_id"], False)
    for key in (made["key"], rotated["key"]):
        script.token = key
        assert script.get("/compute/instances").status_code == 200
        assert script.post("/compute/key-pairs", {"name": "k"}).status_code == 403
    with database() as session:
        session.execute(update(ApiToken).values(previous_until=now() - timedelta(seconds=1)))
        session.commit()
    script.token = made["key"]
    assert script.get("/compute/instances").status_code == 401
    assert admin("PATCH", path, {"is_active": False}).json["is_active"] is False
    script.token = rotated["key"]
    assert script.get("/compute/instances").status_code == 401
    assert admin("PATCH", path, {"is_active": True, "name": "ci-2", "scopes": []}).json["scopes"] == []
    assert script.post("/compute/key-pairs", {"name": "k"}).status_code == 201
    other = api_client(app, people, people.user("viewer"))
    assert [other.post(f"{path}/rotate").status_code, other("PATCH", path, {"name": "mine"}).status_code] == [404, 404]


def test_a_restricted_token_widens_none(admin: Api, app: Flask, people: People) -> None:
    wide = admin.post("/auth/keys", {"name": "wide"}).json["api_key_id"]
    reader = api_client(app, people, admin.user)
    reader.token = admin.post("/auth/keys", {"name": "reader", "scopes": ["compute:read"]}).json["key"]
    assert reader.post(f"/auth/keys/{wide}/rotate").status_code == 403
    assert reader("PATCH", f"/auth/keys/{wide}", {"name": "mine"}).status_code == 403
    assert reader("DELETE", f"/auth/keys/{wide}").status_code == 403
    own = reader.get("/auth/keys").json["results"]
    mine = next(row["api_key_id"] for row in own if row["name"] == "reader")
    assert reader("PATCH", f"/auth/keys/{mine}", {"scopes": []}).status_code == 403
    reader.token = reader.post(f"/auth/keys/{mine}/rotate").json["key"]
    assert reader("DELETE", f"/auth/keys/{mine}").status_code == 204
    assert reader.get("/compute/instances").status_code == 401


def test_a_restricted_token_leaves_the_account_alone(admin: Api, app: Flask, people: People, client_for: Callable[..., FlaskClient]) -> None:
    del client_for
    browser(app, people, admin.user)
    reader = api_client(app, people, admin.user)
    reader.token = admin.post("/auth/keys", {"name": "reader", "scopes": ["*:read"]}).json["key"]
    session = admin.get("/auth/sessions").json["results"][0]["session_id"]
    assert reader("DELETE", f"/auth/sessions/{session}").status_code == 403
    assert reader.post("/auth/change-password", {"old": PASSWORD, "new": "another long passphrase"}).status_code == 403
    assert admin("DELETE", f"/auth/sessions/{session}").status_code == 204


def test_who_leaves_a_project_leaves_its_groups_and_policies(admin: Api, viewer: Api) -> None:
    group = admin.post("/security/groups", {"name": "ops", "role": "developer"}).json["group_id"]
    assert admin.post(f"/security/groups/{group}/members", {"user_id": viewer.user.id}).status_code == 200
    policy = write(admin, "keys", allow("compute.key_pair.create"))
    attach(admin, policy, viewer.user.id)
    project = admin.get("/auth/me").json["current_project_id"]
    assert admin("DELETE", f"/projects/{project}/members/{viewer.user.id}").status_code == 204
    assert viewer.get("/compute/instances?all_projects=true").json["count"] == 0
    assert viewer.get("/compute/instances", headers={"X-Project": project}).status_code == 404
    assert viewer.post("/compute/key-pairs", {"name": "k"}).status_code in {400, 403}
    assert admin.get(f"/security/policies/{policy}/attachments").json["count"] == 0
    assert admin.get(f"/security/groups/{group}").json["members"] == 0


def test_a_boundary_binds_everybody_in_its_project(
    admin: Api, api_for: Callable[..., Api], people: People, client_for: Callable[..., FlaskClient]
) -> None:
    boss, project = api_for("platform_admin"), admin.get("/auth/me").json["current_project_id"]
    policy = write(boss, "only-looking", allow("compute:read"), whole_platform=True)
    assert admin("PUT", f"/projects/{project}/boundary", {"policy": policy}).status_code == 403
    assert boss("PUT", f"/projects/{project}/boundary", {"policy": "none-such"}).status_code == 400
    assert boss("PUT", f"/projects/{project}/boundary", {"policy": "only-looking"}).json["boundary_policy_id"] == policy
    for api in (admin, boss):
        refused = api.post("/compute/key-pairs", {"name": "k"})
        assert (refused.status_code, "permission boundary of project" in refused.json["message"]) == (403, True)
    assert admin.get("/compute/key-pairs").json["count"] == 0
    # But who administers the platform goes on doing so: whatever a boundary leaves out, it can be seen and taken off, there and elsewhere.
    assert admin.post("/security/groups", {"name": "ops"}).status_code == 403
    assert admin.get(f"/projects/{project}").status_code == 404
    assert boss.get(f"/projects/{project}").status_code == 200
    another = api_for("platform_admin")
    assert boss("PATCH", f"/users/{another.user.id}", {"is_active": False}).status_code == 200
    boss = boss.signed_in()
    more = {"username": "more", "email": "more@example.org", "platform_role": "platform_admin"}
    assert boss.post("/users", more).status_code == 201
    elsewhere = api_for("project_admin", people.project())
    assert elsewhere.post("/security/groups", {"name": "ops"}).status_code == 201
    assert boss("DELETE", f"/security/policies/{policy}").status_code == 409
    page = client_for("platform_admin").get(f"/projects/{project}").text
    assert policy in page
    assert boss("PUT", f"/projects/{project}/boundary", {}).json["boundary_policy_id"] is None
    assert admin.post("/security/groups", {"name": "ops"}).status_code == 201


# -- the simulator ---------------------------------------------------------------------------------------------------------------------------


def test_the_simulator_says_what_would_happen_and_why(admin: Api, viewer: Api, worker: TestWorker) -> None:
    made = admin.post("/compute/instances", {"name": "web-1", "tags": {"env": "prod"}, **SMALL}).json["instance_id"]
    worker.drain()
    attach(
        admin,
        write(admin, "office", allow("compute.instance.stop", IpAddress={"request.ip": "10.0.0.0/8"}, Bool={"principal.mfa": True})),
        viewer.user.id,
    )
    question = {"user": viewer.user.username, "action": "compute.instance.stop", "resource": f"compute.instance/{made}"}
    no = admin.post("/security/policies/simulate", question).json
    assert (no["decision"], no["policy"]) == ("deny", "")
    assert [(step["policy"], step["applies"]) for step in no["path"]] == [("office", False)]
    # Which of the two is told depends on the order in which the database keeps an object's keys.
    assert "does not hold" in no["path"][0]["mismatch"]
    yes = admin.post("/security/policies/simulate", {**question, "context": {"ip": "10.1.2.3", "mfa": True}}).json
    assert (yes["decision"], yes["statement"]) == ("allow", "One")
    assert yes["path"][0]["via"] == "attached"
    assert [
        row["username"]
        for row in admin.get(f"/security/who-can?action=compute.instance.delete&resource=compute.instance/{made}").json.get("results", [])
    ] == []
    holders = admin.get(f"/security/who-can?action=compute.instance.terminate&resource=compute.instance/{made}").json["results"]
    assert admin.user.username in {row["username"] for row in holders}
    assert viewer.user.username not in {row["username"] for row in holders}
    mine = {row["action"]: row["decision"] for row in viewer.get(f"/security/what-can?user={viewer.user.username}").json["results"]}
    assert (mine["compute.instance.read"], mine["compute.instance.create"]) == ("allow", "deny")


def test_the_simulator_tells_no_more_than_one_may_know(admin: Api, viewer: Api, api_for: Callable[..., Api], people: People) -> None:
    assert viewer.post("/security/policies/simulate", {"user": admin.user.username, "action": "compute.instance.read"}).status_code == 403
    assert viewer.get("/security/who-can?action=compute.instance.read").status_code == 403
    stranger = api_for("viewer", people.project())
    unknown = admin.post("/security/policies/simulate", {"user": stranger.user.username, "action": "compute.instance.read"})
    assert (unknown.status_code, "There is no user" in str(unknown.json["details"])) == (400, True)
    for wrong in ({"action": "compute.instance.fly"}, {"action": "compute.instance.read", "resource": "i-1"},
                  {"action": "compute.image.read", "resource": "compute.instance/i-1"}):  # fmt: skip
        assert admin.post("/security/policies/simulate", {"user": admin.user.username, **wrong}).status_code == 400
    gone = {"user": admin.user.username, "action": "compute.instance.read", "resource": "compute.instance/i-none"}
    assert admin.post("/security/policies/simulate", gone).status_code == 404


def test_the_pages_show_policies_and_groups(client_for: Callable[..., FlaskClient], admin: Api) -> None:
    policy = write(admin, "shown", allow("compute.instance.read"))
    browser = client_for("project_admin")
    for path in ("/security/policies", "/security/groups", "/security/policies/new", "/security/groups/new", f"/security/policies/{policy}",
                 f"/security/policies/{policy}/actions/update", f"/security/policies/{policy}/actions/attach"):  # fmt: skip
        assert browser.get(path).status_code == 200, path
    assert "compute.instance.read" in browser.get(f"/security/policies/{policy}").text
    attach(admin, policy, admin.user.username)
    admin("PATCH", f"/security/policies/{policy}", {"document": allow("compute.image.read")})
    assert admin.user.username in browser.get(f"/security/policies/{policy}/holders").text
    assert "compute.image.read" in browser.get(f"/security/policies/{policy}/versions").text
    group = admin.post("/security/groups", {"name": "ops"}).json["group_id"]
    assert admin.post(f"/security/groups/{group}/members", {"user_id": admin.user.username}).json["count"] == 1
    assert admin.user.username in browser.get(f"/security/groups/{group}/members").text
    assert admin("DELETE", f"/security/groups/{group}/members/{admin.user.id}").status_code == 204
    for query, words in (
        ("", "An answer names"), (f"?user={admin.user.username}&action=compute.image.read", "may do this"), ("?action=compute.image.read", "may do this"),
        (f"?user={admin.user.username}", "actions are allowed"),
    ):  # fmt: skip
        answer = browser.get(f"/security/simulator{query}")
        assert (answer.status_code, words in answer.text) == (200, True), query
    assert browser.get("/security/simulator?action=fly").status_code == 422
    assert "Name a user" in browser.get("/security/simulator?ip=10.1.1.1").text


def test_a_policy_is_given_to_a_service_account_by_that_name(admin: Api) -> None:
    account = admin.post("/service-accounts", {"name": "robot", "role": ""}).json["id"]
    policy = write(admin, "look", allow("compute.instance.read"))
    given = {"principal_type": "service_account", "principal_id": "robot"}
    assert admin.post(f"/security/policies/{policy}/attach", given).status_code == 200
    held = admin.get(f"/security/policies/{policy}/attachments").json["results"]
    assert [(each["principal_type"], each["principal_id"]) for each in held] == [("user", account)]
    assert admin.post(f"/security/policies/{policy}/detach", given).status_code == 200


@pytest.mark.parametrize(
    ("condition", "context"),
    [
        ({"StringEquals": {"principal.credential": "token"}}, {"credential": "token"}),
        ({"DateGreaterThan": {"request.time": "2099-01-01T00:00:00Z"}}, {"time": "2099-06-01T00:00:00Z"}),
        ({"Bool": {"principal.mfa": True}}, {"mfa": True}),
        ({"IpAddress": {"request.ip": "100.64.7.0/24"}}, {"ip": "100.64.7.9"}),
    ],
)
def test_the_simulator_imagines_how_somebody_comes(admin: Api, viewer: Api, condition: dict[str, Any], context: dict[str, Any]) -> None:
    attach(admin, write(admin, "sometimes", allow("compute.instance.create", **condition)), viewer.user.id)
    question = {"user": viewer.user.username, "action": "compute.instance.create"}
    answers = [admin.post("/security/policies/simulate", {**question, "context": each}).json["decision"] for each in ({}, context)]
    assert answers == ["deny", "allow"]
    refused = admin.post("/security/policies/simulate", question).json
    assert refused["because"].startswith("Their role here is Viewer"), refused
    if "time" not in context:
        asked = "&".join(f"{name}={str(value).lower()}" for name, value in context.items())
        found = admin.get(f"/security/who-can?action=compute.instance.create&{asked}").json["results"]
        assert viewer.user.username in {each["username"] for each in found}
