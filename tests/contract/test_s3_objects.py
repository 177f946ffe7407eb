"""Objects through the gateway, as boto3 writes, reads and deletes them."""

import base64
import hashlib
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from botocore.exceptions import ClientError

from tests.support.s3 import S3, fetch, refused

BUCKET = "a-bucket"


@pytest.fixture
def client(s3: S3) -> Any:
    made = s3.client()
    made.create_bucket(Bucket=BUCKET)
    return made


def test_an_object_is_written_read_and_deleted(client: Any) -> None:
    body = bytes(range(256)) * 4096
    key = "a/b c/ü+~%2F.txt"
    made = client.put_object(Bucket=BUCKET, Key=key, Body=body, ContentType="text/plain", Metadata={"color": "blue"}, CacheControl="no-store")
    assert made["ETag"] == f'"{hashlib.md5(body, usedforsecurity=False).hexdigest()}"'
    found = client.get_object(Bucket=BUCKET, Key=key)
    assert (found["Body"].read(), found["ETag"], found["ContentType"], found["Metadata"]) == (body, made["ETag"], "text/plain", {"color": "blue"})
    assert found["CacheControl"] == "no-store"
    head = client.head_object(Bucket=BUCKET, Key=key)
    assert (head["ContentLength"], head["ETag"], head["AcceptRanges"]) == (len(body), made["ETag"], "bytes")
    assert abs(datetime.now(UTC) - head["LastModified"]) < timedelta(minutes=1)
    client.delete_object(Bucket=BUCKET, Key=key)
    refused(lambda: client.get_object(Bucket=BUCKET, Key=key), "NoSuchKey")
    refused(lambda: client.head_object(Bucket=BUCKET, Key=key), "404")
    client.delete_object(Bucket=BUCKET, Key=key)


def test_an_empty_object_and_one_that_is_written_over(client: Any, s3: S3) -> None:
    client.put_object(Bucket=BUCKET, Key="folder/", Body=b"")
    assert client.get_object(Bucket=BUCKET, Key="folder/")["Body"].read() == b""
    for body in (b"one", b"two, which is longer"):
        client.put_object(Bucket=BUCKET, Key="k", Body=body)
        assert client.get_object(Bucket=BUCKET, Key="k")["Body"].read() == body
    assert sorted(each.file_bytes for each in s3.blobs.stored()) == [len(body) + 4 for body in (b"one", b"two, which is longer")]


@pytest.mark.parametrize(
    ("asked", "first", "last"),
    [
        ("bytes=0-0", 0, 0),
        ("bytes=262143-262144", 262143, 262144),
        ("bytes=600000-", 600000, 699999),
        ("bytes=-5", 699995, 699999),
        ("bytes=5-99999999", 5, 699999),
    ],
)
def test_ranges(client: Any, asked: str, first: int, last: int) -> None:
    body = hashlib.shake_128(b"seed").digest(700_000)
    client.put_object(Bucket=BUCKET, Key="k", Body=body)
    found = client.get_object(Bucket=BUCKET, Key="k", Range=asked)
    assert found["Body"].read() == body[first : last + 1]
    assert (found["ContentRange"], found["ResponseMetadata"]["HTTPStatusCode"]) == (f"bytes {first}-{last}/700000", 206)


def test_a_range_beyond_the_end_is_refused(client: Any) -> None:
    client.put_object(Bucket=BUCKET, Key="k", Body=b"0123456789")
    for asked in ("bytes=10-", "bytes=99-100", "bytes=-0"):
        answer = refused(lambda asked=asked: client.get_object(Bucket=BUCKET, Key="k", Range=asked), "InvalidRange")
        assert answer["ResponseMetadata"]["HTTPHeaders"]["content-range"] == "bytes */10"
    # What is no range is not looked at.
    assert client.get_object(Bucket=BUCKET, Key="k", Range="bytes=5-3")["Body"].read() == b"0123456789"


def test_conditions_of_reads(client: Any) -> None:
    etag = client.put_object(Bucket=BUCKET, Key="k", Body=b"x")["ETag"]
    past, future = datetime.now(UTC) - timedelta(hours=1), datetime.now(UTC) + timedelta(hours=1)
    for asked, code in (
        ({"IfMatch": etag}, ""), ({"IfMatch": '"other"'}, "PreconditionFailed"), ({"IfNoneMatch": etag}, "304"), ({"IfNoneMatch": '"other"'}, ""),
        ({"IfModifiedSince": past}, ""), ({"IfModifiedSince": future}, "304"), ({"IfUnmodifiedSince": past}, "PreconditionFailed"),
        ({"IfMatch": etag, "IfUnmodifiedSince": past}, ""), ({"IfNoneMatch": '"other"', "IfModifiedSince": future}, ""),
    ):  # fmt: skip
        if code:
            refused(lambda asked=asked: client.get_object(Bucket=BUCKET, Key="k", **asked), code)
        else:
            assert client.get_object(Bucket=BUCKET, Key="k", **asked)["Body"].read() == b"x"


def test_conditions_of_writes(client: Any, s3: S3) -> None:
    first = client.put_object(Bucket=BUCKET, Key="k", Body=b"first", IfNoneMatch="*")["ETag"]
    refused(lambda: client.put_object(Bucket=BUCKET, Key="k", Body=b"second", IfNoneMatch="*"), "PreconditionFailed")
    refused(lambda: client.put_object(Bucket=BUCKET, Key="k", Body=b"second", IfMatch='"0"'), "PreconditionFailed")
    refused(lambda: client.put_object(Bucket=BUCKET, Key="none", Body=b"second", IfMatch=first), "NoSuchKey")
    assert len(list(s3.blobs.stored())) == 1
    client.put_object(Bucket=BUCKET, Key="k", Body=b"second", IfMatch=first)
    assert client.get_object(Bucket=BUCKET, Key="k")["Body"].read() == b"second"


@pytest.mark.parametrize("algorithm", ["CRC32", "CRC32C", "CRC64NVME", "SHA1", "SHA256"])
def test_checksums_are_kept_and_told(client: Any, algorithm: str) -> None:
    made = client.put_object(Bucket=BUCKET, Key="k", Body=b"checked", ChecksumAlgorithm=algorithm)
    found = client.get_object(Bucket=BUCKET, Key="k", ChecksumMode="ENABLED")
    assert found["Body"].read() == b"checked"
    assert made[f"Checksum{algorithm}"] == found[f"Checksum{algorithm}"]
    assert found["ChecksumType"] == "FULL_OBJECT"


def test_wrong_digests_leave_nothing(client: Any, s3: S3) -> None:
    wrong = base64.b64encode(hashlib.md5(b"other", usedforsecurity=False).digest()).decode()
    refused(lambda: client.put_object(Bucket=BUCKET, Key="k", Body=b"body", ContentMD5=wrong), "BadDigest")
    refused(lambda: client.put_object(Bucket=BUCKET, Key="k", Body=b"body", ContentMD5="nonsense"), "InvalidDigest")
    refused(lambda: client.put_object(Bucket=BUCKET, Key="k", Body=b"body", ChecksumCRC32="AAAAAA=="), "BadDigest")
    refused(lambda: client.get_object(Bucket=BUCKET, Key="k"), "NoSuchKey")
    assert list(s3.blobs.stored()) == []


def test_keys_that_cannot_be(client: Any) -> None:
    refused(lambda: client.put_object(Bucket=BUCKET, Key="k" * 1025, Body=b""), "KeyTooLongError")
    refused(lambda: client.put_object(Bucket=BUCKET, Key="a/../../b", Body=b""), "InvalidURI")
    client.put_object(Bucket=BUCKET, Key="k" * 1024, Body=b"long")
    client.put_object(Bucket=BUCKET, Key="ü" * 512, Body=b"of 1,024 bytes, too")
    assert [len(each["Key"]) for each in client.list_objects_v2(Bucket=BUCKET)["Contents"]] == [1024, 512]


def test_many_are_deleted_at_once(client: Any) -> None:
    keys = [f"k{number:03}" for number in range(300)]
    for key in keys[:3]:
        client.put_object(Bucket=BUCKET, Key=key, Body=b"x")
    gone = client.delete_objects(Bucket=BUCKET, Delete={"Objects": [{"Key": key} for key in keys]})
    assert [each["Key"] for each in gone["Deleted"]] == keys
    assert "Contents" not in client.list_objects_v2(Bucket=BUCKET)
    assert "Deleted" not in client.delete_objects(Bucket=BUCKET, Delete={"Objects": [{"Key": "k"}], "Quiet": True})


def test_metadata_has_a_limit(client: Any) -> None:
    refused(lambda: client.put_object(Bucket=BUCKET, Key="k", Body=b"", Metadata={"m": "x" * 2048}), "MetadataTooLarge")


def test_an_address_with_a_signature_needs_no_key(client: Any) -> None:
    client.put_object(Bucket=BUCKET, Key="shared file.txt", Body=b"for you", ContentType="text/plain")
    asked = {"Bucket": BUCKET, "Key": "shared file.txt", "ResponseContentType": "text/html"}
    status, headers, body = fetch(client.generate_presigned_url("get_object", Params=asked, ExpiresIn=60))
    assert (status, headers["Content-Type"], body) == (200, "text/html", b"for you")
    address = client.generate_presigned_url("put_object", Params={"Bucket": BUCKET, "Key": "sent"}, ExpiresIn=60)
    assert fetch(address, "PUT", b"from outside")[0] == 200
    assert client.get_object(Bucket=BUCKET, Key="sent")["Body"].read() == b"from outside"


def test_buckets_are_told_apart(s3: S3) -> None:
    mine, theirs = s3.client(), s3.client(s3.people.user("project_admin", s3.people.project()))
    mine.create_bucket(Bucket="mine")
    refused(lambda: mine.create_bucket(Bucket="mine"), "BucketAlreadyOwnedByYou")
    refused(lambda: theirs.create_bucket(Bucket="mine"), "BucketAlreadyExists")
    assert [each["Name"] for each in mine.list_buckets()["Buckets"]] == ["mine"]
    assert theirs.list_buckets()["Buckets"] == []
    for call in (theirs.list_objects_v2, theirs.get_bucket_location, theirs.delete_bucket):
        with pytest.raises(ClientError, match=r"AccessDenied|NoSuchBucket"):
            call(Bucket="mine")
    refused(lambda: theirs.put_object(Bucket="mine", Key="k", Body=b""), "AccessDenied")
    mine.put_object(Bucket="mine", Key="k", Body=b"x")
    refused(lambda: theirs.get_object(Bucket="mine", Key="k"), "AccessDenied")
    refused(lambda: theirs.get_object(Bucket="mine", Key="none"), "AccessDenied")
    refused(lambda: theirs.delete_object(Bucket="mine", Key="k"), "AccessDenied")
    refused(lambda: mine.delete_bucket(Bucket="mine"), "BucketNotEmpty")
    mine.delete_object(Bucket="mine", Key="k")
    mine.delete_bucket(Bucket="mine")
    theirs.create_bucket(Bucket="mine")


@pytest.mark.parametrize("name", ["ab", "UPPER", "under_score", "-dash", "192.168.0.1", "a..b", "xn--abc", "a" * 64])
def test_names_that_no_bucket_can_have(s3: S3, name: str) -> None:
    client = s3.client()
    client.meta.events.unregister("before-parameter-build.s3", __import__("botocore.handlers").handlers.validate_bucket_name)
    refused(lambda: client.create_bucket(Bucket=name), "InvalidBucketName")
