"""Requests to addresses that users gave: to public ones only, and to those of private networks that an administrator allowed.

A name is resolved once, checked, and connected to as checked, so that it cannot point elsewhere the second time it is asked for.
"""

import hashlib
import hmac
import ipaddress
import socket
import ssl
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from threading import Timer
from urllib.parse import SplitResult, urlsplit

from portal.engines.ports import EngineError, EngineRefused

NAT64 = ipaddress.ip_network("64:ff9b::/96")
# All of IPv6 that is given out to the public Internet; what stands for IPv4 by ways of old, or a local gateway's, is not.
PUBLIC_V6 = ipaddress.ip_network("2000::/3")
# An answer to a message is a word: whoever takes longer, or drips, has not taken it.
ANSWER_S = 10.0


@dataclass(frozen=True, slots=True)
class Reach:
    """Private networks (CIDR) that may be reached besides the public Internet, and the setting that says so."""

    networks: tuple[str, ...]
    setting: str

    @classmethod
    def of(cls, text: str, setting: str) -> "Reach":
        """As settings have it, separated by commas."""
        return cls(tuple(part.strip() for part in text.split(",") if part.strip()), setting)


def problem_of(url: str) -> str:
    """Why nothing can be reached under a URL, whoever is there; empty for one that can be tried."""
    try:
        parts = urlsplit(url)
        is_sound = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return "is malformed."
    if not is_sound:
        return "must be http:// or https:// with a host."
    # It would be kept, shown and logged.
    return "must not hold a user name or password." if "@" in parts.netloc else ""


def connect(url: str, reach: Reach, *, timeout_s: float) -> tuple[HTTPConnection, SplitResult]:
    """A connection for a request to a URL. Raises EngineRefused where it never will be made, EngineError or OSError where another try may help."""
    if problem := problem_of(url):
        raise EngineRefused(f"The URL {problem}")
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    if parts.hostname is None:
        raise EngineRefused("The URL names no host.")
    try:
        found = socket.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)
    except (socket.gaierror, UnicodeError) as error:
        raise EngineError(f"The name {parts.hostname} cannot be resolved from this host.") from error
    address = found[0][4]
    _refuse_private(str(address[0]), parts.hostname, reach)
    link = socket.create_connection((str(address[0]), port), timeout=timeout_s)
    if parts.scheme == "https":
        link = ssl.create_default_context().wrap_socket(link, server_hostname=parts.hostname)
    connection = HTTPConnection(parts.hostname, port, timeout=timeout_s)
    connection.sock = link
    return connection, parts


def _refuse_private(address: str, host: str, reach: Reach) -> None:
    ip = _innermost(ipaddress.ip_address(address.partition("%")[0]))
    if any(ip in ipaddress.ip_network(network) for network in reach.networks):
        return
    if not ip.is_global or ip.is_multicast or (ip.version == 6 and ip not in PUBLIC_V6):  # noqa: PLR2004 - IPv6
        raise EngineRefused(f"{host} is at {ip}, which is no public address. An administrator can allow it with {reach.setting}.")


def _innermost(ip: ipaddress.IPv4Address | ipaddress.IPv6Address) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """The IPv4 address that an IPv6 one stands for, where a gateway would lead there."""
    if ip.version == 4:  # noqa: PLR2004 - IPv4
        return ip
    translated = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF) if ip in NAT64 else None
    return ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None) or translated or ip


def target_of(parts: SplitResult) -> str:
    """What a request asks for of a server."""
    return (parts.path or "/") + (f"?{parts.query}" if parts.query else "")


def signature_of(secret: str, timestamp: str, body: bytes) -> str:
    """What a webhook's receiver compares: HMAC-SHA256 over the time, a full stop and the body."""
    return hmac.new(secret.encode(), timestamp.encode() + b"." + body, hashlib.sha256).hexdigest()


def signed_headers(secret: str, body: bytes) -> dict[str, str]:
    """The headers that tell the receiver of a webhook who sent a body of JSON, and when."""
    timestamp = str(int(time.time()))
    signature = f"sha256={signature_of(secret, timestamp, body)}"
    return {"Content-Type": "application/json", "User-Agent": "atonix-portal", "X-Atonix-Timestamp": timestamp, "X-Atonix-Signature": signature}


def post(url: str, body: bytes, headers: Mapping[str, str], reach: Reach) -> None:
    """Send a body. Raises EngineError unless it was taken (2xx) within some seconds; redirects are not followed."""
    host = urlsplit(url).hostname
    try:
        connection, parts = connect(url, reach, timeout_s=ANSWER_S)
        link = connection.sock
        # Each byte of an answer begins the time limit of a socket anew; this ends it as a whole.
        end = Timer(ANSWER_S, _cut, (link,))
        end.start()
        try:
            connection.request("POST", target_of(parts), body, dict(headers))
            status = connection.getresponse().status
        finally:
            end.cancel()
            connection.close()
    except (OSError, HTTPException) as error:
        raise EngineError(f"{host} did not answer: {error or type(error).__name__}.") from error
    if not 200 <= status < 300:  # noqa: PLR2004 - success as HTTP has it
        raise EngineError(f"{host} answered {status}.")


def _cut(link: socket.socket) -> None:
    with suppress(OSError):
        link.shutdown(socket.SHUT_RDWR)
