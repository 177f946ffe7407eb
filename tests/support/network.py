"""Network engines under test, and guests without machines: a namespace whose network card is pumped into the tap that a machine would have."""

import fcntl
import os
import secrets
import select
import shutil
import socket
import struct
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from portal.engines.fake_network import FakeNetwork
from portal.engines.local.network import names, namespaces
from portal.engines.local.network.names import EXTERNAL_BRIDGE, path_of
from portal.engines.local.network.namespaces import inside
from portal.engines.local.network.requirements import missing_piece
from portal.engines.local.network.routing import PEER_GATEWAY
from portal.engines.network_ports import (
    Direction,
    GroupSpec,
    GuestData,
    IpProtocol,
    NetworkEngine,
    PortSpec,
    RouteSpec,
    RuleSpec,
    SubnetSpec,
    Via,
    VpcSpec,
)

SET_INTERFACE = 0x400454CA
TAP_WITHOUT_HEADER = 0x1002
BRIEFLY_S, PATIENTLY_S = 0.4, 3.0
FRAME = 65_536
EVERYWHERE = "0.0.0.0/0"
ANY_ADDRESS = "0.0.0.0"  # noqa: S104 - in a guest's own namespace


def rule(
    rule_id: str, direction: Direction = Direction.INGRESS, protocol: IpProtocol = IpProtocol.TCP, port: int | None = None, **more: Any
) -> RuleSpec:
    """A rule for one port, or all; from everywhere unless a range or a group is given."""
    if "cidr" not in more and "group_id" not in more:
        more["cidr"] = EVERYWHERE
    return RuleSpec(rule_id, direction, protocol, port, port, **more)


OUT = rule("rule-out", Direction.EGRESS, IpProtocol.ALL)
PING = rule("rule-ping", protocol=IpProtocol.ICMP, icmp_type=8)


@dataclass
class NetworkHost:
    """One engine, and what can be done to its host from outside."""

    name: str
    engine: NetworkEngine
    open: Callable[[], NetworkEngine]
    damage: Callable[[str, str], None]
    external: str
    made: list[str] = field(default_factory=list)

    def reopen(self) -> NetworkEngine:
        """The engine as another process would find it; the former one has let go."""
        self.engine.close()
        self.engine = self.open()
        return self.engine

    def public(self, number: int) -> str:
        """An address of the external network."""
        return self.external.rsplit(".", 1)[0] + f".{number}"

    def vpc(self, **changes: Any) -> VpcSpec:
        """A small VPC: two subnets with the Internet, one group that lets HTTP in and everything out; each call names another one."""
        vpc_id = f"vpc-{secrets.token_hex(6)}"
        self.made.append(vpc_id)
        routes = [RouteSpec("10.0.0.0/16", Via.LOCAL), RouteSpec(EVERYWHERE, Via.INTERNET)]
        given: dict[str, Any] = {
            "vpc_id": vpc_id, "cidr": "10.0.0.0/16", "domain": "test.internal",
            "subnets": [SubnetSpec(f"{vpc_id}-s1", "10.0.1.0/24", routes), SubnetSpec(f"{vpc_id}-s2", "10.0.2.0/24", routes)],
            "groups": [GroupSpec("sg-web", [rule("rule-http", port=80), OUT])],
            "uplink_address": self.public(10 + len(self.made)),
        }  # fmt: skip
        return VpcSpec(**{**given, **changes})

    def clear(self) -> None:
        """Remove everything that was made."""
        while self.made:
            self.engine.remove_vpc(self.made.pop())


def port(spec: VpcSpec, address: str, *group_ids: str, name: str = "", **more: Any) -> PortSpec:
    """A port of a VPC with this address."""
    subnet = spec.subnets[0 if address.startswith("10.0.1.") else 1]
    mac = "52:54:00:" + ":".join(f"{int(part):02x}" for part in address.split(".")[1:])
    port_id = f"eni-{spec.vpc_id.removeprefix('vpc-')}-{address.replace('.', '')}"
    guest = GuestData(f"i-{address.replace('.', '')}", name or "guest", user_data=f"#!/bin/sh\necho {spec.vpc_id} {address}\n")
    return PortSpec(port_id, subnet.subnet_id, mac, address, group_ids or ("sg-web",), names=(name,) if name else (), guest=guest, **more)


def with_ports(spec: VpcSpec, *ports: PortSpec) -> VpcSpec:
    """The VPC with these ports."""
    return replace(spec, ports=ports)


def fake_network_host(root: Path) -> NetworkHost:
    """The fake engine; another process's view of it is another object."""
    fake = FakeNetwork(root)
    return NetworkHost("fake", fake, lambda: FakeNetwork(root), fake.outside_change, "100.64.0.0")


def free_external() -> str:
    """An external network for one installation of this test run: several may be on this host."""
    return f"100.{64 + secrets.randbelow(64)}.{1 + secrets.randbelow(254)}.0/24"


def why_no_networks() -> str:
    """Why networks cannot be made on this machine; empty if they can."""
    return missing_piece()


@contextmanager
def local_network_host() -> Iterator[NetworkHost]:
    """The real engine in a directory and an external network of its own; afterwards nothing of it is left."""
    from portal.engines.local.network.engine import LocalNetwork

    data_dir = Path(tempfile.mkdtemp(prefix="portal-network-"))
    data_dir.chmod(0o711)
    external = free_external()

    def open_engine() -> LocalNetwork:
        return LocalNetwork(data_dir, external_cidr=external)

    host = NetworkHost("local", open_engine(), open_engine, lambda vpc_id, what: damage(host.engine, vpc_id, what), external.removesuffix("/24"))
    try:
        yield host
    finally:
        for vpc_id in host.engine.vpcs():
            host.engine.remove_vpc(vpc_id)
        host.engine.close()
        shutil.rmtree(data_dir)


def damage(engine: Any, vpc_id: str, what: str) -> None:
    """Break one thing of a VPC as somebody on the host could."""
    fabric, router = engine._fabric.name, engine._router(vpc_id).name
    spec = engine._store.vpc(vpc_id).spec
    kill = ("kill", "-KILL", str(engine._name_server(vpc_id).process()))
    broken: dict[str, list[tuple[str, ...]]] = {
        "bridge": [_in(fabric, "ip", "link", "delete", names.bridge(spec.subnets[0]))],
        "tap": [_in(fabric, "ip", "link", "delete", engine.tap_of(port.port_id)) for port in spec.ports[:1]],
        "guard": [_in(fabric, "nft", "flush", "ruleset")],
        "router rules": [_in(router, "nft", "flush", "ruleset")],
        "address": [_in(router, "ip", "address", "flush", "dev", names.subnet_side(spec.subnets[0]))],
        "route": [_in(router, "ip", "route", "flush", "table", "1000")],
        "name server": [kill],
        "hanging name server": [("kill", "-STOP", kill[2])],
        "forwarding": [_in(router, "sysctl", "-qw", "net.ipv4.ip_forward=0")],
        "proxy": [_in(router, "sysctl", "-qw", f"net.ipv4.conf.{names.subnet_side(spec.subnets[0])}.proxy_arp_pvlan=0")],
        "loose connections": [_in(router, "sysctl", "-qw", "net.netfilter.nf_conntrack_tcp_loose=1")],
        "router's name": [("ip", "netns", "delete", router)],
        "router": [kill, ("ip", "netns", "delete", router)],
        "fabric": [("ip", "netns", "delete", fabric)],
        "uplink of the host": [("ip", "link", "delete", engine._installation.host_link)],
        "metadata": [],
        "rules of the host": [("nft", "flush", "table", "inet", engine._installation.host_table)],
        "somebody's rules": [_in(router, "nft", "table inet foreign { chain no { type filter hook forward priority 50; policy drop; }; }")],
        "somebody's chains": [
            _in(router, "nft", "table inet atonix { chain other { drop; }; chain no { type filter hook forward priority -50; jump other; }; }"),
        ],
        "neighbour": [_in(router, "ip", "neigh", "del", PEER_GATEWAY, "dev", names.peering_side("pcx-1"))],
    }
    for command in broken[what]:
        subprocess.run(command, check=True, timeout=10)
    if what == "metadata":
        engine._metadata.remove(vpc_id)


def _in(namespace: str, *command: str) -> tuple[str, ...]:
    return ("nsenter", f"--net={path_of(namespace)}", *command)


class Guest:
    """A namespace that is connected to a port's tap as a machine's network card would be."""

    def __init__(self, engine: Any, spec: VpcSpec, port: PortSpec) -> None:
        self.port, self._engine = port, engine
        self.gateway = next(s.cidr for s in spec.subnets if s.subnet_id == port.subnet_id).rsplit(".", 1)[0] + ".1"
        self.name = f"atonix-test-{secrets.token_hex(4)}"
        subprocess.run(["ip", "netns", "add", self.name], check=True, timeout=10)
        self._stack = ExitStack()
        self._stop, self._stopped = os.pipe()
        self.plug()

    def plug(self) -> None:
        """Open the tap, and pass frames to and fro."""
        self._outer = _tap(self._engine._fabric.name, self._engine.tap_of(self.port.port_id))
        self._inner = _tap(self.name, "eth0")
        self.run("ip", "link", "set", "eth0", "address", self.port.mac)
        self.run("sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1")
        for link in ("lo", "eth0"):
            self.run("ip", "link", "set", link, "up")
        self._pump = threading.Thread(target=self._run_pump, daemon=True)
        self._pump.start()

    def configure(self) -> Self:
        """Give it its address by hand."""
        self.run("ip", "address", "add", f"{self.port.address}/24", "dev", "eth0")
        self.run("ip", "route", "add", "default", "via", self.gateway)
        return self

    def _run_pump(self) -> None:
        ends = {self._outer: self._inner, self._inner: self._outer}
        while True:
            ready, _, _ = select.select([*ends, self._stop], [], [])
            if self._stop in ready:
                return
            for end in ready:
                with suppress(OSError):
                    os.write(ends[end], os.read(end, FRAME))

    def unplug(self) -> None:
        """Let go of the tap."""
        os.write(self._stopped, b"x")
        self._pump.join()
        os.read(self._stop, 1)
        os.close(self._outer)
        os.close(self._inner)

    def run(self, *command: str, timeout_s: float = 10) -> str:
        """Run a program in the guest."""
        done = subprocess.run(
            ["nsenter", f"--net={path_of(self.name)}", *command], capture_output=True, text=True, timeout=timeout_s, check=False
        )  # fmt: skip
        assert done.returncode == 0, f"{command}: {done.stderr} {done.stdout}"
        return done.stdout

    def serve(self, number: int, *, address: str = ANY_ADDRESS) -> None:
        """Answer whoever connects with one's own address and the caller's."""
        with inside(self.name):
            listener = socket.create_server((address, number), backlog=16)
        self._stack.enter_context(closing(listener))

        def answer() -> None:
            with suppress(OSError):
                while True:
                    link, caller = listener.accept()
                    threading.Thread(target=talk, args=(link, caller[0]), daemon=True).start()

        def talk(link: socket.socket, caller: str) -> None:
            with link, suppress(OSError):
                link.sendall(f"{self.port.address} saw {caller}\n".encode())
                while heard := link.recv(4096):
                    link.sendall(heard)

        threading.Thread(target=answer, daemon=True).start()

    def connect(self, address: str, number: int, timeout_s: float = BRIEFLY_S) -> socket.socket:
        """Connect, or raise OSError."""
        with inside(self.name):
            link = socket.socket()
        link.settimeout(timeout_s)
        try:
            link.connect((address, number))
        except OSError:
            link.close()
            raise
        return link

    def hears(self, address: str, number: int, timeout_s: float = BRIEFLY_S) -> str:
        """What a server answers; empty if it cannot be reached."""
        try:
            with self.connect(address, number, timeout_s) as link:
                return link.makefile().readline().strip()
        except OSError:
            return ""

    def fetch(self, address: str, path: str) -> tuple[int, str]:
        """Status and body of a page."""
        with self.connect(address, 80, PATIENTLY_S) as link:
            link.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            head, _, body = b"".join(iter(lambda: link.recv(4096), b"")).decode().partition("\r\n\r\n")
        return int(head.split()[1]), body

    def pings(self, address: str, *, source: str = "") -> bool:
        """Whether an address answers."""
        given = ["-I", source] if source else []
        command = ["nsenter", f"--net={path_of(self.name)}", "busybox", "ping", "-c", "1", "-W", "1", *given, address]
        return subprocess.run(command, capture_output=True, timeout=10, check=False).returncode == 0

    def close(self) -> None:
        """End it."""
        self._stack.close()
        self.unplug()
        for end in (self._stop, self._stopped):
            os.close(end)
        namespaces.remove(self.name)


class Outside(Guest):
    """A neighbour on the external network."""

    def __init__(self, engine: Any, host: NetworkHost, number: int = 250) -> None:
        self.address = host.public(number)
        self.name = f"atonix-test-{secrets.token_hex(4)}"
        subprocess.run(["ip", "netns", "add", self.name], check=True, timeout=10)
        self._stack = ExitStack()
        self.port = PortSpec("eni-outside", "", "", self.address)
        fabric = path_of(engine._fabric.name)
        end = f"u{secrets.token_hex(6)}"
        subprocess.run(
            ["nsenter", f"--net={fabric}", "ip", "link", "add", end, "type", "veth", "peer", "name", "eth0", "netns", self.name], check=True, timeout=10
        )  # fmt: skip
        subprocess.run(["nsenter", f"--net={fabric}", "ip", "link", "set", end, "master", EXTERNAL_BRIDGE, "up"], check=True, timeout=10)
        for command in (("link", "set", "lo", "up"), ("link", "set", "eth0", "up"), ("address", "add", f"{self.address}/24", "dev", "eth0")):
            self.run("ip", *command)

    def close(self) -> None:
        """End it."""
        self._stack.close()
        namespaces.remove(self.name)


def _tap(namespace: str, name: str) -> int:
    with inside(namespace):
        handle = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    fcntl.ioctl(handle, SET_INTERFACE, struct.pack("16sH22x", name.encode(), TAP_WITHOUT_HEADER))
    return handle


def sends(sender: Guest, source: str, receiver: Guest, address: str = "") -> str:
    """From which address a datagram comes at the receiver, if it does."""
    with inside(receiver.name):
        ear = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with inside(sender.name):
        mouth = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with ear, mouth:
        ear.bind((receiver.port.address, 9999))
        ear.settimeout(1)
        mouth.bind((source, 0))
        mouth.sendto(b"hello", (address or receiver.port.address, 9999))
        with suppress(TimeoutError):
            return str(ear.recvfrom(100)[1][0])
    return ""


def dhcp(asking: Guest, mac: str, kind: int, *options: bytes) -> str:
    """The address that an answer to a DHCP message offers; `mac` is whom it says that it is about."""
    answer = dhcp_answer(asking, mac, kind, *options)
    return socket.inet_ntoa(answer[16:20]) if answer else ""


def dhcp_answer(asking: Guest, mac: str, kind: int, *options: bytes) -> bytes:
    """The answer to a DHCP message, if there is one."""
    number = secrets.token_bytes(4)
    about = bytes.fromhex(mac.replace(":", "")) + bytes(10 + 192) + bytes.fromhex("63825363")
    message = bytes([1, 1, 6, 0]) + number + bytes.fromhex("00008000") + bytes(16) + about + bytes([53, 1, kind]) + b"".join(options) + b"\xff"
    with inside(asking.name):
        link = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with link:
        for option in (socket.SO_REUSEADDR, socket.SO_BROADCAST):
            link.setsockopt(socket.SOL_SOCKET, option, 1)
        link.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")
        link.bind(("", 68))
        link.settimeout(1)
        link.sendto(message, ("255.255.255.255", 67))
        with suppress(TimeoutError):
            while True:
                answer = link.recv(1500)
                if answer[4:8] == number:
                    return answer
    return b""


def fabric_of(host: NetworkHost) -> str:
    return host.engine._fabric.name  # type: ignore[attr-defined,no-any-return]


def made_vpc(host: NetworkHost, *addresses: str, **changes: object) -> VpcSpec:
    spec = host.vpc(**changes)
    spec = with_ports(spec, *(port(spec, address, name=f"g{number}") for number, address in enumerate(addresses)))
    host.engine.ensure_vpc(spec)
    return spec
