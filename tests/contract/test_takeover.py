"""Ways to take an account over, or to make a passing hold on it last: each was open once, or is what a thief tries first."""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import pyotp
import pytest
from flask import Flask
from sqlalchemy import update
from sqlalchemy.orm import Session, sessionmaker

from portal.identity import factors, passkeys, sign_in, tokens
from portal.identity.accounts import password_change
from portal.identity.deletion import user_delete
from portal.identity.invitations import invitation_accept, user_invite
from portal.identity.models import User
from portal.identity.passkeys import Site
from portal.identity.passwords import FREE_TRIES
from portal.identity.sign_in import Proof
from portal.identity.users import user_create, user_update
from portal.kernel.context import Context, Grant
from portal.kernel.db import now
from portal.kernel.errors import ConfirmationRequired, Forbidden, Unauthorized
from portal.kernel.policy import Statement
from tests.support.people import PASSWORD, People
from tests.support.web import Api

SITE = Site("localhost", "http://localhost")
FRESH = "a password of my own"


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/account"), ("POST", "/account/factors/totp"), ("POST", "/account/factors/passkey"), ("POST", "/account/factors/recovery"),
     ("POST", "/account/tokens"), ("POST", "/account/identities/staff/link"), ("GET", "/users"), ("GET", "/oauth2/authorize")],
)  # fmt: skip
def test_pages_take_no_token(api: Api, method: str, path: str) -> None:
    answer = api.client.open(path, method=method, headers={"Authorization": f"Token {api.token}"})
    assert answer.status_code == 403


def test_a_token_alone_changes_no_way_in(people: People) -> None:
    user = people.user()
    ctx = people.context(user)
    ctx.principal = replace(ctx.principal, credential="token:ak-1")
    for act in (
        lambda: factors.totp_begin(ctx, "phone"), lambda: factors.recovery_renew(ctx), lambda: factors.device_remove(ctx, "x"),
        lambda: passkeys.passkey_begin(ctx, SITE), lambda: passkeys.passkey_create(ctx, SITE, "x", "y", "{}"),
    ):  # fmt: skip
        with pytest.raises(Forbidden):
            act()


def test_a_service_account_opens_no_session(api_for: Callable[..., Api], people: People) -> None:
    account = api_for("project_admin").post("/service-accounts", {"name": "robot", "role": "viewer"}).json["id"]
    ctx = people.context(None)
    with pytest.raises(Unauthorized):
        sign_in.enter(ctx, ctx.db.get_one(User, account), Proof("passkey", mfa=True))


def test_an_old_session_makes_no_lasting_credential(people: People, app: Flask) -> None:
    del app
    user = people.user()
    ctx = people.context(user)
    _, token = tokens.token_create(ctx, user, "mine")
    ctx.principal = replace(ctx.principal, proved_at=now() - timedelta(minutes=16))
    for act in (lambda: tokens.token_rotate(ctx, token.id), lambda: tokens.token_update(ctx, token.id, scopes=[])):
        with pytest.raises(ConfirmationRequired):
            act()


def refused(people: People, code: str) -> None:
    with pytest.raises(Unauthorized):
        invitation_accept(people.context(None), code, FRESH)


@pytest.fixture
def boss(people: People) -> Context:
    return people.context(people.user("platform_admin"))


def test_a_link_ends_with_the_password_it_was_made_for(people: People, boss: Context) -> None:
    user = people.user()
    code = user_invite(boss, user.id)
    password_change(people.context(user), PASSWORD, "yet another passphrase")
    refused(people, code)


def test_a_link_ends_with_whoever_made_it(people: People, boss: Context, database: sessionmaker[Session]) -> None:
    code = user_invite(boss, people.user().id)
    with database() as session:
        session.execute(update(User).where(User.id == boss.principal.user_id).values(is_active=False))
        session.commit()
    refused(people, code)


def test_a_link_does_not_open_what_somebody_became(people: People, boss: Context, database: sessionmaker[Session]) -> None:
    user = people.user()
    code = user_invite(boss, user.id)
    user_update(boss, user.id, platform_role="auditor")
    refused(people, code)
    code = user_invite(boss, user.id)
    with database() as session:
        # The maker has less than when the link was made.
        session.execute(update(User).where(User.id == boss.principal.user_id).values(platform_role=""))
        session.commit()
    refused(people, code)


def application(people: People, user: User) -> Context:
    """What an application that a user allowed everything acts with."""
    ctx = people.context(user)
    ctx.principal = replace(ctx.principal, credential="oauth:app-1", limits=(tokens.scopes_limit(["admin"]),))
    return ctx


def test_an_application_takes_no_account(people: People) -> None:
    user = people.user("platform_admin")
    ctx = application(people, user)
    for act in (
        lambda: user_invite(ctx, user.id), lambda: factors.factors_reset(ctx, user), lambda: user_update(ctx, user.id, platform_role="auditor"),
        lambda: factors.rules_update(ctx, []), lambda: user_delete(ctx, user.id, "admin"),
        lambda: user_create(ctx, username="second", email="s@example.org", platform_role="platform_admin"),
    ):  # fmt: skip
        with pytest.raises(Forbidden):
            act()


def test_nobody_weakens_somebody_above_them(people: People, boss: Context) -> None:
    helper = people.context(people.user())
    desk = (Statement("Desk", allows=True, actions=("identity.user.*", "identity.mfa.*")),)
    helper.principal = replace(helper.principal, grants=(*helper.principal.grants, Grant("pol-1", None, "desk", desk)))
    above = boss.db.get_one(User, boss.principal.user_id)
    for act in (
        lambda: factors.factors_reset(helper, above), lambda: user_update(helper, above.id, is_active=False),
        lambda: user_update(helper, above.id, platform_role=""), lambda: user_delete(helper, above.id, "admin"),
    ):  # fmt: skip
        with pytest.raises(Forbidden):
            act()


def test_a_maker_who_may_not_invite_any_more_lets_nobody_in(people: People, boss: Context, database: sessionmaker[Session]) -> None:
    code = user_invite(boss, people.user("").id)
    with database() as session:
        session.execute(update(User).where(User.id == boss.principal.user_id).values(platform_role=""))
        session.commit()
    refused(people, code)


@pytest.fixture
def with_app(people: People) -> tuple[Context, str]:
    """A user who has an authenticator app, in a session; and its secret."""
    ctx = people.context(people.user())
    device, secret, _ = factors.totp_begin(ctx, "phone")
    factors.totp_confirm(ctx, device.id, pyotp.TOTP(secret).at(now(), counter_offset=-1))
    return ctx, secret


def test_who_has_a_second_factor_confirms_with_it(with_app: tuple[Context, str]) -> None:
    ctx, secret = with_app
    with pytest.raises(Unauthorized, match="second factor"):
        sign_in.confirm(ctx, password=PASSWORD)
    assert sign_in.confirm(ctx, code=pyotp.TOTP(secret).now())


def test_a_password_does_not_forgive_wrong_codes(with_app: tuple[Context, str], people: People) -> None:
    ctx, secret = with_app
    for _ in range(FREE_TRIES):
        with pytest.raises(Unauthorized):
            sign_in.confirm(ctx, code="000000")
        with pytest.raises(Unauthorized):
            sign_in.confirm(ctx, password=PASSWORD)
    with pytest.raises(Unauthorized, match="Too many"):
        sign_in.confirm(ctx, code=pyotp.TOTP(secret).now())
    with pytest.raises(Unauthorized):
        sign_in.sign_in(people.context(None), ctx.principal.username, PASSWORD)


@pytest.mark.parametrize("goal", ["//[", "/\x00//[", "http://["])
def test_an_odd_address_leads_home(app: Flask, goal: str) -> None:
    assert app.test_client().get("/login", query_string={"next": goal}).status_code in {200, 400}


def test_odd_ids_of_passkeys_are_refused(people: People) -> None:
    ctx = people.context(None)
    for answer in ('{"id": "\\u0000"}', '{"id": "' + "x" * 5000 + '"}'):
        asked = passkeys.passkey_ask(ctx, SITE)
        with pytest.raises(Unauthorized):
            passkeys.passkey_enter(ctx, SITE, asked.secret, answer)
