"""Buckets and versions as every request reads them: plain values, by statements that are made once. Their tables are in `models`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Any

from sqlalchemy import bindparam, select
from sqlalchemy.orm import Session

from portal.kernel.ids import is_storable
from portal.storage.errors import NoSuchBucket
from portal.storage.grants import Grant, grants_of
from portal.storage.object_models import NULL_VERSION, Bucket, ObjectVersion, sequence_of, table_of, version_name


@dataclass(frozen=True, slots=True)
class BucketFacts:
    """What a request has to know of a bucket."""

    id: str
    name: str
    project_id: str
    owner_id: str | None
    acl: str
    versioning: str
    data_events: bool
    tags: Mapping[str, str]
    policy: Mapping[str, Any] | None
    encryption_type: str
    kms_key_id: str | None
    bucket_key_enabled: bool
    grants: Sequence[Sequence[str]] | None
    object_lock: bool
    lock_rule: Mapping[str, Any] | None
    public_access_block: Mapping[str, bool] | None
    ownership: str
    notifications: Sequence[Mapping[str, Any]] | None
    replication: Sequence[Mapping[str, Any]] | None

    def project_of(self) -> str:
        """The project that is charged."""
        return self.project_id


@dataclass(frozen=True, slots=True)
class Version:
    """A row of `object_versions`."""

    bucket_id: str
    key: str
    sequence: int
    is_null: bool
    is_current: bool
    is_marker: bool
    modified_at: datetime
    size_bytes: int
    etag: str
    blob: str
    seal: str
    upload_id: str | None
    checksum: str
    owner_id: str | None
    storage_class: str
    acl: str
    checksum_algorithm: str
    checksum_type: str
    headers: Mapping[str, str]
    user_metadata: Mapping[str, str]
    tags: Mapping[str, str]
    encryption: str
    kms_key_id: str | None
    key_version: int | None
    wrapped_key: bytes | None = field(repr=False)
    customer_check: bytes | None = field(repr=False)
    bucket_key: bool
    grants: Sequence[Sequence[str]] | None
    lock_mode: str
    retain_until: datetime | None
    legal_hold: bool | None
    replication: str

    @property
    def granted(self) -> list[Grant]:
        """What its list of access gives."""
        return grants_of(self.acl, self.grants)

    @property
    def version_id(self) -> str:
        """How clients call it."""
        return NULL_VERSION if self.is_null else version_name(self.sequence)


BUCKETS, VERSIONS = table_of(Bucket), table_of(ObjectVersion)
VERSION_COLUMNS = tuple(VERSIONS.c[each.name] for each in fields(Version))
_BUCKET = select(*(BUCKETS.c[each.name] for each in fields(BucketFacts))).where(BUCKETS.c.deleted_at.is_(None))
_BY_NAME = _BUCKET.where(BUCKETS.c.name == bindparam("value"))
_BY_ID = _BUCKET.where(BUCKETS.c.id == bindparam("value"))
_OF_KEY = select(*VERSION_COLUMNS).where(VERSIONS.c.bucket_id == bindparam("bucket"), VERSIONS.c.key == bindparam("of_key"))
_NEWEST = _OF_KEY.order_by(VERSIONS.c.sequence).limit(1)
_NULL = _OF_KEY.where(VERSIONS.c.is_null).limit(1)
_ONE = _OF_KEY.where(VERSIONS.c.sequence == bindparam("place"))


def bucket_named(session: Session, name: str) -> BucketFacts:
    """The bucket of this name, whoever asks. Raises NoSuchBucket."""
    row = session.execute(_BY_NAME, {"value": name}).first() if is_storable(name) else None
    if row is None:
        raise NoSuchBucket(f"There is no bucket {name[:80]}.")
    return BucketFacts(*row)


def bucket_by_id(session: Session, bucket_id: str) -> BucketFacts | None:
    """The bucket as it is now; None for one that was deleted."""
    row = session.execute(_BY_ID, {"value": bucket_id}).first()
    return BucketFacts(*row) if row is not None else None


def newest(session: Session, bucket_id: str, key: str) -> Version | None:
    """The newest version of a key, a mark of deletion included."""
    return _version(session, _NEWEST, bucket_id, key)


def null_version(session: Session, bucket_id: str, key: str) -> Version | None:
    """The version of a key that has no id of its own."""
    return _version(session, _NULL, bucket_id, key)


def version_at(session: Session, bucket_id: str, key: str, sequence: int) -> Version | None:
    """The version of a key at a place."""
    return _version(session, _ONE, bucket_id, key, place=sequence)


def version_of(session: Session, bucket_id: str, key: str, version_id: str) -> Version | None:
    """The version that clients call so."""
    if version_id == NULL_VERSION:
        return null_version(session, bucket_id, key)
    sequence = sequence_of(version_id)
    found = version_at(session, bucket_id, key, sequence) if sequence is not None else None
    return found if found is not None and not found.is_null else None


def _version(session: Session, statement: Any, bucket_id: str, key: str, **more: Any) -> Version | None:
    row = session.execute(statement, {"bucket": bucket_id, "of_key": key, **more}).first()
    return Version(*row) if row is not None else None
