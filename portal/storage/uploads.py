"""Uploads in parts: each part is a blob of its own, and stays one when the upload is complete. Nothing is put together, whatever the size."""

import hashlib
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from portal.kernel.context import Context
from portal.kernel.db import now
from portal.kernel.errors import Forbidden
from portal.kernel.ids import is_storable
from portal.storage import versions
from portal.storage.access import WRITE, authorize_object, note_refusal
from portal.storage.asked_encryption import show_upload
from portal.storage.encryption import NOTHING, Asked, encryption_for, encryption_of
from portal.storage.errors import InvalidPart, InvalidPartOrder, NoSuchUpload, PartTooSmall
from portal.storage.facts import BucketFacts, Version, bucket_named, version_at
from portal.storage.locks import Lock
from portal.storage.object_models import ObjectPart, ObjectUpload
from portal.storage.objects import ANY, About, Condition, Content, authorize_new, parts_of, put, refuse_early
from portal.storage.usage import refuse_beyond_quota
from portal.storage.writing import Writing, write

MOST_PARTS = 10_000
SMALLEST_PART = 5 << 20


def part_number(text: str) -> int | None:
    """The number of a part as a client writes it; None for what is none."""
    is_number = text.isascii() and text.isdigit() and len(text) <= len(str(MOST_PARTS))
    return number if is_number and 1 <= (number := int(text)) <= MOST_PARTS else None


@dataclass(frozen=True, slots=True)
class Whole:
    """What the checksums of the parts come to of which an object consists; all is empty where nobody knows."""

    algorithm: str = ""
    kind: str = ""
    checksum: str = ""


WholeOf = Callable[[ObjectUpload, Sequence[ObjectPart]], Whole]


@dataclass(frozen=True, slots=True)
class Named:
    """An upload as requests name it."""

    bucket: str
    key: str
    id: str


@dataclass(frozen=True, slots=True)
class PartNamed:
    """A part as the end of an upload names it; the checksum is empty where it does not say."""

    number: int
    etag: str
    checksum: str = ""


def upload_create(ctx: Context, bucket_name: str, key: str, about: About, asked: Asked = NOTHING) -> ObjectUpload:
    """Begin an upload. Raises Forbidden, NoSuchBucket and what `check_key` and `encryption_for` raise."""
    bucket = refuse_early(ctx, bucket_name, key, ANY, size_bytes=0, asked=asked)
    about = replace(about, encryption=encryption_for(ctx, bucket, key, asked))

    def begin(writing: Writing) -> ObjectUpload:
        authorize_new(writing, key, about)
        made = ObjectUpload(id=secrets.token_urlsafe(32), bucket_id=writing.bucket.id, key=key, owner_id=ctx.principal.user_id, **about.columns())
        writing.db.add(made)
        writing.db.flush()
        return made

    return write(ctx, bucket, WRITE, begin)


def upload_named(session: Session, bucket_name: str, upload_id: str) -> Named:
    """An upload as its id alone names it, of an unknown key where there is none."""
    found = session.get(ObjectUpload, upload_id) if is_storable(upload_id) else None
    return Named(bucket_name, found.key if found is not None else "", upload_id)


def upload_find(ctx: Context, named: Named, *, size_bytes: int = 0, called: str = "PutObject") -> tuple[BucketFacts, ObjectUpload]:
    """An upload that has not ended, to which the caller may send so many bytes. Raises NoSuchUpload, Forbidden or QuotaExceeded."""
    bucket = bucket_named(ctx.db, named.bucket)
    found = _found(ctx.db, bucket, named)
    show_upload(ctx, found)
    try:
        authorize_object(ctx, bucket, WRITE, named.key, owner_id=found.owner_id, tags=found.tags, called=called)
    except Forbidden as error:
        note_refusal(ctx, bucket, WRITE, named.key, error)
        raise
    if found.completed_at is not None:
        raise _no_such(named)
    refuse_beyond_quota(ctx.db, bucket, size_bytes)
    return bucket, found


def _found(session: Session, bucket: BucketFacts, named: Named) -> ObjectUpload:
    found = session.get(ObjectUpload, named.id, populate_existing=True) if is_storable(named.id) else None
    if found is None or found.bucket_id != bucket.id or found.key != named.key:
        raise _no_such(named)
    return found


def _no_such(named: Named) -> NoSuchUpload:
    return NoSuchUpload(f"There is no upload {named.id[:64]} of {named.key[:200]}; it may be complete, or was given up.")


def part_put(ctx: Context, named: Named, number: int, content: Content) -> ObjectPart:
    """Keep a part whose bytes are on the disk, in place of one of its number. Raises NoSuchUpload, Forbidden or QuotaExceeded."""

    def keep(writing: Writing) -> ObjectPart:
        found = _writable(writing, named)
        before = writing.db.get(ObjectPart, (found.id, number))
        if before is not None:
            writing.change.size_bytes -= before.size_bytes
            versions.discard(writing.db, [before.blob])
            writing.db.delete(before)
            writing.db.flush()
        blob = content.blob
        part = ObjectPart(
            upload_id=found.id, number=number, size_bytes=blob.size_bytes, etag=content.etag, blob=blob.id, seal=blob.seal, is_encrypted=bool(found.encryption),
            checksum_algorithm=content.checksum_algorithm, checksum=content.checksum,
        )  # fmt: skip
        writing.db.add(part)
        writing.db.flush()
        writing.change.size_bytes += part.size_bytes
        return part

    return write(ctx, bucket_named(ctx.db, named.bucket), WRITE, keep)


def _writable(writing: Writing, named: Named, called: str = "PutObject") -> ObjectUpload:
    found = _found(writing.db, writing.bucket, named)
    show_upload(writing.ctx, found)
    writing.authorize(WRITE, named.key, owner_id=found.owner_id, tags=found.tags, called=called)
    if found.completed_at is not None:
        raise _no_such(named)
    return found


@dataclass(frozen=True, slots=True)
class Completed:
    """What an upload became."""

    version: Version | None
    bucket: BucketFacts
    etag: str


def upload_complete(
    ctx: Context, named: Named, wanted: Sequence[PartNamed], whole_of: WholeOf, *, condition: Condition = ANY
) -> Completed:  # fmt: skip
    """Make the object of the named parts; the others go. Asked again it answers like the first time.

    Raises NoSuchUpload, Forbidden, InvalidPart, InvalidPartOrder, PartTooSmall, PreconditionFailed, and what `whole_of` raises.
    """

    def finish(writing: Writing) -> Completed:
        found = _found(writing.db, writing.bucket, named)
        show_upload(writing.ctx, found)
        writing.authorize(WRITE, named.key, owner_id=found.owner_id, tags=found.tags, called="PutObject")
        if not wanted or any(one.number >= other.number for one, other in pairwise(wanted)):
            raise InvalidPartOrder("Name at least one part, each of them once, in ascending order.")
        etag = _etag_of(wanted)
        if found.completed_at is not None and found.etag == etag and found.sequence is not None:
            return Completed(version_at(writing.db, found.bucket_id, found.key, found.sequence), writing.bucket, etag)
        found = _writable(writing, named)
        parts = parts_of(writing.db, found.id)
        used = _chosen(parts, wanted)
        whole = whole_of(found, used)
        numbers = {part.number for part in used}
        versions.discard(writing.db, [part.blob for part in parts if part.number not in numbers])
        writing.db.execute(delete(ObjectPart).where(ObjectPart.upload_id == found.id, ObjectPart.number.not_in(numbers)))
        # They were counted as they came; now the object is.
        writing.change.size_bytes -= sum(part.size_bytes for part in parts)
        size = sum(part.size_bytes for part in used)
        about = About(found.headers, found.user_metadata, found.tags, found.storage_class, found.acl, whole.algorithm, whole.kind,
                      Lock(found.lock_mode, found.retain_until, found.legal_hold), _pairs(found.grants), encryption_of(found))  # fmt: skip
        row = put(
            writing,
            named.key,
            Content(etag, size_bytes=size, upload_id=found.id, checksum=whole.checksum, how="CompleteMultipartUpload"),
            about,
            condition,
        )
        found.completed_at, found.sequence, found.etag = now(), row.sequence, etag
        writing.db.flush()
        return Completed(row, writing.bucket, etag)

    return write(ctx, bucket_named(ctx.db, named.bucket), WRITE, finish)


def _pairs(grants: Sequence[Sequence[str]] | None) -> list[tuple[str, str]] | None:
    return None if grants is None else [(each[0], each[1]) for each in grants]


def _etag_of(wanted: Sequence[PartNamed]) -> str:
    try:
        digests = b"".join(bytes.fromhex(each.etag) for each in wanted)
    except ValueError:
        raise InvalidPart("The entity tag of a part is not one that was given for it.") from None
    return f"{hashlib.md5(digests, usedforsecurity=False).hexdigest()}-{len(wanted)}"


def _chosen(parts: Sequence[ObjectPart], wanted: Sequence[PartNamed]) -> list[ObjectPart]:
    there = {part.number: part for part in parts}
    used = []
    for each in wanted:
        part = there.get(each.number)
        if part is None or part.etag != each.etag or (each.checksum and part.checksum != each.checksum):
            raise InvalidPart(f"Part {each.number} is not there, or is another one.", details={"part_number": each.number})
        used.append(part)
    small = next((part for part in used[:-1] if part.size_bytes < SMALLEST_PART), None)
    if small is not None:
        raise PartTooSmall(
            f"Part {small.number} has {small.size_bytes:,} bytes; all but the last need {SMALLEST_PART:,}.",
            details={"part_number": small.number, "size_bytes": small.size_bytes, "etag": small.etag},
        )
    return used


def upload_abort(ctx: Context, named: Named) -> None:
    """Give an upload up; its parts go. Raises NoSuchUpload or Forbidden."""
    write(ctx, bucket_named(ctx.db, named.bucket), WRITE, lambda writing: give_up(writing, _writable(writing, named, "AbortMultipartUpload")))


def give_up(writing: Writing, upload: ObjectUpload) -> None:
    """Give an upload up within a transaction."""
    size = writing.db.scalar(select(func.sum(ObjectPart.size_bytes)).where(ObjectPart.upload_id == upload.id)) or 0
    writing.change.size_bytes -= int(size)
    versions.discard_parts(writing.db, upload.id)
    writing.db.delete(upload)
    writing.db.flush()


def parts_listed(ctx: Context, named: Named, *, after: int, limit: int) -> tuple[ObjectUpload, Sequence[ObjectPart], bool]:
    """(upload, its parts after a number, whether there are more)."""
    _, found = upload_find(ctx, named, called="ListMultipartUploadParts")
    query = select(ObjectPart).where(ObjectPart.upload_id == found.id, ObjectPart.number > after).order_by(ObjectPart.number)
    rows = ctx.db.scalars(query.limit(limit + 1)).all()
    return found, rows[:limit], len(rows) > limit
