"""What a worker is called in the ledger: its host, its process and when that began, so that others on the host can tell whether it is still there."""

import os
import socket
from pathlib import Path

# Field of /proc/<pid>/stat after the name of the program: when the process began.
STARTED = 19


def own_name() -> str:
    """The name of this process, such as `host:4711:88123:4026531836`."""
    pid = os.getpid()
    return f"{_host()}:{pid}:{_began(pid)}:{_space()}"


def is_gone(name: str) -> bool:
    """Whether a worker was a process here and is none any more; of one elsewhere, nobody knows."""
    host, _, rest = name.partition(":")
    pid, began, space = (*rest.split(":"), "", "", "")[:3]
    if (host, space) != (_host(), _space()) or not pid.isdigit():
        return False
    return _began(int(pid)) != began


def _host() -> str:
    return socket.gethostname()[:64].replace(":", "-")


def _space() -> str:
    """Which processes this one sees: a container of the same name sees others."""
    return "".join(char for char in str(Path("/proc/self/ns/pid").readlink()) if char.isdigit())


def _began(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()[STARTED]
    except (FileNotFoundError, ProcessLookupError):
        return ""
