"""Machines that QEMU has paused because there was no room to write to: which of their disks lie where, and whether there is room again."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import libvirt

from portal.engines.local.definition import disks_of
from portal.engines.local.hypervisor import Hypervisor, in_words
from portal.engines.local.volume_store import VolumeStore
from portal.engines.ports import EngineError, Shortage

# A guest goes on when there is this much again: with less it would be paused in a moment.
ENOUGH = 512 << 20


def shortages(hypervisor: Hypervisor, store: VolumeStore) -> dict[str, Shortage]:
    """The paused machines of this host that wait for room."""
    found = {}
    for machine_id, domain in hypervisor.all().items():
        try:
            files = _full(domain)
        except EngineError:
            # It is gone, or does not answer: nothing is known of it, and the next round asks again.
            continue
        if files:
            found[machine_id] = _shortage(files, store.pools)
    return found


def _full(domain: Any) -> list[Path]:
    """Files of a paused domain that could not be written to for want of room."""
    with in_words("The machine's disks are not known"):
        if domain.state() != [libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_IOERROR]:
            return []
        failed = {target for target, error in domain.diskErrors().items() if error == libvirt.VIR_DOMAIN_DISK_ERROR_NO_SPACE}
        return [Path(disk.file) for disk in disks_of(domain.XMLDesc(0)) if disk.target in failed]


def _shortage(files: list[Path], pools: Mapping[str, Any]) -> Shortage:
    full = [file for file in files if shutil.disk_usage(file.parent).free < ENOUGH]
    first = (full or files)[0]
    return Shortage(next((name for name, pool in pools.items() if first.is_relative_to(pool.root)), ""), has_room=not full)
