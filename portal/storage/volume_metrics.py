"""Measurements of volumes: what machines read and write, sampled from the hypervisor with the machines' own, and what a volume takes on its host."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import BigInteger, Float, String, delete, func, select, update
from sqlalchemy.orm import Mapped, mapped_column

from portal.engines.ports import MachineSample, VolumeSample
from portal.engines.volume_ports import Kept, KeptContent
from portal.kernel.context import Context
from portal.kernel.db import Base, JsonColumn, UtcDateTime, now, transaction
from portal.storage.volume_models import Volume

MAX_POINTS = 240
COUNTERS = ("read_ops", "write_ops", "read_bytes", "write_bytes", "read_ns", "write_ns")
MIB = 1 << 20


class VolumeMetric(Base):
    """One measurement: operations, bytes and the time that they took since the one before it."""

    __tablename__ = "volume_metrics"

    # No reference: measurements go when they are old.
    volume_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    at: Mapped[datetime] = mapped_column(UtcDateTime, primary_key=True, index=True)
    interval_s: Mapped[float] = mapped_column(Float)
    read_ops: Mapped[int] = mapped_column(BigInteger)
    write_ops: Mapped[int] = mapped_column(BigInteger)
    read_bytes: Mapped[int] = mapped_column(BigInteger)
    write_bytes: Mapped[int] = mapped_column(BigInteger)
    read_ns: Mapped[int] = mapped_column(BigInteger)
    write_ns: Mapped[int] = mapped_column(BigInteger)
    used_bytes: Mapped[int] = mapped_column(BigInteger)

    @property
    def iops(self) -> float:
        """Operations per second."""
        return (self.read_ops + self.write_ops) / self.interval_s

    @property
    def throughput_mbps(self) -> float:
        """MiB moved per second."""
        return (self.read_bytes + self.write_bytes) / self.interval_s / MIB

    @property
    def latency_ms(self) -> float | None:
        """How long an operation took; None where there was none."""
        number = self.read_ops + self.write_ops
        return (self.read_ns + self.write_ns) / number / 1e6 if number else None


class VolumeUsage(Base):
    """What is known of a volume now: bytes that it takes, and the hypervisor's counters at the last measurement, while a machine has it."""

    __tablename__ = "volume_usage"

    volume_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    used_bytes: Mapped[int | None] = mapped_column(BigInteger)
    at_s: Mapped[float | None] = mapped_column(Float)
    counters: Mapped[dict[str, int]] = mapped_column(JsonColumn, default=dict)


def volumes_measured(ctx: Context, machines: Sequence[MachineSample]) -> None:
    """Keep what machines have done to their volumes since the last time, and forget what is too old."""
    samples = {each.volume_id: (machine.taken_at_s, each) for machine in machines for each in machine.volumes}
    with transaction(ctx.db):
        known = set(ctx.db.scalars(select(Volume.id).where(Volume.id.in_(samples), Volume.deleted_at.is_(None))))
        rows = {row.volume_id: row for row in ctx.db.scalars(select(VolumeUsage).where(VolumeUsage.volume_id.in_(known)))}
        for volume_id in sorted(known):
            _store(ctx, *samples[volume_id], rows.get(volume_id))
        # Whichever machine has it next begins to count anew.
        idle = update(VolumeUsage).where(VolumeUsage.at_s.is_not(None), VolumeUsage.volume_id.not_in(known))
        ctx.db.execute(idle.values(at_s=None).execution_options(synchronize_session=False))
        gone = select(Volume.id).where(Volume.deleted_at.is_not(None))
        ctx.db.execute(delete(VolumeUsage).where(VolumeUsage.volume_id.in_(gone)).execution_options(synchronize_session=False))
        oldest = now() - timedelta(days=ctx.settings.metrics_retention_days)
        ctx.db.execute(delete(VolumeMetric).where(VolumeMetric.at < oldest).execution_options(synchronize_session=False))


def _store(ctx: Context, taken_at_s: float, sample: VolumeSample, before: VolumeUsage | None) -> None:
    counters = {name: int(getattr(sample, name)) for name in COUNTERS}
    if before is None:
        ctx.db.add(VolumeUsage(volume_id=sample.volume_id, used_bytes=None, at_s=taken_at_s, counters=counters))
        return
    had, seconds = before.counters, taken_at_s - before.at_s if before.at_s is not None else 0.0
    before.at_s, before.counters = taken_at_s, counters
    if seconds > 0:
        # A counter that went back means that the machine was booted anew: everything since then is the difference.
        moved = {name: value - had[name] if value >= had[name] else value for name, value in counters.items()}
        ctx.db.add(VolumeMetric(volume_id=sample.volume_id, at=now(), interval_s=seconds, used_bytes=before.used_bytes or 0, **moved))


def usage_noted(ctx: Context, kept: Sequence[KeptContent]) -> None:
    """Keep how much volumes take on their host, with all that they are built on."""
    found = {each.content_id: each.chain_bytes for each in kept if each.kind is Kept.VOLUME}
    with transaction(ctx.db):
        rows = {row.volume_id: row for row in ctx.db.scalars(select(VolumeUsage).where(VolumeUsage.volume_id.in_(found)))}
        for volume_id in sorted(set(ctx.db.scalars(select(Volume.id).where(Volume.id.in_(found), Volume.deleted_at.is_(None))))):
            if (row := rows.get(volume_id)) is None:
                ctx.db.add(VolumeUsage(volume_id=volume_id, used_bytes=found[volume_id], at_s=None, counters={}))
            else:
                row.used_bytes = found[volume_id]


@dataclass(frozen=True, slots=True)
class VolumeSeries:
    """Measurements of one volume within a window, oldest first, thinned to what a chart can show; `used_bytes` is None until it was looked at."""

    points: Sequence[VolumeMetric]
    sample_count: int
    used_bytes: int | None


def volume_series(ctx: Context, volume_id: str, *, hours: float) -> VolumeSeries:
    """The measurements of the last hours."""
    mine = (VolumeMetric.volume_id == volume_id, VolumeMetric.at >= now() - timedelta(hours=hours))
    total = ctx.db.scalar(select(func.count()).select_from(VolumeMetric).where(*mine)) or 0
    rows = ctx.db.scalars(select(VolumeMetric).where(*mine).order_by(VolumeMetric.at)).all()
    every = max(1, -(-len(rows) // MAX_POINTS))
    return VolumeSeries(rows[::-1][::every][::-1], total, used_of(ctx, volume_id))


def used_of(ctx: Context, volume_id: str) -> int | None:
    """How much a volume takes on its host; None until that was looked at."""
    return ctx.db.scalar(select(VolumeUsage.used_bytes).where(VolumeUsage.volume_id == volume_id))
