"""The carrying over of versions into other buckets: first what changed, then what was there before, some at a time, from where it stopped."""

import logging
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import delete, exists, insert, select, update

from portal.engines.object_ports import Blob, BlobStore
from portal.engines.ports import EngineError
from portal.kernel.audit import Subject
from portal.kernel.authz import target_of
from portal.kernel.context import Context
from portal.kernel.db import now, transaction
from portal.kernel.errors import PortalError, Unavailable
from portal.kernel.jobs import Job, JobStep, active_for
from portal.kernel.operations import acting
from portal.storage import versions
from portal.storage.access import WRITE
from portal.storage.errors import ObjectChanged, ObjectDamaged
from portal.storage.facts import VERSION_COLUMNS, VERSIONS, BucketFacts, Version, bucket_by_id, version_at
from portal.storage.locks import COMPLIANCE, FREE, Lock, is_retained, lock_of_new
from portal.storage.notifications import note
from portal.storage.object_models import Bucket, ObjectPart, table_of
from portal.storage.objects import Found, parts_of
from portal.storage.reading import bytes_used
from portal.storage.replication import CHANGES, COMPLETED, FAILED, REPLICA, REPLICATE, BucketReplication, Rule, destinations_of
from portal.storage.writing import Writing, write

BATCH = 100
FIRST_WAIT_S, LONGEST_WAIT_S = 5.0, 900.0
PARTS = table_of(ObjectPart)

log = logging.getLogger("portal.storage")


def replication_ask(ctx: Context, bucket: Bucket, rule: Rule) -> Job:
    """Queue the job that carries over what is in a bucket already; the portal does so by itself where nobody waits for it."""
    mine = (BucketReplication.bucket_id == bucket.id, BucketReplication.destination_id == rule["bucket_id"])
    replication_id = ctx.db.scalars(select(BucketReplication.id).where(*mine)).one()
    if (present := active_for(ctx.db, replication_id)) is not None:
        # It goes on until everything is carried over, whatever was asked for meanwhile.
        return present
    job = Job(
        kind=REPLICATE, label=f"Replicate {bucket.name} to {rule['bucket_name']}", resource_type="storage.bucket", resource_id=replication_id,
        resource_name=bucket.name, project_id=bucket.project_id, user_id=ctx.principal.user_id, username=ctx.principal.username,
        request_id=ctx.request_id, input={"replication_id": replication_id}, steps=[JobStep(position=0, name="copy", label="Carry over what is in it")],
    )  # fmt: skip
    subject = Subject("storage.bucket", bucket.id, bucket.name, bucket.project_id)
    with acting(ctx, REPLICATE, subject, target=target_of(bucket), permission="storage.bucket.set_replication"):
        ctx.db.add(job)
        ctx.db.flush()
    ctx.deliver([job.id])
    return job


def replicate_existing(ctx: Context, blobs: BlobStore, replication_id: str, report: Callable[[str], None]) -> None:
    """The job. Raises EngineError or PortalError for what stands in its way."""
    while (work := _work_of(ctx, replication_id)) is not None:
        done = work.existing(blobs)
        report(f"{work.copied + done:,} versions carried over.")
        if not done and work.is_done:
            return


def replication_run(ctx: Context, blobs: BlobStore, *, seconds: float = 30.0) -> int:
    """Carry over what waits, a while for each destination; how many versions that were. What goes wrong is of that one alone, and tried again later."""
    _forget_deleted(ctx)
    waits = exists().where(CHANGES.c.bucket_id == BucketReplication.bucket_id, CHANGES.c.destination_id == BucketReplication.destination_id)
    due = select(BucketReplication.id).where(BucketReplication.next_try_at <= now(), waits | ~BucketReplication.is_caught_up)
    ids = ctx.db.scalars(due.order_by(BucketReplication.next_try_at, BucketReplication.id)).all()
    ctx.db.rollback()
    return sum(_run_one(ctx, blobs, replication_id, time.monotonic() + seconds) for replication_id in ids)


def _run_one(ctx: Context, blobs: BlobStore, replication_id: str, end: float) -> int:
    carried = 0
    try:
        while time.monotonic() < end and (work := _work_of(ctx, replication_id)) is not None:
            done = work.changes(blobs)
            carried += done
            if done < BATCH and not work.is_done:
                carried += work.existing(blobs)
            elif done < BATCH:
                break
    except (PortalError, EngineError) as error:
        log.warning("replication %s: %s", replication_id, error.message)
        ctx.db.rollback()
        _failed(ctx, replication_id, error.message)
    return carried


def _forget_deleted(ctx: Context) -> None:
    gone = select(Bucket.id).where(Bucket.deleted_at.is_not(None))
    with transaction(ctx.db):
        for table in (table_of(BucketReplication), CHANGES):
            ctx.db.execute(delete(table).where(table.c.bucket_id.in_(gone)))


def _failed(ctx: Context, replication_id: str, problem: str) -> None:
    with transaction(ctx.db):
        mine = BucketReplication.id == replication_id
        failures = ctx.db.scalar(select(BucketReplication.failures).where(mine)) or 0
        wait = timedelta(seconds=min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** min(failures, 16)))
        values = {"failures": failures + 1, "last_error": problem[:2000], "next_try_at": now() + wait}
        ctx.db.execute(update(BucketReplication).where(mine).values(values).execution_options(synchronize_session=False))


def _work_of(ctx: Context, replication_id: str) -> "_Work | None":
    """A replication as it is now; None if it has ended."""
    row = ctx.db.scalars(select(BucketReplication).where(BucketReplication.id == replication_id)).first()
    source = bucket_by_id(ctx.db, row.bucket_id) if row is not None else None
    if source is None or row is None or source.replication is None:
        ctx.db.rollback()
        return None
    target = bucket_by_id(ctx.db, row.destination_id)
    after, is_done, copied, since = (row.cursor_key, row.cursor_sequence), row.is_caught_up, row.copied, row.created_at
    ctx.db.expunge(row)
    ctx.db.rollback()
    if target is None or target.versioning != "enabled":
        problem = "is gone" if target is None else "keeps no versions any more"
        raise Unavailable(f"The bucket that it is replicated to {problem}.")
    return _Work(ctx, replication_id, source, target, after, is_done, copied, since)


@dataclass(slots=True)
class _Work:
    """What is to be carried over from one bucket into another."""

    ctx: Context
    id: str
    source: BucketFacts
    target: BucketFacts
    after: tuple[str, int]
    is_done: bool
    copied: int
    # When its rules were set: what is done by others than those in force moves no cursor.
    since: datetime

    def changes(self, blobs: BlobStore) -> int:
        """Carry over what changed, the oldest first; how much that was."""
        mine = (CHANGES.c.bucket_id == self.source.id, CHANGES.c.destination_id == self.target.id)
        query = select(CHANGES.c.id, CHANGES.c.key, CHANGES.c.sequence).where(*mine).order_by(CHANGES.c.id).limit(BATCH)
        rows = self.ctx.db.execute(query).all()
        places = dict.fromkeys((row.key, row.sequence) for row in rows)
        found = [version for place in places if (version := version_at(self.ctx.db, self.source.id, *place)) is not None]
        self._carry(blobs, found, [row.id for row in rows])
        return len(rows)

    def existing(self, blobs: BlobStore) -> int:
        """Carry over some of what was there before; how many versions were looked at."""
        mine = select(*VERSION_COLUMNS).where(VERSIONS.c.bucket_id == self.source.id)
        key, sequence = self.after
        beyond = (VERSIONS.c.key > key) | ((VERSIONS.c.key == key) & (VERSIONS.c.sequence > sequence))
        rows = [Version(*row) for row in self.ctx.db.execute(mine.where(beyond).order_by(VERSIONS.c.key, VERSIONS.c.sequence).limit(BATCH))]
        self._carry(blobs, [row for row in rows if row.replication != REPLICA and self._is_wanted(row)], ())
        self.is_done = len(rows) < BATCH
        if rows:
            self.after = (rows[-1].key, rows[-1].sequence)
        self._save(cursor_key=self.after[0], cursor_sequence=self.after[1], is_caught_up=self.is_done)
        return len(rows)

    def _is_wanted(self, row: Version) -> bool:
        return self.target.id in destinations_of(self.source, row.key, row.tags, is_marker=row.is_marker, existing=True)

    def _save(self, **values: object) -> None:
        with transaction(self.ctx.db):
            mine = update(BucketReplication).where(BucketReplication.id == self.id, BucketReplication.created_at == self.since)
            self.ctx.db.execute(mine.values(values).execution_options(synchronize_session=False))

    def _carry(self, blobs: BlobStore, found: Sequence[Version], change_ids: Sequence[int]) -> None:
        """Write replicas, then note that they are there: whoever dies in between finds them written already."""
        lost: list[Version] = []
        copies: list[_Copy] = []
        try:
            for version in found:
                made = self._copy(blobs, version)
                (copies if made is not None else lost).append(made or version)  # type: ignore[arg-type]
            are_new = write(self.ctx, self.target, WRITE, lambda writing: [_replica(writing, each) for each in copies]) if copies else []
        except (PortalError, EngineError) as error:
            if not isinstance(error, Unavailable):
                _drop(blobs, *(blob for each in copies for blob in each.pieces))
            raise
        # What was there already was copied for nothing.
        _drop(blobs, *(blob for each, is_new in zip(copies, are_new, strict=True) if not is_new for blob in each.pieces))
        done = [each.version for each in copies]
        write(self.ctx, self.source, WRITE, lambda writing: _note(writing, self.id, Carried(done, lost, change_ids, sum(are_new))))

    def _copy(self, blobs: BlobStore, version: Version) -> "_Copy | None":
        """A version with bytes of its own; without any where it is there already, or here no more, None if its bytes are lost."""
        if version_at(self.ctx.db, self.target.id, version.key, version.sequence) is not None or version.is_marker:
            return _Copy(version, [], [])
        parts = parts_of(self.ctx.db, version.upload_id) if version.upload_id is not None else ()
        self.ctx.db.rollback()
        try:
            return bytes_used(self.ctx, Found(self.source, version, parts), lambda present: _copied(blobs, present))
        except ObjectChanged:
            return _Copy(version, [], [])
        except ObjectDamaged as error:
            log.warning("%s/%s is not replicated: %s", self.source.name, version.key, error.message)
            return None


def _copied(blobs: BlobStore, found: Found) -> "_Copy":
    made: list[Blob] = []
    try:
        for piece in found.pieces():
            made.append(blobs.copy(piece, found.version.storage_class))  # noqa: PERF401 - what was made by then is removed
    except EngineError:
        _drop(blobs, *made)
        raise
    return _Copy(found.version, made, [{column.name: getattr(part, column.name) for column in PARTS.columns} for part in found.parts])


def _drop(blobs: BlobStore, *pieces: Blob) -> None:
    blobs.remove(*(blob.id for blob in pieces if blob.id))


@dataclass(frozen=True, slots=True)
class _Copy:
    """A version on its way, with its bytes and what is said of its parts."""

    version: Version
    pieces: Sequence[Blob]
    parts: Sequence[dict[str, Any]]


def _replica(writing: Writing, copy: _Copy) -> bool:
    """Write a replica; of one that is there, what is said of it. Whether it is new."""
    version = copy.version
    present = version_at(writing.db, writing.bucket.id, version.key, version.sequence)
    if present is not None:
        if present.replication == REPLICA and (said := _said(writing.bucket, version, present)):
            versions.say(writing.db, present, **said)
        return False
    if not version.is_marker and version.size_bytes and not copy.pieces:
        # It was there a moment ago, and somebody has deleted it since: that is how it is to be.
        return False
    values = {
        **asdict(version),
        "bucket_id": writing.bucket.id,
        "is_null": False,
        "replication": REPLICA,
        "blob": "",
        "seal": "",
        "upload_id": None,
        "acl": "private",
        "grants": None,
        **_lock_of(writing.bucket, version).columns(),
    }
    if version.upload_id is not None:
        values["upload_id"] = secrets.token_urlsafe(32)
        for part, blob in zip(copy.parts, copy.pieces, strict=True):
            writing.db.execute(insert(PARTS), {**part, "upload_id": values["upload_id"], "blob": blob.id, "seal": blob.seal})
    elif copy.pieces:
        values |= {"blob": copy.pieces[0].id, "seal": copy.pieces[0].seal}
    row = versions.insert_at(writing.db, writing.change, values)
    note(writing.ctx, writing.bucket, "ObjectRemoved:DeleteMarkerCreated" if row.is_marker else "ObjectCreated:Copy", row)
    return True


def _lock_of(target: BucketFacts, version: Version) -> Lock:
    """What keeps a new replica: the retention of its source where that holds, else what the rule of its own bucket says."""
    if version.is_marker or not target.object_lock:
        return FREE
    asked = Lock(version.lock_mode, version.retain_until, version.legal_hold) if is_retained(version) else Lock(hold=version.legal_hold)
    return lock_of_new(target, asked)


def _said(target: BucketFacts, version: Version, present: Version) -> dict[str, Any]:
    """What is to be said of a replica that is there. What keeps it only ever grows, whatever is said at its source, and what is kept stays as it is."""
    values: dict[str, Any] = {"tags": version.tags}
    if not (present.legal_hold or is_retained(present)):
        values |= {"user_metadata": version.user_metadata, "headers": version.headers}
    if target.object_lock and is_retained(version) and version.retain_until is not None:
        held = (present.lock_mode, present.retain_until) if is_retained(present) else (version.lock_mode, None)
        mode = COMPLIANCE if COMPLIANCE in {held[0], version.lock_mode} else version.lock_mode
        values |= {"lock_mode": mode, "retain_until": max(version.retain_until, held[1] or version.retain_until)}
    if target.object_lock and version.legal_hold:
        values["legal_hold"] = True
    return {name: value for name, value in values.items() if getattr(present, name) != value}


@dataclass(frozen=True, slots=True)
class Carried:
    """What became of a few versions: those that are there now, `made` of them new, those whose bytes are lost, and the changes that are done with."""

    done: Sequence[Version]
    lost: Sequence[Version]
    change_ids: Sequence[int]
    made: int


def _note(writing: Writing, replication_id: str, what: Carried) -> None:
    if writing.db.scalar(select(BucketReplication.id).where(BucketReplication.id == replication_id)) is None:
        # It went where nothing goes any more.
        return
    writing.db.execute(delete(CHANGES).where(CHANGES.c.id.in_(what.change_ids)))
    waits = _elsewhere(writing, what.done)
    for version in what.done:
        if version.replication != COMPLETED and (version.key, version.sequence) not in waits:
            versions.say(writing.db, version, replication=COMPLETED)
    for version in what.lost:
        if version.replication != FAILED:
            versions.say(writing.db, version, replication=FAILED)
    values: dict[Any, Any] = {
        "copied": BucketReplication.copied + what.made,
        "failures": 0,
        "last_error": "",
        "synced_at": now(),
        "next_try_at": now(),
    }
    mine = update(BucketReplication).where(BucketReplication.id == replication_id)
    writing.db.execute(mine.values(values).execution_options(synchronize_session=False))


def _elsewhere(writing: Writing, done: Sequence[Version]) -> set[tuple[str, int]]:
    """Which of them are still to be carried over, into this or another bucket."""
    places = select(CHANGES.c.key, CHANGES.c.sequence).where(CHANGES.c.bucket_id == writing.bucket.id, CHANGES.c.key.in_({each.key for each in done}))
    return {(row.key, row.sequence) for row in writing.db.execute(places)}
