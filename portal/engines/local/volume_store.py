"""The files of volumes and snapshots on this host, and how one is built on another.

`<pool>/disks/<volume>/disk.qcow2` is a link to the file that takes the volume's writes, `disk.<n>.qcow2`. `<pool>/layers/all/<id>.qcow2` is content
that never changes: a snapshot, or what several volumes share. Each file names the one it is built on in its own header, relative to itself, and nothing
else says so: what is in use is read there, and a file keeps its base under any name at the same depth. A worker may die between any two lines: the link
is moved last, by one rename, and whoever comes next finds its work half done.
"""

import os
import shutil
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from portal.engines.confinement import checked_id
from portal.engines.image_headers import QCOW2_HEADER, QCOW2_MAGIC
from portal.engines.local import qemu_img
from portal.engines.local.files import sync
from portal.engines.local.qemu_img import Lock
from portal.engines.ports import EngineError, EngineRefused, EngineUnavailable, ImageFormat

GIB = 1 << 30
BLOCK_BYTES = 512
CURRENT = "disk.qcow2"
BEGUN = (".merge", ".part")
UNWANTED = ".unwanted"
NO_VOLUME = "The volume is not on this host."
NO_SNAPSHOT = "The snapshot is not on this host."


@dataclass(frozen=True, slots=True)
class Header:
    """What a disk's file says about itself: its size, and the file it is built on."""

    size_bytes: int
    base: Path | None
    is_encrypted: bool = False


@dataclass(frozen=True, slots=True)
class Below:
    """A file that a disk is built on, as machines are told about it."""

    file: Path
    format: ImageFormat
    is_encrypted: bool


@dataclass(frozen=True, slots=True)
class Pool:
    """A directory that volumes of one type live in."""

    name: str
    root: Path

    @property
    def disks(self) -> Path:
        """Where volumes are, each in a directory of its own."""
        return self.root / "disks"

    @property
    def layers(self) -> Path:
        """Where content is that never changes."""
        return self.root / "layers" / "all"

    def folder(self, volume_id: str) -> Path:
        """Where a volume is. Raises EngineRefused for an id that is none."""
        return self.disks / checked_id(volume_id)

    def layer(self, content_id: str) -> Path:
        """Where a snapshot is. Raises EngineRefused for an id that is none."""
        return self.layers / f"{checked_id(content_id)}.qcow2"


class VolumeStore:
    """Finds, makes and drops the files; it knows no hypervisor."""

    def __init__(self, pools: Mapping[str, Path]) -> None:
        """`pools` maps a name to its directory, which need not exist yet."""
        self.pools = {name: Pool(name, root) for name, root in pools.items()}

    def pool(self, name: str) -> Pool:
        """A pool with its directories. Raises EngineRefused for one that is not configured, EngineUnavailable if it cannot be written to."""
        found = self.pools.get(name)
        if found is None:
            raise EngineRefused(f"This host has no pool {name[:32]!r}.")
        try:
            # Guests run as another user, who passes through and sees nothing.
            for folder in (found.root, found.disks, found.layers):
                if not folder.is_dir():
                    folder.mkdir(parents=True, exist_ok=True)
                    folder.chmod(0o711)
        except OSError as error:
            raise EngineUnavailable(f"The directory of pool {name} cannot be made: {error.strerror}.") from error
        return found

    def volume(self, volume_id: str) -> Path | None:
        """The directory of a volume that is there, in whichever pool."""
        return next((folder for pool in self.pools.values() if (folder := pool.folder(volume_id)).joinpath(CURRENT).is_symlink()), None)

    def existing(self, volume_id: str) -> Path:
        """The directory of a volume. Raises EngineRefused if it is not there."""
        folder = self.volume(volume_id)
        if folder is None:
            raise EngineRefused(NO_VOLUME)
        return folder

    def disk(self, volume_id: str) -> Path:
        """The file that takes a volume's writes. Raises EngineRefused if it is not there."""
        return active(self.existing(volume_id))

    def layer(self, content_id: str) -> tuple[Pool, Path]:
        """The file of a snapshot, with its pool. Raises EngineRefused if it is not there."""
        for pool in self.pools.values():
            path = pool.layer(content_id)
            if path.exists():
                return pool, path
        raise EngineRefused(NO_SNAPSHOT)

    def volumes(self) -> Iterator[tuple[Pool, Path]]:
        """Every volume's directory."""
        for pool in self.pools.values():
            for folder in sorted(pool.disks.iterdir()) if pool.disks.is_dir() else ():
                yield pool, folder

    def layers(self) -> Iterator[tuple[Pool, Path]]:
        """Every file that never changes."""
        for pool in self.pools.values():
            for path in sorted(pool.layers.glob("*.qcow2")):
                yield pool, path

    def built_on(self, base: Path) -> list[Path]:
        """The files that are built on this one."""
        return [path for path in self._files() if read_header(path).base == base]

    def images_in_use(self, images: Path) -> set[tuple[str, str]]:
        """Id and generation of every image that something here is built on."""
        bases = {base for path in self._files() if (base := read_header(path).base) is not None and base.is_relative_to(images)}
        return {(base.parent.parent.name, base.parent.name) for base in bases}

    def image_under(self, disk: Path, images: Path) -> tuple[str, str] | None:
        """Id and generation of the image that a disk is built on, through whatever is in between; None if it is built on none."""
        base: Path | None = disk
        while base is not None and not base.is_relative_to(images):
            base = read_header(base).base
        return None if base is None else (base.parent.parent.name, base.parent.name)

    def _files(self) -> Iterator[Path]:
        for _, folder in self.volumes():
            if (folder / CURRENT).is_symlink():
                yield active(folder)
        for _, path in self.layers():
            yield path

    # -- making and moving ------------------------------------------------------------------------------------------------------------------

    def create(
        self, folder: Path, size_bytes: int, base: Path | None = None, base_format: ImageFormat = ImageFormat.QCOW2, lock: Lock | None = None
    ) -> None:
        """Make a volume in its directory, empty or built on another file; the disk is there when its link is."""
        with full_disk():
            make_folder(folder)
            fresh = folder / "disk.1.qcow2"
            lay(fresh, size_bytes, base, base_format, lock)
            point(folder, fresh)

    def adopt(self, folder: Path, disk: Path) -> None:
        """Make a disk that lies elsewhere, and that no machine uses, a volume; begun before, it is finished."""
        with full_disk():
            make_folder(folder)
            fresh = folder / "disk.1.qcow2"
            base = read_header(disk).base
            if not fresh.exists():
                fresh.hardlink_to(disk)
            if base is not None and read_header(fresh).base != base and base.exists():
                # Another directory, another way to what it is built on.
                qemu_img.redirect(fresh, os.path.relpath(base, folder), base_format_of(base))
            sync(fresh)
            point(folder, fresh)
            disk.unlink()

    def next_disk(self, folder: Path, size_bytes: int, base: Path, lock: Lock | None) -> Path:
        """Make the next file that is to take a volume's writes, built on `base`; what takes them stays what it is."""
        number = int(active(folder).name.split(".")[1]) + 1
        fresh = folder / f"disk.{number}.qcow2"
        with full_disk():
            lay(fresh, size_bytes, base, ImageFormat.QCOW2, lock)
        return fresh

    def tidy(self, folder: Path) -> None:
        """Drop the names of files that took the volume's writes before; no machine may be using it."""
        kept = active(folder).name
        for path in folder.iterdir():
            if path.name not in (CURRENT, kept):
                path.unlink(missing_ok=True)

    def remove(self, volume_id: str) -> None:
        """Delete a volume, however far an earlier attempt came."""
        for pool in self.pools.values():
            folder = pool.folder(volume_id)
            (folder / CURRENT).unlink(missing_ok=True)
            if folder.is_dir():
                shutil.rmtree(folder)

    def clear_marks(self) -> None:
        """Remove the marks of content that has been dropped."""
        for pool in self.pools.values():
            for mark in pool.layers.glob(f"*{UNWANTED}"):
                if not mark.with_suffix(".qcow2").exists():
                    mark.unlink()

    def begun(self) -> list[Path]:
        """Files that were to take the places of others, and have not yet."""
        folders = [*(pool.layers for pool in self.pools.values()), *(folder for _, folder in self.volumes())]
        return [path for folder in folders if folder.is_dir() for path in folder.iterdir() if path.suffix in BEGUN]

    def unwanted(self, path: Path) -> Path:
        """The mark of content that nobody asks for by itself any more."""
        return path.with_suffix(UNWANTED)


def make_folder(folder: Path) -> None:
    """Make a directory that guests pass through."""
    folder.mkdir(exist_ok=True)
    folder.chmod(0o711)


def active(folder: Path) -> Path:
    """The file that takes the writes of the volume in this directory."""
    return folder / (folder / CURRENT).readlink()


def point(folder: Path, disk: Path) -> None:
    """Let this file take the volume's writes from now on, whatever happens next."""
    fresh = folder / "disk.new"
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(disk.name)
    fresh.replace(folder / CURRENT)
    sync(folder)


def below(disk: Path) -> list[Below]:
    """What a disk of ours is built on, the nearest first."""
    found: list[Below] = []
    base = read_header(disk).base
    while base is not None:
        head = read_header(base) if base_format_of(base) is ImageFormat.QCOW2 else Header(0, None)
        found.append(Below(base, base_format_of(base), head.is_encrypted))
        base = head.base
    return found


def lock_of(disk: Path, key: Callable[[], bytes]) -> Lock | None:
    """How a disk of ours is encrypted; None if it is not. The passphrase is only asked for where there is one."""
    if not read_header(disk).is_encrypted:
        return None
    return Lock(key(), 1 + sum(each.is_encrypted for each in below(disk)))


def lay(path: Path, size_bytes: int, base: Path | None, base_format: ImageFormat, lock: Lock | None) -> None:
    """Make an empty disk, or one that begins as `base`, safely on the host's disk."""
    fresh = path.with_suffix(".new")
    fresh.unlink(missing_ok=True)
    if base is None:
        qemu_img.create(fresh, size_bytes, lock)
    else:
        qemu_img.create_overlay(fresh, os.path.relpath(base, path.parent), base_format, size_bytes, lock)
    fresh.chmod(0o600)
    sync(fresh)
    fresh.replace(path)
    sync(path.parent)


def read_header(path: Path) -> Header:
    """Size and base of a disk of ours, as its first bytes say; a guest may be using it."""
    with path.open("rb") as file:
        head = file.read(QCOW2_HEADER.size)
        if len(head) < QCOW2_HEADER.size or not head.startswith(QCOW2_MAGIC):
            raise EngineError("A disk on this host is damaged: its header cannot be read.")
        _, _, base_at, base_length, _, size, encryption, *_ = QCOW2_HEADER.unpack(head)
        file.seek(base_at)
        name = os.fsdecode(file.read(base_length)) if base_at else ""
    return Header(int(size), Path(os.path.normpath(path.parent / name)) if name else None, bool(encryption))


def base_format_of(base: Path) -> ImageFormat:
    """The format of a file that others are built on, as its name says."""
    return ImageFormat(base.suffix.removeprefix("."))


def chain_bytes(path: Path) -> int:
    """What a file and all that it is built on take on the host's disk, images among them; at most the size of the disk."""
    used = used_bytes(path)
    # What is gone, or damaged, takes nothing; who needs it is told by whoever reads it.
    with suppress(OSError, EngineError):
        used += sum(used_bytes(each.file) for each in below(path))
    return min(read_header(path).size_bytes, used)


def used_bytes(path: Path) -> int:
    """What a file takes on the host's disk."""
    return path.stat().st_blocks * BLOCK_BYTES


@contextmanager
def full_disk() -> Iterator[None]:
    """Tell errors of the file system in words."""
    try:
        yield
    except OSError as error:
        raise EngineError(f"The pool cannot be written to: {error.strerror}.") from error
    except struct.error as error:
        raise EngineError("A disk on this host is damaged: its header cannot be read.") from error
