"""One Linux host as all local drivers share it: its directory, its images and volumes, and one connection to libvirt."""

import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from portal.engines.confinement import checked_id
from portal.engines.local import qemu_img
from portal.engines.local.accelerator import Accelerator, choose
from portal.engines.local.definition import Host, MachineDisk, secret_of
from portal.engines.local.image_store import ImageStore
from portal.engines.local.locks import KeyedLocks
from portal.engines.local.paths import LocalPaths
from portal.engines.local.requirements import REMEDY, missing_piece
from portal.engines.local.volume_store import VolumeStore, below, read_header
from portal.engines.ports import EngineRefused, EngineUnavailable, MachineVolume
from portal.engines.volume_ports import Keyring

if TYPE_CHECKING:
    from portal.engines.local.disks import Disks
    from portal.engines.local.hypervisor import Hypervisor


class LocalHost:
    """What drivers of this host have in common."""

    def __init__(
        self, data_dir: Path, *, accelerator: str = "auto", libvirt_uri: str = "", image_max_gib: int = qemu_img.MOST_GIB,
        pools: Mapping[str, Path],
    ) -> None:  # fmt: skip
        """Open nothing before the first use. `libvirt_uri` names a libvirt of the host's own; empty embeds one in this process.

        `pools` are the directories that volumes live in, by name.
        """
        self.paths = LocalPaths(data_dir)
        self.volumes = VolumeStore(pools)
        self.images = ImageStore(self.paths, self.volumes, most_gib=image_max_gib)
        self.locks = KeyedLocks()
        self.key_of: Keyring = _no_keys
        self._setting, self._uri = accelerator, libvirt_uri
        self._opening = threading.Lock()
        self._hypervisor: Hypervisor | None = None
        self._accelerator: Accelerator | None = None

    def hypervisor(self) -> "Hypervisor":
        """Give the connection, opened anew if it broke. Raises EngineUnavailable."""
        with self._opening:
            if self._hypervisor is not None and not self._hypervisor.is_alive():
                self._hypervisor.close()
                self._hypervisor = None
            if self._hypervisor is None:
                missing = missing_piece()
                if missing:
                    raise EngineUnavailable(f"{missing} {REMEDY}")
                self.paths.make()
                # libvirt reads this when it is loaded; else it would write between the portal's own log lines.
                os.environ.setdefault("LIBVIRT_LOG_OUTPUTS", f"3:file:{self.paths.libvirt_log}")
                # The binding to libvirt is not on every machine.
                from portal.engines.local.hypervisor import Hypervisor

                self._hypervisor = Hypervisor(self.paths, self._uri)
                self._hypervisor.count_traffic(on=True)
            return self._hypervisor

    def disks(self) -> "Disks":
        """What is done to the disks of machines. Raises EngineUnavailable."""
        hypervisor = self.hypervisor()
        from portal.engines.local.disks import Disks

        return Disks(hypervisor)

    def machine_disk(self, volume: MachineVolume) -> MachineDisk:
        """A volume as machines are told about it. Raises EngineRefused if it is not there."""
        file = self.volumes.disk(volume.volume_id)
        is_encrypted = read_header(file).is_encrypted
        return MachineDisk(volume, file, secret_of(volume.volume_id) if is_encrypted else "", tuple(below(file)) if is_encrypted else ())

    def unlocked(self, volume_ids: Iterable[str]) -> AbstractContextManager[None]:
        """Let libvirt have the passphrases of those of the volumes that are encrypted, for as long as it opens them. Raises EngineRefused."""
        encrypted = [each for each in volume_ids if read_header(self.volumes.disk(each)).is_encrypted]
        return self.hypervisor().unlocked({secret_of(each): self.key_of(each) for each in encrypted})

    def switch(self, domain: Any, target: str, volume_id: str, file: Path) -> None:
        """Let a running machine write to another file of a volume, which is laid over the one that it has written to."""
        with self.unlocked([volume_id]):
            self.disks().switch(domain, target, str(file), secret_of(volume_id) if read_header(file).is_encrypted else "")

    @contextmanager
    def holding(self, volume_ids: Iterable[str]) -> Iterator[None]:
        """Keep the files of volumes as they are, for instance while a machine opens them."""
        with ExitStack() as stack:
            for volume_id in sorted(set(volume_ids)):
                stack.enter_context(self.locks.of(checked_id(volume_id)))
            yield

    def accelerated(self) -> Accelerator:
        """How guest code is run here."""
        with self._opening:
            if self._accelerator is None:
                self.paths.make()
                self._accelerator = choose(self._setting, self.paths.accelerator, self.paths.kernels)
            return self._accelerator

    def description(self) -> Host:
        """What definitions of machines say about this host."""
        has_network = not self.hypervisor().no_network_because
        return Host(self.paths.installation, self.accelerated().name, self.paths.short_root() / "run", has_network=has_network)

    def close(self) -> None:
        """Let go of the hypervisor; machines go on running."""
        with self._opening:
            if self._hypervisor is not None:
                self._hypervisor.count_traffic(on=False)
                self._hypervisor.close()
                self._hypervisor = None


def _no_keys(content_id: str) -> bytes:
    """The keyring of a host that was given none."""
    raise EngineRefused(f"{content_id[:64]} is encrypted, and this host has no keys.")
