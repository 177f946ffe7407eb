"""Access keys of the S3 interface: those that a token makes are worth what it is worth; how many requests are taken, and how they are found in the log."""

import json
import logging
from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import update

from portal.engines import blobs
from portal.identity.models import ApiToken, User
from portal.identity.tokens import token_create
from portal.kernel.db import now, transaction
from portal.logging import JsonFormatter
from tests.support.people import People
from tests.support.s3 import S3, client, fetch, refused
from tests.support.web import Api

BUCKET = "a-bucket"


@pytest.fixture
def admin(people: People) -> User:
    return people.user("project_admin")


@pytest.fixture
def token_of(app: Flask, people: People, admin: User) -> Callable[..., tuple[Api, str]]:
    """`token_of(name, scopes=…)`: (the API as a token of the admin's, its id)."""

    def make(name: str, **options: Any) -> tuple[Api, str]:
        secret, row = token_create(people.context(admin), admin, name, **options)
        return Api(app.test_client(), admin, secret), row.id

    return make


def key_by(api: Api, s3: S3, path: str = "/auth/s3-keys") -> Any:
    made = api.post(path, {})
    assert made.status_code == 201, made.json
    return client(s3.url, made.json["access_key_id"], made.json["secret_access_key"])


def change(people: People, token_id: str, **values: Any) -> None:
    db = people.context(people.admin()).db
    with transaction(db):
        db.execute(update(ApiToken).where(ApiToken.id == token_id).values(**values))


def test_a_key_that_a_token_makes_ends_with_it(s3: S3, people: People, token_of: Callable[..., tuple[Api, str]], admin: User) -> None:
    api, token_id = token_of("maker")
    mine, theirs = s3.client(admin), key_by(api, s3)
    theirs.create_bucket(Bucket=BUCKET)
    change(people, token_id, is_active=False)
    refused(theirs.list_buckets, "InvalidAccessKeyId")
    change(people, token_id, is_active=True)
    assert len(theirs.list_buckets()["Buckets"]) == 1
    change(people, token_id, expires_at=now())
    refused(theirs.list_buckets, "InvalidAccessKeyId")
    other, other_id = token_of("other")
    again = key_by(other, s3)
    assert api.get("/auth/me").status_code == 401
    assert other("DELETE", f"/auth/keys/{other_id}").status_code == 204
    refused(again.list_buckets, "InvalidAccessKeyId")
    assert len(mine.list_buckets()["Buckets"]) == 1


def test_a_key_may_no_more_than_the_token_that_made_it(s3: S3, api_for: Callable[..., Api], app: Flask, people: People) -> None:
    boss = api_for("project_admin").signed_in()
    account = boss.post("/service-accounts", {"name": "robot", "role": "developer"}).json["id"]
    path = f"/service-accounts/{account}/s3-keys"
    s3.client(boss.user).create_bucket(Bucket=BUCKET)
    secret, row = token_create(people.context(boss.user), boss.user, "maker")
    theirs = key_by(Api(app.test_client(), boss.user, secret), s3, path)
    theirs.put_object(Bucket=BUCKET, Key="k", Body=b"x")
    change(people, row.id, scopes=["storage:read"])
    assert theirs.get_object(Bucket=BUCKET, Key="k")["Body"].read() == b"x"
    refused(lambda: theirs.put_object(Bucket=BUCKET, Key="k", Body=b"y"), "AccessDenied")
    change(people, row.id, scopes=["compute:read"])
    refused(lambda: theirs.get_object(Bucket=BUCKET, Key="k"), "AccessDenied")
    # Nor does the bucket's own policy give it what its scopes do not.
    statement = {"Effect": "Allow", "Principal": {"AWS": account}, "Action": "s3:GetObject", "Resource": f"arn:aws:s3:::{BUCKET}/*"}
    s3.client(boss.user).put_bucket_policy(Bucket=BUCKET, Policy=json.dumps({"Version": "2012-10-17", "Statement": [statement]}))
    refused(lambda: theirs.get_object(Bucket=BUCKET, Key="k"), "AccessDenied")
    change(people, row.id, scopes=["storage:read"])
    assert theirs.get_object(Bucket=BUCKET, Key="k")["Body"].read() == b"x"


def test_a_key_is_slowed_down_for_itself(s3: S3, admin: User) -> None:
    s3.limit(s3_rate_limit_per_minute=4)
    busy, other = s3.client(admin, retries={"max_attempts": 1, "mode": "standard"}), s3.client(admin)
    seen = []
    # Twice as many as two minutes take, should one end meanwhile.
    for _ in range(9):
        try:
            busy.list_buckets()
        except busy.exceptions.ClientError as error:
            seen.append(error.response)
    assert {each["Error"]["Code"] for each in seen} == {"SlowDown"}
    meta = seen[-1]["ResponseMetadata"]
    assert (meta["HTTPStatusCode"], 1 <= int(meta["HTTPHeaders"]["retry-after"]) <= 60) == (503, True)
    assert other.list_buckets()["Buckets"] == []


def test_guessing_is_slowed_down_and_no_neighbour_with_it(s3: S3, admin: User) -> None:
    s3.limit(s3_rate_limit_anonymous_per_minute=4)
    key_id, _ = s3.key(admin)
    wrong = client(s3.url, key_id, "wrong")
    codes = []
    for _ in range(9):
        with pytest.raises(wrong.exceptions.ClientError) as caught:
            wrong.list_buckets()
        codes.append(caught.value.response["Error"]["Code"])
    assert set(codes) == {"SignatureDoesNotMatch", "SlowDown"}
    statuses = {fetch(f"{s3.url}/{BUCKET}/k")[0] for _ in range(9)}
    assert 503 in statuses
    assert s3.client(admin).list_buckets()["Buckets"] == []


def test_every_line_about_a_request_has_its_id(s3: S3, admin: User, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    mine = s3.client(admin)
    mine.create_bucket(Bucket=BUCKET)
    mine.put_object(Bucket=BUCKET, Key="k", Body=b"x")
    lines: list[dict[str, Any]] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(json.loads(JsonFormatter().format(record)))

    keep = Keep()
    logging.getLogger().addHandler(keep)
    caplog.set_level(logging.INFO)
    for found in s3.blobs.stored():
        monkeypatch.setattr(blobs.LocalBlobs, "open", _absent(found.id))
    try:
        answer = refused(lambda: mine.get_object(Bucket=BUCKET, Key="k"), "InternalError")
    finally:
        logging.getLogger().removeHandler(keep)
    request_id = answer["ResponseMetadata"]["HTTPHeaders"]["x-amz-request-id"]
    mine_only = [line for line in lines if line.get("request_id") == request_id]
    assert {line["logger"] for line in mine_only} >= {"portal.access", "portal.storage"}, lines
    assert f"GET /{BUCKET}/k 500 InternalError" in [line["message"] for line in mine_only]


def _absent(blob_id: str) -> Callable[..., Any]:
    from portal.engines.object_ports import BlobAbsent

    def open_(*_: object) -> Any:
        raise BlobAbsent(f"{blob_id} is not there.")

    return open_
