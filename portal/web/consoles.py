"""Interactive consoles: websockets of the browser joined to the streams of a machine.

One thread carries what the machine says, the view's own what the user types. While both are quiet, the session is looked at again, so that a
console ends with the session that opened it.
"""

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

from flask import Flask, current_app, request
from flask_sock import Sock
from simple_websocket import ConnectionClosed, Server

from portal.compute.instances import INSTANCE
from portal.engines.ports import ConsoleAccess, EngineError
from portal.http.guard import Access, access
from portal.http.request import context, portal_settings, session_secret
from portal.identity.accounts import session_user
from portal.kernel.authz import authorize, target_of
from portal.kernel.db import db
from portal.kernel.errors import Forbidden, PortalError
from portal.kernel.lookup import find

CHUNK_BYTES = 16 << 10
MAX_MESSAGE_BYTES = 1 << 20
CHECK_EVERY_S = 15
# Application codes of RFC 6455 are 4000 to 4999.
REFUSED, ENDED, GONE = 4403, 4401, 4404
Opener = Callable[[ConsoleAccess, str], socket.socket]


def install(app: Flask) -> None:
    """Register the websockets."""
    app.config["SOCK_SERVER_OPTIONS"] = {"max_message_size": MAX_MESSAGE_BYTES, "ping_interval": 25}
    sock = Sock(app)

    def serial(ws: Server, instance_id: str) -> None:
        """The serial port."""
        serve(ws, instance_id, lambda console, machine_id: console.open_serial(machine_id))

    def display(ws: Server, instance_id: str) -> None:
        """The screen, in RFB."""
        serve(ws, instance_id, lambda console, machine_id: console.open_display(machine_id))

    for name, view in (("serial", serial), ("display", display)):
        sock.route(f"/ws/compute/instances/<instance_id>/{name}")(view)
        access(Access.SIGNED_IN)(app.view_functions[name])


def serve(ws: Server, instance_id: str, opener: Opener) -> None:
    """Join a websocket and a machine's stream until one of them ends."""
    try:
        machine_id = _allowed(instance_id)
    except PortalError as error:
        ws.close(REFUSED, error.message[:120])
        return
    console = current_app.extensions["portal_engines"].console
    secret, idle = session_secret(), timedelta(minutes=portal_settings().session_idle_minutes)
    # The connection goes back to the pool: a console lives for hours.
    db.session.remove()
    try:
        if console is None:
            ws.close(GONE, "This installation runs no instances.")
            return
        stream = opener(console, machine_id)
    except EngineError as error:
        ws.close(GONE, error.message[:120])
        return
    with stream:
        thread = threading.Thread(target=_carry_out, args=(stream, ws), daemon=True, name="console")
        thread.start()
        try:
            _carry_in(ws, stream, lambda: _still_signed_in(secret, idle))
        finally:
            with contextlib.suppress(OSError):
                stream.shutdown(socket.SHUT_RDWR)
            thread.join()


def _allowed(instance_id: str) -> str:
    origin = urlsplit(request.headers.get("Origin", ""))
    if origin.netloc != request.host:
        raise Forbidden("The console opens from this portal's own pages only.")
    ctx = context()
    row = find(ctx, INSTANCE, instance_id)
    authorize(ctx, "compute.instance.console", target_of(row))
    return str(row.id)


def _still_signed_in(secret: str, idle: timedelta) -> bool:
    try:
        return session_user(db.session(), secret, idle=idle) is not None
    finally:
        db.session.remove()


def _carry_in(ws: Server, stream: socket.socket, is_signed_in: Callable[[], bool]) -> None:
    """What the user types, until the websocket closes; now and then, see whether the session still holds."""
    checked_at = time.monotonic()
    while True:
        try:
            message: Any = ws.receive(timeout=CHECK_EVERY_S)
        except ConnectionClosed:
            return
        if time.monotonic() - checked_at >= CHECK_EVERY_S:
            if not is_signed_in():
                ws.close(ENDED, "Your session has ended.")
                return
            checked_at = time.monotonic()
        if message is None:
            continue
        try:
            stream.sendall(message.encode() if isinstance(message, str) else message)
        except OSError:
            return


def _carry_out(stream: socket.socket, ws: Server) -> None:
    """What the machine says, until it stops talking."""
    try:
        while data := stream.recv(CHUNK_BYTES):
            ws.send(data)
        ws.close(GONE, "The machine has stopped.")
    except (OSError, ConnectionClosed):
        with contextlib.suppress(ConnectionClosed):
            ws.close()
