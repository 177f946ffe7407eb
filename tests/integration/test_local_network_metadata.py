"""The metadata service while guests do not play by the rules."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress

import pytest

from portal.engines.local.network import metadata_service
from tests.support.network import Guest, NetworkHost, local_network_host, made_vpc, why_no_networks

MISSING = why_no_networks()
pytestmark = [pytest.mark.skipif(bool(MISSING), reason=MISSING or "networks can be made here")]
ME, SERVICE = "/latest/meta-data/instance-id", "169.254.169.254"


@pytest.fixture
def host() -> Iterator[NetworkHost]:
    with local_network_host() as found:
        yield found


class Slow:
    """Connections on which a request comes one byte after the other, and never ends."""

    def __init__(self, guests: list[Guest], each: int) -> None:
        self.links = [guest.connect(SERVICE, 80, 2) for guest in guests for _ in range(each)]
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._drip, daemon=True)
        for link in self.links:
            link.sendall(b"GET /")
        self._thread.start()

    def _drip(self) -> None:
        while not self._over.wait(0.1):
            for link in self.links:
                try:
                    link.send(b"a")
                except OSError:
                    continue

    def close(self) -> None:
        self._over.set()
        self._thread.join()
        for link in self.links:
            link.close()


def test_slow_guests_of_other_vpcs_do_not_keep_a_guest_from_its_metadata(host: NetworkHost, guest: Callable[..., Guest]) -> None:
    slow = [guest(made_vpc(host, "10.0.1.5"), 0) for _ in range(4)]
    other = guest(made_vpc(host, "10.0.1.5"), 0)
    with closing(Slow(slow, 6)):
        before_s = time.monotonic()
        assert other.fetch(SERVICE, ME) == (200, "i-10015")
        assert time.monotonic() - before_s < 1


def test_a_slow_guest_is_not_in_the_way_of_its_neighbour(host: NetworkHost, guest: Callable[..., Guest]) -> None:
    spec = made_vpc(host, "10.0.1.5", "10.0.1.6")
    slow, other = guest(spec, 0), guest(spec, 1)
    with closing(Slow([slow], metadata_service.MOST_PER_VPC + 4)):
        for _ in range(3):
            assert other.fetch(SERVICE, ME) == (200, "i-10016")


def test_a_request_that_does_not_end_is_ended(host: NetworkHost, guest: Callable[..., Guest], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata_service, "DEADLINE_S", 0.5)
    slow = guest(made_vpc(host, "10.0.1.5"), 0)
    with closing(Slow([slow], 1)) as dripping:
        (link,) = dripping.links
        link.settimeout(5)
        with suppress(ConnectionResetError):
            assert link.recv(1) == b""
        assert slow.fetch(SERVICE, ME) == (200, "i-10015")


def test_a_whole_installation_of_slow_guests_leaves_room(host: NetworkHost, guest: Callable[..., Guest], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata_service, "MOST", 6)
    slow = [guest(made_vpc(host, "10.0.1.5"), 0) for _ in range(2)]
    other = guest(made_vpc(host, "10.0.1.5"), 0)
    with closing(Slow(slow, 5)):
        assert other.fetch(SERVICE, ME) == (200, "i-10015")
