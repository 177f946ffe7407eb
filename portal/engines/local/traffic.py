"""How much a machine on user networking has sent and received: it has no interface on the host whose counters could be read.

QEMU notes each packet in a file, with its length and one byte of it; here the lengths are added up and what was read is given back to the file
system. Nobody would give it back while no worker runs, so that a worker that leaves switches the notes off and the next one on again: counters stand
still in between. Machines in a network do not need this: they have taps, whose counters the kernel keeps.
"""

import json
import struct
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from portal.engines.local.logs import release_front
from portal.engines.local.network.listing import Link
from portal.engines.local.paths import MachineFiles

NETDEV = "hostnet0"
SENT, RECEIVED = "count-rx", "count-tx"
# A pcap file: its own header, then per packet two words of time, the length kept, the length that it had, and the one byte kept.
FILE_HEADER_BYTES = 24
PACKET = struct.Struct("=IIIIB")
CHUNK_BYTES = PACKET.size << 16


@dataclass(frozen=True, slots=True)
class Counter:
    """Bytes of all packets up to a place in the file."""

    read_to: int = FILE_HEADER_BYTES
    total_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes that a machine moved since its boot."""

    received_bytes: int
    sent_bytes: int


def arguments(files: MachineFiles, run: Path) -> list[str]:
    """What QEMU is told: a netdev receives what the guest sends."""
    objects = [
        {"qom-type": "filter-dump", "id": name, "netdev": NETDEV, "queue": name[-2:], "maxlen": 1, "file": str(run / path.name)}
        for name, path in ((SENT, files.sent), (RECEIVED, files.received))
    ]
    return [part for each in objects for part in ("-object", json.dumps(each))]


def switch(name: str, *, on: bool) -> str:
    """What QEMU's monitor is told to begin or end one direction's notes."""
    return json.dumps({"execute": "qom-set", "arguments": {"path": f"/objects/{name}", "property": "status", "value": "on" if on else "off"}})


def forget(files: MachineFiles) -> None:
    """Begin at nothing, before a boot."""
    for path in (files.sent, files.received, files.traffic):
        path.unlink(missing_ok=True)


def measure(files: MachineFiles) -> Traffic:
    """Add up what came since the last time."""
    before = _remembered(files.traffic)
    received = _advance(files.received, before.get("received", Counter()))
    sent = _advance(files.sent, before.get("sent", Counter()))
    fresh = files.traffic.with_suffix(".new")
    fresh.write_text(json.dumps({"received": asdict(received), "sent": asdict(sent)}))
    fresh.replace(files.traffic)
    # Only now: a process that dies before this reads the same packets again.
    release_front(files.received, received.read_to)
    release_front(files.sent, sent.read_to)
    return Traffic(received.total_bytes, sent.total_bytes)


def through(taps: Collection[str], links: Mapping[str, Link]) -> Traffic:
    """What went through a machine's taps since they were made: they receive what the guest sends."""
    found = [links[tap] for tap in taps if tap in links]
    return Traffic(sum(link.sent_bytes for link in found), sum(link.received_bytes for link in found))


def _remembered(path: Path) -> dict[str, Counter]:
    try:
        return {name: Counter(**found) for name, found in json.loads(path.read_text()).items()}
    except FileNotFoundError:
        return {}


def _advance(path: Path, counter: Counter) -> Counter:
    try:
        with path.open("rb") as notes:
            notes.seek(counter.read_to)
            while chunk := notes.read(CHUNK_BYTES):
                whole = len(chunk) // PACKET.size * PACKET.size
                total = sum(length for _, _, _, length, _ in PACKET.iter_unpack(chunk[:whole]))
                counter = Counter(counter.read_to + whole, counter.total_bytes + total)
                if whole < len(chunk):
                    break
    except FileNotFoundError:
        return Counter()
    return counter
