"""What of a bucket may be everybody's: the public-access block, who owns what is written, and the bucket's own list of access."""

from collections.abc import Mapping
from typing import Annotated, Any

from portal.kernel import fields as f
from portal.kernel.context import Context
from portal.kernel.declare import operation
from portal.kernel.errors import InvalidRequest
from portal.storage.engine_steps import ON_ENGINE, refuse_on_engine
from portal.storage.errors import AclLeft
from portal.storage.grants import ENFORCED, FLAGS, Grant, grants_checked, normalised, refuse_acl
from portal.storage.object_models import ACLS, CUSTOM, Bucket
from portal.storage.usage import usage_locked

BLOCK = f.FieldInfo(f.Document(), "Public-access block", f"An object with {', '.join(FLAGS)}, each true or false; an empty one for none.")
ACL = f.FieldInfo(f.Choice(ACLS), "Access of others", "What those may do whom no policy lets in.")
GRANTS = f.FieldInfo(f.Document(), "Grants", 'An object with "grants", a list of objects with "grantee" and "permission", in place of a word.')


@operation(Bucket, "set_acl", label="Set access of others", needs="manage", icon="lock", in_menu=False, **ON_ENGINE)
def bucket_set_acl(
    ctx: Context, bucket: Bucket, *, acl: Annotated[str, ACL] = "private", configuration: Annotated[dict[str, Any] | None, GRANTS] = None
) -> None:
    """Say what those may do whom no policy lets in."""
    if configuration:
        refuse_on_engine(ctx, "grants one by one")
    grants = grants_in(configuration) if configuration else None
    kept = grants_checked(ctx.db, grants) if grants is not None else None
    # Writes see either all of it or nothing.
    usage_locked(ctx.db, bucket.id)
    refuse_acl(bucket, acl, kept)
    bucket.acl, bucket.grants = normalised(acl, kept, bucket.owner_id)


def grants_in(configuration: Mapping[str, Any]) -> list[Grant]:
    """The grants of a document. Raises InvalidRequest."""
    given = configuration.get("grants")
    problem = InvalidRequest.fields({"grants": ["must be a list of objects with a grantee and a permission."]})
    if set(configuration) != {"grants"} or not isinstance(given, list):
        raise problem
    for each in given:
        if not isinstance(each, dict) or set(each) != {"grantee", "permission"} or not all(isinstance(value, str) for value in each.values()):
            raise problem
    return [(each["grantee"], each["permission"]) for each in given]


@operation(Bucket, "set_public_access", label="Set the public-access block", needs="manage", icon="shield", in_menu=False, **ON_ENGINE)
def bucket_set_public_access(ctx: Context, bucket: Bucket, *, block: Annotated[dict[str, Any], BLOCK]) -> None:
    """Close the ways by which a bucket could be everybody's, or open them: lists of access that are set or that are there, and policies alike."""
    usage_locked(ctx.db, bucket.id)
    bucket.public_access_block = block_checked(block)


def block_checked(block: Mapping[str, Any]) -> dict[str, bool] | None:
    """A block as it is kept; None for an empty one. Raises InvalidRequest."""
    if set(block) - set(FLAGS) or not all(isinstance(value, bool) for value in block.values()):
        raise InvalidRequest.fields({"block": [f"has {', '.join(FLAGS)}, each true or false."]})
    return {flag: block.get(flag, False) for flag in FLAGS} if block else None


@operation(Bucket, "set_ownership", label="Set the ownership of objects", needs="manage", icon="user", in_menu=False, **ON_ENGINE)
def bucket_set_ownership(ctx: Context, bucket: Bucket, *, ownership: str) -> None:
    """Say who owns what others write, and with that whether lists of access count."""
    usage_locked(ctx.db, bucket.id)
    if ownership == ENFORCED and bucket.acl not in {"", "private"} and (bucket.acl != CUSTOM or _lets_others_in(bucket)):
        raise AclLeft("The bucket's own list of access lets others in: make it private first.")
    bucket.ownership = ownership
    if ownership == ENFORCED:
        bucket.acl, bucket.grants = "private", None


def _lets_others_in(bucket: Bucket) -> bool:
    return any(each[0] != bucket.owner_id for each in bucket.grants or ())
