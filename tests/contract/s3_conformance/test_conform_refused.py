"""Operations that the gateway does not have: refused with NotImplemented, and nothing is changed by them. Above all not what lies at the same address."""

from typing import Any

import boto3
import pytest

from tests.support.s3_operations import REFUSED
from tests.support.s3_raw import Raw

MODEL = boto3.client("s3", region_name="us-east-1", aws_access_key_id="x", aws_secret_access_key="x").meta.service_model
ABSENT = sorted(name for names in REFUSED.values() for name in names)
# As they are before any client calls one of them, which takes the bucket out of the address of all clients.
HTTP = {name: dict(MODEL.operation_model(name).http) for name in ABSENT}


@pytest.mark.parametrize("name", ABSENT)
def test_what_there_is_not_is_refused(raw: Raw, bucket: str, boto: Any, name: str) -> None:
    boto.put_object(Bucket=bucket, Key="k", Body=b"as it was", Tagging="a=1")
    http = HTTP[name]
    path, _, query = http["requestUri"].replace("{Bucket}", bucket).replace("{Key+}", "k").partition("?")
    answer = raw(http["method"], path, query, b"<Anything/>" if http["method"] in {"PUT", "POST"} else b"")
    assert (answer.status, answer.code) == (501, "NotImplemented")
    found = boto.get_object(Bucket=bucket, Key="k")
    assert (found["Body"].read(), found["TagCount"]) == (b"as it was", 1)


@pytest.mark.parametrize("query", ["tomorrow", "tomorrow=", "tomorrow&versionId=null"])
@pytest.mark.parametrize("asked", ["PUT /k", "DELETE /k", "POST /k", "PUT ", "DELETE ", "POST "])
def test_operations_that_nobody_knows_yet_are_not_taken_for_others(raw: Raw, bucket: str, boto: Any, asked: str, query: str) -> None:
    """A parameter without a value names an operation, in S3 as it is and as it will be."""
    method, _, path = asked.partition(" ")
    if path:
        boto.put_object(Bucket=bucket, Key="k", Body=b"as it was")
    answer = raw(method, f"/{bucket}{path}", query, b"x" if method != "DELETE" else b"")
    assert (answer.status, answer.code) == (501, "NotImplemented")
    assert boto.list_objects_v2(Bucket=bucket)["KeyCount"] == bool(path)


def test_parameters_with_values_may_be_anything(raw: Raw, bucket: str) -> None:
    assert raw("PUT", f"/{bucket}/k", "x-id=PutObject", b"x").status == 200
    assert raw("GET", f"/{bucket}/k", "versionId=&x-id=GetObject").status == 200
    assert raw("DELETE", f"/{bucket}/k", "versionId=").status == 204


def test_methods_that_fit_nothing(raw: Raw, bucket: str) -> None:
    for method, path, query in (("PUT", "/", ""), ("DELETE", "/", ""), ("PATCH", f"/{bucket}", ""), ("POST", f"/{bucket}/k", ""), ("PUT", f"/{bucket}", "versions"),
                                ("POST", f"/{bucket}", "acl"), ("DELETE", f"/{bucket}", "versioning")):  # fmt: skip
        answer = raw(method, path, query)
        assert (answer.status, answer.code) == (405, "MethodNotAllowed"), (method, path, query)
