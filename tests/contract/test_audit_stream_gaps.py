"""Copies of the audit log when something is in the way: archived entries, missing ones, receivers that fail in ways nobody thought of."""

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import delete, select, text, update
from sqlalchemy.orm import Session

from portal.kernel.audit import AuditEntry, Subject, record
from portal.kernel.audit_archives import directory
from portal.kernel.audit_sending import BATCH, stream_on
from portal.kernel.audit_streams import AuditStream, Receiver
from portal.kernel.audit_watch import audit_archive, audit_checkpoint
from portal.kernel.context import Context
from portal.kernel.db import now, transaction
from portal.kernel.runner import TaskRun
from portal.settings import Settings
from portal.worker import audit_tasks
from portal.worker.audit_tasks import stream_audit_log
from tests.support.draining import TestWorker
from tests.support.people import People


def write(ctx: Context, count: int) -> None:
    with transaction(ctx.db):
        for number in range(count):
            record(ctx, "test.thing.do", Subject("test.thing", f"t-{number}", "ä\u2028"), details={"number": number})


class Kept:
    """A receiver that takes everything."""

    def __init__(self, name: str = "webhook") -> None:
        self.entries: list[dict[str, object]] = []
        self.receiver = Receiver(name, self.entries.extend)

    @property
    def seqs(self) -> list[object]:
        return [entry["seq"] for entry in self.entries]


def row_of(session: Session, name: str = "webhook") -> AuditStream:
    session.rollback()
    return session.get_one(AuditStream, name, populate_existing=True)


def never() -> bool:
    return False


@pytest.fixture
def archived(people: People, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Context:
    """A log of which most is in archives before anybody asks for copies."""
    ctx = people.context(None)
    ctx.settings = settings.model_copy(update={"audit_retention_days": 30})
    monkeypatch.setattr("portal.kernel.audit_archives.MOST", BATCH + 7)
    with monkeypatch.context() as patched:
        patched.setattr("portal.kernel.audit.now", lambda: now() - timedelta(days=40))
        write(ctx, 2 * BATCH + 5)
    audit_checkpoint(ctx)
    assert audit_archive(ctx) == 2
    return ctx


def test_a_new_receiver_gets_what_was_archived_before_it_came(archived: Context) -> None:
    kept, last = Kept(), 2 * BATCH + 7
    with transaction(archived.db):
        written = archived.db.scalars(select(AuditEntry.entry_hash).order_by(AuditEntry.seq)).all()
    stream_on(archived.db, kept.receiver, directory(archived.settings), until=never)
    assert kept.seqs == list(range(1, last + 1))
    assert [entry["entry_hash"] for entry in kept.entries][-len(written) :] == written
    assert (kept.entries[0]["resource_name"], kept.entries[0]["details"]) == ("ä\u2028", {"number": 0})
    assert str(kept.entries[0]["timestamp"]).endswith("+00:00")
    row = row_of(archived.db)
    assert (row.last_seq, row.last_error, row.passed_over) == (last, "", "")


def test_a_receiver_waits_for_an_archive_that_is_not_there(archived: Context) -> None:
    kept = Kept()
    path = next(directory(archived.settings).glob("audit-000000000001-*.gz"))
    moved = path.rename(path.with_suffix(".away"))
    stream_on(archived.db, kept.receiver, directory(archived.settings), until=never)
    row = row_of(archived.db)
    assert (kept.entries, row.last_seq, "is not there" in row.last_error, row.failures) == ([], 0, True, 1)
    moved.rename(path)
    with transaction(archived.db):
        archived.db.execute(update(AuditStream).values(next_try_at=now()))
    stream_on(archived.db, kept.receiver, directory(archived.settings), until=never)
    assert (len(kept.entries), row_of(archived.db).last_error) == (2 * BATCH + 7, "")


def test_missing_entries_are_told_for_good(people: People, settings: Settings) -> None:
    ctx, kept = people.context(None), Kept()
    write(ctx, 9)
    with transaction(ctx.db):
        ctx.db.execute(delete(AuditEntry).where(AuditEntry.seq.in_((4, 5))))
    stream_on(ctx.db, kept.receiver, directory(settings), until=never)
    write(ctx, 1)
    stream_on(ctx.db, kept.receiver, directory(settings), until=never)
    row = row_of(ctx.db)
    assert (kept.seqs, row.last_seq) == ([1, 2, 3, 6, 7, 8, 9, 10], 10)
    assert row.passed_over == "Entries 4 to 5 were not in the log any more when they were to be sent."


def test_the_page_says_what_a_receiver_lacks(people: People, settings: Settings, app: Any, client_for: Callable[..., Any]) -> None:
    with people.sessions() as session, transaction(session):
        session.add(AuditStream(name="webhook", last_seq=3, passed_over="Entries 1 to 2 were lost."))
    app.extensions["portal"] = (settings.model_copy(update={"audit_webhook_url": "http://127.0.0.1:9/"}), *app.extensions["portal"][1:])
    page = client_for("auditor").get("/audit").text
    assert ("Copies to webhook lack entries" in page, "Entries 1 to 2 were lost." in page) == (True, True)


def raising(_entries: Sequence[dict[str, object]]) -> None:
    raise UnicodeError("a host that has no name")


def test_one_receiver_that_fails_oddly_does_not_stop_the_others(
    people: People, settings: Settings, worker: TestWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    ctx, kept = people.context(None), Kept("webhook")
    write(ctx, 3)
    monkeypatch.setattr(audit_tasks, "receivers", lambda _: [Receiver("syslog", raising), kept.receiver])
    stream_audit_log(TaskRun(ctx, worker.runner.engines))
    assert kept.seqs == [1, 2, 3]
    row = row_of(ctx.db, "syslog")
    assert (row.last_seq, row.failures, "UnicodeError" in row.last_error, row.next_try_at > now()) == (0, 1, True, True)
    assert "no name" not in row.last_error


def test_an_entry_that_cannot_be_read_holds_up_its_receiver_alone(people: People, settings: Settings) -> None:
    ctx, kept = people.context(None), Kept()
    write(ctx, 2)
    if ctx.db.get_bind().dialect.name != "sqlite":
        pytest.skip("PostgreSQL keeps no details that are no JSON")
    with transaction(ctx.db):
        ctx.db.execute(text("UPDATE audit_entries SET details = 'not json' WHERE seq = 2"))
    stream_on(ctx.db, kept.receiver, directory(settings), until=never)
    row = row_of(ctx.db)
    assert (row.last_seq, row.failures, "unexpected" in row.last_error) == (0, 1, True)
