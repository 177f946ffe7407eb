"""Registering applications, those that act as a service account, and what the endpoints answer to strangers."""

import base64
from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker

from portal.engines.fake import FakeCompute
from portal.identity.oauth2.models import OAuthClient
from portal.kernel.audit import AuditEntry
from portal.kernel.policy_documents import VERSION
from portal.settings import Settings
from tests.support.oauth import CALLBACK, ISSUER, Application, register, said_in
from tests.support.people import People
from tests.support.racing import race
from tests.support.web import Api, browser, csrf_of, make_app

CREDENTIALS = {"grants": ["client_credentials"], "redirect_uris": [], "scopes": ["compute:read", "compute:write"]}


@pytest.fixture
def admin(api_for: Callable[..., Api]) -> Api:
    """A project admin who is signed in."""
    return api_for("project_admin").signed_in()


def account(api: Api, name: str = "robot", role: str = "developer") -> str:
    """A new service account's id."""
    return api.post("/service-accounts", {"name": name, "role": role}).json["id"]


def grant(application: Application, **more: Any) -> Any:
    """Ask for a token with the application's own credentials."""
    return application.post("/oauth2/token", {"grant_type": "client_credentials", **more})


# -- registration ----------------------------------------------------------------------------------------------------------------------------


def test_an_application_is_registered_changed_and_removed(admin: Api, app: Flask) -> None:
    made = register(admin, app)
    assert made.secret.startswith("atonix_app_")
    shown = admin.get(f"/oauth-clients/{made.client_id}").json
    assert (shown["name"], shown["redirect_uris"], shown["is_public"], "client_secret" in shown) == ("Reports", [CALLBACK], False, False)
    changed = admin("PATCH", f"/oauth-clients/{made.client_id}", {"name": "Figures", "scopes": ["compute:read"]}).json
    assert (changed["name"], changed["scopes"], changed["redirect_uris"]) == ("Figures", ["compute:read"], [CALLBACK])
    fresh = admin.post(f"/oauth-clients/{made.client_id}/rotate-secret").json["client_secret"]
    asked = {"token": "x"}
    assert made.post("/oauth2/introspect", asked).status_code == 401
    assert Application(app, made.client_id, fresh).post("/oauth2/introspect", asked).status_code == 200
    assert [row["client_id"] for row in admin.get("/oauth-clients").json["results"]] == [made.client_id]
    assert admin("DELETE", f"/oauth-clients/{made.client_id}").status_code == 204
    assert admin.get(f"/oauth-clients/{made.client_id}").status_code == 404


def test_applications_are_their_owners_and_platform_admins_see_all(admin: Api, api_for: Callable[..., Api], app: Flask) -> None:
    made, path = register(admin, app), f"/oauth-clients/{register(admin, app).client_id}"
    other, platform = api_for("project_admin"), api_for("platform_admin").signed_in()
    tried = [other.get(path), other("PATCH", path, {"name": "mine"}), other("DELETE", path), other.post(f"{path}/rotate-secret")]
    assert [answer.status_code for answer in tried] == [404] * 4
    assert other.get("/oauth-clients").json["results"] == []
    assert made.client_id in [row["client_id"] for row in platform.get("/oauth-clients").json["results"]]
    assert platform("PATCH", path, {"name": "looked at"}).status_code == 200
    assert platform("DELETE", path).status_code == 204
    assert api_for("auditor")("DELETE", f"/oauth-clients/{made.client_id}").status_code == 404


@pytest.mark.parametrize("uri", [
    "http://app.example.org/cb", "https://app.example.org/cb#part", "https://*.example.org/cb", "https://app.example.org/*", "https://user@app.example.org/",
    "https://user:pw@app.example.org/", "javascript:alert(1)", "data:text/html,x", "//app.example.org", "app.example.org", "https://", "https:///x", "com.app:/cb",
    "https://app.example.org/a b", "https://app.example.org\\@evil.com/", "https://app.example.org/ü", "https://app.example.org/\n", "http://127.0.0.1.evil.com/",
    "http://127.0.0.1@evil.com/", "http://localhost.evil.com/", "http://10.0.0.1/", "https://app.example.org/" + "x" * 1000, 'https://app.example.org/"',
    "https://app.example.org;script-src/", "https://app.example.org:99999/cb", "http://127.0.0.1:65536/",
])  # fmt: skip
def test_addresses_that_are_refused(admin: Api, uri: str) -> None:
    body = {"name": "Reports", "redirect_uris": [uri], "scopes": ["compute:read"]}
    answer = admin.post("/oauth-clients", body)
    assert (answer.status_code, "redirect_uris" in answer.json["details"]) == (400, True)


@pytest.mark.parametrize(
    "uri", ["https://a.example.org", "https://a.example.org:8443/cb?x=1", "http://127.0.0.1/cb", "http://[::1]:8000/", "http://localhost:3000/cb"]
)
def test_addresses_that_are_taken(admin: Api, uri: str) -> None:
    assert admin.post("/oauth-clients", {"name": "Reports", "redirect_uris": [uri], "scopes": ["compute:read"]}).status_code == 201


@pytest.mark.parametrize(("change", "field"), [
    ({"name": " "}, "name"), ({"grants": []}, "grants"), ({"grants": ["password"]}, "grants"), ({"grants": ["implicit"]}, "grants"),
    ({"grants": ["refresh_token"]}, "grants"), ({"scopes": []}, "scopes"), ({"scopes": ["nonsense"]}, "scopes"), ({"redirect_uris": []}, "redirect_uris"),
    ({"grants": ["client_credentials"]}, "service_account_id"), ({"service_account_id": "sa-000000000000"}, "service_account_id"),
    ({"grants": ["client_credentials"], "service_account_id": "sa-000000000000"}, "service_account_id"),
    ({"redirect_uris": [f"https://a.example.org/{n}" for n in range(11)]}, "redirect_uris"),
])  # fmt: skip
def test_registrations_that_are_refused(admin: Api, change: dict[str, Any], field: str) -> None:
    answer = admin.post("/oauth-clients", {"name": "Reports", "redirect_uris": [CALLBACK], "scopes": ["compute:read"], **change})
    assert (answer.status_code, list(answer.json["details"])) == (400, [field])


def test_a_restricted_token_registers_nothing(admin: Api, app: Flask) -> None:
    narrow = Api(app.test_client(), admin.user, admin.post("/api/v1/api-keys", {"name": "n", "scopes": ["*:*"]}).json["key"])
    assert narrow.post("/oauth-clients", {"name": "x", "redirect_uris": [CALLBACK], "scopes": ["admin"]}).status_code == 403


# -- client credentials ----------------------------------------------------------------------------------------------------------------------


def test_an_application_acts_as_its_service_account(admin: Api, app: Flask, database: sessionmaker[Session]) -> None:
    robot = account(admin)
    made = register(admin, app, **CREDENTIALS, service_account_id=robot)
    tokens = grant(made, scope="compute:read").json
    assert (tokens["scope"], tokens["token_type"], "refresh_token" in tokens) == ("compute:read", "Bearer", False)
    me = made.me(tokens["access_token"]).json
    assert (me["id"], me["kind"], me["credential"]) == (robot, "service", f"oauth:{made.client_id}")
    bearer = {"Authorization": f"Bearer {grant(made).json['access_token']}"}
    assert app.test_client().post("/api/v1/compute/key-pairs", json={"name": "x"}, headers=bearer).status_code == 201
    assert grant(made, scope="admin").json["error"] == "invalid_scope"
    assert Application(app, made.client_id, "").post("/oauth2/token", {"grant_type": "client_credentials"}).status_code == 401
    with database() as session:
        entry = session.scalars(select(AuditEntry).where(AuditEntry.action == "compute.key_pair.create")).one()
        assert (entry.user_id, entry.credential) == (robot, f"oauth:{made.client_id}")


@pytest.mark.parametrize("end", ["disable", "delete"])
def test_it_ends_with_the_account(admin: Api, app: Flask, end: str) -> None:
    robot = account(admin)
    made = register(admin, app, **CREDENTIALS, service_account_id=robot)
    token = grant(made).json["access_token"]
    path = f"/service-accounts/{robot}"
    assert (admin("PATCH", path, {"is_active": False}) if end == "disable" else admin("DELETE", path)).status_code in {200, 204}
    assert made.me(token).status_code == 401
    assert grant(made).json["error"] == "unauthorized_client"
    if end == "disable":
        assert admin("PATCH", path, {"is_active": True}).status_code == 200
        assert (made.me(token).status_code, grant(made).status_code) == (401, 200), "what ended stays ended"


def test_grants_and_the_end_of_the_account_do_not_wait_for_each_other(admin: Api, app: Flask) -> None:
    robot = account(admin)
    made = register(admin, app, **CREDENTIALS, service_account_id=robot)
    path = f"/service-accounts/{robot}"
    *grants, deleted = race([*(lambda: grant(made) for _ in range(6)), lambda: admin("DELETE", path)])
    assert deleted.status_code == 204
    assert {answer.status_code for answer in grants} <= {200, 400}
    assert [made.me(answer.json["access_token"]).status_code for answer in grants if answer.status_code == 200] in ([401] * n for n in range(7))


def test_a_grant_that_was_not_registered_is_refused(admin: Api, app: Flask) -> None:
    made, robot = register(admin, app), register(admin, app, **CREDENTIALS, service_account_id=account(admin))
    assert grant(made).json["error"] == "unauthorized_client"
    assert robot.exchange("x").json["error"] == "unauthorized_client"
    assert robot.refresh("x").json["error"] == "unauthorized_client"
    public = admin.post("/oauth-clients", {"name": "x", "is_public": True, **CREDENTIALS, "service_account_id": account(admin, "other")})
    assert (public.status_code, "grants" in public.json["details"]) == (400, True)


def test_nobody_makes_an_application_of_an_account_that_may_more(admin: Api, api_for: Callable[..., Api], app: Flask) -> None:
    clerk = api_for("developer").signed_in()
    document = {"Version": VERSION, "Statement": [{"Effect": "Allow", "Action": "identity.service_account.*", "Resource": "*"}]}
    policy = admin.post("/security/policies", {"name": "clerk", "document": document}).json["id"]
    admin.post(f"/security/policies/{policy}/attach", {"principal_type": "user", "principal_id": clerk.user.id})
    strong, weak = account(admin, "strong", "project_admin"), account(admin, "weak", "viewer")
    body = {"name": "x", **CREDENTIALS}
    assert clerk.post("/oauth-clients", {**body, "service_account_id": strong}).status_code == 403
    assert api_for("viewer").signed_in().post("/oauth-clients", {**body, "service_account_id": weak}).status_code == 400, "not theirs to see"
    mine = clerk.post("/oauth-clients", {**body, "service_account_id": weak}).json["client_id"]
    assert clerk("PATCH", f"/oauth-clients/{mine}", {"service_account_id": strong}).status_code == 403
    assert admin("PATCH", f"/service-accounts/{weak}", {"role": "project_admin"}).status_code == 200
    assert clerk.post(f"/oauth-clients/{mine}/rotate-secret").status_code == 403
    assert clerk("PATCH", f"/oauth-clients/{mine}", {"scopes": ["admin"]}).status_code == 403
    assert api_for("project_admin", admin.get("/projects").json["results"][0]["id"]).get(f"/oauth-clients/{mine}").status_code == 404


# -- strangers -------------------------------------------------------------------------------------------------------------------------------


def test_discovery_says_what_there_is(app: Flask) -> None:
    said = app.test_client().get("/.well-known/oauth-authorization-server").json
    assert (said["issuer"], said["token_endpoint"], said["code_challenge_methods_supported"]) == (ISSUER, f"{ISSUER}/oauth2/token", ["S256"])
    assert (said["response_types_supported"], said["authorization_response_iss_parameter_supported"]) == (["code"], True)
    assert {"compute:read", "*:*", "admin"} <= set(said["scopes_supported"])


def test_it_is_no_openid_provider(admin: Api, app: Flask, people: People) -> None:
    """No ID tokens and no way to end a session from outside: nothing that another could take for a proof of who somebody is."""
    client = app.test_client()
    assert client.get("/.well-known/openid-configuration").status_code != 200
    said = client.get("/.well-known/oauth-authorization-server").json
    assert set(said["grant_types_supported"]) == {"authorization_code", "refresh_token", "client_credentials"}
    assert {"openid", "end_session_endpoint", "userinfo_endpoint", "registration_endpoint"}.isdisjoint({*said["scopes_supported"], *said})
    made, sofa = register(admin, app), browser(app, people, people.user("developer"))
    assert "id_token" not in made.tokens(sofa)
    assert said_in(made.ask(sofa, scope="openid"))["error"] == "invalid_scope"


@pytest.mark.parametrize(
    "header",
    ["Basic !!!", "Basic " + base64.b64encode(b"\xff\xfe:x").decode(), "Basic " + base64.b64encode(b"app-1:wrong").decode(), "Basic", "Nonsense x"],
)
def test_wrong_credentials_are_one_answer(admin: Api, app: Flask, database: sessionmaker[Session], header: str) -> None:
    made = register(admin, app)
    client = app.test_client()
    for path in ("token", "revoke", "introspect"):
        answer = client.post(
            f"/oauth2/{path}", data={"grant_type": "refresh_token", "refresh_token": "x", "token": "x"}, headers={"Authorization": header}
        )
        assert (answer.status_code, answer.json["error"], answer.headers["WWW-Authenticate"].partition(" ")[0]) == (401, "invalid_client", "Basic")
    wrong, unknown = Application(app, made.client_id, "wrong"), Application(app, "app-0", "wrong")
    said = [each.refresh("x").json for each in (wrong, unknown)]
    assert said[0] == said[1]
    with database() as session:
        failed = session.scalars(select(AuditEntry).where(AuditEntry.action == "identity.oauth_token.create", AuditEntry.status == "failure")).all()
        assert {entry.resource_id for entry in failed} >= {made.client_id, "app-0"}
        assert all("Unknown application, or wrong credentials" in entry.error_message for entry in failed)


def test_a_parameter_that_is_there_twice_is_refused(admin: Api, app: Flask) -> None:
    made = register(admin, app)
    assert made.post("/oauth2/token", {"grant_type": ["refresh_token", "refresh_token"], "refresh_token": "x"}).json["error"] == "invalid_request"
    in_address = app.test_client().post(
        f"/oauth2/token?client_id={made.client_id}&client_secret={made.secret}&grant_type=refresh_token&refresh_token=x"
    )
    assert in_address.json["error"] == "unsupported_grant_type", "secrets do not belong into an address"


def test_tries_are_limited(settings: Settings, fake: FakeCompute, database: sessionmaker[Session]) -> None:
    del database
    for app in make_app(settings.model_copy(update={"rate_limit_anonymous_per_minute": 3}), fake):
        stranger = Application(app, "app-0", "wrong")
        answers = [stranger.refresh("x") for _ in range(5)]
        assert [answer.status_code for answer in answers] == [401, 401, 401, 429, 429]
        assert (answers[-1].json["error"], answers[-1].headers["Retry-After"]) == ("temporarily_unavailable", "60")


def test_the_address_that_is_set_is_the_issuer(settings: Settings, fake: FakeCompute, database: sessionmaker[Session]) -> None:
    del database
    for public, status in (("https://cloud.example.org/", 200), ("http://cloud.example.org", 503), ("http://127.0.0.1:8080", 200)):
        for app in make_app(settings.model_copy(update={"public_url": public}), fake):
            answer = app.test_client().get("/.well-known/oauth-authorization-server", headers={"Host": "evil.example.org"})
            assert (answer.status_code, answer.json.get("issuer")) == (status, public.rstrip("/") if status == 200 else None)


# -- pages -----------------------------------------------------------------------------------------------------------------------------------


def test_pages(client_for: Callable[..., FlaskClient], database: sessionmaker[Session]) -> None:
    client, base = client_for("developer"), "/security/applications"
    token = csrf_of(client.get(base))
    form = {
        "csrf_token": token,
        "name": "Reports",
        "redirect_uris": CALLBACK,
        "grants": ["authorization_code", "refresh_token"],
        "scopes": "compute:read, *:read",
    }
    wrong = client.post(base, data={**form, "redirect_uris": "http://a.example.org/"})
    assert (wrong.status_code, 'id="redirect_uris-error"' in wrong.text) == (422, True)
    made = client.post(base, data=form)
    assert (made.status_code, "atonix_app_" in made.text) == (201, True)
    with database() as session:
        client_id = session.scalars(select(OAuthClient.id)).one()
    page = f"{base}/{client_id}"
    assert "atonix_app_" not in client.get(page).text
    assert "atonix_app_" in client.post(f"{page}/secret", data={"csrf_token": token}).text
    assert client.post(page, data={**form, "name": "Figures"}).status_code == 303
    assert client.post(page, data={**form, "scopes": ""}).status_code == 422
    assert client_for("developer").get(page).status_code == 404
    assert client.post(f"{page}/delete", data={"csrf_token": token, "confirm": "x"}).status_code == 422
    assert client.post(f"{page}/delete", data={"csrf_token": token, "confirm": "Figures"}).status_code == 303
    public = client.post(base, data={**form, "is_public": "on"})
    assert (public.status_code, "has no secret" in public.text) == (201, True)


def test_what_was_allowed_is_shown_and_taken_back(admin: Api, app: Flask, people: People) -> None:
    made, client = register(admin, app), browser(app, people, people.user("developer"))
    token = made.tokens(client)["access_token"]
    assert made.me(token).status_code == 200
    page = client.get("/account")
    assert "Reports" in page.text
    assert "See what there is in compute" in page.text
    assert client.post(f"/account/applications/{made.client_id}/revoke", data={"csrf_token": csrf_of(page)}).status_code == 303
    assert made.me(token).status_code == 401
    assert "Registered by" not in client.get("/account").text
