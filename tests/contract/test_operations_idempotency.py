"""The same Idempotency-Key with the same request is the same change, also when both come at once."""

from dataclasses import replace

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session, sessionmaker

from portal.compute.instances import Instance, instance_create, instance_stop
from portal.compute.key_pairs import KeyPair, key_pair_create
from portal.identity.models import Membership
from portal.kernel.context import Context
from portal.kernel.db import transaction
from portal.kernel.declare import Outcome
from portal.kernel.errors import Conflict, Forbidden, NotFound, PortalError, QuotaExceeded
from portal.kernel.idempotency import IdempotencyKey
from portal.kernel.jobs import Job
from portal.kernel.operations import run
from portal.kernel.quota import Quota
from tests.support.effects import entries_since, last_seq, rows_of
from tests.support.people import People
from tests.support.racing import race
from tests.support.scenarios import TINY, Stage, running_instance

pytestmark = pytest.mark.usefixtures("networked")
CREATE = {"name": "web", "flavor": "t3-micro", "image": TINY}


def keyed(ctx: Context, key: str) -> Context:
    return replace(ctx, idempotency_key=key)


def test_the_second_request_gives_what_the_first_one_did(ctx: Context, database: sessionmaker[Session]) -> None:
    once = keyed(ctx, "k1")
    delivered: list[str] = []
    once.deliver = delivered.extend
    first = run(once, instance_create, None, {**CREATE, "count": 2})
    before, seq = rows_of(database), last_seq(database)
    second = run(once, instance_create, None, {**CREATE, "count": 2})
    assert ([row.id for row in second.rows], list(second.jobs), second.replayed) == ([row.id for row in first.rows], list(first.jobs), True)
    assert rows_of(database) == before
    assert last_seq(database) == seq
    assert delivered == list(first.jobs)


def test_another_name_for_a_field_is_the_same_request(ctx: Context) -> None:
    once = keyed(ctx, "k1")
    first = run(once, instance_create, None, CREATE)
    again = run(once, instance_create, None, {"name": "web", "image_id": TINY, "instance_type": "t3-micro"})
    assert again.row.id == first.row.id


def test_a_key_for_another_request_is_refused(ctx: Context, database: sessionmaker[Session], people: People) -> None:
    once = keyed(ctx, "k1")
    run(once, instance_create, None, CREATE)
    before = rows_of(database)
    for operation, target, data in ((instance_create, None, {**CREATE, "name": "db"}), (key_pair_create, None, {"name": "web"})):
        with pytest.raises(Conflict, match="Idempotency-Key"):
            run(once, operation, target, data)
    # The same words in another project are another request.
    boss = people.user("platform_admin")
    run(keyed(people.context(boss), "k2"), key_pair_create, None, {"name": "k"})
    with pytest.raises(Conflict, match="Idempotency-Key"):
        run(keyed(people.context(boss, people.project()), "k2"), key_pair_create, None, {"name": "k"})
    assert len(rows_of(database)["instances"]) == len(before["instances"])


def test_keys_belong_to_their_user(ctx: Context, people: People) -> None:
    first = run(keyed(ctx, "k1"), key_pair_create, None, {"name": "one"})
    other = people.context(people.user("developer"))
    second = run(keyed(other, "k1"), key_pair_create, None, {"name": "two"})
    assert second.row.id != first.row.id
    assert not second.replayed


def test_a_refused_request_leaves_its_key_free(ctx: Context, people: People, database: sessionmaker[Session]) -> None:
    viewer = keyed(people.context(people.user("viewer")), "k1")
    with pytest.raises(Forbidden):
        run(viewer, key_pair_create, None, {"name": "k"})
    once = keyed(ctx, "k1")
    with pytest.raises(PortalError):
        run(once, instance_create, None, {**CREATE, "flavor": "nonesuch"})
    with database() as session:
        assert session.scalar(select(func.count()).select_from(IdempotencyKey)) == 0
    assert run(once, instance_create, None, CREATE).row.name == "web"


def test_a_change_is_repeated_once_only(stage: Stage) -> None:
    row = running_instance(stage)
    once = keyed(stage.ctx, "stop-1")
    first = run(once, instance_stop, row.id, {"force": True})
    stage.worker.drain()
    again = run(once, instance_stop, row.id, {"force": True})
    assert (again.replayed, again.job_id, again.row.state) == (True, first.job_id, "stopped")


def test_what_may_not_be_seen_any_more_is_not_given_again(people: People, database: sessionmaker[Session]) -> None:
    user = people.user("developer")
    once = keyed(people.context(user), "k1")
    run(once, key_pair_create, None, {"name": "k"})
    with database() as session, transaction(session):
        session.query(Membership).filter_by(user_id=user.id).delete()
    user.memberships = []
    with pytest.raises(NotFound):
        run(keyed(people.context(user), "k1"), key_pair_create, None, {"name": "k"})


@pytest.mark.parametrize("limit", [100, 1])
def test_the_same_request_many_times_at_once_is_one_change(people: People, database: sessionmaker[Session], limit: int) -> None:
    """Even where the first one takes the last of the quota: the others are that first one."""
    user = people.user("developer")
    with database() as session, transaction(session):
        session.query(Quota).filter(Quota.project_id == people.project_id, Quota.dimension == "instances").update({"limit": limit})
    contexts = [keyed(people.context(user), "k1") for _ in range(6)]
    seq = last_seq(database)
    given = race([lambda ctx=ctx: run(ctx, instance_create, None, CREATE) for ctx in contexts])
    assert [one for one in given if not isinstance(one, Outcome)] == []
    assert len({outcome.row.id for outcome in given}) == 1
    assert len({outcome.job_id for outcome in given}) == 1
    assert sorted(outcome.replayed for outcome in given) == [False] + [True] * 5
    with database() as session:
        assert session.scalar(select(func.count()).select_from(Instance)) == 1
        assert session.scalar(select(func.count()).select_from(Job)) == 1
    made = [entry.action for entry in entries_since(database, seq)]
    assert (made.count("compute.instance.create"), made.count("networking.network_interface.create")) == (1, 1)


def test_different_requests_with_one_key_at_once_are_one_change_and_refusals(people: People, database: sessionmaker[Session]) -> None:
    user = people.user("developer")
    contexts = [keyed(people.context(user), "k1") for _ in range(5)]
    given = race([lambda ctx=ctx, n=n: run(ctx, key_pair_create, None, {"name": f"k{n}"}) for n, ctx in enumerate(contexts)])
    assert sum(isinstance(one, Outcome) for one in given) == 1
    assert sum(isinstance(one, Conflict) and "Idempotency-Key" in one.message for one in given) == 4
    with database() as session:
        assert session.scalar(select(func.count()).select_from(KeyPair)) == 1


def test_the_same_name_at_once_without_a_key_is_one_change_and_conflicts(people: People, database: sessionmaker[Session]) -> None:
    contexts = [people.context(people.user("developer")) for _ in range(5)]
    given = race([lambda ctx=ctx: run(ctx, key_pair_create, None, {"name": "same"}) for ctx in contexts])
    assert sum(isinstance(one, Outcome) for one in given) == 1
    assert sum(isinstance(one, Conflict) for one in given) == 4, given
    with database() as session:
        held = session.get_one(Quota, (people.project_id, "key_pairs"))
        assert (held.used, session.scalar(select(func.count()).select_from(KeyPair))) == (1, 1)


def test_a_full_quota_is_told_to_all_but_one(people: People, database: sessionmaker[Session]) -> None:
    with database() as session, transaction(session):
        session.query(Quota).filter(Quota.project_id == people.project_id, Quota.dimension == "key_pairs").update({"limit": 1})
    contexts = [people.context(people.user("developer")) for _ in range(6)]
    given = race([lambda ctx=ctx, n=n: run(ctx, key_pair_create, None, {"name": f"k{n}"}) for n, ctx in enumerate(contexts)])
    assert sum(isinstance(one, Outcome) for one in given) == 1
    assert sum(isinstance(one, QuotaExceeded) for one in given) == 5, given
    with database() as session:
        assert session.get_one(Quota, (people.project_id, "key_pairs")).used == 1
