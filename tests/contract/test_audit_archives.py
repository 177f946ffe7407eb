"""Archives of the audit log: nothing is lost wherever the process dies, and what is archived is still part of the chain."""

import gzip
import json
import os
import signal
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import delete, event, func, select, update
from sqlalchemy.orm import Session, sessionmaker

from portal.kernel import audit_archives, audit_watch
from portal.kernel.audit import AuditEntry, Subject, digest, record
from portal.kernel.audit_archives import AuditArchive, Damaged, directory
from portal.kernel.audit_checkpoints import AuditCheckpoint
from portal.kernel.audit_keys import trust_of
from portal.kernel.audit_streams import AuditStream
from portal.kernel.audit_verify import Since, verify
from portal.kernel.audit_watch import audit_archive, audit_checkpoint
from portal.kernel.context import Context
from portal.kernel.db import now, open_database, transaction
from portal.settings import Settings
from tests.support.audited import statements
from tests.support.people import People

OLD = timedelta(days=40)


def write(ctx: Context, count: int, *, age: timedelta, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr("portal.kernel.audit.now", lambda: now() - age)
        with transaction(ctx.db):
            for number in range(count):
                record(
                    ctx, "test.thing.do", Subject("test.thing", f"t-{number}", "ä\u2028"), details={"number": 0.5, "b": {"z": None, "a": [number]}}
                )


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Entries go after 30 days."""
    return settings.model_copy(update={"audit_retention_days": 30})


@pytest.fixture
def log(people: People, monkeypatch: pytest.MonkeyPatch) -> Context:
    """Ten old entries of which eight are signed, and three of today; files of four."""
    monkeypatch.setattr(audit_archives, "MOST", 4)
    ctx = people.context(None)
    write(ctx, 8, age=OLD, monkeypatch=monkeypatch)
    audit_checkpoint(ctx)
    write(ctx, 2, age=OLD, monkeypatch=monkeypatch)
    write(ctx, 3, age=timedelta(0), monkeypatch=monkeypatch)
    return ctx


def kept(session: Session) -> list[int]:
    return list(session.scalars(select(AuditEntry.seq).order_by(AuditEntry.seq)))


def archived(settings: Settings) -> list[int]:
    home = directory(settings)
    paths = sorted(home.glob("audit-*.jsonl.gz")) if home.is_dir() else []
    return [json.loads(line)["seq"] for path in paths for line in gzip.decompress(path.read_bytes()).splitlines()]


def test_what_is_old_and_signed_goes_into_files_and_the_chain_goes_on(log: Context, settings: Settings, database: sessionmaker[Session]) -> None:
    assert audit_archive(log) == 2
    assert audit_archive(log) == 0
    with database() as session:
        assert kept(session) == [9, 10, 11, 12, 13, 14, 15]
        assert archived(settings) == [1, 2, 3, 4, 5, 6, 7, 8]
        trust = trust_of(settings)
        found = verify(session, trust, files=directory(settings))
        assert (found.broken_seq, found.entries, found.from_seq, found.to_seq) == (None, 7, 9, 15)
        for since in Since:
            assert verify(session, trust, since=since).broken_seq is None
        rows = session.scalars(select(AuditArchive).order_by(AuditArchive.first_seq)).all()
    for row in rows:
        manifest = json.loads((directory(settings) / f"{row.file}.json").read_text())
        signature = manifest.pop("signature")
        assert manifest.pop("public_key")
        assert trust.is_signed(manifest, manifest["key_id"], signature)
    audit_checkpoint(log)
    assert audit_archive(log) == 1
    assert kept(log.db)[0] == 11


def test_nothing_goes_that_is_kept_for_ever_unsigned_or_not_copied(
    log: Context, settings: Settings, people: People, monkeypatch: pytest.MonkeyPatch
) -> None:
    for_ever = people.context(None)
    for_ever.settings = settings.model_copy(update={"audit_retention_days": 0})
    assert audit_archive(for_ever) == 0
    copied = people.context(None)
    copied.settings = settings.model_copy(update={"audit_webhook_url": "http://127.0.0.1:9/"})
    assert audit_archive(copied) == 0
    with transaction(log.db):
        log.db.add(AuditStream(name="webhook", last_seq=3))
    assert audit_archive(copied) == 1
    assert archived(settings) == [1, 2, 3]
    with transaction(log.db):
        log.db.execute(delete(AuditCheckpoint))
    assert audit_archive(log) == 0


def test_what_does_not_hold_is_not_archived(log: Context, settings: Settings) -> None:
    with transaction(log.db):
        log.db.execute(update(AuditEntry).where(AuditEntry.seq == 3).values(username="innocent"))
    with pytest.raises(Damaged, match="entry 3"):
        audit_archive(log)
    log.db.rollback()
    assert (kept(log.db)[0], archived(settings)) == (1, [])


def remove_file(settings: Settings) -> None:
    next(directory(settings).glob("audit-*5-*.gz")).unlink()


def change_file(settings: Settings) -> None:
    path = next(directory(settings).glob("audit-*5-*.gz"))
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes()).replace(b"system", b"nobody")))


FILES: dict[str, tuple[Callable[[Settings], None], str]] = {"gone": (remove_file, "is not there"), "changed": (change_file, "was changed")}


@pytest.mark.parametrize("name", FILES)
def test_files_are_looked_at_when_asked_for(log: Context, settings: Settings, name: str) -> None:
    audit_archive(log)
    FILES[name][0](settings)
    assert verify(log.db, trust_of(settings)).broken_seq is None
    found = verify(log.db, trust_of(settings), files=directory(settings))
    assert (found.broken_seq, FILES[name][1] in found.problem) == (5, True)


def back_again(session: Session) -> None:
    row = AuditEntry(seq=2, log_id="audit-x", timestamp=now(), user_id=None, username="x", credential="x", action="x", resource_type="x", resource_id="x",
                     resource_name="x", project_id=None, status="success", error_message="", details={}, source="x", source_ip="", user_agent="",
                     request_id="", previous_hash="0" * 64)  # fmt: skip
    row.entry_hash = digest(row)
    session.add(row)


ROWS: dict[str, tuple[Callable[[Session], object], int, str]] = {
    "said to hold more": (lambda s: s.execute(update(AuditArchive).where(AuditArchive.first_seq == 5).values(last_seq=9)), 5, "signature"),
    "one forgotten": (lambda s: s.execute(delete(AuditArchive).where(AuditArchive.first_seq == 1)), 5, "does not follow"),
    "all forgotten": (lambda s: s.execute(delete(AuditArchive)), 1, "missing"),
    "entries back again": (back_again, 2, "archived and yet in the log"),
}


@pytest.mark.parametrize("name", ROWS)
def test_archives_that_were_tampered_with_are_named(log: Context, settings: Settings, name: str) -> None:
    audit_archive(log)
    change, seq, said = ROWS[name]
    with transaction(log.db):
        change(log.db)
    found = verify(log.db, trust_of(settings))
    assert (found.broken_seq, said in found.problem) == (seq, True), found


STEPS = ("_write", "sha256_of", "problem_of_file", "_publish", "before commit", "after commit")


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("after", [False, True])
def test_sigkill_at_any_step_loses_nothing(log: Context, settings: Settings, database: sessionmaker[Session], step: str, after: bool) -> None:
    log.db.close()
    database.kw["bind"].dispose()
    child = os.fork()
    if child == 0:
        _archive_and_die(log, settings, step, after=after)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    with database() as session:
        assert set(range(1, 14)) <= {*kept(session), *archived(settings)}
        assert verify(session, trust_of(settings), files=directory(settings)).broken_seq is None
    audit_archive(log)
    with database() as session:
        assert archived(settings) == [1, 2, 3, 4, 5, 6, 7, 8]
        assert session.scalar(select(func.min(AuditEntry.seq))) == 9
        assert verify(session, trust_of(settings), files=directory(settings)).broken_seq is None


def _archive_and_die(log: Context, settings: Settings, step: str, *, after: bool) -> None:
    """In a process of its own, until a step."""

    def die(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    try:
        sessions = open_database(settings)
        with sessions() as session:
            log.db = session
            if "commit" in step:
                event.listen(sessions, step.replace(" ", "_"), die)
            else:
                whole = getattr(audit_archives, step)

                def dying(*args: object) -> object:
                    if not after:
                        die()
                    whole(*args)
                    die()
                    return None

                setattr(audit_archives, step, dying)
            audit_watch.audit_archive(log)
    finally:
        # Nothing of the test process may run in here, whatever went wrong.
        os._exit(1)


def test_a_file_is_readable_by_nobody_else(log: Context, settings: Settings) -> None:
    audit_archive(log)
    paths: list[Path] = list(directory(settings).glob("*.gz"))
    assert [path.stat().st_mode & 0o077 for path in paths] == [0] * 2


def test_what_a_writer_left_that_died_goes_after_a_day(log: Context, settings: Settings) -> None:
    home = directory(settings)
    home.mkdir(parents=True)
    old, young = home / ".audit-1-4.jsonl.gz.5", home / ".audit-5-8.jsonl.gz.6"
    for path in (old, young):
        path.touch()
    aged = (now() - timedelta(days=2)).timestamp()
    os.utime(old, (aged, aged))
    audit_archive(log)
    assert (old.exists(), young.exists(), len(list(home.glob("*.gz")))) == (False, True, 2)


def test_what_is_not_whole_leaves_no_file(log: Context, settings: Settings) -> None:
    with transaction(log.db):
        log.db.execute(update(AuditEntry).where(AuditEntry.seq == 3).values(username="innocent"))
    with pytest.raises(Damaged):
        audit_archive(log)
    assert list(directory(settings).iterdir()) == []


def test_how_far_archiving_may_go_is_looked_up_and_not_walked_to(log: Context) -> None:
    with statements(log.db) as said:
        audit_archive(log)
    asked = [each for each in said if "audit_entries.timestamp" in each and "LIMIT" in each]
    assert asked
    assert all("ORDER BY audit_entries.timestamp DESC" in each for each in asked)
