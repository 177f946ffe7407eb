"""What a guest may know about itself, and about nobody else, as the metadata service at 169.254.169.254 answers. Pure."""

import io
from collections.abc import Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler

from portal.engines.local.seed import meta_data
from portal.engines.network_ports import PortSpec

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
    """One request that has come whole; `server` is the VPC's table of answers by guest address."""

    protocol_version = "HTTP/1.1"
    server_version, sys_version = "metadata", ""
    server: dict[str, dict[str, bytes]]  # type: ignore[assignment]

    def setup(self) -> None:
        """Read and write in memory."""
        self.rfile, self.wfile = io.BytesIO(self.request), io.BytesIO()

    def finish(self) -> None:
        """Keep what was written."""

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


def response(request: bytes, address: str, table: Mapping[str, Mapping[str, bytes]]) -> bytes:
    """What a guest gets for the head of its request."""
    written: io.BytesIO = _Handler(request, (address, 0), table).wfile  # type: ignore[arg-type,assignment]
    return written.getvalue()
