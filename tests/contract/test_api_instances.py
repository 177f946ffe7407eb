"""Instances through the API, from creation to nothing, as scripts do it."""

from collections.abc import Callable

import pytest
from flask import Flask

from portal.identity.tokens import API_KEYS
from portal.identity.users import user_create
from tests.support.draining import TestWorker
from tests.support.people import PASSWORD, People
from tests.support.web import Api

SMALL = {"flavor": "t3-micro", "image": "atonix-tiny"}


def test_from_creation_to_nothing(api: Api, worker: TestWorker) -> None:
    made = api.post("/compute/instances", {"name": "web-1", "tags": {"env": "test"}, **SMALL})
    assert made.status_code == 202, made.json
    assert (made.json["status"], made.json["name"]) == ("pending", "web-1")
    assert made.json["instance_id"].startswith("i-")
    assert made.json["resource_id"].startswith("res-")
    assert made.headers["Location"] == f"/api/v1/compute/instances/{made.json['instance_id']}"
    path = f"/compute/instances/{made.json['instance_id']}"
    assert api.get(f"/jobs/{made.json['job_id']}").json["state"] == "queued"
    worker.drain()
    assert api.get(path).json["status"] == "running"
    assert api.get(f"/jobs/{made.json['job_id']}").json["progress"] == 100
    reads = 2
    assert [api.get(f"{path}/console-output").json["lines"] >= 0 for _ in range(reads)] == [True] * reads
    assert api.post(f"{path}/stop").status_code == 202
    worker.drain()
    assert api.get(path).json["status"] == "stopped"
    assert api("DELETE", path).status_code == 202
    worker.drain()
    assert api.get(path).json["status"] == "terminated"
    log = api.get(f"/security/audit-logs?resource_id={made.json['instance_id']}").json["results"]
    actions = [entry["action"] for entry in reversed(log)]
    assert [action for action in actions if action.count(".") == 2] == [
        "compute.instance.create",
        *(["compute.instance.console"] * reads),
        "compute.instance.stop",
        "compute.instance.terminate",
    ]
    assert api.get("/compute/instances").json["count"] == 0


@pytest.mark.parametrize("base", ["/api/v1/compute/instances", "/api/compute/instances", "/api/v1/services/instances/", "/api/v1/compute/instances/"])
def test_every_path_form_is_the_same_endpoint(api: Api, base: str) -> None:
    made = api.post(base, {"name": "web-1", **SMALL})
    assert made.status_code == 202
    assert api.get(base).json["results"][0]["instance_id"] == made.json["instance_id"]
    item = f"{base.rstrip('/')}/{made.json['resource_id']}" + ("/" if base.endswith("/") else "")
    assert api.get(item).json["name"] == "web-1"


def test_token_from_user_name_and_password(app: Flask) -> None:
    from tests.support.databases import ADMIN_PASSWORD

    client = app.test_client()
    token = client.post("/api-token-auth/", json={"username": "admin", "password": ADMIN_PASSWORD}).json["token"]
    found = client.get("/api/v1/services/instances/", headers={"Authorization": f"Token {token}"})
    assert (found.status_code, found.json["results"]) == (200, [])
    assert client.post("/api-token-auth/", json={"username": "admin", "password": "wrong"}).status_code == 401
    assert client.get("/api/v1/compute/instances", headers={"Authorization": "Token wrong"}).status_code == 401
    assert client.get("/api/v1/compute/instances").json["error"] == "UNAUTHORIZED"


def test_a_bulk_action_tells_of_each(api: Api, worker: TestWorker) -> None:
    ids = [api.post("/compute/instances", {"name": f"web-{n}", **SMALL}).json["instance_id"] for n in range(2)]
    worker.drain()
    done = api.post("/compute/instances/bulk-action", {"action": "stop", "instance_ids": [*ids, "i-nothing"]})
    assert (done.json["succeeded"], done.json["failed"]) == (2, 1)
    assert done.json["results"][2]["error"] == "NOT_FOUND"
    worker.drain()
    assert {row["status"] for row in api.get("/compute/instances").json["results"]} == {"stopped"}


def test_foreign_project_is_not_there(api_for: Callable[..., Api], people: People) -> None:
    mine, other = api_for(), api_for("project_admin", people.project())
    made = mine.post("/compute/instances", {"name": "web-1", **SMALL}).json
    path = f"/compute/instances/{made['instance_id']}"
    assert other.get(path).status_code == 404
    assert other.post(f"{path}/stop").status_code == 404
    assert other("PATCH", path, {"name": "mine"}).status_code == 404
    assert other("DELETE", path).status_code == 404
    assert other.get("/compute/instances").json["count"] == 0
    assert other.get(f"/jobs/{made['job_id']}").status_code == 404


def test_an_estimate_changes_nothing_and_tells_what_would(api: Api) -> None:
    found = api.post("/compute/instances/estimate", {"name": "web-1", "count": 3, **SMALL}).json
    assert (found["is_possible"], found["hourly_cost_usd"]) == (True, pytest.approx(0.0312))
    assert {each["dimension"]: each["added"] for each in found["impacts"]} == {"instances": 3, "cpus": 3, "memory_gb": 3, "storage_gb": 24}
    assert api.get("/compute/instances").json["count"] == 0
    assert api.get("/quotas/instances").json["used"] == 0
    refused = api.post("/compute/instances/estimate", {"name": "web-1", "flavor": "t3-micro", "image": "nowhere"}).json
    assert (refused["is_possible"], list(refused["problem"]["details"])) == (False, ["image"])


def test_a_user_with_a_given_password_gets_no_token_and_one_with_many_keeps_signing_in(app: Flask, people: People) -> None:
    client, user = app.test_client(), people.user("developer")
    asked = {"username": user.username, "password": PASSWORD}
    for _ in range(API_KEYS.default + 3):
        assert client.post("/api-token-auth/", json=asked).status_code == 200
    boss = people.context(people.admin())
    given = user_create(boss, username="carol", email="carol@example.org", password=PASSWORD)
    refused = client.post("/api-token-auth/", json={"username": given.username, "password": PASSWORD})
    assert (refused.status_code, refused.json["error"]) == (403, "FORBIDDEN")
    assert "console" in refused.json["message"]
