"""What every compute engine promises, tried with the fake one here and with the real one in tests/integration."""

import hashlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from portal.engines.ports import (
    ComputeEngine,
    ConsoleAccess,
    EngineError,
    EngineRefused,
    EngineUnavailable,
    ImageFormat,
    MachineInterface,
    MachineState,
)
from tests.support.hosts import GIB, TINY, Host, fake_host, qcow2_header, qcow2_image, raw_image
from tests.support.servers import until


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Host:
    """One engine for all tests here. The tests of a driver that needs a host of its own replace this."""
    host = fake_host(tmp_path_factory.mktemp("fake"))
    host.engine.ensure_builtin_image(TINY)
    return host


@pytest.fixture
def host(installation: Host) -> Iterator[Host]:
    """The engine, without machines of earlier tests."""
    yield installation
    installation.clear()


@pytest.fixture
def engine(host: Host) -> ComputeEngine:
    return host.engine


@pytest.fixture
def console(host: Host) -> ConsoleAccess:
    return host.console


# -- the host --------------------------------------------------------------------------------------------------------------------------------


def test_says_that_it_can_work(engine: ComputeEngine) -> None:
    found = engine.capability()
    assert (found.name, found.available, found.reason) == ("compute", True, "")
    assert found.detail


def test_measures_the_host(engine: ComputeEngine) -> None:
    found = engine.capacity()
    assert found.cpus >= 1
    assert found.memory_mib >= 512
    assert 0 < found.disk_free_gib <= found.disk_total_gib
    assert found.accelerator in {"fake", "kvm", "tcg"}


# -- machines: order and repetition ----------------------------------------------------------------------------------------------------------


def test_everything_may_be_asked_for_twice(host: Host, engine: ComputeEngine) -> None:
    spec = host.spec()
    for _ in range(2):
        engine.ensure_builtin_image(TINY)
        engine.ensure_disk(spec)
        engine.ensure_seed(spec)
        engine.ensure_defined(spec)
    assert engine.machine_state(spec.machine_id) is MachineState.STOPPED
    for _ in range(2):
        engine.ensure_running(spec.machine_id)
    # The whole series again, as after a worker died.
    engine.ensure_disk(spec)
    engine.ensure_seed(spec)
    engine.ensure_defined(spec)
    assert engine.machines() == {spec.machine_id: MachineState.RUNNING}
    for _ in range(2):
        engine.ensure_stopped(spec.machine_id, graceful_timeout_s=0)
    assert engine.machines() == {spec.machine_id: MachineState.STOPPED}
    for _ in range(2):
        engine.remove_disk(spec.machine_id)
    for _ in range(2):
        engine.remove_machine(spec.machine_id)
    assert engine.machines() == {}


def test_what_is_not_there_is_removed_and_stopped(host: Host, engine: ComputeEngine) -> None:
    absent = host.spec().machine_id
    engine.ensure_stopped(absent, graceful_timeout_s=1)
    engine.remove_disk(absent)
    engine.remove_machine(absent)
    engine.remove_image("ami-absent00")
    assert engine.machine_state(absent) is MachineState.ABSENT
    assert engine.machines() == {}
    assert not engine.has_image("ami-absent00")


def test_a_disk_needs_an_image(host: Host, engine: ComputeEngine) -> None:
    with pytest.raises(EngineRefused, match="not in this host's store"):
        engine.ensure_disk(host.spec(image_id="ami-absent00"))


def test_a_machine_needs_definition_disk_and_seed_to_run(host: Host, engine: ComputeEngine) -> None:
    spec = host.spec()
    with pytest.raises(EngineRefused, match="not defined"):
        engine.ensure_running(spec.machine_id)
    engine.ensure_defined(spec)
    with pytest.raises(EngineRefused, match="no root disk"):
        engine.ensure_running(spec.machine_id)
    engine.ensure_disk(spec)
    with pytest.raises(EngineRefused, match="no first-boot data"):
        engine.ensure_running(spec.machine_id)
    assert engine.machine_state(spec.machine_id) is MachineState.STOPPED
    engine.ensure_seed(spec)
    engine.ensure_running(spec.machine_id)
    assert engine.machine_state(spec.machine_id) is MachineState.RUNNING


def test_what_a_running_machine_uses_is_not_taken_away(host: Host, engine: ComputeEngine) -> None:
    spec = host.running()
    with pytest.raises(EngineRefused, match="Stop it first"):
        engine.remove_disk(spec.machine_id)
    with pytest.raises(EngineRefused, match="Stop it first"):
        engine.ensure_defined(replace(spec, memory_mib=256))
    with pytest.raises(EngineRefused, match="based on this image"):
        engine.remove_image(TINY)
    assert engine.machine_state(spec.machine_id) is MachineState.RUNNING
    assert engine.has_image(TINY)


def test_network_cards_need_a_machine_that_was_started_in_a_network(host: Host, engine: ComputeEngine) -> None:
    with pytest.raises(EngineRefused, match="not defined"):
        engine.ensure_interfaces(host.spec())
    spec = host.running()
    for _ in range(2):
        engine.ensure_interfaces(spec)
    with pytest.raises(EngineRefused, match="Stop it first"):
        engine.ensure_interfaces(replace(spec, interfaces=(MachineInterface("eni-1", "52:54:00:00:00:01", "t0"),)))
    assert engine.machine_state(spec.machine_id) is MachineState.RUNNING


def test_user_data_has_a_limit(host: Host, engine: ComputeEngine) -> None:
    engine.ensure_seed(host.spec(user_data="#!" + "x" * (16 * 1024 - 2)))
    with pytest.raises(EngineRefused, match="16 KiB"):
        engine.ensure_seed(host.spec(user_data="#!" + "é" * (8 * 1024)))


# -- machines: states ------------------------------------------------------------------------------------------------------------------------


def test_states(host: Host, engine: ComputeEngine) -> None:
    spec = host.spec()
    assert engine.machine_state(spec.machine_id) is MachineState.ABSENT
    engine.ensure_disk(spec)
    engine.ensure_seed(spec)
    assert engine.machine_state(spec.machine_id) is MachineState.ABSENT
    engine.ensure_defined(spec)
    assert engine.machine_state(spec.machine_id) is MachineState.STOPPED
    for _ in range(2):
        engine.ensure_running(spec.machine_id)
        assert engine.machine_state(spec.machine_id) is MachineState.RUNNING
        engine.ensure_stopped(spec.machine_id, graceful_timeout_s=0)
        assert engine.machine_state(spec.machine_id) is MachineState.STOPPED
    engine.remove_machine(spec.machine_id)
    assert engine.machine_state(spec.machine_id) is MachineState.ABSENT


def test_a_machine_killed_from_outside_has_crashed_until_somebody_cares(host: Host, engine: ComputeEngine) -> None:
    spec = host.running()
    host.kill_outside(spec.machine_id)
    assert engine.machines() == {spec.machine_id: MachineState.CRASHED}
    assert engine.samples() == []
    engine.ensure_running(spec.machine_id)
    assert engine.machine_state(spec.machine_id) is MachineState.RUNNING
    host.kill_outside(spec.machine_id)
    assert engine.machine_state(spec.machine_id) is MachineState.CRASHED
    engine.ensure_stopped(spec.machine_id, graceful_timeout_s=5)
    assert engine.machine_state(spec.machine_id) is MachineState.STOPPED


def test_machines_outlive_the_engine(host: Host) -> None:
    up, killed, down = host.running(), host.running(), host.prepared()
    host.kill_outside(killed.machine_id)
    engine = host.reopen()
    assert engine.machines() == {
        up.machine_id: MachineState.RUNNING, killed.machine_id: MachineState.CRASHED, down.machine_id: MachineState.STOPPED,
    }  # fmt: skip
    engine.ensure_running(up.machine_id)
    with host.console.open_display(up.machine_id) as display:
        assert display.recv(3) == b"RFB"
    engine.ensure_stopped(up.machine_id, graceful_timeout_s=0)
    assert engine.machine_state(up.machine_id) is MachineState.STOPPED


def test_many_at_once(host: Host, engine: ComputeEngine) -> None:
    specs = [host.spec() for _ in range(4)]
    failures: list[EngineError] = []

    def make(number: int) -> None:
        spec = specs[number % len(specs)]
        try:
            engine.ensure_disk(spec)
            engine.ensure_seed(spec)
            engine.ensure_defined(spec)
            engine.ensure_running(spec.machine_id)
        except EngineError as error:
            failures.append(error)

    # Each machine is asked for by two threads.
    threads = [threading.Thread(target=make, args=(number,)) for number in range(2 * len(specs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert engine.machines() == {spec.machine_id: MachineState.RUNNING for spec in specs}


# -- machines: what they are made of ---------------------------------------------------------------------------------------------------------


def test_a_stopped_machine_takes_another_size(host: Host, engine: ComputeEngine) -> None:
    spec = host.prepared()
    engine.ensure_defined(replace(spec, vcpus=2, memory_mib=256))
    engine.ensure_running(spec.machine_id)
    (found,) = engine.samples()
    assert (found.vcpus, found.memory_total_bytes) == (2, 256 << 20)


def test_a_disk_grows_and_never_shrinks(host: Host, engine: ComputeEngine) -> None:
    spec = host.prepared()
    engine.ensure_disk(replace(spec, root_disk_gib=3))
    engine.ensure_disk(replace(spec, root_disk_gib=2))
    engine.ensure_running(spec.machine_id)
    assert [sample.disk_capacity_bytes for sample in engine.samples()] == [3 * GIB]
    engine.ensure_disk(replace(spec, root_disk_gib=4))
    assert [sample.disk_capacity_bytes for sample in engine.samples()] == [4 * GIB]


def test_a_machine_is_rebuilt_from_another_image(host: Host, engine: ComputeEngine, tmp_path: Path) -> None:
    spec = host.running()
    arrived = tmp_path / "arrived"
    arrived.write_bytes(raw_image(2))
    engine.ensure_image("ami-other000", arrived)
    other = replace(spec, image_id="ami-other000")
    engine.ensure_stopped(spec.machine_id, graceful_timeout_s=0)
    engine.remove_disk(spec.machine_id)
    engine.ensure_disk(other)
    engine.ensure_defined(other)
    engine.ensure_running(spec.machine_id)
    assert engine.machine_state(spec.machine_id) is MachineState.RUNNING
    with pytest.raises(EngineRefused, match="based on this image"):
        engine.remove_image("ami-other000")
    engine.remove_machine(spec.machine_id)
    engine.remove_image("ami-other000")
    assert not engine.has_image("ami-other000")


def test_measures_running_machines(host: Host, engine: ComputeEngine) -> None:
    spec = host.booted()
    host.prepared()
    (first,) = engine.samples()
    assert (first.machine_id, first.vcpus, first.memory_total_bytes) == (spec.machine_id, 1, 192 << 20)
    assert 0 < first.memory_used_bytes < first.memory_total_bytes
    assert first.disk_capacity_bytes == GIB
    assert 0 < first.disk_allocated_bytes < GIB
    assert first.disk_read_bytes > 0
    until(lambda: engine.samples()[0].cpu_time_ns > first.cpu_time_ns, within_s=20, what="the guest to use its CPU")
    later = engine.samples()[0]
    assert later.taken_at_s > first.taken_at_s
    assert list(later.volumes) == []
    assert later.disk_write_bytes >= first.disk_write_bytes


# -- consoles --------------------------------------------------------------------------------------------------------------------------------


def test_consoles(host: Host, engine: ComputeEngine, console: ConsoleAccess) -> None:
    spec = host.prepared(hostname="console-test")
    assert console.log_tail(spec.machine_id, max_bytes=100) == b""
    for open_console in (console.open_serial, console.open_display):
        with pytest.raises(EngineUnavailable, match="not running"):
            open_console(spec.machine_id)
    engine.ensure_running(spec.machine_id)
    host.wait_for(spec, "READY")
    assert "hostname=console-test" in host.log(spec)
    assert len(console.log_tail(spec.machine_id, max_bytes=10)) == 10
    assert console.log_tail(spec.machine_id, max_bytes=0) == b""
    heard = host.type(spec, "echo answer-$((6*7))", b"answer-42" if host.is_real else b"echo answer-$((6*7))")
    assert b"root@console-test" in heard
    with console.open_display(spec.machine_id) as display:
        assert display.recv(12) == b"RFB 003.008\n"
    engine.ensure_stopped(spec.machine_id, graceful_timeout_s=30)
    assert "reboot: Power down" in host.log(spec)
    with pytest.raises(EngineUnavailable, match="not running"):
        console.open_serial(spec.machine_id)
    engine.remove_machine(spec.machine_id)
    assert console.log_tail(spec.machine_id, max_bytes=100) == b""


# -- images ----------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "kind", "size"), [(qcow2_image(), ImageFormat.QCOW2, GIB), (raw_image(3), ImageFormat.RAW, 3 << 20)], ids=["qcow2", "raw"]
)
def test_takes_an_image_in(engine: ComputeEngine, tmp_path: Path, content: bytes, kind: ImageFormat, size: int) -> None:
    arrived = tmp_path / "named.iso"
    arrived.write_bytes(content)
    found = engine.inspect_image(arrived)
    assert (found.format, found.virtual_size_bytes, found.file_size_bytes) == (kind, size, len(content))
    assert found.sha256 == hashlib.sha256(content).hexdigest()
    assert not engine.has_image("ami-arrived0")
    assert engine.ensure_image("ami-arrived0", arrived) == found
    assert engine.has_image("ami-arrived0")
    # Again, as after a worker died: with the file there, and with the file gone.
    arrived.write_bytes(content)
    assert engine.ensure_image("ami-arrived0", arrived) == found
    arrived.unlink(missing_ok=True)
    assert engine.ensure_image("ami-arrived0", arrived) == found
    engine.remove_image("ami-arrived0")
    assert not engine.has_image("ami-arrived0")


HOSTILE_IMAGES = {
    "empty": b"",
    "text": b"#!/bin/sh\necho I am no disk\n",
    "garbage": bytes(range(256)) * 8192,
    "odd-raw": raw_image()[:-100],
    "header-only": qcow2_header(),
    "cut-short": qcow2_image()[: 3 << 16],
    "backing-file": qcow2_image(backing=168),
    "data-file": qcow2_image(features=1 << 2),
    "encrypted": qcow2_image(encryption=2),
    "snapshots": qcow2_image(snapshots=2),
    "no-size": qcow2_image(size=0),
    "old-version": qcow2_image(version=1),
    "vmdk": b"KDMV\x01\0\0\0".ljust(1 << 20, b"\0"),
}


@pytest.mark.parametrize("content", HOSTILE_IMAGES.values(), ids=HOSTILE_IMAGES)
def test_refuses_an_image_that_is_not_sound(engine: ComputeEngine, tmp_path: Path, content: bytes) -> None:
    arrived = tmp_path / "good.qcow2"
    arrived.write_bytes(content)
    for take in (engine.inspect_image, lambda path: engine.ensure_image("ami-hostile0", path)):
        with pytest.raises(EngineRefused) as refusal:
            take(arrived)
        assert str(tmp_path) not in refusal.value.message
    assert not engine.has_image("ami-hostile0")


def test_refuses_a_link_for_an_image(engine: ComputeEngine, tmp_path: Path) -> None:
    target, arrived = tmp_path / "target", tmp_path / "arrived"
    target.write_bytes(qcow2_image())
    arrived.symlink_to(target)
    with pytest.raises(EngineRefused):
        engine.inspect_image(arrived)


def test_an_image_must_fit_on_the_disk(host: Host, engine: ComputeEngine, tmp_path: Path) -> None:
    arrived = tmp_path / "large"
    arrived.write_bytes(qcow2_image(size=3 * GIB))
    engine.ensure_image("ami-large000", arrived)
    with pytest.raises(EngineRefused, match="does not fit"):
        engine.ensure_disk(host.spec(image_id="ami-large000", root_disk_gib=2))
    engine.ensure_disk(spec := host.spec(image_id="ami-large000", root_disk_gib=3))
    engine.remove_machine(spec.machine_id)
    engine.remove_image("ami-large000")


# -- ids -------------------------------------------------------------------------------------------------------------------------------------

HOSTILE_IDS = [
    "",
    ".",
    "..",
    "../../etc",
    "i-1/../../x",
    "/etc/passwd",
    "i-1\n",
    "i-1\0",
    "I-1",
    "i_1",
    "i-%2e",
    "i-" + "a" * 100,
    "i-ä",
    "-",
    "i-1.new",
]
BY_MACHINE: dict[str, Callable[[Host, str], object]] = {
    "ensure_disk": lambda host, name: host.engine.ensure_disk(replace(host.spec(), machine_id=name)),
    "ensure_seed": lambda host, name: host.engine.ensure_seed(replace(host.spec(), machine_id=name)),
    "ensure_defined": lambda host, name: host.engine.ensure_defined(replace(host.spec(), machine_id=name)),
    "ensure_interfaces": lambda host, name: host.engine.ensure_interfaces(replace(host.spec(), machine_id=name)),
    "ensure_running": lambda host, name: host.engine.ensure_running(name),
    "ensure_stopped": lambda host, name: host.engine.ensure_stopped(name, graceful_timeout_s=0),
    "remove_disk": lambda host, name: host.engine.remove_disk(name),
    "remove_machine": lambda host, name: host.engine.remove_machine(name),
    "machine_state": lambda host, name: host.engine.machine_state(name),
    "log_tail": lambda host, name: host.console.log_tail(name, max_bytes=10),
    "open_serial": lambda host, name: host.console.open_serial(name),
    "open_display": lambda host, name: host.console.open_display(name),
    "ensure_builtin_image": lambda host, name: host.engine.ensure_builtin_image(name),
    "has_image": lambda host, name: host.engine.has_image(name),
    "remove_image": lambda host, name: host.engine.remove_image(name),
    "disk-of-image": lambda host, name: host.engine.ensure_disk(host.spec(image_id=name)),
}


@pytest.mark.parametrize("method", BY_MACHINE)
def test_refuses_ids_that_could_lead_elsewhere(host: Host, method: str) -> None:
    for name in HOSTILE_IDS:
        with pytest.raises(EngineRefused):
            BY_MACHINE[method](host, name)
    assert host.engine.machines() == {}
