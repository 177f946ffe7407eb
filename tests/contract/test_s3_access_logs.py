"""Access logs and figures: what requests came to a bucket is written down once, whoever dies in between."""

import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete

from portal.kernel.db import transaction
from portal.storage import metrics
from portal.storage.facts import bucket_named
from portal.storage.metrics import TrafficDone, traffic_take_up
from portal.storage.traffic import MOST_BYTES, Record, TrafficFiles, records_in
from tests.support.people import People
from tests.support.s3 import S3, fetch, noted, refused
from tests.support.s3_operations import conforms
from tests.support.web import Api

SOURCE, LOGS = "a-bucket", "the-logs"
FIELDS = re.compile(r'"[^"]*"|\[[^]]*\]|\S+')


@pytest.fixture
def client(s3: S3) -> Any:
    made = s3.client()
    for name in (SOURCE, LOGS):
        made.create_bucket(Bucket=name)
    return made


def enable(client: Any, prefix: str = "log/") -> None:
    client.put_bucket_logging(Bucket=SOURCE, BucketLoggingStatus={"LoggingEnabled": {"TargetBucket": LOGS, "TargetPrefix": prefix}})


def take_up(people: People, s3: S3) -> int:
    assert s3.traffic is not None
    s3.traffic.close()
    return traffic_take_up(people.context(None), s3.blobs, s3.traffic, at=time.time() + 120)


def lines(client: Any, prefix: str = "log/") -> list[list[str]]:
    keys = [each["Key"] for each in client.list_objects_v2(Bucket=LOGS, Prefix=prefix).get("Contents", [])]
    bodies = [client.get_object(Bucket=LOGS, Key=key)["Body"].read().decode() for key in keys]
    return [FIELDS.findall(line) for body in bodies for line in body.splitlines()]


@conforms("GetBucketLogging", "PutBucketLogging")
def test_configuration(client: Any, s3: S3, people: People) -> None:
    assert "LoggingEnabled" not in client.get_bucket_logging(Bucket=SOURCE)
    enable(client)
    assert client.get_bucket_logging(Bucket=SOURCE)["LoggingEnabled"] == {"TargetBucket": LOGS, "TargetPrefix": "log/"}
    client.put_bucket_logging(Bucket=SOURCE, BucketLoggingStatus={})
    assert "LoggingEnabled" not in client.get_bucket_logging(Bucket=SOURCE)
    for target in ("nobodys-bucket", _of_another_project(s3, people)):
        wrong = {"LoggingEnabled": {"TargetBucket": target, "TargetPrefix": ""}}
        refused(lambda wrong=wrong: client.put_bucket_logging(Bucket=SOURCE, BucketLoggingStatus=wrong), "InvalidTargetBucketForLogging")
    refused(lambda: enable(s3.client(people.user("developer"))), "AccessDenied")


def _of_another_project(s3: S3, people: People) -> str:
    project = people.project()
    s3.client(people.user("project_admin", project)).create_bucket(Bucket="theirs")
    return "theirs"


def test_requests_are_lines_of_the_log(client: Any, s3: S3, people: People) -> None:

    def share() -> None:
        address = client.generate_presigned_url("get_object", Params={"Bucket": SOURCE, "Key": "a b"})
        s3.trust(1)
        fetch(address, headers={"User-Agent": 'evil" 200 x', "Referer": "http://r/", "X-Forwarded-For": "192.0.2.7"})
        s3.trust(0)

    def read() -> None:
        assert client.get_object(Bucket=SOURCE, Key="a b", Range="bytes=1-2")["Body"].read() == b"23"

    steps: list[Callable[[], object]] = [
        lambda: client.put_object(Bucket=SOURCE, Key="before", Body=b""),
        lambda: enable(client),
        lambda: client.put_object(Bucket=SOURCE, Key="a b", Body=b"12345"),
        read,
        lambda: refused(lambda: client.get_object(Bucket=SOURCE, Key="none"), "NoSuchKey"),
        share,
        lambda: fetch(f"{s3.url}/{SOURCE}/a%20b"),
    ]
    # One after the other: a line is written when its answer has gone out.
    for number, step in enumerate(steps, 3):
        step()
        noted(s3, number)
    assert take_up(people, s3) >= 1
    found = [line for line in lines(client) if line[6] != "REST.PUT.LOGGING"]
    assert [line[6:8] for line in found] == [
        ["REST.PUT.OBJECT", "a%20b"], ["REST.GET.OBJECT", "a%20b"], ["REST.GET.OBJECT", "none"], ["REST.GET.OBJECT", "a%20b"], ["REST.GET.OBJECT", "a%20b"],
    ]  # fmt: skip
    put, part, missing, shared, nobody = found
    assert all(len(line) == 26 for line in found)
    assert (put[1], put[3], put[9:11], put[12], put[19], put[21]) == (SOURCE, "127.0.0.1", ["200", "-"], "5", "SigV4", "AuthHeader")
    assert (part[9:13], missing[9:11]) == (["206", "-", "2", "5"], ["404", "NoSuchKey"])
    assert (shared[16], shared[15], shared[21]) == ('"evil%22 200 x"', '"http://r/"', "QueryString")
    assert "Signature=-" in shared[8], shared[8]
    assert (nobody[4], nobody[9:11], put[4] != "-", shared[3]) == ("-", ["403", "AccessDenied"], True, "192.0.2.7")
    # Nothing of this is written down twice, and the log's own writing is no request.
    assert take_up(people, s3) <= 1
    assert len([line for line in lines(client) if line[6] != "REST.PUT.LOGGING"]) == len(found)


def test_who_dies_on_the_way_writes_nothing_twice(client: Any, s3: S3, people: People, monkeypatch: pytest.MonkeyPatch) -> None:
    enable(client)
    client.put_object(Bucket=SOURCE, Key="k", Body=b"1234")
    noted(s3, 4)

    def die(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(metrics, "_count", die)
        with pytest.raises(KeyboardInterrupt):
            take_up(people, s3)
    with monkeypatch.context() as broken:
        broken.setattr(Path, "unlink", die)
        with pytest.raises(KeyboardInterrupt):
            take_up(people, s3)
    take_up(people, s3)
    ctx = people.context(None)
    assert [line[7] for line in lines(client)].count("k") == 1
    hours = metrics.hours_of(ctx, bucket_id(people, SOURCE), 2)
    assert sum(row.bytes_in for row in hours) >= 4
    assert sum(row.requests for row in hours) == 3
    with transaction(ctx.db):
        ctx.db.execute(delete(TrafficDone))


def bucket_id(people: People, name: str) -> str:
    return bucket_named(people.context(None).db, name).id


def test_a_log_whose_bucket_is_gone_stops_nothing(client: Any, s3: S3, people: People) -> None:
    enable(client)
    client.delete_bucket(Bucket=LOGS)
    client.put_object(Bucket=SOURCE, Key="k", Body=b"1")
    noted(s3, 5)
    assert take_up(people, s3) >= 1
    # A new bucket of the old name is another one.
    client.create_bucket(Bucket=LOGS)
    client.put_object(Bucket=SOURCE, Key="k", Body=b"1")
    noted(s3, 2)
    take_up(people, s3)
    assert lines(client) == []


def test_a_new_bucket_has_nothing_of_one_that_had_its_name(client: Any, s3: S3, people: People) -> None:
    client.put_object(Bucket=SOURCE, Key="k", Body=b"1234")
    client.delete_object(Bucket=SOURCE, Key="k")
    client.delete_bucket(Bucket=SOURCE)
    client.create_bucket(Bucket=SOURCE)
    noted(s3, 6)
    take_up(people, s3)
    rows = metrics.hours_of(people.context(None), bucket_id(people, SOURCE), 2)
    assert sum(row.bytes_in for row in rows) == 0


def test_files_are_bounded_and_a_broken_line_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files, record = TrafficFiles(tmp_path), Record("b", time.time(), 1, 2, "line")
    files.add(record)
    (found,) = tmp_path.iterdir()
    with found.open("ab") as out:
        out.write(b'{"bucket": "b", "at')
    assert list(records_in(found)) == [record]
    files.close()
    os.truncate(found, MOST_BYTES + 1)
    other = TrafficFiles(tmp_path)
    other.add(record)
    assert [path for path in tmp_path.iterdir() if path != found] == []
    monkeypatch.setattr(os, "write", lambda *_: (_ for _ in ()).throw(OSError("no room")))
    TrafficFiles(tmp_path / "elsewhere").add(record)


def test_the_same_through_the_api(client: Any, s3: S3, people: People, api: Api) -> None:
    base = f"/storage/buckets/{bucket_id(people, SOURCE)}"
    made = api("PUT", f"{base}/logging", {"enabled": True, "log_target_bucket": LOGS, "log_prefix": "p/"})
    assert (made.status_code, made.json) == (200, {"logging_enabled": True, "log_target_bucket": LOGS, "log_prefix": "p/"})
    assert api.get(base).json["log_target_bucket"] == LOGS
    assert api("PUT", f"{base}/logging", {"enabled": True}).status_code == 400
    client.put_object(Bucket=SOURCE, Key="k", Body=b"1234")
    noted(s3, 3)
    take_up(people, s3)
    metrics.metrics_sample(people.context(None))
    for metric, least in (("size", 4), ("object-count", 1), ("bandwidth", 4)):
        points = api.get(f"{base}/metrics?metric={metric}&hours=2").json["points"]
        assert sum(each["value"] for each in points) >= least, metric
    assert api.get(f"{base}/metrics?metric=weather").status_code == 400
    assert api("PUT", f"{base}/logging", {"enabled": False}).json["logging_enabled"] is False


def test_the_log_is_encrypted_where_its_bucket_encrypts(client: Any, s3: S3, people: People) -> None:
    rule = {"Rules": [{"ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": "AES256"}}]}
    client.put_bucket_encryption(Bucket=LOGS, ServerSideEncryptionConfiguration=rule)
    enable(client)
    client.put_object(Bucket=SOURCE, Key="k", Body=b"x")
    noted(s3, 4)
    take_up(people, s3)
    (key,) = [each["Key"] for each in client.list_objects_v2(Bucket=LOGS)["Contents"]]
    assert client.head_object(Bucket=LOGS, Key=key)["ServerSideEncryption"] == "AES256"
    assert "REST.PUT.OBJECT" in [line[6] for line in lines(client)]
