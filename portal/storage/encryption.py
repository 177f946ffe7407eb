"""How objects are encrypted: with a key that the client sends each time and that nobody keeps, or with a data key that a key of the project wraps."""

import hashlib
import hmac
import os
from dataclasses import dataclass, field
from typing import Any, Protocol

from sqlalchemy import select

from portal.kernel.context import Context
from portal.kernel.errors import Forbidden, PortalError
from portal.security.encryption_keys import default_key_ensure, key_authorize
from portal.security.key_models import EncryptionKey
from portal.security.key_store import Holder, data_key, declare_holder, key_of, unwrap
from portal.security.key_usage import note_use
from portal.storage.errors import CustomerKeyMissing, CustomerKeyNotWanted, CustomerKeyWrong, NoSuchEncryptionKey
from portal.storage.facts import BucketFacts
from portal.storage.object_models import ObjectUpload, ObjectVersion, table_of

PORTAL, NAMED, CUSTOMER = "sse-s3", "sse-kms", "sse-c"
SALT_BYTES = 16


@dataclass(frozen=True, slots=True)
class CustomerKey:
    """A key (32 bytes) that a client sends along; it is used, and forgotten."""

    key: bytes = field(repr=False)
    # Of the key, in base64, as it is told back.
    md5: str


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request says about encryption; all is empty where it says nothing, and the bucket decides."""

    kind: str = ""
    key: str = ""
    customer: CustomerKey | None = None
    bucket_key: bool | None = None


class Row(Protocol):
    """What a version and an upload have in common."""

    @property
    def encryption(self) -> str:
        """Empty, or which kind."""
        ...

    @property
    def customer_check(self) -> bytes | None:
        """What tells the client's key again."""
        ...


@dataclass(frozen=True, slots=True)
class Encryption:
    """How something is encrypted, as its row keeps it, and while it is written, the key itself."""

    kind: str = ""
    kms_key_id: str | None = None
    key_version: int | None = None
    wrapped_key: bytes | None = field(default=None, repr=False)
    customer_check: bytes | None = field(default=None, repr=False)
    bucket_key: bool = False
    key: bytes | None = field(default=None, repr=False, compare=False)

    def columns(self) -> dict[str, Any]:
        """As a row keeps it."""
        return {
            "encryption": self.kind, "kms_key_id": self.kms_key_id, "key_version": self.key_version, "wrapped_key": self.wrapped_key,
            "customer_check": self.customer_check, "bucket_key": self.bucket_key,
        }  # fmt: skip

    def etag(self, md5: str) -> str:
        """The entity tag of what was written: its MD5, unless that would tell something of it."""
        return os.urandom(16).hex() if self.kind in {NAMED, CUSTOMER} else md5


PLAIN, NOTHING = Encryption(), Asked()


def encryption_of(row: Any) -> Encryption:
    """As a row says it; without the key."""
    return Encryption(row.encryption, row.kms_key_id, row.key_version, row.wrapped_key, row.customer_check, row.bucket_key)


def _purpose(key: str) -> str:
    """What a data key is for: taken to another object, it cannot be unwrapped. Replicas have the same name, in another bucket."""
    return f"storage.object/{key}"


for _label, _model, _within in (("objects", ObjectVersion, ("storage.bucket", "bucket_id")), ("uploads", ObjectUpload, None)):
    declare_holder(Holder(_label, table_of(_model), "wrapped_key", "kms_key_id", "key_version", lambda row: _purpose(row.key), _within))


def key_named(ctx: Context, project_id: str, name: str) -> EncryptionKey:
    """A key of a project by its id or name, or by an address that ends with one of them. Raises NoSuchEncryptionKey."""
    last = name.rpartition("/")[2]
    mine = (EncryptionKey.project_id == project_id, EncryptionKey.deleted_at.is_(None))
    query = select(EncryptionKey).where(*mine, (EncryptionKey.id == last) | (EncryptionKey.name == last)).order_by(EncryptionKey.id != last)
    found = ctx.db.scalars(query.limit(1)).first() if "\x00" not in last and last.isprintable() else None
    if found is None:
        raise NoSuchEncryptionKey(f"There is no encryption key {last[:80]} in the project of the bucket.")
    return found


def encryption_for(ctx: Context, bucket: BucketFacts, key: str, asked: Asked) -> Encryption:
    """How a new object is to be encrypted, with a fresh key: outside of a transaction, before its bytes arrive.

    Raises NoSuchEncryptionKey, Forbidden for a key that the caller may not use, KeyUnusable and MasterKeyMissing.
    """
    if asked.customer is not None:
        return Encryption(CUSTOMER, customer_check=_check(asked.customer.key, os.urandom(SALT_BYTES)), key=asked.customer.key)
    kind = asked.kind or bucket.encryption_type
    if not kind or kind == "none":
        return PLAIN
    named = asked.key if asked.kind else bucket.kms_key_id or ""
    if kind == NAMED and named:
        with_key = key_named(ctx, bucket.project_id, named)
    else:
        ctx.db.rollback()
        with_key = default_key_ensure(ctx, bucket.project_id)
    if kind == NAMED:
        _permit(ctx, with_key, "generate_data_key", bucket)
    made = data_key(ctx.db, ctx.settings, with_key, context=_purpose(key))
    note_use(ctx, made.key_id, "generate_data_key", resource_id=bucket.id)
    has_bucket_key = kind == NAMED and (bucket.bucket_key_enabled if asked.bucket_key is None else asked.bucket_key)
    return Encryption(kind, made.key_id, made.version, made.wrapped, bucket_key=has_bucket_key, key=made.plain)


def _permit(ctx: Context, key: EncryptionKey, operation: str, bucket: BucketFacts) -> None:
    try:
        key_authorize(ctx, key)
    except PortalError as error:
        note_use(ctx, key.id, operation, resource_id=bucket.id, outcome="denied" if isinstance(error, Forbidden) else "failure")
        raise


def customer_check(row: Row, customer: CustomerKey | None) -> None:
    """Raise CustomerKeyMissing, CustomerKeyNotWanted or CustomerKeyWrong, unless the request has the key that something was written with."""
    if row.encryption != CUSTOMER:
        if customer is not None:
            raise CustomerKeyNotWanted("The encryption parameters are not applicable to this object.")
        return
    if customer is None:
        raise CustomerKeyMissing(
            "The object was stored using a form of Server Side Encryption. The correct parameters must be provided to retrieve the object."
        )
    kept = row.customer_check or b""
    if not hmac.compare_digest(kept, _check(customer.key, kept[:SALT_BYTES])):
        raise CustomerKeyWrong("The key is not the one that the object was encrypted with.")


def _check(key: bytes, salt: bytes) -> bytes:
    """What tells a key again, and nothing of it."""
    return salt + hmac.digest(key, b"portal: customer key\0" + salt, hashlib.sha256)


def key_of_row(ctx: Context, bucket: BucketFacts, row: Any, customer: CustomerKey | None = None) -> bytes | None:
    """The key that something is encrypted with; None if it is not. Raises what `customer_check` does, Forbidden, KeyUnusable and KeyGone."""
    customer_check(row, customer)
    if not row.encryption:
        return None
    if customer is not None:
        return customer.key
    if row.encryption == NAMED:
        _permit(ctx, key_of(ctx.db, row.wrapped_key), "decrypt", bucket)
    plain = unwrap(ctx.db, ctx.settings, row.wrapped_key, context=_purpose(row.key))
    note_use(ctx, row.kms_key_id or "", "decrypt", resource_id=bucket.id)
    return plain
