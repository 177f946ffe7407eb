"""Listings of keys, of versions and of uploads: from any place on, rolled up at a delimiter, at a cost that does not grow with the bucket.

A prefix that is rolled up is leapt over: the next row is looked for behind everything that begins so.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime
from operator import itemgetter
from typing import Any

from sqlalchemy import ColumnElement, Select, select, tuple_

from portal.kernel.context import Context
from portal.kernel.errors import InvalidRequest
from portal.kernel.ids import is_storable
from portal.storage.facts import VERSIONS
from portal.storage.object_models import CURRENT, NULL_VERSION, ObjectUpload, version_name

LAST_CHARACTER = 0x10FFFF
SURROGATES = (0xD800, 0xE000)
# After a leap so many rows are looked at first; more and more, as long as no prefix is met.
FEW = 2


@dataclass(frozen=True, slots=True)
class Listing:
    """What is asked for: keys that begin with `prefix`, after a place, at most `limit` of keys and prefixes together.

    `after` is a key, or a prefix that was given already; `after_row` is what comes after the key in the order of rows, if the key's own rows are
    not all done with.
    """

    prefix: str = ""
    delimiter: str = ""
    after: str = ""
    after_row: Any = None
    limit: int = 1000

    def __post_init__(self) -> None:
        if not is_storable(self.prefix) or not is_storable(self.after) or (isinstance(self.after_row, str) and not is_storable(self.after_row)):
            raise InvalidRequest("A prefix or a place to go on at has neither NUL nor lone surrogates.")


@dataclass(slots=True)
class Listed:
    """A page: rows and prefixes, each in order, and whether there is more. `last` is the key or prefix at which the next page begins."""

    rows: list[Any] = field(default_factory=list)
    prefixes: list[str] = field(default_factory=list)
    is_truncated: bool = False
    last: str = ""

    @property
    def last_is_prefix(self) -> bool:
        """Whether the page ended with a prefix."""
        return bool(self.prefixes) and self.last == self.prefixes[-1]


def successor(prefix: str) -> str:
    """The first text after all that begin with a prefix, in the order of bytes; empty where none comes after them."""
    while prefix:
        code = ord(prefix[-1]) + 1
        prefix = prefix[:-1]
        if code <= LAST_CHARACTER:
            return prefix + chr(SURROGATES[1] if code == SURROGATES[0] else code)
    return ""


def keys_under(column: Any, prefix: str) -> list[ColumnElement[bool]]:
    """Which keys begin with a prefix, letter for letter, as every database says it alike and finds it by an index."""
    end = successor(prefix)
    return [column >= prefix, column < end] if end else [column >= prefix]


@dataclass(frozen=True, slots=True)
class Entry:
    """A version as listings show it."""

    key: str
    sequence: int
    is_null: bool
    is_marker: bool
    modified_at: datetime
    size_bytes: int
    etag: str
    owner_id: str | None
    storage_class: str
    checksum: str
    checksum_algorithm: str
    checksum_type: str

    @property
    def version_id(self) -> str:
        """How clients call it."""
        return NULL_VERSION if self.is_null else version_name(self.sequence)


def objects_listed(ctx: Context, bucket_id: str, asked: Listing) -> Listed:
    """The present objects of a bucket."""
    return _walk(ctx, asked, _Rows(_ENTRIES.where(VERSIONS.c.bucket_id == bucket_id, CURRENT), VERSIONS.c.key, None, _entry))


def versions_listed(ctx: Context, bucket_id: str, asked: Listing) -> Listed:
    """All versions and marks of deletion, those of a key together and the newest first."""
    return _walk(ctx, asked, _Rows(_ENTRIES.where(VERSIONS.c.bucket_id == bucket_id), VERSIONS.c.key, VERSIONS.c.sequence, _entry))


def uploads_listed(ctx: Context, bucket_id: str, asked: Listing) -> Listed:
    """The multipart uploads that have not ended."""
    base = select(ObjectUpload).where(ObjectUpload.bucket_id == bucket_id, ObjectUpload.completed_at.is_(None))
    return _walk(ctx, asked, _Rows(base, ObjectUpload.key, ObjectUpload.id, itemgetter(0)))


_ENTRIES = select(*(VERSIONS.c[each.name] for each in fields(Entry)))


def _entry(row: Any) -> Entry:
    return Entry(*row)


@dataclass(frozen=True, slots=True)
class _Rows:
    """A table in the order of its keys, and of a second column where a key has several rows."""

    base: Select[Any]
    key: Any
    second: Any
    made: Callable[[Any], Any]

    def take(self, ctx: Context, place: "_Place", end: str, count: int) -> Sequence[Any]:
        query = self.base
        if place.row is not None:
            query = query.where(tuple_(self.key, self.second) > tuple_(place.key, place.row))
        else:
            query = query.where(self.key >= place.key if place.is_included else self.key > place.key)
        if end:
            query = query.where(self.key < end)
        order = (self.key,) if self.second is None else (self.key, self.second)
        return [self.made(row) for row in ctx.db.execute(query.order_by(*order).limit(count))]

    def place_of(self, row: Any) -> "_Place":
        return _Place(row.key, row=None if self.second is None else getattr(row, self.second.key))


@dataclass(frozen=True, slots=True)
class _Place:
    key: str
    is_included: bool = False
    row: Any = None


def _walk(ctx: Context, asked: Listing, table: _Rows) -> Listed:
    found, place = Listed(), _begin(asked)
    end, count = successor(asked.prefix), FEW if asked.delimiter else asked.limit + 1
    if asked.limit <= 0:
        return found
    while place is not None:
        rows = table.take(ctx, place, end, count)
        leap = None
        for row in rows:
            if leap is not None and row.key < leap.key:
                continue
            leap = None
            if len(found.rows) + len(found.prefixes) == asked.limit:
                found.is_truncated = True
                return found
            if rolled := _rolled(row.key, asked):
                found.prefixes.append(rolled)
                found.last = rolled
                leap = _Place(behind, is_included=True) if (behind := successor(rolled)) else None
                if leap is None:
                    return found
            else:
                found.rows.append(row)
                found.last = row.key
        if len(rows) < count:
            return found
        place = leap or table.place_of(rows[-1])
        count = FEW if leap is not None else min(count * 4, asked.limit + 1 - len(found.rows) - len(found.prefixes))
        count = max(count, FEW)
    return found


def _begin(asked: Listing) -> _Place | None:
    if asked.delimiter and asked.after_row is None and asked.after > asked.prefix and _rolled(asked.after, asked) == asked.after:
        behind = successor(asked.after)
        return _Place(max(behind, asked.prefix), is_included=True) if behind else None
    if asked.after < asked.prefix:
        return _Place(asked.prefix, is_included=True)
    return _Place(asked.after, is_included=not asked.after, row=asked.after_row)


def _rolled(key: str, asked: Listing) -> str:
    """The prefix that a key is rolled up to; empty for one that is listed itself."""
    if not asked.delimiter or not key.startswith(asked.prefix):
        return ""
    place = key.find(asked.delimiter, len(asked.prefix))
    return key[: place + len(asked.delimiter)] if place >= 0 else ""
