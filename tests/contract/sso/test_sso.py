"""Single sign-on: whom a provider vouches for is let in, what was tampered with is not, and groups there follow to roles here."""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from typing import Any

import pytest
from flask import Flask
from joserfc.jwk import ECKey
from sqlalchemy import select, update
from sqlalchemy.orm import Session, sessionmaker

from portal.http.request import SESSION_COOKIE
from portal.identity import sso
from portal.identity.models import Membership, User, UserSession
from portal.identity.project_deletion import project_delete
from portal.identity.providers import Claims, Provider
from portal.identity.sso import Identity
from portal.kernel.audit import AuditEntry
from tests.support.openid import CLIENT, Liar, lying_provider, shared_secret_token
from tests.support.people import People
from tests.support.racing import race
from tests.support.sso import away, back, enter, forged, provider, signed_in, user_of
from tests.support.web import csrf_of


def test_who_is_new_becomes_a_user(app: Flask, liar: Liar, database: sessionmaker[Session]) -> None:
    client = app.test_client()
    answer = enter(client, liar, next="/compute/instances")
    assert (answer.status_code, answer.location) == (303, "/compute/instances")
    user = user_of(database)
    assert (user.email, user.password_hash, user.platform_role, user.memberships) == ("ines@example.net", "", "", [])
    with database() as session:
        identity, kept = session.scalars(select(Identity)).one(), session.scalars(select(UserSession)).one()
        assert (identity.issuer, identity.subject, identity.user_id) == (liar.issuer, "u-1", user.id)
        assert (kept.method, kept.mfa_at) == ("sso:staff", None)
    assert {"code_challenge_method": "S256", "response_type": "code"}.items() <= liar.asked.items()
    assert len(liar.asked["code_challenge"]) == 43
    assert {"state", "nonce"} <= liar.asked.keys()


def test_who_is_known_is_told_by_subject_not_by_name(app: Flask, liar: Liar, database: sessionmaker[Session]) -> None:
    enter(app.test_client(), liar)
    liar.claims = {"sub": "u-1", "preferred_username": "ines.kovac", "email": "new@example.net"}
    enter(app.test_client(), liar)
    liar.claims = {"sub": "u-2", "preferred_username": "ines", "email": "other@example.net"}
    enter(app.test_client(), liar)
    with database() as session:
        assert session.scalars(select(User.username).where(User.username.startswith("ines")).order_by(User.username)).all() == ["ines", "ines-2"]


def test_an_address_alone_opens_no_account(app: Flask, liar: Liar, people: People, database: sessionmaker[Session]) -> None:
    user = people.user()
    liar.claims["email"] = user.email.upper()
    client = app.test_client()
    answer = enter(client, liar)
    assert answer.status_code == 401
    assert "link Staff under Account" in answer.text
    assert not signed_in(client)
    with database() as session:
        assert session.scalars(select(Identity)).all() == []


def test_a_provider_may_be_for_known_users_only(app_with: Callable[..., Flask], liar: Liar, database: sessionmaker[Session]) -> None:
    answer = enter(app_with(provider(liar, new_users=False)).test_client(), liar)
    assert answer.status_code == 401
    assert user_of(database) is None


# -- what is tampered with


@pytest.mark.parametrize(
    "wrong",
    [
        {"nonce": "another"}, {"nonce": None}, {"aud": "somebody-else"}, {"aud": None}, {"aud": [CLIENT, "x"], "azp": "x"}, {"iss": "https://evil.example"},
        {"exp": 1}, {"exp": None}, {"iat": None}, {"sub": None}, {"sub": ""}, {"sub": "nul\x00"},
    ],
)  # fmt: skip
def test_a_token_that_is_not_for_this_sign_in_is_refused(app: Flask, liar: Liar, database: sessionmaker[Session], wrong: dict[str, Any]) -> None:
    liar.wrong = wrong
    client = app.test_client()
    assert enter(client, liar).status_code == 401
    assert not signed_in(client)
    with database() as session:
        assert session.scalars(select(Identity)).all() == []
        entry = session.scalars(select(AuditEntry).order_by(AuditEntry.seq.desc()).limit(1)).one()
        assert (entry.action, entry.status, entry.resource_name) == ("identity.session.create", "failure", "sso:staff")


def unsigned(claims: dict[str, Any]) -> str:
    token = forged(claims).split(".")
    return f"eyJhbGciOiJub25lIn0.{token[1]}."


@pytest.mark.parametrize("sign", [forged, unsigned, shared_secret_token, lambda _claims: "no.jwt", lambda _claims: ""])
def test_a_token_that_the_provider_did_not_sign_is_refused(app: Flask, liar: Liar, sign: Callable[[dict[str, Any]], str]) -> None:
    liar.sign = sign
    client = app.test_client()
    assert enter(client, liar).status_code == 401
    assert not signed_in(client)


def test_keys_may_change(app: Flask, liar: Liar) -> None:
    assert enter(app.test_client(), liar).status_code == 303
    liar.key = ECKey.generate_key("P-256", {"kid": "second", "use": "sig", "alg": "ES256"})
    assert enter(app.test_client(), liar).status_code == 303


def test_clocks_may_differ_by_a_minute(app: Flask, liar: Liar) -> None:
    liar.wrong = {"exp": int(time.time()) - 30}
    assert enter(app.test_client(), liar).status_code == 303
    liar.wrong = {"exp": int(time.time()) - 90}
    assert enter(app.test_client(), liar).status_code == 401


def test_state_belongs_to_the_browser_that_began(app: Flask, liar: Liar) -> None:
    mine, foreign = app.test_client(), app.test_client()
    sent = away(mine)
    away(foreign)
    answer = foreign.get("/sso/staff/callback", query_string=liar.authorize(sent.location))
    assert answer.status_code == 401
    assert not signed_in(foreign)
    assert back(app.test_client(), liar, sent).status_code == 401
    assert back(mine, liar, sent, state="tampered").status_code == 401
    assert not signed_in(mine)


def test_an_answer_counts_once(app: Flask, liar: Liar) -> None:
    client = app.test_client()
    answer = liar.authorize(away(client).location)
    assert client.get("/sso/staff/callback", query_string=answer).status_code == 303
    again = app.test_client()
    away(again)
    assert again.get("/sso/staff/callback", query_string=answer).status_code == 401
    assert client.get("/sso/staff/callback", query_string=answer).status_code == 401


def test_another_issuer_in_the_answer_is_refused(app: Flask, liar: Liar) -> None:
    client = app.test_client()
    assert back(client, liar, away(client), iss="https://evil.example").status_code == 401


def test_an_answer_without_the_issuer_that_was_promised_is_refused(app: Flask, liar: Liar) -> None:
    liar.promises_iss = True
    client = app.test_client()
    assert (back(client, liar, away(client), iss="").status_code, signed_in(client)) == (401, False)
    assert back(client, liar, away(client)).status_code == 303


@pytest.mark.parametrize("where", ["cross-site", "same-site"])
def test_another_site_signs_nobody_in(app: Flask, where: str) -> None:
    """Whoever has a session at the provider would be signed in here without a question, by a link or picture anywhere."""
    answer = app.test_client().get("/sso/staff?next=/jobs", headers={"Sec-Fetch-Site": where})
    assert (answer.status_code, answer.location) == (200, None)
    assert 'href="/sso/staff?next=/jobs"' in answer.text
    assert app.test_client().get("/sso/staff", headers={"Sec-Fetch-Site": "same-origin"}).status_code == 302


def test_what_the_provider_gives_stays_on_the_server(app: Flask, liar: Liar, database: sessionmaker[Session]) -> None:
    """The browser brings a code and holds a session of the portal's own; tokens and claims go neither there nor into the log."""
    client = app.test_client()
    liar.claims["secret_claim"] = "claim-for-the-portal-alone"
    enter(client, liar)
    id_token = liar.id_token()
    pages = [client.get(path) for path in ("/account", "/", "/audit")]
    seen = "".join(page.text + str(page.headers) for page in pages) + "".join(str(cookie) for cookie in client._cookies.values())
    with database() as session:
        kept = session.scalars(select(UserSession.sealed_id_token)).one()
        logged = "".join(str(entry.details) for entry in session.scalars(select(AuditEntry)))
    assert kept
    for secret in ("claim-for-the-portal-alone", "opaque-access-token", *id_token.split(".")[:1]):
        assert secret not in seen + logged + kept


def test_two_providers_do_not_share_names(app_with: Callable[..., Flask], liar: Liar, database: sessionmaker[Session]) -> None:
    """The same subject at another issuer is another user; and an answer of one counts at its own address only."""
    with lying_provider() as second:
        app = app_with(provider(liar), provider(second, name="guests", label="Guests"))
        second.claims = {**liar.claims, "email": "other@example.net"}
        enter(app.test_client(), liar)
        client = app.test_client()
        sent = client.get("/sso/guests")
        assert client.get("/sso/staff/callback", query_string=second.authorize(sent.location)).status_code == 401
        client.get("/sso/guests/callback", query_string=second.authorize(client.get("/sso/guests").location))
    with database() as session:
        known = session.scalars(select(Identity)).all()
    assert {(row.issuer, row.subject) for row in known} == {(liar.issuer, "u-1"), (second.issuer, "u-1")}
    assert len({row.user_id for row in known}) == 2


def test_who_was_refused_there_is_told_so(app: Flask, liar: Liar) -> None:
    client = app.test_client()
    sent = away(client)
    state = liar.authorize(sent.location)["state"]
    answer = client.get("/sso/staff/callback", query_string={"error": "access_denied", "state": state, "error_description": "<b>no</b>"})
    assert answer.status_code == 401
    assert "Staff did not let you in." in answer.text
    assert "<b>no</b>" not in answer.text


def test_a_provider_that_calls_itself_otherwise_is_not_asked(app: Flask, liar: Liar) -> None:
    liar.called_issuer = "https://evil.example"
    answer = away(app.test_client())
    assert answer.status_code == 503
    assert "another issuer" in answer.text


def test_a_provider_that_is_down_is_said_to_be(app: Flask, liar: Liar) -> None:
    liar.is_down = True
    assert away(app.test_client()).status_code == 503
    assert app.test_client().get("/sso/nobody").status_code == 404


@pytest.mark.parametrize("goal", ["//evil.example", "https://evil.example", "/\\evil.example"])
def test_a_sign_in_leads_to_this_portal_only(app: Flask, liar: Liar, goal: str) -> None:
    assert enter(app.test_client(), liar, next=goal).location == "/"


def test_a_foreign_host_header_goes_nowhere(app: Flask, liar: Liar) -> None:
    del liar
    answer = app.test_client().get("/sso/staff", headers={"Host": "evil.example"})
    assert answer.status_code == 503
    assert "PUBLIC_URL" in answer.text


# -- groups


def test_groups_there_are_roles_here(app: Flask, liar: Liar, database: sessionmaker[Session]) -> None:
    def roles(*groups: str) -> tuple[str, list[str]]:
        liar.claims["groups"] = list(groups)
        assert enter(app.test_client(), liar).status_code == 303
        user = user_of(database)
        return user.platform_role, [m.role for m in user.memberships]

    assert roles("builders", "unknown") == ("", ["developer"])
    assert roles("builders", "leads", "cloud-admins") == ("platform_admin", ["project_admin"])
    assert roles("builders") == ("", ["developer"])
    assert roles() == ("", [])


def test_a_project_that_is_being_deleted_takes_nobody_in(app: Flask, liar: Liar, people: People, database: sessionmaker[Session]) -> None:
    liar.claims["groups"] = ["builders"]
    project_delete(people.context(people.admin()), people.project_id)
    assert enter(app.test_client(), liar).status_code == 303
    assert user_of(database).memberships == []


def test_what_people_gave_stays(app: Flask, liar: Liar, people: People, database: sessionmaker[Session]) -> None:
    enter(app.test_client(), liar)
    user = user_of(database)
    with database() as session:
        session.add(Membership(user_id=user.id, project_id=people.project_id, role="viewer"))
        session.execute(update(User).where(User.id == user.id).values(platform_role="auditor"))
        session.commit()
    for groups in (["leads", "cloud-admins"], []):
        liar.claims["groups"] = groups
        enter(app.test_client(), liar)
        kept = user_of(database)
        assert (kept.platform_role, [m.role for m in kept.memberships]) == ("auditor", ["viewer"])


def test_the_last_admin_stays_one(app: Flask, liar: Liar, database: sessionmaker[Session]) -> None:
    liar.claims["groups"] = ["cloud-admins"]
    enter(app.test_client(), liar)
    with database() as session:
        session.execute(update(User).where(User.username == "admin").values(is_active=False))
        session.commit()
    liar.claims["groups"] = []
    assert enter(app.test_client(), liar).status_code == 303
    assert user_of(database).platform_role == "platform_admin"


def test_who_is_disabled_stays_out(app: Flask, liar: Liar, database: sessionmaker[Session]) -> None:
    enter(app.test_client(), liar)
    with database() as session:
        session.execute(update(User).where(User.username == "ines").values(is_active=False))
        session.commit()
    client = app.test_client()
    assert enter(client, liar).status_code == 401
    assert not signed_in(client)


# -- plain OAuth 2.0, and what else a provider says


def test_plain_oauth2(app_with: Callable[..., Flask], liar: Liar, database: sessionmaker[Session]) -> None:
    liar.claims = {"id": 4711, "login": "octo", "email": None}
    app = app_with(
        provider(
            liar, kind="oauth2", scopes="read:user", authorize_url=f"{liar.issuer}/auth", token_url=f"{liar.issuer}/token",
            userinfo_url=f"{liar.issuer}/user", subject_claim="id", username_claim="login",
        )
    )  # fmt: skip
    client = app.test_client()
    assert enter(client, liar).status_code == 303
    assert "nonce" not in liar.asked
    assert liar.asked["code_challenge_method"] == "S256"
    assert user_of(database, "octo").email.endswith("@staff.invalid")
    with database() as session:
        assert session.scalars(select(Identity.subject)).one() == "4711"
    assert client.post("/logout", data={"csrf_token": csrf_of(client.get("/account"))}).location == "/login"


def test_plain_oauth2_proves_nothing_again_and_ends_nothing(app_with: Callable[..., Flask], liar: Liar) -> None:
    liar.claims = {"id": 4711, "login": "octo"}
    plain = provider(
        liar, kind="oauth2", scopes="read:user", authorize_url=f"{liar.issuer}/auth", token_url=f"{liar.issuer}/token",
        userinfo_url=f"{liar.issuer}/user", subject_claim="id", username_claim="login",
    )  # fmt: skip
    client = app_with(plain).test_client()
    enter(client, liar)
    assert "purpose=again" not in client.get("/confirm").text
    before = client.get_cookie(SESSION_COOKIE).value
    back(client, liar, client.get("/sso/staff?purpose=again"))
    assert client.get_cookie(SESSION_COOKIE).value != before
    assert client.post("/sso/staff/logout", data={"logout_token": "x"}).status_code in {303, 401}
    liar.claims = {"login": "octo"}
    assert enter(client, liar).status_code == 401


def test_a_second_factor_there_counts_here(app: Flask, liar: Liar, database: sessionmaker[Session]) -> None:
    liar.claims["amr"] = ["pwd", "mfa"]
    enter(app.test_client(), liar)
    with database() as session:
        assert session.scalars(select(UserSession.mfa_at)).one() is not None


def test_a_fresh_sign_in_there_is_a_proof_here(app: Flask, liar: Liar, database: sessionmaker[Session]) -> None:
    client = app.test_client()
    enter(client, liar)
    with database() as session:
        session.execute(update(UserSession).values(proved_at=datetime(2020, 1, 1, tzinfo=UTC)))
        session.commit()
    confirm = client.get("/confirm?next=/account")
    assert "/sso/staff?next=/account&amp;purpose=again" in confirm.text
    sent = client.get("/sso/staff?next=/account&purpose=again")
    liar.wrong = {"auth_time": 1}
    assert back(client, liar, sent).status_code == 401
    liar.wrong = {}
    sent = client.get("/sso/staff?next=/account&purpose=again")
    assert back(client, liar, sent).location == "/account"
    assert (liar.asked["prompt"], liar.asked["max_age"]) == ("login", "0")
    with database() as session:
        assert session.scalars(select(UserSession.proved_at)).one().year > 2020


def test_first_sign_ins_at_once_make_one_user(people: People, database: sessionmaker[Session]) -> None:
    staff = Provider(name="staff", label="Staff", issuer="https://id.example", client_id=CLIENT)
    claims = Claims(staff.issuer, "u-1", "ines", "ines@example.net")
    contexts = [people.context(None) for _ in range(4)]
    steps = race([partial(sso.enter, ctx, staff, claims) for ctx in contexts])
    assert len({step.signed_in.user.id for step in steps}) == 1
    with database() as session:
        assert len(session.scalars(select(Identity)).all()) == 1


@pytest.mark.parametrize("name", ["anonymous", "System", "unknown"])
def test_a_name_that_the_portal_uses_is_nobodys(app: Flask, liar: Liar, database: sessionmaker[Session], name: str) -> None:
    liar.claims = {"sub": "u-9", "preferred_username": name, "email": "nine@example.net"}
    enter(app.test_client(), liar)
    with database() as session:
        assert session.scalars(select(User.username).where(User.email == "nine@example.net")).one() == "user"
