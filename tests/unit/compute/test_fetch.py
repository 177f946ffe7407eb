"""Fetching from a URL that a user gave: to public addresses only, bounded, whole or not at all."""

import hashlib
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from portal.compute import fetch as module
from portal.compute.fetch import MAX_REDIRECTS, Limits, fetch
from portal.engines.ports import EngineError, EngineRefused
from portal.kernel.outbound import problem_of

BODY = b"an image " * 1000
LOOPBACK = Limits(1 << 20, ("127.0.0.0/8", "::1/128"))
PUBLIC = Limits(1 << 20)


class Publisher(BaseHTTPRequestHandler):
    """A server that is good, or bad in the way that the path says."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        name, _, rest = self.path.lstrip("/").partition("/")
        self.close_connection = True
        if name == "redirect":
            self.answer(302, b"", Location=rest)
        elif name == "loop":
            self.answer(301, b"", Location=self.path)
        elif name == "status":
            self.answer(int(rest), BODY)
        elif name == "short":
            self.answer(200, BODY, length=len(BODY) + 10)
        elif name == "announced":
            self.answer(200, BODY, length=1 << 40)
        elif name == "chunked":
            self.chunked(whole=rest == "whole")
        elif name == "nothing":
            return
        elif name == "garbage":
            self.wfile.write(b"this is no HTTP\r\n\r\n")
        else:
            self.answer(200, BODY if name == "good" else b"x" * ((1 << 20) + 1))

    def answer(self, status: int, body: bytes, *, length: int | None = None, **headers: str) -> None:
        self.send_response(status)
        for header, value in headers.items():
            self.send_header(header, value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)

    def chunked(self, *, whole: bool) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.write(b"%x\r\n%s\r\n" % (len(BODY), BODY))
        if whole:
            self.wfile.write(b"0\r\n\r\n")

    def log_message(self, *_args: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def publisher() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Publisher)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("path", ["good", "chunked/whole", "redirect//good", "good/?with=query"])
def test_a_file_is_fetched_and_hashed(publisher: str, tmp_path: Path, path: str) -> None:
    assert fetch(f"{publisher}/{path}", tmp_path / "file", LOOPBACK) == hashlib.sha256(BODY).hexdigest()
    assert (tmp_path / "file").read_bytes() == BODY


def test_a_redirect_to_another_name_is_followed(publisher: str, tmp_path: Path) -> None:
    assert fetch(f"{publisher}/redirect/{publisher.replace('127.0.0.1', 'localhost')}/good", tmp_path / "file", LOOPBACK)


@pytest.mark.parametrize(
    ("path", "kind", "words"),
    [
        ("status/404", EngineRefused, "answered 404"),
        ("status/403", EngineRefused, "answered 403"),
        ("status/204", EngineRefused, "answered 204"),
        ("status/206", EngineRefused, "answered 206"),
        ("status/500", EngineError, "answered 500"),
        ("status/503", EngineError, "answered 503"),
        ("short", EngineError, "broke off after 9,000 of 9,010"),
        ("chunked/cut", EngineError, "could not be fetched"),
        ("nothing", EngineError, "could not be fetched"),
        ("garbage", EngineError, "could not be fetched"),
        ("announced", EngineRefused, "at most 1,048,576"),
        ("large", EngineRefused, "1,048,57"),
        ("loop", EngineRefused, f"more than {MAX_REDIRECTS}"),
        ("redirect/file:///etc/passwd", EngineRefused, "http://"),
        ("redirect/ftp://localhost/good", EngineRefused, "http://"),
        ("redirect/http://user:secret@localhost/good", EngineRefused, "password"),
        ("redirect/http://[::1", EngineRefused, "malformed"),
        ("redirect/http://localhost:99999/", EngineRefused, "malformed"),
    ],
)
def test_what_goes_wrong_is_told(publisher: str, tmp_path: Path, path: str, kind: type[EngineError], words: str) -> None:
    with pytest.raises(EngineError) as refused:
        fetch(f"{publisher}/{path}", tmp_path / "file", LOOPBACK)
    assert type(refused.value) is kind
    assert words in refused.value.message
    assert "secret" not in refused.value.message


def test_nobody_there_is_told_and_may_be_tried_again(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/"
        with pytest.raises(EngineError, match="connection refused") as refused:
            fetch(url, tmp_path / "file", LOOPBACK)
    assert refused.value.retryable


def test_a_server_that_says_nothing_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TIMEOUT_S", 0.2)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(EngineError, match="no answer in time"):
            fetch(f"http://127.0.0.1:{silent.getsockname()[1]}/", tmp_path / "file", LOOPBACK)


def test_a_plain_server_is_no_https(publisher: str, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="could not be fetched"):
        fetch(publisher.replace("http:", "https:") + "/good", tmp_path / "file", LOOPBACK)


# -- where it must not go ------------------------------------------------------------------------------------------------------------------

PRIVATE = [
    "127.0.0.1", "127.1", "2130706433", "0x7f000001", "0177.0.0.1", "0", "0.0.0.0",  # noqa: S104 - asked for, not bound
    "localhost", "[::1]", "[::]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]",
    "[::ffff:10.0.0.1]", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "[::ffff:169.254.169.254]", "100.64.0.1", "[fe80::1]", "[fd00::1]",
    "[fc00::1]", "[ff02::1]", "224.0.0.1", "255.255.255.255", "240.0.0.1", "192.0.2.1", "198.18.0.1", "[2001:db8::1]", "[64:ff9b::7f00:1]",
    "[64:ff9b::a9fe:a9fe]", "[2002:7f00:1::]", "[2002:a9fe:a9fe::1]",
    "[fec0::1]", "[64:ff9b:1::7f00:1]", "[64:ff9b:1::808:808]", "[::ffff:0:127.0.0.1]", "[::127.0.0.1]", "[5f00::1]",
]  # fmt: skip


@pytest.fixture
def no_way_out(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Whoever connects all the same is noted."""
    reached: list[object] = []

    def connect(address: object, **_options: object) -> socket.socket:
        reached.append(address)
        raise OSError("blocked by the test")

    monkeypatch.setattr(socket, "create_connection", connect)
    return reached


@pytest.mark.parametrize("host", PRIVATE)
def test_private_addresses_are_not_connected_to(host: str, tmp_path: Path, no_way_out: list[object]) -> None:
    with pytest.raises(EngineError) as refused:
        fetch(f"http://{host}:8080/latest/meta-data", tmp_path / "file", PUBLIC)
    assert no_way_out == []
    assert isinstance(refused.value, EngineRefused) or "cannot be resolved" in refused.value.message
    assert not (tmp_path / "file").exists()


def resolving(monkeypatch: pytest.MonkeyPatch, answers: Callable[[str], str]) -> list[str]:
    asked: list[str] = []

    def getaddrinfo(host: str, port: int, **_options: object) -> list[tuple[object, ...]]:
        asked.append(host)
        address = answers(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return asked


@pytest.mark.parametrize("address", ["127.0.0.1", "10.1.2.3", "169.254.169.254", "::ffff:127.0.0.1", "fe80::1%eth0"])
def test_a_name_that_leads_inside_is_refused(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_way_out: list[object]) -> None:
    resolving(monkeypatch, lambda _host: address)
    with pytest.raises(EngineRefused, match="IMAGE_HOSTS_ALLOWED"):
        fetch("https://images.example.org/x.img", tmp_path / "file", PUBLIC)
    assert no_way_out == []


def test_the_address_that_was_checked_is_the_one_that_is_connected_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_way_out: list[object]
) -> None:
    """A name server that answers otherwise the second time gains nothing."""
    answers = iter(["93.184.216.34", "127.0.0.1", "127.0.0.1"])
    asked = resolving(monkeypatch, lambda _host: next(answers))
    with pytest.raises(EngineError, match="blocked by the test"):
        fetch("http://rebind.example.org/x", tmp_path / "file", PUBLIC)
    assert no_way_out == [("93.184.216.34", 80)]
    assert asked == ["rebind.example.org"]


def test_a_redirect_inside_is_refused(publisher: str, tmp_path: Path) -> None:
    narrow = Limits(1 << 20, ("127.0.0.1/32",))
    with pytest.raises(EngineRefused, match="no public address"):
        fetch(f"{publisher}/redirect/http://127.0.0.2:1/secret", tmp_path / "file", narrow)


def test_a_name_that_is_none_is_told(tmp_path: Path) -> None:
    for host in ("a" * 64 + ".example", "..", "xn--" + "a" * 70):
        with pytest.raises(EngineError):
            fetch(f"http://{host}/x", tmp_path / "file", PUBLIC)


@pytest.mark.parametrize(
    "url", ["", "file:///etc/passwd", "ftp://h/x", "http://", "http:///x", "gopher://h", "//h/x", "http://u@h/", "http://u:p@h/", "http://:p@h/",
            "http://@h/", "http://h:99999/", "http://h:x/", "http://[::1/", "http://h:0/", "javascript:alert(1)"],
)  # fmt: skip
def test_urls_that_can_never_be_fetched_are_known_beforehand(url: str, tmp_path: Path) -> None:
    assert problem_of(url)
    with pytest.raises(EngineRefused):
        fetch(url, tmp_path / "file", PUBLIC)


@pytest.mark.parametrize("url", ["http://h/", "https://h:8443/x?y=z@w", "http://[2606:4700::1111]/x"])
def test_urls_that_can_be_tried(url: str) -> None:
    assert problem_of(url) == ""
