"""The threads in which ids from the broker wait for a thread that runs jobs. Celery's own would keep the process from ending while one hangs on the broker."""

import logging
import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from celery.concurrency.base import BasePool, apply_target

FAREWELL_S = 2.0

log = logging.getLogger("portal.delivery")


class BrokerThreads(BasePool):  # type: ignore[misc]
    """A pool for Celery whose threads end with the process, whatever they wait for."""

    body_can_be_buffer = True
    signal_safe = False

    def on_start(self) -> None:
        """Start them."""
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._threads = [threading.Thread(target=self._work, name=f"broker-{number}", daemon=True) for number in range(self.limit)]
        for thread in self._threads:
            thread.start()

    def on_apply(self, target: Any, args: Any = None, kwargs: Any = None, callback: Any = None, accept_callback: Any = None, **_: Any) -> None:
        """Have a task run by the next thread that is free."""
        self._calls.put(lambda: apply_target(target, args, kwargs, callback, accept_callback))

    def on_stop(self) -> None:
        """Let the threads finish what they have, for a moment; what nobody has begun goes back to the broker with the connection."""
        with suppress(queue.Empty):
            while True:
                self._calls.get_nowait()
        for _ in self._threads:
            self._calls.put(None)
        end = time.monotonic() + FAREWELL_S
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            try:
                call()
            except Exception:
                log.exception("the broker was not told what became of an id")
