"""Volumes in the console: their snapshots, and the volumes of an instance."""

from collections.abc import Callable

from flask.testing import FlaskClient

from tests.support.draining import TestWorker
from tests.support.people import People
from tests.support.web import Api, csrf_of


def test_a_volume_is_made_given_to_an_instance_and_kept(api: Api, client_for: Callable[..., FlaskClient], worker: TestWorker) -> None:
    web = api.post("/compute/instances", {"name": "web", "flavor": "t3-micro", "image": "atonix-tiny"}).json["id"]
    worker.drain()
    browser = client_for()

    def send(path: str, **form: str) -> None:
        answer = browser.post(path, data={"csrf_token": csrf_of(browser.get(path)), **form})
        assert answer.status_code == 303, answer.text
        worker.drain()

    send("/storage/volumes/new", name="data", size_gb="5", volume_type="vt-nvme")
    row = next(each for each in api.get("/storage/volumes").json["results"] if each["name"] == "data")
    page = browser.get(f"/storage/volumes/{row['id']}/snapshots")
    assert "None yet" in page.text
    send(f"/storage/volumes/{row['id']}/actions/attach", instance=web)
    send(f"/storage/snapshots/new?volume={row['id']}", name="kept", volume=row["id"])
    page = browser.get(f"/storage/volumes/{row['id']}/snapshots")
    assert "kept" in page.text
    assert "/storage/volumes/new?snapshot=snap-" in page.text
    storage = browser.get(f"/compute/instances/{web}/storage")
    assert f"/dev/disk/by-id/virtio-{row['id']}" in storage.text
    assert "root" in storage.text
    assert browser.get(f"/storage/volumes/{row['id']}").text.count("web") >= 1


def test_who_sees_no_volumes_sees_none_with_the_instance(api: Api, client_for: Callable[..., FlaskClient], worker: TestWorker) -> None:
    web = api.post("/compute/instances", {"name": "web", "flavor": "t3-micro", "image": "atonix-tiny"}).json["id"]
    worker.drain()
    assert client_for("").get(f"/compute/instances/{web}/storage").status_code == 404


def test_forms_offer_what_is_in_the_project_of_the_resource(
    people: People, api_for: Callable[..., Api], client_for: Callable[..., FlaskClient], worker: TestWorker
) -> None:
    here, there = api_for("platform_admin"), people.project("victim")
    inside = {"X-Project": there}
    for name, headers in (("mine", inside), ("another", {})):
        here.post("/storage/volumes", {"name": name, "size_gb": 1}, headers=headers)
        here.post("/compute/instances", {"name": f"{name}-vm", "flavor": "t3-micro", "image": "atonix-tiny"}, headers=headers)
        worker.drain()
        here.post("/storage/snapshots", {"name": f"{name}-kept", "volume": name}, headers=headers)
        worker.drain()
    (volume,) = [each for each in here.get("/storage/volumes", headers=inside).json["results"] if each["name"] == "mine"]
    browser = client_for("platform_admin")
    base = f"/storage/volumes/{volume['id']}/actions"
    for verb in ("restore", "attach"):
        page = browser.get(f"{base}/{verb}")
        assert "mine-" in page.text
        assert "another-" not in page.text
    page = browser.get(f"{base}/restore")
    answer = browser.post(f"{base}/restore", data={"csrf_token": csrf_of(page), "snapshot": "mine-kept", "confirm": "mine"})
    assert answer.status_code == 303, answer.text
    worker.drain()
    answer = browser.post(f"{base}/attach", data={"csrf_token": csrf_of(page), "instance": "mine-vm"})
    assert answer.status_code == 303, answer.text
    worker.drain()
    # By the path of the volume, from whatever project.
    assert here.post(f"/storage/volumes/{volume['id']}/snapshots", {"name": "later"}).json["project_id"] == there
