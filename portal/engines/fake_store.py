"""What the fake engine remembers: small JSON files and a lock, so that a web process, a worker and a test see the same host.

A process may be killed at any moment: a file is whole or not there, and the kernel lets go of the lock of the dead.
"""

import fcntl
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

from portal.engines.confinement import checked_id
from portal.engines.ports import EngineError, EngineRefused, EngineUnavailable, ImageFormat, ImageInfo, MachineState

VOLUMES, SNAPSHOTS = "volumes", "snapshots"
ERRORS: dict[str, type[EngineError]] = {kind.__name__: kind for kind in (EngineError, EngineRefused, EngineUnavailable)}


@dataclass(frozen=True, slots=True)
class FakeMachine:
    """What the fake host holds of one machine; `vcpus` is 0 until it is defined, `disk_gib` until it has a disk."""

    machine_id: str
    image_id: str = ""
    disk_gib: int = 0
    is_seeded: bool = False
    vcpus: int = 0
    memory_mib: int = 0
    hostname: str = ""
    power: MachineState = MachineState.STOPPED
    booted_at_s: float = 0.0
    taps: Sequence[str] = ()
    volumes: Sequence[str] = ()
    root: str = ""
    is_deaf: bool = False

    @property
    def is_defined(self) -> bool:
        """Whether the hypervisor knows the machine."""
        return self.vcpus > 0

    @property
    def state(self) -> MachineState:
        """What the hypervisor says of it."""
        return self.power if self.is_defined else MachineState.ABSENT


@dataclass(frozen=True, slots=True)
class FakeContent:
    """A volume or a snapshot on the fake host: what was written to it, by place."""

    content_id: str
    pool: str
    size_gib: int
    image_id: str = ""
    written: Mapping[str, str] = field(default_factory=dict)
    iops: int = 0
    throughput_mib_s: int = 0
    # SHA-256 of the passphrase; empty if it is not encrypted.
    locked_by: str = ""


@dataclass(frozen=True, slots=True)
class FakeCall:
    """One call of the engine: which method, and of which machine or image."""

    method: str
    subject: str


class FakeStore:
    """The files of one fake host."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._threads = Lock()
        for folder in ("machines", "images", "logs", VOLUMES, SNAPSHOTS):
            (root / folder).mkdir(parents=True, exist_ok=True)

    @contextmanager
    def call(self, method: str, subject: str = "") -> Iterator[None]:
        """Hold the host during one call, note it, and fail if that was planned."""
        with self.locked():
            self.note_call(FakeCall(method, subject))
            error = self.take_failure(method)
            if error is not None:
                raise error
            yield

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the host for oneself, among threads and processes."""
        with self._threads, (self._root / "lock").open("w") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield

    def machine(self, machine_id: str) -> FakeMachine:
        """What is there of a machine; of an unknown one, nothing."""
        found = _read(self._machine_path(machine_id))
        return _machine(found) if found else FakeMachine(machine_id)

    def machines(self) -> list[FakeMachine]:
        """Everything there is of any machine."""
        return [_machine(found) for path in sorted((self._root / "machines").glob("*.json")) if (found := _read(path))]

    def save_machine(self, machine: FakeMachine) -> None:
        """Remember a machine."""
        self._write(self._machine_path(machine.machine_id), asdict(machine))

    def forget_machine(self, machine_id: str) -> None:
        """Leave nothing of a machine."""
        self.log_path(machine_id).unlink(missing_ok=True)
        self._machine_path(machine_id).unlink(missing_ok=True)

    def image(self, image_id: str) -> ImageInfo | None:
        """An image of the store."""
        found = _read(self._image_path(image_id))
        return ImageInfo(**{**found, "format": ImageFormat(found["format"])}) if found else None

    def save_image(self, image_id: str, info: ImageInfo) -> None:
        """Take an image into the store."""
        self._write(self._image_path(image_id), asdict(info))

    def forget_image(self, image_id: str) -> None:
        """Drop an image."""
        self._image_path(image_id).unlink(missing_ok=True)

    def content(self, kind: str, content_id: str) -> FakeContent | None:
        """A volume or a snapshot; `kind` is the name of their directory."""
        found = _read(self._content_path(kind, content_id))
        return FakeContent(**found) if found else None

    def contents(self, kind: str) -> list[FakeContent]:
        """All volumes, or all snapshots."""
        return [FakeContent(**found) for path in sorted((self._root / kind).glob("*.json")) if (found := _read(path))]

    def save_content(self, kind: str, content: FakeContent) -> None:
        """Keep a volume or a snapshot."""
        self._write(self._content_path(kind, content.content_id), asdict(content))

    def forget_content(self, kind: str, content_id: str) -> None:
        """Drop a volume or a snapshot."""
        self._content_path(kind, content_id).unlink(missing_ok=True)

    def log_path(self, machine_id: str) -> Path:
        """What a machine wrote to its serial port."""
        return self._root / "logs" / f"{checked_id(machine_id)}.log"

    def plan_failure(self, method: str, error: EngineError, times: int) -> None:
        """Let the next calls of a method fail."""
        with self.locked():
            plans = _read(self._root / "failures.json")
            plans[method] = {"kind": type(error).__name__, "message": error.message, "times": times}
            self._write(self._root / "failures.json", plans)

    def take_failure(self, method: str) -> EngineError | None:
        """The error that a call of this method is to end with, if one is planned; counts it."""
        plans = _read(self._root / "failures.json")
        plan = plans.get(method)
        if plan is None:
            return None
        plan["times"] -= 1
        if plan["times"] < 1:
            del plans[method]
        self._write(self._root / "failures.json", plans)
        return ERRORS[plan["kind"]](plan["message"])

    def note_call(self, call: FakeCall) -> None:
        """Remember that a method was called."""
        with (self._root / "calls.jsonl").open("a") as history:
            history.write(json.dumps(asdict(call)) + "\n")

    def calls(self) -> list[FakeCall]:
        """Every call so far, oldest first; a line that a killed process left unfinished is no call."""
        path = self._root / "calls.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        return [FakeCall(**json.loads(line)) for line in lines if line.endswith("}\n")]

    def _machine_path(self, machine_id: str) -> Path:
        return self._root / "machines" / f"{checked_id(machine_id)}.json"

    def _image_path(self, image_id: str) -> Path:
        return self._root / "images" / f"{checked_id(image_id)}.json"

    def _content_path(self, kind: str, content_id: str) -> Path:
        return self._root / kind / f"{checked_id(content_id)}.json"

    def _write(self, path: Path, content: dict[str, Any]) -> None:
        # One name for all: whoever holds the lock may overwrite what a killed process left of it.
        fresh = self._root / "unfinished"
        fresh.write_text(json.dumps(content))
        fresh.replace(path)


def _machine(found: dict[str, Any]) -> FakeMachine:
    return FakeMachine(
        **{**found, "power": MachineState(found["power"]), "taps": tuple(found.get("taps", ())), "volumes": tuple(found.get("volumes", ()))}
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    return found
