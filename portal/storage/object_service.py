"""What both engines for objects promise to API and console: the same calls, whoever keeps the bytes. IAM decides in each of them."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from portal.engines.object_ports import BlobStore
from portal.engines.ports import Engines
from portal.kernel.context import Context
from portal.kernel.errors import PortalError, Unavailable
from portal.storage.access import READ, authorize_object
from portal.storage.engine_objects import EngineObjects
from portal.storage.facts import BucketFacts, Version, newest
from portal.storage.listing import Listed, Listing, objects_listed, versions_listed
from portal.storage.objects import (
    ANY,
    About,
    Condition,
    Deleted,
    Found,
    Wanted,
    called_by,
    object_delete,
    object_find,
    object_say,
    object_set_acl,
    objects_delete,
)
from portal.storage.reading import object_open
from portal.storage.receiving import object_copy, object_receive, part_receive
from portal.storage.uploads import Named, PartNamed, Whole, upload_abort, upload_complete, upload_create, upload_named


class ObjectService(Protocol):
    """Objects of buckets. What raises is what the functions of `objects`, `receiving` and `uploads` raise."""

    def find(self, ctx: Context, bucket: BucketFacts, key: str, version_id: str = "", action: str = READ) -> Found:
        """An object that the caller may read."""
        ...

    def authorize(self, ctx: Context, bucket: BucketFacts, key: str, action: str) -> None:
        """Raise Forbidden unless the caller may do an action on the object under a key as it is now, or on a new one."""
        ...

    def open(self, ctx: Context, found: Found, first: int, length: int) -> Iterator[bytes]:
        """Some of its bytes, begun: as many as are asked for, of this version. Raises ObjectChanged and ObjectDamaged."""
        ...

    def receive(
        self, ctx: Context, bucket: BucketFacts, key: str, about: About, read: Callable[[int], bytes], *, length: int | None, md5: str = "",
        condition: Condition = ANY,
    ) -> Version:  # fmt: skip
        """Write the object that a stream brings."""
        ...

    def say(self, ctx: Context, bucket: BucketFacts, key: str, action: str, **said: Any) -> Version:
        """Change what is said of the newest version: some of its headers, user_metadata, tags."""
        ...

    def set_acl(self, ctx: Context, bucket: BucketFacts, key: str, acl: str) -> Version:
        """Say in a word what others may do with the newest version."""
        ...

    def copy(self, ctx: Context, found: Found, to: BucketFacts, key: str, condition: Condition = ANY) -> Version:
        """Copy it, with what is said of it."""
        ...

    def delete(self, ctx: Context, bucket: BucketFacts, key: str, version_id: str = "", *, bypass: bool = False) -> Deleted:
        """Delete an object or a version; with `bypass` although a retention that gives way keeps it."""
        ...

    def delete_many(self, ctx: Context, bucket: BucketFacts, wanted: Sequence[Wanted]) -> list[Deleted | PortalError]:
        """Each succeeds or is refused on its own."""
        ...

    def listed(self, ctx: Context, bucket: BucketFacts, asked: Listing) -> Listed:
        """Present objects; the caller was authorized."""
        ...

    def versions(self, ctx: Context, bucket: BucketFacts, key: str) -> Sequence[Any]:
        """Versions of a key, the newest first; the caller was authorized."""
        ...

    def upload_begin(self, ctx: Context, bucket: BucketFacts, key: str, about: About) -> str:
        """Begin an upload in parts; its id."""
        ...

    def upload_named(self, ctx: Context, bucket: BucketFacts, upload_id: str) -> Named:
        """The upload of an id, as far as the id tells."""
        ...

    def part(self, ctx: Context, named: Named, number: int, read: Callable[[int], bytes], *, length: int | None) -> str:
        """Receive a part; its entity tag."""
        ...

    def complete(self, ctx: Context, named: Named, parts: Sequence[PartNamed], condition: Condition = ANY) -> Version | None:
        """Make the object; None if it was written over since."""
        ...

    def abort(self, ctx: Context, named: Named) -> None:
        """Give the upload up."""
        ...


class LocalObjects:
    """The portal keeps them itself."""

    def __init__(self, blobs: BlobStore | None) -> None:
        """Without a place for bytes only what needs none is done."""
        self._given = blobs

    @property
    def _blobs(self) -> BlobStore:
        if self._given is None:
            raise Unavailable("This installation has no place for objects.")
        return self._given

    def find(self, ctx: Context, bucket: BucketFacts, key: str, version_id: str = "", action: str = READ) -> Found:
        """By its row."""
        return object_find(ctx, bucket.name, key, version_id, action)

    def authorize(self, ctx: Context, bucket: BucketFacts, key: str, action: str) -> None:
        """By its row."""
        present = newest(ctx.db, bucket.id, key)
        owner_id, tags = (present.owner_id, present.tags) if present is not None else (ctx.principal.user_id, None)
        authorize_object(ctx, bucket, action, key, owner_id=owner_id, tags=tags, called=called_by(action, ""))

    def open(self, ctx: Context, found: Found, first: int, length: int) -> Iterator[bytes]:
        """From its blobs."""
        return object_open(ctx, self._blobs, found, (first, length))

    def receive(
        self, ctx: Context, bucket: BucketFacts, key: str, about: About, read: Callable[[int], bytes], *, length: int | None, md5: str = "",
        condition: Condition = ANY,
    ) -> Version:  # fmt: skip
        """Onto the disk, then into a row."""
        return object_receive(ctx, self._blobs, (bucket.name, key), about, read, length=length, md5=md5, condition=condition)[0]

    def say(self, ctx: Context, bucket: BucketFacts, key: str, action: str, **said: Any) -> Version:
        """In its row; headers that are not named stay."""
        if "headers" not in said:
            return object_say(ctx, bucket.name, key, "", action, **said)[1]
        merged = lambda _writing, row: {**said, "headers": {**row.headers, **said["headers"]}}  # noqa: E731
        return object_say(ctx, bucket.name, key, "", action, say=merged, **said)[1]

    def set_acl(self, ctx: Context, bucket: BucketFacts, key: str, acl: str) -> Version:
        """In its row."""
        return object_set_acl(ctx, (bucket.name, key, ""), acl)[1]

    def copy(self, ctx: Context, found: Found, to: BucketFacts, key: str, condition: Condition = ANY) -> Version:
        """Another row and name for the same bytes."""
        return object_copy(ctx, self._blobs, found, (to.name, key), condition=condition)[0]

    def delete(self, ctx: Context, bucket: BucketFacts, key: str, version_id: str = "", *, bypass: bool = False) -> Deleted:
        """The row; the bytes a little later."""
        return object_delete(ctx, bucket.name, key, version_id, bypass=bypass)

    def delete_many(self, ctx: Context, bucket: BucketFacts, wanted: Sequence[Wanted]) -> list[Deleted | PortalError]:
        """Some at a time."""
        return objects_delete(ctx, bucket.name, wanted)

    def listed(self, ctx: Context, bucket: BucketFacts, asked: Listing) -> Listed:
        """By the index."""
        return objects_listed(ctx, bucket.id, asked)

    def versions(self, ctx: Context, bucket: BucketFacts, key: str) -> Sequence[Any]:
        """By the index."""
        return [row for row in versions_listed(ctx, bucket.id, Listing(key)).rows if row.key == key]

    def upload_begin(self, ctx: Context, bucket: BucketFacts, key: str, about: About) -> str:
        """A row."""
        return upload_create(ctx, bucket.name, key, about).id

    def upload_named(self, ctx: Context, bucket: BucketFacts, upload_id: str) -> Named:
        """By its row."""
        return upload_named(ctx.db, bucket.name, upload_id)

    def part(self, ctx: Context, named: Named, number: int, read: Callable[[int], bytes], *, length: int | None) -> str:
        """Onto the disk, then into a row."""
        return part_receive(ctx, self._blobs, named, number, read, length=length).etag

    def complete(self, ctx: Context, named: Named, parts: Sequence[PartNamed], condition: Condition = ANY) -> Version | None:
        """The parts stay what they are."""
        return upload_complete(ctx, named, parts, lambda _upload, _parts: Whole(), condition=condition).version

    def abort(self, ctx: Context, named: Named) -> None:
        """Its rows go."""
        upload_abort(ctx, named)


def object_service(engines: Engines) -> ObjectService:
    """Whoever keeps the objects of this installation."""
    return EngineObjects(engines.objects) if engines.objects is not None else LocalObjects(engines.blobs)
