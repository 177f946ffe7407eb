"""The flow log: connections that were seen beginning, as far as VPCs want them, for some days and up to a number of them."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import delete, insert, select
from sqlalchemy.orm import Session

from portal.engines.network_ports import Flow
from portal.kernel.db import now, transaction
from portal.networking.models import FlowRecord, Vpc

KEEP = timedelta(days=7)
# Of one VPC: a scan of its guests is not to fill the database.
MOST_KEPT = 100_000


def flows_kept(session: Session, flows: Sequence[Flow], *, most: int = MOST_KEPT) -> None:
    """Write down what was seen and is wanted; let go of what is too old, and of the oldest where a VPC has more than `most`."""
    session.rollback()
    wanted = {row.id: row.flow_logs_traffic for row in session.execute(select(Vpc.id, Vpc.flow_logs_traffic).where(Vpc.flow_logs_enabled))}
    rows = [_row(flow) for flow in flows if wanted.get(flow.vpc_id, "") in ("all", "accept" if flow.accepted else "reject")]
    with transaction(session):
        if rows:
            session.execute(insert(FlowRecord), rows)
        _forget(session, {row["vpc_id"] for row in rows}, most)


def _row(flow: Flow) -> Mapping[str, Any]:
    return {
        "at": datetime.fromtimestamp(flow.at_s, UTC), "vpc_id": flow.vpc_id, "is_accepted": flow.accepted, "protocol": flow.protocol,
        "source": flow.source, "source_port": flow.source_port, "destination": flow.destination, "destination_port": flow.destination_port,
        "size_bytes": flow.size_bytes,
    }  # fmt: skip


def _forget(session: Session, grown: Iterable[str], most: int) -> None:
    session.execute(delete(FlowRecord).where(FlowRecord.at < now() - KEEP).execution_options(synchronize_session=False))
    for vpc_id in sorted(grown):
        newest = select(FlowRecord.id).where(FlowRecord.vpc_id == vpc_id).order_by(FlowRecord.id.desc())
        last = session.scalar(newest.offset(most).limit(1))
        if last is not None:
            over = delete(FlowRecord).where(FlowRecord.vpc_id == vpc_id, FlowRecord.id <= last)
            session.execute(over.execution_options(synchronize_session=False))
