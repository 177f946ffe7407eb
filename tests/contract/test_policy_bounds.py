"""How much somebody may hold in a project: refused with the number, on every way by which it could grow."""

from collections.abc import Callable
from typing import Any

import pytest

from portal.kernel.policy_documents import VERSION
from portal.security import bounds
from tests.support.web import Api


def document(statements: int, values: int = 1) -> dict[str, Any]:
    """So many statements, each with so many values."""
    condition = {"StringEquals": {"resource.name": [f"{number:x}" for number in range(values)]}}
    return {
        "Version": VERSION,
        "Statement": [
            {"Sid": f"S{number}", "Effect": "Deny", "Action": "compute.instance.start", "Resource": "*", "Condition": condition}
            for number in range(statements)
        ],
    }


@pytest.fixture
def admin(api_for: Callable[..., Api], monkeypatch: pytest.MonkeyPatch) -> Api:
    """A project admin, where ten statements and a hundred values are the most."""
    monkeypatch.setattr(bounds, "MAX_STATEMENTS", 10)
    monkeypatch.setattr(bounds, "MAX_VALUES", 100)
    return api_for("project_admin")


def write(api: Api, name: str, statements: int, values: int = 1) -> str:
    """A new policy's id."""
    return str(api.post("/security/policies", {"name": name, "document": document(statements, values)}).json["policy_id"])


def attach(api: Api, policy: str, kind: str, who: str) -> Any:
    """The answer."""
    return api.post(f"/security/policies/{policy}/attach", {"principal_type": kind, "principal_id": who})


def refused(answer: Any, words: str) -> None:
    """Said with the number and a way out."""
    assert answer.status_code == 409, answer.json
    assert words in answer.json["message"]
    assert "Detach" in answer.json["message"]


def test_a_user_holds_so_much_and_no_more(admin: Api, api_for: Callable[..., Api]) -> None:
    viewer = api_for("viewer")
    six, four, one, big = write(admin, "six", 6), write(admin, "four", 4), write(admin, "one", 1), write(admin, "big", 2, 51)
    name = viewer.user.username
    assert attach(admin, six, "user", name).status_code == 200
    refused(attach(admin, big, "user", name), f"{name} would hold 108 values in statements in one project; the most is 100")
    assert attach(admin, four, "user", name).status_code == 200
    refused(attach(admin, one, "user", name), f"{name} would hold 11 statements in one project; the most is 10")
    assert attach(admin, one, "user", api_for("viewer").user.username).status_code == 200
    refused(admin("PATCH", f"/security/policies/{four}", {"document": document(5)}), "11 statements")
    assert admin("PATCH", f"/security/policies/{four}", {"document": document(3)}).status_code == 200
    assert attach(admin, one, "user", name).status_code == 200
    refused(admin.post(f"/security/policies/{four}/restore", {"number": 1}), "11 statements")
    assert admin.get(f"/security/policies/{four}").json["document"] == document(3)


def test_what_groups_give_counts(admin: Api, api_for: Callable[..., Api]) -> None:
    viewer = api_for("viewer")
    six, five = write(admin, "six", 6), write(admin, "five", 5)
    group = admin.post("/security/groups", {"name": "night"}).json["group_id"]
    assert attach(admin, six, "user", viewer.user.username).status_code == 200
    assert attach(admin, five, "group", "night").status_code == 200
    refused(admin.post(f"/security/groups/{group}/add-member", {"user": viewer.user.username}), "11 statements")
    refused(attach(admin, six, "group", "night"), "night would hold 11 statements")
    day = admin.post("/security/groups", {"name": "day"}).json["group_id"]
    assert admin.post(f"/security/groups/{day}/add-member", {"user": viewer.user.username}).status_code == 200
    refused(attach(admin, five, "group", "day"), f"{viewer.user.username} would hold 11 statements")
    assert attach(admin, six, "group", "day").status_code == 200, "what they hold already"


def test_a_role_holds_so_much_and_no_more(admin: Api) -> None:
    six, five, four = write(admin, "six", 6), write(admin, "five", 5), write(admin, "four", 4)
    refused(admin.post("/security/roles", {"name": "ops", "permission_policies": [six, five]}), "ops would hold 11 statements")
    role = admin.post("/security/roles", {"name": "ops", "permission_policies": [six, four]}).json["role_id"]
    refused(admin("PATCH", f"/security/roles/{role}", {"permission_policies": [six, five]}), "ops would hold 11 statements")
    assert admin("PATCH", f"/security/roles/{role}", {"permission_policies": [five, four]}).status_code == 200
    refused(attach(admin, six, "role", "ops"), "ops would hold 15 statements")
