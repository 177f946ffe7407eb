"""Keeps console logs small. A guest may print for ever; QEMU appends to the log and never looks back.

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
    try:
        handle = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
    except FileNotFoundError:
        return
    try:
        found = os.fstat(handle)
        surplus = (found.st_size - keep_bytes) // BLOCK_BYTES * BLOCK_BYTES
        if surplus > 0 and found.st_blocks * 512 > keep_bytes + BLOCK_BYTES and not _punch(handle, surplus):
            # A file system that cannot do this: begin anew.
            os.ftruncate(handle, 0)
    finally:
        os.close(handle)


def _punch(handle: int, length: int) -> bool:
    libc = ctypes.CDLL(None)
    return bool(libc.fallocate(handle, PUNCH_HOLE | KEEP_SIZE, ctypes.c_int64(0), ctypes.c_int64(length)) == 0)
