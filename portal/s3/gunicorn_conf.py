"""gunicorn's configuration for the gateway; address and sizes come on the command line."""

from typing import Any

from portal.http.gunicorn_log import PortalLogger
from portal.http.server import SHARED_MEMORY
from portal.logging import setup_logging
from portal.settings import Settings

worker_class = "gthread"
graceful_timeout = 5
# Of a worker's heartbeat; uploads and downloads may take as long as they like.
timeout = 60
keepalive = 15
control_socket_disable = True
worker_tmp_dir = str(SHARED_MEMORY) if SHARED_MEMORY.is_dir() else None
logger_class = PortalLogger


def on_starting(server: Any) -> None:
    """JSON lines from the first one on."""
    del server
    setup_logging(Settings.load())
