"""Compute engines under test: the fake one, and the real one on this host, behind what tests do to both.

`python -m tests.support.hosts DATA_DIR` removes every machine and network that engines of an installation made: for tests whose portal ran elsewhere.
"""

import atexit
import functools
import os
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from portal.engines.fake import FakeCompute
from portal.engines.fake_volumes import FakeVolumes
from portal.engines.local import LocalCompute, LocalConsole
from portal.engines.local.network.engine import LocalNetwork
from portal.engines.local.qemu_img import Lock
from portal.engines.local.requirements import missing_piece
from portal.engines.local.volume_store import lock_of
from portal.engines.local.volumes import LocalVolumes
from portal.engines.ports import ComputeEngine, ConsoleAccess, MachineSpec
from portal.engines.volume_ports import Kept, VolumeEngine, VolumeSpec
from portal.settings import POOLS
from tests.support.servers import until

TINY = "atonix-tiny"
GIB = 1 << 30
ROOT = Path(__file__).parents[2]
READY_S = 90


def qcow2_header(*, size: int = GIB, backing: int = 0, encryption: int = 0, snapshots: int = 0, features: int = 0, version: int = 3) -> bytes:
    """The header of a qcow2 image with what a test wants in it; its tables follow in the next clusters."""
    cluster = 1 << 16
    tables = -(-size // (cluster * cluster // 8))
    return struct.pack(
        ">4sIQIIQIIQQIIQQQQII", b"QFI\xfb", version, backing, 11 if backing else 0, 16, size, encryption, tables, 3 * cluster, cluster, 1, snapshots,
        0, features, 0, 0, 4, 104,
    )  # fmt: skip


def qcow2_image(**header: int) -> bytes:
    """A whole image with nothing on it."""
    cluster = 1 << 16
    counts = struct.pack(">Q", 2 * cluster).ljust(cluster, b"\0") + (b"\0\x01" * 4).ljust(cluster, b"\0")
    head = qcow2_header(**header)
    named = head + b"\0" * 64 + b"/etc/shadow" if header.get("backing") else head
    return named.ljust(cluster, b"\0") + counts + b"\0" * cluster


def raw_image(mib: int = 1) -> bytes:
    """A disk with a boot sector that does nothing."""
    return b"\xeb\xfe".ljust(510, b"\0") + b"\x55\xaa" + b"\0" * ((mib << 20) - 512)


@dataclass
class Host:
    """One engine with its consoles, and what can be done to its host from outside."""

    name: str
    engine: ComputeEngine
    console: ConsoleAccess
    kill_outside: Callable[[str], None]
    reopen: Callable[[], ComputeEngine]
    volumes: VolumeEngine
    # What a guest would write to a volume that no machine has, and read: a letter, at a place.
    write: Callable[[str, int, str], None]
    read: Callable[[str, int], str]
    made: list[str] = field(default_factory=list)

    @property
    def is_real(self) -> bool:
        """Whether guests boot."""
        return self.name == "local"

    def spec(self, **changes: Any) -> MachineSpec:
        """What a small machine is; each call names another one."""
        machine_id = f"i-{uuid.uuid4().hex[:12]}"
        self.made.append(machine_id)
        given = {"machine_id": machine_id, "hostname": "web-1", "vcpus": 1, "memory_mib": 192, "root_disk_gib": 1, "image_id": TINY}
        return MachineSpec(**{**given, **changes})

    def prepared(self, **changes: Any) -> MachineSpec:
        """A machine that is ready to be started."""
        spec = self.spec(**changes)
        self.engine.ensure_disk(spec)
        self.engine.ensure_seed(spec)
        self.engine.ensure_defined(spec)
        return spec

    def running(self, **changes: Any) -> MachineSpec:
        """A machine that was started; its guest may still be booting."""
        spec = self.prepared(**changes)
        self.engine.ensure_running(spec.machine_id)
        return spec

    def booted(self, **changes: Any) -> MachineSpec:
        """A machine whose guest has come up."""
        spec = self.running(**changes)
        self.wait_for(spec, "READY")
        return spec

    def wait_for(self, spec: MachineSpec, text: str, times: int = 1) -> None:
        """Wait until the machine has printed something that often."""
        until(lambda: self.log(spec).count(text) >= times, within_s=READY_S, what=f"{text} on the console")

    def log(self, spec: MachineSpec) -> str:
        """Everything that the machine printed."""
        return self.console.log_tail(spec.machine_id, max_bytes=1 << 20).decode(errors="replace")

    def type(self, spec: MachineSpec, line: str, answer: bytes) -> bytes:
        """Type a line on the serial console until it is answered."""
        heard = b""
        with self.console.open_serial(spec.machine_id) as stream:
            stream.settimeout(1)
            for _ in range(READY_S):
                stream.sendall(f"{line}\n".encode())
                try:
                    while answer not in heard:
                        heard += stream.recv(4096)
                except TimeoutError:
                    continue  # the login may just be coming up
                return heard
        raise AssertionError(f"no answer on the serial console, heard {heard!r}")

    def run(self, spec: MachineSpec, command: str) -> bytes:
        """Run a command in the guest, once; gives what the console said meanwhile."""
        self.type(spec, "echo at-the-pro''mpt", b"at-the-prompt")
        heard = b""
        with self.console.open_serial(spec.machine_id) as stream:
            stream.settimeout(READY_S)
            # Quotes, so that the command's echo is not taken for its end.
            stream.sendall(f"{command}; echo it-is-do''ne\n".encode())
            while b"it-is-done" not in heard:
                heard += stream.recv(4096)
        return heard

    def volume(self, **changes: Any) -> VolumeSpec:
        """A volume that was made; each call makes another one."""
        spec = VolumeSpec(**{"volume_id": f"vol-{uuid.uuid4().hex[:12]}", "pool": "ssd", "size_gib": 1, **changes})
        self.volumes.ensure_volume(spec)
        return spec

    def clear(self) -> None:
        """Remove every machine, volume and snapshot that was made."""
        while self.made:
            self.engine.remove_machine(self.made.pop())
        for each in self.volumes.kept():
            if each.kind is Kept.VOLUME:
                self.volumes.remove_volume(each.content_id)
            else:
                self.volumes.remove_snapshot(each.content_id)


def fake_host(root: Path) -> Host:
    """The fake engine; another process's view of it is another object."""
    fake = FakeCompute(root)
    volumes = FakeVolumes(root, POOLS)
    return Host("fake", fake, fake, fake.outside_kill, lambda: FakeCompute(root), volumes, volumes.write, volumes.read)


def why_no_local_host() -> str:
    """Why guests cannot run on this machine; empty if they can."""
    return missing_piece()


def process_of(machine_id: str) -> int:
    """The process that runs a machine."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (folder / "cmdline").read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if arguments[0].endswith(b"qemu-system-x86_64") and any(
            f"guest={machine_id}," in argument.decode(errors="replace") for argument in arguments
        ):
            return int(folder.name)
    raise AssertionError(f"no process runs {machine_id}")


@functools.cache
def process_directory() -> Path:
    """DATA_DIR of this process's engine: libvirt's embedded driver opens one directory in the life of a process."""
    folder = Path(tempfile.mkdtemp(prefix="portal-engine-"))
    # Guests may run as another user, who must be able to pass.
    folder.chmod(0o711)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@contextmanager
def local_host() -> Iterator[Host]:
    """The real engine in this process's directory; afterwards nothing of it runs."""
    data_dir = process_directory()
    engine = LocalCompute(data_dir, pools={name: data_dir / "pools" / name for name in POOLS})
    volumes = LocalVolumes(engine.host)

    def write(volume_id: str, place: int, letter: str) -> None:
        disk = engine.host.volumes.disk(volume_id)
        _qemu_io(f"write -P {ord(letter)} {place}M 64k", disk, lock_of(disk, lambda: engine.host.key_of(volume_id)))

    def read(volume_id: str, place: int) -> str:
        disk = engine.host.volumes.disk(volume_id)
        shown = _qemu_io(f"read -v {place}M 1", disk, lock_of(disk, lambda: engine.host.key_of(volume_id))).splitlines()[0]
        return chr(int(shown.split()[1], 16)).strip("\0")

    def reopen() -> LocalCompute:
        engine.close()
        return engine

    def kill(machine_id: str) -> None:
        os.kill(process_of(machine_id), signal.SIGKILL)
        until(lambda: not _is_up(engine, machine_id), within_s=10, what="the hypervisor to notice")

    host = Host("local", engine, LocalConsole(data_dir), kill, reopen, volumes, write, read)
    try:
        yield host
    finally:
        for machine_id in engine.machines():
            engine.remove_machine(machine_id)
        engine.close()


def _qemu_io(command: str, disk: Path, lock: Lock | None) -> str:
    if lock is None:
        return subprocess.run(["qemu-io", "-f", "qcow2", "-c", command, str(disk)], capture_output=True, text=True, check=True).stdout
    keys = "".join(f",{'backing.' * depth}encrypt.key-secret=key" for depth in range(lock.depth))
    secret, opened = f"secret,id=key,data={lock.key.decode()}", f"driver=qcow2,file.driver=file,file.filename={disk}{keys}"
    return subprocess.run(["qemu-io", "--object", secret, "-c", command, "--image-opts", opened], capture_output=True, text=True, check=True).stdout


def _is_up(engine: ComputeEngine, machine_id: str) -> bool:
    return engine.machine_state(machine_id).value == "running"


OWNER = """
import sys
from pathlib import Path
from portal.engines.local import LocalCompute
from portal.engines.ports import MachineSpec
engine = LocalCompute(Path(sys.argv[1]))
spec = MachineSpec(sys.argv[2], "adopted", 1, 192, 1, "atonix-tiny")
for line in sys.stdin:
    match line.strip():
        case "start":
            engine.ensure_builtin_image(spec.image_id)
            engine.ensure_disk(spec)
            engine.ensure_seed(spec)
            engine.ensure_defined(spec)
            engine.ensure_running(spec.machine_id)
        case "stop":
            engine.ensure_stopped(spec.machine_id, graceful_timeout_s=30)
        case "remove":
            engine.remove_machine(spec.machine_id)
    print(engine.machine_state(spec.machine_id).value, flush=True)
engine.close()
"""


class EngineProcess:
    """Another process that owns an engine and does with one machine what it is told: it may be killed at any moment."""

    def __init__(self, data_dir: Path, machine_id: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", OWNER, str(data_dir), machine_id], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, verb: str) -> str:
        """Have something done; gives the machine's state afterwards."""
        if self._process.stdin is None or self._process.stdout is None:
            raise AssertionError("the engine's process has no pipes")
        self._process.stdin.write(f"{verb}\n")
        self._process.stdin.flush()
        return self._process.stdout.readline().strip()

    def kill(self) -> None:
        """SIGKILL, in the middle of whatever it does."""
        self._process.kill()
        self.__exit__()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._process.communicate(timeout=30)


def remove_machines(data_dir: Path) -> None:
    """Remove what engines made that this process does not own, in a process that may open its directory."""
    subprocess.run([sys.executable, "-m", "tests.support.hosts", str(data_dir)], cwd=ROOT, check=True, timeout=60)


def clear(data_dir: Path) -> None:
    """Remove every machine and network of an installation."""
    machines, networks = LocalCompute(data_dir), LocalNetwork(data_dir)
    for machine_id in machines.machines():
        machines.remove_machine(machine_id)
    machines.close()
    for vpc_id in networks.vpcs():
        networks.remove_vpc(vpc_id)
    networks.close()


if __name__ == "__main__":
    clear(Path(sys.argv[1]))
