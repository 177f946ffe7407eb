"""Users by API: what an answer tells, how a list is filtered, and the paths that mean the same."""

from collections.abc import Callable

import pytest

from portal.identity import factors
from portal.identity.models import User
from portal.kernel.db import transaction
from tests.support.people import People
from tests.support.web import Api


@pytest.fixture
def boss(api_for: Callable[..., Api]) -> Api:
    return api_for("platform_admin")


def names(answer: object) -> set[str]:
    return {row["username"] for row in answer.json["results"]}  # type: ignore[attr-defined]


@pytest.mark.parametrize("path", ["/users", "/security/users", "/api/security/users/"])
def test_every_path_leads_to_users(boss: Api, path: str) -> None:
    assert boss.user.username in names(boss.get(path))
    made = boss.post(path, {"username": "ines", "email": "ines@example.org"})
    assert made.status_code == 201
    one = f"{path.rstrip('/')}/{made.json['user_id']}"
    assert boss.get(one).json["username"] == "ines"
    assert boss("PATCH", one, {"is_active": False}).json["is_active"] is False
    assert boss("DELETE", f"{one}?heir={boss.user.username}").status_code == 204
    assert boss.get(one).status_code == 404


def test_an_answer_tells_roles_and_second_factor(boss: Api, people: People) -> None:
    user = people.user("developer")
    path = f"/security/users/{user.id}"
    assert boss.get(path).json["roles"] == [{"role": "developer", "project_id": people.project_id}]
    assert boss.get(path).json["mfa_enabled"] is False
    ctx = people.context(user)
    device, _, _ = factors.totp_begin(ctx, "phone")
    with transaction(ctx.db):
        ctx.db.get_one(factors.MfaDevice, device.id).confirmed_at = device.created_at
    assert boss.get(path).json["mfa_enabled"] is True
    assert next(row["mfa_enabled"] for row in boss.get("/users").json["results"] if row["user_id"] == user.id) is True
    assert boss("PATCH", path, {"platform_role": "auditor"}).status_code == 403, "a token alone gives no role on the platform"
    assert boss.signed_in()("PATCH", path, {"platform_role": "auditor"}).json["roles"][0] == {"role": "auditor", "project_id": None}


@pytest.fixture
def some(people: People) -> dict[str, User]:
    return {role: people.user(role) for role in ("developer", "viewer", "auditor")}


def test_lists_are_filtered(boss: Api, some: dict[str, User]) -> None:
    boss("PATCH", f"/users/{some['viewer'].id}", {"is_active": False})
    assert names(boss.get("/users?active=false")) == {some["viewer"].username}
    assert some["viewer"].username not in names(boss.get("/users?active=true"))
    assert names(boss.get("/users?role=developer")) == {some["developer"].username}
    assert names(boss.get("/users?role=auditor")) == {some["auditor"].username}
    assert names(boss.get(f"/users?search={some['auditor'].email.upper()}")) == {some["auditor"].username}
    assert names(boss.get("/users?search=%25")) == set()
    assert names(boss.get("/users?role=viewer&active=true")) == set()


@pytest.mark.parametrize("query", ["role=king", "active=maybe", "color=red"])
def test_what_is_no_filter_is_refused(boss: Api, query: str) -> None:
    assert boss.get(f"/users?{query}").status_code == 400


def test_who_may_not_see_users_does_not(api: Api) -> None:
    assert api.get("/security/users").status_code == 403


def test_a_caller_sees_groups_and_scopes(api_for: Callable[..., Api], people: People) -> None:
    member, admin = api_for("developer"), api_for("project_admin")
    group = admin.post("/security/groups", {"name": "builders"}).json["id"]
    assert admin.post(f"/security/groups/{group}/members", {"user_id": member.user.id}).status_code == 200
    found = member.get("/auth/me").json
    assert (found["groups"], found["scopes"]) == ([{"group_id": group, "name": "builders", "project_id": people.project_id}], [])
    restricted = member.post("/api/v1/api-keys", {"name": "reader", "scopes": ["compute:read"]}).json["key"]
    found = member.get("/auth/me", headers={"Authorization": f"Token {restricted}"}).json
    assert found["scopes"] == ["compute:read"]
