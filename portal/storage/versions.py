"""The versions of a key as rows: which is the newest, what a new one puts aside, what is left when one goes. Within the caller's transaction."""

import time
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from sqlalchemy import delete, insert, literal, select
from sqlalchemy.orm import Session

from portal.kernel.db import insert_of, now
from portal.storage.models import NULL_VERSION, BlobToRemove, ObjectPart, ObjectVersion, sequence_of
from portal.storage.usage import Change

# Sequences fall with time; this is one that no clock reaches.
FAR = 2**63 - 1
# Parts are opened one after the other while an object is read; so long they stay for whoever has begun.
READING = timedelta(hours=6)


def newest(session: Session, bucket_id: str, key: str) -> ObjectVersion | None:
    """The newest version of a key, a mark of deletion included."""
    query = select(ObjectVersion).where(ObjectVersion.bucket_id == bucket_id, ObjectVersion.key == key)
    return session.scalars(query.order_by(ObjectVersion.sequence).limit(1)).first()


def version_of(session: Session, bucket_id: str, key: str, version_id: str) -> ObjectVersion | None:
    """The version that clients call so."""
    if version_id == NULL_VERSION:
        return _null_version(session, bucket_id, key)
    sequence = sequence_of(version_id)
    found = session.get(ObjectVersion, (bucket_id, key, sequence)) if sequence is not None else None
    return found if found is not None and not found.is_null else None


def _null_version(session: Session, bucket_id: str, key: str) -> ObjectVersion | None:
    query = select(ObjectVersion).where(ObjectVersion.bucket_id == bucket_id, ObjectVersion.key == key, ObjectVersion.is_null)
    return session.scalars(query.limit(1)).first()


def add(session: Session, change: Change, latest: ObjectVersion | None, versioning: str, columns: Mapping[str, Any]) -> ObjectVersion:
    """Write a version on top of the newest one; what was there before is kept or goes, as the bucket's versioning says."""
    is_null = versioning != "enabled"
    sequence = FAR - time.time_ns()
    if latest is not None:
        sequence = min(sequence, latest.sequence - 1)
        replaced = latest if latest.is_null else _null_version(session, latest.bucket_id, latest.key) if versioning == "suspended" else None
        if is_null and replaced is not None:
            _forget(session, change, replaced)
        if latest is not replaced or not is_null:
            _set_current(session, change, latest, is_current=False)
    row = ObjectVersion(**columns, sequence=sequence, is_null=is_null)
    row.is_current = not row.is_marker
    session.add(row)
    session.flush()
    change.size_bytes += row.size_bytes or 0
    change.objects += int(row.is_current)
    change.versions += 1
    return row


def take_away(session: Session, change: Change, version: ObjectVersion) -> None:
    """Remove a version for good; if it was the newest of its key, the one before it is."""
    _forget(session, change, version)
    before = newest(session, version.bucket_id, version.key)
    if before is not None and not before.is_marker and not before.is_current:
        _set_current(session, change, before, is_current=True)


def _set_current(session: Session, change: Change, version: ObjectVersion, *, is_current: bool) -> None:
    if version.is_current is is_current:
        return
    version.is_current = is_current
    session.flush()
    change.objects += 1 if is_current else -1


def _forget(session: Session, change: Change, version: ObjectVersion) -> None:
    session.delete(version)
    session.flush()
    change.size_bytes -= version.size_bytes
    change.objects -= int(version.is_current)
    change.versions -= 1
    if version.blob:
        discard(session, version.blob)
    if version.upload_id is not None:
        discard_parts(session, version.upload_id)


def discard(session: Session, *blobs: str) -> None:
    """Write down that nobody refers to these blobs any more."""
    if blobs:
        session.execute(insert(BlobToRemove).values([{"blob": blob, "due_at": now()} for blob in blobs]))


def discard_parts(session: Session, upload_id: str) -> None:
    """Forget the parts of an upload; whoever reads the object goes on to do so."""
    parts = select(ObjectPart.blob, literal(now() + READING, BlobToRemove.due_at.type)).where(
        ObjectPart.upload_id == upload_id, ObjectPart.blob != ""
    )
    session.execute(insert_of(session)(BlobToRemove.__table__).from_select(["blob", "due_at"], parts))
    session.execute(delete(ObjectPart).where(ObjectPart.upload_id == upload_id))
