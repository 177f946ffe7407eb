"""One worker at a time owns a host, and what it started to work on files ends with it."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.processes import ROOT
from tests.support.servers import until

OWNER = """
import sys
from pathlib import Path
from portal.engines.local.ownership import claim_host, run_bound
print(claim_host(Path(sys.argv[1])), flush=True)
if len(sys.argv) > 2:
    run_bound(sys.argv[2:])
"""
# Writes down who it is, and stays.
PROGRAM = ("sh", "-c", 'echo $$ > "$0.part" && mv "$0.part" "$0" && exec sleep 600')


@contextlib.contextmanager
def owner(lock: Path, *program: str) -> Iterator[subprocess.Popen[str]]:
    """A worker that claims a host and runs a program."""
    with subprocess.Popen([sys.executable, "-c", OWNER, str(lock), *program], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def claims(lock: Path) -> bool:
    """Whether a worker that starts now becomes the owner."""
    with owner(lock) as process:
        assert process.stdout is not None
        return process.stdout.read().strip() == "True"


def is_alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    return tmp_path / "worker.lock"


def test_the_next_owner_comes_when_one_has_died_with_its_programs(lock: Path, tmp_path: Path) -> None:
    with owner(lock, *PROGRAM, str(tmp_path / "pid")) as first:
        until((tmp_path / "pid").exists, within_s=60, what="the program runs")
        program = int((tmp_path / "pid").read_text())
        assert not claims(lock)
        first.kill()
        first.wait()
        until(lambda: not is_alive(program), within_s=60, what="the program ends")
        until(lambda: claims(lock), within_s=60, what="the host is free")


def test_a_program_that_outlives_its_worker_keeps_the_host(lock: Path, tmp_path: Path) -> None:
    """One that was being started when its worker died does not know yet that it is to end as well."""
    with owner(lock, "setpriv", "--pdeathsig", "clear", *PROGRAM, str(tmp_path / "pid")) as first:
        until((tmp_path / "pid").exists, within_s=60, what="the program runs")
        program = int((tmp_path / "pid").read_text())
        first.kill()
        first.wait()
        try:
            assert is_alive(program)
            assert not claims(lock)
        finally:
            os.kill(program, signal.SIGKILL)
        until(lambda: claims(lock), within_s=60, what="the host is free")
