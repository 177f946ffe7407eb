"""Objects in chunks: the documented examples, what boto3 and Go clients send, and everything that can be wrong with it."""

import hashlib
import hmac
import io
from datetime import UTC, datetime

import pytest
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest

from portal.s3.bodies import open_body
from portal.s3.checksums import Algorithm, Checksum, hasher
from portal.s3.errors import S3Error
from portal.s3.signatures import verify
from portal.s3.signatures_v4 import signing_key
from tests.support.s3_wire import CREDENTIALS, HOST, SECRET, environ_of, now, request_of, secret_of, sent_by_boto3

SIGNED, UNSIGNED_TRAILER = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD", "STREAMING-UNSIGNED-PAYLOAD-TRAILER"
SIGNED_TRAILER = f"{SIGNED}-TRAILER"
DATA = bytes(range(256)) * 400
SIZES = [65536, len(DATA) - 65536]


def checksum(algorithm=Algorithm.CRC32C, data=DATA):
    one = hasher(algorithm)
    one.update(data)
    return Checksum(algorithm, one.digest()).text


class Stream:
    """A request whose body is in chunks, signed by botocore as far as the head goes."""

    def __init__(self, payload, *, sizes=SIZES, data=DATA, trailer=None, headers=None, dialect="\r\n"):
        self.payload, self.sizes, self.data, self.dialect = payload, [*sizes, 0], data, dialect
        self.trailers = {"x-amz-checksum-crc32c": checksum()} if trailer is None and payload.endswith("TRAILER") else trailer or {}
        self.headers = {"x-amz-decoded-content-length": str(len(data)), "Content-Encoding": "aws-chunked"} | (headers or {})
        if payload.endswith("TRAILER"):
            self.headers.setdefault("x-amz-trailer", ",".join(self.trailers) or "x-amz-checksum-crc32c")

    def environ(self):
        class Signer(S3SigV4Auth):
            def payload(_, request):  # noqa: N805 - the stream is self
                return self.payload

        request = AWSRequest(method="PUT", url=f"http://{HOST}/b/k", headers=self.headers)
        Signer(CREDENTIALS, "s3", "eu").add_auth(request)
        self.timestamp = request.context["timestamp"]
        self.previous = request.headers["Authorization"].rpartition("Signature=")[2]
        environ = environ_of("PUT", f"http://{HOST}/b/k", dict(request.headers.items()))
        body = self.body()
        return environ | {"wsgi.input": io.BytesIO(body), "CONTENT_LENGTH": str(len(body))}

    def sign(self, what, covered):
        scope = f"{self.timestamp[:8]}/eu/s3/aws4_request"
        text = f"{what}\n{self.timestamp}\n{scope}\n{self.previous}\n{covered}".encode()
        self.previous = hmac.new(signing_key(SECRET, self.timestamp[:8], "eu"), text, "sha256").hexdigest()
        return self.previous.encode()

    def body(self):
        written, rest = b"", io.BytesIO(self.data)
        for size in self.sizes:
            block = rest.read(size)
            written += b"%x" % size
            if self.payload.startswith(SIGNED):
                written += b";chunk-signature=" + self.sign(
                    "AWS4-HMAC-SHA256-PAYLOAD", f"{hashlib.sha256().hexdigest()}\n{hashlib.sha256(block).hexdigest()}"
                )
            written += b"\r\n" + block + (b"\r\n" if size else b"")
        lines = "".join(f"{name}:{value}\n" for name, value in self.trailers.items())
        written += lines.replace("\n", self.dialect).encode()
        if self.dialect == "\n":
            written += b"\r\n"
        if self.payload == SIGNED_TRAILER:
            written += b"x-amz-trailer-signature:" + self.sign("AWS4-HMAC-SHA256-TRAILER", hashlib.sha256(lines.encode()).hexdigest()) + b"\r\n"
        return written + b"\r\n"


def read(environ, **options):
    request = request_of(environ)
    body = open_body(request, verify(request, secret_of, now()), **options)
    return body.whole(), body


def changed(environ, old, new):
    data = environ["wsgi.input"].getvalue()
    assert old in data
    data = data.replace(old, new)
    return environ | {"wsgi.input": io.BytesIO(data), "CONTENT_LENGTH": str(len(data))}


def refusal(environ, **options):
    with pytest.raises(S3Error) as caught:
        read(environ, **options)
    return caught.value.code


@pytest.mark.parametrize("dialect", ["\r\n", "\n"])
@pytest.mark.parametrize("payload", [SIGNED, SIGNED_TRAILER, UNSIGNED_TRAILER])
def test_every_kind_of_chunks(payload, dialect):
    if payload == SIGNED and dialect == "\n":
        dialect = "\r\n"
    data, body = read(Stream(payload, dialect=dialect).environ())
    assert data == DATA
    assert body.is_protected is payload.endswith("TRAILER")
    assert body.checksum.text == checksum(Algorithm.CRC32C if body.is_protected else Algorithm.CRC64NVME)


@pytest.mark.parametrize("payload", [SIGNED, SIGNED_TRAILER, UNSIGNED_TRAILER])
def test_an_empty_object(payload):
    trailers = {"x-amz-checksum-crc32c": checksum(data=b"")} if payload.endswith("TRAILER") else {}
    assert read(Stream(payload, data=b"", sizes=[], trailer=trailers).environ())[0] == b""


def test_a_checksum_in_the_head_of_signed_chunks():
    assert read(Stream(SIGNED, headers={"x-amz-checksum-crc32c": checksum()}).environ())[1].is_protected
    assert refusal(Stream(SIGNED, headers={"x-amz-checksum-crc32c": checksum(data=b"other")}).environ()) == "BadDigest"


# The examples of "Signature calculations: transferring payload in multiple chunks" and "including trailing headers".
EXAMPLES = {
    SIGNED: (
        "4f232c4386841ef735655705268965c44a0e4690baa4adea153f7db9fa80a0a9",
        "ad80c730a21e5b8d04586a2213dd63b9a0e99e0e2307b0ade35a65485a288648",
        "0055627c9e194cb4542bae2aa5492e3c1575bbb81b612b7d234b86a503ef5497",
        "b6c6ea8a5354eaf15b3cb7646744f4275b71ea724fed81ceb9323e279d449df9",
    ),
    SIGNED_TRAILER: (
        "106e2a8a18243abcf37539882f36619c00e2dfc72633413f02d3b74544bfeb8e",
        "b474d8862b1487a5145d686f57f013e54db672cee1c953b3010fb58501ef5aa2",
        "1c1344b170168f8e65b41376b44b20fe354e373826ccbbe2c1d40a8cae51e5c7",
        "2ca2aba2005185cf7159c6277faf83795951dd77a3a99e6e65d5c9f85863f992",
    ),
}
TRAILER = "x-amz-checksum-crc32c:sOO8/Q==\r\nx-amz-trailer-signature:d81f82fc3505edab99d459891051a732e8730629a2e4a59689829ca17fe2e435\r\n"


@pytest.mark.parametrize("payload", EXAMPLES)
def test_the_documented_examples(payload):
    seed, *signatures = EXAMPLES[payload]
    body = "".join(f"{n:x};chunk-signature={one}\r\n{'a' * n}" + "\r\n" * bool(n) for n, one in zip((65536, 1024, 0), signatures, strict=True))
    body += (TRAILER if payload == SIGNED_TRAILER else "") + "\r\n"
    headers = {
        "Content-Encoding": "aws-chunked",
        "x-amz-content-sha256": payload,
        "x-amz-date": "20130524T000000Z",
        "x-amz-decoded-content-length": "66560",
        "x-amz-storage-class": "REDUCED_REDUNDANCY",
    }
    headers |= (
        {"x-amz-trailer": "x-amz-checksum-crc32c", "Transfer-Encoding": "chunked"} if payload == SIGNED_TRAILER else {"Content-Length": "66824"}
    )
    names = ";".join(sorted(name.lower() for name in [*headers, "Host"] if name != "Transfer-Encoding"))
    credential = "AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request"  # not-a-secret: of the documented example
    headers["Authorization"] = f"AWS4-HMAC-SHA256 Credential={credential},SignedHeaders={names},Signature={seed}"
    request = request_of(environ_of("PUT", "https://s3.amazonaws.com/examplebucket/chunkObject.txt", headers, body.encode()))
    signed = verify(request, lambda _: "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY", datetime(2013, 5, 24, tzinfo=UTC))
    assert open_body(request, signed).whole() == b"a" * 66560


@pytest.mark.parametrize("algorithm", list(Algorithm))
@pytest.mark.parametrize("is_chunked", [True, False])
def test_what_boto3_sends_over_tls(algorithm, is_chunked):
    environ = sent_by_boto3(lambda s3: s3.put_object(Bucket="b", Key="k", Body=io.BytesIO(DATA), ChecksumAlgorithm=algorithm.value), secure=True)
    assert environ["HTTP_X_AMZ_CONTENT_SHA256"] == UNSIGNED_TRAILER
    assert environ["HTTP_TRANSFER_ENCODING"] == "chunked"
    if not is_chunked:
        # As behind a proxy that collects the body.
        environ |= {"HTTP_TRANSFER_ENCODING": "", "CONTENT_LENGTH": str(len(environ["wsgi.input"].getvalue()))}
    data, body = read(environ)
    assert (data, body.checksum.text) == (DATA, checksum(algorithm))
    environ["wsgi.input"].seek(0)
    corrupt = changed(environ, DATA[:300], DATA[1:301])
    assert refusal(corrupt) == "BadDigest"


def test_chunks_of_nobody():
    """SDKs send them without x-amz-content-sha256 where they do not sign."""
    environ = sent_by_boto3(lambda s3: s3.put_object(Bucket="b", Key="k", Body=io.BytesIO(DATA)), secure=True)
    environ = {name: value for name, value in environ.items() if name not in {"HTTP_AUTHORIZATION", "HTTP_X_AMZ_CONTENT_SHA256"}}
    assert read(environ)[0] == DATA


def test_chunks_under_a_signature_that_covers_no_payload():
    """The head says that they are chunks, so they are not stored as they came."""
    stream = Stream(UNSIGNED_TRAILER)
    stream.payload = "UNSIGNED-PAYLOAD"
    assert read(stream.environ())[0] == DATA
    environ = stream.environ() | {"wsgi.input": io.BytesIO(DATA), "CONTENT_LENGTH": str(len(DATA))}
    assert refusal(environ) == "InvalidRequest"


@pytest.mark.parametrize(
    ("payload", "old", "new", "code"),
    [
        (SIGNED, DATA[:300], DATA[1:301], "SignatureDoesNotMatch"),
        (SIGNED, b"10000;chunk-signature=", b"10000;chunk-signature=0", "InvalidRequest"),
        (SIGNED, b"10000;chunk-signature=", b"10000\r\n;", "SignatureDoesNotMatch"),
        (SIGNED, b"10000;", b"ffff;", "SignatureDoesNotMatch"),
        (SIGNED, b"10000;", b"xyz;", "InvalidRequest"),
        (SIGNED, b"10000;", b"-1;", "InvalidRequest"),
        (SIGNED, b"10000;", b"11111111111111111;", "InvalidRequest"),
        (SIGNED, b"10000;", b"fffffffffffffff;", "IncompleteBody"),
        (SIGNED, b"\r\n0;chunk-signature=", b"\r\n0;chunk-signature=0", "InvalidRequest"),
        (SIGNED_TRAILER, b"x-amz-trailer-signature:", b"x-amz-trailer-signature:0", "SignatureDoesNotMatch"),
        (SIGNED_TRAILER, b"x-amz-trailer-signature:", b"x-amz-trailer-nothing:", "MalformedTrailerError"),
        (SIGNED_TRAILER, b"x-amz-checksum-crc32c:", b"x-amz-checksum-crc32c:A", "SignatureDoesNotMatch"),
        (SIGNED_TRAILER, b"x-amz-checksum-crc32c:", b"x-amz-checksum-crc32:", "SignatureDoesNotMatch"),
        (UNSIGNED_TRAILER, DATA[:300], DATA[1:301], "BadDigest"),
        (UNSIGNED_TRAILER, b"x-amz-checksum-crc32c:", b"x-amz-checksum-crc32:", "MalformedTrailerError"),
        (UNSIGNED_TRAILER, b"x-amz-checksum-crc32c:", b"x-amz-checksum-crc32c:A", "InvalidRequest"),
        (UNSIGNED_TRAILER, b"x-amz-checksum-crc32c:", b"x-amz-checksum-crc32c", "MalformedTrailerError"),
        (UNSIGNED_TRAILER, b"x-amz-checksum-crc32c:", b"x-amz-checksum-crc32c:\r\nx-amz-checksum-crc32c:", "MalformedTrailerError"),
        (UNSIGNED_TRAILER, b"x-amz-checksum-crc32c:", b"\r\nx-amz-checksum-crc32c:", "MalformedTrailerError"),
        (UNSIGNED_TRAILER, b"x-amz-checksum-crc32c:", b"a:" + b"b" * 5000, "InvalidRequest"),
        (UNSIGNED_TRAILER, b"x-amz-checksum-crc32c:", b"".join(b"a%d:\r\n" % n for n in range(20)), "MalformedTrailerError"),
        (UNSIGNED_TRAILER, b"10000\r\n", b"10000\n", "InvalidRequest"),
        (UNSIGNED_TRAILER, b"10000\r\n", b"10000;a=b\r\n", "InvalidRequest"),
        (UNSIGNED_TRAILER, b"10000\r\n", b"1" * 5000, "InvalidRequest"),
        (UNSIGNED_TRAILER, b"10000\r\n", b"ffff\r\n", "InvalidRequest"),
    ],
)
def test_tampering_with_chunks_is_refused(payload, old, new, code):
    assert refusal(changed(Stream(payload).environ(), old, new)) == code


def test_signed_chunks_cannot_be_exchanged_or_left_out():
    environ = Stream(SIGNED, sizes=[8192, 8192, len(DATA) - 16384]).environ()
    data = environ["wsgi.input"].getvalue()
    size = len(b"2000;chunk-signature=") + 64 + 2 + 8192 + 2
    one, two, others = data[:size], data[size : 2 * size], data[2 * size :]
    for order in (two + one + others, one + one + others, two + others, one + others):
        assert refusal(environ | {"wsgi.input": io.BytesIO(order), "CONTENT_LENGTH": str(len(order))}) == "SignatureDoesNotMatch"


@pytest.mark.parametrize("payload", [SIGNED, SIGNED_TRAILER, UNSIGNED_TRAILER])
def test_a_stream_cut_off_anywhere_is_incomplete(payload):
    environ = Stream(payload, sizes=[8192, len(DATA) - 8192]).environ()
    data = environ["wsgi.input"].getvalue()
    places = [0, 1, 50, 8000, 8281, 8283, len(data) - 300, *range(len(data) - 120, len(data), 7), len(data) - 1]
    for place in places:
        assert refusal(environ | {"wsgi.input": io.BytesIO(data[:place])}) == "IncompleteBody"
        short = environ | {"wsgi.input": io.BytesIO(data[:place]), "HTTP_TRANSFER_ENCODING": "chunked"}
        assert refusal(short) == "IncompleteBody"


def test_lengths_that_disagree():
    for wrong in (len(DATA) - 1, len(DATA) + 1):
        assert refusal(Stream(SIGNED, headers={"x-amz-decoded-content-length": str(wrong)}).environ()) == "IncompleteBody"
    assert refusal(Stream(SIGNED, headers={"x-amz-decoded-content-length": "many"}).environ()) == "InvalidArgument"
    environ = Stream(UNSIGNED_TRAILER).environ()
    data = environ["wsgi.input"].getvalue() + b"\r\nmore"
    assert refusal(environ | {"wsgi.input": io.BytesIO(data), "CONTENT_LENGTH": str(len(data))}) == "InvalidRequest"


def test_small_chunks_are_refused_where_each_is_signed():
    assert refusal(Stream(SIGNED, sizes=[100, len(DATA) - 100]).environ()) == "InvalidChunkSizeError"
    assert read(Stream(UNSIGNED_TRAILER, sizes=[100, 1, len(DATA) - 101]).environ())[0] == DATA


def test_the_limit_is_of_the_object():
    assert read(Stream(SIGNED).environ(), limit_bytes=len(DATA))[0] == DATA
    assert refusal(Stream(SIGNED).environ(), limit_bytes=len(DATA) - 1) == "EntityTooLarge"
    unsaid = Stream(UNSIGNED_TRAILER, headers={"x-amz-decoded-content-length": ""}).environ()
    assert read(dict(unsaid), limit_bytes=len(DATA))[0] == DATA
    unsaid["wsgi.input"].seek(0)
    assert refusal(unsaid, limit_bytes=len(DATA) - 1) == "EntityTooLarge"


def test_signed_chunks_without_a_signature_of_version_4_are_refused():
    environ = Stream(SIGNED).environ()
    del environ["HTTP_AUTHORIZATION"]
    with pytest.raises(S3Error, match="version 4"):
        read(environ)


@pytest.mark.parametrize(
    "headers",
    [{"x-amz-checksum-crc32c": checksum()}, {"x-amz-trailer": "x-amz-checksum-crc32c,x-amz-checksum-sha1"}, {"x-amz-trailer": "x-amz-meta-a"}],
)
def test_one_checksum_is_announced(headers):
    assert refusal(Stream(UNSIGNED_TRAILER, headers=headers).environ()) == "InvalidRequest"
