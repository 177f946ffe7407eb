"""Real servers for tests: PostgreSQL, Redis and RabbitMQ on free ports, their files in a temporary directory, ended with the tests."""

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError

START_S = 60.0
_PAUSE = threading.Event()


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(check: Callable[[], bool], *, within_s: float, what: str, every_s: float = 0.02) -> None:
    """Wait for a condition; fail with its name when it does not come true in time."""
    deadline = time.monotonic() + within_s
    while not check():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within_s} s: {what}")
        _PAUSE.wait(every_s)


def answers(port: int) -> bool:
    """Whether something listens on a port of loopback."""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


class Server:
    """A server process that can be killed and started again on the same port with the same files."""

    def __init__(self, name: str, *, user: str = "") -> None:
        self.name, self.port = name, free_port()
        self.user = user if os.geteuid() == 0 else ""
        self.home = Path(tempfile.mkdtemp(prefix=f"portal-{name}-"))
        if self.user:
            shutil.chown(self.home, self.user)
        self.log = (self.home / "log").open("ab")
        self._process: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        raise NotImplementedError

    def environment(self) -> dict[str, str]:
        return {}

    def is_up(self) -> bool:
        return answers(self.port)

    def start(self) -> None:
        self._process = subprocess.Popen(
            self.command(), env={**os.environ, **self.environment()}, cwd=self.home, stdout=self.log, stderr=self.log, stdin=subprocess.DEVNULL,
            user=self.user or None, group=pwd.getpwnam(self.user).pw_gid if self.user else None, start_new_session=True,
        )  # fmt: skip
        try:
            until(self._up_or_dead, within_s=START_S, what=f"{self.name} is up", every_s=0.1)
        except AssertionError:
            self.kill()
            raise

    def _up_or_dead(self) -> bool:
        if self._process is not None and self._process.poll() is not None:
            raise AssertionError(f"{self.name} ended at once: {(self.home / 'log').read_text()[-2000:]}")
        return self.is_up()

    def kill(self) -> None:
        """SIGKILL for the whole process group, as a power cut would."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        """SIGSTOP for the whole process group: connections stay, and nobody answers."""
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGCONT)

    def close(self) -> None:
        self.kill()
        self.log.close()
        shutil.rmtree(self.home, ignore_errors=True)


class Postgres(Server):
    """PostgreSQL without fsync; a database of one's own is a copy of a template."""

    def __init__(self) -> None:
        super().__init__("postgresql", user="postgres")
        self.binaries = max(Path("/usr/lib/postgresql").glob("*/bin"))
        run = [str(self.binaries / "initdb"), "--pgdata", "data", "--username", "portal", "--auth", "trust", "--encoding", "UTF8", "--no-sync"]
        subprocess.run(run, cwd=self.home, user=self.user or None, check=True, stdout=self.log, stderr=self.log)

    def command(self) -> list[str]:
        options = {
            "port": self.port, "listen_addresses": "127.0.0.1", "unix_socket_directories": "", "fsync": "off", "full_page_writes": "off",
            "synchronous_commit": "off", "shared_buffers": "64MB", "max_connections": "300", "autovacuum": "off",
            # Files, not shared memory of the machine: what is killed leaves nothing there.
            "dynamic_shared_memory_type": "mmap",
        }  # fmt: skip
        return [str(self.binaries / "postgres"), "-D", "data", *(part for name, value in options.items() for part in ("-c", f"{name}={value}"))]

    def url(self, database: str) -> str:
        return f"postgresql+psycopg://portal@127.0.0.1:{self.port}/{database}"

    def is_up(self) -> bool:
        try:
            self.execute("SELECT 1")
        except OperationalError:
            return False
        return True

    def execute(self, statement: str) -> None:
        engine = create_engine(self.url("postgres"), isolation_level="AUTOCOMMIT")
        try:
            with engine.connect() as connection:
                connection.execute(text(statement))
        finally:
            engine.dispose()


class Redis(Server):
    """Redis without persistence: what it held is gone when it is killed."""

    def __init__(self) -> None:
        super().__init__("redis")

    def command(self) -> list[str]:
        return ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"


class RabbitMQ(Server):
    """RabbitMQ as a node of its own, so that a broker of the machine is not touched."""

    def __init__(self) -> None:
        super().__init__("rabbitmq")
        self.distribution_port = free_port()
        self.epmd_port = free_port()

    def command(self) -> list[str]:
        return ["/usr/lib/rabbitmq/bin/rabbitmq-server"]

    def environment(self) -> dict[str, str]:
        return {
            "HOME": str(self.home), "RABBITMQ_NODENAME": f"portal{self.port}@localhost", "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1", "RABBITMQ_DIST_PORT": str(self.distribution_port), "ERL_EPMD_PORT": str(self.epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1", "ERL_EPMD_RELAXED_COMMAND_CHECK": "1", "RABBITMQ_MNESIA_BASE": str(self.home / "mnesia"), "RABBITMQ_LOG_BASE": str(self.home / "logs"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.home / "plugins"), "RABBITMQ_PID_FILE": str(self.home / "pid"),
            "RABBITMQ_CONFIG_FILE": str(self.home / "rabbitmq"), "RABBITMQ_CONF_ENV_FILE": str(self.home / "env"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 1:1 +sbwt none", "RABBITMQ_FEATURE_FLAGS_FILE": str(self.home / "flags"),
        }  # fmt: skip

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@127.0.0.1:{self.port}//"

    def close(self) -> None:
        super().close()
        # The name server that the node started has left its process group.
        subprocess.run(["epmd", "-port", str(self.epmd_port), "-kill"], check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def is_up(self) -> bool:
        """The port opens a moment before the broker serves: ask it for its greeting."""
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=2) as link:
            link.settimeout(2)
            link.sendall(b"AMQP\x00\x00\x09\x01")
            return bool(link.recv(1))
        return False


@contextlib.contextmanager
def running(server: Server) -> Iterator[Server]:
    """A server for the length of a block."""
    try:
        server.start()
        yield server
    finally:
        server.close()
