"""Emptying of a bucket: a job deletes all versions in it, or under a prefix, as whoever asked; it tells how far it is, and can be cancelled."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import select

from portal.identity.askers import as_asker
from portal.kernel.audit import Subject
from portal.kernel.authz import target_of
from portal.kernel.context import Context
from portal.kernel.declare import AskedWork
from portal.kernel.errors import Conflict, Forbidden, NotFound, PortalError
from portal.kernel.jobs import Job, JobStep, active_for
from portal.kernel.lookup import find
from portal.kernel.operations import acting
from portal.storage.access import DELETE, check_key
from portal.storage.buckets import BUCKET
from portal.storage.engine_steps import refuse_on_engine
from portal.storage.facts import VERSION_COLUMNS, VERSIONS, BucketFacts, Version, bucket_by_id, version_at
from portal.storage.listing import keys_under
from portal.storage.object_models import Bucket, ObjectUpload
from portal.storage.objects import remove
from portal.storage.uploads import give_up
from portal.storage.versions import place_of
from portal.storage.writing import Writing, write

EMPTY = "storage.bucket.empty"
EMPTYING = AskedWork(EMPTY, cancelled="What was deleted by then is gone; the rest stays.")
# So many go in one transaction: others want to write into the bucket meanwhile.
BATCH = 200


def bucket_empty(ctx: Context, bucket_id: str, prefix: str = "") -> Job:
    """Queue the job that deletes what is in a bucket, all versions of it. Raises NotFound, Forbidden, and Conflict while another job is at work on it."""
    refuse_on_engine(ctx, "a job that empties a bucket")
    row: Bucket = find(ctx, BUCKET, bucket_id)
    if prefix:
        check_key(prefix)
    job = Job(
        kind=EMPTY, label=f"Empty bucket {row.name}", resource_type=BUCKET.key, resource_id=row.id, resource_name=row.name, project_id=row.project_id,
        user_id=ctx.principal.user_id, username=ctx.principal.username, request_id=ctx.request_id, input={"prefix": prefix},
        steps=[JobStep(position=0, name="empty", label=f"Delete everything under {prefix}" if prefix else "Delete everything in it")],
    )  # fmt: skip
    with acting(ctx, EMPTY, Subject(BUCKET.key, row.id, row.name, row.project_id), target=target_of(row), details={"prefix": prefix}):
        if row.locked:
            raise Conflict(f"{row.name} is locked against changes. Unlock it first.")
        if (other := active_for(ctx.db, row.id)) is not None:
            raise Conflict(f"{row.name} has a job that is at work on it: {other.label}. Wait for it, or cancel it.", details={"job_id": other.id})
        ctx.db.add(job)
        ctx.db.flush()
    ctx.deliver([job.id])
    return job


@dataclass(slots=True)
class _Done:
    """How far the job is."""

    deleted: int = 0
    kept: int = 0
    reason: str = ""

    def text(self) -> str:
        """For people."""
        kept = f" {self.kept:,} stay: {self.reason}" if self.kept else ""
        return f"{self.deleted:,} versions deleted.{kept}"


def empty_bucket(ctx: Context, job: Job, report: Callable[[str], None]) -> None:
    """The job: what was there when it was asked for goes. What may not be deleted stays, and is told.

    Raises Forbidden once the asker may not any more, Conflict if something stays.
    """

    def asker() -> Context:
        ctx.db.rollback()
        return as_asker(ctx, job.user_id, job.id, job.project_id)

    bucket = bucket_by_id(asker().db, job.resource_id)
    if bucket is None:
        raise NotFound("The bucket is gone.")
    prefix, done = str(job.input.get("prefix", "")), _Done()
    _give_up_uploads(asker, bucket, prefix, job.created_at)
    after, newest = (prefix, -1), place_of(job.created_at)
    while rows := _next(ctx, bucket.id, prefix, after, newest):
        after = (rows[-1].key, rows[-1].sequence)
        results = write(asker(), bucket, DELETE, lambda writing, rows=rows: [_remove(writing, row) for row in rows])  # type: ignore[misc]
        for refused in results:
            done.deleted, done.kept = done.deleted + (refused is None), done.kept + (refused is not None)
            done.reason = refused or done.reason
        report(done.text())
    if done.kept:
        raise Conflict(done.text())


def _next(ctx: Context, bucket_id: str, prefix: str, after: tuple[str, int], newest: int) -> Sequence[Version]:
    query = select(*VERSION_COLUMNS).where(VERSIONS.c.bucket_id == bucket_id, *keys_under(VERSIONS.c.key, prefix))
    query = query.where(VERSIONS.c.sequence >= newest)
    query = query.where((VERSIONS.c.key > after[0]) | ((VERSIONS.c.key == after[0]) & (VERSIONS.c.sequence > after[1])))
    rows = [Version(*row) for row in ctx.db.execute(query.order_by(VERSIONS.c.key, VERSIONS.c.sequence).limit(BATCH))]
    ctx.db.rollback()
    return rows


def _remove(writing: Writing, row: Version) -> str | None:
    """Delete a version for good; why it stays, if it does. Whatever refuses does so before anything is written."""
    if version_at(writing.db, writing.bucket.id, row.key, row.sequence) is None:
        # It is gone, and what has its name now was written later.
        return None
    try:
        remove(writing, row.key, row.version_id)
    except PortalError as error:
        if isinstance(error, Forbidden):
            writing.tell(DELETE, row.key, {"reason": error.message}, status="denied")
        return error.message
    return None


def _give_up_uploads(asker: Callable[[], Context], bucket: BucketFacts, prefix: str, asked_at: datetime) -> None:
    """Uploads that nobody had finished by then go as well."""
    mine = select(ObjectUpload).where(
        ObjectUpload.bucket_id == bucket.id, *keys_under(ObjectUpload.key, prefix), ObjectUpload.completed_at.is_(None), ObjectUpload.created_at <= asked_at,
    )  # fmt: skip

    def end(writing: Writing) -> int:
        rows = writing.db.scalars(mine.limit(BATCH)).all()
        for upload in rows:
            writing.authorize(DELETE, upload.key, owner_id=upload.owner_id, tags=upload.tags)
            give_up(writing, upload)
        return len(rows)

    while (ctx := asker()).db.scalar(mine.with_only_columns(ObjectUpload.id).limit(1)) is not None:
        write(ctx, bucket, DELETE, end)
