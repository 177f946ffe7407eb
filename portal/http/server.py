"""The web server: gunicorn with threads, because consoles and streams each hold one."""

import os
import sys
from pathlib import Path
from typing import Any

from portal.settings import Settings

GRACEFUL_S = 5


def command_line(settings: Settings) -> list[str]:
    """What to execute; the environment carries the settings on."""
    # Replicas may share DATA_DIR; counts of one web server belong to it alone, so its directory can be named from outside.
    directory = Path(os.environ.get("PROMETHEUS_MULTIPROC_DIR") or settings.data_dir.resolve() / "metrics")
    directory.mkdir(parents=True, exist_ok=True)
    for left in directory.glob("*.db"):
        left.unlink()
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(directory)
    return [
        sys.executable, "-m", "gunicorn", "--config", "python:portal.http.gunicorn_conf", "--bind", f"{settings.portal_host}:{settings.portal_port}",
        "--workers", str(settings.web_workers), "--threads", str(settings.web_threads), "portal.http.wsgi:app",
    ]  # fmt: skip


def no_metrics_port(settings: Settings) -> bool:
    """Whether the extra listener is switched off."""
    return settings.metrics_port == 0


def start_metrics(settings: Settings) -> Any:
    """Serve /metrics on its own port from the web server's first process."""
    from prometheus_client import start_http_server

    from portal.http.exporter import registry_of_all

    return start_http_server(settings.metrics_port, addr=settings.portal_host, registry=registry_of_all())
