"""The gateway as it runs: killed under load again and again, it loses nothing that was acknowledged and shows nothing that is torn."""

import contextlib
import hashlib
import subprocess
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import pytest
from botocore.exceptions import BotoCoreError, ClientError
from sqlalchemy.orm import Session, sessionmaker

from portal.catalogue import build_registry
from portal.engines.registry import open_blobs
from portal.identity.s3_keys import s3_key_create
from portal.kernel.db import open_database
from portal.settings import Settings
from portal.storage import sweep
from tests.support.databases import fill, settings_for
from tests.support.people import People
from tests.support.processes import kill, portal_process
from tests.support.s3 import client
from tests.support.servers import answers, free_port, until

BUCKET = "crashes"
WRITERS = 6
ROUNDS = 3
ENOUGH = 150


@pytest.fixture
def installation(tmp_path: Path) -> Iterator[tuple[Settings, sessionmaker[Session]]]:
    """An installation on a database of its own."""
    url = f"sqlite:///{tmp_path}/portal.db"
    fill(url, tmp_path)
    settings = settings_for(tmp_path / "var", database_url=url, s3_port=free_port(), engine_compute="none", log_level="error")
    sessions = open_database(settings)
    yield settings, sessions
    sessions.kw["bind"].dispose()


class Writers:
    """Threads that write keys over and over, and remember what was acknowledged of each."""

    def __init__(self, connect: Any) -> None:
        self._connect = connect
        self.acknowledged: dict[str, bytes] = {}
        self.tried: dict[str, set[bytes]] = defaultdict(set)
        self.count = 0
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._write, args=(number,)) for number in range(WRITERS)]

    def _write(self, number: int) -> None:
        s3, turn = self._connect(), 0
        while not self._stop.is_set():
            key = f"{number}/{turn % 20}"
            body = hashlib.shake_128(f"{number}.{turn}.{id(self)}".encode()).digest(100 if turn % 3 else 400_000)
            self.tried[key].add(body)
            try:
                s3.put_object(Bucket=BUCKET, Key=key, Body=body)
            except (ClientError, BotoCoreError):
                return
            # What was acknowledged later replaces what was before; nothing else may.
            self.acknowledged[key], self.tried[key] = body, {body}
            self.count, turn = self.count + 1, turn + 1

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


def test_a_gateway_that_is_killed_loses_nothing(installation: tuple[Settings, sessionmaker[Session]]) -> None:
    settings, sessions = installation
    people = People(sessions, settings, build_registry())
    secret, key = s3_key_create(people.context(people.admin()), people.admin())

    @contextlib.contextmanager
    def running() -> Iterator[tuple[subprocess.Popen[bytes], Callable[[], Any]]]:
        """The gateway on a port of its own: what was killed may still be listening for a moment."""
        here = settings.model_copy(update={"s3_port": free_port()})
        with portal_process(here, "s3") as process:
            until(lambda: answers(here.s3_port), within_s=30, what="the gateway answers")
            options = {"retries": {"total_max_attempts": 1}, "read_timeout": 20}
            yield process, lambda: client(f"http://127.0.0.1:{here.s3_port}", key.id, secret, **options)

    kept: dict[str, set[bytes]] = {}
    for _ in range(ROUNDS):
        with running() as (process, connect):
            with contextlib.suppress(ClientError):
                connect().create_bucket(Bucket=BUCKET)
            with Writers(connect) as writers:
                until(lambda: writers.count >= ENOUGH, within_s=60, what="enough is written")
                kill(process)
        for name, tried in writers.tried.items():
            # A write that was not answered may have happened or not.
            kept[name] = tried if name in writers.acknowledged else tried | kept.get(name, set())
        with running() as (_, connect):
            s3 = connect()
            listed = [each["Key"] for page in s3.get_paginator("list_objects_v2").paginate(Bucket=BUCKET) for each in page.get("Contents", [])]
            assert set(writers.acknowledged) <= set(listed)
            for name in listed:
                assert s3.get_object(Bucket=BUCKET, Key=name)["Body"].read() in kept[name], name
    ctx, blobs = people.context(None), open_blobs(settings)
    found = sweep.scrub(ctx, blobs, days=0)
    assert (found.blobs, found.damaged) == (len(listed), 0)
    sweep.remove_due(ctx, blobs)
    sweep.remove_orphans(ctx, blobs, older=sweep.YOUNG * -1)
    assert sum(1 for _ in blobs.stored()) == len(listed)
    people.close()
