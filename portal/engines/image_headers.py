"""Looks into the headers of disk images: which format, and whether they lead elsewhere, before a program that would follow opens them."""

import hashlib
import struct
from pathlib import Path

from portal.engines.ports import EngineRefused, ImageFormat, ImageInfo

SECTOR_BYTES = 512
SMALLEST_RAW_BYTES = 1 << 20
QCOW2_HEADER = struct.Struct(">4sIQIIQIIQQIIQ")
QCOW2_MAGIC = b"QFI\xfb"
QCOW2_VERSIONS = (2, 3)
QCOW2_VERSION_WITH_FEATURES = 3
EXTERNAL_DATA = 1 << 2
CLUSTER_BITS = 16
BOOT_SIGNATURE = b"\x55\xaa"
BROKEN = "The file is no sound qcow2 image: it is cut short or damaged."


def look_into(path: Path) -> ImageInfo:
    """What is in an image file. Raises EngineRefused."""
    if path.is_symlink() or not path.is_file():
        raise EngineRefused("There is no image file.")
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(SECTOR_BYTES)
        sha256 = hashlib.sha256(head)
        while chunk := file.read(1 << 20):
            sha256.update(chunk)
    if head.startswith(QCOW2_MAGIC):
        return ImageInfo(ImageFormat.QCOW2, _qcow2_size(head, size), size, sha256.hexdigest())
    if size < SMALLEST_RAW_BYTES or size % SECTOR_BYTES or not head.endswith(BOOT_SIGNATURE):
        raise EngineRefused("The file is neither a qcow2 image nor a raw disk that a machine can boot from.")
    return ImageInfo(ImageFormat.RAW, size, size, sha256.hexdigest())


def _qcow2_size(head: bytes, file_size: int) -> int:
    if len(head) < QCOW2_HEADER.size + 8:
        raise EngineRefused(BROKEN)
    _, version, backing, _, cluster_bits, size, encryption, l1_entries, l1_at, refcount_at, refcount_clusters, snapshots, _ = (
        QCOW2_HEADER.unpack_from(head)
    )
    features = struct.unpack_from(">Q", head, QCOW2_HEADER.size)[0] if version == QCOW2_VERSION_WITH_FEATURES else 0
    if backing or features & EXTERNAL_DATA:
        raise EngineRefused("The image refers to another file. Convert it to one that stands alone.")
    if encryption:
        raise EngineRefused("The image is encrypted. Convert it to one that is not.")
    ends = (l1_at + 8 * l1_entries, refcount_at + (refcount_clusters << min(cluster_bits, 21)))
    if version not in QCOW2_VERSIONS or snapshots > 1 or size == 0 or max(ends) > file_size:
        raise EngineRefused(BROKEN)
    return int(size)


def empty_qcow2(size_bytes: int) -> bytes:
    """A qcow2 image with nothing on it: a header, and clusters that say that nothing is allocated."""
    cluster = 1 << CLUSTER_BITS
    tables = -(-size_bytes // (cluster * cluster // 8))
    header = QCOW2_HEADER.pack(QCOW2_MAGIC, 3, 0, 0, CLUSTER_BITS, size_bytes, 0, tables, 3 * cluster, cluster, 1, 0, 0)
    header += struct.pack(">QQQII", 0, 0, 0, 4, QCOW2_HEADER.size + 32)
    counts = struct.pack(">Q", 2 * cluster).ljust(cluster, b"\0") + (b"\0\x01" * 4).ljust(cluster, b"\0")
    return header.ljust(cluster, b"\0") + counts + b"\0" * cluster
