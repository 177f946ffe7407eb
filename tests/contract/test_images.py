"""Images: whole and as announced, or not at all; shared without telling about others."""

import hashlib
import io
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy.orm import Session, sessionmaker

from portal.compute.images import TINY, Image, image_create, image_delete, image_upload, receive_upload, staging_path
from portal.compute.instances import instance_create, instance_rebuild, instance_terminate
from portal.engines.ports import EngineError, Engines
from portal.kernel.db import transaction
from portal.kernel.errors import Conflict, Forbidden, InvalidRequest, StateConflict, TooLarge
from portal.kernel.operations import run
from portal.settings import Settings
from tests.support.draining import TestWorker
from tests.support.effects import entries, rows_of
from tests.support.people import People
from tests.support.scenarios import Stage, announced_image, assert_sound, qcow2, running_instance, stored_image
from tests.support.servers import free_port

BODY = qcow2()
SHA = hashlib.sha256(BODY).hexdigest()


def staged(settings: Settings) -> list[str]:
    directory = settings.data_dir / "staging"
    return sorted(path.name for path in directory.iterdir()) if directory.is_dir() else []


# -- uploads -------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("expected", [len(BODY), None])
def test_an_upload_that_is_whole_is_kept(settings: Settings, expected: int | None) -> None:
    assert receive_upload(settings, "ami-1", io.BytesIO(BODY).read, expected_bytes=expected) == SHA
    assert (staging_path(settings, "ami-1").read_bytes(), staged(settings)) == (BODY, ["ami-1"])


@pytest.mark.parametrize(("body", "expected"), [(BODY[:-1], len(BODY)), (BODY + b"x", len(BODY)), (b"", 0), (b"", None), (b"", 10)])
def test_an_upload_that_breaks_off_leaves_nothing(settings: Settings, body: bytes, expected: int | None) -> None:
    with pytest.raises(InvalidRequest, match="broke off"):
        receive_upload(settings, "ami-1", io.BytesIO(body).read, expected_bytes=expected)
    assert staged(settings) == []


def test_an_upload_that_is_too_large_leaves_nothing_and_is_not_read_to_its_end(settings: Settings) -> None:
    small = settings.model_copy(update={"image_max_gib": 1 / 1024})
    read = []
    chunk = b"x" * (256 << 10)

    def endless(_size: int) -> bytes:
        read.append(1)
        return chunk

    with pytest.raises(TooLarge, match="IMAGE_MAX_GIB"):
        receive_upload(small, "ami-1", endless, expected_bytes=None)
    assert len(read) == 5
    assert staged(settings) == []


def test_an_upload_that_fails_leaves_what_was_there_before(settings: Settings) -> None:
    receive_upload(settings, "ami-1", io.BytesIO(BODY).read, expected_bytes=None)

    def gone(_size: int) -> bytes:
        raise ConnectionResetError("the browser went away")

    with pytest.raises(ConnectionResetError):
        receive_upload(settings, "ami-1", gone, expected_bytes=None)
    assert (staged(settings), staging_path(settings, "ami-1").read_bytes()) == (["ami-1"], BODY)


@pytest.mark.parametrize("image_id", ["..", "../x", "a/b", "/etc/passwd", "", "."])
def test_an_id_is_no_path(settings: Settings, image_id: str) -> None:
    with pytest.raises(InvalidRequest):
        staging_path(settings, image_id)


def test_a_staged_file_is_for_nobody_else(settings: Settings) -> None:
    assert staging_path(settings, "ami-1").parent.stat().st_mode & 0o077 == 0


# -- importing -----------------------------------------------------------------------------------------------------------------------------


def test_an_uploaded_image_becomes_what_it_is(stage: Stage) -> None:
    row = stage.do(image_create, name="mine", checksum_sha256=SHA.upper())
    assert (row.state, row.checksum_sha256) == ("awaiting_upload", SHA)
    receive_upload(stage.ctx.settings, row.id, io.BytesIO(BODY).read, expected_bytes=None)
    row = stage.do(image_upload, row.id, sha256=SHA)
    assert (row.state, row.format, row.size_gb, row.file_size_bytes, row.checksum_sha256) == ("available", "qcow2", 1, len(BODY), SHA)
    assert staged(stage.ctx.settings) == []
    assert_sound(stage)


def test_another_file_than_announced_is_refused(stage: Stage, database: sessionmaker[Session]) -> None:
    row = stage.do(image_create, name="mine", checksum_sha256="0" * 64)
    with pytest.raises(InvalidRequest) as refused:
        run(stage.ctx, image_upload, row.id, {"sha256": SHA})
    assert "checksum_sha256" in refused.value.details
    with database() as session:
        assert session.get_one(Image, row.id).state == "awaiting_upload"


def test_a_file_that_is_no_image_fails_with_the_reason_and_can_be_sent_again(stage: Stage) -> None:
    row = announced_image(stage)
    staging_path(stage.ctx.settings, row.id).write_bytes(b"QFI\xfb" + b"garbage" * 100)
    row = stage.do(image_upload, row.id, sha256="0" * 64)
    assert row.state == "failed"
    assert row.state_reason
    assert staged(stage.ctx.settings) == []
    staging_path(stage.ctx.settings, row.id).write_bytes(BODY)
    assert stage.do(image_upload, row.id, sha256=SHA).state == "available"
    assert_sound(stage)


def test_a_fetched_image(stage: Stage) -> None:
    row = stage.do(image_create, name="fetched", source_url=stage.image_url, checksum_sha256=SHA)
    assert (row.state, row.format, row.checksum_sha256) == ("available", "qcow2", SHA)
    assert staged(stage.ctx.settings) == []


def test_a_fetched_image_with_another_checksum_is_thrown_away(stage: Stage) -> None:
    row = stage.do(image_create, name="fetched", source_url=stage.image_url, checksum_sha256="1" * 64)
    assert row.state == "failed"
    assert SHA in row.state_reason
    assert staged(stage.ctx.settings) == []
    assert not stage.engine.has_image(row.id)


@pytest.mark.parametrize("words", ["connection refused", "no public address"])
def test_an_image_that_cannot_be_fetched_says_why(stage: Stage, words: str) -> None:
    url = f"http://127.0.0.1:{free_port()}/x" if words == "connection refused" else "http://169.254.169.254/latest/meta-data"
    row = stage.do(image_create, name="fetched", source_url=url)
    assert row.state == "failed"
    assert words in row.state_reason
    assert staged(stage.ctx.settings) == []


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "ftp://h/x", "gopher://h", "http://", "http://u:planted@h/x", "http://planted@h/", "http://h:99999/", "http://[::1/",
            "http://h/\x00", "http://h/ x", "x" * 3000],
)  # fmt: skip
def test_a_url_that_can_never_be_fetched_is_refused_at_once(stage: Stage, database: sessionmaker[Session], url: str) -> None:
    before = rows_of(database)
    with pytest.raises(InvalidRequest) as refused:
        run(stage.ctx, image_create, None, {"name": "x", "source_url": url})
    assert list(refused.value.details) == ["source_url"]
    assert "planted" not in refused.value.message
    assert rows_of(database) == before
    assert "planted" not in repr([entry.details for entry in entries(database)])


@pytest.mark.parametrize("checksum", ["0" * 63, "0" * 65, "g" * 64, "sha256:" + "0" * 64])
def test_a_checksum_is_64_hex_digits(stage: Stage, checksum: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        run(stage.ctx, image_create, None, {"name": "x", "checksum_sha256": checksum})
    assert list(refused.value.details) == ["checksum_sha256"]


# -- sharing -------------------------------------------------------------------------------------------------------------------------------


def test_only_a_platform_admin_shares(stage: Stage, people: People) -> None:
    with pytest.raises(InvalidRequest) as refused:
        run(stage.ctx, image_create, None, {"name": "x", "is_public": True})
    assert "is_public" in refused.value.details
    assert run(people.context(people.user("platform_admin")), image_create, None, {"name": "x", "is_public": True}).row.is_public
    with pytest.raises(InvalidRequest):
        run(stage.ctx, stage.ctx.registry.operation("compute.image.update"), stored_image(stage).id, {"is_public": True})


def test_a_shared_image_is_used_by_all_and_changed_by_none(stage: Stage, people: People) -> None:
    update = stage.ctx.registry.operation("compute.image.update")
    for operation, data in ((image_delete, {}), (update, {"name": "mine now"}), (image_upload, {"sha256": SHA})):
        with pytest.raises(Forbidden):
            run(stage.ctx, operation, TINY, data)
    elsewhere = people.project()
    other = people.context(people.user("developer", elsewhere), elsewhere)
    assert run(other, instance_create, None, {"name": "web", "flavor": "t3-micro", "image": TINY}).row.image_id == TINY


def test_who_uses_a_shared_image_is_told_only_as_far_as_one_may_know(stage: Stage, people: People, database: sessionmaker[Session]) -> None:
    image = stored_image(stage)
    with database() as session, transaction(session):
        session.get_one(Image, image.id).is_public = True
    elsewhere = people.project()
    other = people.context(people.user("developer", elsewhere), elsewhere)
    for number in range(2):
        run(other, instance_create, None, {"name": f"hidden-{number}", "flavor": "t3-micro", "image": image.id})
    stage.worker.drain()
    stage.ctx.db.rollback()
    with pytest.raises(Conflict, match="is used by 2 other instances") as used:
        run(stage.ctx, image_delete, image.id)
    assert "hidden" not in used.value.message
    mine = stage.do(instance_create, name="mine", flavor="t3-micro", image=image.id)
    with pytest.raises(Conflict, match="used by mine and 2 other instances"):
        run(stage.ctx, image_delete, image.id)
    stage.do(instance_terminate, mine.id)
    assert "hidden" not in repr([entry.error_message for entry in entries(database)])


def test_an_image_in_use_stays_and_one_that_is_free_goes(stage: Stage) -> None:
    image = stored_image(stage)
    row = stage.do(instance_create, name="web", flavor="t3-micro", image=image.id)
    with pytest.raises(Conflict, match="used by web\\."):
        run(stage.ctx, image_delete, image.id)
    stage.do(instance_terminate, row.id)
    assert stage.do(image_delete, image.id).state == "deleted"
    assert not stage.engine.has_image(image.id)
    assert_sound(stage)


# -- using ---------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"), [({"is_active": False}, "inactive"), ({"state": "failed"}, "failed"), ({"state": "awaiting_upload"}, "awaiting upload")]
)
def test_only_images_that_are_ready_are_used(stage: Stage, database: sessionmaker[Session], change: dict[str, object], words: str) -> None:
    image, row = stored_image(stage), running_instance(stage)
    with database() as session, transaction(session):
        for name, value in change.items():
            setattr(session.get_one(Image, image.id), name, value)
    for operation, target, data in ((instance_create, None, {"name": "web", "flavor": "t3-micro"}), (instance_rebuild, row.id, {})):
        with pytest.raises(InvalidRequest, match=words) as refused:
            run(stage.ctx, operation, target, {**data, "image": image.id})
        assert list(refused.value.details) == ["image"]
        stage.ctx.db.rollback()


def test_a_disk_that_is_too_small_is_refused(stage: Stage, database: sessionmaker[Session]) -> None:
    image, row = stored_image(stage), running_instance(stage)
    with database() as session, transaction(session):
        session.get_one(Image, image.id).size_gb = 30
    with pytest.raises(InvalidRequest, match="at least 30 GiB") as refused:
        run(stage.ctx, instance_create, None, {"name": "web", "flavor": "t3-micro", "image": image.id, "root_volume_size_gb": 29})
    assert list(refused.value.details) == ["root_volume_size_gb"]
    with pytest.raises(InvalidRequest, match="at least 30 GiB"):
        run(stage.ctx, instance_rebuild, row.id, {"image": image.id})
    assert run(stage.ctx, instance_create, None, {"name": "web", "flavor": "t3-micro", "image": image.id}).row.root_volume_size_gb == 30


def test_a_catalogue_image_is_fetched_on_first_use(stage: Stage, database: sessionmaker[Session]) -> None:
    with database() as session, transaction(session):
        for number, url in enumerate((stage.image_url, f"http://127.0.0.1:{free_port()}/x", "")):
            session.add(Image(id=f"ami-cat{number}", name=f"cat{number}", is_public=True, state="catalogue", source_url=url, size_gb=1))
    fine = stage.do(instance_create, name="one", flavor="t3-micro", image="ami-cat0")
    again = stage.do(instance_create, name="two", flavor="t3-micro", image="ami-cat0")
    assert (fine.state, again.state) == ("running", "running")
    assert [call.method for call in stage.engine.calls()].count("ensure_image") == 1
    for number, words in ((1, "connection refused"), (2, "not in this host's store")):
        row = stage.do(instance_create, name=f"bad{number}", flavor="t3-micro", image=f"ami-cat{number}")
        assert row.state == "error"
        assert words in row.state_reason
    assert staged(stage.ctx.settings) == []
    assert_sound(stage)


def test_a_worker_without_an_engine_says_so(stage: Stage, worker: TestWorker, worker_with: Callable[..., TestWorker]) -> None:
    from dataclasses import replace

    outcome = run(stage.ctx, instance_create, None, {"name": "web", "flavor": "t3-micro", "image": TINY})
    replace(worker, runner=replace(worker.runner, engines=Engines())).drain()
    assert "ENGINE_COMPUTE=none" in stage.row(outcome).state_reason
    assert worker_with is not None


def test_a_removal_that_fails_can_be_tried_again(stage: Stage) -> None:
    image = stored_image(stage)
    stage.engine.fail_next("remove_image", EngineError("busy"), times=stage.ctx.settings.job_max_attempts)
    assert stage.do(image_delete, image.id).state == "failed"
    assert stage.do(image_delete, image.id).state == "deleted"
    with pytest.raises(StateConflict):
        run(stage.ctx, image_delete, image.id)


def test_the_staging_place_is_made_where_the_data_is(settings: Settings) -> None:
    assert staging_path(settings, "ami-1").parent == Path(settings.data_dir).resolve() / "staging"
