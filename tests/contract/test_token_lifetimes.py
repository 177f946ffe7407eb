"""What a token leads to ends with it: a leaked one neither prolongs itself nor leaves another behind, and learns nothing of its user."""

from collections.abc import Callable
from datetime import datetime, timedelta

import pytest
from flask import Flask
from sqlalchemy.orm import Session, sessionmaker

from portal.identity import sign_in
from portal.identity.accounts import ACCESS_PREFIX, password_change
from portal.identity.api_sessions import REFRESH_PREFIX
from portal.identity.factors import rules_update
from portal.identity.models import ApiToken, User
from portal.identity.passwords import hash_password
from portal.identity.tokens import token_create, token_rotate
from portal.identity.users import user_update
from portal.kernel.context import Context
from portal.kernel.db import now, transaction
from portal.kernel.errors import Conflict
from tests.support.people import PASSWORD, People
from tests.support.web import Api


@pytest.fixture
def leaked(app: Flask, people: People) -> Callable[..., tuple[Api, ApiToken]]:
    """`leaked(days=…, scopes=…)`: a token that its user made in a session."""
    user = people.user("developer")

    def make(**options: object) -> tuple[Api, ApiToken]:
        secret, row = token_create(people.context(user), user, "leaked", **options)  # type: ignore[arg-type] # as the test says
        return Api(app.test_client(), user, secret), row

    return make


def end_of(shown: dict[str, str]) -> datetime:
    return datetime.fromisoformat(shown["expires_at"])


@pytest.mark.parametrize("scopes", [(), ("compute:read",)])
def test_what_a_token_makes_ends_no_later_than_it(leaked: Callable[..., tuple[Api, ApiToken]], scopes: tuple[str, ...]) -> None:
    thief, row = leaked(days=1, scopes=scopes)
    made = thief.post("/auth/keys", {"name": "kept", "scopes": list(scopes), "days": 3650})
    assert made.status_code == 201
    assert abs(end_of(made.json) - row.expires_at) < timedelta(seconds=1)
    kept = Api(thief.client, thief.user, made.json["key"])
    assert kept.get("/auth/me").status_code == 200
    # Nor does it make others, which nobody would find.
    assert kept.post("/auth/keys", {"name": "deeper", "scopes": list(scopes)}).status_code == 403


def test_what_a_token_made_ends_with_it(
    leaked: Callable[..., tuple[Api, ApiToken]], people: People, app: Flask, database: sessionmaker[Session]
) -> None:
    thief, row = leaked()
    kept = Api(thief.client, thief.user, thief.post("/auth/keys", {"name": "kept"}).json["key"])
    owner = Api(app.test_client(), thief.user, people.token(thief.user))
    assert owner("PATCH", f"/auth/keys/{row.id}", {"is_active": False}).status_code == 200
    assert kept.get("/auth/me").status_code == 401
    assert owner.signed_in()("PATCH", f"/auth/keys/{row.id}", {"is_active": True, "scopes": ["compute:read"]}).status_code == 200
    assert kept.get("/compute/instances").status_code == 200
    assert kept.post("/compute/key-pairs", {"name": "x"}).status_code == 403
    assert owner("DELETE", f"/auth/keys/{row.id}").status_code == 204
    assert kept.get("/auth/me").status_code == 401
    assert [each["name"] for each in owner.get("/auth/keys").json["results"]] == ["test"]
    with database() as session, transaction(session):
        assert session.get(ApiToken, row.id) is None


def test_a_key_of_a_service_account_ends_with_the_token_that_made_it(api_for: Callable[..., Api]) -> None:
    admin = api_for("project_admin")
    own = admin.get("/auth/keys").json["results"][0]["id"]
    account = admin.post("/service-accounts", {"name": "robot", "role": "developer"}).json["id"]
    robot = Api(admin.client, admin.user, admin.post(f"/service-accounts/{account}/keys", {"name": "ci"}).json["key"])
    assert robot.get("/compute/instances").status_code == 200
    assert admin("DELETE", f"/auth/keys/{own}").status_code == 204
    assert robot.get("/compute/instances").status_code == 401


def test_a_token_gives_itself_no_more_time(leaked: Callable[..., tuple[Api, ApiToken]], people: People) -> None:
    thief, row = leaked(days=1)
    rotated = thief.post(f"/auth/keys/{row.id}/rotate")
    assert rotated.status_code == 200
    assert abs(end_of(rotated.json) - row.expires_at) < timedelta(seconds=1)
    # A person does: as much as it was made for, not what the installation gives.
    _, fresh = token_rotate(people.context(thief.user), row.id, overlap_hours=0)
    assert abs(fresh.expires_at - now() - timedelta(days=1)) < timedelta(minutes=1)


def test_a_restricted_token_learns_nothing_of_its_user(leaked: Callable[..., tuple[Api, ApiToken]]) -> None:
    thief, row = leaked(scopes=("compute:read",))
    me = thief.get("/auth/me").json
    assert (me["username"], me["scopes"]) == (thief.user.username, ["compute:read"])
    assert (me["email"], me["roles"], me["memberships"], me["groups"], me["last_login_at"]) == ("", [], [], [], None)
    assert [each["api_key_id"] for each in thief.get("/auth/keys").json["results"]] == [row.id]
    assert thief.get("/auth/sessions").status_code == 403


def test_a_password_that_was_changed_meanwhile_gives_no_token(people: People, app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    user, check = people.user("developer"), sign_in.check

    def changed_after_the_check(ctx: Context, *args: str) -> tuple[User, sign_in.Proof]:
        found = check(ctx, *args)
        password_change(people.context(user), PASSWORD, "tulip-violin-anchor")
        return found

    monkeypatch.setattr(sign_in, "check", changed_after_the_check)
    given = {"username": user.username, "password": PASSWORD}
    assert app.test_client().post("/api-token-auth/", json=given).status_code == 401


def test_who_was_disabled_meanwhile_makes_no_token(people: People) -> None:
    user = people.user("developer")
    ctx = people.context(user)
    user_update(people.context(people.admin()), user.id, is_active=False)
    with pytest.raises(Conflict):
        token_create(ctx, user, "late")


def test_a_token_that_looks_like_another_kind_is_a_token(people: People, app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    user = people.user("developer")
    monkeypatch.setattr("portal.identity.tokens.secrets.token_urlsafe", lambda _size: "a_3FcJ0mJvR2m8Zr1Yh6QXk4VnT9bWs5LdP7eGuKiAoHc")
    secret, _ = token_create(people.context(user), user, "unlucky")
    assert Api(app.test_client(), user, secret).get("/auth/me").status_code == 200
    assert not secret.startswith((ACCESS_PREFIX, REFRESH_PREFIX))


@pytest.mark.parametrize("has_password", [True, False])
def test_a_token_counts_for_nobody_who_lacks_a_factor_that_is_required(
    people: People, app: Flask, database: sessionmaker[Session], *, has_password: bool
) -> None:
    user = people.user("developer")
    api = Api(app.test_client(), user, people.token(user))
    with database() as session, transaction(session):
        session.get_one(User, user.id).password_hash = hash_password(PASSWORD) if has_password else ""
    rules_update(people.context(people.user("platform_admin")), ["developer"])
    # Who comes through a provider only has shown there what that asks for.
    assert api.get("/compute/instances").status_code == (403 if has_password else 200)
    assert api.post("/auth/keys", {"name": "more"}).status_code == (403 if has_password else 201)


def test_a_second_rotation_does_not_end_what_was_promised(leaked: Callable[..., tuple[Api, ApiToken]], people: People, app: Flask) -> None:
    first, row = leaked()
    ctx = people.context(first.user)
    second, _ = token_rotate(ctx, row.id)
    with pytest.raises(Conflict, match="holds until"):
        token_rotate(ctx, row.id)
    assert first.get("/auth/me").status_code == 200
    third, _ = token_rotate(ctx, row.id, overlap_hours=0)
    answers = [Api(app.test_client(), first.user, secret).get("/auth/me").status_code for secret in (first.token, second, third)]
    assert answers == [401, 401, 200]


def test_nor_does_a_session_in_a_role(people: People, api_for: Callable[..., Api], app: Flask) -> None:
    admin, user = api_for("project_admin"), people.user("developer")
    trust = {"principals": [{"type": "user", "id": user.id}]}
    role = admin.post("/security/roles", {"name": "helper", "trust_policy": trust}).json["id"]
    api = Api(app.test_client(), user, people.token(user))
    assumed = Api(app.test_client(), user, api.post(f"/security/roles/{role}/assume", {"session_name": "x"}).json["access_token"])
    assert assumed.get("/auth/me").status_code == 200
    rules_update(people.context(people.user("platform_admin")), ["developer"])
    assert (assumed.get("/compute/instances").status_code, assumed.get("/auth/me").status_code) == (403, api.get("/auth/me").status_code)
