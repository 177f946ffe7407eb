"""The metadata service: what a guest may know about itself, at 169.254.169.254, and about nobody else.

A listening socket inside each router's namespace tells the VPCs apart, the guest's address tells its guests apart; that it is the guest's own is held
by the guard and the router's rules.
"""

import logging
import selectors
import socket
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler

from portal.engines.local.network.filter import METADATA
from portal.engines.local.network.namespaces import identity, inside
from portal.engines.local.seed import meta_data
from portal.engines.network_ports import PortSpec, VpcSpec

log = logging.getLogger("portal.engines.network")

PORT = 80
TIMEOUT_S = 5
WORKERS, WORKERS_PER_VPC = 16, 4
WAITING = 64
SHOWN = "/latest/meta-data/"


def answers(port: PortSpec) -> dict[str, bytes]:
    """Everything that a guest can ask for, by path."""
    guest = port.guest
    if guest is None:
        return {}
    shown = {
        "instance-id": guest.instance_id, "hostname": guest.hostname, "local-hostname": guest.hostname, "local-ipv4": port.address, "mac": port.mac,
        **({"public-ipv4": guest.public_address} if guest.public_address else {}),
        **{f"public-keys/{number}/openssh-key": key for number, key in enumerate(guest.ssh_public_keys)},
        **{f"tags/instance/{name}": value for name, value in guest.metadata.items()},
    }  # fmt: skip
    found = {SHOWN + name: value for name, value in shown.items()}
    found |= {"/latest/user-data": guest.user_data} if guest.user_data else {}
    found |= {
        "/nocloud/meta-data": meta_data(guest.instance_id, guest.hostname, guest.ssh_public_keys),
        "/nocloud/user-data": guest.user_data,
        "/nocloud/vendor-data": "",
    }
    found |= {path: "\n".join(sorted(names)) for path, names in _listings(found).items()}
    return {path: text.encode() for path, text in found.items()}


def _listings(found: Mapping[str, str]) -> dict[str, set[str]]:
    """What is in each directory, as `/latest/meta-data/` shows it."""
    listings: dict[str, set[str]] = {}
    for path in found:
        if path.startswith(SHOWN):
            parts = path.removeprefix(SHOWN).split("/")
            for depth, part in enumerate(parts):
                above = SHOWN + "".join(f"{each}/" for each in parts[:depth])
                listings.setdefault(above, set()).add(part if depth == len(parts) - 1 else f"{part}/")
    return listings


class _Handler(BaseHTTPRequestHandler):
    """One request; `server` is the VPC's table of answers by guest address."""

    protocol_version = "HTTP/1.1"
    timeout = TIMEOUT_S
    server_version, sys_version = "metadata", ""
    server: dict[str, dict[str, bytes]]  # type: ignore[assignment]

    def do_GET(self) -> None:
        """Answer the guest that asks with what is its own."""
        own = self.server.get(self.client_address[0], {})
        path = self.path.split("?", 1)[0]
        found = own.get(path, own.get(f"{path}/"))
        # Whoever asks for somebody else, as a proxy in the guest would, is not the guest.
        is_passed_on = self.headers.get("X-Forwarded-For") is not None
        if found is None or is_passed_on:
            self._answer(HTTPStatus.FORBIDDEN if is_passed_on else HTTPStatus.NOT_FOUND, b"")
        else:
            self._answer(HTTPStatus.OK, found)

    def _answer(self, status: HTTPStatus, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - named by the library
        """Say nothing: guests could fill the log."""


class MetadataService:
    """All listening sockets of this process, one thread that waits for guests, and a few that answer."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._vpcs: dict[str, _Listener] = {}
        self._selector = selectors.DefaultSelector()
        self._wake, self._woken = socket.socketpair()
        self._selector.register(self._woken, selectors.EVENT_READ, None)
        self._pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="metadata")
        self._thread = threading.Thread(target=self._serve, daemon=True, name="metadata")
        self._closing = False
        self._thread.start()

    def ensure(self, namespace: str, spec: VpcSpec) -> None:
        """Answer the guests of a VPC, with what they are told now."""
        table = {port.address: answers(port) for port in spec.ports}
        with self._guard:
            listener = self._vpcs.get(spec.vpc_id)
            if listener is not None and listener.is_right(namespace):
                listener.table = table
                return
            if listener is not None:
                self._drop(spec.vpc_id)
            listener = _Listener(namespace, table)
            self._vpcs[spec.vpc_id] = listener
            self._selector.register(listener.socket, selectors.EVENT_READ, listener)
        self._wake.send(b"w")

    def is_right(self, namespace: str, vpc_id: str) -> bool:
        """Whether the guests of a VPC are answered."""
        with self._guard:
            listener = self._vpcs.get(vpc_id)
            return listener is not None and listener.is_right(namespace)

    def remove(self, vpc_id: str) -> None:
        """Answer a VPC no longer."""
        with self._guard:
            self._drop(vpc_id)

    def _drop(self, vpc_id: str) -> None:
        listener = self._vpcs.pop(vpc_id, None)
        if listener is not None:
            with suppress(KeyError, ValueError):
                self._selector.unregister(listener.socket)
            listener.socket.close()

    def close(self) -> None:
        """Answer nobody any more."""
        self._closing = True
        self._wake.send(b"w")
        self._thread.join()
        with self._guard:
            for vpc_id in list(self._vpcs):
                self._drop(vpc_id)
        self._pool.shutdown()
        self._selector.close()
        for end in (self._wake, self._woken):
            end.close()

    def _serve(self) -> None:
        while not self._closing:
            for key, _ in self._selector.select():
                if key.data is None:
                    self._woken.recv(4096)
                else:
                    self._accept(key.data)

    def _accept(self, listener: "_Listener") -> None:
        try:
            link, address = listener.socket.accept()
        except OSError:
            # Taken away a moment ago, or the guest went.
            return
        # One VPC's slow guests do not keep the others waiting.
        if not listener.places.acquire(blocking=False):
            link.close()
            return
        self._pool.submit(_handle, listener, link, address)


class _Listener:
    """The socket in one router's namespace."""

    def __init__(self, namespace: str, table: dict[str, dict[str, bytes]]) -> None:
        self.table = table
        self.places = threading.BoundedSemaphore(WORKERS_PER_VPC)
        self._identity = identity(namespace)
        with inside(namespace):
            self.socket = socket.create_server((METADATA, PORT), backlog=WAITING)
        self.socket.setblocking(False)

    def is_right(self, namespace: str) -> bool:
        """Whether it listens in the namespace that has the name now."""
        return self.socket.fileno() >= 0 and self._identity == identity(namespace)


def _handle(listener: _Listener, link: socket.socket, address: tuple[str, int]) -> None:
    try:
        link.settimeout(TIMEOUT_S)
        _Handler(link, address, listener.table)  # type: ignore[arg-type]
    except OSError as error:
        log.debug("a guest's question was cut off: %s", error)
    finally:
        link.close()
        listener.places.release()
