"""The web server of this machine as the portal's own processes find it: where it answers, and what."""

import ipaddress
from http.client import HTTPConnection

from portal.settings import Settings


def local_host(settings: Settings) -> str:
    """An address of this machine at which the web server listens."""
    try:
        address = ipaddress.ip_address(settings.portal_host or "::")
    except ValueError:
        return settings.portal_host
    return "127.0.0.1" if address.is_unspecified else str(address)


def local_url(settings: Settings) -> str:
    """Where the web server answers on this machine."""
    host = local_host(settings)
    return f"http://{f'[{host}]' if ':' in host else host}:{settings.portal_port}"


def ask(settings: Settings, path: str, *, timeout_s: float) -> bytes:
    """The body that the web server of this machine answers with. Raises OSError where it does not answer or answers no."""
    connection = HTTPConnection(local_host(settings), settings.portal_port, timeout=timeout_s)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        body = answer.read()
    finally:
        connection.close()
    if answer.status >= 400:  # noqa: PLR2004 - HTTP's own border
        msg = f"status {answer.status}"
        raise ConnectionError(msg)
    return body
