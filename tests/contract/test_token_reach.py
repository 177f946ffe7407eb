"""A token alone has a hand in itself and in what it made: nothing that outlasts it, and nothing of what is its user's own."""

from collections.abc import Callable

import pytest
from flask import Flask

from portal.identity.models import User
from portal.identity.tokens import token_create
from tests.support.oauth import CALLBACK, register
from tests.support.people import PASSWORD, People
from tests.support.web import Api

CODE_APPLICATION = {"name": "Reports", "redirect_uris": [CALLBACK], "scopes": ["compute:read"]}
OWN = ["/auth/applications", "/oauth-clients", "/auth/sessions"]


@pytest.fixture
def token_of(app: Flask, people: People) -> Callable[..., Api]:
    """`token_of(user, name, days=…, scopes=…)`: a token that the user made in a session."""

    def make(user: User, name: str, **options: object) -> Api:
        return Api(app.test_client(), user, token_create(people.context(user), user, name, **options)[0])  # type: ignore[arg-type] # as the test says

    return make


def id_of(api: Api, name: str) -> str:
    return next(row["api_key_id"] for row in api.get("/auth/keys").json["results"] if row["name"] == name)


def test_a_token_replaces_no_other(people: People, token_of: Callable[..., Api]) -> None:
    user = people.user()
    long, short = token_of(user, "long", days=3650), token_of(user, "short", days=1)
    assert short.post(f"/auth/keys/{id_of(short, 'long')}/rotate", {"overlap_hours": 24}).status_code == 403
    assert long.get("/auth/me").status_code == 200
    child = Api(short.client, user, short.post("/auth/keys", {"name": "child"}).json["key"])
    assert child.post(f"/auth/keys/{id_of(short, 'short')}/rotate").status_code == 403, "nor the one that made it"
    assert short.post(f"/auth/keys/{id_of(short, 'child')}/rotate").status_code == 200, "what it made ends with it"
    assert short.post(f"/auth/keys/{id_of(short, 'short')}/rotate").status_code == 200


def test_a_token_strengthens_no_other(people: People, token_of: Callable[..., Api]) -> None:
    user = people.user()
    token_of(user, "narrow", days=3650, scopes=["compute:read"])
    short = token_of(user, "short", days=1)
    path = f"/auth/keys/{id_of(short, 'narrow')}"
    assert short("PATCH", path, {"scopes": ["admin"]}).status_code == 403
    assert short("PATCH", path, {"is_active": False}).status_code == 200
    assert short("PATCH", path, {"is_active": True}).status_code == 403
    assert short("PATCH", path, {"name": "switched off"}).status_code == 200


def test_a_narrow_token_cripples_no_stronger_one(people: People, token_of: Callable[..., Api]) -> None:
    user = people.user()
    strong, narrow = token_of(user, "strong"), token_of(user, "narrow", scopes=["compute:read"])
    path = f"/auth/keys/{id_of(strong, 'strong')}"
    for change in ({"is_active": False}, {"scopes": ["compute:read"], "is_active": False}, {"scopes": ["compute:read"]}):
        assert narrow("PATCH", path, change).status_code == 403
    assert strong.get("/auth/keys").status_code == 200


def test_a_token_takes_no_key_of_a_service_account_that_it_did_not_make(api_for: Callable[..., Api], token_of: Callable[..., Api]) -> None:
    admin = api_for("project_admin").signed_in()
    account = admin.post("/service-accounts", {"name": "robot", "role": "developer"}).json["id"]
    keys = f"/service-accounts/{account}/keys"
    key = admin.post(keys, {"name": "ci", "days": 3650}).json["id"]
    thief = token_of(admin.user, "thief", days=1)
    assert thief.post(f"{keys}/{key}/rotate").status_code == 403
    own = thief.post(keys, {"name": "theirs"}).json["id"]
    assert thief.post(f"{keys}/{own}/rotate").status_code == 200
    assert admin.post(f"{keys}/{key}/rotate").status_code == 200


def test_a_token_registers_nothing_that_acts_as_a_service_account(api_for: Callable[..., Api], token_of: Callable[..., Api], app: Flask) -> None:
    admin = api_for("project_admin").signed_in()
    account = admin.post("/service-accounts", {"name": "robot", "role": "project_admin"}).json["id"]
    body = {"name": "x", "grants": ["client_credentials"], "scopes": ["admin"], "service_account_id": account}
    theirs = register(admin, app, **{**body, "redirect_uris": []}).client_id
    mine = register(admin, app).client_id
    thief = token_of(admin.user, "thief", days=1)
    robot = Api(admin.client, admin.user, admin.post(f"/service-accounts/{account}/keys", {"name": "ci"}).json["key"])
    for each in (thief, robot):
        assert each.post("/oauth-clients", body).status_code == 403
    for client in (theirs, mine):
        assert thief.post(f"/oauth-clients/{client}/rotate-secret").status_code == 403
        assert thief("PATCH", f"/oauth-clients/{client}", {"redirect_uris": ["https://evil.example/"]}).status_code == 403
    assert thief.post("/oauth-clients", CODE_APPLICATION).status_code == 201, "which gives nobody anything until somebody says yes"


def test_a_token_does_not_take_an_account(api_for: Callable[..., Api], token_of: Callable[..., Api], people: People) -> None:
    boss = api_for("platform_admin")
    user = people.user("viewer")
    assert boss.client.post("/api/v1/auth/login", json={"username": user.username, "password": PASSWORD}).status_code == 200
    boss.signed_in()
    thief = token_of(boss.user, "thief", days=1)
    for each in (boss.user, user):
        assert thief("DELETE", f"/security/users/{each.id}/mfa").status_code == 403
        assert thief.post(f"/users/{each.id}/invite").status_code == 403
    new = {"username": "newcomer", "email": "newcomer@example.org"}
    assert thief.post(f"/users/{thief.post('/users', new).json['id']}/invite").status_code == 201, "who has never signed in has nothing to take"
    assert boss.signed_in().post(f"/users/{user.id}/invite").status_code == 201


def test_a_secret_that_ends_at_once_takes_along_what_was_assumed_with_it(api_for: Callable[..., Api], people: People, app: Flask) -> None:
    admin = api_for("project_admin").signed_in()
    user = people.user()
    trust = {"principals": [{"type": "user", "id": user.id}]}
    role = admin.post("/security/roles", {"name": "helper", "trust_policy": trust}).json["id"]
    owner = Api(app.test_client(), user, people.token(user))
    session = owner.post(f"/security/roles/{role}/assume", {"session_name": "x"}).json["access_token"]
    assumed = Api(app.test_client(), user, session)
    path = f"/auth/keys/{id_of(owner, 'test')}/rotate"
    rotated = Api(app.test_client(), user, owner.post(path, {"overlap_hours": 1}).json["key"])
    assert assumed.get("/auth/me").status_code == 200
    assert rotated.post(path, {"overlap_hours": 0}).status_code == 200
    assert assumed.get("/auth/me").status_code == 401


@pytest.mark.parametrize("path", OWN)
def test_what_stands_for_less_than_its_user_sees_none_of_their_applications(people: People, token_of: Callable[..., Api], path: str) -> None:
    user = people.user()
    assert token_of(user, "whole").get(path).status_code == 200
    assert token_of(user, "narrow", scopes=["compute:read"]).get(path).status_code == 403


def test_what_was_made_before_is_shown_only_to_who_may_make_it(people: People, token_of: Callable[..., Api]) -> None:
    user, given = people.user(), {"headers": {"Idempotency-Key": "once"}}
    body = {"name": "mine"}
    whole, narrow = token_of(user, "whole"), token_of(user, "narrow", scopes=["compute:read"])
    first = whole.post("/compute/key-pairs", body, **given)
    assert first.status_code == 201
    assert whole.post("/compute/key-pairs", body, **given).json["id"] == first.json["id"]
    assert narrow.post("/compute/key-pairs", body, **given).status_code == 403


def test_a_secret_that_was_replaced_changes_nothing(people: People, app: Flask) -> None:
    user = people.user()
    old = Api(app.test_client(), user, people.token(user))
    path = f"/auth/keys/{id_of(old, 'test')}"
    fresh = Api(app.test_client(), user, old.post(f"{path}/rotate").json["key"])
    assert old.get("/compute/instances").status_code == 200
    tried = [
        old.post(f"{path}/rotate", {"overlap_hours": 0}),
        old("PATCH", path, {"is_active": False}),
        old("DELETE", path),
        old.post("/auth/keys", {"name": "more"}),
    ]
    assert [answer.status_code for answer in tried] == [403] * 4
    assert fresh.get("/compute/instances").status_code == 200
