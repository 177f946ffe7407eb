"""Takes the snapshots that schedules of volumes want, and deletes those that are one too many. It takes no input: restart is the normal path."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import exists, select

from portal.kernel.context import Context
from portal.kernel.db import now
from portal.kernel.declare import Operation
from portal.kernel.errors import PortalError
from portal.kernel.operations import run
from portal.storage.schedules import schedule_of, volume_miss_snapshot
from portal.storage.snapshots import snapshot_delete, snapshot_discard, snapshot_take_scheduled
from portal.storage.volume_models import Snapshot, Volume
from portal.storage.volumes import AT_REST

log = logging.getLogger("portal.storage")
AT_ONCE = 200
UNTOLD = "The snapshot could not be taken."


def schedules_follow(ctx: Context) -> None:
    """One round of it."""
    _take_due(ctx)
    _tell_failed(ctx)
    _delete_surplus(ctx)


def _take_due(ctx: Context) -> None:
    """Take what is due of volumes that nobody is at work on; what is refused is told, and the next one is taken when it is due."""
    waiting = exists().where(Snapshot.volume_id == Volume.id, Snapshot.scheduled_at.is_not(None), Snapshot.state == "pending")
    query = (
        select(Volume.id, Volume.project_id, Volume.next_snapshot_at)
        .where(Volume.next_snapshot_at <= now(), Volume.state.in_(AT_REST), Volume.deleted_at.is_(None), ~waiting)
        .order_by(Volume.next_snapshot_at, Volume.id)
    )
    for volume_id, project_id, due in _rows(ctx, query):
        inside, given = replace(ctx, project_id=project_id), {"due": due.isoformat()}
        if (refusal := _try(inside, snapshot_take_scheduled, None, {"volume": volume_id, **given})) is not None:
            _try(inside, volume_miss_snapshot, volume_id, {"reason": refusal, **given})


def _tell_failed(ctx: Context) -> None:
    """Remove what is left of those that the host could not take, and say so."""
    query = select(Snapshot.id, Snapshot.state_reason).where(
        Snapshot.scheduled_at.is_not(None), Snapshot.state == "error", Snapshot.deleted_at.is_(None), Snapshot.locked.is_(False)
    )
    for snapshot_id, reason in _rows(ctx, query):
        _try(ctx, snapshot_discard, snapshot_id, {"reason": reason or UNTOLD})


def _delete_surplus(ctx: Context) -> None:
    """Delete the oldest of those that schedules took, where only so many are kept."""
    # Only of volumes for which one was taken: a schedule that takes none deletes none.
    wanting = select(Volume).where(Volume.next_snapshot_at.is_not(None), Volume.deleted_at.is_(None)).order_by(Volume.id)
    counts = {row.id: found.retention_count for row in ctx.db.scalars(wanting) if (found := schedule_of(row)) is not None and found.retention_count}
    ctx.db.rollback()
    for volume_id, count in counts.items():
        taken = select(Snapshot.id).where(
            Snapshot.volume_id == volume_id, Snapshot.scheduled_at.is_not(None), Snapshot.state == "completed", Snapshot.deleted_at.is_(None),
            Snapshot.locked.is_(False), Snapshot.copy_of_id.is_(None),
        )  # fmt: skip
        for (snapshot_id,) in _rows(ctx, taken.order_by(Snapshot.scheduled_at.desc(), Snapshot.id).offset(count)):
            _try(ctx, snapshot_delete, snapshot_id, {})


def _rows(ctx: Context, query: Any) -> Sequence[Any]:
    found: Sequence[Any] = ctx.db.execute(query.limit(AT_ONCE)).all()
    ctx.db.rollback()
    return found


def _try(ctx: Context, op: Operation, target: str | None, data: dict[str, Any]) -> str | None:
    """Run an operation; why it was refused, None if it was not. The refusal is in the audit log."""
    try:
        run(ctx, op, target, data)
    except PortalError as error:
        log.warning("%s %s: %s", op.verb, target or data, error.message)
        ctx.db.rollback()
        return error.message
    return None
