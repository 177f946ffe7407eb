"""Files that are there whole or not at all: written beside the one meant, forced to the disk, and given their name at the end."""

import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


def part_of(path: Path) -> Path:
    """A name beside a file that nobody looks for."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}")


@contextmanager
def writing(part: Path) -> Iterator[BinaryIO]:
    """Write a new file that only its owner reads; it is on the disk at the end, or gone if that failed."""
    try:
        with part.open("xb") as out:
            part.chmod(0o600)
            yield out
            out.flush()
            os.fsync(out.fileno())
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def publish(part: Path, path: Path) -> None:
    """Give a written file its name, for good: the directory is on the disk, too."""
    part.replace(path)
    sync_directory(path.parent)


def write_whole(path: Path, content: bytes) -> None:
    """Write a small file, in place of one of that name."""
    part = part_of(path)
    with writing(part) as out:
        out.write(content)
    publish(part, path)


def write_first(path: Path, content: bytes) -> None:
    """Write a small file unless there is one of that name: of several who begin at once, all find what one of them wrote."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = part_of(path)
    with writing(part) as out:
        out.write(content)
    try:
        with suppress(FileExistsError):
            path.hardlink_to(part)
    finally:
        part.unlink()
    sync_directory(path.parent)


def remove_parts(home: Path, before: float) -> None:
    """Remove what writers left behind that died before this moment (seconds since 1970)."""
    for path in home.glob(".*") if home.is_dir() else ():
        if modified(path) < before:
            path.unlink(missing_ok=True)


def modified(path: Path) -> float:
    """When a file was written last, in seconds since 1970; of one that is gone by now: never, so that nobody takes it for old."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return float("inf")


def sync_directory(path: Path) -> None:
    """Force the names in a directory to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
