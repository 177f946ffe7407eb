"""Volumes in the course of time: they grow, are kept and brought back, thrown away and swept up."""

from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import update

from portal.compute.images import image_create, image_delete
from portal.compute.instances import Instance, instance_rebuild, instance_terminate
from portal.engines.volume_ports import VolumeSpec
from portal.kernel.context import Context
from portal.kernel.db import now, transaction
from portal.kernel.declare import Operation, Outcome
from portal.kernel.errors import Conflict, Forbidden, InvalidRequest, StateConflict
from portal.kernel.operations import run
from portal.storage import snapshots, tending
from portal.storage.snapshots import snapshot_create, snapshot_delete
from portal.storage.volume_models import Snapshot, Volume, VolumeType
from portal.storage.volume_types import VOLUME_TYPE
from portal.storage.volumes import (
    volume_attach,
    volume_create,
    volume_delete,
    volume_recover,
    volume_resize,
    volume_restore,
    volume_trash,
)
from tests.support.people import People
from tests.support.scenarios import TINY, Stage, assert_sound, attached_volume, root_of, running_instance, snapshot, stored_image, volume

# -- size and speed ----------------------------------------------------------------------------------------------------------------------------


def test_a_volume_only_grows(stage: Stage) -> None:
    row = volume(stage)
    for size in (1, 2):
        with pytest.raises(InvalidRequest, match="must be more than 2 GiB: a volume only grows"):
            run(stage.ctx, volume_resize, row.id, {"size_gb": size})
    grown = stage.do(volume_resize, row.id, size_gb=3)
    assert (grown.size_gb, grown.resize_to_gb, stage.volumes.size_gib(row.id)) == (3, None, 3)


def test_limits_reach_a_running_machine(stage: Stage) -> None:
    row = attached_volume(stage)
    change = stage.ctx.registry.operation("storage.volume.update")
    stage.do(change, row.id, iops=500, throughput_mbps=20)
    assert stage.volumes.limits(row.id) == (500, 20)
    with pytest.raises(InvalidRequest, match="at most 16,000"):
        run(stage.ctx, change, row.id, {"iops": 50_000})
    platform = stage.ctx.registry.operation("storage.volume_type.update")
    with pytest.raises(Forbidden):
        run(stage.ctx, platform, "vt-ssd", {"max_iops": 10})


def test_a_type_gives_at_most_what_it_has(stage: Stage, people: People) -> None:
    admin = people.context(people.user("platform_admin"))
    change = VOLUME_TYPE.operations[0]
    with pytest.raises(InvalidRequest, match="more than the most"):
        run(admin, change, "vt-hdd", {"default_iops": 3000})
    run(admin, change, "vt-hdd", {"is_active": False})
    with pytest.raises(InvalidRequest, match="hdd is not offered any more"):
        run(stage.ctx, volume_create, None, {"name": "data", "size_gb": 1, "volume_type": "hdd"})
    assert stage.ctx.db.get_one(VolumeType, "vt-hdd").pool == "hdd"


# -- snapshots -----------------------------------------------------------------------------------------------------------------------------------


def test_a_volume_comes_back_to_its_snapshot(stage: Stage) -> None:
    row = volume(stage)
    stage.volumes.write(row.id, 1, "a")
    kept = stage.do(snapshot_create, name="kept", volume=row.id)
    stage.volumes.write(row.id, 1, "b")
    back = stage.do(volume_restore, row.id, snapshot="kept")
    assert (back.state, back.restoring_id, stage.volumes.read(row.id, 1)) == ("available", None, "a")
    with pytest.raises(InvalidRequest, match="is not of this volume"):
        run(stage.ctx, volume_restore, volume(stage).id, {"snapshot": kept.id})


def test_snapshots_outlive_their_volume_and_are_copied(stage: Stage) -> None:
    row = volume(stage)
    stage.volumes.write(row.id, 1, "a")
    kept = stage.do(snapshot_create, name="kept", volume=row.id)
    stage.do(volume_delete, row.id)
    copy = stage.do(snapshot_create, name="copy", snapshot=kept.id, volume_type="hdd")
    stage.do(snapshot_delete, kept.id)
    new = stage.do(volume_create, name="new", snapshot=copy.id)
    assert (new.volume_type.name, copy.volume_name, stage.volumes.read(new.id, 1)) == ("hdd", row.name, "a")
    for given in ({}, {"volume": new.id, "snapshot": copy.id}, {"volume": new.id, "volume_type": "hdd"}):
        with pytest.raises(InvalidRequest):
            run(stage.ctx, snapshot_create, None, {"name": "bad", **given})


def test_a_volume_has_so_many_snapshots_and_no_more(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "MOST_SNAPSHOTS", 2)
    row = volume(stage)
    for name in ("a", "b"):
        stage.do(snapshot_create, name=name, volume=row.id)
    with pytest.raises(Conflict, match="has 2 snapshots, the most"):
        run(stage.ctx, snapshot_create, None, {"name": "c", "volume": row.id})
    stage.do(snapshot_create, name="copy", snapshot="a")


def test_an_image_that_volumes_are_built_on_stays(stage: Stage) -> None:
    image = stored_image(stage)
    row = stage.do(volume_create, name="data", image=image.id)
    kept = stage.do(snapshot_create, name="kept", volume=row.id)
    stage.do(volume_delete, row.id)
    with pytest.raises(Conflict, match="1 volume or snapshot began with"):
        run(stage.ctx, image_delete, image.id)
    stage.do(snapshot_delete, kept.id)
    stage.do(image_delete, image.id)


def test_an_image_is_made_from_a_snapshot(stage: Stage) -> None:
    kept = snapshot(stage)
    outcome = run(stage.ctx, image_create, None, {"name": "mine", "snapshot_id": kept.id})
    with pytest.raises(Conflict, match="is being made from"):
        run(stage.ctx, snapshot_delete, kept.id)
    stage.worker.drain()
    image = stage.row(outcome)
    assert (image.state, image.snapshot_id, image.format, image.size_gb) == ("available", kept.id, "qcow2", 2)
    assert stage.do(volume_create, name="data", image="mine").size_gb == 2
    with pytest.raises(InvalidRequest, match="made from a snapshot"):
        run(stage.ctx, image_create, None, {"name": "both", "snapshot": kept.id, "source_url": "https://example.org/x"})
    assert_sound(stage)


def test_only_a_platform_admin_shares_with_everybody(stage: Stage, people: People) -> None:
    kept = snapshot(stage)
    share = stage.ctx.registry.operation("storage.snapshot.make_public")
    with pytest.raises(InvalidRequest, match="Only a platform admin"):
        run(stage.ctx, share, kept.id)
    run(people.context(people.user("platform_admin")), share, kept.id)
    other = people.project("other")
    foreign = people.context(people.user("developer", other), other)
    made = run(foreign, volume_create, None, {"name": "theirs", "snapshot": kept.id})
    stage.worker.drain()
    assert stage.row(made).state == "available"


# -- trash and sweep -----------------------------------------------------------------------------------------------------------------------------


def test_what_is_in_the_trash_comes_back_or_goes_when_its_time_is_over(stage: Stage) -> None:
    first, second = volume(stage), volume(stage)
    for row in (first, second):
        run(stage.ctx, volume_trash, row.id)
    stage.ctx.db.refresh(first)
    assert timedelta(days=6) < first.trash_until - now() < timedelta(days=8)
    with pytest.raises(StateConflict, match="is trashed"):
        run(stage.ctx, volume_attach, first.id, {"instance": running_instance(stage).id})
    run(stage.ctx, volume_recover, first.id)
    stage.tend()
    with transaction(stage.ctx.db):
        stage.ctx.db.execute(update(Volume).where(Volume.id == second.id).values(trash_until=now() - timedelta(seconds=1)))
    stage.tend()
    stage.ctx.db.expire_all()
    assert (stage.ctx.db.get_one(Volume, first.id).state, stage.ctx.db.get_one(Volume, second.id).state) == ("available", "deleted")
    assert_sound(stage)


def test_snapshots_are_kept_as_long_as_was_said(stage: Stage) -> None:
    kept = stage.do(snapshot_create, name="kept", volume=volume(stage).id, retention_days=3)
    assert timedelta(days=2) < kept.expires_at - now() < timedelta(days=4)
    stage.tend()
    with transaction(stage.ctx.db):
        stage.ctx.db.execute(update(Snapshot).where(Snapshot.id == kept.id).values(expires_at=now()))
    stage.tend()
    stage.ctx.db.expire_all()
    assert stage.ctx.db.get_one(Snapshot, kept.id).state == "deleted"


def test_what_is_kept_in_the_last_moment_stays(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody changes their mind when the portal has looked what is over, and has yet to delete it."""
    row, kept = volume(stage), stage.do(snapshot_create, name="kept", volume=volume(stage).id, retention_days=3)
    run(stage.ctx, volume_trash, row.id)
    over = now() - timedelta(seconds=1)
    with transaction(stage.ctx.db):
        stage.ctx.db.execute(update(Volume).where(Volume.id == row.id).values(trash_until=over))
        stage.ctx.db.execute(update(Snapshot).where(Snapshot.id == kept.id).values(expires_at=over))

    def late(ctx: Context, op: Operation, target: str | None, data: dict[str, Any]) -> Outcome:
        if target == row.id:
            run(stage.ctx, volume_recover, row.id)
        if target == kept.id:
            run(stage.ctx, stage.ctx.registry.operation("storage.snapshot.update"), kept.id, {"retention_days": 30})
        return run(ctx, op, target, data)

    monkeypatch.setattr(tending, "run", late)
    stage.tend()
    stage.ctx.db.expire_all()
    assert (stage.ctx.db.get_one(Volume, row.id).state, stage.ctx.db.get_one(Snapshot, kept.id).state) == ("available", "completed")


def test_what_no_record_wants_is_swept_and_what_none_knows_is_left(stage: Stage) -> None:
    gone, stays = volume(stage), volume(stage)
    stage.do(volume_delete, gone.id)
    # What a worker left behind that died twice, and what is older than the database.
    stage.volumes.ensure_volume(VolumeSpec(gone.id, "ssd", 1))
    stage.volumes.ensure_volume(VolumeSpec("vol-00000000aaaa", "ssd", 1))
    stage.volumes.ensure_snapshot(f"copy-{stays.id.removeprefix('vol-')}", stays.id)
    stage.tend()
    assert sorted(each.content_id for each in stage.volumes.kept()) == sorted([stays.id, "vol-00000000aaaa"])


# -- what has yet to be read -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("made", ["snapshot", "copy"])
def test_what_a_volume_holds_stays_until_it_has_been_read(stage: Stage, made: str) -> None:
    """A snapshot or a copy that was asked for is of what the volume held then, however long a worker takes to come to it."""
    row = volume(stage)
    kept = stage.do(snapshot_create, name="first", volume=row.id)
    if made == "snapshot":
        asked = run(stage.ctx, snapshot_create, None, {"name": "second", "volume": row.id})
    else:
        asked = run(stage.ctx, volume_create, None, {"name": "copy", "source_volume": row.id})
    for operation, inputs in ((volume_restore, {"snapshot": kept.id}), (volume_delete, {})):
        with pytest.raises(Conflict, match="Wait until that is done"):
            run(stage.ctx, operation, row.id, inputs)
    stage.worker.drain()
    assert stage.ctx.db.get_one(type(asked.row), asked.row.id, populate_existing=True).state in {"completed", "available"}
    stage.do(volume_restore, row.id, snapshot=kept.id)
    stage.do(volume_delete, row.id)


def test_volumes_do_not_go_with_a_machine_before_they_have_been_read(stage: Stage) -> None:
    row = attached_volume(stage)
    machine = stage.ctx.db.get_one(Instance, row.instance_id)
    run(stage.ctx, stage.ctx.registry.operation("storage.volume.update"), row.id, {"delete_on_termination": True})
    for each in (row, root_of(stage, machine)):
        run(stage.ctx, snapshot_create, None, {"name": f"of {each.name}", "volume": each.id})
        with pytest.raises(Conflict, match="A snapshot of the volume is being taken"):
            run(stage.ctx, instance_terminate, machine.id)
        if each is not row:
            with pytest.raises(Conflict, match="A snapshot of the volume is being taken"):
                run(stage.ctx, instance_rebuild, machine.id, {"image": TINY})
        stage.worker.drain()
    run(stage.ctx, instance_terminate, machine.id)
    taken = run(stage.ctx, snapshot_create, None, {"name": "late", "volume": row.id})
    # The machine goes first, and waits for what was asked meanwhile.
    stage.worker.drain()
    assert stage.ctx.db.get_one(Snapshot, taken.row.id, populate_existing=True).state == "completed"
    assert stage.ctx.db.get_one(Instance, machine.id, populate_existing=True).state == "terminated"
    assert_sound(stage)
