"""The images of this host. A stored image never changes: disks of machines are laid over its file, so a newer one goes beside it.

`images/<image id>/<generation>/` holds the disk, and for the builtin guest its kernel; `images/<image id>/current.json` says which one counts.
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from portal.engines.local import qemu_img, tiny_image
from portal.engines.local.files import sync
from portal.engines.local.locks import KeyedLocks
from portal.engines.local.paths import LocalPaths
from portal.engines.local.volume_store import VolumeStore
from portal.engines.ports import EngineError, EngineRefused, EngineUnavailable, ImageFormat, ImageInfo

CURRENT = "current.json"
DISK_IN_USE = "Disks of machines are based on this image. Remove these machines first."


@dataclass(frozen=True, slots=True)
class StoredImage:
    """One generation of an image: its disk, and the kernel it is booted with if it does not boot by itself."""

    image_id: str
    generation: str
    info: ImageInfo
    folder: Path
    is_builtin: bool

    @property
    def disk(self) -> Path:
        """The file that machines' disks are laid over."""
        return self.folder / f"disk.{self.info.format}"

    @property
    def kernel(self) -> Path | None:
        """The kernel to boot, None where the disk has a boot loader."""
        return self.folder / tiny_image.KERNEL if self.is_builtin else None

    @property
    def initrd(self) -> Path:
        """What the kernel starts with."""
        return self.folder / tiny_image.INITRD


class ImageStore:
    """Takes images in, finds them and drops them."""

    def __init__(self, paths: LocalPaths, volumes: VolumeStore, *, most_gib: int = qemu_img.MOST_GIB) -> None:
        """`most_gib` is the largest disk that an image may hold; `volumes` may be built on images as well."""
        self._paths = paths
        self._volumes = volumes
        self._most_gib = most_gib
        self._locks = KeyedLocks()

    def inspect(self, path: Path) -> ImageInfo:
        """Look into an untrusted file. Raises EngineRefused."""
        return qemu_img.inspect(path, most_gib=self._most_gib)

    def find(self, image_id: str) -> StoredImage | None:
        """The generation of an image that counts."""
        current = self._paths.image(image_id) / CURRENT
        try:
            return self.generation(image_id, str(json.loads(current.read_text())["generation"]))
        except FileNotFoundError:
            return None

    def generation(self, image_id: str, generation: str) -> StoredImage:
        """One generation. Raises FileNotFoundError."""
        folder = self._paths.image(image_id) / generation
        found = json.loads((folder / "image.json").read_text())
        info = ImageInfo(**{**found["info"], "format": ImageFormat(found["info"]["format"])})
        return StoredImage(image_id, generation, info, folder, bool(found["is_builtin"]))

    def is_outdated(self, image: StoredImage) -> bool:
        """Whether the builtin guest would be built otherwise today; without its parts nothing better can be built."""
        if not image.is_builtin:
            return False
        try:
            return tiny_image.find_inputs(self._paths.kernels).fingerprint() != image.generation
        except EngineUnavailable:
            return False

    def take(self, image_id: str, path: Path) -> ImageInfo:
        """Take a file in, unless the image is there. The file is removed once the image is safe. Raises EngineRefused."""
        with self.holding(image_id), _disk_space():
            stored = self.find(image_id)
            if stored is None:
                info = self.inspect(path)
                with self._fresh(image_id, info.sha256[:16]) as folder:
                    _copy(path, folder / f"disk.{info.format}")
                    _describe(folder, info, is_builtin=False)
            else:
                info = stored.info
            path.unlink(missing_ok=True)
            return info

    def build(self, image_id: str) -> ImageInfo:
        """Build the builtin guest, unless it is there as it would be built today."""
        with self.holding(image_id), _disk_space():
            stored = self.find(image_id)
            if stored is not None and not self.is_outdated(stored):
                return stored.info
            inputs = tiny_image.find_inputs(self._paths.kernels)
            with self._fresh(image_id, inputs.fingerprint()) as folder:
                tiny_image.build(folder, inputs)
                info = self.inspect(folder / tiny_image.DISK)
                _describe(folder, info, is_builtin=True)
            self._drop_unused(image_id)
            return info

    def remove(self, image_id: str) -> None:
        """Drop an image with all its generations. Raises EngineRefused while disks are based on it."""
        with self.holding(image_id):
            folder = self._paths.image(image_id)
            if self._generations_in_use(image_id):
                raise EngineRefused(DISK_IN_USE)
            (folder / CURRENT).unlink(missing_ok=True)
            if folder.exists():
                shutil.rmtree(folder)

    def holding(self, image_id: str) -> AbstractContextManager[bool]:
        """Keep an image as it is while a disk is laid over it."""
        return self._locks.of(image_id)

    @contextmanager
    def _fresh(self, image_id: str, generation: str) -> Iterator[Path]:
        """A directory to fill; afterwards it is the generation that counts. Killed on the way, the next attempt begins anew."""
        home = self._paths.image(image_id)
        home.mkdir(exist_ok=True)
        home.chmod(0o711)
        unfinished = home / "unfinished"
        if unfinished.exists():
            shutil.rmtree(unfinished)
        unfinished.mkdir()
        yield unfinished
        for path in unfinished.iterdir():
            path.chmod(0o444)
            sync(path)
        unfinished.chmod(0o711)
        sync(unfinished)
        target = home / generation
        if not target.exists():
            unfinished.rename(target)
        pointer = home / "current.new"
        pointer.write_text(json.dumps({"generation": generation}))
        sync(pointer)
        pointer.replace(home / CURRENT)
        sync(home)

    def _drop_unused(self, image_id: str) -> None:
        current = self.find(image_id)
        keep = self._generations_in_use(image_id) | ({current.generation} if current else set())
        for folder in self._paths.image(image_id).iterdir():
            if folder.is_dir() and folder.name not in keep:
                shutil.rmtree(folder)

    def _generations_in_use(self, image_id: str) -> set[str]:
        origins = (read_origin(path) for path in self._paths.machines.glob("*/disk.json"))
        by_disks = {origin.generation for origin in origins if origin is not None and origin.image_id == image_id}
        return by_disks | {generation for found_id, generation in self._volumes.images_in_use(self._paths.images) if found_id == image_id}


@dataclass(frozen=True, slots=True)
class DiskOrigin:
    """What a machine's disk is laid over."""

    image_id: str
    generation: str


def read_origin(path: Path) -> DiskOrigin | None:
    """Read the note that lies beside a disk."""
    try:
        return DiskOrigin(**json.loads(path.read_text()))
    except FileNotFoundError:
        return None


def write_origin(path: Path, origin: DiskOrigin) -> None:
    """Write the note that lies beside a disk."""
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(asdict(origin)))
    fresh.replace(path)


def _describe(folder: Path, info: ImageInfo, *, is_builtin: bool) -> None:
    (folder / "image.json").write_text(json.dumps({"info": asdict(info), "is_builtin": is_builtin}))


def _copy(source: Path, target: Path) -> None:
    # A second name costs nothing and leaves the first where it is until everything is safe; another file system needs a copy.
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


@contextmanager
def _disk_space() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise EngineError(f"The image store cannot be written to: {error.strerror}.") from error
