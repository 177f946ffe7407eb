"""Where a bucket is replicated to, as S3 clients say it: rules by prefix and tags, to other buckets of the installation."""

from collections.abc import Mapping
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
from portal.storage.replication import bucket_set_replication, shown

ARN = "arn:aws:s3:::"
WORDS = {True: "Enabled", False: "Disabled"}
SWITCHES = {word: value for value, word in WORDS.items()}
SCHEMA = "must be specified for this version of Cross Region Replication configuration schema."
# What would make a replica something else than its source: here it keeps class, owner and key.
OTHERWISE = ("StorageClass", "Account", "AccessControlTranslation", "EncryptionConfiguration", "ReplicationTime", "Metrics")


def get(x: Exchange) -> Answer:
    """The rules of a bucket."""
    row: Bucket = find(x.ctx, BUCKET, bucket_named(x.ctx.db, x.bucket).id)
    if not row.replication:
        raise S3Error("ReplicationConfigurationNotFoundError")
    return document("ReplicationConfiguration", xml.leaf("Role", ""), *(_element(each) for each in shown(row.replication)))


def _element(rule: Mapping[str, Any]) -> str:
    return xml.group(
        "Rule", xml.leaf("ID", rule["id"]), xml.leaf("Priority", rule["priority"]), xml.leaf("Status", WORDS[rule["enabled"]]),
        xml.group("Filter", _filter(rule)), xml.group("DeleteMarkerReplication", xml.leaf("Status", WORDS[rule["delete_markers"]])),
        xml.group("ExistingObjectReplication", xml.leaf("Status", WORDS[rule["existing"]])),
        xml.group("Destination", xml.leaf("Bucket", ARN + rule["destination_bucket"])),
    )  # fmt: skip


def _filter(rule: Mapping[str, Any]) -> str:
    tags = [xml.group("Tag", xml.leaf("Key", name), xml.leaf("Value", value)) for name, value in rule["tags"].items()]
    parts = [*([xml.leaf("Prefix", rule["prefix"])] if rule["prefix"] or not tags else []), *tags]
    return parts[0] if len(parts) == 1 else xml.group("And", *parts)


def put(x: Exchange) -> Answer:
    """Replicate a bucket, in place of where it was replicated to."""
    nodes = list(x.document("ReplicationConfiguration").children_named("Rule"))
    has_filter = {node.child("Filter") is not None for node in nodes}
    if len(has_filter) != 1:
        raise S3Error("MalformedXML")
    return _set(x, [_rule(node, with_filter=has_filter == {True}) for node in nodes], 200)


def _rule(node: xml.Node, *, with_filter: bool) -> dict[str, Any]:
    """A rule as it is kept. One without a filter is of the older schema, which has no priority and carries marks of deletion over."""
    target = node.child("Destination")
    if target is None or not target.value("Bucket"):
        raise S3Error("MalformedXML")
    _refuse_otherwise(node, target)
    rule: dict[str, Any] = {
        "destination_bucket": (target.value("Bucket") or "").removeprefix(ARN), "enabled": _is_enabled(node),
        "existing": _is_enabled(node.child("ExistingObjectReplication"), otherwise=False),
        "delete_markers": _is_enabled(node.child("DeleteMarkerReplication"), otherwise=not with_filter),
    }  # fmt: skip
    rule |= {"id": name} if (name := node.value("ID")) else {}
    if not with_filter:
        return rule | {"prefix": node.value("Prefix") or ""}
    for name in ("Priority", "DeleteMarkerReplication"):
        if node.child(name) is None:
            raise S3Error("InvalidRequest", f"{name} {SCHEMA}")
    return rule | {"priority": _number(node.value("Priority") or "")} | _scope(node.child("Filter"))


def _scope(where: xml.Node | None) -> dict[str, Any]:
    """What a filter chooses: by one thing, or by several in And."""
    both = where.child("And") if where is not None else None
    scope = both or where
    tags = list(scope.children_named("Tag")) if scope is not None else []
    if where is None or scope is None or len(where.children) > 1 or (both is not None and len(both.children) < 2):  # noqa: PLR2004 - And joins
        raise S3Error("MalformedXML")
    found = {tag.value("Key") or "": tag.value("Value") or "" for tag in tags}
    if len(found) != len(tags):
        raise S3Error("InvalidTag", "Cannot provide multiple Tags with the same key")
    return {"prefix": scope.value("Prefix") or "", "tags": found}


def _number(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 10:  # noqa: PLR2004 - digits of what a priority may be
        raise S3Error("MalformedXML")
    return int(text)


def _is_enabled(node: xml.Node | None, *, otherwise: bool = False) -> bool:
    if node is None:
        return otherwise
    if (found := SWITCHES.get(node.value("Status") or "")) is None:
        raise S3Error("MalformedXML")
    return found


def _refuse_otherwise(node: xml.Node, target: xml.Node) -> None:
    if unknown := next((name for name in OTHERWISE if target.child(name) is not None), None):
        raise S3Error("NotImplemented", f"{unknown} is not done here: a replica keeps the class, the encryption and the owner of its source.")
    chosen = node.child("SourceSelectionCriteria")
    encrypted = chosen.child("SseKmsEncryptedObjects") if chosen is not None else None
    if chosen is not None and (len(chosen.children) != 1 or encrypted is None or not _is_enabled(encrypted)):
        raise S3Error("NotImplemented", "What is encrypted is always carried over, as it is; replicas that are changed are not.")


def delete(x: Exchange) -> Answer:
    """End the replication of a bucket."""
    return _set(x, [], 204)


def _set(x: Exchange, rules: list[dict[str, Any]], status: int) -> Answer:
    try:
        run(x.ctx, bucket_set_replication, bucket_named(x.ctx.db, x.bucket).id, {"configuration": {"rules": rules}})
    except InvalidRequest as error:
        raise S3Error("InvalidRequest", error.message) from error
    return Answer(status)
