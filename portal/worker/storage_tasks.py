"""Periodic work of storage."""

from portal.engines.object_ports import BlobStore
from portal.kernel.runner import SystemTask, TaskRun
from portal.storage import sweep
from portal.storage.engine_steps import on_engine
from portal.storage.engine_tending import look_at_engine, tend_engine
from portal.storage.lifecycle import lifecycle_follow
from portal.storage.metrics import metrics_sample, traffic_take_up
from portal.storage.notices import notices_send
from portal.storage.replicating import replication_run
from portal.storage.schedule_tending import schedules_follow
from portal.storage.tiers import transitions_follow
from portal.storage.traffic import traffic_files

SWEEP_S = 15.0
LOOK_S = 600.0
TRAFFIC_S = 60.0
NOTICES_S = 5.0
REPLICATION_S = 5.0
SCHEDULES_S = 30.0
HOUR_S = 3600.0
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


def sweep_unfinished(task: TaskRun) -> None:
    """Remove what was being written when a process died."""
    sweep.remove_unfinished(task.ctx, _blobs(task))


def scrub_objects(task: TaskRun) -> None:
    """Read a part of all objects again."""
    sweep.scrub(task.ctx, _blobs(task))


def follow_lifecycles(task: TaskRun) -> None:
    """Delete what rules of buckets say has lived long enough, and move what they say is to be elsewhere."""
    lifecycle_follow(task.ctx)
    transitions_follow(task.ctx, _blobs(task))


def take_up_traffic(task: TaskRun) -> None:
    """Count the requests of the last minutes, and write access logs."""
    metrics_sample(task.ctx)
    traffic_take_up(task.ctx, _blobs(task), traffic_files(task.ctx.settings))


def send_notices(task: TaskRun) -> None:
    """Tell webhooks what happened in buckets."""
    notices_send(task.ctx)


def replicate_buckets(task: TaskRun) -> None:
    """Carry over what was written into buckets that are replicated."""
    replication_run(task.ctx, _blobs(task))


def follow_schedules(task: TaskRun) -> None:
    """Take and delete snapshots as schedules of volumes say."""
    schedules_follow(task.ctx)


STORAGE_TASKS = (
    SystemTask("snapshot-schedules", "Take snapshots by schedule", lambda _: SCHEDULES_S, follow_schedules),
    SystemTask("replication", "Replicate buckets", lambda _: REPLICATION_S, replicate_buckets),
    SystemTask("notices", "Send notifications of buckets", lambda _: NOTICES_S, send_notices),
    SystemTask("traffic", "Write access logs and measure buckets", lambda _: TRAFFIC_S, take_up_traffic),
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
    SystemTask("unfinished", "Remove uploads that broke off", lambda _: HOUR_S, sweep_unfinished),
    SystemTask("scrub", "Read stored objects again", lambda _: DAY_S, scrub_objects),
)
