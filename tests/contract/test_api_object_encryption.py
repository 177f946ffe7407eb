"""Encryption of buckets and objects through the API: what is set there holds for S3 clients as well, and the other way round."""

from collections.abc import Callable
from typing import Any

import pytest

from portal.kernel.policy_documents import VERSION
from tests.support.s3 import S3
from tests.support.web import Api

BASE = "/storage/buckets"


@pytest.fixture
def key(api: Api) -> str:
    return str(api.post("/security/keys", {"name": "a-key"}).json["key_id"])


def made(api: Api, name: str = "a-bucket", **given: Any) -> Any:
    answer = api.post(BASE, {"bucket_name": name, **given})
    assert answer.status_code == 201, answer.json
    return answer.json


def put(api: Api, bucket: str, key: str, body: bytes) -> Any:
    return api("PUT", f"{BASE}/{bucket}/objects/{key}", data=body, headers={"Content-Type": "text/plain"})


def test_buckets_are_made_encrypted(api: Api, key: str) -> None:
    plain, ours = made(api), made(api, "ours", encryption_enabled=True)
    named = made(api, "named", encryption_type="sse-kms", kms_key_id=key)
    assert [(each["encryption_enabled"], each["encryption_type"]) for each in (plain, ours, named)] == [
        (False, "none"), (True, "sse-s3"), (True, "sse-kms"),
    ]  # fmt: skip
    assert named["kms_key_id"] == key
    assert api.post(BASE, {"bucket_name": "odd", "encryption_type": "sse-s3", "kms_key_id": key}).status_code == 400
    assert api.post(BASE, {"bucket_name": "odd", "encryption_type": "cse-kms"}).status_code == 400
    # What a key encrypts is told with it.
    assert [each["name"] for each in api.get(f"/security/keys/{key}/resources").json["results"]] == ["named"]


def test_the_setting_and_what_it_does(api: Api, s3: S3, key: str) -> None:
    bucket = made(api)["bucket_id"]
    path = f"{BASE}/{bucket}/encryption"
    assert api.get(path).json["encryption_type"] == "none"
    assert put(api, bucket, "before", b"before").json["encryption"] == "none"
    assert api("PUT", path, {"type": "sse-kms", "key_id": key}).json == {
        "encryption_type": "sse-kms", "encryption_enabled": True, "kms_key_id": key, "bucket_key_enabled": False,
    }  # fmt: skip
    assert api.get(f"{BASE}/{bucket}/statistics").json["encryption_enabled"]
    found = put(api, bucket, "k", b"a sentence that nobody finds").json
    assert (found["encryption"], found["kms_key_id"]) == ("sse-kms", key)
    assert api.get(f"{BASE}/{bucket}/objects/k", headers={"Range": "bytes=2-9"}).data == b"sentence"
    stored = [s3.blobs.path(each.id).read_bytes() for each in s3.blobs.stored()]
    assert sum(b"sentence" in each for each in stored) == 0
    # The key tells which buckets have something in them that it encrypts, whatever they say of new objects.
    assert api("PUT", path, {"type": "none"}).status_code == 200
    assert [each["id"] for each in api.get(f"/security/keys/{key}/resources").json["results"]] == [bucket]
    assert s3.client().get_object(Bucket="a-bucket", Key="k")["SSEKMSKeyId"] == key
    for wrong in ({"type": "cse-kms"}, {"type": "sse-s3", "key_id": key}, {"type": "sse-kms", "key_id": "kms-none"}, {}):
        assert api("PUT", path, wrong).status_code in {400, 404}, wrong
    assert api("PUT", path, {"type": "none"}).json["encryption_enabled"] is False
    # Copies stay encrypted where nothing is said of it.
    copy = api.post(f"{BASE}/{bucket}/objects/k/copy", {"destination_key": "copy"}).json
    assert (copy["encryption"], api.get(f"{BASE}/{bucket}/objects/copy").data) == ("sse-s3", b"a sentence that nobody finds")


def test_a_change_of_the_bucket_may_say_it(api: Api, api_for: Callable[..., Api], key: str) -> None:
    bucket = f"{BASE}/{made(api)['bucket_id']}"

    def said(answer: Any) -> tuple[int, str, str | None]:
        return answer.status_code, answer.json.get("encryption_type", ""), answer.json.get("kms_key_id")

    assert said(api("PATCH", bucket, {"encryption_type": "sse-s3", "description": "d"})) == (200, "sse-s3", None)
    assert said(api("PATCH", bucket, {"kms_key_id": key})) == (200, "sse-kms", key)
    # What is not said stays: of the key as well.
    assert said(api("PATCH", bucket, {"encryption_type": "sse-kms"})) == (200, "sse-kms", key)
    assert said(api("PATCH", bucket, {"description": "e"})) == (200, "sse-kms", key)
    assert put(api, bucket.rpartition("/")[2], "k", b"x").json["kms_key_id"] == key
    for wrong in (
        {"encryption_type": "sse-s3", "kms_key_id": key},
        {"encryption_type": "aes"},
        {"kms_key_id": "kms-none"},
        {"encryption_type": None},
    ):
        assert api("PATCH", bucket, wrong).status_code in {400, 404}, wrong
    assert said(api.get(bucket)) == (200, "sse-kms", key)
    # Who may change the bucket, and not its encryption, does not change it in passing.
    developer = api_for("developer")
    document = {"Version": VERSION, "Statement": [{"Sid": "One", "Effect": "Deny", "Action": "storage.bucket.set_encryption", "Resource": "*"}]}
    policy = api.post("/security/policies", {"name": "as-it-is", "document": document}).json["policy_id"]
    api.post(f"/security/policies/{policy}/attach", {"principal_type": "user", "principal_id": developer.user.id})
    assert developer("PATCH", bucket, {"description": "f", "encryption_type": "none"}).status_code == 403
    assert (developer("PATCH", bucket, {"description": "f"}).status_code, said(api.get(bucket))[1]) == (200, "sse-kms")


def test_uploads_in_parts(api: Api, s3: S3, key: str) -> None:
    bucket = made(api, encryption_type="sse-kms", kms_key_id=key)["bucket_id"]
    upload = f"{BASE}/{bucket}/multipart-uploads"
    upload = f"{upload}/{api.post(upload, {'key': 'k'}).json['upload_id']}"
    etag = api("PUT", f"{upload}/parts/1", data=b"of one part").json["etag"]
    assert api.post(f"{upload}/complete", {"parts": [{"number": 1, "etag": etag}]}).json["kms_key_id"] == key
    assert api.get(f"{BASE}/{bucket}/objects/k").data == b"of one part"
    assert all(b"one part" not in s3.blobs.path(each.id).read_bytes() for each in s3.blobs.stored())


def test_who_may_not_use_the_key(api: Api, api_for: Any, key: str) -> None:
    bucket = made(api, encryption_type="sse-kms", kms_key_id=key)["bucket_id"]
    put(api, bucket, "k", b"secret")
    viewer = api_for("viewer")
    assert viewer.get(f"{BASE}/{bucket}/objects/k").status_code == 403
    assert viewer("PUT", f"{BASE}/{bucket}/encryption", {"type": "none"}).status_code == 403
    assert api.post(f"/security/keys/{key}/disable").status_code in {200, 202}
    refused = api.get(f"{BASE}/{bucket}/objects/k")
    assert (refused.status_code, "disabled" in refused.json["message"]) == (409, True), refused.json
