"""Disk images through qemu-img, which is given little time and memory: an image may have been made to devour both."""

import json
import logging
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from portal.engines.image_headers import BROKEN, look_into
from portal.engines.local.ownership import run_bound
from portal.engines.ports import EngineError, EngineRefused, EngineUnavailable, ImageFormat, ImageInfo

log = logging.getLogger("portal.engines.local")
CPU_LIMIT_S = 60
TIME_LIMIT_S = 300
LONG_LIMIT_S = 6 * 3600
MEMORY_LIMIT_BYTES = 1 << 30
MOST_GIB = 65_536
GIB = 1 << 30
LEAKS_ONLY = 3
# The passphrase is random already: a slow way from it to the key would only cost time.
LUKS = "encrypt.format=luks,encrypt.key-secret=key,encrypt.iter-time=10"
# QEMU measures its own speed in making LUKS, and gives up where the clock is too coarse for that.
CLOCK, CLOCK_TRIES = b"Unable to get accurate CPU usage", 50


@dataclass(frozen=True, slots=True)
class Lock:
    """How a disk of ours is encrypted: by which passphrase, and how many files from it downwards, one built on the other."""

    key: bytes = field(repr=False)
    depth: int = 1


def inspect(path: Path, *, most_gib: int = MOST_GIB) -> ImageInfo:
    """Look into an untrusted file. Raises EngineRefused unless it is a sound image that stands alone."""
    # The header first: qemu-img is not even shown a file that would lead it to another one.
    told = look_into(path)
    found = _json(["info", "--output=json", *(["-f", "qcow2"] if told.format is ImageFormat.QCOW2 else []), str(path)])
    if found.get("format") != told.format.value:
        raise EngineRefused(f"The file is an image in the format {found.get('format')}; accepted are qcow2 and raw.")
    details = found.get("format-specific", {}).get("data", {})
    if any(key in found for key in ("backing-filename", "full-backing-filename")) or details.get("data-file"):
        raise EngineRefused("The image refers to another file. Convert it to one that stands alone.")
    if found.get("encrypted") or details.get("encrypt"):
        raise EngineRefused("The image is encrypted. Convert it to one that is not.")
    if len(found.get("snapshots", [])) > 1:
        raise EngineRefused("The image holds several snapshots. Convert it to one without.")
    size = int(found["virtual-size"])
    if size != told.virtual_size_bytes:
        raise EngineRefused(BROKEN)
    if size > most_gib * GIB:
        raise EngineRefused(f"The disk in the image has {-(-size // GIB):,} GiB; at most {most_gib:,} GiB are accepted.")
    if told.format is ImageFormat.QCOW2:
        _check(path, told.file_size_bytes, int(found["cluster-size"]))
    return told


def _check(path: Path, file_size: int, cluster_size: int) -> None:
    done = _run(["check", "-f", "qcow2", "--output=json", str(path)])
    # What is only reserved without use does no harm.
    if done.returncode not in {0, LEAKS_ONLY}:
        raise EngineRefused(BROKEN)
    # The last cluster need not be written to its end, everything before it must be there.
    if int(json.loads(done.stdout)["image-end-offset"]) - file_size >= cluster_size:
        raise EngineRefused(BROKEN)


def create(path: Path, size_bytes: int, lock: Lock | None = None) -> None:
    """Make an empty disk; it takes room when it is written to."""
    _done(["create", "-q", "-f", "qcow2", *_encrypted(lock), str(path), str(size_bytes)], "The disk cannot be made", lock=lock)


def create_overlay(path: Path, base: str, base_format: ImageFormat, size_bytes: int, lock: Lock | None = None) -> None:
    """Make a disk that begins as `base` (relative to the new file) and takes all writes itself."""
    # What it is built on is ours and need not be opened, which would need its passphrase.
    arguments = ["create", "-q", "-f", "qcow2", *_encrypted(lock), *(["-u"] if lock else []), "-F", base_format.value, "-b", base]
    _done([*arguments, str(path), str(size_bytes)], "The disk cannot be made", lock=lock)


def virtual_size(path: Path) -> int:
    """Size in bytes of a disk of ours; a guest may be using it."""
    return int(_json(["info", "-U", "-f", "qcow2", "--output=json", str(path)])["virtual-size"])


def grow(path: Path, size_bytes: int, lock: Lock | None = None) -> None:
    """Make a disk that nobody uses larger."""
    _done(["resize", "-q", *_named(path, lock), str(size_bytes)], "The disk cannot grow", lock=lock)


def copy(source: Path, target: Path, lock: Lock | None = None) -> None:
    """Write what a disk of ours holds into a file that stands alone, encrypted if it is; nobody may be writing to it."""
    # As for the other format: what is zero is not written, and stays a hole.
    arguments = ["convert", "-q", "-O", "qcow2", *_encrypted(lock), *_named(source, lock), str(target)]
    _done(arguments, "The disk cannot be copied", is_long=True, lock=lock)


def duplicate(source: Path, target: Path) -> None:
    """Copy the file of a disk of ours as it is, without filling its holes."""
    program = shutil.which("cp")
    if program is None:
        raise EngineUnavailable("cp is missing on this host.")
    done = run_bound([program, "--sparse=always", "--reflink=auto", str(source), str(target)])
    if done.returncode != 0:
        reason = "the host's disk is full" if b"No space left" in done.stderr else f"cp ended with status {done.returncode}"
        raise EngineError(f"The disk cannot be copied: {reason}.")


def rebase(path: Path, base: str, base_format: ImageFormat, lock: Lock | None = None) -> None:
    """Build a disk of ours on another file (relative to it, and not encrypted), or on none, without changing what it holds."""
    onto = ["-F", base_format.value, "-b", base] if base else ["-b", ""]
    _done(["rebase", "-q", *onto, *_named(path, lock)], "The disk cannot be taken apart from its base", is_long=True, lock=lock)


def redirect(path: Path, base: str, base_format: ImageFormat) -> None:
    """Say where the file is now that a disk of ours is built on."""
    _done(["rebase", "-u", "-q", "-f", "qcow2", "-F", base_format.value, "-b", base, str(path)], "The disk cannot be moved")


def _encrypted(lock: Lock | None) -> list[str]:
    return ["-o", LUKS] if lock is not None else []


def _named(path: Path, lock: Lock | None) -> list[str]:
    """A disk of ours, with where its passphrase and those of what it is built on are."""
    if lock is None:
        return ["-f", "qcow2", str(path)]
    keys = [f"{'backing.' * depth}encrypt.key-secret=key" for depth in range(lock.depth)]
    return ["--image-opts", ",".join(["driver=qcow2", "file.driver=file", f"file.filename={str(path).replace(',', ',,')}", *keys])]


def _json(arguments: Sequence[str]) -> dict[str, Any]:
    done = _run(arguments)
    if done.returncode != 0:
        raise EngineRefused(BROKEN)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _done(arguments: Sequence[str], complaint: str, *, is_long: bool = False, lock: Lock | None = None) -> None:
    for _ in range(CLOCK_TRIES if lock is not None else 1):
        done = _run(arguments, is_ours=True, time_s=LONG_LIMIT_S if is_long else TIME_LIMIT_S, key=lock.key if lock is not None else b"")
        if CLOCK not in done.stderr:
            break
    if done.returncode == 0:
        return
    reason = done.stderr.decode(errors="replace")
    log.warning("%s: %s", complaint, reason.strip())
    if "No space left" in reason:
        raise EngineRefused(f"{complaint}: the host's disk is full.")
    raise EngineError(f"{complaint} (qemu-img ended with status {done.returncode}).")


def _run(arguments: Sequence[str], *, is_ours: bool = False, time_s: float = TIME_LIMIT_S, key: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Run it under limits: of a file that somebody else made, also of CPU and memory. A passphrase is read from a pipe: no list of processes has it."""
    program, limiter = shutil.which("qemu-img"), shutil.which("prlimit")
    if program is None or limiter is None:
        raise EngineUnavailable("qemu-img is missing on this host.")
    limits = ["--core=0", *([] if is_ours else [f"--cpu={CPU_LIMIT_S}", f"--as={MEMORY_LIMIT_BYTES}"])]
    command, *rest = arguments
    pipes: list[int] = []
    try:
        if key:
            pipes = [*os.pipe()]
            # Shorter than what a pipe holds: nobody has to read yet.
            os.write(pipes[1], key)
            os.close(pipes.pop())
            rest = ["--object", f"secret,id=key,format=raw,file=/dev/fd/{pipes[0]}", *rest]
        return run_bound([limiter, *limits, program, command, *rest], pass_fds=pipes, timeout_s=time_s)
    except subprocess.TimeoutExpired:
        raise EngineRefused(f"The disk's file took more than {time_s} s to work on.") from None
    finally:
        for pipe in pipes:
            os.close(pipe)
