"""A guest's network ends before the host's own services."""

import socket
import threading
from collections.abc import Iterator

import pytest

from portal.engines.local.firewall import TABLE, ruleset
from tests.support.hosts import local_host, why_no_local_host

pytestmark = [pytest.mark.vm, pytest.mark.skipif(why_no_local_host() != "", reason=why_no_local_host() or "guests run here")]

SCRIPT = """#!/bin/sh
ip addr show | grep -q 'inet 10\\.' && echo PROBE-ADDRESS-YES
if echo hello | nc -w 5 10.0.2.2 {port}; then echo PROBE-HOST-REACHED; fi
echo PROBE-DONE
"""


class Neighbour:
    """A service that listens on the host's loopback and counts who comes."""

    def __init__(self) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        self.visits = 0
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                link, _ = self.socket.accept()
            except OSError:
                return
            with link:
                self.visits += 1

    def close(self) -> None:
        """Stop listening."""
        self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()
        self._thread.join()


@pytest.fixture
def neighbour() -> Iterator[Neighbour]:
    made = Neighbour()
    yield made
    made.close()


def test_a_guest_cannot_reach_what_listens_on_the_hosts_loopback(neighbour: Neighbour) -> None:
    with local_host() as host:
        host.engine.ensure_builtin_image("atonix-tiny")
        spec = host.running(user_data=SCRIPT.format(port=neighbour.port))
        host.wait_for(spec, "PROBE-DONE")
        log = host.log(spec)
    assert "PROBE-ADDRESS-YES" in log, "the guest has no network, so the test shows nothing"
    assert "PROBE-HOST-REACHED" not in log
    assert neighbour.visits == 0
    # The service does answer those who may come.
    with socket.create_connection(("127.0.0.1", neighbour.port)):
        pass


def test_the_rules_name_one_group_and_what_it_must_not_reach() -> None:
    text = ruleset(64055)
    assert text.count("meta skgid 64055") == 4
    assert f"delete table inet {TABLE}" in text
    for forbidden in ('oifname "lo"', "ip daddr 169.254.0.0/16", "ip6 daddr { fe80::/10"):
        assert f"meta skgid 64055 {forbidden}" in text
