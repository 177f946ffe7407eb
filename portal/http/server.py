"""The web server: gunicorn with threads, because consoles and streams each hold one."""

import hashlib
import os
import sys
from pathlib import Path
from typing import Any

from portal.settings import Settings

GRACEFUL_S = 5
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  # nosec B108 - what is made there is ours alone and checked to be


def command_line(settings: Settings) -> list[str]:
    """What to execute; the environment carries the settings on."""
    directory = metrics_directory(settings)
    for left in directory.glob("*.db"):
        left.unlink()
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(directory)
    return [
        sys.executable, "-m", "gunicorn", "--config", "python:portal.http.gunicorn_conf", "--bind", f"{settings.portal_host}:{settings.portal_port}",
        "--workers", str(settings.web_workers), "--threads", str(settings.web_threads), "portal.http.wsgi:app",
    ]  # fmt: skip


def metrics_directory(settings: Settings) -> Path:
    """Where the processes of this web server keep their counts, as files mapped into memory.

    Replicas may share DATA_DIR; counts of one web server belong to it alone, so the directory can be named from outside. Otherwise it is in memory
    where that is to be had: on a disk that is full, a process that touches a new page of such a file is killed.
    """
    if named := os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        directory = Path(named)
    else:
        owner = hashlib.sha256(os.fsencode(settings.data_dir.resolve())).hexdigest()[:12]
        directory = SHARED_MEMORY / f"atonix-portal-{os.getuid()}-{owner}"
        try:
            directory.mkdir(mode=0o700, exist_ok=True)
            is_ours = directory.stat().st_uid == os.getuid() and not directory.is_symlink()
        except OSError:
            is_ours = False
        directory = directory if is_ours else settings.data_dir.resolve() / "metrics"
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def no_metrics_port(settings: Settings) -> bool:
    """Whether the extra listener is switched off."""
    return settings.metrics_port == 0


def start_metrics(settings: Settings) -> Any:
    """Serve /metrics on its own port from the web server's first process."""
    from prometheus_client import start_http_server

    from portal.http.exporter import registry_of_all

    return start_http_server(settings.metrics_port, addr=settings.portal_host, registry=registry_of_all())
