"""What conditions of policies see of the encryption of a new object: what the request says of it, as S3 names it, and for IAM, what comes of that."""

from collections.abc import Mapping
from typing import Any

from portal.kernel.context import Context
from portal.kernel.errors import PortalError
from portal.security.key_store import default_key
from portal.storage.encryption import CUSTOMER, NAMED, PORTAL, Asked, key_named
from portal.storage.facts import BucketFacts

HEADER = "x-amz-server-side-encryption"
KEY_HEADER, CUSTOMER_HEADER = f"{HEADER}-aws-kms-key-id", f"{HEADER}-customer-algorithm"
# Keys of conditions in policies of buckets.
SENT = tuple(f"s3:{name}" for name in (HEADER, KEY_HEADER, CUSTOMER_HEADER))
BY_NAME, BY_KEY, BY_CUSTOMER = SENT
# Kind of encryption → what S3 calls its algorithm.
ALGORITHMS = {PORTAL: "AES256", NAMED: "aws:kms"}
CUSTOMER_ALGORITHM = "AES256"
# Fields of a request that writes an object, as statements of IAM name them.
KIND, KEY = "encryption", "kms_key"
FIELDS = {KIND: KIND, KEY: KEY}


def show_asked(ctx: Context, bucket: BucketFacts, asked: Asked, *, encrypts: bool = False) -> None:
    """Let conditions see what a request says, and what it comes to with the bucket's own word; with `encrypts`, at least the portal's key."""
    kind = CUSTOMER if asked.customer is not None else asked.kind or bucket.encryption_type or "none"
    kind = PORTAL if encrypts and kind == "none" else kind
    named = _key_id(ctx, bucket, asked.key) if asked.key else ""
    key_id = named or (bucket.kms_key_id if not asked.kind else None) or ""
    if kind == NAMED and not key_id:
        found = default_key(ctx.db, bucket.project_id)
        key_id = found.id if found is not None else ""
    _show(ctx, asked.kind if asked.customer is None else CUSTOMER, named, {KIND: kind} | ({KEY: key_id} if kind == NAMED and key_id else {}))


def show_upload(ctx: Context, upload: Any) -> None:
    """The same of the parts and the end of an upload, which is encrypted as was said at its beginning."""
    kind = upload.encryption or "none"
    key_id = upload.kms_key_id or "" if kind == NAMED else ""
    _show(ctx, "" if kind == "none" else kind, key_id, {KIND: kind} | ({KEY: key_id} if key_id else {}))


def _show(ctx: Context, kind: str, key_id: str, fields: Mapping[str, str]) -> None:
    said = {BY_CUSTOMER: CUSTOMER_ALGORITHM} if kind == CUSTOMER else {BY_NAME: ALGORITHMS[kind]} if kind else {}
    before = {name: value for name, value in ctx.inputs.items() if name not in {*SENT, *FIELDS}}
    ctx.inputs = {**before, **fields, **said, **({BY_KEY: key_id} if key_id else {})}


def _key_id(ctx: Context, bucket: BucketFacts, name: str) -> str:
    """The id of the key that a request names, as it is, where there is none: that is told to whoever may write."""
    try:
        return key_named(ctx, bucket.project_id, name).id
    except PortalError:
        return name


def is_upload(ctx: Context) -> bool:
    """Whether the request brings an object, and not only a word about one."""
    return KIND in ctx.inputs
