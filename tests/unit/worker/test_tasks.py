"""Periodic work: what expires goes, what is wanted stays, and a quota that is wrong is repaired and told of."""

import os
from collections.abc import Callable
from datetime import datetime, timedelta

import pytest
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session, sessionmaker

from portal.compute.instances import Instance, instance_terminate
from portal.compute.metrics import InstanceCounters, InstanceMetric
from portal.engines.ports import Engines
from portal.identity.models import ApiToken, UserSession
from portal.identity.oauth2.models import OAuthClient, OAuthCode, OAuthFamily, OAuthRefreshToken
from portal.kernel.audit import AuditEntry
from portal.kernel.audit_verify import verify
from portal.kernel.context import Context
from portal.kernel.db import now, transaction
from portal.kernel.events import Event
from portal.kernel.idempotency import IdempotencyKey
from portal.kernel.jobs import Job, JobStep
from portal.kernel.quota import Quota, UserQuota, usage
from portal.kernel.quota_days import QuotaHistory
from portal.kernel.runner import TaskRun
from portal.kernel.tags import ResourceTag
from portal.worker import tasks
from tests.support.draining import TestWorker
from tests.support.people import People
from tests.support.scenarios import Stage, running_instance

LONG_AGO = timedelta(days=40)


@pytest.fixture
def task_run(people: People, engines: Engines) -> TaskRun:
    return TaskRun(people.context(None), engines)


@pytest.fixture
def rows(database: sessionmaker[Session]) -> Callable[[type], int]:
    def count(model: type) -> int:
        with database() as session:
            return session.scalar(select(func.count()).select_from(model)) or 0

    return count


def add(database: sessionmaker[Session], *given: object) -> None:
    with database() as session, transaction(session):
        session.add_all(given)


def session_row(user_id: str, name: str, *, expires: datetime, seen: datetime) -> UserSession:
    return UserSession(id_hash=name, user_id=user_id, expires_at=expires, last_seen_at=seen)


def test_expired_credentials_go(task_run: TaskRun, people: People, database: sessionmaker[Session]) -> None:
    user, moment, hour = people.user(), now(), timedelta(hours=1)
    add(
        database,
        session_row(user.id, "good", expires=moment + hour, seen=moment),
        session_row(user.id, "expired", expires=moment - hour, seen=moment),
        session_row(user.id, "idle", expires=moment + hour, seen=moment - timedelta(hours=2)),
        ApiToken(user_id=user.id, name="good", token_hash="a", prefix="a", expires_at=moment + hour),
        ApiToken(user_id=user.id, name="expired", token_hash="b", prefix="b", expires_at=moment - hour),
    )
    tasks.expire(task_run)
    with database() as session:
        assert session.scalars(select(UserSession.id_hash)).all() == ["good"]
        assert session.scalars(select(ApiToken.name)).all() == ["good"]


def test_expired_access_of_applications_goes(task_run: TaskRun, people: People, database: sessionmaker[Session]) -> None:
    user, moment, hour = people.user(), now(), timedelta(hours=1)
    add(database, OAuthClient(id="app-1", name="Reports", owner_id=user.id))
    for name, expires in (("good", moment + hour), ("expired", moment - hour)):
        add(database, OAuthFamily(id=name, client_id="app-1", user_id=user.id, expires_at=expires))
        add(database, OAuthRefreshToken(token_hash=name, family_id=name))
        for code, family in ((f"{name} used", name), (f"{name} unused", None)):
            given = {"client_id": "app-1", "user_id": user.id, "redirect_uri": "", "code_challenge": ""}
            add(database, OAuthCode(code_hash=code, family_id=family, expires_at=moment - hour if family else expires, **given))
    tasks.expire(task_run)
    with database() as session:
        assert session.scalars(select(OAuthFamily.id)).all() == ["good"]
        assert session.scalars(select(OAuthRefreshToken.token_hash)).all() == ["good"]
        assert set(session.scalars(select(OAuthCode.code_hash))) == {"good used", "good unused"}, "a second use of the used one is to be noticed"


def test_old_history_goes_and_the_audit_log_stays(
    task_run: TaskRun, stage_of: Stage, database: sessionmaker[Session], rows: Callable[[type], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Several batches, the last of them full.
    monkeypatch.setattr(tasks, "BATCH", 3)
    for _ in range(3):
        running_instance(stage_of)
    entries, jobs, events = rows(AuditEntry), rows(Job), rows(Event)
    assert jobs == 3
    add(database, IdempotencyKey(user_id="u", key="k", fingerprint="f", type_key="t", resource_ids=[], job_ids=[], created_at=now() - LONG_AGO))
    add(database, IdempotencyKey(user_id="u", key="fresh", fingerprint="f", type_key="t", resource_ids=[], job_ids=[]))
    tasks.expire(task_run)
    assert (rows(Job), rows(Event), rows(IdempotencyKey)) == (jobs, events, 1)
    with database() as session, transaction(session):
        session.execute(update(Job).values(finished_at=now() - LONG_AGO))
        session.execute(update(Event).values(at=now() - LONG_AGO))
    tasks.expire(task_run)
    assert (rows(Job), rows(JobStep), rows(Event), rows(AuditEntry)) == (0, 0, 0, entries)
    with database() as session:
        assert verify(session).entries == entries


@pytest.fixture
def stage_of(ctx: Context, worker: TestWorker) -> Stage:
    return Stage(ctx, worker, worker.runner.engines.compute)


def test_instances_that_are_long_gone_are_forgotten(
    task_run: TaskRun, stage_of: Stage, database: sessionmaker[Session], rows: Callable[[type], int]
) -> None:
    gone, kept = running_instance(stage_of), running_instance(stage_of)
    for row in (gone, kept):
        metric = InstanceMetric(
            instance_id=row.id, at=now(), interval_s=1, cpu_usage_percent=1, memory_usage_percent=1, disk_usage_percent=1, network_in_bytes=1,
            network_out_bytes=1, io_read_bytes=1, io_write_bytes=1,
        )  # fmt: skip
        add(
            database,
            metric,
            InstanceCounters(instance_id=row.id, at_s=1.0, counters={}),
            ResourceTag(resource_id=row.id, key="k", value="v", resource_type="t"),
        )
    stage_of.do(instance_terminate, gone.id)
    tasks.expire(task_run)
    assert rows(Instance) == 2
    with database() as session, transaction(session):
        session.execute(update(Instance).where(Instance.id == gone.id).values(deleted_at=now() - LONG_AGO))
    tasks.expire(task_run)
    with database() as session:
        assert session.scalars(select(Instance.id)).all() == [kept.id]
        assert session.scalars(select(InstanceMetric.instance_id)).all() == [kept.id]
        assert session.scalars(select(InstanceCounters.instance_id)).all() == [kept.id]
        assert session.scalars(select(ResourceTag.resource_id)).all() == [kept.id]
        assert usage(session, str(stage_of.ctx.project_id))["instances"][1] == 1


def test_abandoned_files_of_images_go(task_run: TaskRun) -> None:
    staging = task_run.ctx.settings.data_dir / "staging"
    staging.mkdir(parents=True)
    old, fresh = staging / "old", staging / "fresh"
    for path in (old, fresh):
        path.write_bytes(b"x")
    os.utime(old, (0, 0))
    tasks.expire(task_run)
    assert sorted(staging.iterdir()) == [fresh]


def test_a_wrong_quota_is_repaired_logged_and_audited(
    task_run: TaskRun, stage_of: Stage, database: sessionmaker[Session], caplog: pytest.LogCaptureFixture
) -> None:
    running_instance(stage_of)
    project = str(stage_of.ctx.project_id)
    tasks.recount_quotas(task_run)
    assert "repaired" not in caplog.text
    with database() as session, transaction(session):
        session.execute(update(Quota).where(Quota.dimension == "cpus").values(used=17))
    tasks.recount_quotas(task_run)
    assert "cpus" in caplog.text
    assert "repaired" in caplog.text
    with database() as session:
        assert usage(session, project)["cpus"][1] == 1
        entry = session.scalars(select(AuditEntry).where(AuditEntry.action == "core.quota.recount")).one()
        assert entry.details == {"before": {"used": 17}, "after": {"used": 1}}
        assert (entry.resource_name, entry.username) == ("cpus", "system")


def test_a_wrong_count_of_a_user_is_repaired_too(task_run: TaskRun, stage_of: Stage, database: sessionmaker[Session]) -> None:
    row = running_instance(stage_of)
    with database() as session, transaction(session):
        session.execute(update(UserQuota).where(UserQuota.dimension == "cpus").values(used=17))
    tasks.recount_quotas(task_run)
    with database() as session:
        entry = session.scalars(select(AuditEntry).where(AuditEntry.action == "core.quota.recount")).one()
        assert (entry.resource_id, entry.resource_name, entry.project_id) == (row.owner_id, "cpus", None)
        assert entry.details == {"before": {"used": 17}, "after": {"used": 1}}
        assert session.get_one(UserQuota, (row.owner_id, "cpus")).used == 1


def test_the_history_of_quotas_is_written(task_run: TaskRun, stage_of: Stage, database: sessionmaker[Session]) -> None:
    row = running_instance(stage_of)
    tasks.write_quota_history(task_run)
    with database() as session:
        assert session.get_one(QuotaHistory, (row.project_id, "cpus", now().date())).peak == 1


def test_every_task_has_a_period_and_a_sentence(task_run: TaskRun) -> None:
    assert set(tasks.TASKS) == {
        "reconcile", "reconcile-networks", "metrics", "rule-hits", "volumes", "expiry", "encryption-keys", "oauth-keys", "recount", "quota-history", "lifecycle", "objects", "object-engine", "object-engine-look", "orphans", "scrub", "audit-checkpoint", "audit-verify", "audit-verify-whole", "audit-stream",
        "audit-archive", "traffic", "notices", "replication", "snapshot-schedules", "unfinished",
    }  # fmt: skip
    for task in tasks.TASKS.values():
        assert task.interval_s(task_run.ctx.settings) >= 1
        assert task.label
