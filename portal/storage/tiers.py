"""Storage classes that have disks of their own, and the moving of objects between them.

A move copies the bytes, has them on the disk, and then changes the row in one transaction: whoever reads meanwhile reads one or the other, and a crash
leaves a copy for the sweep.
"""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from itertools import chain, pairwise
from typing import Any

from sqlalchemy import BigInteger, Date, ForeignKey, String, delete, func, select, update
from sqlalchemy.orm import Mapped, mapped_column

from portal.engines.object_ports import EMPTY, Blob, BlobAbsent, BlobDamaged, BlobStore
from portal.engines.ports import EngineError
from portal.kernel.context import Context
from portal.kernel.db import Base, insert_of, now, transaction
from portal.kernel.errors import Conflict, InvalidRequest, PortalError, Unavailable
from portal.settings import TIERS, Settings
from portal.storage import versions
from portal.storage.access import WRITE
from portal.storage.facts import VERSIONS, BucketFacts, Version, bucket_by_id, version_at
from portal.storage.lifecycle import Following, Rule
from portal.storage.notifications import note
from portal.storage.object_models import ObjectPart, table_of
from portal.storage.objects import Found, object_find, parts_of
from portal.storage.reading import bytes_refused
from portal.storage.usage import GIB
from portal.storage.writing import Writing, write

STANDARD = "STANDARD"
# From the one that is used most to the one that is used least: rules move objects in this direction only.
ORDER = (STANDARD, *TIERS)
KEPT = timedelta(days=366)

log = logging.getLogger("portal.storage")


class TierMove(Base):
    """What was moved from one class to another on a day (UTC)."""

    __tablename__ = "tier_moves"

    bucket_id: Mapped[str] = mapped_column(ForeignKey("buckets.id"), primary_key=True)
    day: Mapped[date] = mapped_column(Date, primary_key=True)
    storage_class: Mapped[str] = mapped_column(String(32), primary_key=True)
    objects: Mapped[int] = mapped_column(BigInteger, default=0)
    size_bytes: Mapped[int] = mapped_column(BigInteger, default=0)


MOVES = table_of(TierMove)
PARTS = table_of(ObjectPart)


@dataclass(frozen=True, slots=True)
class StorageClass:
    """A class, with what it costs where that is said, and whether it has disks of its own."""

    name: str
    has_own_place: bool
    price_per_gb_month: float | None
    retrieval: str = "at once"


def classes_of(settings: Settings) -> list[StorageClass]:
    """The classes that objects can be moved between."""
    prices, tiers = settings.prices(), settings.tiers()
    return [StorageClass(name, name == STANDARD or name in tiers, prices.get(name)) for name in ORDER if name == STANDARD or name in tiers]


def refuse_unknown_class(settings: Settings, name: str, field: str = "storage_class") -> None:
    """Raise InvalidRequest for a class that has no disks of its own here."""
    known = [each.name for each in classes_of(settings)]
    if name not in known:
        problem = "This installation has one kind of disk: there is nothing to move objects to."
        if len(known) > 1:
            problem = f"{name[:64]} has no disks of its own here; {', '.join(known)} have."
        raise InvalidRequest.fields({field: [f"{problem} OBJECT_TIERS says where others are."]})


def object_set_class(ctx: Context, blobs: BlobStore, bucket_name: str, key: str, storage_class: str) -> Version:
    """Move the newest version of an object to another class. Raises InvalidRequest, Conflict if it was changed meanwhile, and what reading raises."""
    refuse_unknown_class(ctx.settings, storage_class)
    found = object_find(ctx, bucket_name, key, action=WRITE)
    if found.version.storage_class == storage_class:
        return found.version
    moved = version_move(ctx, blobs, found, storage_class)
    if moved is None:
        raise Conflict("The object was changed while it was being moved. Try again.")
    return moved


def version_move(ctx: Context, blobs: BlobStore, found: Found, storage_class: str, *, event: str = "") -> Version | None:
    """Move one version; None if it is not what it was any more."""
    ctx.db.rollback()
    copies: dict[str, Blob] = {}
    try:
        for piece in found.pieces():
            if piece.id and blobs.place_of(piece.id) != ("" if storage_class not in blobs.classes else storage_class):
                copies[piece.id] = blobs.copy(piece, storage_class)
        return write(ctx, found.bucket, WRITE, lambda writing: _moved(writing, found, storage_class, copies, event))
    except BlobAbsent:
        _forget(blobs, copies)
        # It was written over or moved a moment ago; if not, whoever reads it is told.
        return None
    except BlobDamaged as error:
        _forget(blobs, copies)
        raise bytes_refused(ctx, ctx.db.get_bind().engine, found, error) from error
    except (PortalError, EngineError) as error:
        if not isinstance(error, Unavailable):
            _forget(blobs, copies)
        raise


def _forget(blobs: BlobStore, copies: Mapping[str, Blob]) -> None:
    blobs.remove(*(copy.id for copy in copies.values()))


def _moved(writing: Writing, found: Found, storage_class: str, copies: Mapping[str, Blob], event: str) -> Version | None:
    version = found.version
    row = version_at(writing.db, version.bucket_id, version.key, version.sequence)
    if row is None or row.blob != version.blob or row.storage_class != version.storage_class:
        versions.discard(writing.db, [copy.id for copy in copies.values()])
        return None
    writing.authorize(WRITE, row.key, owner_id=row.owner_id, tags=row.tags)
    if row.upload_id is not None:
        for old, copy in copies.items():
            writing.db.execute(update(PARTS).where(PARTS.c.upload_id == row.upload_id, PARTS.c.blob == old).values(blob=copy.id, seal=copy.seal))
        versions.discard(writing.db, copies, found.first)
        said: dict[str, Any] = {}
    else:
        copy = copies.get(row.blob, EMPTY)
        versions.discard(writing.db, copies)
        said = {"blob": copy.id, "seal": copy.seal} if copy.id else {}
    moved = versions.say(writing.db, row, storage_class=storage_class, **said)
    _count(writing, moved)
    if event:
        note(writing.ctx, writing.bucket, event, moved)
    writing.tell(WRITE, row.key, {"version_id": row.version_id, "before": row.storage_class, "after": storage_class})
    return moved


def _count(writing: Writing, version: Version) -> None:
    values = {
        "bucket_id": version.bucket_id,
        "day": now().date(),
        "storage_class": version.storage_class,
        "objects": 1,
        "size_bytes": version.size_bytes,
    }
    added = insert_of(writing.db)(MOVES).values(values)
    keys = [MOVES.c.bucket_id, MOVES.c.day, MOVES.c.storage_class]
    more = {name: MOVES.c[name] + added.excluded[name] for name in ("objects", "size_bytes")}
    writing.db.execute(added.on_conflict_do_update(index_elements=keys, set_=more))


# -- rules -----------------------------------------------------------------------------------------------------------------------------------


def transitions_follow(ctx: Context, blobs: BlobStore) -> int:
    """Move what rules of buckets say is to be moved by now; how many versions that were."""
    with transaction(ctx.db):
        ctx.db.execute(delete(TierMove).where(TierMove.day < (now() - KEPT).date()))
    return sum(_Moving(ctx, blobs, bucket_id, rule).move() for bucket_id, rule in Following.rules(ctx))


class _Moving(Following):
    """The transitions of one rule."""

    def __init__(self, ctx: Context, blobs: BlobStore, bucket_id: str, rule: Rule) -> None:
        super().__init__(ctx, bucket_id, rule)
        self._blobs = blobs
        self._known = {each.name for each in classes_of(ctx.settings)}

    def move(self) -> int:
        """How many versions were moved."""
        return sum(self._move_key(found) for found in self.keys("transitions", "noncurrent_transitions"))

    def _move_key(self, found: Iterator[Version]) -> int:
        latest = next(found)
        moved = self._move(latest, self._class_for("transitions", latest.modified_at))
        for number, (newer, version) in enumerate(pairwise(chain((latest,), found))):
            moved += self._move(version, self._class_for("noncurrent_transitions", newer.modified_at, number))
        return moved

    def _class_for(self, name: str, since: datetime, number: int = 0) -> str:
        """Where a version is to be by now; empty for where it is."""
        due = [
            each["storage_class"]
            for each in self.rule.get(name) or ()
            if number >= (each.get("keep") or 0) and self._is_due(each, since) and each["storage_class"] in self._known
        ]
        return max(due, key=ORDER.index, default="")

    def _is_due(self, each: Rule, since: datetime) -> bool:
        if each.get("at"):
            return datetime.fromisoformat(each["at"]) <= self.now
        return since <= self.before(each["days"])

    def _move(self, version: Version, storage_class: str) -> int:
        present = ORDER.index(version.storage_class) if version.storage_class in ORDER else 0
        if version.is_marker or not storage_class or ORDER.index(storage_class) <= present or not self.fits(version):
            return 0
        bucket = bucket_by_id(self.ctx.db, version.bucket_id)
        if bucket is None:
            return 0
        parts = parts_of(self.ctx.db, version.upload_id) if version.upload_id is not None else ()
        try:
            return int(version_move(self.ctx, self._blobs, Found(bucket, version, parts), storage_class, event="LifecycleTransition") is not None)
        except (PortalError, EngineError) as error:
            # Damaged, or no room: the others are moved all the same, and this one tomorrow.
            log.warning("%s/%s stays in %s: %s", bucket.name, version.key, version.storage_class, error.message)
            self.ctx.db.rollback()
            return 0


# -- report ----------------------------------------------------------------------------------------------------------------------------------


def tiering_report(ctx: Context, bucket: BucketFacts, days: int) -> list[dict[str, Any]]:
    """By class: what is in it, what it costs a month and saves, where prices are said, and what was moved into it in the last days."""
    held = select(VERSIONS.c.storage_class, func.count(), func.coalesce(func.sum(VERSIONS.c.size_bytes), 0))
    there = {name: (objects, int(size)) for name, objects, size in
             ctx.db.execute(held.where(VERSIONS.c.bucket_id == bucket.id, ~VERSIONS.c.is_marker).group_by(VERSIONS.c.storage_class))}  # fmt: skip
    since = (now() - timedelta(days=days - 1)).date()
    moves = select(MOVES.c.storage_class, func.sum(MOVES.c.objects), func.sum(MOVES.c.size_bytes)).where(
        MOVES.c.bucket_id == bucket.id, MOVES.c.day >= since
    )
    moved = {name: (int(objects), int(size)) for name, objects, size in ctx.db.execute(moves.group_by(MOVES.c.storage_class))}
    prices = ctx.settings.prices()
    return [_line(name, there.get(name, (0, 0)), moved.get(name, (0, 0)), prices) for name in sorted({*there, *moved})]


def _line(name: str, held: tuple[int, int], moved: tuple[int, int], prices: Mapping[str, float]) -> dict[str, Any]:
    price, usual = prices.get(name), prices.get(STANDARD)
    gib = held[1] / GIB
    return {
        "storage_class": name, "objects": held[0], "size_bytes": held[1], "cost": round(gib * price, 4) if price is not None else None,
        "saving": round(gib * (usual - price), 4) if price is not None and usual is not None else None,
        "moved_objects": moved[0], "moved_bytes": moved[1],
    }  # fmt: skip
