"""The gateway for a WSGI server; each process opens a database of its own, after it was made."""

from collections.abc import Iterable
from functools import cache
from typing import Any

from portal.catalogue import build_registry
from portal.engines.registry import open_blobs
from portal.kernel.db import open_database
from portal.logging import setup_logging
from portal.s3.app import Gateway
from portal.settings import Settings
from portal.storage.traffic import traffic_files


@cache
def gateway() -> Gateway:
    """The gateway of this installation, in this process."""
    settings = Settings.load()
    setup_logging(settings)
    return Gateway(settings, open_database(settings), build_registry(), open_blobs(settings), traffic_files(settings))


def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """Answer one request."""
    return gateway()(environ, start_response)
