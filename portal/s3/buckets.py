"""Buckets as S3 clients make, find and delete them."""

from portal.kernel.lookup import ListQuery, found_rows
from portal.kernel.operations import run
from portal.s3 import xml
from portal.s3.acl_heads import Asked, asked_in_headers
from portal.s3.acls import configuration_of
from portal.s3.errors import S3Error
from portal.s3.exchange import Answer, Exchange, document, people, person
from portal.storage.access import LIST, authorize_object
from portal.storage.buckets import BUCKET, bucket_create, bucket_delete, bucket_set_versioning, name_problem
from portal.storage.facts import bucket_named
from portal.storage.grants import ENFORCED
from portal.storage.object_models import OWNERSHIP

MOST_BUCKETS = 10_000


def list_all(x: Exchange) -> Answer:
    """The buckets of the key's project."""
    if x.ctx.principal.user_id is None:
        raise S3Error("AccessDenied")
    rows = found_rows(x.ctx, BUCKET, ListQuery(), limit=MOST_BUCKETS)
    names = people(x.ctx, [x.ctx.principal.user_id])
    listed = [xml.group("Bucket", xml.leaf("Name", row.name), xml.leaf("CreationDate", xml.timestamp(row.created_at))) for row in rows]
    return document("ListAllMyBucketsResult", person("Owner", x.ctx.principal.user_id, names), xml.group("Buckets", *listed))


def create(x: Exchange) -> Answer:
    """Make a bucket; without versions, as S3 does."""
    if x.ctx.principal.user_id is None:
        raise S3Error("AccessDenied")
    if problem := name_problem(x.bucket):
        raise S3Error("InvalidBucketName", f"The bucket name {problem}.", BucketName=x.bucket[:255])
    if body := x.document_bytes():
        xml.parse(body, "CreateBucketConfiguration")
    asked = asked_in_headers(x.request, of_bucket=True) or Asked()
    given = {"acl": asked.acl} if asked.grants is None else {"configuration": configuration_of(asked.grants)}
    ownership = x.request.header("x-amz-object-ownership", ENFORCED)
    if ownership not in OWNERSHIP:
        raise S3Error("InvalidArgument", ArgumentName="x-amz-object-ownership", ArgumentValue=ownership[:64])
    is_locked = x.request.header("x-amz-bucket-object-lock-enabled").lower() == "true"
    run(x.ctx, bucket_create, None, {"name": x.bucket, **given, "ownership": ownership, "versioning_enabled": is_locked, "object_lock": is_locked})
    return Answer(headers={"Location": f"/{x.bucket}"})


def head(x: Exchange) -> Answer:
    """Whether the bucket is there, and may be listed."""
    authorize_object(x.ctx, bucket_named(x.ctx.db, x.bucket), LIST, "")
    return Answer(headers={"x-amz-bucket-region": "us-east-1"})


def delete(x: Exchange) -> Answer:
    """Delete an empty bucket."""
    run(x.ctx, bucket_delete, bucket_named(x.ctx.db, x.bucket).id, {})
    return Answer(204)


def location(x: Exchange) -> Answer:
    """Where the bucket is: clients sign for what they are told here, and an empty element is the usual place."""
    authorize_object(x.ctx, bucket_named(x.ctx.db, x.bucket), LIST, "")
    return document("LocationConstraint")


def versioning(x: Exchange) -> Answer:
    """Whether older versions are kept; nothing is said of a bucket that never did."""
    bucket = bucket_named(x.ctx.db, x.bucket)
    authorize_object(x.ctx, bucket, LIST, "")
    status = {"enabled": "Enabled", "suspended": "Suspended"}.get(bucket.versioning)
    return document("VersioningConfiguration", *([xml.leaf("Status", status)] if status else []))


def set_versioning(x: Exchange) -> Answer:
    """Keep older versions from now on, or stop doing so."""
    status = x.document("VersioningConfiguration").value("Status")
    if status not in {"Enabled", "Suspended"}:
        raise S3Error("IllegalVersioningConfigurationException")
    run(x.ctx, bucket_set_versioning, bucket_named(x.ctx.db, x.bucket).id, {"enabled": status == "Enabled"})
    return Answer()
