"""The metadata service: answers guests at 169.254.169.254 from one thread that waits for nobody.

A listening socket inside each router's namespace tells the VPCs apart, the guest's address tells its guests apart; that it is the guest's own is held
by the guard and the router's rules. A request has a deadline as a whole, and where there are too many, whoever has most loses the oldest: slow guests
are in the way of nobody else.
"""

import logging
import selectors
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Hashable
from contextlib import suppress
from dataclasses import dataclass

from portal.engines.local.network.filter import METADATA
from portal.engines.local.network.metadata import answers, response
from portal.engines.local.network.namespaces import identity, inside
from portal.engines.network_ports import VpcSpec

log = logging.getLogger("portal.engines.network")

PORT = 80
DEADLINE_S = 5.0
# Requests that have come in part; guests ask one after the other.
MOST, MOST_PER_VPC = 256, 16
WAITING = 64
HEAD_BYTES = 16_384
END = b"\r\n\r\n"


class MetadataService:
    """All listening sockets of this process and the requests that have come in part, and the thread that serves them."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._vpcs: dict[str, _Listener] = {}
        self._selector = selectors.DefaultSelector()
        self._wake, self._woken = socket.socketpair()
        self._selector.register(self._woken, selectors.EVENT_READ, None)
        # The oldest first; only the serving thread knows them.
        self._open: dict[_Request, None] = {}
        self._thread = threading.Thread(target=self._serve, daemon=True, name="metadata")
        self._closing = False
        self._thread.start()

    def ensure(self, namespace: str, spec: VpcSpec) -> None:
        """Answer the guests of a VPC, with what they are told now."""
        table = {port.address: answers(port) for port in spec.ports}
        with self._guard:
            listener = self._vpcs.get(spec.vpc_id)
            if listener is not None and listener.is_right(namespace):
                listener.table = table
                return
            if listener is not None:
                self._drop(spec.vpc_id)
            listener = _Listener(namespace, table)
            self._vpcs[spec.vpc_id] = listener
            self._selector.register(listener.socket, selectors.EVENT_READ, listener)
        self._wake.send(b"w")

    def is_right(self, namespace: str, vpc_id: str) -> bool:
        """Whether the guests of a VPC are answered."""
        with self._guard:
            listener = self._vpcs.get(vpc_id)
            return listener is not None and listener.is_right(namespace)

    def remove(self, vpc_id: str) -> None:
        """Answer a VPC no longer."""
        with self._guard:
            self._drop(vpc_id)

    def _drop(self, vpc_id: str) -> None:
        listener = self._vpcs.pop(vpc_id, None)
        if listener is not None:
            with suppress(KeyError, ValueError):
                self._selector.unregister(listener.socket)
            listener.socket.close()

    def close(self) -> None:
        """Answer nobody any more."""
        self._closing = True
        self._wake.send(b"w")
        self._thread.join()
        with self._guard:
            for vpc_id in list(self._vpcs):
                self._drop(vpc_id)
        self._selector.close()
        for end in (self._wake, self._woken):
            end.close()

    def _serve(self) -> None:
        while not self._closing:
            for key, _ in self._selector.select(self._until_deadline_s()):
                if key.data is None:
                    self._woken.recv(4096)
                elif isinstance(key.data, _Listener):
                    self._accept(key.data)
                elif key.data in self._open:
                    self._go_on(key.data)
            while self._open and self._until_deadline_s() == 0:
                self._end(next(iter(self._open)))
        for request in list(self._open):
            self._end(request)

    def _until_deadline_s(self) -> float | None:
        oldest = next(iter(self._open), None)
        return None if oldest is None else max(0.0, oldest.deadline_s - time.monotonic())

    def _accept(self, listener: "_Listener") -> None:
        try:
            link, (address, _) = listener.socket.accept()
        except OSError:
            # Taken away a moment ago, or the guest went.
            return
        link.setblocking(False)
        request = _Request(link, address, listener, time.monotonic() + DEADLINE_S)
        self._open[request] = None
        self._selector.register(link, selectors.EVENT_READ, request)
        if sum(each.listener is listener for each in self._open) > MOST_PER_VPC:
            self._make_room(lambda each: each.address if each.listener is listener else None)
        if len(self._open) > MOST:
            self._make_room(lambda each: each.listener)

    def _make_room(self, owner: "Callable[[_Request], Hashable]") -> None:
        """End the oldest request of the owner who has most; requests of None are left alone."""
        (most, _), *_ = Counter(found for found in map(owner, self._open) if found is not None).most_common(1)
        self._end(next(each for each in self._open if owner(each) == most))

    def _go_on(self, request: "_Request") -> None:
        try:
            if request.is_done():
                self._end(request)
            elif request.answer:
                self._selector.modify(request.link, selectors.EVENT_WRITE, request)
        except OSError as error:
            log.debug("a guest's question was cut off: %s", error)
            self._end(request)

    def _end(self, request: "_Request") -> None:
        del self._open[request]
        self._selector.unregister(request.link)
        request.link.close()


class _Listener:
    """The socket in one router's namespace."""

    def __init__(self, namespace: str, table: dict[str, dict[str, bytes]]) -> None:
        self.table = table
        self._identity = identity(namespace)
        with inside(namespace):
            self.socket = socket.create_server((METADATA, PORT), backlog=WAITING)
        self.socket.setblocking(False)

    def is_right(self, namespace: str) -> bool:
        """Whether it listens in the namespace that has the name now."""
        return self.socket.fileno() >= 0 and self._identity == identity(namespace)


@dataclass(eq=False, slots=True)
class _Request:
    """A guest's request as far as it has come, and then what of its answer is still to be sent."""

    link: socket.socket
    address: str
    listener: _Listener
    deadline_s: float
    head: bytes = b""
    answer: bytes = b""

    def is_done(self) -> bool:
        """Go on as far as that is possible at once; whether nothing is left to do. Raises OSError."""
        if not self.answer:
            heard = self.link.recv(HEAD_BYTES)
            self.head += heard
            if END not in self.head:
                return not heard or len(self.head) > HEAD_BYTES
            self.answer = response(self.head, self.address, self.listener.table)
        with suppress(BlockingIOError):
            self.answer = self.answer[self.link.send(self.answer) :]
        return not self.answer
