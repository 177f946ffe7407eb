"""One worker at a time owns a host, with the programs that it starts to work on files: they end with it, and the host is not free before they have."""

import fcntl
import logging
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from portal.engines.ports import EngineUnavailable

log = logging.getLogger("portal.engines.local")
_handles: list[int] = []


def claim_host(file: Path) -> bool:
    """Try to become the owner; False while another worker, or a program that it left behind, is. The kernel forgets an owner that died."""
    handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return False
    except OSError as error:
        log.warning("%s cannot be locked (%s): nothing keeps a second worker from this host", file.name, error.strerror)
    _handles.append(handle)
    return True


def run_bound(command: Sequence[str], *, pass_fds: Sequence[int] = (), timeout_s: float | None = None) -> subprocess.CompletedProcess[bytes]:
    """Run a program that is killed should this process die, and that keeps the host until it has ended. Raises subprocess.TimeoutExpired."""
    binder = shutil.which("setpriv")
    if binder is None:
        raise EngineUnavailable("setpriv is missing on this host.")
    bound = [binder, "--pdeathsig", "KILL", *command]
    return subprocess.run(bound, capture_output=True, timeout=timeout_s, check=False, pass_fds=[*pass_fds, *_handles])
