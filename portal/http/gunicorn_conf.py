"""gunicorn's configuration: hooks for metrics and logging; addresses and sizes come on the command line."""

import os
import shutil
from pathlib import Path
from typing import Any

from prometheus_flask_exporter.multiprocess import GunicornPrometheusMetrics

from portal.http.gunicorn_log import PortalLogger
from portal.http.server import GRACEFUL_S, SHARED_MEMORY, no_metrics_port, start_metrics
from portal.logging import setup_logging
from portal.settings import Settings

worker_class = "portal.http.slow_clients.PatientWorker"
preload_app = True
graceful_timeout = GRACEFUL_S
timeout = 60
keepalive = 5
control_socket_disable = True
worker_tmp_dir = str(SHARED_MEMORY) if SHARED_MEMORY.is_dir() else None  # gunicorn's heartbeat belongs in memory
logger_class = PortalLogger


def when_ready(server: Any) -> None:
    """Open the metrics port."""
    settings = Settings.load()
    if no_metrics_port(settings):
        return
    try:
        start_metrics(settings)
    except OSError as error:
        server.log.warning("METRICS_PORT %s cannot be opened: %s. /metrics stays on the main port.", settings.metrics_port, error.strerror)


def post_fork(server: Any, worker: Any) -> None:
    """A child must not use the parent's database connections."""
    del server, worker
    from portal.http.wsgi import app
    from portal.kernel.db import db

    os.environ["PORTAL_WEB_CHILD"] = "1"
    with app.app_context():
        db.engine.dispose(close=False)


def on_starting(server: Any) -> None:
    """JSON lines from the first one on."""
    del server
    setup_logging(Settings.load())


def child_exit(server: Any, worker: Any) -> None:
    """Drop the gauges of a process that ended."""
    del server
    GunicornPrometheusMetrics.mark_process_dead_on_child_exit(worker.pid)


def on_exit(server: Any) -> None:
    """Leave no counts in memory."""
    del server
    directory = Path(os.environ["PROMETHEUS_MULTIPROC_DIR"])
    if directory.parent == SHARED_MEMORY:
        shutil.rmtree(directory, ignore_errors=True)
