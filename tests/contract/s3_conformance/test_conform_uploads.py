"""Uploads in parts."""

import hashlib
from typing import Any

import pytest

from tests.support.s3 import refused
from tests.support.s3_operations import conforms
from tests.support.s3_raw import Raw

MIB = 1 << 20
PART, LAST = b"p" * (5 * MIB), b"the end"


def etag(*parts: bytes) -> str:
    whole = b"".join(hashlib.md5(each).digest() for each in parts)  # noqa: S324 - as S3 has it
    return f'"{hashlib.md5(whole).hexdigest()}-{len(parts)}"'  # noqa: S324 - as above


def document(*parts: tuple[int, str]) -> bytes:
    listed = "".join(f"<Part><PartNumber>{number}</PartNumber><ETag>{tag}</ETag></Part>" for number, tag in parts)
    return f"<CompleteMultipartUpload>{listed}</CompleteMultipartUpload>".encode()


@pytest.fixture
def upload(raw: Raw, bucket: str) -> str:
    """The id of an upload of `k`."""
    return raw("POST", f"/{bucket}/k", "uploads", headers={"Content-Type": "text/plain", "x-amz-meta-a": "1"}).text("UploadId")


@conforms("CreateMultipartUpload")
def test_create(raw: Raw, bucket: str) -> None:
    answer = raw("POST", f"/{bucket}/a key", "uploads")
    assert (answer.status, answer.root, answer.text("Bucket"), answer.text("Key")) == (200, "InitiateMultipartUploadResult", bucket, "a key")
    with_sum = raw("POST", f"/{bucket}/k", "uploads", headers={"x-amz-checksum-algorithm": "SHA256"})
    assert (with_sum.headers["x-amz-checksum-algorithm"], with_sum.headers["x-amz-checksum-type"]) == ("SHA256", "COMPOSITE")
    assert raw("POST", f"/{bucket}/k", "uploads", headers={"x-amz-checksum-algorithm": "MD2"}).status == 400
    assert raw("POST", "/no-such/k", "uploads").code == "NoSuchBucket"


@conforms("UploadPart", "CompleteMultipartUpload", "HeadObject", "GetObject")
def test_parts_become_an_object(raw: Raw, bucket: str, upload: str) -> None:
    tags = [
        raw("PUT", f"/{bucket}/k", {"partNumber": str(number), "uploadId": upload}, body).headers["ETag"] for number, body in ((1, PART), (3, LAST))
    ]
    assert tags == [f'"{hashlib.md5(each).hexdigest()}"' for each in (PART, LAST)]  # noqa: S324 - as S3 has it
    assert raw("GET", f"/{bucket}/k").code == "NoSuchKey"
    for _ in range(2):
        # A second time answers like the first: the first answer may not have arrived.
        done = raw("POST", f"/{bucket}/k", {"uploadId": upload}, document((1, tags[0]), (3, tags[1])))
        assert (done.status, done.root, done.text("ETag")) == (200, "CompleteMultipartUploadResult", etag(PART, LAST))
        assert (done.text("Bucket"), done.text("Key")) == (bucket, "k")
    whole = raw("GET", f"/{bucket}/k")
    assert (whole.body == PART + LAST, whole.headers["Content-Type"], whole.headers["x-amz-meta-a"]) == (True, "text/plain", "1")
    second = raw("GET", f"/{bucket}/k", "partNumber=2")
    assert (second.status, second.body, second.headers["x-amz-mp-parts-count"]) == (206, LAST, "2")
    assert raw("GET", f"/{bucket}/k", "partNumber=3").code == "InvalidPartNumber"
    over = raw("GET", f"/{bucket}/k", headers={"Range": f"bytes={5 * MIB - 1}-{5 * MIB}"})
    assert over.body == b"pt"


@conforms("GetObjectAttributes")
def test_attributes_of_parts(boto: Any, bucket: str) -> None:
    upload = boto.create_multipart_upload(Bucket=bucket, Key="k", ChecksumAlgorithm="SHA256")["UploadId"]
    about = {"Bucket": bucket, "Key": "k", "UploadId": upload}
    sent = [boto.upload_part(**about, PartNumber=number, Body=body, ChecksumAlgorithm="SHA256") for number, body in ((1, PART), (2, LAST))]
    parts = [{"PartNumber": number, "ETag": each["ETag"], "ChecksumSHA256": each["ChecksumSHA256"]} for number, each in enumerate(sent, 1)]
    boto.complete_multipart_upload(**about, MultipartUpload={"Parts": parts})
    found = boto.get_object_attributes(Bucket=bucket, Key="k", ObjectAttributes=["ObjectParts", "Checksum"], MaxParts=1)
    assert found["Checksum"]["ChecksumType"] == "COMPOSITE"
    told = found["ObjectParts"]
    assert (told["TotalPartsCount"], told["IsTruncated"], told["NextPartNumberMarker"], told["MaxParts"]) == (2, True, 1, 1)
    assert told["Parts"] == [{"PartNumber": 1, "Size": len(PART), "ChecksumSHA256": sent[0]["ChecksumSHA256"]}]
    rest = boto.get_object_attributes(Bucket=bucket, Key="k", ObjectAttributes=["ObjectParts"], PartNumberMarker=1)["ObjectParts"]
    assert ([each["PartNumber"] for each in rest["Parts"]], rest["IsTruncated"]) == ([2], False)


@conforms("CompleteMultipartUpload", "UploadPart")
def test_what_is_wrong_with_parts(raw: Raw, bucket: str, upload: str) -> None:
    tags = [raw("PUT", f"/{bucket}/k", {"partNumber": str(number), "uploadId": upload}, LAST).headers["ETag"] for number in (1, 2)]
    for body, code in (
        (document((1, tags[0]), (2, tags[1])), "EntityTooSmall"), (document((2, tags[1]), (1, tags[0])), "InvalidPartOrder"), (document((3, tags[0])), "InvalidPart"),
        (document((1, '"0"')), "InvalidPart"), (document(), "MalformedXML"), (b"<Other/>", "MalformedXML"), (document((1, tags[0]), (1, tags[0])), "InvalidPartOrder"),
    ):  # fmt: skip
        assert raw("POST", f"/{bucket}/k", {"uploadId": upload}, body).code == code, body
    for number in ("0", "10001", "x", ""):
        assert raw("PUT", f"/{bucket}/k", {"partNumber": number, "uploadId": upload}, LAST).code == "InvalidArgument", number
    assert raw("PUT", f"/{bucket}/k", {"partNumber": "1", "uploadId": "none"}, LAST).code == "NoSuchUpload"
    assert raw("PUT", f"/{bucket}/other", {"partNumber": "1", "uploadId": upload}, LAST).code == "NoSuchUpload"
    assert raw("POST", f"/{bucket}/k", {"uploadId": "none"}, document((1, tags[0]))).code == "NoSuchUpload"


@conforms("UploadPartCopy")
def test_parts_of_other_objects(raw: Raw, bucket: str, upload: str) -> None:
    raw("PUT", f"/{bucket}/source", body=b"0123456789")
    source = {"x-amz-copy-source": f"/{bucket}/source"}
    about = {"partNumber": "1", "uploadId": upload}
    answer = raw("PUT", f"/{bucket}/k", about, headers={**source, "x-amz-copy-source-range": "bytes=2-4"})
    assert (answer.status, answer.root, answer.text("ETag")) == (200, "CopyPartResult", f'"{hashlib.md5(b"234").hexdigest()}"')  # noqa: S324 - as S3 has it
    for wrong in ("bytes=2-10", "bytes=2-", "2-4"):
        assert raw("PUT", f"/{bucket}/k", about, headers={**source, "x-amz-copy-source-range": wrong}).status in {400, 416}, wrong
    assert raw("PUT", f"/{bucket}/k", about, headers={"x-amz-copy-source": f"/{bucket}/none"}).code == "NoSuchKey"
    assert raw("PUT", f"/{bucket}/k", about, headers={**source, "x-amz-copy-source-if-match": '"0"'}).code == "PreconditionFailed"
    raw("POST", f"/{bucket}/k", {"uploadId": upload}, document((1, answer.text("ETag"))))
    assert raw("GET", f"/{bucket}/k").body == b"234"


@conforms("AbortMultipartUpload")
def test_abort(raw: Raw, bucket: str, upload: str) -> None:
    raw("PUT", f"/{bucket}/k", {"partNumber": "1", "uploadId": upload}, LAST)
    assert raw("DELETE", f"/{bucket}/k", {"uploadId": upload}).status == 204
    assert raw("DELETE", f"/{bucket}/k", {"uploadId": "none"}).code == "NoSuchUpload"
    assert raw("GET", f"/{bucket}/k", {"uploadId": upload}).code == "NoSuchUpload"
    assert raw("GET", f"/{bucket}/k").code == "NoSuchKey"


@conforms("ListParts")
def test_list_parts(raw: Raw, bucket: str, upload: str) -> None:
    for number in (1, 2, 7):
        raw("PUT", f"/{bucket}/k", {"partNumber": str(number), "uploadId": upload}, LAST)
    answer = raw("GET", f"/{bucket}/k", {"uploadId": upload, "max-parts": "2"})
    assert (answer.root, answer.texts("Part/PartNumber"), answer.text("IsTruncated")) == ("ListPartsResult", ["1", "2"], "true")
    assert (answer.text("NextPartNumberMarker"), answer.texts("Part/Size"), answer.text("StorageClass")) == ("2", ["7", "7"], "STANDARD")
    assert (answer.text("Initiator/ID"), answer.text("Owner/ID")) == (raw.owner.id, raw.owner.id)
    rest = raw("GET", f"/{bucket}/k", {"uploadId": upload, "part-number-marker": "2"})
    assert (rest.texts("Part/PartNumber"), rest.text("IsTruncated")) == (["7"], "false")


@conforms("ListMultipartUploads")
def test_list_uploads(raw: Raw, bucket: str, boto: Any, upload: str) -> None:
    other = raw("POST", f"/{bucket}/a/b", "uploads").text("UploadId")
    answer = raw("GET", f"/{bucket}", "uploads")
    assert (answer.root, answer.texts("Upload/Key"), answer.texts("Upload/UploadId")) == ("ListMultipartUploadsResult", ["a/b", "k"], [other, upload])
    assert (answer.text("Bucket"), answer.text("MaxUploads"), answer.text("IsTruncated")) == (bucket, "1000", "false")
    assert raw("GET", f"/{bucket}", {"uploads": "", "delimiter": "/"}).texts("CommonPrefixes/Prefix") == ["a/"]
    first = boto.list_multipart_uploads(Bucket=bucket, MaxUploads=1)
    assert (first["IsTruncated"], first["NextKeyMarker"], first["NextUploadIdMarker"]) == (True, "a/b", other)
    rest = boto.list_multipart_uploads(Bucket=bucket, KeyMarker="a/b", UploadIdMarker=other)
    assert [each["UploadId"] for each in rest["Uploads"]] == [upload]
    refused(lambda: boto.list_multipart_uploads(Bucket="no-such"), "NoSuchBucket")
