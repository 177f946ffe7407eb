"""Endpoints of block storage that are not derived: snapshots by their volume, volumes and copies by their snapshot."""

from collections.abc import Iterator
from typing import Any

from flask.typing import ResponseReturnValue

from portal.api import body as io
from portal.api.endpoints import PREFIX, Endpoint, Schema
from portal.api.represent import represent
from portal.api.resources import aliases, list_schema, listed, ref
from portal.http.request import context
from portal.kernel.declare import Operation, Outcome
from portal.kernel.errors import InvalidRequest
from portal.kernel.inputs import input_model_of
from portal.kernel.lookup import find
from portal.kernel.operations import run
from portal.kernel.resource import ResourceType
from portal.storage.snapshots import SNAPSHOT, snapshot_create
from portal.storage.volumes import VOLUME, volume_create

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
    for verb, view, op, summary, answer in (
        ("restore", restore, volume_create, "Make a volume from a snapshot", "Volume"),
        ("copy", copy, snapshot_create, "Copy a snapshot, so that it shares nothing with its source", "Snapshot"),
    ):
        path = f"/{{snapshot_id}}/{verb}"
        body = _without(op, "snapshot", "snapshot_id", "volume", "volume_id", "source_volume", "source_volume_id", "image", "image_id")
        yield Endpoint("POST", f"/storage/snapshots{path}", f"storage.snapshots.{verb}", view, summary, "Snapshots", {202: ref(answer)},
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
    return _made(SNAPSHOT, snapshot_create, volume=volume.id)


def restore(snapshot_id: str) -> ResponseReturnValue:
    """A new volume from a snapshot."""
    snapshot = find(context(), SNAPSHOT, snapshot_id)
    return _made(VOLUME, volume_create, snapshot=snapshot.id)


def copy(snapshot_id: str) -> ResponseReturnValue:
    """A new snapshot from a snapshot."""
    snapshot = find(context(), SNAPSHOT, snapshot_id)
    return _made(SNAPSHOT, snapshot_create, snapshot=snapshot.id)


def _made(rtype: ResourceType, op: Operation, **fixed: str) -> ResponseReturnValue:
    data: dict[str, Any] = io.read_object()
    said = {*fixed, *(alias for name in fixed for alias in op.params[name].info.aliases)}
    if twice := sorted(said & set(data)):
        raise InvalidRequest.fields({name: [NAMED_BY_PATH] for name in twice})
    outcome: Outcome = run(context(), op, None, {**data, **fixed})
    headers = {
        "ETag": io.etag(outcome.row),
        "Location": f"{PREFIX}/{rtype.service}/{rtype.collection}/{outcome.row.id}",
        "Link": f'<{PREFIX}/jobs/{outcome.job_id}>; rel="monitor"',
    }
    return io.answer({**represent(context(), rtype, outcome.row), "job_id": outcome.job_id}, 202, headers=headers)
