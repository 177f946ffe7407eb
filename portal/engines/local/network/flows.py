"""The flow log: the router's rules copy the first packets of connections to netlink, as many per second as are let through, and this reads them."""

import logging
import selectors
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence

from portal.engines.local.network.filter import ACCEPTED, LOG_GROUP
from portal.engines.local.network.namespaces import identity
from portal.engines.local.network.netlink import ACKNOWLEDGE, NetfilterSocket, attribute, attributes
from portal.engines.network_ports import Flow
from portal.engines.ports import EngineError

log = logging.getLogger("portal.engines.network")

MOST = 10_000
SUBSYSTEM = 4 << 8
PACKET, CONFIGURE = SUBSYSTEM | 0, SUBSYSTEM | 1
COMMAND, MODE, BIND, COPY_PACKET = 1, 2, 1, 2
TIMESTAMP, PAYLOAD, PREFIX = 3, 9, 10
HEADER_BYTES, PORTS_BYTES = 20, 4
COPIED_BYTES = 64
PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp"}
WITH_PORTS = {"tcp", "udp"}


class FlowReader:
    """Reads the flow logs of all VPCs that have one, in one thread that runs while there are any."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._seen: deque[Flow] = deque(maxlen=MOST)
        self._sockets: dict[str, tuple[NetfilterSocket, int]] = {}
        self._selector = selectors.DefaultSelector()
        self._wake, self._woken = socket.socketpair()
        self._selector.register(self._woken, selectors.EVENT_READ, None)
        self._thread: threading.Thread | None = None
        self._closing = False

    def ensure(self, namespace: str, vpc_id: str, *, wanted: bool) -> None:
        """Read a VPC's flow log, or no longer."""
        with self._guard:
            had = self._sockets.get(vpc_id)
            if had is not None and (not wanted or had[1] != identity(namespace)):
                self._drop(vpc_id)
            elif had is not None:
                return
            if wanted:
                link = _subscribed(namespace)
                self._sockets[vpc_id] = (link, identity(namespace))
                self._selector.register(link.socket, selectors.EVENT_READ, (vpc_id, link))
                if self._thread is None:
                    self._thread = threading.Thread(target=self._read, daemon=True, name="flow-log")
                    self._thread.start()

    def remove(self, vpc_id: str) -> None:
        """Read a VPC's flow log no longer."""
        with self._guard:
            self._drop(vpc_id)

    def _drop(self, vpc_id: str) -> None:
        had = self._sockets.pop(vpc_id, None)
        if had is not None:
            self._selector.unregister(had[0].socket)
            had[0].close()

    def taken(self) -> Sequence[Flow]:
        """What was seen since the last call."""
        with self._guard:
            found = list(self._seen)
            self._seen.clear()
        return found

    def close(self) -> None:
        """Read nothing any more."""
        self._closing = True
        self._wake.send(b"w")
        if self._thread is not None:
            self._thread.join()
        with self._guard:
            for vpc_id in list(self._sockets):
                self._drop(vpc_id)
        self._selector.close()
        for end in (self._wake, self._woken):
            end.close()

    def _read(self) -> None:
        while not self._closing:
            for key, _ in self._selector.select():
                if key.data is None:
                    self._woken.recv(4096)
                else:
                    self._take(*key.data)

    def _take(self, vpc_id: str, link: NetfilterSocket) -> None:
        with self._guard:
            if link.socket.fileno() < 0:
                return
            try:
                found = [flow for kind, body in link.receive() if kind == PACKET for flow in flows_of(vpc_id, body)]
            except (OSError, EngineError) as error:
                # More came than was read in time.
                log.warning("the flow log of %s lost some connections: %s", vpc_id, error)
                return
            self._seen.extend(found)


def _subscribed(namespace: str) -> NetfilterSocket:
    link = NetfilterSocket(namespace)
    try:
        for kind, value in ((COMMAND, bytes([BIND])), (MODE, struct.pack(">IBx", COPIED_BYTES, COPY_PACKET))):
            link.send(CONFIGURE, attribute(kind, value), flags=ACKNOWLEDGE, family=socket.AF_INET, resource=LOG_GROUP)
            list(link.receive())
    except TimeoutError as error:
        link.close()
        raise EngineError("The kernel does not offer its flow log.") from error
    except EngineError:
        link.close()
        raise
    return link


def flows_of(vpc_id: str, body: bytes) -> Iterator[Flow]:
    """The connection that one copied packet shows; none if it is no whole IPv4 header."""
    found = attributes(body)
    packet = found.get(PAYLOAD, b"")
    if len(packet) < HEADER_BYTES or packet[0] >> 4 != 4:  # noqa: PLR2004 - the version
        return
    length, protocol = int.from_bytes(packet[2:4], "big"), packet[9]
    name = PROTOCOLS.get(protocol, str(protocol))
    start = (packet[0] & 15) * 4
    has_ports = name in WITH_PORTS and len(packet) >= start + PORTS_BYTES
    source_port, destination_port = struct.unpack_from(">HH", packet, start) if has_ports else (0, 0)
    stamp = found.get(TIMESTAMP)
    seconds, micros = struct.unpack(">QQ", stamp) if stamp else (time.time(), 0)
    yield Flow(
        at_s=seconds + micros / 1e6, vpc_id=vpc_id, accepted=found.get(PREFIX, b"").rstrip(b"\0") == ACCEPTED.encode(), protocol=name,
        source=socket.inet_ntoa(packet[12:16]), source_port=source_port, destination=socket.inet_ntoa(packet[16:20]),
        destination_port=destination_port, size_bytes=length,
    )  # fmt: skip
