"""Queues periodic work when it is due: once, however many schedulers are up.

Whoever moves the due time of a schedule on queues the job, in the same transaction; the others find it moved. While a job of the same kind is
still active, the ledger's unique index refuses another one, and that turn is left out.
"""

import logging
import signal
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import select, update
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, sessionmaker

from portal.kernel.db import insert_of, now, open_database, transaction
from portal.kernel.jobs import Job, Schedule
from portal.kernel.runner import SystemTask
from portal.logging import setup_logging
from portal.settings import Settings
from portal.worker.delivery import delivery_for
from portal.worker.signals import Signals
from portal.worker.tasks import TASKS

LONGEST_WAIT_S = 1.0

log = logging.getLogger("portal.scheduler")


class Scheduler:
    """Keeps the schedules of the portal's own tasks."""

    def __init__(
        self, sessions: sessionmaker[Session], settings: Settings, tasks: Mapping[str, SystemTask], deliver: Callable[[Sequence[str]], None]
    ) -> None:
        """`deliver` tells workers about the jobs that were queued."""
        self._sessions, self._settings, self._tasks, self._deliver = sessions, settings, tasks, deliver

    def tick(self) -> list[str]:
        """Queue everything that is due; ids of the jobs."""
        with self._sessions() as session:
            seen = {row.name: row.next_run_at for row in session.scalars(select(Schedule))}
            due = [task for task in self._tasks.values() if self._is_due(task, seen.get(task.name))]
            queued = [job_id for task in due if (job_id := self._queue(session, task, seen.get(task.name))) is not None]
        if queued:
            self._deliver(queued)
        return queued

    def _is_due(self, task: SystemTask, next_run_at: datetime | None) -> bool:
        """A time further off than one interval was set when the interval was longer."""
        moment = now()
        return next_run_at is None or next_run_at <= moment or next_run_at > moment + self._interval(task)

    def _interval(self, task: SystemTask) -> timedelta:
        return timedelta(seconds=task.interval_s(self._settings))

    def _queue(self, session: Session, task: SystemTask, seen: datetime | None) -> str | None:
        moment = now()
        with transaction(session):
            if seen is None:
                mine = _insert(session, Schedule.__table__, {"name": task.name, "next_run_at": moment + self._interval(task), "last_run_at": moment})
            else:
                moved = update(Schedule).where(Schedule.name == task.name, Schedule.next_run_at == seen)
                moved = moved.values(next_run_at=moment + self._interval(task), last_run_at=moment).execution_options(synchronize_session=False)
                mine = session.execute(moved.returning(Schedule.name)).first() is not None
            if not mine:
                return None
            job = {"kind": f"system.{task.name}", "label": task.label, "resource_type": "system", "resource_id": f"system:{task.name}"}
            if not _insert(session, Job.__table__, job):
                log.info("left out: the one before is not done", extra={"kind": job["kind"]})
                return None
            return session.scalars(select(Job.id).where(Job.resource_id == job["resource_id"], Job.state == "queued")).one()

    def wait_s(self) -> float:
        """Seconds until something may be due."""
        with self._sessions() as session:
            first = session.scalars(select(Schedule.next_run_at).order_by(Schedule.next_run_at).limit(1)).first()
        return LONGEST_WAIT_S if first is None else min(LONGEST_WAIT_S, max(0.0, (first - now()).total_seconds()))


def _insert(session: Session, table: Any, values: Mapping[str, object]) -> bool:
    """Insert a row unless one is in its way; whether it was inserted."""
    key = next(iter(table.primary_key.columns))
    return session.execute(insert_of(session)(table).values(**values).on_conflict_do_nothing().returning(key)).first() is not None


def run_scheduler(settings: Settings) -> int:
    """Queue periodic work until SIGTERM or SIGINT."""
    signals = Signals(signal.SIGTERM, signal.SIGINT)
    setup_logging(settings)
    sessions = open_database(settings)
    scheduler = Scheduler(sessions, settings, TASKS, delivery_for(settings))
    log.info("scheduling")
    wait_s = 0.0
    while signals.wait(wait_s) is None:
        try:
            scheduler.tick()
            wait_s = scheduler.wait_s()
        except SQLAlchemyError as error:
            log.warning("the schedules cannot be read: %s", type(error).__name__)
            wait_s = LONGEST_WAIT_S
    sessions.kw["bind"].dispose()
    return 0
