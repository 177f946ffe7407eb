"""The way in and out: the form, its cookie, the headers of every answer, and where a sign-in may lead."""

from collections.abc import Callable
from datetime import timedelta

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import select, update
from sqlalchemy.orm import Session, sessionmaker

from portal.http.security import CSP
from portal.identity.models import User, UserSession
from portal.kernel.audit import AuditEntry
from portal.kernel.db import now
from portal.settings import Settings
from tests.support.people import PASSWORD, People
from tests.support.web import Api, csrf_of


def sign_in(client: FlaskClient, user: User, *, password: str = PASSWORD, **more: str) -> object:
    page = client.get("/login")
    return client.post("/login", data={"csrf_token": csrf_of(page), "username": user.username, "password": password, **more})


def test_the_cookie_is_for_this_host_alone(app: Flask, people: People) -> None:
    user = people.user()
    answer = sign_in(app.test_client(), user)
    cookies = [text for text in answer.headers.getlist("Set-Cookie") if "session" in text]
    assert len(cookies) == 1
    name, _, rest = cookies[0].partition("=")
    assert name == "__Host-atonix_session"
    assert {"Secure", "HttpOnly", "Path=/", "SameSite=Lax"} <= {part.strip() for part in rest.split(";")}
    assert "Domain" not in rest


def test_a_sign_in_makes_a_new_session(app: Flask, people: People, database: sessionmaker[Session]) -> None:
    client, user = app.test_client(), people.user()
    client.set_cookie("__Host-atonix_session", "chosen-by-somebody-else", secure=True)
    assert sign_in(client, user).status_code == 303
    secret = client.get_cookie("__Host-atonix_session").value
    assert secret != "chosen-by-somebody-else"
    with database() as session:
        row = session.scalars(select(UserSession)).one()
        assert secret not in (row.id_hash, row.session_id)


def test_a_sign_in_ends_the_session_that_the_browser_had(app: Flask, people: People, database: sessionmaker[Session]) -> None:
    """Also where somebody else signs in: their name is not in the old session's entry."""
    client, first, second = app.test_client(), people.user(), people.user()
    for user in (first, first, second):
        page = client.get("/invite")
        assert client.post("/login", data={"csrf_token": csrf_of(page), "username": user.username, "password": PASSWORD}).status_code == 303
    with database() as session:
        assert [row.user_id for row in session.scalars(select(UserSession))] == [second.id]
        ended = session.scalars(select(AuditEntry).where(AuditEntry.action == "identity.session.delete")).all()
    assert [(row.resource_id, row.details["replaced"]) for row in ended] == [(first.id, True)] * 2


@pytest.mark.parametrize(
    "goal",
    [
        "//evil.example",
        "https://evil.example/",
        "/\\evil.example",
        "\\\\evil.example",
        "javascript:alert(1)",
        "/\nevil",
        "http:evil",
        "evil",
        "",
        "///evil.example",
    ],
)
def test_a_sign_in_leads_to_this_portal_only(app: Flask, people: People, goal: str) -> None:
    client, user = app.test_client(), people.user()
    assert sign_in(client, user, next=goal).location == "/"
    assert client.get("/login", query_string={"next": goal}).location == "/"


def test_a_sign_in_leads_to_where_one_wanted(app: Flask, people: People) -> None:
    client, user = app.test_client(), people.user()
    away = client.get("/compute/instances?state=running")
    assert (away.status_code, away.location) == (303, "/login?next=%2Fcompute%2Finstances%3Fstate%3Drunning")
    page = client.get(away.location).text
    assert 'value="/compute/instances?state=running"' in page
    assert sign_in(client, user, next="/compute/instances?state=running").location == "/compute/instances?state=running"


@pytest.mark.parametrize(("username", "password"), [("", ""), ("nobody", "x"), ("nobody\x00", "x"), ("\ud800", "x"), ("x" * 10_000, "y" * 100_000)])
def test_wrong_words_get_one_answer(app: Flask, username: str, password: str) -> None:
    client = app.test_client()
    page = client.get("/login")
    data = {"csrf_token": csrf_of(page), "username": username.encode("utf-8", "replace"), "password": password}
    answer = client.post("/login", data=data)
    assert answer.status_code == 401
    assert "User name or password is wrong" in answer.text
    assert password == "x" or password not in answer.text or password == ""


def test_signing_in_needs_the_forms_token(app: Flask, people: People) -> None:
    client, user = app.test_client(), people.user()
    answer = client.post("/login", data={"username": user.username, "password": PASSWORD})
    assert answer.status_code == 400
    assert client.get_cookie("__Host-atonix_session") is None


def test_signing_out_ends_the_session_on_the_server(client_for: Callable[..., FlaskClient], app: Flask) -> None:
    browser = client_for()
    secret = browser.get_cookie("__Host-atonix_session").value
    answer = browser.post("/logout", data={"csrf_token": csrf_of(browser.get("/"))})
    assert answer.location == "/login"
    assert browser.get_cookie("__Host-atonix_session") is None
    thief = app.test_client()
    thief.set_cookie("__Host-atonix_session", secret, secure=True)
    assert thief.get("/").status_code == 303


@pytest.mark.parametrize("field", ["expires_at", "last_seen_at"])
def test_an_old_session_says_so(client_for: Callable[..., FlaskClient], database: sessionmaker[Session], settings: Settings, field: str) -> None:
    browser = client_for()
    past = now() - timedelta(hours=1) - (timedelta(minutes=settings.session_idle_minutes) if field == "last_seen_at" else timedelta())
    with database() as session:
        session.execute(update(UserSession).values({field: past}))
        session.commit()
    assert browser.get("/").location == "/login"
    part = browser.get("/tray", headers={"HX-Request": "true"})
    assert (part.status_code, part.headers["X-Session-Expired"]) == (401, "1")
    data = browser.get("/api/v1/compute/instances")
    assert (data.status_code, data.headers["X-Session-Expired"]) == (401, "1")


def test_signing_in_again_in_place(client_for: Callable[..., FlaskClient], people: People) -> None:
    browser, user = client_for(), people.user()
    browser.delete_cookie("__Host-atonix_session")
    dialog = browser.get("/login/again", headers={"HX-Request": "true"})
    assert "Your session has ended" in dialog.text
    data = {"csrf_token": csrf_of(dialog), "username": user.username, "password": PASSWORD}
    answer = browser.post("/login", data=data, headers={"HX-Request": "true"})
    assert answer.status_code == 204
    assert browser.get("/").status_code == 200


def test_every_answer_carries_the_headers(app: Flask, client_for: Callable[..., FlaskClient]) -> None:
    browser = client_for()
    for path in ("/", "/login", "/nothing", "/api/v1/compute/instances", "/api/v1/nothing", "/health", "/static/css/portal.css"):
        answer = browser.get(path)
        assert answer.headers["Content-Security-Policy"] == CSP, path
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["X-Frame-Options"] == "DENY"
        assert answer.headers["Referrer-Policy"] == "same-origin"
    assert "unsafe" not in CSP
    assert browser.get("/").headers["Cache-Control"] == "no-store"
    assert app.test_client().get("/login", base_url="https://portal.example").headers["Strict-Transport-Security"]


def test_a_given_password_is_replaced_first(app: Flask, people: People, database: sessionmaker[Session]) -> None:
    client, user = app.test_client(), people.user()
    with database() as session:
        session.execute(update(User).where(User.id == user.id).values(must_change_password=True))
        session.commit()
    assert sign_in(client, user).status_code == 303
    for path in ("/", "/compute/instances", "/account"):
        assert client.get(path).location == "/account/password"
    form = client.get("/account/password")
    token = csrf_of(form)
    wrong = [
        ({"old": "wrong", "new": "another long passphrase", "again": "another long passphrase"}, "old"),
        ({"old": PASSWORD, "new": "another long passphrase", "again": "something else here"}, "again"),
        ({"old": PASSWORD, "new": "short", "again": "short"}, "new"),
        ({"old": PASSWORD, "new": PASSWORD, "again": PASSWORD}, "new"),
    ]
    for data, field in wrong:
        answer = client.post("/account/password", data={"csrf_token": token, **data})
        assert answer.status_code == 422, data
        assert f'id="{field}-error"' in answer.text, data
        assert "passphrase" not in answer.text
    data = {"csrf_token": token, "old": PASSWORD, "new": "another long passphrase", "again": "another long passphrase"}
    assert client.post("/account/password", data=data).location == "/account"
    assert client.get("/").status_code == 200


def test_theme_and_project_are_switched(client_for: Callable[..., FlaskClient], people: People, database: sessionmaker[Session]) -> None:
    browser = client_for("platform_admin")
    token = csrf_of(browser.get("/"))
    assert browser.post("/theme", data={"csrf_token": token, "theme": "dark", "next": "//evil.example"}).location == "/"
    assert 'data-theme="dark"' in browser.get("/").text
    browser.post("/theme", data={"csrf_token": token, "theme": "<script>"})
    assert 'data-theme="dark"' in browser.get("/").text
    other = people.project("second")
    assert browser.post("/project", data={"csrf_token": token, "project_id": other}).status_code == 303
    assert "second" in browser.get("/").text
    assert browser.post("/project", data={"csrf_token": token, "project_id": "prj-none"}).status_code == 404
    mine = client_for("developer")
    assert mine.post("/project", data={"csrf_token": csrf_of(mine.get("/")), "project_id": other}).status_code == 404


def test_a_cookie_alone_changes_nothing_in_the_api(client_for: Callable[..., FlaskClient], api: Api) -> None:
    browser = client_for()
    body = {"name": "web-1", "flavor": "t3-micro", "image": "atonix-tiny"}
    assert browser.post("/api/v1/compute/instances", json=body).status_code == 400
    token = csrf_of(browser.get("/"))
    assert browser.post("/api/v1/compute/instances", json=body, headers={"X-CSRFToken": token}).status_code == 202
    # A token header, even a wrong one, wins over the cookie.
    assert browser.get("/api/v1/compute/instances", headers={"Authorization": "Token nonsense"}).status_code == 401
    assert api.get("/compute/instances").json["count"] == 1


def test_odd_addresses_are_refused(app: Flask) -> None:
    client = app.test_client()
    for path in ("/login?next=%00", "/compute/%00/x"):
        assert client.get(path).status_code == 400
