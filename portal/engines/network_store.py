"""What was asked for, and is or may be partly on the host: one file per VPC and peering, so that every process can find out and put it right."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import msgspec

from portal.engines.confinement import checked_id
from portal.engines.network_ports import PeeringSpec, VpcSpec
from portal.engines.ports import EngineUnavailable

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Formerly:
    """A range that a subnet's table led over a peering; without `peering_id`, over one that is gone."""

    subnet_id: str
    cidr: str
    peering_id: str


@dataclass(frozen=True, slots=True)
class VpcRecord:
    """States of a VPC of which something may be on the host, the last one being wanted; and marks by which a change from outside is seen.

    `namespace` and `generation` are the kernel's numbers of the router's namespace and of its rules, `epoch` counts how often the fabric's guard was
    found changed. While more than one state is noted, a change has not been finished; until `is_purged`, connections of a former state may go on,
    among them those over peerings that `formerly` names.
    """

    states: Sequence[VpcSpec]
    namespace: int = 0
    generation: int = 0
    epoch: int = -1
    is_purged: bool = True
    formerly: Sequence[Formerly] = ()

    @property
    def spec(self) -> VpcSpec:
        """The state that is wanted."""
        return self.states[-1]

    @property
    def is_finished(self) -> bool:
        """Whether the last change was made to its end."""
        return len(self.states) == 1 and self.epoch >= 0

    def wanting(self, spec: VpcSpec) -> "VpcRecord":
        """What is noted before a change begins."""
        others = [each for each in self.states if each != spec]
        return replace(self, states=[*others, spec], epoch=-1, is_purged=False)


@dataclass(frozen=True, slots=True)
class FabricRecord:
    """The fabric's namespace, the number of the last change of its rules, and how often somebody else changed them."""

    namespace: int = 0
    generation: int = 0
    epoch: int = 0


@dataclass(frozen=True, slots=True)
class Store:
    """The records of one installation, in a directory that is made when something is written."""

    folder: Path

    def vpcs(self) -> list[str]:
        """Ids of all VPCs."""
        return sorted(path.stem for path in (self.folder / "vpcs").glob("*.json"))

    def vpc(self, vpc_id: str) -> VpcRecord | None:
        """What is noted of a VPC. Raises EngineRefused for an id that is none."""
        return _read(self._vpc_path(vpc_id), VpcRecord)

    def save_vpc(self, record: VpcRecord) -> None:
        """Note it."""
        _write(self._vpc_path(record.spec.vpc_id), record)

    def forget_vpc(self, vpc_id: str) -> None:
        """Forget it."""
        self._vpc_path(vpc_id).unlink(missing_ok=True)

    def peerings(self) -> list[PeeringSpec]:
        """All peerings."""
        found = (_read(path, PeeringSpec) for path in sorted((self.folder / "peerings").glob("*.json")))
        return [each for each in found if each is not None]

    def save_peering(self, spec: PeeringSpec) -> None:
        """Note it."""
        _write(self._peering_path(spec.peering_id), spec)

    def forget_peering(self, peering_id: str) -> None:
        """Forget it."""
        self._peering_path(peering_id).unlink(missing_ok=True)

    def fabric(self) -> FabricRecord:
        """What is noted of the fabric."""
        return _read(self.folder / "fabric.json", FabricRecord) or FabricRecord()

    def save_fabric(self, record: FabricRecord) -> None:
        """Note it."""
        _write(self.folder / "fabric.json", record)

    def _vpc_path(self, vpc_id: str) -> Path:
        return self.folder / "vpcs" / f"{checked_id(vpc_id)}.json"

    def _peering_path(self, peering_id: str) -> Path:
        return self.folder / "peerings" / f"{checked_id(peering_id)}.json"


def _read(path: Path, kind: type[T]) -> T | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError:
        return None


def _write(path: Path, record: object) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_suffix(".new")
        # There may be passwords in what a guest is told.
        fresh.touch(mode=0o600)
        fresh.write_bytes(msgspec.json.encode(record))
        fresh.replace(path)
    except OSError as error:
        raise EngineUnavailable(f"The engine's directory under DATA_DIR cannot be written: {error.strerror}.") from error


def same(spec: VpcSpec) -> VpcSpec:
    """The spec as it would be read back, so that two can be compared."""
    return msgspec.json.decode(msgspec.json.encode(spec), type=VpcSpec)
