"""Two hundred at once against a limit of fifty: exactly fifty, whoever's limit it is, also while others give back and somebody recounts."""

import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import func, select, text
from sqlalchemy.orm import Session, sessionmaker

from portal.compute.instances import Instance, instance_create
from portal.identity.deletion import remove
from portal.identity.models import User
from portal.kernel import db, quota
from portal.kernel.context import Context
from portal.kernel.db import transaction
from portal.kernel.declare import Outcome
from portal.kernel.errors import QuotaExceeded
from portal.kernel.events import Event
from portal.kernel.jobs import Job
from portal.kernel.operations import run
from portal.kernel.quota import Quota, Reservation, UserQuota, recount, recount_users
from tests.support.databases import ON_POSTGRESQL
from tests.support.people import People
from tests.support.racing import race
from tests.support.scenarios import TINY
from tests.support.servers import until

MANY, ROOM = 200, 50
AMOUNTS = {"instances": 1, "cpus": 2, "memory_gb": 4, "storage_gb": 8, "rows:compute.instance": 1}


class Thing:
    """A row that takes quota and is nothing else."""

    def __init__(self, number: int, project_id: str, owner: User) -> None:
        self.id, self.owner_id, self._project_id = f"thing-{number}", owner.id, project_id

    def project_of(self) -> str:
        return self._project_id


@pytest.fixture(autouse=True)
def _patience(database: sessionmaker[Session]) -> Iterator[None]:
    """On a busy machine the last of two hundred waits longer for a connection and for SQLite than anybody would; that is not what this is about."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(db, "BUSY_TIMEOUT_MS", 100_000)
        patch.setattr(database.kw["bind"].pool, "_timeout", 100)
        yield


@pytest.fixture
def owner(people: People) -> User:
    """Whose all the things are."""
    return people.user("developer")


def taking(people: People, ctx: Context, thing: Thing) -> Callable[[], None]:
    def take() -> None:
        with people.sessions() as session, transaction(session):
            quota.hold(Context(session, ctx.settings, ctx.registry, ctx.principal), thing, AMOUNTS, settled=True)

    return take


def giving_back(people: People, thing: Thing) -> Callable[[], None]:
    def give() -> None:
        with people.sessions() as session, transaction(session):
            quota.release(session, thing.id)

    return give


def limit(people: People, model: type[Quota | UserQuota], holder: str, value: int) -> None:
    with people.sessions() as session, transaction(session):
        (quota.ensure if model is Quota else quota.ensure_user)(session, holder, "instances")
        session.scalars(select(model).where(model.holder == holder, model.dimension == "instances")).one().limit = value


def assert_counted(sessions: sessionmaker[Session], project_id: str, owner: User, things: int) -> None:
    with sessions() as session:
        assert {name: used for name, (_, used) in quota.usage(session, project_id).items() if used} == {d: n * things for d, n in AMOUNTS.items()}
        own = session.scalars(select(UserQuota).where(UserQuota.user_id == owner.id)).all()
        assert {row.dimension: row.used for row in own} == {d: n * things for d, n in AMOUNTS.items() if d in quota.DIMENSIONS}
        assert len(set(session.scalars(select(Reservation.resource_id)))) == things
    with sessions() as session, transaction(session):
        assert (recount(session), recount_users(session)) == ([], [])


def test_exactly_as_many_machines_as_there_is_room_for(
    people: People, database: sessionmaker[Session], owner: User, record_property: Callable[[str, object], None]
) -> None:
    """Through the write path, with job, audit entry and event; each in a session of its own."""
    project_id = people.project_id
    limit(people, Quota, project_id, ROOM)
    contexts = [people.context(owner) for _ in range(MANY)]
    create = {"flavor": "t3-micro", "image": TINY}
    begun = time.monotonic()
    given = race([lambda ctx=ctx, n=n: run(ctx, instance_create, None, {"name": f"web-{n}", **create}) for n, ctx in enumerate(contexts)])
    record_property("seconds", round(time.monotonic() - begun, 2))
    assert sum(isinstance(one, Outcome) for one in given) == ROOM
    assert sum(isinstance(one, QuotaExceeded) for one in given) == MANY - ROOM, [one for one in given if not isinstance(one, Outcome | QuotaExceeded)]
    with database() as session, transaction(session):
        assert quota.usage(session, project_id)["instances"] == (ROOM, ROOM)
        assert session.scalar(select(func.count()).select_from(Instance)) == ROOM
        assert session.scalar(select(func.count()).select_from(Job)) == ROOM
        told = session.scalars(select(Event.type).where(Event.type.startswith("core.quota.")).order_by(Event.id)).all()
        assert told == ["core.quota.warning", "core.quota.exhausted"]
        assert (recount(session), recount_users(session)) == ([], [])


def test_exactly_as_many_as_a_user_has_room_for(people: People, database: sessionmaker[Session], owner: User) -> None:
    ctx, projects = people.context(owner), (people.project_id, people.project())
    limit(people, UserQuota, owner.id, ROOM)
    things = [Thing(number, projects[number % 2], owner) for number in range(MANY)]
    given = race([taking(people, ctx, thing) for thing in things])
    assert given.count(None) == ROOM
    refused = [one for one in given if one is not None]
    assert [one for one in refused if not isinstance(one, QuotaExceeded)] == []
    assert {(one.details["limit"], one.details["used"], one.details["scope"]) for one in refused} == {(ROOM, ROOM, "user")}
    with database() as session, transaction(session):
        own = session.scalars(select(UserQuota).where(UserQuota.user_id == owner.id)).all()
        assert {row.dimension: row.used for row in own} == {d: n * ROOM for d, n in AMOUNTS.items() if d in quota.DIMENSIONS}
        assert (recount(session), recount_users(session)) == ([], [])


def test_exact_while_others_give_back_and_somebody_recounts(people: People, database: sessionmaker[Session], owner: User) -> None:
    ctx, project_id = people.context(owner), people.project_id
    limit(people, Quota, project_id, ROOM)
    there = [Thing(number, project_id, owner) for number in range(ROOM)]
    for thing in there:
        taking(people, ctx, thing)()
    repaired: list[object] = []

    def count_again() -> None:
        with people.sessions() as session, transaction(session):
            repaired.extend([*recount(session), *recount_users(session)])

    fresh = [taking(people, ctx, Thing(ROOM + number, project_id, owner)) for number in range(MANY - 2 * 20)]
    # Twenty go, each of them given back by two at once: that is twenty, not forty.
    calls = [*fresh, *(giving_back(people, thing) for thing in there[:20] for _ in range(2)), *[count_again] * 4]
    random.Random(7).shuffle(calls)  # noqa: S311 - an order, no secret
    given = race(calls)
    assert [one for one in given if one is not None and not isinstance(one, QuotaExceeded)] == []
    assert repaired == []
    taken = len(fresh) - sum(isinstance(one, QuotaExceeded) for one in given)
    assert 0 <= taken <= 20
    assert_counted(database, project_id, owner, ROOM - 20 + taken)
    # What room is left after the rush is there to be taken, to the last unit.
    given = race([taking(people, ctx, Thing(1000 + number, project_id, owner)) for number in range(40)])
    assert given.count(None) == 20 - taken
    assert_counted(database, project_id, owner, ROOM)


@pytest.mark.skipif(not ON_POSTGRESQL, reason="SQLite lets one write at a time: nobody waits for a row")
def test_whoever_is_deleted_while_they_cross_a_limit_waits(people: People, database: sessionmaker[Session], owner: User) -> None:
    """The alert refers to the user, who must not be locked by the deletion while that waits for the quota."""
    ctx, heir = people.context(owner), people.user("developer")
    limit(people, UserQuota, owner.id, 2)
    taking(people, ctx, Thing(1, people.project_id, owner))()

    def delete_owner() -> None:
        with database() as session, transaction(session):
            remove(Context(session, ctx.settings, ctx.registry, ctx.principal), owner.id, heir_id=heir.id)

    with database() as session, ThreadPoolExecutor(1) as pool:
        with transaction(session):
            quota.hold(Context(session, ctx.settings, ctx.registry, ctx.principal), Thing(2, people.project_id, owner), AMOUNTS, settled=True)
            deletion = pool.submit(delete_owner)
            with database() as observer:
                waiting = text("SELECT count(*) FROM pg_locks WHERE NOT granted")
                until(lambda: observer.scalar(waiting) or observer.rollback(), within_s=20, what="the deletion waits")
        deletion.result()
    with database() as session, transaction(session):
        assert session.get(User, owner.id) is None
        own = session.scalars(select(UserQuota).where(UserQuota.user_id == heir.id)).all()
        assert {row.dimension: row.used for row in own} == {d: n * 2 for d, n in AMOUNTS.items() if d in quota.DIMENSIONS}


@pytest.mark.skipif(not ON_POSTGRESQL, reason="SQLite lets one write at a time, whatever it changes")
def test_a_recount_keeps_nobody_else_waiting(people: People, database: sessionmaker[Session], owner: User) -> None:
    other = people.project()
    for number, project in enumerate((people.project_id, other)):
        taking(people, people.context(owner), Thing(number, project, owner))()
    with database() as one, database() as two, transaction(one), transaction(two):
        assert recount(one, people.project_id) == []
        free = select(Quota.dimension).where(Quota.project_id == other).with_for_update(nowait=True)
        assert set(two.scalars(free)) == set(AMOUNTS)
