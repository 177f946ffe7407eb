"""Limits of users across projects, warnings at the threshold and at the limit, and what is reserved for work under way."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from sqlalchemy import select, update
from sqlalchemy.orm import Session, sessionmaker

from portal.compute.instances import instance_create, instance_resize, instance_terminate
from portal.compute.key_pairs import key_pair_create, key_pair_delete
from portal.engines.ports import EngineRefused
from portal.identity.models import User
from portal.identity.tokens import token_create
from portal.kernel import quota
from portal.kernel.context import Context
from portal.kernel.db import transaction
from portal.kernel.declare import Outcome
from portal.kernel.errors import Forbidden, InvalidRequest, NotFound, QuotaExceeded
from portal.kernel.estimate import estimate_create
from portal.kernel.events import Event
from portal.kernel.limits import QuotaLine, own_limits, quota_lines, quota_update, user_limits, user_lines, user_quota_update
from portal.kernel.operations import run
from portal.kernel.quota import UserQuota, recount, recount_users
from tests.support.effects import entries_since, last_seq, rows_of
from tests.support.people import People
from tests.support.racing import race
from tests.support.scenarios import TINY, Stage, stopped_instance

CREATE = {"flavor": "t3-micro", "image": TINY}


def told(sessions: sessionmaker[Session]) -> list[tuple[str, str, object, object]]:
    """(kind, dimension, used, limit) of every event about quotas, oldest first."""
    with sessions() as session:
        rows: Sequence[Event] = session.scalars(select(Event).where(Event.type.startswith("core.quota.")).order_by(Event.id)).all()
        return [(row.type.removeprefix("core.quota."), row.resource_name, row.payload["used"], row.payload["limit"]) for row in rows]


def line(ctx: Context, dimension: str) -> QuotaLine:
    ctx.db.rollback()
    return next(each for each in quota_lines(ctx, ctx.project_id or "") if each.dimension == dimension)


def owned(sessions: sessionmaker[Session], user_id: str) -> dict[str, int]:
    with sessions() as session:
        rows = session.scalars(select(UserQuota).where(UserQuota.user_id == user_id)).all()
        return {row.dimension: row.used for row in rows if row.used}


def as_owner(people: People, user: User, project_id: str) -> Context:
    """The user in a project, whatever they are there."""
    ctx = people.context(user, project_id)
    ctx.principal = replace(ctx.principal, is_system=True)
    return ctx


# -- warnings --------------------------------------------------------------------------------------------------------------------------------


def test_each_crossing_is_told_once(people: People, database: sessionmaker[Session]) -> None:
    boss, ctx = people.context(people.user("platform_admin")), people.context(people.user("developer"))
    quota_update(boss, ctx.project_id or "", "key_pairs", 5)
    rows = [run(ctx, key_pair_create, None, {"name": f"k{n}"}).row for n in range(3)]
    assert (told(database), line(ctx, "key_pairs").tone) == ([], "")
    rows.append(run(ctx, key_pair_create, None, {"name": "k3"}).row)
    assert (told(database), line(ctx, "key_pairs").tone) == ([("warning", "key_pairs", 4, 5)], "warn")
    run(ctx, key_pair_create, None, {"name": "k4"})
    assert told(database)[1:] == [("exhausted", "key_pairs", 5, 5)]
    assert line(ctx, "key_pairs").tone == "bad"
    with pytest.raises(QuotaExceeded):
        run(ctx, key_pair_create, None, {"name": "k5"})
    assert len(told(database)) == 2
    for row in rows[:2]:
        run(ctx, key_pair_delete, row.id)
    assert (len(told(database)), line(ctx, "key_pairs").tone) == (2, "")
    run(ctx, key_pair_create, None, {"name": "again"})
    assert told(database)[2:] == [("warning", "key_pairs", 4, 5)]


def test_one_creation_may_cross_both_and_a_lowered_limit_crosses_too(people: People, database: sessionmaker[Session]) -> None:
    boss, ctx = people.context(people.user("platform_admin")), people.context(people.user("developer"))
    quota_update(boss, ctx.project_id or "", "instances", 2)
    run(ctx, instance_create, None, {"name": "web", "count": 2, **CREATE})
    assert told(database) == [("warning", "instances", 2, 2), ("exhausted", "instances", 2, 2)]
    before = len(told(database))
    quota_update(boss, ctx.project_id or "", "cpus", 1)
    assert told(database)[before:] == [("warning", "cpus", 2, 1), ("exhausted", "cpus", 2, 1)]
    quota_update(boss, ctx.project_id or "", "cpus", 0)
    assert len(told(database)) == before + 2


def test_the_threshold_is_changed_per_quota(people: People, database: sessionmaker[Session]) -> None:
    boss = people.context(people.user("platform_admin"))
    project = boss.project_id or ""
    assert quota_update(boss, project, "key_pairs", 4, warning_threshold=50).warning_threshold == 50
    assert quota_update(boss, project, "key_pairs", 4).warning_threshold == 50
    run(boss, key_pair_create, None, {"name": "one"})
    assert told(database) == []
    run(boss, key_pair_create, None, {"name": "two"})
    assert told(database) == [("warning", "key_pairs", 2, 4)]
    for wrong in (0, 101):
        with pytest.raises(InvalidRequest) as refused:
            quota_update(boss, project, "key_pairs", 4, warning_threshold=wrong)
        assert "warning_threshold" in refused.value.details


def test_a_threshold_lowered_below_the_use_is_told(people: People, database: sessionmaker[Session]) -> None:
    boss = people.context(people.user("platform_admin"))
    quota_update(boss, boss.project_id or "", "key_pairs", 10)
    for number in range(5):
        run(boss, key_pair_create, None, {"name": f"k{number}"})
    quota_update(boss, boss.project_id or "", "key_pairs", 10, warning_threshold=50)
    assert told(database) == [("warning", "key_pairs", 5, 10)]
    quota_update(boss, boss.project_id or "", "key_pairs", 10, warning_threshold=40)
    assert len(told(database)) == 1


def test_a_refused_creation_tells_nothing(people: People, database: sessionmaker[Session]) -> None:
    """Memory would cross its threshold, storage has no room: neither happens."""
    boss, ctx = people.context(people.user("platform_admin")), people.context(people.user("developer"))
    quota_update(boss, ctx.project_id or "", "memory_gb", 1)
    quota_update(boss, ctx.project_id or "", "storage_gb", 1)
    before = rows_of(database)
    with pytest.raises(QuotaExceeded) as refused:
        run(ctx, instance_create, None, {"name": "web", **CREATE})
    assert refused.value.details["request_url"] == "/quotas/requests/new?dimension=storage_gb"
    assert "/quotas/requests/new?dimension=storage_gb" in refused.value.message
    assert rows_of(database) == before


# -- users -----------------------------------------------------------------------------------------------------------------------------------


def test_a_user_is_limited_across_projects(people: People, database: sessionmaker[Session]) -> None:
    boss, user, other = people.context(people.user("platform_admin")), people.user("developer"), people.project()
    here = people.context(user)
    elsewhere = as_owner(people, user, other)
    first = run(here, key_pair_create, None, {"name": "k1"}).row
    assert user_quota_update(boss, user.username, "key_pairs", 2).line.used == 1
    run(elsewhere, key_pair_create, None, {"name": "k2"})
    with pytest.raises(QuotaExceeded, match="Your own limit for key_pairs: 2 of 2 used, 1 more requested") as refused:
        run(here, key_pair_create, None, {"name": "k3"})
    assert refused.value.details == {"dimension": "key_pairs", "limit": 2, "used": 2, "requested": 1, "scope": "user"}
    assert isinstance(estimate_create(here, key_pair_create, {"name": "k3"}).problem, QuotaExceeded)
    # Nobody else is concerned, and what the project counted for the refused one went back.
    run(people.context(people.user("developer")), key_pair_create, None, {"name": "k3"})
    assert line(here, "key_pairs").used == 2
    run(here, key_pair_delete, first.id)
    run(here, key_pair_create, None, {"name": "k4"})
    assert owned(database, user.id) == {"key_pairs": 2}
    with database() as session, transaction(session):
        assert (recount(session), recount_users(session)) == ([], [])


def test_no_limit_is_no_limit_and_still_counted(people: People, database: sessionmaker[Session]) -> None:
    user, boss = people.user("developer"), people.context(people.user("platform_admin"))
    ctx = people.context(user)
    run(ctx, instance_create, None, {"name": "web", **CREATE})
    network = {"networks": 1, "subnets": 1, "security_groups": 1, "network_interfaces": 1}
    root = {"volumes": 1, "volume_gb": 8}
    assert owned(database, user.id) == {"instances": 1, "cpus": 1, "memory_gb": 1, "storage_gb": 8, **network, **root}
    assert own_limits(ctx) == []
    assert user_quota_update(boss, user.id, "cpus", 1).line.used == 1
    ctx.db.rollback()
    assert [each.dimension for each in own_limits(ctx)] == ["cpus"]
    with pytest.raises(QuotaExceeded):
        run(ctx, instance_create, None, {"name": "web-2", **CREATE})
    user_quota_update(boss, user.id, "cpus", None)
    run(ctx, instance_create, None, {"name": "web-2", **CREATE})


def test_users_are_warned_of_their_own_limits(people: People, database: sessionmaker[Session]) -> None:
    user, boss = people.user("developer"), people.context(people.user("platform_admin"))
    user_quota_update(boss, user.id, "key_pairs", 1)
    run(people.context(user), key_pair_create, None, {"name": "k"})
    with database() as session:
        rows = session.scalars(select(Event).where(Event.type.startswith("core.quota."))).all()
        assert [(row.type, row.resource_id, row.project_id) for row in rows] == [
            ("core.quota.warning", user.id, None), ("core.quota.exhausted", user.id, None),
        ]  # fmt: skip


def test_who_may_limit_users(people: People, database: sessionmaker[Session]) -> None:
    user, boss = people.user("developer"), people.context(people.user("platform_admin"))
    admin, seq = people.context(people.user("project_admin")), last_seq(database)
    for name in (user.id, user.username, "nobody-there"):
        with pytest.raises(Forbidden):
            user_quota_update(admin, name, "cpus", 1)
        with pytest.raises(NotFound):
            user_lines(admin, name)
    assert user_limits(admin) == []
    with pytest.raises(NotFound):
        user_quota_update(boss, "nobody-there", "cpus", 1)
    with pytest.raises(NotFound):
        user_quota_update(boss, user.id, "bananas", 1)
    with pytest.raises(InvalidRequest):
        user_quota_update(boss, user.id, "cpus", -1)
    user_quota_update(boss, user.id, "cpus", 3)
    assert [(each.username, each.line.dimension, each.line.limit) for each in user_limits(boss)] == [(user.username, "cpus", 3)]
    assert next(each for each in user_lines(people.context(user), user.username) if each.dimension == "cpus").limit == 3
    *denied, done = entries_since(database, seq)
    assert ({entry.status for entry in denied}, len(denied)) == ({"denied"}, 3)
    assert (done.resource_id, done.details["before"], done.details["after"]) == (user.id, {"limit": None}, {"limit": 3})


def test_the_last_units_of_a_user_go_to_as_many_as_there_are(people: People, database: sessionmaker[Session]) -> None:
    user, boss, other = people.user("developer"), people.context(people.user("platform_admin")), people.project()
    user_quota_update(boss, user.id, "key_pairs", 3)
    contexts = [as_owner(people, user, project) for project in (people.project_id, other) * 4]
    given = race([lambda ctx=ctx, n=n: run(ctx, key_pair_create, None, {"name": f"k{n}"}) for n, ctx in enumerate(contexts)])
    assert sum(isinstance(one, Outcome) for one in given) == 3
    assert sum(isinstance(one, QuotaExceeded) for one in given) == 5, given
    assert owned(database, user.id) == {"key_pairs": 3}
    with database() as session, transaction(session):
        assert (recount(session), recount_users(session)) == ([], [])


def test_a_recount_repairs_users_too(people: People, database: sessionmaker[Session]) -> None:
    user = people.user("developer")
    run(people.context(user), key_pair_create, None, {"name": "k"})
    with database() as session, transaction(session):
        session.execute(update(UserQuota).where(UserQuota.user_id == user.id).values(used=7))
        assert recount_users(session) == [(user.id, "key_pairs", 7, 1)]
        assert recount_users(session) == []
    assert owned(database, user.id) == {"key_pairs": 1}


def test_what_changes_hands_is_charged_to_its_new_owner(people: People, database: sessionmaker[Session]) -> None:
    one, two = people.user("developer"), people.user("developer")
    with database() as session, transaction(session):
        quota.reserve(session, people.project_id, "thing", {"cpus": 5}, owner_id=one.id)
        quota.reserve(session, people.project_id, "thing", {"cpus": 4}, owner_id=two.id)
    assert (owned(database, one.id), owned(database, two.id)) == ({}, {"cpus": 4})
    with database() as session, transaction(session):
        quota.release(session, "thing", "other")
        assert (recount(session), recount_users(session)) == ([], [])
    assert owned(database, two.id) == {}


def test_keys_are_limited_for_each_user(people: People) -> None:
    user, boss = people.user("developer"), people.context(people.user("platform_admin"))
    ctx = people.context(user)
    keys = next(each for each in user_lines(ctx, user.id) if each.dimension == "api_keys")
    assert (keys.limit, keys.used) == (20, 0)
    assert user_quota_update(boss, user.id, "api_keys", 1).line.limit == 1
    token_create(ctx, user, "one")
    with pytest.raises(QuotaExceeded, match="Your own limit for api_keys: 1 of 1 used") as refused:
        token_create(ctx, user, "two")
    assert refused.value.details["scope"] == "user"
    boss.db.rollback()
    assert [(each.line.dimension, each.line.used, each.line.limit) for each in user_limits(boss)] == [("api_keys", 1, 1)]
    assert user_quota_update(boss, user.id, "api_keys", None).line.limit == 20
    # Nobody raises their own beyond what everybody has.
    with pytest.raises(Forbidden, match="your own limit"):
        user_quota_update(boss, boss.principal.username, "api_keys", 21)
    assert user_quota_update(boss, boss.principal.username, "api_keys", 19).line.limit == 19
    # Projects have none of it.
    with pytest.raises(NotFound):
        quota_update(boss, boss.project_id or "", "api_keys", 1)


# -- reserved --------------------------------------------------------------------------------------------------------------------------------


def test_what_is_being_made_is_reserved_until_it_is_there(stage: Stage) -> None:
    outcome = run(stage.ctx, instance_create, None, {"name": "web", **CREATE})
    assert (line(stage.ctx, "cpus").used, line(stage.ctx, "cpus").reserved) == (1, 1)
    stage.worker.drain()
    assert (line(stage.ctx, "cpus").used, line(stage.ctx, "cpus").reserved) == (1, 0)
    run(stage.ctx, key_pair_create, None, {"name": "k"})
    assert line(stage.ctx, "key_pairs").reserved == 0
    run(stage.ctx, instance_terminate, outcome.row.id)
    stage.worker.drain()
    assert line(stage.ctx, "cpus").used == 0


def test_a_change_reserves_what_it_needs_more(stage: Stage) -> None:
    row = stopped_instance(stage)
    run(stage.ctx, instance_resize, row.id, {"flavor": "t3-xlarge"})
    assert (line(stage.ctx, "cpus").used, line(stage.ctx, "cpus").reserved) == (4, 3)
    stage.worker.drain()
    assert (line(stage.ctx, "cpus").used, line(stage.ctx, "cpus").reserved) == (4, 0)
    run(stage.ctx, instance_resize, row.id, {"flavor": "t3-micro"})
    assert (line(stage.ctx, "cpus").used, line(stage.ctx, "cpus").reserved) == (4, 0)
    stage.worker.drain()
    stage.engine.fail_next("ensure_defined", EngineRefused("no"))
    run(stage.ctx, instance_resize, row.id, {"flavor": "t3-xlarge"})
    assert line(stage.ctx, "cpus").reserved == 3
    stage.worker.drain()
    assert (line(stage.ctx, "cpus").used, line(stage.ctx, "cpus").reserved) == (1, 0)
