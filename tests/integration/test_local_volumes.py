"""What only guests that really boot can show about volumes: that they see them, that what they wrote is there, and that limits are kept."""

import re
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from portal.engines.local import volumes
from portal.engines.ports import EngineError, MachineSpec, MachineVolume
from portal.engines.volume_ports import Kept, VolumeSpec
from tests.support.hosts import TINY, Host, local_host, why_no_local_host
from tests.support.servers import until

pytestmark = [pytest.mark.vm, pytest.mark.skipif(why_no_local_host() != "", reason=why_no_local_host() or "guests run here")]
SNAP = "snap-000000000001"


@pytest.fixture(scope="module")
def installation() -> Iterator[Host]:
    with local_host() as host:
        host.engine.ensure_builtin_image(TINY)
        yield host


@pytest.fixture
def host(installation: Host) -> Iterator[Host]:
    yield installation
    installation.clear()


def given(host: Host, spec: MachineSpec, *volumes: MachineVolume) -> str:
    """Give a machine these volumes; the first one's name in the guest."""
    host.engine.ensure_volumes(replace(spec, volumes=volumes))
    return device(host, spec, volumes[0].volume_id) if volumes else ""


def device(host: Host, spec: MachineSpec, volume_id: str) -> str:
    """What the guest calls a volume, found by its serial number."""
    probe = f'for d in /sys/block/vd*; do [ "$(cat $d/serial)" = {volume_id} ] && echo FOUND /dev/${{d##*/}}; done'
    names: list[str] = []

    def is_there() -> bool:
        names[:] = re.findall(r"FOUND (/dev/vd[a-z])\r", host.run(spec, probe).decode())
        return bool(names)

    until(is_there, within_s=20, what=f"{volume_id} in the guest", every_s=0.5)
    return names[0]


def heard(host: Host, spec: MachineSpec, command: str, mark: str) -> str:
    """The word after a mark that a command prints."""
    return re.findall(rf"{mark} ([^\s$]+)", host.run(spec, command).decode())[-1]


def test_what_a_guest_wrote_comes_back_after_it_was_overwritten(host: Host) -> None:
    data = host.volume().volume_id
    spec = host.booted()
    name = given(host, spec, MachineVolume(data))
    host.run(spec, f"dd if=/dev/urandom of=/tmp/first bs=1M count=8; dd if=/tmp/first of={name} bs=1M conv=fsync; rm -f /tmp/first")
    digest = f"echo SUM $(dd if={name} bs=1M count=8 iflag=direct 2>/dev/null | sha256sum)"
    before = heard(host, spec, digest, "SUM")
    # The guest has not synced what it writes meanwhile; what it has synced is kept.
    host.volumes.ensure_snapshot(SNAP, data)
    host.run(spec, f"dd if=/dev/zero of={name} bs=1M count=8 conv=fsync")
    assert heard(host, spec, digest, "SUM") != before
    given(host, spec)
    host.volumes.restore(data, SNAP)
    copy = host.volume(snapshot_id=SNAP).volume_id
    name = given(host, spec, MachineVolume(data), MachineVolume(copy))
    assert heard(host, spec, digest, "SUM") == before
    other = device(host, spec, copy)
    assert heard(host, spec, digest.replace(name, other), "SUM") == before
    host.run(spec, f"dd if=/dev/zero of={other} bs=1M count=8 conv=fsync")
    assert heard(host, spec, digest, "SUM") == before
    given(host, spec)
    host.volumes.remove_volume(copy)
    host.volumes.remove_snapshot(SNAP)
    host.volumes.compact()
    name = given(host, spec, MachineVolume(data))
    assert heard(host, spec, digest, "SUM") == before


def test_a_guest_sees_its_disk_grow_and_keeps_its_files(host: Host) -> None:
    data = host.volume().volume_id
    spec = host.booted()
    name = given(host, spec, MachineVolume(data))
    host.run(spec, f"mkfs.ext2 {name} >/dev/null; mkdir -p /mnt/data; mount {name} /mnt/data; echo precious > /mnt/data/file; sync")
    host.volumes.ensure_size(data, 3)
    until(lambda: heard(host, spec, f"echo SECTORS $(cat /sys/block/{name[5:]}/size)", "SECTORS") == str(3 << 21), within_s=10, what="its new size")
    assert heard(host, spec, "echo SAYS $(cat /mnt/data/file)", "SAYS") == "precious"
    # As after a power cut: the files are there when the machine is, and the disk has the size it had.
    host.kill_outside(spec.machine_id)
    host.engine.ensure_running(spec.machine_id)
    host.wait_for(spec, "READY", times=2)
    name = device(host, spec, data)
    host.run(spec, f"mkdir -p /mnt/data; mount {name} /mnt/data")
    assert heard(host, spec, "echo SAYS $(cat /mnt/data/file)", "SAYS") == "precious"
    assert heard(host, spec, f"echo SECTORS $(cat /sys/block/{name[5:]}/size)", "SECTORS") == str(3 << 21)


def test_limits_are_kept_by_the_hypervisor_and_can_be_changed_while_it_runs(host: Host) -> None:
    data = host.volume().volume_id
    spec = host.booted()
    name = given(host, spec, MachineVolume(data, throughput_mib_s=4))
    write = f"dd if=/dev/zero of={name} bs=1M count=24 oflag=direct"

    def taken_s() -> float:
        began = time.monotonic()
        host.run(spec, write)
        return time.monotonic() - began

    # QEMU lets a tenth of a second's worth through at once.
    assert taken_s() >= 5
    host.volumes.ensure_limits(MachineVolume(data, throughput_mib_s=400))
    assert taken_s() < 4
    host.volumes.ensure_limits(MachineVolume(data, iops=4))
    assert taken_s() >= 5


def test_a_chain_of_live_snapshots_holds_what_was_written_at_each(host: Host) -> None:
    data = host.volume().volume_id
    spec = host.booted()
    name = given(host, spec, MachineVolume(data))
    for number in range(4):
        host.run(spec, f"printf {'abcd'[number]} | dd of={name} bs=1 seek={number}M conv=notrunc,fsync")
        host.volumes.ensure_snapshot(f"snap-{number:012}", data)
    for number in (1, 2):
        host.volumes.remove_snapshot(f"snap-{number:012}")
    given(host, spec)
    host.volumes.compact()
    assert "".join(host.read(data, number) for number in range(4)) == "abcd"
    host.volumes.restore(data, "snap-000000000000")
    assert "".join(host.read(data, number) for number in range(4)) == "a"
    host.volumes.restore(data, "snap-000000000003")
    assert "".join(host.read(data, number) for number in range(4)) == "abcd"


def test_snapshots_come_and_go_under_a_guest_that_never_stops(host: Host) -> None:
    base = host.volume().volume_id
    host.write(base, 9, "z")
    host.volumes.ensure_snapshot("snap-00000000base", base)
    data = host.volume(snapshot_id="snap-00000000base").volume_id
    spec = host.booted()
    name = given(host, spec, MachineVolume(data))
    for number in range(8):
        host.run(spec, f"printf {'abcdefgh'[number]} | dd of={name} bs=1 seek={number}M conv=notrunc,fsync")
        host.volumes.ensure_snapshot(f"snap-{number:012}", data)
        if number > 1:
            # Two are kept, as a schedule would.
            host.volumes.remove_snapshot(f"snap-{number - 2:012}")
            host.volumes.compact()
    kept = host.volumes.kept()
    assert [each.content_id for each in kept if each.kind is Kept.SHARED] == []
    host.volumes.remove_snapshot(f"snap-{7:012}")
    host.volumes.compact()
    assert [each.content_id for each in host.volumes.kept() if each.kind is Kept.SHARED] == []
    host.run(spec, f"printf i | dd of={name} bs=1 seek=8M conv=notrunc,fsync")
    # As after a power cut, with the files as they are now.
    host.kill_outside(spec.machine_id)
    host.volumes.remove_snapshot("snap-00000000base")
    host.volumes.compact()
    assert "".join(host.read(data, number) for number in range(10)) == "abcdefghiz"
    host.volumes.restore(data, f"snap-{6:012}")
    assert "".join(host.read(data, number) or "-" for number in range(10)) == "abcdefg--z"


def test_a_guest_that_never_stops_is_kept_in_any_number_of_snapshots(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(volumes, "DEEPEST", 3)
    root = host.volume(image_id=TINY).volume_id
    spec = host.booted(volumes=[MachineVolume(root, is_root=True)], root_disk_gib=1)
    data = host.volume().volume_id
    name = given(host, spec, MachineVolume(root, is_root=True), MachineVolume(data))
    name = device(host, spec, data)
    for number in range(9):
        host.run(spec, f"printf {'abcdefghi'[number]} | dd of={name} bs=1 seek={number}M conv=notrunc,fsync")
        for volume_id, kept in ((data, f"snap-{number:012}"), (root, f"snap-root{number:08}")):
            host.volumes.ensure_snapshot(kept, volume_id)
        if number > 1:
            host.volumes.remove_snapshot(f"snap-{number - 2:012}")
        host.volumes.compact()
        assert max(host.engine.host.disks().depths().values()) <= 5  # type: ignore[attr-defined] # the local engine
    host.engine.ensure_stopped(spec.machine_id, graceful_timeout_s=0)
    assert "".join(host.read(data, number) for number in range(9)) == "abcdefghi"
    host.engine.ensure_running(spec.machine_id)
    host.wait_for(spec, "READY", times=2)
    host.engine.ensure_stopped(spec.machine_id, graceful_timeout_s=0)
    host.volumes.restore(data, f"snap-{7:012}")
    assert "".join(host.read(data, number) or "-" for number in range(9)) == "abcdefgh-"


def test_a_root_disk_of_an_earlier_version_becomes_a_volume_that_can_be_restored(host: Host, tmp_path: Path) -> None:
    spec = host.booted()
    host.run(spec, "echo precious > /root/file; sync")
    host.engine.ensure_stopped(spec.machine_id, graceful_timeout_s=30)
    root = VolumeSpec("vol-00000000root", "ssd", 1, image_id=TINY, machine_id=spec.machine_id)
    host.volumes.ensure_volume(root)
    spec = replace(spec, volumes=[MachineVolume(root.volume_id, is_root=True)])
    host.engine.ensure_defined(spec)
    host.engine.ensure_running(spec.machine_id)
    host.wait_for(spec, "READY", times=2)
    assert heard(host, spec, "echo SAYS $(cat /root/file)", "SAYS") == "precious"
    host.volumes.ensure_snapshot(SNAP, root.volume_id)
    host.run(spec, "rm /root/file; sync")
    host.engine.ensure_stopped(spec.machine_id, graceful_timeout_s=30)
    host.volumes.restore(root.volume_id, SNAP)
    host.engine.ensure_running(spec.machine_id)
    host.wait_for(spec, "READY", times=3)
    assert heard(host, spec, "echo SAYS $(cat /root/file)", "SAYS") == "precious"
    # An image that stands alone, from which others boot.
    image = tmp_path / "image"
    host.volumes.export(SNAP, image)
    host.engine.ensure_image("ami-exported0", image)
    host.engine.ensure_stopped(spec.machine_id, graceful_timeout_s=0)
    host.engine.remove_machine(spec.machine_id)
    host.volumes.remove_volume(root.volume_id)
    host.volumes.remove_snapshot(SNAP)
    host.engine.remove_image("ami-exported0")
    assert host.volumes.kept() == []


def test_a_guest_that_does_not_listen_keeps_its_volume(host: Host) -> None:
    data = host.volume().volume_id
    # Before its kernel is up, nobody answers the request to let go.
    spec = host.prepared()
    host.engine.ensure_volumes(having := replace(spec, volumes=[MachineVolume(data)]))
    host.engine.ensure_running(spec.machine_id)
    try:
        host.engine.ensure_volumes(spec)
    except EngineError:
        host.engine.ensure_volumes(having)
        host.wait_for(spec, "READY")
        host.engine.ensure_volumes(having)
        assert device(host, spec, data)
    host.wait_for(spec, "READY")
    until(lambda: _detached(host, spec), within_s=30, what="the guest to let go", every_s=0.5)
    host.volumes.remove_volume(data)


def test_a_guest_that_does_not_listen_loses_its_volume_by_force(host: Host) -> None:
    data, other = host.volume().volume_id, host.volume().volume_id
    spec = host.booted()
    spec = replace(spec, volumes=[MachineVolume(data), MachineVolume(other)])
    name = given(host, spec, *spec.volumes)
    host.run(spec, f"printf kept | dd of={name} bs=1 conv=notrunc,fsync")
    # Its kernel stands still: it hears of nothing that is asked.
    host.engine.host.hypervisor().find(spec.machine_id).suspend()  # type: ignore[attr-defined] # the local engine
    less = replace(spec, volumes=[MachineVolume(other)])
    with pytest.raises(EngineError, match="not let go"):
        host.engine.ensure_volumes(less)
    assert host.engine.ensure_volumes(less, is_forced=True)
    host.wait_for(spec, "READY", times=2)
    assert host.volumes.attached() == {other: spec.machine_id}
    assert not host.engine.ensure_volumes(less, is_forced=True)
    host.volumes.ensure_snapshot(SNAP, data)
    assert host.read(data, 0) == "k"


def test_what_a_guest_writes_is_measured(host: Host) -> None:
    data = host.volume().volume_id
    spec = host.booted()
    name = given(host, spec, MachineVolume(data))
    ((before,),) = (machine.volumes for machine in host.engine.samples())
    host.run(spec, f"dd if=/dev/urandom of={name} bs=1M count=4 conv=fsync; dd if={name} of=/dev/null bs=1M count=2 iflag=direct")
    ((after,),) = (machine.volumes for machine in host.engine.samples())
    assert before.volume_id == after.volume_id == data
    assert after.write_bytes - before.write_bytes >= 4 << 20
    assert after.read_bytes - before.read_bytes >= 2 << 20
    assert after.write_ops > before.write_ops
    assert after.write_ns > before.write_ns
    for _ in range(2):
        (kept,) = (each for each in host.volumes.kept() if each.kind is Kept.VOLUME)
        assert 4 << 20 <= kept.chain_bytes <= kept.size_bytes
        host.volumes.ensure_snapshot(SNAP, data)


def _detached(host: Host, spec: MachineSpec) -> bool:
    try:
        host.engine.ensure_volumes(spec)
    except EngineError:
        return False
    return True
