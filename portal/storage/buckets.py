"""Buckets: places for objects. What is in one is written by `objects`; here are its settings, its life and its end."""

import re
from collections.abc import Sequence
from ipaddress import ip_address
from typing import Annotated, Any

from sqlalchemy import select

from portal.kernel import fields as f
from portal.kernel.authz import Target, authorize
from portal.kernel.capabilities import capability
from portal.kernel.context import Context
from portal.kernel.declare import Effect, operation, update_operation
from portal.kernel.errors import InvalidRequest, StateConflict, Unavailable
from portal.kernel.lifecycle import Lifecycle
from portal.kernel.resource import Column, ResourceType
from portal.security.encryption_keys import refuse_needless_key
from portal.security.key_models import EncryptionKey
from portal.storage.access_logs import bucket_set_logging
from portal.storage.bucket_encryption import FIELDS, KEY, KIND, apply, bucket_set_encryption, encryption_change
from portal.storage.configurations import bucket_set_cors
from portal.storage.encryption import NAMED, PORTAL
from portal.storage.engine_steps import MAKE, ON_ENGINE, REMOVE, on_engine, refuse_on_engine
from portal.storage.errors import AclBlocked, AclLeft, BucketLocked, BucketNotEmpty, BucketTaken
from portal.storage.grants import BLOCKED, ENFORCED, Grant, grants_checked, grants_of, is_public, normalised
from portal.storage.lifecycle import bucket_set_lifecycle
from portal.storage.locks import bucket_set_object_lock, buckets_held, refuse_held
from portal.storage.notifications import bucket_set_notifications
from portal.storage.object_models import BUCKET_NAME, Bucket, BucketUsage
from portal.storage.policies import bucket_set_policy
from portal.storage.public_access import ACL, GRANTS, bucket_set_acl, bucket_set_ownership, bucket_set_public_access, grants_in
from portal.storage.replication import bucket_set_replication
from portal.storage.usage import usage_locked
from portal.storage.websites import bucket_set_website

# Where an external engine keeps objects, buckets are made and deleted by jobs.
LIFECYCLE = Lifecycle(
    "active",
    {
        "creating": frozenset({"active", "error"}), "active": frozenset({"deleting", "deleted"}),
        "deleting": frozenset({"deleted", "active", "error"}), "error": frozenset({"deleting", "deleted"}),
    },
    transient=frozenset({"creating", "deleting"}), ended=frozenset({"deleted"}), tones={"error": "bad"},
)  # fmt: skip
# What clients take for something else than a name.
RESERVED = re.compile(r"^(xn--|sthree-|amzn-s3-demo-).*|.*(-s3alias|--ol-s3|--x-s3|\.mrap|--table-s3)$|.*(\.\.|\.-|-\.).*")
NAME = f.FieldInfo(
    Bucket.__table__.c["name"].info["field"].kind, "Name", "No other bucket of this installation may have it.", aliases=("bucket_name",)
)
AS_INSTALLED, CLOSED, OPEN = "default", "blocked", "allowed"
PUBLIC_ACCESS = f.FieldInfo(
    f.Choice((AS_INSTALLED, CLOSED, OPEN)),
    "Public access",
    "Whether lists of access and policies may make the bucket everybody's; by default what the installation says, which can be changed later.",
)
FORCE = f.FieldInfo(
    f.Bool(), "With everything in it", "Delete the objects as well, all versions of them. Without it, only an empty bucket is deleted."
)
REASON = f.FieldInfo(f.Line(255), "Reason", "Why.")
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


def refuse_without_engine(ctx: Context) -> None:
    """Raise Unavailable while the external engine for objects is known not to answer."""
    status = capability(ctx.db, "objects")
    if status is not None and not status.available:
        raise Unavailable(
            f"Buckets cannot be made now: {status.reason} {status.remedy}".strip(), details={"reason": status.reason, "remedy": status.remedy}
        )


@operation(
    Bucket, "create", label="Create", needs="write", effect=Effect.CREATE, along=lambda ctx, row, _inputs: _begin(ctx, row), steps=MAKE, by_job=on_engine,
    holds="creating", settles="active", fails="error", cancelled="error",
)  # fmt: skip
def bucket_create(
    ctx: Context, *, name: Annotated[str, NAME], description: str = "", acl: Annotated[str, ACL] = "private",
    versioning_enabled: Annotated[bool, f.FieldInfo(f.Bool(), "Versioning", "Keep what is overwritten or deleted as older versions.")] = True,
    data_events: bool = False, object_lock: bool = False, ownership: str = ENFORCED, tags: dict[str, str] | None = None,
    public_access: Annotated[str, PUBLIC_ACCESS] = AS_INSTALLED, configuration: Annotated[dict[str, Any] | None, GRANTS] = None,
    encryption_enabled: Annotated[bool | None, f.FieldInfo(f.Bool(), "Encrypted", "Encrypt new objects; with the project's default key unless said otherwise.")] = None,
    encryption_type: Annotated[str, KIND] = "none", kms_key: Annotated[EncryptionKey | None, KEY] = None,
) -> Bucket:  # fmt: skip
    """Make a bucket under a name that no other one has. Who may not let others in later may not do so at once."""
    if on_engine(ctx.settings):
        refuse_without_engine(ctx)
        if object_lock or configuration:
            refuse_on_engine(ctx, "object lock" if object_lock else "grants one by one")
    given = grants_checked(ctx.db, grants_in(configuration)) if configuration else None
    is_blocked = ctx.settings.s3_block_public_access if public_access == AS_INSTALLED else public_access == CLOSED
    later = {
        "set_acl": acl != "private" or given is not None, "set_object_lock": object_lock,
        "set_public_access": ctx.settings.s3_block_public_access and not is_blocked,
    }  # fmt: skip
    for verb in (verb for verb, is_asked in later.items() if is_asked):
        authorize(ctx, f"storage.bucket.{verb}", Target(ctx.project_id, ctx.principal.user_id, label=f"the new bucket {name[:63]}"))
    _refuse_contradiction(acl, given, ownership, is_blocked=is_blocked)
    if object_lock and not versioning_enabled:
        raise InvalidRequest.fields({"versioning_enabled": ["must be on in a bucket with object lock."]})
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
    word, kept = normalised(acl, given, ctx.principal.user_id)
    row = Bucket(
        name=name, description=description, acl=word, versioning="enabled" if versioning_enabled else "off", data_events=data_events, tags=tags or {},
        cors_rules=[], lifecycle_rules=[], object_lock=object_lock, ownership=ownership, public_access_block=dict(BLOCKED) if is_blocked else None,
        grants=kept, bucket_key_enabled=False,
    )  # fmt: skip
    refuse_needless_key(encryption_enabled, kms_key)
    kind = encryption_type if encryption_type != "none" else NAMED if kms_key is not None else PORTAL if encryption_enabled else "none"
    apply(ctx, row, ctx.project_id or "", kind, kms_key)
    return row


def _refuse_contradiction(acl: str, given: Sequence[Grant] | None, ownership: str, *, is_blocked: bool) -> None:
    """Raise AclLeft or AclBlocked for a list of access that would not count, or is not to be set, from the beginning."""
    if ownership == ENFORCED and (acl != "private" or given is not None):
        raise AclLeft(
            f"A bucket has no list of access where its owner owns all that is in it: name another ownership than {ENFORCED}, or use a policy."
        )
    if is_blocked and is_public(given if given is not None else grants_of(acl, None)):
        raise AclBlocked("A bucket that blocks public access lets nobody in by a list of access: allow it with public_access.")


def _begin(ctx: Context, row: Bucket) -> None:
    ctx.db.add(BucketUsage(bucket_id=row.id))
    ctx.db.flush()


@operation(Bucket, "set_versioning", label="Set versioning", needs="write", icon="clock", in_menu=False, **ON_ENGINE)
def bucket_set_versioning(
    ctx: Context, bucket: Bucket, *, enabled: Annotated[bool, f.FieldInfo(f.Bool(), "Versioning", "Keep older versions from now on.")]
) -> None:
    """Keep older versions from now on, or stop doing so; versions that are there stay."""
    # Writes see either all of it or nothing.
    usage_locked(ctx.db, bucket.id)
    if bucket.object_lock and not enabled:
        raise BucketLocked(f"{bucket.name} has object lock: its versions are kept for good.")
    if bucket.replication and not enabled:
        raise StateConflict(f"{bucket.name} is replicated, which needs versions. End the replication first.")
    bucket.versioning = "enabled" if enabled else "suspended"


@operation(
    Bucket, "delete", label="Delete", needs="delete", effect=Effect.REMOVE, icon="trash", danger=True, bulk=True, when={"active", "error"},
    steps=REMOVE, by_job=on_engine, holds="deleting", settles="deleted", fails="active",
)  # fmt: skip
def bucket_delete(ctx: Context, bucket: Bucket, *, force: Annotated[bool, FORCE] = False) -> None:
    """Delete a bucket; one that is not empty only with `force`. Its objects are gone at once, their bytes a little later. What is locked is never."""
    usage = usage_locked(ctx.db, bucket.id)
    if force:
        refuse_held(ctx.db, bucket)
    # An external engine knows better what it has: it is asked by the job.
    if usage.versions and not force and not on_engine(ctx.settings):
        raise BucketNotEmpty(f"{bucket.name} is not empty: {usage.versions:,} objects and older versions are in it. Delete them first, or use force.")


@operation(Bucket, "refit", label="Bring the engine up to date", needs="platform", internal=True, while_locked=True, **ON_ENGINE)
def bucket_refit(ctx: Context, bucket: Bucket, *, reason: Annotated[str, REASON]) -> None:
    """Tell the external engine what the bucket is to be like, and who may do what in it."""
    del ctx, bucket, reason


bucket_update = update_operation(Bucket, besides=FIELDS, before=encryption_change)
BUCKET = ResourceType(
    Bucket, service="storage", name="bucket", collection="buckets", prefix="bkt", label="Bucket", plural="Buckets", icon="folder",
    summary="Places for objects, which S3 clients, the API and the console read and write.",
    operations=[bucket_create, bucket_set_versioning, bucket_set_acl, bucket_set_cors, bucket_set_lifecycle, bucket_set_policy, bucket_set_encryption,
                bucket_set_object_lock, bucket_set_public_access, bucket_set_ownership, bucket_set_website, bucket_set_logging, bucket_set_notifications,
                bucket_set_replication, bucket_delete, bucket_update, bucket_refit],
    columns=[Column("name", "Name", sort="name"), Column("versioning", "Versioning", css="md"), Column("acl", "Access of others", css="lo"),
             Column("total_objects", "Objects", css="num"), Column("total_size", "Size", css="num"),
             Column("created_at", "Created", sort="created_at", css="lo")],
    lifecycle=LIFECYCLE, quota={"buckets": 1}, extra_permissions={"empty": "delete"}, aliases={"bucket_name": "name", "status": "state"},
    show={"versioning_enabled": lambda v: v.versioning == "enabled", "encryption_enabled": lambda v: v.encryption_type != "none",
          "logging_enabled": lambda v: bool(v.logging),
          "log_target_bucket": lambda v: v.logging["bucket_name"] if v.logging else None, "total_objects": lambda v: v.total_objects or 0,
          "total_size_bytes": lambda v: v.total_size_bytes or 0, "total_size_gb": lambda v: round((v.total_size_bytes or 0) / GIB, 3),
          "total_size": lambda v: f"{(v.total_size_bytes or 0) / (1 << 20):,.1f} MiB"},
    describe=lambda v: (f"{v.total_objects or 0:,} objects",), in_the_way=buckets_held,
)  # fmt: skip
