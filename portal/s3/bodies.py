"""The body of a request, read once in blocks, and right or refused: nothing may be committed before it has been read to its end.

Stable: `open_body(request, signed, ...)` gives a `Body`: iterate once over its blocks (bytes or memoryview), then read
`.size_bytes`, `.md5`, `.checksum`. `Body.whole()` is for documents. Raises S3Error before or while it is read, at the latest at the end.

What is checked, where the client says it: the length, x-amz-content-sha256, the signature of each chunk and of the trailer, Content-MD5,
x-amz-checksum-… in header or trailer. Clients send the object plain, or in chunks of their own inside the body (aws-chunked).
"""

import base64
import binascii
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hmac import compare_digest

from portal.s3.checksums import BY_HEADER, DEFAULT, HEADER_PREFIX, Algorithm, Block, Checksum, Hasher, algorithm_named, hasher, parse_checksum
from portal.s3.chunks import Chunked, Plain, Source, Wire
from portal.s3.errors import S3Error
from portal.s3.requests import S3Request
from portal.s3.signing import UNSIGNED, Signed, check_payload

MAX_OBJECT = 5 * 1024**3
MD5_SIZE = 16
# Headers that begin like a value and are none.
ABOUT_CHECKSUMS = frozenset({"x-amz-checksum-algorithm", "x-amz-checksum-mode", "x-amz-checksum-type"})


@dataclass(frozen=True, slots=True)
class Expected:
    """What the client says about the bytes."""

    sha256: str | None = None
    md5: bytes | None = None
    checksum: Checksum | None = None
    # The one that will stand in the trailer.
    trailer: Algorithm | None = None

    @property
    def algorithm(self) -> Algorithm | None:
        """What the client's checksum is calculated with."""
        return self.checksum.algorithm if self.checksum else self.trailer


class Body:
    """Blocks of an object on their way in; what is known of them is known at the end."""

    def __init__(self, source: Source, limit_bytes: int, expected: Expected, algorithm: Algorithm, *, md5: bool) -> None:
        """`algorithm` is of the checksum to calculate, the client's where it sends one."""
        self._source = source
        self._limit_bytes = limit_bytes
        self._expected = expected
        self._algorithm = algorithm
        self._checksum = hasher(algorithm)
        self._md5 = hashlib.md5(usedforsecurity=False) if md5 or expected.md5 else None
        self._sha256 = hashlib.sha256() if expected.sha256 else None
        self.size_bytes = 0

    def __iter__(self) -> Iterator[Block]:
        hashers: list[Hasher] = [one for one in (self._checksum, self._md5, self._sha256) if one is not None]
        for block in self._source.blocks():
            self.size_bytes += len(block)
            if self.size_bytes > self._limit_bytes:
                raise _too_large(self.size_bytes, self._limit_bytes)
            for one in hashers:
                one.update(block)
            yield block
        self._check()

    def whole(self) -> bytes:
        """All of it at once."""
        return b"".join(self)

    @property
    def md5(self) -> bytes:
        """The digest of what was read, where it was asked for."""
        if self._md5 is None:
            msg = "the body was opened without MD5"
            raise RuntimeError(msg)
        return self._md5.digest()

    @property
    def checksum(self) -> Checksum:
        """The checksum of what was read: with the client's algorithm, otherwise with the one asked for."""
        return Checksum(self._algorithm, self._checksum.digest())

    @property
    def is_protected(self) -> bool:
        """Whether the client sent Content-MD5 or a checksum, as some operations demand."""
        return self._expected.md5 is not None or self._expected.algorithm is not None

    def _check(self) -> None:
        """Whether what was read is what the client says that it sent."""
        expected = self._expected
        if self._sha256 and expected.sha256 and not compare_digest(self._sha256.hexdigest(), expected.sha256):
            raise S3Error("XAmzContentSHA256Mismatch", ClientComputedContentSHA256=expected.sha256, S3ComputedContentSHA256=self._sha256.hexdigest())
        if expected.md5 and not compare_digest(self.md5, expected.md5):
            raise S3Error("BadDigest", ExpectedDigest=base64.b64encode(expected.md5).decode(), CalculatedDigest=base64.b64encode(self.md5).decode())
        wanted = expected.checksum or self._of_trailer(self._source.trailers)
        if wanted and not compare_digest(self._checksum.digest(), wanted.digest):
            raise S3Error("BadDigest", f"The {wanted.algorithm} you specified did not match the calculated checksum.")

    def _of_trailer(self, trailers: Mapping[str, str]) -> Checksum | None:
        """The checksum that follows the bytes; the trailer has what was announced, and nothing else."""
        announced = self._expected.trailer
        if set(trailers) != ({announced.header} if announced else set()):
            raise S3Error("MalformedTrailerError")
        return parse_checksum(announced, trailers[announced.header]) if announced else None


def open_body(
    request: S3Request,
    signed: Signed | None,
    *,
    limit_bytes: int = MAX_OBJECT,
    algorithm: Algorithm = DEFAULT,
    md5: bool = True,
    has_checksum: bool = True,
) -> Body:
    """The body of a request that has been verified; nothing is read yet, and what its head gets wrong is refused here.

    `limit_bytes` is for the object; `algorithm` is used where the client sends no checksum; `md5` asks for the digest of an ETag;
    `has_checksum=False` is for the completion of an upload in parts, whose header has the checksum of the object, not of the body.
    """
    payload = _payload(request, signed)
    is_framed = payload.startswith("STREAMING-")
    length = request.content_length
    if length is None and not request.is_chunked:
        raise S3Error("MissingContentLength")
    decoded_length = request.number_of_bytes("x-amz-decoded-content-length") if is_framed else length
    if decoded_length is not None and decoded_length > limit_bytes:
        raise _too_large(decoded_length, limit_bytes)
    expected = _expected(request, payload, has_checksum=has_checksum)
    wire = Wire(request.input, length)
    source: Source = Plain(wire)
    if is_framed:
        chain = signed.chain if signed and payload.startswith("STREAMING-AWS4") else None
        source = Chunked(wire, chain, decoded_length=decoded_length, has_trailer=payload.endswith("-TRAILER"))
    return Body(source, limit_bytes, expected, expected.algorithm or algorithm, md5=md5)


def _payload(request: S3Request, signed: Signed | None) -> str:
    """What the body is: as the signature says, or, where no signature covers it, as the head says."""
    payload = signed.payload if signed and signed.chain else request.header("x-amz-content-sha256", UNSIGNED)
    check_payload(payload)
    if payload.startswith("STREAMING-AWS4") and not (signed and signed.chain):
        raise S3Error("InvalidRequest", "Signed chunks need a request signed with version 4.")
    if payload == UNSIGNED and "aws-chunked" in request.headers.get("content-encoding", ""):
        # What SDKs send where they do not sign. Taken for plain bytes, the chunks' heads would become part of the object.
        return "STREAMING-UNSIGNED-PAYLOAD-TRAILER"
    return payload


def _expected(request: S3Request, payload: str, *, has_checksum: bool) -> Expected:
    sha256 = None if payload == UNSIGNED or payload.startswith("STREAMING-") else payload
    md5 = content_md5(request.headers["content-md5"]) if "content-md5" in request.headers else None
    if not has_checksum:
        return Expected(sha256, md5)
    checksum = declared_checksum(request.headers_named(HEADER_PREFIX))
    trailers = [_trailer_named(name) for name in request.header("x-amz-trailer").lower().split(",") if name.strip()]
    if len(trailers) + bool(checksum) > 1:
        raise _several_checksums()
    if trailers and not payload.endswith("-TRAILER"):
        raise S3Error("InvalidRequest", "x-amz-trailer needs a payload with a trailer, as x-amz-content-sha256 says it.")
    found = Expected(sha256, md5, checksum, trailers[0] if trailers else None)
    if (named := request.header("x-amz-sdk-checksum-algorithm")) and algorithm_named(named) is not found.algorithm:
        raise S3Error(
            "InvalidRequest", "x-amz-sdk-checksum-algorithm specified, but no corresponding x-amz-checksum-* or x-amz-trailer headers were found."
        )
    return found


def declared_checksum(headers: Mapping[str, str]) -> Checksum | None:
    """The one x-amz-checksum-… among the headers of a request, or the fields of a form. Raises InvalidRequest, also for one that is not known here."""
    values = {name: text for name, text in headers.items() if name.startswith(HEADER_PREFIX) and name not in ABOUT_CHECKSUMS and text}
    if len(values) > 1:
        raise _several_checksums()
    for name, text in values.items():
        return parse_checksum(algorithm_named(name.removeprefix(HEADER_PREFIX)), text)
    return None


def _several_checksums() -> S3Error:
    return S3Error("InvalidRequest", "Expecting a single x-amz-checksum- header. Multiple checksum Types are not allowed.")


def _trailer_named(name: str) -> Algorithm:
    try:
        return BY_HEADER[name.strip()]
    except KeyError:
        raise S3Error("InvalidRequest", "The value specified in the x-amz-trailer header is not supported") from None


def content_md5(text: str) -> bytes:
    """The value of Content-MD5. Raises InvalidDigest."""
    try:
        digest = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        digest = b""
    if len(digest) != MD5_SIZE:
        raise S3Error("InvalidDigest")
    return digest


def _too_large(size_bytes: int, limit_bytes: int) -> S3Error:
    return S3Error("EntityTooLarge", ProposedSize=size_bytes, MaxSizeAllowed=limit_bytes)
