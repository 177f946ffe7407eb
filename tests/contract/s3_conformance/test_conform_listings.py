"""Listings: fields, order, pages, prefixes and delimiters, encoding."""

from typing import Any

import pytest

from tests.support.s3_operations import conforms
from tests.support.s3_raw import Raw

KEYS = ["a", "b/1", "b/2", "b/c/3", "c d+%/4", "z/ü"]
VERSIONING = b"<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>"


@pytest.fixture
def filled(raw: Raw, bucket: str) -> str:
    for key in reversed(KEYS):
        assert raw("PUT", f"/{bucket}/{key}", body=key.encode()).status == 200
    return f"/{bucket}"


@conforms("ListObjects")
def test_list_objects(raw: Raw, filled: str) -> None:
    answer = raw("GET", filled)
    assert (answer.status, answer.root, answer.text("Name"), answer.text("MaxKeys")) == (200, "ListBucketResult", "conforming", "1000")
    assert (answer.texts("Contents/Key"), answer.text("IsTruncated"), answer.text("Prefix"), answer.text("Marker")) == (KEYS, "false", "", "")
    assert set(answer.texts("Contents/Owner/ID")) == {raw.owner.id}
    assert set(answer.texts("Contents/StorageClass")) == {"STANDARD"}
    assert answer.texts("Contents/Size") == [str(len(key.encode())) for key in KEYS]
    rolled = raw("GET", filled, {"delimiter": "/", "max-keys": "2"})
    assert (rolled.texts("Contents/Key"), rolled.texts("CommonPrefixes/Prefix"), rolled.text("NextMarker")) == (["a"], ["b/"], "b/")
    rest = raw("GET", filled, {"delimiter": "/", "marker": "b/"})
    assert (rest.texts("Contents/Key"), rest.texts("CommonPrefixes/Prefix"), rest.text("IsTruncated")) == ([], ["c d+%/", "z/"], "false")


@conforms("ListObjectsV2")
def test_list_objects_v2(raw: Raw, filled: str) -> None:
    answer = raw("GET", filled, {"list-type": "2", "prefix": "b/", "delimiter": "/"})
    assert (answer.texts("Contents/Key"), answer.texts("CommonPrefixes/Prefix"), answer.text("KeyCount")) == (["b/1", "b/2"], ["b/c/"], "3")
    assert (answer.text("Delimiter"), answer.text("Prefix"), answer.texts("Contents/Owner/ID"), answer.texts("Marker")) == ("/", "b/", [], [])
    assert raw("GET", filled, {"list-type": "2", "fetch-owner": "true", "max-keys": "1"}).text("Contents/Owner/ID") == raw.owner.id
    assert raw("GET", filled, {"list-type": "2", "start-after": "b/2"}).texts("Contents/Key") == KEYS[3:]
    found, token = list[str](), ""
    while True:
        page = raw("GET", filled, {"list-type": "2", "max-keys": "4", **({"continuation-token": token} if token else {})})
        found += page.texts("Contents/Key")
        if page.text("IsTruncated") == "false":
            break
        token = page.text("NextContinuationToken")
    assert (found, page.text("ContinuationToken")) == (KEYS, token)


@conforms("ListObjectsV2", "ListObjects")
@pytest.mark.parametrize("kind", [{}, {"list-type": "2"}])
def test_keys_may_be_encoded(raw: Raw, filled: str, kind: dict[str, str]) -> None:
    answer = raw("GET", filled, {**kind, "encoding-type": "url", "prefix": "c d"})
    assert (answer.text("EncodingType"), answer.text("Contents/Key"), answer.text("Prefix")) == ("url", "c%20d%2B%25/4", "c%20d")


@conforms("ListObjectsV2", "ListObjects")
def test_limits(raw: Raw, filled: str) -> None:
    assert raw("GET", filled, {"max-keys": "5000"}).text("MaxKeys") == "1000"
    empty = raw("GET", filled, {"max-keys": "0"})
    assert (empty.texts("Contents/Key"), empty.text("IsTruncated")) == ([], "false")
    for wrong in (
        {"max-keys": "-1"},
        {"max-keys": "many"},
        {"encoding-type": "base64"},
        {"list-type": "3"},
        {"list-type": "2", "continuation-token": "?"},
    ):
        assert raw("GET", filled, wrong).code == "InvalidArgument", wrong
    assert (raw("GET", "/no-such").code, raw.nobody("GET", filled).code) == ("NoSuchBucket", "AccessDenied")


@conforms("ListObjectVersions")
def test_list_object_versions(raw: Raw, bucket: str, boto: Any) -> None:
    raw("PUT", f"/{bucket}/k", body=b"before")
    raw("PUT", f"/{bucket}", "versioning", VERSIONING)
    newest = raw("PUT", f"/{bucket}/k", body=b"after").headers["x-amz-version-id"]
    marker = raw("DELETE", f"/{bucket}/k")
    assert marker.headers["x-amz-delete-marker"] == "true"
    answer = raw("GET", f"/{bucket}", "versions")
    assert (answer.root, answer.texts("Version/VersionId"), answer.texts("Version/IsLatest")) == (
        "ListVersionsResult",
        [newest, "null"],
        ["false", "false"],
    )
    assert (answer.text("DeleteMarker/VersionId"), answer.text("DeleteMarker/IsLatest")) == (marker.headers["x-amz-version-id"], "true")
    assert answer.texts("DeleteMarker/Owner/ID") == [raw.owner.id]
    first = boto.list_object_versions(Bucket=bucket, MaxKeys=1)
    assert (first["IsTruncated"], first["NextKeyMarker"]) == (True, "k")
    rest = boto.list_object_versions(Bucket=bucket, KeyMarker="k", VersionIdMarker=first["NextVersionIdMarker"])
    assert [each["VersionId"] for each in rest["Versions"]] == [newest, "null"]
    gone = raw("GET", f"/{bucket}/k")
    assert (gone.status, gone.code, gone.headers["x-amz-delete-marker"]) == (404, "NoSuchKey", "true")
    of_marker = raw("GET", f"/{bucket}/k", f"versionId={marker.headers['x-amz-version-id']}")
    assert (of_marker.status, of_marker.code, of_marker.headers["Allow"]) == (405, "MethodNotAllowed", "DELETE")
    assert raw("GET", f"/{bucket}/k", "versionId=null").body == b"before"
    assert raw("GET", f"/{bucket}", {"versions": "", "version-id-marker": newest}).code == "InvalidArgument"
