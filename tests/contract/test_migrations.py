"""Migrations: up, down and up again, nothing left behind, and the models are what they make."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic import command
from sqlalchemy import Engine, inspect, select, text
from sqlalchemy.orm import Session, sessionmaker

from portal.bootstrap import alembic_config, initialise, is_current, migrate
from portal.compute.instances import instance_create
from portal.compute.key_pairs import key_pair_create
from portal.engines.ports import Capability
from portal.kernel.audit_export import AuditExport
from portal.kernel.capabilities import report
from portal.kernel.db import Base, open_database, transaction
from portal.kernel.operations import run
from portal.kernel.quota import Reservation, UserQuota, recount, recount_users
from portal.kernel.resource import Registry
from portal.settings import ROOT, Settings
from portal.storage.buckets import bucket_create, bucket_set_policy
from portal.storage.object_models import Bucket
from portal.storage.replication import BucketReplication, ReplicaChange, bucket_set_replication
from tests.support.audited import statements
from tests.support.databases import HOST, ON_POSTGRESQL, settings_for
from tests.support.people import People
from tests.support.processes import environment
from tests.support.servers import Postgres

# The newest migration of the version that was released last.
RELEASED = "0006"
# Before policies of buckets kept ids.
BEFORE_IDS = "0023"


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres | None]:
    if not ON_POSTGRESQL:
        yield None
        return
    started = Postgres()
    started.start()
    yield started
    started.close()


@pytest.fixture
def blank(server: Postgres | None, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[sessionmaker[Session]]:
    """An empty database of this test alone."""
    url = f"sqlite:///{tmp_path}/blank.db"
    if server is not None:
        name = f"blank_{abs(hash(request.node.name))}"
        server.execute(f"CREATE DATABASE {name}")
        url = server.url(name)
    sessions = open_database(settings_for(tmp_path, database_url=url))
    yield sessions
    sessions.kw["bind"].dispose()


def tables(engine: Engine) -> set[str]:
    return set(inspect(engine).get_table_names()) - {"alembic_version"}


def test_up_down_and_up_again(blank: sessionmaker[Session], settings: Settings) -> None:
    engine = blank.kw["bind"]
    assert not is_current(engine)
    migrate(engine)
    assert is_current(engine)
    assert tables(engine) == set(Base.metadata.tables)
    with blank() as session:
        initialise(session, settings)
    command.downgrade(alembic_config(engine), "base")
    assert tables(engine) == set()
    assert not is_current(engine)
    migrate(engine)
    migrate(engine)
    command.check(alembic_config(engine))
    with blank() as session:
        assert initialise(session, settings) is not None


def test_indexes_and_constraints_are_those_of_the_models(blank: sessionmaker[Session]) -> None:
    """What alembic's own comparison overlooks: partial indexes, their order, and foreign keys."""
    engine = blank.kw["bind"]
    migrate(engine)
    found = inspect(engine)
    for table in Base.metadata.sorted_tables:
        made = {index["name"]: (tuple(index["column_names"]), bool(index["unique"])) for index in found.get_indexes(table.name)}
        for index in table.indexes:
            assert made[str(index.name)] == (tuple(column.name for column in index.columns), bool(index.unique)), index.name
        assert {tuple(key["constrained_columns"]) for key in found.get_foreign_keys(table.name)} == {
            (column.name,) for column in table.columns if column.foreign_keys
        }, table.name
        assert {c["name"]: c["nullable"] for c in found.get_columns(table.name)} == {c.name: bool(c.nullable) for c in table.columns}, table.name


def test_the_version_before_runs_on_the_new_database(blank: sessionmaker[Session]) -> None:
    """It finds every column that it knows, and need not write those that it does not."""
    engine = blank.kw["bind"]
    command.upgrade(alembic_config(engine), RELEASED)
    known = {name: {column["name"] for column in inspect(engine).get_columns(name)} for name in tables(engine)}
    migrate(engine)
    found = {name: {column["name"]: column for column in inspect(engine).get_columns(name)} for name in tables(engine)}
    assert [f"{table}.{name}" for table, names in known.items() for name in sorted(names - set(found.get(table, ())))] == []
    assert [
        f"{table}.{name}"
        for table, names in known.items()
        for name, column in found[table].items()
        if name not in names and not column["nullable"] and column["default"] is None
    ] == []


def test_what_goes_with_the_next_version_is_not_named_by_this_one(blank: sessionmaker[Session]) -> None:
    migrate(blank.kw["bind"])
    with blank() as session, statements(session) as said, transaction(session):
        session.add(AuditExport(id="axp-1", user_id="usr-1", format="csv", query={}, job_id="job-1"))
        session.flush()
        session.expunge_all()
        assert session.get_one(AuditExport, "axp-1").error == ""
    assert [each for each in said if "audit_exports.error" in each or (each.startswith("INSERT INTO audit_exports") and " error" in each)] == []
    with blank() as session:
        assert session.scalar(text("SELECT error FROM audit_exports")) == ""


def test_what_is_there_is_charged_to_its_owner(blank: sessionmaker[Session], settings: Settings, registry: Registry) -> None:
    """Back to the release before users had limits, and forward again with what was made meanwhile."""
    engine = blank.kw["bind"]
    migrate(engine)
    with blank() as session:
        initialise(session, settings)
        report(session, Capability("compute", available=True, detail="in memory"), worker="test", capacity=HOST)
    people = People(blank, settings, registry)
    admin = people.admin()
    for name in ("a", "b"):
        run(people.context(admin), key_pair_create, None, {"name": name})
    run(people.context(admin), instance_create, None, {"name": "web", "flavor": "t3-micro", "image": "atonix-tiny"})
    people.close()

    def charged() -> tuple[list[tuple[object, ...]], list[tuple[object, ...]]]:
        with blank() as session:
            users = session.execute(select(UserQuota.user_id, UserQuota.dimension, UserQuota.used, UserQuota.limit)).all()
            held = session.execute(select(Reservation.dimension, Reservation.owner_id, Reservation.amount, Reservation.pending)).all()
            # What is charged for volumes goes with their tables; the next start finds the disks.
            kept = [[tuple(row) for row in rows if not {"volumes", "volume_gb", "rows:storage.volume"} & set(row)] for rows in (users, held)]
            return sorted(kept[0]), sorted(kept[1])

    before = charged()
    assert (admin.id, "key_pairs", 2, None) in before[0]
    command.downgrade(alembic_config(engine), "0002")
    migrate(engine)
    assert charged() == before
    with blank() as session, transaction(session):
        assert (recount(session), recount_users(session)) == ([], [])


def test_buckets_are_replicated_as_before(blank: sessionmaker[Session], settings: Settings, registry: Registry) -> None:
    """By the one rule that there was, or on the way back, by the one that counts most."""
    engine = blank.kw["bind"]
    migrate(engine)
    with blank() as session:
        initialise(session, settings)
    people = People(blank, settings, registry)
    ctx = people.context(people.admin())
    source, one, two = (run(ctx, bucket_create, None, {"name": name}).row.id for name in ("a-source", "target-one", "target-two"))
    rules = [{"destination_bucket": "target-one", "prefix": "a/"}, {"destination_bucket": "target-two"}]
    run(ctx, bucket_set_replication, source, {"configuration": {"rules": rules}})
    with transaction(ctx.db):
        ctx.db.add_all([ReplicaChange(bucket_id=source, destination_id=each, key="a/k", sequence=1) for each in (one, two)])
    people.close()
    command.downgrade(alembic_config(engine), "0023")
    with blank() as session:
        assert session.scalar(text("SELECT count(*) FROM replica_changes")) == 1
    migrate(engine)
    with blank() as session:
        (rule,) = session.get_one(Bucket, source).replication or ()
        assert (rule["bucket_id"], rule["prefix"], rule["enabled"], rule["tags"], rule["priority"]) == (one, "a/", True, {}, 1)
        assert session.scalars(select(BucketReplication.destination_id)).all() == [one]
        assert session.scalars(select(ReplicaChange.destination_id)).all() == [one]


def test_several_that_start_at_once_migrate_once(blank: sessionmaker[Session], tmp_path: Path) -> None:
    engine = blank.kw["bind"]
    settings = settings_for(tmp_path, database_url=engine.url.render_as_string(hide_password=False))
    command_line = [sys.executable, "-m", "portal", "init"]
    started = [
        subprocess.Popen(command_line, env=environment(settings), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    ended = [(*process.communicate(timeout=60), process.returncode) for process in started]
    assert [end for end in ended if end[2] != 0 or end[1]] == []
    assert sum("First administrator" in out for out, _, _ in ended) == 1
    assert is_current(engine)


def test_policies_of_buckets_mean_whom_they_named(blank: sessionmaker[Session], settings: Settings, registry: Registry) -> None:
    """Names become ids, but for those that nobody had when the policy was set."""
    engine = blank.kw["bind"]
    migrate(engine)
    with blank() as session:
        initialise(session, settings)
    people = People(blank, settings, registry)
    friend = people.user("viewer", people.project())
    made = run(people.context(people.admin()), bucket_create, None, {"name": "of-old"}).row
    run(people.context(people.admin()), bucket_set_policy, made.id, {"document": {"Statement": [{
        "Effect": "Allow", "Principal": {"AWS": [friend.id]}, "Action": "s3:GetObject", "Resource": "arn:aws:s3:::of-old/*"}]}})  # fmt: skip
    late = people.user("viewer", people.project())
    with blank.begin() as session:
        row = session.get_one(Bucket, made.id)
        assert row.policy is not None
        row.policy = {**row.policy, "statements": [{**row.policy["statements"][0], "principals": [friend.username, late.username, "nobody", "*"]}]}
    people.close()
    command.downgrade(alembic_config(engine), BEFORE_IDS)
    migrate(engine)
    with blank() as session:
        kept = session.get_one(Bucket, made.id).policy
    assert kept is not None
    assert kept["statements"][0]["principals"] == [friend.id, late.username, "nobody", "*"]
