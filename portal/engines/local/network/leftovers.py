"""Networks of an installation whose directory somebody has deleted: nobody would ever remove them, and their addresses would stay taken."""

import os
import signal
from contextlib import suppress
from pathlib import Path

from portal.engines.local.network import namespaces, nft
from portal.engines.local.network.links import Links
from portal.engines.local.network.listing import Link
from portal.engines.local.network.name_server import PROGRAM
from portal.engines.local.network.names import HOST_LINKS, RUN, Installation


def clear(links: Links, link: Link) -> bool:
    """Remove everything of the installation that a link of the host belongs to, if its directory is gone; False if there is somebody to ask."""
    if not link.name.startswith(HOST_LINKS) or not link.label or Path(link.label).exists():
        return False
    installation = Installation(link.name.removeprefix(HOST_LINKS))
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            _end(int(process.name), link.label)
    for path in RUN.glob(f"{installation.fabric}*"):
        namespaces.remove(path.name)
    links.remove(link.name)
    nft.apply("", f"table inet {installation.host_table} {{\n}}\ndelete table inet {installation.host_table}\n")
    return True


def _end(number: int, folder: str) -> None:
    """End a process if it is a name server of that installation."""
    handle = os.pidfd_open(number)
    try:
        words = Path(f"/proc/{number}/cmdline").read_bytes().split(b"\0")
        if words[0].endswith(PROGRAM.encode()) and any(word.startswith(os.fsencode(f"--conf-file={folder}/")) for word in words):
            signal.pidfd_send_signal(handle, signal.SIGKILL)
    finally:
        os.close(handle)
