"""Files are there whole or not at all."""

import os
from pathlib import Path

import pytest

from portal.kernel import files
from portal.kernel.files import modified, part_of, publish, remove_parts, sha256_of, write_whole, writing


def test_a_file_appears_when_it_is_whole_and_is_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "key"
    part = part_of(path)
    with writing(part) as out:
        out.write(b"secret")
        assert not path.exists()
    publish(part, path)
    assert (path.read_bytes(), path.stat().st_mode & 0o777, [each.name for each in tmp_path.iterdir()]) == (b"secret", 0o600, ["key"])
    write_whole(path, b"another")
    assert (path.read_bytes(), len(list(tmp_path.iterdir()))) == (b"another", 1)
    assert sha256_of(path) == "ae448ac86c4e8e4dec645729708ef41873ae79c6dff84eff73360989487f08e5"


def test_what_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), writing(part_of(tmp_path / "file")):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_names_are_forced_to_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    whole = os.fsync
    monkeypatch.setattr(files.os, "fsync", lambda handle: (synced.append(str(Path(f"/proc/self/fd/{handle}").readlink())), whole(handle)))
    write_whole(tmp_path / "file", b"x")
    assert [Path(each).name.startswith(".file.") for each in synced] == [True, False]
    assert synced[1] == str(tmp_path)


def test_parts_go_when_they_are_old_and_files_stay(tmp_path: Path) -> None:
    for name in (".a.1", ".b.2", "c"):
        (tmp_path / name).touch()
    os.utime(tmp_path / ".a.1", (1, 1))
    os.utime(tmp_path / "c", (1, 1))
    remove_parts(tmp_path, 1000.0)
    assert sorted(each.name for each in tmp_path.iterdir()) == [".b.2", "c"]
    remove_parts(tmp_path / "nowhere", 1000.0)


def test_what_vanishes_meanwhile_is_not_old(tmp_path: Path) -> None:
    assert modified(tmp_path / "gone") == float("inf")
