"""A pool that runs full while something is copied into it: the refusal says so, what was there stays whole, and nothing half is left."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from portal.engines.ports import EngineError, EngineRefused
from portal.engines.volume_ports import VolumeSpec
from tests.unit.engines.test_local_volume_crashes import SNAP, VOLUME, Unused, _io, begin, open_store, read

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small file system"),
    pytest.mark.skipif(shutil.which("qemu-io") is None, reason="qemu-io is not installed"),
]


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A directory of an installation on a file system of 8 MiB."""
    root = tmp_path / "small"
    root.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "none", str(root)], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("file systems cannot be mounted here")
    yield root
    subprocess.run(["umount", str(root)], check=True)


def left_over(store: Unused, root: Path) -> list[Path]:
    kept = {each.content_id for each in store.kept()}
    return [path for path in root.rglob("*") if path.suffix in {".part", ".new", ".merge"} or (path.parent.name == "all" and path.stem not in kept)]


def test_a_pool_runs_full_while_something_is_copied(small: Path) -> None:
    store = begin(small)
    _io(store, VOLUME, "write -P 99 16M 3M")
    store.ensure_snapshot("snap-000000000002", VOLUME)
    calls = [
        lambda: store.ensure_copy("snap-000000000003", "snap-000000000002", "hdd"),
        lambda: store.ensure_volume(VolumeSpec("vol-000000000002", "hdd", 1, snapshot_id="snap-000000000002")),
        lambda: store.export("snap-000000000002", small / "image"),
    ]
    # There is room for one copy, not for two.
    calls[0]()
    for call in calls[1:]:
        with pytest.raises(EngineRefused, match="disk is full"):
            call()
    store.remove_volume("vol-000000000002")
    assert left_over(store, small) == []
    assert read(store, VOLUME) == "ab"
    store.remove_snapshot("snap-000000000003")
    store.ensure_volume(VolumeSpec("vol-000000000002", "hdd", 1, snapshot_id="snap-000000000002"))
    assert read(store, "vol-000000000002") == "ab"


def test_a_pool_without_any_room_takes_no_snapshot_and_loses_none(small: Path) -> None:
    store = begin(small)
    filler = small / "filler"
    subprocess.run(["dd", "if=/dev/zero", f"of={filler}", "bs=4k"], capture_output=True, check=False)
    assert shutil.disk_usage(small).free == 0
    for call in (lambda: store.ensure_snapshot("snap-000000000002", VOLUME), lambda: store.restore(VOLUME, SNAP)):
        with pytest.raises(EngineError):
            call()
    assert left_over(store, small) == []
    filler.unlink()
    store = open_store(small)
    assert read(store, VOLUME) == "ab"
    store.ensure_snapshot("snap-000000000002", VOLUME)
    store.restore(VOLUME, SNAP)
    assert read(store, VOLUME) == "a-"
