"""Databases for tests: migrated and seeded once, then copied for each test, on SQLite or (TEST_DATABASE=postgresql) on PostgreSQL."""

import os
import shutil
from datetime import timedelta
from pathlib import Path
from typing import Protocol

from sqlalchemy import NullPool, create_engine, update
from sqlalchemy import inspect as sqlalchemy_inspect

from portal.bootstrap import initialise, migrate
from portal.engines.ports import Capability, HostCapacity
from portal.kernel.capabilities import CapabilityStatus, report
from portal.kernel.db import now, open_database, transaction
from portal.kernel.quota import Quota
from portal.settings import POOLS, Settings
from tests.support.servers import Postgres

ADMIN_PASSWORD = "correct horse battery staple"
HOST = HostCapacity(cpus=64, memory_mib=1 << 20, disk_total_gib=10_000, disk_free_gib=10_000, accelerator="fake")
ON_POSTGRESQL = os.environ.get("TEST_DATABASE") == "postgresql"


def settings_for(data_dir: Path, **overrides: object) -> Settings:
    """Settings of a small, quick installation in a directory."""
    quick: dict[str, object] = {
        "data_dir": data_dir, "engine_compute": "fake", "network_external_nat": False, "queue_url": "",
        "admin_password": ADMIN_PASSWORD, "secret_key": "tests only, nothing to guard",
        "job_retry_base_s": 0.0, "web_workers": 1, "job_poll_ms": 10, "portal_port": 0, "metrics_port": 0, "s3_port": 0, "rate_limit_per_minute": 0, "rate_limit_anonymous_per_minute": 0,
    }  # fmt: skip
    return Settings.load(**{**quick, **overrides})


class Database(Protocol):
    """One database, at the same URL for all tests of a process: so that SQLAlchemy compiles its statements once."""

    url: str

    def renew(self) -> None:
        """Make it a fresh copy of the template; nobody may be connected."""
        ...

    def close(self) -> None:
        """End what was started."""
        ...


def fill(url: str, directory: Path) -> None:
    """Make the tables and what a fresh installation begins with; a worker has reported a large host."""
    settings = settings_for(directory, database_url=url)
    sessions = open_database(settings)
    with sessions() as session:
        migrate(session.get_bind().engine)
        initialise(session, settings)
        report(session, Capability("compute", available=True, detail="in memory"), worker="template", capacity=HOST)
        report(session, Capability("network", available=True, detail="in memory"), worker="template")
        rooms = {name: {"total_gib": 10_000, "free_gib": 10_000} for name in POOLS}
        report(session, Capability("volumes", available=True, detail="in memory"), worker="template", facts=rooms)
        # As fresh at the end of a run as at its beginning.
        with transaction(session):
            session.execute(update(CapabilityStatus).values(reported_at=now() + timedelta(days=1)))
            # What a run found at its beginning is not of yesterday for those of its tests that come after midnight.
            session.execute(update(Quota).values(peak_day=None))
    sessions.kw["bind"].dispose()


class SqliteDatabase:
    """A file."""

    def __init__(self, directory: Path) -> None:
        self._template, self._copy = directory / "template.db", directory / "portal.db"
        self.url = f"sqlite:///{self._copy}"
        fill(f"sqlite:///{self._template}", directory)

    def renew(self) -> None:
        for suffix in ("", "-wal", "-shm"):
            self._copy.with_name(self._copy.name + suffix).unlink(missing_ok=True)
        shutil.copyfile(self._template, self._copy)

    def close(self) -> None:
        self._template.unlink()


class PostgresDatabase:
    """A database on a server of our own; its first rows are kept in a schema beside it, from which it is renewed in a few milliseconds."""

    def __init__(self, directory: Path) -> None:
        self._server = Postgres()
        self._server.start()
        self._server.execute("CREATE DATABASE portal")
        self.url = self._server.url("portal")
        fill(self.url, directory)
        self._engine = create_engine(self.url, poolclass=NullPool)
        tables = sqlalchemy_inspect(self._engine).get_table_names()
        self._run("CREATE SCHEMA seed", *(f'CREATE TABLE seed."{table}" AS TABLE public."{table}"' for table in tables))
        self._renewal = (
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()",
            # Rows go and come without regard to who refers to whom.
            "SET session_replication_role = replica",
            *(f'DELETE FROM public."{table}"' for table in tables),  # noqa: S608 - names from the catalogue
            *(f'INSERT INTO public."{table}" SELECT * FROM seed."{table}"' for table in tables),  # noqa: S608 - likewise
        )

    def _run(self, *statements: str) -> None:
        with self._engine.begin() as connection:
            connection.exec_driver_sql("; ".join(statements))

    def renew(self) -> None:
        self._run(*self._renewal)

    def close(self) -> None:
        self._server.close()


def new_database(directory: Path) -> Database:
    """What TEST_DATABASE says."""
    return PostgresDatabase(directory) if ON_POSTGRESQL else SqliteDatabase(directory)
