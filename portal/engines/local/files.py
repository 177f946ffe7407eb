"""Files that are to be there after a power cut."""

import os
from pathlib import Path


def sync(path: Path) -> None:
    """Have a file's content, or the names in a directory, safely on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
