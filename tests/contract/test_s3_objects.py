"""Objects through the gateway, as boto3 asks for them."""

from collections.abc import Iterator

import pytest
from botocore.exceptions import ClientError

from tests.support.people import People
from tests.support.s3 import S3, gateway


@pytest.fixture
def s3(people: People) -> Iterator[S3]:
    with gateway(people) as running:
        yield running


def refused(call: object, code: str) -> ClientError:
    with pytest.raises(ClientError) as caught:
        call()
    assert caught.value.response["Error"]["Code"] == code, caught.value.response
    return caught.value


def test_an_object_is_written_read_and_deleted(s3: S3) -> None:
    client = s3.client()
    client.create_bucket(Bucket="first-bucket")
    body = bytes(range(256)) * 4096
    made = client.put_object(Bucket="first-bucket", Key="a/b c/ü+~.txt", Body=body, ContentType="text/plain", Metadata={"color": "blue"})
    found = client.get_object(Bucket="first-bucket", Key="a/b c/ü+~.txt")
    assert (found["Body"].read(), found["ETag"], found["ContentType"], found["Metadata"]) == (body, made["ETag"], "text/plain", {"color": "blue"})
    head = client.head_object(Bucket="first-bucket", Key="a/b c/ü+~.txt")
    assert (head["ContentLength"], head["ETag"]) == (len(body), made["ETag"])
    part = client.get_object(Bucket="first-bucket", Key="a/b c/ü+~.txt", Range="bytes=300000-300009")
    assert (part["Body"].read(), part["ContentRange"]) == (body[300000:300010], f"bytes 300000-300009/{len(body)}")
    refused(lambda: client.get_object(Bucket="first-bucket", Key="a/b c/ü+~.txt", Range="bytes=99999999-"), "InvalidRange")
    client.delete_object(Bucket="first-bucket", Key="a/b c/ü+~.txt")
    refused(lambda: client.get_object(Bucket="first-bucket", Key="a/b c/ü+~.txt"), "NoSuchKey")
    client.delete_bucket(Bucket="first-bucket")
    refused(lambda: client.list_objects_v2(Bucket="first-bucket"), "NoSuchBucket")
