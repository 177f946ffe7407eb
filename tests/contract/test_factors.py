"""Second factors: codes of an app, recovery codes, who must have one, and proving again who one is."""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import pyotp
import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import select, update
from sqlalchemy.orm import Session, sessionmaker
from werkzeug.test import TestResponse

from portal.http.request import SESSION_COOKIE
from portal.identity import factors, sign_in, tokens, users
from portal.identity.factors import MfaDevice, RecoveryCode
from portal.identity.models import User, UserSession
from portal.identity.passwords import FREE_TRIES
from portal.kernel.audit import AuditEntry
from portal.kernel.authz import ROLES
from portal.kernel.context import Context
from portal.kernel.db import now
from portal.kernel.errors import ConfirmationRequired, Conflict, Forbidden, InvalidRequest, NotFound, Unauthorized
from tests.support.people import PASSWORD, People
from tests.support.racing import race
from tests.support.web import Api, browser, csrf_of


def code_of(secret: str, *, steps: int = 0) -> str:
    return pyotp.TOTP(secret).at(now(), counter_offset=steps)


def enrol(ctx: Context) -> tuple[str, list[str]]:
    """Take an app into use with the code of a step ago, so that the present one is unused; (secret, recovery codes)."""
    device, secret, _ = factors.totp_begin(ctx, "phone")
    return secret, factors.totp_confirm(ctx, device.id, code_of(secret, steps=-1)).codes


@pytest.fixture
def user(people: People) -> User:
    return people.user()


@pytest.fixture
def secret(people: People, user: User) -> str:
    return enrol(people.context(user))[0]


def first_step(client: FlaskClient, user: User, **more: str) -> TestResponse:
    data = {"csrf_token": csrf_of(client.get("/login")), "username": user.username, "password": PASSWORD, **more}
    return client.post("/login", data=data)


def second_step(client: FlaskClient, page: TestResponse, code: str, **more: str) -> TestResponse:
    return client.post("/login/second", data={"csrf_token": csrf_of(page), "code": code, **more})


def is_in(client: FlaskClient) -> bool:
    return client.get("/account").status_code == 200


# -- signing in


def test_a_password_alone_opens_nothing(app: Flask, user: User, secret: str, database: sessionmaker[Session]) -> None:
    client = app.test_client()
    page = first_step(client, user)
    assert page.status_code == 200
    assert "Second factor" in page.text
    assert client.get_cookie(SESSION_COOKIE) is None
    assert not is_in(client)
    answer = second_step(client, page, code_of(secret), next="/compute/instances")
    assert (answer.status_code, answer.location) == (303, "/compute/instances")
    assert is_in(client)
    with database() as session:
        assert session.scalars(select(UserSession.mfa_at)).one() is not None


def test_the_cookie_between_the_steps_is_no_session(app: Flask, user: User, secret: str) -> None:
    del secret
    client = app.test_client()
    first_step(client, user)
    between = client.get_cookie("__Host-atonix_step").value
    other = app.test_client()
    other.set_cookie(SESSION_COOKIE, between, secure=True)
    assert not is_in(other)


@pytest.mark.parametrize("code", ["", "000000", "12345", "abcdef", "１２３４５６", "0" * 5000, "\x00"])
def test_a_wrong_code_opens_nothing(app: Flask, user: User, secret: str, code: str) -> None:
    del secret
    client = app.test_client()
    answer = second_step(client, first_step(client, user), code)
    assert answer.status_code == 401
    assert "The code is wrong or was used before" in answer.text
    assert not is_in(client)


def test_a_code_works_once(app: Flask, user: User, secret: str) -> None:
    code = code_of(secret)
    clients = [app.test_client() for _ in range(2)]
    pages = [first_step(client, user) for client in clients]
    assert second_step(clients[0], pages[0], code).status_code == 303
    assert second_step(clients[1], pages[1], code).status_code == 401


def test_of_many_at_once_with_one_code_one_gets_in(people: People, user: User, secret: str) -> None:
    contexts = [people.context(None) for _ in range(4)]
    challenges = [sign_in.sign_in(ctx, user.username, PASSWORD).secret for ctx in contexts]
    code = code_of(secret)
    calls = [lambda ctx=ctx, each=each: sign_in.second_step(ctx, each, code) for ctx, each in zip(contexts, challenges, strict=True)]
    answers = race(calls)
    assert sum(not isinstance(answer, Exception) for answer in answers) == 1
    assert {type(answer) for answer in answers if isinstance(answer, Exception)} == {Unauthorized}


@pytest.mark.parametrize(("steps", "fits"), [(-3, False), (-2, False), (1, True), (2, False)])
def test_clocks_may_differ_by_one_step(people: People, user: User, secret: str, steps: int, fits: bool) -> None:
    ctx = people.context(None)
    step = sign_in.sign_in(ctx, user.username, PASSWORD)
    try:
        found = sign_in.second_step(ctx, step.secret, code_of(secret, steps=steps)).signed_in
    except Unauthorized:
        found = None
    assert (found is not None) is fits


def test_wrong_codes_end_the_sign_in_and_lock_the_account(
    people: People, user: User, secret: str, database: sessionmaker[Session]
) -> None:  # fmt: skip
    ctx = people.context(None)
    step = sign_in.sign_in(ctx, user.username, PASSWORD)
    for _ in range(FREE_TRIES):
        with pytest.raises(Unauthorized):
            sign_in.second_step(ctx, step.secret, "000000")
    with pytest.raises(Unauthorized):
        sign_in.second_step(ctx, step.secret, code_of(secret))
    with pytest.raises(Unauthorized):
        sign_in.sign_in(ctx, user.username, PASSWORD)
    with database() as session:
        assert session.get_one(User, user.id).failed_sign_ins >= FREE_TRIES
        said = session.scalars(select(AuditEntry.error_message).where(AuditEntry.status == "failure"))
        assert "wrong second factor" in set(said)


def test_the_step_between_does_not_last(people: People, user: User, secret: str, database: sessionmaker[Session]) -> None:
    ctx = people.context(None)
    step = sign_in.sign_in(ctx, user.username, PASSWORD)
    with database() as session:
        session.execute(update(sign_in.Challenge).values(expires_at=now() - timedelta(seconds=1)))
        session.commit()
    with pytest.raises(Unauthorized, match="Begin again"):
        sign_in.second_step(ctx, step.secret, code_of(secret))


def test_a_challenge_is_for_its_purpose(people: People, user: User, secret: str) -> None:
    ctx = people.context(user)
    other, _ = sign_in.challenge_begin(ctx, sign_in.CONFIRM, user.id)
    with pytest.raises(Unauthorized):
        sign_in.second_step(ctx, other, code_of(secret))


def test_what_was_typed_survives_both_steps(app: Flask, user: User, secret: str) -> None:
    client = app.test_client()
    page = first_step(client, user, next="/projects", **{"carry.name": "my words"})
    assert 'name="carry.name" value="my words"' in page.text
    answer = second_step(client, page, code_of(secret), next="/projects", **{"carry.name": "my words"})
    assert 'name="name" value="my words"' in answer.text


# -- recovery codes


def test_a_recovery_code_works_once(app: Flask, people: People, user: User, database: sessionmaker[Session]) -> None:
    _, codes = enrol(people.context(user))
    assert len(codes) == len(set(codes)) == 10
    for expected in (303, 401):
        client = app.test_client()
        assert second_step(client, first_step(client, user), codes[3].upper()).status_code == expected
    with database() as session:
        hashes = set(session.scalars(select(RecoveryCode.code_hash)))
        assert len(hashes) == 9
        assert not {code.replace("-", "") for code in codes} & hashes
        assert "identity.mfa.use_recovery_code" in set(session.scalars(select(AuditEntry.action)))


def test_new_recovery_codes_replace_the_old_ones(people: People, user: User) -> None:
    ctx = people.context(user)
    _, old = enrol(ctx)
    fresh = factors.recovery_renew(ctx)
    assert not set(old) & set(fresh)
    visitor = people.context(None)
    step = sign_in.sign_in(visitor, user.username, PASSWORD)
    with pytest.raises(Unauthorized):
        sign_in.second_step(visitor, step.secret, old[0])
    assert sign_in.second_step(visitor, step.secret, fresh[0]).signed_in is not None


def test_codes_need_a_device(people: People, user: User) -> None:
    with pytest.raises(Conflict):
        factors.recovery_renew(people.context(user))


# -- devices


def test_an_app_counts_only_once_it_was_confirmed(people: People, user: User) -> None:
    ctx = people.context(user)
    device, secret, uri = factors.totp_begin(ctx, "phone")
    assert uri.startswith("otpauth://totp/")
    with pytest.raises(InvalidRequest):
        factors.totp_confirm(ctx, device.id, "000000")
    assert sign_in.sign_in(people.context(None), user.username, PASSWORD).signed_in is not None
    factors.totp_confirm(ctx, device.id, code_of(secret))
    assert sign_in.sign_in(people.context(None), user.username, PASSWORD).signed_in is None
    with pytest.raises(NotFound):
        factors.totp_again(ctx, device.id)


def test_the_secret_is_not_in_the_database_as_it_is(people: People, user: User, secret: str, database: sessionmaker[Session]) -> None:
    del people
    with database() as session:
        row = session.scalars(select(MfaDevice).where(MfaDevice.user_id == user.id)).one()
        entries = session.scalars(select(AuditEntry.details)).all()
    assert secret not in row.sealed_secret
    assert secret not in str(entries)


def test_devices_are_ones_own(people: People, user: User) -> None:
    device, secret, _ = factors.totp_begin(people.context(user), "phone")
    stranger = people.context(people.user())
    for act in (
        lambda: factors.totp_again(stranger, device.id),
        lambda: factors.totp_confirm(stranger, device.id, code_of(secret)),
        lambda: factors.device_remove(stranger, device.id),
    ):
        with pytest.raises(NotFound):
            act()


def test_without_a_device_there_are_no_codes(people: People, user: User, secret: str, database: sessionmaker[Session]) -> None:
    del secret
    ctx = people.context(user)
    factors.device_remove(ctx, factors.devices_of(ctx.db, user.id)[0].id)
    with database() as session:
        assert session.scalars(select(RecoveryCode)).all() == []
    assert sign_in.sign_in(people.context(None), user.username, PASSWORD).signed_in is not None


def test_a_lost_device_is_reset_by_an_administrator(people: People, user: User, secret: str, api_for: Callable[..., Api]) -> None:
    del secret
    assert api_for("developer")("DELETE", f"/security/users/{user.id}/mfa").status_code == 403
    admin = api_for("platform_admin")
    assert admin("DELETE", f"/security/users/{user.id}/mfa").status_code == 403, "a token alone takes nobody's factor away, its user's own included"
    assert admin.signed_in()("DELETE", f"/security/users/{user.id}/mfa").status_code == 204
    assert sign_in.sign_in(people.context(None), user.username, PASSWORD).signed_in is not None


def test_an_app_is_set_up_by_api(api_for: Callable[..., Api], people: People) -> None:
    api, stranger = api_for("developer"), people.user()
    path = f"/security/users/{api.user.id}/mfa"
    assert api.post(path, {"device_name": "phone"}).status_code == 400
    assert api.post(path, {"device_name": "phone", "password": "wrong"}).status_code == 400
    assert api.post(f"/security/users/{stranger.id}/mfa", {"device_name": "phone", "password": PASSWORD}).status_code == 403
    made = api.post(path, {"device_name": "phone", "password": PASSWORD})
    assert made.status_code == 201
    codes = api.post(f"{path}/{made.json['device_id']}/confirm", {"code": code_of(made.json["secret"])})
    assert len(codes.json["recovery_codes"]) == 10


def test_rules_by_api(api_for: Callable[..., Api]) -> None:
    boss = api_for("platform_admin").signed_in()
    assert boss("PUT", "/security/sign-in-rules", {"roles": ["auditor"]}).json == {"roles": ["auditor"]}
    assert boss.get("/security/sign-in-rules").json == {"roles": ["auditor"]}
    assert boss("PUT", "/security/sign-in-rules", {"roles": ["king"]}).status_code == 400
    assert api_for("project_admin").get("/security/sign-in-rules").status_code == 403


# -- tokens


def test_tokens_for_a_password_need_the_code_too(app: Flask, user: User, secret: str) -> None:
    client = app.test_client()
    given = {"username": user.username, "password": PASSWORD}
    refused = client.post("/api-token-auth/", json=given)
    assert (refused.status_code, refused.json["details"]) == (401, {"otp": ["is required."]})
    assert client.post("/api-token-auth/", json={**given, "otp": "000000"}).status_code == 401
    assert client.post("/api-token-auth/", json={**given, "password": "wrong", "otp": code_of(secret)}).status_code == 401
    assert client.post("/api/v1/auth/login", json={**given, "otp": code_of(secret)}).status_code == 200


# -- who must


def test_a_role_can_require_it(app: Flask, people: People) -> None:
    boss, user = people.context(people.user("platform_admin")), people.user("developer")
    client = browser(app, people, user)
    assert client.get("/compute/instances").status_code == 200
    factors.rules_update(boss, ["developer"])
    assert client.get("/compute/instances").location == "/account/factors"
    refused = client.get("/api/v1/compute/instances")
    assert refused.status_code == 403
    assert "second factor" in refused.json["message"]
    assert app.test_client().post("/api-token-auth/", json={"username": user.username, "password": PASSWORD}).status_code == 403
    page = client.get("/account/factors")
    assert "asks for a second factor" in page.text
    begun = client.post("/account/factors/totp", data={"csrf_token": csrf_of(page), "name": "phone"})
    page = client.get(begun.location)
    secret = page.text.split('data-copy="')[1].split('"')[0]
    done = client.post(begun.location, data={"csrf_token": csrf_of(page), "code": code_of(secret)})
    assert "Recovery codes" in done.text
    assert client.get("/compute/instances").status_code == 200
    assert browser(app, people, user).get("/compute/instances").location == "/confirm"
    factors.rules_update(boss, [])
    assert browser(app, people, user).get("/compute/instances").status_code == 200


def test_only_who_may_says_who_must(people: People) -> None:
    with pytest.raises(Forbidden):
        factors.rules_update(people.context(people.user("project_admin")), ["viewer"])
    with pytest.raises(InvalidRequest):
        factors.rules_update(people.context(people.user("platform_admin")), ["king"])


# -- proving it again


@pytest.fixture
def stale(app: Flask, people: People, user: User, database: sessionmaker[Session]) -> FlaskClient:
    """A browser whose user has not proved for long who they are."""
    client = browser(app, people, user)
    with database() as session:
        session.execute(update(UserSession).values(proved_at=now() - timedelta(minutes=16)))
        session.commit()
    return client


def test_dangerous_actions_ask_again(stale: FlaskClient) -> None:
    page = stale.get("/account")
    asked = stale.post("/account/tokens", data={"csrf_token": csrf_of(page), "name": "ci", "scopes": "compute:read"})
    assert asked.status_code == 403
    assert "Confirm that it is you" in asked.text
    assert 'name="carry.name" value="ci"' in asked.text
    wrong = stale.post("/confirm", data={"csrf_token": csrf_of(asked), "password": "wrong", "next": "/account/tokens", "carry.name": "ci"})
    assert wrong.status_code == 401
    assert 'name="carry.name" value="ci"' in wrong.text
    right = stale.post("/confirm", data={"csrf_token": csrf_of(asked), "password": PASSWORD, "next": "/account/tokens", "carry.name": "ci"})
    assert 'action="/account/tokens"' in right.text
    made = stale.post("/account/tokens", data={"csrf_token": csrf_of(right), "name": "ci"})
    assert made.status_code == 201


def test_a_code_is_a_proof_too(stale: FlaskClient, secret: str, user: User, people: People) -> None:
    del user, people
    assert stale.get("/account/factors/passkey").status_code == 303
    page = stale.get("/confirm?next=/account")
    assert stale.post("/confirm", data={"csrf_token": csrf_of(page), "code": "000000"}).status_code == 401
    assert stale.post("/confirm", data={"csrf_token": csrf_of(page), "code": code_of(secret), "next": "/account"}).location == "/account"


@pytest.mark.parametrize("act", ["begin", "remove", "renew", "rules", "reset", "user", "token"])
def test_what_is_dangerous_needs_a_fresh_proof(people: People, act: str) -> None:
    boss = people.user("platform_admin")
    ctx = people.context(boss)
    ctx.principal = replace(ctx.principal, proved_at=now() - timedelta(minutes=16))
    calls = {
        "begin": lambda: factors.totp_begin(ctx, "phone"), "remove": lambda: factors.device_remove(ctx, "x"), "renew": lambda: factors.recovery_renew(ctx),
        "rules": lambda: factors.rules_update(ctx, []), "reset": lambda: factors.factors_reset(ctx, boss),
        "user": lambda: users.user_update(ctx, boss.id, platform_role="auditor"), "token": lambda: tokens.token_create(ctx, boss, "x"),
    }  # fmt: skip
    with pytest.raises(ConfirmationRequired):
        calls[act]()


def test_a_proof_gives_the_session_another_secret(stale: FlaskClient, app: Flask) -> None:
    before = stale.get_cookie(SESSION_COOKIE).value
    page = stale.get("/confirm?next=/account")
    stale.post("/confirm", data={"csrf_token": csrf_of(page), "password": PASSWORD, "next": "/account"})
    assert stale.get_cookie(SESSION_COOKIE).value != before
    assert is_in(stale)
    thief = app.test_client()
    thief.set_cookie(SESSION_COOKIE, before, secure=True)
    assert not is_in(thief)


def test_other_sessions_are_ended_at_once(app: Flask, people: People, user: User) -> None:
    mine, other, foreign = browser(app, people, user), browser(app, people, user), browser(app, people, people.user())
    answer = mine.post("/account/sessions/end-others", data={"csrf_token": csrf_of(mine.get("/account"))})
    assert answer.status_code == 303
    assert [is_in(each) for each in (mine, other, foreign)] == [True, False, True]


def test_ending_a_session_needs_a_fresh_proof(app: Flask, people: People, user: User, database: sessionmaker[Session]) -> None:
    mine, other = browser(app, people, user), browser(app, people, user)
    with database() as session:
        ids = session.scalars(select(UserSession.session_id)).all()
        session.execute(update(UserSession).values(proved_at=now() - timedelta(hours=1)))
        session.commit()
    token = csrf_of(mine.get("/account"))
    for path in ("end-others", *(f"{session_id}/revoke" for session_id in ids)):
        assert "Confirm that it is you" in mine.post(f"/account/sessions/{path}", data={"csrf_token": token}).text
    assert is_in(other)
    mine.post("/confirm", data={"csrf_token": token, "password": PASSWORD})
    assert mine.post("/account/sessions/end-others", data={"csrf_token": token}).status_code == 303
    assert not is_in(other)


def test_rules_for_every_role_leave_nobody_in_without_a_second_factor(app: Flask, people: People) -> None:
    factors.rules_update(people.context(people.user("platform_admin")), list(ROLES))
    for role in ROLES:
        user = people.user(role)
        client = browser(app, people, user)
        assert client.get("/compute/instances").location == "/account/factors", role
        assert client.get("/api/v1/compute/instances").status_code == 403, role
        assert app.test_client().post("/api-token-auth/", json={"username": user.username, "password": PASSWORD}).status_code == 403, role
