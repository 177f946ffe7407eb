"""The authorization matrix: every endpoint and page × every built-in role × a foreign project × nobody, as the running app answers, in one golden file.

Each is asked for what another user's project holds, with a request that fits, so that it is the permission that decides. Reading a row:
401 sign in first, 403 not allowed, 404 not to be seen, 303 to the sign-in form; everything else means that the door was open.
"""

import os
import re
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlencode

import pytest
from flask import Flask
from simple_websocket import ConnectionClosed
from werkzeug.test import TestResponse

from portal.web.consoles import REFUSED
from tests.support.draining import TestWorker
from tests.support.golden import DIRECTORY, same_as_golden
from tests.support.matrix_samples import ENDING, FIRST, LAST, OTHERWISE, SILENT, samples, theirs
from tests.support.people import People
from tests.support.web import Api, browser, csrf_of

NOBODY, NO_ROLE, FOREIGN = "anonymous", "no role", "foreign"
COLUMNS = (NOBODY, NO_ROLE, FOREIGN, "viewer", "developer", "project_admin", "auditor", "platform_admin")
LEGEND = "200-: answered, and refused for the row that was ticked; of a websocket, 101: let in, 403: closed"
ORDER = ("GET", "POST", "PUT", "PATCH", "DELETE")


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
            if rule.endpoint != "static":
                found.setdefault((method, rule.endpoint), []).append(rule.rule)
    canonical = {(method, min(rules, key=_rank)): sorted(rules, key=_rank)[1:] for (method, _), rules in found.items()}
    return dict(sorted(canonical.items(), key=lambda each: (ORDER.index(each[0][0]), each[0][1])))


def _rank(rule: str) -> tuple[bool, bool, str]:
    return not rule.startswith("/api/v1/"), rule.startswith("/api/v1/services/"), rule


class Socket:
    """A websocket that keeps what the portal closes it with."""

    mode = "werkzeug"
    refused_with = 0

    def __init__(self, *_: object, **__: object) -> None:
        Socket.refused_with = 0

    def close(self, reason: int | None = None, _message: str = "") -> None:
        """The first reason counts."""
        Socket.refused_with = Socket.refused_with or reason or 0


def leaves() -> None:
    """The user leaves as soon as the console has let them in."""
    raise ConnectionClosed


def written() -> dict[tuple[str, str], list[str]]:
    """The golden file: (method, path) → answers by column."""
    lines = (DIRECTORY / "authorization.txt").read_text().splitlines()
    return {(line.split()[0], line.split()[1]): line.split()[2:] for line in lines if line.startswith(ORDER)}


def test_every_route_is_in_the_matrix(app: Flask) -> None:
    assert set(routes(app)) == set(written())


def test_no_row_is_silent() -> None:
    """Where all who have signed in get one and the same refusal, no permission was what decided, unless there is a reason."""
    silent = {" ".join(route) for route, (_, *answers) in written().items() if len(set(answers)) == 1 and re.match(r"4|\d+-", answers[0])}
    assert silent == set(SILENT)


@pytest.mark.timeout(400)
@pytest.mark.skipif(os.environ.get("TEST_DATABASE") == "postgresql", reason="the same answers as on SQLite, and the golden file is one")
def test_what_everybody_may(app: Flask, api_for: Callable[..., Api], people: People, worker: TestWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flask_sock.Server", Socket)
    monkeypatch.setattr("portal.web.consoles.session_secret", leaves)
    monkeypatch.setitem(app.extensions["portal"][0].__dict__, "s3_public_url", "http://s3.example.org")
    for limiter in app.extensions["limiter"]:
        monkeypatch.setattr(limiter, "enabled", False)
    bodies = {f"api.{each.name}": sample(each.body, each.body) for each in app.extensions["portal_api"][0] if each.body}
    endpoint_of = {(method, rule.rule): rule.endpoint for rule in app.url_map.iter_rules() for method in rule.methods or ()}
    asked, answers = routes(app), dict[tuple[str, str], list[str]]()
    for column in COLUMNS:
        # A project for each: who may delete it does.
        project_id = people.project()
        ids = theirs(api_for("project_admin", project_id), people, worker, column, project_id)
        ask, fields = _asker(app, people, column, project_id), samples(ids, column)
        for method, rule in sorted(asked, key=lambda route: (route[1] not in FIRST, route == ("POST", LAST))):
            given = fields.get(f"{method} {rule}", bodies.get(endpoint_of[method, rule]))
            answers.setdefault((method, rule), []).append(ask(method, rule, _filled(rule, ids), given))
    lines = []
    for (method, rule), others in asked.items():
        lines.append(f"{method:7}{rule:70}" + "".join(f"{answer:>5}" for answer in answers[method, rule]))
        lines += [f"       = {other}" for other in others]
    same_as_golden("authorization.txt", "\n".join(["columns: " + ", ".join(COLUMNS), LEGEND, "", *lines]) + "\n")


def _asker(app: Flask, people: People, column: str, project_id: str) -> Callable[[str, str, str, Any], str]:
    role = {NOBODY: "", NO_ROLE: "", FOREIGN: "project_admin"}.get(column, column)
    home = people.project("foreign") if column == FOREIGN else project_id

    def somebody() -> Callable[[str, str, Any], TestResponse]:
        user = people.user(role, home)
        token = "" if column == NOBODY else people.token(user)
        client = app.test_client() if column == NOBODY else browser(app, people, user)
        csrf = "" if column == NOBODY else csrf_of(client.get("/account"))

        def ask(method: str, path: str, given: Any) -> TestResponse:
            if method == "GET" and given:
                path = f"{path}?{urlencode(given, doseq=True)}"
            if path.startswith("/api"):
                headers = {"Authorization": f"Token {token}"} if token else {}
                return app.test_client().open(path, method=method, json=None if method == "GET" else given, headers=headers)
            if path.endswith("/upload"):
                return client.post(path, data=b"file", content_type="application/octet-stream", headers={"X-CSRFToken": csrf})
            headers = {"Origin": "http://localhost", "Upgrade": "websocket", "Connection": "Upgrade"} if path.startswith("/ws") else {}
            url = {"base_url": "ws://localhost"} if headers else {}
            return client.open(path, method=method, data={**(given or {}), "csrf_token": csrf} if method != "GET" else None, headers=headers, **url)

        return ask

    usual = somebody()

    def status(method: str, rule: str, path: str, given: Any) -> str:
        ask = somebody() if rule in ENDING else usual
        return _said(ask(method, path, given), rule)

    return status


def _said(answer: TestResponse, rule: str) -> str:
    """The status; of a websocket what became of it."""
    if rule.startswith("/ws/") and answer.status_code == 200:
        return "403" if Socket.refused_with == REFUSED else "101"
    has_failed = answer.is_json and "bulk-action" in rule and answer.json.get("failed")
    has_failed = has_failed or (answer.request.method == "POST" and "/bulk/" in rule and answer.status_code == 200)
    return f"{answer.status_code}{'-' if has_failed else ''}"


def _filled(rule: str, ids: Mapping[str, str]) -> str:
    def value(match: re.Match[str]) -> str:
        name = match.group(1)
        return ids.get(next((other for (part, named), other in OTHERWISE.items() if part in rule and named == name), name), "nothing-here")

    return re.sub(r"<(?:[^>]*:)?([^>]+)>", value, rule)
