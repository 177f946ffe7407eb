"""Interactive consoles: websockets of the browser joined to the streams of a machine.

One thread carries what the machine says, the view's own what the user types. Every few seconds session and permission are looked at again, so that
a console ends with the session that opened it, and with the right to have it.
"""

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

from flask import Flask, current_app, request
from flask_sock import Sock
from simple_websocket import ConnectionClosed, Server

from portal.compute.instances import INSTANCE
from portal.engines.ports import ConsoleAccess, EngineError
from portal.http.guard import Access, access
from portal.http.request import context, session_secret
from portal.identity.accounts import session_user
from portal.kernel import audit
from portal.kernel.authz import decide, target_of
from portal.kernel.context import Context
from portal.kernel.db import db
from portal.kernel.errors import Forbidden, NotFound, PortalError
from portal.kernel.lookup import find
from portal.kernel.operations import acting

CHUNK_BYTES = 16 << 10
MAX_MESSAGE_BYTES = 1 << 20
CHECK_EVERY_S = 15
# Application codes of RFC 6455 are 4000 to 4999.
REFUSED, ENDED, GONE = 4403, 4401, 4404
CONSOLE = "compute.instance.console"
Opener = Callable[[ConsoleAccess, str], socket.socket]


def install(app: Flask) -> None:
    """Register the websockets."""
    app.config["SOCK_SERVER_OPTIONS"] = {"max_message_size": MAX_MESSAGE_BYTES, "ping_interval": 25}
    sock = Sock(app)

    def serial(ws: Server, instance_id: str) -> None:
        """The serial port."""
        serve(ws, instance_id, "serial", lambda console, machine_id: console.open_serial(machine_id))

    def display(ws: Server, instance_id: str) -> None:
        """The screen, in RFB."""
        serve(ws, instance_id, "display", lambda console, machine_id: console.open_display(machine_id))

    for name, view in (("serial", serial), ("display", display)):
        sock.route(f"/ws/compute/instances/<instance_id>/{name}")(view)
        access(Access.SIGNED_IN)(app.view_functions[name])


def serve(ws: Server, instance_id: str, kind: str, opener: Opener) -> None:
    """Join a websocket and a machine's stream until one of them ends."""
    try:
        machine_id = _allowed(instance_id, kind)
    except PortalError as error:
        ws.close(REFUSED, error.message[:120])
        return
    console = current_app.extensions["portal_engines"].console
    opened, secret = context(), session_secret()
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
            _carry_in(ws, stream, lambda: _still_allowed(opened, secret, machine_id))
        finally:
            with contextlib.suppress(OSError):
                stream.shutdown(socket.SHUT_RDWR)
            thread.join()


def _allowed(instance_id: str, kind: str) -> str:
    origin = urlsplit(request.headers.get("Origin", ""))
    if origin.netloc != request.host:
        raise Forbidden("The console opens from this portal's own pages only.")
    ctx = context()
    row = find(ctx, INSTANCE, instance_id)
    found = str(row.id)
    # Who sees a console may see what is typed there: that it was opened is in the audit log.
    with acting(ctx, CONSOLE, audit.Subject(INSTANCE.key, found, row.name, row.project_of()), target=target_of(row), details={"console": kind}):
        return found


def _still_allowed(opened: Context, secret: str, machine_id: str) -> bool:
    """Whether the session holds and its user may still have this console, as the database says now."""
    try:
        found = session_user(db.session(), secret, idle=timedelta(minutes=opened.settings.session_idle_minutes))
        if found is None:
            return False
        ctx = replace(opened, db=db.session(), principal=found.principal)
        return decide(ctx, CONSOLE, target_of(find(ctx, INSTANCE, machine_id))).allowed
    except NotFound:
        return False
    finally:
        db.session.remove()


def _carry_in(ws: Server, stream: socket.socket, is_allowed: Callable[[], bool]) -> None:
    """What the user types, until the websocket closes; now and then, see whether it may go on."""
    checked_at = time.monotonic()
    while True:
        try:
            message: Any = ws.receive(timeout=CHECK_EVERY_S)
        except ConnectionClosed:
            return
        if time.monotonic() - checked_at >= CHECK_EVERY_S:
            if not is_allowed():
                ws.close(ENDED, "Your session has ended, or you may not use this console any more.")
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
