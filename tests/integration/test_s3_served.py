"""The gateway under its own web server: over TLS, where clients send trailers without a length, by names of buckets in the host, and large."""

import hashlib
import socket
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
from boto3.s3.transfer import TransferConfig

from tests.support.s3 import refused
from tests.support.s3_served import served_gateway

BUCKET = "served"
MIB = 1 << 20


@pytest.fixture(params=["http", "https"])
def boto(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    """`boto(**config)`: a client of a gateway that runs as an operator would start it."""
    with served_gateway(tmp_path, request.param) as served:
        yield served.boto


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


def test_more_connections_than_threads_are_all_answered(tmp_path: Path) -> None:
    with served_gateway(tmp_path, "http", s3_workers=1, s3_threads=2) as served:
        links = [HTTPConnection("localhost", served.settings.s3_port, timeout=60) for _ in range(7)]
        for _ in range(3):
            for link in links:
                link.request("GET", "/none/k")
            for link in links:
                answer = link.getresponse()
                answer.read()
                assert answer.status == 404
        for link in links:
            link.close()
