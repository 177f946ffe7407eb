"""Fixtures of all tests: a database of one's own, people, the fake engine, a worker. What they give is described in tests/support."""

import gc
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from argon2 import PasswordHasher
from sqlalchemy.orm import Session, sessionmaker

from portal.catalogue import build_registry
from portal.engines.fake import FakeCompute
from portal.engines.fake_volumes import FakeVolumes
from portal.engines.ports import Engines
from portal.engines.registry import open_blobs
from portal.identity import passwords
from portal.identity.models import User
from portal.kernel.context import Context
from portal.kernel.db import open_database
from portal.kernel.resource import Registry
from portal.kernel.runner import Runner
from portal.security import key_usage
from portal.security.key_usage import USAGE_LOG
from portal.settings import POOLS, Settings
from portal.storage.volume_keys import keyring
from portal.worker.asked_tasks import ASKED
from portal.worker.tasks import TASKS
from tests.support.databases import Database, new_database, settings_for
from tests.support.draining import TestWorker
from tests.support.people import People
from tests.support.recording_network import RecordingNetwork

QUICK = PasswordHasher(time_cost=1, memory_cost=1024, parallelism=1)


@pytest.fixture(autouse=True)
def _quick_passwords(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """argon2 is slow by design; where that is not what a test is about (`real_passwords`), its cheapest form will do."""
    if request.node.get_closest_marker("real_passwords") is None:
        monkeypatch.setattr(passwords, "_hasher", QUICK)
    else:
        # What an unknown name is compared with is kept, and may be of the cheap kind.
        passwords._nobody.cache_clear()


@pytest.fixture(autouse=True)
def _uses_of_keys_wait(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Uses of keys are written when a test says so, and those of one test into no other's database."""
    monkeypatch.setattr(key_usage, "DELAY_S", 3600.0)
    yield
    USAGE_LOG.forget()


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    """A test that sets up the portal's logging, whose handler writes to that test's output, takes it away with it."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    for handler in set(root.handlers) - set(handlers):
        root.removeHandler(handler)
    root.setLevel(level)


@pytest.fixture(scope="session")
def the_database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    """The database of this process, with the server behind it, if there is one."""
    made = new_database(tmp_path_factory.mktemp("database"))
    yield made
    made.close()


@pytest.fixture(scope="session")
def all_sessions(the_database: Database, tmp_path_factory: pytest.TempPathFactory) -> Iterator[sessionmaker[Session]]:
    """Sessions on it."""
    sessions = open_database(settings_for(tmp_path_factory.mktemp("unused"), database_url=the_database.url))
    yield sessions
    sessions.kw["bind"].dispose()


@pytest.fixture(scope="session")
def registry() -> Registry:
    """All resource types."""
    return build_registry()


@pytest.fixture
def database(the_database: Database, all_sessions: sessionmaker[Session]) -> Iterator[sessionmaker[Session]]:
    """Sessions on a fresh database: default project, first administrator, flavors, images, and a worker's report of a large host."""
    the_database.renew()
    yield all_sessions
    all_sessions.kw["bind"].dispose()


@pytest.fixture
def settings(tmp_path: Path, the_database: Database) -> Settings:
    """Settings of a small, quick installation with the fake engine."""
    return settings_for(tmp_path / "var", database_url=the_database.url)


@pytest.fixture
def people(database: sessionmaker[Session], settings: Settings, registry: Registry) -> Iterator[People]:
    """Makes users, projects and contexts."""
    made = People(database, settings, registry)
    yield made
    made.close()


@pytest.fixture
def make_user(people: People) -> Callable[..., User]:
    """`make_user(role, project_id)`."""
    return people.user


@pytest.fixture
def ctx_for(people: People) -> Callable[..., Context]:
    """`ctx_for(user, project_id)`."""
    return people.context


@pytest.fixture
def ctx(people: People) -> Context:
    """The context of a project admin in the default project."""
    return people.context(people.user("project_admin"))


@pytest.fixture
def fake(settings: Settings) -> Iterator[FakeCompute]:
    """The fake compute engine of this installation."""
    engine = FakeCompute(settings.data_dir / "fake")
    yield engine
    engine.close()


@pytest.fixture
def volumes(database: sessionmaker[Session], settings: Settings) -> FakeVolumes:
    """The fake engine for volumes of this installation."""
    volumes = FakeVolumes(settings.data_dir / "fake", POOLS)
    volumes.use_keys(keyring(database, settings))
    return volumes


@pytest.fixture
def network() -> RecordingNetwork:
    """The network engine of this installation."""
    return RecordingNetwork()


@pytest.fixture
def engines(fake: FakeCompute, network: RecordingNetwork, volumes: FakeVolumes, settings: Settings) -> Engines:
    """The drivers of this installation."""
    return Engines(compute=fake, network=network, volumes=volumes, blobs=open_blobs(settings))


@pytest.fixture
def worker(database: sessionmaker[Session], settings: Settings, registry: Registry, engines: Engines) -> TestWorker:
    """Runs jobs when the test says so: `worker.drain()`."""
    return TestWorker(database, Runner(database, registry, settings, engines, TASKS, asked=ASKED))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest come first, where tests run in several processes: those that have done theirs take over the rest meanwhile."""

    def limit_s(item: pytest.Item) -> float:
        limit = item.get_closest_marker("timeout")
        return float(limit.args[0]) if limit is not None else 0.0

    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=limit_s, reverse=True)


def pytest_collection_finish() -> None:
    """Leave what was imported to itself: it stays to the end, and the collector went through all of it again and again. What tests leave behind it
    takes away seldom: looking for it took a third of their time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 50)
