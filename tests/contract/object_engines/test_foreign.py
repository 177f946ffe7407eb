"""Buckets at an external engine that the portal did not make, and objects of which it has no rows."""

from typing import Any

import pytest

from portal.settings import ObjectsAdmin, Settings
from portal.storage.engine_wanted import BEGUN
from portal.storage.object_models import Bucket, EngineBucket
from tests.support.ceph import Ceph, needs_ceph
from tests.support.object_engines import BUCKETS, Place
from tests.support.s3 import client, fetch
from tests.support.web import Api


@pytest.fixture(params=[pytest.param("s3", marks=needs_ceph)])
def driver(request: pytest.FixtureRequest) -> str:
    """This one alone."""
    return str(request.param)


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """All is done with the portal's own key, which reaches more than the portal made."""
    return settings.model_copy(update={"s3_engine_admin": ObjectsAdmin.NONE})


@pytest.fixture
def own(ceph: Ceph) -> Any:
    """Whoever else uses the portal's key."""
    return client(ceph.url, *ceph.key)


def attempts(api: Api, bucket: str, key: str) -> dict[str, int]:
    """Every way to an object, and the answer to each."""
    path = f"{BUCKETS}/{bucket}"
    return {
        "list": api.get(f"{path}/objects").status_code, "read": api.get(f"{path}/objects/{key}").status_code,
        "versions": api.get(f"{path}/objects/{key}/versions").status_code, "write": api("PUT", f"{path}/objects/{key}", data=b"hacked").status_code,
        "tag": api("PATCH", f"{path}/objects/{key}", {"tags": {"a": "b"}}).status_code, "delete": api("DELETE", f"{path}/objects/{key}").status_code,
        "sign": api.post(f"{path}/presigned-urls", {"key": key, "method": "GET", "expires_in": 60}).status_code,
        "copy": api.post(f"{path}/objects/{key}/copy", {"destination_key": "c"}).status_code,
        "begin": api.post(f"{path}/multipart-uploads", {"key": key}).status_code,
        "several": api.post(f"{path}/delete-objects", {"prefix": ""}).status_code,
    }  # fmt: skip


def test_what_the_portal_did_not_make_is_not_touched(place: Place, own: Any) -> None:
    own.create_bucket(Bucket="foreign-backup")
    own.put_object(Bucket="foreign-backup", Key="payroll.csv", Body=b"salaries")
    made = place.api.post(BUCKETS, {"name": "foreign-backup"}).json
    assert set(attempts(place.api, made["id"], "payroll.csv").values()) == {409}
    place.settle()
    found = place.api.get(f"{BUCKETS}/{made['id']}").json
    assert (found["state"], "did not make" in found["state_reason"]) == ("error", True), found
    assert set(attempts(place.api, made["id"], "payroll.csv").values()) == {409}
    mine = place.bucket("of-my-own")
    place.api("PUT", f"{BUCKETS}/{mine}/objects/k", data=b"x")
    copied = place.api.post(f"{BUCKETS}/{mine}/objects/k/copy", {"destination_bucket": "foreign-backup", "destination_key": "payroll.csv"})
    assert copied.status_code == 409
    # A deletion that failed leaves no more rights than there were.
    with place.people.sessions.begin() as session:
        session.get_one(Bucket, made["id"]).state = "active"
    assert set(attempts(place.api, made["id"], "payroll.csv").values()) == {409}
    assert own.get_object(Bucket="foreign-backup", Key="payroll.csv")["Body"].read() == b"salaries"
    with place.people.sessions.begin() as session:
        session.get_one(Bucket, made["id"]).state = "error"
    place.api("DELETE", f"{BUCKETS}/{made['id']}?force=true")
    place.settle()
    assert own.get_object(Bucket="foreign-backup", Key="payroll.csv")["Body"].read() == b"salaries"
    own.delete_object(Bucket="foreign-backup", Key="payroll.csv")
    own.delete_bucket(Bucket="foreign-backup")


def test_an_empty_bucket_of_somebody_else_is_not_adopted(place: Place, own: Any) -> None:
    own.create_bucket(Bucket="foreign-empty")
    made = place.api.post(BUCKETS, {"name": "foreign-empty"}).json
    place.settle()
    assert place.api.get(f"{BUCKETS}/{made['id']}").json["state"] == "error"
    assert set(attempts(place.api, made["id"], "k").values()) == {409}
    own.delete_bucket(Bucket="foreign-empty")


def test_a_bucket_that_became_somebody_elses_is_not_used_any_more(place: Place, own: Any) -> None:
    bucket = place.bucket("lost-and-found", versioning_enabled=False)
    own.delete_bucket(Bucket="lost-and-found")
    own.create_bucket(Bucket="lost-and-found")
    place.api("PUT", f"{BUCKETS}/{bucket}/cors", {"rules": [{"methods": ["GET"], "origins": ["https://a.example"]}]})
    place.settle()
    assert set(attempts(place.api, bucket, "k").values()) == {409}
    assert own.list_objects_v2(Bucket="lost-and-found").get("Contents", []) == []
    own.delete_bucket(Bucket="lost-and-found")


def test_what_a_crash_has_left_is_marked(place: Place, own: Any) -> None:
    made = place.api.post(BUCKETS, {"name": "half-made"}).json
    with place.people.sessions.begin() as session:
        session.add(EngineBucket(bucket_id=made["id"], made=BEGUN))
    own.create_bucket(Bucket="half-made")
    place.settle()
    assert place.api.get(f"{BUCKETS}/{made['id']}").json["state"] == "active"
    assert place.api("PUT", f"{BUCKETS}/{made['id']}/objects/k", data=b"x").status_code == 200


def test_an_address_is_signed_for_who_may(place: Place) -> None:
    bucket = place.bucket("signed-for")
    place.api("PUT", f"{BUCKETS}/{bucket}/objects/of-another", data=b"x")
    developer = place.api_of(place.people.user("developer"))

    def signed(key: str, method: str) -> Any:
        return developer.post(f"{BUCKETS}/{bucket}/presigned-urls", {"key": key, "method": method, "expires_in": 600})

    # They may delete what they wrote; at the engine nobody knows who wrote it.
    assert signed("of-another", "DELETE").status_code == 403
    assert fetch(signed("of-another", "GET").json["url"])[::2] == (200, b"x")
    assert fetch(signed("new", "PUT").json["url"], "PUT", b"y")[0] == 200


def test_a_key_that_the_engine_does_not_take_is_told_so(place: Place) -> None:
    bucket = place.bucket("odd-keys")
    told = place.api("PUT", f"{BUCKETS}/{bucket}/objects/%2e%2e%2fq", data=b"x")
    assert (told.status_code in {200, 400}, "no such object" in str(told.json)) == (True, False), told.json
