"""`portal serve`: web, worker and scheduler as child processes of one supervisor.

A child that dies is started again after a growing pause. Whatever happens to the supervisor, SIGKILL included, its children end with it; virtual
machines are nobody's children and go on. Each child has a process group of its own, so that nothing it started is left behind.
"""

import ctypes
import errno
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from http.client import HTTPException

from portal.http.local import ask, local_url
from portal.logging import setup_logging
from portal.settings import Settings
from portal.worker.signals import Signals

ROLES = ("web", "worker", "scheduler")
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 30.0
STEADY_AFTER_S = 60.0
STOP_LIMIT_S = 30.0
CHECK_EVERY_S = 0.1
PROBE_TIMEOUT_S = 2.0
PR_SET_PDEATHSIG = 1

log = logging.getLogger("portal.supervisor")


def _bind_to_parent(parent: int, libc: ctypes.CDLL) -> None:
    """Ask the kernel, in the child, to end it with its parent."""
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        os._exit(1)  # the parent was gone before the kernel knew


@dataclass(slots=True)
class Child:
    """One role, its process, and when it may be started again."""

    role: str
    command: Sequence[str]
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    failures: int = 0
    start_at: float = 0.0

    def start(self) -> None:
        """Start the process in a group of its own, tied to this one."""
        parent, libc = os.getpid(), ctypes.CDLL(None)
        self.process = subprocess.Popen(
            self.command,
            start_new_session=True,
            preexec_fn=lambda: _bind_to_parent(parent, libc),  # noqa: PLW1509 - the supervisor has one thread
        )
        self.started_at = time.monotonic()

    def is_up(self) -> bool:
        """Whether the process runs."""
        return self.process is not None and self.process.poll() is None

    def signal(self, number: int) -> None:
        """Send a signal to the process."""
        if self.process is not None:
            self.process.send_signal(number)

    def sweep(self) -> None:
        """End what is left of the process group."""
        if self.process is not None:
            try:
                os.killpg(self.process.pid, signal.SIGKILL)
            except ProcessLookupError:
                log.debug("%s left nothing behind", self.role)

    def note_end(self) -> float:
        """Say that it died and plan its next start; seconds until then."""
        status = self.process.returncode if self.process is not None else 0
        self.sweep()
        self.process = None
        if time.monotonic() - self.started_at > STEADY_AFTER_S:
            self.failures = 0
        pause_s = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2.0**self.failures)
        self.failures += 1
        self.start_at = time.monotonic() + pause_s
        how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
        log.error("%s %s; starting it again in %s s", self.role, how, pause_s)
        return pause_s


class Supervisor:
    """Runs the children until SIGTERM or SIGINT."""

    def __init__(self, settings: Settings, signals: Signals, children: Sequence[Child]) -> None:
        """`signals` must bring SIGCHLD as well."""
        self._settings, self._signals, self._children = settings, signals, children
        self._is_announced = False

    def run(self) -> int:
        """Start everything, keep it running, end everything."""
        try:
            while True:
                self._start_due()
                if not self._is_announced and all(child.is_up() for child in self._children) and self._is_ready():
                    self._announce()
                number = self._signals.wait(self._wait_s())
                if number in {signal.SIGTERM, signal.SIGINT}:
                    return 0
        finally:
            self._end()

    def _start_due(self) -> None:
        for child in self._children:
            if child.process is not None and not child.is_up():
                child.note_end()
            if child.process is None and child.start_at <= time.monotonic():
                child.start()

    def _wait_s(self) -> float | None:
        waits = [max(0.0, child.start_at - time.monotonic()) for child in self._children if child.process is None]
        if not self._is_announced:
            waits.append(CHECK_EVERY_S)
        return min(waits, default=None)

    def _is_ready(self) -> bool:
        try:
            ready: bool = json.loads(ask(self._settings, "/ready", timeout_s=PROBE_TIMEOUT_S))["ready"]
        except (OSError, HTTPException, ValueError):
            return False
        return ready

    def _announce(self) -> None:
        self._is_announced = True
        sys.stdout.write(f"Atonix Portal is up: {self._settings.public_url or local_url(self._settings)}\n")
        sys.stdout.flush()

    def _end(self) -> None:
        """Ask everything to end, and make sure that it did."""
        for child in self._children:
            child.signal(signal.SIGTERM)
        deadline = time.monotonic() + STOP_LIMIT_S
        for child in self._children:
            if child.process is not None:
                try:
                    child.process.wait(max(0.0, deadline - time.monotonic()))
                except subprocess.TimeoutExpired:
                    log.warning("%s does not end; it is killed", child.role)
                child.sweep()
                child.process.wait()


def taken_port(settings: Settings) -> str:
    """Why the web server or the S3 gateway could not listen, before anything is started; empty if both can."""
    if not settings.portal_port:
        return "PORTAL_PORT=0 is not accepted: a port from 1 to 65535."
    gateway = _taken(settings, settings.s3_port, "S3_PORT; 0 switches the S3 interface off") if settings.has_gateway() else ""
    return _taken(settings, settings.portal_port, "PORTAL_PORT") or gateway


def _taken(settings: Settings, port: int, setting: str) -> str:
    family = socket.AF_INET6 if ":" in settings.portal_host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.portal_host, port))
        except OSError as error:
            if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
                return f"PORTAL_HOST={settings.portal_host!r} is no address of this machine: {error.strerror}. 127.0.0.1 and 0.0.0.0 always are."
            return f"Port {port} of {settings.portal_host} cannot be used: {error.strerror}. Choose another with {setting}."
    return ""


def run_supervisor(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT."""
    setup_logging(settings)
    if problem := taken_port(settings):
        sys.stderr.write(f"{problem}\n")
        return 1
    roles = (*ROLES, "s3") if settings.has_gateway() else ROLES
    children = [Child(role, (sys.executable, "-m", "portal", role)) for role in roles]
    return Supervisor(settings, Signals(signal.SIGTERM, signal.SIGINT, signal.SIGCHLD), children).run()
