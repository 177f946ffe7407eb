"""The authorization matrix: every endpoint and page × every built-in role × a foreign project × nobody, as the running app answers, in one golden file.

Each is asked for what another user's project holds, with a body that fits its schema, so that it is the permission that decides. Reading a row:
401 sign in first, 403 not allowed, 404 not to be seen, 303 to the sign-in form; everything else means that the door was open.
"""

import os
import re
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from flask import Flask

from tests.support.draining import TestWorker
from tests.support.golden import DIRECTORY, same_as_golden
from tests.support.people import People
from tests.support.web import Api, browser, csrf_of, one_of_each

NOBODY, NO_ROLE, FOREIGN = "anonymous", "no role", "foreign"
COLUMNS = (NOBODY, NO_ROLE, FOREIGN, "viewer", "developer", "project_admin", "auditor", "platform_admin")
ORDER = ("GET", "POST", "PUT", "PATCH", "DELETE")
# They end what the others are asked with, or never end.
LEFT_OUT = {"/api/v1/auth/logout", "/logout", "/api/v1/auth/change-password", "/account/password", "/api/v1/events", "/events"}


def sample(schema: Mapping[str, Any], whole: Mapping[str, Any]) -> Any:
    """The smallest value that fits a schema, as far as types tell."""
    if "$ref" in schema:
        return sample(whole["$defs"][schema["$ref"].rpartition("/")[2]], whole)
    if choices := schema.get("anyOf"):
        return sample(choices[0], whole)
    return schema["enum"][0] if schema.get("enum") else _of_type(schema, whole)


def _of_type(schema: Mapping[str, Any], whole: Mapping[str, Any]) -> Any:
    kind = schema.get("type")
    if kind == "object":
        return {name: sample(each, whole) for name, each in schema.get("properties", {}).items() if name in schema.get("required", ())}
    if kind == "array":
        return [sample(schema.get("items", {}), whole)] * schema.get("minItems", 0)
    if kind in {"integer", "number"}:
        return schema.get("minimum", 1)
    return False if kind == "boolean" else "x" * max(schema.get("minLength", 0), 8)


def routes(app: Flask) -> dict[tuple[str, str], list[str]]:
    """(method, path) of everything the app answers, and the other paths of the same view."""
    found: dict[tuple[str, str], list[str]] = {}
    for rule in app.url_map.iter_rules():
        for method in set(rule.methods or ()) & set(ORDER):
            if rule.endpoint != "static" and rule.rule not in LEFT_OUT:
                found.setdefault((method, rule.endpoint), []).append(rule.rule)
    canonical = {(method, min(rules, key=_rank)): sorted(rules, key=_rank)[1:] for (method, _), rules in found.items()}
    return dict(sorted(canonical.items(), key=lambda each: (ORDER.index(each[0][0]), each[0][1])))


def _rank(rule: str) -> tuple[bool, bool, str]:
    return not rule.startswith("/api/v1/"), rule.startswith("/api/v1/services/"), rule


def test_every_route_is_in_the_matrix(app: Flask) -> None:
    written = {tuple(line.split()[:2]) for line in (DIRECTORY / "authorization.txt").read_text().splitlines() if line.startswith(ORDER)}
    assert set(routes(app)) == written


@pytest.mark.skipif(os.environ.get("TEST_DATABASE") == "postgresql", reason="the same answers as on SQLite, and the golden file is one")
def test_what_everybody_may(app: Flask, api_for: Callable[..., Api], people: People, worker: TestWorker) -> None:
    bodies = {f"api.{each.name}": sample(each.body, each.body) for each in app.extensions["portal_api"][0] if each.body}
    endpoint_of = {(method, rule.rule): rule.endpoint for rule in app.url_map.iter_rules() for method in rule.methods or ()}
    asked, answers = routes(app), dict[tuple[str, str], list[str]]()
    for column in COLUMNS:
        # A project for each: who may delete it does.
        project_id = people.project()
        ids = _theirs(api_for("project_admin", project_id), worker, column, project_id)
        ask = _asker(app, people, column, project_id)
        for route in asked:
            answers.setdefault(route, []).append(ask(route[0], _filled(route[1], ids), bodies.get(endpoint_of[route])))
    lines = []
    for (method, rule), others in asked.items():
        lines.append(f"{method:7}{rule:70}" + "".join(f"{answer:>5}" for answer in answers[method, rule]))
        lines += [f"       = {other}" for other in others]
    same_as_golden("authorization.txt", "\n".join(["columns: " + ", ".join(COLUMNS), "", *lines]) + "\n")


def _theirs(owner: Api, worker: TestWorker, column: str, project_id: str) -> dict[str, str]:
    """What somebody in a project has, by the names that paths use."""
    name = "theirs-" + column.replace(" ", "-").replace("_", "-")
    rows = one_of_each(owner, worker.drain, name)
    account = owner.post("/service-accounts", {"name": f"{name}-robot", "role": "viewer"}).json["id"]
    client = owner.post(
        "/oauth-clients", {"name": name, "redirect_uris": ["https://app.example.org/"], "grants": ["authorization_code"], "scopes": ["compute:read"]}
    )
    assert client.status_code == 201, client.json
    kinds = {"compute.instance": "instance_id", "compute.image": "image_id", "compute.flavor": "flavor_id", "compute.key_pair": "key_pair_id",
             "security.policy": "policy_id", "security.group": "group_id", "security.role": "role_id"}  # fmt: skip
    return {
        **{kinds[key]: row_id for key, row_id in rows.items()}, "service": "compute", "collection": "instances", "row_id": rows["compute.instance"],
        "tab": "activity", "verb": "stop", "project_id": project_id, "user_id": owner.user.id, "dimension": "instances", "resource_type": "instances",
        "api_key_id": owner.get("/auth/keys").json["results"][0]["id"], "account_id": account, "service_account_id": account,
        "client_id": client.json["client_id"], "job_id": owner.get(f"/jobs?resource_id={rows['compute.instance']}").json["results"][0]["job_id"],
        "log_id": owner.get("/security/audit-logs").json["results"][0]["log_id"],
    }  # fmt: skip


def _asker(app: Flask, people: People, column: str, project_id: str) -> Callable[[str, str, Any], str]:
    role = {NOBODY: "", NO_ROLE: "", FOREIGN: "project_admin"}.get(column, column)
    user = people.user(role, people.project("foreign") if column == FOREIGN else project_id)
    token = "" if column == NOBODY else people.token(user)
    client = app.test_client() if column == NOBODY else browser(app, people, user)
    csrf = "" if column == NOBODY else csrf_of(client.get("/account"))

    def ask(method: str, path: str, body: Any) -> str:
        if path.startswith("/api"):
            headers = {"Authorization": f"Token {token}"} if token else {}
            return str(app.test_client().open(path, method=method, json=body, headers=headers).status_code)
        return str(client.open(path, method=method, data={"csrf_token": csrf} if method != "GET" else None).status_code)

    return ask


def _filled(rule: str, ids: Mapping[str, str]) -> str:
    return re.sub(r"<(?:[^>]*:)?([^>]+)>", lambda match: ids.get(match.group(1), "nothing-here"), rule)
