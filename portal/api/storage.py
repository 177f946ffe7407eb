"""Endpoints of block storage that are not derived: snapshots and schedule of a volume, volumes and copies by their snapshot."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from flask import request
from flask.typing import ResponseReturnValue

from portal.api import body as io
from portal.api.endpoints import PREFIX, Endpoint, Query, Schema
from portal.api.represent import represent
from portal.api.resources import aliases, list_schema, listed, only, ref
from portal.api.schemas import MAYBE_TEXT, NUMBER, TEXT, WHEN, thing
from portal.http.listing import whole
from portal.http.request import context
from portal.kernel.authz import authorize, target_of
from portal.kernel.declare import Operation, Outcome
from portal.kernel.errors import InvalidRequest
from portal.kernel.inputs import input_model_of
from portal.kernel.lookup import find
from portal.kernel.operations import run
from portal.kernel.resource import ResourceType
from portal.storage.schedules import schedule_shown, volume_set_snapshot_schedule
from portal.storage.snapshots import SNAPSHOT, snapshot_create
from portal.storage.summary import storage_summary
from portal.storage.volume_metrics import volume_series
from portal.storage.volume_models import Volume
from portal.storage.volumes import VOLUME, volume_create

RATES = ("iops", "throughput_mbps", "read_ops", "write_ops", "read_bytes", "write_bytes", "used_bytes")
FIGURE: Schema = {"type": "number"}
NAMED_BY_PATH = "is said by the path."


def endpoints() -> Iterator[Endpoint]:
    """All of them."""
    of_volume, snapshots = "/{volume_id}/snapshots", list_schema(ref("Snapshot"))
    yield Endpoint("GET", f"/storage/volumes{of_volume}", "storage.volumes.snapshots", snapshots_of, "Snapshots of a volume", "Volumes",
                   {200: snapshots}, (403, 404), aliases=aliases(VOLUME, of_volume))  # fmt: skip
    also = (*aliases(VOLUME, of_volume), *aliases(VOLUME, "/{volume_id}/create_snapshot"))
    yield Endpoint("POST", f"/storage/volumes{of_volume}", "storage.volumes.snapshots.create", take, "Take a snapshot of a volume", "Volumes",
                   {202: ref("Snapshot")}, (403, 404, 409), body=_without(snapshot_create, "volume", "volume_id", "snapshot", "snapshot_id", "volume_type"),
                   idempotent=True, aliases=also)  # fmt: skip
    schedule = thing(schedule={"type": ["object", "null"]}, next_run_at=MAYBE_TEXT, last_problem=TEXT)
    rest = "/{volume_id}/snapshot-schedule"
    on_schedule: tuple[tuple[str, Callable[..., ResponseReturnValue], str, Mapping[int, Schema | None], Schema | None], ...] = (
        ("GET", schedule_get, "When snapshots of a volume are taken by themselves", {200: schedule}, None),
        ("PUT", schedule_put, "Take snapshots of a volume again and again, and delete them in time", {200: schedule},
         input_model_of(volume_set_snapshot_schedule).model_json_schema()),
        ("DELETE", schedule_delete, "Take no more snapshots by schedule; those that were taken stay", {204: None}, None),
    )  # fmt: skip
    for method, view, summary, answers, body in on_schedule:
        refuses = (403, 404) if method == "GET" else (403, 404, 409, 412)
        yield Endpoint(method, f"/storage/volumes{rest}", f"storage.volumes.snapshot-schedule.{method.lower()}", view, summary, "Volumes", answers, refuses,
                       body=body, aliases=aliases(VOLUME, rest))  # fmt: skip
    point = thing(timestamp=WHEN, interval_s=FIGURE, latency_ms={"type": ["number", "null"]}, **dict.fromkeys(RATES, FIGURE))
    answer_schema = thing(volume_id=TEXT, hours=FIGURE, sample_count=NUMBER, used_bytes={"type": ["integer", "null"]},
                          points={"type": "array", "items": point})  # fmt: skip
    hours = Query("hours", "How far back, up to 168.", {"type": "integer", "minimum": 1, "maximum": 168, "default": 24})
    yield Endpoint("GET", "/storage/volumes/{volume_id}/metrics", "storage.volumes.metrics", metrics, "Measurements of a volume, oldest first", "Volumes",
                   {200: answer_schema}, (403, 404), query=[hours], aliases=aliases(VOLUME, "/{volume_id}/metrics"))  # fmt: skip
    figures = dict.fromkeys(("buckets", "objects", "object_bytes", "volumes", "volume_gb", "volume_used_bytes", "snapshots", "snapshot_gb"), NUMBER)
    yield Endpoint("GET", "/storage/summary", "storage.summary", summary_of, "How much the project keeps, by kind of storage", "Storage",
                   {200: thing(**figures, used_gb=FIGURE, monthly_cost_usd={"type": ["number", "null"]})},
                   aliases=("/api/storage/summary",))  # fmt: skip
    for verb, make, op, summary, answer in (
        ("restore", restore, volume_create, "Make a volume from a snapshot", "Volume"),
        ("copy", copy, snapshot_create, "Copy a snapshot, so that it shares nothing with its source", "Snapshot"),
    ):
        path = f"/{{snapshot_id}}/{verb}"
        body = _without(op, "snapshot", "snapshot_id", "volume", "volume_id", "source_volume", "source_volume_id", "image", "image_id")
        yield Endpoint("POST", f"/storage/snapshots{path}", f"storage.snapshots.{verb}", make, summary, "Snapshots", {202: ref(answer)},
                       (403, 404, 409), body=body, idempotent=True, aliases=aliases(SNAPSHOT, path))  # fmt: skip


def _without(op: Operation, *names: str) -> Schema:
    """The body that an operation takes, but for what the path says."""
    schema = input_model_of(op).model_json_schema(ref_template="#/components/schemas/{model}")
    schema["properties"] = {name: each for name, each in schema["properties"].items() if name not in names}
    schema["required"] = [name for name in schema.get("required", ()) if name not in names]
    return schema


def snapshots_of(volume_id: str) -> ResponseReturnValue:
    """A list, of one volume."""
    volume = find(context(), VOLUME, volume_id)
    return io.answer(listed(SNAPSHOT, fixed={"volume_id": volume.id}))


def take(volume_id: str) -> ResponseReturnValue:
    """A new snapshot of a volume."""
    volume = find(context(), VOLUME, volume_id)
    return _made(SNAPSHOT, snapshot_create, project_id=volume.project_id, volume=volume.id)


def _schedule(row: Volume) -> dict[str, Any]:
    return {"schedule": schedule_shown(row), "next_run_at": io.moment(row.next_snapshot_at), "last_problem": row.snapshot_problem}


def schedule_get(volume_id: str) -> ResponseReturnValue:
    """When, and for how long."""
    only()
    return io.answer(_schedule(find(context(), VOLUME, volume_id)))


def schedule_put(volume_id: str) -> ResponseReturnValue:
    """Another schedule in place of the one there is."""
    given = io.read_object()
    if not given.get("frequency"):
        # What is wrong is told to who may do it.
        ctx = context()
        authorize(ctx, "storage.volume.set_snapshot_schedule", target_of(find(ctx, VOLUME, volume_id)))
        raise InvalidRequest.fields({"frequency": ["is required; DELETE ends a schedule."]})
    row = run(context(), volume_set_snapshot_schedule, volume_id, given, expected_version=io.expected_version()).row
    return io.answer(_schedule(row), headers={"ETag": io.etag(row)})


def schedule_delete(volume_id: str) -> ResponseReturnValue:
    """None any more."""
    run(context(), volume_set_snapshot_schedule, volume_id, {}, expected_version=io.expected_version())
    return io.empty()


def metrics(volume_id: str) -> ResponseReturnValue:
    """What machines read and wrote, and how much it takes."""
    only("hours")
    ctx = context()
    row = find(ctx, VOLUME, volume_id)
    hours = whole(request.args, "hours", 24, low=1, high=168)
    found = volume_series(ctx, row.id, hours=hours)
    points = [
        {
            "timestamp": io.moment(each.at),
            "interval_s": each.interval_s,
            "latency_ms": each.latency_ms,
            **{name: getattr(each, name) for name in RATES},
        }
        for each in found.points
    ]
    return io.answer({"volume_id": row.id, "hours": hours, "sample_count": found.sample_count, "used_bytes": found.used_bytes, "points": points})


def summary_of() -> ResponseReturnValue:
    """Of the current project."""
    only()
    return io.answer(storage_summary(context()))


def restore(snapshot_id: str) -> ResponseReturnValue:
    """A new volume from a snapshot."""
    snapshot = find(context(), SNAPSHOT, snapshot_id)
    return _made(VOLUME, volume_create, snapshot=snapshot.id)


def copy(snapshot_id: str) -> ResponseReturnValue:
    """A new snapshot from a snapshot."""
    snapshot = find(context(), SNAPSHOT, snapshot_id)
    return _made(SNAPSHOT, snapshot_create, snapshot=snapshot.id)


def _made(rtype: ResourceType, op: Operation, *, project_id: str | None = None, **fixed: str) -> ResponseReturnValue:
    data: dict[str, Any] = io.read_object()
    said = {*fixed, *(alias for name in fixed for alias in op.params[name].info.aliases)}
    if twice := sorted(said & set(data)):
        raise InvalidRequest.fields({name: [NAMED_BY_PATH] for name in twice})
    outcome: Outcome = run(replace(context(), project_id=project_id or context().project_id), op, None, {**data, **fixed})
    headers = {
        "ETag": io.etag(outcome.row),
        "Location": f"{PREFIX}/{rtype.service}/{rtype.collection}/{outcome.row.id}",
        "Link": f'<{PREFIX}/jobs/{outcome.job_id}>; rel="monitor"',
    }
    return io.answer({**represent(context(), rtype, outcome.row), "job_id": outcome.job_id}, 202, headers=headers)
