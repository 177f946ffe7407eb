"""Fixtures of all tests: a database of one's own, people, the fake engine, a worker. What they give is described in tests/support."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from portal.engines.fake import FakeCompute
from sqlalchemy.orm import Session, sessionmaker

from portal.catalogue import build_registry
from portal.engines.ports import Engines
from portal.identity.models import User
from portal.kernel.context import Context
from portal.kernel.db import open_database
from portal.kernel.resource import Registry
from portal.kernel.runner import Runner
from portal.settings import Settings
from portal.worker.tasks import TASKS
from tests.support.databases import Databases, databases, settings_for
from tests.support.draining import TestWorker
from tests.support.people import People


@pytest.fixture(scope="session")
def all_databases(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Databases]:
    """The template and the server behind it, if there is one."""
    made = databases(tmp_path_factory.mktemp("databases"))
    yield made
    made.close()


@pytest.fixture(scope="session")
def registry() -> Registry:
    """All resource types."""
    return build_registry()


@pytest.fixture
def database_url(all_databases: Databases) -> Iterator[str]:
    """A fresh database with the default project, the first administrator, flavors, images and a capability report."""
    url = all_databases.new()
    yield url
    all_databases.drop(url)


@pytest.fixture
def settings(tmp_path: Path, database_url: str) -> Settings:
    """Settings of a small, quick installation with the fake engine."""
    return settings_for(tmp_path / "var", database_url=database_url)


@pytest.fixture
def database(settings: Settings) -> Iterator[sessionmaker[Session]]:
    """Sessions on this test's database."""
    sessions = open_database(settings)
    yield sessions
    sessions.kw["bind"].dispose()


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
def engines(fake: FakeCompute) -> Engines:
    """The drivers of this installation."""
    return Engines(compute=fake)


@pytest.fixture
def worker(database: sessionmaker[Session], settings: Settings, registry: Registry, engines: Engines) -> TestWorker:
    """Runs jobs when the test says so: `worker.drain()`."""
    return TestWorker(database, Runner(database, registry, settings, engines, TASKS))
