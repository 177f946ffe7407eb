"""Access: ACLs, policies of buckets, and what is wrong with a signature."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from portal.s3 import app
from tests.support.s3 import S3, client, refused
from tests.support.s3_operations import conforms
from tests.support.s3_raw import Raw


@conforms("GetBucketAcl", "PutBucketAcl", "GetObjectAcl", "PutObjectAcl")
@pytest.mark.parametrize("path", ["/conforming", "/conforming/k"])
def test_canned_acls(raw: Raw, opened: str, path: str) -> None:
    bucket, reads = opened, f"/{opened}/k" if path.endswith("/k") else f"/{opened}"
    raw("PUT", f"/{bucket}/k", body=b"x")
    answer = raw("GET", path, "acl")
    assert (answer.root, answer.text("Owner/ID")) == ("AccessControlPolicy", raw.owner.id)
    assert (answer.text("AccessControlList/Grant/Grantee/ID"), answer.text("AccessControlList/Grant/Permission")) == (raw.owner.id, "FULL_CONTROL")
    assert raw.nobody("GET", reads).code == "AccessDenied"
    assert raw("PUT", path, "acl", headers={"x-amz-acl": "public-read"}).status == 200
    told = raw("GET", path, "acl")
    assert told.texts("AccessControlList/Grant/Permission") == ["FULL_CONTROL", "READ"]
    assert told.texts("AccessControlList/Grant/Grantee/URI") == ["http://acs.amazonaws.com/groups/global/AllUsers"]
    # The list of a bucket lets others list it, that of an object read it.
    assert raw.nobody("GET", reads).status == 200
    assert raw("PUT", path, "acl", headers={"x-amz-acl": "for-all"}).code == "InvalidArgument"
    assert raw("PUT", path, "acl", b"<Other/>").code in {"MalformedXML", "MalformedACLError"}
    assert raw("PUT", path, "acl", headers={"x-amz-acl": "private"}).status == 200
    assert raw.nobody("GET", reads).status == 403


@conforms("GetBucketPolicy", "PutBucketPolicy", "DeleteBucketPolicy", "GetBucketPolicyStatus")
def test_policies(boto: Any, raw: Raw, opened: str) -> None:
    bucket = opened
    raw("PUT", f"/{bucket}/k", body=b"x")
    statement = {"Sid": "all", "Effect": "Allow", "Principal": "*", "Action": "s3:GetObject", "Resource": f"arn:aws:s3:::{bucket}/*"}
    document = {"Version": "2012-10-17", "Statement": [statement]}
    assert raw("PUT", f"/{bucket}", "policy", json.dumps(document).encode()).status in {200, 204}
    answer = raw("GET", f"/{bucket}", "policy")
    assert (json.loads(answer.body), answer.headers["Content-Type"]) == (document, "application/json")
    assert raw.nobody("GET", f"/{bucket}/k").body == b"x"
    assert boto.get_bucket_policy_status(Bucket=bucket)["PolicyStatus"] == {"IsPublic": True}
    for wrong in (b"{", b"[]", json.dumps({**document, "Statement": [{**statement, "Effect": "Maybe"}]}).encode(),
                  json.dumps({**document, "Statement": [{**statement, "Resource": "arn:aws:s3:::another/*"}]}).encode()):  # fmt: skip
        assert raw("PUT", f"/{bucket}", "policy", wrong).code == "MalformedPolicy", wrong
    assert raw("DELETE", f"/{bucket}", "policy").status == 204
    refused(lambda: boto.get_bucket_policy(Bucket=bucket), "NoSuchBucketPolicy")
    assert raw.nobody("GET", f"/{bucket}/k").status == 403


def test_what_is_wrong_with_a_signature(raw: Raw, bucket: str, s3: S3) -> None:
    key_id, secret = s3.key(raw.owner)
    refused(lambda: client(s3.url, "AP" + "A" * 18, secret).list_buckets(), "InvalidAccessKeyId")
    refused(lambda: client(s3.url, key_id, "another secret").list_buckets(), "SignatureDoesNotMatch")
    for headers, code in (
        ({"Authorization": "Basic eDp5"}, "InvalidArgument"), ({"Authorization": "AWS4-HMAC-SHA256 Credential=x"}, "AuthorizationHeaderMalformed"),
        ({"Authorization": "AWS nothing"}, None), ({"x-amz-security-token": "x"}, "InvalidToken"),
    ):  # fmt: skip
        answer = raw.nobody("GET", f"/{bucket}", headers=headers)
        assert answer.status in {400, 403}
        assert code in {None, answer.code}, headers


def test_clocks_and_expiry(raw: Raw, bucket: str, boto: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    address = boto.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": "k"}, ExpiresIn=60).partition(bucket)[2]
    path, _, query = address.partition("?")
    assert raw.nobody("GET", f"/{bucket}{path}", query).code == "NoSuchKey"
    assert raw.nobody("PUT", f"/{bucket}{path}", query, b"x").code == "SignatureDoesNotMatch"
    for later, presigned, signed in (
        (timedelta(hours=1), "AccessDenied", "RequestTimeTooSkewed"),
        (-timedelta(hours=1), "AccessDenied", "RequestTimeTooSkewed"),
    ):
        monkeypatch.setattr(app, "now", lambda later=later: datetime.now(UTC) + later)
        assert raw.nobody("GET", f"/{bucket}{path}", query).code == presigned
        assert raw("GET", f"/{bucket}").code == signed
