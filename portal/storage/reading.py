"""The bytes of objects: never other ones than were written, never fewer than were promised. Damage that is met is told to those who can help.

An object is looked for first, and its bytes are opened then. One that was moved to other disks in between is read where it is now; one that was written
over or deleted is not what was looked for any more, and whoever asked begins anew.
"""

import logging
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace
from typing import TypeVar

from sqlalchemy import Engine
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from portal.engines.object_ports import Blob, BlobAbsent, BlobDamaged, BlobHold, BlobReader, BlobStore
from portal.kernel.context import Context
from portal.storage.damage import damage_report
from portal.storage.encryption import CustomerKey, key_of_row
from portal.storage.errors import ObjectChanged, ObjectDamaged
from portal.storage.facts import version_at
from portal.storage.objects import Found, parts_of

T = TypeVar("T")
Unusable = BlobAbsent | BlobDamaged
CHANGED = "The object was changed meanwhile. Try again."

log = logging.getLogger("portal.storage")


def object_open(
    ctx: Context, store: BlobStore, found: Found, span: tuple[int, int], customer: CustomerKey | None = None
) -> Generator[bytes, None, None]:  # fmt: skip
    """(first byte, how many) of an object, opened and begun. Raises ObjectChanged, ObjectDamaged, and what `key_of_row` does.

    What is damaged behind the first piece raises that when its turn comes.
    """
    key = key_of_row(ctx, found.bucket, found.version, customer)
    engine = ctx.db.get_bind().engine

    def begin(present: Found) -> Generator[bytes, None, None]:
        return _begun(store, present, key, span, lambda error: bytes_refused(ctx, engine, present, error))

    return bytes_used(ctx, found, begin)


def object_linked(ctx: Context, store: BlobStore, found: Found, storage_class: str) -> Blob:
    """The bytes of an object that is one blob as another blob of a class, after a look at all of them. Raises ObjectChanged and ObjectDamaged."""

    def link(present: Found) -> Blob:
        blob = present.pieces()[0]
        store.check(blob)
        return store.copy(blob, storage_class)

    return bytes_used(ctx, found, link)


def bytes_used(ctx: Context, found: Found, use: Callable[[Found], T]) -> T:
    """What comes of using the blobs of an object, where they are. Raises ObjectChanged, and ObjectDamaged after those were told who can help."""
    present = found
    try:
        try:
            return use(present)
        except BlobAbsent:
            present = _as_it_is(ctx, found)
            if present.pieces() == found.pieces():
                raise
            return use(present)
    except (BlobAbsent, BlobDamaged) as error:
        raise bytes_refused(ctx, ctx.db.get_bind().engine, present, error) from error


def bytes_refused(ctx: Context, engine: Engine, found: Found, error: Unusable) -> ObjectChanged | ObjectDamaged:
    """What to say of blobs that cannot be used, after those were told who can help."""
    if not _tell(ctx, engine, found, error.message):
        return ObjectChanged(CHANGED)
    return ObjectDamaged(f"{error.message} It is not given out; an administrator has been told.")


def _as_it_is(ctx: Context, found: Found) -> Found:
    ctx.db.rollback()
    present = _again(ctx.db, found)
    if present is None:
        raise ObjectChanged(CHANGED)
    return present


def _again(session: Session, found: Found) -> Found | None:
    """The same version as it is now; None if it is gone."""
    version = found.version
    row = version_at(session, version.bucket_id, version.key, version.sequence)
    if row is None:
        return None
    return Found(found.bucket, row, parts_of(session, row.upload_id) if row.upload_id is not None else ())


def _tell(ctx: Context, engine: Engine, found: Found, what: str) -> bool:
    """Tell of damage, in a session of its own: who reads may be done with theirs. False for what the version does not consist of any more."""
    version = found.version
    with Session(engine, expire_on_commit=False) as session:
        try:
            present = _again(session, found)
            if present is None or present.pieces() != found.pieces():
                return False
            damage_report(replace(ctx, db=session), found.bucket, version.key, version.version_id, what)
        except OperationalError:
            log.exception("%s/%s is damaged, and nobody could be told", found.bucket.name, version.key)
    return True


def _begun(
    store: BlobStore, found: Found, key: bytes | None, span: tuple[int, int], refused: Callable[[Unusable], Exception]
) -> Generator[bytes, None, None]:  # fmt: skip
    """Some bytes of blobs that follow each other, the first piece read: a generator that has begun lets go of its file, whatever becomes of it."""
    wanted = list(_cut(found.pieces(key), *span))
    if sum(count for _, _, count in wanted) != span[1]:
        raise BlobAbsent("A part of this object is gone.")
    pieces = _pieces(store, found.first, wanted, refused)
    next(pieces, None)
    return pieces


def _pieces(
    store: BlobStore, first: str, wanted: Sequence[tuple[Blob, int, int]], refused: Callable[[Unusable], Exception]
) -> Generator[bytes, None, None]:  # fmt: skip
    """Nothing, once the first piece is there; then the pieces. What fails behind the first is `refused`."""
    hold: BlobHold | None = None
    reader: BlobReader | None = None
    is_begun = False
    try:
        if len(wanted) > 1:
            hold = store.hold(first)
        for blob, start, count in wanted:
            reader = store.open(blob, start, count)
            for piece in reader:
                if not is_begun:
                    is_begun = True
                    yield b""
                yield piece
            reader.close()
    except (BlobAbsent, BlobDamaged) as error:
        if is_begun:
            raise refused(error) from error
        raise
    finally:
        if reader is not None:
            reader.close()
        if hold is not None:
            hold.close()


def _cut(blobs: Sequence[Blob], first: int, length: int) -> Iterator[tuple[Blob, int, int]]:
    """(blob, first byte, how many) of each blob that a range touches."""
    begin, end = first, first + length
    place = 0
    for blob in blobs:
        start, stop = max(begin - place, 0), min(end - place, blob.size_bytes)
        if start < stop:
            yield blob, start, stop - start
        place += blob.size_bytes
