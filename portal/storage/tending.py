"""Looks after volumes without being asked: what has expired goes, what nobody knows of any more is swept up, instances of before get a root volume."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import exists, select

from portal.engines.ports import EngineError
from portal.engines.volume_ports import Kept, KeptContent, VolumeEngine
from portal.kernel.context import Context
from portal.kernel.db import now
from portal.kernel.declare import Operation
from portal.kernel.errors import PortalError
from portal.kernel.operations import run
from portal.kernel.quota import usage
from portal.kernel.runner import TaskRun
from portal.storage.snapshots import snapshot_expire
from portal.storage.volume_metrics import usage_noted
from portal.storage.volume_models import Snapshot, Volume
from portal.storage.volumes import volume_adopt, volume_expire, volume_refit

log = logging.getLogger("portal.storage")
AT_ONCE = 50


def tend_volumes(task: TaskRun) -> None:
    """One round of it."""
    expire(task.ctx)
    adopt(task.ctx)
    if task.engines.volumes is not None:
        refit(task.ctx, task.engines.volumes)
        kept = task.engines.volumes.kept()
        usage_noted(task.ctx, kept)
        sweep(task.ctx, task.engines.volumes, kept)
        task.engines.volumes.compact()


def expire(ctx: Context) -> None:
    """Delete for good what has been in the trash for long enough, and snapshots whose time is over."""
    trashed = select(Volume.id).where(Volume.state == "trashed", Volume.trash_until <= now(), Volume.deleted_at.is_(None), Volume.locked.is_(False))
    over = select(Snapshot.id).where(
        Snapshot.state == "completed", Snapshot.expires_at <= now(), Snapshot.deleted_at.is_(None), Snapshot.locked.is_(False)
    )
    for query, op in ((trashed, volume_expire), (over, snapshot_expire)):
        for row_id in _ids(ctx, query):
            _try(ctx, op, row_id, {})


def adopt(ctx: Context) -> None:
    """Give instances without a root volume one; where its quota is used up they go on without."""
    model = ctx.registry.model("compute.instance")
    has_one = exists().where(Volume.instance_id == model.id, Volume.is_root)
    without = select(model.id, model.project_id, model.root_volume_size_gb).where(
        model.deleted_at.is_(None), model.state.in_(("running", "stopped", "error")), ~has_one
    )
    rows = ctx.db.execute(without).all()
    ctx.db.rollback()
    for instance_id, project_id, size_gb in rows:
        left = {name: limit - used for name, (limit, used) in usage(ctx.db, project_id).items() if limit is not None}
        ctx.db.rollback()
        # Asked first: a refusal every minute would fill the audit log.
        if left.get("volumes", 1) >= 1 and left.get("volume_gb", size_gb) >= size_gb:
            _try(replace(ctx, project_id=project_id), volume_adopt, None, {"instance": instance_id})


def refit(ctx: Context, engine: VolumeEngine) -> None:
    """Bring running machines up to date that have other volumes than their records say, through their root volume."""
    model = ctx.registry.model("compute.instance")
    query = select(Volume.id, Volume.instance_id, Volume.state, Volume.is_root).where(Volume.instance_id.is_not(None), Volume.deleted_at.is_(None))
    # Rows first: what changes meanwhile is seen as different, and then made what it should be by then.
    rows = ctx.db.execute(query.join(model, model.id == Volume.instance_id).where(model.state == "running")).all()
    ctx.db.rollback()
    has: dict[str, set[str]] = {}
    for volume_id, machine_id in engine.attached().items():
        has.setdefault(machine_id, set()).add(volume_id)
    for root in [row for row in rows if row.is_root]:
        mine = [row for row in rows if row.instance_id == root.instance_id]
        # One that an earlier version started boots from a disk of its own.
        wanted = {row.id for row in mine if row.id in has.get(root.instance_id, set()) or not row.is_root}
        if all(row.state == "in-use" for row in mine) and wanted != has.get(root.instance_id, set()):
            _try(ctx, volume_refit, root.id, {"reason": "The machine has other volumes than its record says."})


def sweep(ctx: Context, engine: VolumeEngine, found: Sequence[KeptContent]) -> Sequence[str]:
    """Remove what is kept for records that have ended; gives the ids. What no record knows of is left alone: the database may be an old copy."""
    kept = [each for each in found if each.kind is not Kept.SHARED]
    gone = []
    for each in kept:
        verdict = _verdict(ctx, each)
        if verdict is None:
            log.warning("%s %s is on the host, and no record knows of it", each.kind.value, each.content_id)
        elif verdict:
            try:
                _remove(engine, each)
            except EngineError as error:
                log.warning("%s %s has no record any more and cannot be removed: %s", each.kind.value, each.content_id, error)
                continue
            log.info("%s %s had no record any more and is removed", each.kind.value, each.content_id)
            gone.append(each.content_id)
    return gone


def _verdict(ctx: Context, content: KeptContent) -> bool | None:
    """Whether content is to go; None if no record knows of it."""
    is_copying = content.content_id.startswith("copy-")
    # What a copy shares with its source is kept until the copy is made.
    row_id = content.content_id.replace("copy-", "vol-", 1) if is_copying else content.content_id
    model: Any = Volume if is_copying or content.kind is Kept.VOLUME else Snapshot
    found = ctx.db.execute(select(model.state, model.deleted_at).where(model.id == row_id)).first()
    ctx.db.rollback()
    if found is None:
        return None
    return found.deleted_at is not None or (is_copying and found.state != "creating")


def _remove(engine: VolumeEngine, content: KeptContent) -> None:
    if content.kind is Kept.VOLUME:
        engine.remove_volume(content.content_id)
    else:
        engine.remove_snapshot(content.content_id)


def _ids(ctx: Context, query: Any) -> Sequence[str]:
    found: Sequence[str] = ctx.db.scalars(query.limit(AT_ONCE)).all()
    ctx.db.rollback()
    return found


def _try(ctx: Context, op: Operation, target: str | None, data: dict[str, Any]) -> None:
    try:
        run(ctx, op, target, data)
    except PortalError as error:
        # Somebody is at work on it, or it does not fit; the next round tries again. The refusal is in the audit log.
        log.warning("%s %s: %s", op.verb, target or data, error.message)
        ctx.db.rollback()
