"""Copies of the audit log: real receivers on real sockets get every entry, in order, at least once."""

import json
import re
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY
from sqlalchemy import delete, update
from sqlalchemy.orm import Session, sessionmaker

from portal.kernel.audit import AuditEntry, Subject, record
from portal.kernel.audit_sending import BATCH, stream_on
from portal.kernel.audit_streams import AuditStream, NotTaken, Receiver, streams
from portal.kernel.context import Context
from portal.kernel.db import now, transaction
from portal.kernel.outbound import signature_of
from portal.settings import Settings
from portal.worker.audit_receivers import receivers, send_syslog, send_webhook, syslog_message
from tests.support.people import People
from tests.support.servers import free_port

WAIT_S = 10.0
NOWHERE = Path("/nowhere")
HEAD = re.compile(rb'<(\d+)>1 (\S+) (\S+) atonix-portal - (\S+) \[meta sequenceId="(\d+)"\] (\{.*\})', re.DOTALL)


def write(ctx: Context, count: int, **details: object) -> None:
    with transaction(ctx.db):
        for number in range(count):
            record(
                ctx, "test.thing.do", Subject("test.thing", f"t-{number}", "ä\u2028"), status="denied" if number % 2 else "success", details=details
            )


@dataclass
class Listener:
    """A syslog server that reads everything that one connection after the other brings."""

    context: ssl.SSLContext | None = None
    got: list[bytes] = field(default_factory=list)
    arrived: threading.Condition = field(default_factory=threading.Condition)

    def serve(self, server: socket.socket) -> None:
        while True:
            try:
                plain, _ = server.accept()
            except OSError:
                return
            data = b""
            with suppress(ssl.SSLError), plain, self.context.wrap_socket(plain, server_side=True) if self.context else plain as stream:
                data = b"".join(iter(lambda: stream.recv(65536), b""))
            messages = []
            while data:
                length, _, rest = data.partition(b" ")
                messages.append(rest[: int(length)])
                data = rest[int(length) :]
            with self.arrived:
                self.got += messages
                self.arrived.notify_all()

    def wait_for(self, count: int) -> list[bytes]:
        with self.arrived:
            assert self.arrived.wait_for(lambda: len(self.got) >= count, WAIT_S)
            return list(self.got)


@contextmanager
def listening(listener: Listener) -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=listener.serve, args=(server,), daemon=True)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
    thread.join(WAIT_S)


def with_url(settings: Settings, **urls: str) -> Settings:
    return settings.model_copy(update=urls)


def seqs(messages: list[bytes]) -> list[int]:
    return [json.loads(HEAD.fullmatch(message)[6])["seq"] for message in messages]  # type: ignore[index]


def once() -> Callable[[], bool]:
    return lambda: False


def test_syslog_over_tcp_gets_everything_in_order(people: People, settings: Settings, database: sessionmaker[Session]) -> None:
    ctx, listener = people.context(people.user("developer")), Listener()
    write(ctx, 450, said="<&>")
    with listening(listener) as port, database() as session:
        (receiver,) = receivers(with_url(settings, audit_syslog_url=f"tcp://127.0.0.1:{port}"))
        stream_on(session, receiver, NOWHERE, until=once())
        write(ctx, 3)
        stream_on(session, receiver, NOWHERE, until=once())
        got = listener.wait_for(453)
        row = session.get_one(AuditStream, "syslog", populate_existing=True)
        assert (row.last_seq, row.last_error, row.at is not None) == (453, "", True)
    assert seqs(got) == list(range(1, 454))
    found = HEAD.fullmatch(got[1])
    assert found is not None
    assert (found[1], found[4], found[5], found[2].endswith(b"Z")) == (b"108", b"test.thing.do", b"2", True)
    entry = json.loads(found[6])
    assert (entry["resource_name"], entry["details"], entry["status"], len(entry["entry_hash"])) == ("ä\u2028", {"said": "<&>"}, "denied", 64)


def test_syslog_over_tls_checks_who_it_talks_to(people: People, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", str(key), "-out", str(certificate),
            "-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]  # fmt: skip
    subprocess.run(made, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    ctx, listener = people.context(None), Listener(context)
    write(ctx, 5)
    entries = [{"seq": n, "status": "success", "action": "a b\u00e9", "timestamp": "2026-01-01T00:00:00+00:00"} for n in range(1, 4)]
    with listening(listener) as port:
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        send_syslog(f"tls://localhost:{port}", entries)
        assert seqs(listener.wait_for(3)) == [1, 2, 3]
        with pytest.raises(NotTaken, match="certificate verify failed"):
            send_syslog(f"tls://127.0.0.1:{port}", entries)


def test_syslog_over_udp_is_one_datagram_per_entry(people: People, settings: Settings, database: sessionmaker[Session]) -> None:
    ctx = people.context(None)
    write(ctx, 2)
    write(ctx, 1, large="x" * 100_000)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server, database() as session:
        server.bind(("127.0.0.1", 0))
        server.settimeout(WAIT_S)
        (receiver,) = receivers(with_url(settings, audit_syslog_url=f"udp://127.0.0.1:{server.getsockname()[1]}"))
        stream_on(session, receiver, NOWHERE, until=once())
        got = [server.recv(65536) for _ in range(3)]
    assert seqs(got) == [1, 2, 3]
    assert json.loads(HEAD.fullmatch(got[2])[6])["details"] == "too large for a datagram"  # type: ignore[index]


def test_a_message_has_the_shape_of_the_standard() -> None:
    entry = {"seq": 2**31, "status": "failure", "action": "x" * 99, "timestamp": "2026-01-01T00:00:00.000005+00:00", "n": "\ud800"}
    found = HEAD.fullmatch(syslog_message(entry))
    assert found is not None
    assert (found[2], found[4], found[5]) == (b"2026-01-01T00:00:00.000005Z", b"x" * 32, b"1")


class Hook(BaseHTTPRequestHandler):
    """Takes what is signed; answers what the test wants."""

    bodies: list[dict[str, Any]]
    answers: list[int]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        timestamp = self.headers["X-Atonix-Timestamp"]
        is_signed = self.headers["X-Atonix-Signature"] == f"sha256={signature_of('shared', timestamp, body)}"
        status = self.answers.pop(0) if self.answers else 204
        if is_signed and status == 204:
            self.bodies.append(json.loads(body))
        self.send_response(status if is_signed else 403)
        self.send_header("Location", "/elsewhere")
        self.end_headers()

    def log_message(self, *_args: object) -> None:
        """Say nothing."""


@pytest.fixture
def hook() -> Iterator[tuple[str, type[Hook]]]:
    """A webhook's receiver on loopback."""
    handler = type("Hooked", (Hook,), {"bodies": [], "answers": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/hook?a=b", handler
    server.shutdown()
    thread.join()
    server.server_close()


def hooked(settings: Settings, url: str) -> Receiver:
    secret = type(settings.audit_webhook_secret)("shared")
    return receivers(settings.model_copy(update={"audit_webhook_url": url, "audit_webhook_secret": secret}))[0]


def test_a_webhook_gets_signed_batches_and_failed_ones_again(
    people: People, settings: Settings, database: sessionmaker[Session], hook: tuple[str, type[Hook]]
) -> None:
    url, handler = hook
    ctx, receiver = people.context(None), hooked(settings, url)
    write(ctx, 250)
    handler.answers[:] = [204, 500]
    with database() as session:
        stream_on(session, receiver, NOWHERE, until=once())
        row = session.get_one(AuditStream, "webhook", populate_existing=True)
        assert (row.last_seq, row.failures, "answered 500" in row.last_error, row.next_try_at > now()) == (200, 1, True, True)
        stream_on(session, receiver, NOWHERE, until=once())
        assert len(handler.bodies) == 1
        waits = []
        for status in (302, 503):
            handler.answers[:] = [status]
            with transaction(session):
                session.execute(update(AuditStream).values(next_try_at=now()))
            stream_on(session, receiver, NOWHERE, until=once())
            row = session.get_one(AuditStream, "webhook", populate_existing=True)
            waits.append(row.next_try_at - now())
        assert timedelta(seconds=5) < waits[0] < waits[1] < timedelta(seconds=21)
        with transaction(session):
            session.execute(update(AuditStream).values(next_try_at=now()))
        stream_on(session, receiver, NOWHERE, until=once())
        row = session.get_one(AuditStream, "webhook", populate_existing=True)
        assert (row.last_seq, row.failures, row.last_error) == (250, 0, "")
    assert [entry["seq"] for body in handler.bodies for entry in body["entries"]] == list(range(1, 251))
    assert [(body["first_seq"], body["last_seq"]) for body in handler.bodies] == [(1, 200), (201, 250)]


def test_who_dies_after_sending_sends_again(
    people: People, settings: Settings, database: sessionmaker[Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    from portal.kernel import audit_sending

    write(people.context(None), 3)
    sent: list[object] = []

    class Killed(BaseException):
        """As if the process had ended here."""

    def die(*_: object) -> int:
        raise Killed

    receiver = Receiver("webhook", lambda entries: sent.extend(entry["seq"] for entry in entries))
    with database() as session, monkeypatch.context() as patched:
        patched.setattr(audit_sending, "_moved", die)
        with pytest.raises(Killed):
            stream_on(session, receiver, NOWHERE, until=once())
    with database() as session:
        stream_on(session, receiver, NOWHERE, until=once())
    assert sent == [1, 2, 3, 1, 2, 3]


def test_a_gap_is_no_end(people: People, database: sessionmaker[Session]) -> None:
    write(people.context(None), 2 * BATCH + 3)
    with database() as session:
        session.execute(delete(AuditEntry).where(AuditEntry.seq <= 2 * BATCH))
        session.commit()
    sent: list[object] = []
    with database() as session:
        receiver = Receiver("webhook", lambda entries: sent.extend(entry["seq"] for entry in entries))
        stream_on(session, receiver, NOWHERE, until=once())
        row = session.get_one(AuditStream, "webhook", populate_existing=True)
    assert sent == [2 * BATCH + 1, 2 * BATCH + 2, 2 * BATCH + 3]
    assert row.passed_over == f"Entries 1 to {2 * BATCH} were not in the log any more when they were to be sent."


def test_nobody_listens(people: People, settings: Settings, database: sessionmaker[Session]) -> None:
    write(people.context(None), 1)
    nowhere = with_url(settings, audit_syslog_url=f"tcp://127.0.0.1:{free_port()}")
    with database() as session:
        stream_on(session, receivers(nowhere)[0], NOWHERE, until=once())
        ((row, lag),) = streams(session, nowhere)
        assert (lag, "refused" in row.last_error) == (1, True)
    with pytest.raises(NotTaken):
        send_webhook(f"http://127.0.0.1:{free_port()}/", "shared", [{"seq": 1}])


def test_the_page_and_the_metrics_say_how_far_copies_are(
    people: People, settings: Settings, database: sessionmaker[Session], app: Any, client_for: Callable[..., Any]
) -> None:
    write(people.context(None), 4)
    configured = with_url(settings, audit_webhook_url="http://user:" + f"kept-back@127.0.0.1:{free_port()}/")
    app.extensions["portal"] = (configured, *app.extensions["portal"][1:])
    with database() as session:
        stream_on(session, receivers(configured)[0], NOWHERE, until=once())
    page = client_for("auditor").get("/audit").text
    assert "Copies to webhook are held up" in page
    assert "kept-back" not in page
    assert "held up" not in client_for("project_admin").get("/audit").text
    assert app.test_client().get("/metrics").status_code == 200
    assert REGISTRY.get_sample_value("portal_audit_stream_lag", {"name": "webhook"}) == 4
