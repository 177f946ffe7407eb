"""The only way in which anything in a bucket is changed: a transaction that sees the bucket as it is, decides, writes, charges and tells.

Bytes are on the disk before it begins. If it fails, they are an orphan that the sweep finds; if it is committed, the object is there for good.

A database of one file takes one writer at a time, and commits wait for the disk. Those who come while another writes are therefore written together,
in one transaction; if one of them is refused, each gets a transaction of its own. Once the end of a transaction was asked for, nothing is done again:
an answer that got lost says nothing of whether it was written. Nobody waits for the disk while they keep others from writing: the next write, and one
visit to the disk is for all who have. What is told, is told where the bucket records data events.
"""

import fcntl
import os
import time
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
from portal.kernel.db import DISK_IS_FULL, force, out_of_service, transaction
from portal.kernel.errors import Conflict, Forbidden, Unavailable
from portal.storage.access import authorize_object, note_refusal, subject_of
from portal.storage.errors import NoSuchBucket
from portal.storage.facts import BucketFacts, bucket_by_id
from portal.storage.grants import Grant
from portal.storage.usage import Change, charge, usage_locked

T = TypeVar("T")
# So many are written together at most: who comes later waits for the next.
TOGETHER = 64
# Who asks is believed to be who they were for so long.
STALE_S = 5.0
UNDECIDED = "The database did not say whether it has taken the change. Look whether it is there, then try again."


class _Undecided(Exception):
    """The end of a transaction was asked for, and did not answer; its cause is what came instead."""


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
        self, action: str, key: str, *, owner_id: str | None = None, tags: Mapping[str, str] | None = None, grants: Sequence[Grant] = (),
        called: str = "",
    ) -> None:  # fmt: skip
        """Raise Forbidden unless the caller may."""
        try:
            authorize_object(self.ctx, self.bucket, action, key, owner_id=owner_id, tags=tags, grants=grants, called=called)
        except Forbidden as error:
            error.details["key"] = key[:200]
            raise

    def tell(self, action: str, key: str, details: Mapping[str, object], *, status: str = "success", always: bool = False) -> None:
        """Write an entry into the audit log, `always` or if the bucket records data events; at the very end, since that lock comes last."""
        if always or self.bucket.data_events:
            self.told.append(lambda: audit.record(self.ctx, action, subject_of(self.bucket, key), details=details, status=status))


@dataclass(slots=True, eq=False)
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
    """Do some work on a bucket in a transaction, as who asks is by now. Raises NoSuchBucket, what the work raises, QuotaExceeded and Forbidden.

    The work may be done twice, in another thread, and what it did the first time is undone then: it changes rows and nothing else.
    """
    ctx.db.rollback()
    _ask_again(ctx)
    asked = _Asked(ctx, bucket.id, work)
    queue_of(ctx.db.get_bind().engine).run(asked)
    error = asked.error
    if not asked.is_done:
        msg = "a write came back before it was done"
        raise RuntimeError(msg)
    if isinstance(error, _Undecided):
        cause = error.__cause__
        is_full = isinstance(cause, OperationalError) and out_of_service(cause) == DISK_IS_FULL
        raise Unavailable(DISK_IS_FULL if is_full else UNDECIDED) from cause
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


def _ask_again(ctx: Context) -> None:
    """Bytes may take their time to arrive: what somebody might when they began, they may not need to be allowed any more. Raises Forbidden."""
    if ctx.identify_again is None or time.monotonic() - ctx.identified_at < STALE_S:
        return
    principal = ctx.identify_again()
    ctx.db.rollback()
    if principal is None:
        raise Forbidden("What this request was signed or sent with counts no more.")
    ctx.principal, ctx.identified_at = principal, time.monotonic()


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
        try:
            while batch := self._turn_of(asked):
                self._lead(batch)
        finally:
            with self._signal:
                # Whoever is interrupted has been refused: nobody may do their work later.
                if asked in self._waiting:
                    self._waiting.remove(asked)

    def _turn_of(self, asked: _Asked) -> list[_Asked]:
        """Whom to write together, once nobody is at work; nobody, once this one is done. Those who came first may be so many that it takes some turns."""
        with self._signal:
            while not asked.is_done and (asked.is_taken or self._is_busy):
                self._signal.wait()
            if asked.is_done:
                return []
            self._is_busy = True
            batch = self._next(asked)
            for each in batch:
                each.is_taken = True
        return batch

    def _lead(self, batch: Sequence[_Asked]) -> None:
        try:
            self._write(batch)
        except BaseException as error:
            for each in batch:
                each.error = each.error or error
            if not isinstance(error, Exception):
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

    def _next(self, asked: _Asked) -> list[_Asked]:
        """Who is written together, those first who came first: of one's own bucket, where buckets are locked one by one."""
        together = [each for each in self._waiting if self._turn is not None or each.bucket_id == asked.bucket_id][:TOGETHER]
        for each in together:
            self._waiting.remove(each)
        return together

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
            if len(batch) > 1 and not isinstance(error, _Undecided):
                return False
            for each in batch:
                each.error = error
            return True
        for each, result in zip(batch, results, strict=True):
            each.result = result
        self._committed += 1
        return True

    def _commit(self, batch: Sequence[_Asked]) -> list[Any]:
        is_asked_for = False
        try:
            # A session of its own: rows go back to other threads, and must not belong to one that somebody uses.
            with Session(self._engine, expire_on_commit=False) as session, transaction(session, is_forced=False):
                results = _work(session, batch)
                session.flush()
                is_asked_for = True
        except Exception as error:
            if is_asked_for:
                raise _Undecided from error
            raise
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


def _work(session: Session, batch: Sequence[_Asked]) -> list[Any]:
    usages = {bucket_id: usage_locked(session, bucket_id) for bucket_id in sorted({each.bucket_id for each in batch})}
    changes = {bucket_id: Change() for bucket_id in usages}
    # Whoever deletes a bucket or changes its versioning holds its lock, too.
    buckets = {bucket_id: bucket_by_id(session, bucket_id) for bucket_id in usages}
    results, told = [], list[Callable[[], object]]()
    # Who is told where a write crosses a limit: the last who wrote into the bucket.
    writers: dict[str, Context] = {}
    for each in batch:
        bucket = buckets[each.bucket_id]
        if bucket is None:
            raise NoSuchBucket("The bucket was deleted a moment ago.")
        writers[each.bucket_id] = replace(each.ctx, db=session)
        results.append(each.work(Writing(writers[each.bucket_id], bucket, changes[each.bucket_id], told)))
    for bucket_id, bucket in buckets.items():
        if bucket is not None:
            charge(writers[bucket_id], bucket, usages[bucket_id], changes[bucket_id])
    for tell in told:
        tell()
    return results


_queues: WeakKeyDictionary[Engine, _Queue] = WeakKeyDictionary()


def queue_of(engine: Engine) -> _Queue:
    """Where the writes of this process into a database wait for each other."""
    found = _queues.get(engine)
    return found if found is not None else _queues.setdefault(engine, _Queue(engine))
