"""Refusals that no operation writes are in the audit log as well: reads that are not allowed, and credentials that hold no more."""

from collections.abc import Callable
from datetime import timedelta

import pytest
from flask import Flask
from sqlalchemy import select, update
from sqlalchemy.orm import Session, sessionmaker

from portal.http import refusals
from portal.http.refusals import READ
from portal.identity.models import ApiToken
from portal.identity.oauth2.endpoints import CONSENT
from portal.identity.users import user_update
from portal.kernel.audit import AuditEntry
from portal.kernel.db import now, transaction
from tests.support.effects import entries_since, last_seq
from tests.support.oauth import register
from tests.support.people import People
from tests.support.web import Api, browser, csrf_of


@pytest.fixture(autouse=True)
def _nothing_told_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusals, "_told", refusals._Told())


def test_reads_that_are_refused_are_told_once(app: Flask, api_for: Callable[..., Api], people: People, database: sessionmaker[Session]) -> None:
    viewer = api_for("viewer")
    seq = last_seq(database)
    assert viewer.get("/users").status_code == 403
    (entry,) = entries_since(database, seq)
    assert (entry.action, entry.status, entry.username) == ("identity.user.read", "denied", viewer.user.username)
    assert (entry.details["method"], entry.details["path"]) == ("GET", "/api/v1/users")
    seq = last_seq(database)
    assert browser(app, people, viewer.user).get("/security/sign-in").status_code == 403
    assert [each.status for each in entries_since(database, seq)] == ["denied"]
    # What an operation has written is not written again.
    seq = last_seq(database)
    assert viewer.post("/compute/key-pairs", {"name": "x"}).status_code == 403
    assert [each.action for each in entries_since(database, seq)] == ["compute.key_pair.create"]


def spoilt(people: People, database: sessionmaker[Session], token: ApiToken, how: str) -> None:
    if how == "its user is disabled":
        user_update(people.context(people.admin()), token.user_id, is_active=False)
    changes = {"it is switched off": {"is_active": False}, "it has expired": {"expires_at": now() - timedelta(seconds=1)}}
    with database() as session, transaction(session):
        session.execute(update(ApiToken).where(ApiToken.id == token.id).values(**changes.get(how, {"name": token.name})))


@pytest.mark.parametrize("how", ["it is switched off", "it has expired"])
def test_a_token_that_holds_no_more_is_told_with_its_user(
    api_for: Callable[..., Api], people: People, database: sessionmaker[Session], how: str
) -> None:
    api = api_for("developer")
    with database() as session:
        token = session.scalars(select(ApiToken).where(ApiToken.user_id == api.user.id)).one()
    spoilt(people, database, token, how)
    seq = last_seq(database)
    for _ in range(3):
        assert api.get("/compute/instances").status_code == 401
    (entry,) = entries_since(database, seq)
    assert (entry.action, entry.status, entry.resource_id, entry.resource_name) == (refusals.CREDENTIAL, "failure", token.id, api.user.username)
    assert how in entry.error_message


def test_unknown_tokens_are_told_once_for_each_address(app: Flask, people: People, database: sessionmaker[Session]) -> None:
    seq = last_seq(database)
    for number in range(5):
        assert Api(app.test_client(), people.admin(), f"atonix_{number}" + "x" * 40).get("/compute/instances").status_code == 401
    (entry,) = entries_since(database, seq)
    assert (entry.action, entry.resource_name) == (refusals.CREDENTIAL, "unknown")
    # Nobody who merely comes without one is told of.
    assert app.test_client().get("/api/v1/users").status_code == 401
    assert len(entries_since(database, seq)) == 1


def test_what_was_typed_as_a_name_of_nobody_is_not_kept(app: Flask, database: sessionmaker[Session]) -> None:
    seq = last_seq(database)
    assert app.test_client().post("/api-token-auth/", json={"username": "my-Secret-Passphrase-77", "password": "x"}).status_code == 401
    (entry,) = entries_since(database, seq)
    assert (entry.action, entry.resource_name) == ("identity.session.create", "unknown user")
    with database() as session:
        assert "Passphrase" not in str([vars(each) for each in session.scalars(select(AuditEntry).where(AuditEntry.seq > seq))])


@pytest.mark.parametrize(
    ("path", "body", "name"),
    [("/invite", {"code": "nonesuch", "new": "tulip-violin-anchor", "again": "tulip-violin-anchor"}, "invitation"),
     ("/api/v1/auth/refresh", {"refresh_token": "atonix.r.nonesuch"}, "refresh token")],
)  # fmt: skip
def test_what_is_tried_at_random_is_told(app: Flask, database: sessionmaker[Session], path: str, body: dict[str, str], name: str) -> None:
    seq, client = last_seq(database), app.test_client()
    if path == "/invite":
        client.post(path, data={**body, "csrf_token": csrf_of(client.get(path))})
    else:
        assert client.post(path, json=body).status_code == 401
    (entry,) = entries_since(database, seq)
    assert (entry.status, entry.resource_name) == ("failure", name)


def test_a_refusal_that_cannot_be_placed_is_a_refusal(app: Flask, people: People) -> None:
    headers = {"Authorization": f"Token {people.token(people.user('viewer'))}", "X-Project": "prj-nonesuch"}
    assert app.test_client().get("/account", headers=headers).status_code == 403


def test_a_form_from_elsewhere_is_told_once(app: Flask, people: People, database: sessionmaker[Session]) -> None:
    user = people.user()
    client = browser(app, people, user)
    for _ in range(2):
        answer = client.post("/account/tokens", data={"name": "x", "csrf_token": "forged"}, headers={"Origin": "https://evil.example"})
        assert answer.status_code == 400
    with database() as session:
        (entry,) = session.scalars(select(AuditEntry).where(AuditEntry.action == READ, AuditEntry.user_id == user.id))
        assert (entry.status, entry.details["path"], entry.details["origin"]) == ("failure", "/account/tokens", "https://evil.example")


def test_an_address_that_is_not_the_applications_is_told(
    app: Flask, people: People, api_for: Callable[..., Api], database: sessionmaker[Session]
) -> None:
    user, made = people.user(), register(api_for(), app)
    assert made.ask(browser(app, people, user), redirect_uri="https://evil.example/cb").status_code == 400
    with database() as session:
        entry = session.scalars(select(AuditEntry).where(AuditEntry.action == CONSENT)).one()
        assert (entry.status, entry.user_id, entry.details["redirect_uri"]) == ("failure", user.id, "https://evil.example/cb")
