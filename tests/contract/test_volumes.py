"""Volumes: what may be asked for, what comes of it on the host, and what is refused with a way out."""

from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import func, select, update

from portal.compute.instance_steps import spec_of
from portal.compute.instances import instance_rebuild, instance_terminate
from portal.engines.ports import Capability, EngineRefused, MachineVolume
from portal.engines.volume_ports import Kept
from portal.kernel.audit import AuditEntry
from portal.kernel.capabilities import report
from portal.kernel.db import now, transaction
from portal.kernel.declare import Outcome
from portal.kernel.errors import Conflict, Forbidden, InvalidRequest, NotFound, QuotaExceeded, StateConflict, Unavailable
from portal.kernel.jobs import Job
from portal.kernel.operations import run
from portal.kernel.quota import Quota, held_by
from portal.storage.snapshots import snapshot_create
from portal.storage.volume_models import Volume
from portal.storage.volumes import (
    volume_attach,
    volume_create,
    volume_delete,
    volume_detach,
    volume_resize,
    volume_restore,
    volume_trash,
)
from tests.support.people import People
from tests.support.racing import race
from tests.support.scenarios import TINY, Stage, assert_sound, attached_volume, root_of, running_instance, stopped_instance, stored_image, volume

# -- making ------------------------------------------------------------------------------------------------------------------------------------


def test_a_volume_is_made_as_large_and_fast_as_asked(stage: Stage) -> None:
    plain = volume(stage)
    assert (plain.state, plain.volume_type.name, plain.iops, plain.throughput_mbps) == ("available", "ssd", 3000, 125)
    fast = stage.do(volume_create, name="fast", size_gb=5, volume_type="nvme", iops=20_000, throughput_mbps=1000)
    found = {each.content_id: (each.pool, each.size_bytes >> 30) for each in stage.volumes.kept()}
    assert found == {plain.id: ("ssd", 2), fast.id: ("nvme", 5)}
    assert held_by(stage.ctx.db, fast.id) == {"volumes": 1, "volume_gb": 5, "rows:storage.volume": 1}


@pytest.mark.parametrize(
    ("given", "field", "says"),
    [
        ({}, "size_gb", "is required"),
        ({"size_gb": 0}, "size_gb", "greater than or equal to 1"),
        ({"size_gb": -5}, "size_gb", "greater than or equal to 1"),
        ({"size_gb": "10"}, "size_gb", "valid integer"),
        ({"size_gb": 20_000}, "size_gb", "at most 16,384 GiB"),
        ({"size_gb": 1, "volume_type": "tape"}, "volume_type", "no volume type tape"),
        ({"size_gb": 1, "volume_type": "hdd", "iops": 5000}, "iops", "at most 2,000"),
        ({"size_gb": 1, "throughput_mbps": 5000}, "throughput_mbps", "at most 1,000"),
        ({"size_gb": 1, "image": "ami-nowhere"}, "image", "no image ami-nowhere"),
        ({"size_gb": 1, "snapshot": "snap-nowhere"}, "snapshot", "no snapshot"),
        ({"snapshot": "snap-1", "source_volume": "vol-1"}, "snapshot", "no snapshot"),
        ({"size_gb": 1, "colour": "red"}, "colour", "is not a field"),
    ],
)
def test_what_cannot_be_made_says_why(stage: Stage, given: dict[str, Any], field: str, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says) as refusal:
        run(stage.ctx, volume_create, None, {"name": "data", **given})
    assert field in refusal.value.details
    assert stage.volumes.kept() == []


def test_a_volume_begins_with_a_snapshot_a_volume_or_an_image(stage: Stage) -> None:
    source = volume(stage)
    stage.volumes.write(source.id, 1, "a")
    kept = stage.do(snapshot_create, name="kept", volume=source.id)
    stage.volumes.write(source.id, 1, "b")
    restored, copied = stage.do(volume_create, name="restored", snapshot="kept"), stage.do(volume_create, name="copied", source_volume=source.id)
    assert [(each.size_gb, stage.volumes.read(each.id, 1)) for each in (restored, copied)] == [(2, "a"), (2, "b")]
    from_image = stage.do(volume_create, name="imaged", image=TINY)
    assert (from_image.size_gb, from_image.image_id) == (1, TINY)
    for name, given in (("small", {"snapshot": kept.id}), ("tiny", {"source_volume": source.id})):
        with pytest.raises(InvalidRequest, match="at least 2 GiB"):
            run(stage.ctx, volume_create, None, {"name": name, "size_gb": 1, **given})
    with pytest.raises(InvalidRequest, match="one of several things"):
        run(stage.ctx, volume_create, None, {"name": "both", "snapshot": kept.id, "source_volume": source.id})
    # Only what was asked for is kept.
    assert len([each for each in stage.volumes.kept() if each.kind is Kept.SNAPSHOT]) == 1


def test_quotas_hold_for_number_and_size(stage: Stage) -> None:
    db = stage.ctx.db
    with transaction(db):
        db.execute(update(Quota).where(Quota.project_id == stage.ctx.project_id, Quota.dimension == "volume_gb").values(limit=5))
    first = volume(stage)
    with pytest.raises(QuotaExceeded) as refusal:
        run(stage.ctx, volume_create, None, {"name": "more", "size_gb": 4})
    assert {key: refusal.value.details[key] for key in ("limit", "used", "requested")} == {"limit": 5, "used": 2, "requested": 4}
    with pytest.raises(QuotaExceeded):
        run(stage.ctx, volume_resize, first.id, {"size_gb": 6})
    stage.do(volume_resize, first.id, size_gb=5)
    assert held_by(db, first.id)["volume_gb"] == 5


def test_a_pool_that_is_full_takes_nothing_more(stage: Stage) -> None:
    rooms = {"ssd": {"total_gib": 100, "free_gib": 2}, "hdd": {"total_gib": 100, "free_gib": 50}}
    report(stage.ctx.db, Capability("volumes", available=True, detail="in memory"), worker="test", facts=rooms)
    with pytest.raises(Conflict, match=r"Pool ssd is full.*DISK_RESERVED_GIB"):
        run(stage.ctx, volume_create, None, {"name": "data", "size_gb": 1})
    with pytest.raises(Conflict, match="Pool ssd is full"):
        run(stage.ctx, stage.ctx.registry.operation("compute.instance.create"), None, {"name": "web", "flavor": "t3-micro", "image": TINY})
    stage.do(volume_create, name="data", size_gb=1, volume_type="hdd")
    report(stage.ctx.db, Capability("volumes", available=False, detail="none", reason="There is no disk.", remedy="Add one."), worker="test")
    with pytest.raises(Unavailable, match=r"There is no disk\. Add one\."):
        run(stage.ctx, volume_create, None, {"name": "more", "size_gb": 1, "volume_type": "hdd"})


def test_a_host_that_runs_full_while_a_volume_is_made_leaves_nothing(stage: Stage) -> None:
    stage.volumes.fail_next("ensure_volume", EngineRefused("The disk cannot be made: the host's disk is full."))
    row = stage.do(volume_create, name="data", size_gb=1)
    assert (row.state, row.state_reason) == ("error", "The disk cannot be made: the host's disk is full.")
    assert stage.volumes.kept() == []
    assert "volume_gb" not in held_by(stage.ctx.db, row.id)
    stage.do(volume_delete, row.id)
    assert_sound(stage)


# -- machines ----------------------------------------------------------------------------------------------------------------------------------


def test_one_machine_at_a_time(stage: Stage) -> None:
    row = attached_volume(stage)
    assert (row.state, row.attached_at is not None) == ("in-use", True)
    assert row.id in stage.engine.volumes_of(row.instance_id)
    with pytest.raises(StateConflict, match="is in-use; attach needs it to be available"):
        run(stage.ctx, volume_attach, row.id, {"instance": running_instance(stage).id})
    for op in (volume_trash, volume_delete):
        with pytest.raises(StateConflict, match="is in-use"):
            run(stage.ctx, op, row.id)
    back = stage.do(volume_detach, row.id)
    assert (back.state, back.instance_id, back.attached_at) == ("available", None, None)
    assert_sound(stage)


def test_of_several_at_once_one_gets_the_volume(stage: Stage, people: People) -> None:
    row, machines = volume(stage), [running_instance(stage).id for _ in range(3)]
    contexts = [people.context(people.user("developer")) for _ in machines]
    given = race(
        [lambda ctx=ctx, each=each: run(ctx, volume_attach, row.id, {"instance": each}) for ctx, each in zip(contexts, machines, strict=True)]
    )
    assert sum(isinstance(each, Outcome) for each in given) == 1
    assert all(isinstance(each, Outcome | StateConflict) for each in given), given
    stage.worker.drain()
    assert_sound(stage)


def test_a_machine_that_has_others_than_it_should_is_brought_up_to_date(stage: Stage) -> None:
    row, stranger = attached_volume(stage), volume(stage)
    machine = stage.ctx.db.get_one(stage.ctx.registry.model("compute.instance"), row.instance_id)
    root = root_of(stage, machine)
    # As after a job that nobody could finish or undo.
    wrong = replace(spec_of(machine), volumes=[MachineVolume(root.id, is_root=True), MachineVolume(stranger.id)])
    stage.engine.ensure_volumes(wrong)
    stage.ctx.db.rollback()
    stage.tend()
    assert set(stage.engine.volumes_of(machine.id)) == {root.id, row.id}
    jobs = stage.ctx.db.scalar(select(func.count()).select_from(Job))
    stage.tend()
    assert stage.ctx.db.scalar(select(func.count()).select_from(Job)) == jobs
    assert_sound(stage)


def test_a_stopped_machine_takes_a_volume_as_well(stage: Stage) -> None:
    machine = stopped_instance(stage)
    row = stage.do(volume_attach, volume(stage).id, instance=machine.name)
    assert row.state == "in-use"
    assert row.id in stage.engine.volumes_of(machine.id)


def test_a_machine_has_so_many_volumes_and_no_more(stage: Stage) -> None:
    machine = running_instance(stage)
    for number in range(11):
        stage.do(volume_attach, stage.do(volume_create, name=f"v{number}", size_gb=1).id, instance=machine.id)
    with pytest.raises(Conflict, match="has 12 volumes") as refusal:
        run(stage.ctx, volume_attach, volume(stage).id, {"instance": machine.id})
    assert refusal.value.details == {"limit": 12, "used": 12}


def test_a_foreign_projects_machine_is_not_there(stage: Stage, people: People) -> None:
    other = people.project("other")
    foreign = people.context(people.user("project_admin", other), other)
    theirs = run(
        foreign, stage.ctx.registry.operation("compute.instance.create"), None, {"name": "theirs", "flavor": "t3-micro", "image": TINY}
    ).row.id
    stage.worker.drain()
    mine = volume(stage)
    with pytest.raises(InvalidRequest, match="There is no instance"):
        run(stage.ctx, volume_attach, mine.id, {"instance": theirs})
    with pytest.raises(NotFound):
        run(foreign, volume_attach, mine.id, {"instance": theirs})


def test_who_may_not_change_a_machine_gives_it_nothing(stage: Stage, people: People) -> None:
    machine, row = running_instance(stage), volume(stage)
    viewer = people.context(people.user("viewer"))
    with pytest.raises(Forbidden):
        run(viewer, volume_attach, row.id, {"instance": machine.id})


def test_a_machine_that_is_gone_meanwhile_takes_nothing(stage: Stage) -> None:
    machine, row = running_instance(stage), volume(stage)
    job = run(stage.ctx, volume_attach, row.id, {"instance": machine.id})
    stage.engine.remove_machine(machine.id)
    stage.worker.drain()
    found = stage.row(job)
    assert (found.state, found.instance_id) == ("available", None)
    stage.do(instance_terminate, machine.id)
    with pytest.raises(InvalidRequest, match="There is no instance"):
        run(stage.ctx, volume_attach, row.id, {"instance": machine.id})


def test_what_becomes_of_volumes_when_their_machine_is_terminated(stage: Stage) -> None:
    machine = running_instance(stage)
    root = root_of(stage, machine)
    stays = stage.do(volume_attach, volume(stage).id, instance=machine.id)
    goes = stage.do(volume_create, name="goes", size_gb=1, delete_on_termination=True)
    stage.do(volume_attach, goes.id, instance=machine.id)
    stage.do(instance_terminate, machine.id)
    rows = {row.id: row for row in stage.ctx.db.scalars(select(Volume).execution_options(populate_existing=True))}
    assert (rows[stays.id].state, rows[stays.id].instance_id) == ("available", None)
    for gone in (root.id, goes.id):
        assert (rows[gone].state, rows[gone].deleted_at is not None, held_by(stage.ctx.db, gone)) == ("deleted", True, {})
    assert [each.content_id for each in stage.volumes.kept()] == [stays.id]
    assert_sound(stage)


# -- root volumes ------------------------------------------------------------------------------------------------------------------------------


def test_a_root_volume_stays_with_its_machine(stage: Stage) -> None:
    machine = running_instance(stage)
    root = root_of(stage, machine)
    assert (root.state, root.size_gb, root.delete_on_termination, root.image_id) == ("in-use", machine.root_volume_size_gb, True, TINY)
    with pytest.raises(Conflict, match="root disk of its instance"):
        run(stage.ctx, volume_detach, root.id)
    with pytest.raises(Conflict, match="is running and has the volume"):
        run(stage.ctx, volume_restore, root.id, {"snapshot": stage.do(snapshot_create, name="kept", volume=root.id).id})
    grown = stage.do(volume_resize, root.id, size_gb=20)
    assert grown.state == "in-use"
    stage.ctx.db.refresh(machine)
    assert machine.root_volume_size_gb == 20
    run(stage.ctx, stage.ctx.registry.operation("storage.volume.update"), root.id, {"delete_on_termination": False})
    stage.do(instance_terminate, machine.id)
    stage.ctx.db.refresh(root)
    assert (root.state, root.is_root, root.instance_id) == ("available", False, None)
    assert_sound(stage)


def test_a_rebuilt_machine_keeps_its_root_volume_but_not_what_was_on_it(stage: Stage) -> None:
    machine, image = running_instance(stage), stored_image(stage)
    root = root_of(stage, machine)
    stage.volumes.write(root.id, 1, "a")
    stage.do(instance_rebuild, machine.id, image=image.id)
    again = root_of(stage, machine)
    assert (again.id, again.state, again.image_id, stage.volumes.read(root.id, 1)) == (root.id, "in-use", image.id, "")
    assert_sound(stage)


def test_an_instance_of_an_earlier_version_gets_a_root_volume(stage: Stage) -> None:
    machine = running_instance(stage)
    root = root_of(stage, machine)
    # As it was before: a disk of its own, and no record.
    stage.engine.ensure_stopped(machine.id, graceful_timeout_s=0)
    stage.engine.remove_machine(machine.id)
    stage.volumes.remove_volume(root.id)
    with transaction(stage.ctx.db):
        stage.ctx.db.execute(update(Volume).where(Volume.id == root.id).values(deleted_at=now(), state="deleted", is_root=False, instance_id=None))
    stage.ctx.db.refresh(machine)
    spec = spec_of(machine)
    for step in (stage.engine.ensure_disk, stage.engine.ensure_seed, stage.engine.ensure_defined):
        step(spec)
    stage.engine.ensure_running(machine.id)
    stage.ctx.db.rollback()
    full = update(Quota).where(Quota.project_id == machine.project_id, Quota.dimension == "volume_gb")
    with transaction(stage.ctx.db):
        stage.ctx.db.execute(full.values(limit=10))
    stage.tend()
    assert stage.ctx.db.scalars(select(Volume).where(Volume.instance_id == machine.id)).all() == []
    assert stage.ctx.db.scalars(select(AuditEntry).where(AuditEntry.action == "storage.volume.adopt")).all() == []
    with transaction(stage.ctx.db):
        stage.ctx.db.execute(full.values(limit=1000))
    stage.tend()
    stage.tend()
    new = root_of(stage, machine)
    assert (new.state, new.size_gb, new.id != root.id) == ("in-use", machine.root_volume_size_gb, True)
    assert new.id not in {each.content_id for each in stage.volumes.kept()}
    stage.do(stage.ctx.registry.operation("compute.instance.stop"), machine.id, force=True)
    stage.do(stage.ctx.registry.operation("compute.instance.start"), machine.id)
    assert new.id in {each.content_id for each in stage.volumes.kept()}
    assert_sound(stage)
