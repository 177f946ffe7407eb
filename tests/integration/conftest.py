"""Guests of networks: what they give is described in tests/support/network.py."""

from collections.abc import Callable, Iterator

import pytest

from portal.engines.network_ports import VpcSpec
from tests.support.network import Guest, NetworkHost, Outside, local_network_host


@pytest.fixture(scope="module")
def installation() -> Iterator[NetworkHost]:
    """A host's networks, shared by the tests of a module."""
    with local_network_host() as host:
        yield host


@pytest.fixture
def host(installation: NetworkHost) -> Iterator[NetworkHost]:
    """The same, empty again after each test."""
    yield installation
    installation.clear()


@pytest.fixture
def guest(host: NetworkHost) -> Iterator[Callable[..., Guest]]:
    made: list[Guest] = []

    def make(spec: VpcSpec, which: int) -> Guest:
        made.append(Guest(host.engine, spec, spec.ports[which]).configure())
        made[-1].serve(80)
        made[-1].serve(22)
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def outside(host: NetworkHost) -> Iterator[Callable[..., Outside]]:
    made: list[Outside] = []

    def make(number: int = 250) -> Outside:
        made.append(Outside(host.engine, host, number))
        made[-1].serve(80)
        return made[-1]

    yield make
    for each in made:
        each.close()
