"""Many who write at once: each write is whole, conditions hold, and what is counted is what is there."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from botocore.exceptions import ClientError
from sqlalchemy import func, select

from portal.storage.object_models import BucketUsage, ObjectVersion
from tests.support.people import People
from tests.support.s3 import S3

BUCKET = "a-bucket"
AT_ONCE = 8


@pytest.fixture
def client(s3: S3) -> Any:
    made = s3.client(max_pool_connections=AT_ONCE)
    made.create_bucket(Bucket=BUCKET)
    return made


def together(work: Callable[[int], Any], count: int = 3 * AT_ONCE) -> list[Any]:
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(work, range(count)))


def counted(people: People) -> tuple[int, int, int]:
    ctx = people.context(None)
    row = ctx.db.scalars(select(BucketUsage)).one()
    there = ctx.db.execute(
        select(func.coalesce(func.sum(ObjectVersion.size_bytes), 0), func.count(), func.count().filter(ObjectVersion.is_current))
    ).one()
    assert (row.size_bytes, row.versions, row.objects) == tuple(map(int, there))
    return row.size_bytes, row.versions, row.objects


def test_of_those_who_write_first_one_is(client: Any, people: People) -> None:
    def first(number: int) -> str:
        try:
            client.put_object(Bucket=BUCKET, Key="k", Body=f"{number}".encode(), IfNoneMatch="*")
        except ClientError as error:
            return str(error.response["Error"]["Code"])
        return f"{number}"

    answers = together(first)
    winners = [each for each in answers if each != "PreconditionFailed"]
    assert len(winners) == 1
    assert client.get_object(Bucket=BUCKET, Key="k")["Body"].read() == winners[0].encode()
    assert counted(people)[1:] == (1, 1)


def test_a_refusal_among_others_takes_nobody_along(client: Any, people: People) -> None:
    """They are written together; what one of them is refused for is not what another did."""

    def write(number: int) -> str:
        try:
            client.put_object(Bucket=BUCKET, Key=f"{number}", Body=b"x" * number, **({"IfMatch": '"none"'} if number % 3 == 0 else {}))
        except ClientError as error:
            return str(error.response["Error"]["Code"])
        return ""

    answers = together(write, 48)
    assert answers == ["" if number % 3 else "NoSuchKey" for number in range(48)]
    assert [each["Key"] for each in client.list_objects_v2(Bucket=BUCKET)["Contents"]] == sorted(str(number) for number in range(48) if number % 3)
    counted(people)


def test_versions_of_one_key_have_an_order(client: Any, people: People) -> None:
    client.put_bucket_versioning(Bucket=BUCKET, VersioningConfiguration={"Status": "Enabled"})
    ids = together(lambda number: client.put_object(Bucket=BUCKET, Key="k", Body=f"{number}".encode())["VersionId"])
    listed = [each["VersionId"] for each in client.list_object_versions(Bucket=BUCKET)["Versions"]]
    assert sorted(listed) == sorted(ids)
    assert client.head_object(Bucket=BUCKET, Key="k")["VersionId"] == listed[0]
    together(lambda number: client.delete_object(Bucket=BUCKET, Key="k", VersionId=ids[number]), len(ids) - 1)
    assert client.head_object(Bucket=BUCKET, Key="k")["VersionId"] == ids[-1]
    assert counted(people)[1:] == (1, 1)


def test_writing_over_and_deleting_at_once(client: Any, people: People) -> None:
    def either(number: int) -> None:
        if number % 2:
            client.put_object(Bucket=BUCKET, Key=f"k{number % 3}", Body=b"x" * 100)
        else:
            client.delete_object(Bucket=BUCKET, Key=f"k{number % 3}")

    together(either, 60)
    counted(people)


def test_of_those_who_complete_an_upload_all_hear_the_same(client: Any, people: People) -> None:
    upload = {"Bucket": BUCKET, "Key": "k", "UploadId": client.create_multipart_upload(Bucket=BUCKET, Key="k")["UploadId"]}
    etag = client.upload_part(**upload, PartNumber=1, Body=b"x" * 10)["ETag"]
    parts = {"Parts": [{"PartNumber": 1, "ETag": etag}]}
    answers = together(lambda _number: client.complete_multipart_upload(**upload, MultipartUpload=parts)["ETag"], AT_ONCE)
    assert len(set(answers)) == 1
    assert counted(people) == (10, 1, 1)
