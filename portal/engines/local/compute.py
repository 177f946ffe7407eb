"""Virtual machines on this host through libvirt and QEMU. One process per installation owns the engine: the worker.

Machines belong to nobody's process tree: whatever becomes of the worker, they run on, and the next one finds them again with their consoles.
"""

import os
import shutil
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from portal.engines.confinement import checked_id
from portal.engines.local import logs, qemu_img
from portal.engines.local.definition import ROOT_DISK, MachineDisk, definition, disks_of, taps_of
from portal.engines.local.host import LocalHost
from portal.engines.local.image_store import DiskOrigin, StoredImage, read_origin, write_origin
from portal.engines.local.network.listing import listed
from portal.engines.local.network.names import Installation
from portal.engines.local.network.namespaces import exists
from portal.engines.local.paths import MachineFiles
from portal.engines.local.requirements import REMEDY, REMEDY_BROKEN, missing_piece
from portal.engines.local.seed import write_seed
from portal.engines.local.shortages import shortages
from portal.engines.local.statistics import sample
from portal.engines.local.traffic import Traffic, forget, measure, through
from portal.engines.ports import (
    Capability,
    EngineError,
    EngineRefused,
    EngineUnavailable,
    HostCapacity,
    ImageInfo,
    MachineInterface,
    MachineSample,
    MachineSpec,
    MachineState,
    MachineVolume,
    Shortage,
)

if TYPE_CHECKING:
    from portal.engines.local.hypervisor import Hypervisor

GIB = 1 << 30
MIB = 1 << 20
# A guest that is just booting does not hear the power button: it is pressed again.
PRESS_EVERY_S = 5.0
NEVER_DEFINED = "The machine is not defined on this host."


class LocalCompute:
    """ComputeEngine on libvirt and QEMU."""

    def __init__(
        self, data_dir: Path, *, accelerator: str = "auto", libvirt_uri: str = "", image_max_gib: int = qemu_img.MOST_GIB,
        pools: Mapping[str, Path] | None = None,
    ) -> None:  # fmt: skip
        """Open nothing before the first use; the arguments are those of `LocalHost`."""
        self.host = LocalHost(data_dir, accelerator=accelerator, libvirt_uri=libvirt_uri, image_max_gib=image_max_gib, pools=pools or {})
        self._paths, self._images, self._locks, self._volumes = self.host.paths, self.host.images, self.host.locks, self.host.volumes
        self._starts = threading.BoundedSemaphore(os.cpu_count() or 1)

    # -- the host ----------------------------------------------------------------------------------------------------------------------------

    def capability(self) -> Capability:
        """Say whether guests can run here, and what is missing."""
        missing = missing_piece()
        if missing:
            return Capability("compute", available=False, detail="libvirt and QEMU", reason=missing, remedy=REMEDY)
        try:
            hypervisor, chosen = self.host.hypervisor(), self.host.accelerated()
            detail = f"{hypervisor.version()}, {chosen.name.upper()} ({chosen.why})"
        except EngineError as error:
            return Capability("compute", available=False, detail="libvirt and QEMU", reason=error.message, remedy=REMEDY_BROKEN)
        except OSError as error:
            reason = f"Files of the engine cannot be written: {error.strerror}."
            return Capability("compute", available=False, detail="libvirt and QEMU", reason=reason, remedy=REMEDY_BROKEN)
        if why := hypervisor.no_network_because:
            detail += f"; guests have no network: {why}"
        if hypervisor.guests_run_as == "root":
            detail += "; guests' processes run as root, as no user without rights can reach DATA_DIR or /dev/kvm"
        return Capability("compute", available=True, detail=detail)

    def capacity(self) -> HostCapacity:
        """Measure the host."""
        self.host.hypervisor()
        disk = shutil.disk_usage(self._paths.root)
        return HostCapacity(
            cpus=psutil.cpu_count() or 1, memory_mib=psutil.virtual_memory().total // MIB, disk_total_gib=disk.total // GIB,
            disk_free_gib=disk.free // GIB, accelerator=self.host.accelerated().name,
        )  # fmt: skip

    # -- images ------------------------------------------------------------------------------------------------------------------------------

    def inspect_image(self, path: Path) -> ImageInfo:
        """Look into an untrusted file."""
        return self._images.inspect(path)

    def ensure_image(self, image_id: str, path: Path) -> ImageInfo:
        """Take a file into the store."""
        self._paths.make()
        return self._images.take(image_id, path)

    def ensure_builtin_image(self, image_id: str) -> ImageInfo:
        """Build the tiny guest, unless it is there as it would be built today."""
        self._paths.make()
        return self._images.build(image_id)

    def has_image(self, image_id: str) -> bool:
        """Whether machines can be made from the image at once; an outdated builtin guest is to be built anew."""
        stored = self._images.find(image_id)
        return stored is not None and not self._images.is_outdated(stored)

    def remove_image(self, image_id: str) -> None:
        """Drop an image that no disk is based on."""
        self._images.remove(image_id)

    # -- machines ----------------------------------------------------------------------------------------------------------------------------

    def ensure_disk(self, spec: MachineSpec) -> None:
        """Lay a disk over the image, or grow the one that is there."""
        files = self._paths.machine(spec.machine_id)
        with self._locks.of(spec.machine_id):
            if files.disk.exists():
                self._grow(spec, files)
            else:
                self._lay_over(spec, files)

    def _lay_over(self, spec: MachineSpec, files: MachineFiles) -> None:
        with self._images.holding(spec.image_id):
            image = self._images.find(spec.image_id)
            if image is None:
                raise EngineRefused("The image is not in this host's store.")
            size_bytes = spec.root_disk_gib * GIB
            if image.info.virtual_size_bytes > size_bytes:
                raise EngineRefused(f"The image does not fit on a disk of {spec.root_disk_gib} GiB.")
            self._make_folder(files)
            # The note first: an image that it names is not dropped while the disk is being made.
            write_origin(files.disk_origin, DiskOrigin(image.image_id, image.generation))
            fresh = files.disk.with_suffix(".new")
            qemu_img.create_overlay(fresh, os.path.relpath(image.disk, files.folder), image.info.format, size_bytes)
            fresh.chmod(0o600)
            fresh.replace(files.disk)

    def _grow(self, spec: MachineSpec, files: MachineFiles) -> None:
        size_bytes = spec.root_disk_gib * GIB
        if qemu_img.virtual_size(files.disk) >= size_bytes:
            return
        hypervisor = self.host.hypervisor()
        domain = hypervisor.find(spec.machine_id)
        if domain is not None and hypervisor.is_active(domain):
            self.host.disks().grow(domain, ROOT_DISK, size_bytes)
        else:
            qemu_img.grow(files.disk, size_bytes)

    def ensure_seed(self, spec: MachineSpec) -> None:
        """Write the seed disk."""
        files = self._paths.machine(spec.machine_id)
        with self._locks.of(spec.machine_id):
            self._make_folder(files)
            write_seed(files.seed, spec)

    def ensure_defined(self, spec: MachineSpec) -> None:
        """Define the machine as the spec says."""
        files = self._paths.machine(spec.machine_id)
        with self._locks.of(spec.machine_id):
            hypervisor = self.host.hypervisor()
            domain = hypervisor.find(spec.machine_id)
            if domain is not None and hypervisor.is_active(domain):
                # What else differs is written when the machine is defined before its next start.
                if hypervisor.size(domain) != (spec.vcpus, spec.memory_mib):
                    raise EngineRefused("vCPU and memory of a running machine cannot be changed. Stop it first.")
                return
            root = self._root_of(spec, files)
            volumes = [root, *self._disks_of(spec)]
            # Also where nothing has changed since it was defined: what was plugged in meanwhile is in its definition.
            hypervisor.define(definition(spec, self._image_of(spec, root, files), volumes, files, self.host.description()))

    def _disks_of(self, spec: MachineSpec) -> Sequence[MachineDisk]:
        """The files of the machine's volumes, but for its root."""
        return [self.host.machine_disk(each) for each in spec.data]

    def _root_of(self, spec: MachineSpec, files: MachineFiles) -> MachineDisk:
        """What the machine boots from: its root volume, or the disk of its own that an earlier version gave it."""
        if spec.root is not None and self._volumes.volume(spec.root.volume_id) is not None:
            return self.host.machine_disk(spec.root)
        return MachineDisk(MachineVolume(spec.machine_id), files.disk)

    def ensure_interfaces(self, spec: MachineSpec) -> None:
        """Make the network cards those of the spec: of a machine that is off by its definition, of one that runs by plugging."""
        with self._locks.of(checked_id(spec.machine_id)):
            hypervisor = self.host.hypervisor()
            domain = hypervisor.find(spec.machine_id)
            if domain is None:
                raise EngineRefused(NEVER_DEFINED)
            is_active = hypervisor.is_active(domain)
            if is_active:
                self._plug(hypervisor, domain, spec)
        if not is_active:
            self.ensure_defined(spec)

    def _plug(self, hypervisor: "Hypervisor", domain: Any, spec: MachineSpec) -> None:
        if spec.interfaces and hypervisor.has_user_network(domain):
            raise EngineRefused("The machine was started outside any network. Stop it first.")
        had = hypervisor.taps(domain)
        lost = self._lost(had)
        wanted = {card.tap: card for card in spec.interfaces}
        for tap, mac in had.items():
            if tap not in wanted or tap in lost:
                hypervisor.unplug(domain, MachineInterface("", mac, tap))
        for tap, card in wanted.items():
            if tap not in had or tap in lost:
                hypervisor.plug(domain, card)

    def ensure_volumes(self, spec: MachineSpec, *, is_forced: bool = False) -> bool:
        """Make the volumes those of the spec: of a machine that is off by its definition, of one that runs by plugging, or by force."""
        with self._locks.of(checked_id(spec.machine_id)):
            hypervisor = self.host.hypervisor()
            domain = hypervisor.find(spec.machine_id)
            if domain is None:
                raise EngineRefused(NEVER_DEFINED)
            wanted = [each.volume_id for each in spec.volumes]
            is_active = hypervisor.is_active(domain)
            if is_active:
                disks = self.host.disks()
                try:
                    for volume_id in disks.volumes_of(domain).keys() - set(wanted):
                        disks.unplug(domain, volume_id)
                except EngineUnavailable:
                    raise
                except EngineError:
                    if not is_forced:
                        raise
                    # Its definition is without the volume already. Whoever dies here leaves a machine that has crashed, and is booted again.
                    hypervisor.pull_plug(domain)
                    self._boot(hypervisor, domain, self._paths.machine(spec.machine_id))
                    return True
                with self.host.holding(wanted):
                    had = disks.volumes_of(domain)
                    for each in self._disks_of(spec):
                        if each.volume.volume_id not in had:
                            with self.host.unlocked([each.volume.volume_id]):
                                disks.plug(domain, each)
        if not is_active:
            self.ensure_defined(spec)
        return False

    def _image_of(self, spec: MachineSpec, root: MachineDisk, files: MachineFiles) -> StoredImage:
        """The image that the machine's disk is laid over, or will be."""
        origin = read_origin(files.disk_origin)
        under = self._volumes.image_under(root.file, self._paths.images) if root.volume.is_root else None
        under = under or ((origin.image_id, origin.generation) if origin else None)
        image = self._images.generation(*under) if under else self._images.find(spec.image_id)
        if image is None:
            raise EngineRefused("The image is not in this host's store.")
        return image

    def ensure_running(self, machine_id: str) -> None:
        """Boot the machine, as many at once as there are cores."""
        files = self._paths.machine(machine_id)
        with self._locks.of(machine_id):
            hypervisor = self.host.hypervisor()
            domain = hypervisor.find(machine_id)
            if domain is None:
                raise EngineRefused(NEVER_DEFINED)
            state, _ = hypervisor.state(domain)
            if state is MachineState.PAUSED:
                hypervisor.resume(domain)
            elif state is not MachineState.RUNNING:
                self._boot(hypervisor, domain, files)
            files.should_run.touch()

    def _boot(self, hypervisor: "Hypervisor", domain: Any, files: MachineFiles) -> None:
        disks = self.host.disks()
        volumes = disks.volumes_of(domain, later=True)
        if not files.disk.exists() and not any(each.target == ROOT_DISK for each in volumes.values()):
            raise EngineRefused("The machine has no root disk.")
        if not files.seed.exists():
            raise EngineRefused("The machine has no first-boot data.")
        with self._counting(files):
            forget(files)
        with self._starts, self.host.holding(volumes):
            disks.follow(domain, self.host.machine_disk)
            with self.host.unlocked(volumes):
                hypervisor.start(domain)

    def ensure_stopped(self, machine_id: str, *, graceful_timeout_s: float) -> None:
        """Press the power button, wait, pull the plug."""
        files = self._paths.machine(machine_id)
        with self._locks.of(machine_id):
            files.should_run.unlink(missing_ok=True)
            hypervisor = self.host.hypervisor()
            domain = hypervisor.find(machine_id)
            if domain is None or not hypervisor.is_active(domain):
                return
            state, _ = hypervisor.state(domain)
            deadline_s = time.monotonic() + graceful_timeout_s
            while state is MachineState.RUNNING and (left_s := deadline_s - time.monotonic()) > 0:
                hypervisor.power_button(domain)
                if hypervisor.wait_until_off(domain, min(left_s, PRESS_EVERY_S)):
                    return
            hypervisor.pull_plug(domain)

    def remove_disk(self, machine_id: str) -> None:
        """Delete the root disk of a stopped machine."""
        files = self._paths.machine(machine_id)
        with self._locks.of(machine_id):
            if files.folder.exists():
                hypervisor = self.host.hypervisor()
                domain = hypervisor.find(machine_id)
                if domain is not None and hypervisor.is_active(domain):
                    raise EngineRefused("The disk of a running machine cannot be removed. Stop it first.")
                files.disk.unlink(missing_ok=True)
                files.disk_origin.unlink(missing_ok=True)

    def remove_machine(self, machine_id: str) -> None:
        """End the machine and delete everything of it."""
        files = self._paths.machine(machine_id)
        with self._locks.of(machine_id):
            files.should_run.unlink(missing_ok=True)
            hypervisor = self.host.hypervisor()
            domain = hypervisor.find(machine_id)
            if domain is not None:
                hypervisor.pull_plug(domain)
                hypervisor.undefine(domain)
            for path in (files.serial, files.display, files.sent, files.received, files.hypervisor_log):
                path.unlink(missing_ok=True)
            if files.folder.exists():
                shutil.rmtree(files.folder)

    def machine_state(self, machine_id: str) -> MachineState:
        """State of one machine."""
        files = self._paths.machine(machine_id)
        hypervisor = self.host.hypervisor()
        domain = hypervisor.find(machine_id)
        return MachineState.ABSENT if domain is None else self._state(hypervisor, domain, machine_id, files)

    def machines(self) -> Mapping[str, MachineState]:
        """State of all machines; on the way what QEMU appends to is kept small, whoever asks."""
        hypervisor = self.host.hypervisor()
        hypervisor.keep_guests_apart()
        logs.bound(self._paths.libvirt_log)
        found = {}
        for machine_id, domain in hypervisor.all().items():
            files = self._paths.machine(machine_id)
            logs.bound(files.log)
            logs.bound(files.hypervisor_log)
            self._traffic(files)
            state = self._state(hypervisor, domain, machine_id, files)
            if state is not MachineState.ABSENT:
                found[machine_id] = state
        return found

    def _state(self, hypervisor: "Hypervisor", domain: Any, machine_id: str, files: MachineFiles) -> MachineState:
        """State of a domain: one that is off although nobody stopped it has crashed, unless the guest shut itself down."""
        state, ended_itself = hypervisor.state(domain)
        if state is not MachineState.STOPPED or not files.should_run.exists():
            return state
        if not ended_itself:
            return MachineState.CRASHED
        lock = self._locks.of(machine_id)
        # libvirt forgets how a guest ended when it is opened anew, so it is written down; not while somebody is starting the machine again.
        if lock.acquire(blocking=False):
            try:
                if hypervisor.state(domain) == (state, ended_itself):
                    files.should_run.unlink(missing_ok=True)
            finally:
                lock.release()
        return state

    def cut_off(self) -> Collection[str]:
        """Running machines whose cards' taps are gone, or were made anew without them."""
        taps = {machine_id: taps_of(xml) for machine_id, (_, xml) in self.host.hypervisor().statistics().items()}
        lost = self._lost({tap for each in taps.values() for tap in each})
        return [machine_id for machine_id, each in taps.items() if lost.intersection(each)]

    def shortages(self) -> Mapping[str, Shortage]:
        """Machines that QEMU has paused for want of room."""
        return shortages(self.host.hypervisor(), self._volumes)

    def _lost(self, taps: Collection[str]) -> set[str]:
        """Those of running machines' taps that are not there, or that no machine holds."""
        fabric = Installation(self._paths.installation).fabric
        links = listed(fabric) if taps and exists(fabric) else {}
        return {tap for tap in taps if tap not in links or links[tap].is_idle}

    def samples(self) -> Sequence[MachineSample]:
        """Counters of all running machines."""
        taken_at_s = time.time()
        measured = self.host.hypervisor().statistics()
        taps = {machine_id: taps_of(xml) for machine_id, (_, xml) in measured.items()}
        fabric = Installation(self._paths.installation).fabric
        links = listed(fabric) if any(taps.values()) else {}
        return [
            sample(
                machine_id, taken_at_s, counters,
                through(taps[machine_id], links) if taps[machine_id] else self._traffic(self._paths.machine(machine_id)),
                {disk.target: disk.serial for disk in disks_of(xml)},
            )
            for machine_id, (counters, xml) in measured.items()
        ]  # fmt: skip

    def _traffic(self, files: MachineFiles) -> Traffic:
        with self._counting(files):
            return measure(files) if files.folder.exists() else Traffic(0, 0)

    def _counting(self, files: MachineFiles) -> threading.Lock:
        # Two measurements at once would count the same packets into one note.
        return self._locks.of(f"traffic of {files.folder.name}")

    def close(self) -> None:
        """Let go of the hypervisor."""
        self.host.close()

    # -- inside ------------------------------------------------------------------------------------------------------------------------------

    def _make_folder(self, files: MachineFiles) -> None:
        self._paths.make()
        files.folder.mkdir(exist_ok=True)
        files.folder.chmod(0o711)
