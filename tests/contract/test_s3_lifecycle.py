"""Rules for the life of objects: what they delete, and what not."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select, update

from portal.kernel.context import Context
from portal.kernel.db import now, transaction
from portal.kernel.errors import Unavailable
from portal.storage import lifecycle
from portal.storage.lifecycle import Followed, _Follow, lifecycle_follow
from portal.storage.object_models import Bucket, ObjectUpload, ObjectVersion
from tests.support.people import People
from tests.support.s3 import S3, refused
from tests.support.web import Api

BUCKET = "a-bucket"


@pytest.fixture
def client(s3: S3) -> Any:
    made = s3.client()
    made.create_bucket(Bucket=BUCKET)
    return made


@pytest.fixture
def system(people: People) -> Context:
    return people.context(None)


def rules(client: Any, *given: dict[str, Any]) -> None:
    whole = [{"ID": f"r{number}", "Status": "Enabled", "Filter": {"Prefix": ""}, **each} for number, each in enumerate(given)]
    client.put_bucket_lifecycle_configuration(Bucket=BUCKET, LifecycleConfiguration={"Rules": whole})


def age(system: Context, days: float, *where: Any) -> None:
    with transaction(system.db):
        system.db.execute(update(ObjectVersion).where(*where).values(modified_at=now() - timedelta(days=days)))


def keys(client: Any) -> list[str]:
    return [each["Key"] for each in client.list_objects_v2(Bucket=BUCKET).get("Contents", [])]


def test_rules_are_kept_as_they_were_given(client: Any) -> None:
    refused(lambda: client.get_bucket_lifecycle_configuration(Bucket=BUCKET), "NoSuchLifecycleConfiguration")
    whole = [
        {"ID": "logs", "Status": "Enabled", "Filter": {"And": {"Prefix": "logs/", "Tags": [{"Key": "a", "Value": "b"}], "ObjectSizeGreaterThan": 10}},
         "Expiration": {"Days": 30}, "NoncurrentVersionExpiration": {"NoncurrentDays": 7, "NewerNoncurrentVersions": 2}},
        {"ID": "uploads", "Status": "Disabled", "Filter": {"Prefix": ""}, "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 1}},
        {"ID": "marks", "Status": "Enabled", "Filter": {"Prefix": "x"}, "Expiration": {"ExpiredObjectDeleteMarker": True}},
    ]  # fmt: skip
    client.put_bucket_lifecycle_configuration(Bucket=BUCKET, LifecycleConfiguration={"Rules": whole})
    assert client.get_bucket_lifecycle_configuration(Bucket=BUCKET)["Rules"] == whole
    client.delete_bucket_lifecycle(Bucket=BUCKET)
    refused(lambda: client.get_bucket_lifecycle_configuration(Bucket=BUCKET), "NoSuchLifecycleConfiguration")
    refused(lambda: rules(client, {}), "InvalidArgument")
    refused(lambda: rules(client, {"Expiration": {"Days": 0}}), "InvalidArgument")
    refused(lambda: rules(client, {"ID": "r", "Expiration": {"Days": 1}}, {"ID": "r", "Expiration": {"Days": 1}}), "InvalidArgument")
    refused(lambda: rules(client, {"Transitions": [{"Days": 1, "StorageClass": "GLACIER"}]}), "InvalidArgument")


def test_what_is_old_enough_expires(client: Any, system: Context) -> None:
    for key, body in (("logs/old", b"x" * 100), ("logs/small", b"x"), ("logs/new", b"x" * 100), ("kept/old", b"x" * 100)):
        client.put_object(Bucket=BUCKET, Key=key, Body=body)
    age(system, 10.1, ObjectVersion.key != "logs/new")
    rules(client, {"Filter": {"And": {"Prefix": "logs/", "ObjectSizeGreaterThan": 10}}, "Expiration": {"Days": 10}})
    assert lifecycle_follow(system) == Followed(expired=1)
    assert keys(client) == ["kept/old", "logs/new", "logs/small"]
    assert lifecycle_follow(system) == Followed()
    rules(client, {"Status": "Disabled", "Expiration": {"Days": 1}})
    assert lifecycle_follow(system) == Followed()


def test_older_versions_go_but_the_newest_of_them(client: Any, system: Context) -> None:
    client.put_bucket_versioning(Bucket=BUCKET, VersioningConfiguration={"Status": "Enabled"})
    ids = [client.put_object(Bucket=BUCKET, Key="k", Body=f"{number}".encode())["VersionId"] for number in range(5)]
    age(system, 5)
    rules(client, {"NoncurrentVersionExpiration": {"NoncurrentDays": 4, "NewerNoncurrentVersions": 2}})
    assert lifecycle_follow(system) == Followed(versions=2)
    assert [each["VersionId"] for each in client.list_object_versions(Bucket=BUCKET)["Versions"]] == [ids[4], ids[3], ids[2]]
    # Expiry of the newest sets a mark; once that stands alone it goes, too.
    rules(client, {"Expiration": {"Days": 4}, "NoncurrentVersionExpiration": {"NoncurrentDays": 4}})
    lifecycle_follow(system)
    assert keys(client) == []
    age(system, 5)
    lifecycle_follow(system)
    lifecycle_follow(system)
    assert "Versions" not in client.list_object_versions(Bucket=BUCKET)
    client.delete_bucket(Bucket=BUCKET)


def test_uploads_are_given_up(client: Any, system: Context) -> None:
    for key in ("in/a", "out/b"):
        client.create_multipart_upload(Bucket=BUCKET, Key=key)
    with transaction(system.db):
        system.db.execute(update(ObjectUpload).values(created_at=now() - timedelta(days=2)))
    rules(client, {"Filter": {"Prefix": "in/"}, "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 1}})
    assert lifecycle_follow(system) == Followed(uploads=1)
    assert [each["Key"] for each in client.list_multipart_uploads(Bucket=BUCKET)["Uploads"]] == ["out/b"]


def test_a_day_can_be_short(client: Any, system: Context) -> None:
    system.settings = system.settings.model_copy(update={"s3_lifecycle_day_s": 1})
    client.put_object(Bucket=BUCKET, Key="k", Body=b"x")
    age(system, 2 / 86_400)
    rules(client, {"Expiration": {"Days": 1}})
    assert lifecycle_follow(system) == Followed(expired=1)


def test_many_keys_are_gone_through(client: Any, system: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("portal.storage.lifecycle.BATCH", 3)
    client.put_bucket_versioning(Bucket=BUCKET, VersioningConfiguration={"Status": "Enabled"})
    for key in ("a", "b", "c"):
        for _ in range(4):
            client.put_object(Bucket=BUCKET, Key=key, Body=b"x")
    age(system, 5)
    rules(client, {"NoncurrentVersionExpiration": {"NoncurrentDays": 1}})
    assert lifecycle_follow(system) == Followed(versions=9)
    assert keys(client) == ["a", "b", "c"]


def test_the_api_has_the_same_rules(client: Any, api: Api) -> None:
    bucket = api.get("/storage/buckets").json["results"][0]["id"]
    assert api("PUT", f"/storage/buckets/{bucket}/lifecycle", {"rules": [{"prefix": "tmp/", "expire_days": 3}]}).status_code == 200
    assert client.get_bucket_lifecycle_configuration(Bucket=BUCKET)["Rules"][0]["Expiration"] == {"Days": 3}
    for wrong in (
        {"expire_days": True},
        {"expire_days": 1, "prefix": 1},
        {"expire_at": "tomorrow"},
        {"expire_at": "2027-01-01"},
        {"expire_days": 1, "more": 1},
    ):
        assert api("PUT", f"/storage/buckets/{bucket}/lifecycle", {"rules": [wrong]}).status_code == 400, wrong


def meanwhile(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> None:
    """Have something happen between the look at some keys and what the rule does with them."""
    plain = _Follow._write

    def write(self: _Follow, *due: Any) -> Any:
        act()
        return plain(self, *due)

    monkeypatch.setattr(_Follow, "_write", write)


def test_a_version_that_was_restored_meanwhile_stays(client: Any, system: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    client.put_bucket_versioning(Bucket=BUCKET, VersioningConfiguration={"Status": "Enabled"})
    client.put_object(Bucket=BUCKET, Key="k", Body=b"precious")
    mark = client.delete_object(Bucket=BUCKET, Key="k")["VersionId"]
    age(system, 50)
    rules(client, {"NoncurrentVersionExpiration": {"NoncurrentDays": 7}})
    meanwhile(monkeypatch, lambda: client.delete_object(Bucket=BUCKET, Key="k", VersionId=mark))
    assert lifecycle_follow(system) == Followed()
    assert client.get_object(Bucket=BUCKET, Key="k")["Body"].read() == b"precious"


@pytest.mark.parametrize("how", ["tagged", "newer gone"])
def test_what_a_rule_speaks_of_is_looked_at_again(client: Any, system: Context, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """Somebody changes what is said of an older version, or deletes the one that made it old; it is one of the newest two older ones then."""
    client.put_bucket_versioning(Bucket=BUCKET, VersioningConfiguration={"Status": "Enabled"})
    ids = [client.put_object(Bucket=BUCKET, Key="k", Body=b"x", Tagging="is=scrap")["VersionId"] for _ in range(4)]
    age(system, 50)
    rules(
        client,
        {"Filter": {"Tag": {"Key": "is", "Value": "scrap"}}, "NoncurrentVersionExpiration": {"NoncurrentDays": 7, "NewerNoncurrentVersions": 2}},
    )
    kept = {"TagSet": [{"Key": "is", "Value": "kept"}]}
    acts: dict[str, Callable[[], object]] = {
        "tagged": lambda: client.put_object_tagging(Bucket=BUCKET, Key="k", VersionId=ids[0], Tagging=kept),
        "newer gone": lambda: client.delete_object(Bucket=BUCKET, Key="k", VersionId=ids[1]),
    }
    meanwhile(monkeypatch, acts[how])
    assert lifecycle_follow(system) == Followed()
    assert ids[0] in [each["VersionId"] for each in client.list_object_versions(Bucket=BUCKET)["Versions"]]


def test_prefixes_of_uploads_are_compared_letter_for_letter(client: Any, system: Context) -> None:
    for key in ("tmp/a", "TMP/a", "Tmp/b"):
        client.create_multipart_upload(Bucket=BUCKET, Key=key)
    with transaction(system.db):
        system.db.execute(update(ObjectUpload).values(created_at=now() - timedelta(days=2)))
    rules(client, {"Filter": {"Prefix": "tmp/"}, "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 1}})
    assert lifecycle_follow(system) == Followed(uploads=1)
    assert [each["Key"] for each in client.list_multipart_uploads(Bucket=BUCKET)["Uploads"]] == ["TMP/a", "Tmp/b"]


def test_many_go_in_few_transactions(client: Any, system: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(12):
        client.put_object(Bucket=BUCKET, Key=f"{number}", Body=b"x")
    age(system, 5)
    rules(client, {"Expiration": {"Days": 1}})
    writes: list[object] = []
    meanwhile(monkeypatch, lambda: writes.append(None))
    assert lifecycle_follow(system) == Followed(expired=12)
    assert len(writes) == 1
    assert keys(client) == []


def test_one_buckets_trouble_is_its_own(client: Any, s3: S3, system: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    other = s3.client()
    other.create_bucket(Bucket="b-bucket")
    one_rule = {"Rules": [{"ID": "r", "Status": "Enabled", "Filter": {"Prefix": ""}, "Expiration": {"Days": 1}}]}
    for bucket in (BUCKET, "b-bucket"):
        client.put_object(Bucket=bucket, Key="k", Body=b"x")
        client.put_bucket_lifecycle_configuration(Bucket=bucket, LifecycleConfiguration=one_rule)
    age(system, 5)
    troubled: list[object] = []

    def trouble() -> None:
        if not troubled:
            troubled.append(None)
            raise Unavailable("The database does not answer.")

    meanwhile(monkeypatch, trouble)
    assert lifecycle_follow(system) == Followed(expired=1)
    assert lifecycle_follow(system) == Followed(expired=1)


@pytest.mark.parametrize(
    ("rule", "gone"),
    [({"Filter": {"And": {"Prefix": "", "ObjectSizeGreaterThan": 5}}}, False), ({"Filter": {"Tag": {"Key": "a", "Value": "b"}}}, False), ({}, True)],
)
def test_marks_that_stand_alone_go_when_they_are_old_and_the_rule_is_about_all(
    client: Any, system: Context, rule: dict[str, Any], gone: bool
) -> None:  # fmt: skip
    client.put_bucket_versioning(Bucket=BUCKET, VersioningConfiguration={"Status": "Enabled"})
    client.delete_object(Bucket=BUCKET, Key="k")
    rules(client, {"Expiration": {"Days": 3}, **rule})
    assert lifecycle_follow(system) == Followed()
    age(system, 5)
    assert lifecycle_follow(system) == Followed(expired=int(gone))


def test_of_a_key_with_very_many_versions_only_some_are_in_hand(client: Any, system: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    client.put_bucket_versioning(Bucket=BUCKET, VersioningConfiguration={"Status": "Enabled"})
    for number in range(7):
        client.put_object(Bucket=BUCKET, Key="k", Body=f"{number}".encode())
    monkeypatch.setattr(lifecycle, "BATCH", 2)
    bucket_id = system.db.scalars(select(Bucket.id)).one()
    plain, asked = system.db.execute, list[int]()

    def counted(*args: Any, **more: Any) -> Any:
        asked.append(1)
        return plain(*args, **more)

    monkeypatch.setattr(system.db, "execute", counted)
    rule = {"prefix": "", "tags": {}, "noncurrent_days": 1}
    versions = next(lifecycle.Following(system, bucket_id, rule).keys("noncurrent_days"))
    assert (next(versions).is_current, len(asked)) == (True, 1)
    assert len(list(versions)) == 6
