"""Pages that are not derived: users, projects, account, jobs, audit log, search, overview."""

import csv
import html
import io
import json
import re
from collections.abc import Callable

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import select, text
from sqlalchemy.orm import Session, sessionmaker

from portal.engines.fake_volumes import FakeVolumes
from portal.engines.ports import EngineError
from portal.identity.models import User
from portal.kernel.jobs import Job
from tests.support.draining import TestWorker
from tests.support.people import PASSWORD, People
from tests.support.web import Api, browser, csrf_of

SMALL = {"flavor": "t3-micro", "image": "atonix-tiny"}


@pytest.fixture
def admin(client_for: Callable[..., FlaskClient]) -> FlaskClient:
    """A browser of an administrator of the platform."""
    return client_for("platform_admin")


def test_users_are_made_disabled_and_promoted(admin: FlaskClient, app: Flask, database: sessionmaker[Session]) -> None:
    token = csrf_of(admin.get("/users"))
    given = {"csrf_token": token, "username": "maria", "email": "maria@example.org", "password": "a first passphrase", "platform_role": ""}
    for change, field in (
        ({"username": ""}, "username"),
        ({"email": "none"}, "email"),
        ({"password": "x"}, "password"),
        ({"platform_role": "king"}, "platform_role"),
    ):
        answer = admin.post("/users", data={**given, **change})
        assert answer.status_code == 422, change
        assert f'id="{field}-error"' in answer.text, change
        assert "a first passphrase" not in answer.text
    assert admin.post("/users", data=given).location == "/users"
    assert admin.post("/users", data=given).status_code == 409
    with database() as session:
        maria = session.scalars(select(User).where(User.username == "maria")).one()
    client = app.test_client()
    data = {"csrf_token": csrf_of(client.get("/login")), "username": "maria", "password": "a first passphrase"}
    assert client.post("/login", data=data).status_code == 303
    assert admin.post(f"/users/{maria.id}", data={"csrf_token": token, "is_active": "false"}).status_code == 303
    assert client.get("/account/password").status_code == 303
    assert admin.post(f"/users/{maria.id}", data={"csrf_token": token, "is_active": "true", "platform_role": "auditor"}).status_code == 303
    assert "Auditor" in admin.get("/users").text
    assert admin.post("/users/usr-none", data={"csrf_token": token, "is_active": "false"}).status_code == 404


def test_the_last_administrator_stays(people: People, app: Flask, database: sessionmaker[Session]) -> None:
    with database() as session:
        first = session.scalars(select(User).where(User.platform_role == "platform_admin")).all()
    assert len(first) == 1
    people.user("project_admin")
    user = people.user("platform_admin")
    client = browser(app, people, user)
    token = csrf_of(client.get("/users"))
    assert client.post(f"/users/{first[0].id}", data={"csrf_token": token, "is_active": "false"}).status_code == 303
    answer = client.post(f"/users/{user.id}", data={"csrf_token": token, "is_active": "false"})
    assert answer.status_code == 409
    assert "last platform admin" in answer.text


def test_users_are_for_administrators(client_for: Callable[..., FlaskClient]) -> None:
    for role in ("project_admin", "developer", "viewer", ""):
        assert client_for(role).get("/users").status_code == 403


def test_projects_and_members(admin: FlaskClient, people: People, client_for: Callable[..., FlaskClient]) -> None:
    token = csrf_of(admin.get("/projects"))
    assert admin.post("/projects", data={"csrf_token": token, "name": ""}).status_code == 422
    made = admin.post("/projects", data={"csrf_token": token, "name": "shop", "description": "The shop"})
    assert "/projects/prj-" in made.location
    assert admin.post("/projects", data={"csrf_token": token, "name": "shop"}).status_code == 409
    url = made.location
    assert admin.post(url, data={"csrf_token": token, "name": "shop-2", "description": ""}).status_code == 303
    assert admin.post(url, data={"csrf_token": token, "name": ""}).status_code == 422
    user = people.user("")
    assert admin.post(f"{url}/members", data={"csrf_token": token, "username": "nobody-there", "role": "viewer"}).status_code == 422
    assert admin.post(f"{url}/members", data={"csrf_token": token, "username": user.username, "role": "king"}).status_code == 422
    assert admin.post(f"{url}/members", data={"csrf_token": token, "username": user.username, "role": "viewer"}).status_code == 303
    assert user.username in admin.get(url).text
    assert admin.post(f"{url}/members/{user.id}/remove", data={"csrf_token": token}).status_code == 303
    stranger = client_for("project_admin")
    assert stranger.get(url).status_code == 404
    assert stranger.post("/projects", data={"csrf_token": csrf_of(stranger.get("/projects")), "name": "mine"}).status_code == 403


def test_account_shows_sessions_and_tokens(client_for: Callable[..., FlaskClient], app: Flask, people: People) -> None:
    user = people.user()
    mine, other = browser(app, people, user), browser(app, people, user)
    token = csrf_of(mine.get("/account"))
    made = mine.post("/account/tokens", data={"csrf_token": token, "name": "laptop"})
    secret = re.search(r"atonix_[\w-]+", made.text)
    assert (made.status_code, bool(secret)) == (201, True)
    assert secret.group(0) not in mine.get("/account").text
    assert app.test_client().get("/api/v1/auth/me", headers={"Authorization": f"Token {secret.group(0)}"}).status_code == 200
    for name in ("", "x" * 256, "a\nb"):
        assert mine.post("/account/tokens", data={"csrf_token": token, "name": name}).status_code == 422
    page = mine.get("/account").text
    tokens = re.findall(r"/account/tokens/([\w-]+)/revoke", page)
    assert mine.post(f"/account/tokens/{tokens[0]}/revoke", data={"csrf_token": token}).status_code == 303
    assert app.test_client().get("/api/v1/auth/me", headers={"Authorization": f"Token {secret.group(0)}"}).status_code == 401
    sessions = re.findall(r"/account/sessions/([\w-]+)/revoke", page)
    stranger = client_for()
    for session_id in sessions:
        assert stranger.post(f"/account/sessions/{session_id}/revoke", data={"csrf_token": csrf_of(stranger.get("/account"))}).status_code == 404
        mine.post(f"/account/sessions/{session_id}/revoke", data={"csrf_token": token})
    assert other.get("/").status_code == 303
    saved = client_for()
    given = {"csrf_token": csrf_of(saved.get("/account")), "compact": "true"}
    assert saved.post("/account/preferences", data=given).status_code == 303
    assert re.search(r'<body[^>]*data-no-keys[^>]*class="compact"', saved.get("/").text)


def test_jobs_are_shown_retried_and_cancelled(
    client_for: Callable[..., FlaskClient], api: Api, worker: TestWorker, volumes: FakeVolumes, database: sessionmaker[Session]
) -> None:
    admin = client_for("project_admin")
    made = api.post("/compute/instances", {"name": "web-1", **SMALL}).json
    url = f"/jobs/{made['job_id']}"
    assert "web-1" in admin.get("/jobs").text
    assert "1<b> in progress" in admin.get("/tray", headers={"HX-Request": "true"}).text
    token = csrf_of(admin.get("/jobs"))
    assert admin.post(f"{url}/cancel", data={"csrf_token": token}).status_code == 303
    worker.drain()
    with database() as session:
        assert session.get_one(Job, made["job_id"]).state == "cancelled"
    volumes.fail_next("ensure_volume", EngineError("The pool is on fire."), times=99)
    broken = api.post("/compute/instances", {"name": "web-2", **SMALL}).json
    worker.drain()
    page = admin.get(f"/jobs/{broken['job_id']}").text
    assert "The pool is on fire." in page
    assert admin.get("/jobs?state=failed,dead&search=web-2").text.count("web-2") >= 1
    viewer = client_for("viewer")
    assert viewer.get(f"/jobs/{broken['job_id']}").status_code == 200
    assert viewer.post(f"/jobs/{broken['job_id']}/retry", data={"csrf_token": csrf_of(viewer.get("/jobs"))}).status_code == 403
    with database() as session:
        assert session.get_one(Job, broken["job_id"]).state in {"failed", "dead"}
    assert admin.get("/jobs?state=nothing").status_code in {200, 400}
    assert admin.get("/jobs?cursor=nonsense").status_code == 400


def test_the_audit_log_is_filtered_exported_and_verified(
    admin: FlaskClient, client_for: Callable[..., FlaskClient], api: Api, database: sessionmaker[Session], worker: TestWorker
) -> None:
    made = api.post("/compute/instances", {"name": "=web", **SMALL}).json["instance_id"]
    page = admin.get(f"/audit?resource_id={made}").text
    assert "compute.instance.create" in page
    assert "compute.instance.create" not in admin.get("/audit?username=nobody").text
    for wrong in ("since=yesterday", "cursor=abc", "until=9999-99-99"):
        assert admin.get(f"/audit?{wrong}").status_code == 400
    lines = admin.get(f"/audit/export.jsonl?resource_id={made}").text.splitlines()
    assert json.loads(lines[0])["resource_id"] == made
    rows = list(csv.DictReader(io.StringIO(admin.get("/audit/export.csv").text)))
    assert {row["resource_name"] for row in rows if row["resource_id"] == made} == {"'=web"}
    assert admin.get("/audit/export.xml").status_code == 400
    token = csrf_of(admin.get("/audit"))
    assert admin.post("/audit/verify", data={"csrf_token": token}).status_code == 303
    worker.drain()
    assert "Verified to entry" in admin.get("/audit").text
    with database() as session:
        session.execute(text("UPDATE audit_entries SET username = 'somebody else' WHERE seq = 1"))
        session.commit()
    admin.post("/audit/verify", data={"csrf_token": token})
    worker.drain()
    assert "Chain broken at entry 1" in html.unescape(admin.get("/audit").text)
    mine = client_for("project_admin")
    assert mine.post("/audit/verify", data={"csrf_token": csrf_of(mine.get("/audit"))}).status_code == 403


def test_the_log_is_paged_without_gaps(admin: FlaskClient, api: Api) -> None:
    for number in range(60):
        assert api.post("/compute/key-pairs", {"name": f"key-{number}"}).status_code == 201
    first = admin.get("/audit?action=compute.key_pair.create").text
    older = re.search(r'href="([^"]*cursor=\d+[^"]*)"', first)
    assert older is not None
    second = admin.get(html.unescape(older.group(1))).text
    keys = [set(re.findall(r"\bkey-\d+\b", page)) for page in (first, second)]
    assert (len(keys[0]), len(keys[1]), keys[0] & keys[1]) == (50, 10, set())


def test_the_overview_counts(client_for: Callable[..., FlaskClient], api: Api, worker: TestWorker) -> None:
    client = client_for("developer")
    assert client.get("/").status_code == 200
    api.post("/compute/instances", {"name": "web-1", **SMALL})
    worker.drain()
    page = client.get("/").text
    assert "web-1" in page
    assert re.search(r"1</b>|>1<", page)


def test_search_is_a_page_a_dialog_and_a_list(client_for: Callable[..., FlaskClient]) -> None:
    client = client_for()
    assert "atonix-tiny" in client.get("/search?q=TINY").text
    dialog = client.get("/search", headers={"HX-Request": "true"}).text
    assert "<dialog" in dialog
    results = client.get("/search?q=tiny", headers={"HX-Request": "true", "HX-Target": "results"}).text
    assert "atonix-tiny" in results
    assert "<dialog" not in results
    assert "Nothing has" in client.get("/search?q=none-such-thing").text
    assert PASSWORD not in dialog


def test_pages_of_somebody_with_a_policy(app: Flask, api_for: Callable[..., Api], people: People) -> None:
    """The frame names roles; a policy that somebody wrote is none."""
    admin, developer = api_for("project_admin"), people.user("developer")
    document = {"Version": "2026-11-01", "Statement": [{"Effect": "Allow", "Action": "compute.instance.read", "Resource": "*"}]}
    policy = admin.post("/security/policies", {"name": "look", "document": document}).json["id"]
    assert admin.post(f"/security/policies/{policy}/attach", {"principal_type": "user", "principal_id": developer.id}).status_code == 200
    assert browser(app, people, developer).get("/").status_code == 200
