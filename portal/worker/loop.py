"""The job worker: threads that claim and run jobs, a heartbeat that keeps their leases, and a report of what the engines can do.

One idle thread at a time looks at the jobs table, so that many threads cost no more polling than one. A broker, if there is one, offers job ids;
the ledger decides. Nothing here is needed for correctness but the lease: a worker may be killed at any line.
"""

import logging
import queue
import signal
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, sessionmaker

from portal.catalogue import build_registry
from portal.compute.images import build_builtin
from portal.engines.ports import EngineError, Engines
from portal.engines.registry import claim_engines, compute_status, network_status, objects_status, open_engines, volumes_status
from portal.kernel import capabilities
from portal.kernel.db import open_database
from portal.kernel.jobs import Claim, claim, claim_next, reap, release, renew
from portal.kernel.resource import Registry
from portal.kernel.rounds import Rounds
from portal.kernel.runner import Runner, SystemTask
from portal.logging import setup_logging
from portal.settings import Settings
from portal.storage.volume_keys import keyring
from portal.worker.asked_tasks import ASKED
from portal.worker.delivery import Consumer
from portal.worker.names import is_gone, own_name
from portal.worker.signals import Signals
from portal.worker.tasks import TASKS
from portal.worker.watchdog import came_round_told, watchdog_of

REPORT_EVERY_S = 10.0
STOP_LIMIT_S = 20.0
SWEEP_S = 0.5
BROKER_LEAD_S = 2.0
PAUSE_AFTER_ERROR_S = 1.0
OWNER_LOOK_S = 0.2

log = logging.getLogger("portal.worker")


@dataclass(frozen=True, slots=True)
class Offer:
    """A job id that a broker delivered; `looked_at` is set once the ledger has been asked for it, or the worker stops."""

    job_id: str
    looked_at: threading.Event = field(default_factory=threading.Event)


class Worker:
    """Runs jobs on WORKER_THREADS threads until it is stopped."""

    def __init__(
        self, sessions: sessionmaker[Session], settings: Settings, registry: Registry, engines: Engines, *, tasks: Mapping[str, SystemTask], name: str
    ) -> None:
        """`name` says in the ledger who holds a lease."""
        self.name, self._sessions, self._settings, self._engines = name, sessions, settings, engines
        self._stop, self._closed = threading.Event(), threading.Event()
        self.rounds = Rounds()
        self._runner = Runner(sessions, registry, settings, engines, tasks, stopping=self._stop.is_set, asked=ASKED, rounds=self.rounds)
        # With a broker, the table is only swept for what the broker lost or never carried (another try of a job).
        self._poll_s = SWEEP_S if settings.queue_url else settings.job_poll_ms / 1000
        self._older_than_s = BROKER_LEAD_S if settings.queue_url else 0.0
        self._turn = threading.Lock()
        self._hints: queue.SimpleQueue[Offer | None] = queue.SimpleQueue()
        self._active: dict[str, Claim] = {}
        self._active_lock = threading.Lock()
        self._urgent = registry.urgent()
        self._job_threads = [threading.Thread(target=self._work, name=f"jobs-{number}", daemon=True) for number in range(settings.worker_threads)]
        # Where all the others are at work that takes long, it lets no change of a firewall wait.
        self._job_threads.append(threading.Thread(target=self._work_urgently, name="jobs-urgent", daemon=True))
        self._other_threads = [
            threading.Thread(target=self._keep_leases, name="heartbeat", daemon=True),
            threading.Thread(target=self._keep_reporting, name="report", daemon=True),
        ]

    def start(self) -> None:
        """Begin to work, in the background; what a worker of this host left behind is not waited for."""
        try:
            self._reap()
        except SQLAlchemyError as error:
            log.warning("jobs of workers that are gone could not be taken over: %s", type(error).__name__)
        for thread in (*self._other_threads, *self._job_threads):
            thread.start()

    def stop(self, *, limit_s: float = STOP_LIMIT_S) -> None:
        """Let running steps finish within the limit; jobs that have more to do go back to the queue."""
        self._stop.set()
        self._refuse_offers()
        deadline = time.monotonic() + limit_s
        for thread in self._job_threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        self._closed.set()
        for thread in self._other_threads:
            thread.join(PAUSE_AFTER_ERROR_S)
        for left in self._claims():
            log.warning("giving a job back in the middle of a step", extra={"job_id": left.job_id})
            with self._sessions() as session:
                release(session, left)

    def offer(self, job_id: str) -> bool:
        """Wait until a thread is free and has asked the ledger for this job; False if the worker stops before that."""
        offer = Offer(job_id)
        self._hints.put(offer)
        if not self._stop.is_set():
            offer.looked_at.wait()
        return not self._stop.is_set()

    def _refuse_offers(self) -> None:
        with suppress(queue.Empty):
            while True:
                offer = self._hints.get_nowait()
                if offer is not None:
                    offer.looked_at.set()
        # One thread waits for a hint; it wakes the next.
        self._hints.put(None)

    # -- jobs ----------------------------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        while (found := self._next()) is not None:
            self._run(found)
            self._hints.put(None)

    def _work_urgently(self) -> None:
        while not self._stop.is_set():
            try:
                with self._sessions() as session:
                    found = claim_next(session, worker=self.name, lease_s=self._settings.job_lease_s, kinds=self._urgent, urgent=self._urgent)
            except SQLAlchemyError as error:
                log.warning("the jobs table cannot be read: %s", type(error).__name__)
                self._stop.wait(PAUSE_AFTER_ERROR_S)
                continue
            if found is None:
                self._stop.wait(self._settings.job_poll_ms / 1000)
                continue
            with self._active_lock:
                self._active[found.owner] = found
            self._run(found)

    def _run(self, found: Claim) -> None:
        try:
            self._runner.run(found)
        except Exception:
            # The lease runs out, and the next worker goes on: as after a crash, which it is counted as.
            log.exception("job left behind", extra={"job_id": found.job_id})
        finally:
            with self._active_lock:
                del self._active[found.owner]

    def _next(self) -> Claim | None:
        """The next job for the calling thread; None when the worker stops."""
        with self._turn:
            while not self._stop.is_set():
                try:
                    found = self._look()
                except SQLAlchemyError as error:
                    log.warning("the jobs table cannot be read: %s", type(error).__name__)
                    self._stop.wait(PAUSE_AFTER_ERROR_S)
                    continue
                if found is not None:
                    with self._active_lock:
                        self._active[found.owner] = found
                    return found
        # The next thread has to learn of the end as well.
        self._hints.put(None)
        return None

    def _look(self) -> Claim | None:
        with self._sessions() as session:
            found = claim_next(session, worker=self.name, lease_s=self._settings.job_lease_s, older_than_s=self._older_than_s, urgent=self._urgent)
        if found is not None:
            return found
        try:
            offer = self._hints.get(timeout=self._poll_s)
        except queue.Empty:
            return None
        if offer is None:
            return None
        try:
            if self._stop.is_set():
                return None
            with self._sessions() as session:
                return claim(session, offer.job_id, worker=self.name, lease_s=self._settings.job_lease_s)
        finally:
            offer.looked_at.set()

    # -- around them ---------------------------------------------------------------------------------------------------------------

    def _claims(self) -> list[Claim]:
        with self._active_lock:
            return list(self._active.values())

    def _keep_leases(self) -> None:
        while not self._closed.wait(self._settings.job_lease_s / 3):
            try:
                self._beat()
            except SQLAlchemyError as error:
                log.warning("leases could not be renewed: %s", type(error).__name__)

    def _beat(self) -> None:
        with self._sessions() as session:
            for lost in renew(session, self._claims(), lease_s=self._settings.job_lease_s):
                if lost in self._claims():
                    log.warning("another worker has taken a job over", extra={"job_id": lost.job_id})
        self._reap()

    def _reap(self) -> None:
        with self._sessions() as session:
            for job_id in reap(session, is_gone):
                log.warning("a worker went silent or is gone; its job goes back to the queue", extra={"job_id": job_id})
                self._hints.put(None)

    def _keep_reporting(self) -> None:
        is_prepared = False
        while True:
            try:
                is_available = self._report()
            except SQLAlchemyError as error:
                log.warning("capabilities could not be reported: %s", type(error).__name__)
            else:
                is_prepared = is_prepared or (is_available and self._prepare())
            if self._closed.wait(REPORT_EVERY_S):
                return

    def _report(self) -> bool:
        found, capacity = compute_status(self._engines)
        networks = network_status(self._engines)
        volumes, pools = volumes_status(self._engines)
        objects = objects_status(self._engines)
        with self._sessions() as session:
            capabilities.report(session, objects, worker=self.name)
            capabilities.report(session, found, worker=self.name, capacity=capacity)
            capabilities.report(session, networks, worker=self.name)
            capabilities.report(session, volumes, worker=self.name, facts={name: asdict(room) for name, room in pools.items()})
        came_round_told(self._sessions, self.rounds, self.name)
        return found.available

    def _prepare(self) -> bool:
        """Build the portal's own guest before somebody waits for it; the first machine would build it otherwise."""
        try:
            if self._engines.compute is not None:
                build_builtin(self._engines.compute)
        except EngineError as error:
            log.warning("the built-in image could not be built: %s", error.message)
            return False
        return True


def _host_is_ours(settings: Settings, signals: Signals) -> bool:
    """Wait until no other worker has the engines of this host; False if this one is to end before that."""
    if claim_engines(settings):
        return True
    log.warning("another worker has the engines of this host, or programs that it left behind are at work; waiting until they have ended")
    while signals.wait(OWNER_LOOK_S) is None:
        if claim_engines(settings):
            log.info("the engines of this host are free")
            return True
    return False


def run_worker(settings: Settings) -> int:
    """Work until SIGTERM or SIGINT."""
    signals = Signals(signal.SIGTERM, signal.SIGINT)
    setup_logging(settings)
    if not _host_is_ours(settings, signals):
        return 0
    sessions = open_database(settings)
    engines = open_engines(settings, owner=True)
    if engines.volumes is not None:
        engines.volumes.use_keys(keyring(sessions, settings))
    registry = build_registry()
    worker = Worker(sessions, settings, registry, engines, tasks=TASKS, name=own_name())
    watchdog_of(sessions, settings, registry, worker.rounds, worker.name).start()
    worker.start()
    consumer = Consumer(settings, worker.offer) if settings.queue_url else None
    if consumer is not None:
        consumer.start()
    log.info("working", extra={"worker": worker.name})
    signals.wait()
    if consumer is not None:
        consumer.halt()
    worker.stop()
    if consumer is not None:
        consumer.join()
    if engines.compute is not None:
        engines.compute.close()
    if engines.network is not None:
        engines.network.close()
    sessions.kw["bind"].dispose()
    log.info("stopped", extra={"worker": worker.name})
    return 0
