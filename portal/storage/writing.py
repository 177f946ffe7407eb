"""The only way in which anything in a bucket is changed: a transaction that sees the bucket as it is, decides, writes, charges and tells.

Bytes are on the disk before it begins. If it fails, they are an orphan that the sweep finds; if it is committed, the object is there for good.

A database of one file takes one writer at a time, and commits wait for the disk. Those who come while another writes are therefore written together,
in one transaction; if one of them is refused, each gets a transaction of its own. Nobody waits for the disk while they keep others from writing: the
next write, and one visit to the disk is for all who have. What is told, is told where the bucket records data events.
"""

import fcntl
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from threading import Condition as Signal
from threading import Lock
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from sqlalchemy import Engine
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.orm import Session

from portal.kernel import audit
from portal.kernel.context import Context
from portal.kernel.db import force, out_of_service, transaction
from portal.kernel.errors import Conflict, Forbidden, Unavailable
from portal.storage.access import authorize_object, note_refusal, subject_of
from portal.storage.errors import NoSuchBucket
from portal.storage.facts import BucketFacts, bucket_by_id
from portal.storage.grants import Grant
from portal.storage.usage import Change, charge, usage_locked

T = TypeVar("T")
# So many are written together at most: who comes later waits for the next.
TOGETHER = 64


@dataclass(slots=True)
class Writing:
    """Work on one bucket within a transaction; nobody else writes into the bucket meanwhile."""

    ctx: Context
    bucket: BucketFacts
    change: Change
    told: list[Callable[[], object]] = field(default_factory=list)

    @property
    def db(self) -> Session:
        """The session of the transaction."""
        return self.ctx.db

    def authorize(
        self, action: str, key: str, *, owner_id: str | None = None, tags: Mapping[str, str] | None = None, grants: Sequence[Grant] = (), asked: str = "",
    ) -> None:  # fmt: skip
        """Raise Forbidden unless the caller may; `asked` is what S3 calls it."""
        try:
            authorize_object(self.ctx, self.bucket, action, key, owner_id=owner_id, tags=tags, grants=grants, asked=asked)
        except Forbidden as error:
            error.details["key"] = key[:200]
            raise

    def tell(self, action: str, key: str, details: Mapping[str, object], *, status: str = "success", always: bool = False) -> None:
        """Write an entry into the audit log, `always` or if the bucket records data events; at the very end, since that lock comes last."""
        if always or self.bucket.data_events:
            self.told.append(lambda: audit.record(self.ctx, action, subject_of(self.bucket, key), details=details, status=status))


@dataclass(slots=True)
class _Asked:
    """Work that waits for its transaction, and what came of it."""

    ctx: Context
    bucket_id: str
    work: Callable[[Writing], Any]
    is_taken: bool = False
    is_done: bool = False
    result: Any = None
    error: BaseException | None = None


def write(ctx: Context, bucket: BucketFacts, action: str, work: Callable[[Writing], T]) -> T:
    """Do some work on a bucket in a transaction. Raises NoSuchBucket, what the work raises, and QuotaExceeded.

    The work may be done twice, in another thread, and what it did the first time is undone then: it changes rows and nothing else.
    """
    asked = _Asked(ctx, bucket.id, work)
    ctx.db.rollback()
    queue_of(ctx.db.get_bind().engine).run(asked)
    error = asked.error
    if isinstance(error, Forbidden):
        note_refusal(ctx, bucket, action, str(error.details.get("key", "")), error)
    if isinstance(error, IntegrityError):
        raise Conflict("Another change came first. Try again.") from error
    if isinstance(error, OperationalError):
        raise Unavailable(out_of_service(error)) from error
    if isinstance(error, OSError):
        raise Unavailable(f"The disk of the database does not work: {error.strerror}. Try again in a moment.") from error
    if error is not None:
        raise error
    result: T = asked.result
    return result


class _Queue:
    """Whoever finds nobody at work does so for all who wait, and hands over before their own is on the disk."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._waiting: deque[_Asked] = deque()
        self._signal = Signal()
        self._is_busy = False
        # A database of one file: processes take turns by a lock that wakes the next at once, where the database would look now and then.
        self._turn = f"{engine.url.database}-objects" if engine.dialect.name == "sqlite" else None
        self._disk = Lock()
        self._committed = self._forced = 0

    def run(self, asked: _Asked) -> None:
        """Return when it is done, or has failed."""
        with self._signal:
            self._waiting.append(asked)
            while not asked.is_done and (asked.is_taken or self._is_busy):
                self._signal.wait()
            if asked.is_done:
                return
            self._is_busy = True
            batch = self._next()
            for each in batch:
                each.is_taken = True
        try:
            self._write(batch)
        except BaseException as error:
            for each in batch:
                each.error = error
            raise
        finally:
            with self._signal:
                self._is_busy = False
                self._signal.notify_all()
            self._finish(batch)

    def _finish(self, batch: Sequence[_Asked]) -> None:
        """Tell those who wait, once what was committed for them is on the disk."""
        failed: BaseException | None = None
        try:
            if any(each.error is None for each in batch):
                self._force()
        except BaseException as error:
            failed = error
            if not isinstance(error, OSError):
                raise
        finally:
            with self._signal:
                for each in batch:
                    each.error = each.error or failed
                    each.is_done = True
                self._signal.notify_all()

    def _force(self) -> None:
        mine = self._committed
        with self._disk:
            if self._forced >= mine:
                return
            covered = self._committed
            force(self._engine)
            self._forced = covered

    def _next(self) -> list[_Asked]:
        """Who is written together: of one bucket, where buckets are locked one by one."""
        if self._turn is not None:
            return [self._waiting.popleft() for _ in range(min(TOGETHER, len(self._waiting)))]
        first = self._waiting[0].bucket_id
        batch = [each for each in self._waiting if each.bucket_id == first][:TOGETHER]
        for each in batch:
            self._waiting.remove(each)
        return batch

    def _write(self, batch: Sequence[_Asked]) -> None:
        with self._our_turn():
            if not self._try(batch):
                for each in batch:
                    self._try([each])

    def _try(self, batch: Sequence[_Asked]) -> bool:
        """Write some together; False if they have to be written one by one."""
        try:
            results = self._commit(batch)
        except Exception as error:  # noqa: BLE001 - whoever asked gets it
            if len(batch) > 1:
                return False
            batch[0].error = error
            return True
        for each, result in zip(batch, results, strict=True):
            each.result = result
        self._committed += 1
        return True

    def _commit(self, batch: Sequence[_Asked]) -> list[Any]:
        # A session of its own: rows go back to other threads, and must not belong to one that somebody uses.
        with Session(self._engine, expire_on_commit=False) as session, transaction(session, is_forced=False):
            usages = {bucket_id: usage_locked(session, bucket_id) for bucket_id in sorted({each.bucket_id for each in batch})}
            changes = {bucket_id: Change() for bucket_id in usages}
            # Whoever deletes a bucket or changes its versioning holds its lock, too.
            buckets = {bucket_id: bucket_by_id(session, bucket_id) for bucket_id in usages}
            results, told = [], list[Callable[[], object]]()
            for each in batch:
                bucket = buckets[each.bucket_id]
                if bucket is None:
                    raise NoSuchBucket("The bucket was deleted a moment ago.")
                results.append(each.work(Writing(replace(each.ctx, db=session), bucket, changes[each.bucket_id], told)))
            for bucket_id, bucket in buckets.items():
                if bucket is not None:
                    charge(replace(batch[0].ctx, db=session), bucket, usages[bucket_id], changes[bucket_id])
            for tell in told:
                tell()
        return results

    @contextmanager
    def _our_turn(self) -> Iterator[None]:
        if self._turn is None:
            yield
            return
        handle = os.open(self._turn, os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)


_queues: WeakKeyDictionary[Engine, _Queue] = WeakKeyDictionary()


def queue_of(engine: Engine) -> _Queue:
    """Where the writes of this process into a database wait for each other."""
    found = _queues.get(engine)
    return found if found is not None else _queues.setdefault(engine, _Queue(engine))
