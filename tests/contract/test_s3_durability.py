"""What object storage promises of bytes: damage is never given out, nothing stays behind, and what others read stays until they have done so."""

import os
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select, update

from portal.engines.blobs import SEGMENT_BYTES
from portal.kernel.alerts import Alert
from portal.kernel.audit import AuditEntry
from portal.kernel.context import Context
from portal.kernel.db import now, transaction
from portal.kernel.quota import Quota
from portal.kernel.runner import TaskRun
from portal.storage import sweep
from portal.storage.object_models import BlobToRemove, Bucket, BucketUsage, ObjectPart, ObjectUpload, ObjectVersion, ScrubTurn
from portal.worker.tasks import TASKS
from tests.support.draining import TestWorker
from tests.support.people import People
from tests.support.s3 import S3, refused

BUCKET = "a-bucket"


@pytest.fixture
def client(s3: S3) -> Any:
    made = s3.client()
    made.create_bucket(Bucket=BUCKET)
    return made


@pytest.fixture
def system(people: People) -> Context:
    return people.context(None)


def blob_files(s3: S3) -> list[Path]:
    return [s3.blobs.path(each.id) for each in s3.blobs.stored()]


def turn_a_bit(path: Path, place: int) -> None:
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 1]))


def test_a_turned_bit_is_never_given_out(client: Any, s3: S3, system: Context) -> None:
    size = 3 * SEGMENT_BYTES
    for key in ("k", "sound"):
        client.put_object(Bucket=BUCKET, Key=key, Body=b"x" * size)
        if key == "k":
            damaged = blob_files(s3)[0]
    turn_a_bit(damaged, SEGMENT_BYTES + 5)
    refused(lambda: client.get_object(Bucket=BUCKET, Key="k"), "InternalError")
    refused(lambda: client.get_object(Bucket=BUCKET, Key="k", Range=f"bytes={SEGMENT_BYTES}-{SEGMENT_BYTES}"), "InternalError")
    # What is sound of it may be read.
    assert client.get_object(Bucket=BUCKET, Key="k", Range="bytes=0-9")["Body"].read() == b"x" * 10
    assert client.get_object(Bucket=BUCKET, Key="sound")["Body"].read() == b"x" * size
    assert sweep.scrub(system, s3.blobs, days=0) == sweep.Scrubbed(2, 1)
    owner = system.db.scalars(select(Bucket.owner_id)).one()
    told = system.db.scalars(select(Alert.title).where(Alert.user_id == owner)).all()
    assert told == [f"{BUCKET}/k is damaged"]
    assert system.db.scalar(select(func.count()).where(AuditEntry.action == "storage.object.damaged")) == 1


@pytest.mark.parametrize("harm", ["cut", "gone", "checksums", "swapped"])
def test_other_damage_is_seen_as_well(client: Any, s3: S3, system: Context, harm: str) -> None:
    client.put_object(Bucket=BUCKET, Key="k", Body=b"one" * 1000)
    path = blob_files(s3)[0]
    client.put_object(Bucket=BUCKET, Key="other", Body=b"two" * 1000)
    other = next(each for each in blob_files(s3) if each != path)
    if harm == "cut":
        path.write_bytes(path.read_bytes()[:-10])
    elif harm == "gone":
        path.unlink()
    elif harm == "checksums":
        turn_a_bit(path, 3001)
    else:
        path.write_bytes(other.read_bytes())
    refused(lambda: client.get_object(Bucket=BUCKET, Key="k"), "InternalError")
    assert sweep.scrub(system, s3.blobs, days=0) == sweep.Scrubbed(2, 1)


def test_what_was_written_over_goes_and_who_reads_it_goes_on(client: Any, s3: S3, worker: TestWorker, system: Context) -> None:
    body = b"a" * 5_000_000
    client.put_object(Bucket=BUCKET, Key="k", Body=body)
    reading = client.get_object(Bucket=BUCKET, Key="k")["Body"]
    begun = reading.read(10)
    client.put_object(Bucket=BUCKET, Key="k", Body=b"new")
    client.put_object(Bucket=BUCKET, Key="gone", Body=b"x")
    client.delete_object(Bucket=BUCKET, Key="gone")
    TASKS["objects"].do(TaskRun(system, worker.runner.engines))
    assert len(blob_files(s3)) == 1
    assert begun + reading.read() == body
    assert system.db.scalar(select(func.count()).select_from(BlobToRemove)) == 0


def test_what_a_crash_left_behind_goes_when_it_is_old(client: Any, s3: S3, system: Context) -> None:
    client.put_object(Bucket=BUCKET, Key="k", Body=b"kept")
    with s3.blobs.writing() as writer:
        writer.write(b"orphan")
        writer.finish()
    assert sweep.remove_orphans(system, s3.blobs) == 0
    assert sweep.remove_orphans(system, s3.blobs, older=timedelta(seconds=-60)) == 1
    assert len(blob_files(s3)) == 1
    assert client.get_object(Bucket=BUCKET, Key="k")["Body"].read() == b"kept"


def test_an_upload_that_nobody_finishes_is_given_up(client: Any, s3: S3, system: Context, worker: TestWorker) -> None:
    upload = client.create_multipart_upload(Bucket=BUCKET, Key="big")["UploadId"]
    client.upload_part(Bucket=BUCKET, Key="big", UploadId=upload, PartNumber=1, Body=b"x" * 1000)
    assert sweep.give_up_uploads(system) == 0
    assert system.db.scalars(select(BucketUsage.size_bytes)).one() == 1000
    with transaction(system.db):
        system.db.execute(update(ObjectUpload).values(created_at=now() - timedelta(days=8)))
    assert sweep.give_up_uploads(system) == 1
    system.db.rollback()
    assert system.db.scalars(select(BucketUsage.size_bytes)).one() == 0
    refused(lambda: client.list_parts(Bucket=BUCKET, Key="big", UploadId=upload), "NoSuchUpload")
    with transaction(system.db):
        system.db.execute(update(BlobToRemove).values(due_at=now()))
    TASKS["objects"].do(TaskRun(system, worker.runner.engines))
    assert blob_files(s3) == []


def test_a_deleted_bucket_is_taken_apart(client: Any, s3: S3, system: Context, worker: TestWorker, people: People) -> None:
    from portal.kernel.operations import run
    from portal.storage.buckets import bucket_delete

    client.put_bucket_versioning(Bucket=BUCKET, VersioningConfiguration={"Status": "Enabled"})
    for _ in range(3):
        client.put_object(Bucket=BUCKET, Key="k", Body=b"x")
    upload = client.create_multipart_upload(Bucket=BUCKET, Key="big")["UploadId"]
    client.upload_part(Bucket=BUCKET, Key="big", UploadId=upload, PartNumber=1, Body=b"x")
    admin = people.context(people.admin())
    bucket_id = admin.db.scalars(select(Bucket.id)).one()
    run(admin, bucket_delete, bucket_id, {"force": True})
    refused(lambda: client.list_objects_v2(Bucket=BUCKET), "NoSuchBucket")
    client.create_bucket(Bucket=BUCKET)
    TASKS["objects"].do(TaskRun(system, worker.runner.engines))
    system.db.rollback()
    for model in (ObjectVersion, ObjectUpload, ObjectPart):
        assert system.db.scalar(select(func.count()).select_from(model)) == 0
    with transaction(system.db):
        system.db.execute(update(BlobToRemove).values(due_at=now()))
    TASKS["objects"].do(TaskRun(system, worker.runner.engines))
    assert blob_files(s3) == []


def test_usage_and_quota_are_what_is_there(client: Any, system: Context, people: People) -> None:
    gib = 1 << 30

    def usage() -> tuple[int, int, int, int]:
        system.db.rollback()
        row = system.db.scalars(select(BucketUsage)).one()
        return row.size_bytes, row.objects, row.versions, row.held_gib

    def charged() -> int:
        return system.db.scalar(select(Quota.used).where(Quota.dimension == "object_gb", Quota.project_id == people.project_id)) or 0

    assert (usage(), charged()) == ((0, 0, 0, 0), 0)
    client.put_object(Bucket=BUCKET, Key="k", Body=b"x" * 100)
    client.put_object(Bucket=BUCKET, Key="k", Body=b"x" * 50)
    client.put_object(Bucket=BUCKET, Key="l", Body=b"x" * 7)
    assert (usage(), charged()) == ((57, 2, 2, 1), 1)
    client.delete_object(Bucket=BUCKET, Key="l")
    client.delete_object(Bucket=BUCKET, Key="k")
    assert (usage(), charged()) == ((0, 0, 0, 0), 0)
    # A project that may have one GiB, of which all is taken.
    with transaction(system.db):
        system.db.execute(update(Quota).where(Quota.dimension == "object_gb").values(limit=1))
        system.db.execute(update(BucketUsage).values(size_bytes=gib - 10))
    client.put_object(Bucket=BUCKET, Key="k", Body=b"x" * 10)
    refused(lambda: client.put_object(Bucket=BUCKET, Key="l", Body=b"x"), "QuotaExceeded")
    refused(lambda: client.put_object(Bucket=BUCKET, Key="l", Body=b"x" * 3_000_000), "QuotaExceeded")
    client.put_object(Bucket=BUCKET, Key="k", Body=b"x" * 10)
    assert usage()[:2] == (gib, 1)


def test_a_deleted_bucket_with_many_uploads_is_taken_apart_as_well(
    client: Any, s3: S3, system: Context, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    monkeypatch.setattr(sweep, "BATCH", 3)
    for number in range(8):
        upload = client.create_multipart_upload(Bucket=BUCKET, Key=f"k{number}")["UploadId"]
        client.upload_part(Bucket=BUCKET, Key=f"k{number}", UploadId=upload, PartNumber=1, Body=b"x")
    client.delete_bucket(Bucket=BUCKET)
    sweep.empty_deleted(system)
    for model in (ObjectUpload, ObjectPart, BucketUsage):
        assert system.db.scalar(select(func.count()).select_from(model)) == 0
    s3.sweep()
    assert blob_files(s3) == []


def test_what_cannot_be_removed_stops_nothing_else(client: Any, s3: S3, system: Context) -> None:
    """A class that has no directory any more, a disk that does not work."""
    client.put_object(Bucket=BUCKET, Key="k", Body=b"x")
    client.delete_object(Bucket=BUCKET, Key="k")
    with transaction(system.db):
        system.db.add(BlobToRemove(blob="glacier.0000aa", due_at=now() - timedelta(days=1)))
    assert sweep.remove_due(system, s3.blobs) == 1
    assert blob_files(s3) == []
    assert [(each.blob, each.due_at > now()) for each in system.db.scalars(select(BlobToRemove))] == [("glacier.0000aa", True)]


def test_what_cannot_be_read_again_is_not_taken_for_damaged_and_hides_nothing(client: Any, s3: S3, system: Context) -> None:
    for key in ("gone", "damaged"):
        client.put_object(Bucket=BUCKET, Key=key, Body=b"x" * 100)
    with transaction(system.db):
        mine = update(ObjectVersion).where(ObjectVersion.key == "gone")
        system.db.execute(mine.values(blob="glacier.0000aa"))
    damaged = system.db.scalars(select(ObjectVersion.blob).where(ObjectVersion.key == "damaged")).one()
    turn_a_bit(s3.blobs.path(damaged), 5)
    assert sweep.scrub(system, s3.blobs, days=0) == sweep.Scrubbed(1, 1, 1)
    assert system.db.scalars(select(Alert.title).distinct()).all() == [f"{BUCKET}/damaged is damaged"]


def test_what_is_deleted_stays_as_long_as_a_backup_takes(client: Any, s3: S3, system: Context) -> None:
    client.put_object(Bucket=BUCKET, Key="k", Body=b"x")
    client.delete_object(Bucket=BUCKET, Key="k")
    keeping = replace(system, settings=system.settings.model_copy(update={"object_keep_hours": 5}))
    assert (sweep.remove_due(keeping, s3.blobs), len(blob_files(s3))) == (0, 1)
    with transaction(system.db):
        system.db.execute(update(BlobToRemove).values(due_at=now() - timedelta(hours=5)))
    assert (sweep.remove_due(keeping, s3.blobs), blob_files(s3)) == (1, [])


def test_everything_is_read_again_in_time_whatever_days_are_left_out(
    client: Any, s3: S3, system: Context, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    monkeypatch.setattr(sweep, "SCRUB_BATCH", 1)
    for number in range(10):
        client.put_object(Bucket=BUCKET, Key=f"k{number}", Body=b"x" * 100)

    def after(days: float) -> int:
        """How many are read so many days after the turn began."""
        with transaction(system.db):
            system.db.execute(update(ScrubTurn).values(begun_at=now() - timedelta(days=days)))
        return sweep.scrub(system, s3.blobs, days=10).blobs

    assert sweep.scrub(system, s3.blobs, days=10).blobs == 2
    # Once more on the same day, a day later, and after three that were left out.
    assert [after(0.5), after(1.5), after(5.5)] == [0, 1, 4]
    assert after(9) == 3
    # The turn has ended, another one has begun.
    system.db.rollback()
    assert [(each.read_bytes, each.after, now() - each.begun_at < timedelta(days=1)) for each in system.db.scalars(select(ScrubTurn))] == [
        (0, "", True)
    ]


def test_an_object_whose_file_looks_unfinished_stays(client: Any, s3: S3, system: Context) -> None:
    """Modes of files are changed by whoever repairs rights, and some file systems keep none: what a row names is whole."""
    client.put_object(Bucket=BUCKET, Key="k", Body=b"kept")
    for path in blob_files(s3):
        path.chmod(0o700)
    assert not any(each.is_whole for each in s3.blobs.stored())
    assert sweep.remove_unfinished(system, s3.blobs, older=timedelta(seconds=-60)) == 0
    assert client.get_object(Bucket=BUCKET, Key="k")["Body"].read() == b"kept"


def test_what_was_being_written_when_its_process_died_goes_sooner(client: Any, s3: S3, system: Context) -> None:
    client.put_object(Bucket=BUCKET, Key="k", Body=b"kept")
    now_and_later = timedelta(seconds=-60)
    with s3.blobs.writing() as writer, s3.blobs.writing() as finished:
        finished.write(b"on its way into a row")
        finished.finish()
        writer.write(b"half")
        assert sweep.remove_unfinished(system, s3.blobs, older=now_and_later) == 0
        os.close(writer._handle)
        writer._handle = -1
        assert sweep.remove_unfinished(system, s3.blobs) == 0
        assert sweep.remove_unfinished(system, s3.blobs, older=now_and_later) == 1
    assert len(blob_files(s3)) == 2
    assert client.get_object(Bucket=BUCKET, Key="k")["Body"].read() == b"kept"
