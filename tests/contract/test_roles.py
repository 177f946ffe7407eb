"""Roles: who assumes one, what its session may do, and everything that ends it."""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import select, update
from sqlalchemy.orm import Session, sessionmaker

from portal.identity.accounts import session_revoke
from portal.identity.models import ApiToken
from portal.identity.tokens import token_user
from portal.identity.users import user_sign_out, user_update
from portal.kernel.audit import AuditEntry
from portal.kernel.db import now
from portal.security.role_sessions import role_assume
from tests.contract.test_iam import allow, attach, write
from tests.support.draining import TestWorker
from tests.support.people import People
from tests.support.web import Api

SMALL = {"flavor": "t3-micro", "image": "atonix-tiny"}


@pytest.fixture
def admin(api_for: Callable[..., Api]) -> Api:
    """A project admin."""
    return api_for("project_admin")


@pytest.fixture
def viewer(api_for: Callable[..., Api]) -> Api:
    """Somebody who may look."""
    return api_for("viewer")


def trust(*principals: tuple[str, str]) -> dict[str, Any]:
    """A trust policy."""
    return {"principals": [{"type": kind, "id": named} for kind, named in principals]}


def new_role(admin: Api, name: str, *actions: str, trusts: dict[str, Any] | None = None, **more: Any) -> str:
    """A role that may do some actions; its id."""
    policies = [write(admin, f"{name}-may", allow(*actions))] if actions else []
    made = admin.post("/security/roles", {"name": name, "permission_policies": policies, "trust_policy": trusts or {}, **more})
    assert made.status_code == 201, made.json
    return str(made.json["role_id"])


def assume(api: Api, role: str, name: str = "night shift", **more: Any) -> Api:
    """A client that acts in a role."""
    made = api.post(f"/security/roles/{role}/assume", {"session_name": name, **more})
    assert made.status_code == 201, made.json
    return Api(api.client, api.user, made.json["access_token"])


def is_over(session: Api) -> bool:
    """Whether a session is worth nothing any more."""
    return session.get("/auth/me").status_code == 401


def test_whoever_is_trusted_acts_in_the_role_and_nothing_else(admin: Api, api_for: Callable[..., Api], worker: TestWorker) -> None:
    developer = api_for("developer")
    role = new_role(admin, "operator", "compute.instance.read", "compute.instance.stop", trusts=trust(("user", developer.user.username)))
    web = admin.post("/compute/instances", {"name": "web-1", **SMALL}).json["instance_id"]
    worker.drain()
    made = developer.post(f"/security/roles/{role}/assume", {"session_name": "night shift"})
    assert made.status_code == 201, made.json
    assert (made.json["token_type"], made.json["session_name"], 3590 < made.json["expires_in"] <= 3600) == ("Token", "night shift", True)
    acting = Api(developer.client, developer.user, made.json["access_token"])
    assert acting.post(f"/compute/instances/{web}/stop").status_code == 202
    # A developer makes key pairs; the role does not.
    assert developer.post("/compute/key-pairs", {"name": "own"}).status_code == 201
    assert acting.post("/compute/key-pairs", {"name": "mine"}).status_code == 403
    assert acting.get("/compute/key-pairs").json["count"] == 0
    me = acting.get("/auth/me").json
    assert (me["memberships"], me["assumed_role"]["role_name"], me["assumed_role"]["session_name"]) == ([], "operator", "night shift")


def test_a_role_does_not_reach_what_its_user_may_on_the_platform(admin: Api, api_for: Callable[..., Api], people: People) -> None:
    chief = api_for("platform_admin")
    elsewhere = people.project()
    admin.post(f"/projects/{people.project_id}/members", {"username": chief.user.username, "role": "viewer"})
    acting = assume(chief, new_role(admin, "reader", "compute.*.read", trusts=trust(("user", chief.user.id))))
    assert acting.get("/users").status_code == 403
    assert acting.get("/compute/instances", headers={"X-Project": elsewhere}).status_code == 404
    assert acting.get("/compute/instances", headers={"X-Project": people.project_id}).status_code == 200
    assert acting.get("/auth/me").json["current_project_id"] == people.project_id
    assert [row["id"] for row in acting.get("/projects").json["results"]] == []


def test_a_policy_of_the_platform_counts_in_the_roles_project_alone(api_for: Callable[..., Api], people: People) -> None:
    chief, viewer = api_for("platform_admin"), api_for("viewer")
    foreign = api_for("project_admin", people.project())
    assert foreign.post("/compute/key-pairs", {"name": "theirs"}).status_code == 201
    role = new_role(chief, "everywhere", trusts=trust(("user", viewer.user.id)))
    attach(chief, write(chief, "all-keys", allow("compute.key_pair.*"), whole_platform=True), role, "role")
    acting = assume(viewer, role)
    assert acting.post("/compute/key-pairs", {"name": "ours"}).status_code == 201
    listed = acting.get("/compute/key-pairs?all_projects=true").json["results"]
    assert [row["name"] for row in listed] == ["ours"]


def test_the_boundary_of_the_project_limits_the_role(admin: Api, viewer: Api, api_for: Callable[..., Api], people: People) -> None:
    acting = assume(viewer, new_role(admin, "keys", "compute.key_pair.*", trusts=trust(("user", viewer.user.id))))
    assert acting.post("/compute/key-pairs", {"name": "one"}).status_code == 201
    chief = api_for("platform_admin")
    policy = write(chief, "no-keys", allow("compute.instance.*", "security.role.*"))
    assert chief("PUT", f"/projects/{people.project_id}/boundary", {"policy": policy}).status_code == 200
    refused = acting.post("/compute/key-pairs", {"name": "two"})
    assert (refused.status_code, "boundary" in refused.json["message"]) == (403, True)


def test_a_second_factor_is_the_one_of_the_session_that_assumed(admin: Api, viewer: Api, people: People) -> None:
    document = allow("compute.key_pair.create", Bool={"principal.mfa": "true"})
    role = new_role(admin, "careful", trusts=trust(("user", viewer.user.id)))
    attach(admin, write(admin, "with-factor", document), role, "role")
    assert assume(viewer, role).post("/compute/key-pairs", {"name": "one"}).status_code == 403
    ctx = people.signed_in(viewer.user)
    ctx.principal = replace(ctx.principal, mfa=True)
    secret, _, _ = role_assume(ctx, role, "with factor")
    found = token_user(people.context(None).db, secret, source_ip="")
    assert found is not None
    assert found.principal.mfa
    assert Api(viewer.client, viewer.user, secret).post("/compute/key-pairs", {"name": "one"}).status_code == 201


def test_entries_name_user_role_and_session(admin: Api, viewer: Api, all_entries: Callable[[str], list[AuditEntry]]) -> None:
    role = new_role(admin, "keys", "compute.key_pair.*", trusts=trust(("user", viewer.user.id)))
    acting = assume(viewer, role, "rotate keys")
    assert acting.post("/compute/key-pairs", {"name": "one"}).status_code == 201
    entry = all_entries("compute.key_pair.create")[-1]
    assert (entry.username, entry.credential.partition(":")[0]) == (viewer.user.username, "role")
    assert entry.details["assumed_role"] == {"role_id": role, "name": "keys", "session_name": "rotate keys"}
    begun = all_entries("security.role.assume")[-1]
    assert (begun.resource_id, begun.details["session_name"], begun.details["duration_s"]) == (role, "rotate keys", 3600)


@pytest.fixture
def all_entries(all_sessions: sessionmaker[Session]) -> Callable[[str], list[AuditEntry]]:
    """Entries of an action, the oldest first."""

    def entries(action: str) -> list[AuditEntry]:
        with all_sessions() as session:
            return list(session.scalars(select(AuditEntry).where(AuditEntry.action == action).order_by(AuditEntry.seq)))

    return entries


# -- what ends a session ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def role(admin: Api, viewer: Api) -> str:
    """A role that trusts the viewer."""
    return new_role(admin, "keys", "compute.key_pair.*", trusts=trust(("user", viewer.user.id)))


def test_it_expires(viewer: Api, role: str, all_sessions: sessionmaker[Session]) -> None:
    acting = assume(viewer, role, duration=900)
    assert not is_over(acting)
    with all_sessions() as session:
        session.execute(update(ApiToken).where(ApiToken.role_id == role).values(expires_at=now() - timedelta(seconds=1)))
        session.commit()
    assert is_over(acting)


def test_withdrawn_trust_ends_it(admin: Api, viewer: Api, role: str) -> None:
    acting = assume(viewer, role)
    assert admin("PATCH", f"/security/roles/{role}", {"trust_policy": {"principals": []}}).status_code == 200
    assert is_over(acting)
    assert viewer.post(f"/security/roles/{role}/assume", {"session_name": "again"}).status_code == 403
    assert admin.get(f"/security/roles/{role}/sessions").json["results"] == []
    assert admin("DELETE", f"/security/roles/{role}").status_code == 204


def test_a_group_is_trusted_as_long_as_one_is_in_it(admin: Api, viewer: Api) -> None:
    group = admin.post("/security/groups", {"name": "ops"}).json["group_id"]
    role = new_role(admin, "keys", "compute.key_pair.*", trusts=trust(("group", "ops")))
    assert viewer.post(f"/security/roles/{role}/assume", {"session_name": "early"}).status_code == 403
    assert admin.post(f"/security/groups/{group}/members", {"user_id": viewer.user.id}).status_code == 200
    acting = assume(viewer, role)
    assert acting.post("/compute/key-pairs", {"name": "one"}).status_code == 201
    assert admin("DELETE", f"/security/groups/{group}/members/{viewer.user.id}").status_code == 204
    assert is_over(acting)


def test_whoever_leaves_the_project_is_trusted_no_more(admin: Api, viewer: Api, role: str, people: People) -> None:
    acting = assume(viewer, role)
    assert admin("DELETE", f"/projects/{people.project_id}/members/{viewer.user.id}").status_code == 204
    assert is_over(acting)
    # Nor when they come back.
    admin.post(f"/projects/{people.project_id}/members", {"username": viewer.user.username, "role": "viewer"})
    assert viewer.get(f"/security/roles/{role}").json["trust_policy"] == {"principals": []}
    assert is_over(acting)


def test_a_disabled_user_acts_in_nothing(viewer: Api, role: str, people: People) -> None:
    acting = assume(viewer, role)
    user_update(people.context(people.admin()), viewer.user.id, is_active=False)
    assert is_over(acting)


def test_signing_out_everywhere_ends_it(viewer: Api, role: str, people: People) -> None:
    acting = assume(viewer, role)
    user_sign_out(people.context(people.admin()), viewer.user.id)
    assert is_over(acting)


def test_it_ends_with_the_token_that_assumed_it(viewer: Api, role: str, people: People) -> None:
    for end in ({"is_active": False}, {"scopes": ["compute:read"]}, None):
        origin = Api(viewer.client, viewer.user, people.token(viewer.user))
        acting = assume(origin, role)
        key = viewer.get("/auth/keys").json["results"][0]["id"]
        assert not is_over(acting)
        done = viewer("DELETE", f"/api/v1/api-keys/{key}") if end is None else viewer("PATCH", f"/api/v1/api-keys/{key}", end)
        assert done.status_code in {200, 204}
        assert is_over(acting)


def test_it_ends_with_the_browser_session_that_assumed_it(app: Flask, viewer: Api, role: str, people: People) -> None:
    ctx = people.signed_in(viewer.user)
    secret, _, _ = role_assume(ctx, role, "from the console")
    acting = Api(app.test_client(), viewer.user, secret)
    assert not is_over(acting)
    session_revoke(ctx, ctx.principal.credential.removeprefix("session:"))
    assert is_over(acting)


def test_deleting_the_role_is_refused_while_it_is_in_use(admin: Api, viewer: Api, role: str) -> None:
    acting = assume(viewer, role)
    refused = admin("DELETE", f"/security/roles/{role}")
    assert (refused.status_code, refused.json["details"]["sessions"]) == (409, 1)
    assert admin("DELETE", f"/security/roles/{role}", {"force": True}).status_code == 204
    assert is_over(acting)
    assert viewer.post(f"/security/roles/{role}/assume", {"session_name": "again"}).status_code == 404
    # Its policy is free again.
    policy = admin.get("/security/policies").json["results"][0]["policy_id"]
    assert admin("DELETE", f"/security/policies/{policy}").status_code == 204


def test_beginning_and_ending_are_events(admin: Api, viewer: Api, role: str) -> None:
    assume(viewer, role, "one").post("/auth/logout")
    told = [(row["type"], row["payload"].get("session_name")) for row in admin.get(f"/security/roles/{role}/events").json["results"]]
    assert told[-2:] == [("security.role.assume", "one"), ("security.role.end_session", "one")]


def test_sessions_are_listed_and_ended(admin: Api, viewer: Api, role: str, api_for: Callable[..., Api]) -> None:
    acting, second = assume(viewer, role, "one"), assume(viewer, role, "two")
    rows = admin.get(f"/security/roles/{role}/sessions").json["results"]
    assert [(row["session_name"], row["username"]) for row in rows] == [("two", viewer.user.username), ("one", viewer.user.username)]
    assert api_for("developer")("DELETE", f"/security/roles/{role}/sessions/{rows[0]['session_id']}").status_code == 403
    assert admin("DELETE", f"/security/roles/{role}/sessions/{rows[0]['session_id']}").status_code == 204
    assert (is_over(second), is_over(acting)) == (True, False)
    assert admin("DELETE", f"/security/roles/{role}/sessions/{rows[0]['session_id']}").status_code == 404
    assert acting.post("/auth/logout").status_code == 204
    assert is_over(acting)
    # They are no tokens of the user's own.
    assert [row["name"] for row in viewer.get("/auth/keys").json["results"]] == ["test"]
