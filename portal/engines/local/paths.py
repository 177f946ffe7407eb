"""Where things lie under DATA_DIR/engine. Every id is checked before it becomes part of a path, so that no path leaves this directory."""

import hashlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

from portal.engines.confinement import checked_id
from portal.engines.ports import EngineUnavailable

# A socket's path holds at most 107 bytes; libvirt's own sockets lie 60 below the directory they are given.
LONGEST_ROOT = 46


@dataclass(frozen=True, slots=True)
class MachineFiles:
    """The files of one machine."""

    folder: Path
    disk: Path
    disk_origin: Path
    seed: Path
    log: Path
    # There from just before a start until the machine was stopped on purpose: a machine that is off beside it was killed.
    should_run: Path
    serial: Path
    display: Path
    sent: Path
    received: Path
    traffic: Path
    hypervisor_log: Path


class LocalPaths:
    """Paths of one installation's engine."""

    def __init__(self, data_dir: Path) -> None:
        """`data_dir` need not exist yet."""
        self.root = data_dir.resolve() / "engine"
        self.images = self.root / "images"
        self.machines = self.root / "machines"
        self.run = self.root / "run"
        self.libvirt = self.root / "libvirt"
        self.libvirt_log = self.root / "libvirt.log"
        self.accelerator = self.root / "accelerator.json"
        self.kernels = (Path("/"), data_dir.resolve() / "guest-kernel")

    @property
    def installation(self) -> str:
        """A word for this installation, by which it knows its own machines on a shared hypervisor."""
        return hashlib.sha256(os.fsencode(self.root)).hexdigest()[:12]

    def make(self) -> None:
        """Make the directories. Others may pass through them, so that guests can run as another user, but see nothing. Raises EngineUnavailable."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            for folder in (self.root, self.images, self.machines, self.run, self.libvirt):
                folder.mkdir(exist_ok=True)
                folder.chmod(0o711)
        except OSError as error:
            raise EngineUnavailable(f"The engine's directory under DATA_DIR cannot be made: {error.strerror}.") from error

    def machine(self, machine_id: str) -> MachineFiles:
        """Where the files of a machine are. Raises EngineRefused for an id that is none."""
        name = checked_id(machine_id)
        folder = self.machines / name
        return MachineFiles(
            folder=folder, disk=folder / "disk.qcow2", disk_origin=folder / "disk.json", seed=folder / "seed.iso", log=folder / "console.log",
            should_run=folder / "should_run", serial=self.run / f"{name}.serial", display=self.run / f"{name}.vnc",
            sent=self.run / f"{name}.sent", received=self.run / f"{name}.received", traffic=folder / "traffic.json",
            hypervisor_log=self.libvirt / "log" / "qemu" / f"{name}.log",
        )  # fmt: skip

    def image(self, image_id: str) -> Path:
        """Where the files of an image are. Raises EngineRefused for an id that is none."""
        return self.images / checked_id(image_id)

    def short_root(self) -> Path:
        """The root under a name that leaves room for sockets below it: itself, or a link to it. Raises EngineUnavailable."""
        if len(os.fsencode(self.root)) <= LONGEST_ROOT:
            return self.root
        parent = Path("/run") if os.access("/run", os.W_OK) else Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir())
        link = parent / f"atonix-{self.installation}"
        try:
            link.symlink_to(self.root)
        except FileExistsError:
            # Somebody else may have put it there.
            if not link.is_symlink() or link.readlink() != self.root or link.lstat().st_uid != os.geteuid():
                raise EngineUnavailable(
                    "The path of DATA_DIR is too long for sockets, and its short name is taken. Choose a shorter DATA_DIR."
                ) from None
        return link
