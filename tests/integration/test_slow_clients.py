"""Whoever connects and is silent, or sends byte by byte, does not keep others out: of the S3 interface, of the console and the API."""

import contextlib
import socket
import ssl
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path

import pytest

from portal.settings import Settings
from tests.support.databases import fill, settings_for
from tests.support.processes import portal_process
from tests.support.s3_served import served_gateway
from tests.support.servers import answers, free_port, until

HALF = b"GET /none/k HTTP/1.1\r\nHost: x\r\n"
FORM = b"POST /none HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=abc\r\nContent-Length: 900000\r\n\r\n--abc\r\n"
LONG_S = 120.0


@contextlib.contextmanager
def console(directory: Path, **overrides: object) -> Iterator[Settings]:
    """The console and the API as they are served."""
    url = f"sqlite:///{directory}/portal.db"
    fill(url, directory)
    settings = settings_for(
        directory / "var", database_url=url, portal_port=free_port(), metrics_port=0, engine_compute="none", log_level="error", **overrides
    )
    with portal_process(settings, "web"):
        until(lambda: answers(settings.portal_port), within_s=60, what="the console answers")
        yield settings


@contextlib.contextmanager
def connections(port: int, count: int, sent: bytes) -> Iterator[list[socket.socket]]:
    """So many connections that have sent this and nothing more."""
    with contextlib.ExitStack() as stack:
        links = []
        for _ in range(count):
            links.append(stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=LONG_S)))
            if sent:
                links[-1].sendall(sent)
        yield links


def status(port: int, path: str) -> int:
    """What a client that behaves is answered."""
    link = HTTPConnection("127.0.0.1", port, timeout=LONG_S)
    link.request("GET", path)
    answer = link.getresponse()
    answer.read()
    link.close()
    return answer.status


@pytest.mark.parametrize("sent", [b"", HALF, FORM], ids=["nothing", "half a head", "half a form"])
def test_silent_clients_do_not_hold_the_s3_interface(tmp_path: Path, sent: bytes) -> None:
    # Heads may take for ever here: what is asked is that they take no thread.
    with served_gateway(tmp_path, "http", s3_workers=1, s3_threads=4, head_timeout_s=600) as served, connections(served.settings.s3_port, 20, sent):
        assert [status(served.settings.s3_port, "/none/k") for _ in range(6)] == [404] * 6


def test_silent_clients_do_not_hold_the_s3_interface_over_tls(tmp_path: Path) -> None:
    with served_gateway(tmp_path, "https", s3_workers=1, s3_threads=2, head_timeout_s=600) as served:
        context = ssl.create_default_context(cafile=str(served.ca_file))
        port = served.settings.s3_port
        # The first bytes of a handshake, and nothing more.
        with connections(port, 10, b"\x16\x03\x01\x02\x00\x01"), connections(port, 10, b"") as links, contextlib.ExitStack() as stack:
            for link in links:
                stack.enter_context(context.wrap_socket(link.dup(), server_hostname="localhost")).sendall(HALF)
            assert served.boto().list_buckets()["Buckets"] == []


def test_silent_clients_do_not_hold_the_console(tmp_path: Path) -> None:
    with console(tmp_path, web_workers=1, web_threads=4, head_timeout_s=600) as settings, connections(settings.portal_port, 20, HALF):
        assert [status(settings.portal_port, "/health") for _ in range(6)] == [200] * 6


def test_a_head_that_does_not_come_ends_the_connection(tmp_path: Path) -> None:
    with (
        served_gateway(tmp_path, "http", s3_workers=1, head_timeout_s=1) as served,
        connections(served.settings.s3_port, 1, HALF) as [told],
        connections(served.settings.s3_port, 1, b"") as [silent],
    ):
        assert b" 408 " in told.recv(1000)
        assert silent.recv(1000) == b""


def test_a_head_without_end_ends_the_connection(tmp_path: Path) -> None:
    endless = HALF + b"X-A: b\r\n" * 20_000
    with served_gateway(tmp_path, "http", s3_workers=1) as served, connections(served.settings.s3_port, 1, b"") as [link]:
        with contextlib.suppress(OSError):
            link.sendall(endless)
        with contextlib.suppress(ConnectionResetError):
            assert b" 431 " in link.recv(1000)
        assert status(served.settings.s3_port, "/none/k") == 404


def test_an_address_with_too_many_connections_loses_those_that_are_silent(tmp_path: Path) -> None:
    with (
        served_gateway(tmp_path, "http", s3_workers=1, connections_per_address=3, head_timeout_s=600) as served,
        connections(served.settings.s3_port, 6, b"") as links,
    ):
        assert status(served.settings.s3_port, "/none/k") == 404
        assert [link.recv(1) for link in links[:3]] == [b"", b"", b""]


def test_a_body_that_stops_is_given_up_while_others_wait(tmp_path: Path) -> None:
    with served_gateway(tmp_path, "http", s3_workers=1, s3_threads=1, body_min_bytes_per_s=1) as served:
        port = served.settings.s3_port
        with connections(port, 2, FORM) as links:
            assert status(port, "/none/k") == 404
            assert b"<Code>" in links[0].recv(10_000)
