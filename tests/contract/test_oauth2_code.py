"""Signing users in at an application: code with PKCE, consent, and everything that is refused on the way."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any
from urllib.parse import urlencode

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import select, update
from sqlalchemy.orm import Session, sessionmaker

from portal.identity.models import User
from portal.identity.oauth2.models import OAuthClient, OAuthCode, OAuthFamily, OAuthRefreshToken
from portal.kernel.audit import AuditEntry
from portal.kernel.db import now
from tests.support.oauth import CALLBACK, ISSUER, Application, register, said_in
from tests.support.people import People
from tests.support.racing import race
from tests.support.web import Api, browser, csrf_of


@pytest.fixture
def owner(api_for: Callable[..., Api]) -> Api:
    """Whoever registers applications."""
    return api_for("developer")


@pytest.fixture
def reports(owner: Api, app: Flask) -> Application:
    """A confidential application."""
    return register(owner, app)


@pytest.fixture
def user(people: People) -> User:
    """Who signs in."""
    return people.user("developer")


@pytest.fixture
def sofa(app: Flask, people: People, user: User) -> FlaskClient:
    """The user's browser."""
    return browser(app, people, user)


def test_the_whole_way(reports: Application, sofa: FlaskClient, user: User, database: sessionmaker[Session]) -> None:
    page = reports.ask(sofa)
    assert page.status_code == 200
    for words in ("Allow Reports to act in your name?", "See what there is in compute", "app.example.org", user.username):
        assert words in page.text
    answer = reports.decide(sofa, page)
    said = said_in(answer)
    assert answer.headers["Location"].startswith(CALLBACK + "?")
    assert (said["state"], said["iss"], set(said)) == ("s-123 &=", ISSUER, {"code", "state", "iss"})
    tokens = reports.exchange(said["code"])
    assert (tokens.status_code, tokens.headers["Cache-Control"]) == (200, "no-store")
    assert {**tokens.json, "access_token": "", "refresh_token": ""} == {
        "access_token": "", "refresh_token": "", "token_type": "Bearer", "expires_in": 600, "scope": "compute:read",
    }  # fmt: skip
    me = reports.me(tokens.json["access_token"]).json
    assert (me["id"], me["credential"]) == (user.id, f"oauth:{reports.client_id}")
    with database() as session:
        kept = [row.code_hash for row in session.scalars(select(OAuthCode))] + [row.token_hash for row in session.scalars(select(OAuthRefreshToken))]
        kept += [row.secret_hash for row in session.scalars(select(OAuthClient))]
        assert not {said["code"], tokens.json["refresh_token"], reports.secret} & set(kept)
        entries = session.scalars(select(AuditEntry).where(AuditEntry.user_id == user.id)).all()
        assert {"identity.oauth_consent.create", "identity.oauth_token.create"} <= {entry.action for entry in entries}
        assert not any(secret in str(entry.details) for entry in entries for secret in (said["code"], tokens.json["refresh_token"]))


def test_a_public_application_needs_no_secret(owner: Api, app: Flask, sofa: FlaskClient) -> None:
    tool = register(owner, app, is_public=True, redirect_uris=["http://127.0.0.1/cb"])
    tool.redirect_uri = "http://127.0.0.1:53682/cb"
    assert tool.secret == ""
    tokens = tool.tokens(sofa)
    assert tool.me(tokens["access_token"]).status_code == 200
    assert tool.refresh(tokens["refresh_token"]).status_code == 200
    assert tool.ask(sofa).status_code == 200, "on loopback any program could pretend: the user is asked again"


@pytest.mark.parametrize("change", [
    {"code_challenge": None}, {"code_challenge": None, "code_challenge_method": None}, {"code_challenge_method": None},
    {"code_challenge_method": "plain"}, {"code_challenge": "short"}, {"code_challenge": "ä" * 43},
])  # fmt: skip
def test_without_s256_there_is_no_code(owner: Api, app: Flask, sofa: FlaskClient, change: dict[str, Any]) -> None:
    for each in (register(owner, app), register(owner, app, is_public=True)):
        each.code(sofa)
        said = said_in(each.ask(sofa, **change))
        assert (said["error"], said["state"], said["iss"], "code" in said) == ("invalid_request", "s-123 &=", ISSUER, False)


@pytest.mark.parametrize(("change", "error"), [
    ({"code_verifier": None}, "invalid_request"), ({"code_verifier": "x" * 50}, "invalid_grant"), ({"redirect_uri": None}, "invalid_grant"),
    ({"redirect_uri": CALLBACK + "/"}, "invalid_grant"), ({"code": "wrong"}, "invalid_grant"), ({"code": None}, "invalid_request"),
    ({"grant_type": "password"}, "unsupported_grant_type"), ({"grant_type": None}, "unsupported_grant_type"),
])  # fmt: skip
def test_a_code_needs_all_that_it_was_asked_with(reports: Application, sofa: FlaskClient, change: dict[str, Any], error: str) -> None:
    code = reports.code(sofa)
    refused = reports.exchange(**{"code": code, **change})
    assert (refused.status_code, refused.json["error"]) == (400, error)
    assert reports.exchange(code).status_code == 200, "what was refused used nothing up"


def test_a_code_is_good_once_and_its_replay_ends_what_came_of_it(reports: Application, sofa: FlaskClient, database: sessionmaker[Session]) -> None:
    code = reports.code(sofa)
    tokens = reports.exchange(code).json
    again = reports.exchange(code)
    assert (again.status_code, again.json["error"]) == (400, "invalid_grant")
    assert reports.me(tokens["access_token"]).status_code == 401
    assert reports.refresh(tokens["refresh_token"]).json["error"] == "invalid_grant"
    with database() as session:
        reuse = session.scalars(select(AuditEntry).where(AuditEntry.action == "identity.oauth_token.reuse")).one()
        assert (reuse.status, reuse.error_message) == ("failure", "a code was used twice")


def test_of_two_exchanges_at_once_one_wins(reports: Application, sofa: FlaskClient, database: sessionmaker[Session]) -> None:
    code = reports.code(sofa)
    answers = race([lambda: reports.exchange(code) for _ in range(4)])
    assert sorted(answer.status_code for answer in answers) == [200, 400, 400, 400]
    with database() as session:
        assert session.scalars(select(OAuthFamily)).all() == [], "the others were replays: what was issued has ended"


def test_what_breaks_in_the_middle_has_not_happened(
    reports: Application, sofa: FlaskClient, database: sessionmaker[Session], monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    code = reports.code(sofa)

    def full(*_args: object, **_more: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("portal.identity.oauth2.server.audit.record", full)
        assert reports.exchange(code).status_code == 503
    with database() as session:
        assert session.scalars(select(OAuthFamily)).all() == []
    assert reports.exchange(code).status_code == 200, "the code was not used up"


def test_a_code_holds_a_minute(reports: Application, sofa: FlaskClient, database: sessionmaker[Session]) -> None:
    code = reports.code(sofa)
    with database() as session:
        row = session.scalars(select(OAuthCode)).one()
        assert timedelta(0) < row.expires_at - now() <= timedelta(seconds=60)
        session.execute(update(OAuthCode).values(expires_at=now() - timedelta(seconds=1)))
        session.commit()
    assert reports.exchange(code).json["error"] == "invalid_grant"


def test_whoever_has_a_secret_has_to_show_it(reports: Application, app: Flask, sofa: FlaskClient) -> None:
    naked = Application(app, reports.client_id, "", verifier=reports.verifier)
    tokens, code = reports.tokens(sofa), reports.code(sofa)
    tried = [naked.exchange(code), naked.refresh(tokens["refresh_token"]), naked.post("/oauth2/revoke", {"token": tokens["access_token"]})]
    assert [(answer.status_code, answer.json["error"]) for answer in tried] == [(401, "invalid_client")] * 3
    assert reports.me(tokens["access_token"]).status_code == 200
    assert [reports.exchange(code).status_code, reports.refresh(tokens["refresh_token"]).status_code] == [200, 200]


def test_somebody_elses_code_is_none(reports: Application, owner: Api, app: Flask, sofa: FlaskClient) -> None:
    other = register(owner, app, name="Other")
    other.verifier = reports.verifier
    code = reports.code(sofa)
    assert other.exchange(code).json["error"] == "invalid_grant"
    assert reports.exchange(code).status_code == 200


@pytest.mark.parametrize("uri", [
    "https://evil.example.org/callback", "https://app.example.org/callback/", "https://app.example.org/callback?x=1", "https://app.example.org/CALLBACK",
    "https://app.example.org:444/callback", "http://app.example.org/callback", "https://app.example.org/callback#x", "https://app.example.org.evil.com/callback",
    "https://app.example.org@evil.com/callback", "//evil.com", "javascript:alert(1)", "", 'https://x"y/ü', "http://127.0.0.1/callback",
])  # fmt: skip
def test_an_address_that_is_not_registered_is_never_gone_to(reports: Application, sofa: FlaskClient, uri: str) -> None:
    for change in ({}, {"response_type": "token"}, {"scope": "no:such"}, {"code_challenge": None}):
        answer = reports.ask(sofa, redirect_uri=uri, **change)
        assert (answer.status_code, "Location" in answer.headers) == (400, False)
        assert "Nothing was given to anybody" in answer.text
    twice = sofa.get("/oauth2/authorize?" + urlencode(reports.question()) + "&" + urlencode({"redirect_uri": uri}))
    assert twice.status_code == 400


@pytest.mark.parametrize("client_id", ["app-000000000000", "", "x" * 500, "ü'\"", "a b"])
def test_an_unknown_application_is_never_answered_elsewhere(reports: Application, sofa: FlaskClient, client_id: str) -> None:
    answer = reports.ask(sofa, client_id=client_id)
    assert (answer.status_code, "Location" in answer.headers) == (400, False)
    assert reports.post("/oauth2/token", {"client_id": client_id, "grant_type": "refresh_token", "refresh_token": "x"}).status_code in {400, 401}


@pytest.mark.parametrize(("change", "error"), [
    ({"response_type": "token"}, "unsupported_response_type"), ({"response_type": "cöde'\""}, "unsupported_response_type"),
    ({"response_type": None}, "unsupported_response_type"), ({"scope": "compute:write"}, "invalid_scope"), ({"scope": "admin"}, "invalid_scope"),
    ({"scope": "compute:read nonsense"}, "invalid_scope"), ({"state": "x" * 2001}, "invalid_request"), ({"scope": ["compute:read", "*:read"]}, "invalid_request"),
])  # fmt: skip
def test_other_faults_are_told_to_the_application(reports: Application, sofa: FlaskClient, change: dict[str, Any], error: str) -> None:
    page = reports.ask(sofa, **change)
    assert (page.status_code, "Location" in page.headers, "app.example.org" in page.text) == (400, False, True), "nobody is sent to a stranger"
    reports.code(sofa)
    said = said_in(reports.ask(sofa, **change))
    assert (said["error"], said["iss"], "code" in said) == (error, ISSUER, False)


def test_another_name_or_address_asks_anew(reports: Application, owner: Api, sofa: FlaskClient) -> None:
    changed = owner.signed_in()
    path = f"/oauth-clients/{reports.client_id}"
    for change in ({"name": "Atonix Portal"}, {"redirect_uris": [CALLBACK, "https://evil.example/cb"]}):
        tokens = reports.tokens(sofa)
        assert reports.ask(sofa).status_code == 303, "a yes is remembered"
        assert changed("PATCH", path, change).status_code == 200
        assert reports.ask(sofa).status_code == 200, "but it was to another name, or to other addresses"
        assert (reports.me(tokens["access_token"]).status_code, reports.refresh(tokens["refresh_token"]).status_code) == (401, 400)


def test_a_refusal_is_told_and_gives_nothing(reports: Application, sofa: FlaskClient, database: sessionmaker[Session]) -> None:
    said = said_in(reports.decide(sofa, reports.ask(sofa), "deny"))
    assert (said["error"], said["state"], said["iss"]) == ("access_denied", "s-123 &=", ISSUER)
    with database() as session:
        assert session.scalars(select(OAuthCode)).all() == []
    assert reports.ask(sofa).status_code == 200, "and the question is asked again"


def test_a_tampered_form_gives_no_more(reports: Application, sofa: FlaskClient) -> None:
    page = reports.ask(sofa)
    assert reports.decide(sofa, page, redirect_uri="https://evil.example.org/").status_code == 400
    assert said_in(reports.decide(sofa, page, scope="compute:write"))["error"] == "invalid_scope"
    assert said_in(reports.decide(sofa, page, code_challenge_method="plain"))["error"] == "invalid_request"
    forged = sofa.post("/oauth2/authorize", data={**reports.question(), "decision": "allow"})
    assert (forged.status_code, "Location" in forged.headers) == (400, False)
    wrong = sofa.post("/oauth2/authorize", data={**reports.question(), "decision": "allow", "csrf_token": "x" + csrf_of(page)})
    assert (wrong.status_code, "Location" in wrong.headers) == (400, False)


def test_who_is_not_signed_in_is_asked_to_first(reports: Application, app: Flask) -> None:
    answer = reports.ask(app.test_client())
    assert (answer.status_code, answer.headers["Location"].startswith("/login?next=%2Foauth2%2Fauthorize")) == (303, True)


def test_access_is_given_by_people_and_not_by_tokens(reports: Application, owner: Api, api_for: Callable[..., Api]) -> None:
    """Otherwise a restricted token could make itself a stronger one."""
    path = f"/oauth2/authorize?{urlencode(reports.question())}"
    headers = {"Authorization": f"Token {owner.token}"}
    for answer in (
        owner.client.get(path, headers=headers),
        owner.client.post("/oauth2/authorize", data=reports.question() | {"decision": "allow"}, headers=headers),
    ):
        assert (answer.status_code, "Location" in answer.headers) == (403, False)


def test_a_yes_is_remembered_for_what_it_was_given_for(reports: Application, sofa: FlaskClient, app: Flask, people: People) -> None:
    reports.code(sofa)
    assert reports.ask(sofa).status_code == 303
    assert reports.ask(sofa, scope="compute:read *:read").status_code == 200, "more is asked for"
    assert reports.ask(browser(app, people, people.user("developer"))).status_code == 200, "somebody else"
    after_sign_in = sofa.get(f"/oauth2/authorize?{urlencode(reports.question())}", headers={"Referer": "http://localhost/login"})
    assert (after_sign_in.status_code, "You have allowed this before" in after_sign_in.text) == (200, True)


@pytest.mark.parametrize(("grants", "words"), [(["authorization_code"], "10 minutes"), (["authorization_code", "refresh_token"], "30 days")])
def test_the_question_says_for_how_long(owner: Api, app: Flask, sofa: FlaskClient, grants: list[str], words: str) -> None:
    assert f"What you allow holds for {words};" in register(owner, app, grants=grants).ask(sofa).text


def test_the_form_may_lead_to_the_application_and_nowhere_else(reports: Application, sofa: FlaskClient) -> None:
    policy = reports.ask(sofa).headers["Content-Security-Policy"]
    assert "form-action 'self' https://app.example.org;" in policy
    assert "frame-ancestors 'none'" in policy


def test_a_host_header_that_nobody_vouches_for_is_no_issuer(reports: Application, sofa: FlaskClient, app: Flask) -> None:
    for path in ("/.well-known/oauth-authorization-server",):
        answer = app.test_client().get(path, headers={"Host": "evil.example.org"})
        assert (answer.status_code, answer.json["error"]) == (503, "temporarily_unavailable")
    token = reports.tokens(sofa)["access_token"]
    assert app.test_client().get("/api/v1/auth/me", headers={"Host": "evil.example.org", "Authorization": f"Bearer {token}"}).status_code == 401
    refused = app.test_client().post("/oauth2/token", data={"grant_type": "refresh_token"}, headers={"Host": "evil.example.org"})
    assert (refused.status_code, refused.json["error"]) == (503, "temporarily_unavailable")
