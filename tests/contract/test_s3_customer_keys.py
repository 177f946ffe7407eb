"""Objects that are encrypted with a key that the client sends (SSE-C): read by whoever sends it again, and by nobody else."""

import hashlib
import os
import ssl
from base64 import b64encode
from collections.abc import Iterator
from http.client import HTTPSConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import pytest
from sqlalchemy import select

from portal.storage.facts import VERSIONS
from tests.support.people import People
from tests.support.s3 import S3, gateway, refused
from tests.support.s3_served import certificate

BUCKET = "a-bucket"
MIB = 1 << 20
KEY, OTHER = bytes(range(32)), bytes(32)
# With a digest of one's own boto3 leaves the key as it is.
SAID = {"SSECustomerAlgorithm": "AES256", "SSECustomerKey": b64encode(KEY).decode()}
BODY = hashlib.shake_128(b"body").digest(700_000)


def by(key: bytes, prefix: str = "") -> dict[str, Any]:
    """The parameters that boto3 wants for a key; it adds the digest."""
    return {f"{prefix}SSECustomerAlgorithm": "AES256", f"{prefix}SSECustomerKey": key}


@pytest.fixture
def s3(people: People, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3]:
    cert, key = certificate(tmp_path)
    monkeypatch.setenv("AWS_CA_BUNDLE", str(cert))
    with gateway(people, (cert, key)) as running:
        yield running


@pytest.fixture
def client(s3: S3) -> Any:
    made = s3.client()
    made.create_bucket(Bucket=BUCKET)
    return made


def row_of(people: People) -> Any:
    """The only version there is, as it is now."""
    with people.sessions() as session:
        return session.execute(select(VERSIONS)).one()


def stored(s3: S3) -> bytes:
    """Everything on the disk."""
    return b"".join(s3.blobs.path(each.id).read_bytes() for each in s3.blobs.stored())


def test_what_is_written_with_a_key_is_read_with_it(client: Any, s3: S3, people: People) -> None:
    made = client.put_object(Bucket=BUCKET, Key="k", Body=BODY, **by(KEY))
    digest = b64encode(hashlib.md5(KEY, usedforsecurity=False).digest()).decode()
    assert (made["SSECustomerAlgorithm"], made["SSECustomerKeyMD5"]) == ("AES256", digest)
    assert made["ETag"].strip('"') != hashlib.md5(BODY, usedforsecurity=False).hexdigest()
    found = client.get_object(Bucket=BUCKET, Key="k", **by(KEY))
    assert (found["Body"].read(), found["ETag"], found["SSECustomerKeyMD5"]) == (BODY, made["ETag"], digest)
    part = client.get_object(Bucket=BUCKET, Key="k", Range="bytes=262140-262150", **by(KEY))
    assert (part["Body"].read(), part["ContentRange"]) == (BODY[262140:262151], "bytes 262140-262150/700000")
    assert client.head_object(Bucket=BUCKET, Key="k", **by(KEY))["ContentLength"] == len(BODY)
    # Neither the key nor what it encrypts is anywhere.
    assert BODY[:32] not in stored(s3)
    row = row_of(people)
    assert all(secret not in str(row).encode() for secret in (KEY, b64encode(KEY), KEY.hex().encode()))
    assert row.customer_check is not None
    assert KEY not in row.customer_check


def test_without_the_key_nothing_is_told(client: Any) -> None:
    client.put_object(Bucket=BUCKET, Key="k", Body=BODY, **by(KEY))
    client.put_object(Bucket=BUCKET, Key="plain", Body=b"plain")
    refused(lambda: client.get_object(Bucket=BUCKET, Key="k"), "InvalidRequest")
    refused(lambda: client.head_object(Bucket=BUCKET, Key="k"), "400")
    refused(lambda: client.get_object(Bucket=BUCKET, Key="k", **by(OTHER)), "AccessDenied")
    refused(lambda: client.head_object(Bucket=BUCKET, Key="k", **by(OTHER)), "403")
    refused(lambda: client.get_object(Bucket=BUCKET, Key="plain", **by(KEY)), "InvalidRequest")
    refused(lambda: client.copy_object(Bucket=BUCKET, Key="c", CopySource=f"{BUCKET}/k"), "InvalidRequest")
    refused(lambda: client.copy_object(Bucket=BUCKET, Key="c", CopySource=f"{BUCKET}/k", **by(OTHER, "CopySource")), "AccessDenied")


def test_an_empty_object_needs_its_key_too(client: Any) -> None:
    client.put_object(Bucket=BUCKET, Key="k", Body=b"", **by(KEY))
    refused(lambda: client.get_object(Bucket=BUCKET, Key="k", **by(OTHER)), "AccessDenied")
    assert client.get_object(Bucket=BUCKET, Key="k", **by(KEY))["Body"].read() == b""


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ({"SSECustomerAlgorithm": "AES256"}, "InvalidArgument"),
        ({"SSECustomerKey": KEY}, "InvalidArgument"),
        ({"SSECustomerKeyMD5": "AAAAAAAAAAAAAAAAAAAAAA=="}, "InvalidArgument"),
        ({**SAID, "SSECustomerKeyMD5": "AAAAAAAAAAAAAAAAAAAAAA=="}, "InvalidArgument"),
        ({**SAID, "SSECustomerKeyMD5": "no digest"}, "InvalidArgument"),
        (by(KEY[:16]), "InvalidArgument"),
        ({**by(KEY), "SSECustomerAlgorithm": "AES128"}, "InvalidEncryptionAlgorithmError"),
        ({**by(KEY), "ServerSideEncryption": "AES256"}, "InvalidArgument"),
    ],
    ids=["no key", "no algorithm", "digest alone", "other digest", "no digest", "short key", "other algorithm", "two kinds"],
)
def test_half_of_the_headers(client: Any, s3: S3, given: dict[str, Any], code: str) -> None:
    refused(lambda: client.put_object(Bucket=BUCKET, Key="k", Body=b"x", **given), code)
    assert list(s3.blobs.stored()) == []


def test_not_over_plain_http(people: People) -> None:
    with gateway(people) as plain:
        client = plain.client()
        client.create_bucket(Bucket=BUCKET)
        found = refused(lambda: client.put_object(Bucket=BUCKET, Key="k", Body=b"x", **by(KEY)), "InvalidRequest")
        assert "secure connection" in found["Error"]["Message"]


def test_a_signed_address_is_no_place_for_a_key(client: Any, s3: S3) -> None:
    asked = {"Bucket": BUCKET, "Key": "k", **by(KEY)}
    address = client.generate_presigned_url("put_object", Params=asked)
    assert b64encode(KEY).decode().rstrip("=") not in address
    names = {f"x-amz-server-side-encryption-customer-{name}": value for name, value in (("algorithm", "AES256"), ("key", b64encode(KEY).decode()))}
    client.meta.events.register("before-sign.s3.PutObject", lambda request, **_: setattr(request, "url", f"{request.url}?{urlencode(names)}"))
    address = client.generate_presigned_url("put_object", Params={"Bucket": BUCKET, "Key": "k"})
    parts = urlsplit(address)
    link = HTTPSConnection(parts.netloc, timeout=30, context=ssl.create_default_context(cafile=os.environ["AWS_CA_BUNDLE"]))
    try:
        link.request("PUT", f"{parts.path}?{parts.query}", body=b"x")
        answer = link.getresponse()
        assert (answer.status, b"InvalidArgument" in answer.read()) == (400, True)
    finally:
        link.close()
    assert list(s3.blobs.stored()) == []


def test_copies_are_written_anew(client: Any) -> None:
    client.put_object(Bucket=BUCKET, Key="k", Body=BODY, **by(KEY))
    source = f"{BUCKET}/k"
    client.copy_object(Bucket=BUCKET, Key="other", CopySource=source, **by(KEY, "CopySource"), **by(OTHER))
    assert client.get_object(Bucket=BUCKET, Key="other", **by(OTHER))["Body"].read() == BODY
    # Where nothing is said a copy does not become readable on the disk.
    assert client.copy_object(Bucket=BUCKET, Key="ours", CopySource=source, **by(KEY, "CopySource"))["ServerSideEncryption"] == "AES256"
    assert client.get_object(Bucket=BUCKET, Key="ours")["Body"].read() == BODY
    # Another key for the same object is a copy onto itself.
    client.copy_object(Bucket=BUCKET, Key="k", CopySource=source, **by(KEY, "CopySource"), **by(OTHER))
    refused(lambda: client.get_object(Bucket=BUCKET, Key="k", **by(KEY)), "AccessDenied")
    assert client.get_object(Bucket=BUCKET, Key="k", **by(OTHER))["Body"].read() == BODY


def test_uploads_in_parts(client: Any, s3: S3) -> None:
    large = hashlib.shake_128(b"large").digest(5 * MIB)
    client.put_object(Bucket=BUCKET, Key="source", Body=BODY, **by(OTHER))
    upload = client.create_multipart_upload(Bucket=BUCKET, Key="k", **by(KEY))
    named = {"Bucket": BUCKET, "Key": "k", "UploadId": upload["UploadId"]}
    assert upload["SSECustomerAlgorithm"] == "AES256"
    for given in ({}, by(OTHER)):
        refused(lambda given=given: client.upload_part(**named, PartNumber=1, Body=large, **given), "InvalidRequest")
    first = client.upload_part(**named, PartNumber=1, Body=large, **by(KEY))
    second = client.upload_part_copy(**named, PartNumber=2, CopySource=f"{BUCKET}/source", **by(OTHER, "CopySource"), **by(KEY))["CopyPartResult"]
    parts = [{"PartNumber": number, "ETag": each["ETag"]} for number, each in ((1, first), (2, second))]
    client.complete_multipart_upload(**named, MultipartUpload={"Parts": parts})
    assert client.get_object(Bucket=BUCKET, Key="k", **by(KEY))["Body"].read() == large + BODY
    across = client.get_object(Bucket=BUCKET, Key="k", Range=f"bytes={5 * MIB - 3}-{5 * MIB + 2}", **by(KEY))["Body"].read()
    assert across == large[-3:] + BODY[:3]
    refused(lambda: client.get_object(Bucket=BUCKET, Key="k", **by(OTHER)), "AccessDenied")
    assert all(some not in stored(s3) for some in (large[:32], BODY[:32]))
    plain = client.create_multipart_upload(Bucket=BUCKET, Key="p")["UploadId"]
    refused(lambda: client.upload_part(Bucket=BUCKET, Key="p", UploadId=plain, PartNumber=1, Body=b"x", **by(KEY)), "InvalidRequest")
