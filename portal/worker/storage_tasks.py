"""Periodic work of object storage."""

from portal.engines.object_ports import BlobStore
from portal.kernel.db import now
from portal.kernel.runner import SystemTask, TaskRun
from portal.storage import sweep
from portal.storage.engine_steps import on_engine
from portal.storage.engine_tending import look_at_engine, tend_engine
from portal.storage.lifecycle import lifecycle_follow

SWEEP_S = 15.0
LOOK_S = 600.0
DAY_S = 24 * 3600.0


def _blobs(task: TaskRun) -> BlobStore:
    if task.engines.blobs is None:
        msg = "this worker has no place for objects"
        raise RuntimeError(msg)
    return task.engines.blobs


def sweep_objects(task: TaskRun) -> None:
    """Take apart what was deleted, and free its room."""
    sweep.empty_deleted(task.ctx)
    sweep.give_up_uploads(task.ctx)
    sweep.remove_due(task.ctx, _blobs(task))


def sweep_orphans(task: TaskRun) -> None:
    """Remove bytes that a crash left behind."""
    sweep.remove_orphans(task.ctx, _blobs(task))


def scrub_objects(task: TaskRun) -> None:
    """Read a part of all objects again."""
    sweep.scrub(task.ctx, _blobs(task), day=now().toordinal() % sweep.SCRUB_DAYS)


def follow_lifecycles(task: TaskRun) -> None:
    """Delete what rules of buckets say has lived long enough."""
    lifecycle_follow(task.ctx)


STORAGE_TASKS = (
    SystemTask("lifecycle", "Follow lifecycle rules", lambda settings: settings.s3_lifecycle_day_s / 24 + 1, follow_lifecycles),
    SystemTask("objects", "Free the room of deleted objects", lambda _: SWEEP_S, sweep_objects),
    SystemTask("object-engine", "Bring the engine for objects up to date", lambda settings: SWEEP_S if on_engine(settings) else DAY_S, tend_engine),
    SystemTask(
        "object-engine-look",
        "Compare the engine for objects with its records",
        lambda settings: LOOK_S if on_engine(settings) else DAY_S,
        look_at_engine,
    ),
    SystemTask("orphans", "Remove what uploads left behind", lambda _: DAY_S, sweep_orphans),
    SystemTask("scrub", "Read stored objects again", lambda _: DAY_S, scrub_objects),
)
