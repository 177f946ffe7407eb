"""Encrypted blobs: nothing of them lies on the disk in the clear, ranges are read alone, and whatever is not in its place is found."""

import errno
import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from awscrt.checksums import crc32c

from portal.engines.blob_encryption import TAG_BYTES
from portal.engines.blobs import CHECKSUM_BYTES, IDENTITY_BYTES, SEGMENT_BYTES, LocalBlobs, seal_of
from portal.engines.object_ports import EMPTY, Blob, BlobAbsent, BlobDamaged

KEY, OTHER = bytes(range(32)), bytes(32)
STORED = SEGMENT_BYTES + TAG_BYTES


@pytest.fixture
def store(tmp_path: Path) -> LocalBlobs:
    return LocalBlobs(tmp_path / "objects")


def noise(size: int) -> bytes:
    return hashlib.shake_128(f"{size}".encode()).digest(size)


def keep(store: LocalBlobs, body: bytes, step: int = 1 << 20, key: bytes = KEY) -> Blob:
    with store.writing(key=key) as writer:
        for place in range(0, len(body), step):
            writer.write(body[place : place + step])
        return writer.finish()


def whole(store: LocalBlobs, blob: Blob, first: int = 0, length: int | None = None, key: bytes = KEY) -> bytes:
    reader = store.open(replace(blob, key=key), first, length)
    try:
        return b"".join(reader)
    finally:
        reader.close()


@pytest.mark.parametrize("size", [1, SEGMENT_BYTES - 1, SEGMENT_BYTES, SEGMENT_BYTES + 1, 5 * SEGMENT_BYTES + 3])
@pytest.mark.parametrize("step", [1000, SEGMENT_BYTES, 3 * SEGMENT_BYTES + 1])
def test_any_range_of_any_size(store: LocalBlobs, size: int, step: int) -> None:
    body = noise(size)
    blob = keep(store, body, step)
    assert (blob.size_bytes, blob.is_encrypted, blob.key) == (size, True, None)
    assert whole(store, blob) == body
    for first in {0, 1, size // 2, max(0, size - 2)}:
        for length in {0, 1, min(2, size - first), size - first}:
            assert whole(store, blob, first, length) == body[first : first + length]
    store.check(blob)


def test_only_the_segments_of_a_range_are_decrypted(store: LocalBlobs) -> None:
    body = noise(3 * SEGMENT_BYTES)
    blob = keep(store, body)
    blob = rewritten(store, blob, lambda parts: [noise(STORED), *parts[1:]])
    assert whole(store, blob, SEGMENT_BYTES, SEGMENT_BYTES) == body[SEGMENT_BYTES : 2 * SEGMENT_BYTES]
    with pytest.raises(BlobDamaged):
        whole(store, blob, SEGMENT_BYTES - 1, 2)


def test_nothing_of_it_is_on_the_disk(store: LocalBlobs) -> None:
    text = b"A sentence that nobody is to find. " * 1000
    first, second = keep(store, text), keep(store, text)
    stored = [store.path(each.id).read_bytes() for each in (first, second)]
    assert all(text[:16] not in each for each in stored)
    # The same bytes under the same key look different each time.
    assert stored[0] != stored[1]
    assert keep(store, b"") == EMPTY


def test_it_is_read_with_its_own_key_only(store: LocalBlobs) -> None:
    blob = keep(store, b"secret")
    with pytest.raises(BlobDamaged, match="another key"):
        whole(store, blob, key=OTHER)
    with pytest.raises(ValueError, match="with its key"):
        store.open(blob)
    assert "secret" not in repr(replace(blob, key=b"secret"))


@pytest.mark.parametrize("storage_class", ["", "COLD"])
@pytest.mark.parametrize("can_link", [True, False])
def test_a_copy_is_read_with_the_same_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, storage_class: str, *, can_link: bool) -> None:
    store = LocalBlobs(tmp_path / "objects", {"COLD": tmp_path / "cold"})
    body = noise(2 * SEGMENT_BYTES + 5)
    blob = keep(store, body)
    if not can_link:
        monkeypatch.setattr(Path, "hardlink_to", _no_links)
    copied = store.copy(blob, storage_class)
    store.remove(blob.id)
    assert (copied.size_bytes, copied.seal, copied.is_encrypted) == (blob.size_bytes, blob.seal, True)
    store.check(copied)
    assert whole(store, copied) == body


def _no_links(*_: object) -> None:
    raise OSError(errno.EXDEV, "Invalid cross-device link")


def rewritten(store: LocalBlobs, blob: Blob, change: Callable[[list[bytes]], list[bytes]]) -> Blob:
    """Somebody with the disk in their hands changes the segments, and gets all checksums right."""
    path = store.path(blob.id)
    count = -(-blob.size_bytes // SEGMENT_BYTES)
    whole_file = path.read_bytes()
    data, footer = whole_file[: blob.size_bytes + count * TAG_BYTES], whole_file[blob.size_bytes + count * TAG_BYTES :]
    segments = change([data[place : place + STORED] for place in range(0, len(data), STORED)])
    table = footer[:IDENTITY_BYTES] + b"".join(crc32c(each).to_bytes(CHECKSUM_BYTES) for each in segments)
    path.write_bytes(b"".join(segments) + table)
    size = sum(len(each) - TAG_BYTES for each in segments)
    return replace(blob, size_bytes=size, seal=seal_of(table))


@pytest.mark.parametrize(
    "change",
    [
        lambda parts: [parts[1], parts[0], parts[2]],
        lambda parts: parts[:2],
        lambda parts: parts[1:],
        lambda parts: [*parts, parts[2]],
        lambda parts: [parts[0], parts[0], parts[2]],
    ],
    ids=["moved", "cut off", "without its beginning", "with more", "twice"],
)
def test_segments_are_where_they_were_written(store: LocalBlobs, change: Callable[[list[bytes]], list[bytes]]) -> None:
    blob = rewritten(store, keep(store, noise(3 * SEGMENT_BYTES)), change)
    store.check(blob)
    with pytest.raises(BlobDamaged, match="does not decrypt"):
        whole(store, blob)


def test_a_segment_of_another_blob_is_found(store: LocalBlobs) -> None:
    other = store.path(keep(store, noise(SEGMENT_BYTES)).id).read_bytes()[:STORED]
    blob = rewritten(store, keep(store, noise(SEGMENT_BYTES)), lambda _parts: [other])
    with pytest.raises(BlobDamaged, match="does not decrypt"):
        whole(store, blob)


def test_damage_is_found_without_a_key(store: LocalBlobs) -> None:
    blob = keep(store, noise(2 * SEGMENT_BYTES))
    path = store.path(blob.id)
    data = bytearray(path.read_bytes())
    data[STORED + 5] ^= 1
    path.write_bytes(data)
    with pytest.raises(BlobDamaged, match="not what was written"):
        store.check(blob)
    path.unlink()
    with pytest.raises(BlobAbsent):
        store.check(blob)
