"""When a write is acknowledged: after it is on the disk, which keeps nobody else from writing."""

import errno
import threading
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session, sessionmaker

from portal.kernel.db import transaction
from portal.storage import writing
from tests.support.databases import ON_POSTGRESQL
from tests.support.s3 import S3, refused
from tests.support.servers import until

BUCKET = "forced"
WAIT_S = 60


@pytest.fixture
def client(s3: S3) -> Any:
    made = s3.client()
    made.create_bucket(Bucket=BUCKET)
    return made


class Disk:
    """The way to the disk, which can be kept shut."""

    def __init__(self) -> None:
        self.way, self.visits, self.error = threading.Event(), 0, None

    error: OSError | None

    def force(self, engine: Engine) -> None:
        del engine
        self.visits += 1
        assert self.way.wait(WAIT_S)
        if self.error is not None:
            raise self.error


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    made = Disk()
    monkeypatch.setattr(writing, "force", made.force)
    return made


def keys_of(client: Any) -> set[str]:
    return {each["Key"] for each in client.list_objects_v2(Bucket=BUCKET).get("Contents", ())}


def beside(work: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_nobody_hears_of_success_before_the_disk_has_it_and_others_write_meanwhile(client: Any, s3: S3, disk: Disk) -> None:
    heard: list[str] = []

    def put(key: str) -> None:
        s3.client().put_object(Bucket=BUCKET, Key=key, Body=b"x")
        heard.append(key)

    first = beside(lambda: put("first"))
    until(lambda: disk.visits == 1, within_s=WAIT_S, what="the first write is on its way to the disk")
    second = beside(lambda: put("second"))
    # The second is committed though the disk has not answered the first.
    until(lambda: keys_of(client) == {"first", "second"}, within_s=WAIT_S, what="both are committed")
    assert heard == []
    disk.way.set()
    first.join(WAIT_S)
    second.join(WAIT_S)
    assert sorted(heard) == ["first", "second"]
    assert disk.visits == 2


def test_one_visit_to_the_disk_is_for_all_who_have_written(client: Any, s3: S3, disk: Disk) -> None:
    many = [beside(lambda name=name: s3.client().put_object(Bucket=BUCKET, Key=name, Body=b"x")) for name in "abcdef"]
    until(lambda: keys_of(client) == set("abcdef"), within_s=WAIT_S, what="all are committed")
    disk.way.set()
    for each in many:
        each.join(WAIT_S)
    # One for whoever came first, one for all others.
    assert disk.visits <= 2


def test_a_disk_that_refuses_is_no_success_and_holds_nobody_up(client: Any, disk: Disk) -> None:
    disk.way.set()
    disk.error = OSError(errno.EIO, "Input/output error")
    refused(lambda: client.put_object(Bucket=BUCKET, Key="k", Body=b"x"), "ServiceUnavailable")
    disk.error = None
    client.put_object(Bucket=BUCKET, Key="k", Body=b"y")
    assert client.get_object(Bucket=BUCKET, Key="k")["Body"].read() == b"y"


@pytest.mark.skipif(ON_POSTGRESQL, reason="only a database of one file is told to wait or not")
def test_other_writes_wait_for_the_disk_as_ever(database: sessionmaker[Session]) -> None:
    for is_forced, level in ((True, 2), (False, 1), (True, 2)):
        with database() as session, transaction(session, is_forced=is_forced):
            assert session.execute(text("PRAGMA synchronous")).scalar() == level
