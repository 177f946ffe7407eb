"""Objects that are encrypted, in each way, where rules move them to another class and replication carries them over: whoever may read them still does."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from portal.engines.object_ports import BlobStore
from portal.kernel.context import Context
from portal.kernel.operations import run
from portal.security.encryption_keys import key_create, key_disable, key_rotate
from portal.settings import Settings
from portal.storage.replicating import replication_run
from portal.storage.sweep import scrub
from portal.storage.tiers import transitions_follow
from tests.contract.test_s3_tiers import age
from tests.support.draining import TestWorker
from tests.support.people import People
from tests.support.s3 import S3, gateway, refused
from tests.support.s3_served import certificate

SOURCE, TARGET, COLD = "a-source", "a-target", "STANDARD_IA"
BODY = b"a sentence that nobody finds " * 20_000
BY_CUSTOMER = {"SSECustomerAlgorithm": "AES256", "SSECustomerKey": bytes(range(32))}
WAYS: dict[str, dict[str, Any]] = {"sse-s3": {"ServerSideEncryption": "AES256"}, "sse-kms": {"ServerSideEncryption": "aws:kms"}, "sse-c": BY_CUSTOMER}
TOLD = {"sse-s3": "AES256", "sse-kms": "aws:kms", "sse-c": None}


@pytest.fixture
def settings(settings: Settings, tmp_path: Path) -> Settings:
    return settings.model_copy(update={"object_tiers": f"{COLD}={tmp_path / COLD}"})


@pytest.fixture
def s3(people: People, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3]:
    """With TLS: without it nobody sends a key of their own."""
    cert, key = certificate(tmp_path)
    monkeypatch.setenv("AWS_CA_BUNDLE", str(cert))
    with gateway(people, (cert, key)) as running:
        yield running


@pytest.fixture
def system(people: People) -> Context:
    return people.context(None)


@pytest.fixture
def client(s3: S3) -> Any:
    made = s3.client()
    for name in (SOURCE, TARGET):
        made.create_bucket(Bucket=name)
        made.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})
    rule = {"ID": "r", "Priority": 1, "Status": "Enabled", "Filter": {"Prefix": ""}, "DeleteMarkerReplication": {"Status": "Disabled"},
            "Destination": {"Bucket": f"arn:aws:s3:::{TARGET}"}}  # fmt: skip
    made.put_bucket_replication(Bucket=SOURCE, ReplicationConfiguration={"Role": "", "Rules": [rule]})
    for name in (SOURCE, TARGET):
        moves = {"ID": "cool", "Status": "Enabled", "Filter": {"Prefix": ""}, "Transitions": [{"Days": 30, "StorageClass": COLD}]}
        made.put_bucket_lifecycle_configuration(Bucket=name, LifecycleConfiguration={"Rules": [moves]})
    return made


def write(client: Any, way: str) -> None:
    """An object at once, and one in parts."""
    client.put_object(Bucket=SOURCE, Key="k", Body=BODY, **WAYS[way])
    upload = client.create_multipart_upload(Bucket=SOURCE, Key="parts", **WAYS[way])["UploadId"]
    own = WAYS[way] if way == "sse-c" else {}
    tag = client.upload_part(Bucket=SOURCE, Key="parts", UploadId=upload, PartNumber=1, Body=BODY, **own)["ETag"]
    client.complete_multipart_upload(Bucket=SOURCE, Key="parts", UploadId=upload, MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": tag}]}, **own)


def check(client: Any, blobs: BlobStore, way: str, storage_class: str | None) -> None:
    """Both are in both buckets, whole, as their ranges are; encrypted as they were, on the disk as well; and the checksums of the disk hold."""
    own = WAYS[way] if way == "sse-c" else {}
    for bucket in (SOURCE, TARGET):
        for key in ("k", "parts"):
            found = client.get_object(Bucket=bucket, Key=key, **own)
            assert (found["Body"].read() == BODY, found.get("ServerSideEncryption"), found.get("StorageClass")) == (True, TOLD[way], storage_class)
            part = client.get_object(Bucket=bucket, Key=key, Range="bytes=262100-262200", **own)["Body"].read()
            assert part == BODY[262100:262201]
            if way == "sse-c":
                refused(lambda bucket=bucket, key=key: client.get_object(Bucket=bucket, Key=key), "InvalidRequest")
    stored = list(blobs.stored())
    assert (len(stored), any(b"a sentence" in blobs.path(each.id).read_bytes() for each in stored)) == (4, False)


@pytest.mark.parametrize("way", WAYS)
def test_first_carried_over_and_then_moved(client: Any, s3: S3, system: Context, way: str) -> None:
    write(client, way)
    assert replication_run(system, s3.blobs) == 2
    check(client, s3.blobs, way, None)
    age(system, 31)
    assert transitions_follow(system, s3.blobs) == 4
    s3.sweep()
    check(client, s3.blobs, way, COLD)
    assert scrub(system, s3.blobs, days=0).damaged == 0


@pytest.mark.parametrize("way", WAYS)
def test_first_moved_and_then_carried_over(client: Any, s3: S3, system: Context, way: str) -> None:
    write(client, way)
    age(system, 31)
    transitions_follow(system, s3.blobs)
    s3.sweep()
    assert replication_run(system, s3.blobs) == 2
    check(client, s3.blobs, way, COLD)


def test_keys_that_are_rotated_and_disabled_count_for_replicas(client: Any, s3: S3, system: Context, people: People, worker: TestWorker) -> None:
    admin = people.context(people.user("project_admin"))
    key = run(admin, key_create, None, {"name": "a-key"}).row
    client.put_object(Bucket=SOURCE, Key="k", Body=BODY, ServerSideEncryption="aws:kms", SSEKMSKeyId=key.id)
    replication_run(system, s3.blobs)
    run(admin, key_rotate, key.id)
    worker.drain()
    client.delete_object(Bucket=SOURCE, Key="k", VersionId=client.head_object(Bucket=SOURCE, Key="k")["VersionId"])
    s3.sweep()
    assert client.get_object(Bucket=TARGET, Key="k")["Body"].read() == BODY
    run(admin, key_disable, key.id)
    refused(lambda: client.get_object(Bucket=TARGET, Key="k"), "KMS.DisabledException")
