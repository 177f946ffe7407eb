"""Detaching from a machine that does not answer, or that is not there any more."""

import pytest
from sqlalchemy import select

from portal.engines.ports import MachineState
from portal.kernel.errors import Conflict, Forbidden
from portal.kernel.jobs import Job
from portal.kernel.operations import run
from portal.security.encryption_keys import key_disable
from portal.storage.volume_models import Volume
from portal.storage.volumes import volume_attach, volume_create, volume_detach
from tests.support.people import People
from tests.support.scenarios import Stage, assert_sound, attached_volume, encryption_key


def last_job(stage: Stage) -> Job:
    stage.ctx.db.rollback()
    found = stage.ctx.db.scalars(select(Job).order_by(Job.created_at.desc(), Job.id.desc()).limit(1)).first()
    assert found is not None
    return found


def test_a_guest_that_does_not_answer_keeps_its_volume_unless_it_is_forced(stage: Stage) -> None:
    row = attached_volume(stage)
    machine_id = row.instance_id
    stage.engine.deafen(machine_id)
    kept = stage.do(volume_detach, row.id)
    assert (kept.state, kept.instance_id, last_job(stage).state) == ("in-use", machine_id, "failed")
    assert "not let go" in last_job(stage).error
    gone = stage.do(volume_detach, row.id, force=True)
    assert (gone.state, gone.instance_id) == ("available", None)
    assert "lost its power" in last_job(stage).steps[0].detail
    assert stage.engine.machine_state(machine_id) is MachineState.RUNNING
    assert_sound(stage)


def test_a_guest_that_answers_keeps_its_power(stage: Stage) -> None:
    row = attached_volume(stage)
    assert stage.do(volume_detach, row.id, force=True).state == "available"
    assert last_job(stage).steps[0].detail == ""


def test_a_machine_that_is_not_there_any_more_has_nothing(stage: Stage) -> None:
    row = attached_volume(stage)
    stage.engine.remove_machine(row.instance_id)
    assert stage.do(volume_detach, row.id).state == "in-use"
    assert stage.do(volume_detach, row.id, force=True).state == "available"


def test_the_power_of_a_machine_is_cut_by_who_may_reboot_it_and_where_it_comes_back(stage: Stage, people: People) -> None:
    row = attached_volume(stage)
    machine = stage.ctx.db.get_one(stage.ctx.registry.model("compute.instance"), row.instance_id)
    with pytest.raises(Forbidden):
        run(people.context(people.user("viewer")), volume_detach, row.id, {"force": True})
    root = stage.ctx.db.scalars(select(Volume).where(Volume.instance_id == machine.id, Volume.is_root)).one()
    with pytest.raises(Conflict, match="root disk"):
        run(stage.ctx, volume_detach, root.id, {"force": True})
    lock, unlock = (stage.ctx.registry.operation(f"compute.instance.{verb}") for verb in ("lock", "unlock"))
    stage.do(lock, machine.id)
    with pytest.raises(Conflict, match="locked against changes"):
        run(stage.ctx, volume_detach, row.id, {"force": True})
    stage.do(unlock, machine.id)
    key = encryption_key(stage)
    secret = stage.do(volume_create, name="secret", size_gb=1, encryption_enabled=True, kms_key=key.id)
    stage.do(volume_attach, secret.id, instance=machine.id)
    stage.do(key_disable, key.id)
    # It could not be booted again.
    with pytest.raises(Conflict, match="disabled"):
        run(stage.ctx, volume_detach, row.id, {"force": True})
    assert stage.do(volume_detach, secret.id, force=True).state == "available"
