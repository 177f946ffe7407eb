"""Calls of every protocol from one guest, and servers that answer them in another."""

import itertools
import socket
import struct
import threading
import time
from contextlib import closing, suppress

from portal.engines.local.network.namespaces import inside
from tests.support.drawn_networks import DNS, PORTS, Call
from tests.support.network import ANY_ADDRESS, Guest

# A question that name servers answer by themselves, and everybody else sends back.
QUESTION = bytes.fromhex("123401000001000000000000") + b"\x06nobody\x00" + bytes.fromhex("00010001")
REPLY_OF = {8: 0, 13: 14}
NUMBERS = itertools.count(1)


def listen(guest: Guest) -> None:
    """Answer on every port, TCP and UDP."""
    for number in (*PORTS, DNS):
        guest.serve(number)
        with inside(guest.name):
            ear = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        ear.bind((ANY_ADDRESS, number))
        guest._stack.enter_context(closing(ear))
        threading.Thread(target=_echo, args=(ear,), daemon=True).start()


def _echo(ear: socket.socket) -> None:
    """Send back what comes."""
    with suppress(OSError):
        while True:
            heard, caller = ear.recvfrom(2048)
            with suppress(PermissionError):
                ear.sendto(heard, caller)


def swallow(guest: Guest) -> None:
    """Take everything that comes for one's own, whomever it is for."""
    guest.run("nft", "add table ip taken; add chain ip taken coming { type nat hook prerouting priority -100; }")
    guest.run("nft", f"add rule ip taken coming iifname eth0 ip daddr != {guest.port.address} dnat to {guest.port.address}")


def answers(guest: Guest, call: Call, within_s: float) -> bool:
    """Whether a call is answered."""
    match call.protocol:
        case "tcp":
            with suppress(OSError), guest.connect(call.target, call.port, within_s):
                return True
            return False
        case "udp":
            return _datagram(guest, call, within_s)
    return _message(guest, call, within_s)


def _datagram(guest: Guest, call: Call, within_s: float) -> bool:
    with inside(guest.name):
        mouth = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with mouth, suppress(OSError):
        mouth.settimeout(within_s)
        mouth.connect((call.target, call.port))
        mouth.send(QUESTION)
        return bool(mouth.recv(2048))
    return False


def _message(guest: Guest, call: Call, within_s: float) -> bool:
    with inside(guest.name):
        mouth = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    number = next(NUMBERS) % 65_536
    body = struct.pack(">HH12x", number, 1)
    end_s = time.monotonic() + within_s
    with mouth, suppress(OSError):
        mouth.connect((call.target, 0))
        mouth.send(struct.pack(">BBH", call.port, 0, _checksum(struct.pack(">BBH", call.port, 0, 0) + body)) + body)
        while (left_s := end_s - time.monotonic()) > 0:
            mouth.settimeout(left_s)
            heard = mouth.recv(2048)[20:]
            if heard[0] == REPLY_OF[call.port] and struct.unpack_from(">H", heard, 4)[0] == number:
                return True
    return False


def _checksum(data: bytes) -> int:
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
