"""Worker and scheduler as processes, without a broker: the default installation."""

import signal

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker

from portal.compute.instances import Instance, instance_create
from portal.engines.fake import FakeCompute
from portal.engines.ports import MachineState
from portal.kernel.capabilities import capability
from portal.kernel.context import Context
from portal.kernel.jobs import Job, Schedule
from portal.kernel.operations import run
from portal.settings import Settings
from portal.worker.tasks import TASKS
from tests.support.processes import kill, log_file, portal_process
from tests.support.scenarios import TINY
from tests.support.servers import until

CREATE = {"flavor": "t3-micro", "image": TINY}


@pytest.fixture
def eager(settings: Settings) -> Settings:
    """Settings under which a test need not wait for a minute."""
    return settings.model_copy(update={"reconcile_interval_s": 1, "metrics_interval_s": 1, "job_lease_s": 2})


def state_of(database: sessionmaker[Session], instance_id: str) -> str:
    with database() as session:
        return session.scalars(select(Instance.state).where(Instance.id == instance_id)).one()


def test_periodic_work_is_done(eager: Settings, ctx: Context, database: sessionmaker[Session], fake: FakeCompute) -> None:
    with portal_process(eager, "worker"), portal_process(eager, "scheduler"), portal_process(eager, "scheduler"):
        row = run(ctx, instance_create, None, {"name": "one", **CREATE}).row
        until(lambda: state_of(database, row.id) == "running", within_s=30, what="the instance runs")
        fake.outside_kill(row.id)
        until(lambda: fake.machine_state(row.id) is MachineState.RUNNING, within_s=30, what="the reconciler has booted it again")
        until(lambda: state_of(database, row.id) == "running", within_s=30, what="the instance runs again")
        fake.ensure_stopped(row.id, graceful_timeout_s=0)
        until(lambda: state_of(database, row.id) == "stopped", within_s=30, what="the reconciler has noticed")

        def all_ran() -> bool:
            with database() as session:
                return (
                    set(session.scalars(select(Schedule.name))) == set(TASKS)
                    and session.query(Job).filter(Job.resource_type == "system").count() == 0
                )

        until(all_ran, within_s=30, what="every task has had its turn")
    with database() as session:
        found = capability(session, "compute")
        assert found is not None
        assert found.worker != "template"


def test_workers_are_killed_and_stopped_under_load_and_nothing_is_lost(eager: Settings, ctx: Context, database: sessionmaker[Session]) -> None:
    def succeeded() -> int:
        with database() as session:
            return session.query(Job).filter(Job.state == "succeeded").count()

    with portal_process(eager, "worker") as doomed, portal_process(eager, "worker") as polite:
        for number in range(60):
            run(ctx, instance_create, None, {"name": f"i{number}", **CREATE})
        until(lambda: succeeded() > 0, within_s=30, what="work has begun")
        kill(doomed)
        polite.send_signal(signal.SIGINT)
        assert polite.wait(30) == 0
    assert '"stopped"' in log_file(eager, "worker").read_text()
    with portal_process(eager, "worker"):
        until(lambda: succeeded() == 60, within_s=60, what="all jobs are done")
    with database() as session:
        assert session.query(Instance).filter(Instance.state == "running").count() == 60
