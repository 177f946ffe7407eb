"""A worker leaves a host alone as long as another one has it."""

import signal
import socket
import subprocess
from pathlib import Path

from tests.support.databases import settings_for
from tests.support.processes import log_file, portal_process
from tests.support.servers import until


def test_a_worker_waits_until_the_host_is_free(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, engine_compute="local")
    lock = tmp_path / f"worker-{socket.gethostname()}.lock"
    with subprocess.Popen(["flock", str(lock), "cat"], stdin=subprocess.PIPE) as other:
        until(
            lambda: lock.exists() and subprocess.run(["flock", "--nonblock", str(lock), "true"], check=False).returncode == 1,
            within_s=60,
            what="another has the host",
        )

        def told() -> str:
            return log_file(settings, "worker").read_text()

        with portal_process(settings, "worker") as polite:
            until(lambda: "another worker has the engines of this host" in told(), within_s=60, what="it waits")
            polite.send_signal(signal.SIGTERM)
            assert polite.wait(30) == 0
        with portal_process(settings, "worker"):
            until(lambda: told().count("another worker has the engines of this host") == 2, within_s=60, what="it waits")
            assert "working" not in told()
            other.communicate()
            until(lambda: '"working"' in told() or "working" in told().split("are free")[-1], within_s=60, what="it works")
