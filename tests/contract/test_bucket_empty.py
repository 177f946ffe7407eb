"""Emptying of a bucket: all versions go, as far as the asker may; it tells how far it is, stops when asked to, and goes on after a crash."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import update

from portal.identity.models import User
from portal.kernel.db import transaction
from portal.kernel.errors import Conflict
from portal.kernel.jobs import Job, reap
from portal.storage import emptying
from tests.support.draining import TestWorker
from tests.support.people import People
from tests.support.s3 import S3
from tests.support.web import VERSION, Api

BUCKET = "a-bucket"


@pytest.fixture
def client(s3: S3, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(emptying, "BATCH", 3)
    made = s3.client()
    made.create_bucket(Bucket=BUCKET)
    made.put_bucket_versioning(Bucket=BUCKET, VersioningConfiguration={"Status": "Enabled"})
    for number in range(4):
        for key in ("a/one", "a/two", "b"):
            made.put_object(Bucket=BUCKET, Key=key, Body=b"%d" % number)
    made.delete_object(Bucket=BUCKET, Key="b")
    upload = made.create_multipart_upload(Bucket=BUCKET, Key="a/parts")["UploadId"]
    made.upload_part(Bucket=BUCKET, Key="a/parts", UploadId=upload, PartNumber=1, Body=b"part")
    return made


@pytest.fixture
def base(api: Api, client: Any) -> str:
    return f"/storage/buckets/{api.get('/storage/buckets?search=' + BUCKET).json['results'][0]['id']}"


def left(client: Any) -> int:
    found = client.list_object_versions(Bucket=BUCKET)
    uploads = client.list_multipart_uploads(Bucket=BUCKET).get("Uploads", [])
    return len([*found.get("Versions", []), *found.get("DeleteMarkers", []), *uploads])


def ask(api: Api, base: str, worker: TestWorker, **body: str) -> Any:
    asked = api.post(f"{base}/empty", body)
    assert asked.status_code == 202, asked.json
    worker.drain()
    return api.get(f"/jobs/{asked.json['job_id']}").json


def test_everything_goes(api: Api, base: str, client: Any, worker: TestWorker) -> None:
    assert left(client) == 14
    job = ask(api, base, worker)
    assert (job["state"], left(client), job["steps"][0]["detail"]) == ("succeeded", 0, "13 versions deleted."), job
    figures = api.get(f"{base}/statistics").json
    assert (figures["total_objects"], figures["total_size_bytes"]) == (0, 0)
    assert api("DELETE", base).status_code == 204


def test_only_what_is_under_a_prefix_goes(api: Api, base: str, client: Any, worker: TestWorker) -> None:
    assert ask(api, base, worker, prefix="a/")["state"] == "succeeded"
    assert left(client) == 5


def test_it_is_cancelled_on_the_way(api: Api, base: str, client: Any, worker: TestWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = api.post(f"{base}/empty", {}).json
    nexts, calls = emptying._next, list[int]()

    def cancel(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            assert api.post(f"/jobs/{asked['job_id']}/cancel", {}).status_code == 202
        return nexts(*args)

    monkeypatch.setattr(emptying, "_next", cancel)
    worker.drain()
    job = api.get(f"/jobs/{asked['job_id']}").json
    assert (job["state"], left(client)) == ("cancelled", 4), job
    assert "the rest stays" in job["steps"][0]["detail"]


def test_what_may_not_be_deleted_stays_and_is_told(api: Api, base: str, client: Any, worker: TestWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    removes = emptying.remove

    def refuse(writing: Any, key: str, version_id: str) -> Any:
        if key == "a/two":
            raise Conflict("It is kept until next year.")
        return removes(writing, key, version_id)

    monkeypatch.setattr(emptying, "remove", refuse)
    job = ask(api, base, worker)
    assert (job["state"], left(client)) == ("failed", 4)
    assert job["error"] == "9 versions deleted. 4 stay: It is kept until next year."


def test_what_is_locked_stays(api: Api, client: Any, worker: TestWorker) -> None:
    client.create_bucket(Bucket="locked", ObjectLockEnabledForBucket=True)
    for key in ("free", "held"):
        client.put_object(Bucket="locked", Key=key, Body=b"x")
    client.put_object_legal_hold(Bucket="locked", Key="held", LegalHold={"Status": "ON"})
    base = f"/storage/buckets/{api.get('/storage/buckets?search=locked').json['results'][0]['id']}"
    job = ask(api, base, worker)
    assert (job["state"], [each["Key"] for each in client.list_object_versions(Bucket="locked")["Versions"]]) == ("failed", ["held"]), job
    assert "1 versions deleted. 1 stay" in job["error"]


def test_it_does_what_the_asker_may(api: Api, base: str, client: Any, worker: TestWorker) -> None:
    statement = {"Effect": "Deny", "Action": "storage.object.delete", "Resource": f"storage.object/{BUCKET}/b"}
    policy = api.post("/security/policies", {"name": "keep-b", "document": {"Version": VERSION, "Statement": [statement]}})
    assert policy.status_code == 201, policy.json
    attached = api.post(f"/security/policies/{policy.json['id']}/attach", {"principal_type": "user", "principal_id": api.user.id})
    assert attached.status_code == 200, attached.json
    job = ask(api, base, worker)
    assert (job["state"], left(client)) == ("failed", 5), job


def before_look(monkeypatch: pytest.MonkeyPatch, number: int, act: Callable[[], object]) -> None:
    """Have something happen before the job looks for more for the so manieth time."""
    nexts, calls = emptying._next, list[int]()

    def look(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == number:
            act()
        return nexts(*args)

    monkeypatch.setattr(emptying, "_next", look)


def test_what_is_written_after_it_was_asked_for_stays(api: Api, base: str, client: Any, worker: TestWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    def write() -> None:
        for key in ("b", "z-meanwhile"):
            client.put_object(Bucket=BUCKET, Key=key, Body=b"acknowledged")

    before_look(monkeypatch, 2, write)
    assert ask(api, base, worker)["state"] == "succeeded"
    assert [each["Key"] for each in client.list_object_versions(Bucket=BUCKET)["Versions"]] == ["b", "z-meanwhile"]
    assert client.get_object(Bucket=BUCKET, Key="b")["Body"].read() == b"acknowledged"


def test_what_takes_the_place_of_what_was_listed_stays(api: Api, base: str, client: Any, worker: TestWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no versions are kept, all that is ever under a key has one name."""
    client.create_bucket(Bucket="plain")
    client.put_object(Bucket="plain", Key="k", Body=b"old")
    plain = base.replace(base.rpartition("/")[2], api.get("/storage/buckets?search=plain").json["results"][0]["id"])
    remove = emptying._remove

    def late(writing: Any, row: Any) -> Any:
        if row.size_bytes == len(b"old"):
            monkeypatch.setattr(emptying, "_remove", remove)
            row_of_now = replace(row, sequence=row.sequence + 1)
            return remove(writing, row_of_now)
        return remove(writing, row)

    monkeypatch.setattr(emptying, "_remove", late)
    assert ask(api, plain, worker)["state"] == "succeeded"
    assert client.get_object(Bucket="plain", Key="k")["Body"].read() == b"old"


def test_an_upload_that_is_begun_meanwhile_stays(api: Api, base: str, client: Any, worker: TestWorker) -> None:
    asked = api.post(f"{base}/empty", {})
    client.create_multipart_upload(Bucket=BUCKET, Key="begun-later")
    worker.drain()
    assert api.get(f"/jobs/{asked.json['job_id']}").json["state"] == "succeeded"
    assert [each["Key"] for each in client.list_multipart_uploads(Bucket=BUCKET)["Uploads"]] == ["begun-later"]


def test_who_may_no_more_deletes_no_more(
    api: Api, client: Any, worker: TestWorker, monkeypatch: pytest.MonkeyPatch, people: People
) -> None:  # fmt: skip
    def leave() -> None:
        system = people.context(None)
        with transaction(system.db):
            system.db.execute(update(User).where(User.id == api.user.id).values(is_active=False))

    before_look(monkeypatch, 2, leave)
    asked = api.post(f"/storage/buckets/{api.get('/storage/buckets').json['results'][0]['id']}/empty", {})
    worker.drain()
    assert left(client) > 5
    job = people.context(None).db.get(Job, asked.json["job_id"])
    assert job is not None
    assert (job.state, "may not sign in any more" in str(job.error)) == ("failed", True)


def test_prefixes_are_compared_letter_for_letter(api: Api, base: str, client: Any, worker: TestWorker) -> None:
    client.create_multipart_upload(Bucket=BUCKET, Key="A/parts")
    assert ask(api, base, worker, prefix="a/")["state"] == "succeeded"
    assert [each["Key"] for each in client.list_multipart_uploads(Bucket=BUCKET)["Uploads"]] == ["A/parts"]


def test_who_may_not_is_refused(api_for: Any, base: str, people: People) -> None:
    assert api_for("viewer").post(f"{base}/empty", {}).status_code == 403
    assert api_for("project_admin", people.project()).post(f"{base}/empty", {}).status_code == 404


def test_one_at_a_time_and_not_while_it_is_locked(api: Api, base: str, worker: TestWorker) -> None:
    first = api.post(f"{base}/empty", {})
    again = api.post(f"{base}/empty", {})
    assert (again.status_code, again.json["details"]["job_id"]) == (409, first.json["job_id"])
    worker.drain()
    assert api.post(f"{base}/empty", {}).status_code == 202


def test_it_goes_on_after_a_crash(api: Api, base: str, client: Any, worker: TestWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = api.post(f"{base}/empty", {}).json
    nexts, calls = emptying._next, list[int]()

    def die(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return nexts(*args)

    with monkeypatch.context() as broken:
        broken.setattr(emptying, "_next", die)
        with pytest.raises(KeyboardInterrupt):
            worker.run_one()
    assert 0 < left(client) < 14
    worker.let_lease_run_out(asked["job_id"])
    with worker.sessions() as session:
        assert reap(session) == [asked["job_id"]]
    worker.drain()
    assert (left(client), worker.job(asked["job_id"]).state) == (0, "succeeded")
