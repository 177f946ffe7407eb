"""What is said of buckets and objects: tags, rules for other origins, access of others, forms of browsers."""

from typing import Any

import pytest

from tests.support.s3 import S3, fetch, form_of, refused

BUCKET = "a-bucket"
PAGE = "https://app.example.org"


@pytest.fixture
def client(s3: S3) -> Any:
    made = s3.client()
    made.create_bucket(Bucket=BUCKET)
    return made


def tags(**given: str) -> dict[str, list[dict[str, str]]]:
    return {"TagSet": [{"Key": key, "Value": value} for key, value in given.items()]}


def test_tags_of_objects(client: Any) -> None:
    client.put_object(Bucket=BUCKET, Key="k", Body=b"", Tagging="a=1&b=two%20words")
    assert client.get_object_tagging(Bucket=BUCKET, Key="k")["TagSet"] == tags(a="1", b="two words")["TagSet"]
    assert client.head_object(Bucket=BUCKET, Key="k")["TagCount"] == 2
    client.put_object_tagging(Bucket=BUCKET, Key="k", Tagging=tags(c="3"))
    assert client.get_object_tagging(Bucket=BUCKET, Key="k")["TagSet"] == tags(c="3")["TagSet"]
    client.delete_object_tagging(Bucket=BUCKET, Key="k")
    assert client.get_object_tagging(Bucket=BUCKET, Key="k")["TagSet"] == []
    refused(lambda: client.put_object_tagging(Bucket=BUCKET, Key="none", Tagging=tags(a="1")), "NoSuchKey")
    for wrong in ({f"k{number}": "" for number in range(11)}, {"k" * 129: ""}, {"k": "v" * 257}):
        refused(lambda wrong=wrong: client.put_object_tagging(Bucket=BUCKET, Key="k", Tagging=tags(**wrong)), "InvalidTag")


def test_tags_of_buckets_are_those_of_the_portal(client: Any, s3: S3) -> None:
    refused(lambda: client.get_bucket_tagging(Bucket=BUCKET), "NoSuchTagSet")
    client.put_bucket_tagging(Bucket=BUCKET, Tagging=tags(team="blue"))
    assert client.get_bucket_tagging(Bucket=BUCKET)["TagSet"] == tags(team="blue")["TagSet"]
    client.delete_bucket_tagging(Bucket=BUCKET)
    refused(lambda: client.get_bucket_tagging(Bucket=BUCKET), "NoSuchTagSet")


def test_pages_of_other_origins(client: Any, s3: S3) -> None:
    refused(lambda: client.get_bucket_cors(Bucket=BUCKET), "NoSuchCORSConfiguration")
    rule = {
        "AllowedOrigins": ["https://*.example.org"],
        "AllowedMethods": ["GET", "PUT"],
        "AllowedHeaders": ["x-amz-*"],
        "ExposeHeaders": ["ETag"],
        "MaxAgeSeconds": 60,
    }
    client.put_bucket_cors(Bucket=BUCKET, CORSConfiguration={"CORSRules": [rule]})
    assert client.get_bucket_cors(Bucket=BUCKET)["CORSRules"] == [rule]
    address = f"{s3.url}/{BUCKET}/k"
    asking = {"Origin": PAGE, "Access-Control-Request-Method": "PUT", "Access-Control-Request-Headers": "x-amz-date"}
    status, headers, _ = fetch(address, "OPTIONS", headers=asking)
    assert (status, headers["Access-Control-Allow-Origin"], headers["Access-Control-Allow-Methods"], headers["Access-Control-Max-Age"]) == (
        200,
        PAGE,
        "GET, PUT",
        "60",
    )
    for wrong in ({"Origin": "https://evil.org"}, {"Access-Control-Request-Method": "DELETE"}, {"Access-Control-Request-Headers": "cookie"}):
        assert fetch(address, "OPTIONS", headers={**asking, **wrong})[0] == 403
    # With what is refused as well: the page must see why.
    status, headers, _ = fetch(address, headers={"Origin": PAGE})
    assert (status, headers["Access-Control-Allow-Origin"], headers["Access-Control-Expose-Headers"]) == (403, PAGE, "ETag")
    assert "Access-Control-Allow-Origin" not in fetch(address, headers={"Origin": "https://evil.org"})[1]
    refused(lambda: client.put_bucket_cors(Bucket=BUCKET, CORSConfiguration={"CORSRules": [{**rule, "AllowedMethods": ["PATCH"]}]}), "InvalidRequest")
    client.delete_bucket_cors(Bucket=BUCKET)
    assert fetch(address, "OPTIONS", headers=asking)[0] == 403


def test_who_builds_does_not_let_others_in(client: Any, s3: S3) -> None:
    developer = s3.client(s3.people.user("developer"))
    refused(lambda: developer.create_bucket(Bucket="open-one", ACL="public-read", ObjectOwnership="ObjectWriter"), "AccessDenied")
    client.put_bucket_ownership_controls(Bucket=BUCKET, OwnershipControls={"Rules": [{"ObjectOwnership": "ObjectWriter"}]})
    developer.put_object(Bucket=BUCKET, Key="k", Body=b"x")
    refused(lambda: developer.put_object(Bucket=BUCKET, Key="l", Body=b"x", ACL="public-read"), "AccessDenied")
    refused(lambda: developer.put_object_acl(Bucket=BUCKET, Key="k", ACL="public-read"), "AccessDenied")
    refused(lambda: developer.put_bucket_acl(Bucket=BUCKET, ACL="public-read"), "AccessDenied")


def test_the_roles_of_the_portal_decide(client: Any, s3: S3) -> None:
    developer, viewer = s3.client(s3.people.user("developer")), s3.client(s3.people.user("viewer"))
    client.put_object(Bucket=BUCKET, Key="admins", Body=b"x")
    developer.put_object(Bucket=BUCKET, Key="own", Body=b"x")
    assert viewer.get_object(Bucket=BUCKET, Key="own")["Body"].read() == b"x"
    refused(lambda: viewer.put_object(Bucket=BUCKET, Key="k", Body=b""), "AccessDenied")
    refused(lambda: viewer.delete_object(Bucket=BUCKET, Key="own"), "AccessDenied")
    # A developer deletes what is their own.
    refused(lambda: developer.delete_object(Bucket=BUCKET, Key="admins"), "AccessDenied")
    errors = developer.delete_objects(Bucket=BUCKET, Delete={"Objects": [{"Key": "admins"}, {"Key": "own"}]})
    assert ([each["Key"] for each in errors["Deleted"]], [each["Code"] for each in errors["Errors"]]) == (["own"], ["AccessDenied"])


@pytest.mark.parametrize("signature", ["s3v4", "s3"])
def test_a_browser_uploads_by_a_form(client: Any, s3: S3, signature: str) -> None:
    signer = s3.client(signature_version=signature)
    signed = signer.generate_presigned_post(
        BUCKET, "in/${filename}", Fields={"Content-Type": "image/png", "success_action_status": "201", "x-amz-meta-by": "form"},
        Conditions=[{"Content-Type": "image/png"}, {"success_action_status": "201"}, {"x-amz-meta-by": "form"}, ["content-length-range", 1, 100]],
    )  # fmt: skip
    body, headers = form_of(signed["fields"], b"picture")
    status, answered, document = fetch(signed["url"], "POST", body, headers)
    assert (status, b"<Key>in/photo.png</Key>" in document) == (201, True), document
    found = client.get_object(Bucket=BUCKET, Key="in/photo.png")
    assert (found["Body"].read(), found["ContentType"], found["Metadata"], found["ETag"]) == (
        b"picture",
        "image/png",
        {"by": "form"},
        answered["ETag"],
    )
    body, headers = form_of(signed["fields"], b"x" * 101)
    assert b"<Code>EntityTooLarge</Code>" in fetch(signed["url"], "POST", body, headers)[2]
    body, headers = form_of({**signed["fields"], "x-amz-meta-by": "other"}, b"x")
    assert fetch(signed["url"], "POST", body, headers)[0] == 403
    body, headers = form_of({"key": "k"}, b"x")
    assert fetch(f"{s3.url}/{BUCKET}", "POST", body, headers)[0] == 403
    assert [each["Key"] for each in client.list_objects_v2(Bucket=BUCKET)["Contents"]] == ["in/photo.png"]


def test_data_events_are_recorded_where_the_bucket_says_so(client: Any, s3: S3) -> None:
    from sqlalchemy import select

    from portal.kernel.audit import AuditEntry
    from portal.kernel.operations import run
    from portal.storage.buckets import bucket_update
    from portal.storage.object_models import Bucket

    admin = s3.people.context(s3.people.admin())
    client.put_object(Bucket=BUCKET, Key="before", Body=b"")
    bucket_id = admin.db.scalars(select(Bucket.id)).one()
    run(admin, bucket_update, bucket_id, {"data_events": True})
    client.put_object(Bucket=BUCKET, Key="k", Body=b"x")
    client.delete_object(Bucket=BUCKET, Key="k")
    refused(lambda: s3.client(s3.people.user("viewer")).put_object(Bucket=BUCKET, Key="l", Body=b""), "AccessDenied")
    query = select(AuditEntry.action, AuditEntry.resource_name, AuditEntry.status).where(AuditEntry.resource_type == "storage.object")
    admin.db.rollback()
    assert [tuple(row) for row in admin.db.execute(query.order_by(AuditEntry.seq))] == [
        ("storage.object.write", f"{BUCKET}/k", "success"), ("storage.object.delete", f"{BUCKET}/k", "success"), ("storage.object.write", f"{BUCKET}/l", "denied"),
    ]  # fmt: skip


def test_whoever_watches_the_gateway_needs_no_key(s3: S3) -> None:
    assert fetch(f"{s3.url}/-/ready")[::2] == (200, b"ready\n")
    assert fetch(f"{s3.url}/-/steady")[0] == 404
    assert fetch(f"{s3.url}/-/ready", "PUT", b"")[0] == 404


def test_a_form_keeps_no_line_breaks_as_headers(s3: S3) -> None:
    client = s3.client()
    client.create_bucket(Bucket="a-form-bucket")
    for field in ("Cache-Control", "x-amz-meta-a"):
        value = "a\r\nSet-Cookie: x=1"
        signed = client.generate_presigned_post("a-form-bucket", "k", Fields={field: value}, Conditions=[{field: value}])
        assert b"InvalidArgument" in fetch(signed["url"], "POST", *form_of(signed["fields"], b"x"))[2]
    refused(lambda: client.head_object(Bucket="a-form-bucket", Key="k"), "404")
