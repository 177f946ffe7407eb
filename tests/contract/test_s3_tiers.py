"""Storage classes with disks of their own: where bytes are, how they are moved, and what a crash or a change on the way leaves."""

import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from portal.engines.blobs import LocalBlobs
from portal.engines.ports import EngineRefused
from portal.kernel.context import Context
from portal.kernel.db import now, transaction
from portal.settings import Settings
from portal.storage import tiers
from portal.storage.object_models import ObjectVersion
from portal.storage.sweep import remove_due, remove_orphans, scrub
from portal.storage.tiers import transitions_follow
from tests.support.people import People
from tests.support.s3 import S3, refused
from tests.support.web import Api

BUCKET = "a-bucket"
COLD, COLDER = "STANDARD_IA", "GLACIER_IR"
BYTES = b"0123456789" * 60_000


@pytest.fixture
def settings(settings: Settings, tmp_path: Path) -> Settings:
    tiers = ",".join(f"{name}={tmp_path / name}" for name in (COLD, COLDER))
    return settings.model_copy(update={"object_tiers": tiers, "object_prices": f"STANDARD=0.02,{COLD}=0.01"})


@pytest.fixture
def client(s3: S3) -> Any:
    made = s3.client()
    made.create_bucket(Bucket=BUCKET)
    return made


@pytest.fixture
def system(people: People) -> Context:
    return people.context(None)


@pytest.fixture
def base(api: Api, client: Any) -> str:
    return f"/storage/buckets/{api.get('/storage/buckets?search=' + BUCKET).json['results'][0]['id']}"


def places(s3: S3) -> dict[str, int]:
    """How many files there are in each place."""
    found: dict[str, int] = {}
    for each in s3.blobs.stored():
        found[s3.blobs.place_of(each.id)] = found.get(s3.blobs.place_of(each.id), 0) + 1
    return found


def sent(client: Any, key: str, **more: Any) -> bytes:
    return bytes(client.get_object(Bucket=BUCKET, Key=key, **more)["Body"].read())


def age(system: Context, days: float) -> None:
    with transaction(system.db):
        system.db.execute(update(ObjectVersion).values(modified_at=now() - timedelta(days=days)))


def rules(client: Any, **rule: Any) -> None:
    whole = {"ID": "r", "Status": "Enabled", "Filter": {"Prefix": ""}, **rule}
    client.put_bucket_lifecycle_configuration(Bucket=BUCKET, LifecycleConfiguration={"Rules": [whole]})


def parts(client: Any, key: str, **more: Any) -> None:
    upload = client.create_multipart_upload(Bucket=BUCKET, Key=key, **more)["UploadId"]
    bodies = (b"a" * (5 << 20), b"b")
    tags = [client.upload_part(Bucket=BUCKET, Key=key, UploadId=upload, PartNumber=n, Body=body)["ETag"] for n, body in enumerate(bodies, 1)]
    whole = {"Parts": [{"PartNumber": n, "ETag": tag} for n, tag in enumerate(tags, 1)]}
    client.complete_multipart_upload(Bucket=BUCKET, Key=key, UploadId=upload, MultipartUpload=whole)


def test_what_is_written_in_a_class_is_on_its_disks(client: Any, s3: S3, settings: Settings) -> None:
    client.put_object(Bucket=BUCKET, Key="warm", Body=BYTES)
    client.put_object(Bucket=BUCKET, Key="cold", Body=BYTES, StorageClass=COLD)
    client.copy_object(Bucket=BUCKET, Key="copy", CopySource=f"{BUCKET}/warm", StorageClass=COLDER)
    parts(client, "parts", StorageClass=COLD)
    # A class without disks of its own is told and changes nothing.
    client.put_object(Bucket=BUCKET, Key="label", Body=BYTES, StorageClass="DEEP_ARCHIVE")
    assert places(s3) == {"": 2, COLD: 3, COLDER: 1}
    assert len(list(settings.tiers()[COLD].rglob("standard_ia.*"))) == 3
    assert (sent(client, "cold"), sent(client, "copy"), sent(client, "cold", Range="bytes=300000-300004")) == (BYTES, BYTES, b"01234")
    assert sent(client, "parts", Range="bytes=5242879-5242880") == b"ab"
    client.delete_object(Bucket=BUCKET, Key="cold")


def test_an_object_is_moved_through_the_api(client: Any, s3: S3, api: Api, base: str, system: Context) -> None:
    client.put_object(Bucket=BUCKET, Key="k", Body=BYTES, Metadata={"a": "b"})
    parts(client, "parts")
    etag = client.head_object(Bucket=BUCKET, Key="k")["ETag"]
    for key in ("k", "parts"):
        moved = api("PUT", f"{base}/objects/{key}/storage-class", {"storage_class": COLD})
        assert (moved.status_code, moved.json["storage_class"]) == (200, COLD), moved.json
    head = client.head_object(Bucket=BUCKET, Key="k")
    assert (head["ETag"], head["StorageClass"], head["Metadata"], sent(client, "k")) == (etag, COLD, {"a": "b"}, BYTES)
    assert sent(client, "parts")[-2:] == b"ab"
    remove_due(system, s3.blobs)
    assert places(s3) == {COLD: 3}
    api("PUT", f"{base}/objects/k/storage-class", {"storage_class": "STANDARD"})
    remove_due(system, s3.blobs)
    assert (places(s3), sent(client, "k")) == ({"": 1, COLD: 2}, BYTES)
    wrong = api("PUT", f"{base}/objects/k/storage-class", {"storage_class": "DEEP_ARCHIVE"})
    assert (wrong.status_code, "OBJECT_TIERS" in wrong.json["message"]) == (400, True), wrong.json
    assert api("PUT", f"{base}/objects/none/storage-class", {"storage_class": COLD}).status_code == 404
    put = api("PUT", f"{base}/objects/new", data=b"x", headers={"Content-Type": "text/plain", "X-Storage-Class": COLD})
    assert put.json["storage_class"] == COLD


def test_who_may_not_write_moves_nothing(client: Any, api_for: Any, base: str) -> None:
    client.put_object(Bucket=BUCKET, Key="k", Body=BYTES)
    assert api_for("viewer")("PUT", f"{base}/objects/k/storage-class", {"storage_class": COLD}).status_code == 403


def test_who_may_write_but_not_read_is_told_nothing_by_a_move(client: Any, s3: S3, api: Api, base: str) -> None:
    client.put_object(Bucket=BUCKET, Key="k", Body=BYTES, Metadata={"a": "secret"})
    hidden = {"Effect": "Deny", "Principal": "*", "Action": "s3:GetObject", "Resource": f"arn:aws:s3:::{BUCKET}/*"}
    client.put_bucket_policy(Bucket=BUCKET, Policy=json.dumps({"Version": "2012-10-17", "Statement": [hidden]}))
    assert api("PUT", f"{base}/objects/k/storage-class", {"storage_class": COLD}).status_code == 403
    assert places(s3) == {"": 1}


def test_rules_move_what_is_old(client: Any, s3: S3, system: Context) -> None:
    rules(client, Transitions=[{"Days": 10, "StorageClass": COLD}, {"Days": 100, "StorageClass": COLDER}])
    client.put_object(Bucket=BUCKET, Key="k", Body=BYTES)
    client.put_object(Bucket=BUCKET, Key="empty", Body=b"")
    assert transitions_follow(system, s3.blobs) == 0
    age(system, 11)
    assert transitions_follow(system, s3.blobs) == 2
    assert transitions_follow(system, s3.blobs) == 0
    assert {each["StorageClass"] for each in client.list_objects_v2(Bucket=BUCKET)["Contents"]} == {COLD}
    age(system, 101)
    assert transitions_follow(system, s3.blobs) == 2
    remove_due(system, s3.blobs)
    assert (places(s3), sent(client, "k")) == ({COLDER: 1}, BYTES)
    # Never back to where things are used more.
    rules(client, Transitions=[{"Days": 1, "StorageClass": COLD}])
    assert transitions_follow(system, s3.blobs) == 0


def test_rules_move_older_versions(client: Any, s3: S3, system: Context) -> None:
    client.put_bucket_versioning(Bucket=BUCKET, VersioningConfiguration={"Status": "Enabled"})
    rule = {"NoncurrentDays": 5, "NewerNoncurrentVersions": 1, "StorageClass": COLD}
    rules(client, NoncurrentVersionTransitions=[rule])
    assert client.get_bucket_lifecycle_configuration(Bucket=BUCKET)["Rules"][0]["NoncurrentVersionTransitions"] == [rule]
    for number in range(4):
        client.put_object(Bucket=BUCKET, Key="k", Body=b"%d" % number)
    age(system, 6)
    assert transitions_follow(system, s3.blobs) == 2
    found = client.list_object_versions(Bucket=BUCKET)["Versions"]
    assert [each["StorageClass"] for each in found] == ["STANDARD", "STANDARD", COLD, COLD]
    assert [sent(client, "k", VersionId=each["VersionId"]) for each in found] == [b"3", b"2", b"1", b"0"]


def test_rules_that_lead_nowhere_are_refused(client: Any, people: People) -> None:
    for name, wrong in (("Transitions", {"Days": 1, "StorageClass": "DEEP_ARCHIVE"}), ("Transitions", {"StorageClass": COLD}),
                        ("Transitions", {"Days": 1, "Date": "2020-01-01T00:00:00Z", "StorageClass": COLD}),
                        ("NoncurrentVersionTransitions", {"StorageClass": COLD})):  # fmt: skip
        refused(lambda name=name, wrong=wrong: rules(client, **{name: [wrong]}), "InvalidArgument")
    rules(client, Transitions=[{"Date": "2030-01-01T00:00:00Z", "StorageClass": COLD}])


class Stopped(BaseException):
    """As if the process died here."""


def dying(monkeypatch: pytest.MonkeyPatch, place: str) -> Iterator[None]:
    def die(*_: object, **__: object) -> Any:
        raise Stopped

    with monkeypatch.context() as broken:
        broken.setattr(*{"after the copy": (tiers, "write"), "in the transaction": (tiers, "_count")}[place], die)
        yield


@pytest.mark.parametrize("place", ["after the copy", "in the transaction"])
def test_a_crash_on_the_way_loses_nothing(client: Any, s3: S3, system: Context, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    rules(client, Transitions=[{"Days": 0, "StorageClass": COLD}])
    client.put_object(Bucket=BUCKET, Key="k", Body=BYTES)
    for _ in dying(monkeypatch, place):
        with pytest.raises(Stopped):
            transitions_follow(system, s3.blobs)
    assert (sent(client, "k"), places(s3)) == (BYTES, {"": 1, COLD: 1})
    assert remove_orphans(system, s3.blobs, older=timedelta(seconds=-60)) == 1
    assert transitions_follow(system, s3.blobs) == 1
    remove_due(system, s3.blobs)
    assert (sent(client, "k"), places(s3)) == (BYTES, {COLD: 1})


def test_what_is_written_over_meanwhile_stays_what_it_is(client: Any, s3: S3, system: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    rules(client, Transitions=[{"Days": 0, "StorageClass": COLD}])
    client.put_object(Bucket=BUCKET, Key="k", Body=BYTES)
    copies = LocalBlobs.copy

    def overtaken(store: LocalBlobs, *args: Any) -> Any:
        client.put_object(Bucket=BUCKET, Key="k", Body=b"new")
        return copies(store, *args)

    monkeypatch.setattr(LocalBlobs, "copy", overtaken)
    assert transitions_follow(system, s3.blobs) == 0
    monkeypatch.undo()
    remove_due(system, s3.blobs)
    assert (sent(client, "k"), places(s3)) == (b"new", {"": 1})


@pytest.mark.parametrize("in_parts", [False, True])
def test_who_reads_while_an_object_moves_reads_all_of_it(
    client: Any, s3: S3, system: Context, monkeypatch: pytest.MonkeyPatch, in_parts: bool
) -> None:  # fmt: skip
    rules(client, Transitions=[{"Days": 0, "StorageClass": COLD}])
    if in_parts:
        parts(client, "k")
    else:
        client.put_object(Bucket=BUCKET, Key="k", Body=BYTES)
    name = "hold" if in_parts else "open"
    plain, moved, before = getattr(LocalBlobs, name), list[int](), sent(client, "k")

    def late(store: LocalBlobs, *args: Any) -> Any:
        if not moved:
            moved.append(1)
            # The row is read, the bytes are not opened yet.
            transitions_follow(system, s3.blobs)
            remove_due(system, s3.blobs)
        return plain(store, *args)

    monkeypatch.setattr(LocalBlobs, name, late)
    assert (sent(client, "k"), places(s3)) == (before, {COLD: 2 if in_parts else 1})


def test_a_place_without_room_moves_nothing_and_stops_nobody(client: Any, s3: S3, system: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    rules(client, Transitions=[{"Days": 0, "StorageClass": COLD}])
    for key in ("a", "b"):
        client.put_object(Bucket=BUCKET, Key=key, Body=BYTES)
    copies, tried = LocalBlobs.copy, list[int]()

    def full(store: LocalBlobs, *args: Any) -> Any:
        tried.append(1)
        if len(tried) == 1:
            raise EngineRefused("There is no room left.")
        return copies(store, *args)

    monkeypatch.setattr(LocalBlobs, "copy", full)
    assert transitions_follow(system, s3.blobs) == 1
    assert (sent(client, "a"), sent(client, "b")) == (BYTES, BYTES)


def test_classes_and_report(client: Any, s3: S3, api: Api, base: str, system: Context) -> None:
    classes = api.get("/storage/storage-classes").json["storage_classes"]
    assert [(each["name"], each["price_per_gb_month"]) for each in classes] == [("STANDARD", 0.02), (COLD, 0.01), (COLDER, None)]
    rules(client, Transitions=[{"Days": 0, "StorageClass": COLD}])
    client.put_object(Bucket=BUCKET, Key="k", Body=BYTES)
    transitions_follow(system, s3.blobs)
    client.put_object(Bucket=BUCKET, Key="l", Body=BYTES)
    found = api.get(f"{base}/tiering-report?period=1").json["classes"]
    assert [(each["storage_class"], each["objects"], each["size_bytes"], each["moved_objects"], each["moved_bytes"]) for each in found] == [
        ("STANDARD", 1, len(BYTES), 0, 0), (COLD, 1, len(BYTES), 1, len(BYTES)),
    ]  # fmt: skip
    assert found[0]["saving"] == 0
    assert found[1]["cost"] is not None


def test_what_is_encrypted_is_moved_as_it_is(client: Any, s3: S3, api: Api, base: str, system: Context) -> None:
    client.put_object(Bucket=BUCKET, Key="k", Body=BYTES, ServerSideEncryption="AES256")
    parts(client, "parts", ServerSideEncryption="aws:kms")
    for key in ("k", "parts"):
        assert api("PUT", f"{base}/objects/{key}/storage-class", {"storage_class": COLD}).status_code == 200
    remove_due(system, s3.blobs)
    assert (sent(client, "k"), sent(client, "parts", Range="bytes=5242879-5242880")) == (BYTES, b"ab")
    assert all(BYTES[:64] not in s3.blobs.path(each.id).read_bytes() for each in s3.blobs.stored())
    assert scrub(system, s3.blobs, days=0).damaged == 0
