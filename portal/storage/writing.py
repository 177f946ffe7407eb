"""The only way in which anything in a bucket is changed: one transaction that sees the bucket as it is, decides, writes and charges.

Where the bucket records data events it tells of it, too. Bytes are on the disk before it begins. If it fails, they are an orphan that the sweep finds; if it is committed, the object is there for good.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.orm import Session

from portal.kernel import audit
from portal.kernel.context import Context
from portal.kernel.db import out_of_service, transaction
from portal.kernel.errors import Conflict, Forbidden, Unavailable
from portal.storage.access import authorize_object, bucket_named, note_refusal, subject_of
from portal.storage.errors import NoSuchBucket
from portal.storage.models import Bucket
from portal.storage.usage import Change, charge, usage_locked

T = TypeVar("T")


@dataclass(slots=True)
class Writing:
    """A transaction on one bucket, which nobody else writes into meanwhile."""

    ctx: Context
    bucket: Bucket
    change: Change = field(default_factory=Change)

    @property
    def db(self) -> Session:
        """The session of the transaction."""
        return self.ctx.db

    def authorize(self, action: str, key: str, *, owner_id: str | None = None, tags: Mapping[str, str] | None = None) -> None:
        """Raise Forbidden unless the caller may."""
        try:
            authorize_object(self.ctx, self.bucket, action, key, owner_id=owner_id, tags=tags)
        except Forbidden as error:
            error.details["key"] = key[:200]
            raise

    def tell(self, action: str, key: str, details: Mapping[str, object], *, status: str = "success") -> None:
        """Write an entry into the audit log, if the bucket records data events."""
        if self.bucket.data_events:
            audit.record(self.ctx, action, subject_of(self.bucket, key), details=details, status=status)


def write(ctx: Context, bucket_name: str, action: str, work: Callable[[Writing], T]) -> T:
    """Do some work on a bucket in one transaction. Raises NoSuchBucket, what the work raises, and QuotaExceeded."""
    bucket = bucket_named(ctx, bucket_name)
    try:
        with transaction(ctx.db):
            usage = usage_locked(ctx.db, bucket.id)
            # Whoever deletes it or changes its versioning holds that lock, too.
            ctx.db.refresh(bucket)
            if bucket.deleted_at is not None:
                raise NoSuchBucket(f"There is no bucket {bucket_name}.")
            writing = Writing(ctx, bucket)
            result = work(writing)
            charge(ctx, bucket, usage, writing.change)
    except Forbidden as error:
        note_refusal(ctx, bucket, action, str(error.details.get("key", "")), error)
        raise
    except IntegrityError as error:
        raise Conflict("Another change came first. Try again.") from error
    except OperationalError as error:
        raise Unavailable(out_of_service(error)) from error
    return result
