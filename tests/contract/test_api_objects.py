"""Buckets and objects through the API: the same rows as S3 clients see, under the same policies."""

import errno
import os
from collections.abc import Callable
from typing import Any
from urllib.parse import urlencode

import pytest

from portal.engines import blobs
from portal.settings import Settings
from tests.support.s3 import S3, client, fetch
from tests.support.web import Api

BASE = "/storage/buckets"


@pytest.fixture
def bucket(api: Api) -> str:
    """Its id."""
    made = api.post(BASE, {"bucket_name": "a-bucket", "tags": {"team": "blue"}})
    assert (made.status_code, made.json["bucket_name"], made.json["versioning_enabled"], made.json["status"]) == (201, "a-bucket", True, "active"), (
        made.json
    )
    return str(made.json["bucket_id"])


def put(api: Api, bucket: str, key: str, body: bytes, **headers: str) -> Any:
    return api("PUT", f"{BASE}/{bucket}/objects/{key}", data=body, headers={"Content-Type": "text/plain", **headers})


def test_bytes_go_in_and_come_out(api: Api, bucket: str) -> None:
    made = put(api, bucket, "a/b.txt", b"0123456789", **{"X-Meta-Color": "blue"})
    assert (made.status_code, made.json["size_bytes"], made.json["metadata"]) == (200, 10, {"color": "blue"}), made.json
    found = api.get(f"{BASE}/{bucket}/objects/a/b.txt")
    assert (found.data, found.headers["ETag"], found.headers["X-Meta-Color"]) == (b"0123456789", f'"{made.json["etag"]}"', "blue")
    # What somebody uploaded is never a page of the portal.
    assert (found.headers["Content-Type"], found.headers["Content-Disposition"]) == ("application/octet-stream", "attachment")
    part = api.get(f"{BASE}/{bucket}/objects/a/b.txt", headers={"Range": "bytes=2-4"})
    assert (part.status_code, part.data, part.headers["Content-Range"]) == (206, b"234", "bytes 2-4/10")
    assert api.get(f"{BASE}/{bucket}/objects/a/b.txt", headers={"Range": "bytes=10-"}).status_code == 416
    head = api("HEAD", f"{BASE}/{bucket}/objects/a/b.txt")
    assert (head.status_code, head.headers["Content-Length"], head.data) == (200, "10", b"")
    listed = api.get(f"{BASE}/{bucket}/objects?delimiter=/").json
    assert (listed["objects"], listed["common_prefixes"]) == ([], ["a/"])
    assert api("DELETE", f"{BASE}/{bucket}/objects/a/b.txt").status_code == 204
    assert api.get(f"{BASE}/{bucket}/objects/a/b.txt").status_code == 404
    wrong = put(api, bucket, "c", b"body", **{"Content-MD5": "AAAAAAAAAAAAAAAAAAAAAA=="})
    assert (wrong.status_code, api.get(f"{BASE}/{bucket}/objects/c").status_code) == (400, 404)


def test_the_short_address_is_of_the_bucket_or_of_an_object(api: Api, bucket: str) -> None:
    short = f"/api/storage/buckets/{bucket}"
    assert api("PUT", f"{short}?key=folder/", data=b"x", headers={"Content-Type": "text/plain"}).status_code == 200
    assert api.get(f"{short}?key=folder/").data == b"x"
    assert api.get(short).json["total_objects"] == 1
    assert api("PUT", short, {"description": "changed"}).json["description"] == "changed"
    assert api("DELETE", f"{short}?key=folder/").status_code == 204
    assert api("DELETE", f"{BASE}/{bucket}/object").status_code == 400
    assert api("DELETE", short).status_code == 409
    assert api("DELETE", f"{short}?force=true").status_code == 204
    assert api.get(f"{BASE}?search=a-bucket").json["results"] == []


def test_versions_are_listed_and_restored(api: Api, bucket: str) -> None:
    for body in (b"one", b"two"):
        put(api, bucket, "k", body)
    api("DELETE", f"{BASE}/{bucket}/objects/k")
    found = api.get(f"{BASE}/{bucket}/objects/k/versions").json["versions"]
    assert [(each["is_latest"], each["delete_marker"], each["size_bytes"]) for each in found] == [
        (True, True, 0),
        (False, False, 3),
        (False, False, 3),
    ]
    assert api.get(f"{BASE}/{bucket}/objects/k?version_id={found[2]['version_id']}").data == b"one"
    assert api.post(f"{BASE}/{bucket}/objects/k/restore", {"version_id": found[2]["version_id"]}).status_code == 200
    assert api.get(f"{BASE}/{bucket}/objects/k").data == b"one"
    assert api("PUT", f"{BASE}/{bucket}/versioning", {"enabled": False}).json["versioning"] == "suspended"


def test_what_is_said_of_an_object_is_changed(api: Api, bucket: str) -> None:
    put(api, bucket, "k", b"x")
    changed = api("PATCH", f"{BASE}/{bucket}/objects/k", {"tags": {"a": "b"}, "content_type": "text/html"}).json
    assert (changed["tags"], changed["content_type"]) == ({"a": "b"}, "text/html")
    assert api.post(f"{BASE}/{bucket}/objects/k/make-public").status_code == 400
    api("PUT", f"{BASE}/{bucket}/ownership", {"ownership": "ObjectWriter"})
    assert api.post(f"{BASE}/{bucket}/objects/k/make-public").status_code == 403
    assert api("PUT", f"{BASE}/{bucket}/public-access-block", {}).json == {}
    assert api.post(f"{BASE}/{bucket}/objects/k/make-public").json["is_public"] is True
    assert api.post(f"{BASE}/{bucket}/objects/k/make-private").json["is_public"] is False
    assert api.post(f"{BASE}/{bucket}/objects/k/copy", {"destination_key": "l"}).json["tags"] == {"a": "b"}
    gone = api.post(f"{BASE}/{bucket}/delete-objects", {"prefix": ""}).json
    assert (gone["deleted"], gone["errors"]) == (["k", "l"], [])


def test_an_upload_in_parts(api: Api, bucket: str) -> None:
    upload = api.post(f"{BASE}/{bucket}/multipart-uploads", {"key": "big file"}).json["upload_id"]
    path = f"{BASE}/{bucket}/multipart-uploads/{upload}"
    parts = [api("PUT", f"{path}/parts/{number}", data=body).json for number, body in enumerate((b"x" * (5 << 20), b"end"), 1)]
    done = api.post(f"{path}/complete", {"parts": parts})
    assert (done.status_code, done.json["size_bytes"], done.json["etag"][-2:]) == (200, (5 << 20) + 3, "-2"), done.json
    assert api.get(f"{BASE}/{bucket}/objects/big file").data[-5:] == b"xxend"
    copied = api.post(f"{BASE}/{bucket}/objects/big file/copy", {"destination_key": "copy"})
    assert copied.json["size_bytes"] == (5 << 20) + 3
    assert api("DELETE", f"{path}").status_code == 404


def test_an_address_is_good_for_one_object(api: Api, bucket: str, s3: S3, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    put(api, bucket, "a file/ü+", b"shared")
    asked = {"key": "a file/ü+", "expires_in": 60}
    # Without a port there is no gateway that an address could lead to.
    assert api.post(f"{BASE}/{bucket}/presigned-urls", asked).status_code == 503
    monkeypatch.setitem(settings.__dict__, "s3_port", 9000)
    assert api.post(f"{BASE}/{bucket}/presigned-urls", asked).status_code == 409
    api.post("/auth/s3-keys", {})
    made = api.post(f"{BASE}/{bucket}/presigned-urls", asked).json
    path = made["url"].partition(f":{settings.s3_port}/")[2]
    link = {"Host": made["url"].split("/")[2]}
    assert fetch(f"{s3.url}/{path}", headers=link)[::2] == (200, b"shared")
    assert fetch(f"{s3.url}/{path}", "DELETE", headers=link)[0] == 403
    assert api.post(f"{BASE}/{bucket}/presigned-urls", {**asked, "expires_in": 604_801}).status_code == 400
    assert api.post(f"{BASE}/{bucket}/presigned-urls", {**asked, "method": "PATCH"}).status_code == 400


def test_figures_and_rules(api: Api, bucket: str) -> None:
    put(api, bucket, "k", b"x" * 100)
    figures = api.get(f"{BASE}/{bucket}/statistics").json
    assert (figures["total_objects"], figures["total_size_bytes"], figures["versioning_enabled"]) == (1, 100, True)
    rule = {"origins": ["https://a.example"], "methods": ["GET"]}
    assert api("PUT", f"{BASE}/{bucket}/cors", {"rules": [rule]}).json["rules"][0]["origins"] == rule["origins"]
    assert api.get(f"{BASE}/{bucket}/cors").json["rules"][0]["methods"] == ["GET"]
    for wrong in (
        {"methods": ["GET"]},
        {**rule, "methods": ["PATCH"]},
        {**rule, "more": 1},
        {**rule, "max_age_seconds": -1},
        {**rule, "origins": ["*.*"]},
    ):
        assert api("PUT", f"{BASE}/{bucket}/cors", {"rules": [wrong]}).status_code == 400, wrong
    assert api("PUT", f"{BASE}/{bucket}/acl", {"acl": "private"}).json["acl"] == "private"
    assert api("PUT", f"{BASE}/{bucket}/acl", {"acl": "public-read"}).status_code == 400


def test_who_may_do_what(api: Api, api_for: Callable[..., Api], bucket: str) -> None:
    put(api, bucket, "k", b"x")
    viewer = api_for("viewer")
    assert viewer.get(f"{BASE}/{bucket}/objects/k").status_code == 200
    assert put(viewer, bucket, "l", b"x").status_code == 403
    assert viewer("DELETE", f"{BASE}/{bucket}/objects/k").status_code == 403
    developer = api_for("developer")
    assert developer("DELETE", f"{BASE}/{bucket}/objects/k").status_code == 403
    assert developer.post(f"{BASE}/{bucket}/objects/k/make-public").status_code == 403
    assert developer("PUT", f"{BASE}/{bucket}/acl", {"acl": "public-read"}).status_code == 403
    assert api_for("").get(f"{BASE}/{bucket}/objects/k").status_code == 404


def test_an_access_key_opens_the_s3_interface_until_it_ends(api: Api, bucket: str, s3: S3) -> None:
    put(api, bucket, "k", b"the same")
    made = api.post("/auth/s3-keys", {"name": "backup"})
    assert made.status_code == 201, made.json
    boto = client(s3.url, made.json["access_key_id"], made.json["secret_access_key"])
    assert boto.get_object(Bucket="a-bucket", Key="k")["Body"].read() == b"the same"
    shown = api.get("/auth/s3-keys").json["results"]
    assert ([each["access_key_id"] for each in shown], "secret_access_key" in shown[0]) == ([made.json["access_key_id"]], False)
    assert shown[0]["last_used_at"] is not None
    assert api("DELETE", f"/auth/s3-keys/{made.json['access_key_id']}").status_code == 204
    with pytest.raises(boto.exceptions.ClientError, match="InvalidAccessKeyId"):
        boto.get_object(Bucket="a-bucket", Key="k")
    account = api.post("/service-accounts", {"name": "robot", "role": "viewer"}).json["id"]
    robot = api.post(f"/service-accounts/{account}/s3-keys", {}).json
    boto = client(s3.url, robot["access_key_id"], robot["secret_access_key"])
    assert boto.get_object(Bucket="a-bucket", Key="k")["Body"].read() == b"the same"
    with pytest.raises(boto.exceptions.ClientError, match="AccessDenied"):
        boto.put_object(Bucket="a-bucket", Key="l", Body=b"")
    api("PATCH", f"/service-accounts/{account}", {"is_active": False})
    with pytest.raises(boto.exceptions.ClientError, match="InvalidAccessKeyId"):
        boto.get_object(Bucket="a-bucket", Key="k")


@pytest.mark.parametrize("key", ["../x", "a/../../x", "a/../..", ".."])
def test_a_key_does_not_lead_out_of_its_bucket(api: Api, bucket: str, key: str) -> None:
    """Clients that keep a bucket in a directory would be led out of it; S3 refuses such keys as well."""
    put(api, bucket, "k", b"x")
    wrong = (
        api("PUT", f"{BASE}/{bucket}/object?{urlencode({'key': key})}", data=b"x", headers={"Content-Type": "text/plain"}),
        api("POST", f"{BASE}/{bucket}/objects/k/copy", {"destination_key": key}),
        api("POST", f"{BASE}/{bucket}/multipart-uploads", {"key": key}),
    )
    assert [(each.status_code, each.json["error"]) for each in wrong] == [(400, "INVALID_REQUEST")] * 3
    assert [each["key"] for each in api.get(f"{BASE}/{bucket}/objects").json["objects"]] == ["k"]
    # What is there already can still be removed.
    assert api("DELETE", f"{BASE}/{bucket}/object?{urlencode({'key': key})}").status_code == 204


def test_an_address_that_is_no_text_names_nothing(api: Api, bucket: str) -> None:
    by_path = {"PATH_INFO": f"/api/v1{BASE}/{bucket}/objects/\xff"}
    wrong = [
        api(method, f"{BASE}/{bucket}/object?key=%fe", data=b"x", headers={"Content-Type": "text/plain"}, environ_overrides=said)
        for method in ("PUT", "GET", "DELETE")
        for said in ({}, by_path)
    ]
    assert [(each.status_code, each.json["error"]) for each in wrong] == [(400, "INVALID_REQUEST")] * 6
    assert api.get(f"{BASE}/{bucket}/objects").json["objects"] == []


def test_a_disk_that_is_full_is_said(api: Api, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, data: bytes) -> int:
        del descriptor, data
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(blobs.os, "write", full)
    refused = put(api, bucket, "k", b"x")
    assert (refused.status_code, refused.json["error"]) == (507, "INSUFFICIENT_STORAGE")
    assert "no room left where objects are kept" in refused.json["message"]
    monkeypatch.undo()
    assert put(api, bucket, "k", b"x").status_code == 200


def test_writes_have_conditions(api: Api, bucket: str) -> None:
    first, one = {"If-None-Match": "*"}, f"{BASE}/{bucket}/objects/k"
    made = put(api, bucket, "k", b"first", **first)
    assert made.status_code == 200
    begun = api("POST", f"{BASE}/{bucket}/multipart-uploads", {"key": "k"}).json["upload_id"]
    parts = f"{BASE}/{bucket}/multipart-uploads/{begun}"
    etag = api("PUT", f"{parts}/parts/1", data=b"x", headers={"Content-Type": "application/octet-stream"}).json["etag"]
    whole = {"parts": [{"number": 1, "etag": etag}]}
    put(api, bucket, "other", b"other")
    refused = (
        put(api, bucket, "k", b"second", **first), put(api, bucket, "k", b"second", **{"If-Match": '"another"'}),
        api("POST", f"{BASE}/{bucket}/objects/other/copy", {"destination_key": "k"}, headers=first), api("POST", f"{parts}/complete", whole, headers=first),
    )  # fmt: skip
    assert [(each.status_code, each.json["error"]) for each in refused] == [(412, "PRECONDITION_FAILED")] * 4
    assert put(api, bucket, "k", b"second", **{"If-None-Match": '"tag"'}).status_code == 400
    assert put(api, bucket, "none", b"x", **{"If-Match": "*"}).status_code == 404
    assert api.get(one).data == b"first"
    assert put(api, bucket, "k", b"second", **{"If-Match": f'"{made.json["etag"]}"'}).status_code == 200
    assert api("POST", f"{parts}/complete", whole).status_code == 200


def test_the_number_of_a_part_is_looked_at_whole(api: Api, bucket: str) -> None:
    begun = api("POST", f"{BASE}/{bucket}/multipart-uploads", {"key": "k"}).json["upload_id"]
    part = f"{BASE}/{bucket}/multipart-uploads/{begun}/parts/0000000019999999"
    assert api("PUT", part, data=b"x", headers={"Content-Type": "application/octet-stream"}).status_code == 400


@pytest.mark.parametrize("query", ["prefix=a%00", "start_after=a%00"])
def test_a_listing_of_what_no_key_can_be_is_refused(api: Api, bucket: str, query: str) -> None:
    assert api.get(f"{BASE}/{bucket}/objects?{query}").status_code == 400
