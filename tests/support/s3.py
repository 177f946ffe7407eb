"""The S3 gateway under test: in a thread of the test's own process, and clients that sign with real keys."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError
from werkzeug.serving import WSGIRequestHandler, make_server

from portal.engines.blobs import LocalBlobs
from portal.identity.models import User
from portal.identity.s3_keys import s3_key_create
from portal.s3.app import Gateway
from tests.support.people import People


class _Quiet(WSGIRequestHandler):
    def log_request(self, *_args: object) -> None:
        """Say nothing."""


class _Patient(_Quiet):
    """Takes the rest of what is sent after a refusal: over TLS a client that goes on sending would get no answer."""

    def run_wsgi(self) -> None:
        super().run_wsgi()
        with contextlib.suppress(OSError):
            while self.rfile.read(1 << 16):
                pass


class S3:
    """A gateway with its blobs, and keys of its users."""

    def __init__(self, people: People, port: int, app: Gateway, scheme: str) -> None:
        self.people, self.port, self._app, self._scheme = people, port, app, scheme
        self.blobs = LocalBlobs(people.settings.data_dir / "objects")

    def trust(self, proxies: int) -> None:
        """From now on so many proxies stand in front."""
        self._app._settings = self._app._settings.model_copy(update={"trusted_proxies": proxies})

    @property
    def url(self) -> str:
        return f"{self._scheme}://127.0.0.1:{self.port}"

    def key(self, user: User) -> tuple[str, str]:
        """(access key, secret) of a user."""
        secret, key = s3_key_create(self.people.context(user), user)
        return key.id, secret

    def client(self, user: User | None = None, **config: Any) -> Any:
        """boto3 with a fresh key of a user, a project admin unless named."""
        key_id, secret = self.key(user or self.people.user("project_admin"))
        return client(self.url, key_id, secret, **config)


def client(url: str, key_id: str, secret: str, **config: Any) -> Any:
    """boto3 for a gateway."""
    settings = Config(
        **{"s3": {"addressing_style": "path"}, "retries": {"max_attempts": 1, "mode": "standard"}, "signature_version": "s3v4", **config}
    )
    return boto3.client("s3", endpoint_url=url, aws_access_key_id=key_id, aws_secret_access_key=secret, region_name="us-east-1", config=settings)


@contextlib.contextmanager
def gateway(people: People, tls: tuple[Path, Path] | None = None) -> Iterator[S3]:
    """A gateway for the length of a block; with (certificate, its key) it speaks https."""
    blobs = LocalBlobs(people.settings.data_dir / "objects")
    app = Gateway(people.settings, people.sessions, people.registry, blobs)
    files = (str(tls[0]), str(tls[1])) if tls is not None else None
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=_Patient if tls else _Quiet, ssl_context=files)
    server.daemon_threads = False
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield S3(people, server.server_port, app, "https" if tls is not None else "http")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def refused(call: Callable[[], object], code: str) -> dict[str, Any]:
    """What a call is refused with, which must be this code."""
    with pytest.raises(ClientError) as caught:
        call()
    found: dict[str, Any] = caught.value.response
    assert found["Error"]["Code"] == code, found
    return found


def fetch(address: str, method: str = "GET", body: bytes | None = None, headers: dict[str, str] | None = None) -> tuple[int, dict[str, str], bytes]:
    """(status, headers, body) of an address, as a browser gets it."""
    parts = urlsplit(address)
    link = HTTPConnection(parts.netloc, timeout=30)
    try:
        link.request(method, f"{parts.path}?{parts.query}" if parts.query else parts.path, body=body, headers=headers or {})
        answer = link.getresponse()
        return answer.status, dict(answer.headers), answer.read()
    finally:
        link.close()
