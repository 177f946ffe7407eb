"""A worker in which the look at the host's networks hangs for good, and so does the step of a job: `hanging_worker.py`, with settings from the environment."""

import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace

from portal.engines.network_ports import Drift, no_beat
from portal.settings import Settings
from portal.worker import loop
from tests.support.recording_network import RecordingNetwork
from tests.support.sabotage import Do, sabotaged

CREATE = "compute.instance.create"


class Hanging(RecordingNetwork):
    """Networks that nobody gets an answer about."""

    def drift(self, beat: Callable[[], None] = no_beat) -> Sequence[Drift]:
        beat()
        threading.Event().wait()
        return []


def stuck(phase: str, position: int, call: Do) -> Do:
    """The second step never ends."""
    return (lambda _run: threading.Event().wait() and None) if (phase, position) == ("do", 1) else call


def main() -> int:
    """Work until something ends this."""
    open_engines = loop.open_engines
    loop.open_engines = lambda settings, *, owner: replace(open_engines(settings, owner=owner), network=Hanging())
    loop.build_registry = lambda: sabotaged(CREATE, stuck)
    return loop.run_worker(Settings.load())


if __name__ == "__main__":
    sys.exit(main())
