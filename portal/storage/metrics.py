"""What buckets held and how much went in and out, hour by hour; and how requests that were written down become that, and access logs."""

import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from sqlalchemy import BigInteger, ForeignKey, String, delete, exists, literal, select, update
from sqlalchemy.orm import Mapped, mapped_column

from portal.engines.object_ports import BlobStore
from portal.kernel.context import Context
from portal.kernel.db import Base, UtcDateTime, insert_of, now, transaction
from portal.storage.access_logs import log_write
from portal.storage.object_models import Bucket, BucketUsage, table_of
from portal.storage.traffic import MINUTE_S, Record, TrafficFiles, minute_of, records_in

KEPT = timedelta(days=93)
DONE_KEPT = timedelta(days=7)
# One object of a log; a request is some 500 bytes of it.
LOG_BYTES = 4 << 20
HOUR_S = 3600


class BucketHour(Base):
    """An hour of a bucket: what it held at its beginning, what went in and out during it."""

    __tablename__ = "bucket_hours"

    bucket_id: Mapped[str] = mapped_column(ForeignKey("buckets.id"), primary_key=True)
    hour: Mapped[datetime] = mapped_column(UtcDateTime, primary_key=True, index=True)
    size_bytes: Mapped[int] = mapped_column(BigInteger, default=0)
    objects: Mapped[int] = mapped_column(BigInteger, default=0)
    bytes_in: Mapped[int] = mapped_column(BigInteger, default=0)
    bytes_out: Mapped[int] = mapped_column(BigInteger, default=0)
    requests: Mapped[int] = mapped_column(BigInteger, default=0)


class TrafficDone(Base):
    """A file of requests that has been counted, so that it is not counted again by whoever comes after a crash."""

    __tablename__ = "traffic_done"

    file: Mapped[str] = mapped_column(String(64), primary_key=True)
    at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)


HOURS = table_of(BucketHour)


@dataclass(slots=True)
class _Sum:
    """What requests of an hour come to."""

    bytes_in: int = 0
    bytes_out: int = 0
    requests: int = 0


@dataclass(slots=True)
class _Log:
    """Lines of a bucket's log that wait for being an object."""

    lines: list[str] = field(default_factory=list)
    size: int = 0
    objects: int = 0


def hour_of(moment: datetime) -> datetime:
    """The hour in which a moment is."""
    return moment.astimezone(UTC).replace(minute=0, second=0, microsecond=0)


def traffic_take_up(ctx: Context, blobs: BlobStore, files: TrafficFiles, *, at: float | None = None) -> int:
    """Count what was written down, write the logs that buckets have, and forget it; how many files that were."""
    taken = 0
    for path in files.settled(at=time.time() if at is None else at):
        done = ctx.db.get(TrafficDone, path.name)
        ctx.db.rollback()
        if done is None:
            _Taking(ctx, blobs, path).run()
        path.unlink(missing_ok=True)
        taken += 1
    return taken


def _bucket(ctx: Context, name: str) -> Bucket | None:
    found = ctx.db.scalars(select(Bucket).where(Bucket.name == name, Bucket.deleted_at.is_(None))).first()
    if found is not None:
        # It is read while objects are written, each of which is a transaction.
        ctx.db.expunge(found)
    ctx.db.rollback()
    return found


class _Taking:
    """The taking up of one file."""

    def __init__(self, ctx: Context, blobs: BlobStore, path: Path) -> None:
        self._ctx, self._blobs, self._path = ctx, blobs, path
        self._buckets: dict[str, Bucket | None] = {}
        self._sums: defaultdict[tuple[str, datetime], _Sum] = defaultdict(_Sum)
        self._logs: defaultdict[str, _Log] = defaultdict(_Log)

    def run(self) -> None:
        """Write the logs first: what is written of them again is the same. Then count, and note that this file is done."""
        for record in records_in(self._path):
            if record.bucket not in self._buckets:
                self._buckets[record.bucket] = _bucket(self._ctx, record.bucket)
            bucket = self._buckets[record.bucket]
            # A name may be that of another bucket by now.
            if bucket is not None and bucket.created_at.timestamp() <= record.at:
                self._add(bucket, record)
        for name, kept in self._logs.items():
            self._flush(self._buckets[name], kept)
        with transaction(self._ctx.db):
            self._ctx.db.add(TrafficDone(file=self._path.name))
            self._ctx.db.flush()
            _count(self._ctx, self._sums)

    def _add(self, bucket: Bucket, record: Record) -> None:
        found = self._sums[bucket.id, hour_of(datetime.fromtimestamp(record.at, UTC))]
        found.bytes_in, found.bytes_out, found.requests = found.bytes_in + record.bytes_in, found.bytes_out + record.bytes_out, found.requests + 1
        if not bucket.logging or bucket.logging["since"] > record.at:
            return
        kept = self._logs[bucket.name]
        kept.lines.append(f"{bucket.owner_id or '-'} {record.line}\n")
        kept.size += len(record.line)
        if kept.size >= LOG_BYTES:
            self._flush(bucket, kept)

    def _flush(self, bucket: Bucket | None, kept: _Log) -> None:
        if bucket is not None and kept.lines:
            token = f"{self._path.name}/{bucket.id}/{kept.objects}"
            log_write(self._ctx, self._blobs, bucket, "".join(kept.lines), at=(minute_of(self._path) + 1) * MINUTE_S, token=token)
        kept.lines, kept.size, kept.objects = [], 0, kept.objects + 1


def _count(ctx: Context, sums: Mapping[tuple[str, datetime], _Sum]) -> None:
    for bucket_id, hour in sorted(sums):
        _begin_hour(ctx, hour, [bucket_id])
        found = sums[bucket_id, hour]
        values = {name: HOURS.c[name] + getattr(found, name) for name in ("bytes_in", "bytes_out", "requests")}
        ctx.db.execute(update(HOURS).where(HOURS.c.bucket_id == bucket_id, HOURS.c.hour == hour).values(values))


def _begin_hour(ctx: Context, hour: datetime, bucket_ids: Iterable[str] | None = None) -> None:
    """Write down what buckets hold now, for an hour that has no row yet."""
    there = exists().where(HOURS.c.bucket_id == BucketUsage.bucket_id, HOURS.c.hour == hour)
    columns = [
        BucketUsage.bucket_id,
        literal(hour, HOURS.c.hour.type),
        BucketUsage.size_bytes,
        BucketUsage.objects,
        literal(0),
        literal(0),
        literal(0),
    ]
    found = select(*columns).join(Bucket, Bucket.id == BucketUsage.bucket_id).where(Bucket.deleted_at.is_(None), ~there)
    found = found if bucket_ids is None else found.where(BucketUsage.bucket_id.in_(bucket_ids))
    ctx.db.execute(insert_of(ctx.db)(HOURS).from_select([each.name for each in HOURS.columns], found).on_conflict_do_nothing())


def metrics_sample(ctx: Context) -> None:
    """Begin the present hour of every bucket, and forget what is old."""
    moment = now()
    with transaction(ctx.db):
        _begin_hour(ctx, hour_of(moment))
    with transaction(ctx.db):
        gone = select(Bucket.id).where(Bucket.deleted_at < moment - KEPT)
        ctx.db.execute(delete(BucketHour).where((BucketHour.hour < moment - KEPT) | BucketHour.bucket_id.in_(gone)))
        ctx.db.execute(delete(TrafficDone).where(TrafficDone.at < moment - DONE_KEPT))


def hours_of(ctx: Context, bucket_id: str, hours: int) -> Sequence[BucketHour]:
    """The last hours of a bucket, oldest first; those in which the portal did not run are not there."""
    since = hour_of(now()) - timedelta(hours=hours - 1)
    return ctx.db.scalars(select(BucketHour).where(BucketHour.bucket_id == bucket_id, BucketHour.hour >= since).order_by(BucketHour.hour)).all()
