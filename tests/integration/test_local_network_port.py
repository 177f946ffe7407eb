"""The local engine keeps what every network engine promises: the same tests, with real namespaces."""

from collections.abc import Iterator

import pytest

from tests.contract.test_network_engine_port import *  # noqa: F403 - every test of the promise
from tests.support.network import NetworkHost, local_network_host, why_no_networks

MISSING = why_no_networks()
pytestmark = [pytest.mark.skipif(bool(MISSING), reason=MISSING or "networks can be made here")]


@pytest.fixture(scope="module")
def installation() -> Iterator[NetworkHost]:
    """One engine for all tests here."""
    with local_network_host() as host:
        yield host
