"""Connections that a server lets go of to make room, while something of theirs waits to be looked at."""

import selectors
import socket
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from gunicorn.config import Config

from portal.http.slow_clients import PatientWorker


class OneEach(PatientWorker):
    """A worker without a server around it that lets each address have one connection."""

    def __init__(self, listener: socket.socket) -> None:
        self.cfg, self.alive = Config(), True
        self.poller, self.keepalived_conns, self.nr_conns, self.worker_connections = selectors.DefaultSelector(), deque(), 0, 1000
        self._head_s, self._rate, self._most = 10, 1000, 1
        self._connections, self._running, self._handed = Counter(), Counter(), 0
        self._heads, self._leaving, self._queues = {}, {}, {}
        self._listener = listener
        self.poller.register(listener, selectors.EVENT_READ, self.accept)

    def look(self) -> None:
        """What the main loop does with what came, with a new connection as the first of it."""
        events = sorted(self.poller.select(5), key=lambda event: event[0].fileobj is not self._listener)
        for key, _ in events:
            key.data(key.fileobj)

    @property
    def held(self) -> int:
        """How many connections there are."""
        return len(self._heads) + len(self.keepalived_conns) + len(self._leaving)


@pytest.fixture
def worker() -> Iterator[tuple[OneEach, Callable[[], socket.socket]]]:
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        listener.setblocking(False)
        made = OneEach(listener)
        stack.callback(made.poller.close)
        yield made, lambda: stack.enter_context(socket.create_connection(listener.getsockname()))
        for conn in [*made._heads, *made._leaving, *made.keepalived_conns]:
            made._close(conn)


@pytest.mark.parametrize("is_kept", [False, True])
def test_one_that_goes_as_its_next_bytes_come_ends_nothing_else(worker: tuple[OneEach, Callable[[], socket.socket]], is_kept: bool) -> None:
    server, connect = worker
    first = connect()
    server.look()
    if is_kept:
        conn: Any = next(iter(server._heads))
        server._heads.pop(conn)
        server.poller.unregister(conn.sock)
        server._keep(conn)
    connect()
    first.send(b"GET")
    while len(server.poller.select(5)) < 2:
        continue
    server.look()
    assert (server.nr_conns, server.held, dict(server._connections)) == (1, 1, {"127.0.0.1": 1})
