"""One lock for each machine and image: what concerns different ones goes on at the same time."""

import threading


class KeyedLocks:
    """Locks by name, each made when it is first asked for."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._locks: dict[str, threading.Lock] = {}

    def of(self, key: str) -> threading.Lock:
        """The lock of one machine or image."""
        with self._guard:
            return self._locks.setdefault(key, threading.Lock())
