"""What is wrong with what somebody asks of volumes: the API names the field and the bound, the console shows the same where it was typed."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from flask.testing import FlaskClient

from portal.web import forms
from tests.support.draining import TestWorker
from tests.support.people import People
from tests.support.web import Api, csrf_of


@dataclass(frozen=True)
class World:
    """What the requests are about."""

    api: Api
    browser: FlaskClient
    ids: dict[str, str]

    def path(self, path: str) -> str:
        """A path with the ids in place of their names."""
        return path.format(**self.ids)

    def body(self, body: dict[str, Any]) -> dict[str, Any]:
        """A body with the ids in place of their names."""
        return {name: value.format(**self.ids) if isinstance(value, str) else value for name, value in body.items()}


@pytest.fixture
def world(api: Api, api_for: Callable[..., Api], client_for: Callable[..., FlaskClient], worker: TestWorker, people: People) -> World:
    def made(client: Api, path: str, **body: Any) -> str:
        answer = client.post(path, body)
        assert answer.status_code == 202, answer.json
        worker.drain()
        return str(answer.json["id"])

    stranger = api_for("project_admin", people.project("strangers"))
    machine = {"flavor": "t3-micro", "image": "atonix-tiny"}
    ids = {"web": made(api, "/compute/instances", name="web", **machine), "theirs": made(stranger, "/compute/instances", name="theirs", **machine)}
    ids["root"] = api.get(f"/storage/volumes?instance_id={ids['web']}&is_root=true").json["results"][0]["id"]
    ids["free"] = made(api, "/storage/volumes", name="free", size_gb=10)
    ids["used"] = made(api, "/storage/volumes", name="used", size_gb=10)
    assert api.post(f"/storage/volumes/{ids['used']}/attach", {"instance_id": ids["web"]}).status_code == 202
    worker.drain()
    ids["kept"] = made(api, "/storage/snapshots", name="kept", volume=ids["used"])
    ids["secret"] = made(stranger, "/storage/volumes", name="secret", size_gb=1)
    return World(api, client_for(), ids)


CREATE = [
    ("no size, nothing to begin with", {"name": "x"}, "size_gb", "is required for a volume that begins empty"),
    ("nothing at all", {"name": "x", "size_gb": 0}, "size_gb", "greater than or equal to 1"),
    ("too large for anybody", {"name": "x", "size_gb": 65_537}, "size_gb", "less than or equal to 65536"),
    ("too large for its type", {"name": "x", "size_gb": 65_536}, "size_gb", "more than ssd gives"),
    ("smaller than what it begins with", {"name": "x", "size_gb": 9, "snapshot": "{kept}"}, "size_gb", "at least 10 GiB"),
    ("no name", {"name": "", "size_gb": 1}, "name", "at least 1 character"),
    ("a bell in the name", {"name": "a\u0007b", "size_gb": 1}, "name", ""),
    ("no such type", {"name": "x", "size_gb": 1, "volume_type": "tape"}, "volume_type", "There is no volume type tape"),
    ("too slow", {"name": "x", "size_gb": 1, "iops": 99}, "iops", "greater than or equal to 100"),
    ("faster than its type", {"name": "x", "size_gb": 1, "iops": 16_001}, "iops", "at most 16,000"),
    ("more than its type moves", {"name": "x", "size_gb": 1, "throughput_mbps": 1_001}, "throughput_mbps", "at most 1,000"),
    ("a foreign project's volume", {"name": "x", "size_gb": 1, "source_volume": "{secret}"}, "source_volume", "There is no volume"),
    ("no such image", {"name": "x", "size_gb": 10, "image": "nothing"}, "image", "There is no image"),
]


def test_a_volume_that_cannot_be(world: World) -> None:
    token = csrf_of(world.browser.get("/storage/volumes/new"))
    for case, body, field, words in CREATE:
        refused = world.api.post("/storage/volumes", world.body(body))
        assert (refused.status_code, list(refused.json["details"])) == (400, [field]), (case, refused.json)
        assert words in refused.json["details"][field][0], case
        typed = {name: str(value) for name, value in world.body(body).items()}
        for source in ("snapshot", "source_volume", "image"):
            if source in typed:
                typed["one_of"] = f"{source}:{typed.pop(source)}"
        answer = world.browser.post("/storage/volumes/new", data={"csrf_token": token, **typed})
        assert (answer.status_code, words in answer.text) == (422, True), (case, answer.text)
    assert world.api.get("/storage/volumes").json["count"] == 3


ACTIONS = [
    ("the root disk, detached", "{root}", "detach", {}, 409, "goes with it"),
    ("the root disk, by force", "{root}", "detach", {"force": True}, 409, "goes with it"),
    ("detached while nobody has it", "{free}", "detach", {}, 409, "needs it to be in-use"),
    ("a foreign project's instance", "{free}", "attach", {"instance": "{theirs}"}, 400, "There is no instance"),
    ("no such instance", "{free}", "attach", {"instance": "nobody"}, 400, "There is no instance"),
    ("attached twice", "{used}", "attach", {"instance": "{web}"}, 409, "needs it to be available"),
    ("shrunk", "{free}", "resize", {"size_gb": 9}, 400, "a volume only grows"),
    ("as large as it is", "{free}", "resize", {"size_gb": 10}, 400, "a volume only grows"),
    ("larger than its type gives", "{free}", "resize", {"size_gb": 65_536}, 400, "more than ssd gives"),
    ("another one's snapshot", "{free}", "restore", {"snapshot": "{kept}", "confirm": "free"}, 400, "is not of this volume"),
    ("restored under a guest", "{used}", "restore", {"snapshot": "{kept}", "confirm": "used"}, 409, "Stop it or detach"),
    ("thrown away while it is used", "{used}", "trash", {"confirm": "used"}, 409, "needs it to be"),
]


def test_what_cannot_be_done_to_it(world: World) -> None:
    token = csrf_of(world.browser.get("/storage/volumes/new"))
    for case, volume, verb, body, status, words in ACTIONS:
        path, given = world.path(f"/storage/volumes/{volume}"), world.body(body)
        before = world.api.get(path).json
        refused = world.api.post(f"{path}/{verb}", {name: value for name, value in given.items() if name != "confirm"})
        assert (refused.status_code, words in str(refused.json)) == (status, True), (case, refused.json)
        typed = {name: "true" if value is True else str(value) for name, value in given.items()}
        answer = world.browser.post(f"{path}/actions/{verb}", data={"csrf_token": token, **typed})
        assert (answer.status_code in {409, 422}, words in answer.text) == (True, True), (case, answer.text)
        assert world.api.get(path).json["state"] == before["state"], case


def test_a_name_that_is_taken_and_several_things_to_begin_with(world: World) -> None:
    taken = world.api.post("/storage/volumes", {"name": "free", "size_gb": 1})
    assert (taken.status_code, list(taken.json["details"])) == (409, ["name"])
    both = world.api.post("/storage/volumes", {"name": "x", "snapshot": world.ids["kept"], "source_volume": world.ids["free"]})
    assert (both.status_code, sorted(both.json["details"])) == (400, ["snapshot", "source_volume"])
    assert world.api("DELETE", f"/storage/volumes/{world.ids['used']}").status_code == 409


def test_the_form_asks_once_what_to_begin_with(world: World, worker: TestWorker) -> None:
    page = world.browser.get(f"/storage/volumes/new?snapshot={world.ids['kept']}")
    assert page.text.count(">None<") == 0
    assert page.text.count("Begin with") == 1
    assert f'<option value="snapshot:{world.ids["kept"]}" selected>' in page.text
    assert "ssd: 3,000 IOPS, up to 16,000" in page.text
    form = {"csrf_token": csrf_of(page), "name": "again", "one_of": f"snapshot:{world.ids['kept']}"}
    answer = world.browser.post("/storage/volumes/new", data=form)
    assert answer.status_code == 303
    worker.drain()
    row = world.api.get("/storage/volumes?search=again").json["results"][0]
    assert (row["snapshot_id"], row["size_gb"], row["state"]) == (world.ids["kept"], 10, "available")
    estimate = world.browser.post("/storage/volumes/estimate", data={**form, "name": "other"})
    assert "snapshot" in estimate.text
    listed = world.browser.get("/storage/volumes").text
    assert f'<a href="/compute/instances/{world.ids["web"]}">web</a>' in listed
    assert "In use" in listed


def test_the_form_begins_with_what_was_chosen_however_many_there_are(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forms, "MAX_CHOICES", 1)
    kept = world.ids["kept"]
    # There are three volumes: they are named, not chosen from a list.
    page = world.browser.get(f"/storage/volumes/new?snapshot={kept}").text
    assert "one_of" not in page
    assert re.search(r'name="source_volume" value=""[^>]*list=', page)
    assert f'<option value="{kept}" selected>' in page


def test_the_summary_counts_what_the_project_keeps(world: World) -> None:
    found = world.api.get("/storage/summary").json
    assert {name: found[name] for name in ("volumes", "volume_gb", "snapshots", "snapshot_gb", "buckets", "objects")} == {
        "volumes": 3, "volume_gb": 28, "snapshots": 1, "snapshot_gb": 10, "buckets": 0, "objects": 0,
    }  # fmt: skip
    assert found["monthly_cost_usd"] is None
