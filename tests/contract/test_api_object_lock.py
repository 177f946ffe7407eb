"""Object lock, public access and ownership through the API: the same rows as S3 clients see."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from tests.support.draining import TestWorker
from tests.support.web import Api

BASE = "/storage/buckets"
SOON, LATER = ((datetime.now(UTC).replace(microsecond=0) + timedelta(days=days)).isoformat() for days in (10, 20))


@pytest.fixture
def bucket(api: Api) -> str:
    """The id of a bucket with object lock."""
    made = api.post(BASE, {"name": "a-vault", "object_lock": True})
    assert (made.status_code, made.json["object_lock"], made.json["ownership"]) == (201, True, "BucketOwnerEnforced"), made.json
    return str(made.json["id"])


def put(api: Api, bucket: str, key: str) -> str:
    return str(api("PUT", f"{BASE}/{bucket}/objects/{key}", data=b"x", headers={"Content-Type": "text/plain"}).json["version_id"])


def test_a_default_retention(api: Api, bucket: str) -> None:
    path = f"{BASE}/{bucket}/object-lock"
    assert api.get(path).json == {"enabled": True, "mode": None, "days": None, "years": None}
    assert api("PUT", path, {"mode": "GOVERNANCE", "days": 30}).json == {"enabled": True, "mode": "GOVERNANCE", "days": 30, "years": None}
    for wrong in (
        {"mode": "GOVERNANCE"},
        {"days": 3},
        {"mode": "GOVERNANCE", "days": 1, "years": 1},
        {"mode": "COMPLIANCE", "years": 101},
        {"mode": "x", "days": 1},
    ):
        assert api("PUT", path, wrong).status_code == 400, wrong
    version = put(api, bucket, "k")
    shown = api("PATCH", f"{BASE}/{bucket}/objects/k", {}).json
    assert (shown["retention_mode"], shown["legal_hold"], shown["retain_until"] > datetime.now(UTC).isoformat()) == ("GOVERNANCE", False, True)
    one = f"{BASE}/{bucket}/objects/k?version_id={version}"
    assert api("DELETE", one).status_code == 403
    assert api("DELETE", f"{one}&bypass_retention=perhaps").status_code == 400
    assert api("DELETE", f"{one}&bypass_retention=true").status_code == 204
    assert api("PUT", f"{BASE}/{bucket}/versioning", {"enabled": False}).status_code == 409
    assert api("PUT", path, {}).json["mode"] is None


def test_a_version_is_kept(api: Api, api_for: Callable[..., Api], bucket: str) -> None:
    put(api, bucket, "k")
    path = f"{BASE}/{bucket}/objects/k"
    kept = api("PUT", f"{path}/retention", {"mode": "GOVERNANCE", "retain_until": LATER})
    assert (kept.status_code, kept.json["retention_mode"]) == (200, "GOVERNANCE"), kept.json
    for wrong in (
        {"mode": "GOVERNANCE"},
        {"mode": "x", "retain_until": LATER},
        {"mode": "GOVERNANCE", "retain_until": "2020-01-01T00:00:00Z"},
        {"mode": "GOVERNANCE", "retain_until": "9999-12-31T23:59:59-12:00"},
    ):
        assert api("PUT", f"{path}/retention", wrong).status_code == 400, wrong
    shorter = {"mode": "GOVERNANCE", "retain_until": SOON}
    assert api("PUT", f"{path}/retention", shorter).status_code == 403
    assert api("PUT", f"{path}/retention", {**shorter, "bypass_retention": True}).status_code == 200
    assert api("PUT", f"{path}/retention", {"mode": "", "bypass_retention": True}).json["retention_mode"] is None
    assert api("PUT", f"{path}/legal-hold", {"enabled": True}).json["legal_hold"] is True
    assert api_for("developer")("PUT", f"{path}/legal-hold", {"enabled": False}).status_code == 403
    assert api("PATCH", path, {"metadata": {"a": "b"}}).status_code == 403, "what is kept is kept as it was written"
    assert api("PATCH", path, {"tags": {"a": "b"}}).json["tags"] == {"a": "b"}
    gone = api("DELETE", f"{BASE}/{bucket}?force=true")
    assert (gone.status_code, "kept by object lock" in gone.json["message"]) == (409, True)
    assert api("PUT", f"{path}/legal-hold", {"enabled": False}).json["legal_hold"] is False
    assert api("DELETE", f"{BASE}/{bucket}?force=true").status_code == 204


def test_what_a_new_bucket_is_asked_to_be(api: Api, api_for: Callable[..., Api]) -> None:
    assert api.post(BASE, {"name": "b-one", "object_lock": True, "versioning_enabled": False}).status_code == 400
    assert api.post(BASE, {"name": "b-one", "acl": "public-read"}).status_code == 400
    assert api.post(BASE, {"name": "b-one", "acl": "public-read", "ownership": "ObjectWriter"}).status_code == 400
    opened = {"name": "b-one", "acl": "public-read", "ownership": "ObjectWriter", "public_access": "allowed"}
    developer = api_for("developer")
    assert developer.post(BASE, opened).status_code == 403
    assert developer.post(BASE, {"name": "b-two", "public_access": "allowed"}).status_code == 403
    assert developer.post(BASE, {"name": "b-two", "object_lock": True}).status_code == 403
    made = api.post(BASE, opened)
    assert (made.status_code, made.json["acl"]) == (201, "public-read"), made.json
    path = f"{BASE}/{made.json['id']}"
    assert api.get(f"{path}/public-access-block").json == {}
    assert api("PUT", f"{path}/public-access-block", {"block_public_acls": True}).json["restrict_public_buckets"] is False
    assert api("PUT", f"{path}/acl", {"acl": "public-read-write"}).status_code == 403
    assert api("PUT", f"{path}/ownership", {"ownership": "BucketOwnerEnforced"}).status_code == 400
    assert api("PUT", f"{path}/acl", {"acl": "private"}).json["acl"] == "private"
    assert api("PUT", f"{path}/ownership", {"ownership": "BucketOwnerEnforced"}).json["ownership"] == "BucketOwnerEnforced"
    assert developer("PUT", f"{path}/ownership", {"ownership": "ObjectWriter"}).status_code == 403


def test_emptying_leaves_what_is_kept(api: Api, bucket: str, worker: TestWorker) -> None:
    put(api, bucket, "k")
    put(api, bucket, "other")
    assert api("PUT", f"{BASE}/{bucket}/objects/k/retention", {"mode": "COMPLIANCE", "retain_until": SOON}).status_code == 200
    asked = api.post(f"{BASE}/{bucket}/empty", {})
    worker.drain()
    job = api.get(f"/jobs/{asked.json['job_id']}").json
    assert (job["state"], "kept by object lock" in job["error"]) == ("failed", True), job
    assert [each["key"] for each in api.get(f"{BASE}/{bucket}/objects").json["objects"]] == ["k"]
