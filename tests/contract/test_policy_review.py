"""What a change of a policy does to whom, before it is saved: the API, the page, and that it is true."""

from collections.abc import Callable
from typing import Any

import pytest
from flask.testing import FlaskClient
from sqlalchemy.orm import Session, sessionmaker

from portal.identity.models import User
from portal.kernel.policy_documents import VERSION
from portal.security.simulator import what_can
from tests.support.effects import rows_of
from tests.support.people import People
from tests.support.web import Api, csrf_of

START = {"Sid": "Start", "Effect": "Allow", "Action": ["compute.instance.start"], "Resource": "*"}


def document(*statements: dict[str, Any]) -> dict[str, Any]:
    return {"Version": VERSION, "Statement": list(statements)}


@pytest.fixture
def held(api: Api, people: People) -> tuple[str, User, User]:
    """A policy, with a viewer who holds it and a developer who is in a group that does."""
    policy = api.post("/security/policies", {"name": "starters", "document": document(START)}).json["id"]
    group = api.post("/security/groups", {"name": "team"}).json["id"]
    viewer, developer = people.user("viewer"), people.user("developer")
    assert api.post(f"/security/groups/{group}/members", {"user_id": developer.id}).status_code == 200
    for kind, holder in (("user", viewer.id), ("group", group)):
        assert api.post(f"/security/policies/{policy}/attach", {"principal_type": kind, "principal_id": holder}).status_code == 200
    return policy, viewer, developer


def review(api: Api, policy: str, *statements: dict[str, Any]) -> dict[str, Any]:
    answer = api.post("/security/policies/validate", {"document": document(*statements), "policy_id": policy})
    assert answer.status_code == 200, answer.json
    return answer.json


def test_who_gains_and_who_loses(api: Api, held: tuple[str, User, User], database: sessionmaker[Session]) -> None:
    policy, viewer, developer = held
    before = rows_of(database)
    found = review(
        api, policy, {**START, "Action": ["compute.instance.stop"]}, {**START, "Sid": "No", "Effect": "Deny", "Action": ["compute.image.create"]}
    )
    assert (found["is_valid"], found["warnings"], found["holders"], found["compared"]) == (True, [], 2, 2)
    effects = {each["username"]: each for each in found["effects"]}
    assert effects[viewer.username] == {
        "user_id": viewer.id, "username": viewer.username, "gained": ["compute.instance.stop"], "lost": ["compute.instance.start"], "changed": [],
    }  # fmt: skip
    # A developer may start and stop instances anyway.
    assert (effects[developer.username]["gained"], effects[developer.username]["lost"]) == ([], ["compute.image.create"])
    assert rows_of(database) == before
    assert review(api, policy, START)["effects"] == []


def test_effects_for_the_first_holders_alone_are_told_as_that(api: Api, held: tuple[str, User, User], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("portal.security.effects.MAX_HOLDERS", 1)
    found = review(api, held[0], {**START, "Action": ["compute.image.delete"]})
    assert (found["holders"], found["compared"], len(found["effects"])) == (2, 1, 1)


def test_who_can_is_answered_for_all_users_page_by_page(
    api: Api, held: tuple[str, User, User], client_for: Callable[..., FlaskClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = "/security/who-can?action=compute.instance.start"
    whole = api.get(path).json
    assert ({held[1].username, held[2].username, api.user.username} - {row["username"] for row in whole["results"]}, whole["next"]) == (set(), None)
    monkeypatch.setattr("portal.security.simulator.MAX_USERS", 1)
    page, found = api.get(path).json, []
    while page["next"]:
        found += page["results"]
        page = api.get(page["next"].partition("/api/v1")[2]).json
    assert found + page["results"] == whole["results"]
    first = client_for().get("/security/simulator?action=compute.instance.start").text
    assert "Ask about the users that follow" in first


def test_what_was_announced_is_what_happens(api: Api, held: tuple[str, User, User], people: People) -> None:
    policy, viewer, _ = held
    boss = people.context(people.user("platform_admin"))

    def allowed() -> set[str]:
        boss.db.rollback()
        return {each.action for each in what_can(boss, viewer.id) if each.allowed}

    before = allowed()
    changed = document(
        {**START, "Action": ["compute.instance.stop", "compute.key_pair.*"]}, {**START, "Sid": "No", "Effect": "Deny", "Action": "core.job.read"}
    )
    (effect,) = [each for each in review(api, policy, *changed["Statement"])["effects"] if each["user_id"] == viewer.id]
    assert api("PATCH", f"/security/policies/{policy}", {"document": changed}).status_code == 200
    after = allowed()
    assert (sorted(after - before), sorted(before - after)) == (effect["gained"], effect["lost"])
    assert "core.job.read" in effect["lost"]


def test_other_conditions_are_a_change_too(api: Api, held: tuple[str, User, User]) -> None:
    policy, viewer, _ = held
    tagged = {**START, "Condition": {"StringEquals": {"resource.tag/env": "test"}}}
    (effect,) = [each for each in review(api, policy, tagged)["effects"] if each["user_id"] == viewer.id]
    assert (effect["gained"], effect["lost"]) == ([], ["compute.instance.start"])
    assert api("PATCH", f"/security/policies/{policy}", {"document": document(tagged)}).status_code == 200
    other = {**tagged, "Condition": {"StringEquals": {"resource.tag/env": "prod"}}}
    (effect,) = [each for each in review(api, policy, other)["effects"] if each["user_id"] == viewer.id]
    assert (effect["gained"], effect["lost"], effect["changed"]) == ([], [], ["compute.instance.start"])


def test_a_condition_that_never_holds_gives_nothing(api: Api, held: tuple[str, User, User]) -> None:
    never = {**START, "Sid": "Over", "Action": ["compute.instance.*"], "Condition": {"DateLessThan": {"request.time": "2020-01-01T00:00:00Z"}}}
    found = review(api, held[0], START, never)
    assert (found["effects"], [each["path"] for each in found["warnings"]]) == ([], ["Statement[1].Condition"])


def test_a_denial_of_what_nobody_may_is_said(api: Api, held: tuple[str, User, User]) -> None:
    found = review(api, held[0], START, {**START, "Sid": "No", "Effect": "Deny", "Action": ["identity.user.create"]})
    assert [each["path"] for each in found["warnings"]] == ["Statement[1]"]
    assert "nobody who holds the policy" in found["warnings"][0]["message"]


def test_problems_are_an_answer_and_no_refusal(api: Api) -> None:
    for given, path in (
        (None, ""),
        ([], ""),
        ({"Version": "1"}, "Version"),
        (document({**START, "Action": "compute.banana"}), "Statement[0].Action"),
    ):
        found = api.post("/security/policies/validate", {"document": given}).json
        assert (found["is_valid"], found["effects"], path in [each["path"] for each in found["problems"]]) == (False, None, True), given
    assert api.post("/security/policies/validate", {"document": {}, "policy_id": "pol-none"}).status_code == 404
    assert api.post("/security/policies/validate", {"documents": {}}).status_code == 400


def test_who_may_not_ask_about_others_sees_no_effects(api_for: Callable[..., Api], held: tuple[str, User, User], people: People) -> None:
    found = review(api_for("developer"), held[0], START)
    assert (found["is_valid"], found["effects"], found["holders"]) == (True, None, 0)
    elsewhere = people.project()
    stranger = api_for("project_admin", elsewhere)
    assert stranger.post("/security/policies/validate", {"document": document(START), "policy_id": held[0]}).status_code == 404


def test_the_boundary_of_a_project_says_that_it_is_one(api_for: Callable[..., Api], api: Api, held: tuple[str, User, User], people: People) -> None:
    boss, wide = api_for("platform_admin"), document({**START, "Action": ["*:read", "*:manage"]})
    # A boundary limits who reads it, too.
    assert api("PATCH", f"/security/policies/{held[0]}", {"document": wide}).status_code == 200
    assert boss("PUT", f"/projects/{people.project_id}/boundary", {"policy": held[0]}).status_code == 200
    assert any("permission boundary of project" in each["message"] for each in review(boss, held[0], START)["warnings"])


def test_nobody_gains_what_the_boundary_of_the_project_forbids(
    api_for: Callable[..., Api], api: Api, held: tuple[str, User, User], people: People
) -> None:
    boss = api_for("platform_admin")
    most = {"Sid": "Most", "Effect": "Allow", "Action": ["compute.instance.*", "core.*", "security.*", "identity.*"], "Resource": "*"}
    bound = boss.post("/security/policies", {"name": "bound", "document": document(most), "whole_platform": True}).json["id"]
    wider = {**START, "Action": ["compute.instance.start", "compute.instance.stop", "compute.image.delete"]}
    gained = {each["username"]: each["gained"] for each in review(api, held[0], wider)["effects"]}
    assert gained[held[1].username] == ["compute.image.delete", "compute.instance.stop"]
    assert boss("PUT", f"/projects/{people.project_id}/boundary", {"policy": bound}).status_code == 200
    gained = {each["username"]: each["gained"] for each in review(api, held[0], wider)["effects"]}
    assert gained[held[1].username] == ["compute.instance.stop"]


def test_the_form_says_it_while_typing_and_without_scripts(client_for: Callable[..., FlaskClient], held: tuple[str, User, User]) -> None:
    policy, viewer, _ = held
    client = client_for("project_admin")
    form = client.get(f"/security/policies/{policy}/actions/update")
    url = f"/security/policies/check?policy={policy}"
    assert f'hx-post="{url}"' in form.text
    data = {
        "csrf_token": csrf_of(form),
        "name": "starters",
        "document": '{"Version": "2026-11-01", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}',
    }
    part = client.post(url, data=data, headers={"HX-Request": "true"})
    assert (part.status_code, "<html" in part.text, "allows every action" in part.text, viewer.username in part.text) == (200, False, True, True)
    broken = client.post(url, data={**data, "document": '{"Version": '}, headers={"HX-Request": "true"})
    assert (broken.status_code, "is no JSON" in broken.text) == (200, True)
    whole = client.post(f"/security/policies/{policy}/actions/update", data={**data, "check": "true"})
    assert (whole.status_code, "<html" in whole.text, "allows every action" in whole.text) == (200, True, True)
    fresh = client.post("/security/policies/new", data={**data, "name": "new", "check": "true"})
    assert (fresh.status_code, "allows every action" in fresh.text, "What changes for whom" in fresh.text) == (200, True, False)
    assert 'name="new"' not in client.get("/security/policies").text
