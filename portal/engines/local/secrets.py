"""Passphrases as libvirt is given them: for as long as it opens a disk, and never on the host's disk.

A libvirt of the host's own keeps secrets in its memory. The embedded one of the version that hosts have (9.0.0) dies of that kind, and of forgetting
a secret; the other kind it writes into files. So these lie in the host's memory (/dev/shm), for the moment in which a disk is opened, and then the
secret is another, random one. In each thread it also wants to know on whose behalf it asks itself for a secret, and of whom; libvirt's daemons tell it
that by functions of its library that are not public.
"""

import ctypes
import hashlib
import logging
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote
from xml.etree import ElementTree as ET

import libvirt

from portal.engines.ports import EngineRefused

log = logging.getLogger("portal.engines.local")
MEMORY = Path("/dev/shm")  # noqa: S108  # nosec B108 - a directory of our own in it, which nobody else may enter
KEY_BYTES = 32
NOT_HERE = "This host cannot open encrypted volumes:"


# The embedded driver of secrets is opened once in the life of a process.
_OPENED: dict[Path, Any] = {}
# The threads that it has been told of.
_KNOWN = threading.local()


class Secrets:
    """The secrets of one connection."""

    def __init__(self, connection: Any, root: Path | None) -> None:
        """`root` is that of the embedded libvirt; None for one of the host's own."""
        self._guard, self._root = threading.Lock(), root
        self._connection = connection
        self._memory: Path | None = None
        if root is not None:
            # Of a process that was killed while a disk was being opened.
            _clear(_memory_of(root))
        self._users: dict[str, int] = {}

    @contextmanager
    def unlocked(self, keys: Mapping[str, bytes]) -> Iterator[None]:
        """Have these secrets, by what libvirt calls them, until the block ends. Raises EngineRefused where this host cannot."""
        if not keys:
            yield
            return
        kept: list[str] = []
        try:
            for name, key in keys.items():
                self._keep(name, key)
                kept.append(name)
            yield
        finally:
            # Another one may hold those that could not be kept.
            for name in kept:
                self._forget(name)

    def _keep(self, name: str, key: bytes) -> None:
        with self._guard:
            try:
                self._become_known()
                self._secret(name).setValue(key, 0)
            except libvirt.libvirtError as error:
                log.warning("a secret cannot be kept: %s", error.get_error_message())
                raise EngineRefused(f"{NOT_HERE} its libvirt keeps no secrets.") from error
            self._users[name] = self._users.get(name, 0) + 1

    def _forget(self, name: str) -> None:
        with self._guard:
            if name not in self._users:
                return
            self._users[name] -= 1
            if self._users[name]:
                return
            del self._users[name]
            with suppress(libvirt.libvirtError):
                secret = self._secret(name)
                if self._root is None:
                    secret.undefine()
                else:
                    secret.setValue(os.urandom(KEY_BYTES), 0)
            if self._memory is not None:
                for left in self._memory.glob(f"{name}.*"):
                    left.unlink()

    def _secret(self, name: str) -> Any:
        """The secret of this name, made if libvirt has none."""
        connection = self._open()
        try:
            return connection.secretLookupByUUIDString(name)
        except libvirt.libvirtError:
            return connection.secretDefineXML(self._described(name), 0)

    def _described(self, name: str) -> str:
        root = ET.Element("secret", private="yes", ephemeral="yes" if self._root is None else "no")
        ET.SubElement(root, "uuid").text = name
        return ET.tostring(root, encoding="unicode")

    def _open(self) -> Any:
        if self._root is None:
            return self._connection
        if self._memory is None:
            self._memory = self._in_memory(self._root)
        if self._root not in _OPENED:
            _OPENED[self._root] = libvirt.open(f"secret:///embed?root={quote(str(self._root))}")
        return _OPENED[self._root]

    @staticmethod
    def _in_memory(root: Path) -> Path:
        """Have the files of secrets lie in the host's memory, in the directory that this gives."""
        place = root / "etc" / "secrets"
        if not MEMORY.is_mount():
            raise EngineRefused(f"{NOT_HERE} {MEMORY} is not in its memory.")
        memory = _memory_of(root)
        memory.mkdir(mode=0o700, exist_ok=True)
        if memory.is_symlink() or memory.stat().st_uid != place.parent.stat().st_uid or memory.stat().st_mode & 0o077:
            raise EngineRefused(f"{NOT_HERE} its place in {MEMORY} belongs to somebody else.")
        _clear(memory)
        if not place.is_symlink():
            if place.is_dir():
                place.rmdir()
            place.symlink_to(memory)
        return memory

    def _become_known(self) -> None:
        """Tell the embedded libvirt that this thread is the host's own, and where it finds secrets."""
        if self._root is None or getattr(_KNOWN, "is_known", False):
            return
        try:
            library = ctypes.CDLL("libvirt.so.0")
            library.virIdentityGetSystem.restype = ctypes.c_void_p
            library.virIdentitySetCurrent.argtypes = [ctypes.c_void_p]
            library.virIdentitySetCurrent(library.virIdentityGetSystem())
            pointer = ctypes.pythonapi.PyCapsule_GetPointer
            pointer.argtypes, pointer.restype = [ctypes.py_object, ctypes.c_char_p], ctypes.c_void_p
            library.virSetConnectSecret.argtypes = [ctypes.c_void_p]
            library.virSetConnectSecret(pointer(self._open()._o, b"virConnectPtr"))  # noqa: SLF001 - the binding has no other name for it
        except (OSError, AttributeError) as error:
            raise EngineRefused(f"{NOT_HERE} its libvirt is of a version that is not known.") from error
        _KNOWN.is_known = True


def _memory_of(root: Path) -> Path:
    """Where the files of secrets lie, for the embedded libvirt of this directory."""
    return MEMORY / f"atonix-{hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:16]}"


def _clear(memory: Path) -> None:
    for left in memory.iterdir() if memory.is_dir() and not memory.is_symlink() else ():
        left.unlink()
