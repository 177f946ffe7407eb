"""Blobs as files: what was written is what is read, and whatever fails leaves nothing behind."""

import errno
import hashlib
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from portal.engines import blobs as module
from portal.engines.blobs import SEGMENT_BYTES, LocalBlobs
from portal.engines.object_ports import EMPTY, Blob, BlobAbsent, BlobDamaged, NoRoom
from portal.engines.ports import EngineRefused, EngineUnavailable


@pytest.fixture
def store(tmp_path: Path) -> LocalBlobs:
    return LocalBlobs(tmp_path / "objects")


def noise(size: int) -> bytes:
    return hashlib.shake_128(f"{size}".encode()).digest(size)


def keep(store: LocalBlobs, body: bytes, step: int = 1 << 20) -> Blob:
    with store.writing() as writer:
        for place in range(0, len(body), step):
            writer.write(body[place : place + step])
        return writer.finish()


def whole(store: LocalBlobs, blob: Blob, first: int = 0, length: int | None = None) -> bytes:
    reader = store.open(blob, first, length)
    try:
        return b"".join(reader)
    finally:
        reader.close()


@pytest.mark.parametrize("size", [1, SEGMENT_BYTES - 1, SEGMENT_BYTES, SEGMENT_BYTES + 1, 5 * SEGMENT_BYTES + 3])
@pytest.mark.parametrize("step", [1000, SEGMENT_BYTES, 3 * SEGMENT_BYTES + 1])
def test_any_range_of_any_size(store: LocalBlobs, size: int, step: int) -> None:
    body = noise(size)
    blob = keep(store, body, step)
    assert whole(store, blob) == body
    for first in {0, 1, size // 2, max(0, size - 2)}:
        for length in {0, 1, min(2, size - first), size - first}:
            assert whole(store, blob, first, length) == body[first : first + length]


def test_how_it_was_written_does_not_matter(store: LocalBlobs) -> None:
    body = noise(2 * SEGMENT_BYTES + 5)
    assert keep(store, body, 7777).seal == keep(store, body).seal


def test_nothing_is_kept_of_nothing(store: LocalBlobs) -> None:
    assert (keep(store, b""), whole(store, EMPTY), store.copy(EMPTY)) == (EMPTY, b"", EMPTY)
    assert list(store.stored()) == []


def test_what_is_not_finished_leaves_nothing(store: LocalBlobs) -> None:
    with store.writing() as writer:
        writer.write(b"half")
    assert list(store.stored()) == []


@pytest.mark.parametrize("step", ["write", "fsync"])
def test_a_full_disk_is_said_and_leaves_nothing(store: LocalBlobs, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    keep(store, b"x")
    whole_call = getattr(os, step)

    def full(handle: int, *rest: object) -> object:
        if len(list(store.stored())) > 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return whole_call(handle, *rest)

    monkeypatch.setattr(module.os, step, full)
    with pytest.raises(EngineRefused, match="no room left"):
        keep(store, noise(3 * SEGMENT_BYTES), 1000)
    monkeypatch.undo()
    assert [each.file_bytes for each in store.stored()] == [5]


def test_a_copy_lives_on_its_own(store: LocalBlobs, monkeypatch: pytest.MonkeyPatch) -> None:
    body = noise(SEGMENT_BYTES + 9)
    first = keep(store, body)
    second = store.copy(first)
    store.remove(first.id, first.id)
    assert whole(store, second) == body
    with pytest.raises(BlobAbsent):
        store.open(first)
    with pytest.raises(BlobAbsent):
        store.copy(first)

    def too_many(_self: Path, _target: Path) -> None:
        raise OSError(errno.EMLINK, os.strerror(errno.EMLINK))

    monkeypatch.setattr(Path, "hardlink_to", too_many)
    assert whole(store, store.copy(second)) == body


def test_damage_is_seen_wherever_it_is(store: LocalBlobs) -> None:
    body = noise(2 * SEGMENT_BYTES)
    blob = keep(store, body)
    path = store.path(blob.id)
    raw = path.read_bytes()
    for place in (0, SEGMENT_BYTES, len(body) - 1, len(body), len(raw) - 1):
        path.write_bytes(raw[:place] + bytes([raw[place] ^ 0x80]) + raw[place + 1 :])
        with pytest.raises(BlobDamaged):
            whole(store, blob)
    for other in (raw[:-1], raw[: len(body)], raw + b"x", b""):
        path.write_bytes(other)
        with pytest.raises(BlobDamaged):
            whole(store, blob)
    path.write_bytes(raw)
    assert whole(store, blob) == body


def test_a_reader_keeps_what_it_opened(store: LocalBlobs) -> None:
    blob = keep(store, noise(100))
    reader = store.open(blob)
    store.remove(blob.id)
    assert b"".join(reader) == noise(100)
    reader.close()


def test_classes_have_places_of_their_own(tmp_path: Path) -> None:
    home, cold = tmp_path / "objects", tmp_path / "cold"
    store = LocalBlobs(home, {"STANDARD_IA": cold})
    with store.writing("STANDARD_IA") as writer:
        writer.write(b"bytes")
        blob = writer.finish()
    assert (store.place_of(blob.id), len(list(cold.rglob(blob.id))), home.exists()) == ("STANDARD_IA", 1, False)
    warm = store.copy(blob)
    assert (store.place_of(warm.id), b"".join(store.open(warm)), warm.seal) == ("", b"bytes", blob.seal)
    assert store.place_of(store.copy(blob, "STANDARD_IA").id) == "STANDARD_IA"
    assert len(list(store.stored())) == 3
    # What a setting names no more is not taken for gone.
    with pytest.raises(EngineUnavailable, match="OBJECT_TIERS"):
        LocalBlobs(home).open(blob)


def test_a_reserve_of_the_disk_is_left(tmp_path: Path) -> None:
    blob = keep(LocalBlobs(tmp_path), b"before")
    full = LocalBlobs(tmp_path, reserved_bytes=1 << 62)
    with pytest.raises(NoRoom):
        keep(full, b"x")
    assert [each.id for each in full.stored()] == [blob.id]
    # What is there is read, named anew and removed.
    assert whole(full, full.copy(blob)) == b"before"
    full.remove(blob.id)


def test_the_reserve_is_looked_at_while_a_blob_grows(store: LocalBlobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reserved = LocalBlobs(tmp_path / "objects", reserved_bytes=1 << 20)
    stat, looks = os.statvfs(tmp_path), iter([1 << 30, 0])
    monkeypatch.setattr(module.os, "statvfs", lambda _path: SimpleNamespace(f_bavail=next(looks), f_frsize=stat.f_frsize))
    with pytest.raises(NoRoom):
        keep(reserved, bytes(17 << 20))
    assert list(store.stored()) == []


def test_what_somebody_else_put_there_is_passed_by(store: LocalBlobs, tmp_path: Path) -> None:
    keep(store, b"x")
    (tmp_path / "objects" / "note.txt").write_text("do not touch")
    (tmp_path / "objects" / "lost+found").mkdir()
    assert [each.file_bytes for each in store.stored()] == [5]
