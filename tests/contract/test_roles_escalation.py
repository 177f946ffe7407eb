"""Nobody gets through a role what they were not given: every way to make one stronger, to be trusted by it, and to keep what it gave."""

from collections.abc import Callable

import pytest
from flask import Flask
from sqlalchemy import select

from portal.identity.models import ApiToken
from portal.identity.tokens import token_create, token_user
from portal.kernel.errors import PortalError
from portal.kernel.operations import run
from portal.security.role_sessions import role_assume
from portal.security.roles import role_delete
from tests.contract.test_iam import allow, attach, write
from tests.contract.test_roles import assume, is_over, new_role, trust
from tests.support.people import PASSWORD, People
from tests.support.racing import race
from tests.support.web import Api


@pytest.fixture
def admin(api_for: Callable[..., Api]) -> Api:
    """A project admin."""
    return api_for("project_admin")


@pytest.fixture
def keeper(admin: Api, api_for: Callable[..., Api]) -> Api:
    """A developer who was given the management of policies, groups, roles and service accounts, and nothing else of an admin."""
    api = api_for("developer")
    manage = ("security.policy.*", "security.group.*", "security.role.*", "identity.service_account.*", "identity.membership.update")
    attach(admin, write(admin, "keepers", allow(*manage)), api.user.id)
    return api


# -- making a role stronger, or being trusted by one --------------------------------------------------------------------------------------------


def test_nobody_makes_a_role_that_may_more(admin: Api, keeper: Api) -> None:
    delete = write(admin, "delete", allow("compute.instance.terminate"))
    asked = {"name": "mine", "permission_policies": [delete], "trust_policy": trust(("user", keeper.user.id))}
    assert keeper.post("/security/roles", asked).status_code == 403
    assert keeper.post("/security/roles", {**asked, "trust_policy": {"principals": []}}).status_code == 403
    role = new_role(admin, "empty", trusts=trust(("user", keeper.user.id)))
    assert keeper("PATCH", f"/security/roles/{role}", {"permission_policies": [delete]}).status_code == 403
    assert keeper.post(f"/security/policies/{delete}/attach", {"principal_type": "role", "principal_id": role}).status_code == 403
    assert admin.get(f"/security/roles/{role}").json["policies"] == []
    # What they hold they give.
    read = write(admin, "read", allow("compute.instance.read"))
    assert keeper.post(f"/security/policies/{read}/attach", {"principal_type": "role", "principal_id": role}).status_code == 200


def test_nobody_lets_themselves_be_trusted_by_a_stronger_role(admin: Api, keeper: Api) -> None:
    role = new_role(admin, "strong", "compute.instance.terminate")
    for wanted in (trust(("user", keeper.user.id)), trust(("user", admin.user.id))):
        assert keeper("PATCH", f"/security/roles/{role}", {"trust_policy": wanted}).status_code == 403
    group = admin.post("/security/groups", {"name": "ops"}).json["group_id"]
    assert keeper("PATCH", f"/security/roles/{role}", {"trust_policy": trust(("group", group))}).status_code == 403
    account = keeper.post("/service-accounts", {"name": "robot"}).json["id"]
    assert keeper("PATCH", f"/security/roles/{role}", {"trust_policy": trust(("service_account", account))}).status_code == 403
    # Both at once: given away first, taken then.
    both = {"permission_policies": [], "trust_policy": trust(("user", keeper.user.id))}
    assert keeper("PATCH", f"/security/roles/{role}", both).status_code == 200
    assert keeper("PATCH", f"/security/roles/{role}", {"permission_policies": ["strong-may"]}).status_code == 403


def test_a_weak_role_does_not_become_strong_behind_its_back(admin: Api, keeper: Api) -> None:
    policy = write(admin, "weak", allow("compute.instance.terminate"))
    assert admin("PATCH", f"/security/policies/{policy}", {"document": allow("compute.instance.read")}).status_code == 200
    role = new_role(admin, "weak", trusts=trust(("user", keeper.user.id)))
    attach(admin, policy, role, "role")
    strong = allow("compute.instance.terminate")
    assert keeper("PATCH", f"/security/policies/{policy}", {"document": strong}).status_code == 403
    assert keeper.post(f"/security/policies/{policy}/restore", {"number": 1}).status_code == 403


def test_a_group_that_a_strong_role_trusts_is_joined_by_whoever_holds_the_role(admin: Api, keeper: Api) -> None:
    group = admin.post("/security/groups", {"name": "ops"}).json["group_id"]
    role = new_role(admin, "strong", "compute.instance.terminate", trusts=trust(("group", group)))
    assert keeper.post(f"/security/groups/{group}/members", {"user_id": keeper.user.id}).status_code == 403
    assert keeper.post(f"/security/roles/{role}/assume", {"session_name": "x"}).status_code == 403
    assert admin.post(f"/security/groups/{group}/members", {"user_id": keeper.user.id}).status_code == 200
    assume(keeper, role)


def test_a_service_account_that_a_strong_role_trusts_is_strong(admin: Api, keeper: Api) -> None:
    account = keeper.post("/service-accounts", {"name": "robot", "role": "viewer"}).json["id"]
    assert keeper.post(f"/service-accounts/{account}/keys", {"name": "one"}).status_code == 201
    new_role(admin, "strong", "compute.instance.terminate", trusts=trust(("service_account", "robot")))
    assert keeper.post(f"/service-accounts/{account}/keys", {"name": "two"}).status_code == 403
    client = {"name": "x", "grants": ["client_credentials"], "scopes": ["compute:read"], "service_account_id": account}
    assert keeper.post("/oauth-clients", client).status_code == 403
    assert keeper("PATCH", f"/service-accounts/{account}", {"is_active": False}).status_code == 200
    assert keeper("PATCH", f"/service-accounts/{account}", {"is_active": True}).status_code == 403


def test_what_denies_a_role_stays(admin: Api, keeper: Api) -> None:
    deny = write(admin, "deny", allow("compute.instance.terminate", effect="Deny"))
    role = new_role(admin, "held", trusts=trust(("user", keeper.user.id)))
    attach(admin, deny, role, "role")
    attach(admin, deny, keeper.user.id)
    assert keeper("PATCH", f"/security/roles/{role}", {"permission_policies": []}).status_code == 403
    assert keeper.post(f"/security/policies/{deny}/detach", {"principal_type": "role", "principal_id": role}).status_code == 403


def test_built_in_roles_are_read_and_nothing_else(api_for: Callable[..., Api], admin: Api) -> None:
    chief = api_for("platform_admin")
    rows = {row["name"]: row for row in admin.get("/security/roles?origin=builtin").json["results"]}
    assert set(rows) == {"platform_admin", "auditor", "project_admin", "developer", "viewer"}
    assert rows["viewer"]["document"]["Statement"][0]["Action"] == ["*:read"]
    role = rows["platform_admin"]["role_id"]
    assert chief("PATCH", f"/security/roles/{role}", {"trust_policy": trust(("user", "admin"))}).status_code == 409
    assert chief("PATCH", f"/security/roles/{role}", {"description": "x"}).status_code == 409
    assert chief("DELETE", f"/security/roles/{role}", {"force": True}).status_code == 409
    assert chief.post(f"/security/roles/{role}/assume", {"session_name": "x"}).status_code == 409
    policy = write(chief, "any", allow("compute.instance.read"), whole_platform=True)
    assert chief.post(f"/security/policies/{policy}/attach", {"principal_type": "role", "principal_id": role}).status_code == 400
    assert admin("PATCH", f"/security/roles/{role}", {"description": "x"}).status_code == 403


# -- assuming ------------------------------------------------------------------------------------------------------------------------------


def test_only_whole_credentials_assume(app: Flask, admin: Api, keeper: Api, people: People) -> None:
    role = new_role(admin, "one", "security.role.*", "compute.key_pair.*", trusts=trust(("user", keeper.user.id)))
    secret, _ = token_create(people.context(keeper.user), keeper.user, "narrow", scopes=["security:*"])
    narrow = Api(app.test_client(), keeper.user, secret)
    refused = narrow.post(f"/security/roles/{role}/assume", {"session_name": "x"})
    assert (refused.status_code, "scopes" in refused.json["message"]) == (403, True)
    acting = assume(keeper, role)
    refused = acting.post(f"/security/roles/{role}/assume", {"session_name": "again"})
    assert (refused.status_code, "assumes no role" in refused.json["message"]) == (403, True)


def test_trust_is_enough_for_a_service_account_without_a_role(app: Flask, admin: Api, people: People, api_for: Callable[..., Api]) -> None:
    account = admin.post("/service-accounts", {"name": "robot"}).json["id"]
    key = admin.post(f"/service-accounts/{account}/keys", {"name": "one"}).json["key"]
    robot = Api(app.test_client(), admin.user, key)
    role = new_role(admin, "keys", "compute.key_pair.create", trusts=trust(("service_account", "robot")))
    other = new_role(admin, "closed", "compute.key_pair.create")
    assert robot.post(f"/security/roles/{other}/assume", {"session_name": "x"}).status_code == 404
    assert assume(robot, role).post("/compute/key-pairs", {"name": "one"}).status_code == 201
    # Not where the project's boundary does not let anybody.
    chief = api_for("platform_admin")
    boundary = write(chief, "no-roles", allow("compute:*", "*:manage"))
    assert chief("PUT", f"/projects/{people.project_id}/boundary", {"policy": boundary}).status_code == 200
    assert robot.post(f"/security/roles/{role}/assume", {"session_name": "x"}).status_code == 403


def test_a_policy_may_deny_assuming(admin: Api, keeper: Api) -> None:
    role = new_role(admin, "one", trusts=trust(("user", keeper.user.id)))
    attach(admin, write(admin, "no-roles", allow("security.role.assume", effect="Deny", resource=f"security.role/{role}")), keeper.user.id)
    assert keeper.post(f"/security/roles/{role}/assume", {"session_name": "x"}).status_code == 403


def test_roles_of_others_are_not_there(admin: Api, api_for: Callable[..., Api], people: People) -> None:
    foreign = api_for("project_admin", people.project())
    role = new_role(admin, "ours", "compute.key_pair.*", trusts=trust(("user", admin.user.id)))
    one = f"/security/roles/{role}"
    for method, path in (
        ("GET", one),
        ("PATCH", one),
        ("DELETE", one),
        ("GET", f"{one}/sessions"),
        ("DELETE", f"{one}/sessions/x"),
        ("POST", f"{one}/assume"),
    ):
        answer = foreign(method, path, {"session_name": "x"} if path.endswith("assume") else {} if method != "GET" else None)
        assert answer.status_code == 404, path
    theirs = write(foreign, "theirs", allow("compute.instance.read"))
    assert foreign.post(f"/security/policies/{theirs}/attach", {"principal_type": "role", "principal_id": role}).status_code == 400
    assert foreign.post("/security/roles", {"name": "x", "permission_policies": ["ours-may"]}).status_code == 400
    assert foreign.post("/security/roles", {"name": "x", "trust_policy": trust(("user", admin.user.id))}).status_code == 400


@pytest.mark.parametrize(
    ("document", "path"),
    [
        ({"principal": []}, "principal: "), ({"principals": "all"}, "principals: "), ({"principals": ["*"]}, "principals[0]: "),
        ({"principals": [{"type": "user"}]}, "principals[0]: "), ({"principals": [{"type": "everybody", "id": "*"}]}, "principals[0].type: "),
        ({"principals": [{"type": "user", "id": "nobody-here"}]}, "principals[0].id: "), ({"principals": [{"type": "user", "id": ["a"]}]}, "principals[0].id: "),
        ({"principals": [{"type": "user", "id": "\x00"}]}, "principals[0].id: "), ({"principals": [{"type": "group", "id": "x"}] * 101}, "principals: "),
    ],
)  # fmt: skip
def test_a_malformed_trust_is_refused_with_its_path(admin: Api, document: object, path: str) -> None:
    refused = admin.post("/security/roles", {"name": "bad", "trust_policy": document})
    assert (refused.status_code, refused.json["details"]["trust_policy"][0][: len(path)]) == (400, path)


def test_a_bad_request_to_assume_is_refused(admin: Api) -> None:
    role = new_role(admin, "two-hours", trusts=trust(("user", admin.user.id)), max_session_duration_hours=2)
    for body in ({}, {"session_name": ""}, {"session_name": "  "}, {"session_name": "x" * 65}, {"session_name": "a", "duration": 899},
                 {"session_name": "a", "duration": 7201}, {"session_name": "a", "duration": "900"}, {"session_name": "a", "mfa": True}):  # fmt: skip
        assert admin.post(f"/security/roles/{role}/assume", body).status_code == 400, body
    assert admin.post(f"/security/roles/{role}/assume", {"session_name": "a", "duration": 7200}).status_code == 201
    for hours in (0, 13):
        assert admin("PATCH", f"/security/roles/{role}", {"max_session_duration_hours": hours}).status_code == 400


# -- keeping what a role gave --------------------------------------------------------------------------------------------------------------


def test_a_session_in_a_role_leaves_nothing_behind(admin: Api, api_for: Callable[..., Api], people: People) -> None:
    chief = api_for("platform_admin")
    admin.post(f"/projects/{people.project_id}/members", {"username": chief.user.username, "role": "project_admin"})
    robot = admin.post("/service-accounts", {"name": "robot"}).json["id"]
    key = admin.post(f"/service-accounts/{robot}/keys", {"name": "one"}).json["id"]
    acting = assume(chief, new_role(admin, "all", "*:read", "*:audit", "*:write", "*:delete", "*:manage", trusts=trust(("user", chief.user.id))))
    own = chief.get("/auth/keys").json["results"][0]["id"]
    for method, path, body in (
        ("POST", "/api/v1/api-keys", {"name": "x"}), ("POST", f"/api/v1/api-keys/{own}/rotate", {}), ("PATCH", f"/api/v1/api-keys/{own}", {"name": "x"}),
        ("DELETE", f"/api/v1/api-keys/{own}", None), ("POST", f"/service-accounts/{robot}/keys", {"name": "x"}),
        ("POST", f"/service-accounts/{robot}/keys/{key}/rotate", {}), ("POST", "/auth/change-password", {"old": "x", "new": "y" * 20}),
        ("POST", "/oauth-clients", {"name": "x", "redirect_uris": ["https://a.example.org/"], "grants": ["authorization_code"], "scopes": ["compute:read"]}),
        ("POST", "/oauth-clients", {"name": "x", "grants": ["client_credentials"], "scopes": ["compute:read"], "service_account_id": robot}),
        ("POST", f"/security/users/{chief.user.id}/mfa", {"device_name": "x", "password": PASSWORD}), ("POST", "/users", {"username": "x", "email": "x@example.org"}),
        ("DELETE", "/auth/sessions/test", None), ("POST", "/projects", {"name": "mine"}),
    ):  # fmt: skip
        answer = acting(method, path, body)
        assert answer.status_code == 403, (method, path, answer.status_code, answer.json)
    assert acting.get("/alerts").status_code == 403
    assert not is_over(acting)


def test_what_is_the_users_own_is_not_the_roles(admin: Api, api_for: Callable[..., Api]) -> None:
    developer = api_for("developer")
    made = developer.post("/compute/key-pairs", {"name": "own"}).json["id"]
    acting = assume(developer, new_role(admin, "empty", trusts=trust(("user", developer.user.id))))
    assert acting.get(f"/compute/key-pairs/{made}").status_code == 404
    assert acting.get("/security/audit-logs").json["results"] == []
    assert acting.get("/auth/keys").status_code == 403
    assert acting.get("/auth/sessions").status_code == 403
    assert acting.get(f"/security/what-can?user={developer.user.username}").status_code == 403
    assert acting.get("/security/unused-permissions").status_code == 403


def test_a_session_in_a_role_gives_no_more_than_the_role(admin: Api, api_for: Callable[..., Api]) -> None:
    other = api_for("project_admin")
    actions = ("security.policy.*", "security.group.*", "security.role.*", "identity.membership.update", "compute.instance.read")
    role = new_role(admin, "keepers", *actions, trusts=trust(("user", other.user.id)))
    acting = assume(other, role)
    terminate = write(admin, "terminate", allow("compute.instance.terminate"))
    assert acting.post("/security/policies", {"name": "x", "document": allow("compute.instance.terminate")}).status_code == 403
    assert acting.post(f"/security/policies/{terminate}/attach", {"principal_type": "role", "principal_id": role}).status_code == 403
    assert acting.post(f"/security/policies/{terminate}/attach", {"principal_type": "user", "principal_id": other.user.id}).status_code == 403
    assert acting.post("/security/groups", {"name": "bosses", "role": "project_admin"}).status_code == 403
    assert acting("PATCH", f"/security/roles/{role}", {"permission_policies": [terminate]}).status_code == 403


def test_deleting_and_assuming_at_once_leave_no_session(people: People, admin: Api) -> None:
    role = new_role(admin, "brief", "compute.key_pair.*", trusts=trust(("user", admin.user.id)))

    def delete() -> str:
        return attempt(lambda: run(people.context(admin.user), role_delete, role, {"force": True}))

    def assume_it() -> str:
        return attempt(lambda: role_assume(people.signed_in(admin.user), role, "race")[0])

    results = race([delete, *[assume_it] * 4])
    assert results[0] == "done"
    assert all(each.startswith("atonix_") or each in {"NOT_FOUND", "CONFLICT"} for each in results[1:]), results
    assert people.context(None).db.scalars(select(ApiToken).where(ApiToken.role_id == role)).all() == []
    assert not any(token_user(people.context(None).db, each, source_ip="") for each in results[1:] if each.startswith("atonix_"))


def attempt(act: Callable[[], object]) -> str:
    """What it gave, or why it was refused."""
    try:
        found = act()
    except PortalError as error:
        return error.code
    return found if isinstance(found, str) else "done"
