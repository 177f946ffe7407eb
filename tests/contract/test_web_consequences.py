"""Dialogs of what takes something away say beforehand what it concerns."""

from collections.abc import Callable

import pytest
from flask.testing import FlaskClient

from tests.support.draining import TestWorker
from tests.support.web import Api


@pytest.fixture
def browser(client_for: Callable[..., FlaskClient]) -> FlaskClient:
    return client_for()


def test_what_a_key_encrypts_is_said_before_it_is_taken_away(api: Api, browser: FlaskClient, worker: TestWorker) -> None:
    key = api.post("/security/keys", {"name": "records"}).json["id"]
    base = f"/security/keys/{key}/actions"
    assert "It encrypts nothing that you may see" in browser.get(f"{base}/disable").text
    for name in ("data", "logs"):
        api.post("/storage/volumes", {"name": name, "size_gb": 1, "kms_key_id": key})
    web = api.post("/compute/instances", {"name": "web-1", "flavor": "t3-micro", "image": "atonix-tiny"}).json["id"]
    worker.drain()
    (volume,) = [each for each in api.get("/storage/volumes").json["results"] if each["name"] == "data"]
    api.post(f"/storage/volumes/{volume['id']}/attach", {"instance": web})
    worker.drain()
    for verb in ("disable", "schedule_deletion"):
        page = browser.get(f"{base}/{verb}").text
        assert "It encrypts 2 volumes (data, logs)." in page
        assert "Running with it: 1 instance (web-1)." in page
    assert 'value="30"' in page
    assert "the deletion can be cancelled" in page
    assert "This cannot be undone" not in page


def test_detaching_and_restoring_say_what_they_take(api: Api, browser: FlaskClient, worker: TestWorker) -> None:
    web = api.post("/compute/instances", {"name": "web-1", "flavor": "t3-micro", "image": "atonix-tiny"}).json["id"]
    volume = api.post("/storage/volumes", {"name": "data", "size_gb": 1}).json["id"]
    worker.drain()
    api.post(f"/storage/volumes/{volume}/attach", {"instance": web})
    worker.drain()
    api.post(f"/storage/volumes/{volume}/snapshots", {"name": "kept"})
    worker.drain()
    base = f"/storage/volumes/{volume}/actions"
    assert "It is taken from instance web-1, which is running." in browser.get(f"{base}/detach").text
    page = browser.get(f"{base}/restore").text
    assert "What was written since the chosen snapshot is lost" in page
    assert "Newest snapshot: " in page
    assert "It can be recovered for 7 days." in browser.get(f"{base}/trash").text


def test_the_page_of_a_snapshot_offers_what_it_is_for(api: Api, browser: FlaskClient, worker: TestWorker) -> None:
    volume = api.post("/storage/volumes", {"name": "data", "size_gb": 1}).json["id"]
    worker.drain()
    snapshot = api.post(f"/storage/volumes/{volume}/snapshots", {"name": "kept"}).json["id"]
    worker.drain()
    page = browser.get(f"/storage/snapshots/{snapshot}").text
    assert "Share no longer" not in page
    assert f"/storage/volumes/new?snapshot={snapshot}" in page
    assert f'class="btn" href="/storage/snapshots/{snapshot}/actions/make_public"' not in page
