"""A pool that runs full under a guest: what QEMU pauses is told apart from what crashed, and goes on when there is room."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from portal.engines.ports import MachineState, MachineVolume, Shortage
from tests.integration.test_local_volumes import given, heard
from tests.support.hosts import TINY, Host, local_host, process_directory, why_no_local_host
from tests.support.servers import until

pytestmark = [pytest.mark.vm, pytest.mark.skipif(why_no_local_host() != "", reason=why_no_local_host() or "guests run here")]


def _mount(root: Path, *options: str) -> bool:
    return subprocess.run(["mount", "-t", "tmpfs", "-o", ",".join(options), "none", str(root)], capture_output=True, check=False).returncode == 0


@pytest.fixture
def pool() -> Iterator[Path]:
    """The pool `hdd`, on a file system of 64 MiB."""
    root = process_directory() / "pools" / "hdd"
    root.mkdir(parents=True, exist_ok=True)
    if not _mount(root, "size=64m", "mode=0711"):
        pytest.skip("file systems cannot be mounted here")
    yield root
    subprocess.run(["umount", "-l", str(root)], check=True)


@pytest.fixture
def host(pool: Path) -> Iterator[Host]:
    assert pool.exists()
    with local_host() as made:
        made.engine.ensure_builtin_image(TINY)
        yield made
        made.clear()


def test_a_guest_that_has_no_room_waits_and_goes_on(host: Host, pool: Path) -> None:
    data = host.volume(pool="hdd").volume_id
    spec = host.booted()
    name = given(host, spec, MachineVolume(data))
    assert host.engine.shortages() == {}
    host.run(spec, f"(dd if=/dev/zero of={name} bs=1M count=128 conv=fsync; echo WRITTEN $?) > /tmp/said 2>&1 & true")
    until(lambda: host.engine.machine_state(spec.machine_id) is MachineState.PAUSED, within_s=120, what="the pause", every_s=0.2)
    assert host.engine.shortages() == {spec.machine_id: Shortage("hdd", has_room=False)}
    assert _mount(pool, "remount", "size=1g")
    assert host.engine.shortages() == {spec.machine_id: Shortage("hdd", has_room=True)}
    host.engine.ensure_running(spec.machine_id)
    until(lambda: heard(host, spec, "echo SAID $(grep -c 'WRITTEN 0' /tmp/said)", "SAID") == "1", within_s=120, what="the guest to have written")
    assert host.engine.shortages() == {}
