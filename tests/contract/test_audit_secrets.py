"""What must be in the audit log, and what must never be: reads of secrets are told, secrets are not."""

from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import select, text
from sqlalchemy.orm import Session, sessionmaker

from portal.api.endpoints import Endpoint
from portal.kernel.audit import AuditEntry
from tests.support.draining import TestWorker
from tests.support.people import PASSWORD, People
from tests.support.web import Api, csrf_of

PLANTED = "planted-and-never-to-be-seen"
WRITES = ("POST", "PUT", "PATCH", "DELETE")
SECRETS = (
    "password", "new_password", "passphrase", "secret", "client_secret", "token", "access_token", "refresh_token", "api_key", "private_key", "recovery_code",
    "recovery_codes", "user_data", "authorization", "cookie",
)  # fmt: skip


def everything(database: sessionmaker[Session], *tables: str) -> str:
    with database() as session:
        return "\n".join(repr(tuple(row)) for table in tables for row in session.execute(text(f"SELECT * FROM {table}")))  # noqa: S608 - names of our own


def filled(path: str, ids: dict[str, str]) -> str:
    return "/".join(ids.get(part, "nothing-here") if part.startswith("{") else part for part in path.split("/"))


def schema_of(endpoint: Endpoint) -> dict[str, Any]:
    found = endpoint.body or {}
    return dict(found.get("properties", {}))


def value_of(name: str, schema: dict[str, Any]) -> object:
    """Something that the field may take; a secret where its name says that it is one, or where it has fields of its own."""
    if name in SECRETS:
        return PLANTED
    kinds: dict[str, object] = {"integer": 1, "boolean": True, "number": 1.0, "array": ["plain"], "object": dict.fromkeys(SECRETS, PLANTED)}
    return kinds.get(str(schema.get("type", "string")), "plain")


@pytest.mark.parametrize("role", ["platform_admin", "project_admin", "viewer"])
def test_no_secret_that_a_write_endpoint_was_given_is_in_the_log(
    app: Flask, api_for: Callable[..., Api], database: sessionmaker[Session], role: str
) -> None:
    api = api_for(role)
    ids = {"{user_id}": api.user.id, "{project_id}": api.user.default_project_id or ""}
    asked = 0
    for endpoint in app.extensions["portal_api"][0]:
        if endpoint.method not in WRITES:
            continue
        known = {name: value_of(name, schema) for name, schema in schema_of(endpoint).items()}
        for body in (dict.fromkeys(SECRETS, PLANTED), known, {**known, **dict.fromkeys(SECRETS, PLANTED)}, {**known, "tags": {"password": PLANTED}}):
            answer = api(endpoint.method, filled(endpoint.full_path, ids), body, headers={"Cookie": f"a={PLANTED}", "X-Api-Secret": PLANTED})
            assert answer.status_code < 500, (endpoint.full_path, answer.text)
            asked += 1
    assert asked > 100
    assert [line for line in everything(database, "audit_entries").splitlines() if PLANTED in line] == []


def test_secrets_of_real_changes_are_not_in_the_log(api_for: Callable[..., Api], people: People, database: sessionmaker[Session], app: Flask) -> None:
    boss, admin = api_for("platform_admin"), api_for("project_admin")
    made = boss.post("/users", {"username": "maria", "email": "maria@example.org", "password": f"{PLANTED} one"})
    assert made.status_code in {200, 201}, made.text
    assert admin.post("/compute/key-pairs", {"name": "k"}).status_code == 201
    me = people.user("developer")
    given = [app.test_client().post("/api-token-auth/", json={"username": me.username, "password": word}) for word in (PASSWORD, f"{PLANTED} wrong")]
    assert [answer.status_code for answer in given] == [200, 401]
    token = given[0].json["token"]
    instance = {"name": "web", "flavor": "t3-micro", "image": "atonix-tiny", "user_data": f"#!/bin/sh\n{PLANTED}"}
    assert admin.post("/compute/instances", instance).status_code == 202
    log = everything(database, "audit_entries", "events", "audit_exports", "audit_streams", "jobs")
    assert [secret for secret in (PLANTED, PASSWORD, token, admin.token, boss.token, "PRIVATE KEY") if secret in log] == []


def test_what_is_typed_where_the_user_name_belongs_may_be_a_password(app: Flask, people: People, database: sessionmaker[Session]) -> None:
    known = people.user("developer")
    for name in (PLANTED, known.username):
        answer = app.test_client().post("/api-token-auth/", json={"username": name, "password": "wrong"})
        assert answer.status_code == 401
    with database() as session:
        told = session.execute(
            select(AuditEntry.resource_id, AuditEntry.resource_name).where(AuditEntry.status == "failure").order_by(AuditEntry.seq)
        ).all()
    assert [tuple(each) for each in told] == [("", "unknown user"), (known.id, known.username)]
    assert PLANTED not in everything(database, "audit_entries")


def test_what_an_address_is_signed_with_is_not_in_the_log(api: Api, database: sessionmaker[Session]) -> None:
    url = f"https://robot:{PLANTED}@images.example.org/a.qcow2?X-Amz-Signature={PLANTED}&size=1&token={PLANTED}#{PLANTED}"
    for fields in ({"name": "mine", "source_url": url}, {"name": "mine", "description": f"from {url}, which is signed"}):
        api.post("/compute/images", fields)
    api.post("/compute/images", {"name": "other", "source_url": f"https://images.example.org/a.qcow2?X-Amz-Signature={PLANTED}"})
    log = everything(database, "audit_entries")
    assert (PLANTED in log, "https://********@images.example.org/a.qcow2?X-Amz-Signature=********&size=********" in log) == (False, True)


def test_sign_ins_refusals_and_reads_are_in_the_log(
    app: Flask, api_for: Callable[..., Api], database: sessionmaker[Session], people: People, worker: TestWorker
) -> None:
    user, admin, viewer = people.user("project_admin"), api_for("project_admin"), api_for("viewer")
    for word in (PASSWORD, "wrong"):
        browser = app.test_client()
        form = {"csrf_token": csrf_of(browser.get("/login")), "username": user.username, "password": word}
        browser.post("/login", data=form)
    made = admin.post("/compute/instances", {"name": "web", "flavor": "t3-micro", "image": "atonix-tiny"}).json
    worker.drain()
    admin.get(f"/compute/instances/{made['instance_id']}/console-output")
    viewer.get(f"/compute/instances/{made['instance_id']}/console-output")
    viewer.post("/compute/key-pairs", {"name": "k"})
    api_for("auditor").post("/security/audit-logs/verify", {})
    api_for("auditor").get("/security/audit-logs/export")
    with database() as session:
        told = {(row[0], row[1]) for row in session.execute(text("SELECT action, status FROM audit_entries"))}
    assert {
        ("identity.session.create", "success"), ("identity.session.create", "failure"), ("compute.instance.console", "success"),
        ("compute.instance.console", "denied"), ("compute.key_pair.create", "denied"), ("security.audit.verify", "success"),
        ("security.audit.export", "success"), ("identity.api_token.create", "success"),
    } - told == set()  # fmt: skip


def test_which_key_was_changed_is_told(api_for: Callable[..., Api], database: sessionmaker[Session]) -> None:
    api = api_for("developer")
    key = api.post("/auth/keys", {"name": "ci"}).json["id"]
    assert api("PATCH", f"/auth/keys/{key}", {"name": "build"}).status_code == 200
    assert api.post(f"/auth/keys/{key}/rotate").status_code == 200
    assert api("DELETE", f"/auth/keys/{key}").status_code == 204
    with database() as session:
        rows = session.scalars(select(AuditEntry).where(AuditEntry.action.startswith("identity.api_token.")).order_by(AuditEntry.seq)).all()
    told = {entry.action.rpartition(".")[2]: entry.details.get("key_id") for entry in rows}
    assert {verb: told[verb] for verb in ("update", "rotate", "delete")} == {"update": key, "rotate": key, "delete": key}
