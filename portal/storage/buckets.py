"""Buckets: places for objects. What is in one is written by `objects`; here are its settings, its life and its end."""

import re
from ipaddress import ip_address
from typing import Annotated

from sqlalchemy import select

from portal.kernel import fields as f
from portal.kernel.authz import Target, authorize
from portal.kernel.context import Context
from portal.kernel.declare import Effect, operation, update_operation
from portal.kernel.errors import InvalidRequest
from portal.kernel.lifecycle import Lifecycle
from portal.kernel.resource import Column, ResourceType
from portal.security.key_models import EncryptionKey
from portal.storage.bucket_encryption import KEY, KIND, apply, bucket_set_encryption
from portal.storage.configurations import bucket_set_cors
from portal.storage.encryption import NAMED, PORTAL
from portal.storage.errors import BucketNotEmpty, BucketTaken
from portal.storage.lifecycle import bucket_set_lifecycle
from portal.storage.object_models import BUCKET_NAME, Bucket, BucketUsage
from portal.storage.policies import bucket_set_policy
from portal.storage.usage import usage_locked

LIFECYCLE = Lifecycle("active", {"active": frozenset({"deleted"})}, ended=frozenset({"deleted"}))
# What clients take for something else than a name.
RESERVED = re.compile(r"^(xn--|sthree-|amzn-s3-demo-).*|.*(-s3alias|--ol-s3|--x-s3|\.mrap|--table-s3)$|.*(\.\.|\.-|-\.).*")
NAME = f.FieldInfo(
    Bucket.__table__.c["name"].info["field"].kind, "Name", "No other bucket of this installation may have it.", aliases=("bucket_name",)
)
FORCE = f.FieldInfo(
    f.Bool(), "With everything in it", "Delete the objects as well, all versions of them. Without it, only an empty bucket is deleted."
)
GIB = 1 << 30


def name_problem(name: str) -> str:
    """What is wrong with the name of a bucket; empty if nothing is."""
    if not re.fullmatch(BUCKET_NAME[1:-1], name):
        return "must have 3 to 63 small letters, digits, dots and dashes, and begin and end with a letter or digit"
    if RESERVED.fullmatch(name):
        return "is one that clients take for something else; choose a plain one"
    try:
        ip_address(name)
    except ValueError:
        return ""
    return "must not look like an address"


@operation(Bucket, "create", label="Create", needs="write", effect=Effect.CREATE, along=lambda ctx, row, _inputs: _begin(ctx, row))
def bucket_create(
    ctx: Context, *, name: Annotated[str, NAME], description: str = "", acl: str = "private",
    versioning_enabled: Annotated[bool, f.FieldInfo(f.Bool(), "Versioning", "Keep what is overwritten or deleted as older versions.")] = True,
    data_events: bool = False, tags: dict[str, str] | None = None,
    encryption_enabled: Annotated[bool, f.FieldInfo(f.Bool(), "Encrypted", "Encrypt new objects; with the project's default key unless said otherwise.")] = False,
    encryption_type: Annotated[str, KIND] = "none", kms_key: Annotated[EncryptionKey | None, KEY] = None,
) -> Bucket:  # fmt: skip
    """Make a bucket under a name that no other one has. Who may not let others in later may not do so at once."""
    if acl != "private":
        authorize(ctx, "storage.bucket.set_acl", Target(ctx.project_id, ctx.principal.user_id, label=f"the new bucket {name[:63]}"))
    if problem := name_problem(name):
        raise InvalidRequest.fields({"name": [f"{problem}."]})
    taken = ctx.db.scalars(select(Bucket).where(Bucket.name == name, Bucket.deleted_at.is_(None))).first()
    if taken is not None:
        is_own = taken.project_id == ctx.project_id
        problem = (
            "is taken by another bucket of this project."
            if is_own
            else "is taken by a bucket of somebody else. Names are unique in the installation."
        )
        raise BucketTaken(f"name: {problem}", details={"name": [problem], "is_own": is_own})
    row = Bucket(
        name=name, description=description, acl=acl, versioning="enabled" if versioning_enabled else "off", data_events=data_events, tags=tags or {},
        cors_rules=[], lifecycle_rules=[], bucket_key_enabled=False,
    )  # fmt: skip
    kind = encryption_type if encryption_type != "none" else NAMED if kms_key is not None else PORTAL if encryption_enabled else "none"
    apply(ctx, row, ctx.project_id or "", kind, kms_key)
    return row


def _begin(ctx: Context, row: Bucket) -> None:
    ctx.db.add(BucketUsage(bucket_id=row.id))
    ctx.db.flush()


@operation(Bucket, "set_versioning", label="Set versioning", needs="write", icon="clock", in_menu=False)
def bucket_set_versioning(
    ctx: Context, bucket: Bucket, *, enabled: Annotated[bool, f.FieldInfo(f.Bool(), "Versioning", "Keep older versions from now on.")]
) -> None:
    """Keep older versions from now on, or stop doing so; versions that are there stay."""
    # Writes see either all of it or nothing.
    usage_locked(ctx.db, bucket.id)
    bucket.versioning = "enabled" if enabled else "suspended"


@operation(Bucket, "set_acl", label="Set access of others", needs="manage", icon="lock", in_menu=False)
def bucket_set_acl(ctx: Context, bucket: Bucket, *, acl: str) -> None:
    """Say what those may do whom no policy lets in."""
    del ctx
    bucket.acl = acl


@operation(
    Bucket, "delete", label="Delete", needs="delete", effect=Effect.REMOVE, icon="trash", danger=True, bulk=True, when={"active"}, holds="deleted"
)
def bucket_delete(ctx: Context, bucket: Bucket, *, force: Annotated[bool, FORCE] = False) -> None:
    """Delete a bucket; one that is not empty only with `force`. Its objects are gone at once, their bytes a little later."""
    usage = usage_locked(ctx.db, bucket.id)
    if usage.versions and not force:
        raise BucketNotEmpty(f"{bucket.name} is not empty: {usage.versions:,} objects and older versions are in it. Delete them first, or use force.")


bucket_update = update_operation(Bucket)
BUCKET = ResourceType(
    Bucket, service="storage", name="bucket", collection="buckets", prefix="bkt", label="Bucket", plural="Buckets", icon="folder",
    summary="Places for objects, which S3 clients, the API and the console read and write.",
    operations=[bucket_create, bucket_set_versioning, bucket_set_acl, bucket_set_cors, bucket_set_lifecycle, bucket_set_policy, bucket_set_encryption,
                bucket_delete, bucket_update],
    columns=[Column("name", "Name", sort="name"), Column("versioning", "Versioning", css="md"), Column("acl", "Access of others", css="lo"),
             Column("total_objects", "Objects", css="num"), Column("total_size", "Size", css="num"),
             Column("created_at", "Created", sort="created_at", css="lo")],
    lifecycle=LIFECYCLE, quota={"buckets": 1}, aliases={"bucket_name": "name", "status": "state"},
    show={"versioning_enabled": lambda v: v.versioning == "enabled", "encryption_enabled": lambda v: v.encryption_type != "none",
          "total_objects": lambda v: v.total_objects or 0,
          "total_size_bytes": lambda v: v.total_size_bytes or 0, "total_size_gb": lambda v: round((v.total_size_bytes or 0) / GIB, 3),
          "total_size": lambda v: f"{(v.total_size_bytes or 0) / (1 << 20):,.1f} MiB"},
    describe=lambda v: (f"{v.total_objects or 0:,} objects",),
)  # fmt: skip
