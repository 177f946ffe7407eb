"""Requests of S3 clients without a network: signed by botocore, as the gateway's server would hand them on."""

import io
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

import boto3
from botocore.auth import BaseSigner, HmacV1Auth, HmacV1QueryAuth, S3SigV4Auth, S3SigV4QueryAuth
from botocore.awsrequest import AWSPreparedRequest, AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials
from hypothesis import settings

from portal.s3.requests import S3Request, read_request

ACCESS_KEY = "AKPORTALOFTESTSONLY"
SECRET = "a secret/with+signs=and~more"
CREDENTIALS = Credentials(ACCESS_KEY, SECRET)
# A machine that is busy takes its time, and a test that fails fails again.
SAME_EACH_TIME = settings(max_examples=200, deadline=None, derandomize=True, database=None)
HOST = "s3.example.org:9000"


def secret_of(access_key: str) -> str | None:
    return SECRET if access_key == ACCESS_KEY else None


def now() -> datetime:
    return datetime.now(UTC)


def v4() -> BaseSigner:
    return S3SigV4Auth(CREDENTIALS, "s3", "eu-central-1")


def v4_query(expires: int = 600) -> BaseSigner:
    return S3SigV4QueryAuth(CREDENTIALS, "s3", "eu-central-1", expires=expires)


def v2() -> BaseSigner:
    return HmacV1Auth(CREDENTIALS)


def v2_query(expires: int = 600) -> BaseSigner:
    return HmacV1QueryAuth(CREDENTIALS, expires=expires)


class Sent(Exception):
    """The request is known; nobody answers."""


class Broken(io.BytesIO):
    """A connection that breaks where the bytes end."""

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        if size and not data:
            raise ConnectionResetError
        return data


def environ_of(method: str, url: str, headers: Mapping[str, Any], body: bytes = b"") -> dict[str, Any]:
    """What a WSGI server makes of a request; the length is told where the headers do."""
    parts = urlsplit(url)
    environ: dict[str, Any] = {
        "REQUEST_METHOD": method,
        "RAW_URI": (parts.path or "/") + (f"?{parts.query}" if parts.query else ""),
        "wsgi.url_scheme": parts.scheme,
        "wsgi.input": io.BytesIO(body),
        "REMOTE_ADDR": "127.0.0.1",
        "HTTP_HOST": parts.netloc,
    }
    for name, value in headers.items():
        key = name.upper().replace("-", "_")
        text = value.decode("latin-1") if isinstance(value, bytes) else str(value).encode().decode("latin-1")
        environ[key if key in {"CONTENT_TYPE", "CONTENT_LENGTH"} else f"HTTP_{key}"] = text
    return environ


def signed(signer: BaseSigner, method: str, url: str, headers: Mapping[str, str] | None = None, body: bytes = b"") -> dict[str, Any]:
    """The environment of a request that botocore has signed."""
    request = AWSRequest(method=method, url=url, headers=dict(headers or {}), data=body, auth_path=urlsplit(url).path)
    signer.add_auth(request)
    sent = dict(request.headers.items())
    if body:
        sent["Content-Length"] = str(len(body))
    return environ_of(method, request.url, sent, body)


def request_of(environ: Mapping[str, Any], domain: str | None = None) -> S3Request:
    return read_request(environ, domain)


def sent_by_boto3(call: Callable[[Any], object], *, secure: bool = False, **config: Any) -> dict[str, Any]:
    """The environment of the last request that a boto3 client sends in a call; nobody answers."""
    url = f"{'https' if secure else 'http'}://{HOST}"
    client = boto3.client(
        "s3",
        endpoint_url=url,
        region_name="eu-central-1",
        aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=SECRET,
        config=Config(s3={"addressing_style": "path"}, **config),
    )
    seen: list[dict[str, Any]] = []

    def keep(request: AWSPreparedRequest, **_: Any) -> None:
        body = request.body
        data = body if isinstance(body, bytes) else b"" if body is None else body.read()
        seen.append(environ_of(request.method, request.url, request.headers, data))
        raise Sent

    client.meta.events.register("before-send.s3", keep)
    with suppress(Sent):
        call(client)
    client.close()
    return seen[-1]
