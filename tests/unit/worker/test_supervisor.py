"""The supervisor: starts, restarts, and never leaves anything behind."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from portal.http.local import local_url
from portal.settings import ROOT
from portal.worker.supervisor import LONGEST_PAUSE_S, Child, run_supervisor, taken_port
from tests.support.databases import settings_for
from tests.support.servers import free_port, until

NAMES = ("web", "worker", "scheduler", "grandchild")


@dataclass
class Small:
    process: subprocess.Popen[str]
    directory: Path
    port: int

    def pid(self, name: str) -> int:
        return int((self.directory / name).read_text())

    def pids(self) -> list[int]:
        return [self.pid(name) for name in NAMES]


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Small]:
    port = free_port()
    command = [sys.executable, "-m", "tests.support.small_portal", str(port), str(tmp_path)]
    with (tmp_path / "stderr").open("w") as errors:
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True)
    assert process.stdout is not None
    assert process.stdout.readline() == f"Atonix Portal is up: http://127.0.0.1:{port}\n"
    until(lambda: all((tmp_path / name).exists() and (tmp_path / name).read_text() for name in NAMES), within_s=10, what="all children are up")
    yield Small(process, tmp_path, port)
    process.terminate()
    process.wait(20)
    process.stdout.close()


def is_gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_ends_everything_it_started(small: Small, number: signal.Signals) -> None:
    pids = small.pids()
    small.process.send_signal(number)
    assert small.process.wait(20) == 0
    until(lambda: all(is_gone(pid) for pid in pids), within_s=5, what="all children are gone")


def test_children_do_not_outlive_a_killed_supervisor(small: Small) -> None:
    pids = [small.pid(name) for name in ("web", "worker", "scheduler")]
    small.process.kill()
    until(lambda: all(is_gone(pid) for pid in pids), within_s=5, what="all children are gone")
    os.killpg(small.pid("worker"), signal.SIGKILL)


def test_starts_a_child_that_died_again_and_says_so(small: Small) -> None:
    before = small.pids()
    os.kill(small.pid("worker"), signal.SIGKILL)
    until(lambda: small.pid("worker") != before[1] and small.pid("grandchild") != before[3], within_s=10, what="the worker is back")
    assert is_gone(before[3])
    assert "worker was killed by signal 9; starting it again in 0.5 s" in (small.directory / "stderr").read_text()
    assert small.pid("web") == before[0]


def test_the_pause_grows_up_to_a_limit() -> None:
    child = Child("worker", ("true",))
    pauses = []
    for _ in range(10):
        child.start()
        assert child.process is not None
        child.process.wait()
        pauses.append(child.note_end())
    assert pauses[:4] == [0.5, 1.0, 2.0, 4.0]
    assert pauses[-1] == LONGEST_PAUSE_S


def test_a_taken_port_is_said_before_anything_starts(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        settings = settings_for(tmp_path, portal_port=other.getsockname()[1])
        assert run_supervisor(settings) == 1
        assert "Choose another with PORTAL_PORT" in capfd.readouterr().err
        assert "S3_PORT" in taken_port(settings.model_copy(update={"portal_port": free_port(), "s3_port": other.getsockname()[1]}))
    assert taken_port(settings_for(tmp_path, portal_port=free_port())) == ""


def test_the_url_is_one_that_this_machine_can_open(tmp_path: Path) -> None:
    assert local_url(settings_for(tmp_path, portal_host="::", portal_port=1234)) == "http://127.0.0.1:1234"
    assert local_url(settings_for(tmp_path, portal_host="::1", portal_port=1234)) == "http://[::1]:1234"
