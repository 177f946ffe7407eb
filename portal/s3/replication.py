"""Where a bucket is replicated to, as S3 clients say it: one rule, to another bucket of the installation."""

from typing import Any

from portal.kernel.errors import InvalidRequest
from portal.kernel.lookup import find
from portal.kernel.operations import run
from portal.s3 import xml
from portal.s3.errors import S3Error
from portal.s3.exchange import Answer, Exchange, document
from portal.storage.buckets import BUCKET
from portal.storage.facts import bucket_named
from portal.storage.object_models import Bucket
from portal.storage.replication import bucket_set_replication

ARN = "arn:aws:s3:::"
WORDS = {True: "Enabled", False: "Disabled"}


def get(x: Exchange) -> Answer:
    """The rule of a bucket."""
    row: Bucket = find(x.ctx, BUCKET, bucket_named(x.ctx.db, x.bucket).id)
    kept = row.replication
    if not kept:
        raise S3Error("ReplicationConfigurationNotFoundError")
    rule = [
        xml.leaf("ID", kept["id"]), xml.leaf("Priority", 1), xml.leaf("Status", "Enabled"), xml.group("Filter", xml.leaf("Prefix", kept["prefix"])),
        xml.group("DeleteMarkerReplication", xml.leaf("Status", WORDS[kept["delete_markers"]])),
        xml.group("ExistingObjectReplication", xml.leaf("Status", WORDS[kept["existing"]])),
        xml.group("Destination", xml.leaf("Bucket", ARN + kept["bucket_name"])),
    ]  # fmt: skip
    return document("ReplicationConfiguration", xml.leaf("Role", ""), xml.group("Rule", *rule))


def put(x: Exchange) -> Answer:
    """Replicate a bucket, in place of where it was replicated to."""
    rules = list(x.document("ReplicationConfiguration").children_named("Rule"))
    if len(rules) != 1:
        raise S3Error("NotImplemented", "A bucket has one rule of replication here.")
    rule = rules[0]
    where, target = rule.child("Filter"), rule.child("Destination")
    if target is None or rule.value("Status") not in {"Enabled", "Disabled"}:
        raise S3Error("MalformedXML")
    if rule.value("Status") == "Disabled" or (where is not None and (where.child("And") is not None or where.child("Tag") is not None)):
        raise S3Error("NotImplemented", "A rule of replication is enabled, and chooses by prefix only.")
    prefix = (where.value("Prefix") if where is not None else rule.value("Prefix")) or ""
    said = {
        "destination_bucket": (target.value("Bucket") or "?").removeprefix(ARN), "prefix": prefix,
        "delete_markers": _is_enabled(rule, "DeleteMarkerReplication"), "existing": _is_enabled(rule, "ExistingObjectReplication"),
    }  # fmt: skip
    return _set(x, said, 200)


def _is_enabled(rule: xml.Node, name: str) -> bool:
    found = rule.child(name)
    return found is not None and found.value("Status") == "Enabled"


def delete(x: Exchange) -> Answer:
    """End the replication of a bucket."""
    return _set(x, {}, 204)


def _set(x: Exchange, said: dict[str, Any], status: int) -> Answer:
    try:
        run(x.ctx, bucket_set_replication, bucket_named(x.ctx.db, x.bucket).id, said)
    except InvalidRequest as error:
        raise S3Error("InvalidRequest", error.message) from error
    return Answer(status)
