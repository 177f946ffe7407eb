"""The gateway under gunicorn: threads, because each upload and download holds one."""

import os
import sys

from portal.settings import Settings

FEWEST, MOST = 2, 8


def command_line(settings: Settings) -> list[str]:
    """What to execute; the environment carries the settings on."""
    tls = ["--certfile", settings.s3_tls_cert, "--keyfile", settings.s3_tls_key] if settings.s3_tls_cert else []
    return [
        sys.executable, "-m", "gunicorn", "--config", "python:portal.s3.gunicorn_conf", "--bind", f"{settings.portal_host}:{settings.s3_port}",
        "--workers", str(workers(settings)), "--threads", str(settings.s3_threads), *tls, "portal.s3.wsgi:app",
    ]  # fmt: skip


def workers(settings: Settings) -> int:
    """How many processes: one takes no more than a CPU, whatever its threads do."""
    if settings.s3_workers:
        return settings.s3_workers
    # Not every system knows on which of its CPUs a process may run.
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(max(cpus, FEWEST), MOST)
