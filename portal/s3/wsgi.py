"""The gateway for a WSGI server; each process opens a database of its own when it is asked for the first time."""

from collections.abc import Iterable
from functools import cache
from typing import Any

from portal.logging import setup_logging
from portal.s3.server import gateway_of
from portal.settings import Settings


@cache
def _gateway() -> Any:
    settings = Settings.load()
    setup_logging(settings)
    return gateway_of(settings)


def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """Answer one request."""
    answer: Iterable[bytes] = _gateway()(environ, start_response)
    return answer
