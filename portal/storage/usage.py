"""What a bucket holds, and how its project is charged for it: in whole GiB, so that the quota is touched only when another one is begun or done with."""

from dataclasses import dataclass

from sqlalchemy import bindparam, select, update
from sqlalchemy.orm import Session

from portal.kernel import quota
from portal.kernel.context import Context
from portal.kernel.errors import QuotaExceeded
from portal.storage.errors import NoSuchBucket
from portal.storage.facts import BucketFacts
from portal.storage.object_models import BucketUsage, table_of

GIB = 1 << 30
DIMENSION = "object_gb"
USAGE = table_of(BucketUsage)
_FACTS = select(USAGE.c.size_bytes, USAGE.c.objects, USAGE.c.versions, USAGE.c.held_gib).where(USAGE.c.bucket_id == bindparam("bucket"))
_LOCKED = _FACTS.with_for_update()
_UPDATE = (
    update(USAGE).where(USAGE.c.bucket_id == bindparam("bucket"))
    .values(**{name: bindparam(name) for name in ("size_bytes", "objects", "versions", "held_gib")})
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Usage:
    """What a bucket holds. `objects` are those that a listing without versions shows, `versions` all of them with the marks of deletion."""

    size_bytes: int
    objects: int
    versions: int
    held_gib: int


@dataclass(slots=True)
class Change:
    """What a transaction does to the usage of a bucket."""

    size_bytes: int = 0
    objects: int = 0
    versions: int = 0


def usage_locked(session: Session, bucket_id: str) -> Usage:
    """The usage of a bucket as it is now, locked: nobody else writes into the bucket until the transaction ends. Raises NoSuchBucket."""
    row = session.execute(_LOCKED, {"bucket": bucket_id}).first()
    if row is None:
        raise NoSuchBucket("The bucket is gone.")
    return Usage(*row)


def charge(ctx: Context, bucket: BucketFacts, usage: Usage, change: Change) -> None:
    """Add to a locked usage, and hold as many GiB of the quota as that begins. Raises QuotaExceeded; giving back always succeeds."""
    if change == Change():
        return
    size_bytes = usage.size_bytes + change.size_bytes
    needed = -(-size_bytes // GIB)
    if needed != usage.held_gib:
        quota.hold(ctx, bucket, {DIMENSION: needed}, settled=True)
        ctx.db.flush()
    values = {"size_bytes": size_bytes, "objects": usage.objects + change.objects, "versions": usage.versions + change.versions, "held_gib": needed}
    ctx.db.execute(_UPDATE, {"bucket": bucket.id, **values})


def refuse_beyond_quota(session: Session, bucket: BucketFacts, size_bytes: int) -> None:
    """Raise QuotaExceeded for what is sure to be more than the project may have, before it has arrived."""
    found = session.execute(_FACTS, {"bucket": bucket.id}).first()
    more = -(-(found.size_bytes + size_bytes) // GIB) - found.held_gib if found is not None else 0
    if more <= 0:
        return
    mine = (quota.Quota.project_id == bucket.project_id, quota.Quota.dimension == DIMENSION)
    row = session.execute(select(quota.Quota.limit, quota.Quota.used).where(*mine)).first()
    limit, used = (row.limit, row.used) if row is not None else (quota.DIMENSIONS[DIMENSION].default, 0)
    if limit is not None and used + more > limit:
        raise QuotaExceeded(DIMENSION, limit=limit, used=used, requested=more)
