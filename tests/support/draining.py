"""A worker within the test's own thread: it runs what is due, and nothing while nobody asks."""

from dataclasses import dataclass

from sqlalchemy.orm import Session, sessionmaker

from portal.kernel.db import transaction
from portal.kernel.jobs import Claim, Job, claim_next
from portal.kernel.runner import Runner


@dataclass(frozen=True)
class TestWorker:
    """Claims and runs jobs one after the other."""

    __test__ = False

    sessions: sessionmaker[Session]
    runner: Runner

    def claim(self) -> Claim | None:
        """Take the next job without running it."""
        with self.sessions() as session:
            return claim_next(session, worker="test", lease_s=30)

    def run_one(self) -> bool:
        """Run the next job that is due; False if there is none."""
        claim = self.claim()
        if claim is None:
            return False
        self.runner.run(claim)
        return True

    def drain(self, *, at_most: int = 200) -> int:
        """Run jobs until none is due; how many runs that took (another try counts again)."""
        for done in range(at_most):
            if not self.run_one():
                return done
        raise AssertionError(f"still jobs after {at_most} runs")

    def job(self, job_id: str) -> Job:
        """A job as it stands in the database, with its steps."""
        with self.sessions() as session:
            job = session.get_one(Job, job_id)
            assert job.steps is not None
            return job

    def let_lease_run_out(self, job_id: str) -> None:
        """As if the worker had been silent for long."""
        with self.sessions() as session, transaction(session):
            job = session.get_one(Job, job_id)
            assert job.lease_until is not None
            job.lease_until = job.created_at
