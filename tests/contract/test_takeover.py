"""Ways to take an account over, or to make a passing hold on it last: each was open once, or is what a thief tries first."""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import pytest
from flask import Flask
from sqlalchemy import update
from sqlalchemy.orm import Session, sessionmaker

from portal.identity import factors, passkeys, sign_in, tokens
from portal.identity.accounts import password_change
from portal.identity.invitations import invitation_accept, user_invite
from portal.identity.models import User
from portal.identity.passkeys import Site
from portal.identity.sign_in import Proof
from portal.identity.users import user_update
from portal.kernel.context import Context
from portal.kernel.db import now
from portal.kernel.errors import ConfirmationRequired, Forbidden, Unauthorized
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
