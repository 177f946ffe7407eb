"""Actions that S3 tells apart are told apart by a bucket's policy and by lists of access, although IAM has one action for several of them."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.s3 import S3, fetch, open_bucket, refused

BUCKET = "told-apart"
WHERE = [f"arn:aws:s3:::{BUCKET}", f"arn:aws:s3:::{BUCKET}/*"]


@pytest.fixture
def owner(s3: S3) -> Any:
    """An object of two versions, with a tag, and an upload that has not ended."""
    made = s3.client()
    open_bucket(made, BUCKET)
    made.put_bucket_versioning(Bucket=BUCKET, VersioningConfiguration={"Status": "Enabled"})
    for body in (b"old secret", b"clean"):
        made.put_object(Bucket=BUCKET, Key="k", Body=body, Tagging="a=b")
    made.create_multipart_upload(Bucket=BUCKET, Key="u")
    return made


def _said(owner: Any, friend: Any, *statements: tuple[str, Any]) -> None:
    whole = [{"Effect": effect, "Principal": {"AWS": [friend.username]}, "Action": actions, "Resource": WHERE} for effect, actions in statements]
    owner.put_bucket_policy(Bucket=BUCKET, Policy=json.dumps({"Version": "2012-10-17", "Statement": whole}))


def _calls(owner: Any, client: Any) -> dict[str, Callable[[], Any]]:
    """By the name of the action that S3 asks for."""
    old = owner.list_object_versions(Bucket=BUCKET, Prefix="k")["Versions"][-1]["VersionId"]
    upload = owner.list_multipart_uploads(Bucket=BUCKET)["Uploads"][0]["UploadId"]
    one, version, sent = {"Bucket": BUCKET, "Key": "k"}, {"Bucket": BUCKET, "Key": "k", "VersionId": old}, {"TagSet": [{"Key": "c", "Value": "d"}]}
    return {
        "s3:ListBucket": lambda: client.list_objects_v2(Bucket=BUCKET),
        "s3:ListBucketVersions": lambda: client.list_object_versions(Bucket=BUCKET),
        "s3:ListBucketMultipartUploads": lambda: client.list_multipart_uploads(Bucket=BUCKET),
        "s3:ListMultipartUploadParts": lambda: client.list_parts(Bucket=BUCKET, Key="u", UploadId=upload),
        "s3:GetObject": lambda: client.get_object(**one),
        "s3:GetObjectVersion": lambda: client.get_object(**version),
        "s3:GetObjectTagging": lambda: client.get_object_tagging(**one),
        "s3:GetObjectVersionTagging": lambda: client.get_object_tagging(**version),
        "s3:PutObject": lambda: client.put_object(Bucket=BUCKET, Key="new", Body=b"x"),
        "s3:PutObjectTagging": lambda: client.put_object_tagging(**one, Tagging=sent),
        "s3:PutObjectVersionTagging": lambda: client.put_object_tagging(**version, Tagging=sent),
        "s3:DeleteObjectTagging": lambda: client.delete_object_tagging(**one),
        "s3:DeleteObjectVersionTagging": lambda: client.delete_object_tagging(**version),
        "s3:GetObjectAcl": lambda: client.get_object_acl(**one),
        "s3:GetObjectVersionAcl": lambda: client.get_object_acl(**version),
        "s3:PutObjectAcl": lambda: client.put_object_acl(**one, ACL="private"),
        "s3:PutObjectVersionAcl": lambda: client.put_object_acl(**version, ACL="private"),
        "s3:AbortMultipartUpload": lambda: client.abort_multipart_upload(Bucket=BUCKET, Key="u", UploadId=upload),
        "s3:DeleteObject": lambda: client.delete_object(**one),
        "s3:DeleteObjectVersion": lambda: client.delete_object(**version),
    }  # fmt: skip


NAMES = ("s3:GetObject", "s3:ListBucket", "s3:PutObject", "s3:DeleteObject", "s3:GetObjectVersion", "s3:PutObjectTagging", "s3:DeleteObjectVersion",
         "s3:AbortMultipartUpload", "s3:GetObjectAcl", "s3:GetObjectVersionTagging")  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_who_is_let_in_for_one_thing_does_no_other(owner: Any, s3: S3, name: str) -> None:
    friend = s3.people.user("viewer", s3.people.project())
    _said(owner, friend, ("Allow", name))
    calls = _calls(owner, s3.client(friend))
    allowed = calls.pop(name)
    for each in calls.values():
        refused(each, "AccessDenied")
    allowed()


@pytest.mark.parametrize("name", ["s3:DeleteObjectVersion", "s3:GetObjectVersion", "s3:PutObjectTagging"])
def test_who_is_kept_out_of_one_thing_does_the_others(owner: Any, s3: S3, name: str) -> None:
    friend = s3.people.user("viewer", s3.people.project())
    _said(owner, friend, ("Allow", "s3:*"), ("Deny", name))
    calls = _calls(owner, s3.client(friend))
    refused(calls.pop(name), "AccessDenied")
    for each in calls.values():
        each()


def test_attributes_and_tags_are_read_by_who_may_read_both(owner: Any, s3: S3) -> None:
    friend = s3.people.user("viewer", s3.people.project())
    theirs = s3.client(friend)
    _said(owner, friend, ("Allow", ["s3:GetObject", "s3:PutObject"]))
    asked = {"Bucket": BUCKET, "Key": "k", "ObjectAttributes": ["ETag"]}
    refused(lambda: theirs.get_object_attributes(**asked), "AccessDenied")
    # A copy would carry tags to where they can be read, and a write set them.
    refused(lambda: theirs.copy_object(Bucket=BUCKET, Key="c", CopySource=f"{BUCKET}/k"), "AccessDenied")
    theirs.copy_object(Bucket=BUCKET, Key="c", CopySource=f"{BUCKET}/k", TaggingDirective="REPLACE")
    refused(lambda: theirs.put_object(Bucket=BUCKET, Key="t", Body=b"", Tagging="a=b"), "AccessDenied")
    _said(owner, friend, ("Allow", ["s3:GetObject", "s3:GetObjectAttributes", "s3:GetObjectTagging", "s3:PutObject", "s3:PutObjectTagging"]))
    theirs.get_object_attributes(**asked)
    theirs.copy_object(Bucket=BUCKET, Key="c", CopySource=f"{BUCKET}/k")
    theirs.put_object(Bucket=BUCKET, Key="t", Body=b"", Tagging="a=b")


def test_lists_of_access_give_no_versions_away(owner: Any, s3: S3) -> None:
    owner.put_bucket_acl(Bucket=BUCKET, ACL="public-read-write")
    made = owner.put_object(Bucket=BUCKET, Key="k", Body=b"public", ACL="public-read", Tagging="a=b")
    url = f"{s3.url}/{BUCKET}/k"
    assert fetch(url)[::2] == (200, b"public")
    assert [fetch(f"{url}?{each}")[0] for each in ("tagging", "attributes")] == [403, 400]
    assert fetch(f"{url}?attributes", headers={"x-amz-object-attributes": "ETag"})[0] == 403
    assert fetch(f"{url}?tagging", "PUT", b"<Tagging><TagSet></TagSet></Tagging>")[0] == 403
    assert fetch(f"{url}?versionId={made['VersionId']}", "DELETE")[0] == 403
    assert fetch(url, "DELETE")[0] == 204
    assert owner.get_object(Bucket=BUCKET, Key="k", VersionId=made["VersionId"])["Body"].read() == b"public"
