"""Turns at writing to SQLite, which lets whoever looks in the right moment write next.

Who waits looks every now and then. Without turns, somebody who writes again and again is back before anybody has looked, and everybody else waits
until that ends. Here the first of those who wait has the turn, and nobody begins to write without it. The database's own lock stays what keeps two
from writing at once.
"""

import fcntl
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

LOOK_EVERY_S = 0.001


class Turns:
    """Who begins the next write transaction: one of the threads of one of the processes that have a database open."""

    def __init__(self, file: Path | None) -> None:
        """`file` is made where it is missing; the kernel forgets who held it when a process dies. Without one, turns are this process's own."""
        self._file, self._threads = file, threading.Lock()

    @contextmanager
    def taken(self, within_s: float) -> Iterator[float]:
        """Wait for the turn and hold it for a block, which gets the moment (monotonic) up to which it may wait itself. Who gets none in time goes on without."""
        end = time.monotonic() + within_s
        if not self._threads.acquire(timeout=within_s):
            yield end
            return
        try:
            with _opened(self._file) as handle:
                while not _is_locked(handle) and time.monotonic() < end:
                    time.sleep(LOOK_EVERY_S)
                yield end
        finally:
            self._threads.release()


@contextmanager
def _opened(file: Path | None) -> Iterator[int | None]:
    """A handle of one's own: the kernel tells apart who locks by the handle."""
    if file is None:
        yield None
        return
    try:
        handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:
        # A full disk, for one: the database says so in its own words.
        yield None
        return
    try:
        yield handle
    finally:
        try:
            # Said, not left to the end of the handle: a program that is being started has it for a moment.
            with suppress(OSError):
                fcntl.flock(handle, fcntl.LOCK_UN)
        finally:
            os.close(handle)


def _is_locked(handle: int | None) -> bool:
    try:
        if handle is not None:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        # A file system without locks: turns are this process's own there.
        return True
    return True
