"""Bad input: each kind gets its documented status and words that name field, limit and way out; nothing half-made stays."""

import errno
import io
import json
from collections.abc import Callable, Iterator

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session, sessionmaker
from werkzeug.test import TestResponse

from portal.compute.images import Image
from portal.compute.instances import Instance
from portal.engines.fake import FakeCompute
from portal.kernel.jobs import Job
from portal.kernel.limits import quota_update
from portal.kernel.quota import Reservation
from portal.settings import Settings
from tests.support.draining import TestWorker
from tests.support.people import People
from tests.support.scenarios import qcow2
from tests.support.web import Api

SMALL = {"name": "web-1", "flavor": "t3-micro", "image": "atonix-tiny"}
INSTANCES = "/compute/instances"


@pytest.fixture
def untouched(database: sessionmaker[Session], settings: Settings) -> Iterator[None]:
    """After the test there is what was there before it: rows, reservations, jobs, staged files."""

    def count() -> tuple[object, ...]:
        with database() as session:
            rows = [session.scalar(select(func.count()).select_from(model)) for model in (Instance, Image, Reservation, Job)]
        staging = settings.data_dir / "staging"
        return (*rows, sorted(path.name for path in staging.iterdir()) if staging.is_dir() else [])

    before = count()
    yield
    assert count() == before


BODIES = [
    pytest.param({**SMALL, "colour": "red"}, "colour", "is not a field", id="unknown field"),
    pytest.param({**SMALL, "name": 7}, "name", "string", id="wrong type"),
    pytest.param({**SMALL, "count": "2"}, "count", "integer", id="text for a number"),
    pytest.param({**SMALL, "count": 21}, "count", "20", id="too many"),
    pytest.param({**SMALL, "name": "x" * 256}, "name", "255", id="name too long"),
    pytest.param({**SMALL, "name": ""}, "name", "at least 1", id="no name"),
    pytest.param({**SMALL, "name": "a\nb"}, "name", "no control characters", id="control characters"),
    *(
        pytest.param({**SMALL, "name": name}, "name", "no control characters", id=f"hidden {name!a}")
        for name in ("\u202egnp.bew", "\u200b", "a\u061cb", "a\u2028b", "a\u0085b", "\u200d", "a\u2060b", "\ufeffa")
    ),
    pytest.param({"flavor": "t3-micro", "image": "atonix-tiny"}, "name", "required", id="field missing"),
    pytest.param({**SMALL, "flavor": "t9-huge"}, "flavor", "There is no flavor t9-huge here", id="unknown flavor"),
    pytest.param({**SMALL, "image": "ami-nowhere"}, "image", "There is no image ami-nowhere here", id="unknown image"),
    pytest.param({**SMALL, "vpc_id": "vpc-other"}, "vpc_id", "vpc-12345678", id="unknown network"),
    pytest.param({**SMALL, "user_data": "x" * 16_385}, "user_data", "16384", id="user data too long"),
    pytest.param({**SMALL, "user_data": "ä" * 8_193}, "user_data", "16,384 bytes", id="user data too long in bytes"),
    pytest.param({**SMALL, "tags": {f"k{n}": "v" for n in range(10_000)}}, "tags", "50", id="10,000 tags"),
    pytest.param({**SMALL, "tags": {"k": "v" * 256}}, "tags", "255", id="tag too long"),
    pytest.param({**SMALL, "root_volume_size_gb": 0}, "root_volume_size_gb", "1", id="no disk"),
    pytest.param({**SMALL, "public_key": "ssh-rsa AAAA"}, "public_key", "OpenSSH", id="no key"),
    pytest.param({**SMALL, "flavor": "t3-micro", "flavor_id": "t3-micro"}, "flavor_id", "is not a field", id="two names for one field"),
]


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize(("body", "field", "words"), BODIES)
def test_a_field_that_is_not_accepted_is_named(api: Api, body: dict, field: str, words: str) -> None:
    answer = api.post(INSTANCES, body)
    assert (answer.status_code, answer.json["error"]) == (400, "INVALID_REQUEST")
    assert words in " ".join(answer.json["details"][field])
    assert answer.json["request_id"] == answer.headers["X-Request-ID"]


RAW = [
    pytest.param(b"{", "is no JSON", id="cut short"),
    pytest.param(b"name=web", "is no JSON", id="a form"),
    pytest.param(b"[]", "must be a JSON object", id="a list"),
    pytest.param(b'{"count": NaN}', "NaN is no JSON number", id="NaN"),
    pytest.param(b'{"name": "a", "name": "b"}', "name is there twice", id="a key twice"),
    pytest.param(b'{"name": "\\ud800"}', "UTF-8", id="half a character"),
    pytest.param(b'{"name": "\xff"}', "UTF-8", id="not UTF-8"),
    pytest.param(b'{"a":' * 5_000 + b"1" + b"}" * 5_000, "nested too deeply", id="bottomless"),
]


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize(("raw", "words"), RAW)
def test_a_body_that_is_no_json_is_refused(api: Api, raw: bytes, words: str) -> None:
    answer = api("POST", INSTANCES, data=raw, content_type="application/json")
    assert answer.status_code == 400
    assert words in answer.json["message"]


@pytest.mark.usefixtures("untouched")
def test_other_refusals_of_a_body(api: Api) -> None:
    assert api("POST", INSTANCES, data=b"{}", content_type="text/plain").status_code == 415
    too_large = api("POST", INSTANCES, data=b'{"name": "' + b"x" * (2 << 20) + b'"}', content_type="application/json")
    assert (too_large.status_code, too_large.json["error"]) == (413, "TOO_LARGE")
    wrong = api("DELETE", INSTANCES)
    assert (wrong.status_code, wrong.json["error"]) == (405, "METHOD_NOT_ALLOWED")
    assert {"GET", "POST"} <= {method.strip() for method in wrong.headers["Allow"].split(",")}
    assert api.get("/compute/nothing").status_code == 404
    assert api.get(f"{INSTANCES}/i-%00").status_code in {400, 404}


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize(
    ("query", "name"),
    [("limit=0", "limit"), ("limit=101", "limit"), ("limit=x", "limit"), ("page=0", "page"), ("offset=-1", "offset"), ("cursor=abc", "cursor"),
     ("cursor=eyJ4IjoxfQ", "cursor"), ("ordering=colour", "ordering"), ("colour=red", "colour"), ("all_projects=maybe", "all_projects"),
     ("search=" + "x" * 101, "search"), ("page=99999999", "page")],
)  # fmt: skip
def test_a_query_that_is_not_understood_names_its_parameter(api: Api, query: str, name: str) -> None:
    answer = api.get(f"{INSTANCES}?{query}")
    assert (answer.status_code, list(answer.json["details"])) == (400, [name])


def test_conflicts_name_what_stands_in_the_way(api: Api, worker: TestWorker) -> None:
    made = api.post(INSTANCES, SMALL)
    path = f"{INSTANCES}/{made.json['instance_id']}"
    twice = api.post(INSTANCES, SMALL)
    assert (twice.status_code, twice.json["details"]) == (409, {"name": ['"web-1" is taken by another instance here. Choose another name.']})
    busy = api.post(f"{path}/stop")
    assert (busy.status_code, busy.json["error"]) == (409, "CONFLICT")
    worker.drain()
    state = api.post(f"{path}/start")
    assert (state.status_code, state.json["details"]) == (409, {"state": "running", "allowed_states": ["error", "stopped"]})
    assert api("PATCH", path, {"enable_termination_protection": True}).status_code == 200
    protected = api("DELETE", path)
    assert (protected.status_code, "termination protection" in protected.json["message"]) == (409, True)
    assert api.post(f"{path}/lock").status_code == 200
    assert "Unlock it first" in api("PATCH", path, {"name": "other"}).json["message"]


def test_versions_keep_others_changes(api: Api, worker: TestWorker) -> None:
    made = api.post(INSTANCES, SMALL)
    worker.drain()
    path = f"{INSTANCES}/{made.json['instance_id']}"
    tag = api.get(path).headers["ETag"]
    assert api.get(path, headers={"If-None-Match": tag}).status_code == 304
    assert api("PATCH", path, {"description": "mine"}, headers={"If-Match": tag}).status_code == 200
    stale = api("PATCH", path, {"description": "also mine"}, headers={"If-Match": tag})
    assert (stale.status_code, stale.json["error"]) == (412, "PRECONDITION_FAILED")
    assert "Load it again" in stale.json["message"]
    assert api("PATCH", path, {"description": "x"}, headers={"If-Match": '"soup"'}).status_code == 412
    assert api.get(path).json["description"] == "mine"


@pytest.mark.usefixtures("untouched")
def test_a_full_quota_says_limit_used_and_requested(api: Api, people: People) -> None:
    quota_update(people.context(people.admin()), people.project_id, "cpus", 3)
    answer = api.post(INSTANCES, {**SMALL, "count": 4})
    assert (answer.status_code, answer.json["error"]) == (429, "QUOTA_EXCEEDED")
    assert answer.json["details"]["dimension"] == "cpus"
    assert answer.json["details"]["limit"] == 3


@pytest.mark.usefixtures("untouched")
def test_another_projects_private_image_is_unknown(api: Api, api_for: Callable[..., Api], people: People, database: sessionmaker[Session]) -> None:
    with database() as session:
        session.add(Image(id="ami-private", name="private", project_id=people.project(), state="available"))
        session.commit()
    answer = api.post(INSTANCES, {**SMALL, "image": "ami-private"})
    assert (answer.status_code, answer.json["details"]) == (400, {"image": ["There is no image ami-private here."]})
    with database() as session:
        session.delete(session.get_one(Image, "ami-private"))
        session.commit()


def upload(api: Api, image_id: str, content: bytes, *, length: int | None = None) -> TestResponse:
    # The test client counts the bytes itself; what a liar says goes past it.
    said = {} if length is None else {"CONTENT_LENGTH": str(length)}
    return api(
        "PUT", f"/compute/images/{image_id}/file", input_stream=io.BytesIO(content), content_type="application/octet-stream", environ_overrides=said
    )


def test_images_arrive_whole_or_not_at_all(api: Api, worker: TestWorker, settings: Settings) -> None:
    made = api.post("/compute/images", {"name": "mine"})
    assert (made.status_code, made.json["status"]) == (201, "awaiting_upload")
    image_id = made.json["image_id"]
    content = qcow2()
    short = upload(api, image_id, content[:1000], length=len(content))
    assert (short.status_code, "broke off" in short.json["message"]) == (400, True)
    assert api.get(f"/compute/images/{image_id}").json["status"] == "awaiting_upload"
    assert list((settings.data_dir / "staging").iterdir()) == []
    large = upload(api, image_id, b"", length=(settings.image_max_gib << 30) + 1)
    assert (large.status_code, large.json["error"]) == (413, "TOO_LARGE")
    assert upload(api, image_id, content).status_code == 202
    worker.drain()
    found = api.get(f"/compute/images/{image_id}").json
    assert (found["status"], found["format"]) == ("available", "qcow2")
    again = upload(api, image_id, content)
    assert (again.status_code, again.json["error"]) == (409, "CONFLICT")
    corrupt = api.post("/compute/images", {"name": "corrupt"}).json["image_id"]
    assert upload(api, corrupt, b"QFI\xfb" + b"\xff" * 600).status_code == 202
    worker.drain()
    broken = api.get(f"/compute/images/{corrupt}").json
    assert (broken["status"], bool(broken["state_reason"])) == ("failed", True)
    assert list((settings.data_dir / "staging").iterdir()) == []


def test_a_key_repeats_a_request_only_as_itself(api: Api) -> None:
    headers = {"Idempotency-Key": "once"}
    first, second = (api.post(INSTANCES, SMALL, headers=headers) for _ in range(2))
    assert (first.status_code, second.json["instance_id"]) == (202, first.json["instance_id"])
    other = api.post(INSTANCES, {**SMALL, "name": "web-2"}, headers=headers)
    assert (other.status_code, "fresh key" in other.json["message"]) == (409, True)
    assert api.get(INSTANCES).json["count"] == 1


def test_a_full_disk_is_said_to_be_full(api: Api, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    image_id = api.post("/compute/images", {"name": "mine"}).json["image_id"]
    monkeypatch.setattr("portal.compute.images.os.fsync", full)
    answer = upload(api, image_id, qcow2())
    assert (answer.status_code, answer.json["error"]) == (503, "SERVICE_UNAVAILABLE")
    assert "disk is full" in answer.json["message"]
    assert list((settings.data_dir / "staging").iterdir()) == []
    assert api.get(f"/compute/images/{image_id}").json["status"] == "awaiting_upload"
    monkeypatch.undo()
    assert upload(api, image_id, qcow2()).status_code == 202


def test_errors_never_show_what_went_wrong_inside(app: object, api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_args: object, **_more: object) -> None:
        raise RuntimeError("SELECT secret FROM inside")

    monkeypatch.setattr("portal.api.resources.list_rows", broken)
    answer = api.get(INSTANCES)
    assert answer.status_code == 500
    assert "secret" not in json.dumps(answer.json)
    assert answer.json["request_id"]


def test_a_rebuild_from_an_image_that_cannot_be_had_takes_nothing(api: Api, worker: TestWorker, fake: FakeCompute) -> None:
    made = api.post(INSTANCES, SMALL).json["instance_id"]
    worker.drain()
    api.post(f"{INSTANCES}/{made}/stop")
    worker.drain()
    away = "ami-away"
    with worker.sessions() as session:
        project = session.get_one(Instance, made).project_id
        session.add(Image(id=away, name="away", project_id=project, state="catalogue", source_url="http://127.0.0.1:1/none.qcow2"))
        session.commit()
    answer = api.post(f"{INSTANCES}/{made}/rebuild", {"image": away})
    assert (answer.status_code, answer.json["image"]) == (202, "atonix-tiny")
    assert api("DELETE", f"/compute/images/{away}").status_code == 409
    worker.drain()
    found = api.get(f"{INSTANCES}/{made}").json
    assert (found["status"], found["image"]) == ("error", "atonix-tiny")
    assert "remove_disk" not in [call.method for call in fake.calls()]
    assert api.post(f"{INSTANCES}/{made}/start").status_code == 202
    worker.drain()
    assert api.get(f"{INSTANCES}/{made}").json["status"] == "running"
    assert api("DELETE", f"/compute/images/{away}").status_code == 202
    assert api.post(f"{INSTANCES}/{made}/rebuild", {"image": "atonix-tiny"}).status_code == 202
    worker.drain()
    assert api.get(f"{INSTANCES}/{made}").json["status"] == "running"
