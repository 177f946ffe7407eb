"""Deleting what somebody ticked in a list: keys, single versions, and everything under a prefix. What that concerns can be looked at before."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

from portal.kernel.context import Context
from portal.kernel.errors import InvalidRequest, PortalError
from portal.storage.access import LIST, authorize_object, check_key
from portal.storage.engine_steps import on_engine
from portal.storage.facts import BucketFacts, version_of
from portal.storage.listing import Listing
from portal.storage.object_service import ObjectService
from portal.storage.objects import Wanted

# So many of a prefix are counted before a deletion and deleted in one go; and so many, of which that is a part, in one request.
# An external engine is asked one by one.
COUNTED, AT_ONCE, ON_ENGINE = 1000, 5000, 500
FOLDER, KEY, VERSION = "p", "k", "v"


def at_once(ctx: Context) -> int:
    """How many objects go in one request."""
    return ON_ENGINE if on_engine(ctx.settings) else AT_ONCE


@dataclass(frozen=True, slots=True)
class Chosen:
    """Something that was ticked: everything under a prefix, a key, or one version of it."""

    kind: str
    key: str
    version_id: str = ""

    @classmethod
    def read(cls, text: str) -> Self:
        """From `p:prefix`, `k:key` or `v:version:key`. Raises InvalidRequest."""
        kind, _, rest = text.partition(":")
        version_id, _, key = rest.partition(":") if kind == VERSION else ("", "", rest)
        if kind not in {FOLDER, KEY, VERSION} or not key or (kind == VERSION and not version_id):
            raise InvalidRequest("The list of what is to be deleted cannot be understood. Tick it again.")
        check_key(key)
        return cls(kind, key, version_id)

    def __str__(self) -> str:
        """As `read` takes it."""
        return f"{self.kind}:{self.version_id}:{self.key}" if self.kind == VERSION else f"{self.kind}:{self.key}"


@dataclass(frozen=True, slots=True)
class Concerned:
    """What a deletion would take: how many objects and bytes, or more than were counted."""

    chosen: Chosen
    objects: int
    size_bytes: int
    is_more: bool = False


def concerned(ctx: Context, objects: ObjectService, bucket: BucketFacts, chosen: Sequence[Chosen]) -> list[Concerned]:
    """What is there now of what was ticked. Raises Forbidden for a prefix that the caller may not list."""
    return [_concerned(ctx, objects, bucket, each) for each in chosen]


def _concerned(ctx: Context, objects: ObjectService, bucket: BucketFacts, each: Chosen) -> Concerned:
    authorize_object(ctx, bucket, LIST, each.key)
    if each.kind == FOLDER:
        found = objects.listed(ctx, bucket, Listing(each.key, limit=COUNTED))
        return Concerned(each, len(found.rows), sum(row.size_bytes for row in found.rows), found.is_truncated)
    if each.version_id:
        row = version_of(ctx.db, bucket.id, each.key, each.version_id)
    else:
        # Of keys that begin so this one is the first.
        row = next((row for row in objects.listed(ctx, bucket, Listing(each.key, limit=1)).rows if row.key == each.key), None)
    return Concerned(each, int(row is not None), row.size_bytes if row is not None else 0)


@dataclass(slots=True)
class Removed:
    """What came of it: how many went, which were refused and why, and whether something is left for another request."""

    count: int
    refused: list[tuple[str, str]]
    is_more: bool = False


def remove_chosen(ctx: Context, objects: ObjectService, bucket: BucketFacts, chosen: Sequence[Chosen]) -> Removed:
    """Delete what was ticked; each object succeeds or is refused on its own. Raises Forbidden for a prefix that the caller may not list."""
    done = Removed(0, [])
    left = at_once(ctx)
    for some in _batches(ctx, objects, bucket, chosen):
        if left == 0:
            done.is_more = True
            break
        wanted = some[:left]
        for each, result in zip(wanted, objects.delete_many(ctx, bucket, wanted), strict=True):
            if isinstance(result, PortalError):
                done.refused.append((each.key, result.message))
            else:
                done.count += 1
        left -= len(wanted)
    return done


def _batches(ctx: Context, objects: ObjectService, bucket: BucketFacts, chosen: Sequence[Chosen]) -> Iterator[list[Wanted]]:
    single = [Wanted(each.key, each.version_id) for each in chosen if each.kind != FOLDER]
    if single:
        yield single
    for each in chosen:
        after, is_more = "", each.kind == FOLDER
        while is_more:
            authorize_object(ctx, bucket, LIST, each.key)
            # From the last key on: what was refused is not asked for again.
            found = objects.listed(ctx, bucket, Listing(each.key, after=after, limit=COUNTED))
            after, is_more = found.last, found.is_truncated
            if found.rows:
                yield [Wanted(row.key) for row in found.rows]
