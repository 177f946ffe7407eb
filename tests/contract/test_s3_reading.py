"""What is read while others write, and what is damaged: never bytes of one object under the name of another, never fewer than promised, never silently."""

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import BotoCoreError
from flask.testing import FlaskClient
from sqlalchemy import func, select, update

from portal.engines.blobs import LocalBlobs
from portal.engines.object_ports import Blob
from portal.kernel.alerts import Alert
from portal.kernel.audit import AuditEntry
from portal.kernel.context import Context
from portal.kernel.db import transaction
from portal.storage import objects, sweep, versions
from portal.storage.errors import ObjectChanged, ObjectDamaged
from portal.storage.object_models import Bucket, ObjectPart, ObjectVersion
from portal.storage.objects import object_find
from portal.storage.reading import object_open
from portal.storage.uploads import SMALLEST_PART
from tests.support.people import People
from tests.support.s3 import S3, refused
from tests.support.servers import until
from tests.support.web import Api, csrf_of

BUCKET = "a-bucket"
OLD, NEW = b"old bytes", b"newer and longer bytes"


@pytest.fixture
def client(s3: S3) -> Any:
    made = s3.client()
    made.create_bucket(Bucket=BUCKET)
    return made


@pytest.fixture
def system(people: People) -> Context:
    return people.context(None)


@pytest.fixture
def base(client: Any, system: Context) -> str:
    bucket_id = system.db.scalars(select(Bucket.id)).one()
    system.db.rollback()
    return f"/storage/buckets/{bucket_id}"


def in_parts(client: Any, key: str, *bodies: bytes) -> None:
    upload = {"Bucket": BUCKET, "Key": key, "UploadId": client.create_multipart_upload(Bucket=BUCKET, Key=key)["UploadId"]}
    parts = [
        {"PartNumber": number, "ETag": client.upload_part(**upload, PartNumber=number, Body=body)["ETag"]} for number, body in enumerate(bodies, 1)
    ]
    client.complete_multipart_upload(**upload, MultipartUpload={"Parts": parts})


def before(monkeypatch: pytest.MonkeyPatch, where: Any, name: str, act: Callable[[], object]) -> None:
    """Have something happen before a function is called for the first time."""
    plain, done = getattr(where, name), []

    def called(*args: Any, **options: Any) -> Any:
        if not done:
            done.append(True)
            act()
        return plain(*args, **options)

    monkeypatch.setattr(where, name, called)


def written_over(client: Any, s3: S3, monkeypatch: pytest.MonkeyPatch, name: str = "open") -> None:
    """Somebody writes the object over after it was found, and its bytes are gone before they are opened."""

    def act() -> None:
        client.put_object(Bucket=BUCKET, Key="k", Body=NEW)
        s3.sweep()

    before(monkeypatch, LocalBlobs, name, act)


# -- written over meanwhile ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["get", "copy", "api", "part copy"])
def test_an_object_whose_parts_go_between_two_looks_is_not_shorter(
    client: Any, base: str, api: Api, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:  # fmt: skip
    """Its row and its parts are read by two statements."""
    whole = b"z" * 100_000
    in_parts(client, "k", whole)
    upload = {"Bucket": BUCKET, "Key": "to", "UploadId": client.create_multipart_upload(Bucket=BUCKET, Key="to")["UploadId"]}
    before(monkeypatch, objects, "parts_of", lambda: client.put_object(Bucket=BUCKET, Key="k", Body=NEW))
    if how == "get":
        found = client.get_object(Bucket=BUCKET, Key="k")
        body = found["Body"].read()
        assert found["ContentLength"] == len(body)
    elif how == "api":
        body = api.get(f"{base}/objects/k").data
    elif how == "copy":
        client.copy_object(Bucket=BUCKET, Key="to", CopySource=f"{BUCKET}/k")
        body = client.get_object(Bucket=BUCKET, Key="to")["Body"].read()
    else:
        etag = client.upload_part_copy(**upload, PartNumber=1, CopySource=f"{BUCKET}/k")["CopyPartResult"]["ETag"]
        client.complete_multipart_upload(**upload, MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": etag}]})
        body = client.get_object(Bucket=BUCKET, Key="to")["Body"].read()
    assert body in {whole, NEW}


def test_an_object_that_lacks_a_part_is_refused_and_told_of(client: Any, system: Context) -> None:
    in_parts(client, "k", b"x" * (5 << 20), b"y")
    with system.db.begin():
        system.db.delete(system.db.scalars(select(ObjectPart).where(ObjectPart.number == 2)).one())
    refused(lambda: client.get_object(Bucket=BUCKET, Key="k"), "InternalError")
    refused(lambda: client.copy_object(Bucket=BUCKET, Key="to", CopySource=f"{BUCKET}/k"), "InternalError")
    assert told(system) == 1


def test_the_api_gives_the_headers_of_what_it_gives(client: Any, s3: S3, base: str, api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    client.put_object(Bucket=BUCKET, Key="k", Body=OLD)
    written_over(client, s3, monkeypatch)
    answer = api.get(f"{base}/objects/k")
    head = client.head_object(Bucket=BUCKET, Key="k")
    assert (answer.data, answer.headers["ETag"], answer.headers["Content-Length"]) == (NEW, head["ETag"], str(len(NEW)))


def test_a_copy_of_what_is_written_over_is_one_of_both(client: Any, s3: S3, system: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    client.put_object(Bucket=BUCKET, Key="k", Body=OLD)
    written_over(client, s3, monkeypatch, "copy")
    client.copy_object(Bucket=BUCKET, Key="to", CopySource=f"{BUCKET}/k")
    assert client.get_object(Bucket=BUCKET, Key="to")["Body"].read() == NEW
    assert told(system) == 0


def test_nothing_stays_open_of_what_is_written_over(client: Any, s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    client.put_object(Bucket=BUCKET, Key="k", Body=OLD)
    home = str(s3.blobs.path("00").parent.parent)
    for _ in range(5):
        with monkeypatch.context() as patch:
            written_over(client, s3, patch)
            assert client.get_object(Bucket=BUCKET, Key="k")["Body"].read() == NEW
            client.get_object(Bucket=BUCKET, Key="k")["Body"].close()
    # The server lets go of what it gives out a moment after the client has it.
    until(lambda: not [path for path in opened() if path.startswith(home)], within_s=60, what="nothing is open")


def opened() -> list[str]:
    """What this process has open."""
    found = []
    for handle in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            found.append(str(handle.readlink()))
    return found


# -- damage ----------------------------------------------------------------------------------------------------------------------------------


def told(system: Context) -> int:
    system.db.rollback()
    alerts = system.db.scalar(select(func.count(func.distinct(Alert.title))).where(Alert.resource_type == "storage.object.damaged"))
    entries = system.db.scalar(select(func.count()).where(AuditEntry.action == "storage.object.damaged"))
    assert alerts == entries
    return int(entries or 0)


def rot(s3: S3, system: Context, place: int, key: str = "k") -> Path:
    blob = system.db.scalars(select(ObjectVersion.blob).where(ObjectVersion.key == key)).one()
    system.db.rollback()
    path = s3.blobs.path(blob)
    with path.open("r+b") as file:
        file.seek(place)
        file.write(b"rotten")
    return path


def test_damage_far_behind_the_beginning_is_told_when_it_is_met(client: Any, s3: S3, system: Context) -> None:
    client.put_object(Bucket=BUCKET, Key="k", Body=os.urandom(6 << 20))
    rot(s3, system, 5 << 20)
    with pytest.raises(BotoCoreError):
        client.get_object(Bucket=BUCKET, Key="k")["Body"].read()
    assert told(system) == 1


def test_damage_of_a_later_part_is_told_after_the_request_is_done_with_its_session(client: Any, s3: S3, system: Context, base: str, api: Api) -> None:
    in_parts(client, "k", b"x" * (5 << 20), b"y" * 100)
    part = system.db.scalars(select(ObjectPart.blob).where(ObjectPart.number == 2)).one()
    system.db.rollback()
    s3.blobs.remove(part)
    with pytest.raises(ObjectDamaged):
        api.get(f"{base}/objects/k")
    assert told(system) == 1


def test_parts_that_are_moved_meanwhile_are_read_where_they_are(client: Any, s3: S3, system: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = b"z" * 1000
    in_parts(client, "k", whole)

    def move() -> None:
        part = system.db.scalars(select(ObjectPart)).one()
        moved = s3.blobs.copy(Blob(part.blob, part.size_bytes, part.seal))
        old = part.blob
        with transaction(system.db):
            system.db.execute(update(ObjectPart).values(blob=moved.id))
        s3.blobs.remove(old)

    before(monkeypatch, LocalBlobs, "open", move)
    assert client.get_object(Bucket=BUCKET, Key="k")["Body"].read() == whole
    assert told(system) == 0


@pytest.mark.parametrize("harm", ["rotten", "gone"])
@pytest.mark.parametrize("how", ["get", "copy", "part copy"])
def test_a_client_hears_of_damage_and_so_do_administrators(client: Any, s3: S3, system: Context, harm: str, how: str) -> None:
    client.put_object(Bucket=BUCKET, Key="k", Body=b"12345678" * 10)
    upload = {"Bucket": BUCKET, "Key": "to", "UploadId": client.create_multipart_upload(Bucket=BUCKET, Key="to")["UploadId"]}
    path = rot(s3, system, 1)
    if harm == "gone":
        path.unlink()
    calls: dict[str, Callable[[], object]] = {
        "get": lambda: client.get_object(Bucket=BUCKET, Key="k"),
        "copy": lambda: client.copy_object(Bucket=BUCKET, Key="to", CopySource=f"{BUCKET}/k"),
        "part copy": lambda: client.upload_part_copy(**upload, PartNumber=1, CopySource=f"{BUCKET}/k"),
    }
    assert "administrator has been told" in refused(calls[how], "InternalError")["Error"]["Message"]
    assert told(system) == 1
    refused(lambda: client.head_object(Bucket=BUCKET, Key="to"), "404")


def test_the_api_hears_of_damage(client: Any, s3: S3, system: Context, base: str, api: Api) -> None:
    for key in ("k", "other"):
        client.put_object(Bucket=BUCKET, Key=key, Body=key.encode() * 10)
        rot(s3, system, 1, key)
    s3.blobs.path(system.db.scalars(select(ObjectVersion.blob).where(ObjectVersion.key == "k")).one()).unlink()
    system.db.rollback()
    for answer in (api.get(f"{base}/objects/k"), api.post(f"{base}/objects/other/copy", {"destination_key": "to"})):
        assert (answer.status_code, answer.json["error"]) == (500, "INTERNAL_ERROR")
        assert "administrator has been told" in answer.json["message"]
    assert told(system) == 2
    refused(lambda: client.head_object(Bucket=BUCKET, Key="to"), "404")


def test_the_console_hears_of_damage(client: Any, s3: S3, system: Context, base: str, client_for: Callable[..., FlaskClient]) -> None:
    for key in ("k", "other"):
        client.put_object(Bucket=BUCKET, Key=key, Body=key.encode() * 10)
        rot(s3, system, 1, key)
    browser = client_for("project_admin")
    assert "damaged" in browser.get(f"{base}/object?key=k").text
    form = {"csrf_token": csrf_of(browser.get("/account")), "key": "other", "destination_key": "to"}
    answer = browser.post(f"{base}/object/copy", data=form)
    assert answer.status_code == 500
    assert "administrator has been told" in answer.text
    assert told(system) == 2


@pytest.mark.parametrize("how", ["deleted", "moved"])
def test_parts_stay_as_long_as_somebody_reads_them_and_no_longer(client: Any, s3: S3, system: Context, how: str) -> None:
    in_parts(client, "k", b"a" * SMALLEST_PART, b"b")
    found = object_find(system, BUCKET, "k")
    pieces = object_open(system, s3.blobs, found, (0, SMALLEST_PART + 1))
    if how == "deleted":
        client.delete_object(Bucket=BUCKET, Key="k")
    else:
        with transaction(system.db):
            versions.discard(system.db, [piece.id for piece in found.pieces()][1:], found.first)
            system.db.execute(update(ObjectPart).where(ObjectPart.number == 2).values(blob="elsewhere"))
    assert sweep.remove_due(system, s3.blobs) == 0
    s3.sweep()
    read = b"".join(pieces)
    assert (len(read), read[-1:]) == (SMALLEST_PART + 1, b"b")
    s3.sweep()
    assert [each.id for each in s3.blobs.stored()] == ([] if how == "deleted" else [found.first])


def test_parts_of_a_deleted_object_go_at_once(client: Any, s3: S3, system: Context) -> None:
    in_parts(client, "k", b"a" * SMALLEST_PART, b"b")
    client.delete_object(Bucket=BUCKET, Key="k")
    assert sweep.remove_due(system, s3.blobs) == 2
    assert list(s3.blobs.stored()) == []


def test_a_reader_who_comes_while_parts_go_finds_that_the_object_changed(client: Any, s3: S3, system: Context) -> None:
    in_parts(client, "k", b"a" * SMALLEST_PART, b"b")
    found = object_find(system, BUCKET, "k")
    system.db.rollback()
    client.delete_object(Bucket=BUCKET, Key="k")
    assert sweep.remove_due(system, s3.blobs) == 2
    with pytest.raises(ObjectChanged):
        object_open(system, s3.blobs, found, (0, 1 + SMALLEST_PART))
    assert told(system) == 0
