"""Network namespaces: entering one for a moment, and keeping named ones there, even if somebody takes a name away that processes still live under."""

import ctypes
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from portal.engines.local.network.names import RUN, path_of
from portal.engines.ports import EngineError

CLONE_NEWNET = 0x40000000
MS_BIND = 4096
TIMEOUT_S = 10
_LIBC = ctypes.CDLL(None, use_errno=True)


@contextmanager
def inside(namespace: str) -> Iterator[None]:
    """Let this thread, and what it starts, be in a namespace; other threads stay where they are. Raises EngineError."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            away = os.open(path_of(namespace), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise EngineError("A network namespace of the portal is missing.") from error
        try:
            _enter(away)
        finally:
            os.close(away)
        try:
            yield
        finally:
            _enter(home)
    finally:
        os.close(home)


def _enter(handle: int) -> None:
    if _LIBC.setns(handle, CLONE_NEWNET) != 0:
        raise EngineError(f"A network namespace cannot be entered: {os.strerror(ctypes.get_errno())}.")


def exists(namespace: str) -> bool:
    """Whether the name leads to a namespace, not to the empty file that a killed process leaves."""
    return identity(namespace) != 0


def identity(namespace: str) -> int:
    """The number by which the kernel knows the namespace; 0 if there is none."""
    try:
        found = path_of(namespace).stat()
    except OSError:
        return 0
    return found.st_ino if found.st_dev == Path("/proc/self/ns/net").stat().st_dev else 0


def ensure(namespace: str, former: int, sign: str) -> None:
    """Make a namespace; one of the number `former` that lost its name, but in which processes of ours still live, gets it back.

    The kernel gives numbers again: ours are processes whose command line has the `sign`.
    """
    if exists(namespace):
        return
    with suppress(FileNotFoundError):
        path_of(namespace).unlink()
    home = _home_of(former, sign) if former else None
    if home is None:
        _ip("netns", "add", namespace)
        return
    RUN.mkdir(exist_ok=True)
    path_of(namespace).touch(mode=0o444)
    if _LIBC.mount(os.fsencode(home), os.fsencode(path_of(namespace)), b"none", MS_BIND, None) != 0:
        raise EngineError(f"A network namespace cannot be named again: {os.strerror(ctypes.get_errno())}.")


def _home_of(number: int, sign: str) -> Path | None:
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (process / "ns/net").stat().st_ino == number and os.fsencode(sign) in (process / "cmdline").read_bytes():
                return process / "ns/net"
    return None


def remove(namespace: str) -> None:
    """Take a namespace's name away; it ends with the last process in it."""
    if path_of(namespace).exists():
        _ip("netns", "delete", namespace)


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    if done.returncode != 0:
        raise EngineError(f"A network namespace cannot be changed: {done.stderr.strip()[-200:]}")


def set_kernel(namespace: str, values: dict[str, int]) -> None:
    """Set what `/proc/sys/net` holds of a namespace, as far as its kernel knows it."""
    with inside(namespace):
        for name, value in values.items():
            with suppress(FileNotFoundError):
                path = Path("/proc/sys/net") / name
                if path.read_text().strip() != str(value):
                    path.write_text(str(value))


def has_kernel(namespace: str, values: dict[str, int]) -> bool:
    """Whether all of this is set in a namespace, as far as its kernel knows it."""
    with inside(namespace):
        for name, value in values.items():
            with suppress(FileNotFoundError):
                if (Path("/proc/sys/net") / name).read_text().strip() != str(value):
                    return False
    return True
