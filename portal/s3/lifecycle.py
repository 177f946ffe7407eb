"""Rules for the life of objects, as S3 clients write them."""

from typing import Any

from portal.kernel.errors import InvalidRequest
from portal.kernel.lookup import find
from portal.kernel.operations import run
from portal.s3 import xml
from portal.s3.errors import S3Error
from portal.s3.exchange import Answer, Exchange, document
from portal.storage.buckets import BUCKET
from portal.storage.facts import bucket_named
from portal.storage.lifecycle import Rule, bucket_set_lifecycle


def get(x: Exchange) -> Answer:
    """The rules of a bucket."""
    rules = find(x.ctx, BUCKET, bucket_named(x.ctx.db, x.bucket).id).lifecycle_rules
    if not rules:
        raise S3Error("NoSuchLifecycleConfiguration")
    return document("LifecycleConfiguration", *(_element(rule) for rule in rules))


def _element(rule: Rule) -> str:
    parts = [xml.leaf("ID", rule["id"]), xml.leaf("Status", "Enabled" if rule["enabled"] else "Disabled"), xml.group("Filter", _filter(rule))]
    expiration = [xml.leaf("Days", rule["expire_days"])] if rule.get("expire_days") else []
    expiration += [xml.leaf("Date", rule["expire_at"])] if rule.get("expire_at") else []
    expiration += [xml.leaf("ExpiredObjectDeleteMarker", True)] if rule.get("expire_markers") else []
    parts += [xml.group("Expiration", *expiration)] if expiration else []
    if rule.get("noncurrent_days"):
        kept = [xml.leaf("NewerNoncurrentVersions", rule["noncurrent_keep"])] if rule.get("noncurrent_keep") else []
        parts.append(xml.group("NoncurrentVersionExpiration", xml.leaf("NoncurrentDays", rule["noncurrent_days"]), *kept))
    for each in rule.get("transitions", ()):
        when = xml.leaf("Date", each["at"]) if each.get("at") else xml.leaf("Days", each["days"])
        parts.append(xml.group("Transition", when, xml.leaf("StorageClass", each["storage_class"])))
    for each in rule.get("noncurrent_transitions", ()):
        kept = [xml.leaf("NewerNoncurrentVersions", each["keep"])] if each.get("keep") else []
        parts.append(
            xml.group("NoncurrentVersionTransition", xml.leaf("NoncurrentDays", each["days"]), *kept, xml.leaf("StorageClass", each["storage_class"]))
        )
    if rule.get("abort_days"):
        parts.append(xml.group("AbortIncompleteMultipartUpload", xml.leaf("DaysAfterInitiation", rule["abort_days"])))
    return xml.group("Rule", *parts)


def _filter(rule: Rule) -> str:
    tags = [xml.group("Tag", xml.leaf("Key", name), xml.leaf("Value", value)) for name, value in rule["tags"].items()]
    sizes = [
        xml.leaf(element, rule[name])
        for name, element in (("larger_than", "ObjectSizeGreaterThan"), ("smaller_than", "ObjectSizeLessThan"))
        if rule.get(name) is not None
    ]
    parts = [*([xml.leaf("Prefix", rule["prefix"])] if rule["prefix"] or not (tags or sizes) else []), *tags, *sizes]
    return parts[0] if len(parts) == 1 else xml.group("And", *parts)


def put(x: Exchange) -> Answer:
    """Set the rules of a bucket, in place of those it has."""
    found = list(x.document("LifecycleConfiguration").children_named("Rule"))
    if not found:
        raise S3Error("MalformedXML")
    return _set(x, [_rule(node) for node in found], 200)


def _rule(node: xml.Node) -> dict[str, Any]:
    status = node.value("Status")
    if status not in {"Enabled", "Disabled"}:
        raise S3Error("MalformedXML")
    where = node.child("Filter")
    scope = (where.child("And") or where) if where is not None else node
    rule: dict[str, Any] = {"enabled": status == "Enabled", "prefix": scope.value("Prefix") or ""}
    rule["tags"] = {tag.value("Key") or "": tag.value("Value") or "" for tag in scope.children_named("Tag")}
    rule |= {"id": name} if (name := node.value("ID")) else {}
    expiration, older, abort = (node.child(name) for name in ("Expiration", "NoncurrentVersionExpiration", "AbortIncompleteMultipartUpload"))
    numbers = {
        "larger_than": scope.value("ObjectSizeGreaterThan"), "smaller_than": scope.value("ObjectSizeLessThan"),
        "expire_days": expiration.value("Days") if expiration is not None else None,
        "noncurrent_days": older.value("NoncurrentDays") if older is not None else None,
        "noncurrent_keep": older.value("NewerNoncurrentVersions") if older is not None else None,
        "abort_days": abort.value("DaysAfterInitiation") if abort is not None else None,
    }  # fmt: skip
    rule |= {name: _number(text) for name, text in numbers.items() if text is not None}
    if expiration is not None and (date := expiration.value("Date")):
        rule["expire_at"] = date
    if expiration is not None and expiration.value("ExpiredObjectDeleteMarker") == "true":
        rule["expire_markers"] = True
    moves = {
        "transitions": [_transition(each, "Days") for each in node.children_named("Transition")],
        "noncurrent_transitions": [_transition(each, "NoncurrentDays") for each in node.children_named("NoncurrentVersionTransition")],
    }
    return rule | {name: found for name, found in moves.items() if found}


def _transition(node: xml.Node, days: str) -> dict[str, Any]:
    found: dict[str, Any] = {"storage_class": node.value("StorageClass") or ""}
    for name, element in (("days", days), ("keep", "NewerNoncurrentVersions")):
        if (text := node.value(element)) is not None:
            found[name] = _number(text)
    return found | ({"at": date} if (date := node.value("Date")) else {})


def _number(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 16:  # noqa: PLR2004 - digits of a number that is a size
        raise S3Error("MalformedXML")
    return int(text)


def delete(x: Exchange) -> Answer:
    """Take the rules of a bucket away."""
    return _set(x, [], 204)


def _set(x: Exchange, rules: list[dict[str, Any]], status: int) -> Answer:
    try:
        run(x.ctx, bucket_set_lifecycle, bucket_named(x.ctx.db, x.bucket).id, {"configuration": {"rules": rules}})
    except InvalidRequest as error:
        raise S3Error("InvalidArgument", error.message) from error
    return Answer(status)
