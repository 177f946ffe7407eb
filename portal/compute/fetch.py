"""Fetches a file from a URL that a user gave: to public addresses only, at a bounded size, hashed on the way.

Where it may go is said in `portal.kernel.outbound`.
"""

import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.parse import urljoin, urlsplit

from portal.engines.ports import EngineError, EngineRefused
from portal.kernel.outbound import Reach, connect, problem_of, target_of

CHUNK_BYTES = 1 << 20
TIMEOUT_S = 30.0
# A server that drips bytes must not hold a worker for ever.
LONGEST_S = 2 * 3600.0
MAX_REDIRECTS = 5
REDIRECTS = (301, 302, 303, 307, 308)
OK = 200


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
        connection, parts = connect(url, Reach(limits.networks_allowed, "IMAGE_HOSTS_ALLOWED"), timeout_s=TIMEOUT_S)
        try:
            connection.request("GET", target_of(parts), headers={"User-Agent": "atonix-portal", "Accept-Encoding": "identity"})
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
