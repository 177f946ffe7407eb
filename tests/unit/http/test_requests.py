"""What every request goes through: who asks, for which project, how often, and how refusals look."""

import logging
import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from flask import Flask, abort
from flask.testing import FlaskClient
from sqlalchemy import update
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session, sessionmaker

from portal.compute.key_pairs import key_pair_create
from portal.http.guard import Access, access
from portal.http.request import context
from portal.http.security import CSP
from portal.identity.models import UserSession
from portal.kernel.db import now, transaction
from portal.kernel.errors import PortalError
from portal.kernel.operations import run
from tests.support.people import PASSWORD, People
from tests.support.web import Api, browser, csrf_of

INSTANCES = "/api/v1/compute/instances"


def view_at(app: Flask, path: str, call: Callable[[], Any], rule: Access | str = Access.PUBLIC) -> None:
    app.add_url_rule(path, path, access(rule)(lambda *_: call()), methods=["GET", "POST"])


# -- ids of requests -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", ["req-12345678", "a" * 64, "A:b.c_d-1234"])
def test_a_request_id_is_taken_over(app: Flask, given: str) -> None:
    assert app.test_client().get("/health", headers={"X-Request-ID": given}).headers["X-Request-ID"] == given


@pytest.mark.parametrize("given", ["", "short", "a" * 65, "two words here", "<script>alert(1)</script>", "ä" * 20, "req-1234567;x"])
def test_an_odd_one_is_replaced(app: Flask, given: str) -> None:
    found = app.test_client().get("/health", headers={"X-Request-ID": given.encode().decode("latin-1")}).headers["X-Request-ID"]
    assert re.fullmatch(r"req-[0-9a-f]{16}", found)


def test_refusals_carry_it(app: Flask) -> None:
    answer = app.test_client().get(INSTANCES, headers={"X-Request-ID": "req-12345678"})
    assert (answer.status_code, answer.get_json()["request_id"]) == (401, "req-12345678")
    assert answer.headers["WWW-Authenticate"] == "Token"


# -- credentials ---------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["Token", "token", "Bearer", "ApiKey"])
def test_a_token_comes_in_several_schemes(api_for: Callable[..., Api], scheme: str) -> None:
    api = api_for()
    assert api.client.get(INSTANCES, headers={"Authorization": f"{scheme} {api.token}"}).status_code == 200
    assert api.client.get(INSTANCES, headers={"X-API-Key": api.token}).status_code == 200


@pytest.mark.parametrize("header", ["", "Token", "Token ", "Basic YWRtaW46YWRtaW4=", "Token x y", "Digest x", "Token " + "x" * 10_000, "\xff\xfe"])
def test_a_header_that_is_none_is_nobody_even_with_a_cookie(client_for: Callable[..., FlaskClient], header: str) -> None:
    client = client_for()
    assert client.get(INSTANCES).status_code == 200
    assert client.get(INSTANCES, headers={"Authorization": header}).status_code == 401


def test_a_session_is_over_when_it_is_revoked(client_for: Callable[..., FlaskClient], database: sessionmaker[Session]) -> None:
    client = client_for()
    with database() as session, transaction(session):
        session.execute(update(UserSession).values(expires_at=now() - timedelta(seconds=1)))
    answer = client.get(INSTANCES)
    assert (answer.status_code, answer.headers["X-Session-Expired"]) == (401, "1")
    assert "ended" in answer.get_json()["message"]
    page = client.get("/jobs")
    assert page.status_code in {302, 303, 401}


def test_the_cookie_is_for_this_host_and_no_script(app: Flask, people: People) -> None:
    client = app.test_client()
    page = client.get("/login")
    user = people.user("developer")
    answer = client.post("/login", data={"username": user.username, "password": PASSWORD, "csrf_token": csrf_of(page)})
    cookie = next(line for line in answer.headers.getlist("Set-Cookie") if "session=" in line)
    assert cookie.startswith("__Host-atonix_session=")
    for part in ("Secure", "HttpOnly", "Path=/", "SameSite=Lax"):
        assert part in cookie
    assert "Domain" not in cookie


# -- forgery -------------------------------------------------------------------------------------------------------------------------------


def test_a_form_without_its_token_changes_nothing(client_for: Callable[..., FlaskClient], app: Flask, people: People) -> None:
    user = people.user("developer")
    bare = app.test_client()
    assert bare.post("/login", data={"username": user.username, "password": PASSWORD}).status_code == 400
    client = client_for()
    for path in ("/theme", "/logout", INSTANCES):
        answer = client.post(path, data={"name": "x"}, headers={"Accept": "application/json"})
        assert (answer.status_code, answer.get_json()["error"]) == (400, "INVALID_REQUEST"), path
    assert client.get(INSTANCES).status_code == 200


def test_a_token_needs_no_form_token(api_for: Callable[..., Api]) -> None:
    assert api_for().post("/compute/key-pairs", {"name": "k"}).status_code == 201


# -- projects ------------------------------------------------------------------------------------------------------------------------------


def test_a_request_is_about_the_project_that_it_names(people: People, app: Flask, api_for: Callable[..., Api]) -> None:
    there = people.project()
    run(people.context(people.user("developer", there), there), key_pair_create, None, {"name": "there"})
    member, boss = api_for(), api_for("platform_admin")
    assert member.get("/compute/key-pairs", headers={"X-Project": people.project_id}).status_code == 200
    for project in (there, "prj-nonesuch", "%00", "x" * 5000):
        answer = member.get("/compute/key-pairs", headers={"X-Project": project})
        assert (answer.status_code, answer.get_json()["error"]) == (404, "NOT_FOUND")
    assert "there" in boss.get("/compute/key-pairs", headers={"X-Project": there}).get_data(as_text=True)
    for project in ("prj-nonesuch", "x" * 5000):
        assert boss.get("/compute/key-pairs", headers={"X-Project": project}).status_code == 404
        assert boss.post("/compute/key-pairs", {"name": "k"}, headers={"X-Project": project}).status_code == 404


def test_a_session_forgets_a_project_that_its_user_has_left(people: People, app: Flask, database: sessionmaker[Session]) -> None:
    user, there = people.user("developer"), people.project()
    client = browser(app, people, user)
    with database() as session, transaction(session):
        session.execute(update(UserSession).where(UserSession.user_id == user.id).values(project_id=there))
    assert client.get("/api/v1/compute/key-pairs").status_code == 200
    with app.test_request_context(headers={"Cookie": "x=y"}):
        assert context().project_id is None


# -- routes --------------------------------------------------------------------------------------------------------------------------------


def test_a_rule_may_be_a_permission(app: Flask, people: People, api_for: Callable[..., Api]) -> None:
    view_at(app, "/api/x-permission", lambda: "done", "compute.instance.create")
    for role, status in (("viewer", 403), ("developer", 200), ("", 403)):
        assert api_for(role)("GET", "/api/x-permission").status_code == status
    assert app.test_client().get("/api/x-permission").status_code == 401


def test_a_view_without_a_rule_that_slipped_in_answers_nobody(app: Flask, api_for: Callable[..., Api], caplog: pytest.LogCaptureFixture) -> None:
    app.add_url_rule("/api/x-open", "x-open", lambda: "open")
    assert app.test_client().get("/api/x-open").status_code == 401
    answer = api_for("platform_admin")("GET", "/api/x-open")
    assert (answer.status_code, answer.get_json()["error"]) == (500, "INTERNAL_ERROR")


# -- refusals ------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/api/x-fails", "/x-fails"])
def test_an_unexpected_failure_says_nothing_of_itself(app: Flask, caplog: pytest.LogCaptureFixture, path: str) -> None:
    def fail() -> None:
        raise ValueError("SECRET at /var/lib/portal")

    view_at(app, path, fail)
    answer = app.test_client().get(path)
    text = answer.get_data(as_text=True)
    assert answer.status_code == 500
    assert "SECRET" not in text
    assert "ValueError" not in text
    assert answer.headers["X-Request-ID"] in text
    assert "unhandled" in caplog.text


@pytest.mark.parametrize("path", ["/api/x-db", "/x-db"])
def test_a_database_that_is_away_is_a_503(app: Flask, caplog: pytest.LogCaptureFixture, path: str) -> None:
    def fail() -> None:
        raise OperationalError("SELECT SECRET", {"p": "SECRET"}, Exception("connection to SECRET refused"))

    view_at(app, path, fail)
    answer = app.test_client().get(path)
    assert answer.status_code == 503
    assert "SECRET" not in answer.get_data(as_text=True)


@pytest.mark.parametrize(
    ("status", "code"),
    [(404, "NOT_FOUND"), (405, "METHOD_NOT_ALLOWED"), (413, "TOO_LARGE"), (415, "UNSUPPORTED_MEDIA_TYPE"), (418, "INVALID_REQUEST")],
)
def test_errors_of_the_library_are_said_in_our_words(app: Flask, status: int, code: str) -> None:
    view_at(app, "/api/x-abort", lambda: abort(status))
    answer = app.test_client().get("/api/x-abort")
    assert (answer.status_code, answer.get_json()["error"]) == (status, code)
    assert set(answer.get_json()) == {"error", "message", "details", "request_id"}


def test_people_get_a_page_and_scripts_get_json(app: Flask) -> None:
    client = app.test_client()
    for path, accept, kind in (
        ("/nonesuch", "text/html", "text/html"), ("/nonesuch", "application/json", "application/json"), ("/api/nonesuch", "text/html", "application/json"),
        ("/nonesuch", "*/*", "text/html"),
    ):  # fmt: skip
        answer = client.get(path, headers={"Accept": accept})
        assert (answer.status_code, answer.mimetype) == (401 if path.startswith("/api") else 404, kind)


def test_a_wait_is_told(app: Flask) -> None:
    def refuse() -> None:
        error = PortalError("later")
        error.retry_after_s = 7
        raise error

    view_at(app, "/api/x-wait", refuse)
    view_at(app, "/x-wait-page", refuse)
    client = app.test_client()
    assert client.get("/api/x-wait").headers["Retry-After"] == "7"
    assert client.get("/x-wait-page").headers["Retry-After"] == "7"
    assert "Retry-After" not in client.get("/login").headers


@pytest.mark.parametrize("path", ["/api/v1/compute/instances/%00", "/login?next=%00", "/api/v1/compute/instances?search=a%00b", "/%00"])
def test_null_characters_in_an_address_are_refused(app: Flask, path: str) -> None:
    assert app.test_client().get(path, headers={"Accept": "application/json"}).status_code in {400, 404}


def test_a_body_that_is_too_large_is_refused(client_for: Callable[..., FlaskClient], api_for: Callable[..., Api]) -> None:
    big = "x" * (3 << 20)
    assert api_for().post("/compute/key-pairs", {"name": "k", "description": big}).status_code == 413


# -- headers -------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/login", "/health", "/nonesuch", INSTANCES, "/static/css/portal.css"])
def test_every_answer_has_the_headers(app: Flask, path: str) -> None:
    headers = app.test_client().get(path, buffered=True).headers
    assert headers["Content-Security-Policy"] == CSP
    assert "unsafe" not in CSP
    assert (headers["X-Content-Type-Options"], headers["X-Frame-Options"], headers["Referrer-Policy"]) == ("nosniff", "DENY", "same-origin")
    if not path.startswith("/static"):
        assert headers["Cache-Control"] == "no-store"
    assert "Strict-Transport-Security" not in headers
    assert "Strict-Transport-Security" in app.test_client().get(path, base_url="https://cloud.example.org", buffered=True).headers


def test_pages_have_no_inline_script_or_style(client_for: Callable[..., FlaskClient], app: Flask) -> None:
    client = client_for()
    for answer in (app.test_client().get("/login"), client.get("/jobs"), client.get("/audit"), client.get("/quotas")):
        text = answer.get_data(as_text=True)
        assert answer.status_code == 200
        assert not re.search(r"<script(?![^>]*\bsrc=)(?![^>]*type=\"application/json\")[^>]*>", text)
        assert not re.search(r"\son[a-z]+=\"", text)
        assert not re.search(r"\sstyle=\"", text)


# -- limits --------------------------------------------------------------------------------------------------------------------------------


def test_too_many_requests_are_refused_with_the_way_out(app_with: Callable[..., Flask], people: People) -> None:
    app = app_with(rate_limit_per_minute=4, rate_limit_anonymous_per_minute=2)
    client = app.test_client()
    answers = [client.get(INSTANCES) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [401, 401, 429, 429]
    body = answers[-1].get_json()
    assert (body["error"], set(body)) == ("RATE_LIMITED", {"error", "message", "details", "request_id"})
    assert 1 <= int(answers[-1].headers["Retry-After"]) <= 60
    assert (answers[0].headers["X-RateLimit-Limit"], answers[0].headers["X-RateLimit-Remaining"]) == ("2", "1")
    # Probes are asked by machines that must not be refused.
    assert {client.get(path).status_code for path in ("/health", "/ready", "/healthz", "/metrics") for _ in range(3)} == {200}


def test_what_can_be_guessed_at_counts_together(app_with: Callable[..., Flask], people: People) -> None:
    from tests.support.web import api_client

    app, wrong = app_with(rate_limit_per_minute=100, rate_limit_anonymous_per_minute=4), {"username": "nobody", "password": "x"}
    api = api_client(app, people, people.user("developer"))
    paths = ("/api/v1/auth/login", "/api-token-auth/", "/api/v1/auth/login", "/api-token-auth/", "/api/v1/auth/login")
    # With a token of one's own as without.
    answers = [api.client.post(path, json=wrong, headers={"Authorization": f"Token {api.token}"}) for path in paths]
    assert [answer.status_code for answer in answers] == [401, 401, 401, 401, 429]
    refused = [app.test_client().post(path, json={"refresh_token": "x"}).status_code for path in ("/api/v1/auth/refresh", "/oauth2/token")]
    assert refused == [429, 429]
    client = browser(app, people, people.user("developer"))
    form = {"username": "nobody", "password": "x", "csrf_token": csrf_of(client.get("/account"))}
    assert client.post("/login", data=form).status_code == 429, "with a session as without"
    assert api.get("/compute/flavors").status_code == 200


def test_what_is_right_is_no_guess(app_with: Callable[..., Flask], people: People) -> None:
    app, user = app_with(rate_limit_anonymous_per_minute=6), people.user("developer")
    right = {"username": user.username, "password": PASSWORD}
    assert [app.test_client().post(path, json=right).status_code for path in ("/api/v1/auth/login", "/api-token-auth/") for _ in range(5)] == [
        200
    ] * 10


def test_users_are_counted_apart(app_with: Callable[..., Flask], people: People) -> None:
    from tests.support.web import api_client

    app = app_with(rate_limit_per_minute=3, rate_limit_anonymous_per_minute=2)
    one, two = api_client(app, people, people.user("developer")), api_client(app, people, people.user("developer"))
    assert [one.get("/compute/flavors").status_code for _ in range(4)] == [200, 200, 200, 429]
    assert two.get("/compute/flavors").status_code == 200


# -- the access log ------------------------------------------------------------------------------------------------------------------------


def test_the_access_log_has_no_query_and_no_body(api_for: Callable[..., Api], caplog: pytest.LogCaptureFixture) -> None:
    api = api_for()
    with caplog.at_level(logging.DEBUG):
        caplog.clear()
        api.get("/compute/instances?search=PLANTED", headers={"X-Request-ID": "req-12345678"})
        api.client.get("/health")
    record = next(record for record in caplog.records if record.name == "portal.access" and record.levelno == logging.INFO)
    assert (record.__dict__["path"], record.__dict__["status_code"], record.__dict__["user_id"], record.__dict__["request_id"]) == (
        INSTANCES, 200, api.user.id, "req-12345678",
    )  # fmt: skip
    assert record.__dict__["duration_ms"] > 0
    assert "PLANTED" not in caplog.text
    quiet = next(record for record in caplog.records if record.__dict__.get("path") == "/health")
    assert quiet.levelno == logging.DEBUG


def test_behind_a_proxy_the_client_is_the_one_it_names(app_with: Callable[..., Flask]) -> None:
    from portal.http.request import source_ip

    seen = []
    plain, behind = app_with(), app_with(trusted_proxies=1)
    for app in (plain, behind):
        view_at(app, "/x-ip", lambda: seen.append(source_ip()) or "ok")
        app.test_client().get("/x-ip", headers={"X-Forwarded-For": "198.51.100.7"}, environ_base={"REMOTE_ADDR": "192.0.2.1"})
        app.test_client().get("/x-ip", environ_base={"REMOTE_ADDR": "no address"})
    assert seen == ["192.0.2.1", "", "198.51.100.7", ""]


def test_processes_that_count_for_themselves_share_what_one_caller_has(app_with: Callable[..., Flask]) -> None:
    app = app_with(rate_limit_anonymous_per_minute=4, web_workers=2)
    assert [app.test_client().get("/login").status_code for _ in range(4)] == [200, 200, 429, 429]
