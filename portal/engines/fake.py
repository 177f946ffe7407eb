"""A compute engine that runs nothing: it keeps the rules of the real one, so that a wrong order of steps fails here as it would there.

Its host is a directory; every process that opens it sees the same machines. Tests tell it to fail and look at what was called.
"""

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from socket import socket

from portal.engines.fake_console import open_stream, serve_display, serve_serial
from portal.engines.fake_store import SNAPSHOTS, VOLUMES, FakeCall, FakeMachine, FakeStore
from portal.engines.image_headers import look_into
from portal.engines.ports import (
    Capability,
    ComputeEngine,
    EngineError,
    EngineRefused,
    EngineUnavailable,
    HostCapacity,
    ImageFormat,
    ImageInfo,
    MachineSample,
    MachineSpec,
    MachineState,
    Shortage,
    VolumeSample,
)

GIB = 1 << 30
MIB = 1 << 20
MAX_USER_DATA_BYTES = 16 * 1024
BUILTIN = ImageInfo(ImageFormat.QCOW2, 64 * MIB, 8 * MIB, "0" * 64)
HOST = HostCapacity(cpus=64, memory_mib=1 << 20, disk_total_gib=10_000, disk_free_gib=10_000, accelerator="fake")


class FakeCompute:
    """ComputeEngine and ConsoleAccess over a directory."""

    def __init__(self, root: Path) -> None:
        """`root` is made if it is not there."""
        self._store = FakeStore(root)

    # -- what tests do to it -----------------------------------------------------------------------------------------------------------------

    def fail_next(self, method: str, error: EngineError | None = None, times: int = 1) -> None:
        """Let the next `times` calls of a method fail, in whichever process they are made."""
        if method not in dir(ComputeEngine):
            raise AttributeError(f"a compute engine has no method {method}")
        self._store.plan_failure(method, error or EngineError("The fake engine was told to fail."), times)

    def outside_kill(self, machine_id: str) -> None:
        """End a running machine as if somebody had killed its process on the host."""
        with self._store.locked():
            machine = self._store.machine(machine_id)
            if machine.state is MachineState.RUNNING:
                self._store.save_machine(replace(machine, power=MachineState.CRASHED))

    def deafen(self, machine_id: str) -> None:
        """Let a guest answer nothing more until it is booted anew."""
        with self._store.locked():
            self._store.save_machine(replace(self._store.machine(machine_id), is_deaf=True))

    def taps_of(self, machine_id: str) -> Sequence[str]:
        """The taps that a machine's network cards are connected to."""
        return self._store.machine(machine_id).taps

    def volumes_of(self, machine_id: str) -> Sequence[str]:
        """The volumes that a machine has."""
        return self._store.machine(machine_id).volumes

    def calls(self) -> Sequence[FakeCall]:
        """Every call of the engine by any process, oldest first."""
        return self._store.calls()

    # -- the host ----------------------------------------------------------------------------------------------------------------------------

    def capability(self) -> Capability:
        """Guests can run here, unless the fake was told otherwise."""
        try:
            with self._store.call("capability"):
                return Capability("compute", available=True, detail="fake: nothing real runs")
        except EngineError as error:
            return Capability("compute", available=False, detail="fake", reason=error.message)

    def capacity(self) -> HostCapacity:
        """A host that is never full."""
        with self._store.call("capacity"):
            return HOST

    # -- images ------------------------------------------------------------------------------------------------------------------------------

    def inspect_image(self, path: Path) -> ImageInfo:
        """Look into a file's header."""
        with self._store.call("inspect_image"):
            return look_into(path)

    def ensure_image(self, image_id: str, path: Path) -> ImageInfo:
        """Remember what the file is, and take it away."""
        with self._store.call("ensure_image", image_id):
            info = self._store.image(image_id)
            if info is None:
                info = look_into(path)
                self._store.save_image(image_id, info)
            path.unlink(missing_ok=True)
            return info

    def ensure_builtin_image(self, image_id: str) -> ImageInfo:
        """Remember that the builtin image is there."""
        with self._store.call("ensure_builtin_image", image_id):
            info = self._store.image(image_id) or BUILTIN
            self._store.save_image(image_id, info)
            return info

    def has_image(self, image_id: str) -> bool:
        """Whether the image is remembered."""
        with self._store.call("has_image", image_id):
            return self._store.image(image_id) is not None

    def remove_image(self, image_id: str) -> None:
        """Forget an image that no disk is based on."""
        with self._store.call("remove_image", image_id):
            of_volumes = [volume.image_id for volume in (*self._store.contents(VOLUMES), *self._store.contents(SNAPSHOTS))]
            if image_id in of_volumes or any(machine.disk_gib and machine.image_id == image_id for machine in self._store.machines()):
                raise EngineRefused("Disks of machines are based on this image. Remove these machines first.")
            self._store.forget_image(image_id)

    # -- machines ----------------------------------------------------------------------------------------------------------------------------

    def ensure_disk(self, spec: MachineSpec) -> None:
        """Remember the disk and its size; it only grows."""
        with self._store.call("ensure_disk", spec.machine_id):
            machine, image = self._store.machine(spec.machine_id), self._store.image(spec.image_id)
            if machine.disk_gib == 0:
                if image is None:
                    raise EngineRefused("The image is not in this host's store.")
                if image.virtual_size_bytes > spec.root_disk_gib * GIB:
                    raise EngineRefused(f"The image does not fit on a disk of {spec.root_disk_gib} GiB.")
                machine = replace(machine, image_id=spec.image_id)
            self._store.save_machine(replace(machine, disk_gib=max(machine.disk_gib, spec.root_disk_gib)))

    def ensure_seed(self, spec: MachineSpec) -> None:
        """Remember that the guest has its first-boot data."""
        with self._store.call("ensure_seed", spec.machine_id):
            if len(spec.user_data.encode()) > MAX_USER_DATA_BYTES:
                raise EngineRefused("User data is larger than 16 KiB.")
            self._store.save_machine(replace(self._store.machine(spec.machine_id), is_seeded=True))

    def ensure_defined(self, spec: MachineSpec) -> None:
        """Remember vCPU and memory of a stopped machine."""
        with self._store.call("ensure_defined", spec.machine_id):
            machine = self._store.machine(spec.machine_id)
            taps = machine.taps if machine.state is MachineState.RUNNING else tuple(card.tap for card in spec.interfaces)
            volumes = machine.volumes if machine.state is MachineState.RUNNING else self._volumes(spec)
            wanted = replace(machine, vcpus=spec.vcpus, memory_mib=spec.memory_mib, hostname=spec.hostname, taps=taps, volumes=volumes)
            wanted = replace(wanted, root=spec.root.volume_id if spec.root is not None and spec.root.volume_id in volumes else "")
            if machine.state is MachineState.RUNNING and (machine.vcpus, machine.memory_mib) != (wanted.vcpus, wanted.memory_mib):
                raise EngineRefused("vCPU and memory of a running machine cannot be changed. Stop it first.")
            self._store.save_machine(wanted)

    def ensure_interfaces(self, spec: MachineSpec) -> None:
        """Remember the network cards of a machine that was defined."""
        with self._store.call("ensure_interfaces", spec.machine_id):
            machine = self._store.machine(spec.machine_id)
            if not machine.is_defined:
                raise EngineRefused("The machine is not defined on this host.")
            if machine.state is MachineState.RUNNING and spec.interfaces and not machine.taps:
                raise EngineRefused("The machine was started outside any network. Stop it first.")
            self._store.save_machine(replace(machine, taps=tuple(card.tap for card in spec.interfaces)))

    def ensure_volumes(self, spec: MachineSpec, *, is_forced: bool = False) -> bool:
        """Remember the volumes of a machine that was defined."""
        with self._store.call("ensure_volumes", spec.machine_id):
            machine = self._store.machine(spec.machine_id)
            if not machine.is_defined:
                raise EngineRefused("The machine is not defined on this host.")
            volumes = self._volumes(spec)
            holds_on = machine.is_deaf and machine.state is MachineState.RUNNING and not set(machine.volumes) <= set(volumes)
            if holds_on and not is_forced:
                raise EngineError("The guest has not let go of the volume yet. Unmount it there first.")
            if holds_on:
                machine = replace(machine, is_deaf=False, booted_at_s=time.time())
            self._store.save_machine(replace(machine, volumes=volumes))
            return holds_on

    def _volumes(self, spec: MachineSpec) -> Sequence[str]:
        there = {each.volume_id for each in spec.volumes if self._store.content(VOLUMES, each.volume_id) is not None}
        if not {each.volume_id for each in spec.data} <= there:
            raise EngineRefused("The volume is not on this host.")
        return tuple(each.volume_id for each in spec.volumes if each.volume_id in there)

    def ensure_running(self, machine_id: str) -> None:
        """Let a machine run that has everything it needs."""
        with self._store.call("ensure_running", machine_id):
            machine = self._store.machine(machine_id)
            if not machine.is_defined:
                raise EngineRefused("The machine is not defined on this host.")
            if machine.state is MachineState.RUNNING:
                return
            has_disk = bool(machine.disk_gib or machine.root)
            if not has_disk or not machine.is_seeded:
                raise EngineRefused(f"The machine has no {'first-boot data' if has_disk else 'root disk'}.")
            if any(self._store.content(VOLUMES, each) is None for each in machine.volumes):
                raise EngineRefused("The volume is not on this host.")
            self._store.save_machine(replace(machine, power=MachineState.RUNNING, booted_at_s=time.time(), is_deaf=False))
            self._print(machine_id, f"Booting {machine_id}\r\natonix-init: READY hostname={machine.hostname}\r\n")

    def ensure_stopped(self, machine_id: str, *, graceful_timeout_s: float) -> None:
        """Stop a machine; fake guests obey at once."""
        with self._store.call("ensure_stopped", machine_id):
            machine = self._store.machine(machine_id)
            if not machine.is_defined or machine.power is MachineState.STOPPED:
                return
            if graceful_timeout_s > 0 and machine.power is MachineState.RUNNING:
                self._print(machine_id, "reboot: Power down\r\n")
            self._store.save_machine(replace(machine, power=MachineState.STOPPED))

    def remove_disk(self, machine_id: str) -> None:
        """Forget the disk of a machine that does not run."""
        with self._store.call("remove_disk", machine_id):
            machine = self._store.machine(machine_id)
            if machine.state is MachineState.RUNNING:
                raise EngineRefused("The disk of a running machine cannot be removed. Stop it first.")
            if machine.disk_gib:
                self._store.save_machine(replace(machine, disk_gib=0, image_id=""))

    def remove_machine(self, machine_id: str) -> None:
        """Forget everything about a machine."""
        with self._store.call("remove_machine", machine_id):
            self._store.forget_machine(machine_id)

    def machine_state(self, machine_id: str) -> MachineState:
        """What is remembered of a machine."""
        with self._store.call("machine_state", machine_id):
            return self._store.machine(machine_id).state

    def machines(self) -> Mapping[str, MachineState]:
        """All machines that were defined."""
        with self._store.call("machines"):
            return {machine.machine_id: machine.state for machine in self._store.machines() if machine.is_defined}

    def cut_off(self) -> Collection[str]:
        """Machines run as long as nobody takes their cards away."""
        with self._store.call("cut_off"):
            return ()

    def shortages(self) -> Mapping[str, Shortage]:
        """Nothing is written here, so nothing runs full."""
        with self._store.call("shortages"):
            return {}

    def samples(self) -> Sequence[MachineSample]:
        """Counters that grow with the time since boot."""
        with self._store.call("samples"):
            taken_at_s = time.time()
            return [_sample(machine, taken_at_s) for machine in self._store.machines() if machine.state is MachineState.RUNNING]

    def close(self) -> None:
        """Nothing is held open."""

    # -- consoles ----------------------------------------------------------------------------------------------------------------------------

    def log_tail(self, machine_id: str, *, max_bytes: int) -> bytes:
        """What the fake guest printed."""
        path = self._store.log_path(machine_id)
        return path.read_bytes()[-max_bytes:] if path.exists() and max_bytes > 0 else b""

    def open_serial(self, machine_id: str) -> socket:
        """A terminal that echoes."""
        hostname = self._running(machine_id).hostname
        return open_stream(lambda stream: serve_serial(stream, hostname))

    def open_display(self, machine_id: str) -> socket:
        """A display without pictures."""
        self._running(machine_id)
        return open_stream(lambda stream: serve_display(stream, machine_id))

    def _running(self, machine_id: str) -> FakeMachine:
        machine = self._store.machine(machine_id)
        if machine.state is not MachineState.RUNNING:
            raise EngineUnavailable("The machine is not running.")
        return machine

    def _print(self, machine_id: str, text: str) -> None:
        with self._store.log_path(machine_id).open("ab") as log:
            log.write(text.encode())


def _volume_sample(volume_id: str, up_s: float) -> VolumeSample:
    return VolumeSample(volume_id, int(up_s), int(2 * up_s), int(4096 * up_s), int(8192 * up_s), int(up_s * 4e5), int(up_s * 2e6))


def _sample(machine: FakeMachine, taken_at_s: float) -> MachineSample:
    up_s = taken_at_s - machine.booted_at_s
    memory = machine.memory_mib * MIB
    return MachineSample(
        machine_id=machine.machine_id, taken_at_s=taken_at_s, cpu_time_ns=int(up_s * machine.vcpus * 0.2 * 1e9), vcpus=machine.vcpus,
        memory_total_bytes=memory, memory_used_bytes=memory // 3, disk_capacity_bytes=machine.disk_gib * GIB,
        disk_allocated_bytes=int(min(machine.disk_gib * GIB, 16 * MIB + up_s * 1024)), disk_read_bytes=int(4 * MIB + up_s * 4096),
        disk_write_bytes=int(up_s * 8192), net_in_bytes=int(up_s * 2048), net_out_bytes=int(up_s * 1024),
        volumes=[_volume_sample(each, up_s) for each in machine.volumes],
    )  # fmt: skip
