"""The local engine keeps what every engine for volumes promises: the same tests, with real disks and machines."""

from collections.abc import Iterator

import pytest

from tests.contract.test_volume_engine_port import *  # noqa: F403 - every test of the promise
from tests.support.hosts import TINY, Host, local_host, why_no_local_host

MISSING = why_no_local_host()
pytestmark = [pytest.mark.vm, pytest.mark.skipif(bool(MISSING), reason=MISSING or "guests run here")]


@pytest.fixture(scope="module")
def installation() -> Iterator[Host]:
    """One engine for all tests here: it takes a moment to get to know its QEMU."""
    with local_host() as host:
        host.engine.ensure_builtin_image(TINY)
        yield host
