"""What volumes do for instances: disks when one boots, and what becomes of them when it is gone."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import or_, select
from sqlalchemy.orm import Session, joinedload

from portal.engines.ports import EngineError, MachineSample, MachineVolume
from portal.engines.volume_ports import VolumeSpec
from portal.kernel.context import Context
from portal.kernel.db import transaction
from portal.kernel.rows import end_along, insert_along, set_state
from portal.kernel.runner import StepRun
from portal.storage.volume_keys import encrypt, locked_among, refuse_locked
from portal.storage.volume_metrics import volumes_measured
from portal.storage.volume_models import Snapshot, Volume
from portal.storage.volume_steps import let_go, machine_volume, volume_engine
from portal.storage.volumes import VOLUME, reader_of, refuse_full, refuse_read, root_volume

# States from which a volume goes with its machine: nobody else is at work on it.
GOING = ("creating", "in-use", "error", "deleting")


class GuestVolumes:
    """Volumes as instances see them."""

    def begin(self, ctx: Context, instance: Any, *, encrypted: bool = False) -> None:
        """Give a new machine its root volume."""
        row = root_volume(ctx, instance)
        refuse_full(ctx, row.volume_type)
        if encrypted:
            encrypt(ctx, row, None)
        insert_along(ctx, row, instance.project_id)

    def ensure_root(self, run: StepRun, instance_id: str, image_id: str) -> bool:
        """Have the root volume of a machine on the host; a disk of its own that it has becomes this volume."""
        row = _root(run, instance_id)
        if row is None:
            return False
        given = {"image_id": image_id, "machine_id": instance_id}
        volume_engine(run).ensure_volume(VolumeSpec(row.id, row.volume_type.pool, row.size_gb, is_encrypted=row.encryption_enabled, **given))
        _say(run, row.id, "in-use", "", image_id)
        return True

    def drop_root(self, run: StepRun, instance_id: str, *, reason: str) -> None:
        """Remove the content of the root volume."""
        row = _root(run, instance_id)
        if row is not None:
            _say(run, row.id, "error", reason, row.image_id or "", is_unread=True)
            volume_engine(run).remove_volume(row.id)

    def of_machine(self, run: StepRun, instance_id: str, *, without: str = "") -> Sequence[MachineVolume]:
        """The volumes of a machine, or all but one; in the order in which it was given them."""
        with run.sessions() as session:
            rows = session.scalars(_of(instance_id).order_by(Volume.attached_at.is_(None), Volume.attached_at, Volume.id)).all()
            return [machine_volume(row) for row in rows if row.id != without]

    def refuse_locked(self, ctx: Context, instance_id: str) -> None:
        """Raise KeyUnusable if a volume of the machine is encrypted with a key that must not be used now."""
        refuse_locked(ctx, *locked_among(ctx, instance_id))

    def refuse_read(self, ctx: Context, instance_id: str) -> None:
        """Raise Conflict while what volumes that go with the machine hold has yet to be read, for a snapshot or a copy."""
        refuse_read(ctx, *ctx.db.scalars(_of(instance_id).where(or_(Volume.delete_on_termination, Volume.is_root)).with_only_columns(Volume.id)))

    def drop(self, run: StepRun, instance_id: str) -> str:
        """Remove the disks of those that go with the machine, which is gone; how many."""
        with run.sessions() as session, transaction(session):
            going = _of(instance_id).where(Volume.delete_on_termination, Volume.state.in_(GOING))
            rows = session.scalars(going.order_by(Volume.id).with_for_update()).all()
            # Those that go already are read by nobody.
            _wait_for_readers(session, *[row.id for row in rows if row.state != "deleting"])
            for row in rows:
                # From here on it goes, whatever else is asked of it.
                set_state(VOLUME, row, "deleting")
            gone = [row.id for row in rows]
        for volume_id in gone:
            volume_engine(run).remove_volume(volume_id)
        return f"{len(gone)} of its volumes" if gone else ""

    def leave(self, ctx: Context, instance: Any) -> None:
        """End what was dropped with an instance and let go of the others, within the caller's transaction."""
        for row in ctx.db.scalars(_of(instance.id).order_by(Volume.id).with_for_update()).all():
            # What was never made, or was unmade, goes with a machine that never was.
            if row.state == "deleting" or (row.is_root and instance.state == "cancelled"):
                row.state = "deleted"
                end_along(ctx, row)
            elif row.state == "in-use":
                set_state(VOLUME, row, "available")
            let_go(row)
            row.is_root = False

    def export(self, run: StepRun, snapshot_id: str, path: Path) -> None:
        """Write a snapshot as an image."""
        volume_engine(run).export(snapshot_id, path)

    def measured(self, ctx: Context, samples: Sequence[MachineSample]) -> None:
        """Keep what machines have done to their volumes."""
        volumes_measured(ctx, samples)

    def users_of_image(self, ctx: Context, image_id: str) -> int:
        """How many volumes and snapshots are built on an image."""
        found = [
            ctx.db.scalars(select(model.id).where(model.image_id == image_id, model.deleted_at.is_(None)).limit(100)).all()
            for model in (Volume, Snapshot)
        ]
        return sum(map(len, found))


def _root(run: StepRun, instance_id: str) -> Volume | None:
    with run.sessions() as session:
        return session.scalars(_of(instance_id).where(Volume.is_root).options(joinedload(Volume.volume_type))).first()


def _wait_for_readers(session: Session, *volume_ids: str) -> None:
    """Raise EngineError, as one that may be asked again, while what volumes hold has yet to be read; their rows are held, so nobody begins to."""
    if reader := reader_of(session, *volume_ids):
        raise EngineError(f"{reader} It has to be done first.")


def _say(run: StepRun, volume_id: str, state: str, reason: str, image_id: str, *, is_unread: bool = False) -> None:
    """Let the record of a root volume say what has become of it; where its content goes, only once nobody has yet to read that."""
    with run.sessions() as session, transaction(session):
        row = session.get_one(Volume, volume_id, with_for_update={"key_share": True})
        if is_unread:
            _wait_for_readers(session, volume_id)
        if row.state != "deleting":
            set_state(VOLUME, row, state, reason)
        row.image_id = image_id


def _of(instance_id: str) -> Any:
    return select(Volume).where(Volume.instance_id == instance_id, or_(Volume.deleted_at.is_(None), Volume.state == "deleting"))
