"""Rounds of periodic work that has to come on: which of them this process is in, and how long ago each gave a sign of life."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(slots=True)
class Round:
    """One round; `silent_s` counts seconds since its last sign of life, in which this process ran."""

    name: str
    silent_s: float = 0.0

    def beat(self) -> None:
        """Give a sign of life."""
        self.silent_s = 0.0


class Rounds:
    """The rounds of one process. Who watches them says how time passes: while the process was stopped, nothing could come on."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._open: list[Round] = []
        self._done: set[str] = set()

    @contextmanager
    def of(self, name: str) -> Iterator[Callable[[], None]]:
        """A round of something; gives what is called whenever it has come a little further."""
        mine = Round(name)
        with self._guard:
            self._open.append(mine)
        try:
            yield mine.beat
        finally:
            with self._guard:
                self._open = [each for each in self._open if each is not mine]
                self._done.add(name)

    def pass_time(self, seconds: float) -> None:
        """Count so many seconds for each open round."""
        with self._guard:
            for each in self._open:
                each.silent_s += seconds

    def hanging(self, bound_s: float) -> str:
        """What has given no sign of life for longer than this; empty if nothing hangs."""
        with self._guard:
            return next((each.name for each in self._open if each.silent_s > bound_s), "")

    def came_round(self) -> set[str]:
        """What has come to an end of a round in this process."""
        with self._guard:
            return set(self._done)
