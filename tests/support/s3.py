"""The S3 gateway under test: in a thread of the test's own process, and clients that sign with real keys."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from typing import Any
from urllib.parse import urlsplit

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError
from werkzeug.serving import WSGIRequestHandler, make_server

from portal.engines.registry import open_blobs
from portal.identity.models import User
from portal.identity.s3_keys import s3_key_create
from portal.s3.app import Gateway
from portal.storage.traffic import traffic_files
from tests.support.people import People
from tests.support.servers import until


class _Quiet(WSGIRequestHandler):
    def log_request(self, *_args: object) -> None:
        """Say nothing."""


class S3:
    """A gateway with its blobs, and keys of its users."""

    def __init__(self, people: People, port: int, app: Gateway) -> None:
        self.people, self.port, self._app = people, port, app
        self.blobs = app._blobs
        self.traffic = app._traffic

    def trust(self, proxies: int) -> None:
        """From now on so many proxies stand in front."""
        self.settings(trusted_proxies=proxies)

    def settings(self, **changed: object) -> None:
        """From now on the gateway has other settings."""
        self._app._settings = self._app._settings.model_copy(update=changed)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

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
def gateway(people: People) -> Iterator[S3]:
    """A gateway for the length of a block."""
    blobs = open_blobs(people.settings)
    app = Gateway(people.settings, people.sessions, people.registry, blobs, traffic_files(people.settings))
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=_Quiet)
    server.daemon_threads = False
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield S3(people, server.server_port, app)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def noted(s3: S3, requests: int) -> None:
    """Return when so many requests have been written down, which is after their answers have gone out."""
    files = s3.people.settings.data_dir / "traffic"
    until(lambda: sum(path.read_bytes().count(b"\n") for path in files.glob("*.log")) >= requests, within_s=30, what="requests are written down")


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
