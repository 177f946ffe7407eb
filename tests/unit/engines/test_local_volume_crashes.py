"""A worker that keeps volumes on this host is killed all over its code; the next one finishes the same call, and nothing that was written is lost."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from portal.engines.local import qemu_img, volume_store, volumes
from portal.engines.local.host import LocalHost
from portal.engines.local.volumes import LocalVolumes
from portal.engines.volume_ports import Kept, VolumeSpec

pytestmark = pytest.mark.skipif(shutil.which("qemu-io") is None, reason="qemu-io is not installed")

VOLUME, SNAP, LATER, COPY = "vol-000000000001", "snap-000000000001", "snap-000000000002", "vol-000000000002"
WATCHED = {volumes.__file__, volume_store.__file__}
# Every line would take minutes; with each change of the driver others are met.
STEP = 5
Call = Callable[[LocalVolumes], object]


class Unused(LocalVolumes):
    """Volumes that no machine has."""

    def _user(self, volume_id: str) -> None:
        del volume_id

    def _depths(self) -> dict[str, int]:
        return {}


def open_store(root: Path) -> Unused:
    return Unused(LocalHost(root, pools={"ssd": root / "ssd", "hdd": root / "hdd"}))


def write(store: Unused, volume_id: str, place: int, letter: str) -> None:
    _io(store, volume_id, f"write -P {ord(letter)} {place}M 64k")


def read(store: Unused, volume_id: str) -> str:
    """What is at the first places."""
    shown = [_io(store, volume_id, f"read -v {place}M 1").split()[1] for place in (1, 2)]
    return "".join(chr(int(byte, 16)) for byte in shown).replace("\0", "-")


def _io(store: Unused, volume_id: str, command: str) -> str:
    disk = store._store.disk(volume_id)
    return subprocess.run(["qemu-io", "-f", "qcow2", "-c", command, str(disk)], capture_output=True, text=True, check=True).stdout


def run_and_die(root: Path, call: Call, line: int) -> bool:
    """Fork a worker that is killed at the line of the driver that it comes to so late; False if it came to the end."""
    child = os.fork()
    if child == 0:
        left = [line]

        def trace(frame: FrameType, event: str, _argument: Any) -> Any:
            if frame.f_code.co_filename not in WATCHED:
                return None
            if event == "line":
                left[0] -= 1
                if left[0] < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
            return trace

        try:
            store = open_store(root)
            sys.settrace(trace)
            call(store)
            os._exit(0)
        finally:
            os._exit(1)
    status = os.waitpid(child, 0)[1]
    if os.WIFEXITED(status):
        assert os.WEXITSTATUS(status) == 0, "it failed otherwise"
        return False
    return True


def begin(root: Path) -> Unused:
    """A volume that was written to, kept, and written to again."""
    root.mkdir(exist_ok=True)
    store = open_store(root)
    store.ensure_volume(VolumeSpec(VOLUME, "ssd", 1))
    write(store, VOLUME, 1, "a")
    store.ensure_snapshot(SNAP, VOLUME)
    write(store, VOLUME, 2, "b")
    return store


def removed(store: Unused) -> None:
    store.remove_snapshot(SNAP)
    store.compact()


def cloned(store: Unused) -> None:
    """What a copy of a volume comes to."""
    moment = f"copy-{COPY.removeprefix('vol-')}"
    store.ensure_snapshot(moment, VOLUME)
    store.ensure_volume(VolumeSpec(COPY, "ssd", 1, snapshot_id=moment))
    store.remove_snapshot(moment)


def exported(store: Unused) -> None:
    """What an image from a snapshot comes to: it stands alone, and holds what the snapshot does."""
    path = store._host.paths.root / "image"
    store.export(SNAP, path)
    shown = subprocess.run(["qemu-io", "-f", "qcow2", "-c", "read -v 1M 1", str(path)], capture_output=True, text=True, check=True).stdout
    assert shown.split()[1] == "61"


# Call → what the volume holds then, and what there is of it: volumes, snapshots.
CALLS: dict[str, tuple[Call, str, tuple[int, int]]] = {
    "create": (lambda store: store.ensure_volume(VolumeSpec(COPY, "ssd", 1)), "ab", (2, 1)),
    "from-snapshot": (lambda store: store.ensure_volume(VolumeSpec(COPY, "ssd", 2, snapshot_id=SNAP)), "ab", (2, 1)),
    "to-another-pool": (lambda store: store.ensure_volume(VolumeSpec(COPY, "hdd", 2, snapshot_id=SNAP)), "ab", (2, 1)),
    "grow": (lambda store: store.ensure_size(VOLUME, 2), "ab", (1, 1)),
    "snapshot": (lambda store: store.ensure_snapshot(LATER, VOLUME), "ab", (1, 2)),
    "copy": (lambda store: store.ensure_copy(LATER, SNAP, "hdd"), "ab", (1, 2)),
    "restore": (lambda store: store.restore(VOLUME, SNAP), "a-", (1, 1)),
    "clone": (cloned, "ab", (2, 1)),
    "image": (exported, "ab", (1, 1)),
    "remove-snapshot": (removed, "ab", (1, 0)),
    "remove-volume": (lambda store: store.remove_volume(VOLUME), "", (0, 1)),
}


@pytest.mark.parametrize("name", CALLS)
def test_killed_anywhere(tmp_path: Path, name: str) -> None:
    call, held, count = CALLS[name]
    begin(tmp_path / "begun")
    line = 0
    while True:
        root = tmp_path / str(line)
        shutil.copytree(tmp_path / "begun", root, symlinks=True)
        died = run_and_die(root, call, line)
        store = open_store(root)
        call(store)
        kept = store.kept()
        assert (sum(each.kind is Kept.VOLUME for each in kept), sum(each.kind is Kept.SNAPSHOT for each in kept)) == count, line
        if held:
            assert read(store, VOLUME) == held, line
        if count[1]:
            store.ensure_volume(VolumeSpec("vol-000000000009", "ssd", 2, snapshot_id=SNAP))
            assert read(store, "vol-000000000009") == "a-", line
            store.remove_volume("vol-000000000009")
        _removable(store, root)
        shutil.rmtree(root)
        if not died:
            return
        line += STEP


def test_what_a_dead_worker_had_begun_goes_and_what_this_one_writes_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where nobody takes up again what it was for: a copy that was cancelled, a merge into what was deleted meanwhile."""
    store = begin(tmp_path)
    store.ensure_copy(LATER, SNAP, "hdd")
    layers = tmp_path / "hdd" / "layers" / "all"
    for name in ("snap-00000000dead.part", f"{LATER}.merge"):
        shutil.copyfile(layers / f"{LATER}.qcow2", layers / name)
    copied = qemu_img.copy

    def meanwhile(source: Path, target: Path, lock: qemu_img.Lock | None = None) -> None:
        copied(source, target, lock)
        store.compact()

    monkeypatch.setattr(qemu_img, "copy", meanwhile)
    store.ensure_copy("snap-000000000003", SNAP, "hdd")
    assert sorted(path.name for path in layers.iterdir()) == [f"{LATER}.qcow2", "snap-000000000003.qcow2"]


def _removable(store: Unused, root: Path) -> None:
    """Everything can be removed, and leaves nothing."""
    for each in store.kept():
        if each.kind is Kept.VOLUME:
            store.remove_volume(each.content_id)
    for each in store.kept():
        store.remove_snapshot(each.content_id)
    assert [path for pool in ("ssd", "hdd") for path in (*(root / pool / "disks").glob("*"), *(root / pool / "layers" / "all").glob("*"))] == []


def test_neighbours_that_nobody_wants_are_merged_in_any_order(tmp_path: Path) -> None:
    store = begin(tmp_path)
    # Comes first by its name, and is what the other one's content is kept in.
    later = "snap-000000000000"
    store.ensure_snapshot(later, VOLUME)
    for each in (SNAP, later):
        store.remove_snapshot(each)
    for _ in range(2):
        store.compact()
    assert read(store, VOLUME) == "ab"
    assert [each.content_id for each in store.kept()] == [VOLUME]


def test_what_is_damaged_is_not_served(tmp_path: Path) -> None:
    store = begin(tmp_path)
    store._store.disk(VOLUME).write_bytes(b"garbage")
    with pytest.raises(qemu_img.EngineError, match="damaged"):
        store.ensure_size(VOLUME, 2)
