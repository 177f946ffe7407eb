"""The public-access block and the ownership of objects, as S3 clients set and read them."""

from portal.kernel.lookup import find
from portal.kernel.operations import run
from portal.s3 import xml
from portal.s3.errors import S3Error
from portal.s3.exchange import Answer, Exchange, document
from portal.storage.buckets import BUCKET
from portal.storage.facts import bucket_named
from portal.storage.object_models import OWNERSHIP, UNSET, Bucket
from portal.storage.public_access import bucket_set_ownership, bucket_set_public_access

ELEMENTS = {
    "block_public_acls": "BlockPublicAcls", "ignore_public_acls": "IgnorePublicAcls", "block_public_policy": "BlockPublicPolicy",
    "restrict_public_buckets": "RestrictPublicBuckets",
}  # fmt: skip
WORDS = {"true": True, "false": False}


def _bucket(x: Exchange) -> Bucket:
    row: Bucket = find(x.ctx, BUCKET, bucket_named(x.ctx.db, x.bucket).id)
    return row


def get_block(x: Exchange) -> Answer:
    """Which ways to let everybody in are closed."""
    block = _bucket(x).public_access_block
    if not block:
        raise S3Error("NoSuchPublicAccessBlockConfiguration")
    return document("PublicAccessBlockConfiguration", *(xml.leaf(element, block[flag]) for flag, element in ELEMENTS.items()))


def put_block(x: Exchange) -> Answer:
    """Close some, and open the others."""
    asked = x.document("PublicAccessBlockConfiguration")
    given = {flag: (asked.value(element) or "false").strip().lower() for flag, element in ELEMENTS.items()}
    if set(given.values()) - set(WORDS) or {node.name for node in asked.children} - set(ELEMENTS.values()):
        raise S3Error("MalformedXML")
    return _set_block(x, {flag: WORDS[word] for flag, word in given.items()}, 200)


def delete_block(x: Exchange) -> Answer:
    """Open all of them."""
    return _set_block(x, {}, 204)


def _set_block(x: Exchange, block: dict[str, bool], status: int) -> Answer:
    run(x.ctx, bucket_set_public_access, bucket_named(x.ctx.db, x.bucket).id, {"block": block})
    return Answer(status)


def get_ownership(x: Exchange) -> Answer:
    """Who owns what others write."""
    ownership = _bucket(x).ownership
    if ownership == UNSET:
        raise S3Error("OwnershipControlsNotFoundError")
    return document("OwnershipControls", xml.group("Rule", xml.leaf("ObjectOwnership", ownership)))


def put_ownership(x: Exchange) -> Answer:
    """Say so."""
    rules = list(x.document("OwnershipControls").children_named("Rule"))
    ownership = rules[0].value("ObjectOwnership") if len(rules) == 1 else None
    if ownership not in OWNERSHIP:
        raise S3Error("MalformedXML")
    run(x.ctx, bucket_set_ownership, bucket_named(x.ctx.db, x.bucket).id, {"ownership": ownership})
    return Answer()


def delete_ownership(x: Exchange) -> Answer:
    """Say nothing of it: whoever writes something owns it."""
    run(x.ctx, bucket_set_ownership, bucket_named(x.ctx.db, x.bucket).id, {"ownership": UNSET})
    return Answer(204)
