"""The settings of a bucket that are no documents: what their forms show, which is what is set now, and what they ask for."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import or_, select
from werkzeug.datastructures import MultiDict

from portal.kernel.authz import reach
from portal.kernel.context import Context
from portal.kernel.declare import Operation
from portal.security.encryption_keys import KEY, USE
from portal.security.key_models import EncryptionKey
from portal.storage.access_logs import bucket_set_logging
from portal.storage.bucket_encryption import bucket_set_encryption
from portal.storage.buckets import BUCKET, bucket_set_versioning
from portal.storage.encryption import NAMED
from portal.storage.grants import FLAGS
from portal.storage.locks import bucket_set_object_lock
from portal.storage.object_models import OWNERSHIP, UNSET, Bucket
from portal.storage.public_access import bucket_set_acl, bucket_set_ownership, bucket_set_public_access
from portal.web.derived import why_not

LISTED = 100
FLAG_WORDS = dict(zip(FLAGS, (
    "Refuse lists of access that let everybody in", "Ignore those that are there", "Refuse policies that let everybody in",
    "Let only people of the project in by such policies",
), strict=True))  # fmt: skip
ENCRYPTION_WORDS = {
    "none": "Not encrypted", "sse-s3": "SSE-S3: the project's key", NAMED: "SSE-KMS: a key of your choice",
}  # fmt: skip
OWNERSHIP_WORDS = dict(zip((*OWNERSHIP, UNSET), (
    "The bucket's owner owns it all", "The bucket's owner, if writers say so", "Whoever writes it owns it", "Not said: whoever writes it owns it",
), strict=True))  # fmt: skip


@dataclass(frozen=True, slots=True)
class Asked:
    """What a form asks for, and what is said once it is done."""

    op: Operation
    inputs: Mapping[str, Any]
    said: str


@dataclass(frozen=True, slots=True)
class Switches:
    """What the forms show: the bucket as it is, or what was typed into the one (`wrong`) that was refused, and why."""

    why_no: Mapping[str, str]
    fields: Mapping[str, str]
    keys: Mapping[str, str]
    buckets: tuple[str, ...]
    wrong: str = ""
    message: str = ""
    flags: Mapping[str, str] = field(default_factory=lambda: FLAG_WORDS)
    encryptions: Mapping[str, str] = field(default_factory=lambda: ENCRYPTION_WORDS)
    ownerships: Mapping[str, str] = field(default_factory=lambda: OWNERSHIP_WORDS)

    def problem(self, name: str) -> str:
        """Why the form of this name was refused; empty if it was not."""
        return self.message if self.wrong == name else ""


def _versioning(bucket: Bucket, form: MultiDict[str, str]) -> Asked:
    del bucket
    keeps = form["versioning"] == "true"
    said = "Older versions are kept from now on." if keeps else "Older versions are not kept any more; those that are there stay."
    return Asked(bucket_set_versioning, {"enabled": keeps}, said)


def _acl(bucket: Bucket, form: MultiDict[str, str]) -> Asked:
    del bucket
    return Asked(bucket_set_acl, {"acl": form["acl"]}, "The access of others is changed.")


def _public_access(bucket: Bucket, form: MultiDict[str, str]) -> Asked:
    del bucket
    return Asked(bucket_set_public_access, {"block": {flag: flag in form for flag in FLAGS}}, "The public-access block is changed.")


def _lock(bucket: Bucket, form: MultiDict[str, str]) -> Asked:
    del bucket
    count = form.get("count", "")
    number = int(count) if count.isascii() and count.isdigit() and len(count) < 7 else 0  # noqa: PLR2004 - no retention is longer
    unit = "years" if form.get("unit") == "years" else "days"
    return Asked(bucket_set_object_lock, {"rule": {"mode": form.get("mode", ""), unit: number} if form.get("mode") else {}}, "Object lock is set.")


def _encryption(bucket: Bucket, form: MultiDict[str, str]) -> Asked:
    kind, key = form["encryption"], form.get("kms_key", "")
    # The page says that the key is for the one kind only: which one is chosen for another says nothing.
    inputs = {"type": kind, "bucket_key_enabled": bucket.bucket_key_enabled, **({"kms_key": key} if key and kind == NAMED else {})}
    return Asked(
        bucket_set_encryption, inputs, "New objects are not encrypted any more." if kind == "none" else "New objects are encrypted from now on."
    )


def _logging(bucket: Bucket, form: MultiDict[str, str]) -> Asked:
    del bucket
    target, prefix = form["log_target"].strip(), form.get("log_prefix", "").strip()
    said = f"Requests are written down in {target} from now on." if target else "Requests are not written down any more."
    return Asked(bucket_set_logging, {"target_bucket": target, "prefix": prefix if target else ""}, said)


def _ownership(bucket: Bucket, form: MultiDict[str, str]) -> Asked:
    del bucket
    return Asked(bucket_set_ownership, {"ownership": form["ownership"]}, "The ownership of objects is changed.")


# The field that only one form has → (the operation, what it is asked for).
FORMS: Mapping[str, tuple[Operation, Callable[[Bucket, MultiDict[str, str]], Asked]]] = {
    "versioning": (bucket_set_versioning, _versioning), "acl": (bucket_set_acl, _acl), "public_access": (bucket_set_public_access, _public_access),
    "lock": (bucket_set_object_lock, _lock), "encryption": (bucket_set_encryption, _encryption), "log_target": (bucket_set_logging, _logging),
    "ownership": (bucket_set_ownership, _ownership),
}  # fmt: skip


def form_in(form: MultiDict[str, str]) -> str:
    """The name of the form that was sent; empty for none of them."""
    return next((name for name in FORMS if name in form), "")


def switches(ctx: Context, bucket: Bucket, *, typed: MultiDict[str, str] | None = None, message: str = "") -> Switches:
    """The forms as they are now; with what was typed into one that was refused."""
    present = {
        "encryption": bucket.encryption_type, "kms_key": bucket.kms_key_id or "", "log_target": (bucket.logging or {}).get("bucket_name", ""),
        "log_prefix": (bucket.logging or {}).get("prefix", ""), "ownership": bucket.ownership,
    }  # fmt: skip
    shown = {name: typed.get(name, value) for name, value in present.items()} if typed is not None else present
    open_ = {op.verb: why_not(ctx, BUCKET, op, bucket) for op, _ in FORMS.values()}
    return Switches(open_, shown, _keys(ctx, bucket), _buckets(ctx, bucket), form_in(typed) if typed is not None else "", message)


def _keys(ctx: Context, bucket: Bucket) -> dict[str, str]:
    """Id → name of the keys that the bucket may be given by the caller, and of the one it has."""
    can_use = (EncryptionKey.state == "enabled") & reach(ctx, USE).rows(EncryptionKey)
    mine = (EncryptionKey.project_id == bucket.project_id, EncryptionKey.deleted_at.is_(None), reach(ctx, f"{KEY.key}.read").rows(EncryptionKey))
    query = select(EncryptionKey.id, EncryptionKey.name).where(*mine, or_(can_use, EncryptionKey.id == bucket.kms_key_id))
    found = {row.id: row.name for row in ctx.db.execute(query.order_by(EncryptionKey.name, EncryptionKey.id).limit(LISTED))}
    if bucket.kms_key_id and bucket.kms_key_id not in found:
        found[bucket.kms_key_id] = bucket.kms_key_id
    return found


def _buckets(ctx: Context, bucket: Bucket) -> tuple[str, ...]:
    """Names of buckets that the log may be written into."""
    mine = (Bucket.project_id == bucket.project_id, Bucket.deleted_at.is_(None), reach(ctx, f"{BUCKET.key}.read").rows(Bucket))
    return tuple(ctx.db.scalars(select(Bucket.name).where(*mine).order_by(Bucket.name).limit(LISTED)))
