"""Consoles over websockets, against a server that really listens: who gets in, what is carried, and when it ends."""

import threading
from collections.abc import Callable, Iterator

import pytest
from flask import Flask
from flask.testing import FlaskClient
from simple_websocket import Client, ConnectionClosed
from sqlalchemy import delete
from sqlalchemy.orm import Session, sessionmaker
from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler, make_server
from wsproto.frame_protocol import CloseReason

from portal.engines.fake import FakeCompute
from portal.engines.ports import Engines
from portal.identity.models import User, UserSession
from portal.web import consoles
from tests.support.draining import TestWorker
from tests.support.people import People
from tests.support.web import Api, browser

COOKIE = "__Host-atonix_session"


class _Silent(WSGIRequestHandler):
    """Writes no log of its own."""

    def log(self, *_args: object) -> None:
        """Say nothing."""


@pytest.fixture
def server(app: Flask) -> Iterator[BaseWSGIServer]:
    """The application on a port of loopback."""
    made = make_server("127.0.0.1", 0, app, threaded=True, request_handler=_Silent)
    # Closing it waits for the threads of its connections.
    made.daemon_threads = False
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


@pytest.fixture
def instance(api: Api, worker: TestWorker) -> str:
    """A running instance."""
    made: str = api.post("/compute/instances", {"name": "web-1", "flavor": "t3-micro", "image": "atonix-tiny"}).json["instance_id"]
    worker.drain()
    return made


@pytest.fixture
def connect(server: BaseWSGIServer, app: Flask, people: People) -> Callable[..., Client]:
    """`connect(path, user)`: a websocket with the cookie of a user who has signed in."""
    host = f"127.0.0.1:{server.server_port}"

    def open_one(path: str, user: User, *, origin: str = "") -> Client:
        client: FlaskClient = browser(app, people, user)
        # This client leaves the port out of its Host header.
        headers = {"Origin": origin or "http://127.0.0.1", "Cookie": f"{COOKIE}={client.get_cookie(COOKIE).value}"}
        return Client.connect(f"ws://{host}{path}", headers=headers)

    return open_one


def heard(ws: Client, words: bytes) -> bytes:
    """What was said up to some words."""
    text = b""
    while words not in text:
        part = ws.receive(timeout=10)
        assert part is not None, text
        text += part if isinstance(part, bytes) else part.encode()
    return text


def refused(connect: Callable[..., Client], *args: object, **more: object) -> tuple[int, str]:
    """How the server ends a websocket as soon as it is open. This client loses a frame that comes together with the answer to its handshake."""
    for _ in range(20):
        reason, message = closed(connect(*args, **more))
        if reason != CloseReason.NO_STATUS_RCVD:
            return reason, message
    pytest.fail("no reason was given")


def closed(ws: Client) -> tuple[int, str]:
    """How the server ended it."""
    try:
        while ws.receive(timeout=10) is not None:
            continue
    except ConnectionClosed as ended:
        return ended.reason, ended.message
    pytest.fail("the websocket stays open")


def test_a_terminal_talks_both_ways(connect: Callable[..., Client], instance: str, people: People) -> None:
    ws = connect(f"/ws/compute/instances/{instance}/serial", people.user("developer"))
    assert b"web-1" in heard(ws, b"# ")
    ws.send("echo grüße\r")
    assert "grüße".encode() in heard(ws, b"# ")
    ws.send(b"\x03raw")
    heard(ws, b"\x03raw")
    ws.close()


def test_a_display_speaks_rfb(connect: Callable[..., Client], instance: str, people: People) -> None:
    ws = connect(f"/ws/compute/instances/{instance}/display", people.user("developer"))
    heard(ws, b"RFB 003.008\n")
    ws.send(b"RFB 003.008\n")
    heard(ws, b"\x01\x01")
    ws.close()


def test_only_pages_of_this_portal_open_a_console(connect: Callable[..., Client], instance: str, people: People) -> None:
    user = people.user("developer")
    for origin in ("https://evil.example", "null", "http://127.0.0.1:1"):
        assert refused(connect, f"/ws/compute/instances/{instance}/serial", user, origin=origin) == (
            consoles.REFUSED,
            "The console opens from this portal's own pages only.",
        )


def test_who_may_not_gets_no_console(connect: Callable[..., Client], instance: str, people: People, app: Flask) -> None:
    path = f"/ws/compute/instances/{instance}/serial"
    for kind in ("serial", "display"):
        reason, words = refused(connect, f"/ws/compute/instances/{instance}/{kind}", people.user("viewer"))
        assert reason == consoles.REFUSED
        assert "compute.instance.console" in words
    reason, words = refused(connect, path, people.user("project_admin", people.project()))
    assert (reason, "web-1" in words) == (consoles.REFUSED, False)
    for cookie in ("", "nonsense"):
        stranger = app.test_client()
        stranger.set_cookie(COOKIE, cookie, secure=True)
        assert stranger.get(path, headers={"Connection": "Upgrade", "Upgrade": "websocket"}).status_code == 303
    assert refused(connect, "/ws/compute/instances/i-none/serial", people.user("developer"))[0] == consoles.REFUSED


def test_a_machine_that_is_off_has_no_console(connect: Callable[..., Client], instance: str, people: People, api: Api, worker: TestWorker) -> None:
    api.post(f"/compute/instances/{instance}/stop")
    worker.drain()
    reason, words = refused(connect, f"/ws/compute/instances/{instance}/serial", people.user("developer"))
    assert reason == consoles.GONE
    assert words


def test_a_console_ends_with_its_session(
    connect: Callable[..., Client], instance: str, people: People, database: sessionmaker[Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consoles, "CHECK_EVERY_S", 0.05)
    user = people.user("developer")
    ws = connect(f"/ws/compute/instances/{instance}/serial", user)
    heard(ws, b"# ")
    with database() as session:
        session.execute(delete(UserSession).where(UserSession.user_id == user.id))
        session.commit()
    assert closed(ws)[0] == consoles.ENDED


def test_a_console_ends_with_the_right_to_have_it(
    connect: Callable[..., Client], instance: str, people: People, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consoles, "CHECK_EVERY_S", 0.05)
    user = people.user("developer")
    ws = connect(f"/ws/compute/instances/{instance}/serial", user)
    heard(ws, b"# ")
    project = api.get("/auth/me").json["current_project_id"]
    assert api("DELETE", f"/projects/{project}/members/{user.id}").status_code == 204
    assert closed(ws)[0] == consoles.ENDED


def test_an_instance_without_engine_says_so(connect: Callable[..., Client], instance: str, people: People, app: Flask, fake: FakeCompute) -> None:
    app.extensions["portal_engines"] = Engines()
    assert refused(connect, f"/ws/compute/instances/{instance}/serial", people.user("developer")) == (
        consoles.GONE,
        "This installation runs no instances.",
    )
    assert fake.machines()
