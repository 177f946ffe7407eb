"""The checksums S3 knows besides MD5: of a body, and of an object that was uploaded in parts.

Stable: `Algorithm` (`.header`), `Kind`, `Checksum(algorithm, digest)` (`.text`), `hasher(algorithm)` (`.update`, `.digest`),
`parse_checksum(algorithm, text)`, `algorithm_named(text)`, `kind_for(algorithm, text)`, `composite(parts)`, `full_object(parts)`.
"""

import base64
import binascii
import hashlib
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from awscrt import checksums as crt

from portal.s3.errors import S3Error

Block = bytes | memoryview


class Algorithm(StrEnum):
    """What a checksum is calculated with; the value is what S3 calls it."""

    CRC32 = "CRC32"
    CRC32C = "CRC32C"
    CRC64NVME = "CRC64NVME"
    SHA1 = "SHA1"
    SHA256 = "SHA256"

    @property
    def header(self) -> str:
        """The header, or trailer, that carries the value."""
        return HEADER_PREFIX + self.value.lower()


class Kind(StrEnum):
    """What the checksum of an object in parts says: one of its bytes, or one of the checksums of its parts."""

    FULL_OBJECT = "FULL_OBJECT"
    COMPOSITE = "COMPOSITE"


class Hasher(Protocol):
    """Takes a body block by block."""

    def update(self, block: Block, /) -> None:
        """Go on with these bytes."""
        ...

    def digest(self) -> bytes:
        """The checksum of everything so far."""
        ...


@dataclass(frozen=True, slots=True)
class Checksum:
    """A value with what it was calculated with."""

    algorithm: Algorithm
    digest: bytes

    @property
    def text(self) -> str:
        """As S3 writes it."""
        return base64.b64encode(self.digest).decode()


HEADER_PREFIX = "x-amz-checksum-"
DEFAULT = Algorithm.CRC64NVME
SIZES = {Algorithm.CRC32: 4, Algorithm.CRC32C: 4, Algorithm.CRC64NVME: 8, Algorithm.SHA1: 20, Algorithm.SHA256: 32}
COMBINE: dict[Algorithm, Callable[[int, int, int], int]] = {
    Algorithm.CRC32: crt.combine_crc32, Algorithm.CRC32C: crt.combine_crc32c, Algorithm.CRC64NVME: crt.combine_crc64nvme,
}  # fmt: skip
CRCS: dict[Algorithm, Callable[[Block, int], int]] = {Algorithm.CRC32: zlib.crc32, Algorithm.CRC32C: crt.crc32c, Algorithm.CRC64NVME: crt.crc64nvme}
# By header name, for looking into a request.
BY_HEADER = {algorithm.header: algorithm for algorithm in Algorithm}


class _Crc:
    def __init__(self, algorithm: Algorithm) -> None:
        self._calculate, self._size, self._value = CRCS[algorithm], SIZES[algorithm], 0

    def update(self, block: Block) -> None:
        self._value = self._calculate(block, self._value)

    def digest(self) -> bytes:
        return self._value.to_bytes(self._size, "big")


def hasher(algorithm: Algorithm) -> Hasher:
    """A new calculation."""
    if algorithm in CRCS:
        return _Crc(algorithm)
    return hashlib.sha1(usedforsecurity=False) if algorithm is Algorithm.SHA1 else hashlib.sha256()


def algorithm_named(text: str) -> Algorithm:
    """The algorithm of this name in any case. Raises InvalidRequest."""
    try:
        return Algorithm(text.upper())
    except ValueError:
        valid = ", ".join(Algorithm)
        raise S3Error(
            "InvalidRequest", f"Checksum algorithm provided is unsupported. Please try again with any of the valid types: [{valid}]"
        ) from None


def kind_for(algorithm: Algorithm, text: str) -> Kind:
    """What an upload in parts gets: what was asked for (may be empty) if the algorithm can do it. Raises InvalidRequest."""
    if not text:
        return Kind.FULL_OBJECT if algorithm is Algorithm.CRC64NVME else Kind.COMPOSITE
    try:
        kind = Kind(text.upper())
    except ValueError:
        raise S3Error("InvalidRequest", "Value for x-amz-checksum-type header is invalid.") from None
    if (kind is Kind.FULL_OBJECT and algorithm not in COMBINE) or (kind is Kind.COMPOSITE and algorithm is Algorithm.CRC64NVME):
        raise S3Error("InvalidRequest", f"The {kind} checksum type cannot be used with the {algorithm.lower()} checksum algorithm.")
    return kind


def parse_checksum(algorithm: Algorithm, text: str) -> Checksum:
    """The value of a checksum header, trailer or element. Raises InvalidRequest."""
    try:
        digest = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        digest = b""
    if len(digest) != SIZES[algorithm]:
        raise S3Error("InvalidRequest", f"Value for {algorithm.header} header is invalid.")
    return Checksum(algorithm, digest)


def composite(parts: Sequence[Checksum]) -> str:
    """The checksum of the checksums of at least one part, with their number: `value-N`."""
    whole = hasher(parts[0].algorithm)
    for part in parts:
        whole.update(part.digest)
    return f"{Checksum(parts[0].algorithm, whole.digest()).text}-{len(parts)}"


def full_object(parts: Sequence[tuple[Checksum, int]]) -> Checksum:
    """The checksum of at least one part put together, from those of the parts with their sizes in bytes; only a CRC can do that."""
    first, _ = parts[0]
    combine, value = COMBINE[first.algorithm], int.from_bytes(first.digest, "big")
    for part, size_bytes in parts[1:]:
        value = combine(value, int.from_bytes(part.digest, "big"), size_bytes)
    return Checksum(first.algorithm, value.to_bytes(SIZES[first.algorithm], "big"))
