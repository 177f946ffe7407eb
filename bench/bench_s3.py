"""The S3 gateway: 4 KiB objects with 8 clients, listings of 1,000 among many keys, and 64 MiB objects; everything is forced to the disk.

`python -m bench.bench_s3 [keys]`. The clients are processes on the same CPUs as the server, so the figures are what is left for both.
"""

import hashlib
import hmac
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from http.client import HTTPConnection
from multiprocessing import Barrier, Pool
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil
from sqlalchemy import insert

from portal.catalogue import build_registry
from portal.identity.s3_keys import s3_key_create
from portal.kernel.db import now, open_database, transaction
from portal.settings import Settings
from portal.storage.object_models import Bucket, ObjectVersion
from tests.support.databases import fill, settings_for
from tests.support.people import People
from tests.support.processes import portal_process
from tests.support.servers import answers, free_port, until

CLIENTS = 8
SECONDS = 5.0
SMALL, LARGE = 4 << 10, 64 << 20
MANY_KEYS = 1_000_000
BATCH = 20_000
MIB = 1 << 20
BUCKET = "bench"


@dataclass(frozen=True)
class Server:
    """Where the gateway is, and a key for it."""

    port: int
    key_id: str
    secret: str


@lru_cache
def signing_key(secret: str, day: str) -> bytes:
    key = f"AWS4{secret}".encode()
    for part in (day, "us-east-1", "s3", "aws4_request"):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    return key


class Client:
    """One connection that stays open, and signatures as SDKs make them."""

    def __init__(self, server: Server) -> None:
        self.server, self.link = server, HTTPConnection("127.0.0.1", server.port, timeout=120)

    def __call__(self, method: str, path: str, query: str = "", body: bytes = b"") -> bytes:
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        headers = {"host": f"127.0.0.1:{self.server.port}", "x-amz-content-sha256": "UNSIGNED-PAYLOAD", "x-amz-date": stamp}
        signed = ";".join(sorted(headers))
        lines = "".join(f"{name}:{headers[name]}\n" for name in sorted(headers))
        request = f"{method}\n{path}\n{query}\n{lines}\n{signed}\nUNSIGNED-PAYLOAD"
        scope = f"{stamp[:8]}/us-east-1/s3/aws4_request"
        to_sign = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{hashlib.sha256(request.encode()).hexdigest()}"
        signature = hmac.new(signing_key(self.server.secret, stamp[:8]), to_sign.encode(), hashlib.sha256).hexdigest()
        headers["Authorization"] = f"AWS4-HMAC-SHA256 Credential={self.server.key_id}/{scope}, SignedHeaders={signed}, Signature={signature}"
        self.link.request(method, f"{path}?{query}" if query else path, body=body or None, headers=headers)
        answer = self.link.getresponse()
        found = answer.read()
        assert answer.status < 300, (method, path, answer.status, found[:500])
        return found


_server: Server
_barrier: Any


def _prepare(server: Server, barrier: Any) -> None:
    global _server, _barrier
    _server, _barrier = server, barrier


def _small(number: int, operation: str, seconds: float) -> tuple[int, float]:
    """(requests, seconds) of one client; it deletes and reads what it has written itself."""
    client, body, done = Client(_server), os.urandom(SMALL), 0
    own = [f"/{BUCKET}/small/{number}/{place:06}" for place in range(400)]
    if operation in {"GET", "HEAD", "DELETE"}:
        for path in own:
            client("PUT", path, body=body)
    client("HEAD", f"/{BUCKET}")
    _barrier.wait()
    begun = time.perf_counter()
    while time.perf_counter() - begun < seconds and (operation != "DELETE" or done < len(own)):
        path = own[done % len(own)] if operation != "PUT" else f"/{BUCKET}/put/{number}/{done:06}"
        client(operation, path, body=body if operation == "PUT" else b"")
        done += 1
    return done, time.perf_counter() - begun


def _list(number: int, seconds: float) -> tuple[int, float]:
    client, done = Client(_server), 0
    client("HEAD", f"/{BUCKET}")
    _barrier.wait()
    begun = time.perf_counter()
    while time.perf_counter() - begun < seconds:
        client("GET", f"/{BUCKET}-many", "list-type=2&max-keys=1000&prefix=&start-after=" + quote(f"key/0000{number}{done % 10}", safe=""))
        done += 1
    return done, time.perf_counter() - begun


def _large(number: int, operation: str, count: int) -> tuple[int, float]:
    client, body = Client(_server), os.urandom(LARGE) if operation == "PUT" else b""
    client("HEAD", f"/{BUCKET}")
    _barrier.wait()
    begun = time.perf_counter()
    for place in range(count):
        client(operation, f"/{BUCKET}/large/{number}/{place}", body=body)
    return count, time.perf_counter() - begun


@contextmanager
def running(directory: Path, keys: int) -> Iterator[tuple[Settings, Server, int]]:
    """`portal s3` on an installation with a bucket of so many keys."""
    url = os.environ.get("BENCH_DATABASE_URL") or f"sqlite:///{directory / 'portal.db'}"
    fill(url, directory)
    settings = settings_for(directory, database_url=url, s3_port=free_port(), log_level="warn", engine_compute="none")
    sessions = open_database(settings)
    people = People(sessions, settings, build_registry())
    secret, key = s3_key_create(people.context(people.admin()), people.admin())
    server = Server(settings.s3_port, key.id, secret)
    with portal_process(settings, "s3") as process:
        until(lambda: answers(settings.s3_port), within_s=30, what="the gateway answers")
        client = Client(server)
        for name in (BUCKET, f"{BUCKET}-many"):
            client("PUT", f"/{name}")
        with sessions() as session:
            bucket_id = session.query(Bucket.id).filter_by(name=f"{BUCKET}-many").scalar()
            for first in range(0, keys, BATCH):
                rows = [
                    {"bucket_id": bucket_id, "key": f"key/{number:09}", "sequence": 1, "size_bytes": SMALL, "etag": "0" * 32, "modified_at": now()}
                    for number in range(first, first + BATCH)
                ]
                with transaction(session):
                    session.execute(insert(ObjectVersion), rows)
        people.close()
        yield settings, server, process.pid
    sessions.kw["bind"].dispose()


def memory_of(pid: int) -> float:
    """MiB of the largest process of the gateway."""
    return max(each.memory_info().rss for each in psutil.Process(pid).children(recursive=True)) / MIB


def measure(server: Server, work: Callable[..., tuple[int, float]], *args: Any) -> float:
    """What all clients together do in a second."""
    with Pool(CLIENTS, _prepare, (server, Barrier(CLIENTS))) as pool:
        done = pool.starmap(work, [(number, *args) for number in range(CLIENTS)], chunksize=1)
    return sum(count / seconds for count, seconds in done)


def main() -> None:
    """Print the figures."""
    keys = int(sys.argv[1]) if len(sys.argv) > 1 and sys.argv[1].isdigit() else MANY_KEYS
    with (
        tempfile.TemporaryDirectory(prefix="bench-s3-", dir=os.environ.get("BENCH_DIR")) as directory,
        running(Path(directory), keys) as (_, server, pid),
    ):
        for operation in ("PUT", "GET", "HEAD", "DELETE"):
            print(f"{operation:<8} 4 KiB   {measure(server, _small, operation, SECONDS):>8.0f} /s", flush=True)
        print(f"{'LIST':<8} 1,000 of {keys:,}   {measure(server, _list, SECONDS):>8.0f} /s", flush=True)
        for operation in ("PUT", "GET"):
            print(f"{operation:<8} 64 MiB  {measure(server, _large, operation, 4) * LARGE / MIB:>8.0f} MiB/s", flush=True)
        print(f"memory of the largest process   {memory_of(pid):>8.0f} MiB")


if __name__ == "__main__":
    main()
