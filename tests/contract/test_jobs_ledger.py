"""The ledger: claims, leases, fencing, the reaper, many workers at once, and schedules."""

import multiprocessing
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import pytest
from sqlalchemy import event, func, select, update
from sqlalchemy.orm import Session, sessionmaker

from portal.catalogue import build_registry
from portal.compute.images import Image
from portal.compute.instances import instance_create, instance_start, instance_terminate
from portal.engines.ports import EngineError, EngineRefused, Engines
from portal.kernel.audit import Subject, record
from portal.kernel.audit_verify import verify
from portal.kernel.context import Context
from portal.kernel.control import job_retry
from portal.kernel.db import now, open_database, transaction
from portal.kernel.errors import Conflict, QuotaExceeded, StateConflict
from portal.kernel.jobs import MAX_CRASHES, Claim, Job, JobStep, Schedule, claim, claim_next, reap, release, renew
from portal.kernel.operations import run
from portal.kernel.quota import Quota, held_by, recount, usage
from portal.kernel.resource import Registry
from portal.kernel.runner import SystemTask
from portal.networking.vpc import vpc_configure_flow_logs
from portal.settings import Settings
from portal.worker.loop import Worker
from portal.worker.scheduler import Scheduler
from tests.support.databases import ON_POSTGRESQL
from tests.support.draining import TestWorker
from tests.support.effects import way
from tests.support.people import People
from tests.support.sabotage import Do, failing, sabotaged
from tests.support.scenarios import TINY, Stage, assert_sound, start, stopped_instance
from tests.support.servers import until

pytestmark = pytest.mark.usefixtures("networked")
WorkerWith = Callable[[Registry], TestWorker]
CREATE, CHANGED = {"flavor": "t3-micro", "image": TINY}, "networking.vpc.apply"


def unheard(_job_ids: object) -> None:
    """Nobody is told."""


def test_a_worker_that_lost_its_lease_writes_nothing_more(stage: Stage, worker_with: WorkerWith) -> None:
    outcome = start(stage, "compute.instance.create")
    ran = []

    def overtaken(phase: str, position: int, call: Do) -> Do:
        def instead(run_: object) -> None:
            call(run_)
            ran.append((phase, position))
            if position == 1:
                # As if this worker had slept through its lease: the job is reaped, and another one finishes it.
                stage.worker.let_lease_run_out(outcome.job_id)
                with stage.worker.sessions() as session:
                    reap(session)
                stage.worker.drain()

        return instead

    worker_with(sabotaged("compute.instance.create", overtaken)).run_one()
    assert ran == [("do", 0), ("do", 1)]
    job = stage.worker.job(outcome.job_id)
    assert (job.state, job.crashes, stage.row(outcome).state) == ("succeeded", 1, "running")
    assert_sound(stage)


def test_a_job_is_claimed_once(stage: Stage, database: sessionmaker[Session]) -> None:
    outcome = start(stage, "compute.instance.create")
    with database() as session:
        first = claim(session, outcome.job_id, worker="one", lease_s=30)
        assert first is not None
        assert claim(session, outcome.job_id, worker="two", lease_s=30) is None
        assert claim_next(session, worker="two", lease_s=30) is None
        assert renew(session, [first, Claim(outcome.job_id, "somebody else")], lease_s=30) == [Claim(outcome.job_id, "somebody else")]
        release(session, Claim(outcome.job_id, "somebody else"))
        assert claim_next(session, worker="two", lease_s=30) is None
        release(session, first)
        assert claim_next(session, worker="two", lease_s=30) is not None
    assert stage.worker.job(outcome.job_id).crashes == 0


def test_whoever_queues_many_jobs_keeps_nobody_waiting_for_all_of_them(people: People, database: sessionmaker[Session]) -> None:
    many, one = (people.context(people.user("project_admin", project), project) for project in (people.project_id, people.project()))
    theirs = [run(many, instance_create, None, {"name": f"web-{number}", **CREATE}).job_id for number in range(4)]
    mine = run(one, instance_create, None, {"name": "mine", **CREATE})
    urgent = [CHANGED]
    run(one, vpc_configure_flow_logs, mine.row.vpc_id, {"enabled": True})

    def next_job() -> Job:
        with database() as session:
            taken = claim_next(session, worker="w", lease_s=30, urgent=urgent)
            assert taken is not None
            return session.get_one(Job, taken.job_id)

    # A change of a network first, then whose jobs are at work least, then whoever waits longest.
    assert next_job().kind == CHANGED
    taken = [next_job().id for _ in range(4)]
    assert taken[0] == theirs[0]
    assert taken.index(str(mine.job_id)) <= 2
    with database() as session:
        assert claim_next(session, worker="w", lease_s=30, kinds=urgent, urgent=urgent) is None


def test_only_silent_workers_are_reaped(stage: Stage, database: sessionmaker[Session]) -> None:
    outcome = start(stage, "compute.instance.create")
    held = stage.worker.claim()
    assert held is not None
    with database() as session:
        assert reap(session) == []
        stage.worker.let_lease_run_out(held.job_id)
        assert renew(session, [held], lease_s=30) == []
        assert reap(session) == []
        stage.worker.let_lease_run_out(held.job_id)
        assert reap(session) == [outcome.job_id]
        assert renew(session, [held], lease_s=30) == [held]
    assert stage.worker.job(outcome.job_id).crashes == 1


def test_what_a_broker_will_bring_is_left_to_it(stage: Stage, database: sessionmaker[Session], worker_with: WorkerWith) -> None:
    outcome = start(stage, "compute.instance.create")
    with database() as session:
        assert claim_next(session, worker="sweep", lease_s=30, older_than_s=2) is None
    # Another try is brought by no broker.
    worker_with(sabotaged("compute.instance.create", failing("do", 0, EngineError("busy"), times=1))).run_one()
    assert stage.worker.job(outcome.job_id).state == "retrying"
    with database() as session:
        assert claim_next(session, worker="sweep", lease_s=30, older_than_s=2) is not None


def test_another_try_waits_and_waits_longer_each_time(stage: Stage, worker_with: WorkerWith) -> None:
    outcome = start(stage, "compute.instance.create")
    worker = worker_with(sabotaged("compute.instance.create", failing("do", 0, EngineError("busy"))))
    patient = replace(worker, runner=replace(worker.runner, settings=worker.runner.settings.model_copy(update={"job_retry_base_s": 100.0})))
    waits = []
    for _ in range(2):
        assert patient.run_one()
        job = stage.worker.job(outcome.job_id)
        waits.append((job.run_at - now()).total_seconds())
        assert not patient.run_one()
        with worker.sessions() as session:
            assert claim(session, outcome.job_id, worker="eager", lease_s=30) is None
            with transaction(session):
                session.get_one(Job, outcome.job_id).run_at = now()
    assert 95 < waits[0] <= 100
    assert 195 < waits[1] <= 200


def test_the_jobs_table_is_read_through_its_index(database: sessionmaker[Session]) -> None:
    if ON_POSTGRESQL:
        pytest.skip("PostgreSQL plans by statistics")
    plans = []

    def explain(_connection: object, cursor: object, statement: str, parameters: object, *_rest: object) -> None:
        if statement.startswith("SELECT jobs.id"):
            plans.extend(row[3] for row in cursor.execute(f"EXPLAIN QUERY PLAN {statement}", parameters).fetchall())

    engine = database.kw["bind"]
    event.listen(engine, "before_cursor_execute", explain)
    try:
        with database() as session:
            claim_next(session, worker="w", lease_s=30, older_than_s=2)
            reap(session)
    finally:
        event.remove(engine, "before_cursor_execute", explain)
    assert plans
    assert all("USING INDEX" in plan for plan in plans), plans


def test_stopping_gives_the_job_back_before_its_next_step(stage: Stage) -> None:
    outcome = start(stage, "compute.instance.create")
    stop = threading.Event()

    def stopping_at(phase: str, position: int, call: Do) -> Do:
        def instead(run_: object) -> None:
            call(run_)
            if position == 2:
                stop.set()

        return instead

    runner = replace(stage.worker.runner, registry=sabotaged("compute.instance.create", stopping_at), stopping=stop.is_set)
    replace(stage.worker, runner=runner).run_one()
    job = stage.worker.job(outcome.job_id)
    assert (job.state, job.crashes, [step.state for step in job.steps]) == ("queued", 0, ["done"] * 3 + ["todo"] * 3)
    stage.worker.drain()
    assert stage.row(outcome).state == "running"


def test_retrying_needs_the_resource_as_the_failure_left_it(stage: Stage, worker_with: WorkerWith) -> None:
    outcome = start(stage, "compute.instance.create")
    with pytest.raises(StateConflict, match="only a failed one"):
        job_retry(stage.ctx, outcome.job_id)
    worker_with(sabotaged("compute.instance.create", failing("do", 0, EngineRefused("no")))).drain()
    stage.do(instance_terminate, outcome.row.id)
    with pytest.raises(StateConflict, match="has changed since"):
        job_retry(stage.ctx, outcome.job_id)


def test_a_retried_resize_remembers_its_flavor(stage: Stage, worker_with: WorkerWith) -> None:
    row = stopped_instance(stage)
    # By its alias, as some clients say it.
    outcome = run(stage.ctx, stage.ctx.registry.operation("compute.instance.resize"), row.id, {"instance_type": "t3-small"})
    worker_with(sabotaged("compute.instance.resize", failing("do", 0, EngineRefused("no room")))).drain()
    assert stage.row(outcome).flavor_id == "t3-micro"
    job_retry(stage.ctx, outcome.job_id)
    stage.worker.drain()
    assert (stage.row(outcome).state, stage.row(outcome).flavor_id) == ("stopped", "t3-small")
    assert_sound(stage)


def test_a_start_after_a_failed_create_takes_quota_again(stage: Stage, worker_with: WorkerWith) -> None:
    outcome = start(stage, "compute.instance.create")
    worker_with(sabotaged("compute.instance.create", failing("do", 0, EngineRefused("no")))).drain()
    assert "cpus" not in held_by(stage.ctx.db, outcome.row.id)
    with transaction(stage.ctx.db):
        stage.ctx.db.execute(update(Quota).where(Quota.project_id == stage.ctx.project_id, Quota.dimension == "cpus").values(limit=0))
    with pytest.raises(QuotaExceeded) as refused:
        run(stage.ctx, instance_start, outcome.row.id)
    assert refused.value.details == {"dimension": "cpus", "limit": 0, "used": 0, "requested": 1, **way("cpus")}
    with transaction(stage.ctx.db):
        stage.ctx.db.execute(update(Quota).where(Quota.project_id == stage.ctx.project_id, Quota.dimension == "cpus").values(limit=1))
    assert stage.do(instance_start, outcome.row.id).state == "running"
    assert held_by(stage.ctx.db, outcome.row.id)["cpus"] == 1
    assert usage(stage.ctx.db, str(stage.ctx.project_id))["cpus"] == (1, 1)
    assert_sound(stage)


def test_two_jobs_on_one_resource_are_refused(stage: Stage, database: sessionmaker[Session]) -> None:
    outcome = start(stage, "compute.instance.create")
    with pytest.raises(Conflict):
        run(stage.ctx, instance_terminate, outcome.row.id)
    with database() as session, pytest.raises(Exception, match=r"(?i)unique"), transaction(session):
        session.add(Job(kind="compute.instance.stop", label="", resource_type="compute.instance", resource_id=outcome.row.id))


def test_two_machines_from_one_image_that_is_still_to_be_fetched(stage: Stage) -> None:
    with transaction(stage.ctx.db):
        stage.ctx.db.add(Image(id="ami-far", name="far", size_gb=1, is_public=True, source_url=stage.image_url, state="catalogue"))
    outcome = run(stage.ctx, instance_create, None, {"name": "twin", "flavor": "t3-micro", "image": "ami-far", "count": 2})
    claims = [stage.worker.claim() for _ in outcome.jobs]
    threads = [threading.Thread(target=stage.worker.runner.run, args=(claimed,)) for claimed in claims]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [stage.worker.job(job_id).state for job_id in outcome.jobs] == ["succeeded", "succeeded"]
    assert list((stage.ctx.settings.data_dir / "staging").iterdir()) == []
    assert_sound(stage)


# -- schedules ---------------------------------------------------------------------------------------------------------------------


def task(name: str = "tick", interval_s: float = 60, do: Callable[..., None] = unheard) -> SystemTask:
    return SystemTask(name, "Tick", lambda _: interval_s, do)


def test_many_schedulers_queue_once(database: sessionmaker[Session], settings: Settings) -> None:
    schedulers = [Scheduler(database, settings, {"tick": task()}, unheard) for _ in range(4)]
    queued: list[str] = []
    for turn in range(3):
        gate = threading.Barrier(len(schedulers))

        def tick(scheduler: Scheduler, gate: threading.Barrier = gate) -> None:
            gate.wait()
            queued.extend(scheduler.tick())

        threads = [threading.Thread(target=tick, args=(scheduler,)) for scheduler in schedulers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(queued) == turn + 1
        with database() as session, transaction(session):
            session.query(Job).delete()
            session.get_one(Schedule, "tick").next_run_at = now()


def test_a_turn_is_left_out_while_the_one_before_is_active(database: sessionmaker[Session], settings: Settings) -> None:
    scheduler = Scheduler(database, settings, {"tick": task(interval_s=0.0)}, unheard)
    assert len(scheduler.tick()) == 1
    assert scheduler.tick() == []
    with database() as session, transaction(session):
        session.query(Job).delete()
    assert len(scheduler.tick()) == 1


def test_a_shorter_interval_takes_effect_at_once(database: sessionmaker[Session], settings: Settings) -> None:
    assert len(Scheduler(database, settings, {"tick": task(interval_s=3600)}, unheard).tick()) == 1
    with database() as session, transaction(session):
        session.query(Job).delete()
    assert Scheduler(database, settings, {"tick": task(interval_s=3600)}, unheard).tick() == []
    assert len(Scheduler(database, settings, {"tick": task(interval_s=10)}, unheard).tick()) == 1
    assert 0 < Scheduler(database, settings, {"tick": task(interval_s=10)}, unheard).wait_s() <= 1


def test_periodic_work_leaves_no_job_behind_whatever_happens(database: sessionmaker[Session], settings: Settings, worker: TestWorker) -> None:
    def broken(_run: object) -> None:
        raise ZeroDivisionError

    def refused(_run: object) -> None:
        raise EngineError("no hypervisor")

    ran: list[object] = []
    tasks = {t.name: t for t in (task("broken", do=broken), task("refused", do=refused), task("good", do=ran.append), task("gone"))}
    assert len(Scheduler(database, settings, tasks, unheard).tick()) == 4
    del tasks["gone"]
    replace(worker, runner=replace(worker.runner, tasks=tasks)).drain()
    assert len(ran) == 1
    with database() as session:
        assert session.query(Job).count() == 0


def test_periodic_work_that_kills_workers_waits_for_its_next_turn(database: sessionmaker[Session], settings: Settings, worker: TestWorker) -> None:
    ran: list[object] = []
    tasks = {"tick": task(do=ran.append)}
    Scheduler(database, settings, tasks, unheard).tick()
    with database() as session, transaction(session):
        session.execute(update(Job).values(crashes=MAX_CRASHES + 1))
    replace(worker, runner=replace(worker.runner, tasks=tasks)).drain()
    assert ran == []
    with database() as session:
        assert session.query(Job).count() == 0


# -- many at once ------------------------------------------------------------------------------------------------------------------


def _work(settings: Settings, stop: object) -> None:
    sessions = open_database(settings)
    worker = Worker(sessions, settings, build_registry(), Engines(), tasks={"count": task("count", do=_count)}, name="many")
    worker.start()
    stop.wait()
    worker.stop()


def _count(run_: object) -> None:
    ctx: Context = run_.ctx
    with transaction(ctx.db):
        # The request id tells which of the thousand this is.
        ctx.db.add(Schedule(name=ctx.request_id, next_run_at=now()))


@pytest.mark.timeout(300)
def test_a_thousand_jobs_run_exactly_once_each(database: sessionmaker[Session], settings: Settings) -> None:
    with database() as session, transaction(session):
        session.add_all(
            Job(kind="system.count", label="", resource_type="system", resource_id=f"system:{number}", request_id=f"n{number}")
            for number in range(1000)
        )
    database.kw["bind"].dispose()
    spawn = multiprocessing.get_context("fork")
    stop = spawn.Event()
    workers = [spawn.Process(target=_work, args=(settings, stop)) for _ in range(3)]
    for process in workers:
        process.start()
    try:

        def left() -> int:
            with database() as session:
                return session.query(Job).count()

        until(lambda: left() == 0, within_s=240, what="all jobs are done", every_s=0.1)
    finally:
        stop.set()
        for process in workers:
            process.join(30)
    assert [process.exitcode for process in workers] == [0, 0, 0]
    with database() as session:
        # A second run of one of them would have broken the primary key and left its job behind.
        assert session.scalar(select(func.count()).select_from(Schedule)) == 1000


def test_the_audit_log_is_verified_while_others_write(people: People) -> None:
    reader, writer = people.context(None), people.context(None)
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            with transaction(writer.db):
                record(writer, "test.write", Subject("test"))

    thread = threading.Thread(target=write)
    thread.start()
    try:
        until(lambda: verify(reader.db).entries > 0, within_s=10, what="the first entry")
        verdicts = [verify(reader.db) for _ in range(20)]
    finally:
        stop.set()
        thread.join()
    assert [verdict.problem for verdict in verdicts] == [""] * 20
    assert verdicts[-1].entries > verdicts[0].entries


def test_quotas_are_recounted_while_others_reserve(stage: Stage, people: People) -> None:
    other = people.context(people.user("project_admin"))
    stop = threading.Event()
    repaired = []

    def recounting() -> None:
        ctx = people.context(None)
        while not stop.is_set():
            with transaction(ctx.db):
                repaired.extend(recount(ctx.db))

    thread = threading.Thread(target=recounting)
    thread.start()
    try:
        for number in range(15):
            run(other, instance_create, None, {"name": f"i{number}", **CREATE})
    finally:
        stop.set()
        thread.join()
    assert repaired == []


def test_steps_go_with_their_job(stage: Stage, database: sessionmaker[Session]) -> None:
    outcome = start(stage, "compute.instance.create")
    with database() as session, transaction(session):
        session.execute(update(Job).where(Job.id == outcome.job_id).values(state="succeeded", finished_at=now() - timedelta(days=31)))
        session.query(Job).delete()
        assert session.query(JobStep).count() == 0
