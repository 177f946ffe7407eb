"""Service accounts: keys without a person, apart from people, and no way to more than one has."""

from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker

from portal.identity.accounts import check_password
from portal.identity.models import ApiToken, User
from portal.kernel.audit import AuditEntry
from portal.kernel.errors import Conflict, NotFound, Unauthorized
from portal.kernel.policy_documents import VERSION
from tests.support.draining import TestWorker
from tests.support.people import PASSWORD, People
from tests.support.racing import race
from tests.support.web import Api, csrf_of

SMALL = {"flavor": "t3-micro", "image": "atonix-tiny"}
BASE = "/service-accounts"


def allow(*actions: str, effect: str = "Allow") -> dict[str, Any]:
    """A document of one statement."""
    return {"Version": VERSION, "Statement": [{"Sid": "One", "Effect": effect, "Action": list(actions), "Resource": "*"}]}


def policy(api: Api, name: str, document: dict[str, Any], *, to: str, **more: Any) -> None:
    """Write a policy and give it to somebody."""
    made = api.post("/security/policies", {"name": name, "document": document, **more})
    assert made.status_code == 201, made.json
    given = api.post(f"/security/policies/{made.json['id']}/attach", {"principal_type": "user", "principal_id": to})
    assert given.status_code == 200, given.json


@pytest.fixture
def admin(api_for: Callable[..., Api]) -> Api:
    """A project admin."""
    return api_for("project_admin")


def make(api: Api, name: str = "deploy", role: str = "developer") -> str:
    """A new account's id."""
    made = api.post(BASE, {"name": name, "role": role})
    assert made.status_code == 201, made.json
    return made.json["service_account_id"]


def key_of(api: Api, account: str, app: Flask, **more: Any) -> Api:
    """A client with a new key of an account."""
    made = api.post(f"{BASE}/{account}/keys", {"name": "ci", **more})
    assert made.status_code == 201, made.json
    return Api(app.test_client(), api.user, made.json["key"])


def test_a_script_works_as_a_service_account(admin: Api, app: Flask, worker: TestWorker, database: sessionmaker[Session]) -> None:
    account = make(admin)
    script = key_of(admin, account, app, scopes=["compute:write", "*:read"], days=7)
    me = script.get("/auth/me").json
    assert (me["kind"], me["username"], me["id"]) == ("service", "deploy", account)
    made = script.post("/compute/instances", {"name": "web-1", **SMALL})
    assert made.status_code == 202
    worker.drain()
    assert script.post("/compute/key-pairs", {"name": "mine"}).status_code == 201
    assert script("DELETE", f"/compute/instances/{made.json['instance_id']}").status_code == 403
    with database() as session:
        entry = session.scalars(select(AuditEntry).where(AuditEntry.action == "compute.instance.create")).one()
        assert (entry.user_id, entry.username, entry.credential.partition(":")[0]) == (account, "deploy", "token")
    shown = admin.get(f"{BASE}/{account}/keys").json["results"][0]
    assert (shown["scopes"], shown["last_used_at"] is not None, "key" in shown) == (["compute:write", "*:read"], True, False)


def test_it_is_changed_disabled_and_deleted(admin: Api, app: Flask, worker: TestWorker) -> None:
    account = make(admin)
    script = key_of(admin, account, app)
    instance = script.post("/compute/instances", {"name": "web-1", **SMALL}).json["instance_id"]
    worker.drain()
    assert admin("PATCH", f"{BASE}/{account}", {"role": "viewer"}).json["role"] == "viewer"
    assert script.post(f"/compute/instances/{instance}/stop").status_code == 403
    assert admin("PATCH", f"{BASE}/{account}", {"is_active": False}).json["is_active"] is False
    assert script.get("/auth/me").status_code == 401
    assert admin.post(f"{BASE}/{account}/keys", {"name": "again"}).status_code == 409
    assert admin("PATCH", f"{BASE}/{account}", {"is_active": True}).status_code == 200
    assert script.get("/auth/me").status_code == 401, "what ended stays ended"
    script = key_of(admin, account, app)
    assert admin("DELETE", f"{BASE}/{account}").status_code == 204
    assert script.get("/auth/me").status_code == 401
    assert admin.get(f"{BASE}/{account}").status_code == 404
    assert admin.get(f"/compute/instances/{instance}").json["owner_id"] is None
    assert make(admin) != account, "the name is free again"


def test_keys_are_rotated_and_revoked(admin: Api, app: Flask) -> None:
    account = make(admin)
    script = key_of(admin, account, app)
    key = admin.get(f"{BASE}/{account}/keys").json["results"][0]["id"]
    fresh = admin.post(f"{BASE}/{account}/keys/{key}/rotate", {"overlap_hours": 1}).json["key"]
    assert script.get("/auth/me").status_code == 200, "the old one holds for an hour"
    assert Api(app.test_client(), admin.user, fresh).get("/auth/me").status_code == 200
    assert admin("DELETE", f"{BASE}/{account}/keys/{key}").status_code == 204
    assert {script.get("/auth/me").status_code, Api(app.test_client(), admin.user, fresh).get("/auth/me").status_code} == {401}
    assert admin("DELETE", f"{BASE}/{account}/keys/{key}").status_code == 404
    mine = admin.post("/api/v1/api-keys", {"name": "mine"}).json["id"]
    assert admin("DELETE", f"{BASE}/{account}/keys/{mine}").status_code == 404


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"name": ""}, 400),
        ({"name": "a b"}, 400),
        ({"name": "x" * 151}, 400),
        ({"name": "fine", "role": "platform_admin"}, 400),
        ({"name": "fine", "role": "king"}, 400),
        ({"name": "ADMIN"}, 409),
    ],
)
def test_what_cannot_be_is_refused(admin: Api, body: dict[str, Any], status: int) -> None:
    answer = admin.post(BASE, body)
    assert (answer.status_code, set(answer.json["details"]) & {"name", "role"}) == (status, {"role"} if "role" in body else {"name"})


def test_it_never_signs_in_by_password(admin: Api, people: People, database: sessionmaker[Session], app: Flask) -> None:
    account = make(admin)
    with database() as session:
        user = session.get_one(User, account)
        user.password_hash = admin.user.password_hash
        session.commit()
        email = user.email
    for name in ("deploy", email):
        with pytest.raises(Unauthorized):
            check_password(people.context(None), name, PASSWORD)
        assert app.test_client().post("/api-token-auth/", json={"username": name, "password": PASSWORD}).status_code == 401
    script = key_of(admin, account, app)
    assert script.post("/auth/change-password", {"old": PASSWORD, "new": "another long passphrase"}).status_code == 400


def test_it_is_not_among_people(admin: Api, api_for: Callable[..., Api], people: People) -> None:
    account, project = make(admin, role="project_admin"), people.project_id
    platform = api_for("platform_admin")
    assert "deploy" not in [row["username"] for row in platform.get("/users").json["results"]]
    assert platform.get(f"/users/{account}").status_code == 404
    assert platform("PATCH", f"/users/{account}", {"platform_role": "platform_admin"}).status_code == 404
    assert account not in [row["user_id"] for row in admin.get(f"/projects/{project}/members").json["results"]]
    assert admin.post(f"/projects/{project}/members", {"username": "deploy", "role": "viewer"}).status_code == 400
    assert admin("DELETE", f"/projects/{project}/members/{account}").status_code == 404
    assert platform.post("/users", {"username": "Deploy", "email": "d@example.org", "password": "a first passphrase"}).status_code == 409


def test_it_does_not_count_as_the_last_administrator(people: People, ctx_for: Callable[..., Any]) -> None:
    from portal.identity.projects import member_remove
    from portal.identity.service_accounts import service_account_create

    project = people.project()
    alone = people.user("project_admin", project)
    service_account_create(ctx_for(alone, project), name="robot", role="project_admin")
    with pytest.raises(Conflict, match="last administrator"):
        member_remove(ctx_for(alone, project), project, alone.id)


def test_another_project_knows_nothing_of_it(admin: Api, api_for: Callable[..., Api], people: People) -> None:
    account = make(admin)
    other = api_for("project_admin", people.project())
    tried = [other.get(f"{BASE}/{account}"), other("PATCH", f"{BASE}/{account}", {"role": "viewer"}), other("DELETE", f"{BASE}/{account}"),
             other.get(f"{BASE}/{account}/keys"), other.post(f"{BASE}/{account}/keys", {"name": "x"})]  # fmt: skip
    assert [answer.status_code for answer in tried] == [404] * 5
    assert other.get(BASE).json["results"] == []
    assert [api_for(role).get(BASE).status_code for role in ("developer", "viewer", "auditor")] == [403] * 3
    assert api_for("developer").get(f"{BASE}/{account}").status_code == 404


def test_nobody_gives_or_takes_more_than_they_have(admin: Api, api_for: Callable[..., Api], app: Flask) -> None:
    """Somebody with every say in service accounts, and else a developer."""
    clerk = api_for("developer")
    policy(admin, "clerk", allow("identity.service_account.*"), to=clerk.user.id)
    refused = clerk.post(BASE, {"name": "strong", "role": "project_admin"})
    assert (refused.status_code, "cannot give what you do not have" in refused.json["message"]) == (403, True)
    weak, strong = make(clerk, "weak", "viewer"), make(admin, "strong", "project_admin")
    admin_key = admin.post(f"{BASE}/{strong}/keys", {"name": "ci"}).json["id"]
    assert clerk("PATCH", f"{BASE}/{weak}", {"role": "project_admin"}).status_code == 403
    assert clerk.post(f"{BASE}/{strong}/keys", {"name": "mine"}).status_code == 403
    assert clerk.post(f"{BASE}/{strong}/keys", {"name": "mine", "scopes": ["compute:read"]}).status_code == 403
    assert clerk.post(f"{BASE}/{strong}/keys/{admin_key}/rotate").status_code == 403
    assert clerk.post(f"{BASE}/{weak}/keys", {"name": "mine"}).status_code == 201
    policy(admin, "more", allow("security.*"), to="weak")
    assert clerk.post(f"{BASE}/{weak}/keys", {"name": "more"}).status_code == 403, "it holds more through a policy"
    assert clerk("PATCH", f"{BASE}/{weak}", {"is_active": False}).status_code == 200
    assert clerk("PATCH", f"{BASE}/{weak}", {"is_active": True}).status_code == 403
    assert clerk("DELETE", f"{BASE}/{strong}").status_code == 204, "taking away is no escalation"


def test_a_group_gives_no_way_round(admin: Api, api_for: Callable[..., Api]) -> None:
    clerk = api_for("developer")
    policy(admin, "clerk", allow("identity.service_account.*", "security.group.*"), to=clerk.user.id)
    account = make(clerk, "weak", "")
    group = admin.post("/security/groups", {"name": "chiefs", "role": "project_admin"}).json["id"]
    assert clerk.post(f"/security/groups/{group}/members", {"user_id": "weak"}).status_code == 403
    assert admin.post(f"/security/groups/{group}/members", {"user_id": "weak"}).status_code == 200
    assert clerk.post(f"{BASE}/{account}/keys", {"name": "mine"}).status_code == 403


def test_who_is_denied_something_makes_no_account_that_may(admin: Api, api_for: Callable[..., Api], people: People) -> None:
    held = api_for("project_admin")
    policy(admin, "freeze", allow("compute.instance.stop", effect="Deny"), to=held.user.id)
    assert held.post(BASE, {"name": "robot", "role": "developer"}).status_code == 403
    assert held.post(BASE, {"name": "robot", "role": "viewer"}).status_code == 201


def test_a_restricted_token_makes_no_stronger_key(admin: Api, app: Flask) -> None:
    account = make(admin, role="developer")
    secret = admin.post("/api/v1/api-keys", {"name": "narrow", "scopes": ["identity:manage", "compute:read"]}).json["key"]
    narrow = Api(app.test_client(), admin.user, secret)
    assert narrow.post(f"{BASE}/{account}/keys", {"name": "x", "scopes": ["compute:read"]}).status_code == 403
    assert narrow.post(BASE, {"name": "other", "role": "developer"}).status_code == 403
    assert narrow.post(BASE, {"name": "other"}).status_code == 201


def test_policies_and_groups_are_gone_with_it(admin: Api, app: Flask) -> None:
    account = make(admin, role="")
    script = key_of(admin, account, app)
    assert script.get("/compute/instances").json["count"] == 0
    policy(admin, "look", allow("compute.instance.read"), to=account)
    assert admin("DELETE", f"{BASE}/{account}").status_code == 204
    found = admin.get("/security/policies").json["results"][0]["id"]
    assert admin.get(f"/security/policies/{found}/attachments").json["results"] == []


def test_a_key_made_while_it_is_disabled_does_not_survive(admin: Api, people: People, database: sessionmaker[Session]) -> None:
    from portal.identity.service_accounts import service_account_update
    from portal.identity.tokens import token_create

    account = make(admin)
    with database() as session:
        user = session.get_one(User, account)
    made, _ = race([
        lambda: token_create(people.context(admin.user), user, "late"),
        lambda: service_account_update(people.context(admin.user), account, is_active=False),
    ])  # fmt: skip
    assert isinstance(made, (tuple, Conflict)), made
    with database() as session:
        assert session.scalars(select(ApiToken).where(ApiToken.user_id == account)).all() == []


def test_pages(client_for: Callable[..., FlaskClient], people: People) -> None:
    client = client_for("project_admin")
    token = csrf_of(client.get("/security/service-accounts"))
    assert client.post("/security/service-accounts", data={"csrf_token": token, "name": "a b"}).status_code == 422
    made = client.post("/security/service-accounts", data={"csrf_token": token, "name": "deploy", "role": "developer"})
    assert made.status_code == 303
    page = made.headers["Location"]
    key = client.post(f"{page}/keys", data={"csrf_token": token, "name": "ci", "scopes": "compute:read", "days": "7"})
    assert (key.status_code, "atonix_" in key.text, "shown only now" in key.text) == (201, True, True)
    assert client.post(f"{page}/keys", data={"csrf_token": token, "name": "ci", "days": "x"}).status_code == 422
    shown = client.get(page).text
    assert "shown only now" not in shown
    key_id = shown.split("/keys/", 1)[1].split("/", 1)[0]
    assert "shown only now" in client.post(f"{page}/keys/{key_id}/rotate", data={"csrf_token": token}).text
    assert client.post(f"{page}/keys/{key_id}/revoke", data={"csrf_token": token}).status_code == 303
    assert client.post(page, data={"csrf_token": token, "role": "viewer"}).status_code == 303
    assert client.post(page, data={"csrf_token": token, "role": "king"}).status_code == 422
    project = client.get(f"/projects/{people.project_id}").text
    assert ">Service accounts</h2>" in project
    assert "Service account</small>" not in client.get("/audit").text
    assert client.post(page, data={"csrf_token": token, "is_active": "false"}).status_code == 303
    assert "it has no keys" in client.get(page).text
    assert client.post(f"{page}/delete", data={"csrf_token": token, "confirm": "other"}).status_code == 422
    assert client.post(f"{page}/delete", data={"csrf_token": token, "confirm": "deploy"}).status_code == 303
    assert client.get(page).status_code == 404
    assert client_for("viewer").get("/security/service-accounts").status_code == 403


def test_a_person_is_no_service_account(admin: Api, people: People) -> None:
    from portal.identity.service_accounts import service_account_find

    with pytest.raises(NotFound):
        service_account_find(people.context(admin.user), admin.user.id)
