"""The S3 gateway under test: in a thread of the test's own process, and clients that sign with real keys."""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import boto3
from botocore.config import Config
from werkzeug.serving import WSGIRequestHandler, make_server

from portal.engines.blobs import LocalBlobs
from portal.identity.models import User
from portal.identity.s3_keys import s3_key_create
from portal.s3.app import Gateway
from tests.support.people import People


class _Quiet(WSGIRequestHandler):
    def log_request(self, *_args: object) -> None:
        """Say nothing."""


class S3:
    """A gateway with its blobs, and keys of its users."""

    def __init__(self, people: People, port: int) -> None:
        self.people, self.port = people, port
        self.blobs = LocalBlobs(people.settings.data_dir / "objects")

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
    blobs = LocalBlobs(people.settings.data_dir / "objects")
    server = make_server("127.0.0.1", 0, Gateway(people.settings, people.sessions, people.registry, blobs), threaded=True, request_handler=_Quiet)
    server.daemon_threads = False
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield S3(people, server.server_port)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
