"""Policies that ask how what is written is encrypted: those of buckets look at what a request says, as S3 has it; those of IAM at what comes of it."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import select

from portal.kernel.db import transaction
from portal.kernel.operations import run
from portal.kernel.policy_documents import VERSION
from portal.security.encryption_keys import key_create
from portal.storage.object_models import Bucket
from tests.support.people import People
from tests.support.s3 import S3, refused
from tests.support.web import Api

BUCKET = "a-bucket"
INSIDE = f"arn:aws:s3:::{BUCKET}/*"
SSE, KMS_KEY = "s3:x-amz-server-side-encryption", "s3:x-amz-server-side-encryption-aws-kms-key-id"
OURS: dict[str, Any] = {"ServerSideEncryption": "AES256"}


@pytest.fixture
def client(s3: S3) -> Any:
    made = s3.client()
    made.create_bucket(Bucket=BUCKET)
    return made


@pytest.fixture
def key_of(people: People) -> Callable[[str], dict[str, Any]]:
    """What a request says that wants a new key of this name."""

    def make(name: str) -> dict[str, Any]:
        row = run(people.context(people.user("project_admin")), key_create, None, {"name": name}).row
        return {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": row.id}

    return make


def deny(client: Any, *conditions: dict[str, Any], **more: Any) -> None:
    about = {"Effect": "Deny", "Principal": "*", "Action": "s3:PutObject", "Resource": INSIDE, **more}
    whole = {"Version": "2012-10-17", "Statement": [{**about, "Sid": f"S{number}", "Condition": each} for number, each in enumerate(conditions)]}
    client.put_bucket_policy(Bucket=BUCKET, Policy=json.dumps(whole))


def put(client: Any, **more: Any) -> bool:
    """Whether an object may be written so: at once, in parts, as a copy."""
    ways = [
        lambda: client.put_object(Bucket=BUCKET, Key="k", Body=b"x", **more),
        lambda: client.put_object(Bucket=BUCKET, Key="large", Body=b"x" * (2 << 20), **more),
        lambda: client.copy_object(Bucket=BUCKET, Key="copy", CopySource=f"{BUCKET}/source", **more),
        lambda: in_parts(client, **more),
    ]
    codes = set()
    for way in ways:
        try:
            way()
            codes.add("")
        except client.exceptions.ClientError as error:
            codes.add(error.response["Error"]["Code"])
    assert codes in ({""}, {"AccessDenied"}), codes
    return codes == {""}


def in_parts(client: Any, **more: Any) -> None:
    upload = client.create_multipart_upload(Bucket=BUCKET, Key="parts", **more)["UploadId"]
    tag = client.upload_part(Bucket=BUCKET, Key="parts", UploadId=upload, PartNumber=1, Body=b"x")["ETag"]
    client.complete_multipart_upload(Bucket=BUCKET, Key="parts", UploadId=upload, MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": tag}]})


def test_uploads_that_say_nothing_are_denied(client: Any, key_of: Callable[[str], dict[str, Any]], api: Api) -> None:
    client.put_object(Bucket=BUCKET, Key="source", Body=b"x")
    kms = key_of("a-key")
    deny(client, {"StringNotEquals": {SSE: "AES256"}}, {"Null": {SSE: "true"}})
    assert (put(client), put(client, **OURS), put(client, **kms)) == (False, True, False)
    deny(client, {"Null": {SSE: True}})
    assert (put(client), put(client, **OURS), put(client, **kms)) == (False, True, True)
    # It is the request that has to say so, not the bucket; and the API has no word for it.
    client.put_bucket_encryption(
        Bucket=BUCKET, ServerSideEncryptionConfiguration={"Rules": [{"ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": "AES256"}}]}
    )
    assert put(client) is False
    bucket = api.get("/storage/buckets").json["results"][0]["id"]
    assert api("PUT", f"/storage/buckets/{bucket}/objects/k2", data=b"x").status_code == 403
    # What is said of an object that is there, or taken away, is no upload.
    client.put_object_tagging(Bucket=BUCKET, Key="k", Tagging={"TagSet": [{"Key": "a", "Value": "b"}]})
    assert client.get_object(Bucket=BUCKET, Key="k")["Body"].read() == b"x"
    client.delete_object(Bucket=BUCKET, Key="k")


def test_actions_are_known_in_any_case(client: Any) -> None:
    client.put_object(Bucket=BUCKET, Key="source", Body=b"x")
    deny(client, {"Null": {"s3:x-amz-server-side-encryption": "true"}}, Action="S3:putobject")
    assert not put(client)


def test_only_a_certain_key(client: Any, key_of: Callable[[str], dict[str, Any]]) -> None:
    client.put_object(Bucket=BUCKET, Key="source", Body=b"x")
    right, wrong = key_of("right"), key_of("wrong")
    address = f"arn:aws:kms:us-east-1:1:key/{right['SSEKMSKeyId']}"
    for operator in ("StringNotEquals", "StringNotEqualsIfExists", "ArnNotEqualsIfExists"):
        deny(client, {operator: {KMS_KEY: address}})
        assert (put(client, **right), put(client, **wrong)) == (True, False), operator
        # By its name it is the same key.
        assert put(client, ServerSideEncryption="aws:kms", SSEKMSKeyId="right"), operator
        # Of a request that names no key nothing is known: what is "not equal" holds, and what is asked for "if it exists" as well.
        assert put(client, **OURS) is False, operator
    deny(client, {"StringNotLike": {SSE: "aws:*"}, "StringNotEquals": {KMS_KEY: "nothing"}})
    assert (put(client, **right), put(client, **OURS)) == (True, False)


def test_who_is_let_in_may_write_so_and_not_otherwise(client: Any, s3: S3) -> None:
    friend = s3.people.user("viewer", s3.people.project())
    about = {"Effect": "Allow", "Principal": {"AWS": friend.id}, "Action": ["s3:PutObject", "s3:GetObject"]}
    client.put_object(Bucket=BUCKET, Key="source", Body=b"x")
    theirs = s3.client(friend)
    deny(client, {"StringEquals": {SSE: ["AES256", "aws:kms"]}}, **{**about, "Action": "s3:PutObject"})
    refused(lambda: theirs.put_object(Bucket=BUCKET, Key="k", Body=b"x"), "AccessDenied")
    theirs.put_object(Bucket=BUCKET, Key="k", Body=b"x", **OURS)
    in_parts(theirs, **OURS)
    refused(lambda: theirs.put_object_tagging(Bucket=BUCKET, Key="k", Tagging={"TagSet": []}), "AccessDenied")
    deny(client, {"StringEqualsIfExists": {SSE: "AES256"}}, **{**about, "Action": "s3:PutObject", "Principal": {"AWS": friend.id}})
    theirs.put_object(Bucket=BUCKET, Key="k", Body=b"x")


@pytest.mark.parametrize(
    "condition",
    [
        {"Null": {SSE: "maybe"}}, {"Bool": {SSE: "true"}}, {"StringEquals": {"s3:x-amz-acl": "private"}}, {"StringEquals": {}}, {"StringEquals": []},
        {"ArnEquals": {SSE: "AES256"}}, {"Null": {"s3:prefix": "true"}}, {"StringEqualsIfExists": {"s3:prefix": "a"}}, {"NumericEquals": {KMS_KEY: "1"}},
    ],
)  # fmt: skip
def test_what_nobody_would_look_at_is_refused(client: Any, condition: dict[str, Any]) -> None:
    refused(lambda: deny(client, condition), "MalformedPolicy")
    refused(lambda: deny(client, {"Null": {SSE: "true"}}, Action="s3:GetObject"), "MalformedPolicy")


def test_iam_sees_what_comes_of_it(client: Any, s3: S3, api: Api, api_for: Callable[..., Api], key_of: Callable[[str], dict[str, Any]]) -> None:
    client.put_object(Bucket=BUCKET, Key="source", Body=b"x")
    developer = api_for("developer")
    theirs, right, wrong = s3.client(developer.user), key_of("right"), key_of("wrong")

    def denied(condition: dict[str, Any]) -> str:
        statement = {"Sid": "One", "Effect": "Deny", "Action": "storage.object.write", "Resource": "*", "Condition": condition}
        document = {"Version": VERSION, "Statement": [statement]}
        made = api.post("/security/policies", {"name": f"p{len(api.get('/security/policies').json['results'])}", "document": document})
        assert made.status_code == 201, made.json
        api.post(f"/security/policies/{made.json['policy_id']}/attach", {"principal_type": "user", "principal_id": developer.user.id})
        return str(made.json["policy_id"])

    first = denied({"StringEquals": {"request.input/encryption": "none"}})
    assert (put(theirs), put(theirs, **OURS), put(theirs, **right)) == (False, True, True)
    bucket = f"/storage/buckets/{api.get('/storage/buckets').json['results'][0]['id']}"
    assert developer("PUT", f"{bucket}/objects/by-api", data=b"x").status_code == 403
    # The bucket's own word counts.
    assert api("PUT", f"{bucket}/encryption", {"type": "sse-s3"}).status_code == 200
    assert (put(theirs), developer("PUT", f"{bucket}/objects/by-api", data=b"x").status_code) == (True, 200)
    api.post(f"/security/policies/{first}/detach", {"principal_type": "user", "principal_id": developer.user.id})
    denied({"StringNotEquals": {"request.input/kms_key": right["SSEKMSKeyId"]}})
    assert (put(theirs, ServerSideEncryption="aws:kms", SSEKMSKeyId="right"), put(theirs, **wrong), put(theirs, **OURS)) == (True, False, False)


def test_policies_from_before_say_what_they_said(client: Any, s3: S3) -> None:
    """Their conditions were kept without what they are about."""
    client.put_object(Bucket=BUCKET, Key="k", Body=b"x")
    inside = {"Action": "s3:ListBucket", "Resource": f"arn:aws:s3:::{BUCKET}"}
    deny(client, {"StringNotLike": {"s3:prefix": "open/*"}, "IpAddress": {"aws:SourceIp": "127.0.0.0/8"}}, **inside)
    db = s3.people.context(None).db
    with transaction(db):
        row = db.scalars(select(Bucket)).one()
        (statement,) = row.policy["statements"]
        row.policy = {**row.policy, "statements": [{**statement, "conditions": [each[:2] for each in statement["conditions"]]}]}
    refused(lambda: client.list_objects_v2(Bucket=BUCKET), "AccessDenied")
    assert client.list_objects_v2(Bucket=BUCKET, Prefix="open/")["KeyCount"] == 0
