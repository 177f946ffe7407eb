"""An engine for volumes that keeps a few words instead of blocks: it follows the rules of the real one, on the host of the fake machines."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from portal.engines.confinement import checked_id
from portal.engines.fake_store import SNAPSHOTS, VOLUMES, FakeCall, FakeContent, FakeStore
from portal.engines.image_headers import empty_qcow2
from portal.engines.ports import Capability, EngineError, EngineRefused, MachineState, MachineVolume
from portal.engines.volume_ports import Kept, KeptContent, Keyring, PoolRoom, VolumeEngine, VolumeSpec

GIB = 1 << 30
ROOM = PoolRoom(total_gib=10_000, free_gib=10_000)
IN_USE = "A running machine has this volume. Stop the machine or detach the volume first."


class FakeVolumes:
    """VolumeEngine over the directory of a fake host."""

    def __init__(self, root: Path, pools: Iterable[str]) -> None:
        """`root` is that of the machines; it is made if it is not there."""
        self._store = FakeStore(root)
        self._pools = tuple(pools)
        self._key_of: Keyring = _no_keys

    # -- what tests do to it -----------------------------------------------------------------------------------------------------------------

    def fail_next(self, method: str, error: EngineError | None = None, times: int = 1) -> None:
        """Let the next `times` calls of a method fail, in whichever process they are made."""
        if method not in dir(VolumeEngine):
            raise AttributeError(f"an engine for volumes has no method {method}")
        self._store.plan_failure(method, error or EngineError("The fake engine was told to fail."), times)

    def write(self, volume_id: str, place: int, text: str) -> None:
        """Write to a volume, as a guest would."""
        with self._store.locked():
            volume = self._volume(volume_id)
            self._store.save_content(VOLUMES, replace(volume, written={**volume.written, str(place): text}))

    def read(self, volume_id: str, place: int) -> str:
        """Read from a volume."""
        return self._volume(volume_id).written.get(str(place), "")

    def size_gib(self, volume_id: str) -> int:
        """How large a volume is."""
        return self._volume(volume_id).size_gib

    def limits(self, volume_id: str) -> tuple[int, int]:
        """Operations and MiB per second that were last set under a running machine."""
        volume = self._volume(volume_id)
        return volume.iops, volume.throughput_mib_s

    def calls(self) -> Sequence[FakeCall]:
        """Every call of the engine by any process, oldest first."""
        return self._store.calls()

    # -- volumes -----------------------------------------------------------------------------------------------------------------------------

    def use_keys(self, keyring: Keyring) -> None:
        """Ask this keyring for passphrases; nothing is really encrypted with them."""
        self._key_of = keyring

    def locked_by(self, volume_id: str) -> str:
        """SHA-256 of the passphrase of a volume; empty if it is not encrypted."""
        return self._volume(volume_id).locked_by

    def capability(self) -> Capability:
        """Volumes can be kept here, unless the fake was told otherwise."""
        try:
            with self._store.call("capability"):
                return Capability("volumes", available=True, detail="fake: nothing real is kept")
        except EngineError as error:
            return Capability("volumes", available=False, detail="fake", reason=error.message)

    def pools(self) -> Mapping[str, PoolRoom]:
        """Pools that are never full."""
        with self._store.call("pools"):
            return dict.fromkeys(self._pools, ROOM)

    def ensure_volume(self, spec: VolumeSpec) -> None:
        """Remember a volume with what it begins with."""
        with self._store.call("ensure_volume", spec.volume_id):
            self._refuse_unknown(spec.pool)
            if self._store.content(VOLUMES, spec.volume_id) is not None:
                return
            made = FakeContent(spec.volume_id, spec.pool, spec.size_gib, locked_by=self._digest(spec.volume_id) if spec.is_encrypted else "")
            own = self._store.machine(spec.machine_id) if spec.machine_id else None
            if own is not None and own.disk_gib:
                if own.state is MachineState.RUNNING:
                    return
                made = replace(made, image_id=own.image_id, size_gib=own.disk_gib)
                self._store.save_machine(replace(own, disk_gib=0, image_id=""))
            elif spec.image_id:
                image = self._store.image(spec.image_id)
                if image is None:
                    raise EngineRefused("The image is not in this host's store.")
                _refuse_too_small(image.virtual_size_bytes, spec)
                made = replace(made, image_id=spec.image_id)
            elif spec.snapshot_id:
                source = self._snapshot(spec.snapshot_id)
                _refuse_too_small(source.size_gib * GIB, spec)
                if bool(source.locked_by) != spec.is_encrypted:
                    raise EngineRefused("A volume is encrypted as what it begins with is.")
                self._unlock(source, spec.volume_id)
                made = replace(made, image_id=source.image_id, written=source.written)
            self._store.save_content(VOLUMES, made)

    def ensure_size(self, volume_id: str, size_gib: int) -> None:
        """Let a volume grow."""
        with self._store.call("ensure_size", volume_id):
            volume = self._volume(volume_id)
            if volume.size_gib < size_gib:
                self._unlock(volume, volume_id)
            self._store.save_content(VOLUMES, replace(volume, size_gib=max(volume.size_gib, size_gib)))

    def ensure_limits(self, volume: MachineVolume) -> None:
        """Remember the limits of a volume that a running machine has."""
        with self._store.call("ensure_limits", volume.volume_id):
            if self._is_used(checked_id(volume.volume_id)):
                had = self._volume(volume.volume_id)
                self._store.save_content(VOLUMES, replace(had, iops=volume.iops, throughput_mib_s=volume.throughput_mib_s))

    def remove_volume(self, volume_id: str) -> None:
        """Forget a volume."""
        with self._store.call("remove_volume", volume_id):
            if self._is_used(volume_id):
                raise EngineRefused(IN_USE)
            self._store.forget_content(VOLUMES, volume_id)

    # -- snapshots ---------------------------------------------------------------------------------------------------------------------------

    def ensure_snapshot(self, snapshot_id: str, volume_id: str) -> None:
        """Remember what a volume holds."""
        with self._store.call("ensure_snapshot", snapshot_id):
            volume = self._volume(volume_id)
            if self._store.content(SNAPSHOTS, snapshot_id) is None:
                self._unlock(volume, volume_id)
                self._store.save_content(SNAPSHOTS, replace(volume, content_id=snapshot_id))

    def restore(self, volume_id: str, snapshot_id: str) -> None:
        """Let a volume hold again what it held."""
        with self._store.call("restore", volume_id):
            volume, source = self._volume(volume_id), self._snapshot(snapshot_id)
            if self._is_used(volume_id):
                raise EngineRefused(IN_USE)
            if volume.pool != source.pool:
                raise EngineRefused("The snapshot lies in another pool. Make a new volume from it.")
            size_gib = max(volume.size_gib, source.size_gib)
            self._unlock(source, volume_id)
            self._store.save_content(VOLUMES, replace(volume, written=source.written, size_gib=size_gib))

    def ensure_copy(self, snapshot_id: str, source_id: str, pool: str) -> None:
        """Remember a snapshot a second time."""
        with self._store.call("ensure_copy", snapshot_id):
            self._refuse_unknown(pool)
            if self._store.content(SNAPSHOTS, snapshot_id) is None:
                source = self._snapshot(source_id)
                self._unlock(source, snapshot_id)
                self._store.save_content(SNAPSHOTS, replace(source, content_id=snapshot_id, pool=pool, image_id=""))

    def export(self, snapshot_id: str, path: Path) -> None:
        """Write an image with nothing on it."""
        with self._store.call("export", snapshot_id):
            if self._snapshot(snapshot_id).locked_by:
                raise EngineRefused("The snapshot is encrypted, and images are not.")
            path.write_bytes(empty_qcow2(self._snapshot(snapshot_id).size_gib * GIB))

    def remove_snapshot(self, snapshot_id: str) -> None:
        """Forget a snapshot."""
        with self._store.call("remove_snapshot", snapshot_id):
            self._store.forget_content(SNAPSHOTS, snapshot_id)

    def attached(self) -> Mapping[str, str]:
        """What running machines have."""
        with self._store.call("attached"):
            machines = [machine for machine in self._store.machines() if machine.state is MachineState.RUNNING]
            return {volume_id: machine.machine_id for machine in machines for volume_id in machine.volumes}

    def kept(self) -> Sequence[KeptContent]:
        """Everything that is remembered."""
        with self._store.call("kept"):
            return [
                KeptContent(each.content_id, kind, each.pool, each.size_gib * GIB, len(each.written) * 4096, len(each.written) * 4096)
                for folder, kind in ((VOLUMES, Kept.VOLUME), (SNAPSHOTS, Kept.SNAPSHOT))
                for each in self._store.contents(folder)
            ]

    def compact(self) -> int:
        """Nothing is shared here."""
        with self._store.call("compact"):
            return 0

    # -- inside ------------------------------------------------------------------------------------------------------------------------------

    def _digest(self, content_id: str) -> str:
        return hashlib.sha256(self._key_of(content_id)).hexdigest()

    def _unlock(self, content: FakeContent, content_id: str) -> None:
        """Refuse to open what is encrypted with another passphrase than that of this volume or snapshot."""
        if content.locked_by and content.locked_by != self._digest(content_id):
            raise EngineRefused("The passphrase of the disk is another one.")

    def _refuse_unknown(self, pool: str) -> None:
        if pool not in self._pools:
            raise EngineRefused(f"This host has no pool {pool[:32]!r}.")

    def _volume(self, volume_id: str) -> FakeContent:
        found = self._store.content(VOLUMES, volume_id)
        if found is None:
            raise EngineRefused("The volume is not on this host.")
        return found

    def _snapshot(self, snapshot_id: str) -> FakeContent:
        found = self._store.content(SNAPSHOTS, snapshot_id)
        if found is None:
            raise EngineRefused("The snapshot is not on this host.")
        return found

    def _is_used(self, volume_id: str) -> bool:
        return any(volume_id in machine.volumes and machine.state is MachineState.RUNNING for machine in self._store.machines())


def _no_keys(content_id: str) -> bytes:
    """The keyring of a host that was given none."""
    raise EngineRefused(f"{content_id[:64]} is encrypted, and this host has no keys.")


def _refuse_too_small(size_bytes: int, spec: VolumeSpec) -> None:
    if size_bytes > spec.size_gib * GIB:
        raise EngineRefused(f"What it is made from needs {-(-size_bytes // GIB)} GiB, more than {spec.size_gib} GiB.")
