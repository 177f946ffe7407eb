"""What a slow client may take of a web server: none of its threads until a head is here, and one only as long as its body goes on.

The main loop reads heads without waiting, so that whoever connects and is silent costs a socket and no thread. Connections that wait for a thread
have one queue for each address. Settings say how long a head may take, how fast a body has to come and how many connections an address has. Answers have
no such rate: whoever takes some of one every half minute keeps a thread, against which a proxy in front that buffers helps.
"""

import socket
import ssl
import struct
import time
from collections import Counter, deque
from functools import partial
from ipaddress import IPv6Address, ip_address
from selectors import EVENT_READ, EVENT_WRITE
from typing import Any

from gunicorn import sock as gunicorn_sock
from gunicorn.http import get_parser
from gunicorn.http.unreader import SocketUnreader
from gunicorn.workers.gthread import TConn, ThreadWorker

from portal.settings import Settings

MAX_HEAD = 64 * 1024
HEAD_END = b"\r\n\r\n"
READ = 8192
# A body is measured while the server waits for it: over so many seconds, or over these and more strictly while others wait for a thread.
WINDOW_S, CROWDED_WINDOW_S, CROWDED_TIMES = 30.0, 5.0, 32
LOOK_S = 1.0
# Whoever does not read what is sent for so long is let go of.
SEND_S = 30
# How long a closed connection is read on, so that its last answer is not cut off, and how long is waited for the rest of a body nobody wants.
LINGER_S = 2.0
DRAIN_S = 1.0
# Requests beyond the threads that are handed over already, so that no thread waits for the main loop.
AHEAD = 2
TOO_SLOW = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
TOO_LONG = b"HTTP/1.1 431 Request Header Fields Too Large\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


class PacedUnreader(SocketUnreader):  # type: ignore[misc] # the library has no types
    """Reads a body that has to go on at a rate; only the time that is spent waiting for the client counts."""

    def __init__(self, sock: Any, worker: "PatientWorker") -> None:
        """A worker says how fast a body has to be."""
        super().__init__(sock)
        self._worker = worker
        self._waited_s, self._received = 0.0, 0

    def start(self, head: bytes) -> None:
        """A request begins, with what is here of it."""
        self._waited_s, self._received = 0.0, 0
        self.unread(head)

    def chunk(self, size_hint: int | None = None) -> bytes:
        """The next bytes. Raises TimeoutError where they come too slowly."""
        size = min(max(size_hint or 0, self.mxchunk), self.max_body_chunk)
        given_s = self.sock.gettimeout()
        waited_s = 0.0
        try:
            while True:
                left_s = min(self._left_s(waited_s), LOOK_S if given_s is None else min(LOOK_S, given_s - waited_s))
                if left_s <= 0:
                    raise TimeoutError("The body came too slowly.")
                begun = time.monotonic()
                self.sock.settimeout(left_s)
                try:
                    data: bytes = self.sock.recv(size)
                except TimeoutError:
                    continue
                else:
                    self._received += len(data)
                    return data
                finally:
                    waited_s += time.monotonic() - begun
        finally:
            self._waited_s += waited_s
            self.sock.settimeout(given_s)

    def _left_s(self, waited_s: float) -> float:
        """How long the client may still take; a new window begins where enough came in the last one."""
        window_s, rate = self._worker.pace()
        if not rate:
            return LOOK_S
        left_s = window_s - self._waited_s - waited_s
        if left_s > 0:
            return left_s
        if self._received < rate * window_s:
            return 0
        self._waited_s, self._received = -waited_s, 0
        return window_s


class PatientConnection(TConn):  # type: ignore[misc]
    """A connection whose head the main loop reads."""

    def __init__(self, worker: "PatientWorker", sock: Any, client: Any, server: Any) -> None:
        """As it was accepted; over TLS the handshake comes with the first bytes. Raises OSError."""
        super().__init__(worker.cfg, sock, client, server)
        self.sock: Any
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", SEND_S, 0))
        self.address = address_of(client)
        self.deadline = 0.0
        self.head = b""
        # What it was told to do when something comes may be under way still, among the events of one look.
        self.is_closed = False
        self._is_shaken = not self.cfg.is_ssl
        if self.cfg.is_ssl:
            # What is not to be done here is the handshake, which waits for the client.
            context = gunicorn_sock.ssl_context(self.cfg)
            suppress = self.cfg.suppress_ragged_eofs
            self.sock = context.wrap_socket(self.sock, server_side=True, do_handshake_on_connect=False, suppress_ragged_eofs=suppress)
        self.parser = get_parser(self.cfg, self.sock, client)
        self.parser.unreader = PacedUnreader(self.sock, worker)
        self.initialized = self.data_ready = True

    @property
    def is_complete(self) -> bool:
        """Whether the head is here."""
        return HEAD_END in self.head

    def read_head(self) -> int:
        """Read what is there. What to wait for where more is needed, otherwise 0. Raises OSError, also at the end of the connection."""
        try:
            if not self._is_shaken:
                self.sock.do_handshake()
                self._is_shaken = True
            while not self.is_complete and len(self.head) < MAX_HEAD:
                data = self.sock.recv(READ)
                if not data:
                    raise ConnectionResetError
                self.head += data
        except ssl.SSLWantWriteError:
            return EVENT_WRITE
        except (BlockingIOError, ssl.SSLWantReadError):
            return EVENT_READ
        return 0

    def last_word(self, answer: bytes) -> None:
        """Say why it is closed, if the client listens at once."""
        if self._is_shaken and self.head:
            self.sock.send(answer)

    def drain(self) -> bool:
        """Throw away what still comes; whether the client is done."""
        try:
            return not self.sock.recv(READ)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return False
        except OSError:
            return True


class PatientWorker(ThreadWorker):  # type: ignore[misc]
    """gunicorn's worker with threads, which hands a request to a thread when its head is here."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """The limits are settings."""
        super().__init__(*args, **kwargs)
        settings = Settings.load()
        self._head_s, self._rate = settings.head_timeout_s, settings.body_min_bytes_per_s
        # A proxy is one address for everybody behind it.
        self._most = 0 if settings.trusted_proxies else settings.connections_per_address
        self._connections: Counter[str] = Counter()
        # Both in the order of their deadlines.
        self._heads: dict[PatientConnection, int] = {}
        self._leaving: dict[PatientConnection, int] = {}
        self._queues: dict[str, deque[PatientConnection]] = {}
        self._running: Counter[str] = Counter()
        # How many requests were handed to threads and are not done.
        self._handed = 0

    def pace(self) -> tuple[float, int]:
        """Over how many seconds a body is measured, and how many bytes a second it has to bring; 0 is no limit."""
        return (CROWDED_WINDOW_S, self._rate * CROWDED_TIMES) if self._handed > self.cfg.threads else (WINDOW_S, self._rate)

    def accept(self, listener: Any) -> None:
        """Take a connection; of an address that has too many, the one goes that has been silent for longest."""
        try:
            sock, client = listener.accept()
        except OSError:
            return
        self.nr_conns += 1
        address = address_of(client)
        self._connections[address] += 1
        if (self._most and self._connections[address] > self._most and not self._shed(address)) or (
            self.nr_conns >= self.worker_connections and not self._shed(None)
        ):
            self._forget(address)
            sock.close()
            return
        try:
            conn = PatientConnection(self, sock, client, listener.getsockname())
        except (OSError, ValueError):
            self._forget(address)
            sock.close()
            return
        self._await_head(conn)

    def _forget(self, address: str) -> None:
        self.nr_conns -= 1
        self._uncount(address)

    def _uncount(self, address: str) -> None:
        self._connections[address] -= 1
        if not self._connections[address]:
            del self._connections[address]

    def _shed(self, address: str | None) -> bool:
        """Close a connection that waits for its client, of this address or of any; False where there is none."""
        waiting = (*self._leaving, *self._heads, *self.keepalived_conns)
        conn = next((each for each in waiting if address in {None, each.address}), None)
        if conn is not None:
            self._close(conn)
        return conn is not None

    def _close(self, conn: PatientConnection) -> None:
        """Close a connection, wherever the main loop has it; once."""
        if conn.is_closed:
            return
        conn.is_closed = True
        for waiting in (self._heads, self._leaving):
            if waiting.pop(conn, None):
                self.poller.unregister(conn.sock)
        if conn in self.keepalived_conns:
            self.keepalived_conns.remove(conn)
            self.poller.unregister(conn.sock)
        self._forget(conn.address)
        conn.close()

    def _await_head(self, conn: PatientConnection) -> None:
        """Wait in the main loop for the head of a request; what is here of it is kept."""
        conn.sock.setblocking(False)
        conn.head = conn.parser.unreader.take_buffered()
        conn.deadline = time.monotonic() + self._head_s
        self._go_on(conn)

    def _go_on(self, conn: PatientConnection, _fileobj: Any = None) -> None:
        """Read on; hand the request over where its head is complete."""
        if conn.is_closed:
            return
        try:
            wanted = conn.read_head()
            if not wanted and not conn.is_complete:
                conn.last_word(TOO_LONG)
        except (OSError, ValueError):
            self._close(conn)
            return
        registered = self._heads.get(conn, 0)
        if wanted:
            if not registered:
                self.poller.register(conn.sock, wanted, partial(self._go_on, conn))
            elif registered != wanted:
                self.poller.modify(conn.sock, wanted, partial(self._go_on, conn))
            self._heads[conn] = wanted
            return
        if registered:
            del self._heads[conn]
            self.poller.unregister(conn.sock)
        if not conn.is_complete:
            self._leave(conn)
            return
        conn.parser.unreader.start(conn.head)
        conn.head = b""
        self.enqueue_req(conn)

    def on_client_socket_readable(self, conn: Any, client: Any) -> None:
        """A connection that was kept has its next request, or its end."""
        if conn.is_closed:
            return
        self.poller.unregister(client)
        self.keepalived_conns.remove(conn)
        self._await_head(conn)

    def enqueue_req(self, conn: PatientConnection) -> None:
        """Let a request wait for its turn among those of its address."""
        self._queues.setdefault(conn.address, deque()).append(conn)
        self._dispatch()

    def _dispatch(self) -> None:
        """Give free threads to the addresses that have the fewest."""
        while self._queues and self._handed < self.cfg.threads + AHEAD:
            address = min(self._queues, key=self._running.__getitem__)
            waiting = self._queues.pop(address)
            conn = waiting.popleft()
            if waiting:
                self._queues[address] = waiting
            self._running[address] += 1
            self._handed += 1
            super().enqueue_req(conn)

    def finish_request(self, conn: Any, fs: Any) -> None:
        """Keep a connection for its next request, or let go of it without waiting for the client."""
        self._handed -= 1
        self._running[conn.address] -= 1
        if not self._running[conn.address]:
            del self._running[conn.address]
        try:
            is_kept = not fs.cancelled() and fs.result() is True
            if not is_kept:
                self._leave(conn)
            elif conn.parser.unreader.buf.getvalue() or (self.cfg.is_ssl and conn.sock.pending()):
                self._await_head(conn)
            else:
                self._keep(conn)
        except Exception:
            self.log.exception("A connection ended")
            self._close(conn)
        self._dispatch()

    def _keep(self, conn: PatientConnection) -> None:
        """Wait for the next request of a connection; not for long where the server is about to stop."""
        conn.sock.setblocking(False)
        conn.set_timeout()
        if not self.alive:
            conn.timeout = min(conn.timeout, time.monotonic() + LINGER_S)
        self.keepalived_conns.append(conn)
        self.poller.register(conn.sock, EVENT_READ, partial(self.on_client_socket_readable, conn))

    def _leave(self, conn: PatientConnection) -> None:
        """Say that nothing more is sent, and wait a moment for the client to have read it."""
        try:
            conn.sock.setblocking(False)
            conn.sock.shutdown(socket.SHUT_WR)
            conn.deadline = time.monotonic() + LINGER_S
            self.poller.register(conn.sock, EVENT_READ, partial(self._see_off, conn))
        except (OSError, ValueError):
            self._close(conn)
            return
        self._leaving[conn] = EVENT_READ

    def _see_off(self, conn: PatientConnection, _fileobj: Any = None) -> None:
        if not conn.is_closed and conn.drain():
            self._close(conn)

    def murder_keepalived(self, force: bool = False) -> None:
        """Close the connections that were kept long enough."""
        before = set(self.keepalived_conns)
        super().murder_keepalived(force)
        for conn in before.difference(self.keepalived_conns):
            self._uncount(conn.address)

    def murder_pending(self) -> None:
        """Close the connections whose head did not come, and those that have ended."""
        moment = time.monotonic()
        for waiting in (self._heads, self._leaving):
            for conn in list(waiting):
                if conn.deadline > moment:
                    break
                if waiting is self._heads:
                    try:
                        conn.last_word(TOO_SLOW)
                    except OSError:
                        self.log.debug("A slow client is gone")
                self._close(conn)

    def _keepalive_after(self, conn: Any, keepalive: Any) -> bool:
        """Whether the connection can be used again; nobody waits long for the rest of a body that nobody wanted."""
        return bool(keepalive and conn.parser.finish_body(deadline=time.monotonic() + DRAIN_S))


def address_of(client: Any) -> str:
    """Whose connection it is: an address, or the network of /64 that an IPv6 customer has."""
    if not isinstance(client, tuple):
        return ""
    try:
        found = ip_address(str(client[0]).partition("%")[0])
    except ValueError:
        return str(client[0])
    if isinstance(found, IPv6Address):
        return str(found.ipv4_mapped) if found.ipv4_mapped else found.exploded[:19]
    return str(found)
