"""Replication: what is written into a bucket is written into another one of the project as well, a little later, under the same version ids.

A change is written down in the transaction in which it is made. Since a version is at the same place among those of its key in both buckets, it does
not matter how often it is carried over, nor in which order.
"""

from datetime import datetime
from typing import Annotated, Any

from sqlalchemy import BigInteger, ForeignKey, Integer, String, Text, delete, func, insert, select
from sqlalchemy.orm import Mapped, mapped_column

from portal.kernel import fields as f
from portal.kernel.context import Context
from portal.kernel.db import Base, UtcDateTime, now
from portal.kernel.declare import AskedWork, operation
from portal.kernel.errors import InvalidRequest, NotFound
from portal.kernel.ids import new_id
from portal.storage.access import WRITE, authorize_object, check_key
from portal.storage.engine_steps import refuse_on_engine
from portal.storage.facts import BucketFacts, Version, bucket_by_id, bucket_named
from portal.storage.object_models import Bucket, Key, table_of
from portal.storage.usage import usage_locked

PENDING, COMPLETED, REPLICA, FAILED = "PENDING", "COMPLETED", "REPLICA", "FAILED"
REPLICATE = "storage.bucket.replicate"
REPLICATING = AskedWork(REPLICATE, cancelled="What was carried over stays; the rest follows in the background.")
DESTINATION = f.FieldInfo(f.Line(64), "Destination", "A bucket of the same project, by name or id; empty to end the replication.")
PREFIX = f.FieldInfo(f.Line(1024), "Prefix", "Only keys that begin so.")
MARKERS = f.FieldInfo(f.Bool(), "Marks of deletion", "Carry the marks of deletion over as well.")
EXISTING = f.FieldInfo(f.Bool(), "What is there", "Carry over what is in the bucket already, not only what is written from now on.")


class BucketReplication(Base):
    """How far the replication of a bucket is."""

    __tablename__ = "bucket_replications"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    bucket_id: Mapped[str] = mapped_column(ForeignKey("buckets.id"), unique=True)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)
    # Where the carrying over of what was there before is; done with all of it.
    cursor_key: Mapped[str] = mapped_column(Key, default="")
    cursor_sequence: Mapped[int] = mapped_column(BigInteger, default=-1)
    is_caught_up: Mapped[bool] = mapped_column(default=False)
    copied: Mapped[int] = mapped_column(BigInteger, default=0)
    failures: Mapped[int] = mapped_column(default=0)
    last_error: Mapped[str] = mapped_column(Text, default="")
    next_try_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)
    synced_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class ReplicaChange(Base):
    """A version that is to be carried over."""

    __tablename__ = "replica_changes"

    id: Mapped[int] = mapped_column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True)
    bucket_id: Mapped[str] = mapped_column(String(64), index=True)
    key: Mapped[str] = mapped_column(Key)
    sequence: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)

    __table_args__ = ({"sqlite_autoincrement": True},)


CHANGES = table_of(ReplicaChange)
_INSERT = insert(CHANGES)


@operation(Bucket, "set_replication", label="Set replication", needs="manage", icon="copy", in_menu=False)
def bucket_set_replication(
    ctx: Context, bucket: Bucket, *, destination_bucket: Annotated[str, DESTINATION] = "", prefix: Annotated[str, PREFIX] = "",
    delete_markers: Annotated[bool, MARKERS] = False, existing: Annotated[bool, EXISTING] = True,
) -> None:  # fmt: skip
    """Carry what is written into a bucket over into another one of the project, or end that; both keep versions."""
    refuse_on_engine(ctx, "replication")
    # Writes see either all of it or nothing.
    usage_locked(ctx.db, bucket.id)
    ctx.db.execute(delete(BucketReplication).where(BucketReplication.bucket_id == bucket.id).execution_options(synchronize_session=False))
    ctx.db.execute(delete(CHANGES).where(CHANGES.c.bucket_id == bucket.id))
    bucket.replication = None
    if not destination_bucket:
        return
    try:
        target = bucket_by_id(ctx.db, destination_bucket) or bucket_named(ctx.db, destination_bucket)
    except NotFound:
        target = None
    if target is None or target.project_id != bucket.project_id or target.id == bucket.id:
        raise InvalidRequest.fields({"destination_bucket": ["must be another bucket of the same project."]})
    if bucket.versioning != "enabled" or target.versioning != "enabled":
        raise InvalidRequest.fields({"destination_bucket": ["needs versions, and so does this bucket: switch versioning on in both."]})
    if bucket.object_lock and not target.object_lock:
        raise InvalidRequest.fields({"destination_bucket": ["needs object lock, since this bucket has it."]})
    if prefix:
        check_key(prefix)
    authorize_object(ctx, target, WRITE, prefix)
    row = BucketReplication(id=new_id("rep"), bucket_id=bucket.id, is_caught_up=not existing)
    ctx.db.add(row)
    bucket.replication = {
        "id": row.id, "bucket_id": target.id, "bucket_name": target.name, "prefix": prefix, "delete_markers": delete_markers, "existing": existing,
    }  # fmt: skip


def is_replicated(bucket: BucketFacts, key: str, *, is_marker: bool = False) -> bool:
    """Whether a version that is written into a bucket is to be carried over."""
    rule = bucket.replication
    return rule is not None and key.startswith(rule["prefix"]) and (not is_marker or rule["delete_markers"])


def replicate(ctx: Context, bucket: BucketFacts, version: Version) -> None:
    """Write down that a version was written or changed and is to be carried over, within the caller's transaction."""
    if version.replication != REPLICA and is_replicated(bucket, version.key, is_marker=version.is_marker):
        ctx.db.execute(_INSERT, {"bucket_id": bucket.id, "key": version.key, "sequence": version.sequence, "created_at": now()})


def replication_state(ctx: Context, bucket: Bucket) -> dict[str, Any]:
    """The rule of a bucket, and how far behind the other bucket is."""
    row = ctx.db.scalars(select(BucketReplication).where(BucketReplication.bucket_id == bucket.id)).first()
    if row is None or not bucket.replication:
        return {"rules": [], "lag_seconds": None, "last_synced_at": None, "waiting": 0, "last_error": ""}
    waiting, oldest = ctx.db.execute(select(func.count(), func.min(ReplicaChange.created_at)).where(ReplicaChange.bucket_id == bucket.id)).one()
    since = min(filter(None, (oldest, None if row.is_caught_up else row.created_at)), default=None)
    kept = bucket.replication
    rule = {"replication_id": row.id, "destination_bucket": kept["bucket_name"], "prefix": kept["prefix"], "delete_markers": kept["delete_markers"],
            "status": "failing" if row.last_error else "active" if row.is_caught_up else "copying", "copied": row.copied}  # fmt: skip
    lag = max(0, round((now() - since).total_seconds())) if since is not None else 0
    return {"rules": [rule], "lag_seconds": lag, "last_synced_at": row.synced_at, "waiting": waiting, "last_error": row.last_error}
