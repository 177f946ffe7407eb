"""gunicorn's configuration for the gateway; address and sizes come on the command line."""

from typing import Any

from portal.http.gunicorn_log import PortalLogger
from portal.http.server import SHARED_MEMORY
from portal.logging import setup_logging
from portal.settings import Settings

worker_class = "portal.s3.gunicorn_worker.LingeringWorker"
# Code is read once and shared by all processes; what is open is opened by each of them.
preload_app = True
graceful_timeout = 5
# Of a worker's heartbeat; uploads and downloads may take long, as long as they go on.
timeout = 60
keepalive = 15
control_socket_disable = True
worker_tmp_dir = str(SHARED_MEMORY) if SHARED_MEMORY.is_dir() else None
logger_class = PortalLogger


def on_starting(server: Any) -> None:
    """JSON lines from the first one on."""
    del server
    setup_logging(Settings.load())


def post_worker_init(worker: Any) -> None:
    """Be ready before the first request comes."""
    from portal.s3.wsgi import gateway

    del worker
    gateway()
