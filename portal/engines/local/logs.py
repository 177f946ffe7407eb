"""Keeps files small that QEMU appends to, console logs above all. A guest may print for ever; QEMU never looks back.

The front of the file is given back to the file system and its length stays, so that nothing is lost or doubled while QEMU writes.
"""

import ctypes
import os
from pathlib import Path

KEEP_BYTES = 1 << 20
BLOCK_BYTES = 4096
KEEP_SIZE, PUNCH_HOLE = 1, 2


def bound(path: Path, keep_bytes: int = KEEP_BYTES) -> None:
    """Drop all but the last bytes of a log."""
    if path.exists() and not release_front(path, path.stat().st_size - keep_bytes):
        # A file system that cannot do this: begin anew.
        os.truncate(path, 0)


def release_front(path: Path, up_to: int) -> bool:
    """Give the front of a file back to the file system, as far as that fills blocks; False where it cannot be done."""
    length = up_to // BLOCK_BYTES * BLOCK_BYTES
    if length <= 0:
        return True
    try:
        handle = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    except FileNotFoundError:
        return True
    try:
        libc = ctypes.CDLL(None)
        return bool(libc.fallocate(handle, PUNCH_HOLE | KEEP_SIZE, ctypes.c_int64(0), ctypes.c_int64(length)) == 0)
    finally:
        os.close(handle)
