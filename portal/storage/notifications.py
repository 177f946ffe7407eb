"""Notifications: which webhook is told of what in a bucket. A message is written in the same transaction as what it tells of, and sent afterwards."""

import secrets
from collections.abc import Mapping, Sequence
from typing import Annotated, Any
from urllib.parse import quote_plus

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from sqlalchemy import insert, select

from portal.kernel import fields as f
from portal.kernel.context import Context
from portal.kernel.db import now
from portal.kernel.declare import operation
from portal.kernel.errors import InvalidRequest
from portal.storage.engine_steps import refuse_on_engine
from portal.storage.facts import BucketFacts, Version
from portal.storage.object_models import KEY_BYTES, Bucket, table_of
from portal.storage.versions import FAR
from portal.storage.webhooks import ARN, Notice, Webhook

EVENTS = frozenset({
    "ObjectCreated:Put", "ObjectCreated:Post", "ObjectCreated:Copy", "ObjectCreated:CompleteMultipartUpload", "ObjectRemoved:Delete",
    "ObjectRemoved:DeleteMarkerCreated", "ObjectTagging:Put", "ObjectTagging:Delete", "ObjectAcl:Put", "LifecycleExpiration:Delete",
    "LifecycleExpiration:DeleteMarkerCreated", "LifecycleTransition",
})  # fmt: skip
KINDS = ("Topic", "Queue")
RULES = f.FieldInfo(f.Document(), "Notifications", 'An object with "rules": which webhook is told of which events, and for which keys.')
MOST_RULES = 100
NOTICES = table_of(Notice)
_INSERT = insert(NOTICES)
Rule = Mapping[str, Any]


class RuleInput(BaseModel):
    """One rule as it is given."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field("", max_length=255)
    kind: str = "Topic"
    arn: str = Field(max_length=255)
    events: Annotated[list[str], Field(min_length=1, max_length=50)]
    prefix: str = Field("", max_length=KEY_BYTES)
    suffix: str = Field("", max_length=KEY_BYTES)


def notification_rules_of(ctx: Context, bucket: Bucket, configuration: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rules in a document, with the webhooks that they name. Raises InvalidRequest with what is wrong."""
    rules = configuration.get("rules")
    if set(configuration) != {"rules"} or not isinstance(rules, list) or len(rules) > MOST_RULES:
        raise InvalidRequest.fields({"rules": [f"must be a list of at most {MOST_RULES} objects."]})
    kept = [_kept(ctx, bucket, place, rule) for place, rule in enumerate(rules)]
    if len({each["id"] for each in kept}) != len(kept):
        raise InvalidRequest.fields({"rules": ["two of them have the same id."]})
    return kept


@operation(Bucket, "set_notifications", label="Set notifications", needs="manage", icon="bolt", in_menu=False)
def bucket_set_notifications(ctx: Context, bucket: Bucket, *, configuration: Annotated[dict[str, Any], RULES]) -> None:
    """Say which webhooks are told of what happens in a bucket; each of them gets a message of test at once."""
    refuse_on_engine(ctx, "notifications")
    kept = bucket.notifications = notification_rules_of(ctx, bucket, configuration)
    test = {"Service": "Atonix", "Event": "s3:TestEvent", "Time": now().isoformat(), "Bucket": bucket.name, "RequestId": ctx.request_id}
    for webhook_id in sorted({each["webhook_id"] for each in kept}):
        ctx.db.execute(_INSERT, _row(webhook_id, bucket.id, test))


def _kept(ctx: Context, bucket: Bucket, place: int, given: object) -> dict[str, Any]:
    try:
        rule = RuleInput.model_validate(given)
    except ValidationError as error:
        problems = {f"rules.{place}.{'.'.join(map(str, each['loc']))}": [each["msg"]] for each in error.errors()}
        raise InvalidRequest.fields(problems) from error
    if problem := _problem(rule):
        raise InvalidRequest.fields({f"rules.{place}": [problem]})
    webhook_id = rule.arn.rpartition(":")[2]
    webhook = ctx.db.scalars(select(Webhook).where(Webhook.id == webhook_id, Webhook.deleted_at.is_(None))).first()
    if webhook is None or webhook.project_id != bucket.project_id or webhook.arn != rule.arn:
        raise InvalidRequest.fields({f"rules.{place}.arn": [f"{rule.arn} is no webhook of this project."]})
    return {**rule.model_dump(), "id": rule.id or secrets.token_urlsafe(16), "webhook_id": webhook_id}


def _problem(rule: RuleInput) -> str:
    if ":lambda:" in rule.arn or ":function:" in rule.arn or rule.kind not in KINDS:
        return f"{rule.arn} is a function, of which this product has none yet. Name a webhook: {ARN}<project>:<webhook>."
    unknown = [each for each in rule.events if not _known(each)]
    return f"there is no event {unknown[0]} here; there are {', '.join(f's3:{each}' for each in sorted(EVENTS))}." if unknown else ""


def _known(event: str) -> bool:
    name = event.removeprefix("s3:")
    return event.startswith("s3:") and (name in EVENTS or any(each.startswith(name[:-1]) for each in EVENTS if name.endswith(":*")))


def _fits(rule: Rule, event: str, key: str) -> bool:
    wanted = {f"s3:{event}", f"s3:{event.partition(':')[0]}:*"}
    return bool(wanted & set(rule["events"])) and key.startswith(rule["prefix"]) and key.endswith(rule["suffix"])


def note(ctx: Context, bucket: BucketFacts, event: str, version: Version) -> None:
    """Write down what happened to a version for those that are to be told, within the caller's transaction."""
    rows = [
        _row(rule["webhook_id"], bucket.id, {"Records": [_record(ctx, bucket, event, version, rule["id"])]})
        for rule in bucket.notifications or ()
        if _fits(rule, event, version.key)
    ]
    if rows:
        ctx.db.execute(_INSERT, rows)


def _row(webhook_id: str, bucket_id: str, message: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "webhook_id": webhook_id,
        "bucket_id": bucket_id,
        "message": message,
        "created_at": now(),
        "attempts": 0,
        "last_error": "",
        "dead_at": None,
    }


def _record(ctx: Context, bucket: BucketFacts, event: str, version: Version, rule_id: str) -> dict[str, Any]:
    about: dict[str, Any] = {"key": quote_plus(version.key, safe="/"), "sequencer": f"{FAR - version.sequence:016X}"}
    if bucket.versioning != "off":
        about["versionId"] = version.version_id
    if not version.is_marker and not event.endswith(":Delete"):
        about |= {"size": version.size_bytes, "eTag": version.etag}
    return {
        "eventVersion": "2.1", "eventSource": "aws:s3", "awsRegion": "us-east-1", "eventName": event, "eventTime": _moment(),
        "userIdentity": {"principalId": ctx.principal.user_id or ("system" if ctx.principal.is_system else "anonymous")},
        "requestParameters": {"sourceIPAddress": ctx.source_ip}, "responseElements": {"x-amz-request-id": ctx.request_id},
        "s3": {
            "s3SchemaVersion": "1.0", "configurationId": rule_id, "object": about,
            "bucket": {"name": bucket.name, "ownerIdentity": {"principalId": bucket.owner_id or ""}, "arn": f"arn:aws:s3:::{bucket.name}"},
        },
    }  # fmt: skip


def _moment() -> str:
    return now().isoformat(timespec="milliseconds").replace("+00:00", "Z")


def shown(rules: Sequence[Rule] | None) -> list[dict[str, Any]]:
    """The rules as they were given."""
    return [{name: value for name, value in rule.items() if name != "webhook_id"} for rule in rules or ()]
