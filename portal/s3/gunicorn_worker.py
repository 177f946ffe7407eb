"""gunicorn's worker with threads, for clients that send one request after the other: a thread stays with its connection for a moment.

gunicorn hands each request from its main thread to another one and back, which costs as much as answering a small request does.
"""

import select
from typing import Any

from gunicorn.workers.gthread import ThreadWorker

LINGER_MS = 50


class LingeringWorker(ThreadWorker):  # type: ignore[misc]
    """Goes back to the main thread when a connection is quiet, or when there are more connections than threads."""

    def handle(self, conn: Any) -> Any:
        """Answer the requests of a connection as long as they follow each other; what comes back is what gunicorn's own gives for the last."""
        result = super().handle(conn)
        while result is True and self.alive and self.nr_conns <= self.cfg.threads and _is_next_here(conn):
            result = super().handle(conn)
        return result


def _is_next_here(conn: Any) -> bool:
    """Whether the client sends its next request within a moment."""
    if conn.parser.unreader.buf.getvalue() or (hasattr(conn.sock, "pending") and conn.sock.pending()):
        return True
    poll = select.poll()
    poll.register(conn.sock, select.POLLIN)
    return bool(poll.poll(LINGER_MS))
