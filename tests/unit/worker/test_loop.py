"""The worker's threads: claiming, heartbeat, report, stopping."""

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session, sessionmaker

from portal.compute.instances import instance_create
from portal.engines.ports import Capability, Engines, EngineUnavailable, HostCapacity
from portal.engines.registry import SWITCHED_OFF, compute_status, open_engines
from portal.kernel.capabilities import capability
from portal.kernel.context import Context
from portal.kernel.db import transaction
from portal.kernel.jobs import Job, claim
from portal.kernel.operations import run
from portal.kernel.resource import Registry
from portal.networking.vpc import vpc_configure_flow_logs, vpc_create
from portal.settings import ComputeDriver, Settings
from portal.worker.loop import Worker
from portal.worker.tasks import TASKS
from tests.support.recording_network import RecordingNetwork
from tests.support.sabotage import Do, sabotaged
from tests.support.scenarios import TINY
from tests.support.servers import until

CREATE = "compute.instance.create"
NewWorker = Callable[..., Worker]


@pytest.fixture
def new_worker(database: sessionmaker[Session], settings: Settings, registry: Registry, engines: Engines) -> Iterator[NewWorker]:
    """Start workers that are stopped with the test."""
    started: list[Worker] = []

    def start(*, name: str = "w", sessions: sessionmaker[Session] = database, **changes: object) -> Worker:
        given: dict[str, object] = {"settings": settings, "registry": registry, "engines": engines, "tasks": TASKS, **changes}
        worker = Worker(sessions, given["settings"], given["registry"], given["engines"], tasks=given["tasks"], name=name)
        worker.start()
        started.append(worker)
        return worker

    yield start
    for worker in started:
        worker.stop(limit_s=5)


class Held:
    """A step that waits in the middle until it is let go."""

    def __init__(self, position: int = 1) -> None:
        self.position, self.entered, self.let_go = position, threading.Event(), threading.Event()

    def __call__(self, phase: str, position: int, call: Do) -> Do:
        def instead(run_: object) -> None:
            if (phase, position) == ("do", self.position):
                self.entered.set()
                assert self.let_go.wait(30)
            call(run_)

        return instead


def create(ctx: Context, name: str = "one") -> str:
    return str(run(ctx, instance_create, None, {"name": name, "flavor": "t3-micro", "image": TINY}).job_id)


def job(sessions: sessionmaker[Session], job_id: str) -> Job:
    with sessions() as session:
        return session.get_one(Job, job_id)


def is_in(sessions: sessionmaker[Session], job_id: str, state: str) -> Callable[[], bool]:
    return lambda: job(sessions, job_id).state == state


def test_jobs_run_as_soon_as_they_are_there(new_worker: NewWorker, ctx: Context, database: sessionmaker[Session]) -> None:
    new_worker()
    jobs = [create(ctx, f"i{number}") for number in range(10)]
    for job_id in jobs:
        until(is_in(database, job_id, "succeeded"), within_s=20, what="the job is done")
    waits = sorted((row.started_at - row.created_at).total_seconds() for row in (job(database, job_id) for job_id in jobs) if row.started_at)
    # Milliseconds where nothing else runs, seconds on a machine that is busy; a worker that looks seldom would take far longer still.
    assert waits[0] < 4


def test_a_change_of_a_network_waits_for_no_long_job(
    new_worker: NewWorker, ctx: Context, database: sessionmaker[Session], settings: Settings, network: RecordingNetwork
) -> None:
    held = Held(position=0)
    worker = new_worker(settings=settings.model_copy(update={"worker_threads": 1}), registry=sabotaged(CREATE, held))
    vpc_id = run(ctx, vpc_create, None, {"name": "other", "cidr_block": "10.9.0.0/16"}).row.id
    until(lambda: vpc_id in network.specs, within_s=10, what="the network is there")
    job_id = create(ctx)
    assert held.entered.wait(10)
    run(ctx, vpc_configure_flow_logs, vpc_id, {"enabled": True})
    until(lambda: network.specs[vpc_id].flow_log, within_s=10, what="the change is in force")
    assert job(database, job_id).state == "running"
    held.let_go.set()
    until(is_in(database, job_id, "succeeded"), within_s=10, what="the job is done")
    worker.stop()


def test_a_long_step_keeps_its_lease(new_worker: NewWorker, ctx: Context, database: sessionmaker[Session], settings: Settings) -> None:
    held = Held()
    brief = settings.model_copy(update={"job_lease_s": 0.6})
    new_worker(settings=brief, registry=sabotaged(CREATE, held))
    job_id = create(ctx)
    assert held.entered.wait(10)
    # Only now: it would have taken the job itself.
    new_worker(settings=brief, name="rival")
    first = job(database, job_id).lease_until
    assert first is not None
    until(lambda: (job(database, job_id).lease_until or first) > first, within_s=10, what="the lease is renewed")
    second = job(database, job_id).lease_until
    until(lambda: (job(database, job_id).lease_until or first) > (second or first), within_s=10, what="the lease is renewed again")
    held.let_go.set()
    until(is_in(database, job_id, "succeeded"), within_s=10, what="the job is done")
    assert job(database, job_id).crashes == 0


def test_a_silent_workers_job_goes_to_the_next(
    new_worker: NewWorker, ctx: Context, database: sessionmaker[Session], settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    job_id = create(ctx)
    with database() as session:
        assert claim(session, job_id, worker="died", lease_s=0) is not None
    new_worker(settings=settings.model_copy(update={"job_lease_s": 0.3}))
    until(is_in(database, job_id, "succeeded"), within_s=10, what="the job is done")
    assert job(database, job_id).crashes == 1
    assert "a worker went silent" in caplog.text


def test_the_job_of_a_worker_that_was_killed_here_is_taken_over_at_once(new_worker: NewWorker, ctx: Context, database: sessionmaker[Session]) -> None:
    job_id = create(ctx)
    killed = subprocess.run(
        [sys.executable, "-c", "from portal.worker.names import own_name; print(own_name())"], capture_output=True, text=True, check=True
    )
    with database() as session:
        assert claim(session, job_id, worker=killed.stdout.strip(), lease_s=600) is not None
    new_worker()
    until(is_in(database, job_id, "succeeded"), within_s=10, what="the job is done")
    assert job(database, job_id).crashes == 1


def test_a_lost_lease_is_noticed(
    new_worker: NewWorker, ctx: Context, database: sessionmaker[Session], settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    held = Held()
    new_worker(settings=settings.model_copy(update={"job_lease_s": 0.3}), registry=sabotaged(CREATE, held))
    job_id = create(ctx)
    assert held.entered.wait(10)
    with database() as session, transaction(session):
        session.get_one(Job, job_id).lease_owner = "thief"
    until(lambda: "another worker has taken a job over" in caplog.text, within_s=10, what="the loss is said")
    held.let_go.set()
    until(lambda: "lease lost" in caplog.text, within_s=10, what="the worker leaves it alone")
    assert job(database, job_id).lease_owner == "thief"


def test_stopping_finishes_the_step_and_gives_the_rest_back(new_worker: NewWorker, ctx: Context, database: sessionmaker[Session]) -> None:
    held = Held()
    worker = new_worker(registry=sabotaged(CREATE, held))
    job_id = create(ctx)
    assert held.entered.wait(10)
    stopping = threading.Thread(target=worker.stop)
    stopping.start()
    held.let_go.set()
    stopping.join(10)
    assert not stopping.is_alive()
    row = job(database, job_id)
    assert (row.state, row.lease_owner, row.crashes, [step.state for step in row.steps]) == (
        "queued",
        None,
        0,
        ["done"] * 2 + ["todo"] * 4,
    )


def test_stopping_does_not_wait_for_ever(new_worker: NewWorker, ctx: Context, database: sessionmaker[Session]) -> None:
    held = Held()
    worker = new_worker(registry=sabotaged(CREATE, held))
    job_id = create(ctx)
    assert held.entered.wait(10)
    worker.stop(limit_s=0.2)
    assert (job(database, job_id).state, job(database, job_id).crashes) == ("queued", 0)
    new_worker(name="next")
    until(is_in(database, job_id, "succeeded"), within_s=10, what="the next worker does it")
    held.let_go.set()


def test_an_idle_worker_stops_at_once(new_worker: NewWorker) -> None:
    worker = new_worker()
    stopping = threading.Thread(target=worker.stop)
    stopping.start()
    stopping.join(5)
    assert not stopping.is_alive()
    assert worker.offer("job-1") is False


def test_what_goes_wrong_around_steps_counts_as_a_crash(
    new_worker: NewWorker, ctx: Context, database: sessionmaker[Session], settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    def explode(_row: object) -> None:
        raise ZeroDivisionError

    registry = ctx.registry
    instance = registry.get("compute.instance")
    assert instance is not None
    operations = [replace(op, finish=explode) if op.verb == "create" else op for op in instance.operations]
    broken = Registry([replace(rtype, operations=operations) if rtype is instance else rtype for rtype in registry], {})
    new_worker(settings=settings.model_copy(update={"job_lease_s": 0.05}), registry=broken)
    job_id = create(ctx)
    until(is_in(database, job_id, "failed"), within_s=30, what="the job is undone")
    assert "worker died 6 times" in job(database, job_id).error
    assert "job left behind" in caplog.text


def test_a_database_that_is_away_for_a_moment_is_waited_for(
    new_worker: NewWorker, ctx: Context, database: sessionmaker[Session], caplog: pytest.LogCaptureFixture
) -> None:
    class Flaky:
        """Sessions that fail until they are well."""

        is_well = False

        def __call__(self) -> Session:
            if not self.is_well:
                raise OperationalError("SELECT 1", {}, ConnectionError())
            return database()

    flaky = Flaky()
    new_worker(sessions=flaky)
    until(lambda: "the jobs table cannot be read" in caplog.text, within_s=10, what="the problem is said")
    flaky.is_well = True
    job_id = create(ctx)
    until(is_in(database, job_id, "succeeded"), within_s=10, what="the job is done")


def test_offers_are_taken_before_the_sweep(new_worker: NewWorker, ctx: Context, database: sessionmaker[Session], settings: Settings) -> None:
    worker = new_worker(settings=settings.model_copy(update={"queue_url": "amqp://nobody"}))
    job_id = create(ctx)
    assert worker.offer(job_id) is True
    assert job(database, job_id).state != "queued"
    assert worker.offer(job_id) is True
    until(is_in(database, job_id, "succeeded"), within_s=10, what="the job is done")


def test_capabilities_are_reported(new_worker: NewWorker, database: sessionmaker[Session], engines: Engines) -> None:
    new_worker(name="reporter")

    def reported() -> bool:
        with database() as session:
            found = capability(session, "compute")
            return found is not None and found.worker == "reporter"

    until(reported, within_s=10, what="the worker has reported")
    assert engines.compute is not None
    with database() as session:
        found = capability(session, "compute")
        assert found is not None
        assert found.available
        assert found.fresh
        assert set(found.facts) == {"cpus", "memory_mib", "disk_total_gib", "disk_free_gib", "accelerator"}


def test_no_engine_is_a_capability_that_says_so(settings: Settings) -> None:
    engines = open_engines(settings.model_copy(update={"engine_compute": ComputeDriver.NONE}), owner=True)
    assert replace(engines, blobs=None) == Engines()
    assert compute_status(engines) == (SWITCHED_OFF, None)
    assert not SWITCHED_OFF.available
    assert "ENGINE_COMPUTE=local" in SWITCHED_OFF.remedy


def test_only_the_owner_gets_the_compute_engine(settings: Settings) -> None:
    assert open_engines(settings, owner=True).compute is not None
    web = open_engines(settings, owner=False)
    assert web.compute is None
    assert web.console is not None


def test_an_engine_whose_host_cannot_be_measured_is_not_available() -> None:
    class Blind:
        """An engine that promises more than it can say."""

        def capability(self) -> Capability:
            return Capability("compute", available=True, detail="blind")

        def capacity(self) -> HostCapacity:
            raise EngineUnavailable("the hypervisor does not answer")

    found, capacity = compute_status(Engines(compute=Blind()))
    assert (found.available, found.reason, capacity) == (False, "the hypervisor does not answer", None)
