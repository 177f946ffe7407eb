"""A real Ceph with its S3 gateway (RGW) for tests: one monitor, one disk that is memory, one gateway; ended with the tests."""

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import uuid
from typing import Any

import pytest

from tests.support.servers import Server, free_port

MIB = 1 << 20
LIMIT_S = 60.0
SETTINGS = {
    "auth cluster required": "none", "auth service required": "none", "auth client required": "none",
    # A gateway asks its monitor for encryption otherwise, for which there are no keys.
    "ms mon client mode": "crc", "ms mon service mode": "crc", "ms mon cluster mode": "crc", "ms client mode": "crc",
    "public addr": "127.0.0.1", "cluster addr": "127.0.0.1", "admin socket": "", "log file": "", "pid file": "",
    "osd objectstore": "memstore", "memstore device bytes": str(512 * MIB), "osd crush chooseleaf type": "0",
    "osd pool default size": "1", "osd pool default min size": "1", "osd pool default pg num": "1", "osd pool default pg autoscale mode": "off",
    "mon allow pool size one": "true",
    # A disk of this machine that is nearly full is none of the tests' business.
    "mon data avail crit": "1", "mon data avail warn": "1",
}  # fmt: skip


needs_ceph = pytest.mark.skipif(shutil.which("radosgw") is None, reason="radosgw, ceph-mon and ceph-osd are not installed")


class Ceph(Server):
    """`port` is the gateway's; `key` is of the user that makes users and keys there."""

    def __init__(self) -> None:
        super().__init__("ceph", user="ceph")
        self.key = ("PORTALADMIN000000000", "the-secret-of-the-portal-at-the-engine")
        self._daemons: list[subprocess.Popen[bytes]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def command(self) -> list[str]:
        return ["radosgw", "-c", "ceph.conf", "-n", "client.rgw", "-f"]

    def start(self) -> None:
        """Monitor, disk and gateway, then the user; a gateway that was killed comes back alone."""
        if self._daemons:
            super().start()
            return
        try:
            self._found_cluster()
            super().start()
            self._run("radosgw-admin", "-n", "client.rgw", "user", "create", "--uid", "portal", "--display-name", "The portal",
                      "--access-key", self.key[0], "--secret-key", self.key[1], "--caps", "users=*;buckets=*")  # fmt: skip
        except BaseException:
            self.close()
            raise

    def _found_cluster(self) -> None:
        cluster, disk, port = str(uuid.uuid4()), str(uuid.uuid4()), free_port()
        places = {name: self.home / name for name in ("mon", "osd", "rgw", "crash")}
        for place in places.values():
            place.mkdir()
            if self.user:
                shutil.chown(place, self.user)
        own = {
            "fsid": cluster, "mon host": f"v2:127.0.0.1:{port}", "run dir": self.home, "keyring": self.home / "keyring", "crash dir": places["crash"],
            "mon data": places["mon"], "osd data": places["osd"], "rgw data": places["rgw"], "rgw frontends": f"beast endpoint=127.0.0.1:{self.port}",
        }  # fmt: skip
        (self.home / "ceph.conf").write_text("[global]\n" + "".join(f"{name} = {value}\n" for name, value in {**own, **SETTINGS}.items()))
        self._run("monmaptool", "--create", "--fsid", cluster, "--addv", "a", f"[v2:127.0.0.1:{port}]", "monmap")
        self._run("ceph-mon", "-i", "a", "--mkfs", "--monmap", "monmap")
        self._begin("ceph-mon", "-i", "a", "-f")
        self._run("ceph", "osd", "new", disk)
        self._run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", disk)
        self._begin("ceph-osd", "-i", "0", "-f")

    def _options(self) -> dict[str, Any]:
        group = pwd.getpwnam(self.user).pw_gid if self.user else None
        return {"cwd": self.home, "stdout": self.log, "stderr": self.log, "stdin": subprocess.DEVNULL, "user": self.user or None, "group": group,
                "start_new_session": True}  # fmt: skip

    def _run(self, program: str, *rest: str) -> None:
        done = subprocess.run([program, "-c", "ceph.conf", *rest], check=False, timeout=LIMIT_S, **self._options())
        assert done.returncode == 0, f"{program}: {(self.home / 'log').read_text()[-2000:]}"

    def _begin(self, program: str, *rest: str) -> None:
        self._daemons.append(subprocess.Popen([program, "-c", "ceph.conf", *rest], **self._options()))

    def close(self) -> None:
        for daemon in reversed(self._daemons):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(daemon.pid, signal.SIGKILL)
            daemon.wait()
        self._daemons.clear()
        super().close()
