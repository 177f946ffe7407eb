"""Volumes and snapshots of this host: qcow2 files, laid over one another, and the running machines that write to them.

A snapshot is what a volume's file held; from then on the volume writes to a new file that is built on it. So it costs nothing when it is taken, and a
volume that is made from it begins at once. Content that nobody asks for any more goes when nothing is built on it, or is merged into the one that is.
"""

import logging
import os
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from portal.engines.confinement import checked_id
from portal.engines.local import qemu_img
from portal.engines.local.files import sync
from portal.engines.local.host import LocalHost
from portal.engines.local.paths import MachineFiles
from portal.engines.local.qemu_img import Lock
from portal.engines.local.requirements import REMEDY, missing_piece
from portal.engines.local.volume_store import (
    GIB,
    Pool,
    active,
    base_format_of,
    below,
    chain_bytes,
    full_disk,
    lock_of,
    make_folder,
    point,
    read_header,
    used_bytes,
)
from portal.engines.ports import Capability, EngineError, EngineRefused, ImageFormat, MachineVolume
from portal.engines.volume_ports import Kept, KeptContent, Keyring, PoolRoom, VolumeSpec

if TYPE_CHECKING:
    from portal.engines.local.definition import PluggedDisk

log = logging.getLogger("portal.engines.local")
# Of a pool, beside what is copied within it.
LEFT_FREE = 1 << 30
# A running machine's volume that is built on more files than this takes over what they hold: libvirt lets QEMU open 200.
DEEPEST = 100
IN_USE = "A running machine has this volume. Stop the machine or detach the volume first."


class LocalVolumes:
    """VolumeEngine on files of this host."""

    def __init__(self, host: LocalHost) -> None:
        """Share the host with the machines that run on it."""
        self._host, self._store, self._locks = host, host.volumes, host.locks
        # Held while something is built on a file, and while a file that nothing is built on is dropped.
        self._building = threading.RLock()
        # Files that this worker writes and has not put into their places yet; any other such file is a dead worker's.
        self._begun: set[Path] = set()

    def use_keys(self, keyring: Keyring) -> None:
        """Ask this keyring for passphrases."""
        self._host.key_of = keyring

    def capability(self) -> Capability:
        """Say whether volumes can be kept here, and where."""
        missing = missing_piece()
        if missing:
            return Capability("volumes", available=False, detail="qcow2 files", reason=missing, remedy=REMEDY)
        try:
            rooms = self.pools()
        except EngineError as error:
            return Capability("volumes", available=False, detail="qcow2 files", reason=error.message, remedy="See to VOLUME_POOLS and DATA_DIR.")
        return Capability("volumes", available=True, detail=", ".join(f"{name}: {room.free_gib:,} GiB free" for name, room in rooms.items()))

    def pools(self) -> Mapping[str, PoolRoom]:
        """What the pools have."""
        found = {name: shutil.disk_usage(self._store.pool(name).root) for name in self._store.pools}
        return {name: PoolRoom(usage.total // GIB, usage.free // GIB) for name, usage in found.items()}

    # -- volumes ---------------------------------------------------------------------------------------------------------------------------

    def ensure_volume(self, spec: VolumeSpec) -> None:
        """Make a volume; what it begins with is shared, not copied, where that lies in the same pool."""
        self._host.paths.make()
        pool = self._store.pool(spec.pool)
        with self._volume(spec.volume_id):
            if self._store.volume(spec.volume_id) is not None:
                return
            own = self._host.paths.machine(spec.machine_id) if spec.machine_id else None
            if own is not None and own.disk.exists():
                self._adopt(spec, pool, own)
            elif spec.image_id:
                self._from_image(spec, pool)
            elif spec.snapshot_id:
                self._from_snapshot(spec, pool)
            else:
                self._store.create(pool.folder(spec.volume_id), spec.size_gib * GIB, lock=self._new_lock(spec))

    def _new_lock(self, spec: VolumeSpec) -> Lock | None:
        return Lock(self._host.key_of(spec.volume_id)) if spec.is_encrypted else None

    def _adopt(self, spec: VolumeSpec, pool: Pool, files: MachineFiles) -> None:
        hypervisor = self._host.hypervisor()
        domain = hypervisor.find(spec.machine_id)
        if domain is None or not hypervisor.is_active(domain):
            self._store.adopt(pool.folder(spec.volume_id), files.disk)
            files.disk_origin.unlink(missing_ok=True)

    def _from_image(self, spec: VolumeSpec, pool: Pool) -> None:
        with self._host.images.holding(spec.image_id):
            image = self._host.images.find(spec.image_id)
            if image is None:
                raise EngineRefused("The image is not in this host's store.")
            _refuse_too_small(image.info.virtual_size_bytes, spec)
            self._store.create(pool.folder(spec.volume_id), spec.size_gib * GIB, image.disk, image.info.format, self._new_lock(spec))

    def _from_snapshot(self, spec: VolumeSpec, pool: Pool) -> None:
        home, layer = self._store.layer(spec.snapshot_id)
        _refuse_too_small(read_header(layer).size_bytes, spec)
        if read_header(layer).is_encrypted != spec.is_encrypted:
            raise EngineRefused("A volume is encrypted as what it begins with is.")
        folder, lock = pool.folder(spec.volume_id), self._lock(layer, spec.volume_id)
        if home is pool:
            with self._building:
                # Looked for again: it may be gone by now.
                _, layer = self._store.layer(spec.snapshot_id)
                self._store.create(folder, spec.size_gib * GIB, layer, lock=lock)
            return
        with full_disk():
            make_folder(folder)
            disk = folder / "disk.1.qcow2"
            self._copy(layer, disk, lock)
            disk.chmod(0o600)
            qemu_img.grow(disk, spec.size_gib * GIB, self._lock(disk, spec.volume_id))
            sync(disk)
            point(folder, disk)

    def ensure_size(self, volume_id: str, size_gib: int) -> None:
        """Let a volume grow."""
        with self._volume(volume_id):
            disk = self._store.disk(volume_id)
            if read_header(disk).size_bytes >= size_gib * GIB:
                return
            user = self._caught_up(volume_id)
            if user is not None:
                self._host.disks().grow(user[0], user[1].target, size_gib * GIB)
            else:
                qemu_img.grow(disk, size_gib * GIB, self._lock(disk, volume_id))

    def ensure_limits(self, volume: MachineVolume) -> None:
        """Set limits of a running machine's disk."""
        with self._volume(volume.volume_id):
            user = self._user(volume.volume_id)
            if user is not None:
                self._host.disks().limit(user[0], user[1].target, volume)

    def remove_volume(self, volume_id: str) -> None:
        """Delete a volume, and what only it was built on."""
        with self._volume(volume_id):
            if self._user(volume_id) is not None:
                raise EngineRefused(IN_USE)
            with self._building:
                self._store.remove(volume_id)
                self._drop_unused()

    # -- snapshots -------------------------------------------------------------------------------------------------------------------------

    def ensure_snapshot(self, snapshot_id: str, volume_id: str) -> None:
        """Keep what a volume holds: its file becomes content that never changes, and the volume goes on in a new one."""
        with self._volume(volume_id):
            folder = self._store.existing(volume_id)
            pool = next(pool for pool in self._store.pools.values() if pool.disks == folder.parent)
            layer, writing = pool.layer(snapshot_id), active(folder)
            user = self._caught_up(volume_id)
            if layer.exists() and not _same(layer, writing):
                layer.chmod(0o444)
                return
            try:
                self._freeze(folder, layer, user)
            except EngineError:
                self._thaw(folder, layer, user)
                raise

    def _freeze(self, folder: Path, layer: Path, user: "tuple[Any, PluggedDisk] | None") -> None:
        writing = active(folder)
        with full_disk():
            if not layer.exists():
                os.link(writing, layer)
                sync(layer.parent)
            if _same(layer, writing):
                fresh = self._store.next_disk(folder, read_header(writing).size_bytes, layer, self._lock(writing, folder.name))
                # First the link, then the machine: if both die in between, the new file holds nothing and the old one everything.
                point(folder, fresh)
                writing = fresh
            if user is not None:
                self._host.switch(user[0], user[1].target, folder.name, writing)
            else:
                self._store.tidy(folder)
            layer.chmod(0o444)

    def _thaw(self, folder: Path, layer: Path, user: "tuple[Any, PluggedDisk] | None") -> None:
        """Undo half a snapshot: the volume goes on in the file that it was written to."""
        writing = active(folder)
        written = Path(user[1].file) if user is not None else folder / f"disk.{int(writing.name.split('.')[1]) - 1}.qcow2"
        if not layer.exists():
            return
        if not _same(layer, writing) and written.exists() and _same(layer, written):
            point(folder, written)
            writing.unlink(missing_ok=True)
        if _same(layer, active(folder)):
            layer.unlink()

    def restore(self, volume_id: str, snapshot_id: str) -> None:
        """Let a volume go on from what a snapshot holds."""
        with self._volume(volume_id):
            folder = self._store.existing(volume_id)
            if self._user(volume_id) is not None:
                raise EngineRefused(IN_USE)
            home, layer = self._store.layer(snapshot_id)
            if home.disks != folder.parent:
                raise EngineRefused("The snapshot lies in another pool. Make a new volume from it.")
            size_bytes = max(read_header(active(folder)).size_bytes, read_header(layer).size_bytes)
            with self._building:
                point(folder, self._store.next_disk(folder, size_bytes, layer, self._lock(layer, volume_id)))
                self._store.tidy(folder)
                self._drop_unused()

    def ensure_copy(self, snapshot_id: str, source_id: str, pool: str) -> None:
        """Copy a snapshot into a file of its own."""
        target = self._store.pool(pool).layer(snapshot_id)
        with self._locks.of(snapshot_id):
            if not target.exists():
                _, layer = self._store.layer(source_id)
                with full_disk():
                    self._copy(layer, target, self._lock(layer, snapshot_id))
                    target.chmod(0o444)

    def export(self, snapshot_id: str, path: Path) -> None:
        """Write a snapshot as an image."""
        _, layer = self._store.layer(snapshot_id)
        if read_header(layer).is_encrypted:
            raise EngineRefused("The snapshot is encrypted, and images are not.")
        with full_disk():
            self._copy(layer, path, None)

    def remove_snapshot(self, snapshot_id: str) -> None:
        """Forget a snapshot: its file goes as soon as nothing is built on it."""
        with self._building:
            for pool in self._store.pools.values():
                if (layer := pool.layer(snapshot_id)).exists():
                    self._store.unwanted(layer).touch()
            self._drop_unused()

    # -- everything ------------------------------------------------------------------------------------------------------------------------

    def attached(self) -> Mapping[str, str]:
        """What running machines have."""
        return {} if missing_piece() else self._host.disks().attached()

    def kept(self) -> Sequence[KeptContent]:
        """Everything that is kept."""
        found = []
        with self._building:
            for pool, folder in self._store.volumes():
                disk = active(folder) if (folder / "disk.qcow2").is_symlink() else None
                size, used, chain = (read_header(disk).size_bytes, used_bytes(disk), chain_bytes(disk)) if disk else (0, 0, 0)
                found.append(KeptContent(folder.name, Kept.VOLUME, pool.name, size, used, chain))
            for pool, layer in self._store.layers():
                kind = Kept.SHARED if self._store.unwanted(layer).exists() else Kept.SNAPSHOT
                found.append(KeptContent(layer.stem, kind, pool.name, read_header(layer).size_bytes, used_bytes(layer)))
        return found

    def compact(self) -> int:
        """Drop what nothing is built on and what was begun by workers that died, and merge what one volume or snapshot alone is built on."""
        with self._building:
            for path in [each for each in self._store.begun() if each not in self._begun]:
                log.info("%s was begun by a worker that died, and is removed", path.name)
                path.unlink(missing_ok=True)
            gone = self._drop_unused()
            mergeable = [(layer, users[0]) for _, layer in self._unwanted() if len(users := self._store.built_on(layer)) == 1]
        for volume_id in [each for each, depth in self._depths().items() if depth > DEEPEST]:
            try:
                gone += self._flatten(volume_id)
            except EngineError as error:
                log.warning("%s cannot be made to stand alone now: %s", volume_id, error.message)
        for layer, user in mergeable:
            try:
                gone += self._merge(layer, user)
            except FileNotFoundError:
                log.debug("%s or what is built on it was removed meanwhile", layer.stem)
            except EngineError as error:
                log.warning("%s cannot be merged now: %s", layer.stem, error.message)
        return gone

    def _merge(self, layer: Path, user: Path) -> int:
        """Let the one file that is built on a layer do without it. What it holds stays the same, so that readers notice nothing."""
        volume_id = user.parent.name if user.parent.name.startswith("vol-") else ""
        if volume_id and self._user(volume_id) is not None:
            return self._merge_live(layer, volume_id)
        base = read_header(layer).base
        if base is not None and base_format_of(base) is ImageFormat.QCOW2 and read_header(base).is_encrypted:
            # qemu-img has no way to say the passphrase of the file that it is to be built on; a running machine's QEMU has it.
            return 0
        before = user.stat()
        with self._begins(user, ".merge") as part:
            qemu_img.duplicate(user, part)
            qemu_img.rebase(part, *_onto(base, user.parent), self._lock(part, volume_id or user.stem))
            part.chmod(before.st_mode & 0o777)
            sync(part)
            with self._host.holding([volume_id] if volume_id else []), self._building:
                is_same = (before.st_ino, before.st_mtime_ns) == (user.stat().st_ino, user.stat().st_mtime_ns)
                if not is_same or self._store.built_on(layer) != [user] or (volume_id and self._user(volume_id) is not None):
                    return 0
                part.replace(user)
                sync(user.parent)
                return self._drop_unused()

    def _copy(self, layer: Path, target: Path, lock: Lock | None) -> None:
        with self._begins(target, ".part") as part:
            qemu_img.copy(layer, part, lock)
            sync(part)
            part.replace(target)
            sync(target.parent)

    @contextmanager
    def _begins(self, target: Path, suffix: str) -> Iterator[Path]:
        """A file that is written first and then put into the place of another, gone at the end if it was not."""
        part = target.with_suffix(suffix)
        with self._building:
            self._begun.add(part)
        try:
            yield part
        finally:
            part.unlink(missing_ok=True)
            with self._building:
                self._begun.discard(part)

    def _depths(self) -> Mapping[str, int]:
        return {} if missing_piece() else self._host.disks().depths()

    def _flatten(self, volume_id: str) -> int:
        """Have QEMU let a running machine's volume hold all that is above its image: it opens only so many files, whatever is merged on the disk."""
        with self._volume(volume_id):
            disk, user = self._store.disk(volume_id), self._caught_up(volume_id)
            image = next((each.file for each in below(disk) if each.file.is_relative_to(self._host.paths.images)), None)
            needed, free = chain_bytes(disk) - used_bytes(disk), shutil.disk_usage(disk.parent).free
            if needed + LEFT_FREE > free:
                # A full pool stops every guest that writes there; the next snapshot is refused, and its owner told.
                raise EngineError(f"its file would grow by {needed >> 20:,} MiB, and {free >> 20:,} MiB are free")
            if user is None or not (self._host.disks().pull(*user, image) or (image is not None and self._host.disks().pull(*user, None))):
                return 0
            sync(disk)
            with self._building:
                return self._drop_unused()

    def _merge_live(self, layer: Path, volume_id: str) -> int:
        """Have QEMU do it: the volume of a running machine holds by itself what the layer held."""
        with self._volume(volume_id):
            disk, user, base = self._store.disk(volume_id), self._caught_up(volume_id), read_header(layer).base
            if user is None or read_header(disk).base != layer or not self._host.disks().pull(*user, base):
                # When its machine has stopped there will be time.
                return 0
            sync(disk)
            with self._building:
                return self._drop_unused()

    def _unwanted(self) -> list[tuple[Pool, Path]]:
        return [(pool, layer) for pool, layer in self._store.layers() if self._store.unwanted(layer).exists()]

    def _drop_unused(self) -> int:
        """Drop unwanted files that nothing is built on, and then those that only they were built on; how many."""
        gone = 0
        while unused := [layer for _, layer in self._unwanted() if not self._store.built_on(layer)]:
            for layer in unused:
                # The content before its mark: what is half gone must not look wanted.
                layer.unlink()
                gone += 1
        self._store.clear_marks()
        return gone

    # -- inside ----------------------------------------------------------------------------------------------------------------------------

    def _volume(self, volume_id: str) -> threading.Lock:
        return self._locks.of(checked_id(volume_id))

    def _caught_up(self, volume_id: str) -> "tuple[Any, PluggedDisk] | None":
        """The running machine that has a volume, writing where the volume's link points: a worker may have died just before that."""
        user = self._user(volume_id)
        if user is None or _same(disk := self._store.disk(volume_id), Path(user[1].file)):
            return user
        self._host.switch(user[0], user[1].target, volume_id, disk)
        return self._user(volume_id)

    def _lock(self, disk: Path, content_id: str) -> Lock | None:
        """How a file is encrypted, with the passphrase of the volume or snapshot that it belongs to."""
        return lock_of(disk, lambda: self._host.key_of(content_id))

    def _user(self, volume_id: str) -> "tuple[Any, PluggedDisk] | None":
        """The running machine that has a volume."""
        if missing_piece():
            return None
        return self._host.disks().user_of(volume_id)


def _same(one: Path, other: Path) -> bool:
    return one.exists() and other.exists() and one.samefile(other)


def _refuse_too_small(size_bytes: int, spec: VolumeSpec) -> None:
    if size_bytes > spec.size_gib * GIB:
        raise EngineRefused(f"What it is made from needs {-(-size_bytes // GIB)} GiB, more than {spec.size_gib} GiB.")


def _onto(base: Path | None, folder: Path) -> tuple[str, ImageFormat]:
    if base is None:
        return "", ImageFormat.QCOW2
    return os.path.relpath(base, folder), base_format_of(base)
