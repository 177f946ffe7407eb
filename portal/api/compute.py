"""Endpoints of compute that are not derived: shortcuts of lists, console output, metrics, and the upload of image files."""

from collections.abc import Iterator
from typing import Any

from flask import current_app, request
from flask.typing import ResponseReturnValue

from portal.api import body as io
from portal.api.endpoints import Endpoint, Query, Schema
from portal.api.represent import represent
from portal.api.resources import aliases, list_schema, listed, ref
from portal.api.schemas import NUMBER, TEXT, WHEN, thing
from portal.compute.flavors import FLAVOR
from portal.compute.images import IMAGE, upload
from portal.compute.instances import INSTANCE
from portal.compute.metrics import InstanceMetric, series
from portal.http.listing import whole
from portal.http.request import context
from portal.kernel.audit import Subject
from portal.kernel.authz import target_of
from portal.kernel.db import now
from portal.kernel.errors import InvalidRequest
from portal.kernel.lookup import find
from portal.kernel.operations import acting

FIGURE: Schema = {"type": "number"}
MAX_LINES = 10_000
MAX_OUTPUT_BYTES = 1 << 20
FIGURES = (
    "cpu_usage_percent", "memory_usage_percent", "disk_usage_percent", "network_in_bytes", "network_out_bytes", "io_read_bytes", "io_write_bytes",
)  # fmt: skip
POINT = thing(timestamp=WHEN, interval_s=FIGURE, **dict.fromkeys(FIGURES, FIGURE))


def endpoints() -> Iterator[Endpoint]:
    """All of them."""
    flavors, images = list_schema(ref("Flavor")), list_schema(ref("Image"))
    yield Endpoint("GET", "/compute/flavors/gpu", "compute.flavors.gpu", gpu_flavors, "Flavors with GPUs", "Flavors", {200: flavors},
                   aliases=("/api/compute/flavors/gpu", "/api/v1/services/flavors/gpu_flavors"))  # fmt: skip
    vcpus = [Query("vcpus", "How many.", {"type": "integer", "minimum": 1, "maximum": 256}, required=True)]
    yield Endpoint("GET", "/compute/flavors/by-vcpus", "compute.flavors.by-vcpus", flavors_by_vcpus, "Flavors with exactly so many vCPU", "Flavors",
                   {200: flavors}, query=vcpus, aliases=aliases(FLAVOR, "/by-vcpus"))  # fmt: skip
    yield Endpoint("GET", "/compute/images/public", "compute.images.public", public_images, "Images that everybody may use", "Images", {200: images},
                   aliases=aliases(IMAGE, "/public"))  # fmt: skip
    yield Endpoint("GET", "/compute/images/mine", "compute.images.mine", my_images, "Images of the current project", "Images", {200: images},
                   aliases=("/api/compute/images/mine", "/api/v1/services/images/my_images"))  # fmt: skip
    yield Endpoint("PUT", "/compute/images/{image_id}/file", "compute.images.file", image_file,
                   "Send the file of an image that awaits it; its format is found by looking into it", "Images", {202: ref("Image")}, (403, 404, 409),
                   body={"type": "string", "format": "binary"}, media="application/octet-stream", is_large=True, aliases=aliases(IMAGE, "/{image_id}/file"))  # fmt: skip
    item = "/{instance_id}"
    hours = Query("hours", "How far back, up to 168.", {"type": "integer", "minimum": 1, "maximum": 168, "default": 24})
    statistics = thing(min=FIGURE, avg=FIGURE, max=FIGURE)
    metrics_answer = thing(instance_id=TEXT, hours=FIGURE, sample_count=NUMBER, points={"type": "array", "items": POINT},
                           summary={"type": "object", "additionalProperties": statistics})  # fmt: skip
    yield Endpoint("GET", f"/compute/instances{item}/metrics", "compute.instances.metrics", metrics, "Measurements, oldest first", "Instances",
                   {200: metrics_answer}, (404,), query=[hours], aliases=aliases(INSTANCE, f"{item}/metrics"))  # fmt: skip
    lines = Query(
        "lines", f"How many of the last lines, up to {MAX_LINES:,}.", {"type": "integer", "minimum": 1, "maximum": MAX_LINES, "default": 200}
    )
    output = thing(instance_id=TEXT, text=TEXT, lines=NUMBER, captured_at=WHEN)
    yield Endpoint("GET", f"/compute/instances{item}/console-output", "compute.instances.console-output", console_output,
                   "The last lines that the machine wrote to its serial console", "Instances", {200: output}, (403, 404), query=[lines],
                   aliases=aliases(INSTANCE, f"{item}/console-output"))  # fmt: skip


def gpu_flavors() -> ResponseReturnValue:
    """Flavors with GPUs."""
    return io.answer(listed(FLAVOR, fixed={"is_gpu": "true"}))


def flavors_by_vcpus() -> ResponseReturnValue:
    """Flavors with a number of vCPU."""
    wanted = whole(request.args, "vcpus", 0, low=1, high=256)
    if not wanted:
        raise InvalidRequest.fields({"vcpus": ["is required: how many vCPU?"]})
    return io.answer(listed(FLAVOR, fixed={"vcpus": str(wanted)}))


def public_images() -> ResponseReturnValue:
    """Public images."""
    return io.answer(listed(IMAGE, fixed={"is_public": "true"}))


def my_images() -> ResponseReturnValue:
    """Images of the project."""
    return io.answer(listed(IMAGE, fixed={"is_public": "false"}, is_own=True))


def image_file(image_id: str) -> ResponseReturnValue:
    """Stream the body into staging, then let a worker look into it."""
    outcome = upload(context(), image_id, request.stream.read, length=request.content_length)
    return io.answer({**represent(context(), IMAGE, outcome.row), "job_id": outcome.job_id}, 202)


def metrics(instance_id: str) -> ResponseReturnValue:
    """Measurements of one instance."""
    ctx = context()
    row = find(ctx, INSTANCE, instance_id)
    hours = whole(request.args, "hours", 24, low=1, high=168)
    found = series(ctx, row.id, hours=hours)
    points = [_point(point) for point in found.points]
    return io.answer({"instance_id": row.id, "hours": hours, "sample_count": found.sample_count, "points": points, "summary": found.summary})


def _point(point: InstanceMetric) -> dict[str, Any]:
    return {"timestamp": io.moment(point.at), "interval_s": point.interval_s, **{name: getattr(point, name) for name in FIGURES}}


def console_output(instance_id: str) -> ResponseReturnValue:
    """The end of the serial console's log."""
    ctx = context()
    row = find(ctx, INSTANCE, instance_id)
    machine_id, about = str(row.id), Subject(INSTANCE.key, row.id, row.name, row.project_of())
    wanted = whole(request.args, "lines", 200, low=1, high=MAX_LINES)
    # What a machine printed may hold secrets: that somebody read it is in the audit log.
    with acting(ctx, "compute.instance.console", about, target=target_of(row), details={"console": "output"}):
        console = current_app.extensions["portal_engines"].console
    text = console.log_tail(machine_id, max_bytes=MAX_OUTPUT_BYTES).decode("utf-8", "replace") if console is not None else ""
    kept = text.splitlines()[-wanted:]
    return io.answer({"instance_id": machine_id, "text": "\n".join(kept), "lines": len(kept), "captured_at": io.moment(now())})
