"""Signing in by API: a short access token, a refresh token that is good once, and the session behind both."""

from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import select, update
from sqlalchemy.orm import Session, sessionmaker
from werkzeug.test import TestResponse

from portal.http.request import SESSION_COOKIE
from portal.identity.accounts import password_change
from portal.identity.models import SessionRefresh, User, UserSession
from portal.identity.users import user_sign_out, user_update
from portal.kernel.audit import AuditEntry
from portal.kernel.db import now
from tests.support.people import PASSWORD, People
from tests.support.racing import race
from tests.support.web import browser, csrf_of

FRESH = "another long passphrase"


@pytest.fixture
def user(people: People) -> User:
    return people.user()


def sign_in(app: Flask, user: User, path: str = "/api/v1/auth/login") -> dict[str, Any]:
    answer = app.test_client().post(path, json={"username": user.username, "password": PASSWORD})
    assert answer.status_code == 200
    found: dict[str, Any] = answer.json
    return found


def me(app: Flask, access: str, scheme: str = "Bearer") -> TestResponse:
    return app.test_client().get("/api/v1/auth/me", headers={"Authorization": f"{scheme} {access}"})


def refresh(app: Flask, token: str, path: str = "/api/v1/auth/refresh") -> TestResponse:
    return app.test_client().post(path, json={"refresh_token": token})


@pytest.mark.parametrize("prefix", ["/api/v1", "/api"])
def test_tokens_are_renewed(app: Flask, user: User, prefix: str) -> None:
    first = sign_in(app, user, f"{prefix}/auth/login/")
    assert (first["token_type"], first["expires_in"], first["user"]["user_id"]) == ("Bearer", 600, user.id)
    assert me(app, first["access_token"]).json["username"] == user.username
    answer = refresh(app, first["refresh_token"], f"{prefix}/auth/refresh/")
    assert answer.headers["Cache-Control"] == "no-store"
    second = answer.json
    assert me(app, second["access_token"]).status_code == 200
    assert me(app, first["access_token"]).status_code == 401
    assert refresh(app, second["refresh_token"]).status_code == 200


def test_a_refresh_token_that_is_used_twice_ends_the_session(app: Flask, user: User, database: sessionmaker[Session]) -> None:
    first = sign_in(app, user)
    second = refresh(app, first["refresh_token"]).json
    assert refresh(app, first["refresh_token"]).status_code == 401
    assert me(app, second["access_token"]).status_code == 401
    assert refresh(app, second["refresh_token"]).status_code == 401
    with database() as session:
        assert session.scalars(select(UserSession)).all() == session.scalars(select(SessionRefresh)).all() == []
        entry = session.scalars(select(AuditEntry).where(AuditEntry.action == "identity.session.refresh", AuditEntry.status == "failure")).one()
    assert (entry.user_id, entry.error_message) == (user.id, "a refresh token was used twice")


def test_of_two_at_once_one_wins_and_the_session_ends(app: Flask, user: User, database: sessionmaker[Session]) -> None:
    token = sign_in(app, user)["refresh_token"]
    answers = race([partial(refresh, app, token)] * 2)
    assert sorted(answer.status_code for answer in answers) == [200, 401]
    with database() as session:
        assert session.scalars(select(UserSession)).all() == []


def test_tokens_are_kept_as_hashes(app: Flask, user: User, database: sessionmaker[Session]) -> None:
    given = sign_in(app, user)
    with database() as session:
        row, kept = session.scalars(select(UserSession)).one(), session.scalars(select(SessionRefresh)).one()
    stored = f"{vars(row)} {vars(kept)}"
    assert given["access_token"] not in stored
    assert given["refresh_token"] not in stored


def test_an_access_token_lasts_minutes_and_the_session_goes_on(app: Flask, user: User, database: sessionmaker[Session]) -> None:
    given = sign_in(app, user)
    with database() as session:
        row = session.scalars(select(UserSession)).one()
        assert timedelta(minutes=9) < row.access_expires_at - now() <= timedelta(minutes=10)
        row.access_expires_at = now()
        session.commit()
    assert me(app, given["access_token"]).status_code == 401
    assert refresh(app, given["refresh_token"]).status_code == 200


@pytest.mark.parametrize(
    "over", [{"expires_at": now() - timedelta(seconds=1)}, {"last_seen_at": now() - timedelta(hours=2)}], ids=["too old", "idle"]
)
def test_what_ends_sessions_ends_this_one(app: Flask, user: User, database: sessionmaker[Session], over: dict[str, Any]) -> None:
    given = sign_in(app, user)
    with database() as session:
        session.execute(update(UserSession).values(**over))
        session.commit()
    assert me(app, given["access_token"]).status_code == 401
    assert refresh(app, given["refresh_token"]).status_code == 401


ENDS: dict[str, Callable[[People, User], object]] = {
    "password": lambda people, user: password_change(people.context(user), PASSWORD, FRESH),
    "disabled": lambda people, user: user_update(people.context(people.user("platform_admin")), user.id, is_active=False),
    "forced sign-out": lambda people, user: user_sign_out(people.context(people.user("platform_admin")), user.id),
}


@pytest.mark.parametrize("end", ENDS)
def test_it_ends_with_the_account(app: Flask, people: People, user: User, end: str) -> None:
    given = sign_in(app, user)
    ENDS[end](people, user)
    assert me(app, given["access_token"]).status_code == 401
    assert refresh(app, given["refresh_token"]).status_code == 401


def test_signing_out_ends_both(app: Flask, user: User) -> None:
    given = sign_in(app, user)
    headers = {"Authorization": f"Bearer {given['access_token']}"}
    assert app.test_client().post("/api/v1/auth/logout", headers=headers).status_code == 204
    assert me(app, given["access_token"]).status_code == 401
    assert refresh(app, given["refresh_token"]).status_code == 401


def test_the_profile_lists_and_ends_it(app: Flask, people: People, user: User, database: sessionmaker[Session]) -> None:
    given, client = sign_in(app, user), browser(app, people, user)
    page = client.get("/account")
    assert "Password, by a program" in page.text
    with database() as session:
        session_id = session.scalars(select(UserSession.session_id).where(UserSession.method == "api")).one()
    client.post(f"/account/sessions/{session_id}/revoke", data={"csrf_token": csrf_of(page)})
    assert refresh(app, given["refresh_token"]).status_code == 401


def test_changing_the_password_by_api_keeps_the_session_that_does_it(app: Flask, user: User) -> None:
    mine, other = sign_in(app, user), sign_in(app, user)
    headers = {"Authorization": f"Bearer {mine['access_token']}"}
    changed = app.test_client().post("/api/v1/auth/change-password", json={"old": PASSWORD, "new": FRESH}, headers=headers)
    assert changed.status_code == 204
    assert (me(app, mine["access_token"]).status_code, me(app, other["access_token"]).status_code) == (200, 401)


def test_an_access_token_is_no_cookie_and_a_cookie_no_token(app: Flask, people: People, user: User) -> None:
    client = app.test_client()
    client.set_cookie(SESSION_COOKIE, sign_in(app, user)["access_token"], secure=True)
    assert client.get("/api/v1/auth/me").status_code == 401
    cookie = browser(app, people, user).get_cookie(SESSION_COOKIE).value
    assert me(app, cookie).status_code == 401
    assert me(app, cookie, "Token").status_code == 401


def test_pages_take_none(app: Flask, user: User) -> None:
    headers = {"Authorization": f"Bearer {sign_in(app, user)['access_token']}"}
    assert app.test_client().get("/account", headers=headers).status_code == 403


@pytest.mark.parametrize("token", ["", "x", "atonix.r.unknown", "\x00"])
def test_what_is_no_refresh_token_is_refused(app: Flask, token: str) -> None:
    assert refresh(app, token).status_code in {400, 401}


def test_an_access_token_is_no_refresh_token(app: Flask, user: User) -> None:
    assert refresh(app, sign_in(app, user)["access_token"]).status_code == 401
