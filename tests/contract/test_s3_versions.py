"""Buckets that keep older versions."""

from typing import Any

import pytest

from tests.support.s3 import S3, refused

BUCKET = "a-bucket"


@pytest.fixture
def client(s3: S3) -> Any:
    made = s3.client()
    made.create_bucket(Bucket=BUCKET)
    set_versioning(made, "Enabled")
    return made


def set_versioning(client: Any, status: str) -> None:
    client.put_bucket_versioning(Bucket=BUCKET, VersioningConfiguration={"Status": status})


def put(client: Any, body: bytes, key: str = "k") -> str:
    return str(client.put_object(Bucket=BUCKET, Key=key, Body=body)["VersionId"])


def get(client: Any, version: str = "", key: str = "k") -> bytes:
    body: bytes = client.get_object(Bucket=BUCKET, Key=key, **({"VersionId": version} if version else {}))["Body"].read()
    return body


def listed(client: Any, **asked: Any) -> list[tuple[str, str, bool, bool]]:
    """(key, version, whether it is the latest, whether it is a mark of deletion) of all versions, page by page."""
    found: list[tuple[str, str, bool, bool]] = []
    for page in client.get_paginator("list_object_versions").paginate(Bucket=BUCKET, **asked):
        rows = [(each, False) for each in page.get("Versions", [])] + [(each, True) for each in page.get("DeleteMarkers", [])]
        found += [(each["Key"], each["VersionId"], each["IsLatest"], marker) for each, marker in rows]
    return found


def test_every_version_can_be_read_until_it_is_deleted(client: Any) -> None:
    ids = [put(client, body) for body in (b"one", b"two", b"three")]
    assert (get(client), [get(client, each) for each in ids]) == (b"three", [b"one", b"two", b"three"])
    gone = client.delete_object(Bucket=BUCKET, Key="k")
    assert gone["DeleteMarker"] is True
    answer = refused(lambda: get(client), "NoSuchKey")
    assert answer["ResponseMetadata"]["HTTPHeaders"]["x-amz-delete-marker"] == "true"
    refused(lambda: get(client, gone["VersionId"]), "MethodNotAllowed")
    assert get(client, ids[0]) == b"one"
    # Without the mark the object is there again.
    assert client.delete_object(Bucket=BUCKET, Key="k", VersionId=gone["VersionId"])["DeleteMarker"] is True
    assert get(client) == b"three"
    client.delete_object(Bucket=BUCKET, Key="k", VersionId=ids[2])
    assert get(client) == b"two"
    refused(lambda: get(client, ids[2]), "NoSuchVersion")
    refused(lambda: get(client, "nonsense"), "NoSuchVersion")
    assert [each["Key"] for each in client.list_objects_v2(Bucket=BUCKET)["Contents"]] == ["k"]
    refused(lambda: client.delete_bucket(Bucket=BUCKET), "BucketNotEmpty")


def test_suspended_keeps_one_null_version(client: Any) -> None:
    kept = put(client, b"kept")
    set_versioning(client, "Suspended")
    assert client.get_bucket_versioning(Bucket=BUCKET)["Status"] == "Suspended"
    assert [put(client, b"first"), put(client, b"second")] == ["null", "null"]
    assert (get(client), get(client, "null"), get(client, kept)) == (b"second", b"second", b"kept")
    assert [each[1:] for each in listed(client)] == [("null", True, False), (kept, False, False)]
    gone = client.delete_object(Bucket=BUCKET, Key="k")
    assert (gone["VersionId"], gone["DeleteMarker"]) == ("null", True)
    assert sorted(each[1:] for each in listed(client)) == sorted([("null", True, True), (kept, False, False)])
    set_versioning(client, "Enabled")
    newer = put(client, b"newer")
    assert sorted(each[1:] for each in listed(client)) == sorted([(newer, True, False), ("null", False, True), (kept, False, False)])


def test_versions_are_listed_page_by_page(client: Any) -> None:
    made = {key: [put(client, f"{key}{number}".encode(), key) for number in range(3)][::-1] for key in ("a", "b/1", "b/2", "c")}
    expected = [(key, each, place == 0, False) for key, ids in made.items() for place, each in enumerate(ids)]
    for size in (1, 2, 5, 1000):
        assert listed(client, PaginationConfig={"PageSize": size}) == expected, size
    page = client.list_object_versions(Bucket=BUCKET, Delimiter="/")
    assert [each["Prefix"] for each in page["CommonPrefixes"]] == ["b/"]
    assert {each["Key"] for each in page["Versions"]} == {"a", "c"}


def test_a_bucket_that_never_had_versions(s3: S3) -> None:
    client = s3.client()
    client.create_bucket(Bucket=BUCKET)
    assert "Status" not in client.get_bucket_versioning(Bucket=BUCKET)
    client.put_object(Bucket=BUCKET, Key="k", Body=b"before")
    set_versioning(client, "Enabled")
    newer = put(client, b"after")
    assert (get(client, "null"), get(client, newer)) == (b"before", b"after")
    client.delete_object(Bucket=BUCKET, Key="k", VersionId="null")
    client.delete_object(Bucket=BUCKET, Key="k", VersionId=newer)
    client.delete_bucket(Bucket=BUCKET)
    refused(lambda: set_versioning(client, "Enabled"), "NoSuchBucket")


def test_many_versions_are_deleted_at_once(client: Any) -> None:
    ids = [put(client, b"x") for _ in range(3)]
    gone = client.delete_objects(Bucket=BUCKET, Delete={"Objects": [{"Key": "k"}, *({"Key": "k", "VersionId": each} for each in ids)]})
    assert [("DeleteMarker" in each, each.get("VersionId")) for each in gone["Deleted"]] == [(True, None), *((False, each) for each in ids)]
    assert [each[3] for each in listed(client)] == [True]


def test_a_listing_goes_on_where_a_version_was_that_is_gone(client: Any) -> None:
    for each in range(5):
        put(client, b"%d" % each)
    page = client.list_object_versions(Bucket=BUCKET, MaxKeys=2)
    for each in page["Versions"]:
        client.delete_object(Bucket=BUCKET, Key="k", VersionId=each["VersionId"])
    left = client.list_object_versions(Bucket=BUCKET, KeyMarker=page["NextKeyMarker"], VersionIdMarker=page["NextVersionIdMarker"])
    assert len(left["Versions"]) == 3
    # Where the one without a name is gone, nothing of its key is left out.
    set_versioning(client, "Suspended")
    client.put_object(Bucket=BUCKET, Key="k", Body=b"null")
    client.delete_object(Bucket=BUCKET, Key="k", VersionId="null")
    assert len(client.list_object_versions(Bucket=BUCKET, KeyMarker="k", VersionIdMarker="null")["Versions"]) == 3
