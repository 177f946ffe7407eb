"""A worker that is killed with SIGKILL at one exact place; it is forked from the test, so that a hundred of them cost seconds.

The places: before and after the work of a step or of its undo, and before and after each commit. Production code knows nothing of this: steps are
wrapped through the registry, commits are counted through SQLAlchemy's own events.
"""

import os
import signal
from dataclasses import dataclass
from typing import NoReturn

from sqlalchemy import event
from sqlalchemy.orm import Session, sessionmaker

from portal.engines.fake import FakeCompute
from portal.engines.fake_volumes import FakeVolumes
from portal.engines.ports import Engines
from portal.kernel.db import open_database
from portal.kernel.jobs import claim
from portal.kernel.runner import Runner, StepRun
from portal.settings import POOLS, Settings
from portal.worker.tasks import TASKS
from tests.support.recording_network import RecordingNetwork
from tests.support.sabotage import Do, Wrap, both, sabotaged

SURVIVED = 7


@dataclass(frozen=True)
class Place:
    """Where the worker dies: `what` is do, undo or commit, `number` the step's position or how many commits go well before."""

    what: str
    number: int
    before: bool

    def __str__(self) -> str:
        return f"{'before' if self.before else 'after'}-{self.what}-{self.number}"


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def dying(place: Place) -> Wrap:
    """Wrap that dies before or after one step's work."""

    def wrap(phase: str, position: int, call: Do) -> Do:
        def instead(run: StepRun) -> None:
            here = (phase, position) == (place.what, place.number)
            if here and place.before:
                _die()
            call(run)
            if here:
                _die()

        return instead

    return wrap


def _die_at_commit(sessions: sessionmaker[Session], place: Place) -> None:
    seen = [0]

    def count(_session: Session) -> None:
        if seen[0] == place.number:
            _die()
        seen[0] += 1

    event.listen(sessions, "before_commit" if place.before else "after_commit", count)


def run_and_die(settings: Settings, job_id: str, operation: str, place: Place, plan: Wrap) -> bool:
    """Fork a worker that claims a job and dies on the way; False if it came to the end of its run alive."""
    child = os.fork()
    if child == 0:
        _run(settings, job_id, operation, place, plan)
    status = os.waitpid(child, 0)[1]
    if os.WIFEXITED(status):
        assert os.WEXITSTATUS(status) == SURVIVED, "the worker failed otherwise"
        return False
    assert os.WTERMSIG(status) == signal.SIGKILL
    return True


def _run(settings: Settings, job_id: str, operation: str, place: Place, plan: Wrap) -> NoReturn:
    try:
        sessions = open_database(settings)
        with sessions() as session:
            claimed = claim(session, job_id, worker="doomed", lease_s=30)
        assert claimed is not None
        if place.what == "commit":
            _die_at_commit(sessions, place)
        # Dying is the inner wrap: a step that fails by plan has done its work before.
        registry = sabotaged(operation, both(dying(place), plan))
        host = settings.data_dir / "fake"
        engines = Engines(compute=FakeCompute(host), network=RecordingNetwork(), volumes=FakeVolumes(host, POOLS))
        Runner(sessions, registry, settings, engines, TASKS).run(claimed)
        os._exit(SURVIVED)
    finally:
        # Nothing of the test process may run in here, whatever went wrong.
        os._exit(1)
