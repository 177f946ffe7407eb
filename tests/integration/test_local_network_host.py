"""The host's side of the external network, on a host that is a namespace: what comes in, and what is passed on to the Internet only if that is asked for."""

import secrets
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from portal.engines.local.network import namespaces
from portal.engines.local.network.engine import LocalNetwork
from portal.engines.local.network.namespaces import inside
from portal.engines.ports import EngineRefused
from tests.support.network import PATIENTLY_S, Guest, NetworkHost, free_external, port, why_no_networks, with_ports

MISSING = why_no_networks()
pytestmark = [pytest.mark.skipif(bool(MISSING), reason=MISSING or "networks can be made here")]

INTERNET, UPSTREAM = "192.0.2.9", "192.0.2.1"


@dataclass
class SmallHost:
    """A host with one cable to the Internet, which is one server."""

    name: str
    data_dir: Path
    external: str

    def engine(self, *, nat: bool) -> LocalNetwork:
        """The network engine of this host, to be called inside it."""
        return LocalNetwork(self.data_dir, external_cidr=self.external, external_nat=nat)


@pytest.fixture
def small_host() -> Iterator[SmallHost]:
    word = secrets.token_hex(4)
    name, world = f"atonix-test-{word}", f"atonix-test-{word}-w"
    for namespace in (name, world):
        subprocess.run(["ip", "netns", "add", namespace], check=True)
    for command in (
        f"-n {name} link add eth0 type veth peer name eth0 netns {world}",
        f"-n {name} address add {UPSTREAM}/24 dev eth0", f"-n {name} link set eth0 up", f"-n {name} link set lo up",
        f"-n {world} address add {INTERNET}/24 dev eth0", f"-n {world} link set eth0 up",
    ):  # fmt: skip
        subprocess.run(["ip", *command.split()], check=True)
    with inside(world):
        server = socket.create_server((INTERNET, 80))
    with inside(name):
        # A new namespace has what the host has, which may pass packets on.
        Path("/proc/sys/net/ipv4/ip_forward").write_text("0")
        own = socket.create_server((UPSTREAM, 80))
    data_dir = Path(tempfile.mkdtemp(prefix="portal-network-"))
    host = SmallHost(name, data_dir, free_external())
    with closing(server), closing(own):
        try:
            yield host
        finally:
            with inside(name):
                engine = host.engine(nat=False)
                for vpc_id in engine.vpcs():
                    engine.remove_vpc(vpc_id)
                engine.close()
            for namespace in (name, world):
                namespaces.remove(namespace)
            shutil.rmtree(data_dir)


def reaches(guest: Guest, address: str, timeout_s: float = 0.5) -> bool:
    with suppress(OSError), guest.connect(address, 80, timeout_s):
        return True
    return False


@pytest.mark.parametrize("nat", [True, False])
def test_guests_come_to_the_internet_only_if_the_host_passes_them_on(small_host: SmallHost, nat: bool) -> None:
    with inside(small_host.name):
        engine = small_host.engine(nat=nat)
        networks = NetworkHost("local", engine, lambda: engine, lambda _vpc, _what: None, small_host.external.removesuffix("/24"))
        spec = networks.vpc()
        spec = with_ports(spec, port(spec, "10.0.1.5", public_address=networks.public(50)), port(spec, "10.0.1.6"))
        engine.ensure_vpc(spec)
        assert engine.drift() == []
        guests = [Guest(engine, spec, each).configure() for each in spec.ports]
        try:
            for guest in guests:
                guest.serve(80)
                assert reaches(guest, INTERNET, PATIENTLY_S if nat else 0.5) is nat
                assert not reaches(guest, UPSTREAM), "an address of the host's own"
                assert not reaches(guest, networks.public(1))
            with socket.create_connection((networks.public(50), 80), timeout=PATIENTLY_S) as link:
                assert link.recv(100).startswith(b"10.0.1.5"), "the host comes to its guests"
            assert not small_host.engine(nat=not nat)._external.is_right(), "what is wanted now is not what was set"
            assert engine.drift() == []
            forwarding = Path("/proc/sys/net/ipv4/ip_forward").read_text().strip()
            assert forwarding == ("1" if nat else "0")
        finally:
            for guest in guests:
                guest.close()
            engine.remove_vpc(spec.vpc_id)
            engine.close()
        left = subprocess.run(["nft", "list", "ruleset"], capture_output=True, text=True, check=True).stdout
        assert left == ""


def test_an_external_network_that_the_host_uses_is_refused(small_host: SmallHost) -> None:
    with inside(small_host.name):
        engine = LocalNetwork(small_host.data_dir, external_cidr="192.0.2.0/24")
        networks = NetworkHost("local", engine, lambda: engine, lambda _vpc, _what: None, "192.0.2.0")
        with pytest.raises(EngineRefused, match="NETWORK_EXTERNAL_CIDR"):
            engine.ensure_vpc(networks.vpc())
        engine.close()


def test_networks_whose_installation_was_deleted_do_not_keep_their_addresses(small_host: SmallHost, tmp_path: Path) -> None:
    with inside(small_host.name):
        gone, here = LocalNetwork(tmp_path / "gone", external_cidr=small_host.external), small_host.engine(nat=False)
        networks = NetworkHost("local", here, lambda: here, lambda _vpc, _what: None, small_host.external.removesuffix("/24"))
        gone.ensure_vpc(networks.vpc())
        spec = networks.vpc()
        with pytest.raises(EngineRefused, match="NETWORK_EXTERNAL_CIDR"):
            here.ensure_vpc(spec)
        gone.close()
        shutil.rmtree(tmp_path / "gone")
        here.ensure_vpc(spec)
        assert here.drift() == []
        word = gone._installation.word
        assert [path.name for path in namespaces.RUN.iterdir() if word in path.name] == []
        processes = subprocess.run(["ps", "-ewwo", "args"], capture_output=True, text=True, check=True).stdout
        assert str(tmp_path) not in processes
        here.remove_vpc(spec.vpc_id)
        here.close()
