"""Snapshots that the portal takes by itself: each once, deleted in time, and somebody is told when one cannot be had."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import func, select, update

from portal.engines.ports import EngineRefused
from portal.kernel.alerts import Alert
from portal.kernel.audit import AuditEntry
from portal.kernel.context import SYSTEM
from portal.kernel.db import now, transaction
from portal.kernel.errors import Conflict, Forbidden, InvalidRequest
from portal.kernel.operations import run
from portal.kernel.quota import Quota
from portal.storage.schedule_tending import schedules_follow
from portal.storage.schedules import Schedule, volume_set_snapshot_schedule
from portal.storage.snapshots import snapshot_create, snapshot_take_scheduled
from portal.storage.volume_models import Snapshot, Volume
from portal.storage.volumes import volume_recover, volume_trash
from tests.support.people import People
from tests.support.scenarios import Stage, assert_sound, due_volume, volume
from tests.support.web import Api


def follow(stage: Stage) -> None:
    """A round of the periodic work, and what comes of it."""
    stage.ctx.db.rollback()
    schedules_follow(replace(stage.ctx, principal=SYSTEM, project_id=None))
    stage.worker.drain()
    stage.ctx.db.rollback()


def come_due(stage: Stage, volume_id: str, ago: timedelta = timedelta(seconds=1)) -> datetime:
    """Let the next snapshot be due."""
    with transaction(stage.ctx.db):
        row = stage.ctx.db.get_one(Volume, volume_id, populate_existing=True)
        row.next_snapshot_at = due = now() - ago
    return due


def taken(stage: Stage, volume_id: str) -> list[Snapshot]:
    stage.ctx.db.expire_all()
    mine = select(Snapshot).where(Snapshot.volume_id == volume_id, Snapshot.deleted_at.is_(None), Snapshot.scheduled_at.is_not(None))
    return list(stage.ctx.db.scalars(mine.order_by(Snapshot.scheduled_at, Snapshot.created_at)))


def told(stage: Stage, row: Volume) -> int:
    return stage.ctx.db.scalar(select(func.count()).select_from(Alert).where(Alert.resource_id == row.id, Alert.user_id == row.owner_id)) or 0


def limit_snapshots(stage: Stage, number: int) -> None:
    with transaction(stage.ctx.db):
        stage.ctx.db.execute(update(Quota).where(Quota.project_id == stage.ctx.project_id, Quota.dimension == "snapshots").values(limit=number))


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("schedule", "after", "due"),
    [
        (Schedule("hourly", "00:30"), "2026-11-22T10:29:59", "2026-11-22T10:30:00"),
        (Schedule("hourly", "00:30"), "2026-11-22T10:30:00", "2026-11-22T11:30:00"),
        (Schedule("hourly", "00:30"), "2026-12-31T23:45:00", "2027-01-01T00:30:00"),
        (Schedule("daily", "02:00"), "2026-11-22T02:00:00", "2026-11-23T02:00:00"),
        (Schedule("daily", "23:59"), "2026-02-28T23:58:00", "2026-02-28T23:59:00"),
        (Schedule("weekly", "02:00", "monday"), "2026-11-22T00:00:00", "2026-11-23T02:00:00"),
        (Schedule("weekly", "02:00", "sunday"), "2026-11-22T02:00:00", "2026-11-29T02:00:00"),
        (Schedule("monthly", "02:00"), "2026-12-01T02:00:00", "2027-01-01T02:00:00"),
        (Schedule("monthly", "02:00"), "2028-02-29T12:00:00", "2028-03-01T02:00:00"),
    ],
)
def test_when_one_is_due(schedule: Schedule, after: str, due: str) -> None:
    assert schedule.next_after(at(after)) == at(due)


def test_after_a_long_stop_the_last_one_that_was_due_counts() -> None:
    hourly = Schedule("hourly", "00:30")
    assert hourly.last_before(at("2026-11-22T10:31:00"), at("2026-11-22T10:30:00")) == at("2026-11-22T10:30:00")
    assert hourly.last_before(at("2026-11-22T10:29:00"), at("2020-01-01T00:30:00")) == at("2026-11-22T09:30:00")
    monthly = Schedule("monthly", "02:00")
    assert monthly.last_before(at("2026-11-22T10:29:00"), at("2026-01-01T02:00:00")) == at("2026-11-01T02:00:00")


def test_each_is_taken_once_whoever_looks_and_however_late(stage: Stage) -> None:
    row = due_volume(stage)
    come_due(stage, row.id, timedelta(days=40))
    for _ in range(3):
        follow(stage)
    (one,) = taken(stage, row.id)
    stage.ctx.db.refresh(row)
    assert (one.state, one.owner_id, one.name) == ("completed", row.owner_id, f"{row.name}-{one.scheduled_at:%Y%m%d-%H%M}")
    assert now() - one.scheduled_at < timedelta(hours=1, minutes=1)
    assert row.next_snapshot_at is not None
    assert timedelta() < row.next_snapshot_at - one.scheduled_at == timedelta(hours=1)
    # Another worker, that looked before.
    system = replace(stage.ctx, principal=SYSTEM)
    with pytest.raises(Conflict, match="was due"):
        run(system, snapshot_take_scheduled, None, {"volume": row.id, "due": one.scheduled_at.isoformat()})
    assert_sound(stage)


def test_a_worker_that_dies_on_the_way_takes_it_once(stage: Stage) -> None:
    row = due_volume(stage)
    stage.ctx.db.rollback()
    schedules_follow(replace(stage.ctx, principal=SYSTEM, project_id=None))
    # What is queued outlives the worker; nothing else is due meanwhile, even where the next one is.
    come_due(stage, row.id)
    follow(stage)
    assert [each.state for each in taken(stage, row.id)] == ["completed"]
    assert_sound(stage)


def test_so_many_are_kept_and_those_of_people_stay(stage: Stage) -> None:
    row = due_volume(stage)
    own = stage.do(snapshot_create, name="own", volume=row.id)
    names = []
    for hours in (5, 4, 3, 2):
        with transaction(stage.ctx.db):
            for each in taken(stage, row.id):
                each.scheduled_at -= timedelta(hours=1)
                each.name = f"{each.name}-{hours}"
        come_due(stage, row.id)
        follow(stage)
        names.append(taken(stage, row.id)[-1].id)
    follow(stage)
    assert [each.id for each in taken(stage, row.id)] == names[-2:]
    stage.ctx.db.refresh(own)
    assert own.state == "completed"
    assert_sound(stage)


def test_days_are_kept_as_those_of_any_snapshot(stage: Stage) -> None:
    row = volume(stage)
    stage.do(volume_set_snapshot_schedule, row.id, frequency="daily", retention_days=3)
    come_due(stage, row.id)
    follow(stage)
    (one,) = taken(stage, row.id)
    assert one.retention_days == 3
    assert one.expires_at is not None
    with transaction(stage.ctx.db):
        one.expires_at = now()
    stage.tend()
    assert taken(stage, row.id) == []


def test_what_the_quota_has_no_room_for_is_told_once_and_tried_the_next_time(stage: Stage) -> None:
    row = due_volume(stage)
    limit_snapshots(stage, 0)
    follow(stage)
    follow(stage)
    stage.ctx.db.refresh(row)
    assert (taken(stage, row.id), told(stage, row)) == ([], 1)
    assert "snapshots" in row.snapshot_problem.lower()
    assert row.next_snapshot_at is not None
    assert row.next_snapshot_at > now()
    refused = select(AuditEntry).where(AuditEntry.action == "storage.snapshot.take_scheduled", AuditEntry.status == "failure")
    assert len(stage.ctx.db.scalars(refused).all()) == 1
    come_due(stage, row.id)
    follow(stage)
    assert told(stage, row) == 1
    limit_snapshots(stage, 5)
    come_due(stage, row.id)
    follow(stage)
    stage.ctx.db.refresh(row)
    assert (len(taken(stage, row.id)), row.snapshot_problem) == (1, "")
    assert_sound(stage)


def test_what_the_host_cannot_take_is_told_and_leaves_nothing(stage: Stage) -> None:
    row = due_volume(stage)
    stage.volumes.fail_next("ensure_snapshot", EngineRefused("The pool is full."))  # type: ignore[attr-defined] # the fake
    follow(stage)
    follow(stage)
    stage.ctx.db.refresh(row)
    assert (taken(stage, row.id), row.snapshot_problem, told(stage, row)) == ([], "The pool is full.", 1)
    assert_sound(stage)


def test_what_is_in_the_trash_or_switched_off_is_left_alone(stage: Stage) -> None:
    row = due_volume(stage)
    stage.do(volume_trash, row.id)
    follow(stage)
    assert taken(stage, row.id) == []
    stage.do(volume_recover, row.id)
    follow(stage)
    assert len(taken(stage, row.id)) == 1
    off = stage.do(volume_set_snapshot_schedule, row.id, frequency="hourly", retention_count=1, is_enabled=False)
    assert off.next_snapshot_at is None
    ended = stage.do(volume_set_snapshot_schedule, row.id)
    assert ended.snapshot_schedule is None
    assert len(taken(stage, row.id)) == 1


def test_what_is_due_no_more_is_no_trouble(stage: Stage) -> None:
    """Its owner has changed the schedule since somebody looked."""
    row = volume(stage)
    system = replace(stage.ctx, principal=SYSTEM)
    with pytest.raises(Conflict, match="was due"):
        run(
            system,
            stage.ctx.registry.operation("storage.volume.miss_snapshot"),
            row.id,
            {"due": "2026-01-01T00:00:00+00:00", "reason": "It was refused."},
        )
    stage.ctx.db.refresh(row)
    assert row.snapshot_problem == ""


def test_a_schedule_is_for_those_who_may_take_snapshots(stage: Stage, people: People) -> None:
    row = volume(stage)
    viewer = people.context(people.user("viewer"))
    with pytest.raises(Forbidden):
        run(viewer, volume_set_snapshot_schedule, row.id, {"frequency": "daily", "retention_count": 1})
    developer = people.context(people.user("developer"))
    # The oldest go where so many are kept, and they are somebody else's.
    with pytest.raises(Forbidden, match="delete"):
        run(developer, volume_set_snapshot_schedule, row.id, {"frequency": "daily", "retention_count": 1})
    run(developer, volume_set_snapshot_schedule, row.id, {"frequency": "daily", "retention_days": 3})
    with pytest.raises(InvalidRequest, match="for how many days"):
        run(stage.ctx, volume_set_snapshot_schedule, row.id, {"frequency": "daily"})
    with pytest.raises(InvalidRequest, match="would keep 168 snapshots"):
        run(stage.ctx, volume_set_snapshot_schedule, row.id, {"frequency": "hourly", "retention_days": 7})
    with pytest.raises(InvalidRequest, match="time of day"):
        run(stage.ctx, volume_set_snapshot_schedule, row.id, {"frequency": "daily", "time": "25:00", "retention_count": 1})


def test_the_api_sets_shows_and_ends_it(api: Api, api_for: Callable[..., Api], people: People) -> None:
    path = f"/storage/volumes/{api.post('/storage/volumes', {'name': 'data', 'size_gb': 1}).json['id']}"
    assert api.get(f"{path}/snapshot-schedule").json == {"schedule": None, "next_run_at": None, "last_problem": ""}
    given = {"frequency": "weekly", "time": "02:30", "weekday": "friday", "retention_days": 30}
    answer = api("PUT", f"{path}/snapshot-schedule", given)
    assert (answer.status_code, answer.json["schedule"]) == (200, {**given, "retention_count": None, "is_enabled": True})
    due = datetime.fromisoformat(answer.json["next_run_at"])
    assert (due.weekday(), due.hour, due.minute) == (4, 2, 30)
    assert api.get(path).json["snapshot_schedule"]["weekday"] == "friday"
    assert api.get(f"{path}/snapshot-schedule").json == answer.json
    for wrong in ({}, {"frequency": "yearly", "retention_days": 1}, {"frequency": "daily", "retention_count": 0}, {**given, "cron": "* * * * *"}):
        assert api("PUT", f"{path}/snapshot-schedule", wrong).status_code == 400
    stranger = api_for("developer", people.project())
    for body in (given, {}):
        assert stranger("PUT", f"{path}/snapshot-schedule", body).status_code == 404
        assert api_for("viewer")("PUT", f"{path}/snapshot-schedule", body).status_code == 403
    assert stranger.get(f"{path}/snapshot-schedule").status_code == 404
    assert api("DELETE", f"{path}/snapshot-schedule").status_code == 204
    assert api.get(path).json["snapshot_schedule"] is None
