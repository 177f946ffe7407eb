"""The consoles of machines, through sockets and log files alone: the web process needs neither libvirt nor any privilege for them."""

import os
import socket
from pathlib import Path

from portal.engines.local.paths import LocalPaths
from portal.engines.ports import EngineUnavailable

CONNECT_TIMEOUT_S = 5.0


class LocalConsole:
    """ConsoleAccess of the local engine."""

    def __init__(self, data_dir: Path) -> None:
        self._paths = LocalPaths(data_dir)

    def log_tail(self, machine_id: str, *, max_bytes: int) -> bytes:
        """The last bytes of the machine's serial output."""
        try:
            with self._paths.machine(machine_id).log.open("rb") as log:
                size = log.seek(0, os.SEEK_END)
                log.seek(max(0, size - max_bytes))
                # Zeros at the front are what was cut off, see logs.py.
                return log.read(max(0, max_bytes)).lstrip(b"\0")
        except FileNotFoundError:
            return b""

    def open_serial(self, machine_id: str) -> socket.socket:
        """A stream to the serial port. Raises EngineUnavailable while the machine is off."""
        return _connect(self._paths.machine(machine_id).serial)

    def open_display(self, machine_id: str) -> socket.socket:
        """A stream that speaks RFB. Raises EngineUnavailable while the machine is off."""
        return _connect(self._paths.machine(machine_id).display)


def _connect(path: Path) -> socket.socket:
    stream = socket.socket(socket.AF_UNIX)
    try:
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            stream.settimeout(CONNECT_TIMEOUT_S)
            # Through the open directory: the path itself may be longer than a socket's address can hold.
            stream.connect(f"/proc/self/fd/{folder}/{path.name}")
        finally:
            os.close(folder)
    except (FileNotFoundError, ConnectionRefusedError):
        stream.close()
        raise EngineUnavailable("The machine is not running.") from None
    except OSError as error:
        stream.close()
        raise EngineUnavailable(f"The machine's console cannot be reached: {error.strerror or 'no answer'}.") from None
    stream.settimeout(None)
    return stream
