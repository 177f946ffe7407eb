"""The steps of what is done to volumes and snapshots: each brings the host one piece closer to the row, and may be repeated at any time."""

from portal.engines.ports import EngineUnavailable, MachineVolume
from portal.engines.volume_ports import VolumeEngine, VolumeSpec
from portal.kernel.db import now
from portal.kernel.declare import Step
from portal.kernel.runner import StepRun
from portal.storage.volume_models import Volume

GROWN = "a disk never shrinks; what it has more than its record says does no harm"
GONE = "what is half gone is removed by the next try"


def volume_engine(run: StepRun) -> VolumeEngine:
    """The engine for volumes. Raises EngineUnavailable where the installation has none."""
    if run.engines.volumes is None:
        raise EngineUnavailable("This worker keeps no volumes (ENGINE_COMPUTE=none).")
    return run.engines.volumes


def machine_volume(row: Volume) -> MachineVolume:
    """A volume as its machine has it."""
    return MachineVolume(row.id, row.iops, row.throughput_mbps, row.is_root)


def moment_of(row: Volume) -> str:
    """What a copy shares with the volume that it is made from."""
    return f"copy-{row.id.removeprefix('vol-')}"


# -- volumes -------------------------------------------------------------------------------------------------------------------------------


def make(run: StepRun) -> None:
    """Make the disk, with what it begins with."""
    engine, row = volume_engine(run), run.row
    source = row.snapshot_id or ""
    if row.source_volume_id:
        source = moment_of(row)
        engine.ensure_snapshot(source, row.source_volume_id)
    image = "" if source else row.image_id or ""
    if image and run.registry.machines is not None:
        run.registry.machines.ensure_image(run, image)
    engine.ensure_volume(
        VolumeSpec(row.id, row.volume_type.pool, row.size_gb, snapshot_id=source, image_id=image, is_encrypted=row.encryption_enabled)
    )
    if row.source_volume_id:
        engine.remove_snapshot(source)
    run.detail = f"{row.size_gb} GiB"


def erase(run: StepRun) -> None:
    """Remove the disk and what it was made from on the way."""
    engine = volume_engine(run)
    engine.remove_volume(run.row.id)
    if run.row.source_volume_id:
        engine.remove_snapshot(moment_of(run.row))


def plug(run: StepRun) -> None:
    """Give the machine its volumes."""
    _refit(run)


def unplug(run: StepRun) -> None:
    """Take this volume out of the machine, if need be by force."""
    if _refit(run, without=run.row.id, is_forced=bool(run.input.get("force"))):
        run.detail = "The guest did not let go: its machine lost its power and was booted without the volume."


def _refit(run: StepRun, *, without: str = "", is_forced: bool = False) -> bool:
    if run.registry.machines is None or not run.row.instance_id:
        return False
    return run.registry.machines.refit_volumes(run, run.row.instance_id, without=without, is_forced=is_forced)


def grow(run: StepRun) -> None:
    """Let the disk grow; a running guest notices at once."""
    volume_engine(run).ensure_size(run.row.id, run.row.resize_to_gb)
    run.detail = f"{run.row.resize_to_gb} GiB"


def limit(run: StepRun) -> None:
    """Let a running machine use it at most so fast."""
    volume_engine(run).ensure_limits(machine_volume(run.row))
    run.detail = f"{run.row.iops:,} IOPS, {run.row.throughput_mbps:,} MiB/s"


def roll_back(run: StepRun) -> None:
    """Let the volume hold what the snapshot holds."""
    volume_engine(run).restore(run.row.id, run.row.restoring_id)


CREATE = (Step(make, "Make the volume", undo=erase),)
ATTACH = (Step(plug, "Give it to the machine", undo=unplug),)
DETACH = (Step(unplug, "Take it from the machine", undo=plug),)
REFIT = (Step(plug, "Make its volumes what they should be", because="what is missing is brought back by the next try"),)
RESIZE = (Step(grow, "Let it grow", because=GROWN),)
LIMIT = (Step(limit, "Set its limits", because="they hold from the next start at the latest"),)
RESTORE = (Step(roll_back, "Bring back what it held", because="what it held meanwhile was given up"),)
DELETE = (Step(erase, "Remove the volume", because=GONE),)


def attached(row: Volume) -> None:
    """Columns of a volume that its machine has."""
    row.attached_at = now() if row.instance_id else None


def let_go(row: Volume) -> None:
    """Columns of a volume that no machine has."""
    row.instance_id = row.attached_at = None


def grown(row: Volume) -> None:
    """Columns of a volume that has its new size."""
    row.size_gb, row.resize_to_gb = row.resize_to_gb or row.size_gb, None


def not_grown(row: Volume) -> None:
    """Columns of a volume that keeps its size."""
    row.resize_to_gb = None


def restored(row: Volume) -> None:
    """Columns of a volume that holds what it is to hold."""
    row.restoring_id = None


def at_rest(row: Volume) -> str:
    """The state of a volume that nobody is at work on."""
    return "in-use" if row.instance_id else "available"


# -- snapshots -----------------------------------------------------------------------------------------------------------------------------


def keep(run: StepRun) -> None:
    """Keep what the volume holds now, or copy what another snapshot holds."""
    engine, row = volume_engine(run), run.row
    if row.copy_of_id:
        engine.ensure_copy(row.id, row.copy_of_id, row.volume_type.pool)
    else:
        engine.ensure_snapshot(row.id, row.volume_id)


def forget(run: StepRun) -> None:
    """Forget the snapshot."""
    volume_engine(run).remove_snapshot(run.row.id)


SNAPSHOT = (Step(keep, "Keep what the volume holds", undo=forget),)
FORGET = (Step(forget, "Remove the snapshot", because=GONE),)
