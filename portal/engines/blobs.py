"""Blobs as files: the bytes, then the checksum of each segment of them. A range is checked like the whole.

Of what is encrypted, the checksums are of what is stored: it is looked after without its key. A file gets its own name at once: nobody knows the name
before the blob is finished, and whoever lists files knows that a young one may be half there.
"""

import errno
import fcntl
import os
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import Self

from awscrt.checksums import crc32c, crc64nvme

from portal.engines.blob_encryption import TAG_BYTES, SegmentCipher
from portal.engines.object_ports import EMPTY, Blob, BlobAbsent, BlobDamaged, NoRoom, StoredBlob
from portal.engines.ports import EngineUnavailable

SEGMENT_BYTES = 256 << 10
CHECKSUM_BYTES = 4
# Of an encrypted blob, before its checksums: random, so that a copy of the file has it as well.
IDENTITY_BYTES = 16
PIECE_SEGMENTS = 4
# After so many bytes of a blob it is looked again whether there is room.
LOOK_BYTES = 16 << 20
SHARDS = 256
# How files are marked that are not whole yet.
UNFINISHED, FINISHED = 0o700, 0o600
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Links to one file have a limit; a copy beyond it is made of bytes.
NO_LINK = (errno.EMLINK, errno.EPERM, errno.EXDEV, errno.ENOTSUP)
GONE = "The bytes of this object are gone."
FULL = "There is no room left where objects are kept. An administrator has to free space under DATA_DIR, or objects have to be deleted."


def new_blob_id() -> str:
    """A fresh id; later ones sort after earlier ones, so that an index of them grows at its end."""
    return f"{time.time_ns() >> 20:011x}{secrets.token_hex(10)}"


def seal_of(table: bytes) -> str:
    """What the checksums of all segments come to."""
    return f"{crc64nvme(table):016x}"


def segment_bytes(*, is_encrypted: bool) -> int:
    """How long a full segment is on the disk."""
    return SEGMENT_BYTES + TAG_BYTES if is_encrypted else SEGMENT_BYTES


class LocalBlobs:
    """Blobs in a directory of this host."""

    def __init__(self, home: Path, tiers: Mapping[str, Path] | None = None, *, reserved_bytes: int = 0) -> None:
        """Nothing is made there before the first blob is. `tiers` are the directories of storage classes that have one of their own.

        Of each file system so much is left free, for the database beside it and so that objects can still be deleted.
        """
        self._reserved_bytes = reserved_bytes
        self._homes = {"": home, **{name.lower(): path for name, path in (tiers or {}).items()}}
        self._ready: set[str] = set()
        self._lock = Lock()

    @property
    def classes(self) -> frozenset[str]:
        """The storage classes that have a directory of their own."""
        return frozenset(name.upper() for name in self._homes if name)

    def place_of(self, blob_id: str) -> str:
        """The class in whose directory a blob is."""
        return blob_id.rpartition(".")[0].upper()

    def writing(self, storage_class: str = "", key: bytes | None = None) -> "LocalWriter":
        """Begin a new blob, encrypted if there is a key."""
        identity = os.urandom(IDENTITY_BYTES) if key is not None else b""
        return LocalWriter(self, self._new_id(storage_class), identity, SegmentCipher(key, identity) if key is not None else None)

    def _new_id(self, storage_class: str) -> str:
        """A fresh id, which says where the blob is."""
        place = storage_class.lower() if storage_class in self.classes else ""
        self._prepare(place)
        return f"{place}.{new_blob_id()}" if place else new_blob_id()

    def open(self, blob: Blob, first: int = 0, length: int | None = None) -> "LocalReader":
        """Read a range of a blob, checked and decrypted."""
        if blob.is_encrypted and blob.key is None:
            msg = "an encrypted blob is read with its key"
            raise ValueError(msg)
        return self._open(blob, first, blob.size_bytes - first if length is None else length)

    def _open(self, blob: Blob, first: int, length: int) -> "LocalReader":
        return LocalReader(self.path(blob.id) if blob.id else None, blob, first, length)

    def check(self, blob: Blob) -> None:
        """Compare what is stored with its checksums."""
        reader = self._open(blob, 0, blob.size_bytes)
        try:
            for _ in reader.stored():
                pass
        finally:
            reader.close()

    def copy(self, blob: Blob, storage_class: str = "") -> Blob:
        """Another name for the same bytes, which go when the last name does; in another place, the bytes again."""
        if not blob.id:
            return EMPTY
        copied = Blob(self._new_id(storage_class), blob.size_bytes, blob.seal, blob.is_encrypted)
        try:
            self.path(copied.id).hardlink_to(self.path(blob.id))
        except FileNotFoundError:
            raise BlobAbsent(GONE) from None
        except OSError as error:
            if error.errno not in NO_LINK:
                raise refusal(error) from error
            return self._copy_bytes(blob, storage_class)
        self.sync(copied.id)
        return copied

    def _copy_bytes(self, blob: Blob, storage_class: str) -> Blob:
        reader = self._open(blob, 0, blob.size_bytes)
        try:
            with LocalWriter(self, self._new_id(storage_class), reader.identity) as writer:
                for _, stored in reader.stored():
                    writer.write(stored)
                return replace(writer.finish(), size_bytes=blob.size_bytes)
        finally:
            reader.close()

    def remove(self, *blob_ids: str) -> None:
        """Remove files; their names may come back after a loss of power, and are swept then."""
        for blob_id in blob_ids:
            self.path(blob_id).unlink(missing_ok=True)

    def hold(self, first: str) -> "LocalHold":
        """Lock the file of a blob against `remove_unheld`; many may at the same time, and the lock ends with its process."""
        path = self.path(first)
        try:
            handle = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            raise BlobAbsent(GONE) from None
        except OSError as error:
            raise BlobDamaged(f"The bytes of this object cannot be read: {error.strerror}.") from error
        fcntl.flock(handle, fcntl.LOCK_SH)
        if not path.exists():
            # It was removed between opening and locking.
            os.close(handle)
            raise BlobAbsent(GONE)
        return LocalHold(handle)

    def remove_unheld(self, first: str, blob_ids: Sequence[str]) -> bool:
        """Remove blobs unless somebody holds the first one, which goes first if it goes: who comes later finds nothing to hold."""
        try:
            handle = os.open(self.path(first), os.O_RDWR)
        except FileNotFoundError:
            self.remove(*blob_ids)
            return True
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.remove(*sorted(blob_ids, key=lambda each: each != first))
        except BlockingIOError:
            return False
        finally:
            os.close(handle)
        return True

    def stored(self) -> Iterator[StoredBlob]:
        """Every file, directory by directory."""
        # Whatever else somebody has put there is none of ours.
        for shard in (home / f"{number:02x}" for home in self._homes.values() for number in range(SHARDS)):
            if not shard.is_dir():
                continue
            with os.scandir(shard) as found:
                entries = sorted(found, key=lambda entry: entry.name)
            for entry in entries:
                with suppress(FileNotFoundError):
                    stat = entry.stat()
                    yield StoredBlob(entry.name, stat.st_size, max(stat.st_mtime, stat.st_ctime), stat.st_mode & UNFINISHED != UNFINISHED)

    def refuse_full(self, blob_id: str) -> None:
        """Raise NoRoom where only the reserve is left."""
        if not self._reserved_bytes:
            return
        stat = os.statvfs(self._home_of(blob_id))
        if stat.f_bavail * stat.f_frsize < self._reserved_bytes:
            raise NoRoom(FULL)

    def path(self, blob_id: str) -> Path:
        """Where a blob is."""
        return self._home_of(blob_id) / blob_id[-2:] / blob_id

    def _home_of(self, blob_id: str) -> Path:
        place = blob_id.rpartition(".")[0]
        if place not in self._homes:
            raise EngineUnavailable(f"Objects of the class {place.upper()} are in a directory that OBJECT_TIERS names no more.")
        return self._homes[place]

    def sync(self, blob_id: str) -> None:
        """Force the names in a blob's directory to the disk."""
        handle = os.open(self.path(blob_id).parent, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    def _prepare(self, place: str) -> None:
        """Make all directories of a place, once, and have their names on the disk."""
        home = self._homes[place]
        with self._lock:
            if place in self._ready:
                return
            try:
                home.mkdir(parents=True, exist_ok=True, mode=0o700)
                for number in range(SHARDS):
                    (home / f"{number:02x}").mkdir(exist_ok=True, mode=0o700)
                for directory in (home, home.parent):
                    handle = os.open(directory, os.O_RDONLY)
                    try:
                        os.fsync(handle)
                    finally:
                        os.close(handle)
            except OSError as error:
                raise refusal(error) from error
            self._ready.add(place)


def refusal(error: OSError) -> NoRoom | EngineUnavailable:
    """What a failure of the file system means to whoever stores something."""
    if error.errno in NO_ROOM:
        return NoRoom(FULL)
    return EngineUnavailable(f"The place where objects are kept does not work: {error.strerror}.")


class LocalHold:
    """The lock on a file."""

    def __init__(self, handle: int) -> None:
        self._handle = handle

    def close(self) -> None:
        """Unlock it."""
        os.close(self._handle)


class LocalWriter:
    """Writes one file; it is made with the first byte. What is encrypted is held back for a segment, since the last one is marked as such."""

    def __init__(self, store: LocalBlobs, blob_id: str, identity: bytes = b"", cipher: SegmentCipher | None = None) -> None:
        """What is written is encrypted by the cipher; with an identity alone it is so already, and is stored as it comes."""
        self._store, self._id = store, blob_id
        self._handle = -1
        self._stored = self._checksum = self._size = 0
        self._table = bytearray()
        self._is_finished = False
        self._identity, self._cipher = identity, cipher
        self._segment_bytes = segment_bytes(is_encrypted=bool(identity))
        self._held = bytearray()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Remove what was not finished."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1
            if not self._is_finished:
                self._store.remove(self._id)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append bytes."""
        self._size += len(data)
        if self._cipher is None:
            self._put(data)
            return
        view = memoryview(data)
        while view:
            if len(self._held) == SEGMENT_BYTES:
                self._encrypt(self._cipher, is_last=False)
            part = view[: SEGMENT_BYTES - len(self._held)]
            self._held += part
            view = view[len(part) :]

    def _encrypt(self, cipher: SegmentCipher, *, is_last: bool) -> None:
        self._put(cipher.encrypt(self._stored // self._segment_bytes, self._held, is_last=is_last))
        self._held.clear()

    def _put(self, data: bytes | bytearray | memoryview) -> None:
        """Store bytes, and go on with the checksum of the segment that they are in."""
        if not data:
            return
        try:
            if self._stored // LOOK_BYTES != (self._stored + len(data)) // LOOK_BYTES or self._handle < 0:
                self._store.refuse_full(self._id)
            if self._handle < 0:
                self._handle = os.open(self._store.path(self._id), os.O_CREAT | os.O_EXCL | os.O_WRONLY, UNFINISHED)
                # As long as this process writes it is nobody's leftover.
                fcntl.flock(self._handle, fcntl.LOCK_SH)
            self._append(data)
        except OSError as error:
            raise refusal(error) from error
        view = memoryview(data)
        while view:
            room = self._segment_bytes - self._stored % self._segment_bytes
            part = view[:room]
            self._checksum = crc32c(part, self._checksum)
            self._stored += len(part)
            if self._stored % self._segment_bytes == 0:
                self._seal_segment()
            view = view[room:]

    def _seal_segment(self) -> None:
        self._table += self._checksum.to_bytes(CHECKSUM_BYTES, "big")
        self._checksum = 0

    def _append(self, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._handle, view) :]

    def finish(self) -> Blob:
        """Have everything on the disk."""
        if self._cipher is not None and self._held:
            self._encrypt(self._cipher, is_last=True)
        if self._handle < 0:
            return EMPTY
        if self._stored % self._segment_bytes:
            self._seal_segment()
        table = self._identity + bytes(self._table)
        try:
            self._append(table)
            os.fchmod(self._handle, FINISHED)
            os.fsync(self._handle)
            self._store.sync(self._id)
        except OSError as error:
            raise refusal(error) from error
        self._is_finished = True
        return Blob(self._id, self._size, seal_of(table), bool(self._identity))


class LocalReader:
    """Reads whole segments, checks them, and gives what was asked for of them."""

    def __init__(self, path: Path | None, blob: Blob, first: int, length: int) -> None:
        self._blob, self._first, self._end = blob, first, min(first + length, blob.size_bytes)
        self._handle = -1
        self._segments = -(-blob.size_bytes // SEGMENT_BYTES)
        self._segment_bytes = segment_bytes(is_encrypted=blob.is_encrypted)
        self._stored_bytes = blob.size_bytes + self._segments * (self._segment_bytes - SEGMENT_BYTES)
        self._cipher: SegmentCipher | None = None
        # What an encrypted blob is told from others by, whatever it is called.
        self.identity = b""
        if path is None or not length:
            return
        try:
            self._handle = os.open(path, os.O_RDONLY)
            self.identity, self._table = self._checked_table()
        except FileNotFoundError:
            raise BlobAbsent(GONE) from None
        except OSError as error:
            self.close()
            raise BlobDamaged(f"The bytes of this object cannot be read: {error.strerror}.") from error
        except BlobDamaged:
            self.close()
            raise

    def _checked_table(self) -> tuple[bytes, bytes]:
        """(identity, checksums) as they follow the segments."""
        begin = IDENTITY_BYTES if self._blob.is_encrypted else 0
        expected = begin + self._segments * CHECKSUM_BYTES
        table = os.pread(self._handle, expected + 1, self._stored_bytes)
        if len(table) != expected or seal_of(table) != self._blob.seal:
            raise BlobDamaged("The checksums of this object are not those that were written.")
        if begin and self._blob.key is not None:
            self._cipher = SegmentCipher(self._blob.key, table[:begin])
        return table[:begin], table[begin:]

    def __iter__(self) -> Iterator[bytes]:
        """The range in pieces of some segments."""
        for number, stored in self.stored():
            piece, place = self._plain(number, stored), number * SEGMENT_BYTES
            begin, end = max(self._first - place, 0), min(self._end - place, len(piece))
            yield piece if end - begin == len(piece) else piece[begin:end]

    def stored(self) -> Iterator[tuple[int, bytes]]:
        """(number of the first segment, some segments as they are stored, checked) of what the range touches: more than is given."""
        number, end = self._first // SEGMENT_BYTES, -(-self._end // SEGMENT_BYTES)
        while self._handle >= 0 and number < end:
            count = min(PIECE_SEGMENTS, end - number)
            yield number, self._piece(number, count)
            number += count

    def _plain(self, number: int, stored: bytes) -> bytes:
        if self._cipher is None:
            return stored
        view, plain = memoryview(stored), []
        for each in range(number, number + -(-len(stored) // self._segment_bytes)):
            segment, view = view[: self._segment_bytes], view[self._segment_bytes :]
            plain.append(self._cipher.decrypt(each, segment, is_last=each == self._segments - 1))
        return b"".join(plain)

    def _piece(self, number: int, count: int) -> bytes:
        place = number * self._segment_bytes
        wanted = min(count * self._segment_bytes, self._stored_bytes - place)
        try:
            piece = os.pread(self._handle, wanted, place)
        except OSError as error:
            raise BlobDamaged(f"The bytes of this object cannot be read: {error.strerror}.") from error
        if len(piece) != wanted:
            raise BlobDamaged("A part of this object is gone from the disk.")
        view = memoryview(piece)
        for offset in range(0, wanted, self._segment_bytes):
            expected = int.from_bytes(self._table[number * CHECKSUM_BYTES : (number + 1) * CHECKSUM_BYTES], "big")
            if crc32c(view[offset : offset + self._segment_bytes]) != expected:
                raise BlobDamaged("A part of this object is not what was written.")
            number += 1
        return piece

    def close(self) -> None:
        """Let go of the file."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1
