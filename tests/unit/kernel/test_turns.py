"""Turns at writing to SQLite: whoever waits comes before whoever wants to write again."""

import errno
import fcntl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session, sessionmaker

from portal.kernel import db
from portal.kernel.db import open_database, transaction
from portal.kernel.turns import Turns
from tests.support.databases import settings_for
from tests.support.servers import until

WITHIN_S = 60


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A database of nobody else."""
    return tmp_path / "turns.db"


@pytest.fixture
def two(file: Path, tmp_path: Path) -> Iterator[list[sessionmaker[Session]]]:
    """Two processes' sessions on it."""
    settings = settings_for(tmp_path, database_url=f"sqlite:///{file}")
    made = [open_database(settings) for _ in range(2)]
    yield made
    for each in made:
        each.kw["bind"].dispose()


def is_held(file: Path) -> bool:
    """Whether somebody holds the turn at this database."""
    with Path(f"{file}-turn").open("ab") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


@pytest.mark.parametrize("other", [0, 1], ids=["thread", "process"])
def test_who_writes_again_waits_for_who_waited(two: list[sessionmaker[Session]], file: Path, other: int) -> None:
    begun: list[str] = []

    def wait_for_turn() -> None:
        with two[other]() as session, transaction(session):
            begun.append("who waited")

    with two[0]() as session:
        for _ in range(5):
            begun.clear()
            waiting = threading.Thread(target=wait_for_turn)
            with transaction(session):
                waiting.start()
                until(lambda: is_held(file), within_s=WITHIN_S, what="the other one waits")
            with transaction(session):
                begun.append("who writes again")
            waiting.join(WITHIN_S)
            assert begun == ["who waited", "who writes again"]


def test_nobody_waits_for_ever(two: list[sessionmaker[Session]], file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with two[0]() as writer, two[1]() as other:
        monkeypatch.setattr(db, "BUSY_TIMEOUT_MS", 50)
        with transaction(writer), pytest.raises(OperationalError, match="locked"), transaction(other):
            """It is the other's turn, but there is no end to the transaction before."""
        # Somebody who has the turn and stands still.
        with Path(f"{file}-turn").open("ab") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            with transaction(other):
                assert is_held(file)
        assert not is_held(file)


def test_where_no_turns_can_be_taken_the_database_decides(tmp_path: Path) -> None:
    with Turns(tmp_path / "nowhere" / "file").taken(5) as end:
        assert end


def test_where_files_cannot_be_locked_turns_are_the_process_s_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refused)
    turns = Turns(tmp_path / "turn")
    for _ in range(2):
        with turns.taken(WITHIN_S):
            pass
