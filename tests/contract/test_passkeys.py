"""Passkeys: as a second factor, alone, and as a proof; and what a key answers that is not ours."""

import html
import json
from dataclasses import replace

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker
from werkzeug.test import TestResponse

from portal.identity import passkeys, sign_in
from portal.identity.factors import MfaDevice
from portal.identity.models import User, UserSession
from portal.identity.passkeys import Site
from portal.kernel.audit import AuditEntry
from portal.kernel.errors import Conflict, InvalidRequest, Unauthorized
from tests.support.authenticator import SecurityKey
from tests.support.people import PASSWORD, People
from tests.support.web import browser, csrf_of

SITE = Site("localhost", "http://localhost")


def options_of(page: TestResponse) -> str:
    return html.unescape(page.text.split('data-options="')[1].split('"')[0])


@pytest.fixture
def user(people: People) -> User:
    return people.user()


@pytest.fixture
def key(people: People, user: User) -> SecurityKey:
    """A key that the user has registered."""
    key, ctx = SecurityKey(), people.context(user)
    asked = passkeys.passkey_begin(ctx, SITE)
    assert len(passkeys.passkey_create(ctx, SITE, asked.secret, "yubi", key.make(asked.options)).codes) == 10
    return key


def ask(client: FlaskClient) -> tuple[str, str]:
    """(options, CSRF token) of a sign-in with a passkey alone."""
    token = csrf_of(client.get("/login"))
    answer = client.post("/login/passkey/ask", headers={"X-CSRFToken": token})
    assert answer.mimetype == "application/json"
    return answer.text, token


def test_a_passkey_is_registered_in_the_browser(app: Flask, people: People, user: User, database: sessionmaker[Session]) -> None:
    client, key = browser(app, people, user), SecurityKey()
    page = client.get("/account/factors/passkey")
    done = client.post("/account/factors/passkey", data={"csrf_token": csrf_of(page), "name": "yubi", "credential": key.make(options_of(page))})
    assert "Recovery codes" in done.text
    with database() as session:
        row = session.scalars(select(MfaDevice)).one()
        assert (row.name, row.device_type, row.user_id) == ("yubi", "passkey", user.id)


def test_it_signs_in_alone(app: Flask, user: User, key: SecurityKey, database: sessionmaker[Session]) -> None:
    client = app.test_client()
    options, token = ask(client)
    assert "allowCredentials" not in json.loads(options) or json.loads(options)["allowCredentials"] == []
    answer = client.post("/login/passkey", data={"csrf_token": token, "credential": key.sign(options), "next": "/projects"})
    assert (answer.status_code, answer.location) == (303, "/projects")
    with database() as session:
        row = session.scalars(select(UserSession)).one()
        assert (row.user_id, row.method, row.mfa_at is not None) == (user.id, "passkey", True)


def test_alone_it_has_to_check_who_holds_it(app: Flask, key: SecurityKey) -> None:
    client = app.test_client()
    options, token = ask(client)
    key.verifies = False
    assert client.post("/login/passkey", data={"csrf_token": token, "credential": key.sign(options)}).status_code == 401


def test_it_is_a_second_factor(app: Flask, user: User, key: SecurityKey) -> None:
    client = app.test_client()
    key.verifies = False
    page = client.post("/login", data={"csrf_token": csrf_of(client.get("/login")), "username": user.username, "password": PASSWORD})
    answer = client.post("/login/second", data={"csrf_token": csrf_of(page), "credential": key.sign(options_of(page))})
    assert answer.status_code == 303
    assert client.get("/account").status_code == 200


def test_an_answer_counts_once(app: Flask, key: SecurityKey) -> None:
    client = app.test_client()
    options, token = ask(client)
    credential, secret = key.sign(options), client.get_cookie("__Host-atonix_step").value
    assert client.post("/login/passkey", data={"csrf_token": token, "credential": credential}).status_code == 303
    other = app.test_client()
    token = csrf_of(other.get("/login"))
    other.set_cookie("__Host-atonix_step", secret, secure=True)
    assert other.post("/login/passkey", data={"csrf_token": token, "credential": credential}).status_code == 401


def other_challenge(options: str) -> str:
    return json.dumps({**json.loads(options), "challenge": "A" * 43})


@pytest.mark.parametrize("wrong", ["challenge", "origin", "host", "unknown", "key", "json", "empty", "list", "text"])
def test_what_is_not_the_keys_answer_is_refused(people: People, key: SecurityKey, wrong: str) -> None:
    ctx = people.context(None)
    asked = passkeys.passkey_ask(ctx, SITE)
    answers = {
        "challenge": lambda: key.sign(other_challenge(asked.options)), "origin": lambda: replace(key, origin="https://evil.example").sign(asked.options),
        "host": lambda: replace(key, host="evil.example").sign(asked.options), "unknown": lambda: SecurityKey().sign(asked.options),
        "key": lambda: replace(SecurityKey(), id=key.id).sign(asked.options), "json": lambda: "{", "empty": lambda: "", "list": lambda: "[1]",
        "text": lambda: '{"id": 1, "response": "\x00"}',
    }  # fmt: skip
    with pytest.raises(Unauthorized):
        passkeys.passkey_enter(ctx, SITE, asked.secret, answers[wrong]())
    entry = ctx.db.scalars(select(AuditEntry).order_by(AuditEntry.seq.desc()).limit(1)).one()
    assert (entry.action, entry.status, entry.resource_name) == ("identity.session.create", "failure", "passkey")


def test_a_copied_key_is_noticed(people: People, key: SecurityKey) -> None:
    ctx = people.context(None)
    key.count = 7
    asked = passkeys.passkey_ask(ctx, SITE)
    passkeys.passkey_enter(ctx, SITE, asked.secret, key.sign(asked.options))
    asked = passkeys.passkey_ask(ctx, SITE)
    with pytest.raises(Unauthorized):
        passkeys.passkey_enter(ctx, SITE, asked.secret, replace(key, count=3).sign(asked.options))


def test_another_users_key_is_no_second_factor(people: People, key: SecurityKey) -> None:
    other, foreign = people.user(), SecurityKey()
    ctx = people.context(other)
    asked = passkeys.passkey_begin(ctx, SITE)
    passkeys.passkey_create(ctx, SITE, asked.secret, "other", foreign.make(asked.options))
    visitor = people.context(None)
    step = sign_in.sign_in(visitor, other.username, PASSWORD)
    options = passkeys.second_options(visitor, SITE, step.secret)
    with pytest.raises(Unauthorized):
        passkeys.passkey_second(visitor, SITE, step.secret, key.sign(options))


def test_another_users_key_proves_nothing(people: People, user: User, key: SecurityKey) -> None:
    mine, other = people.context(user), people.context(people.user())
    asked = passkeys.passkey_confirm_ask(mine, SITE)
    with pytest.raises(Unauthorized):
        passkeys.passkey_confirm(other, SITE, asked.secret, key.sign(asked.options))
    asked = passkeys.passkey_confirm_ask(other, SITE)
    with pytest.raises(Unauthorized):
        passkeys.passkey_confirm(other, SITE, asked.secret, key.sign(asked.options))
    asked = passkeys.passkey_confirm_ask(mine, SITE)
    passkeys.passkey_confirm(mine, SITE, asked.secret, key.sign(asked.options))


def test_a_key_is_registered_once(people: People, user: User, key: SecurityKey) -> None:
    ctx = people.context(people.user())
    asked = passkeys.passkey_begin(ctx, SITE)
    with pytest.raises(Conflict):
        passkeys.passkey_create(ctx, SITE, asked.secret, "mine", key.make(asked.options))
    asked = passkeys.passkey_begin(people.context(user), SITE)
    with pytest.raises(Unauthorized):
        passkeys.passkey_create(ctx, SITE, asked.secret, "mine", SecurityKey().make(asked.options))


@pytest.mark.parametrize("answer", ["", "{}", "[]", "{", '{"id": "x"}', "x" * 100_000])
def test_what_is_no_answer_registers_nothing(people: People, user: User, answer: str) -> None:
    ctx = people.context(user)
    asked = passkeys.passkey_begin(ctx, SITE)
    with pytest.raises(InvalidRequest):
        passkeys.passkey_create(ctx, SITE, asked.secret, "mine", answer)


@pytest.mark.parametrize("host", ["127.0.0.1:8080", "[::1]:8080", "evil.example"])
def test_an_address_without_a_name_has_none(app: Flask, people: People, user: User, host: str) -> None:
    del people, user
    page = app.test_client().get("/login", headers={"Host": host})
    assert "Use a passkey" not in page.text
    answer = app.test_client().post("/login/passkey/ask", headers={"Host": host})
    assert answer.status_code in {400, 503}
