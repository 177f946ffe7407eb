"""Ends connections that began under former rules and may not go on: the filter lets answers pass without asking again."""

import errno
import socket
import struct
from collections.abc import Iterator, Sequence

from portal.engines.local.network.netlink import ACKNOWLEDGE, DONE, DUMP, KernelRefused, NetfilterSocket, attribute, attributes
from portal.engines.local.network.verdict import Connection, Verdicts
from portal.engines.network_ports import VpcSpec
from portal.engines.network_store import Formerly
from portal.engines.ports import EngineError

CONNTRACK = 1 << 8
GET, DELETE = CONNTRACK | 1, CONNTRACK | 2
ORIGINAL, REPLY = 1, 2
NESTED = 0x8000
ADDRESSES, PROTOCOL = 1, 2
SOURCE, DESTINATION = 1, 2
NUMBER, DESTINATION_PORT, ICMP_TYPE = 1, 3, 5


def purge(namespace: str, spec: VpcSpec, formerly: Sequence[Formerly]) -> int:
    """Forget every connection of a router that its VPC's state does not allow, or that went over a peering which it does not take any more.

    Gives their number. Raises EngineError.
    """
    verdicts = Verdicts(spec, formerly)
    link = NetfilterSocket(namespace)
    try:
        stale = [key for key, connection in _connections(link) if not verdicts.may_go_on(connection)]
        for key in stale:
            link.send(DELETE, attribute(ORIGINAL | NESTED, key), flags=ACKNOWLEDGE, family=socket.AF_INET)
            try:
                list(link.receive())
            except KernelRefused as error:
                # It ended by itself meanwhile.
                if error.code != errno.ENOENT:
                    raise
    except TimeoutError as error:
        raise EngineError("The kernel does not list its connections.") from error
    finally:
        link.close()
    return len(stale)


def _connections(link: NetfilterSocket) -> Iterator[tuple[bytes, Connection]]:
    """All connections, each with what the kernel finds it by."""
    link.send(GET, flags=DUMP, family=socket.AF_INET)
    while True:
        for kind, body in link.receive():
            if kind == DONE:
                return
            whole = attributes(body)
            began, answers = attributes(whole[ORIGINAL]), attributes(whole[REPLY])
            here, there = attributes(began[ADDRESSES]), attributes(answers[ADDRESSES])
            protocol = attributes(began[PROTOCOL])
            yield (
                whole[ORIGINAL],
                Connection(
                    protocol=protocol[NUMBER][0],
                    source=socket.inet_ntoa(here[SOURCE]),
                    destination=socket.inet_ntoa(here[DESTINATION]),
                    answered_by=socket.inet_ntoa(there[SOURCE]),
                    answered_to=socket.inet_ntoa(there[DESTINATION]),
                    port=struct.unpack(">H", protocol[DESTINATION_PORT])[0] if DESTINATION_PORT in protocol else None,
                    icmp_type=protocol[ICMP_TYPE][0] if ICMP_TYPE in protocol else None,
                ),
            )
