"""The one way in which buckets are changed: whoever comes back has been written, once, and what lies under an object is never removed."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import delete, select, update
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from portal.engines.blobs import LocalBlobs
from portal.identity.models import ApiToken, Membership, S3AccessKey, User
from portal.kernel.alerts import Alert
from portal.kernel.db import transaction
from portal.kernel.errors import Unavailable
from portal.kernel.quota import Quota
from portal.storage import writing
from portal.storage.facts import BucketFacts, bucket_named
from portal.storage.object_models import BlobToRemove, ObjectVersion
from portal.storage.objects import ANY, About, Content, put
from portal.storage.usage import GIB
from portal.storage.writing import Writing, write
from tests.support.people import People
from tests.support.s3 import S3, refused
from tests.support.web import Api


@pytest.fixture
def user(people: People) -> User:
    return people.user("project_admin")


def buckets_of(s3: S3, people: People, user: User, count: int) -> list[BucketFacts]:
    client, setup = s3.client(user), people.context(user)
    for number in range(count):
        client.create_bucket(Bucket=f"bucket-{number}")
    found = [bucket_named(setup.db, f"bucket-{number}") for number in range(count)]
    setup.db.rollback()
    return found


def at_once(people: People, user: User, facts: list[BucketFacts], *, threads: int, each: int) -> list[tuple[Any, int]]:
    """(result, how often it was done) of writes by so many threads, each into a bucket of its own as far as there are some."""
    got: list[tuple[Any, int]] = []
    lock = threading.Lock()

    def work(number: int) -> None:
        ctx = people.context(user)
        for turn in range(each):
            ran: list[int] = []

            def do(_: Writing, turn: int = turn, ran: list[int] = ran) -> int:
                ran.append(turn)
                return turn

            result = write(ctx, facts[number % len(facts)], "storage.object.write", do)
            with lock:
                got.append((result == turn, len(ran)))
        ctx.db.close()

    running = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join(120)
    assert not any(thread.is_alive() for thread in running)
    return got


def test_whoever_writes_into_one_of_several_buckets_comes_back_when_it_is_done(s3: S3, people: People, user: User) -> None:
    got = at_once(people, user, buckets_of(s3, people, user, 4), threads=8, each=30)
    assert got == [(True, 1)] * 240


def test_more_may_wait_than_are_written_together(s3: S3, people: People, user: User, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "TOGETHER", 2)
    got = at_once(people, user, buckets_of(s3, people, user, 2), threads=12, each=10)
    assert got == [(True, 1)] * 120


def test_who_comes_first_to_nobody_at_work_is_not_done_with_the_work_of_others(s3: S3, people: People, user: User) -> None:
    one, two = buckets_of(s3, people, user, 2)
    ctx = people.context(user)
    queue = writing.queue_of(ctx.db.get_bind().engine)
    # Somebody else waits, and has not been woken yet.
    other = writing._Asked(people.context(user), one.id, lambda _: "other")
    queue._waiting.append(other)
    assert write(ctx, two, "storage.object.write", lambda _: "mine") == "mine"
    queue._waiting.clear()


def content_of(s3: S3, body: bytes) -> Content:
    with s3.blobs.writing() as writer:
        writer.write(body)
        return Content("0" * 32, writer.finish())


class Lost:
    """A database whose answer to the first COMMIT gets lost."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self._plain = writing.transaction
        monkeypatch.setattr(writing, "transaction", self._transaction)

    @contextmanager
    def _transaction(self, session: Session, **options: Any) -> Iterator[None]:
        self.count += 1
        is_first = self.count == 1
        with self._plain(session, **options):
            yield
        if is_first:
            raise OperationalError("COMMIT", {}, Exception("server closed the connection unexpectedly"))


def test_a_commit_whose_answer_was_lost_is_not_done_again(s3: S3, people: People, user: User, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows may be there: a second write would take the first for an older object, and have its bytes removed, which are its own."""
    facts = buckets_of(s3, people, user, 1)[0]
    ctx = people.context(user)

    def asked(key: str) -> writing._Asked:
        content = content_of(s3, f"bytes of {key}".encode())
        return writing._Asked(ctx, facts.id, lambda each: put(each, key, content, About(), ANY))

    batch = [asked("a"), asked("b")]
    lost = Lost(monkeypatch)
    writing.queue_of(ctx.db.get_bind().engine)._lead(batch)
    assert lost.count == 1
    assert all(each.error is not None and each.result is None for each in batch)
    s3.sweep()
    client = s3.client(user)
    assert [client.get_object(Bucket=facts.name, Key=key)["Body"].read() for key in "ab"] == [b"bytes of a", b"bytes of b"]


def test_who_asked_hears_that_it_may_be_there(s3: S3, people: People, user: User, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = buckets_of(s3, people, user, 1)[0]
    content = content_of(s3, b"x")
    ctx = people.context(user)
    Lost(monkeypatch)
    with pytest.raises(Unavailable, match="did not say"):
        write(ctx, facts, "storage.object.write", lambda each: put(each, "k", content, About(), ANY))
    assert s3.client(user).get_object(Bucket=facts.name, Key="k")["Body"].read() == b"x"


def test_what_an_object_consists_of_is_never_removed(s3: S3, people: People, user: User) -> None:
    facts = buckets_of(s3, people, user, 1)[0]
    client, system = s3.client(user), people.context(None)
    client.put_object(Bucket=facts.name, Key="k", Body=b"kept")
    with transaction(system.db):
        system.db.add(BlobToRemove(blob=system.db.scalars(select(ObjectVersion.blob)).one()))
    s3.sweep()
    assert client.get_object(Bucket=facts.name, Key="k")["Body"].read() == b"kept"
    system.db.rollback()
    assert system.db.scalars(select(BlobToRemove)).all() == []


def test_who_crosses_a_limit_is_told_and_nobody_of_another_project(s3: S3, people: People, user: User) -> None:
    """Writes into buckets of several projects may be one transaction."""
    elsewhere = people.project()
    other, mine = people.user("project_admin", elsewhere), buckets_of(s3, people, user, 1)[0]
    s3.client(other).create_bucket(Bucket="of-others")
    ctx, strangers = people.context(user), people.context(other, elsewhere)
    theirs = bucket_named(strangers.db, "of-others")
    with transaction(ctx.db):
        ctx.db.execute(update(Quota).where(Quota.project_id == mine.project_id, Quota.dimension == "object_gb").values(limit=1))
    grow = writing._Asked(ctx, mine.id, lambda each: setattr(each.change, "size_bytes", GIB))
    batch = [writing._Asked(strangers, theirs.id, lambda _: None), grow]
    strangers.db.rollback()
    queue = writing.queue_of(ctx.db.get_bind().engine)
    # A database of one file writes them together.
    for together in [batch] if queue._turn is not None else [[each] for each in batch]:
        queue._lead(together)
    assert [each.error for each in batch] == [None, None]
    assert set(ctx.db.scalars(select(Alert.user_id).where(Alert.resource_type == "core.quota"))) == {user.id}


@pytest.mark.parametrize(
    ("by", "how"), [("s3", "left"), ("s3", "disabled"), ("s3", "key gone"), ("part", "left"), ("api", "left"), ("api", "key gone")]
)
def test_who_may_no_more_when_the_bytes_have_arrived_writes_nothing(
    s3: S3, api_for: Callable[..., Api], monkeypatch: pytest.MonkeyPatch, by: str, how: str
) -> None:  # fmt: skip
    people = s3.people
    monkeypatch.setattr(writing, "STALE_S", 0.0)
    owner, system = people.user("project_admin"), people.context(None)
    bucket = buckets_of(s3, people, owner, 1)[0]
    api = api_for("developer")
    client = s3.client(api.user)
    # As long as nothing changes, nothing is in the way.
    client.put_object(Bucket=bucket.name, Key="before", Body=b"x")
    upload = {"Bucket": bucket.name, "Key": "k", "UploadId": client.create_multipart_upload(Bucket=bucket.name, Key="k")["UploadId"]}
    ends: dict[str, Any] = {
        "left": delete(Membership).where(Membership.user_id == api.user.id),
        "disabled": update(User).where(User.id == api.user.id).values(is_active=False),
        "key gone": delete(ApiToken if by == "api" else S3AccessKey).where((ApiToken if by == "api" else S3AccessKey).user_id == api.user.id),
    }
    plain = LocalBlobs.writing

    def begin(*args: Any, **options: Any) -> Any:
        with transaction(system.db):
            system.db.execute(ends[how])
        return plain(*args, **options)

    monkeypatch.setattr(LocalBlobs, "writing", begin)
    if by == "api":
        answer = api("PUT", f"/storage/buckets/{bucket.id}/objects/k", data=b"late")
        assert (answer.status_code, answer.json["error"]) == (403, "FORBIDDEN")
    elif by == "part":
        refused(lambda: client.upload_part(**upload, PartNumber=1, Body=b"late"), "AccessDenied")
    else:
        refused(lambda: client.put_object(Bucket=bucket.name, Key="k", Body=b"late"), "AccessDenied")
    owners = s3.client(owner)
    assert [each["Key"] for each in owners.list_objects_v2(Bucket=bucket.name)["Contents"]] == ["before"]
    assert "Parts" not in owners.list_parts(**upload)
    assert len(list(s3.blobs.stored())) == 1
