"""The gateway under its own web server: over TLS, where clients send trailers without a length, by names of buckets in the host, and large."""

import hashlib
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from boto3.s3.transfer import TransferConfig

from portal.catalogue import build_registry
from portal.identity.s3_keys import s3_key_create
from portal.kernel.db import open_database
from tests.support.certificates import certificate
from tests.support.databases import fill, settings_for
from tests.support.people import People
from tests.support.processes import portal_process
from tests.support.s3 import client, refused
from tests.support.servers import answers, free_port, until

BUCKET = "served"
MIB = 1 << 20


@pytest.fixture(params=["http", "https"])
def boto(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """`boto(**config)`: a client of a gateway that runs as an operator would start it."""
    url = f"sqlite:///{tmp_path}/portal.db"
    fill(url, tmp_path)
    tls = {}
    if request.param == "https":
        cert, key = certificate(tmp_path)
        tls = {"s3_tls_cert": str(cert), "s3_tls_key": str(key)}
        monkeypatch.setenv("AWS_CA_BUNDLE", str(cert))
    settings = settings_for(
        tmp_path / "var", database_url=url, s3_port=free_port(), s3_domain="localhost", engine_compute="none", log_level="error", **tls
    )
    sessions = open_database(settings)
    people = People(sessions, settings, build_registry())
    secret, key_row = s3_key_create(people.context(people.admin()), people.admin())
    people.close()
    with portal_process(settings, "s3"):
        until(lambda: answers(settings.s3_port), within_s=30, what="the gateway answers")
        yield lambda **config: client(f"{request.param}://localhost:{settings.s3_port}", key_row.id, secret, **config)
    sessions.kw["bind"].dispose()


def test_objects_of_all_sizes_come_back_as_they_went(boto: Any, tmp_path: Path) -> None:
    s3 = boto()
    s3.create_bucket(Bucket=BUCKET)
    for size in (0, 1, 8191, 65_536, 3 * MIB + 7):
        body = hashlib.shake_128(f"{size}".encode()).digest(size)
        s3.put_object(Bucket=BUCKET, Key=f"{size}", Body=body)
        assert s3.get_object(Bucket=BUCKET, Key=f"{size}")["Body"].read() == body
    large = tmp_path / "large"
    large.write_bytes(hashlib.shake_128(b"large").digest(20 * MIB))
    s3.upload_file(str(large), BUCKET, "large", Config=TransferConfig(multipart_chunksize=8 * MIB))
    s3.download_file(BUCKET, "large", str(tmp_path / "back"))
    assert (tmp_path / "back").read_bytes() == large.read_bytes()
    with large.open("rb") as stream:
        s3.put_object(Bucket=BUCKET, Key="streamed", Body=stream)
    assert s3.head_object(Bucket=BUCKET, Key="streamed", ChecksumMode="ENABLED")["ChecksumCRC32"]
    refused(lambda: s3.put_object(Bucket=BUCKET, Key="wrong", Body=b"x", ChecksumCRC32="AAAAAA=="), "BadDigest")
    refused(lambda: s3.get_object(Bucket=BUCKET, Key="wrong"), "NoSuchKey")


def test_buckets_are_named_by_the_host(boto: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    resolve = socket.getaddrinfo
    # Not every machine knows the names below localhost.
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, *rest, **more: resolve("127.0.0.1" if str(host).endswith("localhost") else host, *rest, **more)
    )
    by_path, by_host = boto(), boto(s3={"addressing_style": "virtual"})
    by_path.create_bucket(Bucket=BUCKET)
    by_host.put_object(Bucket=BUCKET, Key="a key/with ü", Body=b"x")
    assert by_path.get_object(Bucket=BUCKET, Key="a key/with ü")["Body"].read() == b"x"
    assert [each["Key"] for each in by_host.list_objects_v2(Bucket=BUCKET)["Contents"]] == ["a key/with ü"]
