"""The rows of object storage. A bucket is a resource; what is in it is not: there is a row for each version of each key."""

import base64
import binascii
from datetime import datetime
from typing import TYPE_CHECKING, Any, cast

from sqlalchemy import BigInteger, ForeignKey, Index, LargeBinary, String, Table, select, text
from sqlalchemy.orm import Mapped, column_property, mapped_column

from portal.kernel import fields as f
from portal.kernel.db import Base, JsonColumn, UtcDateTime, now
from portal.kernel.resource import LIVE, ProjectOwned, Stateful

ACLS = ("private", "public-read", "public-read-write", "authenticated-read")
# Grants that are none of these are kept one by one, in `grants`.
CUSTOM = "custom"
VERSIONING = ("off", "enabled", "suspended")
ENCRYPTION = ("none", "sse-s3", "sse-kms")
OWNERSHIP = ("BucketOwnerEnforced", "BucketOwnerPreferred", "ObjectWriter")
# Of buckets of which nobody said who owns what is written: whoever writes it, and lists of access count.
UNSET = "Unset"
KEY_BYTES = 1024
NULL_VERSION = "null"
BUCKET_NAME = r"^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$"
# Compared by bytes on every database: S3 lists keys in the order of their UTF-8.
Key = String(KEY_BYTES).with_variant(String(KEY_BYTES, collation="C"), "postgresql")
CURRENT, STORED, HELD = text("is_current"), text("blob <> ''"), text("(retain_until IS NOT NULL OR legal_hold)")
WRAPPED = text("kms_key_id IS NOT NULL")


class Bucket(ProjectOwned, Stateful, Base):
    """A place for objects under a name that no other bucket of the installation has."""

    __tablename__ = "buckets"

    name: Mapped[str] = f.field(
        f.Line(63, BUCKET_NAME, 3, says="must have 3 to 63 small letters, digits, dots and dashes, and begin and end with a letter or digit"),
        label="Name", help="No other bucket of this installation may have it: it becomes part of addresses.", sortable=True,
    )  # fmt: skip
    region: Mapped[str] = f.field(f.Line(64), label="Region", default="local", filterable=True)
    acl: Mapped[str] = f.field(f.Choice((*ACLS, CUSTOM)), label="Access of others", default="private", filterable=True)
    grants: Mapped[list[Any] | None] = mapped_column(JsonColumn, nullable=True)
    versioning: Mapped[str] = f.field(f.Choice(VERSIONING), label="Versioning", default="off", filterable=True)
    data_events: Mapped[bool] = f.field(
        f.Bool(), label="Record data events", default=False, editable=True, help="Write every change of an object into the audit log."
    )
    encryption_type: Mapped[str] = f.field(
        f.Choice(ENCRYPTION), label="Encryption", default="none", filterable=True, help="Of new objects that are sent without a word about it."
    )
    # No reference: the record of a key outlives everything.
    kms_key_id: Mapped[str | None] = f.field(f.Ref("security.key"), label="Encryption key", nullable=True, filterable=True, index=True)
    bucket_key_enabled: Mapped[bool] = f.field(f.Bool(), label="Bucket key", default=False)
    cors_rules: Mapped[list[Any]] = mapped_column(JsonColumn, default=list)
    lifecycle_rules: Mapped[list[Any]] = mapped_column(JsonColumn, default=list)
    policy: Mapped[dict[str, Any] | None] = mapped_column(JsonColumn, nullable=True)
    object_lock: Mapped[bool] = f.field(
        f.Bool(), label="Object lock", default=False, help="Versions can be kept from deletion until a moment. It cannot be switched off."
    )
    # Mode, and days or years, of what is written without a word of its own.
    lock_rule: Mapped[dict[str, Any] | None] = mapped_column(JsonColumn, nullable=True)
    # Which ways to let everybody in are closed; NULL where nobody said anything.
    public_access_block: Mapped[dict[str, bool] | None] = mapped_column(JsonColumn, nullable=True)
    ownership: Mapped[str] = f.field(f.Choice((*OWNERSHIP, UNSET)), label="Ownership of objects", default=OWNERSHIP[0])
    website: Mapped[dict[str, Any] | None] = mapped_column(JsonColumn, nullable=True)
    # Who is told of what: id, kind, arn, webhook_id, events, prefix, suffix.
    notifications: Mapped[list[Any] | None] = mapped_column(JsonColumn, nullable=True)
    # What goes where, by priority: id, priority, enabled, prefix, tags, bucket_id, bucket_name, delete_markers, existing.
    replication: Mapped[list[Any] | None] = mapped_column(JsonColumn, nullable=True)
    # Of the bucket that the access log is written into: bucket_id, bucket_name, prefix, since.
    logging: Mapped[dict[str, Any] | None] = mapped_column(JsonColumn, nullable=True)

    if TYPE_CHECKING:
        total_objects: int
        total_size_bytes: int


Index("uq_buckets_everywhere", Bucket.name, unique=True, sqlite_where=LIVE, postgresql_where=LIVE)


class BucketUsage(Base):
    """What a bucket holds, and how much of the quota that takes. Whoever writes into a bucket locks this row: writes into one come one by one."""

    __tablename__ = "bucket_usage"

    bucket_id: Mapped[str] = mapped_column(ForeignKey("buckets.id"), primary_key=True)
    # Of all versions, and of parts that have arrived.
    size_bytes: Mapped[int] = mapped_column(BigInteger, default=0)
    # What a listing without versions shows, and all versions with marks of deletion.
    objects: Mapped[int] = mapped_column(BigInteger, default=0)
    versions: Mapped[int] = mapped_column(BigInteger, default=0)
    held_gib: Mapped[int] = mapped_column(BigInteger, default=0)


# How far the portal is with a bucket at an external engine.
BEGUN, MADE = "begun", "made"


class EngineBucket(Base):
    """What an external engine was last told of a bucket, in short."""

    __tablename__ = "engine_buckets"

    bucket_id: Mapped[str] = mapped_column(ForeignKey("buckets.id"), primary_key=True)
    told: Mapped[str] = mapped_column(String(64), default="")
    # Whose the engine's bucket is: of nobody known, being made by the portal, which saw that there was none, or made by it.
    made: Mapped[str] = mapped_column(String(8), default="")
    told_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)


for _name, _column in (("total_objects", BucketUsage.objects), ("total_size_bytes", BucketUsage.size_bytes)):
    setattr(Bucket, _name, column_property(select(_column).where(BucketUsage.bucket_id == Bucket.id).correlate_except(BucketUsage).scalar_subquery()))


class Described:
    """What an object is said to be by whoever writes it, besides its bytes. Mixin."""

    owner_id: Mapped[str | None] = mapped_column(String(64))
    storage_class: Mapped[str] = mapped_column(String(32), default="STANDARD")
    acl: Mapped[str] = mapped_column(String(32), default="private")
    grants: Mapped[list[Any] | None] = mapped_column(JsonColumn, nullable=True)
    lock_mode: Mapped[str] = mapped_column(String(16), default="")
    retain_until: Mapped[datetime | None] = mapped_column(UtcDateTime)
    # NULL where nobody said anything of it.
    legal_hold: Mapped[bool | None] = mapped_column()
    checksum_algorithm: Mapped[str] = mapped_column(String(16), default="")
    checksum_type: Mapped[str] = mapped_column(String(16), default="")
    headers: Mapped[dict[str, str]] = mapped_column(JsonColumn, default=dict)
    user_metadata: Mapped[dict[str, str]] = mapped_column(JsonColumn, default=dict)
    tags: Mapped[dict[str, str]] = mapped_column(JsonColumn, default=dict)
    # Empty, or which kind; the data key, wrapped, and by which version of which key; or what tells a key again that the client sends.
    encryption: Mapped[str] = mapped_column(String(16), default="")
    kms_key_id: Mapped[str | None] = mapped_column(String(64))
    key_version: Mapped[int | None] = mapped_column()
    wrapped_key: Mapped[bytes | None] = mapped_column(LargeBinary)
    customer_check: Mapped[bytes | None] = mapped_column(LargeBinary)
    bucket_key: Mapped[bool] = mapped_column(default=False)


class ObjectVersion(Described, Base):
    """One version of the object under a key, or the mark that it was deleted. `sequence` falls with time: the newest version of a key comes first.

    `is_current` is what a listing without versions shows: the newest version, unless that is a mark. The bytes are in `blob`, or in the parts of
    an upload.
    """

    __tablename__ = "object_versions"

    bucket_id: Mapped[str] = mapped_column(ForeignKey("buckets.id"), primary_key=True)
    key: Mapped[str] = mapped_column(Key, primary_key=True)
    sequence: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    is_null: Mapped[bool] = mapped_column(default=True)
    is_current: Mapped[bool] = mapped_column(default=True)
    is_marker: Mapped[bool] = mapped_column(default=False)
    modified_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)
    size_bytes: Mapped[int] = mapped_column(BigInteger, default=0)
    etag: Mapped[str] = mapped_column(String(64), default="")
    blob: Mapped[str] = mapped_column(String(64), default="")
    seal: Mapped[str] = mapped_column(String(16), default="")
    upload_id: Mapped[str | None] = mapped_column(String(64))
    checksum: Mapped[str] = mapped_column(String(96), default="")
    # PENDING, COMPLETED or FAILED where it is carried over into another bucket, REPLICA where it was.
    replication: Mapped[str] = mapped_column(String(16), default="", server_default="")

    __table_args__ = (
        Index("ix_object_versions_current", "bucket_id", "key", unique=True, sqlite_where=CURRENT, postgresql_where=CURRENT),
        # For the sweep: whether anybody refers to a blob.
        Index("ix_object_versions_blob", "blob", sqlite_where=STORED, postgresql_where=STORED),
        # For wrapping again what an older version of a key has wrapped.
        Index("ix_object_versions_wrapped", "kms_key_id", "key_version", sqlite_where=WRAPPED, postgresql_where=WRAPPED),
        # For who asks what a key encrypts.
        Index("ix_object_versions_key_used", "kms_key_id", "bucket_id", sqlite_where=WRAPPED, postgresql_where=WRAPPED),
        Index("ix_object_versions_held", "bucket_id", sqlite_where=HELD, postgresql_where=HELD),
        {"sqlite_with_rowid": False},
    )


class ObjectUpload(Described, Base):
    """A multipart upload: what the object is to be, and once it is complete what it became, so that a second Complete answers like the first."""

    __tablename__ = "object_uploads"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    bucket_id: Mapped[str] = mapped_column(ForeignKey("buckets.id"))
    key: Mapped[str] = mapped_column(Key)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)
    completed_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    # Of the version that it became.
    sequence: Mapped[int | None] = mapped_column(BigInteger)
    etag: Mapped[str] = mapped_column(String(64), default="")

    __table_args__ = (
        Index("ix_object_uploads_key", "bucket_id", "key", "id"),
        Index("ix_object_uploads_age", "created_at"),
        Index("ix_object_uploads_wrapped", "kms_key_id", "key_version", sqlite_where=WRAPPED, postgresql_where=WRAPPED),
    )


class ObjectPart(Base):
    """One part of an upload; those that were named at its end stay as the pieces of the object."""

    __tablename__ = "object_parts"

    upload_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    etag: Mapped[str] = mapped_column(String(64))
    blob: Mapped[str] = mapped_column(String(64), index=True)
    seal: Mapped[str] = mapped_column(String(16))
    # With the key of the upload.
    is_encrypted: Mapped[bool] = mapped_column(default=False)
    checksum_algorithm: Mapped[str] = mapped_column(String(16), default="")
    checksum: Mapped[str] = mapped_column(String(96), default="")
    modified_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)


class BlobToRemove(Base):
    """A blob that nobody refers to any more, written down by whoever took the last reference; it goes when it is due."""

    __tablename__ = "blobs_to_remove"

    blob: Mapped[str] = mapped_column(String(64), primary_key=True)
    due_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now, index=True)
    # Of the parts of an object: the first of them, which is held by whoever reads them one after the other.
    read_with: Mapped[str] = mapped_column(String(64), default="", server_default="")


class ScrubTurn(Base):
    """How far everything is read again: since when, in versions (0) or parts (1), after which blob. There is one row."""

    __tablename__ = "scrub_turns"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    begun_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)
    stage: Mapped[int] = mapped_column(default=0, server_default="0")
    after: Mapped[str] = mapped_column(String(64), default="", server_default="")
    read_bytes: Mapped[int] = mapped_column(BigInteger, default=0, server_default="0")


def table_of(model: type[Base]) -> Table:
    """The table of a model, for statements on plain values."""
    return cast("Table", model.__table__)


def version_name(sequence: int) -> str:
    """How clients call a version that is not `null`."""
    return base64.b32encode(sequence.to_bytes(8, "big")).decode().rstrip("=").lower()


def sequence_of(name: str) -> int | None:
    """The place of a version among those of its key; None for what is no name of one."""
    try:
        raw = base64.b32decode(name.upper() + "===")
    except (binascii.Error, ValueError):
        return None
    found = int.from_bytes(raw, "big")
    return found if len(raw) == 8 and found < 2**63 and version_name(found) == name else None  # noqa: PLR2004 - eight bytes
