"""What every engine for volumes promises, tried with the fake one here and with the real one in tests/integration."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from portal.engines.ports import EngineRefused, MachineSpec, MachineState, MachineVolume
from portal.engines.volume_ports import Kept, VolumeEngine, VolumeSpec
from tests.support.hosts import TINY, Host, fake_host

SNAP, OTHER = "snap-000000000001", "snap-000000000002"


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Host:
    """One engine for all tests here. The tests of a driver that needs a host of its own replace this."""
    host = fake_host(tmp_path_factory.mktemp("fake"))
    host.engine.ensure_builtin_image(TINY)
    return host


@pytest.fixture
def host(installation: Host) -> Iterator[Host]:
    """The engine, without volumes of earlier tests."""
    yield installation
    installation.clear()
    assert installation.volumes.kept() == []


@pytest.fixture
def volumes(host: Host) -> VolumeEngine:
    return host.volumes


def having(spec: MachineSpec, *volume_ids: str) -> MachineSpec:
    return replace(spec, volumes=[MachineVolume(each) for each in volume_ids])


def kept(host: Host, kind: Kept) -> list[str]:
    return [each.content_id for each in host.volumes.kept() if each.kind is kind]


# -- the host --------------------------------------------------------------------------------------------------------------------------------


def test_says_that_it_can_work(volumes: VolumeEngine) -> None:
    found = volumes.capability()
    assert (found.name, found.available, found.reason) == ("volumes", True, "")
    rooms = volumes.pools()
    assert set(rooms) == {"ssd", "hdd", "nvme"}
    assert all(0 < room.free_gib <= room.total_gib for room in rooms.values())


# -- volumes ---------------------------------------------------------------------------------------------------------------------------------


def test_everything_may_be_asked_for_twice(host: Host, volumes: VolumeEngine) -> None:
    spec = host.volume()
    host.write(spec.volume_id, 1, "a")
    volumes.ensure_volume(spec)
    for _ in range(2):
        volumes.ensure_size(spec.volume_id, 2)
        volumes.ensure_snapshot(SNAP, spec.volume_id)
        volumes.ensure_copy(OTHER, SNAP, "hdd")
        volumes.ensure_limits(MachineVolume(spec.volume_id, 100, 10))
    assert host.read(spec.volume_id, 1) == "a"
    assert sorted(kept(host, Kept.SNAPSHOT)) == [SNAP, OTHER]
    for _ in range(2):
        volumes.restore(spec.volume_id, SNAP)
    for _ in range(2):
        volumes.remove_volume(spec.volume_id)
        volumes.remove_snapshot(SNAP)
        volumes.remove_snapshot(OTHER)
    assert volumes.kept() == []


def test_what_is_not_there_is_removed_and_nothing_else_can_be_done_with_it(volumes: VolumeEngine, tmp_path: Path) -> None:
    absent = "vol-00000000dead"
    volumes.remove_volume(absent)
    volumes.remove_snapshot(SNAP)
    calls: list[Callable[[], object]] = [
        lambda: volumes.ensure_size(absent, 2),
        lambda: volumes.ensure_snapshot(SNAP, absent),
        lambda: volumes.restore(absent, SNAP),
        lambda: volumes.ensure_copy(OTHER, SNAP, "ssd"),
        lambda: volumes.export(SNAP, tmp_path / "image"),
        lambda: volumes.ensure_volume(VolumeSpec(absent, "ssd", 1, snapshot_id=SNAP)),
        lambda: volumes.ensure_volume(VolumeSpec(absent, "ssd", 1, image_id="ami-absent00")),
        lambda: volumes.ensure_volume(VolumeSpec(absent, "tape", 1)),
    ]
    for call in calls:
        with pytest.raises(EngineRefused):
            call()
    assert volumes.kept() == []


def test_a_volume_grows_and_never_shrinks(host: Host, volumes: VolumeEngine) -> None:
    spec = host.volume()
    host.write(spec.volume_id, 1, "a")
    volumes.ensure_size(spec.volume_id, 3)
    volumes.ensure_size(spec.volume_id, 2)
    (found,) = volumes.kept()
    assert (found.kind, found.pool, found.size_bytes) == (Kept.VOLUME, "ssd", 3 << 30)
    assert host.read(spec.volume_id, 1) == "a"


def test_a_volume_from_an_image_keeps_the_image(host: Host, volumes: VolumeEngine, tmp_path: Path) -> None:
    spec = host.volume(image_id=TINY)
    with pytest.raises(EngineRefused, match="based on this image"):
        host.engine.remove_image(TINY)
    volumes.ensure_snapshot(SNAP, spec.volume_id)
    volumes.remove_volume(spec.volume_id)
    with pytest.raises(EngineRefused, match="based on this image"):
        host.engine.remove_image(TINY)
    image = tmp_path / "image"
    volumes.export(SNAP, image)
    assert host.engine.inspect_image(image).virtual_size_bytes == 1 << 30
    volumes.remove_snapshot(SNAP)
    assert host.engine.has_image(TINY)


# -- snapshots -------------------------------------------------------------------------------------------------------------------------------


def test_a_snapshot_keeps_what_was_there(host: Host, volumes: VolumeEngine) -> None:
    spec = host.volume()
    host.write(spec.volume_id, 1, "a")
    volumes.ensure_snapshot(SNAP, spec.volume_id)
    host.write(spec.volume_id, 1, "b")
    host.write(spec.volume_id, 2, "c")
    volumes.ensure_snapshot(OTHER, spec.volume_id)
    host.write(spec.volume_id, 1, "d")
    volumes.ensure_size(spec.volume_id, 2)
    for snapshot_id, found in ((SNAP, ["a", ""]), (OTHER, ["b", "c"]), (SNAP, ["a", ""])):
        volumes.restore(spec.volume_id, snapshot_id)
        assert [host.read(spec.volume_id, place) for place in (1, 2)] == found
        host.write(spec.volume_id, 1, "e")
    assert [each.size_bytes for each in volumes.kept() if each.kind is Kept.VOLUME] == [2 << 30]


def test_volumes_snapshots_and_copies_go_in_any_order_and_leave_the_others_whole(host: Host, volumes: VolumeEngine) -> None:
    first = host.volume()
    host.write(first.volume_id, 1, "a")
    volumes.ensure_snapshot(SNAP, first.volume_id)
    host.write(first.volume_id, 2, "b")
    volumes.ensure_snapshot(OTHER, first.volume_id)
    near = host.volume(snapshot_id=SNAP, size_gib=2)
    far = host.volume(snapshot_id=OTHER, pool="hdd")
    volumes.ensure_copy("snap-000000000003", OTHER, "nvme")
    assert [host.read(near.volume_id, place) for place in (1, 2)] == ["a", ""]
    assert [host.read(far.volume_id, place) for place in (1, 2)] == ["a", "b"]
    host.write(near.volume_id, 1, "x")
    volumes.remove_snapshot(SNAP)
    volumes.compact()
    assert [host.read(first.volume_id, place) for place in (1, 2)] == ["a", "b"]
    volumes.remove_volume(near.volume_id)
    volumes.compact()
    assert kept(host, Kept.SHARED) == []
    volumes.remove_snapshot(OTHER)
    volumes.compact()
    assert kept(host, Kept.SHARED) == []
    assert [host.read(first.volume_id, place) for place in (1, 2)] == ["a", "b"]
    volumes.remove_volume(first.volume_id)
    assert [host.read(far.volume_id, place) for place in (1, 2)] == ["a", "b"]
    last = host.volume(snapshot_id="snap-000000000003", pool="nvme")
    assert [host.read(last.volume_id, place) for place in (1, 2)] == ["a", "b"]


def test_a_chain_of_many_becomes_short_again(host: Host, volumes: VolumeEngine) -> None:
    spec = host.volume()
    for number in range(6):
        host.write(spec.volume_id, number, "abcdef"[number])
        volumes.ensure_snapshot(f"snap-{number:012}", spec.volume_id)
    for number in (3, 0, 4, 1, 2):
        volumes.remove_snapshot(f"snap-{number:012}")
        volumes.compact()
        assert kept(host, Kept.SHARED) == []
    assert "".join(host.read(spec.volume_id, number) for number in range(6)) == "abcdef"
    volumes.restore(spec.volume_id, "snap-000000000005")
    assert "".join(host.read(spec.volume_id, number) for number in range(6)) == "abcdef"


def test_what_does_not_fit_is_refused(host: Host, volumes: VolumeEngine) -> None:
    spec = host.volume(size_gib=2)
    volumes.ensure_snapshot(SNAP, spec.volume_id)
    with pytest.raises(EngineRefused, match="2 GiB"):
        host.volume(snapshot_id=SNAP, size_gib=1)
    volumes.ensure_copy(OTHER, SNAP, "hdd")
    with pytest.raises(EngineRefused, match="another pool"):
        volumes.restore(spec.volume_id, OTHER)


# -- machines --------------------------------------------------------------------------------------------------------------------------------


def test_a_machine_that_is_off_takes_volumes_and_starts_with_them(host: Host, volumes: VolumeEngine) -> None:
    one, other = host.volume(), host.volume()
    with pytest.raises(EngineRefused, match="not defined"):
        host.engine.ensure_volumes(having(host.spec(), one.volume_id))
    spec = host.prepared()
    for _ in range(2):
        host.engine.ensure_volumes(having(spec, one.volume_id, other.volume_id))
    with pytest.raises(EngineRefused, match="not on this host"):
        host.engine.ensure_volumes(having(spec, "vol-00000000dead"))
    host.engine.ensure_running(spec.machine_id)
    assert volumes.attached() == {one.volume_id: spec.machine_id, other.volume_id: spec.machine_id}
    with pytest.raises(EngineRefused, match="running machine"):
        volumes.remove_volume(one.volume_id)
    volumes.ensure_snapshot(SNAP, other.volume_id)
    with pytest.raises(EngineRefused, match="running machine"):
        volumes.restore(other.volume_id, SNAP)
    host.engine.ensure_stopped(spec.machine_id, graceful_timeout_s=0)
    assert volumes.attached() == {}
    volumes.restore(other.volume_id, SNAP)
    host.engine.ensure_running(spec.machine_id)
    assert host.engine.machine_state(spec.machine_id) is MachineState.RUNNING


def test_a_volume_that_came_while_its_machine_ran_goes_while_it_is_off(host: Host, volumes: VolumeEngine) -> None:
    data = host.volume()
    spec = host.prepared()
    host.engine.ensure_running(spec.machine_id)
    host.engine.ensure_volumes(having(spec, data.volume_id))
    host.engine.ensure_stopped(spec.machine_id, graceful_timeout_s=0)
    host.engine.ensure_volumes(spec)
    volumes.remove_volume(data.volume_id)
    host.engine.ensure_running(spec.machine_id)
    assert host.engine.machine_state(spec.machine_id) is MachineState.RUNNING


def test_a_volume_grows_gets_limits_and_is_kept_under_a_running_machine(host: Host, volumes: VolumeEngine) -> None:
    data = host.volume()
    host.write(data.volume_id, 1, "a")
    spec = having(host.prepared(), data.volume_id)
    host.engine.ensure_volumes(spec)
    host.engine.ensure_running(spec.machine_id)
    for _ in range(2):
        volumes.ensure_size(data.volume_id, 2)
        volumes.ensure_limits(MachineVolume(data.volume_id, 500, 20))
        volumes.ensure_snapshot(SNAP, data.volume_id)
    volumes.ensure_snapshot(OTHER, data.volume_id)
    assert volumes.compact() == 0
    host.engine.ensure_stopped(spec.machine_id, graceful_timeout_s=0)
    assert host.read(data.volume_id, 1) == "a"
    copy = host.volume(snapshot_id=SNAP, size_gib=2)
    assert host.read(copy.volume_id, 1) == "a"
    # Off, on, and once more: with the files that it is in now.
    host.engine.ensure_running(spec.machine_id)
    volumes.remove_snapshot(SNAP)
    host.engine.ensure_stopped(spec.machine_id, graceful_timeout_s=0)
    volumes.compact()
    host.engine.ensure_running(spec.machine_id)
    host.engine.ensure_stopped(spec.machine_id, graceful_timeout_s=0)
    assert host.read(data.volume_id, 1) == "a"


def test_a_machine_with_a_volume_that_is_gone_does_not_start(host: Host, volumes: VolumeEngine) -> None:
    data = host.volume()
    spec = having(host.prepared(), data.volume_id)
    host.engine.ensure_volumes(spec)
    volumes.remove_volume(data.volume_id)
    with pytest.raises(EngineRefused, match="not on this host"):
        host.engine.ensure_running(spec.machine_id)


def test_a_machine_boots_from_its_root_volume_which_outlives_it(host: Host, volumes: VolumeEngine) -> None:
    root, data = host.volume(image_id=TINY), host.volume()
    spec = replace(host.spec(), volumes=[MachineVolume(root.volume_id, is_root=True)])
    host.engine.ensure_seed(spec)
    host.engine.ensure_defined(spec)
    host.engine.ensure_running(spec.machine_id)
    host.wait_for(spec, "READY")
    host.engine.ensure_volumes(replace(spec, volumes=[*spec.volumes, MachineVolume(data.volume_id)]))
    with pytest.raises(EngineRefused, match="running machine"):
        volumes.remove_volume(root.volume_id)
    volumes.ensure_snapshot(SNAP, root.volume_id)
    volumes.ensure_size(root.volume_id, 2)
    host.engine.ensure_volumes(spec)
    host.engine.ensure_stopped(spec.machine_id, graceful_timeout_s=0)
    volumes.restore(root.volume_id, SNAP)
    host.engine.ensure_defined(spec)
    host.engine.ensure_running(spec.machine_id)
    host.engine.remove_machine(spec.machine_id)
    assert sorted(kept(host, Kept.VOLUME)) == sorted([root.volume_id, data.volume_id])


def test_a_disk_that_a_machine_has_of_its_own_becomes_its_root_volume_when_it_is_off(host: Host, volumes: VolumeEngine) -> None:
    spec = host.booted()
    root = VolumeSpec("vol-00000000root", "ssd", 1, image_id=TINY, machine_id=spec.machine_id)
    having_root = replace(spec, volumes=[MachineVolume(root.volume_id, is_root=True)])
    volumes.ensure_volume(root)
    assert volumes.kept() == []
    data = host.volume()
    host.engine.ensure_volumes(replace(having_root, volumes=[*having_root.volumes, MachineVolume(data.volume_id)]))
    host.engine.ensure_volumes(having_root)
    host.engine.ensure_stopped(spec.machine_id, graceful_timeout_s=0)
    for _ in range(2):
        volumes.ensure_volume(root)
    assert root.volume_id in kept(host, Kept.VOLUME)
    host.engine.ensure_defined(having_root)
    host.engine.ensure_running(spec.machine_id)
    with pytest.raises(EngineRefused, match="based on this image"):
        host.engine.remove_image(TINY)
    host.engine.remove_machine(spec.machine_id)
    volumes.ensure_snapshot(SNAP, root.volume_id)


# -- ids -------------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "..", "../../etc", "vol-1/../../x", "/etc/passwd", "vol-1\n", "VOL-1", "vol-" + "a" * 100])
def test_refuses_ids_that_could_lead_elsewhere(host: Host, volumes: VolumeEngine, name: str, tmp_path: Path) -> None:
    data = host.volume()
    volumes.ensure_snapshot(SNAP, data.volume_id)
    calls: list[Callable[[], object]] = [
        lambda: volumes.ensure_volume(VolumeSpec(name, "ssd", 1)),
        lambda: volumes.ensure_size(name, 2),
        lambda: volumes.ensure_limits(MachineVolume(name)),
        lambda: volumes.ensure_snapshot(name, data.volume_id),
        lambda: volumes.ensure_snapshot(OTHER, name),
        lambda: volumes.restore(data.volume_id, name),
        lambda: volumes.ensure_copy(name, SNAP, "ssd"),
        lambda: volumes.ensure_copy(OTHER, name, "ssd"),
        lambda: volumes.export(name, tmp_path / "image"),
        lambda: volumes.remove_volume(name),
        lambda: volumes.remove_snapshot(name),
    ]
    if name:
        calls.append(lambda: volumes.ensure_volume(VolumeSpec("vol-00000000dead", "ssd", 1, snapshot_id=name)))
    for call in calls:
        with pytest.raises(EngineRefused):
            call()
