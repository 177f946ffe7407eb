"""A worker dies between moving a volume's link and switching the running machine: the guest notices nothing, and nothing that it wrote is lost."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from portal.engines.local.disks import Disks
from portal.engines.local.hypervisor import Hypervisor
from portal.engines.ports import MachineSpec, MachineState, MachineVolume
from tests.integration.test_local_volumes import device, given
from tests.support.hosts import TINY, Host, local_host, why_no_local_host

pytestmark = [pytest.mark.vm, pytest.mark.skipif(why_no_local_host() != "", reason=why_no_local_host() or "guests run here")]
SNAP = "snap-000000000001"


class Death(BaseException):
    """What no handler of the driver's stops."""


@pytest.fixture(scope="module")
def installation() -> Iterator[Host]:
    with local_host() as host:
        host.engine.ensure_builtin_image(TINY)
        yield host


@pytest.fixture
def host(installation: Host) -> Iterator[Host]:
    yield installation
    installation.clear()


def put(host: Host, spec: MachineSpec, name: str, place: int, letter: str) -> None:
    """Let the guest write a letter, safely."""
    host.run(spec, f"printf {letter} | dd of={name} bs=1 seek={place}M conv=notrunc,fsync")


def letters(host: Host, volume_id: str) -> str:
    return "".join(host.read(volume_id, place) or "-" for place in range(4))


@pytest.fixture
def interrupted(host: Host, monkeypatch: pytest.MonkeyPatch) -> Callable[[], tuple[MachineSpec, str, str]]:
    """A machine with a volume whose snapshot was begun; the guest wrote before, and writes on."""

    def begin() -> tuple[MachineSpec, str, str]:
        data = host.volume().volume_id
        spec = host.booted()
        name = given(host, spec, MachineVolume(data))
        put(host, spec, name, 0, "a")

        def die(*_arguments: object) -> None:
            raise Death

        with monkeypatch.context() as patch:
            patch.setattr(Disks, "switch", die)
            with pytest.raises(Death):
                host.volumes.ensure_snapshot(SNAP, data)
        put(host, spec, name, 1, "b")
        return replace(spec, volumes=[MachineVolume(data)]), data, name

    return begin


def test_the_next_worker_takes_the_snapshot(host: Host, interrupted: Callable[[], tuple[MachineSpec, str, str]]) -> None:
    spec, data, name = interrupted()
    host.volumes.ensure_snapshot(SNAP, data)
    put(host, spec, name, 2, "c")
    host.engine.ensure_stopped(spec.machine_id, graceful_timeout_s=0)
    assert letters(host, data) == "abc-"
    host.volumes.restore(data, SNAP)
    assert letters(host, data) == "ab--"


def test_the_next_worker_gives_it_up(host: Host, interrupted: Callable[[], tuple[MachineSpec, str, str]]) -> None:
    spec, data, name = interrupted()
    host.volumes.remove_snapshot(SNAP)
    host.volumes.ensure_size(data, 2)
    put(host, spec, name, 2, "c")
    host.volumes.ensure_snapshot("snap-000000000002", data)
    put(host, spec, name, 3, "d")
    host.engine.ensure_stopped(spec.machine_id, graceful_timeout_s=0)
    host.volumes.compact()
    assert letters(host, data) == "abcd"
    host.volumes.restore(data, "snap-000000000002")
    assert letters(host, data) == "abc-"


@pytest.fixture
def dying(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`dying(what, call)`: a worker dies right before a method of the driver's, or right after it."""

    def die_in(owner: type, method: str, call: Callable[[], object], *, before: bool) -> None:
        real = getattr(owner, method)

        def die(*arguments: object, **options: object) -> None:
            if not before:
                real(*arguments, **options)
            raise Death

        with monkeypatch.context() as patch:
            patch.setattr(owner, method, die)
            with pytest.raises(Death):
                call()

    return die_in


@pytest.mark.parametrize("before", [True, False])
def test_in_the_middle_of_attaching_and_detaching(host: Host, dying: Callable[..., None], before: bool) -> None:
    data = host.volume().volume_id
    spec = host.booted()
    having = replace(spec, volumes=[MachineVolume(data)])
    dying(Disks, "plug", lambda: host.engine.ensure_volumes(having), before=before)
    name = given(host, spec, MachineVolume(data))
    put(host, spec, name, 0, "a")
    dying(Disks, "unplug", lambda: host.engine.ensure_volumes(spec), before=before)
    host.engine.ensure_volumes(spec)
    assert host.volumes.attached() == {}
    assert letters(host, data) == "a---"
    name = given(host, spec, MachineVolume(data))
    put(host, spec, name, 1, "b")
    # Its machine is off by the time the next worker comes to it.
    host.engine.ensure_stopped(spec.machine_id, graceful_timeout_s=0)
    host.engine.ensure_volumes(spec)
    host.volumes.ensure_snapshot(SNAP, data)
    assert letters(host, data) == "ab--"


@pytest.mark.parametrize("before", [True, False])
def test_in_the_middle_of_taking_it_by_force(host: Host, dying: Callable[..., None], before: bool) -> None:
    data = host.volume().volume_id
    spec = host.booted()
    name = given(host, spec, MachineVolume(data))
    put(host, spec, name, 0, "a")
    host.engine.host.hypervisor().find(spec.machine_id).suspend()  # type: ignore[attr-defined] # the local engine
    dying(Hypervisor, "pull_plug", lambda: host.engine.ensure_volumes(spec, is_forced=True), before=before)
    # Without power the machine counts as crashed, so that it is booted again; whoever comes next takes the volume.
    assert host.engine.machine_state(spec.machine_id) is (MachineState.PAUSED if before else MachineState.CRASHED)
    host.engine.ensure_volumes(spec, is_forced=True)
    host.engine.ensure_running(spec.machine_id)
    host.wait_for(spec, "READY", times=2)
    assert host.volumes.attached() == {}
    host.volumes.ensure_snapshot(SNAP, data)
    assert letters(host, data) == "a---"


def test_the_host_loses_its_power_as_well(host: Host, interrupted: Callable[[], tuple[MachineSpec, str, str]]) -> None:
    spec, data, _ = interrupted()
    host.kill_outside(spec.machine_id)
    host.engine.ensure_running(spec.machine_id)
    host.wait_for(spec, "READY", times=2)
    put(host, spec, device(host, spec, data), 2, "c")
    host.engine.ensure_stopped(spec.machine_id, graceful_timeout_s=0)
    host.volumes.ensure_snapshot(SNAP, data)
    assert letters(host, data) == "abc-"
