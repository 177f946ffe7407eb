"""The gateway under gunicorn: threads, because each upload and download holds one."""

import sys
from typing import Any

from portal.settings import Settings


def command_line(settings: Settings) -> list[str]:
    """What to execute; the environment carries the settings on."""
    tls = ["--certfile", settings.s3_tls_cert, "--keyfile", settings.s3_tls_key] if settings.s3_tls_cert else []
    return [
        sys.executable, "-m", "gunicorn", "--config", "python:portal.s3.gunicorn_conf", "--bind", f"{settings.portal_host}:{settings.s3_port}",
        "--workers", str(settings.s3_workers), "--threads", str(settings.s3_threads), *tls, "portal.s3.wsgi:app",
    ]  # fmt: skip


def gateway_of(settings: Settings) -> Any:
    """The gateway of this installation."""
    from portal.catalogue import build_registry
    from portal.engines.registry import open_blobs
    from portal.kernel.db import open_database
    from portal.s3.app import Gateway
    from portal.storage.traffic import traffic_files

    return Gateway(settings, open_database(settings), build_registry(), open_blobs(settings), traffic_files(settings))
