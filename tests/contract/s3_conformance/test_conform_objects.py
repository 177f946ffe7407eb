"""Operations on objects: headers, conditions, ranges, copies, deletion."""

import base64
import hashlib
from email.utils import parsedate_to_datetime
from typing import Any

import pytest

from tests.support.s3 import refused
from tests.support.s3_operations import conforms
from tests.support.s3_raw import Raw

BODY = b"0123456789"
MD5 = hashlib.md5(BODY).hexdigest()  # noqa: S324 - as S3 has it


@pytest.fixture
def key(raw: Raw, bucket: str) -> str:
    """The path of an object of ten bytes."""
    said = {
        "Content-Type": "text/plain",
        "x-amz-meta-colour": "red",
        "Cache-Control": "no-cache",
        "Content-Language": "de",
        "x-amz-tagging": "a=1&b=2",
    }
    assert raw("PUT", f"/{bucket}/a key", body=BODY, headers=said).status == 200
    return f"/{bucket}/a key"


@conforms("PutObject")
def test_put_object(raw: Raw, bucket: str) -> None:
    answer = raw("PUT", f"/{bucket}/k", body=BODY, headers={"Content-MD5": base64.b64encode(bytes.fromhex(MD5)).decode()})
    assert (answer.status, answer.headers["ETag"], answer.body) == (200, f'"{MD5}"', b"")
    assert answer.headers["x-amz-request-id"]
    for headers, code in (
        ({"Content-MD5": base64.b64encode(b"x" * 16).decode()}, "BadDigest"), ({"Content-MD5": "no digest"}, "InvalidDigest"),
        ({"x-amz-checksum-crc32": "AAAAAA=="}, "BadDigest"), ({"x-amz-storage-class": "GOLD"}, "InvalidStorageClass"), ({"x-amz-acl": "all"}, "InvalidArgument"),
        ({"x-amz-tagging": "a=1&a=2"}, "InvalidTag"), ({"x-amz-meta-a": "x" * 2049}, "MetadataTooLarge"), ({"If-Match": '"0"'}, "PreconditionFailed"),
        ({"If-None-Match": "*"}, "PreconditionFailed"), ({"If-None-Match": '"0"'}, "NotImplemented"),
    ):  # fmt: skip
        assert raw("PUT", f"/{bucket}/k", body=b"other", headers=headers).code == code, headers
    assert raw("GET", f"/{bucket}/k").body == BODY
    assert raw("PUT", f"/{bucket}/{'x' * 1025}", body=b"").code == "KeyTooLongError"
    assert raw("PUT", "/no-such/k", body=b"").code == "NoSuchBucket"
    assert raw("PUT", f"/{bucket}/none", body=b"", headers={"If-Match": "*"}).code == "NoSuchKey"


@conforms("GetObject")
def test_get_object(raw: Raw, key: str) -> None:
    answer = raw("GET", key)
    told = {"Content-Type": "text/plain", "x-amz-meta-colour": "red", "Cache-Control": "no-cache", "Content-Language": "de", "ETag": f'"{MD5}"',
            "Content-Length": "10", "Accept-Ranges": "bytes", "x-amz-tagging-count": "2"}  # fmt: skip
    assert (answer.status, answer.body, {name: answer.headers.get(name) for name in told}) == (200, BODY, told)
    assert parsedate_to_datetime(answer.headers["Last-Modified"])
    over = raw("GET", key, {"response-content-type": "a/b", "response-content-disposition": "attachment", "response-expires": "never"})
    assert [over.headers[name] for name in ("Content-Type", "Content-Disposition", "Expires")] == ["a/b", "attachment", "never"]
    gone = raw("GET", "/conforming/none")
    assert (gone.status, gone.code, gone.xml.findtext("Resource")) == (404, "NoSuchKey", "/conforming/none")
    assert gone.xml.findtext("RequestId") == gone.headers["x-amz-request-id"]
    assert raw("GET", key, "versionId=wrong").status in {400, 404}


@conforms("GetObject")
@pytest.mark.parametrize(
    ("asked", "status_and_range", "body"),
    [
        ("bytes=0-3", (206, "bytes 0-3/10"), b"0123"), ("bytes=8-", (206, "bytes 8-9/10"), b"89"), ("bytes=-3", (206, "bytes 7-9/10"), b"789"),
        ("bytes=5-100", (206, "bytes 5-9/10"), b"56789"), ("bytes=-100", (206, "bytes 0-9/10"), BODY), ("bytes=3-1", (200, None), BODY), ("lines=1-2", (200, None), BODY),
    ],
)  # fmt: skip
def test_ranges(raw: Raw, key: str, asked: str, status_and_range: tuple[int, str | None], body: bytes) -> None:
    answer = raw("GET", key, headers={"Range": asked})
    assert ((answer.status, answer.headers.get("Content-Range")), answer.body) == (status_and_range, body)
    assert raw("HEAD", key, headers={"Range": asked}).headers["Content-Length"] == str(len(body))


@conforms("GetObject")
@pytest.mark.parametrize("asked", ["bytes=10-", "bytes=100-200", "bytes=-0"])
def test_a_range_beyond_the_end(raw: Raw, key: str, asked: str) -> None:
    answer = raw("GET", key, headers={"Range": asked})
    assert (answer.status, answer.code, answer.headers["Content-Range"]) == (416, "InvalidRange", "bytes */10")


@conforms("GetObject", "HeadObject")
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_conditions_of_reads(raw: Raw, key: str, method: str) -> None:
    before, after = "Wed, 21 Oct 2015 07:28:00 GMT", "Fri, 21 Oct 2095 07:28:00 GMT"
    for headers, status in (
        ({"If-Match": f'"{MD5}"'}, 200), ({"If-Match": '"0"'}, 412), ({"If-None-Match": f'"{MD5}"'}, 304), ({"If-None-Match": '"0"'}, 200),
        ({"If-Modified-Since": before}, 200), ({"If-Modified-Since": after}, 304), ({"If-Unmodified-Since": before}, 412), ({"If-Unmodified-Since": after}, 200),
        # An entity tag counts for more than a date.
        ({"If-Match": f'"{MD5}"', "If-Unmodified-Since": before}, 200), ({"If-None-Match": f'"{MD5}"', "If-Modified-Since": before}, 304),
    ):  # fmt: skip
        assert raw(method, key, headers=headers).status == status, headers


@conforms("HeadObject")
def test_head_object(raw: Raw, key: str) -> None:
    answer = raw("HEAD", key)
    assert (answer.status, answer.body, answer.headers["Content-Length"], answer.headers["ETag"]) == (200, b"", "10", f'"{MD5}"')
    assert raw("HEAD", "/conforming/none").status == 404
    raw("PUT", "/conforming/sum", body=BODY, headers={"x-amz-checksum-sha256": base64.b64encode(hashlib.sha256(BODY).digest()).decode()})
    assert "x-amz-checksum-sha256" not in raw("HEAD", "/conforming/sum").headers
    told = raw("HEAD", "/conforming/sum", headers={"x-amz-checksum-mode": "ENABLED"}).headers
    assert (told["x-amz-checksum-sha256"], told["x-amz-checksum-type"]) == (base64.b64encode(hashlib.sha256(BODY).digest()).decode(), "FULL_OBJECT")


@conforms("GetObjectAttributes")
def test_attributes(boto: Any, raw: Raw, bucket: str) -> None:
    boto.put_object(Bucket=bucket, Key="k", Body=BODY, ChecksumAlgorithm="SHA256")
    every = ["ETag", "Checksum", "ObjectParts", "StorageClass", "ObjectSize"]
    found = boto.get_object_attributes(Bucket=bucket, Key="k", ObjectAttributes=every)
    assert (found["ETag"], found["StorageClass"], found["ObjectSize"], "ObjectParts" in found) == (MD5, "STANDARD", 10, False)
    assert found["Checksum"] == {"ChecksumSHA256": base64.b64encode(hashlib.sha256(BODY).digest()).decode(), "ChecksumType": "FULL_OBJECT"}
    assert found["LastModified"]
    assert "ETag" not in boto.get_object_attributes(Bucket=bucket, Key="k", ObjectAttributes=["ObjectSize"])
    refused(lambda: boto.get_object_attributes(Bucket=bucket, Key="none", ObjectAttributes=every), "NoSuchKey")
    assert raw("GET", f"/{bucket}/k", "attributes").code == "InvalidRequest"
    assert raw("GET", f"/{bucket}/k", "attributes", headers={"x-amz-object-attributes": "ETag,Colour"}).code == "InvalidArgument"


@conforms("DeleteObject")
def test_delete_object(raw: Raw, key: str) -> None:
    assert raw("DELETE", key, headers={"If-Match": '"0"'}).code == "PreconditionFailed"
    answer = raw("DELETE", key)
    assert (answer.status, answer.body, "x-amz-delete-marker" in answer.headers) == (204, b"", False)
    assert raw("DELETE", key).status == 204
    assert raw("GET", key).code == "NoSuchKey"
    assert raw("DELETE", "/no-such/k").code == "NoSuchBucket"


@conforms("DeleteObjects")
def test_delete_objects(boto: Any, raw: Raw, bucket: str) -> None:
    for name in "abc":
        raw("PUT", f"/{bucket}/{name}", body=b"x")
    found = boto.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": "a"}, {"Key": "none"}]})
    assert [each["Key"] for each in found["Deleted"]] == ["a", "none"]
    quiet = boto.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": "b"}, {"Key": "x" * 1025}], "Quiet": True})
    assert ("Deleted" in quiet, [(each["Key"], each["Code"]) for each in quiet["Errors"]]) == (False, [("x" * 1025, "KeyTooLongError")])
    assert raw("POST", f"/{bucket}", "delete", b"<Delete/>").code == "MalformedXML"
    many = [{"Key": str(number)} for number in range(1001)]
    refused(lambda: boto.delete_objects(Bucket=bucket, Delete={"Objects": many}), "MalformedXML")
    assert boto.list_objects_v2(Bucket=bucket)["KeyCount"] == 1


@conforms("CopyObject")
def test_copy_object(raw: Raw, key: str) -> None:
    source = {"x-amz-copy-source": "/conforming/a%20key"}
    answer = raw("PUT", "/conforming/copy", headers=source)
    assert (answer.status, answer.root, answer.text("ETag")) == (200, "CopyObjectResult", f'"{MD5}"')
    assert answer.text("LastModified")
    assert raw("GET", "/conforming/copy").headers["x-amz-meta-colour"] == "red"
    assert raw("GET", "/conforming/copy").headers["x-amz-tagging-count"] == "2"
    replaced = {**source, "x-amz-metadata-directive": "REPLACE", "x-amz-meta-size": "s", "x-amz-tagging-directive": "REPLACE"}
    raw("PUT", "/conforming/copy", headers=replaced)
    told = raw("GET", "/conforming/copy").headers
    assert ("x-amz-meta-colour" in told, "x-amz-tagging-count" in told, told["x-amz-meta-size"]) == (False, False, "s")
    for headers, code in (
        ({"x-amz-copy-source": "/conforming/none"}, "NoSuchKey"), ({"x-amz-copy-source": "/no-such/k"}, "NoSuchBucket"), ({"x-amz-copy-source": "nothing"}, "InvalidArgument"),
        ({**source, "x-amz-copy-source-if-match": '"0"'}, "PreconditionFailed"), ({**source, "x-amz-copy-source-if-none-match": f'"{MD5}"'}, "PreconditionFailed"),
        ({**source, "x-amz-metadata-directive": "KEEP"}, "InvalidArgument"),
    ):  # fmt: skip
        assert raw("PUT", "/conforming/other", headers=headers).code == code, headers
    assert raw("PUT", key, headers=source).code == "InvalidRequest"
    assert raw("GET", "/conforming/other").code == "NoSuchKey"


@conforms("GetObjectTagging", "PutObjectTagging", "DeleteObjectTagging")
def test_tags(boto: Any, raw: Raw, key: str) -> None:
    about = {"Bucket": "conforming", "Key": "a key"}
    assert boto.get_object_tagging(**about)["TagSet"] == [{"Key": "a", "Value": "1"}, {"Key": "b", "Value": "2"}]
    assert raw("PUT", key, "tagging", b"<Tagging><TagSet><Tag><Key>c</Key><Value>3</Value></Tag></TagSet></Tagging>").status == 200
    assert boto.get_object_tagging(**about)["TagSet"] == [{"Key": "c", "Value": "3"}]
    assert raw("PUT", key, "tagging", b"<Tagging>").code == "MalformedXML"
    eleven = [{"Key": str(number), "Value": ""} for number in range(11)]
    refused(lambda: boto.put_object_tagging(**about, Tagging={"TagSet": eleven}), "InvalidTag")
    assert raw("DELETE", key, "tagging").status == 204
    assert boto.get_object_tagging(**about)["TagSet"] == []
    for method in ("GET", "DELETE"):
        assert raw(method, "/conforming/none", "tagging").code == "NoSuchKey"
