"""The few messages of netfilter's netlink that are needed here and for which no library is quick enough: headers and attributes."""

import os
import socket
import struct
from collections.abc import Iterator
from itertools import count

from portal.engines.local.network.namespaces import inside
from portal.engines.ports import EngineError

NETLINK_NETFILTER = 12
REQUEST, ACKNOWLEDGE, DUMP = 1, 4, 0x300
ERROR, DONE = 2, 3
HEADER, FAMILY, ATTRIBUTE = struct.Struct("=IHHII"), struct.Struct(">BBH"), struct.Struct("=HH")
KIND = 0x3FFF
BUFFER_BYTES = 1 << 20
TIMEOUT_S = 10
_SEQUENCE = count(1)


class NetfilterSocket:
    """A netlink socket that stays in the namespace in which it was opened."""

    def __init__(self, namespace: str) -> None:
        """Raises EngineError if there is no such namespace."""
        with inside(namespace):
            self.socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER)
        self.socket.settimeout(TIMEOUT_S)
        self.socket.bind((0, 0))

    def send(self, kind: int, body: bytes = b"", *, flags: int = 0, family: int = 0, resource: int = 0) -> None:
        """Send one message."""
        length = HEADER.size + FAMILY.size + len(body)
        self.socket.send(HEADER.pack(length, kind, REQUEST | flags, next(_SEQUENCE), 0) + FAMILY.pack(family, 0, resource) + body)

    def receive(self) -> Iterator[tuple[int, bytes]]:
        """Kind and attributes of each message that has come. Raises EngineError if one of them is an error, TimeoutError if none comes."""
        came = self.socket.recv(BUFFER_BYTES)
        place = 0
        while place + HEADER.size <= len(came):
            length, kind, _, _, _ = HEADER.unpack_from(came, place)
            body = came[place + HEADER.size : place + length]
            if kind == ERROR:
                code = -struct.unpack_from("=i", body)[0]
                if code:
                    raise KernelRefused(code)
            yield kind, body[FAMILY.size :] if kind not in {ERROR, DONE} else b""
            place += (length + 3) & ~3

    def close(self) -> None:
        """Close it."""
        self.socket.close()


class KernelRefused(EngineError):
    """The kernel answered with an error."""

    def __init__(self, code: int) -> None:
        """`code` is one of errno's."""
        super().__init__(f"The kernel's packet filter refused: {os.strerror(code)}.")
        self.code = code


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute, padded."""
    return ATTRIBUTE.pack(ATTRIBUTE.size + len(value), kind) + value + bytes(-len(value) % 4)


def attributes(body: bytes) -> dict[int, bytes]:
    """Attributes by kind."""
    found: dict[int, bytes] = {}
    place = 0
    while place + ATTRIBUTE.size <= len(body):
        length, kind = ATTRIBUTE.unpack_from(body, place)
        if length < ATTRIBUTE.size:
            break
        found[kind & KIND] = body[place + ATTRIBUTE.size : place + length]
        place += (length + 3) & ~3
    return found
