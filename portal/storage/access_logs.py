"""Access logs: what requests came to a bucket, as objects in another one. Who may write there says so; the portal writes them by itself."""

import hashlib
import logging
from datetime import UTC, datetime
from typing import Annotated

from portal.engines.object_ports import BlobStore
from portal.kernel import fields as f
from portal.kernel.context import Context
from portal.kernel.db import now
from portal.kernel.declare import operation
from portal.kernel.errors import InvalidRequest, NotFound, PreconditionFailed, QuotaExceeded
from portal.security.key_store import KeyUnusable
from portal.storage.access import WRITE, authorize_object, check_key
from portal.storage.encryption import NOTHING, encryption_for
from portal.storage.engine_steps import refuse_on_engine
from portal.storage.errors import NoSuchEncryptionKey
from portal.storage.facts import bucket_by_id, bucket_named
from portal.storage.object_models import Bucket
from portal.storage.objects import About, Condition, Content, object_put

log = logging.getLogger("portal.storage")
PREFIX_BYTES = 900
TARGET = f.FieldInfo(f.Line(64), "Bucket for the log", "A bucket of the same project, by name or id; empty for no log.")
PREFIX = f.FieldInfo(f.Line(PREFIX_BYTES), "Prefix", "What the names of the log's objects begin with.")


@operation(Bucket, "set_logging", label="Set access log", needs="manage", icon="file", in_menu=False)
def bucket_set_logging(
    ctx: Context, bucket: Bucket, *, target_bucket: Annotated[str, TARGET] = "", prefix: Annotated[str, PREFIX] = ""
) -> None:  # fmt: skip
    """Write down what requests come to a bucket from now on, as objects in another bucket; without one, no more."""
    refuse_on_engine(ctx, "an access log")
    if not target_bucket:
        bucket.logging = None
        return
    try:
        target = bucket_by_id(ctx.db, target_bucket) or bucket_named(ctx.db, target_bucket)
    except NotFound:
        target = None
    if target is None or target.project_id != bucket.project_id:
        raise InvalidRequest.fields({"target_bucket": ["must be a bucket of the same project."]})
    if prefix:
        check_key(prefix)
    if len(prefix.encode()) > PREFIX_BYTES:
        raise InvalidRequest.fields({"prefix": [f"may have {PREFIX_BYTES} bytes."]})
    authorize_object(ctx, target, WRITE, prefix)
    bucket.logging = {"bucket_id": target.id, "bucket_name": target.name, "prefix": prefix, "since": now().timestamp()}


def log_write(ctx: Context, blobs: BlobStore, bucket: Bucket, lines: str, *, at: float, token: str) -> bool:
    """Write lines as an object of a bucket's log, encrypted where that one encrypts; what a `token` names is written once.

    False where the log has no place any more, or only one that nothing can be encrypted for.
    """
    kept = bucket.logging or {}
    target = bucket_by_id(ctx.db, str(kept.get("bucket_id", "")))
    if target is None or target.project_id != bucket.project_id:
        return False
    moment = datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d-%H-%M-%S")
    key = f"{kept['prefix']}{moment}-{hashlib.sha256(token.encode()).hexdigest()[:16].upper()}"
    data = lines.encode()
    try:
        encryption = encryption_for(ctx, target, key, NOTHING)
    except (KeyUnusable, NoSuchEncryptionKey, NotFound) as error:
        log.warning("the access log of %s is not written into %s: %s", bucket.name, target.name, error.message)
        return False
    ctx.db.rollback()
    with blobs.writing(key=encryption.key) as writer:
        writer.write(data)
        blob = writer.finish()
    content = Content(encryption.etag(hashlib.md5(data, usedforsecurity=False).hexdigest()), blob)
    about = About({"content-type": "text/plain"}, encryption=encryption)
    try:
        object_put(ctx, target, key, content, about, condition=Condition(none_match="*"))
    except (PreconditionFailed, QuotaExceeded, NotFound) as error:
        blobs.remove(blob.id)
        return isinstance(error, PreconditionFailed)
    return True
