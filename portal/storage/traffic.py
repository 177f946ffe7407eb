"""What requests came to the S3 interface: written down by the gateway in files, a minute each, and taken up from there behind everybody's back.

A line is in its file when a request has been answered; a gateway that dies loses none. Where nobody takes files up, the oldest stay and what is more
is left out: requests never wait for being written down.
"""

import json
import logging
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Lock

from portal.settings import Settings

MINUTE_S = 60
# After the end of its minute a file is left alone for so long: somebody may be writing a last line.
SETTLE_S = 5.0
MOST_BYTES_OF_ONE = 64 << 20
MOST_BYTES = 256 << 20

log = logging.getLogger("portal.storage")


@dataclass(frozen=True, slots=True)
class Record:
    """One request about a bucket. `line` is what the bucket's log says of it, but for who owns the bucket."""

    bucket: str
    at: float
    bytes_in: int
    bytes_out: int
    line: str


class TrafficFiles:
    """Where records are kept until they are taken up; every process writes files of its own."""

    def __init__(self, home: Path) -> None:
        """Nothing is made there before the first record."""
        self._home = home
        self._lock = Lock()
        self._minute, self._handle, self._written = -1, -1, 0

    def add(self, record: Record) -> None:
        """Write a record down. What goes wrong is logged and harms no request."""
        line = json.dumps(asdict(record), separators=(",", ":")).encode() + b"\n"
        try:
            with self._lock:
                self._turn(int(time.time()) // MINUTE_S)
                if self._handle >= 0 and self._written + len(line) <= MOST_BYTES_OF_ONE:
                    self._written += os.write(self._handle, line)
        except OSError as error:
            log.warning("a request cannot be written down: %s", error)

    def _turn(self, minute: int) -> None:
        if minute == self._minute:
            return
        self.close()
        self._minute = minute
        self._home.mkdir(parents=True, exist_ok=True, mode=0o700)
        if sum(path.stat().st_size for path in self._home.glob("*.log")) > MOST_BYTES:
            log.warning("requests are not written down: nobody takes up what is in %s", self._home)
            return
        self._handle = os.open(self._home / f"{minute:010d}-{os.getpid()}.log", os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600)
        self._written = os.fstat(self._handle).st_size

    def close(self) -> None:
        """Let go of the present file."""
        if self._handle >= 0:
            os.close(self._handle)
        self._minute, self._handle = -1, -1

    def settled(self, *, at: float) -> list[Path]:
        """The files that nobody writes into any more at a time, oldest first."""
        newest = int(at - SETTLE_S) // MINUTE_S
        return [path for path in sorted(self._home.glob("*.log")) if minute_of(path) < newest]


def traffic_files(settings: Settings) -> TrafficFiles:
    """Those of this installation."""
    return TrafficFiles(settings.data_dir / "traffic")


def minute_of(path: Path) -> int:
    """Which minute a file is of."""
    return int(path.name.partition("-")[0])


def records_in(path: Path) -> Iterator[Record]:
    """What is in a file; a line that broke off with its writer is passed over."""
    with path.open("rb") as lines:
        for line in lines:
            try:
                found: Mapping[str, object] = json.loads(line)
                yield Record(**found)  # type: ignore[arg-type]
            except (ValueError, TypeError):
                log.warning("a line of %s broke off", path.name)
