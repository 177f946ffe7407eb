"""Who is told of what happens in a bucket, as S3 clients say it: a webhook stands where S3 has a topic or a queue."""

from typing import Any

from portal.kernel.errors import InvalidRequest
from portal.kernel.lookup import find
from portal.kernel.operations import run
from portal.s3 import xml
from portal.s3.errors import S3Error
from portal.s3.exchange import Answer, Exchange, document
from portal.storage.buckets import BUCKET
from portal.storage.facts import bucket_named
from portal.storage.notifications import Rule, bucket_set_notifications
from portal.storage.object_models import Bucket

KINDS = ("Topic", "Queue", "CloudFunction")
NO_FUNCTIONS = "There are no functions in this product yet. Name a webhook as a topic or queue."


def get(x: Exchange) -> Answer:
    """The rules of a bucket; an empty answer where it has none."""
    row: Bucket = find(x.ctx, BUCKET, bucket_named(x.ctx.db, x.bucket).id)
    return document("NotificationConfiguration", *(_element(rule) for rule in row.notifications or ()))


def _element(rule: Rule) -> str:
    named = [xml.group("FilterRule", xml.leaf("Name", name), xml.leaf("Value", rule[name])) for name in ("prefix", "suffix") if rule[name]]
    where = [xml.group("Filter", xml.group("S3Key", *named))] if named else []
    events = [xml.leaf("Event", each) for each in rule["events"]]
    return xml.group(f"{rule['kind']}Configuration", xml.leaf("Id", rule["id"]), xml.leaf(rule["kind"], rule["arn"]), *events, *where)


def put(x: Exchange) -> Answer:
    """Set the rules of a bucket, in place of those it has."""
    found = x.document("NotificationConfiguration")
    if any(found.children_named("CloudFunctionConfiguration")):
        raise S3Error("InvalidArgument", NO_FUNCTIONS)
    if any(found.children_named("EventBridgeConfiguration")):
        raise S3Error("NotImplemented", "There is no bus of events here: name a webhook as a topic or queue.")
    rules = [_rule(kind, node) for kind in KINDS for node in found.children_named(f"{kind}Configuration")]
    try:
        run(x.ctx, bucket_set_notifications, bucket_named(x.ctx.db, x.bucket).id, {"configuration": {"rules": rules}})
    except InvalidRequest as error:
        raise S3Error("InvalidArgument", error.message) from error
    return Answer()


def _rule(kind: str, node: xml.Node) -> dict[str, Any]:
    rule: dict[str, Any] = {"kind": kind, "arn": node.value(kind) or "", "events": [each.text for each in node.children_named("Event")]}
    rule |= {"id": name} if (name := node.value("Id")) else {}
    where = node.child("Filter")
    key = where.child("S3Key") if where is not None else None
    for each in key.children_named("FilterRule") if key is not None else ():
        name = (each.value("Name") or "").lower()
        if name not in {"prefix", "suffix"} or name in rule:
            raise S3Error("InvalidArgument", "filter rule name must be either prefix or suffix, each once")
        rule[name] = each.value("Value") or ""
    return rule
