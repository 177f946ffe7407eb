"""Signals as something to wait for, so that no code runs inside a signal handler."""

import os
import select
import signal
from types import FrameType


def _wake(_number: int, _frame: FrameType | None) -> None:
    """The number has gone into the pipe already."""


class Signals:
    """Collects signals of this process; only the main thread may make one."""

    def __init__(self, *numbers: signal.Signals) -> None:
        """Child processes do not inherit this: they get the default for each signal."""
        self._reading, writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        for number in numbers:
            signal.signal(number, _wake)

    def wait(self, timeout_s: float | None = None) -> int | None:
        """The next signal; None when there is none in time."""
        ready, _, _ = select.select([self._reading], [], [], timeout_s)
        return os.read(self._reading, 1)[0] if ready else None
