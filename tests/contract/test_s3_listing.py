"""Listings: in the order of bytes, from any place on, rolled up at a delimiter, and at a cost that does not grow with the bucket."""

import random
from typing import Any

import pytest
from sqlalchemy import event, insert

from portal.kernel.db import transaction
from portal.storage.facts import bucket_named
from portal.storage.listing import Listing, objects_listed, successor, versions_listed
from portal.storage.object_models import Bucket, ObjectVersion
from tests.support.people import People
from tests.support.s3 import S3, refused
from tests.support.web import Queries

BUCKET = "a-bucket"
KEYS = [
    "a", "a b", "a+b", "b/", "b/1", "b/2", "b/c/1", "b/c/2", "b0", "c//d", "d/e/f", "Z", "z", "\u00e4/x", "\u00e4/y", "\uffee", "\U0001f600/1", "\U0001f600/2",
]  # fmt: skip


@pytest.fixture
def client(s3: S3) -> Any:
    made = s3.client()
    made.create_bucket(Bucket=BUCKET)
    for key in KEYS:
        made.put_object(Bucket=BUCKET, Key=key, Body=b"")
    return made


def expected(prefix: str, delimiter: str) -> tuple[list[str], list[str]]:
    keys, prefixes = [], set()
    for key in sorted(KEYS, key=str.encode):
        if key.startswith(prefix):
            rest = key[len(prefix) :]
            if delimiter and delimiter in rest:
                prefixes.add(prefix + rest[: rest.index(delimiter) + len(delimiter)])
            else:
                keys.append(key)
    return keys, sorted(prefixes, key=str.encode)


def pages(client: Any, version: int, **asked: Any) -> tuple[list[str], list[str]]:
    paginator = client.get_paginator("list_objects_v2" if version == 2 else "list_objects")
    keys: list[str] = []
    prefixes: list[str] = []
    for page in paginator.paginate(Bucket=BUCKET, **asked):
        keys += [each["Key"] for each in page.get("Contents", [])]
        prefixes += [each["Prefix"] for each in page.get("CommonPrefixes", [])]
    return keys, prefixes


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(
    ("prefix", "delimiter"), [("", ""), ("", "/"), ("b/", "/"), ("b", "/"), ("b/c/", "/"), ("\u00e4", "/"), ("", "b"), ("none", "/")]
)
def test_every_page_size_gives_the_same(client: Any, version: int, prefix: str, delimiter: str) -> None:
    for size in (1, 2, 3, 5, 1000):
        found = pages(client, version, Prefix=prefix, Delimiter=delimiter, PaginationConfig={"PageSize": size})
        assert found == expected(prefix, delimiter), size


def test_a_listing_begins_after_a_key(client: Any) -> None:
    found = client.list_objects_v2(Bucket=BUCKET, StartAfter="b/2", MaxKeys=3)
    assert [each["Key"] for each in found["Contents"]] == ["b/c/1", "b/c/2", "b0"]
    assert (found["KeyCount"], found["IsTruncated"]) == (3, True)
    assert client.list_objects_v2(Bucket=BUCKET, MaxKeys=0)["KeyCount"] == 0
    refused(lambda: client.list_objects_v2(Bucket=BUCKET, ContinuationToken="\u00fc!"), "InvalidArgument")
    refused(lambda: client.list_objects_v2(Bucket=BUCKET, MaxKeys=-1), "InvalidArgument")


def test_the_successor_comes_after_all_that_begin_so() -> None:
    for prefix in ("a", "a/", "\u007f", "\ud7ff", "\uffff", "\U0010ffff", "a\U0010ffff"):
        after = successor(prefix)
        assert after == "" or (after.encode() > (prefix + "\U0010ffff").encode() and not after.startswith(prefix))
    assert successor("\U0010ffff") == ""


def test_the_cost_does_not_grow_with_the_bucket(people: People, s3: S3) -> None:
    """A folder among a thousand with a hundred objects each: as many statements and rows as in a small bucket."""
    client = s3.client()
    client.create_bucket(Bucket=BUCKET)
    ctx = people.context(people.admin())
    bucket = ctx.db.query(Bucket).filter_by(name=BUCKET).one()
    rows = [
        {"bucket_id": bucket.id, "key": f"{folder:03}/{number:03}", "sequence": 1, "is_null": True, "is_current": True, "is_marker": False}
        for folder in range(100) for number in range(100)
    ]  # fmt: skip
    random.shuffle(rows)
    with transaction(ctx.db):
        for place in range(0, len(rows), 1000):
            ctx.db.execute(insert(ObjectVersion), rows[place : place + 1000])
    with Queries(ctx.db.get_bind().engine) as queries:
        found = objects_listed(ctx, bucket.id, Listing(delimiter="/", limit=10))
    assert (found.prefixes, found.is_truncated) == ([f"{number:03}/" for number in range(10)], True)
    assert queries.count <= 12
    with Queries(ctx.db.get_bind().engine) as queries:
        found = objects_listed(ctx, bucket.id, Listing(limit=1000))
    assert (len(found.rows), found.last, queries.count) == (1000, "009/099", 1)
    with Queries(ctx.db.get_bind().engine) as queries:
        found = versions_listed(ctx, bucket.id, Listing(prefix="050/", delimiter="/", limit=1000))
    assert len(found.rows) == 100
    assert queries.count <= 5


def test_a_listing_reads_present_objects_alone(s3: S3, people: People) -> None:
    """However many older versions and marks there are."""
    system = people.context(people.admin())
    if system.db.get_bind().dialect.name != "sqlite":
        pytest.skip("PostgreSQL plans by statistics")
    client = s3.client()
    client.create_bucket(Bucket="a-planned-bucket")
    plans = []

    def explain(_connection: object, cursor: Any, statement: str, parameters: object, *_rest: object) -> None:
        if "FROM object_versions" in statement and statement.startswith("SELECT"):
            plans.extend(row[3] for row in cursor.execute(f"EXPLAIN QUERY PLAN {statement}", parameters).fetchall())

    engine = system.db.get_bind()
    event.listen(engine, "before_cursor_execute", explain)
    try:
        objects_listed(system, bucket_named(system.db, "a-planned-bucket").id, Listing(after="ab"))
    finally:
        event.remove(engine, "before_cursor_execute", explain)
    assert plans
    assert all("ix_object_versions_current" in plan for plan in plans), plans
