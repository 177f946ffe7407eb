"""What both engines for objects promise: one suite, through the API and S3 clients."""

from typing import Any

from portal.storage.engine_tending import look_at_engine
from tests.support.object_engines import BUCKETS as BASE
from tests.support.object_engines import OPEN, Place
from tests.support.s3 import fetch, refused


def test_buckets_come_and_go(place: Place, s3: Any) -> None:
    bucket = place.bucket("comes-and-goes")
    assert place.api.post(BASE, {"name": "comes-and-goes"}).status_code == 409
    s3.put_object(Bucket="comes-and-goes", Key="k", Body=b"x")
    place.look(look_at_engine)
    assert place.api.get(f"{BASE}/{bucket}/statistics").json["total_objects"] == 1
    place.api("DELETE", f"{BASE}/{bucket}")
    place.worker.drain()
    assert place.api.get(f"{BASE}/{bucket}").json["state"] == "active"
    assert s3.get_object(Bucket="comes-and-goes", Key="k")["Body"].read() == b"x"
    assert place.api("DELETE", f"{BASE}/{bucket}?force=true").status_code in {202, 204}
    place.worker.drain()
    assert place.api.get(f"{BASE}/{bucket}").json["state"] == "deleted"
    refused(lambda: s3.get_object(Bucket="comes-and-goes", Key="k"), "NoSuchBucket")
    place.bucket("comes-and-goes")
    refused(lambda: s3.get_object(Bucket="comes-and-goes", Key="k"), "NoSuchKey")


def test_objects_are_written_read_and_removed_by_clients_and_the_api(place: Place, s3: Any) -> None:
    bucket = place.bucket("objects-of-all-kinds", versioning_enabled=False)
    made = s3.put_object(Bucket="objects-of-all-kinds", Key="a/b c+ü.txt", Body=b"0123456789", ContentType="text/plain", Metadata={"color": "blue"})
    found = place.api.get(f"{BASE}/{bucket}/objects/a/b c+ü.txt")
    assert (found.data, found.headers["ETag"], found.headers["X-Meta-Color"]) == (b"0123456789", made["ETag"], "blue")
    part = place.api.get(f"{BASE}/{bucket}/objects/a/b c+ü.txt", headers={"Range": "bytes=2-4"})
    assert (part.status_code, part.data, part.headers["Content-Range"]) == (206, b"234", "bytes 2-4/10")
    assert place.api.get(f"{BASE}/{bucket}/objects/a/b c+ü.txt", headers={"Range": "bytes=10-"}).status_code == 416
    put = place.api("PUT", f"{BASE}/{bucket}/objects/from-api", data=b"x" * 3_000_000, headers={"Content-Type": "image/png", "X-Meta-A": "1"})
    assert (put.status_code, put.json["size_bytes"]) == (200, 3_000_000), put.json
    head = s3.head_object(Bucket="objects-of-all-kinds", Key="from-api")
    assert (head["ContentLength"], head["ContentType"], head["Metadata"]) == (3_000_000, "image/png", {"a": "1"})
    assert place.api("DELETE", f"{BASE}/{bucket}/objects/a/b c+ü.txt").status_code == 204
    refused(lambda: s3.get_object(Bucket="objects-of-all-kinds", Key="a/b c+ü.txt"), "NoSuchKey")
    s3.delete_object(Bucket="objects-of-all-kinds", Key="from-api")
    assert place.api.get(f"{BASE}/{bucket}/objects/from-api").status_code == 404
    s3.delete_object(Bucket="objects-of-all-kinds", Key="from-api")


def test_what_arrives_wrong_is_not_kept(place: Place, s3: Any) -> None:
    bucket = place.bucket("wrong-bytes")
    for headers, status in (({"Content-MD5": "AAAAAAAAAAAAAAAAAAAAAA=="}, 400), ({"Content-MD5": "no md5"}, 400)):
        assert place.api("PUT", f"{BASE}/{bucket}/objects/k", data=b"body", headers=headers).status_code == status, headers
        assert place.api.get(f"{BASE}/{bucket}/objects/k").status_code == 404, headers
    refused(lambda: s3.put_object(Bucket="wrong-bytes", Key="k", Body=b"x", ContentMD5="AAAAAAAAAAAAAAAAAAAAAA=="), "BadDigest")
    assert place.api("PUT", f"{BASE}/{bucket}/objects/{'k' * 1025}", data=b"x").status_code == 400
    assert place.api.get(f"{BASE}/{bucket}/objects").json["objects"] == []


def test_listings_go_on_where_they_ended(place: Place, s3: Any) -> None:
    bucket = place.bucket("listings")
    for key in ("a/1", "a/2", "b", "c/d/3", "ü"):
        s3.put_object(Bucket="listings", Key=key, Body=b"x")
    seen, after = [], ""
    while after is not None:
        page = place.api.get(f"{BASE}/{bucket}/objects?delimiter=/&limit=2&start_after={after}").json
        seen += [*page["common_prefixes"], *(row["key"] for row in page["objects"])]
        after = page["next_marker"]
    assert seen == ["a/", "b", "c/", "ü"]
    assert [row["key"] for row in place.api.get(f"{BASE}/{bucket}/objects?prefix=c/").json["objects"]] == ["c/d/3"]
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket="listings", Delimiter="/", PaginationConfig={"PageSize": 2})
    assert [each["Key"] for page in pages for each in page.get("Contents", [])] == ["b", "ü"]
    gone = place.api.post(f"{BASE}/{bucket}/delete-objects", {"prefix": "a/"}).json
    assert (gone["deleted"], gone["errors"]) == (["a/1", "a/2"], [])
    done = s3.delete_objects(Bucket="listings", Delete={"Objects": [{"Key": "b"}, {"Key": "not there"}]})
    assert len(done["Deleted"]) == 2


def test_uploads_in_parts(place: Place, s3: Any) -> None:
    bucket = place.bucket("in-parts")
    upload = place.api.post(f"{BASE}/{bucket}/multipart-uploads", {"key": "big file", "content_type": "text/x"}).json["upload_id"]
    path = f"{BASE}/{bucket}/multipart-uploads/{upload}"
    parts = [place.api("PUT", f"{path}/parts/{number}", data=body).json for number, body in enumerate((b"x" * (5 << 20), b"end"), 1)]
    for _ in range(2):
        done = place.api.post(f"{path}/complete", {"parts": parts})
        assert (done.status_code, done.json["size_bytes"], done.json["etag"][-2:]) == (200, (5 << 20) + 3, "-2"), done.json
    assert s3.get_object(Bucket="in-parts", Key="big file", Range="bytes=5242878-")["Body"].read() == b"xxend"
    small = place.api.post(f"{BASE}/{bucket}/multipart-uploads", {"key": "small"}).json["upload_id"]
    path = f"{BASE}/{bucket}/multipart-uploads/{small}"
    parts = [place.api("PUT", f"{path}/parts/{number}", data=b"small").json for number in (1, 2)]
    assert place.api.post(f"{path}/complete", {"parts": parts}).status_code == 400
    assert place.api.post(f"{path}/complete", {"parts": [{"number": 1, "etag": "0" * 32}]}).status_code == 400
    assert place.api("DELETE", path).status_code == 204
    assert place.api("DELETE", path).status_code == 404
    assert place.api("DELETE", f"{BASE}/{bucket}/multipart-uploads/none").status_code == 404
    assert place.api.get(f"{BASE}/{bucket}/objects/small").status_code == 404


def test_versions_are_kept_listed_and_restored(place: Place, s3: Any) -> None:
    bucket = place.bucket("versions")
    for body in (b"one", b"two!"):
        s3.put_object(Bucket="versions", Key="k", Body=body, Metadata={"m": "1"}, Tagging="a=b")
    s3.delete_object(Bucket="versions", Key="k")
    found = place.api.get(f"{BASE}/{bucket}/objects/k/versions").json["versions"]
    assert [(each["is_latest"], each["delete_marker"], each["size_bytes"]) for each in found] == [
        (True, True, 0), (False, False, 4), (False, False, 3),
    ]  # fmt: skip
    assert place.api.get(f"{BASE}/{bucket}/objects/k").status_code == 404
    assert place.api.get(f"{BASE}/{bucket}/objects/k?version_id={found[2]['version_id']}").data == b"one"
    assert place.api.get(f"{BASE}/{bucket}/objects/k?version_id={found[0]['version_id']}").status_code == 405
    assert place.api.get(f"{BASE}/{bucket}/objects/k?version_id=nothing").status_code == 404
    restored = place.api.post(f"{BASE}/{bucket}/objects/k/restore", {"version_id": found[2]["version_id"]}).json
    assert (restored["metadata"], restored["tags"]) == ({"m": "1"}, {"a": "b"})
    assert s3.get_object(Bucket="versions", Key="k")["Body"].read() == b"one"
    place.api("PUT", f"{BASE}/{bucket}/versioning", {"enabled": False})
    place.settle()
    assert place.owner().get_bucket_versioning(Bucket="versions")["Status"] == "Suspended"
    place.api("DELETE", f"{BASE}/{bucket}/objects/k?version_id={found[1]['version_id']}")
    left = s3.list_object_versions(Bucket="versions", Prefix="k")["Versions"]
    assert found[1]["version_id"] not in {each["VersionId"] for each in left}


def test_tags_metadata_and_copies(place: Place, s3: Any) -> None:
    bucket = place.bucket("said-of-objects", versioning_enabled=False, **OPEN)
    s3.put_object(Bucket="said-of-objects", Key="k", Body=b"x", ContentType="text/plain")
    changed = place.api("PATCH", f"{BASE}/{bucket}/objects/k", {"tags": {"a": "b c"}, "content_type": "text/html", "metadata": {"m": "n"}}).json
    assert (changed["tags"], changed["content_type"], changed["metadata"]) == ({"a": "b c"}, "text/html", {"m": "n"})
    assert s3.get_object_tagging(Bucket="said-of-objects", Key="k")["TagSet"] == [{"Key": "a", "Value": "b c"}]
    copied = place.api.post(f"{BASE}/{bucket}/objects/k/copy", {"destination_key": "l"}).json
    assert (copied["tags"], copied["content_type"], copied["metadata"]) == ({"a": "b c"}, "text/html", {"m": "n"})
    assert place.api.post(f"{BASE}/{bucket}/objects/k/make-public").json["is_public"] is True
    assert fetch(f"{place.url}/said-of-objects/k")[::2] == (200, b"x")
    assert place.api.post(f"{BASE}/{bucket}/objects/k/make-private").json["is_public"] is False
    assert fetch(f"{place.url}/said-of-objects/k")[0] == 403


def test_rules_of_buckets_are_where_clients_find_them(place: Place, s3: Any) -> None:
    bucket = place.bucket("with-rules")
    place.api("PUT", f"{BASE}/{bucket}/cors", {"rules": [{"id": "one", "origins": ["https://a.example"], "methods": ["GET"]}]})
    place.settle()
    rules = [{"id": "old", "prefix": "log/", "expire_days": 3, "noncurrent_days": 2, "abort_days": 1}]
    assert place.api("PUT", f"{BASE}/{bucket}/lifecycle", {"rules": rules}).status_code == 200
    place.settle()
    s3.put_object(Bucket="with-rules", Key="k", Body=b"x")
    url = s3.generate_presigned_url("get_object", Params={"Bucket": "with-rules", "Key": "k"})
    told = fetch(url, headers={"Origin": "https://a.example"})[1]
    assert told["Access-Control-Allow-Origin"] == "https://a.example"
    assert "Access-Control-Allow-Origin" not in fetch(url, headers={"Origin": "https://b.example"})[1]
    assert [rule["ID"] for rule in place.owner().get_bucket_lifecycle_configuration(Bucket="with-rules")["Rules"]] == ["old"]
    assert place.api("PUT", f"{BASE}/{bucket}/cors", {"rules": []}).status_code == 200
    place.settle()
    assert "Access-Control-Allow-Origin" not in fetch(url, headers={"Origin": "https://a.example"})[1]
