"""Objects: written whole, found, removed. Bytes are in blobs; what is said of them in rows."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from portal.engines.object_ports import EMPTY, Blob
from portal.kernel.context import Context
from portal.kernel.errors import Forbidden, PortalError, PreconditionFailed
from portal.storage import versions
from portal.storage.access import (
    BYPASS,
    DELETE,
    HOLD,
    LIST,
    PUBLISH,
    READ,
    READ_ACL,
    RETAIN,
    WRITE,
    authorize_object,
    check_key,
    check_new_key,
    decide_object,
    note_refusal,
)
from portal.storage.asked_encryption import KIND, show_asked
from portal.storage.encryption import NOTHING, PLAIN, Asked, Encryption
from portal.storage.errors import IsMarker, NoSuchKey, NoSuchVersion
from portal.storage.facts import BucketFacts, Version, bucket_named, newest, version_of
from portal.storage.grants import HARMLESS, Grant, acl_columns, refuse_acl
from portal.storage.locks import FREE, Lock, is_retained, lock_of_new, refuse_locked, refuse_without_lock
from portal.storage.notifications import note
from portal.storage.object_models import ObjectPart
from portal.storage.replication import PENDING, destinations_of, replicate
from portal.storage.usage import refuse_beyond_quota
from portal.storage.writing import Writing, write


@dataclass(frozen=True, slots=True)
class Content:
    """Bytes that have arrived and are on the disk, or the upload whose parts they are."""

    etag: str
    blob: Blob = EMPTY
    size_bytes: int = 0
    upload_id: str | None = None
    checksum_algorithm: str = ""
    checksum: str = ""
    # How they came: Put, Post, Copy or CompleteMultipartUpload.
    how: str = "Put"


@dataclass(frozen=True, slots=True)
class About:
    """What is said of an object by whoever writes it. The checksum's algorithm is empty where none was asked for."""

    headers: Mapping[str, str] = field(default_factory=dict)
    user_metadata: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    storage_class: str = "STANDARD"
    acl: str = "private"
    checksum_algorithm: str = ""
    checksum_type: str = ""
    lock: Lock = FREE
    # In place of what `acl` says.
    grants: Sequence[Grant] | None = None
    encryption: Encryption = PLAIN

    def columns(self) -> dict[str, Any]:
        """As a row keeps it."""
        return {
            "headers": dict(self.headers), "user_metadata": dict(self.user_metadata), "tags": dict(self.tags), "storage_class": self.storage_class,
            "acl": self.acl, "grants": self.grants, "checksum_algorithm": self.checksum_algorithm, "checksum_type": self.checksum_type, **self.lock.columns(),
            **self.encryption.columns(),
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Condition:
    """What must hold of the present object for it to be written over: an entity tag or `*`, each without quotation marks."""

    match: str = ""
    none_match: str = ""

    def check(self, present: Version | None) -> None:
        """Raise PreconditionFailed, or NoSuchKey where the object that must be there is not."""
        there = present if present is not None and not present.is_marker else None
        if self.match and there is None:
            raise NoSuchKey("There is no object of this key whose entity tag could match.")
        if there is not None and self.match and self.match not in {"*", there.etag}:
            raise PreconditionFailed("The object was changed meanwhile.", details={"condition": "If-Match"})
        if there is not None and self.none_match in {"*", there.etag}:
            raise PreconditionFailed("There is an object under this key already.", details={"condition": "If-None-Match"})


ANY = Condition()
# What is part of an object like its bytes.
DESCRIPTION = frozenset({"headers", "user_metadata"})
# Bytes that are taken without a look at who sends them where.
SMALL = 1 << 20
# So many are deleted in one transaction.
TOGETHER = 250
# So often an object is looked for that is written over again and again meanwhile; whoever reads it then finds that it is not whole.
LOOKS = 5


def refuse_early(
    ctx: Context, bucket_name: str, key: str, condition: Condition, *, size_bytes: int | None, asked: Asked = NOTHING, encrypts: bool = False
) -> BucketFacts:  # fmt: skip
    """Raise what a write would be refused with, as far as that is known before the bytes arrive; the write itself asks again."""
    bucket = bucket_named(ctx.db, bucket_name)
    check_new_key(key)
    show_asked(ctx, bucket, asked, encrypts=encrypts)
    if size_bytes is not None and size_bytes <= SMALL and ctx.inputs[KIND] == "none":
        # So little is received sooner than it is refused. A key is used for nobody who may not write.
        return bucket
    latest = newest(ctx.db, bucket.id, key)
    try:
        authorize_object(
            ctx,
            bucket,
            WRITE,
            key,
            owner_id=latest.owner_id if latest else ctx.principal.user_id,
            tags=latest.tags if latest else None,
            called="PutObject",
        )
    except Forbidden as error:
        note_refusal(ctx, bucket, WRITE, key, error)
        raise
    condition.check(latest)
    refuse_beyond_quota(ctx.db, bucket, size_bytes or 0)
    return bucket


def object_put(
    ctx: Context, bucket: BucketFacts, key: str, content: Content, about: About, *, condition: Condition = ANY
) -> tuple[Version, BucketFacts]:  # fmt: skip
    """Write an object whose bytes are on the disk. Raises Forbidden, PreconditionFailed, QuotaExceeded, NoSuchBucket and what `check_key` raises."""
    check_new_key(key)
    return write(ctx, bucket, WRITE, lambda writing: (put(writing, key, content, about, condition), writing.bucket))


def authorize_new(writing: Writing, key: str, about: About, latest: Version | None = None) -> None:
    """Raise Forbidden unless the caller may write such an object, NoObjectLock or AclUnsupported where no object of the bucket is such a one."""
    also = {PUBLISH: about.grants is not None or about.acl not in HARMLESS, RETAIN: bool(about.lock.mode), HOLD: about.lock.hold is not None}
    owner_id, tags = (latest.owner_id, latest.tags) if latest else (writing.ctx.principal.user_id, about.tags)
    for action in (WRITE, *(action for action, is_needed in also.items() if is_needed)):
        writing.authorize(action, key, owner_id=owner_id, tags=tags, called="PutObject" if action == WRITE else "")
    if about.tags:
        writing.authorize(WRITE, key, owner_id=owner_id, tags=tags, called="PutObjectTagging")
    refuse_acl(writing.bucket, about.acl, about.grants)
    if about.lock.is_said:
        refuse_without_lock(writing.bucket)


def put(writing: Writing, key: str, content: Content, about: About, condition: Condition) -> Version:
    """Write a version within a transaction."""
    latest = newest(writing.db, writing.bucket.id, key)
    authorize_new(writing, key, about, latest)
    condition.check(latest)
    row = versions.add(
        writing.db, writing.change, latest, writing.bucket.versioning,
        {"bucket_id": writing.bucket.id, "key": key, "size_bytes": content.size_bytes or content.blob.size_bytes, "etag": content.etag,
         "blob": content.blob.id, "seal": content.blob.seal, "upload_id": content.upload_id, "checksum": content.checksum,
         "replication": PENDING if destinations_of(writing.bucket, key, about.tags) else "", **about.columns(),
         **acl_columns(writing.db, writing.bucket, about.acl, about.grants, writing.ctx.principal.user_id), **lock_of_new(writing.bucket, about.lock).columns()},
    )  # fmt: skip
    replicate(writing.ctx, writing.bucket, row)
    note(writing.ctx, writing.bucket, f"ObjectCreated:{content.how}", row)
    writing.tell(WRITE, key, {"size_bytes": row.size_bytes, "etag": row.etag, "version_id": row.version_id})
    return row


# What is said of a version, after a look at it; it may refuse. The audit log is told, whatever the bucket records.
Say = Callable[[Writing, Version], Mapping[str, Any]]


def object_say(
    ctx: Context, bucket_name: str, key: str, version_id: str, action: str, *, say: Say | None = None, called: str = "", **said: Any
) -> tuple[BucketFacts, Version]:  # fmt: skip
    """Change what is said of a version (tags, acl), which needs the permission of an action. Raises NoSuchKey, NoSuchVersion, IsMarker or Forbidden."""
    check_key(key)

    def change(writing: Writing) -> tuple[BucketFacts, Version]:
        bucket = writing.bucket
        row = version_of(writing.db, bucket.id, key, version_id) if version_id else newest(writing.db, bucket.id, key)
        owner_id, tags, grants = (row.owner_id, row.tags, row.granted) if row else (None, None, ())
        writing.authorize(action, key, owner_id=owner_id, tags=tags, grants=grants, called=called)
        if row is None or row.is_marker:
            raise _not_there(bucket, key, version_id, row)
        if DESCRIPTION & said.keys():
            refuse_locked(row)
        values = dict(say(writing, row)) if say is not None else said
        if "acl" in said:
            # A word about who is let in goes by the rules of the bucket.
            values = {**said, **acl_columns(writing.db, bucket, said["acl"], None, row.owner_id)}
        before, after = (_told(each) for each in ({name: getattr(row, name) for name in values}, values))
        writing.tell(action, key, {"version_id": row.version_id, "before": before, "after": after}, always=say is not None)
        changed = versions.say(writing.db, row, **values)
        replicate(writing.ctx, bucket, changed)
        if "tags" in values:
            note(writing.ctx, bucket, f"ObjectTagging:{'Put' if values['tags'] else 'Delete'}", changed)
        if "acl" in values:
            note(writing.ctx, bucket, "ObjectAcl:Put", changed)
        return bucket, changed

    return write(ctx, bucket_named(ctx.db, bucket_name), action, change)


def object_set_acl(ctx: Context, where: tuple[str, str, str], acl: str, grants: Sequence[Grant] | None = None) -> tuple[BucketFacts, Version]:
    """Say what others may do with the version at a (bucket, key, version). Raises AclUnsupported, Forbidden and what `object_say` raises."""

    def say(writing: Writing, row: Version) -> Mapping[str, Any]:
        return acl_columns(writing.db, writing.bucket, acl, grants, row.owner_id)

    return object_say(ctx, *where, PUBLISH, say=say)


def _told(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value.isoformat() if isinstance(value, datetime) else value for name, value in values.items()}


def _not_there(bucket: BucketFacts, key: str, version_id: str, row: Version | None) -> PortalError:
    """Why a version cannot be read or changed: there is none, or it is the mark of a deletion."""
    if row is None:
        return NoSuchVersion(f"{key[:200]} has no such version.") if version_id else NoSuchKey(f"There is no {key[:200]} in {bucket.name}.")
    about = {"version_id": row.version_id, "modified_at": row.modified_at}
    return IsMarker("The version is the mark of a deletion.", details=about) if version_id else NoSuchKey("The object was deleted.", details=about)


@dataclass(frozen=True, slots=True)
class Deleted:
    """What a deletion did: the version that went, or the mark that was set."""

    key: str
    version_id: str = ""
    is_marker: bool = False


def object_delete(ctx: Context, bucket_name: str, key: str, version_id: str = "", condition: Condition = ANY, *, bypass: bool = False) -> Deleted:
    """Delete an object: one version for good, or the object as a whole, of which a bucket with versions keeps them. What is not there is no error.

    With `bypass`, a version goes although a retention that gives way keeps it, for who may do that. Raises ObjectLocked, and what `check_key` raises.
    """
    check_key(key)
    return write(ctx, bucket_named(ctx.db, bucket_name), DELETE, lambda writing: remove(writing, key, version_id, condition, bypass=bypass))


def remove(
    writing: Writing, key: str, version_id: str, condition: Condition = ANY, *, bypass: bool = False, event: str = "ObjectRemoved"
) -> Deleted:  # fmt: skip
    """Delete within a transaction; `event` is what those who are told of it are told."""
    bucket = writing.bucket
    latest = newest(writing.db, bucket.id, key)
    found = version_of(writing.db, bucket.id, key, version_id) if version_id else latest
    called = "DeleteObjectVersion" if version_id else "DeleteObject"
    owner_id, tags = (found.owner_id, found.tags) if found else (writing.ctx.principal.user_id, None)
    writing.authorize(DELETE, key, owner_id=owner_id, tags=tags, called=called)
    if condition.match and latest is not None:
        condition.check(latest)
    if version_id:
        if found is None:
            return Deleted(key, version_id)
        gone = Deleted(key, found.version_id, found.is_marker)
        is_passed = bypass and is_retained(found)
        if is_passed:
            writing.authorize(BYPASS, key, owner_id=found.owner_id, tags=found.tags)
        versions.take_away(writing.db, writing.change, found, bypass=is_passed)
        if is_passed:
            writing.tell(BYPASS, key, {"version_id": gone.version_id, "mode": found.lock_mode, "retain_until": str(found.retain_until)}, always=True)
        note(writing.ctx, bucket, f"{event}:Delete", found)
    elif bucket.versioning == "off":
        if found is None:
            return Deleted(key)
        gone = Deleted(key)
        versions.take_away(writing.db, writing.change, found)
        note(writing.ctx, bucket, f"{event}:Delete", found)
    else:
        marker = {"bucket_id": bucket.id, "key": key, "is_marker": True, "owner_id": writing.ctx.principal.user_id,
                  "replication": PENDING if destinations_of(bucket, key, {}, is_marker=True) else ""}  # fmt: skip
        marked = versions.add(writing.db, writing.change, latest, bucket.versioning, marker)
        gone = Deleted(key, marked.version_id, is_marker=True)
        replicate(writing.ctx, bucket, marked)
        note(writing.ctx, bucket, f"{event}:DeleteMarkerCreated", marked)
    writing.tell(DELETE, key, {"version_id": gone.version_id, "is_marker": gone.is_marker})
    return gone


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be deleted, of several."""

    key: str
    version_id: str = ""
    condition: Condition = ANY


def objects_delete(ctx: Context, bucket_name: str, wanted: Sequence[Wanted], *, bypass: bool = False) -> list[Deleted | PortalError]:
    """Delete several objects or versions, each of which succeeds or is refused on its own; some at a time, so that others can write meanwhile."""
    done: list[Deleted | PortalError] = []
    bucket = bucket_named(ctx.db, bucket_name)
    for place in range(0, len(wanted), TOGETHER):
        some = wanted[place : place + TOGETHER]
        done += write(ctx, bucket, DELETE, lambda writing, some=some: [_remove_one(writing, each, bypass=bypass) for each in some])  # type: ignore[misc]
    return done


def _remove_one(writing: Writing, each: Wanted, *, bypass: bool) -> Deleted | PortalError:
    """Whatever refuses does so before anything is written."""
    try:
        check_key(each.key)
        return remove(writing, each.key, each.version_id, each.condition, bypass=bypass)
    except PortalError as error:
        if isinstance(error, Forbidden):
            writing.tell(DELETE, each.key, {"reason": error.message}, status="denied")
        return error


@dataclass(frozen=True, slots=True)
class Found:
    """A version of an object that may be read, and the parts that it consists of, if it was uploaded in parts."""

    bucket: BucketFacts
    version: Version
    parts: Sequence[ObjectPart] = ()

    def pieces(self, key: bytes | None = None) -> list[Blob]:
        """The blobs whose bytes follow each other; what is encrypted is read with its key."""
        version, is_encrypted = self.version, bool(self.version.encryption)
        if version.upload_id is None:
            return [Blob(version.blob, version.size_bytes, version.seal, is_encrypted, key)]
        return [Blob(part.blob, part.size_bytes, part.seal, is_encrypted, key) for part in self.parts]

    @property
    def first(self) -> str:
        """The blob that is held by whoever reads them one after the other."""
        return next((blob.id for blob in self.pieces() if blob.id), "")


def object_find(ctx: Context, bucket_name: str, key: str, version_id: str = "", action: str = READ, *, called: str = "") -> Found:
    """The object under a key, or one of its versions, if the caller may read it. Raises NoSuchBucket, NoSuchKey, NoSuchVersion, IsMarker or Forbidden.

    `called` is what S3 calls the action, where it is not the reading of bytes.
    """
    bucket = bucket_named(ctx.db, bucket_name)
    check_key(key)
    for _ in range(LOOKS):
        row = version_of(ctx.db, bucket.id, key, version_id) if version_id else newest(ctx.db, bucket.id, key)
        try:
            _authorize_found(ctx, bucket, key, row, action, called=called or called_by(action, version_id))
        except Forbidden as error:
            note_refusal(ctx, bucket, action, key, error)
            raise
        if row is None or row.is_marker:
            raise _not_there(bucket, key, version_id, row)
        found = Found(bucket, row, parts_of(ctx.db, row.upload_id) if row.upload_id is not None else ())
        if sum(part.size_bytes for part in found.parts) == (row.size_bytes if row.upload_id is not None else 0):
            break
        # Between the two statements it was written over, and its parts went with it.
    return found


def called_by(action: str, version_id: str) -> str:
    """What S3 calls an action on the newest version, or on one that is named."""
    kind = "ObjectVersion" if version_id else "Object"
    return {READ: f"Get{kind}", READ_ACL: f"Get{kind}Acl", WRITE: "PutObject", DELETE: f"Delete{kind}"}.get(action, "")


def _authorize_found(ctx: Context, bucket: BucketFacts, key: str, row: Version | None, action: str, *, called: str) -> None:
    if row is not None:
        authorize_object(ctx, bucket, action, key, owner_id=row.owner_id, tags=row.tags, grants=row.granted, called=called)
    elif not decide_object(ctx, bucket, LIST, key).allowed:
        # Whoever may not list learns from a refusal nothing that a listing would tell.
        authorize_object(ctx, bucket, action, key, called=called)
        raise Forbidden(f"There is no {key[:200]} that you may read.", details={"action": action})


def parts_of(session: Session, upload_id: str) -> Sequence[ObjectPart]:
    """The parts of an upload, in order, as they are now: they stay so, whatever becomes of the session."""
    parts = session.scalars(select(ObjectPart).where(ObjectPart.upload_id == upload_id).order_by(ObjectPart.number)).all()
    for part in parts:
        session.expunge(part)
    return parts
