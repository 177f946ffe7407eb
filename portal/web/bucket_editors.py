"""The editors of a bucket's documents, and the other settings of its page."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from portal.kernel.authz import decide, target_of
from portal.kernel.context import Context
from portal.kernel.declare import Operation
from portal.kernel.errors import NotFound, PortalError
from portal.storage.access_logs import bucket_set_logging
from portal.storage.bucket_encryption import bucket_set_encryption
from portal.storage.buckets import BUCKET
from portal.storage.configurations import bucket_set_cors
from portal.storage.emptying import EMPTY
from portal.storage.engine_steps import on_engine
from portal.storage.grants import ENFORCED
from portal.storage.lifecycle import bucket_set_lifecycle
from portal.storage.locks import MODES, bucket_set_object_lock
from portal.storage.notifications import bucket_set_notifications
from portal.storage.object_models import Bucket
from portal.storage.policies import ARN, VERSIONS, bucket_set_policy
from portal.storage.replication import bucket_set_replication, replication_state
from portal.storage.replication import shown as rules_shown
from portal.storage.webhooks import ARN as WEBHOOK
from portal.storage.websites import bucket_set_website
from portal.web.bucket_switches import FORMS, switches
from portal.web.bucket_words import (
    Reading,
    cors_in_words,
    lifecycle_in_words,
    notifications_in_words,
    policy_in_words,
    problems_of,
    replication_in_words,
    website_in_words,
)
from portal.web.derived import why_not
from portal.web.forms import as_json, from_json
from portal.web.object_listing import ACL_WORDS

NOT_ON_ENGINE = (
    bucket_set_website, bucket_set_notifications, bucket_set_replication, bucket_set_object_lock, bucket_set_encryption, bucket_set_logging,
)  # fmt: skip
NOT_HERE = (
    "The objects are on an external engine, on which the portal manages no encryption, access log, object lock, website, notifications or replication, "
    "and empties no bucket: use an S3 client for that, as far as the engine has it."
)


@dataclass(frozen=True, slots=True)
class Editor:
    """A document of a bucket: where it is kept, what it means, how it is saved, and one to begin with."""

    name: str
    title: str
    about: str
    op: Operation
    present: Callable[[Bucket], Any]
    inputs: Callable[[Any], Mapping[str, Any]]
    in_words: Callable[[Context, Bucket, Any], Reading]
    example: Any


def _example_policy(bucket: str) -> Any:
    statement = {
        "Sid": "Readers",
        "Effect": "Allow",
        "Principal": {"AWS": ["the-name-of-a-user"]},
        "Action": "s3:GetObject",
        "Resource": f"{ARN}{bucket}/*",
    }
    return {"Version": VERSIONS[0], "Statement": [statement]}


def editors(ctx: Context, bucket: Bucket) -> Sequence[Editor]:
    """Those of a bucket; an external engine is not asked to do what the portal does with objects that it keeps itself."""
    return [each for each in _all(bucket) if not (on_engine(ctx.settings) and each.op in NOT_ON_ENGINE)]


def _all(bucket: Bucket) -> Sequence[Editor]:
    return (
        Editor("policy", "Policy", "Lets people of other projects in, or everybody, or keeps somebody out. What it denies, nothing else allows.", bucket_set_policy,
               lambda row: row.policy["document"] if row.policy else None, lambda given: {"document": given or {}}, policy_in_words,
               _example_policy(bucket.name)),
        Editor("lifecycle", "Life of objects", "What the portal deletes by itself, and when.", bucket_set_lifecycle,
               lambda row: row.lifecycle_rules, lambda given: {"configuration": {"rules": given or []}}, lifecycle_in_words,
               [{"id": "old-logs", "prefix": "logs/", "expire_days": 30}, {"id": "versions", "noncurrent_days": 90, "abort_days": 7}]),
        Editor("cors", "Pages of other origins", "Which web pages may read and write here from a browser.", bucket_set_cors,
               lambda row: row.cors_rules, lambda given: {"configuration": {"rules": given or []}}, cors_in_words,
               [{"origins": ["https://www.example.org"], "methods": ["GET", "HEAD"], "headers": ["*"], "max_age_seconds": 3600}]),
        Editor("website", "Website", "Gives the objects out as pages, to whom policies and access lists let read them.", bucket_set_website,
               lambda row: row.website, lambda given: {"configuration": given or {}}, website_in_words,
               {"index_document": "index.html", "error_document": "error.html"}),
        Editor("notifications", "Notifications", "Which webhooks of the project are told of what happens here; each gets a message of test.", bucket_set_notifications,
               lambda row: [{name: value for name, value in each.items() if name != "webhook_id"} for each in row.notifications or ()],
               lambda given: {"configuration": {"rules": given or []}}, notifications_in_words,
               [{"arn": f"{WEBHOOK}<project>:<webhook>", "events": ["s3:ObjectCreated:*"], "prefix": "incoming/"}]),
        Editor("replication", "Replication", "What is written here is written into other buckets of the project as well; all of them keep versions.",
               bucket_set_replication, lambda row: rules_shown(row.replication), lambda given: {"configuration": {"rules": given or []}},
               replication_in_words, [{"destination_bucket": "backup", "prefix": "reports/", "delete_markers": True, "existing": True}]),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Shown:
    """An editor as the page shows it."""

    editor: Editor
    text: str
    reading: Reading
    why_not: str
    example: str


def settings_tab(ctx: Context, bucket: Bucket) -> Mapping[str, Any]:
    """What the tab of settings shows."""
    return {
        "editors": [shown(ctx, bucket, each) for each in editors(ctx, bucket)], "replication": replication_state(ctx, bucket) if bucket.replication else None,
        "why_not_empty": _why_not_empty(ctx, bucket),
        "switches": switches(ctx, bucket), "acl_words": ACL_WORDS, "modes": MODES, "lists_count": bucket.ownership != ENFORCED,
        "not_here": NOT_HERE if on_engine(ctx.settings) else "",
        "offered": {op.verb for op, _ in FORMS.values() if not (on_engine(ctx.settings) and op in NOT_ON_ENGINE)},
    }  # fmt: skip


def _why_not_empty(ctx: Context, bucket: Bucket) -> str:
    """Why the caller cannot have the bucket emptied now; empty if they can."""
    found = decide(ctx, EMPTY, target_of(bucket))
    if on_engine(ctx.settings):
        return NOT_HERE
    return "" if found.allowed and not bucket.locked else found.because or "The bucket is locked against changes."


def shown(ctx: Context, bucket: Bucket, editor: Editor, text: str | None = None) -> Shown:
    """An editor with what is kept, or with what was typed."""
    present = editor.present(bucket)
    text = (as_json(present) if present else "") if text is None else text
    return Shown(editor, text, read(ctx, bucket, editor, text), why_not(ctx, BUCKET, editor.op, bucket), as_json(editor.example))


def read(ctx: Context, bucket: Bucket, editor: Editor, text: str) -> Reading:
    """What a document says, or what is wrong with it."""
    try:
        return editor.in_words(ctx, bucket, document_of(text) or type(editor.example)())
    except (PortalError, ValueError) as error:
        return problems_of(error) if isinstance(error, PortalError) else Reading(problems=[f"The document {error}"])


def document_of(text: str) -> Any:
    """What was typed; None for nothing. Raises ValueError saying where it is no JSON."""
    return from_json(text) if text.strip() else None


def editor_of(ctx: Context, bucket: Bucket, name: str) -> Editor:
    """The editor of this name. Raises NotFound."""
    found = next((each for each in editors(ctx, bucket) if each.name == name), None)
    if found is None:
        raise NotFound("There is nothing at this address.")
    return found
