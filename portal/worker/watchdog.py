"""Ends a worker in which something that has to come on hangs: a process that is gone is started again, one that hangs looks well for ever."""

import faulthandler
import logging
import os
import sys
import threading
import time
from collections.abc import Callable

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, sessionmaker

from portal.engines.ports import Capability
from portal.kernel import audit, events
from portal.kernel.capabilities import report_watched
from portal.kernel.context import SYSTEM, Context
from portal.kernel.db import transaction
from portal.kernel.resource import Registry
from portal.kernel.rounds import Rounds
from portal.settings import Settings

EVENT = "core.worker.hung"
REMEDY = "The worker has ended itself and is started again; its log has what each of its threads was doing. If this comes again, that log is needed."
TICK_S = 1.0
# What hangs may hold what telling of it needs.
TELL_LIMIT_S = 10.0
STATUS = 70

log = logging.getLogger("portal.worker")


class Watchdog:
    """Looks at the rounds of one worker, and ends the process with `end` when one has hung for longer than `WORKER_HANG_S`."""

    def __init__(self, rounds: Rounds, settings: Settings, tell: Callable[[str], None], *, end: Callable[[int], None] = os._exit) -> None:
        """`tell` says to the others what hangs."""
        self._rounds, self._bound_s, self._tell, self._end = rounds, settings.worker_hang_s, tell, end
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def start(self) -> None:
        """Watch for as long as the process lives: what hangs while it stops is ended as well."""
        self._thread.start()

    def _watch(self) -> None:
        before = time.monotonic()
        while True:
            time.sleep(TICK_S)
            moment = time.monotonic()
            self.look(moment - before)
            before = moment

    def look(self, seconds: float) -> None:
        """Look once, `seconds` after the last time; while this thread was stopped, so were the others."""
        self._rounds.pass_time(min(seconds, 2 * TICK_S))
        if what := self._rounds.hanging(self._bound_s):
            self._give_up(what)

    def _give_up(self, what: str) -> None:
        faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
        telling = threading.Thread(target=self._tell, args=(what,), name="last-words", daemon=True)
        telling.start()
        telling.join(TELL_LIMIT_S)
        self._end(STATUS)


def watchdog_of(sessions: sessionmaker[Session], settings: Settings, registry: Registry, rounds: Rounds, worker: str) -> Watchdog:
    """The watchdog of a worker, which tells the database."""

    def tell(what: str) -> None:
        log.error("%s has not come on for %s s: this worker ends itself", what, settings.worker_hang_s)
        try:
            hang_told(sessions, settings, registry, worker, what)
        except SQLAlchemyError as error:
            log.warning("that %s hung could not be told: %s", what, type(error).__name__)

    return Watchdog(rounds, settings, tell)


def hang_told(sessions: sessionmaker[Session], settings: Settings, registry: Registry, worker: str, what: str) -> None:
    """Say that something hangs in a worker: in what `/ready` and the metrics read, as an event, and in the audit log."""
    with sessions() as session:
        # Everybody reads this: which worker it was, the event and the audit log say.
        reason = f"It had not come on for {settings.worker_hang_s} s in a worker."
        report_watched(session, Capability(what, available=False, detail="", reason=reason, remedy=REMEDY), worker=worker)
        ctx = Context(session, settings, registry, SYSTEM)
        payload = {"worker": worker, "silent_s": settings.worker_hang_s}
        with transaction(session):
            events.emit(ctx, EVENT, resource_id=what, name=what, payload=payload)
            audit.record(ctx, EVENT, audit.Subject("core.worker", what, worker[:255]), status="failure", error=reason, details=payload)


def came_round_told(sessions: sessionmaker[Session], rounds: Rounds, worker: str) -> None:
    """Say of what has come round in this worker that it comes on."""
    for what in sorted(rounds.came_round()):
        with sessions() as session:
            report_watched(session, Capability(what, available=True, detail="comes round"), worker=worker)
