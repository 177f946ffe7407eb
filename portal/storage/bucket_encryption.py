"""Which encryption a bucket gives to objects that are sent without a word about it."""

from typing import Annotated, Any

from portal.kernel import fields as f
from portal.kernel.authz import authorize, target_of
from portal.kernel.context import Context
from portal.kernel.declare import operation
from portal.kernel.errors import InvalidRequest
from portal.security.encryption_keys import key_authorize
from portal.security.key_models import EncryptionKey
from portal.storage.encryption import NAMED, key_named
from portal.storage.engine_steps import refuse_on_engine
from portal.storage.object_models import ENCRYPTION, Bucket

KIND = f.FieldInfo(
    f.Choice(ENCRYPTION),
    "Encryption",
    "sse-s3 takes the project's default key; sse-kms the one that is named, for which its users need a permission.",
)
KEY = f.FieldInfo(f.Ref("security.key"), "Encryption key", "For sse-kms; the project's default key if left empty.", aliases=("kms_key_id", "key_id"))
FIELDS = ("encryption_type", "kms_key_id")
BUCKET_KEY = f.FieldInfo(f.Bool(), "Bucket key", "Kept and told to S3 clients.")


@operation(Bucket, "set_encryption", label="Set encryption", needs="write", icon="lock", in_menu=False)
def bucket_set_encryption(
    ctx: Context, bucket: Bucket, *, type: Annotated[str, KIND], kms_key: Annotated[EncryptionKey | None, KEY] = None,  # noqa: A002 - as the API calls it
    bucket_key_enabled: Annotated[bool, BUCKET_KEY] = False,
) -> None:  # fmt: skip
    """Encrypt new objects from now on that are sent without a word about it, or no longer; those that are there stay as they are."""
    apply(ctx, bucket, bucket.project_id, type, kms_key)
    bucket.bucket_key_enabled = bucket_key_enabled and type == NAMED


def apply(ctx: Context, bucket: Bucket, project_id: str, kind: str, key: EncryptionKey | None) -> None:
    """Have a bucket encrypt. Raises InvalidRequest, Forbidden for a key that the caller may not use, or KeyUnusable."""
    if kind != "none":
        refuse_on_engine(ctx, "encryption")
    if key is not None:
        if kind != NAMED:
            raise InvalidRequest.fields({"kms_key": [f"goes with the type {NAMED} only."]})
        if key.project_id != project_id:
            raise InvalidRequest.fields({"kms_key": ["must be a key of the project of the bucket."]})
        key_authorize(ctx, key)
    bucket.encryption_type, bucket.kms_key_id = kind, key.id if key is not None else None


def encryption_change(ctx: Context, bucket: Bucket, changes: dict[str, Any]) -> None:
    """Take what is said of encryption out of the changes of a bucket, and do it: a key alone means sse-kms. Raises what `apply` raises."""
    said = {name: changes.pop(name) for name in FIELDS if name in changes}
    if not said:
        return
    authorize(ctx, "storage.bucket.set_encryption", target_of(bucket))
    kind = said.get("encryption_type", NAMED)
    kept = bucket.kms_key_id if kind == NAMED else None
    named = said.get("kms_key_id", kept)
    apply(ctx, bucket, bucket.project_id, kind, key_named(ctx, bucket.project_id, named) if named else None)
    bucket.bucket_key_enabled = bucket.bucket_key_enabled and kind == NAMED
