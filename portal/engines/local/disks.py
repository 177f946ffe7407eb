"""What is done to the disks of machines through libvirt, mostly while they run.

Imported only when it is first used: the binding to libvirt is not on every machine.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import libvirt

from portal.engines.local.definition import (
    VOLUME_ID,
    VOLUME_TARGETS,
    MachineDisk,
    PluggedDisk,
    chain_of,
    disks_of,
    limits_of,
    snapshot_disk,
    volume_disk,
    with_files,
)
from portal.engines.local.hypervisor import Hypervisor, in_words
from portal.engines.local.volume_store import read_header
from portal.engines.ports import EngineError, EngineRefused, MachineVolume

LIVE, LATER = libvirt.VIR_DOMAIN_AFFECT_LIVE, libvirt.VIR_DOMAIN_AFFECT_CONFIG
SNAPSHOT = (
    libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_DISK_ONLY
    | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_ATOMIC
    | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_NO_METADATA
    | libvirt.VIR_DOMAIN_SNAPSHOT_CREATE_REUSE_EXT
)
PULL_LIMIT_S = 6 * 3600.0


class Disks:
    """Disks of the domains of one connection; whoever changes those of a machine holds its lock."""

    def __init__(self, hypervisor: Hypervisor) -> None:
        """Speak to libvirt through this connection."""
        self._hypervisor = hypervisor

    @staticmethod
    def volumes_of(domain: Any, *, later: bool = False) -> dict[str, PluggedDisk]:
        """The volumes of a domain by their ids: those that it has now, or will have at its next start."""
        with in_words("The machine's disks are not known"):
            found = disks_of(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE if later else 0))
        return {disk.serial: disk for disk in found if disk.serial.startswith(VOLUME_ID)}

    def user_of(self, volume_id: str) -> tuple[Any, PluggedDisk] | None:
        """The running machine that has a volume, and how; None if none has."""
        for domain in self._hypervisor.all().values():
            if self._hypervisor.is_active(domain) and (disk := self.volumes_of(domain).get(volume_id)) is not None:
                return domain, disk
        return None

    def attached(self) -> dict[str, str]:
        """The volumes of all running domains, each with its machine."""
        found = self._hypervisor.all().items()
        return {volume_id: name for name, domain in found if self._hypervisor.is_active(domain) for volume_id in self.volumes_of(domain)}

    def depths(self) -> dict[str, int]:
        """How many files QEMU has opened below each volume of all running domains."""
        found = (domain for domain in self._hypervisor.all().values() if self._hypervisor.is_active(domain))
        return {volume_id: len(chain_of(disk.xml)) for domain in found for volume_id, disk in self.volumes_of(domain).items()}

    def plug(self, domain: Any, disk: MachineDisk) -> None:
        """Give a running domain a volume, and keep it for its next start."""
        with in_words("The volume cannot be attached"):
            taken = {each.target for flags in (0, libvirt.VIR_DOMAIN_XML_INACTIVE) for each in disks_of(domain.XMLDesc(flags))}
            free = next((target for target in VOLUME_TARGETS if target not in taken), None)
            if free is None:
                raise EngineRefused("The machine has as many disks as it can have.")
            kept = disk.volume.volume_id in self.volumes_of(domain, later=True)
            xml = ET.tostring(volume_disk(disk, free), encoding="unicode")
            domain.attachDeviceFlags(xml, LIVE if kept else LIVE | LATER)

    def unplug(self, domain: Any, volume_id: str) -> None:
        """Take a volume from a running domain, also for its next start. Raises EngineError while its guest holds on to it."""
        with in_words("The volume cannot be detached"):
            # First for its next start: whatever becomes of it now, it comes back without.
            for flags, disk in ((LATER, self.volumes_of(domain, later=True).get(volume_id)), (LIVE, self.volumes_of(domain).get(volume_id))):
                if disk is not None:
                    domain.detachDeviceFlags(disk.xml, flags)
        if volume_id in self.volumes_of(domain):
            raise EngineError("The guest has not let go of the volume yet. Unmount it there first.")

    @staticmethod
    def grow(domain: Any, target: str, size_bytes: int) -> None:
        """Make a disk of a running domain larger."""
        with in_words("The disk cannot grow"):
            domain.blockResize(target, size_bytes, libvirt.VIR_DOMAIN_BLOCK_RESIZE_BYTES)

    @staticmethod
    def limit(domain: Any, target: str, volume: MachineVolume) -> None:
        """Let a running domain use a disk at most so fast."""
        with in_words("The limits of the volume cannot be set"):
            domain.setBlockIoTune(target, limits_of(volume), LIVE | LATER)

    @staticmethod
    def switch(domain: Any, target: str, file: str, secret: str) -> None:
        """Let a running domain write to another file from now on, which is laid over the one that it has written to: a snapshot of one disk."""
        root = ET.Element("domainsnapshot")
        listed = ET.SubElement(root, "disks")
        with in_words("The snapshot cannot be taken"):
            for disk in disks_of(domain.XMLDesc(0)):
                if disk.target != target:
                    ET.SubElement(listed, "disk", name=disk.target, snapshot="no")
                    continue
                snapshot_disk(listed, target, file, secret)
            domain.snapshotCreateXML(ET.tostring(root, encoding="unicode"), SNAPSHOT)

    def pull(self, domain: Any, disk: PluggedDisk, base: Path | None) -> bool:
        """Let the file that a running domain writes to hold by itself what is between it and `base`; False if QEMU does not know that base."""
        index = next((index for index, path in _known(disk) if path == base), "")
        if base is not None and not index:
            return False
        with in_words("The disk cannot be merged"):
            if base is None:
                domain.blockPull(disk.target, 0, 0)
            else:
                # Relative, as all our files name each other.
                domain.blockRebase(disk.target, f"{disk.target}[{index}]", 0, libvirt.VIR_DOMAIN_BLOCK_REBASE_RELATIVE)
            return self._hypervisor.wait_until(lambda: not domain.blockJobInfo(disk.target, 0), PULL_LIMIT_S)

    def follow(self, domain: Any, disk_of: Callable[[MachineVolume], MachineDisk]) -> None:
        """Let a domain that is off start with the files that its volumes are in now. Raises EngineRefused if one is gone."""
        with in_words("The machine's disks are not known"):
            xml = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE)
        moved = {each.file: disk_of(MachineVolume(volume_id)) for volume_id, each in self.volumes_of(domain, later=True).items()}
        if moved:
            self._hypervisor.define(with_files(xml, moved))


def _known(disk: PluggedDisk) -> Iterator[tuple[str, Path]]:
    """What QEMU's disk is built on: libvirt's numbers, and the paths by which headers name it.

    What the disk was written to before has kept its file's former name; what it was built on is in the header of the one above.
    """
    above = Path(disk.file)
    for index, file in chain_of(disk.xml):
        path = Path(os.path.normpath(file))
        if path.parent == Path(disk.file).parent:
            named = read_header(above).base if above.exists() else None
            if named is None:
                return
            yield index, named
        else:
            yield index, path
        above = Path(file)
