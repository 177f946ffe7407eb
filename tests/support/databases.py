"""Databases for tests: migrated and seeded once, then copied for each test, on SQLite or (TEST_DATABASE=postgresql) on PostgreSQL."""

import os
import secrets
import shutil
from pathlib import Path
from typing import Protocol

from portal.bootstrap import initialise, migrate
from portal.engines.ports import Capability, HostCapacity
from portal.kernel.capabilities import report
from portal.kernel.db import open_database
from portal.settings import Settings
from tests.support.servers import Postgres

ADMIN_PASSWORD = "correct horse battery staple"
HOST = HostCapacity(cpus=64, memory_mib=1 << 20, disk_total_gib=10_000, disk_free_gib=10_000, accelerator="fake")
ON_POSTGRESQL = os.environ.get("TEST_DATABASE") == "postgresql"


def settings_for(data_dir: Path, **overrides: object) -> Settings:
    """Settings of a small, quick installation in a directory."""
    quick: dict[str, object] = {
        "data_dir": data_dir, "engine_compute": "fake", "admin_password": ADMIN_PASSWORD, "secret_key": "tests only, nothing to guard", "queue_url": "",
        "job_retry_base_s": 0.0, "job_poll_ms": 10, "portal_port": 0, "metrics_port": 0, "rate_limit_per_minute": 0, "rate_limit_anonymous_per_minute": 0,
    }  # fmt: skip
    return Settings.load(**{**quick, **overrides})


class Databases(Protocol):
    """Gives each test a database of its own."""

    def new(self) -> str:
        """URL of a fresh copy of the template."""
        ...

    def drop(self, url: str) -> None:
        """Remove a copy; nobody may be connected."""
        ...

    def close(self) -> None:
        """End what was started."""
        ...


def fill(url: str, directory: Path) -> None:
    """Make the tables and what a fresh installation begins with; a worker has reported a large host."""
    sessions = open_database(settings_for(directory, database_url=url))
    with sessions() as session:
        migrate(session.get_bind().engine)
        initialise(session, settings_for(directory, database_url=url))
        report(session, Capability("compute", available=True, detail="in memory"), worker="template", capacity=HOST)
    sessions.kw["bind"].dispose()


class SqliteDatabases:
    """Copies of a file."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._template = directory / "template.db"
        fill(f"sqlite:///{self._template}", directory)

    def new(self) -> str:
        copy = self._directory / f"{secrets.token_hex(6)}.db"
        shutil.copyfile(self._template, copy)
        return f"sqlite:///{copy}"

    def drop(self, url: str) -> None:
        path = Path(url.removeprefix("sqlite:///"))
        for suffix in ("", "-wal", "-shm"):
            path.with_name(path.name + suffix).unlink(missing_ok=True)

    def close(self) -> None:
        self._template.unlink()


class PostgresDatabases:
    """Copies by CREATE DATABASE … TEMPLATE on a server of our own."""

    def __init__(self, directory: Path) -> None:
        self._server = Postgres()
        self._server.start()
        self._server.execute("CREATE DATABASE template_portal")
        fill(self._server.url("template_portal"), directory)

    def new(self) -> str:
        name = f"t{secrets.token_hex(6)}"
        self._server.execute(f"CREATE DATABASE {name} TEMPLATE template_portal")
        return self._server.url(name)

    def drop(self, url: str) -> None:
        self._server.execute(f"DROP DATABASE {url.rpartition('/')[2]} WITH (FORCE)")

    def close(self) -> None:
        self._server.close()


def databases(directory: Path) -> Databases:
    """What TEST_DATABASE says."""
    return PostgresDatabases(directory) if ON_POSTGRESQL else SqliteDatabases(directory)
