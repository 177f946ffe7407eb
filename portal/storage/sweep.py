"""What is done behind everybody's back: bytes that nobody refers to go, and so do uploads that nobody finishes and what was in deleted buckets.

Everything that is kept is read again now and then, so that damage is known before somebody asks for it.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice
from typing import Any

from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import Session

from portal.engines.object_ports import Blob, BlobAbsent, BlobDamaged, BlobStore, StoredBlob
from portal.engines.ports import EngineError
from portal.kernel.context import Context
from portal.kernel.db import insert_of, now, transaction
from portal.storage import versions
from portal.storage.access import WRITE
from portal.storage.damage import damage_report
from portal.storage.errors import NoSuchBucket
from portal.storage.facts import BUCKETS, VERSION_COLUMNS, VERSIONS, Version, bucket_by_id
from portal.storage.object_models import BlobToRemove, Bucket, BucketUsage, ObjectPart, ObjectUpload, ScrubTurn, table_of
from portal.storage.uploads import give_up
from portal.storage.writing import write

BATCH = 500
# A blob that is younger may be on its way into a row, however slow its sender is.
YOUNG = timedelta(days=1)
# One that is not whole and that nobody is writing has no row, and gets none.
BROKEN_OFF = timedelta(minutes=10)
ANSWERED = timedelta(days=1)
# In so many days everything has been read once.
SCRUB_DAYS = 30
SCRUB_BATCH = 50
DAY = timedelta(days=1)
# What could not be removed is left alone for so long.
LATER = timedelta(hours=1)
# What somebody reads is asked for again after this time.
HELD = timedelta(seconds=15)

log = logging.getLogger("portal.storage")


def remove_due(ctx: Context, blobs: BlobStore) -> int:
    """Remove the bytes that nobody refers to any more and whose time has come; how many blobs went. What does not go is tried again later."""
    removed = 0
    kept = timedelta(hours=ctx.settings.object_keep_hours)
    while True:
        found = ctx.db.execute(select(BlobToRemove.blob, BlobToRemove.read_with).where(BlobToRemove.due_at <= now() - kept).limit(BATCH)).all()
        together = {row.blob: row.read_with for row in found}
        if not together:
            ctx.db.rollback()
            return removed
        ids = list(together)
        if named := _named(ctx, ids):
            log.error("%d blobs were to be removed that objects consist of, such as %s: they stay", len(named), min(named))
        ctx.db.rollback()
        stuck, held = _remove(blobs, {blob: first for blob, first in together.items() if blob not in named})
        stay = {*stuck, *held}
        with transaction(ctx.db):
            ctx.db.execute(delete(BlobToRemove).where(BlobToRemove.blob.in_([each for each in ids if each not in stay])))
            for some, wait in ((stuck, LATER), (held, HELD)):
                ctx.db.execute(update(BlobToRemove).where(BlobToRemove.blob.in_(some)).values(due_at=now() - kept + wait))
        removed += len(ids) - len(named) - len(stay)


def _named(ctx: Context, some: Sequence[str]) -> set[str]:
    """Which of some blobs objects or parts of uploads consist of."""
    of_versions = select(VERSIONS.c.blob).where(VERSIONS.c.blob.in_(some), VERSIONS.c.blob != "")
    return {*ctx.db.scalars(of_versions), *ctx.db.scalars(select(ObjectPart.blob).where(ObjectPart.blob.in_(some)))}


def _remove(blobs: BlobStore, some: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Remove blobs, each of them with what it is read with: (those that could not be, those that somebody reads)."""
    groups: dict[str, list[str]] = {}
    stuck: dict[str, str] = {}
    held: list[str] = []
    for blob, first in some.items():
        groups.setdefault(first or blob, []).append(blob)
    for first, group in groups.items():
        try:
            if not some[group[0]]:
                blobs.remove(first)
            elif not blobs.remove_unheld(first, group):
                held += group
        except (EngineError, OSError) as error:
            stuck |= dict.fromkeys(group, str(error))
    if stuck:
        log.error("%d blobs cannot be removed and wait for another day, such as %s: %s", len(stuck), *next(iter(stuck.items())))
    return list(stuck), held


def remove_orphans(ctx: Context, blobs: BlobStore, *, older: timedelta = YOUNG) -> int:
    """Remove what crashes left behind: old files that no row names; how many."""
    edge = (now() - older).timestamp()
    return len(_remove_unnamed(ctx, blobs, (found for found in blobs.stored() if found.written_at < edge)))


def remove_unfinished(ctx: Context, blobs: BlobStore, *, older: timedelta = BROKEN_OFF) -> int:
    """Remove what was being written when its process died, of which no row can be: how many."""
    edge = (now() - older).timestamp()
    removed = _remove_unnamed(ctx, blobs, (found for found in blobs.stored() if not found.is_whole and found.written_at < edge))
    for found in removed:
        log.warning("%d bytes of an upload that broke off are removed: %s", found.file_bytes, found.id)
    return len(removed)


def _remove_unnamed(ctx: Context, blobs: BlobStore, some: Iterator[StoredBlob]) -> Sequence[StoredBlob]:
    """Remove those of some files that no row names, whatever the files themselves say; which they were."""
    removed: list[StoredBlob] = []
    while batch := {found.id: found for found in islice(some, BATCH)}:
        known = _named(ctx, list(batch)) | set(ctx.db.scalars(select(BlobToRemove.blob).where(BlobToRemove.blob.in_(batch))))
        ctx.db.rollback()
        orphans = {blob: blob for blob in batch if blob not in known}
        stuck, held = _remove(blobs, orphans)
        removed += [batch[blob] for blob in orphans if blob not in {*stuck, *held}]
    return removed


def give_up_uploads(ctx: Context) -> int:
    """Give up uploads that were begun long ago and never finished, and forget those that were; how many were given up."""
    given_up = 0
    with transaction(ctx.db):
        ctx.db.execute(delete(ObjectUpload).where(ObjectUpload.completed_at < now() - ANSWERED))
    edge = now() - timedelta(days=ctx.settings.s3_upload_days)
    old = select(ObjectUpload.id, ObjectUpload.bucket_id).where(ObjectUpload.completed_at.is_(None), ObjectUpload.created_at < edge)
    live = old.join(Bucket, Bucket.id == ObjectUpload.bucket_id).where(Bucket.deleted_at.is_(None)).order_by(ObjectUpload.id).limit(BATCH)
    for upload_id, bucket_id in ctx.db.execute(live).all():
        given_up += _give_up(ctx, upload_id, bucket_id)
    return given_up


def _give_up(ctx: Context, upload_id: str, bucket_id: str) -> bool:
    bucket = bucket_by_id(ctx.db, bucket_id)
    if bucket is None:
        return False
    try:
        return write(ctx, bucket, WRITE, lambda writing: _end(writing.db, upload_id, lambda upload: give_up(writing, upload)))
    except NoSuchBucket:
        return False


def _end(session: Session, upload_id: str, do: Callable[[ObjectUpload], None]) -> bool:
    upload = session.get(ObjectUpload, upload_id)
    if upload is None or upload.completed_at is not None:
        return False
    do(upload)
    return True


def empty_deleted(ctx: Context) -> int:
    """Take deleted buckets apart, some rows at a time; how many versions and uploads went."""
    gone = 0
    deleted = select(BucketUsage.bucket_id).join(Bucket, Bucket.id == BucketUsage.bucket_id).where(Bucket.deleted_at.is_not(None))
    for bucket_id in ctx.db.scalars(deleted.order_by(BucketUsage.bucket_id)).all():
        while some := _take_apart(ctx, bucket_id):
            gone += some
        with transaction(ctx.db):
            ctx.db.execute(delete(BucketUsage).where(BucketUsage.bucket_id == bucket_id))
    return gone


def _take_apart(ctx: Context, bucket_id: str) -> int:
    session = ctx.db
    with transaction(session):
        uploads = session.scalars(select(ObjectUpload).where(ObjectUpload.bucket_id == bucket_id).limit(BATCH)).all()
        for upload in uploads:
            versions.discard_parts(session, upload.id)
            session.delete(upload)
        rows = session.execute(
            select(VERSIONS.c.key, VERSIONS.c.sequence, VERSIONS.c.blob, VERSIONS.c.upload_id).where(VERSIONS.c.bucket_id == bucket_id).limit(BATCH)
        ).all()
        versions.discard(session, [row.blob for row in rows])
        for row in rows:
            if row.upload_id is not None:
                versions.discard_parts(session, row.upload_id)
            session.execute(delete(VERSIONS).where(VERSIONS.c.bucket_id == bucket_id, VERSIONS.c.key == row.key, VERSIONS.c.sequence == row.sequence))
    return len(rows) + len(uploads)


@dataclass(frozen=True, slots=True)
class Scrubbed:
    """How many blobs were read again, how many of them are damaged, and how many could not be read: nobody knows of these."""

    blobs: int
    damaged: int
    unread: int = 0


SCRUBBED = ((VERSION_COLUMNS, VERSIONS.c.blob), (tuple(ObjectPart.__table__.columns), ObjectPart.__table__.c.blob))


def scrub(ctx: Context, blobs: BlobStore, *, days: int = SCRUB_DAYS) -> Scrubbed:
    """Read blobs on from where it stopped, so much that all of them are read in so many days (0: all), and report what is not what was written."""
    read, damaged = 0, 0
    unread = Counter[str]()
    with transaction(ctx.db):
        ctx.db.execute(insert_of(ctx.db)(table_of(ScrubTurn)).values(id=1, begun_at=now()).on_conflict_do_nothing())
    total = int(ctx.db.scalar(select(func.sum(BucketUsage.size_bytes))) or 0)
    while (turn := _turn(ctx, days, total)) is not None:
        columns, name = SCRUBBED[turn.stage]
        # Indexes hold what has bytes: said so, they are used.
        rows = ctx.db.execute(select(*columns).where(name > turn.after, name != "").order_by(name).limit(SCRUB_BATCH)).all()
        ctx.db.rollback()
        for row in rows:
            try:
                what = _problem(blobs, Blob(row.blob, row.size_bytes, row.seal, _is_encrypted(row)))
            except (EngineError, OSError) as error:
                # A directory that is not there now says nothing of its blobs, nor of all others.
                unread[str(error)] += 1
                continue
            read += 1
            if what and _is_named(ctx, row):
                damaged += 1
                _report(ctx, row, what)
        if _go_on(ctx, turn, rows):
            break
    for problem, count in unread.items():
        log.error("%d blobs could not be read again: %s", count, problem)
    return Scrubbed(read, damaged, unread.total())


def _turn(ctx: Context, days: int, total: int) -> ScrubTurn | None:
    """Where the present turn is; None where as much of a total was read as should have been by now. A day that was left out is made up for."""
    turn = ctx.db.scalars(select(ScrubTurn)).one()
    # As much as should have been read when the next day ends.
    share = (now() - turn.begun_at + DAY) / timedelta(days=days) if days else 1.0
    ctx.db.expunge(turn)
    ctx.db.rollback()
    return turn if share >= 1 or turn.read_bytes < total * share else None


def _go_on(ctx: Context, turn: ScrubTurn, rows: Sequence[Any]) -> bool:
    """Write down how far a turn is; whether it has ended, and the next one begins."""
    values: dict[str, Any] = {"after": rows[-1].blob, "read_bytes": turn.read_bytes + sum(row.size_bytes for row in rows)} if rows else {"after": ""}
    is_over = not rows and turn.stage == len(SCRUBBED) - 1
    if is_over:
        if now() - turn.begun_at > timedelta(days=SCRUB_DAYS) + DAY:
            log.error("reading all objects again took from %s until now, longer than %d days", turn.begun_at, SCRUB_DAYS)
        values |= {"stage": 0, "read_bytes": 0, "begun_at": now()}
    elif not rows:
        values["stage"] = turn.stage + 1
    with transaction(ctx.db):
        ctx.db.execute(update(ScrubTurn).values(values).execution_options(synchronize_session=False))
    return is_over


def _problem(blobs: BlobStore, blob: Blob) -> str:
    try:
        blobs.check(blob)
    except (BlobAbsent, BlobDamaged) as error:
        return error.message
    return ""


def _is_encrypted(row: Any) -> bool:
    return bool(row.is_encrypted if hasattr(row, "number") else row.encryption)


def _is_named(ctx: Context, row: Any) -> bool:
    """Whether the blob still belongs to the row: it may have been written over meanwhile."""
    return bool(_named(ctx, [row.blob])) and ctx.db.scalar(select(BlobToRemove.blob).where(BlobToRemove.blob == row.blob)) is None


def _report(ctx: Context, row: Any, what: str) -> None:
    """Tell of a damaged version, or of the one that a damaged part belongs to; parts of uploads that have not ended are nobody's yet."""
    of_part = hasattr(row, "number")
    wanted = (VERSIONS.c.upload_id == row.upload_id,) if of_part else (VERSIONS.c.blob == row.blob, VERSIONS.c.blob != "")
    found = ctx.db.execute(select(*VERSION_COLUMNS).join(BUCKETS, BUCKETS.c.id == VERSIONS.c.bucket_id).where(*wanted)).first()
    if found is None:
        return
    version = Version(*found)
    bucket = bucket_by_id(ctx.db, version.bucket_id)
    if bucket is not None:
        damage_report(ctx, bucket, version.key, version.version_id, what)
