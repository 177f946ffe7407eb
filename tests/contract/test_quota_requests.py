"""Requests for higher limits: who asks, who decides, once; and the alerts that tell."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import select, update
from sqlalchemy.orm import Session, sessionmaker

from portal.compute.key_pairs import key_pair_create
from portal.identity.models import User
from portal.identity.service_accounts import service_account_create
from portal.kernel.alerts import Alert
from portal.kernel.audit_verify import verify
from portal.kernel.context import Context
from portal.kernel.db import transaction
from portal.kernel.errors import Conflict, Forbidden, InvalidRequest, NotFound, StateConflict
from portal.kernel.events import Event
from portal.kernel.limits import quota_update, user_quota_update
from portal.kernel.operations import run
from portal.kernel.quota import Quota
from portal.kernel.quota_requests import (
    QuotaRequest,
    RequestDecision,
    RequestsQuery,
    quota_request_create,
    quota_request_decide,
    quota_request_find,
    quota_request_withdraw,
    quota_requests,
    waiting,
)
from tests.support.effects import entries_since, last_seq, rows_of
from tests.support.people import People
from tests.support.racing import race
from tests.support.web import Api

YES, NO = RequestDecision(approve=True), RequestDecision(approve=False)


@pytest.fixture
def asker(people: People) -> Context:
    """A developer, who may ask and not decide."""
    return people.context(people.user("developer"))


@pytest.fixture
def boss(people: People) -> Context:
    """An administrator of the platform, who decides."""
    return people.context(people.user("platform_admin"))


def ask(ctx: Context, limit: int = 500, dimension: str = "cpus") -> QuotaRequest:
    return quota_request_create(ctx, ctx.project_id or "", dimension, limit=limit, reason="The shop grows.")


def listed(ctx: Context, **wanted: Any) -> list[str]:
    return [each.request.id for each in quota_requests(ctx, RequestsQuery(**wanted)).found]


def limit_of(sessions: sessionmaker[Session], project_id: str | None, dimension: str = "cpus") -> int | None:
    with sessions() as session:
        return session.get_one(Quota, (project_id, dimension)).limit


def told(sessions: sessionmaker[Session], user_id: str | None) -> list[str]:
    with sessions() as session:
        return list(session.scalars(select(Alert.title).where(Alert.user_id == user_id).order_by(Alert.created_at)))


def test_what_is_approved_is_applied_audited_and_told(asker: Context, boss: Context, database: sessionmaker[Session]) -> None:
    seq, row = last_seq(database), ask(asker)
    assert (row.state, row.limit_then, row.limit_asked, row.id[:3], limit_of(database, asker.project_id)) == ("pending", 400, 500, "qr-", 400)
    done = quota_request_decide(boss, row.id, RequestDecision(approve=True, note="Until spring."))
    assert (done.state, done.limit_granted, done.decided_by, limit_of(database, asker.project_id)) == ("approved", 500, boss.principal.user_id, 500)
    asked, limit_set, approved = entries_since(database, seq)
    assert (asked.action, asked.resource_id, asked.username) == ("core.quota.request", row.id, asker.principal.username)
    assert (limit_set.action, limit_set.details) == ("core.quota.update", {"before": {"limit": 400}, "after": {"limit": 500}, "request_id": row.id})
    assert (approved.action, approved.details["note"], approved.details["after"]) == ("core.quota.request.approved", "Until spring.", {"limit": 500})
    with database() as session:
        assert session.scalars(select(Event.type).where(Event.resource_id == row.id).order_by(Event.id)).all() == [
            "core.quota.request.requested", "core.quota.request.approved",
        ]  # fmt: skip
        (notice,) = session.scalars(select(Alert).where(Alert.user_id == asker.principal.user_id)).all()
        assert (notice.title, notice.severity, notice.is_read) == ("vCPU: your request was approved", "info", False)
        assert "The limit is 500 now. " in notice.message
        assert "Until spring." in notice.message
        assert verify(session).broken_seq is None


def test_less_may_be_granted_and_nothing_else(asker: Context, boss: Context, database: sessionmaker[Session]) -> None:
    row = ask(asker)
    before = rows_of(database)
    for limit in (400, 399, 0, -1, 501, 10**30):
        with pytest.raises(InvalidRequest, match="more than the present limit, 400, and at most what was asked, 500"):
            quota_request_decide(boss, row.id, RequestDecision(approve=True, limit=limit))
    with pytest.raises(InvalidRequest, match="note"):
        quota_request_decide(boss, row.id, RequestDecision(approve=False, note="x" * 2001))
    assert rows_of(database) == before
    assert quota_request_decide(boss, row.id, RequestDecision(approve=True, limit=450)).limit_granted == 450
    assert limit_of(database, asker.project_id) == 450


def test_what_is_denied_changes_no_limit(asker: Context, boss: Context, database: sessionmaker[Session]) -> None:
    row = quota_request_decide(boss, ask(asker).id, RequestDecision(approve=False, note="No hardware until January."))
    assert (row.state, row.limit_granted, limit_of(database, asker.project_id)) == ("denied", None, 400)
    assert told(database, asker.principal.user_id) == ["vCPU: your request was denied"]
    for again in (YES, NO):
        with pytest.raises(StateConflict, match=r"was denied by .* already"):
            quota_request_decide(boss, row.id, again)
    assert ask(asker).state == "pending"


def test_a_limit_that_was_raised_meanwhile_is_not_lowered(asker: Context, boss: Context, database: sessionmaker[Session]) -> None:
    row = ask(asker)
    boss.settings = boss.settings.model_copy(update={"quota_four_eyes": False})
    quota_update(boss, asker.project_id or "", "cpus", 600)
    with pytest.raises(Conflict, match="is 600 by now"):
        quota_request_decide(boss, row.id, YES)
    assert limit_of(database, asker.project_id) == 600


@pytest.mark.parametrize("limit", [400, 399, 0, -5, 2**53 + 1, 10**30])
def test_a_wish_must_be_for_more(asker: Context, limit: int) -> None:
    with pytest.raises(InvalidRequest) as refused:
        ask(asker, limit)
    assert "limit" in refused.value.details


@pytest.mark.parametrize("reason", ["", "  ", "x" * 2001, "a\x00b"])
def test_a_wish_needs_a_reason(asker: Context, database: sessionmaker[Session], reason: str) -> None:
    before = rows_of(database)
    with pytest.raises(InvalidRequest, match="reason"):
        quota_request_create(asker, asker.project_id or "", "cpus", limit=500, reason=reason)
    assert rows_of(database) == before


def test_one_wish_at_a_time(asker: Context, boss: Context, people: People) -> None:
    row = ask(asker)
    with pytest.raises(Conflict, match=row.id):
        ask(people.context(people.user("project_admin")))
    ask(asker, dimension="gpus")
    assert quota_request_withdraw(asker, row.id).state == "withdrawn"
    with pytest.raises(StateConflict, match="was withdrawn already"):
        quota_request_decide(boss, row.id, YES)
    with pytest.raises(StateConflict):
        quota_request_withdraw(asker, row.id)
    ask(asker)


def test_of_many_who_ask_at_once_one_does(people: People) -> None:
    contexts = [people.context(people.user("developer")) for _ in range(6)]
    given = race([lambda ctx=ctx: ask(ctx) for ctx in contexts])
    assert sum(isinstance(one, QuotaRequest) for one in given) == 1
    assert sum(isinstance(one, Conflict) for one in given) == 5, given


def test_of_many_who_decide_at_once_one_does(asker: Context, people: People, database: sessionmaker[Session]) -> None:
    row = ask(asker)
    contexts = [people.context(people.user("platform_admin")) for _ in range(6)]
    decisions = [RequestDecision(approve=True, limit=450 + n) if n % 2 else NO for n in range(6)]
    given = race([lambda ctx=ctx, d=d: quota_request_decide(ctx, row.id, d) for ctx, d in zip(contexts, decisions, strict=True)])
    (won,) = [one for one in given if isinstance(one, QuotaRequest)]
    assert sum(isinstance(one, StateConflict) for one in given) == 5, given
    assert limit_of(database, asker.project_id) == (won.limit_granted or 400)
    assert len(told(database, asker.principal.user_id)) == 1


def test_nobody_decides_their_own(boss: Context, people: People, database: sessionmaker[Session]) -> None:
    row = ask(boss)
    seq = last_seq(database)
    for decision in (YES, NO):
        with pytest.raises(Forbidden, match="QUOTA_FOUR_EYES"):
            quota_request_decide(boss, row.id, decision)
    assert [entry.status for entry in entries_since(database, seq)] == ["denied", "denied"]
    assert limit_of(database, boss.project_id) == 400
    boss.settings = boss.settings.model_copy(update={"quota_four_eyes": False})
    assert quota_request_decide(boss, row.id, YES).state == "approved"
    other = ask(boss, 600)
    assert quota_request_decide(people.context(people.user("platform_admin")), other.id, YES).state == "approved"


def test_nobody_raises_a_limit_alone(boss: Context, people: People, database: sessionmaker[Session]) -> None:
    project, seq = boss.project_id or "", last_seq(database)
    quota_update(boss, project, "cpus", 300)
    with pytest.raises(Forbidden, match=r"QUOTA_FOUR_EYES.* Ask for it at /quotas/requests/new\?dimension=cpus") as refused:
        quota_update(boss, project, "cpus", 301)
    assert refused.value.details["request_url"] == "/quotas/requests/new?dimension=cpus"
    assert quota_update(boss, project, "cpus", 300, warning_threshold=50).warning_threshold == 50
    assert [(entry.action, entry.status) for entry in entries_since(database, seq)] == [
        ("core.quota.update", status) for status in ("success", "denied", "success")
    ]  # fmt: skip
    # What one asks for, the other approves.
    quota_request_decide(people.context(people.user("platform_admin")), ask(boss).id, YES)
    assert limit_of(database, project) == 500


def test_nobody_raises_their_own_limit_alone(boss: Context, people: People) -> None:
    me, other = boss.principal.username, people.context(people.user("platform_admin"))
    user_quota_update(boss, me, "cpus", 3)
    for limit in (4, None):
        with pytest.raises(Forbidden, match="your own limit"):
            user_quota_update(boss, me, "cpus", limit)
    user_quota_update(boss, me, "cpus", 2)
    assert user_quota_update(other, me, "cpus", None).line.limit is None


def test_the_only_administrator_has_nobody_to_ask(boss: Context, database: sessionmaker[Session]) -> None:
    with database() as session, transaction(session):
        session.execute(update(User).where(User.id != boss.principal.user_id).values(platform_role=""))
    assert quota_update(boss, boss.project_id or "", "cpus", 900).limit == 900


def test_who_may_ask_see_and_decide(asker: Context, boss: Context, people: People, database: sessionmaker[Session]) -> None:
    for role in ("viewer", "auditor"):
        with pytest.raises(Forbidden):
            ask(people.context(people.user(role)))
    with pytest.raises(NotFound):
        quota_request_create(asker, people.project(), "cpus", limit=500, reason="x")
    with pytest.raises(NotFound):
        ask(asker, dimension="bananas")
    row = ask(asker)
    elsewhere = people.project()
    stranger = people.context(people.user("project_admin", elsewhere), elsewhere)
    for call in (
        lambda: quota_request_find(stranger, row.id),
        lambda: quota_request_decide(stranger, row.id, YES),
        lambda: quota_request_withdraw(stranger, row.id),
    ):
        with pytest.raises(NotFound):
            call()
    colleague = people.context(people.user("project_admin"))
    assert listed(stranger) == []
    assert listed(colleague) == [row.id]
    for call in (
        lambda: quota_request_decide(colleague, row.id, YES),
        lambda: quota_request_decide(asker, row.id, YES),
        lambda: quota_request_withdraw(colleague, row.id),
    ):
        with pytest.raises(Forbidden):
            call()
    assert (boss.db.scalar(select(waiting(boss))), waiting(asker), waiting(colleague)) == (1, None, None)
    with database() as session:
        assert session.get_one(QuotaRequest, row.id).state == "pending"


def test_whoever_left_the_project_still_sees_their_own(people: People, boss: Context) -> None:
    user, project = people.user("developer"), people.project()
    member = people.context(people.user("developer", project), project)
    row = ask(member)
    outsider = people.context(user)
    with pytest.raises(NotFound):
        quota_request_find(outsider, row.id)
    member.principal = replace(member.principal, grants=())
    assert listed(member) == [row.id]
    assert quota_request_decide(boss, row.id, NO).state == "denied"


def test_decisions_are_listed_by_their_moment(people: People, asker: Context, boss: Context) -> None:
    """However many were asked for since: what was asked first and decided last comes first."""
    old, *others = [ask(asker, dimension=name) for name in ("cpus", "gpus", "images", "instances")]
    for row in (*others, old):
        quota_request_decide(boss, row.id, YES if row is old else NO)
    for _ in range(4):
        ask(people.context(people.user("developer", elsewhere := people.project()), elsewhere))
    assert listed(boss, states=("approved", "denied"), to_decide=True, limit=2) == [old.id, others[-1].id]
    assert listed(boss, states=("denied",)) == [row.id for row in reversed(others)]


@pytest.mark.parametrize("states", [(), ("pending",), ("denied",)])
def test_every_request_is_reached_by_pages(people: People, boss: Context, states: tuple[str, ...]) -> None:
    rows = [ask(people.context(people.user("developer", project), project)) for project in (people.project() for _ in range(5))]
    if "denied" in states:
        rows = [quota_request_decide(boss, row.id, NO) for row in rows]
    found: list[str] = []
    cursor = ""
    while not found or cursor:
        page = quota_requests(boss, RequestsQuery(states, cursor=cursor, limit=2))
        found += [each.request.id for each in page.found]
        cursor = page.next_cursor
        boss.db.rollback()
    # What waits longest is the first to be decided; everything else is newest first.
    assert found == [row.id for row in (rows if states == ("pending",) else reversed(rows))]
    for wrong in ("x", "2026-01-01~a", "~"):
        with pytest.raises(InvalidRequest, match="cursor"):
            quota_requests(boss, RequestsQuery(states, cursor=wrong))


# -- through the API -------------------------------------------------------------------------------------------------------------------------


def test_the_whole_way_through_the_api(api_for: Callable[..., Api], people: People) -> None:
    api, boss = api_for("developer"), api_for("platform_admin")
    made = api.post("/quota-requests", {"resource_type": "cpus", "limit": 500, "reason": "More."})
    assert (made.status_code, made.json["status"], made.json["limit_then"]) == (201, "pending", 400)
    one = f"/quota-requests/{made.json['request_id']}"
    assert api.get(one).json == made.json
    assert [each["id"] for each in boss.get("/quota-requests?state=pending").json["results"]] == [made.json["id"]]
    assert boss.get("/quota-requests?state=nonsense").status_code == 400
    api.post("/quota-requests", {"resource_type": "gpus", "limit": 50, "reason": "More."})
    first = boss.get("/quota-requests?limit=1").json
    second = boss("GET", first["next"].partition("/api/v1")[2]).json
    assert ([each["resource_type"] for page in (first, second) for each in page["results"]], second["next"]) == (["gpus", "cpus"], None)
    assert api.post(f"{one}/decide", {"decision": "approve"}).status_code == 403
    assert boss.post(f"{one}/decide", {"decision": "perhaps"}).status_code == 400
    assert boss.post(f"{one}/decide", {"decision": "deny", "limit": 450}).status_code == 400
    done = boss.post(f"{one}/decide", {"decision": "approve", "limit": 450, "note": "Less will do."})
    assert (done.status_code, done.json["status"], done.json["limit_granted"]) == (200, "approved", 450)
    assert boss.post(f"{one}/decide", {"decision": "deny"}).status_code == 409
    assert api.post(f"{one}/withdraw").status_code == 409
    assert api.get("/quotas/cpus").json["limit"] == 450
    (alert,) = api.get("/alerts?is_read=false").json["results"]
    assert (alert["resource_id"], alert["severity"], alert["title"]) == (made.json["id"], "info", "vCPU: your request was approved")
    assert "450 now; you asked for 500" in alert["message"]


def test_alerts_are_read_and_dismissed_by_their_user_alone(api_for: Callable[..., Api], people: People) -> None:
    api, other, boss = api_for("developer"), api_for("project_admin"), api_for("platform_admin")
    assert boss("PUT", "/quotas/key_pairs", {"limit": 1, "warning_threshold": 100}).status_code == 200
    run(people.context(api.user), key_pair_create, None, {"name": "k"})
    found = api.get("/alerts").json["results"]
    assert {(each["severity"], each["is_read"]) for each in found} == {("critical", False), ("warning", False)}
    assert api.get("/alerts?severity=critical").json["count"] == 1
    assert api.get("/alerts?severity=loud").status_code == 400
    assert other.get("/alerts").json["count"] == 0
    one = f"/alerts/{found[0]['alert_id']}"
    assert (other.post(f"{one}/read").status_code, other("DELETE", one).status_code) == (404, 404)
    assert api.post(f"{one}/read").json["is_read"] is True
    assert api.get("/alerts?is_read=false").json["count"] == 1
    assert (api.post("/alerts/read-all").json, api.post("/alerts/read-all").json) == ({"count": 1}, {"count": 0})
    assert (api("DELETE", one).status_code, api("DELETE", one).status_code, api.get("/alerts").json["count"]) == (204, 404, 1)


def test_limits_of_users_through_the_api(api_for: Callable[..., Api]) -> None:
    api, boss = api_for("developer"), api_for("platform_admin")
    path = f"/quotas/{api.user.id}/key_pairs"
    assert api("PUT", path, {"limit": 1}).status_code == 403
    done = boss("PUT", path, {"limit": 1, "warning_threshold": 50})
    assert (done.status_code, done.json["limit"], done.json["warning_threshold"], done.json["username"]) == (200, 1, 50, api.user.username)
    mine = {each["resource_type"]: each["limit"] for each in api.get(f"/quotas?user_id={api.user.id}").json["results"]}
    assert (mine["key_pairs"], mine["cpus"]) == (1, None)
    assert api.get(f"/quotas?user_id={boss.user.id}").status_code == 404
    assert api.post("/compute/key-pairs", {"name": "a"}).status_code == 201
    refused = api.post("/compute/key-pairs", {"name": "b"})
    assert (refused.status_code, refused.json["error"], refused.json["details"]["scope"]) == (429, "QUOTA_EXCEEDED", "user")
    for body in ({}, {"limit": "1"}, {"limit": True}, {"limit": 1, "warning_threshold": 0}, {"limit": 1, "more": 1}):
        assert boss("PUT", path, body).status_code == 400, body
    assert boss("PUT", path, {"limit": None}).json["limit"] is None
    assert api.post("/compute/key-pairs", {"name": "b"}).status_code == 201


def test_a_service_account_asks_for_nothing_where_two_have_to_agree(people: People, database: sessionmaker[Session]) -> None:
    # Whoever made the account would decide what it asks for: one person.
    made = service_account_create(people.context(people.user("platform_admin")), name="robot", role="developer")
    with database() as session:
        robot = session.get_one(User, made.user_id)
    ctx = people.context(robot)
    ctx.settings = ctx.settings.model_copy(update={"quota_four_eyes": True})
    with pytest.raises(Forbidden, match="two people"):
        ask(ctx)
    ctx.settings = ctx.settings.model_copy(update={"quota_four_eyes": False})
    assert ask(ctx).state == "pending"
