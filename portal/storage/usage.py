"""What a bucket holds, and how its project is charged for it: in whole GiB, so that the quota is touched only when another one is begun or done with."""

from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from portal.kernel import quota
from portal.kernel.context import Context
from portal.kernel.errors import QuotaExceeded
from portal.storage.models import Bucket, BucketUsage

GIB = 1 << 30
DIMENSION = "object_gb"


def usage_locked(session: Session, bucket_id: str) -> BucketUsage:
    """The usage of a bucket as it is now, locked: nobody else writes into the bucket until the transaction ends."""
    return session.get_one(BucketUsage, bucket_id, with_for_update=True, populate_existing=True)


@dataclass(slots=True)
class Change:
    """What a transaction does to the usage of a bucket."""

    size_bytes: int = 0
    objects: int = 0
    versions: int = 0


def charge(ctx: Context, bucket: Bucket, usage: BucketUsage, change: Change) -> None:
    """Add to a locked usage, and hold as many GiB of the quota as that begins. Raises QuotaExceeded; giving back always succeeds."""
    usage.size_bytes += change.size_bytes
    usage.objects += change.objects
    usage.versions += change.versions
    needed = -(-usage.size_bytes // GIB)
    if needed != usage.held_gib:
        quota.hold(ctx, bucket, {DIMENSION: needed}, settled=True)
        usage.held_gib = needed
    ctx.db.flush()


def refuse_beyond_quota(session: Session, bucket: Bucket, size_bytes: int) -> None:
    """Raise QuotaExceeded for what is sure to be more than the project may have, before it has arrived."""
    usage = session.get(BucketUsage, bucket.id)
    more = -(-(usage.size_bytes + size_bytes) // GIB) - usage.held_gib if usage is not None else 0
    if more <= 0:
        return
    mine = (quota.Quota.project_id == bucket.project_id, quota.Quota.dimension == DIMENSION)
    row = session.execute(select(quota.Quota.limit, quota.Quota.used).where(*mine)).first()
    limit, used = (row.limit, row.used) if row is not None else (quota.DIMENSIONS[DIMENSION].default, 0)
    if limit is not None and used + more > limit:
        raise QuotaExceeded(DIMENSION, limit=limit, used=used, requested=more)
