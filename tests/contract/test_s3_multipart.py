"""Uploads in parts, and copies."""

import hashlib
from typing import Any

import pytest

from tests.support.s3 import S3, refused

BUCKET = "a-bucket"
PART = 5 << 20


def noise(size: int, seed: str = "") -> bytes:
    return hashlib.shake_128(f"{size}{seed}".encode()).digest(size)


@pytest.fixture
def client(s3: S3) -> Any:
    made = s3.client()
    made.create_bucket(Bucket=BUCKET)
    return made


def begin(client: Any, key: str = "big", **more: Any) -> dict[str, str]:
    return {"Bucket": BUCKET, "Key": key, "UploadId": client.create_multipart_upload(Bucket=BUCKET, Key=key, **more)["UploadId"]}


def send(client: Any, upload: dict[str, str], *parts: bytes, **more: Any) -> list[dict[str, Any]]:
    sent = []
    for number, body in enumerate(parts, 1):
        answer = client.upload_part(**upload, PartNumber=number, Body=body, **more)
        sent.append({"PartNumber": number, **{name: value for name, value in answer.items() if name == "ETag" or name.startswith("Checksum")}})
    return sent


def finish(client: Any, upload: dict[str, str], parts: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
    found: dict[str, Any] = client.complete_multipart_upload(**upload, MultipartUpload={"Parts": parts}, **more)
    return found


def test_parts_become_an_object(client: Any, s3: S3) -> None:
    parts = [noise(PART), noise(PART + 1), noise(10)]
    upload = begin(client, Metadata={"a": "b"}, ContentType="text/plain")
    sent = send(client, upload, *parts)
    assert [each["Size"] for each in client.list_parts(**upload)["Parts"]] == [len(each) for each in parts]
    assert [each["UploadId"] for each in client.list_multipart_uploads(Bucket=BUCKET)["Uploads"]] == [upload["UploadId"]]
    done = finish(client, upload, sent)
    digests = b"".join(hashlib.md5(each, usedforsecurity=False).digest() for each in parts)
    assert done["ETag"] == f'"{hashlib.md5(digests, usedforsecurity=False).hexdigest()}-3"'
    found = client.get_object(Bucket=BUCKET, Key="big")
    assert (found["Body"].read() == b"".join(parts), found["Metadata"], found["ContentType"]) == (True, {"a": "b"}, "text/plain")
    across = client.get_object(Bucket=BUCKET, Key="big", Range=f"bytes={PART - 5}-{2 * PART + 5}")["Body"].read()
    assert across == b"".join(parts)[PART - 5 : 2 * PART + 6]
    second = client.get_object(Bucket=BUCKET, Key="big", PartNumber=2)
    assert (second["Body"].read() == parts[1], second["PartsCount"], second["ResponseMetadata"]["HTTPStatusCode"]) == (True, 3, 206)
    assert "Uploads" not in client.list_multipart_uploads(Bucket=BUCKET)
    # Whoever did not hear the answer asks again.
    assert finish(client, upload, sent)["ETag"] == done["ETag"]
    refused(lambda: finish(client, upload, sent[:1]), "NoSuchUpload")
    refused(lambda: send(client, upload, b"late"), "NoSuchUpload")
    assert len(list(s3.blobs.stored())) == 3


@pytest.mark.parametrize(
    ("algorithm", "kind"), [("CRC32", "COMPOSITE"), ("CRC32", "FULL_OBJECT"), ("CRC64NVME", "FULL_OBJECT"), ("SHA256", "COMPOSITE")]
)
def test_checksums_of_parts_come_to_one(client: Any, algorithm: str, kind: str) -> None:
    parts = [noise(PART), noise(99)]
    upload = begin(client, ChecksumAlgorithm=algorithm, ChecksumType=kind)
    sent = send(client, upload, *parts, ChecksumAlgorithm=algorithm)
    done = finish(client, upload, sent, ChecksumType=kind)
    assert done["ChecksumType"] == kind
    if kind == "COMPOSITE":
        assert done[f"Checksum{algorithm}"].endswith("-2")
    else:
        whole = client.put_object(Bucket=BUCKET, Key="whole", Body=b"".join(parts), ChecksumAlgorithm=algorithm)
        assert whole[f"Checksum{algorithm}"] == done[f"Checksum{algorithm}"]
    head = client.head_object(Bucket=BUCKET, Key="big", ChecksumMode="ENABLED")
    assert head[f"Checksum{algorithm}"] == done[f"Checksum{algorithm}"]


def test_what_is_wrong_with_parts(client: Any, s3: S3) -> None:
    upload = begin(client)
    sent = send(client, upload, noise(100), noise(100, "second"))
    refused(lambda: finish(client, upload, sent), "EntityTooSmall")
    refused(lambda: finish(client, upload, sent[::-1]), "InvalidPartOrder")
    refused(lambda: finish(client, upload, [{"PartNumber": 3, "ETag": sent[0]["ETag"]}]), "InvalidPart")
    refused(lambda: finish(client, upload, [{"PartNumber": 1, "ETag": sent[1]["ETag"]}]), "InvalidPart")
    refused(lambda: client.upload_part(**upload, PartNumber=10_001, Body=b""), "InvalidArgument")
    refused(lambda: client.upload_part(**{**upload, "UploadId": "none"}, PartNumber=1, Body=b""), "NoSuchUpload")
    refused(lambda: client.upload_part(**{**upload, "Key": "other"}, PartNumber=1, Body=b""), "NoSuchUpload")
    # A part that is not named goes.
    finish(client, upload, sent[1:])
    assert client.get_object(Bucket=BUCKET, Key="big")["Body"].read() == noise(100, "second")


def test_an_upload_that_is_given_up(client: Any, s3: S3) -> None:
    upload = begin(client)
    sent = send(client, upload, noise(100))
    client.abort_multipart_upload(**upload)
    refused(lambda: client.abort_multipart_upload(**upload), "NoSuchUpload")
    refused(lambda: finish(client, upload, sent), "NoSuchUpload")
    client.delete_bucket(Bucket=BUCKET)


def test_parts_are_copied_of_objects(client: Any) -> None:
    source = noise(PART * 2)
    client.put_object(Bucket=BUCKET, Key="source ü", Body=source)
    upload = begin(client)
    parts = []
    for number, (first, last) in enumerate([(0, PART - 1), (PART, 2 * PART - 1)], 1):
        answer = client.upload_part_copy(
            **upload, PartNumber=number, CopySource={"Bucket": BUCKET, "Key": "source ü"}, CopySourceRange=f"bytes={first}-{last}"
        )
        parts.append({"PartNumber": number, "ETag": answer["CopyPartResult"]["ETag"]})
    refused(
        lambda: client.upload_part_copy(
            **upload, PartNumber=3, CopySource={"Bucket": BUCKET, "Key": "source ü"}, CopySourceRange=f"bytes=0-{2 * PART}"
        ),
        "InvalidArgument",
    )
    finish(client, upload, parts)
    assert client.get_object(Bucket=BUCKET, Key="big")["Body"].read() == source


def test_a_copy_takes_along_what_is_said_of_the_object(client: Any) -> None:
    body = noise(300_000)
    client.put_object(Bucket=BUCKET, Key="a", Body=body, Metadata={"x": "1"}, ContentType="text/css", Tagging="k=v")
    made = client.copy_object(Bucket=BUCKET, Key="b", CopySource={"Bucket": BUCKET, "Key": "a"})
    found = client.get_object(Bucket=BUCKET, Key="b")
    assert (found["Body"].read() == body, found["Metadata"], found["ContentType"], found["TagCount"]) == (True, {"x": "1"}, "text/css", 1)
    assert made["CopyObjectResult"]["ETag"] == found["ETag"]
    client.copy_object(
        Bucket=BUCKET,
        Key="c",
        CopySource=f"{BUCKET}/a",
        MetadataDirective="REPLACE",
        TaggingDirective="REPLACE",
        ContentType="text/html",
        Metadata={"y": "2"},
    )
    replaced = client.get_object(Bucket=BUCKET, Key="c")
    assert (replaced["Metadata"], replaced["ContentType"], "TagCount" in replaced) == ({"y": "2"}, "text/html", False)
    client.delete_object(Bucket=BUCKET, Key="a")
    assert client.get_object(Bucket=BUCKET, Key="b")["Body"].read() == body
    refused(lambda: client.copy_object(Bucket=BUCKET, Key="d", CopySource=f"{BUCKET}/a"), "NoSuchKey")
    refused(lambda: client.copy_object(Bucket=BUCKET, Key="b", CopySource=f"{BUCKET}/b"), "InvalidRequest")
    refused(lambda: client.copy_object(Bucket=BUCKET, Key="d", CopySource=f"{BUCKET}/b", CopySourceIfMatch='"0"'), "PreconditionFailed")
    client.copy_object(Bucket=BUCKET, Key="b", CopySource=f"{BUCKET}/b", MetadataDirective="REPLACE", Metadata={"z": "3"})
    assert client.head_object(Bucket=BUCKET, Key="b")["Metadata"] == {"z": "3"}


def test_an_object_in_parts_is_copied_as_one(client: Any) -> None:
    upload = begin(client)
    parts = [noise(PART), noise(7)]
    finish(client, upload, send(client, upload, *parts))
    client.copy_object(Bucket=BUCKET, Key="copy", CopySource=f"{BUCKET}/big")
    client.delete_object(Bucket=BUCKET, Key="big")
    assert client.get_object(Bucket=BUCKET, Key="copy")["Body"].read() == b"".join(parts)
