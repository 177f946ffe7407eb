"""What carries an object in a body: plain bytes, or chunks with signatures and a trailer (aws-chunked).

A block is a view into what was read, without a copy. Whether the whole is right is known at its end.
"""

import hashlib
import hmac
import re
from collections.abc import Iterator, Mapping
from typing import Protocol

from gunicorn.http.errors import ParseException

from portal.s3.checksums import Block
from portal.s3.errors import S3Error
from portal.s3.requests import Input
from portal.s3.signing import Chain, same

# Bytes read at once.
BLOCK = 1024 * 1024
MAX_LINE = 4096
MAX_TRAILERS = 16
# Signed chunks are this big, except the last: what S3 asks for, so that nobody signs byte by byte.
MIN_CHUNK = 8192
CHUNK = re.compile(rb"([0-9a-fA-F]{1,16})(?:;chunk-signature=([0-9a-f]{64}))?")
TRAILER_SIGNATURE = "x-amz-trailer-signature"
EMPTY = hashlib.sha256().hexdigest()


class Source(Protocol):
    """Bytes of the object, and what stood behind them."""

    def blocks(self) -> Iterator[Block]:
        """The object's bytes. Raises S3Error where the body is not what it should be."""
        ...

    @property
    def trailers(self) -> Mapping[str, str]:
        """Lower-case name → value; complete when the blocks have been read."""
        ...


class Wire:
    """The body's bytes with a limit: read in big pieces, given away in those that are needed."""

    def __init__(self, source: Input, length: int | None) -> None:
        """`length` is the body's on the wire; None where the server knows its end."""
        self._source = source
        self._left = length
        self._held = memoryview(b"")

    def _fill(self) -> bool:
        """Read on; False at the end."""
        if self._left == 0:
            return False
        try:
            data = self._source.read(BLOCK if self._left is None else min(BLOCK, self._left))
        except TimeoutError as error:
            raise S3Error("RequestTimeout") from error
        except (OSError, ParseException) as error:
            # The connection broke, or the server has found the transfer coding cut off.
            raise S3Error("IncompleteBody") from error
        if self._left is not None:
            if not data:
                raise S3Error("IncompleteBody")
            self._left -= len(data)
        self._held = memoryview(data)
        return bool(data)

    def take(self, size_bytes: int | None) -> Iterator[memoryview]:
        """This many bytes, or all that are left. Raises IncompleteBody where there are fewer."""
        while size_bytes is None or size_bytes > 0:
            if not self._held and not self._fill():
                if size_bytes is None:
                    return
                raise S3Error("IncompleteBody")
            block = self._held if size_bytes is None else self._held[:size_bytes]
            self._held = self._held[len(block) :]
            if size_bytes is not None:
                size_bytes -= len(block)
            yield block

    def line(self, *, bare: bool = False) -> bytes:
        """What stands before the next CRLF, or with `bare` before the next LF. Raises IncompleteBody, InvalidRequest for one that is too long."""
        found = bytearray()
        while True:
            end = bytes(self._held[:MAX_LINE]).find(b"\n")
            taken = self._held[: end + 1] if end >= 0 else self._held[:MAX_LINE]
            found += taken
            self._held = self._held[len(taken) :]
            if len(found) > MAX_LINE:
                raise _malformed()
            if found.endswith(b"\r\n"):
                return bytes(found[:-2])
            if bare and end >= 0:
                return bytes(found[:-1])
            if end >= 0:
                raise _malformed()
            if not self._held and not self._fill():
                raise S3Error("IncompleteBody")

    def is_at_end(self) -> bool:
        """Whether nothing is left."""
        return not self._held and not self._fill()


class Plain:
    """The body is the object."""

    def __init__(self, wire: Wire) -> None:
        """Everything on the wire, to its end."""
        self._wire = wire
        self.trailers: Mapping[str, str] = {}

    def blocks(self) -> Iterator[Block]:
        """The object's bytes."""
        return self._wire.take(None)


class Chunked:
    """`size[;chunk-signature=…]`, the bytes, and so on to a chunk of no bytes; behind it perhaps a trailer.

    Each signature goes on from the one before, the first from the request's, so that no chunk can be changed, moved or left out.
    """

    def __init__(self, wire: Wire, chain: Chain | None, *, decoded_length: int | None, has_trailer: bool) -> None:
        """`chain` where the chunks are signed; `decoded_length` is the object's in bytes, where the client says it."""
        self._wire = wire
        self._chain = chain
        self._previous = chain.seed if chain else ""
        self._decoded_length = decoded_length
        self._has_trailer = has_trailer
        self.trailers: dict[str, str] = {}

    def blocks(self) -> Iterator[Block]:
        """The object's bytes, without the chunks' heads."""
        total, was_small = 0, False
        while True:
            size_bytes, signature = self._head()
            total += size_bytes
            if self._decoded_length is not None and total > self._decoded_length:
                raise S3Error("IncompleteBody", "The chunks hold more bytes than x-amz-decoded-content-length says.")
            if was_small and size_bytes and self._chain:
                raise S3Error("InvalidChunkSizeError")
            was_small = size_bytes < MIN_CHUNK
            digest = hashlib.sha256()
            for block in self._wire.take(size_bytes):
                if self._chain:
                    digest.update(block)
                yield block
            self._check("AWS4-HMAC-SHA256-PAYLOAD", f"{EMPTY}\n{digest.hexdigest()}", signature)
            if not size_bytes:
                break
            if self._wire.line():
                raise _malformed()
        if self._decoded_length is not None and total < self._decoded_length:
            raise S3Error("IncompleteBody", "The chunks hold fewer bytes than x-amz-decoded-content-length says.")
        self._read_trailers()
        if not self._wire.is_at_end():
            raise _malformed()

    def _head(self) -> tuple[int, str]:
        found = CHUNK.fullmatch(self._wire.line())
        if found is None:
            raise _malformed()
        return int(found[1], 16), (found[2] or b"").decode()

    def _check(self, what: str, covered: str, signature: str) -> None:
        """Whether a chunk or the trailer is signed by who signed the request."""
        if self._chain is None:
            return
        text = f"{what}\n{self._chain.timestamp}\n{self._chain.scope}\n{self._previous}\n{covered}"
        calculated = hmac.digest(self._chain.key, text.encode(), "sha256").hex()
        if not same(calculated, signature):
            raise S3Error("SignatureDoesNotMatch", "The signature of a chunk does not match. Check your secret access key and signing method.")
        self._previous = calculated

    def _read_trailers(self) -> None:
        """`name:value` by lines, then `x-amz-trailer-signature` where chunks are signed, then an empty line.

        Some clients end a value with LF and give an empty line before the signature, and one more at the end where there is none.
        """
        if not self._has_trailer:
            if self._wire.line():
                raise S3Error("MalformedTrailerError")
            return
        covered = b""
        while line := self._wire.line(bare=True):
            covered += self._read_trailer(line)
        signature = self.trailers.pop(TRAILER_SIGNATURE, None)
        if self._chain is None:
            if signature is not None or (not self._wire.is_at_end() and self._wire.line()):
                raise S3Error("MalformedTrailerError")
            return
        if signature is None and not self._wire.is_at_end():
            self._read_trailer(self._wire.line())
            signature = self.trailers.pop(TRAILER_SIGNATURE, None)
            if self._wire.line():
                raise S3Error("MalformedTrailerError")
        if signature is None:
            raise S3Error("MalformedTrailerError")
        self._check("AWS4-HMAC-SHA256-TRAILER", hashlib.sha256(covered).hexdigest(), signature)

    def _read_trailer(self, line: bytes) -> bytes:
        """Keep one line of the trailer; what of it is signed."""
        name, colon, value = (part.strip() for part in line.partition(b":"))
        key = name.decode("latin-1").lower()
        if not colon or key in self.trailers or len(self.trailers) >= MAX_TRAILERS:
            raise S3Error("MalformedTrailerError")
        self.trailers[key] = value.decode("latin-1")
        return b"" if key == TRAILER_SIGNATURE else name.lower() + b":" + value + b"\n"


def _malformed() -> S3Error:
    return S3Error("InvalidRequest", "The chunks of the body are malformed.")
