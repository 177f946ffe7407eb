"""Addresses and names for the guests of a VPC: one dnsmasq in its router's namespace. It outlives the worker; who finds it gone starts it again."""

import logging
import os
import select
import shutil
import signal
import socket
import stat
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv4Network, ip_address
from pathlib import Path

from portal.engines.local.network import names
from portal.engines.local.network.namespaces import identity, inside
from portal.engines.network_checks import router_address
from portal.engines.network_ports import VpcSpec
from portal.engines.ports import EngineError, EngineUnavailable

log = logging.getLogger("portal.engines.network")

PROGRAM = "dnsmasq"
LOOK_EVERY_S = 0.003
_PAUSE = threading.Event()
TIMEOUT_S = 10
LEASE = "1h"
# Network cards after a machine's first: a router told there would be taken for the way out of everything.
SECOND = "second"
# Who waits so long for an answer that takes no time will not get it.
ANSWER_S = 2
# For the address of a name without a dot, which it knows or does not, but asks nobody else for.
QUESTION = bytes.fromhex("0a1801000001000000000000") + b"\x06nobody\x00" + bytes.fromhex("00010001")
# Where the addresses of real servers are on hosts that have one of their own on loopback.
RESOLVERS = (Path("/etc/resolv.conf"), Path("/run/systemd/resolve/resolv.conf"))


@dataclass(frozen=True, slots=True)
class NameServer:
    """The dnsmasq of one VPC with its files."""

    folder: Path
    namespace: str

    def ensure(self, spec: VpcSpec, upstream: Sequence[str], peers: Sequence[VpcSpec] = ()) -> None:
        """Let it run with these addresses and names, and with those of peers in full; `upstream` answers about all others. Raises EngineError."""
        known = peers_known(spec, peers)
        self.folder.mkdir(parents=True, exist_ok=True)
        _replace(self.folder / "hosts", "".join(_hosts(spec)))
        _replace(self.folder / "names", "".join([*_names(spec), *(line for peer in known for line in _full_names(peer))]))
        text = "\n".join(self._configuration(spec, upstream, {peer.domain for peer in peers if peer.dns_names} if spec.dns_names else ())) + "\n"
        process = self.process()
        if process and self._conf.exists() and self._conf.read_text() == text and self._answers(spec):
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGHUP)
                return
        self.stop()
        _replace(self._conf, text)
        self._start()

    @property
    def _conf(self) -> Path:
        return self.folder / "conf"

    @property
    def _pid(self) -> Path:
        return self.folder / "pid"

    def process(self) -> int:
        """Its process, if it runs where it should; else 0."""
        CHILDREN.reap()
        with suppress(OSError, ValueError):
            number = int(self._pid.read_text())
            if self._is_ours(number) and Path(f"/proc/{number}/ns/net").stat().st_ino == identity(self.namespace):
                return number
        return 0

    def is_right(self, spec: VpcSpec) -> bool:
        """Whether it runs where it should, and answers."""
        return bool(self.process()) and self._answers(spec)

    def _answers(self, spec: VpcSpec) -> bool:
        """Whether it answers a question, as somebody with subnets could ask it."""
        if not spec.subnets:
            return True
        with inside(self.namespace):
            asking = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        with asking, suppress(OSError):
            asking.settimeout(ANSWER_S)
            asking.connect((str(router_address(spec.subnets[0])), 53))
            asking.send(QUESTION)
            return bool(asking.recv(512))
        return False

    def _is_ours(self, number: int) -> bool:
        return f"--conf-file={self._conf}".encode() in Path(f"/proc/{number}/cmdline").read_bytes().split(b"\0")

    def stop(self) -> None:
        """End it."""
        with suppress(OSError, ValueError):
            number = int(self._pid.read_text())
            handle = os.pidfd_open(number)
            try:
                if self._is_ours(number):
                    signal.pidfd_send_signal(handle, signal.SIGKILL)
                    _wait_for(handle)
            finally:
                os.close(handle)
        CHILDREN.reap()
        self._pid.unlink(missing_ok=True)

    def remove(self) -> None:
        """End it and delete its files."""
        self.stop()
        if self.folder.exists():
            shutil.rmtree(self.folder)

    def _start(self) -> None:
        """Start it and wait until it is ready: before, a signal would end it."""
        complaints = self.folder / "complaints"
        try:
            with inside(self.namespace), complaints.open("w") as heard:
                child = subprocess.Popen(
                    [PROGRAM, "--keep-in-foreground", f"--conf-file={self._conf}"],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=heard,
                    start_new_session=True,
                )
        except FileNotFoundError as error:
            raise EngineUnavailable("dnsmasq is not installed.") from error
        CHILDREN.add(child)
        deadline_s = time.monotonic() + TIMEOUT_S
        while not self._pid.exists():
            if child.poll() is not None:
                log.warning("dnsmasq: %s", complaints.read_text()[-500:])
                raise EngineError("The VPC's name server does not start; the worker's log has its words.")
            if time.monotonic() > deadline_s:
                raise EngineError("The VPC's name server did not start in time.")
            _PAUSE.wait(LOOK_EVERY_S)

    def _configuration(self, spec: VpcSpec, upstream: Sequence[str], others: Collection[str]) -> Iterator[str]:
        user = "nobody" if _others_may_read(self.folder) else "root"
        yield from ("port=53", "no-resolv", "no-hosts", "no-poll", "bind-dynamic", "except-interface=lo", "bogus-priv", "domain-needed")
        yield from ("dhcp-authoritative", "dhcp-ignore-names", "leasefile-ro", "no-ping", "log-facility=/dev/null")
        yield from (f"user={user}", f"pid-file={self._pid}", f"addn-hosts={self.folder / 'names'}", f"dhcp-hostsfile={self.folder / 'hosts'}")
        yield from (f"domain={spec.domain}", "expand-hosts", *(f"local=/{domain}/" for domain in sorted({spec.domain, *others})))
        yield from (f"server={server}" for server in upstream)
        told = {"domain-search": ",".join(spec.search_domains), "ntp-server": ",".join(spec.ntp_servers), "mtu": spec.mtu or ""}
        yield from (f"dhcp-option=option:{name},{value}" for name, value in told.items() if value)
        for subnet in spec.subnets:
            cidr, tag, router = IPv4Network(subnet.cidr), names.short(subnet.subnet_id), router_address(subnet)
            yield f"interface={names.subnet_side(subnet)}"
            yield f"dhcp-range=set:{tag},{cidr[0]},static,{cidr.netmask},{LEASE}"
            yield f"dhcp-option=tag:{tag},tag:!{SECOND},option:router,{router}"
            yield f"dhcp-option=tag:{tag},tag:{SECOND},option:router"
            yield f"dhcp-option=tag:{tag},option:dns-server,{router}"


def peers_known(spec: VpcSpec, peers: Sequence[VpcSpec]) -> list[VpcSpec]:
    """The peers whose names are told: not of one that is called like the VPC itself or another peer, which could take over names so."""
    if not spec.dns_names:
        return []
    called = Counter([spec.domain, *(peer.domain for peer in peers if peer.dns_names)])
    return [peer for peer in peers if peer.dns_names and called[peer.domain] == 1]


def _hosts(spec: VpcSpec) -> Iterator[str]:
    for port in spec.ports:
        kind = () if port.is_primary else (f"set:{SECOND}",)
        yield ",".join((port.mac, *kind, port.address, *((port.names[0].split(".")[0],) if port.names and spec.dns_names else ()))) + "\n"


def _names(spec: VpcSpec) -> Iterator[str]:
    for port in spec.ports if spec.dns_names else ():
        if port.names:
            yield f"{port.address} {' '.join(port.names)}\n"


def names_of(spec: VpcSpec) -> set[tuple[str, str]]:
    """What addresses are called in full: in the VPC's own domain, unless it is said otherwise."""
    if not spec.dns_names:
        return set()
    return {(port.address, name if "." in name else f"{name}.{spec.domain}") for port in spec.ports for name in port.names}


def _full_names(spec: VpcSpec) -> Iterator[str]:
    yield from (f"{address} {name}\n" for address, name in sorted(names_of(spec)))


def host_resolvers(paths: Sequence[Path] = RESOLVERS) -> list[str]:
    """Name servers of this host that its guests could reach as well."""
    for path in paths:
        with suppress(OSError):
            words = [line.split() for line in path.read_text().splitlines()]
            given = [each[1] for each in words if len(each) > 1 and each[0] == "nameserver"]
            if found := [server for server in given if _is_reachable(server)]:
                return found
    return []


def _is_reachable(text: str) -> bool:
    try:
        address = ip_address(text)
    except ValueError:
        return False
    return address.version == 4 and not address.is_loopback and not address.is_link_local  # noqa: PLR2004 - the version


def _others_may_read(folder: Path) -> bool:
    return all(path.stat().st_mode & stat.S_IXOTH for path in (folder, *folder.parents))


def _replace(path: Path, text: str) -> None:
    fresh = path.with_suffix(".new")
    fresh.write_text(text)
    fresh.chmod(0o644)
    fresh.replace(path)


def _wait_for(handle: int) -> None:
    poller = select.poll()
    poller.register(handle, select.POLLIN)
    poller.poll(TIMEOUT_S * 1000)


class _Children:
    """Name servers that this process started: the kernel keeps the dead ones until somebody has asked for them."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._known: list[subprocess.Popen[bytes]] = []

    def add(self, child: "subprocess.Popen[bytes]") -> None:
        """Remember one."""
        with self._guard:
            self._known.append(child)

    def reap(self) -> None:
        """Ask for the dead."""
        with self._guard:
            self._known = [child for child in self._known if child.poll() is None]


CHILDREN = _Children()
