"""Every endpoint as every role, and every item as somebody from another project: what the matrix says is what happens."""

from collections.abc import Callable

import pytest
from flask import Flask

from portal.api.endpoints import Endpoint
from portal.http.guard import Access
from portal.kernel.authz import ROLES, role_matrix
from portal.kernel.declare import Effect
from portal.kernel.resource import Registry, Tenancy
from tests.support.draining import TestWorker
from tests.support.people import People
from tests.support.web import Api, one_of_each

SMALL = {"flavor": "t3-micro", "image": "atonix-tiny"}
EVERYBODY = [*ROLES, ""]


def endpoints_of(app: Flask) -> list[Endpoint]:
    return app.extensions["portal_api"][0]


def filled(path: str) -> str:
    return "/".join("nothing-here" if part.startswith("{") else part for part in path.split("/"))


def test_without_a_credential_there_is_nothing_but_the_public(app: Flask) -> None:
    client = app.test_client()
    for endpoint in endpoints_of(app):
        if endpoint.rule is not Access.PUBLIC:
            answer = client.open(filled(endpoint.full_path), method=endpoint.method)
            assert (answer.status_code, answer.json["error"]) == (401, "UNAUTHORIZED"), endpoint.full_path


@pytest.mark.parametrize("role", EVERYBODY)
def test_no_endpoint_fails_for_a_role(app: Flask, api_for: Callable[..., Api], role: str) -> None:
    api = api_for(role)
    for endpoint in endpoints_of(app):
        if endpoint.method == "GET" or "{" in endpoint.path:
            answer = api(endpoint.method, filled(endpoint.full_path))
            assert answer.status_code in endpoint.statuses(), (
                endpoint.method,
                endpoint.full_path,
                answer.status_code,
                answer.get_data(as_text=True)[:300],
            )


@pytest.mark.parametrize("role", EVERYBODY)
def test_operations_are_open_to_whom_the_matrix_says(
    role: str, api_for: Callable[..., Api], people: People, worker: TestWorker, registry: Registry
) -> None:
    owner, api = api_for("project_admin"), api_for(role)
    ids = {**one_of_each(owner, worker.drain, "theirs"), "compute.image": "atonix-tiny"}
    matrix = dict(role_matrix(list(registry.permissions), list(registry.permissions.values())))
    for rtype in registry:
        for op in rtype.operations:
            if op.internal:
                continue
            base = f"/{rtype.service}/{rtype.collection}"
            path = (
                base
                if op.effect is Effect.CREATE
                else f"{base}/{ids[rtype.key]}" + ("" if op.verb in {"update", "delete"} else f"/{op.verb.replace('_', '-')}")
            )
            method = "PATCH" if op.verb == "update" else "DELETE" if op.verb == "delete" else "POST"
            # A field that is not there: the operation does nothing even where it is allowed, and says so only then.
            answer = api(method, path, {"no_such_field": 1})
            allowed = matrix[f"{rtype.key}.{op.verb}"].get(role, "") == "yes" or (
                op.effect is Effect.CREATE and matrix[f"{rtype.key}.{op.verb}"].get(role)
            )
            # The platform's own image belongs to no project: only who may everything everywhere may change it.
            if rtype.key == "compute.image" and op.effect is not Effect.CREATE:
                allowed = role == "platform_admin"
            # What everybody shares is there for those who are members of nothing, too.
            hidden = role == "" and rtype.key not in {"compute.flavor", "compute.image", "storage.volume_type"}
            expected = 400 if allowed else 404 if hidden and op.effect is not Effect.CREATE else 400 if hidden else 403
            if role == "" and op.effect is Effect.CREATE and rtype.tenancy is Tenancy.SHARED:
                expected = 403
            assert answer.status_code == expected, (role, method, path, answer.status_code, answer.json)


def test_another_projects_rows_are_not_there(api_for: Callable[..., Api], people: People, worker: TestWorker, registry: Registry) -> None:
    owner, other = api_for("project_admin"), api_for("project_admin", people.project())
    made = owner.post("/compute/instances", {"name": "hidden-one", "tags": {"secret": "plan"}, **SMALL}).json
    key = owner.post("/compute/key-pairs", {"name": "hidden-one"}).json["id"]
    image = owner.post("/compute/images", {"name": "hidden-one"}).json["id"]
    worker.drain()
    for rtype, row_id in (("instances", made["instance_id"]), ("instances", made["resource_id"]), ("key-pairs", key), ("images", image)):
        path = f"/compute/{rtype}/{row_id}"
        tried = [other.get(path), other("PATCH", path, {"name": "mine"}), other("DELETE", path), other.get(f"{path}/events")]
        if rtype == "instances":
            tried += [other.post(f"{path}/{verb}") for verb in ("start", "stop", "reboot", "lock", "terminate")]
            tried += [other.get(f"{path}/metrics"), other.get(f"{path}/console-output")]
        assert [answer.status_code for answer in tried] == [404] * len(tried)
    assert "hidden-one" not in other.get("/resources?q=hidden").get_data(as_text=True)
    for path in ("/compute/instances?all_projects=true", "/compute/images", "/compute/key-pairs", "/tags", "/events", "/jobs?all_projects=true",
                 "/security/audit-logs", f"/security/audit-logs?resource_id={made['instance_id']}"):  # fmt: skip
        assert "hidden-one" not in other.get(path).get_data(as_text=True), path
    assert other.get(f"/jobs/{made['job_id']}").status_code == 404
    assert other.post(f"/jobs/{made['job_id']}/cancel").status_code == 404
    bulk = other.post("/compute/instances/bulk-action", {"action": "terminate", "ids": [made["instance_id"]]}).json
    assert (bulk["succeeded"], bulk["results"][0]["error"]) == (0, "NOT_FOUND")
    assert other.get("/compute/instances", headers={"X-Project": owner.get("/auth/me").json["current_project_id"]}).status_code == 404
    assert owner.get(f"/compute/instances/{made['instance_id']}").json["status"] == "running"
