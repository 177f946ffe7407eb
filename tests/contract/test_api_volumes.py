"""Block storage through the API: the ways that programs take, with the answers they get."""

from collections.abc import Callable
from typing import Any

from tests.support.draining import TestWorker
from tests.support.web import Api


def made(api: Api, worker: TestWorker, path: str, body: dict[str, Any], status: int = 202) -> dict[str, Any]:
    """Make something and have it done; how it stands then."""
    answer = api.post(path, body)
    assert answer.status_code == status, answer.json
    worker.drain()
    found: dict[str, Any] = api.get(answer.headers["Location"].removeprefix("/api/v1")).json
    return found


def machine(api: Api, worker: TestWorker, name: str = "web") -> dict[str, Any]:
    return made(api, worker, "/compute/instances", {"name": name, "flavor": "t3-micro", "image": "atonix-tiny"})


def test_a_volume_goes_through_its_life(api: Api, worker: TestWorker) -> None:
    web = machine(api, worker)
    first = api.post("/storage/volumes", {"name": "data", "size_gb": 10, "volume_type": "nvme", "tags": {"env": "prod"}})
    assert (first.status_code, first.json["status"], first.json["job_id"].startswith("job-")) == (202, "creating", True)
    worker.drain()
    path = f"/storage/volumes/{first.json['volume_id']}"
    row = api.get(path).json
    shown = {"name": "data", "size_gb": 10, "status": "available", "volume_type_name": "nvme", "attached_to_instance": None, "iops": 16_000}
    assert {key: row[key] for key in shown} == shown
    attached = api.post(f"{path}/attach", {"instance_id": web["id"]})
    assert (attached.status_code, attached.json["status"]) == (202, "attaching")
    worker.drain()
    row = api.get(path).json
    assert (row["status"], row["attached_to_instance"], row["device"]) == ("in-use", web["id"], f"/dev/disk/by-id/virtio-{row['id']}")
    assert [each["id"] for each in api.get(f"/storage/volumes?instance_id={web['id']}&is_root=false").json["results"]] == [row["id"]]
    assert api("DELETE", path).status_code == 409
    assert api.post(f"{path}/resize", {"size_gb": 5}).status_code == 400
    assert api.post(f"{path}/resize", {"size_gb": 20}).status_code == 202
    worker.drain()
    changed = api("PATCH", path, {"iops": 500, "delete_on_termination": True})
    assert (changed.status_code, changed.json["iops"], changed.json["delete_on_termination"]) == (200, 500, True)
    worker.drain()
    assert api.post(f"{path}/detach", {}).status_code == 202
    worker.drain()
    row = api.get(path).json
    assert (row["status"], row["size_gb"], row["attached_to"]) == ("available", 20, None)
    assert api.post(f"{path}/trash", {}).json["status"] == "trashed"
    assert api.post(f"{path}/recover", {}).json["status"] == "available"
    assert api("DELETE", path).status_code == 202
    worker.drain()
    assert api.get(path).json["status"] == "deleted"


def test_snapshots_by_their_volume_and_volumes_by_their_snapshot(api: Api, worker: TestWorker) -> None:
    data = made(api, worker, "/storage/volumes", {"name": "data", "size_gb": 2})
    kept = made(api, worker, f"/storage/volumes/{data['id']}/snapshots", {"name": "kept", "retention_days": 7})
    assert (kept["status"], kept["volume_id"], kept["size_gb"], kept["progress_percent"]) == ("completed", data["id"], 2, 100)
    other = made(api, worker, "/storage/volumes", {"name": "other", "size_gb": 1})
    made(api, worker, "/storage/snapshots", {"name": "of-other", "volume_id": other["id"]})
    assert [each["id"] for each in api.get(f"/storage/volumes/{data['id']}/snapshots").json["results"]] == [kept["id"]]
    larger = made(api, worker, f"/storage/snapshots/{kept['id']}/restore", {"name": "larger", "size_gb": 4, "volume_type": "hdd"})
    assert (larger["size_gb"], larger["snapshot_id"], larger["volume_type_name"]) == (4, kept["id"], "hdd")
    copy = made(api, worker, f"/storage/snapshots/{kept['id']}/copy", {"name": "copy"})
    assert (copy["status"], copy["copy_of_id"]) == ("completed", kept["id"])
    back = api.post(f"/storage/volumes/{data['id']}/restore", {"snapshot_id": kept["id"]})
    assert back.status_code == 202
    worker.drain()
    for path, body, field in (
        (f"/storage/volumes/{data['id']}/snapshots", {"name": "x", "volume_id": other["id"]}, "volume_id"),
        (f"/storage/snapshots/{kept['id']}/restore", {"name": "x", "snapshot": "snap-other"}, "snapshot"),
        (f"/storage/snapshots/{kept['id']}/restore", {"name": "x", "size_gb": 1}, "size_gb"),
    ):
        refused = api.post(path, body)
        assert (refused.status_code, list(refused.json["details"])) == (400, [field]), refused.json


def test_other_paths_lead_to_the_same(api: Api, worker: TestWorker) -> None:
    for number, path in enumerate(("/api/storage/volumes", "/api/v1/services/volumes")):
        answer = api.post(path, {"name": f"data-{number}", "size_gb": 1})
        assert answer.status_code == 202, path
        worker.drain()
        taken = api.post(f"{path}/{answer.json['id']}/snapshots", {"name": f"kept-{number}"})
        assert taken.status_code == 202
    flat = api.post(f"/api/v1/services/volumes/{answer.json['id']}/create_snapshot", {"name": "flat"})
    assert (flat.status_code, flat.json["volume_id"]) == (202, answer.json["id"])


def test_another_project_sees_nothing(api: Api, api_for: Callable[..., Api], worker: TestWorker, people: Any) -> None:
    data = made(api, worker, "/storage/volumes", {"name": "data", "size_gb": 1})
    kept = made(api, worker, f"/storage/volumes/{data['id']}/snapshots", {"name": "kept"})
    stranger = api_for("project_admin", people.project("other"))
    for path in (f"/storage/volumes/{data['id']}", f"/storage/snapshots/{kept['id']}", f"/storage/volumes/{data['id']}/snapshots"):
        assert stranger.get(path).status_code == 404
    for path in (f"/storage/volumes/{data['id']}/snapshots", f"/storage/snapshots/{kept['id']}/restore", f"/storage/snapshots/{kept['id']}/copy"):
        assert stranger.post(path, {"name": "mine"}).status_code == 404
    assert stranger.post("/storage/volumes", {"name": "mine", "snapshot_id": kept["id"]}).status_code == 400
    assert stranger.get("/storage/volumes").json["count"] == 0


def test_the_image_of_a_root_disk(api: Api, worker: TestWorker) -> None:
    web = machine(api, worker)
    (root,) = api.get(f"/storage/volumes?instance_id={web['id']}&is_root=true").json["results"]
    assert (root["status"], root["is_root"], root["delete_on_termination"]) == ("in-use", True, True)
    assert api.post(f"/storage/volumes/{root['id']}/detach", {}).status_code == 409
    kept = made(api, worker, f"/storage/volumes/{root['id']}/snapshots", {"name": "kept"})
    image = made(api, worker, "/compute/images", {"name": "golden", "snapshot_id": kept["id"]})
    assert image["status"] == "available"
    other = made(api, worker, "/compute/instances", {"name": "other", "flavor": "t3-micro", "image": "golden"})
    assert other["status"] == "running"


def test_a_snapshot_is_kept_for_ever_again(api: Api, worker: TestWorker) -> None:
    volume = made(api, worker, "/storage/volumes", {"name": "a-volume", "size_gb": 1})
    kept = made(api, worker, f"/storage/volumes/{volume['id']}/snapshots", {"name": "kept", "retention_days": 1})
    one = f"/storage/snapshots/{kept['id']}"
    assert api.get(one).json["expires_at"]
    assert api("PATCH", one, {"retention_days": 0}).status_code == 400
    changed = api("PATCH", one, {"retention_days": None})
    assert (changed.status_code, changed.json["retention_days"], changed.json["expires_at"]) == (200, None, None), changed.json
