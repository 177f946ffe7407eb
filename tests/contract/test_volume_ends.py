"""Who may have the portal delete snapshots and volumes: whoever may delete them."""

from collections.abc import Callable
from datetime import timedelta

from sqlalchemy import update

from portal.kernel.db import now, transaction
from portal.storage.volume_models import Snapshot
from tests.support.draining import TestWorker
from tests.support.people import People
from tests.support.web import Api


def test_the_end_of_a_snapshot_comes_nearer_only_for_who_may_delete_it(
    api: Api, api_for: Callable[..., Api], people: People, worker: TestWorker
) -> None:
    other = api_for("developer")
    volume = api.post("/storage/volumes", {"name": "data", "size_gb": 1}).json["id"]
    worker.drain()
    path = f"/storage/snapshots/{api.post(f'/storage/volumes/{volume}/snapshots', {'name': 'kept'}).json['id']}"
    worker.drain()
    system = people.context(None)
    with transaction(system.db):
        system.db.execute(update(Snapshot).values(created_at=now() - timedelta(days=3)))
    for days in (1, 5):
        assert other("PATCH", path, {"retention_days": days}).status_code in {400, 403}
    assert api.get(path).json["expires_at"] is None
    answer = api("PATCH", path, {"retention_days": 1})
    assert (answer.status_code, "Delete it instead" in str(answer.json)) == (400, True)
    assert api("PATCH", path, {"retention_days": 5}).json["expires_at"]
    assert other("PATCH", path, {"retention_days": 4}).status_code == 403
    assert other("PATCH", path, {"retention_days": 6}).status_code == 200
    kept = other("PATCH", path, {"retention_days": None}).json
    assert (kept["retention_days"], kept["expires_at"]) == (None, None)


def test_who_may_not_delete_a_volume_does_not_let_it_go_with_an_instance(api: Api, api_for: Callable[..., Api], worker: TestWorker) -> None:
    volume = api.post("/storage/volumes", {"name": "data", "size_gb": 1}).json["id"]
    worker.drain()
    other = api_for("developer")
    assert other("PATCH", f"/storage/volumes/{volume}", {"delete_on_termination": True}).status_code == 403
    assert api("PATCH", f"/storage/volumes/{volume}", {"delete_on_termination": True}).status_code == 200
    assert other("PATCH", f"/storage/volumes/{volume}", {"delete_on_termination": False}).status_code == 200


def test_who_may_not_delete_a_volume_that_goes_with_its_instance_gives_it_to_none_of_theirs(
    api: Api, api_for: Callable[..., Api], worker: TestWorker
) -> None:
    """They would terminate that, and it would be gone."""
    other = api_for("developer")
    body = {"flavor": "t3-micro", "image": "atonix-tiny"}
    theirs, mine = (
        other.post("/compute/instances", {"name": "theirs", **body}).json["id"],
        api.post("/compute/instances", {"name": "mine", **body}).json["id"],
    )
    volume = api.post("/storage/volumes", {"name": "data", "size_gb": 1, "delete_on_termination": True}).json["id"]
    worker.drain()
    assert other.post(f"/storage/volumes/{volume}/attach", {"instance": theirs}).status_code == 403
    assert other.post(f"/storage/volumes/{volume}/attach", {"instance": mine}).status_code == 202
