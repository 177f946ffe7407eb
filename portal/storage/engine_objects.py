"""Objects that an external engine keeps, for API and console: IAM decides here, then the engine is asked with the key of the bucket's project.

No row says anything of them. Who wrote an object is not known either: a statement that depends on it applies to new keys alone.
"""

import base64
import binascii
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from portal.engines.object_engine_ports import Buckets, EngineObject, ObjectEngine, ObjectRefused, Sent
from portal.engines.ports import EngineError
from portal.kernel import audit
from portal.kernel.context import Context
from portal.kernel.db import transaction
from portal.kernel.errors import Conflict, Forbidden, InvalidRequest, PortalError, QuotaExceeded, TooLarge, Unavailable
from portal.storage.access import DELETE, PUBLISH, READ, WRITE, authorize_object, check_key, check_new_key, decide_object, note_refusal, subject_of
from portal.storage.access import LIST as LISTS
from portal.storage.asked_encryption import show_asked
from portal.storage.encryption import NOTHING
from portal.storage.engine_steps import refuse_on_engine
from portal.storage.engine_wanted import key_of, refuse_unmade
from portal.storage.errors import (
    InvalidKey,
    InvalidPart,
    InvalidPartOrder,
    IsMarker,
    NoSuchBucket,
    NoSuchKey,
    NoSuchUpload,
    NoSuchVersion,
    PartTooSmall,
)
from portal.storage.facts import BucketFacts, Version, bucket_named
from portal.storage.grants import grants_of, refuse_acl
from portal.storage.listing import Listed, Listing
from portal.storage.objects import ANY, About, Condition, Deleted, Found, Wanted, called_by
from portal.storage.receiving import MAX_OBJECT
from portal.storage.uploads import Named, PartNamed
from portal.storage.usage import DIMENSION, refuse_beyond_quota

KINDS: Mapping[str, type[PortalError]] = {
    "NoSuchBucket": NoSuchBucket, "NoSuchKey": NoSuchKey, "NoSuchVersion": NoSuchVersion, "MethodNotAllowed": IsMarker, "NoSuchUpload": NoSuchUpload,
    "InvalidPart": InvalidPart, "InvalidPartOrder": InvalidPartOrder, "EntityTooSmall": PartTooSmall, "PreconditionFailed": Conflict,
    "EntityTooLarge": TooLarge, "BadDigest": InvalidRequest, "InvalidDigest": InvalidRequest, "IncompleteBody": InvalidRequest,
    "InvalidArgument": InvalidRequest, "InvalidTag": InvalidRequest, "KeyTooLongError": InvalidRequest,
    "InvalidURI": InvalidKey,
}  # fmt: skip
SAID: Mapping[str, str] = {
    "NoSuchBucket": "The engine for objects does not have this bucket yet, or not any more.",
    "BadDigest": "What arrived is not what Content-MD5 says. Send it again.",
    "InvalidDigest": "Content-MD5 must be the MD5 digest in base64.",
    "EntityTooSmall": "A part other than the last has less than 5 MiB.",
    "InvalidPart": "A part is not there, or is another one.",
    "InvalidPartOrder": "Name at least one part, each of them once, in ascending order.",
    "NoSuchUpload": "There is no such upload; it may be complete, or was given up.",
    "PreconditionFailed": "The object was changed meanwhile. Try again.",
    "MethodNotAllowed": "The version is the mark of a deletion.",
    "InvalidURI": "The engine for objects takes no such key.",
}


@dataclass(frozen=True, slots=True)
class EngineVersion(Version):
    """A version whose name the engine gave."""

    given_id: str = "null"

    @property
    def version_id(self) -> str:
        """How the engine calls it."""
        return self.given_id


class EngineObjects:
    """An `ObjectService` on an external engine."""

    def __init__(self, engine: ObjectEngine) -> None:
        """It keeps nothing of its own."""
        self._engine = engine

    def _of(self, ctx: Context, bucket: BucketFacts) -> Buckets:
        refuse_unmade(ctx.db, bucket)
        # Nobody is to wait for the engine with the database in hand.
        ctx.db.rollback()
        with _refusals():
            return self._engine.buckets(key_of(self._engine, ctx.settings, bucket))

    # -- reading -----------------------------------------------------------------------------------------------------------------------------

    def find(self, ctx: Context, bucket: BucketFacts, key: str, version_id: str = "", action: str = READ) -> Found:
        """As the engine describes it."""
        check_key(key)
        present, problem = self._look(ctx, bucket, key, version_id)
        try:
            _authorize_found(ctx, bucket, key, present, action, called=called_by(action, version_id))
        except Forbidden as error:
            note_refusal(ctx, bucket, action, key, error)
            raise
        if present is None:
            raise problem or NoSuchKey(f"There is no {key[:200]} in {bucket.name}.")
        return Found(bucket, version_of(bucket, present))

    def _look(self, ctx: Context, bucket: BucketFacts, key: str, version_id: str = "") -> tuple[EngineObject | None, PortalError | None]:
        """(the object, None), or (None, what to say of its absence)."""
        try:
            with _refusals():
                return self._of(ctx, bucket).find(bucket.name, key, version_id), None
        except (NoSuchKey, NoSuchVersion) as error:
            what = f"{key[:200]} has no such version." if version_id else f"There is no {key[:200]} in {bucket.name}."
            return None, type(error)(what)
        except IsMarker as error:
            return None, error

    def open(self, ctx: Context, found: Found, first: int, length: int) -> Iterator[bytes]:
        """From the engine, as it arrives."""
        with _refusals():
            return self._of(ctx, found.bucket).open(found.bucket.name, object_of(found.version), first, length)

    def listed(self, ctx: Context, bucket: BucketFacts, asked: Listing) -> Listed:
        """One page of the engine's."""
        with _refusals():
            page = self._of(ctx, bucket).list(bucket.name, asked.prefix, delimiter=asked.delimiter, after=asked.after, limit=asked.limit)
        last = max([*(each.key for each in page.objects), *page.prefixes], key=str.encode, default="")
        return Listed([version_of(bucket, each) for each in page.objects], list(page.prefixes), page.is_truncated, last)

    def versions(self, ctx: Context, bucket: BucketFacts, key: str) -> Sequence[Any]:
        """The engine's."""
        with _refusals():
            return [version_of(bucket, each) for each in self._of(ctx, bucket).versions(bucket.name, key).objects if each.key == key]

    # -- writing -----------------------------------------------------------------------------------------------------------------------------

    def _authorize(
        self, ctx: Context, bucket: BucketFacts, key: str, actions: Sequence[str], tags: Mapping[str, str] | None = None, *, called: str = ""
    ) -> None:  # fmt: skip
        (check_new_key if WRITE in actions else check_key)(key)
        # The portal's keys encrypt nothing there.
        show_asked(ctx, bucket, NOTHING)
        present, _ = self._look(ctx, bucket, key)
        for action in actions:
            try:
                owner_id = ctx.principal.user_id if present is None else None
                authorize_object(ctx, bucket, action, key, owner_id=owner_id, tags=present.tags if present is not None else tags, called=called)
            except Forbidden as error:
                note_refusal(ctx, bucket, action, key, error)
                raise

    def authorize(self, ctx: Context, bucket: BucketFacts, key: str, action: str) -> None:
        """By what the engine says of it. Whose it is nobody knows: what one may do with one's own is to write it for the first time."""
        check_key(key)
        present, _ = self._look(ctx, bucket, key)
        owner_id = ctx.principal.user_id if present is None and action == WRITE else None
        tags = present.tags if present is not None else None
        authorize_object(ctx, bucket, action, key, owner_id=owner_id, tags=tags, called=called_by(action, ""))

    def receive(
        self, ctx: Context, bucket: BucketFacts, key: str, about: About, read: Callable[[int], bytes], *, length: int | None, md5: str = "",
        condition: Condition = ANY,
    ) -> Version:  # fmt: skip
        """Through to the engine, which needs to know the length beforehand."""
        _refuse_condition(condition)
        sent = _sent(read, length, md5)
        self._authorize(ctx, bucket, key, [WRITE, *([PUBLISH] if about.acl != "private" else [])], about.tags)
        refuse_beyond_quota(ctx.db, bucket, sent.size_bytes)
        with _refusals():
            made = self._of(ctx, bucket).put(bucket.name, key, sent, _about(key, about))
        return self._told(ctx, bucket, WRITE, made)

    def say(self, ctx: Context, bucket: BucketFacts, key: str, action: str, **said: Any) -> Version:
        """Tags and access at once; type and metadata make a version of their own, since an engine changes them only by a copy."""
        self._authorize(ctx, bucket, key, [action])
        with _refusals():
            buckets = self._of(ctx, bucket)
            present = buckets.find(bucket.name, key)
            if "headers" in said:
                said["headers"] = {**present.headers, **said["headers"]}
            made = buckets.say(bucket.name, present, replace(present, **said))
        return self._told(ctx, bucket, action, made)

    def set_acl(self, ctx: Context, bucket: BucketFacts, key: str, acl: str) -> Version:
        """One of two words: everybody may read it, or nobody else."""
        refuse_acl(bucket, acl, None)
        return self.say(ctx, bucket, key, PUBLISH, is_public=acl != "private")

    def copy(self, ctx: Context, found: Found, to: BucketFacts, key: str, condition: Condition = ANY) -> Version:
        """Within the engine; between projects, by the target's account, to whom the source's policy says no."""
        _refuse_condition(condition)
        about = replace(object_of(found.version), key=key, is_public=False)
        self._authorize(ctx, to, key, [WRITE], about.tags)
        refuse_beyond_quota(ctx.db, to, about.size_bytes)
        with _refusals():
            if to.project_id == found.bucket.project_id:
                made = self._of(ctx, to).copy(found.bucket.name, object_of(found.version), to.name, about)
            else:
                pieces = _Reader(self.open(ctx, found, 0, about.size_bytes))
                made = self._of(ctx, to).put(to.name, key, Sent(pieces.read, about.size_bytes), about)
        return self._told(ctx, to, WRITE, made)

    def delete(self, ctx: Context, bucket: BucketFacts, key: str, version_id: str = "", *, bypass: bool = False) -> Deleted:
        """The object, or a version of it."""
        if bypass:
            refuse_on_engine(ctx, "retention")
        self._authorize(ctx, bucket, key, [DELETE], called="DeleteObjectVersion" if version_id else "DeleteObject")
        with _refusals():
            gone = self._of(ctx, bucket).remove(bucket.name, key, version_id)
        self._told(ctx, bucket, DELETE, gone)
        return Deleted(key, gone.version_id, gone.is_marker)

    def delete_many(self, ctx: Context, bucket: BucketFacts, wanted: Sequence[Wanted]) -> list[Deleted | PortalError]:
        """One after the other."""
        done: list[Deleted | PortalError] = []
        for each in wanted:
            try:
                done.append(self.delete(ctx, bucket, each.key, each.version_id))
            except PortalError as error:
                done.append(error)
        return done

    def _told(self, ctx: Context, bucket: BucketFacts, action: str, made: EngineObject) -> Version:
        """Written down where the bucket records data events. What comes to the engine directly is in the engine's own log."""
        if bucket.data_events:
            details = {"size_bytes": made.size_bytes, "etag": made.etag, "version_id": made.version_id}
            with transaction(ctx.db):
                audit.record(ctx, action, subject_of(bucket, made.key), details=details)
        return version_of(bucket, made)

    # -- uploads in parts --------------------------------------------------------------------------------------------------------------------

    def upload_begin(self, ctx: Context, bucket: BucketFacts, key: str, about: About) -> str:
        """The engine's id, with the key, without which the engine does not find it."""
        self._authorize(ctx, bucket, key, [WRITE, *([PUBLISH] if about.acl != "private" else [])], about.tags)
        with _refusals():
            given = self._of(ctx, bucket).begin_upload(bucket.name, _about(key, about))
        return f"{base64.urlsafe_b64encode(key.encode()).decode().rstrip('=')}.{given}"

    def upload_named(self, ctx: Context, bucket: BucketFacts, upload_id: str) -> Named:
        """What the id says."""
        del ctx
        name, _, given = upload_id.partition(".")
        try:
            key = base64.urlsafe_b64decode(name + "=" * (-len(name) % 4)).decode()
        except (binascii.Error, ValueError):
            key = ""
        return Named(bucket.name, key, given)

    def _upload(self, ctx: Context, named: Named) -> BucketFacts:
        bucket = bucket_named(ctx.db, named.bucket)
        if not named.key or not named.id:
            raise NoSuchUpload(SAID["NoSuchUpload"])
        self._authorize(ctx, bucket, named.key, [WRITE])
        return bucket

    def part(self, ctx: Context, named: Named, number: int, read: Callable[[int], bytes], *, length: int | None) -> str:
        """Through to the engine."""
        sent, bucket = _sent(read, length, ""), self._upload(ctx, named)
        refuse_beyond_quota(ctx.db, bucket, sent.size_bytes)
        with _refusals():
            return self._of(ctx, bucket).put_part(bucket.name, named.key, named.id, number, sent)

    def complete(self, ctx: Context, named: Named, parts: Sequence[PartNamed], condition: Condition = ANY) -> Version | None:
        """Asked again, it answers like the first time as long as the object is the one that was made."""
        _refuse_condition(condition)
        bucket = self._upload(ctx, named)
        buckets = self._of(ctx, bucket)
        try:
            with _refusals():
                buckets.complete_upload(bucket.name, named.key, named.id, [(part.number, part.etag) for part in parts])
        except NoSuchUpload:
            present, _ = self._look(ctx, bucket, named.key)
            if present is None or present.etag != _etag_of(parts):
                raise
            return version_of(bucket, present)
        with _refusals():
            return self._told(ctx, bucket, WRITE, buckets.find(bucket.name, named.key))

    def abort(self, ctx: Context, named: Named) -> None:
        """Its parts go."""
        bucket = self._upload(ctx, named)
        with _refusals():
            self._of(ctx, bucket).abort_upload(bucket.name, named.key, named.id)


def _refuse_condition(condition: Condition) -> None:
    if condition != ANY:
        raise InvalidRequest("Writes to an external engine for objects (ENGINE_OBJECTS=s3) have no conditions here. Use an S3 client for them.")


def _authorize_found(ctx: Context, bucket: BucketFacts, key: str, present: EngineObject | None, action: str, *, called: str) -> None:
    if present is not None:
        authorize_object(ctx, bucket, action, key, tags=present.tags, grants=grants_of(_acl(present), None), called=called)
    elif not decide_object(ctx, bucket, LISTS, key).allowed:
        # Whoever may not list learns from a refusal nothing that a listing would tell.
        authorize_object(ctx, bucket, action, key, called=called)
        raise Forbidden(f"There is no {key[:200]} that you may read.", details={"action": action})


class _Reader:
    """Pieces, read a few bytes at a time."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces, self._left = pieces, b""

    def read(self, size: int) -> bytes:
        self._left = self._left or next(self._pieces, b"")
        given, self._left = self._left[:size], self._left[size:]
        return given


@contextmanager
def _refusals() -> Iterator[None]:
    """What the engine refuses, as the portal says it."""
    try:
        yield
    except ObjectRefused as error:
        if error.code == "QuotaExceeded":
            raise QuotaExceeded(DIMENSION, limit=0, used=0, requested=1) from error
        kind = KINDS.get(error.code)
        if kind is None:
            raise Unavailable(f"{error.message} An administrator has to look at the engine.") from error
        raise kind(SAID.get(error.code, error.message)) from error
    except EngineError as error:
        raise Unavailable(error.message) from error


def _sent(read: Callable[[int], bytes], length: int | None, md5: str) -> Sent:
    if length is None:
        raise InvalidRequest("This engine for objects needs to know the length beforehand: send Content-Length.")
    if length > MAX_OBJECT:
        raise TooLarge(f"An object that is sent at once has at most {MAX_OBJECT >> 30} GiB; send a larger one in parts.")
    return Sent(read, length, md5)


def _about(key: str, about: About) -> EngineObject:
    return EngineObject(key, "", headers=about.headers, user_metadata=about.user_metadata, tags=about.tags, storage_class=about.storage_class)


def _acl(found: EngineObject) -> str:
    return "public-read" if found.is_public else "private"


def _etag_of(parts: Sequence[PartNamed]) -> str:
    try:
        digests = b"".join(bytes.fromhex(each.etag) for each in parts)
    except ValueError:
        return ""
    return f"{hashlib.md5(digests, usedforsecurity=False).hexdigest()}-{len(parts)}"


def version_of(bucket: BucketFacts, found: EngineObject) -> EngineVersion:
    """As the portal shows versions."""
    return EngineVersion(
        bucket.id, found.key, 0, found.version_id == "null", True, found.is_marker, found.modified_at or datetime.now(UTC), found.size_bytes, found.etag,
        "", "", None, "", None, found.storage_class, _acl(found), "", "", found.headers, found.user_metadata, found.tags,
        "", None, None, None, None, False, None, "", None, None, "", found.version_id,
    )  # fmt: skip


def object_of(version: Version) -> EngineObject:
    """The same, as the engine is told of it."""
    return EngineObject(
        version.key, version.version_id, version.size_bytes, version.etag, version.modified_at, version.storage_class, version.headers,
        version.user_metadata, version.tags, is_public=version.acl != "private",
    )  # fmt: skip
