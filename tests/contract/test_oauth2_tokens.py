"""Access and refresh tokens: what they open, what ends them, and what pretends to be one."""

import base64
import hashlib
import hmac
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from joserfc import jws, jwt
from joserfc.jwk import ECKey, OctKey
from sqlalchemy import select, update
from sqlalchemy.orm import Session, sessionmaker

from portal.identity.models import User, UserSession
from portal.identity.oauth2 import bearer
from portal.identity.oauth2.bearer import claims_of
from portal.identity.oauth2.keys import keys_rotate, public_keys, signing_key
from portal.identity.oauth2.models import OAuthFamily, OAuthKey
from portal.identity.projects import member_set
from portal.identity.service_accounts import service_account_create
from portal.identity.tokens import token_create
from portal.identity.users import user_sign_out
from portal.kernel.audit import AuditEntry
from portal.kernel.db import now, transaction
from portal.kernel.errors import Forbidden
from portal.kernel.policy_documents import VERSION
from portal.settings import Settings
from tests.support.oauth import ISSUER, Application, register
from tests.support.people import PASSWORD, People
from tests.support.racing import race
from tests.support.web import Api, api_client, browser, csrf_of

REFRESH_DAYS = 30


@pytest.fixture
def user(people: People) -> User:
    """Who signs in."""
    return people.user("developer")


@pytest.fixture
def sofa(app: Flask, people: People, user: User) -> FlaskClient:
    """The user's browser."""
    return browser(app, people, user)


@pytest.fixture
def reports(api_for: Callable[..., Api], app: Flask) -> Application:
    """A confidential application."""
    return register(api_for("developer"), app, scopes=["compute:read", "compute:write", "*:read", "admin"])


def claims_in(token: str) -> dict[str, Any]:
    """The payload, unverified."""
    part = token.split(".")[1]
    return json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))


def signed(session: Session, settings: Settings, claims: dict[str, Any], **header: Any) -> str:
    """A token signed with the portal's own key."""
    key = signing_key(session, settings)
    return jwt.encode({"alg": "ES256", "typ": "at+jwt", "kid": key.kid, **header}, claims, key, algorithms=["ES256"])


# -- access tokens ---------------------------------------------------------------------------------------------------------------------------


def test_it_is_a_token_of_rfc_9068(reports: Application, sofa: FlaskClient, user: User) -> None:
    token = reports.tokens(sofa)["access_token"]
    header, claims = jws.extract_compact(token.encode()).headers(), claims_in(token)
    assert (header["alg"], header["typ"], header["kid"].startswith("key-")) == ("ES256", "at+jwt", True)
    assert (claims["iss"], claims["aud"], claims["sub"], claims["client_id"]) == (ISSUER, f"{ISSUER}/api", user.id, reports.client_id)
    assert (claims["scope"], claims["exp"] - claims["iat"], claims["jti"].startswith("jti-")) == ("compute:read", 600, True)
    published = reports.app.test_client().get("/oauth2/jwks").json["keys"]
    assert [(key["kid"], key["kty"], key["alg"], "d" in key) for key in published] == [(header["kid"], "EC", "ES256", False)]
    jwt.decode(token, ECKey.import_key(published[0]), algorithms=["ES256"])


def test_an_application_leaves_nothing_behind_that_outlives_it(people: People) -> None:
    boss, stranger = people.context(people.user("project_admin")), people.user("viewer")
    account = service_account_create(boss, name="robot", role="viewer").user
    boss.principal = replace(boss.principal, credential="oauth:app-1")
    tried: list[Callable[[], object]] = [
        lambda: service_account_create(boss, name="backdoor", role="viewer"),
        lambda: token_create(boss, account, "kept", days=3650),
        lambda: member_set(boss, people.project_id, stranger.username, "developer"),
    ]
    for call in tried:
        with pytest.raises(Forbidden, match="An application"):
            call()


def test_a_forced_sign_out_ends_what_applications_hold(reports: Application, sofa: FlaskClient, user: User, people: People) -> None:
    held, code = reports.tokens(sofa), reports.code(sofa)
    user_sign_out(people.context(people.admin()), user.id)
    assert reports.me(held["access_token"]).status_code == 401
    assert reports.refresh(held["refresh_token"]).status_code == 400
    assert reports.exchange(code).status_code == 400


def test_it_opens_what_its_scopes_and_its_user_both_may(
    reports: Application, sofa: FlaskClient, api_for: Callable[..., Api], app: Flask, people: People
) -> None:
    narrow, wide = reports.tokens(sofa)["access_token"], reports.tokens(sofa, scope="admin")["access_token"]
    assert reports.get("/api/v1/compute/instances", narrow).status_code == 200
    bearer_of = {"Authorization": f"Bearer {narrow}"}
    refused = app.test_client().post("/api/v1/compute/key-pairs", json={"name": "x"}, headers=bearer_of)
    assert (refused.status_code, "The token's scope does not allow it" in refused.json["message"]) == (403, True)
    assert reports.get("/api/v1/users", wide).status_code == 403, "a developer's application is no administrator"
    viewer = reports.tokens(browser(app, people, people.user("viewer")), scope="admin")["access_token"]
    assert app.test_client().post("/api/v1/compute/key-pairs", json={"name": "x"}, headers={"Authorization": f"Bearer {viewer}"}).status_code == 403


def test_a_token_proves_no_second_factor(
    reports: Application, sofa: FlaskClient, api_for: Callable[..., Api], user: User, database: sessionmaker[Session]
) -> None:
    """A policy that asks for one is not met by what somebody was given once, long ago."""
    document = {
        "Version": VERSION,
        "Statement": [{"Effect": "Deny", "Action": "compute.key_pair.create", "Resource": "*", "Condition": {"Bool": {"principal.mfa": False}}}],
    }
    admin = api_for("project_admin")
    policy = admin.post("/security/policies", {"name": "factor", "document": document}).json["id"]
    assert admin.post(f"/security/policies/{policy}/attach", {"principal_type": "user", "principal_id": user.id}).status_code == 200
    headers = {"Authorization": f"Bearer {reports.tokens(sofa, scope='admin')['access_token']}"}
    refused = reports.app.test_client().post("/api/v1/compute/key-pairs", json={"name": "x"}, headers=headers)
    assert (refused.status_code, "factor" in refused.json["message"]) == (403, True)
    form = {"csrf_token": csrf_of(sofa.get("/compute/key-pairs/new")), "name": "x"}
    assert sofa.post("/compute/key-pairs/new", data=form).status_code == 403
    with database() as session:
        session.execute(update(UserSession).values(mfa_at=now()))
        session.commit()
    assert sofa.post("/compute/key-pairs/new", data=form).status_code in {201, 303}


def test_an_application_has_no_say_in_the_account(reports: Application, sofa: FlaskClient, app: Flask) -> None:
    """What it could make there would outlive the user's consent."""
    headers = {"Authorization": f"Bearer {reports.tokens(sofa, scope='admin')['access_token']}"}
    client = app.test_client()
    body = {"name": "x", "redirect_uris": ["https://a.example.org/"], "scopes": ["admin"]}
    for method, path, given in (
        ("POST", "api-keys", {"name": "mine", "scopes": ["compute:read"]}), ("POST", "oauth-clients", body), ("DELETE", f"auth/applications/{reports.client_id}", None),
        ("POST", "auth/change-password", {"old": PASSWORD, "new": "another long passphrase"}),
    ):  # fmt: skip
        answer = client.open(f"/api/v1/{path}", method=method, json=given, headers=headers)
        assert answer.status_code == 403, (path, answer.json)
    tried = client.post("/api/v1/auth/change-password", json={"old": "not the password", "new": "another long passphrase"}, headers=headers)
    assert tried.status_code == 403, "nor does it learn whether it knows the password"
    assert client.post("/api/v1/auth/logout", headers=headers).status_code == 400
    assert client.get("/oauth2/authorize", headers=headers).status_code == 403


def test_what_pretends_to_be_one_is_refused(reports: Application, sofa: FlaskClient, database: sessionmaker[Session], settings: Settings) -> None:
    token = reports.tokens(sofa)["access_token"]
    head, body, signature = token.split(".")
    said, moment = claims_in(token), int(now().timestamp())
    with database() as session:
        public = public_keys(session)[0]
        kid = public["kid"]

        def make(**claims: Any) -> str:
            return signed(session, settings, {name: value for name, value in {**said, **claims}.items() if value is not None})

        def part(data: dict[str, Any]) -> str:
            return base64.urlsafe_b64encode(json.dumps(data).encode()).rstrip(b"=").decode()

        unsigned = part({"alg": "none", "typ": "at+jwt", "kid": kid}) + "." + body
        confused = part({"alg": "HS256", "typ": "at+jwt", "kid": kid}) + "." + body
        secrets_tried = [json.dumps(public).encode(), public["x"].encode(), ECKey.import_key(public).as_pem(private=False)]
        stranger = ECKey.generate_key("P-256", {"kid": kid})
        foreign = {"alg": "ES256", "typ": "at+jwt", "kid": kid}
        wrong = {
            "alg none": f"{unsigned}.", "alg none, old signature": f"{unsigned}.{signature}",
            **{f"HS256 with the public key {number}": f"{confused}.{base64.urlsafe_b64encode(hmac.digest(key, confused.encode(), hashlib.sha256)).rstrip(b'=').decode()}"
               for number, key in enumerate(secrets_tried)},
            "HS256 by the library": jwt.encode({"alg": "HS256", "typ": "at+jwt", "kid": kid}, said, OctKey.import_key(b"x" * 32), algorithms=["HS256"]),
            "another key under this kid": jwt.encode(foreign, said, stranger, algorithms=["ES256"]),
            "a key in the header": jwt.encode({**foreign, "jwk": stranger.as_dict(private=False)}, said, stranger, algorithms=["ES256"]),
            "unknown kid": signed(session, settings, said, kid="key-000000000000"), "no kid": signed(session, settings, said, kid=""),
            "another typ": signed(session, settings, said, typ="JWT"), "issuer": make(iss="https://evil.example.org"), "audience": make(aud="https://other/api"),
            "audiences": make(aud=[said["aud"]]), "expired": make(exp=moment - 31), "not yet": make(iat=moment + 60), "no exp": make(exp=None), "exp as text": make(exp="never"),
            "exp true": make(exp=True), "family": make(family="grant-000000000000"), "another user": make(sub=people_id(session)), "another application": make(client_id="app-0"),
            "no scope": make(scope=""), "changed body": f"{head}.{part({**said, 'scope': 'admin'})}.{signature}", "cut": token[:-4], "garbage": "a.b.c", "empty": "..",
            "long": token + "x" * 5000, "not ascii": "ä.ö.ü", "null": make(family="a\x00b"), "kid is a number": part({**foreign, "kid": 7}) + f".{body}.{signature}",
        }  # fmt: skip
        session.commit()
        assert {name: claims_of(session, text, ISSUER) for name, text in wrong.items() if name not in {"family", "another user", "another application", "no scope"}} == {
            name: None for name in wrong if name not in {"family", "another user", "another application", "no scope"}
        }  # fmt: skip
    for name, text in wrong.items():
        if text.isascii():
            assert reports.me(text).status_code == 401, name
    with database() as session:
        assert reports.me(signed(session, settings, {**said, "exp": moment - 5})).status_code == 200, "half a minute of another clock is borne"
    assert reports.me(token).status_code == 200
    assert reports.app.test_client().get("/api/v1/auth/me", headers={"X-API-Key": token}).status_code == 401, "it is a bearer token only"
    assert reports.app.test_client().get("/api/v1/auth/me", headers={"Authorization": f"Token {token}"}).status_code == 401


def people_id(session: Session) -> str:
    """The first administrator."""
    return session.scalars(select(User.id).where(User.username == "admin")).one()


def test_it_ends_when_its_time_is_up(reports: Application, sofa: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    token = reports.tokens(sofa)["access_token"]
    for minutes, status in ((10.4, 200), (10.6, 401)):
        monkeypatch.setattr(bearer, "now", lambda minutes=minutes: now() + timedelta(minutes=minutes))
        assert reports.me(token).status_code == status


def test_keys_are_replaced_and_old_ones_verify_until_their_last_token_has_expired(
    reports: Application, sofa: FlaskClient, database: sessionmaker[Session], settings: Settings
) -> None:  # fmt: skip
    old = reports.tokens(sofa)["access_token"]

    def kids() -> list[str]:
        return [key["kid"] for key in reports.app.test_client().get("/oauth2/jwks").json["keys"]]

    def at(**values: Any) -> None:
        with database() as session:
            session.execute(update(OAuthKey).values(**values))
            session.commit()
            keys_rotate(session, settings)

    first = kids()
    at(created_at=now() - timedelta(days=89))
    assert kids() == first
    at(created_at=now() - timedelta(days=91))
    assert (len(kids()), kids()[1:]) == (2, first)
    fresh = reports.tokens(sofa)["access_token"]
    assert jws.extract_compact(fresh.encode()).headers()["kid"] == kids()[0] != first[0]
    at(created_at=now() - timedelta(days=1))
    assert [reports.me(token).status_code for token in (old, fresh)] == [200, 200]
    with database() as session:
        session.execute(update(OAuthKey).where(OAuthKey.kid == first[0]).values(retired_at=now() - timedelta(minutes=12)))
        session.commit()
        keys_rotate(session, settings)
    assert first[0] not in kids()
    assert [reports.me(token).status_code for token in (old, fresh)] == [401, 200]


def test_private_keys_are_kept_encrypted_and_another_secret_makes_another_key(database: sessionmaker[Session], settings: Settings) -> None:
    with database() as session, transaction(session):
        key = signing_key(session, settings)
        row = session.get_one(OAuthKey, key.kid)
        assert key.as_dict(private=True)["d"] not in row.private_sealed + json.dumps(row.public_jwk)
        assert signing_key(session, settings).kid == key.kid
        other = signing_key(session, settings.model_copy(update={"secret_key": type(settings.secret_key)("another secret of this portal")}))
        assert other.kid != key.kid
        assert signing_key(session, settings).kid == key.kid, "while the secret is being changed each process signs with what it can read"


# -- refresh tokens --------------------------------------------------------------------------------------------------------------------------


def test_a_refresh_token_is_replaced_with_every_use(reports: Application, sofa: FlaskClient) -> None:
    tokens = reports.tokens(sofa, scope="compute:read *:read")
    fresh = reports.refresh(tokens["refresh_token"], scope="compute:read").json
    assert (fresh["scope"], fresh["refresh_token"] != tokens["refresh_token"]) == ("compute:read", True)
    assert reports.me(fresh["access_token"]).status_code == 200
    assert reports.refresh(fresh["refresh_token"], scope="compute:write").json["error"] == "invalid_scope"
    assert reports.refresh(fresh["refresh_token"]).json["scope"] == "compute:read *:read", "what was allowed at first"


def test_a_used_one_ends_everything(reports: Application, sofa: FlaskClient, database: sessionmaker[Session]) -> None:
    tokens, other = reports.tokens(sofa), reports.tokens(sofa)
    fresh = reports.refresh(tokens["refresh_token"]).json
    reused = reports.refresh(tokens["refresh_token"])
    assert (reused.status_code, reused.json["error"]) == (400, "invalid_grant")
    assert reports.refresh(fresh["refresh_token"]).json["error"] == "invalid_grant"
    assert [reports.me(each["access_token"]).status_code for each in (tokens, fresh, other)] == [401, 401, 200]
    with database() as session:
        entry = session.scalars(select(AuditEntry).where(AuditEntry.action == "identity.oauth_token.reuse")).one()
        assert (entry.status, entry.error_message, entry.resource_id) == ("failure", "a refresh token was used twice", reports.client_id)


def test_of_two_uses_at_once_one_wins(reports: Application, sofa: FlaskClient) -> None:
    token = reports.tokens(sofa)["refresh_token"]
    answers = race([lambda: reports.refresh(token) for _ in range(4)])
    assert sorted(answer.status_code for answer in answers) == [200, 400, 400, 400]


def test_it_holds_as_long_as_the_installation_says(reports: Application, sofa: FlaskClient, database: sessionmaker[Session]) -> None:
    tokens = reports.tokens(sofa)
    with database() as session:
        family = session.scalars(select(OAuthFamily)).one()
        assert timedelta(days=REFRESH_DAYS - 1) < family.expires_at - now() <= timedelta(days=REFRESH_DAYS)
        session.execute(update(OAuthFamily).values(expires_at=now()))
        session.commit()
    assert reports.refresh(tokens["refresh_token"]).json["error"] == "invalid_grant"


def test_somebody_elses_is_none_and_ends_nothing(reports: Application, sofa: FlaskClient, api_for: Callable[..., Api], app: Flask) -> None:
    other = register(api_for("developer"), app, name="Other")
    token = reports.tokens(sofa)["refresh_token"]
    assert other.refresh(token).json["error"] == "invalid_grant"
    fresh = reports.refresh(token).json["refresh_token"]
    assert other.refresh(token).json["error"] == "invalid_grant"
    assert reports.refresh(fresh).status_code == 200, "a stranger with a used one cannot end what is not theirs"


# -- what ends them --------------------------------------------------------------------------------------------------------------------------


def by_password(app: Flask, people: People, user: User, reports: Application) -> None:
    """The user changes the password."""
    api = api_client(app, people, user)
    assert api.post("/auth/change-password", {"old": PASSWORD, "new": "another long passphrase"}).status_code == 204


def by_disabling(app: Flask, people: People, user: User, reports: Application) -> None:
    """An administrator disables the user, and thinks better of it."""
    admin = api_client(app, people, people.user("platform_admin"))
    assert [admin("PATCH", f"/users/{user.id}", {"is_active": active}).status_code for active in (False, True)] == [200, 200]


def by_consent(app: Flask, people: People, user: User, reports: Application) -> None:
    """The user takes the consent back."""
    api = api_client(app, people, user)
    assert [row["client_id"] for row in api("GET", "/auth/applications").json["results"]] == [reports.client_id]
    assert api("DELETE", f"/auth/applications/{reports.client_id}").status_code == 204
    assert api("DELETE", f"/auth/applications/{reports.client_id}").status_code == 404


def by_removal(app: Flask, people: People, user: User, reports: Application) -> None:
    """A platform admin removes the application."""
    assert api_client(app, people, people.user("platform_admin"))("DELETE", f"/oauth-clients/{reports.client_id}").status_code == 204


@pytest.mark.parametrize("ended", [by_password, by_disabling, by_consent, by_removal])
def test_everything_ends_with(ended: Callable[..., None], reports: Application, sofa: FlaskClient, people: People, user: User) -> None:
    tokens, code = reports.tokens(sofa), reports.code(sofa)
    ended(reports.app, people, user, reports)
    assert reports.me(tokens["access_token"]).status_code == 401
    assert reports.refresh(tokens["refresh_token"]).status_code in {400, 401}
    assert reports.exchange(code).status_code in {400, 401}


def test_a_disabled_user_is_nobody(reports: Application, sofa: FlaskClient, database: sessionmaker[Session], user: User) -> None:
    tokens, code = reports.tokens(sofa), reports.code(sofa)
    with database() as session:
        session.execute(update(User).where(User.id == user.id).values(is_active=False))
        session.commit()
    assert reports.me(tokens["access_token"]).status_code == 401
    assert reports.refresh(tokens["refresh_token"]).json["error"] == "invalid_grant"
    assert reports.exchange(code).json["error"] == "invalid_grant"
    assert reports.post("/oauth2/introspect", {"token": tokens["access_token"]}).json == {"active": False}


@pytest.mark.parametrize("which", ["access_token", "refresh_token"])
def test_an_application_gives_tokens_back(reports: Application, sofa: FlaskClient, which: str, api_for: Callable[..., Api], app: Flask) -> None:
    tokens, other = reports.tokens(sofa), register(api_for("developer"), app, name="Other", is_public=True)
    assert other.post("/oauth2/revoke", {"token": tokens[which]}).status_code == 400, "not its own"
    assert reports.me(tokens["access_token"]).status_code == 200
    assert reports.post("/oauth2/revoke", {"token": tokens[which], "token_type_hint": which}).status_code == 200
    assert reports.me(tokens["access_token"]).status_code == 401
    assert reports.refresh(tokens["refresh_token"]).json["error"] == "invalid_grant"
    assert reports.post("/oauth2/revoke", {"token": tokens[which]}).status_code == 200, "what is gone is gone"
    assert reports.post("/oauth2/revoke", {"token": "never seen"}).status_code == 200
    assert reports.post("/oauth2/revoke", {}).json["error"] == "invalid_request"


def test_an_application_is_told_of_its_own_tokens_only(
    reports: Application, sofa: FlaskClient, api_for: Callable[..., Api], app: Flask, user: User
) -> None:
    tokens = reports.tokens(sofa)
    said = reports.post("/oauth2/introspect", {"token": tokens["access_token"]}).json
    assert (said["active"], said["scope"], said["sub"], said["username"], said["client_id"]) == (
        True,
        "compute:read",
        user.id,
        user.username,
        reports.client_id,
    )
    assert {"iss", "aud", "exp", "iat", "jti", "token_type"} <= set(said)
    assert reports.post("/oauth2/introspect", {"token": tokens["refresh_token"]}).json["token_type"] == "refresh_token"
    other, public = register(api_for("developer"), app, name="Other"), register(api_for("developer"), app, name="Tool", is_public=True)
    assert [other.post("/oauth2/introspect", {"token": tokens[which]}).json for which in ("access_token", "refresh_token")] == [{"active": False}] * 2
    assert public.post("/oauth2/introspect", {"token": tokens["access_token"]}).status_code == 401
    reports.refresh(tokens["refresh_token"])
    assert reports.post("/oauth2/introspect", {"token": tokens["refresh_token"]}).json == {"active": False}, "it is used up"
    assert reports.post("/oauth2/introspect", {"token": "a.b.c"}).json == {"active": False}
