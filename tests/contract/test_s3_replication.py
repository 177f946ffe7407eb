"""Replication: the other bucket gets every version once, under the same id, whoever dies on the way; and says how far behind it is."""

from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select, update

from portal.engines.blobs import LocalBlobs
from portal.engines.object_ports import Blob
from portal.engines.ports import EngineRefused
from portal.kernel.alerts import Alert
from portal.kernel.context import Context
from portal.kernel.db import now, transaction
from portal.storage import replicating
from portal.storage.object_models import BlobToRemove, Bucket, ObjectVersion
from portal.storage.replicating import _work_of, replication_run
from portal.storage.replication import BucketReplication
from tests.support.draining import TestWorker
from tests.support.people import People
from tests.support.s3 import S3, refused
from tests.support.s3_operations import conforms
from tests.support.web import Api

SOURCE, TARGET = "a-source", "a-target"


@pytest.fixture
def client(s3: S3, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(replicating, "BATCH", 3)
    made = s3.client()
    for name in (SOURCE, TARGET):
        made.create_bucket(Bucket=name)
        made.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})
    return made


@pytest.fixture
def system(people: People) -> Context:
    return people.context(None)


@pytest.fixture
def base(api: Api, client: Any) -> str:
    return f"/storage/buckets/{api.get('/storage/buckets?search=' + SOURCE).json['results'][0]['id']}"


def rule(client: Any, source: str = SOURCE, target: str = TARGET, **more: Any) -> None:
    whole = {"ID": "r", "Priority": 1, "Status": "Enabled", "Filter": {"Prefix": ""}, "DeleteMarkerReplication": {"Status": "Enabled"},
             "Destination": {"Bucket": f"arn:aws:s3:::{target}"}, **more}  # fmt: skip
    client.put_bucket_replication(Bucket=source, ReplicationConfiguration={"Role": "", "Rules": [whole]})


def again(system: Context, s3: S3) -> int:
    """Replicate, without waiting for another try."""
    with transaction(system.db):
        system.db.execute(update(BucketReplication).values(next_try_at=now()))
    return replication_run(system, s3.blobs)


def versions(client: Any, bucket: str) -> list[tuple[str, str, bool, str]]:
    found = client.list_object_versions(Bucket=bucket)
    rows = [(each["Key"], each["VersionId"], each["IsLatest"], each["ETag"]) for each in found.get("Versions", [])]
    return sorted(rows + [(each["Key"], each["VersionId"], each["IsLatest"], "mark") for each in found.get("DeleteMarkers", [])])


def sent(client: Any, bucket: str, key: str, **more: Any) -> bytes:
    return bytes(client.get_object(Bucket=bucket, Key=key, **more)["Body"].read())


@conforms("GetBucketReplication", "PutBucketReplication", "DeleteBucketReplication")
def test_configuration(client: Any, s3: S3, people: People) -> None:
    refused(lambda: client.get_bucket_replication(Bucket=SOURCE), "ReplicationConfigurationNotFoundError")
    rule(client, Filter={"Prefix": "a/"})
    (found,) = client.get_bucket_replication(Bucket=SOURCE)["ReplicationConfiguration"]["Rules"]
    assert (found["Filter"], found["Destination"]["Bucket"], found["DeleteMarkerReplication"]) == (
        {"Prefix": "a/"}, f"arn:aws:s3:::{TARGET}", {"Status": "Enabled"},
    )  # fmt: skip
    suspended = {"Status": "Suspended"}
    refused(lambda: client.put_bucket_versioning(Bucket=SOURCE, VersioningConfiguration=suspended), "OperationAborted")
    client.delete_bucket_replication(Bucket=SOURCE)
    refused(lambda: client.get_bucket_replication(Bucket=SOURCE), "ReplicationConfigurationNotFoundError")
    client.create_bucket(Bucket="no-versions")
    s3.client(people.user("project_admin", people.project())).create_bucket(Bucket="theirs")
    for target in ("no-versions", "theirs", SOURCE, "nobodys"):
        refused(lambda target=target: rule(client, target=target), "InvalidRequest")
    refused(lambda: rule(s3.client(people.user("developer"))), "AccessDenied")


def test_everything_is_carried_over_under_its_version(client: Any, s3: S3, system: Context) -> None:
    rule(client)
    for number in range(5):
        client.put_object(Bucket=SOURCE, Key="k", Body=b"%d" % number, Metadata={"n": str(number)}, Tagging="a=b", ContentType="text/x")
    client.put_object(Bucket=SOURCE, Key="empty", Body=b"")
    client.delete_object(Bucket=SOURCE, Key="gone")
    upload = client.create_multipart_upload(Bucket=SOURCE, Key="parts")["UploadId"]
    bodies = (b"a" * (5 << 20), b"b")
    tags = [client.upload_part(Bucket=SOURCE, Key="parts", UploadId=upload, PartNumber=n, Body=body)["ETag"] for n, body in enumerate(bodies, 1)]
    whole = {"Parts": [{"PartNumber": n, "ETag": tag} for n, tag in enumerate(tags, 1)]}
    client.complete_multipart_upload(Bucket=SOURCE, Key="parts", UploadId=upload, MultipartUpload=whole)
    assert client.head_object(Bucket=SOURCE, Key="k")["ReplicationStatus"] == "PENDING"
    assert again(system, s3) == 8
    assert versions(client, TARGET) == versions(client, SOURCE)
    assert (sent(client, TARGET, "k"), sent(client, TARGET, "empty")) == (b"4", b"")
    assert sent(client, TARGET, "parts") == b"".join(bodies)
    head = client.head_object(Bucket=TARGET, Key="k")
    assert (head["ReplicationStatus"], head["Metadata"], head["ContentType"]) == ("REPLICA", {"n": "4"}, "text/x")
    assert client.head_object(Bucket=SOURCE, Key="k")["ReplicationStatus"] == "COMPLETED"
    # What is deleted here stays there: bytes are its own.
    client.delete_object(Bucket=SOURCE, Key="k", VersionId=head["VersionId"])
    assert sent(client, TARGET, "k", VersionId=head["VersionId"]) == b"4"
    assert again(system, s3) == 0


def test_what_is_said_later_is_carried_over(client: Any, s3: S3, system: Context) -> None:
    rule(client)
    client.put_object(Bucket=SOURCE, Key="k", Body=b"x")
    again(system, s3)
    client.put_object_tagging(Bucket=SOURCE, Key="k", Tagging={"TagSet": [{"Key": "a", "Value": "b"}]})
    again(system, s3)
    assert client.get_object_tagging(Bucket=TARGET, Key="k")["TagSet"] == [{"Key": "a", "Value": "b"}]
    assert len(versions(client, TARGET)) == 1


def test_locks_come_along(client: Any, s3: S3, system: Context) -> None:
    client.create_bucket(Bucket="locked", ObjectLockEnabledForBucket=True)
    refused(lambda: rule(client, "locked"), "InvalidRequest")
    client.create_bucket(Bucket="also-locked", ObjectLockEnabledForBucket=True)
    rule(client, "locked", "also-locked")
    client.put_object(Bucket="locked", Key="k", Body=b"x")
    again(system, s3)
    client.put_object_legal_hold(Bucket="locked", Key="k", LegalHold={"Status": "ON"})
    again(system, s3)
    assert client.get_object_legal_hold(Bucket="also-locked", Key="k")["LegalHold"] == {"Status": "ON"}


def locked_target(client: Any, rule_of_target: dict[str, Any] | None = None) -> None:
    client.create_bucket(Bucket="worm", ObjectLockEnabledForBucket=True)
    if rule_of_target:
        whole = {"ObjectLockEnabled": "Enabled", "Rule": {"DefaultRetention": rule_of_target}}
        client.put_object_lock_configuration(Bucket="worm", ObjectLockConfiguration=whole)


def retained(client: Any, bucket: str = "worm") -> tuple[str, bool, str]:
    head = client.head_object(Bucket=bucket, Key="k")
    until = head.get("ObjectLockRetainUntilDate")
    return head.get("ObjectLockMode", ""), until is not None and until > now() + timedelta(days=800), head.get("ObjectLockLegalHoldStatus", "")


def test_a_replica_is_kept_as_its_own_bucket_says(client: Any, s3: S3, system: Context) -> None:
    """A bucket with object lock may be the copy of one without."""
    locked_target(client, {"Mode": "COMPLIANCE", "Days": 30})
    rule(client, target="worm")
    version = client.put_object(Bucket=SOURCE, Key="k", Body=b"x")["VersionId"]
    again(system, s3)
    assert client.head_object(Bucket="worm", Key="k")["ObjectLockMode"] == "COMPLIANCE"
    refused(lambda: client.delete_object(Bucket="worm", Key="k", VersionId=version), "AccessDenied")


def test_what_keeps_a_replica_is_not_taken_away_from_its_source(client: Any, s3: S3, system: Context, people: People) -> None:
    locked_target(client)
    rule(client, target="worm")
    version = client.put_object(Bucket=SOURCE, Key="k", Body=b"x", Metadata={"a": "b"})["VersionId"]
    again(system, s3)
    far = {"Mode": "COMPLIANCE", "RetainUntilDate": now() + timedelta(days=900)}
    client.put_object_retention(Bucket="worm", Key="k", Retention=far, ChecksumAlgorithm="CRC32")
    client.put_object_legal_hold(Bucket="worm", Key="k", LegalHold={"Status": "ON"}, ChecksumAlgorithm="CRC32")
    tags = [{"Key": "a", "Value": "b"}]
    s3.client(people.user("developer")).put_object_tagging(Bucket=SOURCE, Key="k", Tagging={"TagSet": tags})
    again(system, s3)
    assert retained(client) == ("COMPLIANCE", True, "ON")
    assert client.get_object_tagging(Bucket="worm", Key="k")["TagSet"] == tags
    refused(lambda: client.delete_object(Bucket="worm", Key="k", VersionId=version), "AccessDenied")


def test_what_keeps_a_replica_grows_with_its_source(client: Any, s3: S3, system: Context) -> None:
    locked_target(client)
    client.create_bucket(Bucket="locked", ObjectLockEnabledForBucket=True)
    rule(client, "locked", "worm")
    near, far = now() + timedelta(days=10), now() + timedelta(days=900)
    governed = {"ObjectLockMode": "GOVERNANCE", "ObjectLockRetainUntilDate": near, "ChecksumAlgorithm": "CRC32"}
    client.put_object(Bucket="locked", Key="k", Body=b"x", ObjectLockLegalHoldStatus="OFF", **governed)
    again(system, s3)
    assert retained(client)[:2] == ("GOVERNANCE", False)
    client.put_object_legal_hold(Bucket="worm", Key="k", LegalHold={"Status": "ON"}, ChecksumAlgorithm="CRC32")
    longer = {"Mode": "GOVERNANCE", "RetainUntilDate": far}
    client.put_object_retention(Bucket="locked", Key="k", Retention=longer, ChecksumAlgorithm="CRC32")
    again(system, s3)
    assert retained(client) == ("GOVERNANCE", True, "ON")
    client.put_object_retention(
        Bucket="locked", Key="k", Retention={"Mode": "COMPLIANCE", "RetainUntilDate": near}, BypassGovernanceRetention=True, ChecksumAlgorithm="CRC32"
    )
    again(system, s3)
    assert retained(client) == ("COMPLIANCE", True, "ON")


def test_only_what_the_rule_says(client: Any, s3: S3, system: Context) -> None:
    client.put_object(Bucket=SOURCE, Key="a/before", Body=b"x")
    rule(client, Filter={"Prefix": "a/"}, DeleteMarkerReplication={"Status": "Disabled"})
    for key in ("a/one", "b/one"):
        client.put_object(Bucket=SOURCE, Key=key, Body=b"x")
    client.delete_object(Bucket=SOURCE, Key="a/one")
    again(system, s3)
    assert [each[:1] + each[2:3] for each in versions(client, TARGET)] == [("a/one", True)]


def test_two_buckets_may_be_replicated_to_each_other(client: Any, s3: S3, system: Context) -> None:
    rule(client)
    rule(client, TARGET, SOURCE)
    client.put_object(Bucket=SOURCE, Key="k", Body=b"1")
    client.put_object(Bucket=TARGET, Key="k", Body=b"2")
    for _ in range(3):
        again(system, s3)
    assert versions(client, SOURCE) == versions(client, TARGET)
    assert (len(versions(client, SOURCE)), sent(client, SOURCE, "k")) == (2, b"2")


def test_what_is_there_already_by_a_job(client: Any, s3: S3, api: Api, base: str, worker: TestWorker) -> None:
    system = s3.people.context(None)
    for number in range(7):
        client.put_object(Bucket=SOURCE, Key=f"k{number % 2}", Body=b"%d" % number)
    asked = api.post(f"{base}/replication", {"destination_bucket": TARGET, "delete_markers": True})
    assert (asked.status_code, asked.json["status"]) == (202, "copying"), asked.json
    assert api.get(f"{base}/replication").json["rules"][0]["status"] == "copying"
    client.put_object(Bucket=SOURCE, Key="k0", Body=b"later")
    again(system, s3)
    worker.drain()
    job = api.get(f"/jobs/{asked.json['job_id']}").json
    assert (job["state"], versions(client, TARGET)) == ("succeeded", versions(client, SOURCE)), job
    state = api.get(f"{base}/replication").json
    assert (state["rules"][0]["status"], state["lag_seconds"], state["waiting"], state["rules"][0]["copied"]) == ("active", 0, 0, 8)
    assert state["last_synced_at"]
    assert api("DELETE", f"{base}/replication").status_code == 204
    assert api.get(f"{base}/replication").json["rules"] == []
    client.put_object(Bucket=SOURCE, Key="after", Body=b"x")
    assert again(system, s3) == 0


@pytest.mark.parametrize("place", ["_replica", "_note"])
def test_who_dies_on_the_way_carries_over_nothing_twice(client: Any, s3: S3, system: Context, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    rule(client)
    for number in range(4):
        client.put_object(Bucket=SOURCE, Key=f"k{number}", Body=b"%d" % number)

    def die(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(replicating, place, die)
        with pytest.raises(KeyboardInterrupt):
            again(system, s3)
    assert again(system, s3) == 4
    assert versions(client, TARGET) == versions(client, SOURCE)
    assert [sent(client, TARGET, f"k{number}") for number in range(4)] == [b"0", b"1", b"2", b"3"]


def test_trouble_is_told_and_tried_again(client: Any, s3: S3, api: Api, base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    system = s3.people.context(None)
    rule(client)
    client.put_object(Bucket=SOURCE, Key="k", Body=b"x")

    def full(*_: object) -> None:
        raise EngineRefused("There is no room left.")

    with monkeypatch.context() as broken:
        broken.setattr(LocalBlobs, "copy", full)
        assert again(system, s3) == 0
    state = api.get(f"{base}/replication").json
    assert (state["waiting"], state["rules"][0]["status"], state["last_error"]) == (1, "failing", "There is no room left.")
    assert replication_run(system, s3.blobs) == 0
    assert again(system, s3) == 1
    assert api.get(f"{base}/replication").json["last_error"] == ""


def test_what_is_damaged_stops_nobody(client: Any, s3: S3, system: Context) -> None:
    rule(client)
    client.put_object(Bucket=SOURCE, Key="bad", Body=b"x")
    s3.blobs.remove(*[each.id for each in s3.blobs.stored()])
    client.put_object(Bucket=SOURCE, Key="good", Body=b"y")
    again(system, s3)
    assert [each[0] for each in versions(client, TARGET)] == ["good"]
    assert client.head_object(Bucket=SOURCE, Key="bad")["ReplicationStatus"] == "FAILED"
    assert system.db.scalars(select(Alert.title).distinct()).all() == [f"{SOURCE}/bad is damaged"]


def test_what_is_moved_meanwhile_is_carried_over(client: Any, s3: S3, system: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    """A move to other disks gives a version another blob, and the old one goes within seconds."""
    rule(client)
    client.put_object(Bucket=SOURCE, Key="k", Body=b"bytes")
    plain, moves = LocalBlobs.copy, s3.people.context(None)

    def copy(self: LocalBlobs, blob: Blob, storage_class: str = "") -> Blob:
        monkeypatch.setattr(LocalBlobs, "copy", plain)
        moved = plain(self, blob, storage_class)
        with transaction(moves.db):
            moves.db.execute(update(ObjectVersion).where(ObjectVersion.blob == blob.id).values(blob=moved.id))
            moves.db.add(BlobToRemove(blob=blob.id))
        s3.sweep()
        return plain(self, blob, storage_class)

    monkeypatch.setattr(LocalBlobs, "copy", copy)
    again(system, s3)
    assert sent(client, TARGET, "k") == b"bytes"
    assert client.head_object(Bucket=SOURCE, Key="k")["ReplicationStatus"] == "COMPLETED"


def test_buckets_that_go(client: Any, s3: S3, api: Api, base: str, system: Context) -> None:
    rule(client)
    client.delete_bucket(Bucket=TARGET)
    client.put_object(Bucket=SOURCE, Key="k", Body=b"x")
    again(system, s3)
    assert "is gone" in api.get(f"{base}/replication").json["last_error"]
    assert api("DELETE", f"{base}?force=true").status_code == 204
    assert again(system, s3) == 0


def test_what_is_encrypted_is_carried_over_as_it_is(client: Any, s3: S3, system: Context) -> None:
    rule(client)
    client.put_object(Bucket=SOURCE, Key="k", Body=b"secret", ServerSideEncryption="aws:kms")
    upload = client.create_multipart_upload(Bucket=SOURCE, Key="parts", ServerSideEncryption="AES256")["UploadId"]
    tag = client.upload_part(Bucket=SOURCE, Key="parts", UploadId=upload, PartNumber=1, Body=b"of a part")["ETag"]
    client.complete_multipart_upload(Bucket=SOURCE, Key="parts", UploadId=upload, MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": tag}]})
    assert again(system, s3) == 2
    found = client.get_object(Bucket=TARGET, Key="k")
    assert (found["Body"].read(), found["SSEKMSKeyId"]) == (b"secret", client.head_object(Bucket=SOURCE, Key="k")["SSEKMSKeyId"])
    for each in client.list_object_versions(Bucket=SOURCE)["Versions"]:
        client.delete_object(Bucket=SOURCE, Key=each["Key"], VersionId=each["VersionId"])
    assert (sent(client, TARGET, "k"), sent(client, TARGET, "parts")) == (b"secret", b"of a part")


def test_another_destination_begins_at_its_own_beginning(client: Any, s3: S3, system: Context) -> None:
    client.create_bucket(Bucket="another-target")
    client.put_bucket_versioning(Bucket="another-target", VersioningConfiguration={"Status": "Enabled"})
    for number in range(2):
        client.put_object(Bucket=SOURCE, Key=f"before-{number}", Body=b"x")
    rule(client, ExistingObjectReplication={"Status": "Enabled"})
    client.put_object(Bucket=SOURCE, Key="changed", Body=b"x")
    work = _work_of(system, system.db.scalars(select(BucketReplication.id)).one())
    assert work is not None
    # The task is at work when somebody names another destination.
    rule(client, target="another-target", ExistingObjectReplication={"Status": "Enabled"})
    work.changes(s3.blobs)
    work.existing(s3.blobs)
    assert client.head_object(Bucket=SOURCE, Key="changed")["ReplicationStatus"] == "PENDING"
    while again(system, s3):
        pass
    assert {each[0] for each in versions(client, "another-target")} == {"before-0", "before-1", "changed"}


def test_object_lock_comes_to_the_destination_first(client: Any, s3: S3, system: Context, api: Api) -> None:
    rule(client)
    retention = {"ObjectLockEnabled": "Enabled", "Rule": {"DefaultRetention": {"Mode": "COMPLIANCE", "Days": 30}}}
    refused(lambda: client.put_object_lock_configuration(Bucket=SOURCE, ObjectLockConfiguration=retention), "InvalidBucketState")
    client.put_object_lock_configuration(Bucket=TARGET, ObjectLockConfiguration={"ObjectLockEnabled": "Enabled"})
    client.put_object_lock_configuration(Bucket=SOURCE, ObjectLockConfiguration=retention)
    client.put_object(Bucket=SOURCE, Key="k", Body=b"x")
    again(system, s3)
    # As it was left before: rows that are kept, in a bucket without object lock.
    with transaction(system.db):
        system.db.execute(update(Bucket).where(Bucket.name == TARGET).values(object_lock=False))
    target = api.get(f"/storage/buckets?search={TARGET}").json["results"][0]["id"]
    assert api("DELETE", f"/storage/buckets/{target}?force=true").status_code == 409
    assert client.head_object(Bucket=TARGET, Key="k")["ObjectLockMode"] == "COMPLIANCE"
