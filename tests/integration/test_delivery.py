"""Job ids through real brokers: carried quickly while all is well; killed brokers and workers lose nothing."""

import itertools
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import func, select
from sqlalchemy.orm import Session, sessionmaker

from portal.compute.instances import instance_create
from portal.kernel.audit import AuditEntry
from portal.kernel.audit_verify import verify
from portal.kernel.context import Context
from portal.kernel.jobs import ACTIVE, Job
from portal.kernel.operations import run
from portal.settings import ROOT, Settings
from portal.worker.delivery import Publisher, delivery_for
from portal.worker.loop import BROKER_LEAD_S
from tests.support.people import People
from tests.support.processes import END_S, environment, kill, portal_process
from tests.support.scenarios import TINY
from tests.support.servers import RabbitMQ, Redis, Server, free_port, running, until

pytestmark = pytest.mark.timeout(240)
BROKERS = {"redis": Redis, "rabbitmq": RabbitMQ}
DONE_WITHIN_S = 60


@pytest.fixture(scope="module", params=BROKERS)
def broker(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A broker that may be killed."""
    with running(BROKERS[request.param]()) as server:
        yield server


@pytest.fixture
def queued(settings: Settings, broker: Server) -> Settings:
    """Settings with the broker; a lease that runs out while a test waits."""
    return settings.model_copy(update={"queue_url": broker.url, "job_lease_s": 3, "worker_threads": 4})


@pytest.fixture
def sending(people: People, queued: Settings) -> Context:
    """A project admin's context that delivers through the broker."""
    ctx = people.context(people.user("project_admin"))
    ctx.deliver = delivery_for(queued)
    return ctx


def create(ctx: Context, name: str) -> str:
    outcome = run(ctx, instance_create, None, {"name": name, "flavor": "t3-micro", "image": TINY})
    assert outcome.job_id is not None
    return outcome.job_id


@pytest.fixture
def count(database: sessionmaker[Session]) -> Callable[..., int]:
    """How many jobs are in these states."""

    def jobs_in(*states: str) -> int:
        with database() as session:
            return session.scalar(select(func.count()).where(Job.state.in_(states))) or 0

    return jobs_in


def pick_up_s(database: sessionmaker[Session], job_id: str) -> float:
    with database() as session:
        job = session.get_one(Job, job_id)
        assert job.started_at is not None
        return (job.started_at - job.created_at).total_seconds()


def is_carried(ctx: Context, database: sessionmaker[Session], count: Callable[..., int], name: str) -> bool:
    """Whether a job that is alone comes sooner than the sweep, which leaves it alone for its lead, may bring it."""
    job_id = create(ctx, name)
    until(lambda: count(*ACTIVE) == 0, within_s=DONE_WITHIN_S, what="the job is done")
    return pick_up_s(database, job_id) < BROKER_LEAD_S


def carries(ctx: Context, database: sessionmaker[Session], count: Callable[..., int]) -> None:
    """Wait until the broker carries ids."""
    until(lambda: is_carried(ctx, database, count, f"probe-{time.monotonic_ns()}"), within_s=DONE_WITHIN_S, what="the broker carries ids")


def test_ids_are_carried_and_everything_ends(queued: Settings, sending: Context, database: sessionmaker[Session], count: Callable[..., int]) -> None:
    with portal_process(queued, "worker"):
        carries(sending, database, count)
        # Of thirty at once nothing is said: on a busy machine they take longer than the sweep's lead, and bench_jobs measures how long.
        for number in range(30):
            create(sending, f"i{number}")
        until(lambda: count(*ACTIVE) == 0, within_s=DONE_WITHIN_S, what="all jobs are done")
        carries(sending, database, count)
    assert count("succeeded") == count("succeeded", "failed", "dead", "cancelled")


def test_a_broker_killed_and_restarted_under_load_loses_nothing(
    broker: Server, queued: Settings, sending: Context, database: sessionmaker[Session], count: Callable[..., int]
) -> None:
    with portal_process(queued, "worker"), portal_process(queued, "worker"):
        carries(sending, database, count)
        half = threading.Event()

        def load() -> None:
            for number in range(60):
                create(sending, f"i{number}")
                if number == 20:
                    half.set()

        thread = threading.Thread(target=load)
        thread.start()
        half.wait(60)
        broker.kill()
        thread.join()
        until(lambda: count(*ACTIVE) == 0, within_s=DONE_WITHIN_S, what="all jobs are done without a broker")
        broker.start()
        carries(sending, database, count)
    with database() as session:
        told = select(AuditEntry.resource_id).where(AuditEntry.action == "compute.instance.create.succeeded")
        ended = session.scalars(told).all()
        assert len(ended) == len(set(ended)) == count("succeeded")
        assert verify(session).broken_seq is None
    assert count("failed", "dead", "cancelled", *ACTIVE) == 0


def test_a_worker_killed_under_load_loses_nothing(queued: Settings, sending: Context, count: Callable[..., int]) -> None:
    with portal_process(queued, "worker") as doomed, portal_process(queued, "worker"):
        for number in range(40):
            create(sending, f"i{number}")
            if number == 20:
                until(lambda: count("running", "succeeded") > 0, within_s=30, what="work has begun")
                kill(doomed)
        until(lambda: count(*ACTIVE) == 0, within_s=DONE_WITHIN_S, what="all jobs are done")
    assert count("succeeded") == 40


def test_a_busy_worker_stops_in_time_and_its_ids_go_to_the_next(queued: Settings, sending: Context, count: Callable[..., int]) -> None:
    with portal_process(queued, "worker") as leaving:
        for number in range(60):
            create(sending, f"i{number}")
        until(lambda: count("succeeded") > 0, within_s=30, what="work has begun")
        before = time.monotonic()
        leaving.terminate()
        assert leaving.wait(30) == 0
        assert time.monotonic() - before < 8
    assert count("running") == 0
    with portal_process(queued, "worker"):
        until(lambda: count(*ACTIVE) == 0, within_s=DONE_WITHIN_S, what="all jobs are done")
    assert count("succeeded") == 60


def test_a_worker_ends_while_its_broker_says_nothing(broker: Server, queued: Settings, sending: Context, count: Callable[..., int]) -> None:
    with portal_process(queued, "worker") as leaving:
        for number in range(30):
            create(sending, f"i{number}")
        until(lambda: count("succeeded") > 0, within_s=DONE_WITHIN_S, what="work has begun")
        broker.freeze()
        try:
            leaving.terminate()
            assert leaving.wait(END_S) == 0
        finally:
            broker.thaw()
    assert count("running") == 0


def test_what_was_under_way_when_the_broker_went_keeps_nobody_from_ending(broker: Server, queued: Settings, tmp_path: Path) -> None:
    # More than there are ids until the connection is seen to be there again: each that is done has a share in what happens then.
    queued = queued.model_copy(update={"worker_threads": 60})
    publisher, said, numbers = Publisher(queued), tmp_path / "said", itertools.count()

    def comes(kind: str) -> bool:
        publisher.publish([f"{kind}-{next(numbers)}"])
        return kind in said.read_text()

    with said.open("wb") as out:
        command = [sys.executable, "-m", "tests.support.waiting_consumer"]
        process = subprocess.Popen(command, env=environment(queued), cwd=ROOT, stdin=subprocess.PIPE, stdout=out, start_new_session=True)
    assert process.stdin is not None
    try:
        publisher.publish([f"slow-{number}" for number in range(queued.worker_threads - 1)])
        until(lambda: said.read_text().count("slow") == queued.worker_threads - 1, within_s=DONE_WITHIN_S, what="all threads but one have an id")
        broker.kill()
        broker.start()
        until(lambda: comes("quick"), within_s=DONE_WITHIN_S, every_s=0.2, what="ids come over a new connection")
        broker.freeze()
        process.stdin.close()
        assert process.wait(END_S) == 0
    finally:
        broker.thaw()
        kill(process)
        process.stdin.close()


def test_a_worker_stops_in_time_without_its_broker(
    settings: Settings, database: sessionmaker[Session], people: People, count: Callable[..., int]
) -> None:
    lonely = settings.model_copy(update={"queue_url": f"amqp://guest:guest@127.0.0.1:{free_port()}//"})
    ctx = people.context(people.user("project_admin"))
    ctx.deliver = delivery_for(lonely)
    with portal_process(lonely, "worker") as process:
        create(ctx, "swept")
        until(lambda: count(*ACTIVE) == 0, within_s=30, what="the sweep finds the job")
        before = time.monotonic()
        process.terminate()
        assert process.wait(30) == 0
        assert time.monotonic() - before < 10


@pytest.mark.parametrize("scheme", ["amqp", "redis"])
def test_nobody_waits_for_a_broker_that_does_not_answer(settings: Settings, scheme: str) -> None:
    with socket.socket() as deaf:
        # Accepts connections into its backlog and never says a word.
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(1)
        publisher = Publisher(settings.model_copy(update={"queue_url": f"{scheme}://127.0.0.1:{deaf.getsockname()[1]}"}))
        before = time.monotonic()
        for number in range(100):
            publisher.publish([f"job-{number}"])
        assert time.monotonic() - before < 0.5
