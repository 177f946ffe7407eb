"""Accounts that are linked to one at a provider, and sessions that end here and there."""

from typing import Any

import pytest
import requests
from flask import Flask
from flask.testing import FlaskClient
from joserfc.jwk import ECKey
from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker
from werkzeug.test import TestResponse

from portal.http.request import SESSION_COOKIE
from portal.identity.models import UserSession
from portal.identity.sso import Identity
from portal.kernel.db import db
from tests.support.openid import Liar
from tests.support.people import People
from tests.support.sso import back, enter, forged, user_of
from tests.support.web import browser, csrf_of

# -- linking and leaving


def link(client: FlaskClient, liar: Liar) -> TestResponse:
    page = client.get("/account")
    leaving = client.post("/account/identities/staff/link", data={"csrf_token": csrf_of(page)})
    assert leaving.headers["Refresh"] == "0; url=/sso/staff?purpose=link&next=/account"
    return back(client, liar, client.get("/sso/staff?purpose=link&next=/account"))


def test_an_account_is_linked_and_unlinked(app: Flask, liar: Liar, people: People, database: sessionmaker[Session]) -> None:
    user = people.user()
    client = browser(app, people, user)
    assert link(client, liar).location == "/account"
    fresh = app.test_client()
    assert enter(fresh, liar).status_code == 303
    assert user.username in fresh.get("/account").text
    with database() as session:
        identity = session.scalars(select(Identity)).one()
    page = client.get("/account")
    assert client.post(f"/account/identities/{identity.id}/unlink", data={"csrf_token": csrf_of(page)}).status_code == 303
    assert user_of(database) is None
    enter(app.test_client(), liar)
    assert user_of(database) is not None


def test_an_identity_is_one_users_alone(app: Flask, liar: Liar, people: People) -> None:
    enter(app.test_client(), liar)
    answer = link(browser(app, people, people.user()), liar)
    assert answer.status_code == 409
    assert "belongs to another user" in answer.text


def test_only_the_own_form_begins_a_link(app: Flask, liar: Liar, people: People, database: sessionmaker[Session]) -> None:
    user = people.user()
    client = browser(app, people, user)
    back(client, liar, client.get("/sso/staff?purpose=link"))
    with database() as session:
        assert session.scalars(select(Identity.user_id)).all() != [user.id]
    assert client.post("/account/identities/staff/link").status_code == 400


def test_the_only_way_in_cannot_be_unlinked(app: Flask, liar: Liar, database: sessionmaker[Session]) -> None:
    client = app.test_client()
    enter(client, liar)
    with database() as session:
        identity = session.scalars(select(Identity)).one()
    answer = client.post(f"/account/identities/{identity.id}/unlink", data={"csrf_token": csrf_of(client.get("/account"))})
    assert answer.status_code == 409


def test_a_link_is_for_the_session_that_began_it(app: Flask, liar: Liar, people: People, database: sessionmaker[Session]) -> None:
    first, second = people.user(), people.user()
    client = browser(app, people, first)
    client.post("/account/identities/staff/link", data={"csrf_token": csrf_of(client.get("/account"))})
    client.set_cookie(SESSION_COOKIE, browser(app, people, second).get_cookie(SESSION_COOKIE).value, secure=True)
    back(client, liar, client.get("/sso/staff?purpose=link"))
    client = browser(app, people, first)
    client.post("/account/identities/staff/link", data={"csrf_token": csrf_of(client.get("/account"))})
    sent = client.get("/sso/staff?purpose=link")
    client.set_cookie(SESSION_COOKIE, browser(app, people, second).get_cookie(SESSION_COOKIE).value, secure=True)
    assert back(client, liar, sent).status_code == 401
    with database() as session:
        assert second.id not in set(session.scalars(select(Identity.user_id)))


def test_signing_out_ends_the_session_there_too(app: Flask, liar: Liar) -> None:
    client = app.test_client()
    enter(client, liar)
    answer = client.post("/logout", data={"csrf_token": csrf_of(client.get("/account"))})
    assert answer.headers["Refresh"].startswith(f"0; url={liar.issuer}/end?")
    assert "id_token_hint=" in answer.headers["Refresh"]
    assert client.get("/account").status_code == 303


def test_the_provider_ends_sessions(app: Flask, liar: Liar, database: sessionmaker[Session]) -> None:
    clients = []
    for sid in ("s-1", "s-2"):
        liar.claims["sid"] = sid
        clients.append(app.test_client())
        enter(clients[-1], liar)
    tell = app.test_client()
    assert tell.post("/sso/staff/logout", data={"logout_token": liar.logout_token(sid="s-1")}).status_code == 200
    assert [client.get("/account").status_code for client in clients] == [303, 200]
    assert tell.post("/sso/staff/logout", data={"logout_token": liar.logout_token(sub="u-1")}).status_code == 200
    assert clients[1].get("/account").status_code == 303
    with database() as session:
        assert session.scalars(select(UserSession)).all() == []


@pytest.mark.parametrize(
    "claims",
    [
        {"sub": "u-1", "aud": "other"}, {"sub": "u-1", "iss": "https://evil.example"}, {"sub": "u-1", "nonce": "x"}, {"sub": "u-1", "events": {}},
        {"sub": "u-1", "events": None}, {"sub": "u-1", "exp": 1}, {"sub": "u-1", "jti": None}, {"sub": "u-1", "iat": None}, {}, {"sub": "u-1", "typ": "JWT"},
    ],
)  # fmt: skip
def test_what_is_no_logout_token_ends_nothing(app: Flask, liar: Liar, claims: dict[str, Any]) -> None:
    client = app.test_client()
    enter(client, liar)
    assert app.test_client().post("/sso/staff/logout", data={"logout_token": liar.logout_token(**claims)}).status_code in {303, 401}
    liar.sign = forged
    app.test_client().post("/sso/staff/logout", data={"logout_token": liar.logout_token(sub="u-1")})
    assert client.get("/account").status_code == 200


def test_strange_tokens_do_not_make_the_portal_ask_for_keys_each_time(app: Flask, liar: Liar) -> None:
    enter(app.test_client(), liar)
    liar.key = ECKey.generate_key("P-256", {"kid": "second", "use": "sig", "alg": "ES256"})
    known, liar.requests = liar.requests.count("/jwks"), []
    assert known == 1
    for _ in range(3):
        liar.published = [ECKey.generate_key("P-256", {"kid": "first", "use": "sig", "alg": "ES256"})]
        app.test_client().post("/sso/staff/logout", data={"logout_token": liar.logout_token(sub="u-1")})
    assert liar.requests.count("/jwks") == 1


def test_a_provider_without_keys_ends_nothing(app: Flask, liar: Liar) -> None:
    liar.has_keys = False
    answer = app.test_client().post("/sso/staff/logout", data={"logout_token": liar.logout_token(sub="u-1")})
    assert answer.status_code in {303, 401}


def test_no_transaction_waits_for_the_provider(app: Flask, liar: Liar, database: sessionmaker[Session], monkeypatch: pytest.MonkeyPatch) -> None:
    del database
    open_ones: list[str] = []
    send = requests.Session.send

    def watched(self: requests.Session, request: requests.PreparedRequest, **more: Any) -> requests.Response:
        if db.session().in_transaction():
            open_ones.append(str(request.url))
        return send(self, request, **more)

    monkeypatch.setattr(requests.Session, "send", watched)
    client = app.test_client()
    enter(client, liar)
    # As after a start: what the provider is, is asked for again.
    forget_metadata(app)
    page = client.get("/account")
    client.post("/account/identities/staff/link", data={"csrf_token": csrf_of(page)})
    enter(client, liar, purpose="link")
    forget_metadata(app)
    client.post("/logout", data={"csrf_token": csrf_of(client.get("/account"))})
    assert open_ones == []
    assert liar.requests.count("/.well-known/openid-configuration") == 3


def forget_metadata(app: Flask) -> None:
    app.extensions["portal_sso"][0].staff.server_metadata.clear()


def test_an_id_token_is_no_logout_token(app: Flask, liar: Liar) -> None:
    client = app.test_client()
    enter(client, liar)
    app.test_client().post("/sso/staff/logout", data={"logout_token": liar.id_token()})
    assert client.get("/account").status_code == 200


def test_a_logout_token_is_good_once(app: Flask, liar: Liar) -> None:
    token, tell = {"logout_token": liar.logout_token(sub="u-1")}, app.test_client()
    assert tell.post("/sso/staff/logout", data=token).status_code == 200
    client = app.test_client()
    enter(client, liar)
    assert tell.post("/sso/staff/logout", data=token).status_code in {303, 401}
    assert client.get("/account").status_code == 200
