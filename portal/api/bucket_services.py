"""Endpoints of what buckets do besides keeping objects: access logs, figures by the hour."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

from flask import request
from flask.typing import ResponseReturnValue
from pydantic import Field

from portal.api import body as io
from portal.api.core import JOB, show_job
from portal.api.endpoints import PREFIX, Endpoint, Query, Schema
from portal.api.resources import aliases, only
from portal.api.schemas import MAYBE_TEXT, NUMBER, TEXT, WHEN, YES, Input, read, thing
from portal.http.listing import whole
from portal.http.request import context
from portal.kernel.context import Context
from portal.kernel.errors import InvalidRequest
from portal.kernel.ids import new_id
from portal.kernel.lookup import find
from portal.kernel.operations import run
from portal.storage.access_logs import bucket_set_logging
from portal.storage.buckets import BUCKET
from portal.storage.emptying import bucket_empty
from portal.storage.facts import bucket_by_id
from portal.storage.metrics import BucketHour, hours_of
from portal.storage.notifications import bucket_set_notifications, shown
from portal.storage.object_models import Bucket
from portal.storage.replicating import replication_ask
from portal.storage.replication import bucket_set_replication, replication_state
from portal.storage.replication import shown as rules_shown
from portal.storage.tiers import classes_of, tiering_report
from portal.storage.webhooks import WEBHOOK, notices_of

ITEM = "/storage/buckets/{bucket_id}"
MOST_HOURS = 93 * 24
MOST_DAYS = 366
METRICS: Mapping[str, Callable[[BucketHour], Mapping[str, int]]] = {
    "size": lambda row: {"value": row.size_bytes},
    "object-count": lambda row: {"value": row.objects},
    "bandwidth": lambda row: {"value": row.bytes_in + row.bytes_out, "bytes_in": row.bytes_in, "bytes_out": row.bytes_out, "requests": row.requests},
}


class LoggingInput(Input):
    """Where the access log goes."""

    enabled: bool
    log_target_bucket: str = Field("", max_length=64, description="Name or id; needed where the log is enabled.")
    log_prefix: str = ""


class NotificationsInput(Input):
    """Rules, in place of those there are."""

    rules: list[dict[str, Any]]


class ReplicationRules(Input):
    """Rules, in place of those there are."""

    rules: list[dict[str, Any]]


class ReplicationInput(Input):
    """One rule more, or again, for what goes to a bucket already: where to, and what."""

    destination_bucket: str = Field(max_length=64, description="Name or id; of the same project, with versions.")
    destination_region: str = Field("local", pattern="^local$", description="There is one region.")
    delete_markers: bool = False
    prefix: str = Field("", max_length=1024)
    tags: dict[str, str] = Field({}, description="Only objects that have all of these.")


class EmptyInput(Input):
    """What is to go."""

    prefix: str = Field("", max_length=1024, description="Only keys that begin so.")


def endpoints() -> Iterator[Endpoint]:
    """All of them."""
    yield _on("PUT logging", logging, "Write an access log into another bucket, or none",
              {200: thing(logging_enabled=YES, log_target_bucket=MAYBE_TEXT, log_prefix=TEXT)}, LoggingInput)  # fmt: skip
    rules = thing(rules={"type": "array", "items": {"type": "object"}})
    yield _on("GET notifications", notifications, "Which webhooks are told of what", {200: rules})
    yield _on("PUT notifications", notifications_set, "Say which webhooks are told of what", {200: rules}, NotificationsInput)
    states = [Query("state", "Of what became of them.", {"type": "string", "enum": ["waiting", "dead"], "default": "waiting"})]
    notice = thing(id=NUMBER, state=TEXT, created_at=WHEN, attempts=NUMBER, last_error=TEXT, message={"type": "object"})
    yield Endpoint("GET", "/storage/webhooks/{webhook_id}/messages", "storage.webhooks.messages", messages, "What waits for a webhook, or was given up",
                   "Webhooks", {200: thing(messages={"type": "array", "items": notice})}, (403, 404), query=states,
                   aliases=aliases(WEBHOOK, "/{webhook_id}/messages"))  # fmt: skip
    classes = thing(name=TEXT, has_own_place=YES, price_per_gb_month={"type": ["number", "null"]}, retrieval=TEXT, minimum_days=NUMBER)
    yield Endpoint("GET", "/storage/storage-classes", "storage.classes", storage_classes, "Classes that objects can be moved between", "Buckets",
                   {200: thing(storage_classes={"type": "array", "items": classes})}, (403,),
                   aliases=("/api/storage/storage-classes", "/api/v1/services/buckets/storage_classes"))  # fmt: skip
    amount = {"type": ["number", "null"]}
    line = thing(storage_class=TEXT, objects=NUMBER, size_bytes=NUMBER, cost=amount, saving=amount, moved_objects=NUMBER, moved_bytes=NUMBER)
    period = [Query("period", "How many days back moves are counted.", {"type": "integer", "minimum": 1, "maximum": MOST_DAYS, "default": 30})]
    yield _on("GET tiering-report", tiering, "By class: what there is, what it costs a month, what was moved",
              {200: thing(period=NUMBER, classes={"type": "array", "items": line})}, query=period)  # fmt: skip
    rule = thing(replication_id=TEXT, id=TEXT, priority=NUMBER, enabled=YES, destination_bucket=TEXT, prefix=TEXT, tags={"type": "object"},
                 delete_markers=YES, existing=YES, status=TEXT, copied=NUMBER, last_error=TEXT)  # fmt: skip
    begun = thing(replication_id=TEXT, status=TEXT, destination_bucket=TEXT, job_id=TEXT)
    state = thing(rules={"type": "array", "items": rule}, lag_seconds={"type": ["integer", "null"]}, last_synced_at=MAYBE_TEXT, waiting=NUMBER,
                  last_error=TEXT)  # fmt: skip
    yield _on("GET replication", replication, "Where the bucket is replicated to, and how far behind that is", {200: state})
    yield _on("PUT replication", replication_set, "Say by rules what of the bucket is replicated to which others", {200: state}, ReplicationRules)
    yield _on(
        "POST replication", replication_begin, "Replicate the bucket to another one of the project, by one rule more", {202: begun}, ReplicationInput
    )
    yield _on("DELETE replication", replication_end, "End the replication; what was carried over stays", {204: None})
    yield Endpoint("POST", f"{ITEM}/empty", "storage.buckets.empty", empty, "Delete everything in the bucket, or under a prefix, all versions of it",
                   "Buckets", {202: JOB}, (403, 404, 409), body=EmptyInput.model_json_schema(), body_required=False,
                   aliases=aliases(BUCKET, "/{bucket_id}/empty"))  # fmt: skip
    asked = [
        Query("metric", "What to show.", {"type": "string", "enum": list(METRICS), "default": "size"}),
        Query("hours", "How far back.", {"type": "integer", "minimum": 1, "maximum": MOST_HOURS, "default": 24}),
    ]
    point = thing(at=WHEN, value=NUMBER)
    yield _on("GET metrics", metrics, "Hour by hour: bytes and objects at its beginning, or what went through the S3 interface",
              {200: thing(metric=TEXT, points={"type": "array", "items": point})}, query=asked)  # fmt: skip


def _on(
    route: str, view: Callable[..., ResponseReturnValue], summary: str, answers: Mapping[int, Schema | None], body: type[Input] | None = None, *,
    query: list[Query] | None = None,
) -> Endpoint:  # fmt: skip
    method, name = route.split()
    refuses = (403, 404, 409, 412) if method != "GET" else (403, 404)
    return Endpoint(method, f"{ITEM}/{name}", f"storage.buckets.{name}.{method.lower()}", view, summary, "Buckets", answers, refuses, query=query or (),
                    body=body.model_json_schema() if body is not None else None, aliases=aliases(BUCKET, f"/{{bucket_id}}/{name}"))  # fmt: skip


def logging(bucket_id: str) -> ResponseReturnValue:
    """Another place for the log."""
    given: LoggingInput = read(LoggingInput)
    if given.enabled and not given.log_target_bucket:
        raise InvalidRequest.fields({"log_target_bucket": ["is missing: into which bucket is the log to be written?"]})
    said = {"target_bucket": given.log_target_bucket, "prefix": given.log_prefix} if given.enabled else {}
    row: Bucket = run(context(), bucket_set_logging, bucket_id, said).row
    kept = row.logging or {}
    shown = {"logging_enabled": bool(kept), "log_target_bucket": kept.get("bucket_name"), "log_prefix": kept.get("prefix", "")}
    return io.answer(shown, headers={"ETag": io.etag(row)})


def notifications(bucket_id: str) -> ResponseReturnValue:
    """The rules."""
    only()
    row: Bucket = find(context(), BUCKET, bucket_id)
    return io.answer({"rules": shown(row.notifications)})


def notifications_set(bucket_id: str) -> ResponseReturnValue:
    """Other rules."""
    given: NotificationsInput = read(NotificationsInput)
    row: Bucket = run(context(), bucket_set_notifications, bucket_id, {"configuration": given.model_dump()}).row
    return io.answer({"rules": shown(row.notifications)}, headers={"ETag": io.etag(row)})


def messages(webhook_id: str) -> ResponseReturnValue:
    """Messages, the oldest first."""
    only("state")
    ctx = context()
    state = request.args.get("state", "waiting")
    if state not in {"waiting", "dead"}:
        raise InvalidRequest.fields({"state": ["must be waiting or dead."]})
    rows = notices_of(ctx, find(ctx, WEBHOOK, webhook_id).id, is_dead=state == "dead")
    listed = [
        {"id": row.id, "state": state, "created_at": io.moment(row.created_at), "attempts": row.attempts, "last_error": row.last_error,
         "message": row.message}
        for row in rows
    ]  # fmt: skip
    return io.answer({"messages": listed})


def replication(bucket_id: str) -> ResponseReturnValue:
    """How it is doing."""
    only()
    ctx = context()
    return io.answer(_replication(ctx, find(ctx, BUCKET, bucket_id)))


def _replication(ctx: Context, row: Bucket) -> dict[str, Any]:
    found = replication_state(ctx, row)
    return {**found, "last_synced_at": io.moment(found["last_synced_at"])}


def replication_set(bucket_id: str) -> ResponseReturnValue:
    """Other rules."""
    ctx = context()
    given: ReplicationRules = read(ReplicationRules)
    row: Bucket = run(ctx, bucket_set_replication, bucket_id, {"configuration": given.model_dump()}).row
    return io.answer(_replication(ctx, row), headers={"ETag": io.etag(row)})


def replication_begin(bucket_id: str) -> ResponseReturnValue:
    """One rule more, which counts most; a job begins with what is there."""
    ctx = context()
    given = read(ReplicationInput).model_dump(exclude={"destination_region"})
    seen: Bucket = find(ctx, BUCKET, bucket_id)
    places = ("destination_bucket", "prefix", "tags")
    others = [each for each in rules_shown(seen.replication) if [each[name] for name in places] != [given[name] for name in places]]
    given |= {"id": new_id("rule"), "priority": max((each["priority"] for each in others), default=0) + 1}
    # Somebody else's rule that came meanwhile is not to be lost.
    row: Bucket = run(ctx, bucket_set_replication, bucket_id, {"configuration": {"rules": [*others, given]}}, expected_version=seen.version).row
    kept = next(each for each in row.replication or () if each["id"] == given["id"])
    job = replication_ask(ctx, row, kept)
    shown = {"replication_id": kept["id"], "status": "copying", "destination_bucket": kept["bucket_name"], "job_id": job.id}
    return io.answer(shown, 202, headers={"Link": f'<{PREFIX}/jobs/{job.id}>; rel="monitor"'})


def replication_end(bucket_id: str) -> ResponseReturnValue:
    """No more."""
    run(context(), bucket_set_replication, bucket_id, {"configuration": {"rules": []}})
    return io.empty()


def empty(bucket_id: str) -> ResponseReturnValue:
    """The job that does it."""
    given: EmptyInput = read(EmptyInput)
    return io.answer(show_job(bucket_empty(context(), bucket_id, given.prefix)), 202)


def storage_classes() -> ResponseReturnValue:
    """Those that have disks of their own here."""
    only()
    found = [{**asdict(each), "minimum_days": 0} for each in classes_of(context().settings)]
    return io.answer({"storage_classes": found})


def tiering(bucket_id: str) -> ResponseReturnValue:
    """A line for each class."""
    only("period")
    ctx = context()
    bucket = bucket_by_id(ctx.db, find(ctx, BUCKET, bucket_id).id)
    days = whole(request.args, "period", 30, low=1, high=MOST_DAYS)
    return io.answer({"period": days, "classes": tiering_report(ctx, bucket, days) if bucket is not None else []})


def metrics(bucket_id: str) -> ResponseReturnValue:
    """A series."""
    only("metric", "hours")
    ctx = context()
    row: Bucket = find(ctx, BUCKET, bucket_id)
    name = request.args.get("metric", "size")
    if name not in METRICS:
        raise InvalidRequest.fields({"metric": [f"must be one of {', '.join(METRICS)}."]})
    hours = hours_of(ctx, row.id, whole(request.args, "hours", 24, low=1, high=MOST_HOURS))
    return io.answer({"metric": name, "points": [{"at": io.moment(each.hour), **METRICS[name](each)} for each in hours]})
