"""Objects that are encrypted with keys of the project (SSE-S3, SSE-KMS): who may read them, what of them is encrypted, what a bucket says of new ones."""

import hashlib
import json
from typing import Any

import pytest
from sqlalchemy import select, text, update

from portal.kernel.db import transaction
from portal.kernel.operations import run
from portal.security.encryption_keys import key_create, key_disable, key_enable, key_rotate, key_schedule_deletion
from portal.security.key_models import EncryptionKey
from portal.security.key_rewrap import _round
from portal.security.key_store import HOLDERS, default_key
from portal.storage.facts import VERSIONS
from portal.storage.sweep import scrub
from tests.support.people import People
from tests.support.s3 import S3, fetch, open_bucket, refused
from tests.support.s3_operations import conforms

BUCKET = "a-bucket"
MIB = 1 << 20
BODY = hashlib.shake_128(b"body").digest(700_000)
MD5 = hashlib.md5(BODY, usedforsecurity=False).hexdigest()


@pytest.fixture
def client(s3: S3) -> Any:
    made = s3.client()
    made.create_bucket(Bucket=BUCKET)
    return made


@pytest.fixture
def key(people: People) -> EncryptionKey:
    row: EncryptionKey = run(people.context(people.user("project_admin")), key_create, None, {"name": "a-key"}).row
    return row


def do(people: People, op: Any, key: EncryptionKey, **given: Any) -> None:
    run(people.context(people.user("project_admin")), op, key.id, given)


def row_of(people: People) -> Any:
    """The only version there is, as it is now."""
    with people.sessions() as session:
        return session.execute(select(VERSIONS)).one()


def stored(s3: S3) -> bytes:
    """Everything on the disk."""
    return b"".join(s3.blobs.path(each.id).read_bytes() for each in s3.blobs.stored())


def kms(key: EncryptionKey | str) -> dict[str, str]:
    return {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": key if isinstance(key, str) else key.id}


def test_the_portal_has_the_key(client: Any, s3: S3, people: People) -> None:
    made = client.put_object(Bucket=BUCKET, Key="k", Body=BODY, ServerSideEncryption="AES256")
    assert (made["ServerSideEncryption"], made["ETag"]) == ("AES256", f'"{MD5}"')
    found = client.get_object(Bucket=BUCKET, Key="k", Range="bytes=600000-")
    assert (found["Body"].read(), found["ServerSideEncryption"]) == (BODY[600000:], "AES256")
    assert client.head_object(Bucket=BUCKET, Key="k")["ServerSideEncryption"] == "AES256"
    assert BODY[:32] not in stored(s3)
    row = row_of(people)
    own = default_key(people.context(None).db, people.project_id)
    assert own is not None
    assert (row.kms_key_id, row.key_version, row.size_bytes) == (own.id, 1, len(BODY))
    assert scrub(people.context(people.admin()), s3.blobs, days=0).damaged == 0
    # Two of them have nothing in common.
    client.put_object(Bucket=BUCKET, Key="again", Body=BODY, ServerSideEncryption="AES256")
    assert len(set(people.context(None).db.scalars(select(VERSIONS.c.wrapped_key)))) == 2


def test_a_key_of_the_project(client: Any, s3: S3, key: EncryptionKey) -> None:
    made = client.put_object(Bucket=BUCKET, Key="k", Body=BODY, BucketKeyEnabled=True, **kms(key))
    assert (made["ServerSideEncryption"], made["SSEKMSKeyId"], made["BucketKeyEnabled"]) == ("aws:kms", key.id, True)
    assert made["ETag"] != f'"{MD5}"'
    found = client.get_object(Bucket=BUCKET, Key="k")
    assert (found["Body"].read(), found["SSEKMSKeyId"], found["ETag"]) == (BODY, key.id, made["ETag"])
    assert BODY[:32] not in stored(s3)
    for name in (key.name, f"alias/{key.name}", f"arn:aws:kms:us-east-1:000000000000:key/{key.id}"):
        assert client.put_object(Bucket=BUCKET, Key="k", Body=b"x", **kms(name))["SSEKMSKeyId"] == key.id
    assert client.put_object(Bucket=BUCKET, Key="k", Body=b"x", ServerSideEncryption="aws:kms")["SSEKMSKeyId"] != key.id


def test_who_may_not_use_the_key_reads_and_writes_nothing(client: Any, s3: S3, people: People, key: EncryptionKey) -> None:
    client.put_object(Bucket=BUCKET, Key="k", Body=BODY, **kms(key))
    open_bucket(client, "open-bucket")
    client.put_object(Bucket="open-bucket", Key="open", Body=b"open", ServerSideEncryption="AES256", ACL="public-read")
    client.put_object(Bucket="open-bucket", Key="shown", Body=b"shown", ACL="public-read", **kms(key))
    viewer = s3.client(people.user("viewer"))
    refused(lambda: viewer.get_object(Bucket=BUCKET, Key="k"), "AccessDenied")
    refused(lambda: viewer.put_object(Bucket=BUCKET, Key="v", Body=b"x", **kms(key)), "AccessDenied")
    refused(lambda: viewer.copy_object(Bucket=BUCKET, Key="v", CopySource=f"{BUCKET}/k"), "AccessDenied")
    assert fetch(f"{s3.url}/open-bucket/open")[0] == 200
    assert fetch(f"{s3.url}/open-bucket/shown")[0] == 403


def test_a_key_that_is_taken_away(client: Any, people: People, key: EncryptionKey) -> None:
    client.put_object(Bucket=BUCKET, Key="k", Body=BODY, **kms(key))
    do(people, key_disable, key)
    for call in (
        lambda: client.get_object(Bucket=BUCKET, Key="k"),
        lambda: client.put_object(Bucket=BUCKET, Key="other", Body=b"x", **kms(key)),
        lambda: client.copy_object(Bucket=BUCKET, Key="c", CopySource=f"{BUCKET}/k"),
    ):
        refused(call, "KMS.DisabledException")
    # What is said of it is no secret of the key's.
    assert client.head_object(Bucket=BUCKET, Key="k")["SSEKMSKeyId"] == key.id
    do(people, key_enable, key)
    assert client.get_object(Bucket=BUCKET, Key="k")["Body"].read() == BODY
    do(people, key_schedule_deletion, key, window_days=7)
    refused(lambda: client.get_object(Bucket=BUCKET, Key="k"), "KMS.KMSInvalidStateException")


def test_keys_that_are_not_there(client: Any, s3: S3, people: People) -> None:
    refused(lambda: client.put_object(Bucket=BUCKET, Key="k", Body=b"x", **kms("kms-none")), "KMS.NotFoundException")
    elsewhere = people.project()
    theirs = run(people.context(people.user("project_admin", elsewhere), elsewhere), key_create, None, {"name": "theirs"}).row
    refused(lambda: client.put_object(Bucket=BUCKET, Key="k", Body=b"x", **kms(theirs.id)), "KMS.NotFoundException")
    refused(
        lambda: client.put_bucket_encryption(Bucket=BUCKET, ServerSideEncryptionConfiguration=rule("aws:kms", theirs.id)), "KMS.NotFoundException"
    )
    assert list(s3.blobs.stored()) == []


@pytest.mark.parametrize(
    "given",
    [
        {"ServerSideEncryption": "AES512"},
        {"SSEKMSKeyId": "a-key"},
        {"ServerSideEncryption": "AES256", "SSEKMSKeyId": "a-key"},
    ],
)
def test_headers_that_do_not_go_together(client: Any, given: dict[str, str]) -> None:
    refused(lambda: client.put_object(Bucket=BUCKET, Key="k", Body=b"x", **given), "InvalidArgument")
    refused(lambda: client.create_multipart_upload(Bucket=BUCKET, Key="k", **given), "InvalidArgument")


def test_rotation_wraps_again_and_everything_is_read(client: Any, people: People, key: EncryptionKey, worker: Any) -> None:
    client.put_object(Bucket=BUCKET, Key="k", Body=BODY, **kms(key))
    begun = client.create_multipart_upload(Bucket=BUCKET, Key="u", **kms(key))["UploadId"]
    before = row_of(people)
    do(people, key_rotate, key)
    worker.drain()
    after = row_of(people)
    assert (before.key_version, after.key_version) == (1, 2)
    assert before.wrapped_key != after.wrapped_key
    assert client.get_object(Bucket=BUCKET, Key="k")["Body"].read() == BODY
    part = client.upload_part(Bucket=BUCKET, Key="u", UploadId=begun, PartNumber=1, Body=b"part")
    client.complete_multipart_upload(Bucket=BUCKET, Key="u", UploadId=begun, MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]})
    assert client.get_object(Bucket=BUCKET, Key="u")["Body"].read() == b"part"


def test_uploads_in_parts_and_copies(client: Any, s3: S3, people: People, key: EncryptionKey) -> None:
    large = hashlib.shake_128(b"large").digest(5 * MIB)
    upload = client.create_multipart_upload(Bucket=BUCKET, Key="k", **kms(key))
    named = {"Bucket": BUCKET, "Key": "k", "UploadId": upload["UploadId"]}
    assert upload["SSEKMSKeyId"] == key.id
    client.put_object(Bucket=BUCKET, Key="plain", Body=BODY)
    first = client.upload_part(**named, PartNumber=1, Body=large)
    assert first["ServerSideEncryption"] == "aws:kms"
    second = client.upload_part_copy(**named, PartNumber=2, CopySource=f"{BUCKET}/plain")["CopyPartResult"]
    parts = [{"PartNumber": number, "ETag": each["ETag"]} for number, each in ((1, first), (2, second))]
    assert client.complete_multipart_upload(**named, MultipartUpload={"Parts": parts})["SSEKMSKeyId"] == key.id
    client.delete_object(Bucket=BUCKET, Key="plain")
    assert client.get_object(Bucket=BUCKET, Key="k")["Body"].read() == large + BODY
    assert client.copy_object(Bucket=BUCKET, Key="c", CopySource=f"{BUCKET}/k")["ServerSideEncryption"] == "AES256"
    assert client.get_object(Bucket=BUCKET, Key="c")["Body"].read() == large + BODY
    # Encrypting what is there is a copy onto itself.
    client.put_object(Bucket=BUCKET, Key="later", Body=b"later")
    client.copy_object(Bucket=BUCKET, Key="later", CopySource=f"{BUCKET}/later", **kms(key))
    assert client.head_object(Bucket=BUCKET, Key="later")["SSEKMSKeyId"] == key.id
    assert client.get_object(Bucket=BUCKET, Key="later")["Body"].read() == b"later"
    assert scrub(people.context(people.admin()), s3.blobs, days=0).damaged == 0


def rule(algorithm: str, key: str = "") -> dict[str, Any]:
    usual = {"SSEAlgorithm": algorithm} | ({"KMSMasterKeyID": key} if key else {})
    return {"Rules": [{"ApplyServerSideEncryptionByDefault": usual, "BucketKeyEnabled": bool(key)}]}


def test_a_key_is_named_to_nobody_who_may_not_see_it(client: Any, s3: S3, key: EncryptionKey) -> None:
    client.delete_public_access_block(Bucket=BUCKET)
    client.put_object(Bucket=BUCKET, Key="k", Body=BODY, **kms(key))
    everybody = {"Effect": "Allow", "Principal": "*", "Action": "s3:GetObject", "Resource": f"arn:aws:s3:::{BUCKET}/*"}
    client.put_bucket_policy(Bucket=BUCKET, Policy=json.dumps({"Version": "2012-10-17", "Statement": [everybody]}))
    status, _, body = fetch(f"{s3.url}/{BUCKET}/k")
    assert (status, b"not allowed" in body) == (403, True)
    assert key.id.encode() not in body
    assert key.name.encode() not in body


@conforms("GetBucketEncryption", "PutBucketEncryption", "DeleteBucketEncryption")
def test_what_a_bucket_gives_to_new_objects(client: Any, s3: S3, people: People, key: EncryptionKey) -> None:
    refused(lambda: client.get_bucket_encryption(Bucket=BUCKET), "ServerSideEncryptionConfigurationNotFoundError")
    client.put_object(Bucket=BUCKET, Key="before", Body=BODY)
    for given, expected in ((rule("AES256"), ("AES256", None)), (rule("aws:kms", key.id), ("aws:kms", key.id))):
        client.put_bucket_encryption(Bucket=BUCKET, ServerSideEncryptionConfiguration=given)
        assert client.get_bucket_encryption(Bucket=BUCKET)["ServerSideEncryptionConfiguration"] == given
        client.put_object(Bucket=BUCKET, Key="k", Body=BODY)
        found = client.get_object(Bucket=BUCKET, Key="k")
        assert (found["Body"].read(), found["ServerSideEncryption"], found.get("SSEKMSKeyId")) == (BODY, *expected)
        client.copy_object(Bucket=BUCKET, Key="copy", CopySource=f"{BUCKET}/before")
        assert client.head_object(Bucket=BUCKET, Key="copy")["ServerSideEncryption"] == expected[0]
    assert found["BucketKeyEnabled"]
    assert client.put_object(Bucket=BUCKET, Key="k", Body=BODY, ServerSideEncryption="AES256")["ServerSideEncryption"] == "AES256"
    viewer = s3.client(people.user("viewer"))
    refused(lambda: viewer.put_bucket_encryption(Bucket=BUCKET, ServerSideEncryptionConfiguration=rule("AES256")), "AccessDenied")
    client.delete_bucket_encryption(Bucket=BUCKET)
    refused(lambda: client.get_bucket_encryption(Bucket=BUCKET), "ServerSideEncryptionConfigurationNotFoundError")
    assert "ServerSideEncryption" not in client.put_object(Bucket=BUCKET, Key="after", Body=b"x")
    for wrong in (rule("AES1"), {"Rules": []}, {"Rules": [*rule("AES256")["Rules"], *rule("AES256")["Rules"]]}):
        refused(lambda wrong=wrong: client.put_bucket_encryption(Bucket=BUCKET, ServerSideEncryptionConfiguration=wrong), "MalformedXML")
    refused(lambda: client.put_bucket_encryption(Bucket=BUCKET, ServerSideEncryptionConfiguration=rule("AES256", key.id)), "InvalidArgument")


def test_signed_addresses_and_forms(client: Any, s3: S3, key: EncryptionKey) -> None:
    address = client.generate_presigned_url("put_object", Params={"Bucket": BUCKET, "Key": "k", **kms(key)})
    said = {"x-amz-server-side-encryption": "aws:kms", "x-amz-server-side-encryption-aws-kms-key-id": key.id}
    status, headers, _ = fetch(address, "PUT", b"sent", said)
    assert (status, headers["x-amz-server-side-encryption-aws-kms-key-id"]) == (200, key.id)
    fields = {"x-amz-server-side-encryption": "AES256"}
    form = client.generate_presigned_post(BUCKET, "f", Fields=fields, Conditions=[fields])
    lines = [f'--b\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n' for name, value in form["fields"].items()]
    body = "".join([*lines, '--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\nof a form\r\n--b--\r\n'])
    status, headers, _ = fetch(form["url"], "POST", body.encode(), {"Content-Type": "multipart/form-data; boundary=b"})
    assert (status, headers["x-amz-server-side-encryption"]) == (204, "AES256")
    assert client.get_object(Bucket=BUCKET, Key="k")["Body"].read() == b"sent"
    assert client.get_object(Bucket=BUCKET, Key="f")["Body"].read() == b"of a form"


def test_a_wrapped_key_taken_to_another_object_opens_nothing(client: Any, people: People, key: EncryptionKey) -> None:
    for name in ("one", "two"):
        client.put_object(Bucket=BUCKET, Key=name, Body=b"of " + name.encode(), **kms(key))
    with people.sessions() as session, transaction(session):
        wrapped = session.scalar(select(VERSIONS.c.wrapped_key).where(VERSIONS.c.key == "one"))
        session.execute(VERSIONS.update().where(VERSIONS.c.key == "two").values(wrapped_key=wrapped))
    refused(lambda: client.get_object(Bucket=BUCKET, Key="two"), "InternalError")


def test_wrapping_again_waits_for_nobody_with_locks_in_hand(client: Any, people: People, key: EncryptionKey) -> None:
    """Whoever deletes several objects locks them in an order of their own."""
    for name in ("a", "b", "c"):
        client.put_object(Bucket=BUCKET, Key=name, Body=b"x", **kms(key))
    do(people, key_rotate, key)
    writer, rotation = people.context(None), people.context(None)
    if writer.db.get_bind().dialect.name == "sqlite":
        pytest.skip("one writer at a time")
    holder = next(each for each in HOLDERS if each.label == "objects")
    with transaction(writer.db):
        writer.db.execute(update(VERSIONS).where(VERSIONS.c.key == "a").values(acl="private"))
        with transaction(rotation.db):
            rotation.db.execute(text("SET LOCAL lock_timeout = '10s'"))
            assert _round(rotation.db, people.settings, holder, key.id) == 2
    with transaction(rotation.db):
        assert _round(rotation.db, people.settings, holder, key.id) == 1
    assert set(rotation.db.scalars(select(VERSIONS.c.key_version))) == {2}
