"""Quotas: exact whoever comes at once, given back once, repaired where they were wrong."""

import pytest
from sqlalchemy import select, update
from sqlalchemy.orm import Session, sessionmaker

from portal.compute.instances import instance_create, instance_resize, instance_terminate
from portal.compute.key_pairs import key_pair_create, key_pair_delete
from portal.engines.ports import EngineRefused
from portal.kernel import quota
from portal.kernel.control import job_cancel
from portal.kernel.db import transaction
from portal.kernel.declare import Outcome
from portal.kernel.errors import Forbidden, InvalidRequest, NotFound, QuotaExceeded
from portal.kernel.limits import HIGHEST, quota_lines, quota_update
from portal.kernel.operations import run
from portal.kernel.quota import DIMENSIONS, Quota, Reservation, held_by, recount, release, reserve, usage
from tests.support.effects import entries_since, last_seq, rows_of, way
from tests.support.people import People
from tests.support.racing import race
from tests.support.scenarios import TINY, Stage, assert_sound, stopped_instance

CREATE = {"flavor": "t3-micro", "image": TINY}


def limit(sessions: sessionmaker[Session], project_id: str | None, dimension: str, value: int) -> None:
    with sessions() as session, transaction(session):
        session.execute(update(Quota).where(Quota.project_id == project_id, Quota.dimension == dimension).values(limit=value))


# What the project keeps of its first instance: the default network.
NETWORK = {"networks": 1, "subnets": 1, "security_groups": 1} | {
    f"rows:networking.{name}": 1 for name in ("vpc", "subnet", "security_group", "route_table", "internet_gateway")
}


def used(sessions: sessionmaker[Session], project_id: str | None) -> dict[str, int]:
    with sessions() as session:
        return {name: figures[1] for name, figures in usage(session, project_id or "").items() if figures[1]}


@pytest.mark.parametrize("free", [1, 3])
def test_the_last_units_go_to_as_many_as_there_are(people: People, database: sessionmaker[Session], free: int) -> None:
    project = people.project_id
    run(people.context(people.user("developer")), instance_create, None, {"name": "first", **CREATE})
    limit(database, project, "instances", 1 + free)
    contexts = [people.context(people.user("developer")) for _ in range(8)]
    given = race([lambda ctx=ctx, n=n: run(ctx, instance_create, None, {"name": f"web-{n}", **CREATE}) for n, ctx in enumerate(contexts)])
    assert sum(isinstance(one, Outcome) for one in given) == free
    refused = [one for one in given if isinstance(one, QuotaExceeded)]
    assert len(refused) == 8 - free
    assert all(one.details == {"dimension": "instances", "limit": 1 + free, "used": 1 + free, "requested": 1, **way("instances")} for one in refused)
    assert used(database, project) == {
        "instances": 1 + free, "cpus": 1 + free, "memory_gb": 1 + free, "storage_gb": 8 * (1 + free), "rows:compute.instance": 1 + free,
        "network_interfaces": 1 + free, "rows:networking.network_interface": 1 + free, **NETWORK,
        "volumes": 1 + free, "volume_gb": 8 * (1 + free), "rows:storage.volume": 1 + free,
    }  # fmt: skip
    with database() as session, transaction(session):
        assert recount(session) == []


def test_the_refusal_says_limit_use_and_request(ctx: object, people: People, database: sessionmaker[Session]) -> None:
    limit(database, people.project_id, "storage_gb", 10)
    developer = people.context(people.user("developer"))
    before = rows_of(database)
    with pytest.raises(QuotaExceeded) as refused:
        run(developer, instance_create, None, {"name": "web", **CREATE, "root_volume_size_gb": 11})
    assert refused.value.details == {"dimension": "storage_gb", "limit": 10, "used": 0, "requested": 11, **way("storage_gb")}
    assert "0 of 10 used, 11 more requested" in refused.value.message
    assert rows_of(database) == before


def test_what_is_deleted_is_given_back_once(stage: Stage, database: sessionmaker[Session]) -> None:
    row = stage.do(key_pair_create, name="k")
    assert used(database, stage.ctx.project_id) == {"key_pairs": 1, "rows:compute.key_pair": 1}
    stage.do(key_pair_delete, row.id)
    assert used(database, stage.ctx.project_id) == {}
    with database() as session, transaction(session):
        release(session, row.id)
        assert recount(session) == []


def test_quota_is_held_until_the_machine_is_really_gone(stage: Stage, database: sessionmaker[Session]) -> None:
    row = stage.do(instance_create, name="web", **CREATE)
    run(stage.ctx, instance_terminate, row.id)
    assert used(database, stage.ctx.project_id)["instances"] == 1
    stage.worker.drain()
    assert used(database, stage.ctx.project_id) == NETWORK


def test_a_resize_holds_the_larger_size_until_it_is_over(stage: Stage, database: sessionmaker[Session]) -> None:
    project = stage.ctx.project_id
    row = stopped_instance(stage)
    run(stage.ctx, instance_resize, row.id, {"flavor": "t3-xlarge"})
    assert used(database, project)["cpus"] == 4
    stage.worker.drain()
    assert (used(database, project)["cpus"], used(database, project)["memory_gb"]) == (4, 16)
    run(stage.ctx, instance_resize, row.id, {"flavor": "t3-micro"})
    assert used(database, project)["cpus"] == 4
    stage.worker.drain()
    assert (used(database, project)["cpus"], used(database, project)["memory_gb"]) == (1, 1)
    assert_sound(stage)


def test_a_resize_over_the_quota_changes_nothing(stage: Stage, database: sessionmaker[Session]) -> None:
    row = stopped_instance(stage)
    limit(database, stage.ctx.project_id, "cpus", 3)
    before = rows_of(database)
    with pytest.raises(QuotaExceeded) as refused:
        run(stage.ctx, instance_resize, row.id, {"flavor": "t3-xlarge"})
    assert refused.value.details == {"dimension": "cpus", "limit": 3, "used": 1, "requested": 3, **way("cpus")}
    assert rows_of(database) == before


def test_a_resize_that_fails_gives_the_difference_back(stage: Stage, database: sessionmaker[Session]) -> None:
    row = stopped_instance(stage)
    stage.engine.fail_next("ensure_defined", EngineRefused("no"))
    run(stage.ctx, instance_resize, row.id, {"flavor": "t3-xlarge"})
    stage.worker.drain()
    assert used(database, stage.ctx.project_id)["cpus"] == 1
    assert_sound(stage)


def test_a_cancelled_creation_holds_nothing(stage: Stage, database: sessionmaker[Session]) -> None:
    outcome = run(stage.ctx, instance_create, None, {"name": "web", **CREATE})
    job_cancel(stage.ctx, outcome.job_id or "")
    stage.worker.drain()
    assert used(database, stage.ctx.project_id) == NETWORK
    assert_sound(stage)


def test_less_is_always_granted_also_below_a_lowered_limit(stage: Stage, database: sessionmaker[Session]) -> None:
    one, two = stage.do(key_pair_create, name="one"), stage.do(key_pair_create, name="two")
    limit(database, stage.ctx.project_id, "key_pairs", 1)
    stage.do(key_pair_delete, one.id)
    with pytest.raises(QuotaExceeded):
        run(stage.ctx, key_pair_create, None, {"name": "three"})
    stage.do(key_pair_delete, two.id)
    assert stage.do(key_pair_create, name="three").name == "three"


def test_reserving_again_holds_exactly_the_new_amount(people: People, database: sessionmaker[Session]) -> None:
    project = people.project_id
    with database() as session:
        for amount in (5, 5, 2, 9, 0):
            with transaction(session):
                reserve(session, project, "thing", {"cpus": amount})
            assert used(database, project) == ({"cpus": amount} if amount else {})
        with transaction(session):
            reserve(session, project, "thing", {"cpus": 1, "gpus": 2})
            release(session, "thing", dimensions=["gpus"])
        assert held_by(session, "thing") == {"cpus": 1}


def test_a_session_does_not_trust_what_it_read_before(people: People, database: sessionmaker[Session]) -> None:
    """Somebody else may have changed what a resource holds since this session looked."""
    project = people.project_id
    with database() as one, database() as two:
        with transaction(one):
            reserve(one, project, "thing", {"cpus": 5})
        with transaction(two):
            reserve(two, project, "thing", {"cpus": 1})
        with transaction(one):
            reserve(one, project, "thing", {"cpus": 7})
            assert recount(one) == []
        assert used(database, project) == {"cpus": 7}
        with transaction(two):
            release(two, "thing")
        with transaction(one):
            reserve(one, project, "thing", {"cpus": 3})
            assert recount(one) == []
    assert used(database, project) == {"cpus": 3}


def test_a_recount_repairs_and_says_what(people: People, database: sessionmaker[Session]) -> None:
    project = people.project_id
    run(people.context(people.user("developer")), key_pair_create, None, {"name": "k"})
    with database() as session, transaction(session):
        session.execute(update(Quota).where(Quota.project_id == project, Quota.dimension.in_(["key_pairs", "cpus"])).values(used=7))
        assert recount(session) == [(project, "cpus", 7, 0), (project, "key_pairs", 7, 1)]
        assert recount(session) == []
    assert used(database, project) == {"key_pairs": 1, "rows:compute.key_pair": 1}


def test_recounting_while_others_reserve_loses_nothing(people: People, database: sessionmaker[Session]) -> None:
    project = people.project_id

    def count_again() -> list[object]:
        with database() as session, transaction(session):
            return list(recount(session))

    contexts = [people.context(people.user("developer")) for _ in range(6)]
    calls = [lambda ctx=ctx, n=n: run(ctx, key_pair_create, None, {"name": f"k{n}"}) for n, ctx in enumerate(contexts)]
    given = race([*calls, count_again, count_again])
    assert [one for one in given if isinstance(one, Exception)] == []
    assert given[-2:] == [[], []]
    assert used(database, project)["key_pairs"] == 6


def test_a_project_that_never_used_anything_has_the_defaults(people: People, database: sessionmaker[Session]) -> None:
    fresh = people.project()
    with database() as session:
        assert usage(session, fresh) == {name: (dimension.default, 0) for name, dimension in DIMENSIONS.items()}
        assert quota.count(session, fresh, "instances") == 0
    developer = people.context(people.user("developer", fresh), fresh)
    run(developer, key_pair_create, None, {"name": "k"})
    with database() as session:
        assert session.get_one(Quota, (fresh, "key_pairs")).limit == DIMENSIONS["key_pairs"].default
        assert session.get_one(Quota, (fresh, "rows:compute.key_pair")).limit is None


# -- limits as administrators see them -----------------------------------------------------------------------------------------------------


def test_members_read_the_limits_of_their_project(people: People) -> None:
    ctx = people.context(people.user("viewer"))
    run(people.context(people.user("developer")), key_pair_create, None, {"name": "k"})
    lines = {line.dimension: line for line in quota_lines(ctx, ctx.project_id or "")}
    assert list(lines) == list(DIMENSIONS)
    assert (lines["key_pairs"].used, lines["key_pairs"].limit, lines["key_pairs"].left, lines["memory_gb"].unit) == (1, 100, 99, "GiB")


@pytest.mark.parametrize("project", ["other", "prj-nonesuch", "\x00", ""])
def test_the_limits_of_others_are_not_there(people: People, database: sessionmaker[Session], project: str) -> None:
    project = people.project() if project == "other" else project
    ctx = people.context(people.user("project_admin"))
    seq, before = last_seq(database), rows_of(database)
    with pytest.raises(NotFound):
        quota_lines(ctx, project)
    with pytest.raises(NotFound):
        quota_update(ctx, project, "cpus", 1)
    boss = people.context(people.user("platform_admin"))
    if project.startswith("prj-") and project != "prj-nonesuch":
        assert quota_lines(boss, project)
    else:
        with pytest.raises(NotFound):
            quota_update(boss, project, "cpus", 1)
    assert len(entries_since(database, seq)) == 0
    assert rows_of(database)["quotas"] == before["quotas"]


def test_a_platform_admin_sets_limits_and_nobody_else_does(people: People, database: sessionmaker[Session]) -> None:
    project, seq = people.project(), last_seq(database)
    with pytest.raises(Forbidden):
        quota_update(people.context(people.user("project_admin", project), project), project, "cpus", 1000)
    boss = people.context(people.user("platform_admin"))
    boss.settings = boss.settings.model_copy(update={"quota_four_eyes": False})
    line = quota_update(boss, project, "cpus", 1000)
    assert (line.limit, line.used, line.left) == (1000, 0, 1000)
    with database() as session:
        assert session.scalars(select(Quota.limit).where(Quota.project_id == project, Quota.dimension == "cpus")).one() == 1000
    denied, done = entries_since(database, seq)
    assert (denied.status, done.status, done.project_id) == ("denied", "success", project)
    assert (done.details["before"], done.details["after"]) == ({"limit": 400}, {"limit": 1000})


@pytest.mark.parametrize("value", [-1, HIGHEST + 1, 10**30])
def test_a_limit_out_of_bounds_is_refused(people: People, value: int) -> None:
    boss = people.context(people.user("platform_admin"))
    with pytest.raises(InvalidRequest) as refused:
        quota_update(boss, boss.project_id or "", "cpus", value)
    assert "limit" in refused.value.details


def test_a_limit_below_what_is_used_stops_what_is_new(people: People) -> None:
    boss = people.context(people.user("platform_admin"))
    run(boss, key_pair_create, None, {"name": "k"})
    assert quota_update(boss, boss.project_id or "", "key_pairs", 0).left == 0
    with pytest.raises(QuotaExceeded):
        run(boss, key_pair_create, None, {"name": "k2"})
    with pytest.raises(NotFound, match="cpus"):
        quota_update(boss, boss.project_id or "", "bananas", 1)


def test_reservations_say_who_holds_what(people: People, database: sessionmaker[Session]) -> None:
    row = run(people.context(people.user("developer")), key_pair_create, None, {"name": "k"}).row
    with database() as session:
        held = session.scalars(select(Reservation).where(Reservation.resource_id == row.id)).all()
        assert {(one.dimension, one.amount, one.project_id) for one in held} == {
            ("key_pairs", 1, people.project_id),
            ("rows:compute.key_pair", 1, people.project_id),
        }
