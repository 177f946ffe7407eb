"""Telling workers that there are jobs: not at all by default (they look at the table), or through a broker with Celery.

A message is a job id and nothing more. The jobs table is the ledger: a message that is lost is made up for by the workers' sweep, one that comes
twice finds its job taken. Nobody ever waits for the broker: requests hand ids to a thread in the background.
"""

import logging
import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any

from portal.settings import Settings

TASK = "portal.job"
QUEUE = "portal.jobs"
CONNECT_TIMEOUT_S = 2.0
MOST_WAITING = 10_000
STOP_LIMIT_S = 5.0

log = logging.getLogger("portal.delivery")


def celery_app(settings: Settings) -> Any:
    """Celery on QUEUE_URL, without results: the ledger has them."""
    from celery import Celery

    app = Celery("portal", broker=settings.queue_url, set_as_current=False)
    is_redis = settings.queue_url.startswith("redis")
    options = {"socket_timeout": 10, "socket_connect_timeout": CONNECT_TIMEOUT_S, "visibility_timeout": 60}
    app.conf.update(
        task_default_queue=QUEUE, task_ignore_result=True, task_acks_late=True, task_default_delivery_mode="transient", task_serializer="json",
        accept_content=["json"], worker_prefetch_multiplier=1, worker_hijack_root_logger=False, broker_connection_max_retries=None,
        worker_cancel_long_running_tasks_on_connection_loss=False, broker_connection_timeout=CONNECT_TIMEOUT_S, broker_heartbeat=10,
        broker_connection_retry_on_startup=True, broker_pool_limit=1, broker_transport_options=options if is_redis else {},
        # After a lost connection, Celery would ask for more with each id that is done: from the thread that did it, which may then wait for an answer
        # that the consumer's own thread has read.
        worker_enable_prefetch_count_reduction=False,
        # On Redis, its subscription is what notices that the server went away while the acknowledgements of a full worker are on their way.
        worker_enable_remote_control=is_redis,
    )  # fmt: skip
    return app


def delivery_for(settings: Settings) -> Callable[[Sequence[str]], None]:
    """What `Context.deliver` does on this installation."""
    return Publisher(settings).publish if settings.queue_url else _workers_look


def _workers_look(job_ids: Sequence[str]) -> None:
    del job_ids


class Publisher:
    """Sends job ids to the broker from a thread of its own, which starts with the first id: web processes fork before that."""

    def __init__(self, settings: Settings) -> None:
        """Opens nothing yet."""
        self._settings = settings
        self._waiting: queue.Queue[str] = queue.Queue(MOST_WAITING)
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self._is_broken = False

    def publish(self, job_ids: Sequence[str]) -> None:
        """Have the ids sent; never waits, never raises."""
        with self._starting:
            if self._thread is None:
                self._thread = threading.Thread(target=self._send_all, name="delivery", daemon=True)
                self._thread.start()
        for job_id in job_ids:
            try:
                self._waiting.put_nowait(job_id)
            except queue.Full:
                log.warning("too many ids wait for the broker; workers will find the job by themselves", extra={"job_id": job_id})

    def _send_all(self) -> None:
        app = celery_app(self._settings)
        while True:
            self._send(app, self._waiting.get())

    def _send(self, app: Any, job_id: str) -> None:
        try:
            app.send_task(TASK, args=[job_id], retry=True, retry_policy={"max_retries": 1, "interval_start": 0, "interval_step": 0})
        except Exception as error:  # noqa: BLE001 - said in the next line
            # Whatever the client library raises: the job is in the ledger, and workers sweep it.
            if not self._is_broken:
                log.warning("the broker takes no job ids (%s); workers find the jobs by themselves meanwhile", type(error).__name__)
            self._is_broken = True
            return
        if self._is_broken:
            log.info("the broker takes job ids again")
        self._is_broken = False


class Consumer:
    """Takes job ids from the broker within the worker's process and offers them to it; a message is acknowledged once the ledger was asked."""

    def __init__(self, settings: Settings, offer: Callable[[str], bool]) -> None:
        """`offer` blocks until the job is taken (or is none to take), and answers False when the worker stops."""
        self._settings, self._offer = settings, offer
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._consume, name="broker", daemon=True)

    def start(self) -> None:
        """Connect in the background, and again whenever the broker comes back."""
        self._thread.start()

    def halt(self) -> None:
        """Take no more ids; unacknowledged ones go back to the broker."""
        from celery.worker import state

        self._stop.set()
        # The consumer looks at this between two waits for the broker, also while there is none.
        state.should_stop = 0

    def join(self) -> None:
        """Wait until the broker was told; for a moment only, since nothing depends on it."""
        self._thread.join(STOP_LIMIT_S)

    def _consume(self) -> None:
        while not self._stop.is_set():
            self._controller().start()
            if not self._stop.wait(CONNECT_TIMEOUT_S):
                log.error("the broker's consumer ended; starting it again")

    def _controller(self) -> Any:
        from celery.exceptions import Reject

        from portal.worker.broker_threads import BrokerThreads

        app = celery_app(self._settings)

        def job(job_id: str) -> None:
            if not self._offer(job_id):
                raise Reject("the worker stops", requeue=True)

        app.task(job, name=TASK)
        threads = self._settings.worker_threads
        return app.WorkController(
            app=app, pool_cls=BrokerThreads, concurrency=threads, without_gossip=True, without_mingle=True, loglevel=logging.WARNING
        )
