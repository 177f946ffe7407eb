"""How long a job waits for a worker after its commit, how fast a thousand are drained, and what a worker weighs at rest.

`python -m bench.bench_jobs`: the default (the worker polls the table every 50 ms), Redis and RabbitMQ, each with the worker in a process of its own.
"""

import statistics
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
from sqlalchemy import func, select
from sqlalchemy.orm import Session, sessionmaker

from portal.catalogue import build_registry
from portal.compute.instances import instance_create
from portal.kernel.db import now, open_database, transaction
from portal.kernel.jobs import ACTIVE, Job
from portal.kernel.operations import run
from portal.settings import Settings
from portal.worker.delivery import delivery_for
from tests.support.databases import fill, settings_for
from tests.support.people import People
from tests.support.processes import portal_process
from tests.support.scenarios import TINY
from tests.support.servers import RabbitMQ, Redis, running, until

# The default quota allows a hundred instances, one of which warms up.
SINGLE = 90
MANY = 1000
PAUSE_S = 0.05
MIB = 1 << 20


def waits_ms(sessions: sessionmaker[Session], job_ids: Sequence[str]) -> list[float]:
    """Milliseconds from commit to pick-up; a job row is written in the transaction that queues it."""
    with sessions() as session:
        rows = session.execute(select(Job.started_at, Job.created_at).where(Job.id.in_(job_ids))).all()
    return sorted((row.started_at - row.created_at).total_seconds() * 1000 for row in rows)


def active(sessions: sessionmaker[Session]) -> int:
    with sessions() as session:
        return session.scalar(select(func.count()).where(Job.state.in_(ACTIVE))) or 0


def single_jobs(people: People, settings: Settings, sessions: sessionmaker[Session]) -> list[float]:
    """One job after the other, at moments that have nothing to do with the worker's rhythm."""
    ctx = people.context(people.admin())
    ctx.deliver = delivery_for(settings)
    pause = threading.Event()
    create(ctx, "warm-up", sessions)
    job_ids = []
    for number in range(SINGLE):
        job_ids.append(create(ctx, f"i{number}", sessions))
        pause.wait(PAUSE_S * (number % 7) / 7)
    return waits_ms(sessions, job_ids)


def create(ctx: object, name: str, sessions: sessionmaker[Session]) -> str:
    job_id = run(ctx, instance_create, None, {"name": name, "flavor": "t3-micro", "image": TINY}).job_id
    until(lambda: active(sessions) == 0, within_s=30, what="the job is done", every_s=0.005)
    return str(job_id)


def drain(settings: Settings, sessions: sessionmaker[Session]) -> float:
    """Seconds for a thousand jobs that are queued at one moment and do next to nothing."""
    deliver = delivery_for(settings)
    with sessions() as session, transaction(session):
        jobs = [Job(kind="system.nothing", label="", resource_type="system", resource_id=f"system:{n}", run_at=now()) for n in range(MANY)]
        session.add_all(jobs)
    started = time.monotonic()
    deliver([job.id for job in jobs])
    until(lambda: active(sessions) == 0, within_s=120, what="all are done", every_s=0.02)
    return time.monotonic() - started


def measure(name: str, queue_url: str) -> None:
    """One line of the table."""
    with tempfile.TemporaryDirectory() as directory:
        data = Path(directory)
        fill(f"sqlite:///{data / 'portal.db'}", data)
        settings = settings_for(data, database_url=f"sqlite:///{data / 'portal.db'}", queue_url=queue_url, job_poll_ms=50)
        sessions = open_database(settings)
        people = People(sessions, settings, build_registry())
        with portal_process(settings, "worker") as process:
            until(lambda: (data / "worker.log").read_text().count("working") > 0, within_s=20, what="the worker works")
            threading.Event().wait(3)
            resting_mib = psutil.Process(process.pid).memory_info().rss / MIB
            waits = single_jobs(people, settings, sessions)
            seconds = drain(settings, sessions)
            after_mib = psutil.Process(process.pid).memory_info().rss / MIB
        people.close()
        sessions.kw["bind"].dispose()
    p95 = waits[int(len(waits) * 0.95) - 1]
    figures = f"{statistics.median(waits):>10.1f}{p95:>10.1f}{waits[-1]:>10.1f}{seconds:>12.1f}{MANY / seconds:>10.0f}"
    print(f"{name:<22}{figures}{resting_mib:>12.0f}{after_mib:>12.0f}")


def main() -> None:
    """Print the table."""
    print(f"{'delivery':<22}{'p50 ms':>10}{'p95 ms':>10}{'max ms':>10}{'1000 jobs s':>12}{'jobs/s':>10}{'rest MiB':>12}{'after MiB':>12}")
    measure("table, every 50 ms", "")
    for name, server in (("Redis", Redis()), ("RabbitMQ", RabbitMQ())):
        with running(server):
            measure(name, server.url)


if __name__ == "__main__":
    main()
