"""What the portal asks of the machinery underneath, one small Protocol per capability.

Plain frozen dataclasses go in and out, units stand in the names. A driver imports this module and its client libraries, never Flask and never
SQLAlchemy. Every `ensure_*` and `remove_*` may be called again at any time with the same arguments: the second call finds its work done.
`remove_*` treats "absent" as success.
"""

import hashlib
import socket
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from portal.engines.network_ports import NetworkEngine
    from portal.engines.object_engine_ports import ObjectEngine
    from portal.engines.object_ports import BlobStore
    from portal.engines.volume_ports import VolumeEngine


class EngineError(Exception):
    """An engine could not do what it was asked; `retryable` says whether asking again can help."""

    retryable = True

    def __init__(self, message: str) -> None:
        """`message` is shown to users: what failed and why, without secrets and host paths."""
        super().__init__(message)
        self.message = message


class EngineUnavailable(EngineError):
    """The engine is not there at all: not installed, not configured, not reachable."""


class EngineRefused(EngineError):
    """The engine understood and will not do it, however often it is asked: corrupt image, no room on the host."""

    retryable = False


@dataclass(frozen=True, slots=True)
class Capability:
    """Whether an engine can work on this installation and, if not, why and which command would add it."""

    name: str
    available: bool
    detail: str
    reason: str = ""
    remedy: str = ""


class MachineState(StrEnum):
    """What the hypervisor says of a machine."""

    ABSENT = "absent"
    STOPPED = "stopped"
    RUNNING = "running"
    PAUSED = "paused"
    CRASHED = "crashed"


@dataclass(frozen=True, slots=True)
class Shortage:
    """Where a paused machine could not write (a pool, or "" for the host's own disk), and whether there is room again."""

    pool: str
    has_room: bool


class ImageFormat(StrEnum):
    """Disk image formats that are accepted, as `qemu-img` names them."""

    QCOW2 = "qcow2"
    RAW = "raw"


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """What is really in a disk image file, as found by looking into it, never taken from its name."""

    format: ImageFormat
    virtual_size_bytes: int
    file_size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class MachineInterface:
    """A network card of a machine, and the tap device that it is connected to."""

    port_id: str
    mac: str
    tap: str


def mac_address(machine_id: str) -> str:
    """The address of the network card of a machine outside any network, the same for each definition: a guest keeps to the card that it first saw."""
    tail = hashlib.sha256(machine_id.encode()).hexdigest()[:6]
    return ":".join(("52", "54", "00", tail[0:2], tail[2:4], tail[4:6]))


@dataclass(frozen=True, slots=True)
class MachineVolume:
    """A volume that a machine has, which its guest knows by this id; 0 is no limit. A machine boots from its root volume."""

    volume_id: str
    iops: int = 0
    throughput_mib_s: int = 0
    is_root: bool = False


@dataclass(frozen=True, slots=True)
class MachineSpec:
    """Everything that defines a virtual machine; the same spec always gives the same machine. Without interfaces it has outbound user networking."""

    machine_id: str
    hostname: str
    vcpus: int
    memory_mib: int
    root_disk_gib: int
    image_id: str
    ssh_public_keys: Sequence[str] = ()
    user_data: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    interfaces: Sequence[MachineInterface] = ()
    volumes: Sequence[MachineVolume] = ()

    @property
    def root(self) -> MachineVolume | None:
        """The volume that it boots from; None for a machine with a disk of its own."""
        return next((each for each in self.volumes if each.is_root), None)

    @property
    def data(self) -> Sequence[MachineVolume]:
        """Its other volumes."""
        return [each for each in self.volumes if not each.is_root]


@dataclass(frozen=True, slots=True)
class VolumeSample:
    """Cumulative counters of a volume that a running machine has: since its boot, or since it was given the volume."""

    volume_id: str
    read_ops: int
    write_ops: int
    read_bytes: int
    write_bytes: int
    read_ns: int
    write_ns: int


@dataclass(frozen=True, slots=True)
class MachineSample:
    """Cumulative counters of a running machine since its boot; rates are the difference of two samples."""

    machine_id: str
    taken_at_s: float
    cpu_time_ns: int
    vcpus: int
    memory_total_bytes: int
    memory_used_bytes: int
    disk_capacity_bytes: int
    disk_allocated_bytes: int
    disk_read_bytes: int
    disk_write_bytes: int
    net_in_bytes: int
    net_out_bytes: int
    volumes: Sequence[VolumeSample] = ()


@dataclass(frozen=True, slots=True)
class HostCapacity:
    """What the host has in all; what is promised to instances is the portal's own sum."""

    cpus: int
    memory_mib: int
    disk_total_gib: int
    disk_free_gib: int
    accelerator: str


class ComputeEngine(Protocol):
    """Runs virtual machines on one host. Called by workers only; safe to call from several threads."""

    def capability(self) -> Capability:
        """Say whether guests can run here; never raises, answers within a second after the first call."""
        ...

    def capacity(self) -> HostCapacity:
        """Measure the host. Raises EngineUnavailable."""
        ...

    def inspect_image(self, path: Path) -> ImageInfo:
        """Look into an untrusted file. Raises EngineRefused if it is no sound qcow2 or raw image or refers to other files."""
        ...

    def ensure_image(self, image_id: str, path: Path) -> ImageInfo:
        """Take the file at `path` into the image store under `image_id`; the file may be moved. Raises EngineRefused as inspect_image."""
        ...

    def ensure_builtin_image(self, image_id: str) -> ImageInfo:
        """Build the portal's own tiny guest into the store unless it is there."""
        ...

    def has_image(self, image_id: str) -> bool:
        """Whether the image store holds this image."""
        ...

    def remove_image(self, image_id: str) -> None:
        """Drop an image from the store; machines made from it must be gone."""
        ...

    def ensure_disk(self, spec: MachineSpec) -> None:
        """Make a root disk of the machine's own from the image, or grow it to `root_disk_gib`; never shrinks and never resets an existing disk.

        A machine with a root volume needs none.
        """
        ...

    def ensure_seed(self, spec: MachineSpec) -> None:
        """Write hostname, keys and user-data where the guest finds them at boot (NoCloud)."""
        ...

    def ensure_defined(self, spec: MachineSpec) -> None:
        """Tell the hypervisor about the machine; of a stopped machine, changes what differs."""
        ...

    def ensure_interfaces(self, spec: MachineSpec) -> None:
        """Make the network cards of a machine those of the spec, of a running one as well. Raises EngineRefused if it was never defined."""
        ...

    def ensure_volumes(self, spec: MachineSpec, *, is_forced: bool = False) -> bool:
        """Make the volumes of a machine those of the spec, of a running one as well. Raises EngineRefused if it or a volume is not there.

        If it `is_forced`, a running machine whose guest does not let go of a volume loses its power and is booted without; True if that was needed.
        """
        ...

    def ensure_running(self, machine_id: str) -> None:
        """Start the machine unless it runs. Raises EngineRefused if it was never defined."""
        ...

    def ensure_stopped(self, machine_id: str, *, graceful_timeout_s: float) -> None:
        """Ask the guest to shut down, pull the plug after `graceful_timeout_s`; 0 pulls it at once. An absent machine is stopped."""
        ...

    def remove_disk(self, machine_id: str) -> None:
        """Delete the root disk of a stopped machine."""
        ...

    def remove_machine(self, machine_id: str) -> None:
        """End the machine and delete its definition, disk, seed, logs and sockets."""
        ...

    def machine_state(self, machine_id: str) -> MachineState:
        """State of one machine as the hypervisor sees it."""
        ...

    def machines(self) -> Mapping[str, MachineState]:
        """Every machine the portal made on this host."""
        ...

    def cut_off(self) -> Collection[str]:
        """Running machines with a network card whose tap somebody took away; `ensure_interfaces` plugs it in again once there is one."""
        ...

    def shortages(self) -> Mapping[str, Shortage]:
        """Machines that are paused because there was no room to write to; `ensure_running` lets them go on."""
        ...

    def samples(self) -> Sequence[MachineSample]:
        """Counters of all running machines, taken at one moment."""
        ...

    def close(self) -> None:
        """Let go of the hypervisor; machines go on running."""
        ...


class ConsoleAccess(Protocol):
    """The consoles of machines; needs no privilege, the web process uses it."""

    def log_tail(self, machine_id: str, *, max_bytes: int) -> bytes:
        """The last bytes that the machine wrote to its serial port; empty when it never ran."""
        ...

    def open_serial(self, machine_id: str) -> socket.socket:
        """A stream to the serial port. Raises EngineUnavailable while the machine is off."""
        ...

    def open_display(self, machine_id: str) -> socket.socket:
        """A stream that speaks RFB (VNC). Raises EngineUnavailable while the machine is off."""
        ...


@dataclass(frozen=True, slots=True)
class Engines:
    """The drivers of this installation, as chosen by settings; None where a capability is switched off."""

    compute: ComputeEngine | None = None
    console: ConsoleAccess | None = None
    network: "NetworkEngine | None" = None
    volumes: "VolumeEngine | None" = None
    blobs: "BlobStore | None" = None
    objects: "ObjectEngine | None" = None
