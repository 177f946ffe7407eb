"""What real clients and raw requests do wrong, one by one: the right code of S3, nothing lost, nothing left on the disk."""

import base64
import datetime as dt
import hashlib
import socket
from collections.abc import Callable
from typing import Any

import botocore.auth
import pytest
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from botocore.exceptions import ClientError
from sqlalchemy import update

from portal.kernel.db import transaction
from portal.kernel.quota import Quota
from portal.storage.object_models import BucketUsage
from tests.support.s3 import S3, client, fetch, refused, sent

BUCKET = "a-bucket"
GIB = 1 << 30


@pytest.fixture
def mine(s3: S3) -> Any:
    """A client with a bucket and one object in it."""
    made = s3.client()
    made.create_bucket(Bucket=BUCKET)
    made.put_object(Bucket=BUCKET, Key="before", Body=b"0123456789")
    return made


@pytest.fixture(autouse=True)
def nothing_is_lost_and_nothing_left(mine: Any, s3: S3) -> Any:
    """Around each test: the object is as it was, and its bytes are the only ones."""
    yield
    assert mine.get_object(Bucket=BUCKET, Key="before")["Body"].read() == b"0123456789"
    assert [each["Key"] for each in mine.list_objects_v2(Bucket=BUCKET)["Contents"]] == ["before"]
    assert len(list(s3.blobs.stored())) == 1


def code_of(answer: tuple[int, dict[str, str], bytes]) -> tuple[int, str]:
    return answer[0], answer[2].decode().partition("<Code>")[2].partition("</Code>")[0]


def test_a_signature_that_is_not_of_the_key(mine: Any, s3: S3) -> None:
    key_id, secret = s3.key(s3.people.user("project_admin"))
    for version in ("s3v4", "s3"):
        wrong = client(s3.url, key_id, secret[:-1], signature_version=version)
        refused(lambda wrong=wrong: wrong.put_object(Bucket=BUCKET, Key="k", Body=b"x"), "SignatureDoesNotMatch")
        refused(lambda version=version: client(s3.url, "APUNKNOWN", secret, signature_version=version).list_buckets(), "InvalidAccessKeyId")
    address = mine.generate_presigned_url("put_object", Params={"Bucket": BUCKET, "Key": "k"}, ExpiresIn=60)
    assert code_of(fetch(address.replace("/k?", "/other?"), "PUT", b"x")) == (403, "SignatureDoesNotMatch")


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_clock_that_is_off(mine: Any, s3: S3, monkeypatch: pytest.MonkeyPatch, hours: int) -> None:
    moment = dt.datetime.now(dt.UTC) + dt.timedelta(hours=hours)
    monkeypatch.setattr(botocore.auth, "get_current_datetime", lambda **_: moment.replace(tzinfo=None))
    answer = sent(s3, "PUT", f"/{BUCKET}/k", b"x")
    assert code_of(answer) == (403, "RequestTimeTooSkewed"), answer
    assert b"<MaxAllowedSkewMilliseconds>900000</MaxAllowedSkewMilliseconds>" in answer[2]


@pytest.mark.parametrize(
    ("asked", "code"),
    [
        ({"ContentMD5": base64.b64encode(hashlib.md5(b"other", usedforsecurity=False).digest()).decode()}, "BadDigest"),
        ({"ContentMD5": "no digest"}, "InvalidDigest"), ({"ChecksumCRC32": "AAAAAA=="}, "BadDigest"), ({"ChecksumCRC32C": "AAAAAA=="}, "BadDigest"),
        ({"ChecksumSHA1": "AAAAAAAAAAAAAAAAAAAAAAAAAAA="}, "BadDigest"), ({"ChecksumSHA256": base64.b64encode(bytes(32)).decode()}, "BadDigest"),
        ({"ChecksumCRC64NVME": "AAAAAAAAAAA="}, "BadDigest"), ({"ChecksumCRC32": "no checksum"}, "InvalidRequest"),
    ],
)  # fmt: skip
def test_bytes_that_are_not_what_their_digest_says(mine: Any, asked: dict[str, str], code: str) -> None:
    refused(lambda: mine.put_object(Bucket=BUCKET, Key="k", Body=b"these bytes", **asked), code)
    upload = mine.create_multipart_upload(Bucket=BUCKET, Key="k")["UploadId"]
    refused(lambda: mine.upload_part(Bucket=BUCKET, Key="k", UploadId=upload, PartNumber=1, Body=b"these bytes", **asked), code)


def test_a_payload_that_is_not_what_was_signed(mine: Any, s3: S3) -> None:
    request = AWSRequest("PUT", f"{s3.url}/{BUCKET}/k", data=b"signed")
    credentials = Credentials(*s3.key(s3.people.user("project_admin")))
    botocore.auth.S3SigV4Auth(credentials, "s3", "us-east-1").add_auth(request)
    assert code_of(fetch(request.url, "PUT", b"forged", dict(request.headers))) == (400, "XAmzContentSHA256Mismatch")


def test_parts_that_make_no_object(mine: Any, s3: S3) -> None:
    upload = {"Bucket": BUCKET, "Key": "k", "UploadId": mine.create_multipart_upload(Bucket=BUCKET, Key="k")["UploadId"]}
    parts = [
        {"PartNumber": number, "ETag": mine.upload_part(**upload, PartNumber=number, Body=body)["ETag"]}
        for number, body in ((1, b"small"), (2, b"x"))
    ]

    def end(*named: dict[str, Any]) -> Callable[[], object]:
        return lambda: mine.complete_multipart_upload(**upload, MultipartUpload={"Parts": list(named)})

    refused(end(*parts), "EntityTooSmall")
    refused(end(*parts[::-1]), "InvalidPartOrder")
    refused(end(parts[0], parts[0]), "InvalidPartOrder")
    refused(end({**parts[0], "ETag": parts[1]["ETag"]}), "InvalidPart")
    refused(end({**parts[0], "PartNumber": 3}), "InvalidPart")
    refused(end(), "MalformedXML")
    refused(lambda: mine.upload_part(**{**upload, "UploadId": "none"}, PartNumber=1, Body=b""), "NoSuchUpload")
    refused(lambda: mine.upload_part(**upload, PartNumber=10_001, Body=b""), "InvalidArgument")
    # Nothing was lost by it: the parts are there until they are given up.
    assert len(mine.list_parts(**upload)["Parts"]) == 2
    mine.abort_multipart_upload(**upload)
    s3.sweep()


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("../k", "InvalidURI"), ("a/../../k", "InvalidURI"), ("%2e%2e/k", "InvalidURI"), ("k" * 1025, "KeyTooLongError"), ("%C3%BC" * 513, "KeyTooLongError"),
        ("k%00", "InvalidURI"), ("%ff", "InvalidURI"), ("%zz", "InvalidURI"),
    ],
)  # fmt: skip
def test_keys_that_nobody_can_have(s3: S3, path: str, code: str) -> None:
    key_id, _ = s3.key(s3.people.user("project_admin"))
    # Nothing is asked of the signature: the address is no address.
    with socket.create_connection(("127.0.0.1", s3.port)) as link:
        link.sendall(
            f"PUT /{BUCKET}/{path} HTTP/1.1\r\nHost: 127.0.0.1:{s3.port}\r\nAuthorization: AWS {key_id}:x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode()
        )
        answer = b"".join(iter(lambda: link.recv(65536), b""))
    assert (answer.split()[1], f"<Code>{code}</Code>".encode() in answer) == (b"400", True), answer


def test_a_key_of_1024_bytes_is_one(mine: Any) -> None:
    mine.put_object(Bucket=BUCKET, Key="ü" * 512, Body=b"")
    mine.delete_object(Bucket=BUCKET, Key="ü" * 512)


@pytest.mark.parametrize(
    "name",
    ["ab", "a" * 64, "Upper-Case", "under_score", "-dash", "dash-", "two..dots", "dot.-dash", "192.168.0.1", "xn--name", "sthree-name", "amzn-s3-demo-x", "name-s3alias",
     "name--ol-s3", "name.mrap", "name--x-s3", "name--table-s3", "a%20space"],
)  # fmt: skip
def test_names_that_no_bucket_has(s3: S3, name: str) -> None:
    assert code_of(sent(s3, "PUT", f"/{name}")) == (400, "InvalidBucketName")


@pytest.mark.parametrize(("asked", "status"), [("bytes=10-", 416), ("bytes=10-20", 416), ("bytes=-0", 416), ("bytes=5-2", 200), ("bytes=8-100", 206)])
def test_ranges_beyond_the_end(s3: S3, asked: str, status: int) -> None:
    answer = sent(s3, "GET", f"/{BUCKET}/before", Range=asked)
    assert answer[0] == status, answer
    if status == 416:
        assert (code_of(answer)[1], answer[1]["Content-Range"], b"<ActualObjectSize>10</ActualObjectSize>" in answer[2]) == (
            "InvalidRange",
            "bytes */10",
            True,
        )


BILLION = b'<?xml version="1.0"?><!DOCTYPE l [<!ENTITY a "lol">%s]><x>&i;</x>' % b"".join(
    b'<!ENTITY %c "%s">' % (letter, b"&%c;" % (letter - 1) * 10) for letter in b"bcdefghi"
)
OUTSIDE = b'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/passwd">]><x>&a;</x>'


@pytest.mark.parametrize("body", [BILLION, OUTSIDE, b"<x", b"", b"{}", b"\x00", b"<a>" * 50, b"<x>" + b"<y/>" * 200_000 + b"</x>"])
@pytest.mark.parametrize(
    "what", ["delete", "versioning", "lifecycle", "cors", "tagging", "acl", "object-lock", "ownershipControls", "publicAccessBlock"]
)
def test_documents_that_are_none(s3: S3, what: str, body: bytes) -> None:
    root = {"delete": b"Delete", "versioning": b"VersioningConfiguration", "acl": b"AccessControlPolicy"}.get(what, b"x")
    method = "POST" if what == "delete" else "PUT"
    status, code = code_of(sent(s3, method, f"/{BUCKET}?{what}=", body.replace(b"<x>", b"<%s>" % root)))
    wanted = {"MalformedXML"} | ({"MissingSecurityHeader"} if what == "acl" and not body else set())
    assert (status, code in wanted) == (400, True), code


def test_more_than_the_quota_of_the_project(mine: Any, s3: S3) -> None:
    admin = s3.people.context(s3.people.admin())
    with transaction(admin.db):
        admin.db.execute(update(Quota).where(Quota.dimension == "object_gb").values(limit=1))
        # As if the bucket held all but one byte of it.
        admin.db.execute(update(BucketUsage).values(size_bytes=GIB - 1, held_gib=1))
    for size in (2, (1 << 20) + 1):
        found = refused(lambda size=size: mine.put_object(Bucket=BUCKET, Key="k", Body=bytes(size)), "QuotaExceeded")
        assert (found["ResponseMetadata"]["HTTPStatusCode"], "object_gb" in found["Error"]["Message"]) == (403, True)
    upload = mine.create_multipart_upload(Bucket=BUCKET, Key="k")["UploadId"]
    refused(lambda: mine.upload_part(Bucket=BUCKET, Key="k", UploadId=upload, PartNumber=1, Body=b"xx"), "QuotaExceeded")
    refused(lambda: mine.copy_object(Bucket=BUCKET, Key="copy", CopySource=f"{BUCKET}/before"), "QuotaExceeded")


def test_more_than_an_object_may_have(mine: Any, s3: S3) -> None:
    target = mine.generate_presigned_url("put_object", Params={"Bucket": BUCKET, "Key": "k"}, ExpiresIn=60).partition(s3.url)[2]
    with socket.create_connection(("127.0.0.1", s3.port)) as link:
        link.sendall(f"PUT {target} HTTP/1.1\r\nHost: 127.0.0.1:{s3.port}\r\nContent-Length: {5 * GIB + 1}\r\nConnection: close\r\n\r\n".encode())
        link.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: link.recv(65536), b""))
    assert b"<Code>EntityTooLarge</Code>" in answer, answer


def test_a_client_is_told_by_which_request_it_was(mine: Any) -> None:
    with pytest.raises(ClientError) as caught:
        mine.get_object(Bucket=BUCKET, Key="none")
    meta = caught.value.response["ResponseMetadata"]
    assert meta["RequestId"] == meta["HTTPHeaders"]["x-amz-request-id"] != ""
