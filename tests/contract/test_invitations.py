"""Invitations: a link by which somebody chooses a password, good once, and made by nobody for somebody above them."""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import pyotp
import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import select, update
from sqlalchemy.orm import Session, sessionmaker

from portal.http.request import SESSION_COOKIE
from portal.identity import factors, iam, sign_in
from portal.identity.invitations import invitation_accept, user_invite
from portal.identity.models import Invitation, User, UserSession
from portal.identity.users import user_create
from portal.kernel.audit import AuditEntry
from portal.kernel.db import now
from portal.kernel.errors import Conflict, Forbidden, InvalidRequest, Unauthorized
from portal.kernel.policy_documents import VERSION
from tests.support.people import PASSWORD, People
from tests.support.racing import race
from tests.support.web import Api, browser, csrf_of

FRESH = "a password of my own"


@pytest.fixture
def admin(client_for: Callable[..., FlaskClient]) -> FlaskClient:
    return client_for("platform_admin")


def test_who_is_invited_chooses_a_password(admin: FlaskClient, app: Flask, database: sessionmaker[Session]) -> None:
    given = {"csrf_token": csrf_of(admin.get("/users")), "username": "maria", "email": "maria@example.org", "password": "", "platform_role": ""}
    page = admin.post("/users", data=given)
    assert page.status_code == 201
    code = page.text.split("/invite#")[1].split("<")[0].split('"')[0].strip()
    with database() as session:
        assert code not in str(session.scalars(select(AuditEntry.details)).all())
        assert session.scalars(select(Invitation.code_hash)).one() != code
    client = app.test_client()
    form = {"csrf_token": csrf_of(client.get("/invite")), "code": code, "new": FRESH, "again": FRESH}
    assert client.post("/invite", data={**form, "again": "other"}).status_code == 422
    assert client.post("/invite", data={**form, "new": "short", "again": "short"}).status_code == 422
    done = client.post("/invite", data=form)
    assert (done.status_code, done.location) == (303, "/")
    assert client.get_cookie(SESSION_COOKIE) is not None
    assert client.get("/account").status_code == 200
    other = app.test_client()
    assert other.post("/invite", data={**form, "csrf_token": csrf_of(other.get("/invite"))}).status_code == 401
    data = {"csrf_token": csrf_of(other.get("/login")), "username": "maria", "password": FRESH}
    assert other.post("/login", data=data).status_code == 303


def test_nobody_signs_in_with_no_password(people: People) -> None:
    boss = people.context(people.user("platform_admin"))
    made = user_create(boss, username="maria", email="maria@example.org")
    for password in ("", "x"):
        with pytest.raises(Unauthorized):
            sign_in.sign_in(people.context(None), made.username, password)


def test_a_forgotten_password_is_replaced_and_what_was_open_ends(people: People, app: Flask) -> None:
    user = people.user()
    open_session = browser(app, people, user)
    code = user_invite(people.context(people.user("platform_admin")), user.id)
    assert open_session.get("/account").status_code == 200
    invitation_accept(people.context(None), code, FRESH)
    assert open_session.get("/account").status_code == 303
    with pytest.raises(Unauthorized):
        sign_in.sign_in(people.context(None), user.username, PASSWORD)


def test_a_second_factor_is_still_asked_for(people: People) -> None:
    user = people.user()
    ctx = people.context(user)
    device, secret, _ = factors.totp_begin(ctx, "phone")
    factors.totp_confirm(ctx, device.id, pyotp.TOTP(secret).now())
    code = user_invite(people.context(people.user("platform_admin")), user.id)
    assert invitation_accept(people.context(None), code, FRESH).signed_in is None


@pytest.mark.parametrize("code", ["", "x", "\x00", "\ud800", "y" * 10_000])
def test_what_is_no_code_is_refused(people: People, code: str) -> None:
    with pytest.raises(Unauthorized):
        invitation_accept(people.context(None), code, FRESH)


def test_a_code_ends(people: People, database: sessionmaker[Session]) -> None:
    boss, user = people.context(people.user("platform_admin")), people.user()
    first, second = user_invite(boss, user.id), user_invite(boss, user.id)
    with pytest.raises(Unauthorized):
        invitation_accept(people.context(None), first, FRESH)
    with pytest.raises(InvalidRequest):
        invitation_accept(people.context(None), second, "short")
    with database() as session:
        session.execute(update(Invitation).values(expires_at=now() - timedelta(seconds=1)))
        session.commit()
    with pytest.raises(Unauthorized):
        invitation_accept(people.context(None), second, FRESH)


def test_of_many_at_once_one_gets_in(people: People) -> None:
    user = people.user()
    code = user_invite(people.context(people.user("platform_admin")), user.id)
    contexts = [people.context(None) for _ in range(3)]
    answers = race([lambda ctx=ctx: invitation_accept(ctx, code, FRESH) for ctx in contexts])
    assert sorted(type(answer).__name__ for answer in answers) == ["Step", "Unauthorized", "Unauthorized"]


def test_who_is_disabled_is_not_invited(people: People, database: sessionmaker[Session]) -> None:
    boss, user = people.context(people.user("platform_admin")), people.user()
    code = user_invite(boss, user.id)
    with database() as session:
        session.execute(update(User).where(User.id == user.id).values(is_active=False))
        session.commit()
    with pytest.raises(Unauthorized):
        invitation_accept(people.context(None), code, FRESH)
    with pytest.raises(Conflict):
        user_invite(boss, user.id)


def test_nobody_invites_somebody_above_them(people: People, api_for: Callable[..., Api]) -> None:
    helper = people.user("developer")
    boss = api_for("platform_admin")
    document = {"Version": VERSION, "Statement": [{"Effect": "Allow", "Action": "identity.user.*", "Resource": "*"}]}
    policy = boss.post("/security/policies", {"name": "help-desk", "document": document, "whole_platform": True}).json["id"]
    answer = boss.post(f"/security/policies/{policy}/attach", {"principal_type": "user", "principal_id": helper.id})
    assert answer.status_code in {200, 201}, answer.json
    ctx = people.context(helper)
    ctx.principal = replace(iam.with_access(ctx.db, ctx.principal, 0), proved_at=now())
    with pytest.raises(Forbidden):
        user_invite(ctx, people.admin().id)


def test_by_api(api_for: Callable[..., Api], people: People, database: sessionmaker[Session]) -> None:
    boss, user = api_for("platform_admin"), people.user()
    made = boss.post(f"/users/{user.id}/invite")
    assert made.status_code == 201
    assert made.json["url"].endswith(f"/invite#{made.json['code']}")
    assert api_for("project_admin").post(f"/users/{user.id}/invite").status_code == 403
    sign_in.sign_in(people.context(None), user.username, PASSWORD)
    assert boss.post(f"/users/{user.id}/sign-out").json == {"ended": 1}
    with database() as session:
        assert session.scalars(select(UserSession).where(UserSession.user_id == user.id)).all() == []
    assert api_for("project_admin").post(f"/users/{user.id}/sign-out").status_code == 403


def test_the_page_of_a_user(admin: FlaskClient, people: People, app: Flask) -> None:
    user = people.user("viewer")
    browser(app, people, user)
    page = admin.get(f"/users/{user.id}").text
    assert user.username in page
    assert "Viewer" in page
    token = csrf_of(admin.get(f"/users/{user.id}"))
    assert admin.post(f"/users/{user.id}/sign-out", data={"csrf_token": token}).location == f"/users/{user.id}"
    assert admin.post(f"/users/{user.id}/invite", data={"csrf_token": token}).status_code == 201
    assert admin.get("/users/usr-none").status_code == 404
