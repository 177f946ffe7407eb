"""Compares the networks on the host with what was ensured, brings back what is missing, and finishes what failed; keeps the flow log."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

from sqlalchemy import delete, select

from portal.kernel import events
from portal.kernel.context import Context
from portal.kernel.db import now, transaction
from portal.kernel.errors import PortalError
from portal.kernel.runner import TaskRun
from portal.networking.changes import GOING, vpc_queue
from portal.networking.defaults import bring_defaults
from portal.networking.models import FlowRecord, Vpc

DRIFTED = "networking.vpc.drifted"
KEEP_FLOWS = timedelta(days=7)
MOST_TOLD = 10


def reconcile_networks(task: TaskRun) -> None:
    """Queue an apply for each VPC that is not as it should be, and say so; write down what flowed."""
    engine = task.engines.network
    if engine is None or not engine.capability().available:
        return
    ctx = task.ctx
    ctx.db.rollback()
    bring_defaults(ctx)
    found: dict[str, list[str]] = {}
    for each in engine.drift():
        found.setdefault(each.vpc_id, []).append(each.what)
    missing = set(ctx.db.scalars(select(Vpc.id).where(Vpc.deleted_at.is_(None), Vpc.applied_revision > 0))) - set(engine.vpcs())
    found.update({vpc_id: ["the whole network"] for vpc_id in missing})
    behind = select(Vpc.id).where(Vpc.deleted_at.is_(None), (Vpc.state == "failed") | (Vpc.desired_revision > Vpc.applied_revision))
    for vpc_id in sorted({*found, *ctx.db.scalars(behind)}):
        _heal(ctx, vpc_id, found)
    _keep_flows(task)


def _heal(ctx: Context, vpc_id: str, found: Mapping[str, list[str]]) -> None:
    try:
        with transaction(ctx.db):
            vpc = ctx.db.scalars(select(Vpc).where(Vpc.id == vpc_id, Vpc.deleted_at.is_(None)).with_for_update(key_share=True)).first()
            # What nobody knows of is left alone: the database may be an old copy.
            if vpc is None or vpc.state in GOING:
                return
            if vpc_id in found:
                payload = {"missing": found[vpc_id][:MOST_TOLD]}
                events.emit(ctx, DRIFTED, resource_id=vpc.id, name=vpc.name, project_id=vpc.project_id, payload=payload)
            vpc_queue(ctx, vpc)
    except PortalError:
        # A quota that a failed creation gave back is full by now; the next pass tries again.
        ctx.db.rollback()


def _keep_flows(task: TaskRun) -> None:
    session = task.ctx.db
    if task.engines.network is None:
        return
    flows = task.engines.network.flows()
    session.rollback()
    wanted = {row.id: row.flow_logs_traffic for row in session.execute(select(Vpc.id, Vpc.flow_logs_traffic).where(Vpc.flow_logs_enabled))}
    with transaction(session):
        for flow in flows:
            if wanted.get(flow.vpc_id, "") in ("all", "accept" if flow.accepted else "reject"):
                session.add(
                    FlowRecord(
                        at=datetime.fromtimestamp(flow.at_s, UTC), vpc_id=flow.vpc_id, is_accepted=flow.accepted, protocol=flow.protocol,
                        source=flow.source, source_port=flow.source_port, destination=flow.destination, destination_port=flow.destination_port,
                        size_bytes=flow.size_bytes,
                    )
                )  # fmt: skip
        session.execute(delete(FlowRecord).where(FlowRecord.at < now() - KEEP_FLOWS).execution_options(synchronize_session=False))
