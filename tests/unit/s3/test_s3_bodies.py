"""Plain bodies: whatever the client says about the bytes is checked before anybody relies on them."""

import base64
import hashlib
import io
import zlib

import pytest

from portal.s3.bodies import Body, open_body
from portal.s3.errors import S3Error
from portal.s3.signatures import verify
from tests.support.s3_wire import HOST, Broken, environ_of, now, request_of, secret_of, sent_by_boto3, signed, v2, v4

DATA = bytes(range(256)) * 12_000


def md5(data):
    return hashlib.md5(data, usedforsecurity=False).digest()


def b64(digest):
    return base64.b64encode(digest).decode()


def crc32(data):
    return b64(zlib.crc32(data).to_bytes(4, "big"))


def opened(headers=None, data=DATA, length=None, **options) -> Body:
    sent = {"Content-Length": str(len(data) if length is None else length)} | (headers or {})
    return open_body(request_of(environ_of("PUT", f"http://{HOST}/b/k", sent, data)), None, **options)


def refused(*args, **options):
    with pytest.raises(S3Error) as caught:
        opened(*args, **options).whole()
    return caught.value


def test_a_body_that_is_right():
    digest = md5(DATA)
    body = opened({"Content-MD5": b64(digest), "x-amz-checksum-crc32": crc32(DATA), "x-amz-content-sha256": hashlib.sha256(DATA).hexdigest()})
    assert b"".join(body) == DATA
    assert (body.size_bytes, body.md5, body.checksum.text, body.is_protected) == (len(DATA), digest, crc32(DATA), True)


def test_who_sends_no_checksum_gets_one():
    body = opened(data=b"123456789")
    assert body.whole() == b"123456789"
    assert (body.checksum.algorithm, body.checksum.digest.hex(), body.is_protected) == ("CRC64NVME", "ae8b14860a799888", False)


def test_nothing_is_right_as_well():
    body = opened({"x-amz-content-sha256": hashlib.sha256().hexdigest()}, data=b"")
    assert body.whole() == b""
    assert body.md5 == md5(b"")


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"Content-MD5": b64(md5(b"other"))}, "BadDigest"),
        ({"Content-MD5": "nonsense"}, "InvalidDigest"),
        ({"Content-MD5": ""}, "InvalidDigest"),
        ({"Content-MD5": b64(b"short")}, "InvalidDigest"),
        ({"x-amz-checksum-crc32": crc32(b"other")}, "BadDigest"),
        ({"x-amz-checksum-sha256": b64(hashlib.sha256(b"other").digest())}, "BadDigest"),
        ({"x-amz-checksum-crc32": "x"}, "InvalidRequest"),
        ({"x-amz-checksum-crc32c": b64(b"12345")}, "InvalidRequest"),
        ({"x-amz-checksum-crc32": crc32(DATA), "x-amz-checksum-sha1": b64(bytes(20))}, "InvalidRequest"),
        ({"x-amz-checksum-sha512": b64(bytes(64))}, "InvalidRequest"),
        ({"x-amz-sdk-checksum-algorithm": "CRC32"}, "InvalidRequest"),
        ({"x-amz-sdk-checksum-algorithm": "ROT13", "x-amz-checksum-crc32": crc32(DATA)}, "InvalidRequest"),
        ({"x-amz-sdk-checksum-algorithm": "SHA1", "x-amz-checksum-crc32": crc32(DATA)}, "InvalidRequest"),
        ({"x-amz-trailer": "x-amz-checksum-crc32"}, "InvalidRequest"),
        ({"x-amz-trailer": "x-amz-meta-a"}, "InvalidRequest"),
        ({"x-amz-content-sha256": hashlib.sha256(b"other").hexdigest()}, "XAmzContentSHA256Mismatch"),
        ({"x-amz-content-sha256": "nonsense"}, "InvalidArgument"),
        ({"x-amz-content-sha256": "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"}, "InvalidRequest"),
        ({"Content-Length": ""}, "MissingContentLength"),
        ({"Content-Length": "many"}, "InvalidArgument"),
    ],
)
def test_a_body_that_is_not_what_was_said(headers, code):
    assert refused(headers).code == code


def test_a_body_that_is_cut_off():
    assert refused(length=len(DATA) + 1).code == "IncompleteBody"
    request = request_of(environ_of("PUT", f"http://{HOST}/b/k", {"Content-Length": "9000000"}) | {"wsgi.input": Broken(DATA)})
    with pytest.raises(S3Error, match="IncompleteBody"):
        open_body(request, None).whole()


def test_only_what_was_announced_is_read():
    data = io.BytesIO(b"object" + b"next request")
    request = request_of(environ_of("PUT", f"http://{HOST}/b/k", {"Content-Length": "6"}) | {"wsgi.input": data})
    assert open_body(request, None).whole() == b"object"
    assert data.read() == b"next request"


def test_a_body_over_the_limit_is_not_begun():
    error = refused(limit_bytes=len(DATA) - 1)
    assert (error.code, error.details) == ("EntityTooLarge", {"ProposedSize": len(DATA), "MaxSizeAllowed": len(DATA) - 1})


def test_a_body_of_unknown_length_ends_at_the_limit():
    environ = environ_of("PUT", f"http://{HOST}/b/k", {"Transfer-Encoding": "chunked"}, DATA)
    assert open_body(request_of(environ), None).whole() == DATA
    environ["wsgi.input"].seek(0)
    with pytest.raises(S3Error, match="EntityTooLarge"):
        open_body(request_of(environ), None, limit_bytes=1000).whole()


def test_the_checksum_of_an_object_in_parts_is_not_that_of_the_list_of_parts():
    assert opened({"x-amz-checksum-crc32": crc32(b"object"), "x-amz-sdk-checksum-algorithm": "CRC32"}, has_checksum=False).whole() == DATA


def test_what_only_speaks_of_checksums_is_none():
    assert not opened({"x-amz-checksum-mode": "ENABLED", "x-amz-checksum-type": "FULL_OBJECT", "x-amz-checksum-algorithm": "SHA1"}).is_protected


def test_who_wants_no_md5_gets_none():
    body = opened(md5=False)
    body.whole()
    with pytest.raises(RuntimeError, match="without MD5"):
        _ = body.md5


@pytest.mark.parametrize("signer", [v2, v4])
def test_a_signed_body(signer):
    request = request_of(signed(signer(), "PUT", f"http://{HOST}/b/k", body=DATA))
    assert open_body(request, verify(request, secret_of, now())).whole() == DATA


def test_a_body_exchanged_under_a_signature():
    environ = signed(v4(), "PUT", f"http://{HOST}/b/k", body=DATA)
    request = request_of(environ | {"wsgi.input": io.BytesIO(DATA[::-1])})
    with pytest.raises(S3Error, match="XAmzContentSHA256Mismatch"):
        open_body(request, verify(request, secret_of, now())).whole()


@pytest.mark.parametrize("algorithm", ["CRC32", "CRC32C", "CRC64NVME", "SHA1", "SHA256"])
def test_every_checksum_that_boto3_sends(algorithm):
    environ = sent_by_boto3(lambda s3: s3.put_object(Bucket="b", Key="k", Body=DATA, ChecksumAlgorithm=algorithm))
    request = request_of(environ)
    body = open_body(request, verify(request, secret_of, now()))
    assert body.whole() == DATA
    assert body.checksum.algorithm == algorithm
    assert body.checksum.text == request.header(f"x-amz-checksum-{algorithm.lower()}")
