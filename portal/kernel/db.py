"""The database: declarative base, column types, and the only place that commits.

SQLite and PostgreSQL behave alike here: a write transaction is announced as such from its first statement, because SQLite cannot turn a read
transaction into a writing one once somebody else has written.
"""

import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import JSON, DateTime, Dialect, Engine, MetaData, create_engine, event
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.engine import Connection
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import DeclarativeBase, Session, sessionmaker
from sqlalchemy.types import TypeDecorator

from portal.kernel.turns import LOOK_EVERY_S, Turns
from portal.settings import Settings

BUSY_TIMEOUT_MS = 15_000
# SQLite's codes have what it is in the low byte, and why above.
PRIMARY_CODE = 0xFF
DISK_IS_FULL = "The disk is full. Nothing was changed. An administrator has to free space under DATA_DIR or where the database is kept."

JsonColumn = JSON().with_variant(JSONB(), "postgresql")


class Base(DeclarativeBase):
    """Base of every table."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(column_0_label)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


db = SQLAlchemy(model_class=Base, session_options={"expire_on_commit": False})


class UtcDateTime(TypeDecorator[datetime]):
    """A moment in UTC; naive values are refused."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """SQLite keeps text without a zone: store UTC."""
        if value is None:
            return None
        if value.tzinfo is None:
            msg = "a moment needs its time zone"
            raise ValueError(msg)
        try:
            value = value.astimezone(UTC)
        except OverflowError:
            # A moment that users gave, at an end of the calendar: in UTC it would lie beyond.
            value = datetime.min.replace(tzinfo=UTC) if value.year == 1 else datetime.max.replace(tzinfo=UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Give the zone back."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if dialect.name == "sqlite" else value.astimezone(UTC)


def now() -> datetime:
    """The present moment in UTC."""
    return datetime.now(UTC)


@contextmanager
def transaction(session: Session, *, is_forced: bool = True) -> Iterator[None]:
    """One write transaction: all of it or nothing. Leaves whatever was read before behind, so objects must be loaded inside.

    One that is not forced may be lost with the machine's power, and nothing before it is, until `force` has returned: whoever waits for that need
    not keep others from writing meanwhile. Only a database of one file makes a difference.
    """
    session.rollback()
    session.connection(execution_options={"portal_write": True, "portal_forced": is_forced})
    try:
        yield
        session.commit()
    except BaseException:
        session.rollback()
        raise


def open_database(settings: Settings) -> sessionmaker[Session]:
    """Sessions for processes without a web request: workers, scheduler, command line, tests."""
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    url = settings.database()
    # Threads of a worker: jobs, heartbeat, engine report, and the task that a job's thread runs in a session of its own.
    most = 2 * settings.worker_threads + 4
    pool: dict[str, Any] = {"pool_size": min(settings.db_pool_size, most), "max_overflow": most, "pool_pre_ping": not url.startswith("sqlite")}
    # Bound values are user data and hashes: neither a statement in the log nor an exception's text may show them.
    engine = create_engine(url, hide_parameters=True, **pool)
    prepare_engine(engine)
    return sessionmaker(engine, expire_on_commit=False)


def prepare_engine(engine: Engine) -> None:
    """Make SQLite durable, concurrent and strict about transactions; PostgreSQL is so by itself."""
    if engine.dialect.name != "sqlite":
        return
    event.listen(engine, "connect", _on_connect)
    # A database in memory is one process's alone.
    turns = Turns(Path(f"{engine.url.database}-turn") if engine.url.database else None)
    event.listen(engine, "begin", partial(_on_begin, turns=turns))


def _on_connect(connection: Any, _record: object) -> None:
    # The driver's own transaction handling begins too late for us: switch it off and say BEGIN ourselves.
    connection.isolation_level = None
    # SQLite's own knows ASCII only: a name would not be found under its own letters.
    connection.create_function("lower", 1, _lower, deterministic=True)
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", f"busy_timeout={BUSY_TIMEOUT_MS}", "cache_size=-16384"):
        connection.execute(f"PRAGMA {pragma}")


def _lower(value: object) -> object:
    return value.lower() if isinstance(value, str) else value


def _on_begin(connection: Connection, turns: Turns) -> None:
    options = connection.get_execution_options()
    if not options.get("portal_write", False):
        connection.exec_driver_sql("BEGIN")
        return
    synchronous = "FULL" if options.get("portal_forced", True) else "NORMAL"
    if connection.info.get("synchronous", "FULL") != synchronous:
        connection.exec_driver_sql(f"PRAGMA synchronous={synchronous}")
        connection.info["synchronous"] = synchronous
    driver: Any = connection.connection.driver_connection
    with turns.taken(BUSY_TIMEOUT_MS / 1000) as end:
        # Whoever has the turn looks again at once: SQLite would sleep for longer and longer.
        driver.execute("PRAGMA busy_timeout=0")
        try:
            while _is_busy(driver) and time.monotonic() < end:
                time.sleep(LOOK_EVERY_S)
            if not driver.in_transaction:
                connection.exec_driver_sql("BEGIN IMMEDIATE")
        finally:
            driver.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")


def _is_busy(driver: Any) -> bool:
    """Begin to write, unless somebody else is writing; what else is wrong comes up when it is tried once more."""
    try:
        driver.execute("BEGIN IMMEDIATE")
    except sqlite3.OperationalError as error:
        return error.sqlite_errorcode & PRIMARY_CODE == sqlite3.SQLITE_BUSY
    return False


def force(engine: Engine) -> None:
    """Have on the disk what transactions committed that were not forced. Raises OSError."""
    if engine.dialect.name != "sqlite":
        return
    # SQLite keeps its locks on other files, so that closing this one gives none of them up. If it is gone, all of it is in the database, forced.
    with suppress(FileNotFoundError):
        handle = os.open(f"{engine.url.database}-wal", os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def insert_of(session: Session) -> Callable[..., Any]:
    """The INSERT of the session's database, which knows ON CONFLICT."""
    return postgresql.insert if session.get_bind().dialect.name == "postgresql" else sqlite.insert


def by_codepoint(session: Session, column: Any) -> Any:
    """A text column for ORDER BY, in the order in which Python sorts, whatever the language of the database is."""
    return column.collate("C") if session.get_bind().dialect.name == "postgresql" else column


def out_of_service(error: OperationalError) -> str:
    """What people are told where the database refuses to work."""
    if "disk is full" in str(error.orig) or "No space left" in str(error.orig):
        return DISK_IS_FULL
    return "The database does not answer or could not take the change. Nothing was changed. Try again in a moment."
