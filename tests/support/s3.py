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
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials
from botocore.exceptions import ClientError
from sqlalchemy import update
from werkzeug.serving import WSGIRequestHandler, make_server

from portal.engines.registry import open_blobs
from portal.identity.models import User
from portal.identity.s3_keys import s3_key_create
from portal.kernel.db import now, transaction
from portal.s3.app import Gateway
from portal.s3.limits import RequestLimits
from portal.storage.object_models import BlobToRemove
from portal.storage.sweep import remove_due
from portal.storage.traffic import traffic_files
from tests.support.people import People
from tests.support.servers import until


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
        self.blobs = app._blobs
        self.traffic = app._traffic

    def trust(self, proxies: int) -> None:
        """From now on so many proxies stand in front."""
        self.settings(trusted_proxies=proxies)

    def settings(self, **changed: object) -> None:
        """From now on the gateway has other settings."""
        self._app._settings = self._app._settings.model_copy(update=changed)

    def sweep(self) -> None:
        """Remove what nobody refers to any more, as if the time of all of it had come."""
        system = self.people.context(self.people.admin())
        with transaction(system.db):
            system.db.execute(update(BlobToRemove).values(due_at=now()))
        remove_due(system, self.blobs)

    def limit(self, **limits: int) -> None:
        """From now on so many requests a minute are taken."""
        self._app._limits = RequestLimits(self.people.settings.model_copy(update={**limits, "s3_workers": 1}))

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


def sent(s3: S3, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, dict[str, str], bytes]:
    """(status, headers, body) of a request that is signed for a project admin, whatever is in it; `_` in names of headers stands for `-`."""
    request = AWSRequest(method, f"{s3.url}{path}", data=body, headers={name.replace("_", "-"): value for name, value in headers.items()})
    S3SigV4Auth(Credentials(*s3.key(s3.people.user("project_admin"))), "s3", "us-east-1").add_auth(request)
    return fetch(f"{s3.url}{path}", method, body, dict(request.headers))


def client(url: str, key_id: str, secret: str, *, verify: str | None = None, **config: Any) -> Any:
    """boto3 for a gateway; `verify` is the file with the certificate to believe."""
    settings = Config(
        **{"s3": {"addressing_style": "path"}, "retries": {"max_attempts": 1, "mode": "standard"}, "signature_version": "s3v4", **config}
    )
    named = {"aws_access_key_id": key_id, "aws_secret_access_key": secret, "region_name": "us-east-1"}
    return boto3.client("s3", endpoint_url=url, config=settings, verify=verify, **named)


def open_bucket(made: Any, name: str) -> None:
    """Make a bucket in which lists of access count, and which may be everybody's."""
    made.create_bucket(Bucket=name, ObjectOwnership="ObjectWriter")
    made.delete_public_access_block(Bucket=name)


@contextlib.contextmanager
def gateway(people: People, tls: tuple[Path, Path] | None = None) -> Iterator[S3]:
    """A gateway for the length of a block; with (certificate, its key) it speaks https."""
    blobs = open_blobs(people.settings)
    app = Gateway(people.settings, people.sessions, people.registry, blobs, traffic_files(people.settings))
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


def form_of(fields: dict[str, str], body: bytes) -> tuple[bytes, dict[str, str]]:
    """(body, headers) of a form with a file, as a browser sends it."""
    parts = [f'--B\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n' for name, value in fields.items()]
    head = "".join(parts) + '--B\r\nContent-Disposition: form-data; name="file"; filename="photo.png"\r\nContent-Type: image/png\r\n\r\n'
    return head.encode() + body + b"\r\n--B--\r\n", {"Content-Type": "multipart/form-data; boundary=B"}
