"""Compares the networks on the host with what was ensured, brings back what is missing, and finishes what failed; keeps the flow log."""

import logging
from collections.abc import Mapping
from datetime import datetime

from sqlalchemy import select

from portal.kernel import audit, events
from portal.kernel.context import Context
from portal.kernel.db import now, transaction
from portal.kernel.errors import PortalError
from portal.kernel.jobs import ACTIVE, Job
from portal.kernel.runner import TaskRun
from portal.networking.changes import GOING, vpc_queue
from portal.networking.defaults import bring_defaults
from portal.networking.flow_log import flows_kept
from portal.networking.models import Vpc

log = logging.getLogger("portal.networking")
DRIFTED = "networking.vpc.drifted"
MOST_TOLD = 10


def reconcile_networks(task: TaskRun) -> None:
    """Queue an apply for each VPC that is not as it should be, and say so; write down what flowed."""
    engine = task.engines.network
    if engine is None or not engine.capability().available:
        return
    ctx = task.ctx
    ctx.db.rollback()
    bring_defaults(ctx, task.beat)
    begun = now()
    found: dict[str, list[str]] = {}
    for each in engine.drift(task.beat):
        found.setdefault(each.vpc_id, []).append(each.what)
    missing = set(ctx.db.scalars(select(Vpc.id).where(Vpc.deleted_at.is_(None), Vpc.applied_revision > 0))) - set(engine.vpcs())
    found.update({vpc_id: ["the whole network"] for vpc_id in missing})
    behind = select(Vpc.id).where(Vpc.deleted_at.is_(None), (Vpc.state == "failed") | (Vpc.desired_revision > Vpc.applied_revision))
    for vpc_id in sorted({*found, *ctx.db.scalars(behind)}):
        task.beat()
        _heal(ctx, vpc_id, found, begun)
    flows_kept(ctx.db, engine.flows())


def _heal(ctx: Context, vpc_id: str, found: Mapping[str, list[str]], begun: datetime) -> None:
    try:
        with transaction(ctx.db):
            vpc = ctx.db.scalars(select(Vpc).where(Vpc.id == vpc_id, Vpc.deleted_at.is_(None)).with_for_update(key_share=True)).first()
            # What nobody knows of is left alone: the database may be an old copy.
            if vpc is None or vpc.state in GOING:
                return
            # What was being brought up to date during the look was not as it should be yet: the next look says whether it is.
            if _was_worked_at(ctx, vpc_id, begun):
                return
            is_failed = vpc.state == "failed"
            vpc_queue(ctx, vpc)
            # What cannot be brought up to date, its state says; that is not told at each look.
            if vpc_id in found and not is_failed:
                payload = {"missing": found[vpc_id][:MOST_TOLD]}
                events.emit(ctx, DRIFTED, resource_id=vpc.id, name=vpc.name, project_id=vpc.project_id, payload=payload)
                audit.record(ctx, DRIFTED, audit.Subject("networking.vpc", vpc.id, vpc.name, vpc.project_id), details=payload)
    except PortalError as error:
        log.warning("the network %s is not brought up to date: %s", vpc_id, error.message)
        # A quota that a failed creation gave back is full by now; the next pass tries again.
        ctx.db.rollback()


def _was_worked_at(ctx: Context, vpc_id: str, since: datetime) -> bool:
    worked = select(Job.id).where(Job.resource_id == vpc_id, Job.state.in_(ACTIVE) | (Job.finished_at >= since))
    return ctx.db.scalar(worked.limit(1)) is not None
