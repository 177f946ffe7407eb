"""What holds for every session, whichever way it was opened: secrets nobody can foresee, a way out on every page, and an end with the account."""

import random
import re
from collections.abc import Callable

import pytest
from flask import Flask
from sqlalchemy import select, update
from sqlalchemy.orm import Session, sessionmaker

from portal.http.guard import Access, rule_of
from portal.http.request import SESSION_COOKIE
from portal.identity import factors
from portal.identity.factors import MfaDevice, RecoveryCode
from portal.identity.models import User, UserSession
from portal.identity.passwords import FREE_TRIES
from portal.identity.sign_in import Proof, enter
from portal.kernel.db import now
from tests.support.oauth import register
from tests.support.people import PASSWORD, People
from tests.support.web import Api, browser, csrf_of

WAY_OUT = '<form method="post" action="/logout">'


def test_secrets_cannot_be_foreseen(people: People) -> None:
    """They come from the system and not from a generator that somebody could wind back; how long they are says how often one has to guess."""
    sessions, codes, seeds = set(), list[str](), set()
    for _ in range(3):
        random.seed(1)
        user = people.user()
        sessions.add(enter(people.context(None), user, Proof("password")).secret)
        ctx = people.context(user)
        device, seed, _ = factors.totp_begin(ctx, "phone")
        seeds.add(seed)
        with people.sessions() as session:
            session.execute(update(MfaDevice).where(MfaDevice.id == device.id).values(confirmed_at=now()))
            session.commit()
        codes += factors.recovery_renew(ctx)
    assert len(sessions) == len(seeds) == 3
    assert len(set(codes)) == 3 * factors.RECOVERY_CODES
    assert {len(secret) for secret in sessions} == {43}, "256 bits in base64"
    assert {len(seed) for seed in seeds} == {32}, "160 bits in base32"
    assert {len(code.replace("-", "")) for code in codes} == {24}, "120 bits, 5 each: more than 112, so that a quick hash is enough"
    assert set("".join(codes)) - {"-"} <= set(factors.ALPHABET)
    with people.sessions() as session:
        assert {len(each) for each in session.scalars(select(RecoveryCode.code_hash))} == {64}


def test_every_page_has_a_way_out(app: Flask, people: People) -> None:
    """Also those where somebody has to do something first: prove who they are, choose a password, add a factor."""
    client, seen = browser(app, people, people.user("platform_admin")), 0
    for route in app.url_map.iter_rules():
        if rule_of(app, route.endpoint) is Access.PUBLIC or "GET" not in route.methods or route.rule.startswith(("/api", "/ws")):
            continue
        answer = client.get(re.sub(r"<[^>]+>", "something", route.rule))
        if answer.mimetype == "text/html" and "<html" in answer.text:
            assert WAY_OUT in answer.text, route.rule
            seen += 1
    assert seen > 30


@pytest.mark.parametrize("path", ["/confirm", "/account/password", "/account/factors"])
def test_who_is_held_up_may_leave(app: Flask, people: People, path: str) -> None:
    user = people.user("developer")
    with people.sessions() as session:
        session.execute(update(User).where(User.id == user.id).values(must_change_password=path == "/account/password"))
        session.commit()
    if path == "/account/factors":
        factors.rules_update(people.context(people.user("platform_admin")), ["developer"])
    client = browser(app, people, user)
    page = client.get(path)
    assert (page.status_code, WAY_OUT in page.text) == (200, True)
    assert client.post("/logout", data={"csrf_token": csrf_of(page)}).status_code == 303
    assert client.get("/").status_code == 303


def test_the_consent_page_has_one(app: Flask, people: People, api_for: Callable[..., Api]) -> None:
    assert WAY_OUT in register(api_for("developer"), app).ask(browser(app, people, people.user("developer"))).text


def test_a_deleted_users_sessions_are_over(app: Flask, people: People, api_for: Callable[..., Api]) -> None:
    user, boss = people.user("developer"), api_for("platform_admin")
    client = browser(app, people, user)
    assert client.get("/account").status_code == 200
    assert boss("DELETE", f"/users/{user.id}?heir={boss.user.username}").status_code == 204
    assert client.get("/account").location.startswith("/login")


def test_who_guesses_locks_nobody_out(app: Flask, people: People, database: sessionmaker[Session]) -> None:
    """A lock closes the way with a password for a while: sessions go on, and a provider or a passkey still lets its user in."""
    user = people.user("developer")
    client = browser(app, people, user)
    stranger = app.test_client()
    for _ in range(FREE_TRIES):
        stranger.post("/login", data={"csrf_token": csrf_of(stranger.get("/login")), "username": user.username, "password": "wrong"})
    refused = stranger.post("/login", data={"csrf_token": csrf_of(stranger.get("/login")), "username": user.username, "password": PASSWORD})
    assert (refused.status_code, stranger.get_cookie(SESSION_COOKIE)) == (401, None)
    assert client.get("/account").status_code == 200
    assert enter(people.context(None), user, Proof("sso:staff")).signed_in is not None
    with database() as session:
        assert session.get_one(User, user.id).locked_until is None
        assert len(session.scalars(select(UserSession).where(UserSession.user_id == user.id)).all()) == 2
