"""What the portal asks of block storage: disks that exist by themselves, and what they held at a moment.

As everywhere, `ensure_*` and `remove_*` may be called again with the same arguments, and whatever happened before the call. How contents are shared
between volumes, snapshots and copies is the driver's own business: whoever removes one of them never touches another.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from portal.engines.ports import Capability, MachineVolume

# The passphrase of a volume or snapshot by its id. Raises EngineRefused, in words for users, where it must not be used.
Keyring = Callable[[str], bytes]


@dataclass(frozen=True, slots=True)
class VolumeSpec:
    """A volume to be made: empty, or with the content of a snapshot or of an image; `size_gib` is at least theirs.

    An encrypted one asks the keyring for its passphrase; what it begins with, but for an image, is encrypted with the same one, or not at all as it is.

    Where `machine_id` names a machine that has a root disk of its own, this becomes the volume, unless the machine runs.
    """

    volume_id: str
    pool: str
    size_gib: int
    snapshot_id: str = ""
    image_id: str = ""
    machine_id: str = ""
    is_encrypted: bool = False


@dataclass(frozen=True, slots=True)
class PoolRoom:
    """What a pool has and what is free of it."""

    total_gib: int
    free_gib: int


class Kept(StrEnum):
    """What kind of content is kept."""

    VOLUME = "volume"
    SNAPSHOT = "snapshot"
    # What nobody asked for by itself any more, but others are built on it.
    SHARED = "shared"


@dataclass(frozen=True, slots=True)
class KeptContent:
    """One piece of what a driver keeps: `used_bytes` is what it takes by itself on the host, `chain_bytes` with all that it is built on.

    What was overwritten since a snapshot counts in both; no more than its size is told.
    """

    content_id: str
    kind: Kept
    pool: str
    size_bytes: int
    used_bytes: int
    chain_bytes: int = 0


class VolumeEngine(Protocol):
    """Keeps volumes and snapshots. Called by workers only; safe to call from several threads."""

    def use_keys(self, keyring: Keyring) -> None:
        """Ask this keyring from now on. Passphrases are asked for when they are needed, and kept nowhere on the host's disk."""
        ...

    def capability(self) -> Capability:
        """Say whether volumes can be kept here; never raises."""
        ...

    def pools(self) -> Mapping[str, PoolRoom]:
        """The pools by name. Raises EngineUnavailable."""
        ...

    def ensure_volume(self, spec: VolumeSpec) -> None:
        """Make a volume; one that is there stays as it is. Raises EngineRefused for an unknown pool, snapshot or image, or one that does not fit."""
        ...

    def ensure_size(self, volume_id: str, size_gib: int) -> None:
        """Let a volume grow, under a running guest as well; never shrinks. Raises EngineRefused if there is no such volume."""
        ...

    def ensure_limits(self, volume: MachineVolume) -> None:
        """Let a running machine's limits for a volume be these; otherwise they hold from its next start."""
        ...

    def ensure_snapshot(self, snapshot_id: str, volume_id: str) -> None:
        """Keep what the volume holds now, under a running guest as after a power cut; a snapshot that is there stays. Raises EngineRefused."""
        ...

    def restore(self, volume_id: str, snapshot_id: str) -> None:
        """Let a volume hold again what it held; it keeps its size. Raises EngineRefused while a running machine has it."""
        ...

    def ensure_copy(self, snapshot_id: str, source_id: str, pool: str) -> None:
        """Make a snapshot that shares nothing with its source. Raises EngineRefused."""
        ...

    def export(self, snapshot_id: str, path: Path) -> None:
        """Write what a snapshot holds as a qcow2 image that stands alone. Raises EngineRefused."""
        ...

    def remove_snapshot(self, snapshot_id: str) -> None:
        """Forget a snapshot; volumes made from it keep what they have."""
        ...

    def remove_volume(self, volume_id: str) -> None:
        """Delete a volume; its snapshots stay. Raises EngineRefused while a running machine has it."""
        ...

    def attached(self) -> Mapping[str, str]:
        """The volumes that running machines have now: volume → machine."""
        ...

    def kept(self) -> Sequence[KeptContent]:
        """Everything that is kept, for figures and for the sweep."""
        ...

    def compact(self) -> int:
        """Give back the room of what nobody asks for any more, as far as that is possible now; how many pieces are gone."""
        ...
