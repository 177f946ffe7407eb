"""What every engine for volumes promises of encrypted ones, tried with the fake one here and with the real one in tests/integration."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from portal.engines.ports import EngineRefused, MachineState, MachineVolume
from portal.engines.volume_ports import VolumeEngine, VolumeSpec
from tests.support.hosts import TINY, Host, fake_host

SNAP, OTHER = "snap-0000000000e1", "snap-0000000000e2"
KEY = b"0123456789abcdef0123456789abcdef0123456789a="


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Host:
    """One engine for all tests here. The tests of a driver that needs a host of its own replace this."""
    host = fake_host(tmp_path_factory.mktemp("fake"))
    host.engine.ensure_builtin_image(TINY)
    return host


@pytest.fixture
def host(installation: Host) -> Iterator[Host]:
    """The engine with one passphrase for everything, without volumes of earlier tests."""
    installation.volumes.use_keys(lambda _: KEY)
    yield installation
    installation.volumes.use_keys(lambda _: KEY)
    installation.clear()
    assert installation.volumes.kept() == []


@pytest.fixture
def volumes(host: Host) -> VolumeEngine:
    return host.volumes


def refuse(content_id: str) -> bytes:
    raise EngineRefused(f"The key of {content_id} is disabled.")


def test_everything_that_is_done_to_volumes_is_done_to_encrypted_ones(host: Host, volumes: VolumeEngine) -> None:
    spec = host.volume(is_encrypted=True)
    host.write(spec.volume_id, 1, "a")
    for _ in range(2):
        volumes.ensure_volume(spec)
        volumes.ensure_size(spec.volume_id, 2)
        volumes.ensure_snapshot(SNAP, spec.volume_id)
        volumes.ensure_copy(OTHER, SNAP, "hdd")
    host.write(spec.volume_id, 1, "b")
    clone = host.volume(snapshot_id=SNAP, size_gib=2, is_encrypted=True)
    moved = host.volume(snapshot_id=OTHER, size_gib=3, pool="ssd", is_encrypted=True)
    assert [host.read(each.volume_id, 1) for each in (spec, clone, moved)] == ["b", "a", "a"]
    volumes.restore(spec.volume_id, SNAP)
    assert host.read(spec.volume_id, 1) == "a"
    host.write(spec.volume_id, 2, "c")
    volumes.remove_snapshot(SNAP)
    volumes.remove_volume(clone.volume_id)
    volumes.compact()
    assert (host.read(spec.volume_id, 1), host.read(spec.volume_id, 2)) == ("a", "c")
    assert {each.size_bytes >> 30 for each in volumes.kept() if each.content_id == spec.volume_id} == {2}


def test_a_volume_from_an_image_is_encrypted(host: Host, volumes: VolumeEngine) -> None:
    spec = host.volume(image_id=TINY, is_encrypted=True)
    host.write(spec.volume_id, 1, "a")
    volumes.ensure_snapshot(SNAP, spec.volume_id)
    assert host.read(host.volume(snapshot_id=SNAP, is_encrypted=True).volume_id, 1) == "a"


def test_nothing_is_done_without_the_passphrase(host: Host, volumes: VolumeEngine) -> None:
    spec = host.volume(is_encrypted=True)
    volumes.ensure_snapshot(SNAP, spec.volume_id)
    volumes.use_keys(refuse)
    fresh = VolumeSpec("vol-0000000000e9", "ssd", 1)
    for call in (
        lambda: volumes.ensure_volume(replace(fresh, is_encrypted=True)),
        lambda: volumes.ensure_volume(replace(fresh, is_encrypted=True, snapshot_id=SNAP)),
        lambda: volumes.ensure_size(spec.volume_id, 2),
        lambda: volumes.ensure_snapshot(OTHER, spec.volume_id),
        lambda: volumes.restore(spec.volume_id, SNAP),
        lambda: volumes.ensure_copy(OTHER, SNAP, "hdd"),
    ):
        with pytest.raises(EngineRefused, match="is disabled"):
            call()
    # What asks for no passphrase goes on.
    volumes.remove_snapshot(SNAP)
    volumes.remove_volume(spec.volume_id)


def test_what_is_encrypted_and_what_is_not_do_not_mix(host: Host, volumes: VolumeEngine, tmp_path: Path) -> None:
    plain, locked = host.volume(), host.volume(is_encrypted=True)
    volumes.ensure_snapshot(SNAP, plain.volume_id)
    volumes.ensure_snapshot(OTHER, locked.volume_id)
    with pytest.raises(EngineRefused, match="as what it begins with"):
        host.volume(snapshot_id=SNAP, is_encrypted=True)
    with pytest.raises(EngineRefused, match="as what it begins with"):
        host.volume(snapshot_id=OTHER)
    with pytest.raises(EngineRefused, match="is encrypted, and images are not"):
        volumes.export(OTHER, tmp_path / "image")


def test_a_running_machine_is_given_an_encrypted_volume(host: Host, volumes: VolumeEngine) -> None:
    locked = host.volume(is_encrypted=True)
    spec = host.running()
    having = replace(spec, volumes=[MachineVolume(locked.volume_id)])
    for _ in range(2):
        host.engine.ensure_volumes(having)
    assert volumes.attached() == {locked.volume_id: spec.machine_id}
    volumes.ensure_snapshot(SNAP, locked.volume_id)
    volumes.ensure_size(locked.volume_id, 2)
    host.engine.ensure_stopped(spec.machine_id, graceful_timeout_s=0)
    host.engine.ensure_defined(having)
    host.engine.ensure_running(spec.machine_id)
    assert host.engine.machine_state(spec.machine_id) is MachineState.RUNNING
    assert volumes.attached() == {locked.volume_id: spec.machine_id}
