"""Encrypted volumes: with which key, what of them is encrypted as well, and what a key that is taken away stops."""

import hashlib
from base64 import b64encode
from typing import Any

import pytest
from sqlalchemy import select

from portal.compute.images import image_create
from portal.compute.instances import instance_create, instance_reboot, instance_start, instance_stop
from portal.kernel.db import transaction
from portal.kernel.errors import Conflict, Forbidden, InvalidRequest
from portal.kernel.operations import run
from portal.security.encryption_keys import key_create, key_disable, key_enable, key_rotate, key_schedule_deletion, uses_of
from portal.security.key_models import EncryptionKey
from portal.security.key_store import KeyDisabled, KeyPendingDeletion, default_key, unwrap
from portal.storage.snapshots import snapshot_create, snapshot_make_public
from portal.storage.volume_keys import PURPOSE
from portal.storage.volume_models import Snapshot, Volume
from portal.storage.volumes import volume_attach, volume_create, volume_detach, volume_resize, volume_restore
from tests.support.people import People
from tests.support.scenarios import TINY, Stage, assert_sound, running_instance, stopped_instance, volume


@pytest.fixture
def key(stage: Stage) -> EncryptionKey:
    row: EncryptionKey = run(stage.ctx, key_create, None, {"name": "a-key"}).row
    return row


def encrypted(stage: Stage, **given: Any) -> Any:
    return stage.do(volume_create, name=stage.name(), size_gb=2, **given)


def passphrase(stage: Stage, row: Any) -> bytes:
    stage.ctx.db.rollback()
    wrapped = stage.ctx.db.scalar(select(type(row).wrapped_key).where(type(row).id == row.id))
    return b64encode(unwrap(stage.ctx.db, stage.ctx.settings, wrapped or b"", context=PURPOSE))


def test_without_a_key_named_it_is_the_default_one(stage: Stage) -> None:
    one, other = encrypted(stage, encryption_enabled=True), encrypted(stage, encryption_enabled=True)
    found = default_key(stage.ctx.db, one.project_id)
    assert found is not None
    assert {one.kms_key_id, other.kms_key_id} == {found.id}
    assert passphrase(stage, one) != passphrase(stage, other)
    # What the engine was given is what the record unwraps to.
    assert stage.volumes.locked_by(one.id) == hashlib.sha256(passphrase(stage, one)).hexdigest()
    assert not stage.volumes.locked_by(volume(stage).id)
    assert_sound(stage)


def test_everything_that_begins_as_it_is_encrypted_as_it_is(stage: Stage, key: EncryptionKey) -> None:
    first = encrypted(stage, kms_key=key.id)
    kept = stage.do(snapshot_create, name="kept", volume=first.id)
    copy = stage.do(snapshot_create, name="copy", snapshot=kept.id)
    clone = stage.do(volume_create, name="clone", source_volume=first.id)
    restored = stage.do(volume_create, name="restored", snapshot=copy.id, encryption_enabled=True, kms_key=key.id)
    assert {passphrase(stage, each) for each in (first, kept, copy, clone, restored)} == {passphrase(stage, first)}
    for each in (first, kept, copy, clone, restored):
        assert (each.encryption_enabled, each.kms_key_id) == (True, key.id)
    stage.do(volume_restore, first.id, snapshot=kept.id)
    stage.do(volume_resize, clone.id, size_gb=5)
    assert len(uses_of(stage.ctx, key)) == 5


def test_what_is_not_encrypted_does_not_become_so(stage: Stage, key: EncryptionKey) -> None:
    plain, locked = volume(stage), encrypted(stage, encryption_enabled=True)
    with pytest.raises(InvalidRequest, match="is not encrypted"):
        stage.do(volume_create, name="no", source_volume=plain.id, encryption_enabled=True)
    with pytest.raises(InvalidRequest, match="with another key"):
        stage.do(volume_create, name="no", source_volume=locked.id, kms_key=key.id)


def test_a_key_is_used_by_whoever_may_use_it(stage: Stage, key: EncryptionKey, people: People) -> None:
    developer = people.context(people.user("developer"))
    assert run(developer, volume_create, None, {"name": "theirs", "size_gb": 1, "kms_key": key.id}).row.encryption_enabled
    viewer = people.context(people.user("viewer"))
    with pytest.raises(Forbidden):
        run(viewer, volume_create, None, {"name": "no", "size_gb": 1, "kms_key": key.id})


def test_a_disabled_key_stops_what_would_read_with_it(stage: Stage, key: EncryptionKey) -> None:
    locked, used = encrypted(stage, kms_key=key.id), encrypted(stage, kms_key=key.id)
    machine = running_instance(stage)
    stage.do(volume_attach, used.id, instance=machine.id)
    kept = stage.do(snapshot_create, name="kept", volume=locked.id)
    run(stage.ctx, key_disable, key.id)
    for op, target, data in (
        (volume_attach, locked.id, {"instance": machine.id}),
        (volume_resize, locked.id, {"size_gb": 9}),
        (volume_restore, locked.id, {"snapshot": kept.id}),
        (snapshot_create, None, {"name": "no", "volume": locked.id}),
        (snapshot_create, None, {"name": "no", "snapshot": kept.id}),
        (volume_create, None, {"name": "no", "snapshot": kept.id}),
        (volume_create, None, {"name": "no", "size_gb": 1, "kms_key": key.id}),
        (instance_reboot, machine.id, {}),
    ):
        with pytest.raises(KeyDisabled, match="is disabled"):
            run(stage.ctx, op, target, data)
    # A guest keeps what it has, and gives it back.
    stage.do(instance_stop, machine.id)
    with pytest.raises(KeyDisabled):
        run(stage.ctx, instance_start, machine.id)
    run(stage.ctx, key_enable, key.id)
    stage.do(instance_start, machine.id)
    run(stage.ctx, key_schedule_deletion, key.id)
    stage.do(volume_detach, used.id)
    with pytest.raises(KeyPendingDeletion):
        run(stage.ctx, volume_attach, used.id, {"instance": machine.id})
    assert_sound(stage)


def test_a_key_that_is_taken_away_while_a_job_waits_stops_it_in_words(stage: Stage, key: EncryptionKey) -> None:
    locked, machine = encrypted(stage, kms_key=key.id), stopped_instance(stage)
    job = run(stage.ctx, volume_attach, locked.id, {"instance": machine.id}).job_id
    run(stage.ctx, key_disable, key.id)
    stage.worker.drain()
    assert job is not None
    # Of a machine that is off, nothing is opened yet; its start is refused.
    assert stage.worker.job(job).state == "succeeded"
    created = run(stage.ctx, key_enable, key.id) and run(stage.ctx, volume_create, None, {"name": "late", "size_gb": 1, "kms_key": key.id})
    run(stage.ctx, key_disable, key.id)
    stage.worker.drain()
    assert created is not None
    failed = stage.worker.job(created.job_id or "")
    assert (failed.state, failed.error) == ("failed", "The encryption key a-key is disabled. Enable it to use what is encrypted with it.")


def test_a_rotation_wraps_data_keys_again_and_goes_on_where_it_stopped(stage: Stage, key: EncryptionKey) -> None:
    rows = [encrypted(stage, kms_key=key.id) for _ in range(3)]
    rows.append(stage.do(snapshot_create, name="kept", volume=rows[0].id))
    before = [passphrase(stage, each) for each in rows]
    job = run(stage.ctx, key_rotate, key.id).job_id
    stage.worker.drain()
    assert job is not None
    assert stage.worker.job(job).steps[0].detail == "3 volumes, 1 snapshots"
    stage.ctx.db.rollback()
    for model in (Volume, Snapshot):
        assert set(stage.ctx.db.scalars(select(model.key_version).where(model.kms_key_id == key.id))) == {2}
    assert [passphrase(stage, each) for each in rows] == before
    # As if a round had been lost.
    with transaction(stage.ctx.db):
        stage.ctx.db.get_one(Volume, rows[1].id).key_version = 1
    job = run(stage.ctx, key_rotate, key.id).job_id
    stage.worker.drain()
    assert stage.worker.job(job or "").state == "succeeded"
    assert [passphrase(stage, each) for each in rows] == before


def test_a_machine_boots_from_an_encrypted_root_disk(stage: Stage) -> None:
    machine = stage.do(instance_create, name="locked", flavor="t3-micro", image=TINY, root_volume_encrypted=True)
    stage.ctx.db.rollback()
    root = stage.ctx.db.scalars(select(Volume).where(Volume.instance_id == machine.id)).one()
    assert (root.encryption_enabled, bool(stage.volumes.locked_by(root.id))) == (True, True)
    assert_sound(stage)


def test_what_is_encrypted_does_not_leave_its_project(stage: Stage, people: People) -> None:
    locked = encrypted(stage, encryption_enabled=True)
    kept = stage.do(snapshot_create, name="kept", volume=locked.id)
    with pytest.raises(InvalidRequest, match="is encrypted, and images are not"):
        run(stage.ctx, image_create, None, {"name": "no", "snapshot": kept.id})
    with pytest.raises(Conflict, match="which nobody else may use"):
        run(people.context(people.admin()), snapshot_make_public, kept.id)
