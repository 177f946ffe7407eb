"""What is said of verifications is so: when, by whom, of which entries; and all of the log is verified again and again."""

from collections.abc import Callable
from datetime import timedelta

import pytest
from flask.testing import FlaskClient
from prometheus_client import REGISTRY
from sqlalchemy import func, insert, select, update
from sqlalchemy.orm import Session, sessionmaker

from portal.kernel import audit_verify as verifying
from portal.kernel.audit import AuditEntry
from portal.kernel.audit_keys import trust_of
from portal.kernel.audit_verifications import AuditVerification, covering, standing
from portal.kernel.audit_watch import THE_LOG, WHOLE_TASK, audit_checkpoint, audit_verify, audit_verify_ask, audit_watch
from portal.kernel.context import Context
from portal.kernel.db import now, transaction
from portal.kernel.errors import Conflict, Forbidden
from portal.kernel.events import Event
from portal.kernel.jobs import Job
from portal.kernel.runner import TaskRun
from portal.settings import Settings
from portal.worker.audit_tasks import verify_whole_audit_log
from portal.worker.tasks import TASKS
from tests.support.audited import signed_log, write
from tests.support.draining import TestWorker
from tests.support.people import People
from tests.support.web import Api, csrf_of

VERIFY = "/security/audit-logs/verify"


@pytest.fixture
def log(people: People) -> Context:
    """Twelve entries with checkpoints at 4 and 8."""
    return signed_log(people)


def forge(ctx: Context, seq: int) -> None:
    with transaction(ctx.db):
        ctx.db.execute(update(AuditEntry).where(AuditEntry.seq == seq).values(username="innocent"))


def restore(ctx: Context, seq: int) -> None:
    with transaction(ctx.db):
        ctx.db.execute(update(AuditEntry).where(AuditEntry.seq == seq).values(username="system"))


def quiet(_said: str) -> None:
    """Nobody wants to know how far it has got."""


def broken(ctx: Context) -> int | None:
    row = standing(ctx.db, trust_of(ctx.settings)).broken
    ctx.db.rollback()
    return row.broken_seq if row else None


def test_all_of_the_log_is_verified_by_itself(log: Context, worker: TestWorker, settings: Settings) -> None:
    """An entry that is changed after it was verified is found without anybody asking."""
    audit_watch(log)
    forge(log, 3)
    assert (audit_checkpoint(log).broken_seq, audit_watch(log).broken_seq) == (None, None)
    task = TASKS[WHOLE_TASK]
    assert task.interval_s(settings) == 7 * 24 * 3600
    task.do(TaskRun(log, worker.runner.engines))
    assert broken(log) == 3
    assert log.db.scalar(select(func.count()).select_from(Event).where(Event.type == "security.audit.broken")) == 1


def test_the_files_of_archives_are_part_of_it(log: Context, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    from portal.kernel.audit_archives import directory
    from portal.kernel.audit_watch import audit_archive

    log.settings = settings.model_copy(update={"audit_retention_days": 1})
    with monkeypatch.context() as patched:
        patched.setattr("portal.kernel.audit_archives.now", lambda: now() + timedelta(days=2))
        assert audit_archive(log) == 1
    assert audit_verify(log, quiet).broken_seq is None
    next(directory(settings).glob("*.gz")).unlink()
    assert audit_verify(log, quiet).broken_seq == 1


def test_a_job_verifies_because_somebody_asks(log: Context, people: People, api_for: Callable[..., Api], worker: TestWorker) -> None:
    with pytest.raises(Forbidden):
        audit_verify_ask(people.context(people.user("project_admin")))
    auditor = api_for("auditor")
    before = auditor.get(VERIFY).json
    assert (before["is_intact"], before["entries"], before["verified_at"], before["job_id"]) == (None, 0, None, None)
    asked = auditor.post(VERIFY, {})
    assert (asked.status_code, asked.json["status"]) == (202, "queued")
    assert auditor.get(VERIFY).json["job_id"] == asked.json["job_id"]
    again = auditor.post(VERIFY, {})
    assert (again.status_code, again.json["details"]["job_id"]) == (409, asked.json["job_id"])
    worker.drain()
    found = auditor.get(VERIFY).json
    # The auditor's token, two refusals and the question are entries, too.
    assert (found["is_intact"], found["entries"], found["first_broken_id"], found["checkpoints"], found["job_id"]) == (True, 16, None, 2, None)
    assert worker.job(asked.json["job_id"]).steps[0].detail == "16 entries hold."
    query = select(AuditEntry.username, AuditEntry.status).where(AuditEntry.action == "security.audit.verify").order_by(AuditEntry.seq)
    told = log.db.execute(query).all()
    assert [status for _, status in told] == ["denied", "success", "failure", "success"]
    assert {name for name, _ in told[1:]} == {auditor.user.username}


def test_asking_is_answered_at_once_and_walks_nothing(log: Context, api_for: Callable[..., Api], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the whole log is read within a request")

    auditor = api_for("auditor")
    monkeypatch.setattr(verifying, "lines_after", refuse)
    assert (auditor.post(VERIFY, {}).status_code, auditor.get(VERIFY).status_code) == (202, 200)
    assert log.db.scalar(select(func.count()).select_from(AuditVerification)) == 0


def test_the_broken_entry_is_named_to_who_asked(log: Context, api_for: Callable[..., Api], worker: TestWorker) -> None:
    forge(log, 6)
    auditor = api_for("auditor")
    asked = auditor.post(VERIFY, {}).json["job_id"]
    worker.drain()
    found = auditor.get(VERIFY).json
    assert (found["is_intact"], found["broken_seq"], found["entries"], found["problem"]) == (False, 6, 5, "content was changed")
    log.db.rollback()
    assert found["first_broken_id"] == log.db.scalar(select(AuditEntry.log_id).where(AuditEntry.seq == 6))
    assert (worker.job(asked).state, worker.job(asked).steps[0].detail) == ("succeeded", "Broken at entry 6: content was changed.")


def test_a_verification_can_be_cancelled_and_then_says_nothing(
    log: Context, api_for: Callable[..., Api], worker: TestWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    auditor = api_for("auditor")
    asked = auditor.post(VERIFY, {}).json["job_id"]
    whole = verifying.is_whole

    def cancelling(line: object) -> bool:
        if worker.job(asked).state == "running":
            auditor.post(f"/jobs/{asked}/cancel", {})
        return whole(line)  # type: ignore[arg-type]

    monkeypatch.setattr(verifying, "is_whole", cancelling)
    monkeypatch.setattr(verifying, "REPORT_EVERY", 5)
    worker.drain()
    assert (worker.job(asked).state, worker.job(asked).steps[0].detail) == ("cancelled", "What was found by then is kept.")
    assert log.db.scalar(select(func.count()).select_from(AuditVerification)) == 0


def test_a_break_is_kept_although_the_verification_is_cancelled(
    log: Context, api_for: Callable[..., Api], worker: TestWorker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Who may verify hides nothing by cancelling at the moment when it is found."""
    forge(log, 6)
    auditor = api_for("auditor")
    asked = auditor.post(VERIFY, {}).json["job_id"]
    whole = verifying.is_whole

    def cancelling(line: object) -> bool:
        held = whole(line)  # type: ignore[arg-type]
        if not held:
            assert auditor.post(f"/jobs/{asked}/cancel", {}).status_code == 202
        return held

    monkeypatch.setattr(verifying, "is_whole", cancelling)
    worker.drain()
    assert (worker.job(asked).state, broken(log)) == ("cancelled", 6)
    assert log.db.scalar(select(func.count()).select_from(Event).where(Event.type == "security.audit.broken")) == 1
    assert [each.levelname for each in caplog.records if each.name == "portal.audit"] == ["CRITICAL"]
    found = select(AuditEntry.status).where(AuditEntry.action == "security.audit.verify").order_by(AuditEntry.seq.desc()).limit(1)
    assert log.db.scalar(found) == "failure"


def test_the_weekly_one_leaves_it_to_who_asked(log: Context, people: People, worker: TestWorker) -> None:
    audit_verify_ask(people.context(people.user("auditor")))
    verify_whole_audit_log(TaskRun(log, worker.runner.engines))
    assert log.db.scalar(select(func.count()).select_from(AuditVerification)) == 0
    log.db.rollback()
    worker.drain()
    assert log.db.scalar(select(func.count()).select_from(AuditVerification)) == 1
    with transaction(log.db):
        log.db.add(Job(kind=f"system.{WHOLE_TASK}", label="x", resource_type="system", resource_id=f"system:{WHOLE_TASK}"))
    with pytest.raises(Conflict, match="already"):
        audit_verify_ask(people.context(people.user("auditor")))


def test_a_row_that_nobody_signed_verifies_nothing(log: Context, settings: Settings) -> None:
    """Who can write to the database says that all was verified, or makes a true row reach further."""
    trust = trust_of(settings)
    forged = {"from_seq": 1, "to_seq": 99, "is_whole": True, "entries": 99, "problem": "", "username": "system"}
    with transaction(log.db):
        log.db.execute(insert(AuditVerification).values(**forged))
    assert (standing(log.db, trust).whole, covering(log.db, trust, 12)) == (None, None)
    audit_verify(log, quiet)
    assert covering(log.db, trust, 12) is not None
    write(log, 12)
    with transaction(log.db):
        log.db.execute(update(AuditVerification).values(to_seq=13))
    assert (standing(log.db, trust).whole, covering(log.db, trust, 13), covering(log.db, trust, 12)) == (None, None, None)


def test_a_forged_row_makes_no_break_whole(log: Context) -> None:
    forge(log, 2)
    audit_verify(log, quiet)
    forged = {"from_seq": 1, "to_seq": 99, "is_whole": True, "entries": 99, "problem": "", "username": "system"}
    with transaction(log.db):
        log.db.execute(insert(AuditVerification).values(**forged))
    assert broken(log) == 2


def test_an_old_verification_put_there_again_makes_no_break_whole(log: Context) -> None:
    """Its signature holds, but says when it was made."""
    audit_verify(log, quiet)
    columns = [column for column in AuditVerification.__table__.columns if column.name != "id"]
    old = dict(log.db.execute(select(*columns)).mappings().one())
    write(log, 12)
    audit_watch(log)
    forge(log, 2)
    audit_verify(log, quiet)
    with transaction(log.db):
        log.db.execute(insert(AuditVerification).values(**old))
    assert broken(log) == 2
    found = standing(log.db, trust_of(log.settings))
    assert (found.newest.to_seq if found.newest else None) == 13


def test_what_was_found_broken_stays_so_until_somebody_looks_there_again(log: Context) -> None:
    audit_watch(log)
    forge(log, 2)
    audit_verify(log, quiet)
    assert broken(log) == 2
    write(log, 3)
    assert audit_checkpoint(log).broken_seq is None
    assert audit_watch(log).broken_seq is None
    assert broken(log) == 2
    restore(log, 2)
    audit_verify(log, quiet)
    assert broken(log) is None


def test_two_broken_places_are_told_once_each(log: Context, database: sessionmaker[Session]) -> None:
    for seq in (2, 10):
        forge(log, seq)
    for _ in range(3):
        assert audit_verify(log, quiet).broken_seq == 2
        assert audit_checkpoint(log).broken_seq == 10
        assert audit_watch(log).broken_seq == 2
    with database() as session:
        told = session.scalars(select(Event.payload).where(Event.type == "security.audit.broken").order_by(Event.at)).all()
    assert [payload["entry"] for payload in told] == [2, 10]
    restore(log, 2)
    assert audit_verify(log, quiet).broken_seq == 10
    assert broken(log) == 10


def measured(client: FlaskClient) -> tuple[float | None, ...]:
    """Entry verified, entry signed, broken or not, as Prometheus would get them from a portal of one process."""
    assert client.get("/metrics").status_code == 200
    return tuple(REGISTRY.get_sample_value(f"portal_audit_{name}") for name in ("verified_entry", "signed_entry", "broken"))


def test_the_page_says_what_was_verified_and_when(log: Context, client_for: Callable[..., FlaskClient], app: object) -> None:
    client = client_for("auditor")
    entry = log.db.scalars(select(AuditEntry).where(AuditEntry.seq == 11)).one().log_id
    log.db.rollback()
    assert "Not verified yet" in client.get("/audit").text
    audit_verify(log, quiet)
    today = f"{now():%Y-%m-%d}"
    page = client.get(f"/audit?open={entry}").text
    assert "Verified to entry 12 on" in page
    assert f"Verified on {today}" in page
    assert (*measured(client)[:2], measured(client)[2]) == (12, 8, 0)
    assert (REGISTRY.get_sample_value("portal_audit_verified_timestamp_seconds") or 0) > now().timestamp() - 60
    write(log, 12)
    log.db.rollback()
    later = log.db.scalars(select(AuditEntry).where(AuditEntry.seq == 13)).one().log_id
    log.db.rollback()
    page = client.get(f"/audit?open={later}").text
    assert "Verified to entry 12 on" in page
    assert "Verified on" not in page
    forge(log, 11)
    audit_checkpoint(log)
    page = client.get(f"/audit?open={entry}").text
    assert "Chain broken at entry 11" in page
    assert "Chain broken here" in page
    assert "Verified on" not in page
    assert measured(client)[2] == 1


def test_the_page_starts_a_verification_and_shows_how_far_it_is(
    log: Context, client_for: Callable[..., FlaskClient], worker: TestWorker, database: sessionmaker[Session]
) -> None:
    client = client_for("auditor")
    form = {"csrf_token": csrf_of(client.get("/audit"))}
    assert client.post("/audit/verify", data=form).status_code == 303
    text = client.get("/audit").text
    assert ("every 2s" in text, "Verifying" in text, "Verify chain" in text) == (True, True, False)
    job = worker.claim()
    assert job is not None
    with database() as session, transaction(session):
        session.get_one(Job, job.job_id).steps[0].detail = "5 of 12 entries."
    assert "5 of 12 entries." in client.get("/audit/verification").text
    worker.runner.run(job)
    text = client.get("/audit/verification").text
    assert ("Verified to entry 1" in text, "every 2s" in text, "Verify chain" in text) == (True, False, True)
    assert "Verify chain" not in client_for("developer").get("/audit").text
    assert THE_LOG.id == "audit-log"
