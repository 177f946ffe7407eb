"""How the versions of a key change: what a new one puts aside, and what is left when one goes. Within the caller's transaction."""

import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import bindparam, delete, insert, select, update
from sqlalchemy.orm import Session

from portal.kernel.db import now
from portal.storage.facts import VERSIONS, Version, newest, null_version
from portal.storage.locks import refuse_locked
from portal.storage.object_models import BlobToRemove, ObjectPart, table_of
from portal.storage.usage import Change

# Sequences fall with time; this is one that no clock reaches.
FAR = 2**63 - 1
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
DEFAULTS: Mapping[str, Any] = {
    "is_marker": False, "size_bytes": 0, "etag": "", "blob": "", "seal": "", "upload_id": None, "checksum": "", "owner_id": None,
    "storage_class": "STANDARD", "acl": "private", "checksum_algorithm": "", "checksum_type": "", "headers": {}, "user_metadata": {}, "tags": {},
    "encryption": "", "kms_key_id": None, "key_version": None, "wrapped_key": None, "customer_check": None, "bucket_key": False,
    "grants": None, "lock_mode": "", "retain_until": None, "legal_hold": None,
    "replication": "",
}  # fmt: skip
_THIS = (VERSIONS.c.bucket_id == bindparam("bucket"), VERSIONS.c.key == bindparam("of_key"), VERSIONS.c.sequence == bindparam("place"))
_INSERT = insert(VERSIONS)
_DELETE = delete(VERSIONS).where(*_THIS)
_SET_CURRENT = update(VERSIONS).where(*_THIS).values(is_current=bindparam("value"))
_REMOVE = insert(table_of(BlobToRemove))


def place_of(moment: datetime) -> int:
    """The place that a version has which is written at a moment; those that were written before have greater ones."""
    return FAR - (moment - EPOCH) // timedelta(microseconds=1) * 1000


def add(session: Session, change: Change, latest: Version | None, versioning: str, columns: Mapping[str, Any]) -> Version:
    """Write a version on top of the newest one; what was there before is kept or goes, as the bucket's versioning says."""
    is_null = versioning != "enabled"
    sequence = FAR - time.time_ns()
    if latest is not None:
        sequence = min(sequence, latest.sequence - 1)
        replaced = latest if latest.is_null else null_version(session, latest.bucket_id, latest.key) if versioning == "suspended" else None
        if is_null and replaced is not None:
            _forget(session, change, replaced)
        if not is_null or replaced is not latest:
            _set_current(session, change, latest, is_current=False)
    values = {**DEFAULTS, **columns, "sequence": sequence, "is_null": is_null, "modified_at": now()}
    values["is_current"] = not values["is_marker"]
    session.execute(_INSERT, values)
    change.size_bytes += values["size_bytes"]
    change.objects += int(values["is_current"])
    change.versions += 1
    return Version(**values)


def insert_at(session: Session, change: Change, values: Mapping[str, Any]) -> Version:
    """Write a version at the place among those of its key that it says; it is the newest if none comes before it."""
    latest = newest(session, values["bucket_id"], values["key"])
    is_newest = latest is None or values["sequence"] < latest.sequence
    if latest is not None and is_newest:
        _set_current(session, change, latest, is_current=False)
    row = Version(**{**values, "is_current": is_newest and not values["is_marker"]})
    session.execute(_INSERT, asdict(row))
    change.size_bytes += row.size_bytes
    change.objects += int(row.is_current)
    change.versions += 1
    return row


def take_away(session: Session, change: Change, version: Version, *, bypass: bool = False) -> None:
    """Remove a version for good; if it was the newest of its key, the one before it is. Raises ObjectLocked for one that is kept from deletion."""
    _forget(session, change, version, bypass=bypass)
    before = newest(session, version.bucket_id, version.key)
    if before is not None and not before.is_marker:
        _set_current(session, change, before, is_current=True)


def say(session: Session, version: Version, **values: Any) -> Version:
    """Change what is said of a version: tags, access, metadata."""
    session.execute(update(VERSIONS).where(*_THIS).values(**values), _place(version))
    return replace(version, **values)


def _place(version: Version) -> dict[str, Any]:
    return {"bucket": version.bucket_id, "of_key": version.key, "place": version.sequence}


def _set_current(session: Session, change: Change, version: Version, *, is_current: bool) -> None:
    if version.is_current is not is_current:
        session.execute(_SET_CURRENT, {**_place(version), "value": is_current})
        change.objects += 1 if is_current else -1


def _forget(session: Session, change: Change, version: Version, *, bypass: bool = False) -> None:
    refuse_locked(version, bypass=bypass)
    session.execute(_DELETE, _place(version))
    change.size_bytes -= version.size_bytes
    change.objects -= int(version.is_current)
    change.versions -= 1
    if version.blob:
        discard(session, [version.blob])
    if version.upload_id is not None:
        discard_parts(session, version.upload_id)


def discard(session: Session, blobs: Iterable[str], read_with: str = "") -> None:
    """Write down that nobody refers to these blobs any more; whoever holds the one that they are read with goes on to read them."""
    if rows := [{"blob": blob, "due_at": now(), "read_with": read_with} for blob in blobs if blob]:
        session.execute(_REMOVE, rows)


def discard_parts(session: Session, upload_id: str) -> None:
    """Forget the parts of an upload; whoever reads the object goes on to do so."""
    blobs = session.scalars(select(ObjectPart.blob).where(ObjectPart.upload_id == upload_id, ObjectPart.blob != "").order_by(ObjectPart.number)).all()
    discard(session, blobs, next(iter(blobs), ""))
    session.execute(delete(ObjectPart).where(ObjectPart.upload_id == upload_id))
