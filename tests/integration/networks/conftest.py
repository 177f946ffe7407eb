"""The portal with the real engine for networks: what members ask for is made on this host."""

from collections.abc import Iterator

import pytest

from portal.engines.fake import FakeCompute
from portal.settings import Settings
from tests.support.draining import TestWorker
from tests.support.network import NetworkHost, local_network_host
from tests.support.people import People
from tests.support.scenarios import Stage


@pytest.fixture
def host() -> Iterator[NetworkHost]:
    with local_network_host() as found:
        yield found


@pytest.fixture
def network(host: NetworkHost) -> object:
    """The real engine, in place of the one that only remembers."""
    return host.engine


@pytest.fixture
def settings(settings: Settings, host: NetworkHost) -> Settings:
    """Settings with the external network of this test's own."""
    return settings.model_copy(update={"network_external_cidr": f"{host.external}/24"})


@pytest.fixture
def stage(people: People, worker: TestWorker, fake: FakeCompute) -> Stage:
    """What scenarios play on, as a project admin."""
    return Stage(people.context(people.user("project_admin")), worker, fake)
