"""What the simulator, the lists of who may, and the editor know of roles."""

from collections.abc import Callable

import pytest

from tests.contract.test_iam import allow, attach, write
from tests.contract.test_roles import assume, new_role, trust
from tests.support.people import People
from tests.support.web import Api

STOP = "compute.instance.stop"


@pytest.fixture
def admin(api_for: Callable[..., Api]) -> Api:
    """A project admin."""
    return api_for("project_admin")


@pytest.fixture
def viewer(api_for: Callable[..., Api]) -> Api:
    """Somebody who may look."""
    return api_for("viewer")


def answer(api: Api, user: str, action: str = STOP) -> str:
    found = api.post("/security/policies/simulate", {"user": user, "action": action})
    assert found.status_code == 200, found.json
    return str(found.json["decision"])


def test_the_simulator_answers_for_a_role(admin: Api, viewer: Api) -> None:
    role = new_role(admin, "operator", STOP)
    assert (answer(admin, role), answer(admin, "role/operator"), answer(admin, role, "compute.instance.terminate")) == ("allow", "allow", "deny")
    assert (answer(admin, "role/developer"), answer(admin, "role/viewer")) == ("allow", "deny")
    path = admin.post("/security/policies/simulate", {"user": role, "action": STOP}).json
    assert (path["user"], path["path"][0]["via"]) == ("role operator", "role operator")
    assert viewer.post("/security/policies/simulate", {"user": role, "action": STOP}).status_code == 403
    for missing, status in (("role/nothing", 400), ("role-000000000000", 400)):
        assert admin.post("/security/policies/simulate", {"user": missing, "action": STOP}).status_code == status
    allowed = {row["action"] for row in admin.get(f"/security/what-can?user={role}").json["results"] if row["decision"] == "allow"}
    assert allowed == {STOP}


def test_a_condition_on_the_second_factor_is_asked_for_a_role(admin: Api) -> None:
    role = new_role(admin, "careful")
    attach(admin, write(admin, "with-factor", allow(STOP, Bool={"principal.mfa": "true"})), role, "role")
    asked = {"user": role, "action": STOP, "context": {"mfa": True}}
    assert (answer(admin, role), admin.post("/security/policies/simulate", asked).json["decision"]) == ("deny", "allow")


def test_who_can_names_those_who_can_by_assuming(admin: Api, viewer: Api, people: People) -> None:
    new_role(admin, "operator", STOP, trusts=trust(("user", viewer.user.id), ("user", admin.user.id)))
    rows = {row["username"]: row["via"] for row in admin.get(f"/security/who-can?action={STOP}").json["results"]}
    assert (rows[viewer.user.username], rows[admin.user.username]) == ("by assuming role operator", "")
    assert admin("DELETE", f"/projects/{people.project_id}/members/{viewer.user.id}").status_code == 204
    assert viewer.user.username not in {row["username"] for row in admin.get(f"/security/who-can?action={STOP}").json["results"]}


def test_a_policy_says_which_roles_hold_it_and_what_a_change_does_to_them(admin: Api, viewer: Api) -> None:
    role = new_role(admin, "operator", STOP, trusts=trust(("user", viewer.user.id)))
    policy = admin.get(f"/security/roles/{role}").json["permission_policies"][0]
    held = admin.get(f"/security/policies/{policy}/attachments").json["results"]
    assert [(row["principal_type"], row["principal_id"], row["principal_name"]) for row in held] == [("role", role, "operator")]
    found = admin.post("/security/policies/validate", {"document": allow("compute.instance.start"), "policy_id": policy}).json
    assert found["holders"] == 1
    assert [(each["username"], each["gained"], each["lost"]) for each in found["effects"]] == [("role operator", ["compute.instance.start"], [STOP])]


def test_what_is_done_in_a_role_counts_as_use_of_its_policies(admin: Api, viewer: Api) -> None:
    role = new_role(admin, "keys", "compute.key_pair.create", "compute.key_pair.delete", trusts=trust(("user", viewer.user.id)))
    assert assume(viewer, role).post("/compute/key-pairs", {"name": "one"}).status_code == 201
    policy = admin.get(f"/security/roles/{role}").json["permission_policies"][0]
    found = admin.get(f"/security/unused-permissions?policy={policy}")
    assert (found.json["used"], found.json["unused"]) == (["compute.key_pair.create"], ["compute.key_pair.delete"])


def test_so_many_sessions_and_no_more(admin: Api, viewer: Api) -> None:
    role = new_role(admin, "keys", trusts=trust(("user", viewer.user.id)))
    for number in range(20):
        assume(viewer, role, f"session {number}")
    refused = viewer.post(f"/security/roles/{role}/assume", {"session_name": "one more"})
    assert (refused.status_code, refused.json["details"]) == (409, {"limit": 20})


def test_roles_are_changed_and_listed_like_everything_else(admin: Api, viewer: Api) -> None:
    role = new_role(admin, "operator", STOP, trusts=trust(("group", admin.post("/security/groups", {"name": "ops"}).json["id"])))
    shown = viewer.get(f"/security/roles/{role}").json
    assert (shown["policies"], shown["trust_principal_type"], shown["origin"], shown["max_session_duration_hours"]) == (
        ["operator-may"],
        "group",
        "custom",
        1,
    )
    assert viewer.get("/security/roles").json["count"] == 6
    assert [row["name"] for row in viewer.get("/api/security/roles?origin=custom").json["results"]] == ["operator"]
    assert viewer.get(f"/api/v1/services/roles/{role}").json["name"] == "operator"
    assert viewer("PATCH", f"/security/roles/{role}", {"name": "x"}).status_code == 403
    assert admin.post("/security/roles", {"name": "operator"}).status_code == 409
    assert admin("PATCH", f"/security/roles/{role}", {"permission_policies": [], "max_session_duration_hours": 4}).json["policies"] == []
    bad = admin.post("/security/roles", {"name": "x", "permission_policies": ["operator-may", "nothing"]})
    assert bad.json["details"]["permission_policies"] == ["[1]: there is no policy nothing of this project or the platform."]
