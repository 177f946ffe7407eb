"""The portal's own processes, started as an operator would."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from portal.settings import ROOT, Settings

END_S = 40.0


def environment(settings: Settings) -> dict[str, str]:
    """The environment that gives a process these settings."""
    given = {}
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        given[name.upper()] = value.get_secret_value() if hasattr(value, "get_secret_value") else str(value)
    kept = {name: value for name, value in os.environ.items() if name.lower() not in type(settings).model_fields}
    return {**kept, **given}


@contextlib.contextmanager
def portal_process(settings: Settings, command: str) -> Iterator[subprocess.Popen[bytes]]:
    """`portal <command>` for the length of a block, ended politely; its output is in DATA_DIR/<command>.log."""
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    with log_file(settings, command).open("ab") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "portal", command], env=environment(settings), cwd=ROOT, stdout=out, stderr=out, start_new_session=True
        )
        try:
            yield process
            if process.poll() is None:
                process.terminate()
                process.wait(END_S)
        finally:
            kill(process)


def log_file(settings: Settings, command: str) -> Path:
    """Where a process writes."""
    return settings.data_dir / f"{command}.log"


def kill(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL for a process and its group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
