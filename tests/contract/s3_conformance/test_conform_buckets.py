"""Operations on buckets: what is answered, and what is refused with which code."""

import re
from typing import Any

import pytest

from tests.support.s3 import S3, refused
from tests.support.s3_operations import conforms
from tests.support.s3_raw import Raw

MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
VERSIONING = '<VersioningConfiguration xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Status>{}</Status></VersioningConfiguration>'


@conforms("ListBuckets")
def test_list_buckets(raw: Raw, bucket: str) -> None:
    raw("PUT", "/another.one")
    answer = raw("GET", "/")
    assert (answer.status, answer.root, answer.headers["Content-Type"]) == (200, "ListAllMyBucketsResult", "application/xml")
    assert answer.texts("Buckets/Bucket/Name") == sorted(["another.one", bucket])
    assert all(MOMENT.fullmatch(each) for each in answer.texts("Buckets/Bucket/CreationDate"))
    assert (answer.text("Owner/ID"), answer.text("Owner/DisplayName")) == (raw.owner.id, raw.owner.username)
    assert raw.nobody("GET", "/").code == "AccessDenied"


@conforms("CreateBucket")
def test_create_bucket(raw: Raw, bucket: str, s3: S3) -> None:
    made = raw(
        "PUT", "/in-a-place", body=b"<CreateBucketConfiguration><LocationConstraint>eu-west-1</LocationConstraint></CreateBucketConfiguration>"
    )
    assert (made.status, made.headers["Location"], made.body) == (200, "/in-a-place", b"")
    again = raw("PUT", f"/{bucket}")
    assert (again.status, again.code) == (409, "BucketAlreadyOwnedByYou")
    other = s3.client(s3.people.user("project_admin", s3.people.project()))
    refused(lambda: other.create_bucket(Bucket=bucket), "BucketAlreadyExists")
    for name in ("ab", "UPPER", "a..b", "-ab", "ab-", "192.168.1.1", "a_b", "x" * 64, "xn--abc", "abc-s3alias"):
        assert (raw("PUT", f"/{name}").status, raw("PUT", f"/{name}").code) == (400, "InvalidBucketName"), name
    assert raw("PUT", "/malformed", body=b"<Create").code == "MalformedXML"
    assert raw("PUT", "/with-acl", headers={"x-amz-acl": "everybody"}).code == "InvalidArgument"
    assert raw.nobody("PUT", "/nobodys").status == 403


@conforms("HeadBucket")
def test_head_bucket(raw: Raw, bucket: str) -> None:
    answer = raw("HEAD", f"/{bucket}")
    assert (answer.status, answer.headers["x-amz-bucket-region"], answer.body) == (200, "us-east-1", b"")
    assert (raw("HEAD", "/no-such").status, raw.nobody("HEAD", f"/{bucket}").status) == (404, 403)


@conforms("DeleteBucket")
def test_delete_bucket(raw: Raw, bucket: str) -> None:
    raw("PUT", f"/{bucket}/k", body=b"x")
    assert (raw("DELETE", f"/{bucket}").status, raw("DELETE", f"/{bucket}").code) == (409, "BucketNotEmpty")
    raw("DELETE", f"/{bucket}/k")
    assert (raw("DELETE", f"/{bucket}").status, raw("DELETE", f"/{bucket}").code) == (204, "NoSuchBucket")


@conforms("DeleteBucket")
def test_a_bucket_of_which_only_marks_are_left_is_not_empty(raw: Raw, bucket: str) -> None:
    raw("PUT", f"/{bucket}", "versioning", VERSIONING.format("Enabled").encode())
    raw("DELETE", f"/{bucket}/k")
    assert raw("DELETE", f"/{bucket}").code == "BucketNotEmpty"


@conforms("GetBucketLocation")
def test_location(raw: Raw, bucket: str) -> None:
    answer = raw("GET", f"/{bucket}", "location")
    # Nothing is the name of the usual region.
    assert (answer.status, answer.root, answer.xml.text) == (200, "LocationConstraint", None)
    assert raw("GET", "/no-such", "location").code == "NoSuchBucket"


@conforms("GetBucketVersioning", "PutBucketVersioning")
def test_versioning(raw: Raw, bucket: str) -> None:
    answer = raw("GET", f"/{bucket}", "versioning")
    assert (answer.root, list(answer.xml)) == ("VersioningConfiguration", [])
    for status in ("Enabled", "Suspended", "Enabled"):
        assert raw("PUT", f"/{bucket}", "versioning", VERSIONING.format(status).encode()).status == 200
        assert raw("GET", f"/{bucket}", "versioning").text("Status") == status
    assert raw("PUT", f"/{bucket}", "versioning", VERSIONING.format("Off").encode()).code == "IllegalVersioningConfigurationException"
    assert raw("PUT", f"/{bucket}", "versioning", b"<Other/>").code == "MalformedXML"


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("policy", "NoSuchBucketPolicy"), ("policyStatus", "NoSuchBucketPolicy"), ("cors", "NoSuchCORSConfiguration"),
        ("tagging", "NoSuchTagSet"), ("lifecycle", "NoSuchLifecycleConfiguration"),
    ],
)  # fmt: skip
@conforms("GetBucketPolicy", "GetBucketPolicyStatus", "GetBucketCors", "GetBucketTagging", "GetBucketLifecycleConfiguration", "GetBucketLifecycle")
def test_what_a_bucket_does_not_have(raw: Raw, bucket: str, query: str, code: str) -> None:
    assert (raw("GET", f"/{bucket}", query).status, raw("GET", f"/{bucket}", query).code) == (404, code)
    assert raw("GET", "/no-such", query).code == "NoSuchBucket"
    if query != "policyStatus":
        # To take away what is not there is no error.
        assert raw("DELETE", f"/{bucket}", query).status == 204


@conforms("GetBucketTagging", "PutBucketTagging", "DeleteBucketTagging")
def test_tags_of_buckets(boto: Any, bucket: str) -> None:
    some = [{"Key": "a", "Value": "1"}, {"Key": "b c", "Value": ""}]
    boto.put_bucket_tagging(Bucket=bucket, Tagging={"TagSet": some})
    assert boto.get_bucket_tagging(Bucket=bucket)["TagSet"] == some
    for wrong in ([{"Key": "a", "Value": "1"}] * 2, [{"Key": "aws:x", "Value": ""}], [{"Key": "k" * 129, "Value": ""}]):
        refused(lambda wrong=wrong: boto.put_bucket_tagging(Bucket=bucket, Tagging={"TagSet": wrong}), "InvalidTag")
    boto.delete_bucket_tagging(Bucket=bucket)
    refused(lambda: boto.get_bucket_tagging(Bucket=bucket), "NoSuchTagSet")


@conforms("GetBucketCors", "PutBucketCors", "DeleteBucketCors")
def test_rules_for_other_origins(boto: Any, raw: Raw, bucket: str) -> None:
    rule = {"ID": "one", "AllowedOrigins": ["https://a.example"], "AllowedMethods": ["GET"], "AllowedHeaders": ["*"], "MaxAgeSeconds": 5}
    boto.put_bucket_cors(Bucket=bucket, CORSConfiguration={"CORSRules": [rule]})
    assert boto.get_bucket_cors(Bucket=bucket)["CORSRules"] == [rule]
    asking = {"Origin": "https://a.example", "Access-Control-Request-Method": "GET"}
    assert raw.nobody("OPTIONS", f"/{bucket}/k", headers=asking).headers["Access-Control-Allow-Origin"] == "https://a.example"
    assert raw.nobody("OPTIONS", f"/{bucket}/k", headers={**asking, "Origin": "https://b.example"}).code == "AccessForbidden"
    assert raw.nobody("OPTIONS", f"/{bucket}/k").code == "InvalidRequest"
    assert raw("PUT", f"/{bucket}", "cors", b"<CORSConfiguration/>").code == "MalformedXML"
    boto.delete_bucket_cors(Bucket=bucket)
    refused(lambda: boto.get_bucket_cors(Bucket=bucket), "NoSuchCORSConfiguration")


@conforms("PutBucketLifecycleConfiguration", "GetBucketLifecycleConfiguration", "DeleteBucketLifecycle", "PutBucketLifecycle", "GetBucketLifecycle")
def test_rules_of_lifecycle(boto: Any, raw: Raw, bucket: str) -> None:
    rule = {"ID": "old", "Status": "Enabled", "Filter": {"Prefix": "logs/"}, "Expiration": {"Days": 3}}
    boto.put_bucket_lifecycle_configuration(Bucket=bucket, LifecycleConfiguration={"Rules": [rule]})
    assert boto.get_bucket_lifecycle_configuration(Bucket=bucket)["Rules"] == [rule]
    older = b"<LifecycleConfiguration><Rule><ID>x</ID><Prefix>tmp/</Prefix><Status>Disabled</Status><Expiration><Days>1</Days></Expiration></Rule></LifecycleConfiguration>"
    assert raw("PUT", f"/{bucket}", "lifecycle", older).status == 200
    assert raw("GET", f"/{bucket}", "lifecycle").text("Rule/Status") == "Disabled"
    for wrong in (b"<LifecycleConfiguration/>", older.replace(b"<Days>1</Days>", b"<Days>0</Days>"), older.replace(b"Disabled", b"Maybe")):
        assert raw("PUT", f"/{bucket}", "lifecycle", wrong).status == 400
    boto.delete_bucket_lifecycle(Bucket=bucket)
    refused(lambda: boto.get_bucket_lifecycle_configuration(Bucket=bucket), "NoSuchLifecycleConfiguration")
