"""Measurements of instances: sampled from the hypervisor, kept for days, read by charts and the API."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import BigInteger, Float, ForeignKey, String, delete, func, select
from sqlalchemy.orm import Mapped, mapped_column

from portal.engines.ports import MachineSample
from portal.kernel.context import Context
from portal.kernel.db import Base, JsonColumn, UtcDateTime, now, transaction
from portal.kernel.runner import TaskRun

MAX_POINTS = 240


class InstanceMetric(Base):
    """One measurement: percentages, and bytes moved since the one before it."""

    __tablename__ = "instance_metrics"

    instance_id: Mapped[str] = mapped_column(ForeignKey("instances.id", ondelete="CASCADE"), primary_key=True)
    at: Mapped[datetime] = mapped_column(UtcDateTime, primary_key=True, index=True)
    interval_s: Mapped[float] = mapped_column(Float)
    cpu_usage_percent: Mapped[float] = mapped_column(Float)
    memory_usage_percent: Mapped[float] = mapped_column(Float)
    disk_usage_percent: Mapped[float] = mapped_column(Float)
    network_in_bytes: Mapped[int] = mapped_column(BigInteger)
    network_out_bytes: Mapped[int] = mapped_column(BigInteger)
    io_read_bytes: Mapped[int] = mapped_column(BigInteger)
    io_write_bytes: Mapped[int] = mapped_column(BigInteger)


class InstanceCounters(Base):
    """The hypervisor's counters at the last measurement, from which the next one takes its differences."""

    __tablename__ = "instance_counters"

    instance_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    at_s: Mapped[float] = mapped_column(Float)
    counters: Mapped[dict[str, int]] = mapped_column(JsonColumn)


COUNTERS = {
    "network_in_bytes": "net_in_bytes", "network_out_bytes": "net_out_bytes",
    "io_read_bytes": "disk_read_bytes", "io_write_bytes": "disk_write_bytes",
}  # fmt: skip


def sample_metrics(task: TaskRun) -> None:
    """Measure every running instance that wants it and the volumes that machines have, and forget what is too old."""
    if task.engines.compute is None:
        return
    samples = task.engines.compute.samples()
    ctx = task.ctx
    instance = ctx.registry.model("compute.instance")
    with transaction(ctx.db):
        watched = set(
            ctx.db.scalars(select(instance.id).where(instance.id.in_([s.machine_id for s in samples]), instance.enable_monitoring.is_(True)))
        )
        before = {row.instance_id: row for row in ctx.db.scalars(select(InstanceCounters).where(InstanceCounters.instance_id.in_(watched)))}
        for sample in samples:
            if sample.machine_id in watched:
                _store(ctx, sample, before.get(sample.machine_id))
        oldest = now() - timedelta(days=ctx.settings.metrics_retention_days)
        ctx.db.execute(delete(InstanceMetric).where(InstanceMetric.at < oldest))
    if ctx.registry.volumes is not None:
        ctx.registry.volumes.measured(ctx, samples)


def _store(ctx: Context, sample: MachineSample, before: InstanceCounters | None) -> None:
    counters = {"cpu_time_ns": sample.cpu_time_ns, **{name: int(getattr(sample, source)) for name, source in COUNTERS.items()}}
    if before is None:
        ctx.db.add(InstanceCounters(instance_id=sample.machine_id, at_s=sample.taken_at_s, counters=counters))
        return
    seconds = sample.taken_at_s - before.at_s
    # A counter that went back means that the machine was booted anew: everything since then is the difference.
    moved = {name: value - before.counters[name] if value >= before.counters[name] else value for name, value in counters.items()}
    before.at_s, before.counters = sample.taken_at_s, counters
    if seconds <= 0:
        return
    cpu_ns = moved.pop("cpu_time_ns")
    ctx.db.add(
        InstanceMetric(
            instance_id=sample.machine_id, at=now(), interval_s=seconds, **moved,
            cpu_usage_percent=_percent(cpu_ns, seconds * 1e9 * max(sample.vcpus, 1)),
            memory_usage_percent=_percent(sample.memory_used_bytes, sample.memory_total_bytes),
            disk_usage_percent=_percent(sample.disk_allocated_bytes, sample.disk_capacity_bytes),
        )
    )  # fmt: skip


def _percent(part: float, whole: float) -> float:
    return round(min(100.0, max(0.0, 100.0 * part / whole)), 2) if whole else 0.0


@dataclass(frozen=True, slots=True)
class Series:
    """Measurements of one instance within a window, oldest first, thinned to what a chart can show."""

    points: Sequence[InstanceMetric]
    sample_count: int
    summary: dict[str, dict[str, float]]


def series(ctx: Context, instance_id: str, *, hours: float) -> Series:
    """The measurements of the last hours, with minimum, mean and maximum of the percentages."""
    since = now() - timedelta(hours=hours)
    mine = (InstanceMetric.instance_id == instance_id, InstanceMetric.at >= since)
    columns = (InstanceMetric.cpu_usage_percent, InstanceMetric.memory_usage_percent, InstanceMetric.disk_usage_percent)
    figures: list[Any] = [func.count()]
    for column in columns:
        figures += [func.min(column), func.avg(column), func.max(column)]
    total, *values = ctx.db.execute(select(*figures).where(*mine)).one()
    summary = {
        column.key: {"min": values[i * 3] or 0.0, "avg": round(values[i * 3 + 1] or 0.0, 2), "max": values[i * 3 + 2] or 0.0}
        for i, column in enumerate(columns)
    }
    rows = ctx.db.scalars(select(InstanceMetric).where(*mine).order_by(InstanceMetric.at)).all()
    every = max(1, -(-len(rows) // MAX_POINTS))
    return Series(rows[::-1][::every][::-1], total, summary)
