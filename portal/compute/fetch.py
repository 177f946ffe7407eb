"""Fetches a file from a URL that a user gave: to public addresses only, at a bounded size, hashed on the way.

The address is resolved once, checked, and connected to as checked, so that a name cannot point elsewhere the second time it is asked for.
"""

import hashlib
import ipaddress
import os
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPResponse
from pathlib import Path
from urllib.parse import SplitResult, urljoin, urlsplit

from portal.engines.ports import EngineError, EngineRefused

CHUNK_BYTES = 1 << 20
TIMEOUT_S = 30.0
# A server that drips bytes must not hold a worker for ever.
LONGEST_S = 2 * 3600.0
MAX_REDIRECTS = 5
REDIRECTS = (301, 302, 303, 307, 308)
OK = 200
NAT64 = ipaddress.ip_network("64:ff9b::/96")


@dataclass(frozen=True, slots=True)
class Limits:
    """What a fetch may do: largest size, and private networks (CIDR) that are allowed besides the public Internet."""

    max_bytes: int
    networks_allowed: tuple[str, ...] = ()


def fetch(url: str, target: Path, limits: Limits) -> str:
    """Write the file at `url` to `target` and give its SHA-256. Raises EngineError (try again) or EngineRefused (it never will)."""
    try:
        with _opened(url, limits) as response:
            return _copy(response, target, limits.max_bytes)
    except (OSError, HTTPException) as error:
        raise EngineError(f"The image could not be fetched from {_host(url)}: {_reason(error)}.") from error


@contextmanager
def _opened(url: str, limits: Limits) -> Iterator[HTTPResponse]:
    for _ in range(MAX_REDIRECTS + 1):
        connection, parts = _connect(url, limits)
        try:
            path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            connection.request("GET", path, headers={"User-Agent": "atonix-portal", "Accept-Encoding": "identity"})
            response = connection.getresponse()
            if response.status in REDIRECTS and (location := response.getheader("Location")):
                url = _redirected(url, location)
                continue
            if response.status != OK:
                kind = EngineError if response.status >= 500 else EngineRefused  # noqa: PLR2004 - their fault may pass
                raise kind(f"{_host(url)} answered {response.status} {response.reason}.")
            yield response
            return
        finally:
            connection.close()
    raise EngineRefused(f"{_host(url)} redirects more than {MAX_REDIRECTS} times.")


def _redirected(url: str, location: str) -> str:
    try:
        return urljoin(url, location)
    except ValueError:
        # Refused as what it is when it is to be connected to.
        return location


def problem_of(url: str) -> str:
    """Why nothing can be fetched from a URL, whoever is there; empty for one that can be tried."""
    try:
        parts = urlsplit(url)
        is_sound = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return "is malformed."
    if not is_sound:
        return "must be http:// or https:// with a host."
    # It would be kept, shown and logged with the image.
    return "must not hold a user name or password." if "@" in parts.netloc else ""


def _connect(url: str, limits: Limits) -> tuple[HTTPConnection, SplitResult]:
    if problem := problem_of(url):
        raise EngineRefused(f"The URL {problem}")
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    if parts.hostname is None:
        raise EngineRefused("The URL names no host.")
    try:
        found = socket.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as error:
        raise EngineError(f"The image could not be fetched: the name {parts.hostname} cannot be resolved from this host.") from error
    address = found[0][4]
    _refuse_private(str(address[0]), parts.hostname, limits)
    link = socket.create_connection((str(address[0]), port), timeout=TIMEOUT_S)
    if parts.scheme == "https":
        link = ssl.create_default_context().wrap_socket(link, server_hostname=parts.hostname)
    connection = HTTPConnection(parts.hostname, port, timeout=TIMEOUT_S)
    connection.sock = link
    return connection, parts


def _refuse_private(address: str, host: str, limits: Limits) -> None:
    ip = _innermost(ipaddress.ip_address(address.partition("%")[0]))
    if any(ip in ipaddress.ip_network(network) for network in limits.networks_allowed):
        return
    if not ip.is_global or ip.is_multicast:
        raise EngineRefused(f"{host} is at {ip}, which is no public address. An administrator can allow it with IMAGE_HOSTS_ALLOWED.")


def _innermost(ip: ipaddress.IPv4Address | ipaddress.IPv6Address) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """The IPv4 address that an IPv6 one stands for, where a gateway would lead there."""
    if ip.version == 4:  # noqa: PLR2004 - IPv4
        return ip
    translated = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF) if ip in NAT64 else None
    return ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None) or translated or ip


def _copy(response: HTTPResponse, target: Path, max_bytes: int) -> str:
    expected = response.length
    if expected is not None and expected > max_bytes:
        raise EngineRefused(f"The file is {expected:,} bytes; at most {max_bytes:,} are accepted.")
    sha, size, deadline = hashlib.sha256(), 0, time.monotonic() + LONGEST_S
    with target.open("wb") as out:
        while chunk := response.read1(CHUNK_BYTES):
            size += len(chunk)
            if time.monotonic() > deadline:
                raise EngineRefused(f"The transfer was not done after {LONGEST_S / 3600:g} hours; {size:,} bytes had arrived.")
            if size > max_bytes:
                raise EngineRefused(f"The file is larger than {max_bytes:,} bytes, the most that is accepted.")
            sha.update(chunk)
            out.write(chunk)
        out.flush()
        os.fsync(out.fileno())
    if expected is not None and size != expected:
        raise EngineError(f"The transfer broke off after {size:,} of {expected:,} bytes.")
    return sha.hexdigest()


def _host(url: str) -> str:
    return (urlsplit(url).hostname if not problem_of(url) else None) or "the host"


def _reason(error: Exception) -> str:
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    return "no answer in time" if isinstance(error, TimeoutError) else str(error) or type(error).__name__
