"""Endpoints of what buckets do besides keeping objects: access logs, figures by the hour."""

from collections.abc import Callable, Iterator, Mapping

from flask import request
from flask.typing import ResponseReturnValue
from pydantic import Field

from portal.api import body as io
from portal.api.endpoints import Endpoint, Query, Schema
from portal.api.resources import aliases, only
from portal.api.schemas import MAYBE_TEXT, NUMBER, TEXT, WHEN, YES, Input, read, thing
from portal.http.listing import whole
from portal.http.request import context
from portal.kernel.errors import InvalidRequest
from portal.kernel.lookup import find
from portal.kernel.operations import run
from portal.storage.access_logs import bucket_set_logging
from portal.storage.buckets import BUCKET
from portal.storage.metrics import BucketHour, hours_of
from portal.storage.object_models import Bucket

ITEM = "/storage/buckets/{bucket_id}"
MOST_HOURS = 93 * 24
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


def endpoints() -> Iterator[Endpoint]:
    """All of them."""
    yield _on("PUT logging", logging, "Write an access log into another bucket, or none",
              {200: thing(logging_enabled=YES, log_target_bucket=MAYBE_TEXT, log_prefix=TEXT)}, LoggingInput)  # fmt: skip
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
