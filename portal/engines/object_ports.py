"""What object storage asks of the machinery underneath: a place for blobs, which are written once, never changed, and checked whenever they are read."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol, Self

from portal.engines.ports import EngineError, EngineRefused


class BlobDamaged(EngineError):
    """What is stored is not what was written: a disk has lost or changed something. It is never given out."""

    retryable = False


class BlobAbsent(EngineError):
    """There is no such blob; it may have been removed a moment ago."""

    retryable = False


class NoRoom(EngineRefused):
    """There is no room for more bytes, or none that is not kept for the portal itself."""


@dataclass(frozen=True, slots=True)
class Blob:
    """Bytes that are stored for good. Without an id there are none: nothing is kept for an empty object.

    `seal` is what the checksums of its parts come to, so that another blob is not taken for it. One that is encrypted is read with the `key` it was
    written with; its size is that of what was written, its checksums are of what is stored.
    """

    id: str
    size_bytes: int
    seal: str
    is_encrypted: bool = False
    key: bytes | None = field(default=None, repr=False, compare=False)


EMPTY = Blob("", 0, "")


@dataclass(frozen=True, slots=True)
class StoredBlob:
    """A blob, or what is left of one, as the store finds it; `written_at` is in seconds since 1970."""

    id: str
    file_bytes: int
    written_at: float
    # False for what is being written, or was when its process died.
    is_whole: bool = True


class BlobWriter(Protocol):
    """A blob that is being written. As a context it leaves nothing behind unless it was finished."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append. Raises EngineRefused where there is no room."""
        ...

    def finish(self) -> Blob:
        """Everything that was written is on the disk, and its name, too."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


class BlobReader(Protocol):
    """Bytes of a blob, in pieces, each of them checked before it is given. What was opened stays readable though the blob is removed."""

    def __iter__(self) -> Iterator[bytes]:
        """The pieces. Raises BlobDamaged instead of a piece that is not what was written."""
        ...

    def close(self) -> None:
        """Let go of it."""
        ...


class BlobHold(Protocol):
    """Keeps blobs that are read one after the other from being removed."""

    def close(self) -> None:
        """Let go of them."""
        ...


class BlobStore(Protocol):
    """Where blobs are. A storage class may have a place of its own; blobs of the others are all in one."""

    @property
    def classes(self) -> frozenset[str]:
        """The storage classes that have a place of their own."""
        ...

    def writing(self, storage_class: str = "", key: bytes | None = None) -> BlobWriter:
        """Begin a new blob, encrypted if there is a key (32 bytes)."""
        ...

    def place_of(self, blob_id: str) -> str:
        """The class in whose place a blob is; empty for where all others are."""
        ...

    def open(self, blob: Blob, first: int = 0, length: int | None = None) -> BlobReader:
        """Read `length` bytes (None: all) from the byte `first` on. Raises BlobAbsent, and BlobDamaged where that is seen at once."""
        ...

    def check(self, blob: Blob) -> None:
        """Read all of a blob and compare it with its checksums, for which no key is needed. Raises BlobAbsent or BlobDamaged."""
        ...

    def copy(self, blob: Blob, storage_class: str = "") -> Blob:
        """The same bytes as another blob, which lives and goes on its own, where those of a class are; what is encrypted stays so, with the same key."""
        ...

    def remove(self, *blob_ids: str) -> None:
        """Remove blobs; those that are gone are no error."""
        ...

    def hold(self, first: str) -> BlobHold:
        """Keep what is read together with a blob, in whichever process, until it is let go of or the process ends. Raises BlobAbsent."""
        ...

    def remove_unheld(self, first: str, blob_ids: Sequence[str]) -> bool:
        """Remove blobs that are read together with a first one, unless somebody holds them: False then, and nothing is removed."""
        ...

    def stored(self) -> Iterator[StoredBlob]:
        """Everything there is, what a crash left behind included, oldest names first in each directory."""
        ...
