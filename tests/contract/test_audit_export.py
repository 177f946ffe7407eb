"""Exports of the audit log: whole files or none, for who asked and only while they may, gone after a week."""

import csv
import gzip
import hashlib
import io
import json
import os
from collections.abc import Callable, Iterator
from datetime import timedelta

import pytest
from flask.testing import FlaskClient
from sqlalchemy import select, update
from sqlalchemy.orm import Session, sessionmaker

from portal.identity.models import Membership, User
from portal.kernel import audit_export
from portal.kernel.audit import AuditEntry, Subject, record
from portal.kernel.audit_export import AuditExport, directory
from portal.kernel.context import Context
from portal.kernel.db import now, transaction
from portal.settings import Settings
from portal.worker.audit_export import expire_exports
from tests.support.draining import TestWorker
from tests.support.people import People
from tests.support.web import Api, csrf_of

LOGS, EXPORTS = "/security/audit-logs/export", "/security/audit-exports"


def write(ctx: Context, name: str, count: int = 1) -> None:
    with transaction(ctx.db):
        for _ in range(count):
            record(ctx, "test.thing.do", Subject("test.thing", "t-1", name, ctx.project_id), details={"said": name})


@pytest.fixture
def admin(people: People, api_for: Callable[..., Api]) -> Api:
    """A project admin in whose project something happened, as it did in another one."""
    there = people.project()
    write(people.context(people.user("developer")), "=here", 3)
    write(people.context(people.user("developer", there), there), "there")
    return api_for("project_admin")


def exported(api: Api, worker: TestWorker, **filters: str) -> tuple[dict[str, object], bytes]:
    """What a job wrote."""
    asked = api.post(LOGS, filters)
    assert asked.status_code == 202
    worker.drain()
    assert worker.job(asked.json["job_id"]).state == "succeeded"
    found = api.get(f"{EXPORTS}/{asked.json['export_id']}").json
    return found, gzip.decompress(api.get(found["file"]).data)


def test_a_job_writes_what_the_asker_may_read(admin: Api, worker: TestWorker, settings: Settings) -> None:
    found, content = exported(admin, worker, action="test.*")
    told = [json.loads(line) for line in content.splitlines()]
    assert [entry["resource_name"] for entry in told] == ["=here"] * 3
    assert [entry["seq"] for entry in told] == [3, 2, 1]
    assert told[0]["details"] == {"said": "=here"}
    (path,) = directory(settings).iterdir()
    assert (found["entries"], found["size_bytes"], found["sha256"]) == (3, path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)


def test_cells_of_a_table_are_no_formulas(admin: Api, worker: TestWorker) -> None:
    found, content = exported(admin, worker, format="csv", search="=here")
    rows = list(csv.DictReader(io.StringIO(content.decode())))
    assert ([row["resource_name"] for row in rows], found["entries"]) == (["'=here"] * 3, 3)
    at_once = admin.get(f"{LOGS}?format=csv&search==here")
    assert list(csv.DictReader(io.StringIO(at_once.text))) == rows


def test_nobody_else_gets_the_file_nor_the_owner_without_the_right(
    admin: Api, worker: TestWorker, api_for: Callable[..., Api], database: sessionmaker[Session]
) -> None:
    found, _ = exported(admin, worker)
    for role in ("platform_admin", "project_admin", "auditor"):
        assert api_for(role).get(str(found["file"])).status_code == 404
    with database() as session, transaction(session):
        session.execute(update(Membership).where(Membership.user_id == admin.user.id).values(role="viewer"))
    assert admin.get(str(found["file"])).status_code == 403
    assert admin.post(LOGS, {}).status_code == 403
    assert admin.get(LOGS).status_code == 403


@pytest.mark.parametrize("change", ["disabled", "degraded"])
def test_the_right_is_looked_at_again_when_the_file_is_written(admin: Api, worker: TestWorker, database: sessionmaker[Session], change: str) -> None:
    asked = admin.post(LOGS, {}).json
    with database() as session, transaction(session):
        if change == "disabled":
            session.execute(update(User).where(User.id == admin.user.id).values(is_active=False))
        else:
            session.execute(update(Membership).where(Membership.user_id == admin.user.id).values(role="viewer"))
    worker.drain()
    job = worker.job(asked["job_id"])
    assert (job.state, bool(job.error)) == ("failed", True)
    with database() as session:
        row = session.get_one(AuditExport, asked["export_id"])
        assert (row.state, row.file, row.error) == ("failed", "", job.error)


def test_wrong_requests_are_refused(admin: Api, api_for: Callable[..., Api]) -> None:
    for body in ({"format": "xml"}, {"colour": "red"}, {"since": "yesterday"}, {"action": 3}):
        assert admin.post(LOGS, body).status_code == 400, body
    assert admin.get(f"{LOGS}?format=xml").status_code == 400
    assert api_for("developer").post(LOGS, {}).status_code == 403
    assert [admin.post(LOGS, {}).status_code for _ in range(4)] == [202, 202, 202, 409]
    waiting = admin.get(EXPORTS).json["results"]
    assert [each["state"] for each in waiting] == ["waiting"] * 3
    assert admin.get(f"{EXPORTS}/{waiting[0]['export_id']}/file").status_code == 409
    assert admin.get(f"{EXPORTS}/axp-nonesuch").status_code == 404


def test_a_restricted_token_starts_no_export(people: People, app: object) -> None:
    from portal.identity.tokens import token_create

    user = people.user("project_admin")
    secret, _ = token_create(people.context(user), user, "narrow", scopes=["security:audit"])
    api = Api(app.test_client(), user, secret)  # type: ignore[attr-defined]
    assert api.post(LOGS, {}).status_code == 403
    assert api.get(LOGS).status_code == 200


def test_a_restricted_token_reads_no_export_of_its_user(admin: Api, worker: TestWorker, people: People, app: object) -> None:
    from portal.identity.tokens import token_create

    found, _ = exported(admin, worker)
    secret, _ = token_create(people.context(admin.user), admin.user, "narrow", scopes=["security:audit"])
    narrow = Api(app.test_client(), admin.user, secret)  # type: ignore[attr-defined]
    for path in (EXPORTS, f"{EXPORTS}/{found['export_id']}", str(found["file"])):
        assert narrow.get(path).status_code == 403, path
        assert admin.get(path).status_code == 200, path


def test_a_file_that_tells_of_a_project_goes_to_nobody_who_lost_it(
    people: People, worker: TestWorker, api_for: Callable[..., Api], database: sessionmaker[Session]
) -> None:
    """Asked for in one project, holding entries of two."""
    there = people.project()
    admin = api_for("project_admin")
    with database() as session, transaction(session):
        session.add(Membership(user_id=admin.user.id, project_id=there, role="project_admin"))
    write(people.context(people.user("developer")), "here")
    write(people.context(people.user("developer", there), there), "there")
    found, content = exported(admin, worker, action="test.*")
    assert [json.loads(line)["resource_name"] for line in content.splitlines()] == ["there", "here"]
    with database() as session, transaction(session):
        session.execute(update(Membership).where(Membership.user_id == admin.user.id, Membership.project_id == there).values(role="viewer"))
    assert admin.get(str(found["file"])).status_code == 403
    found, content = exported(admin, worker, action="test.*")
    assert [json.loads(line)["resource_name"] for line in content.splitlines()] == ["here"]


def test_one_that_is_no_longer_listed_is_still_found(admin: Api, worker: TestWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    first, _ = exported(admin, worker)
    monkeypatch.setattr(audit_export, "MOST_LISTED", 1)
    exported(admin, worker)
    assert first["export_id"] not in [each["export_id"] for each in admin.get(EXPORTS).json["results"]]
    assert admin.get(f"{EXPORTS}/{first['export_id']}").status_code == 200
    assert admin.get(str(first["file"])).status_code == 200


def test_what_is_large_is_not_sent_at_once(admin: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_export, "AT_ONCE", 2)
    answer = admin.get(f"{LOGS}?action=test.*")
    assert (answer.status_code, "start an export" in answer.json["message"]) == (400, True)


def test_a_worker_that_dies_leaves_no_half_file(
    admin: Api, worker: TestWorker, settings: Settings, monkeypatch: pytest.MonkeyPatch, database: sessionmaker[Session]
) -> None:
    asked = admin.post(LOGS, {"action": "test.*"}).json
    whole = audit_export.lines

    class Killed(BaseException):
        """As if the process had ended here."""

    def dying(*args: object) -> Iterator[str]:
        yield next(whole(*args))  # type: ignore[arg-type]
        raise Killed

    monkeypatch.setattr(audit_export, "lines", dying)
    # What a killed process cannot do either.
    monkeypatch.setattr(audit_export.Path, "unlink", lambda *_, **__: None)
    with pytest.raises(Killed):
        worker.run_one()
    monkeypatch.undo()
    with database() as session:
        assert session.get_one(AuditExport, asked["export_id"]).state == "waiting"
    left = [path.name for path in directory(settings).iterdir()]
    assert [name.startswith(".") for name in left] == [True]
    worker.let_lease_run_out(asked["job_id"])
    from portal.kernel.jobs import reap

    with database() as session:
        assert reap(session) == [asked["job_id"]]
    worker.drain()
    found = admin.get(f"{EXPORTS}/{asked['export_id']}").json
    assert len(gzip.decompress(admin.get(found["file"]).data).splitlines()) == found["entries"] == 3


def test_files_are_kept_for_a_week(admin: Api, worker: TestWorker, settings: Settings, database: sessionmaker[Session], people: People) -> None:
    from portal.kernel.runner import TaskRun

    found, _ = exported(admin, worker)
    (path,) = directory(settings).iterdir()
    part = path.with_name(".axp-1-part.csv.gz")
    part.touch()
    old = (now() - timedelta(days=2)).timestamp()
    for each in (path, part):
        os.utime(each, (old, old))
    task = TaskRun(people.context(None), worker.runner.engines)
    expire_exports(task)
    assert (path.exists(), part.exists()) == (True, False)
    with database() as session, transaction(session):
        session.execute(update(AuditExport).values(expires_at=now() - timedelta(seconds=1)))
    assert admin.get(str(found["file"])).status_code == 404
    expire_exports(task)
    assert not path.exists()


def test_exports_are_in_the_log_themselves(admin: Api, worker: TestWorker, database: sessionmaker[Session], api_for: Callable[..., Api]) -> None:
    exported(admin, worker, action="test.*")
    admin.get(f"{LOGS}?action=test.*")
    api_for("viewer").post(LOGS, {})
    with database() as session:
        query = select(AuditEntry.status, AuditEntry.details).where(AuditEntry.action == "security.audit.export").order_by(AuditEntry.seq)
        told = session.execute(query).all()
    assert [status for status, _ in told] == ["success", "success", "success", "denied"]
    assert [told[0][1]["filters"], told[1][1]["download"], told[2][1]["filters"]] == [{"action": "test.*"}, True, {"action": "test.*"}]


def test_the_page_starts_an_export_and_gives_the_file(client_for: Callable[..., FlaskClient], worker: TestWorker, people: People) -> None:
    write(people.context(people.user("developer")), "here", 2)
    client = client_for("auditor")
    page = client.get("/audit/exports?action=test.*")
    assert 'name="action" value="test.*"' in page.text
    form = {"csrf_token": csrf_of(page), "action": "test.*", "format": "csv"}
    assert client.post("/audit/exports", data=form).status_code == 303
    assert "Waiting" in client.get("/audit/exports").text
    worker.drain()
    text = client.get("/audit/exports").text
    link = text.split('href="/audit/exports/', 1)[1].split('"', 1)[0]
    assert len(gzip.decompress(client.get(f"/audit/exports/{link}").data).splitlines()) == 3
    assert client.get("/audit/exports/axp-1/file").status_code == 404
