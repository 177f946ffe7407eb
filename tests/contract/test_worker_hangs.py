"""A worker in which the comparison with the host hangs for good ends itself, says so, and leaves its jobs to the next one."""

import subprocess
import sys
from collections.abc import Iterator

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker

from portal.compute.instances import instance_create
from portal.engines.ports import Engines
from portal.kernel.audit import AuditEntry
from portal.kernel.context import Context
from portal.kernel.events import Event
from portal.kernel.jobs import Job
from portal.kernel.operations import run
from portal.kernel.resource import Registry
from portal.settings import ROOT, Settings
from portal.worker.loop import Worker
from portal.worker.scheduler import Scheduler
from portal.worker.tasks import TASKS
from portal.worker.watchdog import EVENT, STATUS
from tests.support.processes import environment, kill, log_file
from tests.support.scenarios import TINY
from tests.support.servers import until

LOOK = TASKS["reconcile-networks"]


@pytest.fixture
def brief(settings: Settings) -> Settings:
    return settings.model_copy(update={"worker_hang_s": 2})


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    return app.test_client()


@pytest.fixture
def healthy(brief: Settings, database: sessionmaker[Session], engines: Engines, registry: Registry) -> Iterator[Worker]:
    worker = Worker(database, brief, registry, engines, tasks=TASKS, name="next")
    yield worker
    worker.stop(limit_s=10)


def hang(settings: Settings) -> int:
    """How a worker ends whose look at the networks hangs."""
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    with log_file(settings, "worker").open("ab") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.hanging_worker"],
            env=environment(settings),
            cwd=ROOT,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    try:
        return process.wait(120)
    finally:
        kill(process)


def queue_look(database: sessionmaker[Session], settings: Settings) -> None:
    assert Scheduler(database, settings, {LOOK.name: LOOK}, lambda _jobs: None).tick()


def said(client: FlaskClient) -> dict[str, str]:
    found: dict[str, str] = client.get("/ready").get_json()["checks"]["capabilities"].get("network_reconciler", {})
    return found


@pytest.mark.timeout(240)
def test_it_ends_itself_says_what_hung_and_the_next_worker_goes_on(
    client: FlaskClient, brief: Settings, ctx: Context, database: sessionmaker[Session], healthy: Worker
) -> None:
    job_id = run(ctx, instance_create, None, {"name": "one", "flavor": "t3-micro", "image": TINY}).job_id
    assert job_id
    queue_look(database, brief)
    assert hang(brief) == STATUS
    log = log_file(brief, "worker").read_text()
    assert "hanging_worker.py" in log, "the log has what each thread was doing"
    assert "in drift" in log

    found = said(client)
    assert found["status"] == "unavailable"
    assert "had not come on for 2 s" in found["reason"]
    with database() as session:
        event = session.scalars(select(Event).where(Event.type == EVENT)).one()
        assert (event.resource_id, event.project_id, event.payload["silent_s"]) == ("network_reconciler", None, 2)
        assert session.scalars(select(AuditEntry).where(AuditEntry.action == EVENT)).one().status == "failure"
        assert session.get_one(Job, job_id).state == "running", "it was in the middle of this"
    assert 'portal_worker_hangs{what="network_reconciler"} 1.0' in client.get("/metrics").get_data(as_text=True)

    # What is started in its place does what it was at, and is believed once it has come round.
    healthy.start()

    def is_done() -> bool:
        with database() as session:
            return session.get_one(Job, job_id).state == "succeeded"

    until(is_done, within_s=60, what="the job goes on")
    until(lambda: said(client)["status"] == "ok", within_s=60, what="the reconciler comes round")
    assert 'portal_worker_hangs{what="network_reconciler"} 1.0' in client.get("/metrics").get_data(as_text=True)
