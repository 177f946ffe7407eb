"""What was begun before an account changed ends with the change, and a session that becomes stronger gets another secret."""

import html
from collections.abc import Callable
from datetime import timedelta

import pyotp
import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import select, update
from sqlalchemy.orm import Session, sessionmaker

from portal.http.request import SESSION_COOKIE
from portal.identity import factors, passkeys, sign_in
from portal.identity.accounts import check_password, password_change
from portal.identity.admin import set_password
from portal.identity.models import Challenge, User
from portal.identity.passkeys import Site
from portal.identity.sign_in import Proof
from portal.identity.users import user_sign_out, user_update
from portal.kernel.audit import AuditEntry
from portal.kernel.context import Context
from portal.kernel.db import now
from portal.kernel.errors import Unauthorized
from tests.support.authenticator import SecurityKey
from tests.support.people import PASSWORD, People
from tests.support.web import browser, csrf_of

SITE = Site("localhost", "http://localhost")
FRESH = "another long passphrase"


@pytest.fixture
def user(people: People) -> User:
    return people.user()


@pytest.fixture
def totp(people: People, user: User) -> pyotp.TOTP:
    """The app of a user who has one."""
    ctx = people.context(user)
    device, secret, _ = factors.totp_begin(ctx, "phone")
    app = pyotp.TOTP(secret)
    factors.totp_confirm(ctx, device.id, app.at(now(), counter_offset=-1))
    return app


def is_in(client: FlaskClient) -> bool:
    return client.get("/account").status_code == 200


# -- a stronger session has another secret


def copy_of(app: Flask, client: FlaskClient) -> FlaskClient:
    """What somebody does who has seen the cookie."""
    thief = app.test_client()
    thief.set_cookie(SESSION_COOKIE, client.get_cookie(SESSION_COOKIE).value, secure=True)
    return thief


def test_the_first_app_gives_the_session_another_secret(app: Flask, people: People, user: User) -> None:
    client = browser(app, people, user)
    thief = copy_of(app, client)
    page = client.get(client.post("/account/factors/totp", data={"csrf_token": csrf_of(client.get("/account/factors")), "name": "phone"}).location)
    code = pyotp.TOTP(page.text.split('data-copy="')[1].split('"')[0]).now()
    done = client.post(page.request.path, data={"csrf_token": csrf_of(page), "code": code})
    assert "Recovery codes" in done.text
    assert (is_in(client), is_in(thief)) == (True, False)


def test_the_first_passkey_does_too(app: Flask, people: People, user: User) -> None:
    client = browser(app, people, user)
    thief = copy_of(app, client)
    page = client.get("/account/factors/passkey")
    answer = SecurityKey().make(html.unescape(page.text.split('data-options="')[1].split('"')[0]))
    done = client.post("/account/factors/passkey", data={"csrf_token": csrf_of(page), "name": "key", "credential": answer})
    assert "Recovery codes" in done.text
    assert (is_in(client), is_in(thief)) == (True, False)


def test_by_api_the_answer_brings_the_new_cookie(app: Flask, people: People, user: User) -> None:
    client = browser(app, people, user)
    thief, headers = copy_of(app, client), {"X-CSRFToken": csrf_of(client.get("/account"))}
    path = f"/api/v1/security/users/{user.id}/mfa"
    made = client.post(path, json={"device_name": "phone"}, headers=headers).json
    done = client.post(f"{path}/{made['device_id']}/confirm", json={"code": pyotp.TOTP(made["secret"]).now()}, headers=headers)
    assert len(done.json["recovery_codes"]) == 10
    assert (is_in(client), is_in(thief)) == (True, False)


# -- what was begun ends


CHANGES: dict[str, Callable[[People, User, Context], object]] = {
    "password": lambda people, user, _boss: password_change(people.context(user), PASSWORD, FRESH),
    "password by the operator": lambda people, user, boss: set_password(boss.db, people.settings, user.username, FRESH),
    "disabled": lambda _people, user, boss: user_update(boss, user.id, is_active=False),
    "forced sign-out": lambda _people, user, boss: user_sign_out(boss, user.id),
    "other sessions": lambda people, user, _boss: sign_in.sessions_end_others(people.context(user), ""),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_a_second_step_ends_with_the_change(
    people: People, user: User, totp: pyotp.TOTP, database: sessionmaker[Session], change: str
) -> None:  # fmt: skip
    visitor = people.context(None)
    step = sign_in.sign_in(visitor, user.username, PASSWORD)
    CHANGES[change](people, user, people.context(people.user("platform_admin")))
    with database() as session:
        assert session.scalars(select(Challenge).where(Challenge.user_id == user.id)).all() == []
    with pytest.raises(Unauthorized):
        sign_in.second_step(visitor, step.secret, totp.now())


@pytest.mark.parametrize("has_factor", [False, True])
def test_a_password_that_was_changed_meanwhile_opens_nothing(people: People, user: User, has_factor: bool, request: pytest.FixtureRequest) -> None:
    if has_factor:
        request.getfixturevalue("totp")
    visitor = people.context(None)
    checked = check_password(visitor, user.username, PASSWORD)
    proof = Proof("password", password=PASSWORD, password_hash=checked.password_hash)
    password_change(people.context(user), PASSWORD, FRESH)
    with pytest.raises(Unauthorized):
        sign_in.enter(visitor, checked, proof)


def test_a_passkey_does_not_finish_what_a_changed_password_began(people: People, user: User) -> None:
    mine, key, visitor = people.context(user), SecurityKey(), people.context(None)
    asked = passkeys.passkey_begin(mine, SITE)
    passkeys.passkey_create(mine, SITE, asked.secret, "key", key.make(asked.options))
    step = sign_in.sign_in(visitor, user.username, PASSWORD)
    answer = key.sign(passkeys.second_options(visitor, SITE, step.secret))
    row = sign_in.challenge_of(visitor, step.secret, sign_in.SECOND)
    password_change(people.context(user), PASSWORD, FRESH)
    with pytest.raises(Unauthorized):
        passkeys.passkey_second(visitor, SITE, step.secret, answer)
    # Also where the key was found right a moment before.
    with pytest.raises(Unauthorized):
        sign_in.second_by_passkey(visitor, row)


# -- who has to wait, waits


@pytest.mark.parametrize("way", ["second step", "confirm", "check"])
def test_a_lock_that_came_meanwhile_holds(
    people: People, user: User, totp: pyotp.TOTP, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    """The account is locked by somebody else after the first look at it, and before the code is looked at."""
    ctx = people.context(user) if way == "confirm" else people.context(None)
    secret = sign_in.sign_in(ctx, user.username, PASSWORD).secret if way == "second step" else ""
    begin = sign_in.transaction

    def locked_first(session: Session) -> object:
        with people.sessions() as other:
            other.execute(update(User).where(User.id == user.id).values(locked_until=now() + timedelta(minutes=1)))
            other.commit()
        return begin(session)

    monkeypatch.setattr(sign_in, "transaction", locked_first)
    ways = {
        "second step": lambda: sign_in.second_step(ctx, secret, totp.now()), "confirm": lambda: sign_in.confirm(ctx, code=totp.now()),
        "check": lambda: sign_in.check(ctx, user.username, PASSWORD, totp.now()),
    }  # fmt: skip
    with pytest.raises(Unauthorized, match="Wait a while"):
        ways[way]()


@pytest.mark.parametrize("way", ["second step", "confirm", "check"])
def test_a_used_recovery_code_is_written_down(people: People, user: User, totp: pyotp.TOTP, database: sessionmaker[Session], way: str) -> None:
    del totp
    mine, visitor = people.context(user), people.context(None)
    code = factors.recovery_renew(mine)[0]
    if way == "second step":
        sign_in.sign_in(visitor, user.username, PASSWORD, code=code)
    elif way == "check":
        sign_in.check(visitor, user.username, PASSWORD, code)
    else:
        sign_in.confirm(mine, code=code)
    with database() as session:
        used = session.scalars(select(AuditEntry.resource_id).where(AuditEntry.action == "identity.mfa.use_recovery_code")).all()
    assert used == [user.id]
