"""gunicorn's worker with threads, for clients that send one request after the other: a thread stays with its connection for a moment.

gunicorn hands each request from its main thread to another one and back, which costs as much as answering a small request does.
"""

import select
import ssl
from typing import Any

from portal.http.slow_clients import HEAD_END, MAX_HEAD, READ, PatientWorker

LINGER_MS = 50


class LingeringWorker(PatientWorker):
    """Goes back to the main thread when a connection is quiet, or when there are more connections than threads."""

    def handle(self, conn: Any) -> Any:
        """Answer the requests of a connection as long as they follow each other; what comes back is what gunicorn's own gives for the last."""
        result = super().handle(conn)
        while result is True and self.alive and self.nr_conns <= self.cfg.threads and _is_next_here(conn):
            result = super().handle(conn)
        return result


def _is_next_here(conn: Any) -> bool:
    """Whether the client sends the whole head of its next request within a moment; what has come of it is kept in any case."""
    unreader = conn.parser.unreader
    head, has_waited = unreader.take_buffered(), False
    conn.sock.setblocking(False)
    while HEAD_END not in head and len(head) < MAX_HEAD:
        try:
            data = conn.sock.recv(READ)
        except (BlockingIOError, ssl.SSLWantReadError):
            if has_waited or not _is_readable(conn.sock):
                break
            has_waited = True
            continue
        except OSError:
            break
        if not data:
            break
        head += data
    unreader.start(head)
    return HEAD_END in head


def _is_readable(sock: Any) -> bool:
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(LINGER_MS))
