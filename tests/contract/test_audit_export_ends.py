"""Exports of the audit log that end without a file: whatever ends the job ends the export, and people can end it themselves."""

from collections.abc import Callable
from datetime import timedelta

import pytest
from flask.testing import FlaskClient
from sqlalchemy import update
from sqlalchemy.orm import Session, sessionmaker

from portal.kernel import audit_export
from portal.kernel.audit import Subject, record
from portal.kernel.audit_export import directory
from portal.kernel.db import now, transaction
from portal.kernel.jobs import MAX_CRASHES, Job
from portal.settings import Settings
from tests.support.draining import TestWorker
from tests.support.people import People
from tests.support.web import Api, csrf_of

LOGS, EXPORTS = "/security/audit-logs/export", "/security/audit-exports"


@pytest.fixture
def admin(people: People, api_for: Callable[..., Api]) -> Api:
    """A project admin with something to export."""
    ctx = people.context(people.user("developer"))
    with transaction(ctx.db):
        for _ in range(3):
            record(ctx, "test.thing.do", Subject("test.thing", "t-1", "here", ctx.project_id))
    return api_for("project_admin")


def told(api: Api, asked: dict[str, str]) -> dict[str, object]:
    return api.get(f"{EXPORTS}/{asked['export_id']}").json  # type: ignore[no-any-return]


def test_a_full_disk_fails_the_export(admin: Api, worker: TestWorker, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    asked = admin.post(LOGS, {}).json
    monkeypatch.setattr(audit_export, "publish", full)
    worker.drain()
    found = told(admin, asked)
    assert (found["state"], "went wrong" in str(found["error"]), found["file"]) == ("failed", True, None)
    answer = admin.get(f"{EXPORTS}/{asked['export_id']}/file")
    assert (answer.status_code, "failed" in answer.json["message"]) == (409, True)


def test_a_job_that_is_given_up_fails_the_export(admin: Api, worker: TestWorker, database: sessionmaker[Session]) -> None:
    asked = admin.post(LOGS, {}).json
    with database() as session, transaction(session):
        session.execute(update(Job).where(Job.id == asked["job_id"]).values(crashes=MAX_CRASHES + 1))
    worker.drain()
    found = told(admin, asked)
    assert (found["state"], "died" in str(found["error"])) == ("failed", True)


def test_one_that_waits_is_cancelled_at_once(admin: Api, worker: TestWorker) -> None:
    asked = admin.post(LOGS, {}).json
    answer = admin.post(f"/jobs/{asked['job_id']}/cancel", {})
    assert answer.status_code in {200, 202}, answer.json
    assert (worker.job(asked["job_id"]).state, worker.drain()) == ("cancelled", 0)
    assert (told(admin, asked)["state"], told(admin, asked)["error"]) == ("cancelled", "")
    assert admin.post(f"/jobs/{asked['job_id']}/cancel", {}).status_code == 409


def test_one_that_runs_is_cancelled_where_it_is_and_leaves_no_file(
    admin: Api, worker: TestWorker, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = admin.post(LOGS, {}).json
    whole = audit_export.plain

    def cancelling(entry: object) -> dict[str, object]:
        if worker.job(asked["job_id"]).state == "running":
            admin.post(f"/jobs/{asked['job_id']}/cancel", {})
        return whole(entry)  # type: ignore[arg-type]

    monkeypatch.setattr(audit_export, "plain", cancelling)
    monkeypatch.setattr(audit_export, "REPORT_EVERY", 2)
    worker.drain()
    job = worker.job(asked["job_id"])
    assert (job.state, job.steps[0].state, told(admin, asked)["state"]) == ("cancelled", "stopped", "cancelled")
    assert job.steps[0].detail == "No file is made."
    assert list(directory(settings).iterdir()) == []


def test_a_job_says_how_far_it_has_got(admin: Api, worker: TestWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_export, "REPORT_EVERY", 2)
    asked = admin.post(LOGS, {"action": "test.*"}).json
    worker.drain()
    assert worker.job(asked["job_id"]).steps[0].detail == "2 entries written."


def test_the_page_of_the_job_offers_to_cancel(client_for: Callable[..., FlaskClient], worker: TestWorker, database: sessionmaker[Session]) -> None:
    client = client_for("auditor")
    form = {"csrf_token": csrf_of(client.get("/audit/exports")), "format": "csv"}
    assert client.post("/audit/exports", data=form).status_code == 303
    link = client.get("/audit/exports").text.split('href="/jobs/', 1)[1].split('"', 1)[0]
    assert "It can be cancelled. No file is made." in client.get(f"/jobs/{link}").text
    assert client.post(f"/jobs/{link}/cancel", data=form).status_code == 303
    assert "Cancelled" in client.get("/audit/exports").text
    with database() as session:
        assert session.get_one(Job, link).finished_at > now() - timedelta(minutes=1)
