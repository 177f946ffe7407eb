"""Roles in the console: making one, seeing what it may and whom it trusts, assuming it, and ending its sessions."""

import re
from collections.abc import Callable

import pytest
from flask import Flask
from flask.testing import FlaskClient

from tests.contract.test_iam import allow, write
from tests.contract.test_roles import new_role, trust
from tests.support.people import People
from tests.support.web import Api, api_client, browser, csrf_of


@pytest.fixture
def admin(api_for: Callable[..., Api]) -> Api:
    """A project admin."""
    return api_for("project_admin")


@pytest.fixture
def console(app: Flask, people: People, admin: Api) -> FlaskClient:
    """The same person's browser."""
    return browser(app, people, admin.user)


def send(console: FlaskClient, path: str, **fields: str) -> tuple[int, str]:
    """Post a form with the token of the account's page."""
    answer = console.post(path, data={"csrf_token": csrf_of(console.get("/account")), **fields}, follow_redirects=True)
    return answer.status_code, answer.text


def test_a_role_is_made_and_changed_with_forms(console: FlaskClient, admin: Api) -> None:
    write(admin, "keys-may", allow("compute.key_pair.create"))
    form = {"name": "keys", "permission_policies": "keys-may\r\n\r\n", "max_session_duration_hours": "2"}
    status, text = send(console, "/security/roles/new", **form, trust_policy='{"principals": [{"type": "user", "id": "nobody-here"}]}')
    assert (status, "principals[0].id: there is no user nobody-here" in text) == (422, True)
    status, text = send(console, "/security/roles/new", **form, trust_policy=f'{{"principals": [{{"type": "user", "id": "{admin.user.username}"}}]}}')
    assert (status, "Role keys is created." in text) == (200, True)
    role = admin.get("/security/roles?origin=custom").json["results"][0]
    assert (role["policies"], role["max_session_duration_hours"]) == (["keys-may"], 2)
    base = f"/security/roles/{role['id']}"
    edited = console.get(f"{base}/actions/update").text
    assert role["permission_policies"][0] in edited
    status, text = send(console, f"{base}/actions/update", name="keys", description="", permission_policies="", max_session_duration_hours="3", trust_policy="",
                        tags="", extra="")  # fmt: skip
    assert status == 200
    changed = admin.get(f"/security/roles/{role['id']}").json
    assert (changed["policies"], changed["max_session_duration_hours"]) == ([], 3)
    # An emptied field is no field left alone.
    assert changed["trust_policy"] == {"principals": []}
    assert send(console, f"{base}/actions/delete", confirm="keys")[0] == 200
    assert admin.get("/security/roles?origin=custom").json["count"] == 0


def test_pages_say_what_a_role_may_and_whom_it_trusts(console: FlaskClient, admin: Api) -> None:
    role = new_role(admin, "keys", "compute.key_pair.create", trusts=trust(("user", admin.user.id)))
    assert "keys-may" in console.get("/security/roles").text
    assert "keys-may" in console.get(f"/security/roles/{role}/permissions").text
    assert admin.user.username in console.get(f"/security/roles/{role}/trust").text
    assert "ReadAll" in console.get("/security/roles/role-auditor/permissions").text
    assert "a built-in role is held" in console.get("/security/roles/role-auditor/trust").text
    policy = admin.get(f"/security/roles/{role}").json["permission_policies"][0]
    assert f'href="/security/roles/{role}"' in console.get(f"/security/policies/{policy}/holders").text


def test_the_token_is_shown_once_and_its_session_is_ended(console: FlaskClient, admin: Api, app: Flask) -> None:
    role = new_role(admin, "keys", "compute.key_pair.create", trusts=trust(("user", admin.user.id)))
    base = f"/security/roles/{role}"
    assert "Assume this role" in console.get(f"{base}/sessions").text
    for wrong in ({"session_name": ""}, {"session_name": "x", "duration": "86400"}, {"session_name": "x", "duration": "soon"}):
        assert send(console, f"{base}/assume", **wrong)[0] == 422
    status, text = send(console, f"{base}/assume", session_name="rotate keys", duration="900")
    assert status == 201
    secret = re.findall(r"atonix_[A-Za-z0-9_-]{43}", text)[0]
    assert "Authorization: Token " in text
    acting = Api(app.test_client(), admin.user, secret)
    assert acting.get("/auth/me").json["assumed_role"]["session_name"] == "rotate keys"
    shown = console.get(f"{base}/sessions").text
    assert "rotate keys" in shown
    assert secret not in shown
    session = admin.get(f"{base}/sessions").json["results"][0]["session_id"]
    assert send(console, f"{base}/sessions/{session}/end")[0] == 200
    assert acting.get("/auth/me").status_code == 401
    assert "Nobody acts in this role now" in console.get(f"{base}/sessions").text


def test_pages_are_not_for_the_token_of_a_role(app: Flask, people: People, admin: Api) -> None:
    role = new_role(admin, "keys", trusts=trust(("user", admin.user.id)))
    secret = admin.post(f"/security/roles/{role}/assume", {"session_name": "x"}).json["access_token"]
    assert app.test_client().get("/account", headers={"Authorization": f"Token {secret}"}).status_code == 403
    other = api_client(app, people, people.user("viewer"))
    assert browser(app, people, other.user).get(f"/security/roles/{role}/assume").text.count("does not trust you") == 1
