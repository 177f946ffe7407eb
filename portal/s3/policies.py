"""A bucket's own policy, as S3 clients read and write it."""

import json

from portal.kernel.errors import InvalidRequest
from portal.kernel.lookup import find
from portal.kernel.operations import run
from portal.s3 import xml
from portal.s3.errors import S3Error
from portal.s3.exchange import Answer, Exchange, document
from portal.storage.buckets import BUCKET
from portal.storage.facts import bucket_named
from portal.storage.object_models import Bucket
from portal.storage.policies import bucket_set_policy, policy_is_public


def _bucket(x: Exchange) -> Bucket:
    row: Bucket = find(x.ctx, BUCKET, bucket_named(x.ctx.db, x.bucket).id)
    if not row.policy:
        raise S3Error("NoSuchBucketPolicy")
    return row


def get(x: Exchange) -> Answer:
    """The policy, as it was given."""
    policy = _bucket(x).policy or {}
    return Answer(headers={"Content-Type": "application/json"}, body=json.dumps(policy["document"]).encode())


def status(x: Exchange) -> Answer:
    """Whether the policy lets everybody in."""
    policy = _bucket(x).policy or {}
    return document("PolicyStatus", xml.leaf("IsPublic", policy_is_public(policy)))


def put(x: Exchange) -> Answer:
    """Set the policy, in place of the one there is."""
    try:
        found = json.loads(x.document_bytes())
    except ValueError:
        found = None
    if not isinstance(found, dict) or not found:
        raise S3Error("MalformedPolicy", "This policy contains invalid Json")
    try:
        run(x.ctx, bucket_set_policy, bucket_named(x.ctx.db, x.bucket).id, {"document": found})
    except InvalidRequest as error:
        raise S3Error("MalformedPolicy", error.message) from error
    return Answer(204)


def delete(x: Exchange) -> Answer:
    """Take the policy away."""
    run(x.ctx, bucket_set_policy, bucket_named(x.ctx.db, x.bucket).id, {"document": {}})
    return Answer(204)
