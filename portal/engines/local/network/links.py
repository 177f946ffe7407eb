"""Links, addresses and routes of one namespace, through the kernel's netlink."""

import errno
import fcntl
import os
import socket
import struct
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, Self

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from portal.engines.local.network.listing import Link
from portal.engines.local.network.names import path_of
from portal.engines.local.network.namespaces import inside
from portal.engines.local.network.routing import RULE_PRIORITY, Lookup, Route
from portal.engines.ports import EngineError

TUN = "/dev/net/tun"
SET_INTERFACE, SET_PERSISTENT = 0x400454CA, 0x400454CB
TAP, NO_HEADER, VIRTIO_HEADER = 0x0002, 0x1000, 0x4000
NO_PREFIX_ROUTE = 0x200
UP = 1
MAIN, OURS, ONLINK = 254, 4, 4
UNREACHABLE = 7
SCOPE_LINK, SCOPE_UNIVERSE = 253, 0
PERMANENT = 0x80
EVERYWHERE = "0.0.0.0/0"
TIMEOUT_S = 30


class Links:
    """An open connection to a namespace's links; used by one thread, for a moment. What it has seen it does not look at again."""

    def __init__(self, namespace: str) -> None:
        """An empty name is this process's own namespace. Raises EngineError."""
        self._namespace = namespace
        self._seen: dict[str, Link | None] = {}
        self._everything: dict[str, Link] | None = None
        with self._work():
            self._socket = IPRoute()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self._socket.close()

    @contextmanager
    def _work(self) -> Iterator[None]:
        """Be in the namespace, and turn an error of the kernel's into one for users."""
        with inside(self._namespace) if self._namespace else nullcontext():
            try:
                yield
            except NetlinkError as error:
                raise EngineError(f"The kernel refused a change of the network: {os.strerror(error.code)}.") from error
            except OSError as error:
                raise EngineError(f"The network cannot be looked at or changed: {error.strerror}.") from error

    def find(self, name: str) -> Link | None:
        """A link by its name, None if there is none; looking for one costs the same however many there are."""
        if name not in self._seen:
            self._seen[name] = None
            with self._work(), _done_if(errno.ENODEV):
                (message,) = self._socket.link("get", ifname=name)
                self._seen[name] = _link(message)
        return self._seen[name]

    def has(self, name: str) -> bool:
        """Whether there is a link of this name."""
        return self.find(name) is not None

    def all(self) -> dict[str, Link]:
        """Every link by its name."""
        if self._everything is None:
            with self._work():
                self._everything = {link.name: link for link in map(_link, self._socket.get_links())}
        return self._everything

    def look_again(self, name: str) -> None:
        """Forget what was seen of a link."""
        self._seen.pop(name, None)
        self._everything = None

    def _need(self, name: str) -> Link:
        found = self.find(name)
        if found is None:
            raise EngineError("A network interface of the portal is missing.")
        return found

    def index(self, name: str) -> int:
        """The kernel's number of a link. Raises EngineError."""
        return self._need(name).index

    # -- links -------------------------------------------------------------------------------------------------------------------------------

    def ensure_bridge(self, name: str) -> None:
        """Make a bridge that is up."""
        if not self.has(name):
            self._add(ifname=name, kind="bridge", br_stp_state=0, br_forward_delay=0)
        self.ensure_up(name)

    def ensure_veth(self, name: str, other: str, namespace: str, macs: tuple[str, str]) -> None:
        """Make a pair, one end here and one in another namespace; each with its MAC."""
        if self.has(name):
            return
        handle = os.open(path_of(namespace), os.O_RDONLY | os.O_CLOEXEC)
        try:
            near, far = macs
            self._add(ifname=name, kind="veth", address=near, peer={"ifname": other, "net_ns_fd": handle, "address": far})
        finally:
            os.close(handle)

    def _add(self, **what: Any) -> None:
        with self._work(), _done_if(errno.EEXIST):
            self._socket.link("add", **what)
        self.look_again(what["ifname"])

    def ensure_tap(self, name: str) -> None:
        """Make a tap that stays, whoever opens and closes it; only root may open it."""
        if self.has(name):
            return
        with inside(self._namespace):
            handle = os.open(TUN, os.O_RDWR | os.O_CLOEXEC)
        try:
            request = struct.pack("16sH22x", name.encode(), TAP | NO_HEADER | VIRTIO_HEADER)
            fcntl.ioctl(handle, SET_INTERFACE, request)
            fcntl.ioctl(handle, SET_PERSISTENT, 1)
        except OSError as error:
            raise EngineError(f"A tap cannot be made: {error.strerror}.") from error
        finally:
            os.close(handle)
        self.look_again(name)

    def ensure_in_bridge(self, name: str, bridge: str, *, is_isolated: bool = False) -> None:
        """Put a link into a bridge; isolated ones reach only those that are not."""
        link, master = self._need(name), self.index(bridge)
        if link.master != master:
            with self._work():
                self._socket.link("set", index=link.index, master=master)
        if is_isolated and not (link.is_isolated and link.master == master):
            with self._work():
                self._socket.brport("set", index=link.index, IFLA_BRPORT_ISOLATED=1)
        self.look_again(name)

    def ensure_up(self, name: str) -> None:
        """Switch a link on."""
        link = self._need(name)
        if not link.is_up:
            with self._work():
                self._socket.link("set", index=link.index, state="up")
            self.look_again(name)

    def ensure_label(self, name: str, text: str) -> None:
        """Write on a link whose it is."""
        link = self._need(name)
        if link.label != text:
            with self._work():
                self._socket.link("set", index=link.index, ifalias=text)
            self.look_again(name)

    def remove(self, name: str) -> None:
        """Remove a link, with its other end if it has one."""
        link = self.find(name)
        if link is not None:
            with self._work(), _done_if(errno.ENODEV):
                self._socket.link("del", index=link.index)
            self.look_again(name)

    # -- addresses, routes -------------------------------------------------------------------------------------------------------------------

    def addresses(self) -> set[tuple[int, str]]:
        """Number of the link and address with prefix of everything but loopback's own."""
        with self._work():
            found = {(each["index"], f"{each.get('address')}/{each['prefixlen']}") for each in self._socket.get_addr(family=socket.AF_INET)}
        return {(index, text) for index, text in found if not text.startswith("127.")}

    def sync_addresses(self, wanted: Collection[tuple[str, str]]) -> None:
        """Give links these addresses, in CIDR form, and no others; routes do not come with them."""
        goal = {(self.index(name), text) for name, text in wanted}
        had = self.addresses()
        for index, text in had - goal:
            self._address("del", index, text)
        for index, text in sorted(goal - had):
            self._address("add", index, text)

    def ensure_address(self, name: str, text: str) -> None:
        """Give a link an address, and the route to its network with it."""
        index = self.index(name)
        if (index, text) not in self.addresses():
            address, _, length = text.partition("/")
            with self._work(), _done_if(errno.EEXIST):
                self._socket.addr("add", index=index, address=address, prefixlen=int(length))

    def _address(self, verb: str, index: int, text: str) -> None:
        address, _, length = text.partition("/")
        flags = {"flags": NO_PREFIX_ROUTE} if verb == "add" else {}
        with self._work(), _done_if(errno.EEXIST, errno.EADDRNOTAVAIL, errno.ENODEV):
            self._socket.addr(verb, index=index, address=address, prefixlen=int(length), **flags)

    def routes(self) -> set[Route]:
        """Routes of ours."""
        names = {link.index: link.name for link in self.all().values()}
        with self._work():
            dumped = list(self._socket.get_routes(family=socket.AF_INET))
        return {_route(each, names) for each in dumped if each["proto"] == OURS}

    def sync_routes(self, wanted: Collection[Route]) -> None:
        """Set these routes and no others."""
        had = self.routes()
        goal = set(wanted)
        for route in had - goal:
            with self._work(), _done_if(errno.ESRCH):
                self._socket.route("del", **self._fields(route))
        # A gateway has to be known before it is led over.
        for route in sorted(goal - had, key=lambda each: (each.gateway, each.destination)):
            with self._work(), _done_if(errno.EEXIST):
                self._socket.route("replace", **self._fields(route))

    def _fields(self, route: Route) -> dict[str, Any]:
        fields: dict[str, Any] = {"dst": route.destination, "table": route.table or MAIN, "proto": OURS, "family": socket.AF_INET}
        if not route.interface:
            return {**fields, "type": UNREACHABLE}
        fields |= {"oif": self.index(route.interface), "scope": SCOPE_UNIVERSE if route.gateway else SCOPE_LINK}
        return {**fields, "gateway": route.gateway, "flags": ONLINK} if route.gateway else fields

    def lookups(self) -> set[Lookup]:
        """Rules that lead to tables of ours."""
        with self._work():
            rules = list(self._socket.get_rules(family=socket.AF_INET))
        return {
            Lookup(str(rule.get_attr("FRA_IIFNAME")), int(rule.get_attr("FRA_TABLE") or rule["table"]))
            for rule in rules
            if rule.get_attr("FRA_PRIORITY") == RULE_PRIORITY
        }

    def sync_lookups(self, wanted: Collection[Lookup]) -> None:
        """Let these interfaces be routed by these tables, and no others."""
        had = self.lookups()
        for verb, changed in (("add", set(wanted) - had), ("del", had - set(wanted))):
            for each in changed:
                with self._work(), _done_if(errno.EEXIST, errno.ENOENT):
                    self._socket.rule(verb, iifname=each.interface, table=each.table, priority=RULE_PRIORITY, family=socket.AF_INET)

    def ensure_neighbour(self, name: str, address: str, mac: str) -> None:
        """Let an address be known by a MAC without asking."""
        with self._work():
            self._socket.neigh("replace", ifindex=self.index(name), dst=address, lladdr=mac, state=PERMANENT)

    def neighbours(self) -> set[tuple[int, str, str]]:
        """Link, address and MAC of what is known without asking."""
        with self._work():
            found = list(self._socket.get_neighbours(family=socket.AF_INET))
        return {(each["ifindex"], each.get_attr("NDA_DST"), each.get_attr("NDA_LLADDR")) for each in found if each["state"] & PERMANENT}


def _link(message: Any) -> Link:
    details = message.get_attr("IFLA_LINKINFO")
    port = details.get_attr("IFLA_INFO_SLAVE_DATA") if details is not None else None
    moved = message.get_attr("IFLA_STATS64") or {}
    return Link(
        index=message["index"], name=message.get_attr("IFLA_IFNAME"), mac=message.get_attr("IFLA_ADDRESS") or "",
        is_up=bool(message["flags"] & UP), master=message.get_attr("IFLA_MASTER") or 0,
        is_isolated=bool(port is not None and hasattr(port, "get_attr") and port.get_attr("IFLA_BRPORT_ISOLATED")),
        received_bytes=moved.get("rx_bytes", 0), sent_bytes=moved.get("tx_bytes", 0), label=message.get_attr("IFLA_IFALIAS") or "",
    )  # fmt: skip


def _route(message: Any, names: Mapping[int, str]) -> Route:
    destination = message.get_attr("RTA_DST")
    table = message.get_attr("RTA_TABLE") or message["table"]
    interface = "" if message["type"] == UNREACHABLE else names.get(message.get_attr("RTA_OIF"), "?")
    return Route(
        0 if table == MAIN else table,
        f"{destination}/{message['dst_len']}" if destination else EVERYWHERE,
        interface,
        message.get_attr("RTA_GATEWAY") or "",
    )


@contextmanager
def _done_if(*codes: int) -> Iterator[None]:
    """Take these errors for nothing to do."""
    try:
        yield
    except NetlinkError as error:
        if error.code not in codes:
            raise
