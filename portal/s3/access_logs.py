"""Where the access log of a bucket goes, as S3 clients say it."""

from portal.kernel.errors import InvalidRequest
from portal.kernel.lookup import find
from portal.kernel.operations import run
from portal.s3 import xml
from portal.s3.errors import S3Error
from portal.s3.exchange import Answer, Exchange, document
from portal.storage.access_logs import bucket_set_logging
from portal.storage.buckets import BUCKET
from portal.storage.facts import bucket_named
from portal.storage.object_models import Bucket


def get(x: Exchange) -> Answer:
    """Where the log goes; an empty answer where there is none."""
    row: Bucket = find(x.ctx, BUCKET, bucket_named(x.ctx.db, x.bucket).id)
    if not row.logging:
        return document("BucketLoggingStatus")
    target = [xml.leaf("TargetBucket", row.logging["bucket_name"]), xml.leaf("TargetPrefix", row.logging["prefix"])]
    return document("BucketLoggingStatus", xml.group("LoggingEnabled", *target))


def put(x: Exchange) -> Answer:
    """Have a log written, or none."""
    enabled = x.document("BucketLoggingStatus").child("LoggingEnabled")
    said = {"target_bucket": "", "prefix": ""}
    if enabled is not None:
        for name in ("TargetGrants", "TargetObjectKeyFormat"):
            found = enabled.child(name)
            if found is not None and found.child("SimplePrefix") is None:
                raise S3Error("NotImplemented", f"{name} is not kept here: objects of a log are private, and named by prefix and time.")
        said = {"target_bucket": enabled.value("TargetBucket") or "", "prefix": enabled.value("TargetPrefix") or ""}
        if not said["target_bucket"]:
            raise S3Error("InvalidTargetBucketForLogging")
    try:
        run(x.ctx, bucket_set_logging, bucket_named(x.ctx.db, x.bucket).id, said)
    except InvalidRequest as error:
        raise S3Error("InvalidTargetBucketForLogging", error.message) from error
    return Answer()
