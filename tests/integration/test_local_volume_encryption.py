"""The local engine keeps what every engine promises of encrypted volumes, and what lies on the disk tells nothing."""

import json
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from portal.engines.local.volume_store import read_header
from portal.engines.ports import EngineRefused, MachineVolume
from tests.contract.test_volume_engine_encryption import *  # noqa: F403 - every test of the promise
from tests.contract.test_volume_engine_encryption import KEY, SNAP, refuse
from tests.integration.test_local_volumes import given, heard
from tests.support.hosts import TINY, Host, local_host, process_directory, process_of, why_no_local_host

MISSING = why_no_local_host()
pytestmark = [pytest.mark.vm, pytest.mark.skipif(bool(MISSING), reason=MISSING or "guests run here")]


@pytest.fixture(scope="module")
def installation() -> Iterator[Host]:
    """One engine for all tests here: it takes a moment to get to know its QEMU."""
    with local_host() as host:
        host.engine.ensure_builtin_image(TINY)
        yield host


def files() -> list[Path]:
    return [path for path in process_directory().rglob("*.qcow2") if path.is_file() and not path.is_symlink() and "pools" in path.parts]


def test_what_a_guest_writes_is_not_on_the_disk_and_comes_back(host: Host) -> None:
    locked, spec = host.volume(is_encrypted=True), host.booted()
    name = given(host, spec, MachineVolume(locked.volume_id))
    words = "for-nobody-elses-eyes"
    host.run(spec, f"yes {words} | head -c 4194304 > /tmp/w; dd if=/tmp/w of={name} bs=1M conv=fsync; rm /tmp/w")
    digest = f"echo SUM $(dd if={name} bs=1M count=4 iflag=direct 2>/dev/null | sha256sum)"
    before = heard(host, spec, digest, "SUM")
    host.volumes.ensure_snapshot(SNAP, locked.volume_id)
    host.run(spec, f"dd if=/dev/zero of={name} bs=1M count=4 conv=fsync")
    assert heard(host, spec, digest, "SUM") != before
    for path in files():
        told = json.loads(subprocess.run(["qemu-img", "info", "-U", "--output=json", str(path)], capture_output=True, check=True).stdout)
        assert (told["encrypted"], read_header(path).is_encrypted) == (True, True), path
        assert words.encode() not in path.read_bytes(), path
    given(host, spec)
    host.volumes.restore(locked.volume_id, SNAP)
    name = given(host, spec, MachineVolume(locked.volume_id))
    assert heard(host, spec, digest, "SUM") == before
    # A running QEMU takes in what its disk was built on.
    host.volumes.remove_snapshot(SNAP)
    host.volumes.compact()
    assert len(files()) == 1
    assert heard(host, spec, digest, "SUM") == before
    arguments = (Path("/proc") / str(process_of(spec.machine_id)) / "cmdline").read_bytes()
    assert KEY not in arguments
    left = [path for path in process_directory().rglob("*") if path.is_file() and path.suffix in {".xml", ".base64"} and KEY in path.read_bytes()]
    assert left == []
    assert [*process_directory().glob("**/etc/secrets/*")] == []


def test_a_guest_boots_from_an_encrypted_disk_and_not_without_its_passphrase(host: Host) -> None:
    spec = host.spec()
    root = MachineVolume(host.volume(image_id=TINY, is_encrypted=True).volume_id, is_root=True)
    having = replace(spec, volumes=[root])
    host.engine.ensure_seed(having)
    host.engine.ensure_defined(having)
    host.volumes.use_keys(refuse)
    with pytest.raises(EngineRefused, match="is disabled"):
        host.engine.ensure_running(spec.machine_id)
    host.volumes.use_keys(lambda _: KEY)
    host.engine.ensure_running(spec.machine_id)
    host.wait_for(spec, "READY")
    host.volumes.ensure_snapshot(SNAP, root.volume_id)
    host.run(spec, "echo kept > /root/kept; sync")
    host.engine.ensure_stopped(spec.machine_id, graceful_timeout_s=30)
    host.engine.ensure_running(spec.machine_id)
    host.wait_for(spec, "READY", times=1)
    assert host.volumes.attached() == {root.volume_id: spec.machine_id}


def test_every_thread_of_a_worker_opens_encrypted_volumes(host: Host) -> None:
    locked, spec = host.volume(is_encrypted=True), host.running()
    having = replace(spec, volumes=[MachineVolume(locked.volume_id)])

    def start() -> None:
        host.engine.ensure_stopped(spec.machine_id, graceful_timeout_s=0)
        host.engine.ensure_defined(having)
        host.engine.ensure_running(spec.machine_id)

    for _ in range(3):
        # A thread of its own each time, which the embedded libvirt has not seen before.
        with ThreadPoolExecutor(1) as pool:
            pool.submit(start).result()
    host.reopen()
    start()
    assert host.volumes.attached() == {locked.volume_id: spec.machine_id}
