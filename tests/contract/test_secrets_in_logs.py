"""Secrets are planted everywhere, the whole portal runs at its most talkative, and none of them may be found where anybody could read it."""

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from flask import Flask
from sqlalchemy.orm import Session, sessionmaker

from portal.compute.instances import Instance
from portal.engines.fake import FakeCompute
from portal.engines.ports import Engines
from portal.http.guard import Access, access
from portal.identity.models import User
from portal.identity.users import user_create
from portal.kernel.audit import AuditEntry
from portal.kernel.db import open_database, transaction
from portal.kernel.events import Event
from portal.kernel.idempotency import IdempotencyKey
from portal.kernel.jobs import Job, JobStep
from portal.kernel.runner import Runner
from portal.logging import setup_logging
from portal.settings import Settings
from portal.worker.tasks import TASKS
from tests.support.databases import settings_for
from tests.support.draining import TestWorker
from tests.support.people import People
from tests.support.scenarios import TINY
from tests.support.web import csrf_of, make_app

PASSWORD = "planted-password one"
WRONG = "planted-wrong two"
NEW = "planted-new three words"
USER_DATA = "#!/bin/sh\necho planted-userdata-four\n"
SIGNING = "planted-signing-five"
DB_PASSWORD = "planted-database-six"
URL_PASSWORD = "planted-url-seven"
COOKIE = "planted-cookie-eight"
HEADER = "planted-header-nine"
QUERY = "planted-query-ten"
KEYS = (
    PASSWORD,
    "planted-password",
    WRONG,
    "planted-wrong",
    NEW,
    "planted-new",
    "planted-userdata-four",
    SIGNING,
    DB_PASSWORD,
    URL_PASSWORD,
    COOKIE,
    HEADER,
    QUERY,
)


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """Everything that the portal logs, in its own format, at level debug."""
    root, out = logging.getLogger(), io.StringIO()
    before = (
        root.level,
        list(root.handlers),
        {name: logging.getLogger(name).level for name in ("sqlalchemy.engine", "alembic", "celery", "kombu", "amqp", "urllib3")},
    )
    yield out
    root.setLevel(before[0])
    root.handlers[:] = before[1]
    for name, level in before[2].items():
        logging.getLogger(name).setLevel(level)


@pytest.fixture
def settings(settings: Settings, log: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings that hold secrets; logging is as in production."""
    planted = settings_for(
        settings.data_dir, database_url=settings.database_url, secret_key=SIGNING, db_password=DB_PASSWORD, log_level="debug",
        image_hosts_allowed="127.0.0.0/8", queue_url=f"amqp://u:{DB_PASSWORD}@127.0.0.1:1//", job_max_attempts=1,
    )  # fmt: skip
    monkeypatch.setattr("sys.stdout", log)
    setup_logging(planted)
    return planted


@pytest.fixture
def loud(settings: Settings) -> Iterator[sessionmaker[Session]]:
    """A database that logs its statements, as an operator may switch on: SQLAlchemy decides that when it is opened."""
    logging.getLogger("sqlalchemy.engine").setLevel(logging.INFO)
    sessions = open_database(settings)
    yield sessions
    sessions.kw["bind"].dispose()


def act(app: Flask, people: People, worker: TestWorker) -> list[str]:
    """Use every way by which a secret comes in; the secrets that were made on the way."""
    app.add_url_rule("/api/v1/x-fails", "x-fails", access(Access.SIGNED_IN)(fails))
    boss = people.context(people.user("platform_admin"))
    user = user_create(boss, username="carol", email="carol@example.org", password=PASSWORD, platform_role="platform_admin")
    made: list[str] = []
    client = app.test_client()
    client.set_cookie("other", COOKIE)

    # Signing in through the form, wrong and right.
    for password in (WRONG, PASSWORD):
        page = client.get("/login")
        client.post("/login", data={"username": user.username, "password": password, "csrf_token": csrf_of(page)})
    cookie = client.get_cookie("__Host-atonix_session")
    assert cookie is not None
    made.append(cookie.value)
    client.get(f"/jobs?token={QUERY}&password={QUERY}")
    client.get("/compute/instances", headers={"Cookie": f"__Host-atonix_session={COOKIE}"})

    # And through the API.
    bare = app.test_client()
    assert bare.post("/api-token-auth/", json={"username": user.username, "password": WRONG}).status_code in {400, 401}
    # Whoever got the password from an administrator has to choose another first.
    assert bare.post("/api-token-auth/", json={"username": user.username, "password": PASSWORD}).status_code == 403
    with transaction(boss.db):
        boss.db.get_one(User, user.id, populate_existing=True).must_change_password = False
    token = bare.post("/api-token-auth/", json={"username": user.username, "password": PASSWORD}).get_json()["token"]
    made.append(token)
    bare.get("/api/v1/compute/instances", headers={"Authorization": f"Token {HEADER}"})
    bare.get("/api/v1/compute/instances", headers={"Authorization": f"Basic {HEADER}"})
    bare.get("/api/v1/compute/instances", headers={"X-API-Key": HEADER})

    def api(method: str, path: str, body: Any = None) -> Any:
        return bare.open(f"/api/v1{path}", method=method, json=body, headers={"Authorization": f"Token {token}", "X-Project": people.project_id})

    create = {"name": "web", "flavor": "t3-micro", "image": TINY, "user_data": USER_DATA}
    assert api("POST", "/compute/instances", create).status_code in {201, 202}
    assert api("POST", "/compute/instances", create).status_code == 409
    assert api("POST", "/compute/instances", {**create, "name": "", "password": WRONG}).status_code == 400
    pair = api("POST", "/compute/key-pairs", {"name": "mine"}).get_json()
    private = next(value for value in flat(pair) if "PRIVATE KEY" in value)
    made += private.splitlines()[1:3]
    image = {"name": "fetched", "source_url": f"https://u:{URL_PASSWORD}@127.0.0.1:1/x.img", "checksum_sha256": "0" * 64}
    assert api("POST", "/compute/images", image).status_code == 400
    assert api("POST", "/compute/images", {"name": "away", "source_url": "http://127.0.0.1:1/x.img"}).status_code in {201, 202}
    worker.drain()
    assert api("GET", "/x-fails").status_code == 500
    api("POST", "/users", {"username": "dave", "email": "dave@example.org", "password": WRONG})
    api("POST", "/account/password", {"old": PASSWORD, "new": NEW})
    return made


def fails() -> None:
    raise RuntimeError(f"password={WRONG}")


def flat(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from flat(inner)


def test_no_secret_is_found_anywhere(settings: Settings, loud: sessionmaker[Session], people: People, fake: FakeCompute, log: io.StringIO) -> None:
    worker = TestWorker(loud, Runner(loud, people.registry, settings, Engines(compute=fake), TASKS))
    opened = make_app(settings, fake)
    made = act(next(opened), people, worker)
    next(opened, None)

    lines = [json.loads(line) for line in log.getvalue().splitlines()]
    assert len(lines) > 50
    assert any(line["logger"] == "portal.access" for line in lines)
    assert any(line["logger"].startswith("sqlalchemy") for line in lines), "the database was silent: the test proves nothing"
    secrets = [*KEYS, *made]
    assert [secret for secret in secrets if secret in log.getvalue()] == []

    with people.sessions() as session:
        assert session.query(Instance).filter(Instance.user_data == USER_DATA).count() == 1
        for model in (AuditEntry, Job, JobStep, Event, IdempotencyKey):
            rows = repr([[getattr(row, column.key) for column in model.__table__.columns] for row in session.query(model)])
            assert [secret for secret in secrets if secret in rows] == [], model.__tablename__
        assert session.query(AuditEntry).count() > 5


def test_an_exception_of_the_database_does_not_show_what_was_to_be_stored(loud: sessionmaker[Session], log: io.StringIO) -> None:
    with loud() as session:
        for name in ("one", "two"):
            session.add(Instance(id=f"i-{name}", name=name, user_data=USER_DATA, project_id="prj-nonesuch", flavor_id="x", image_id="y"))
        try:
            session.commit()
        except Exception:
            logging.getLogger("portal.test").exception("it failed")
        else:
            pytest.fail("a row without its project was stored")
        session.rollback()
    assert "it failed" in log.getvalue()
    assert "planted-userdata-four" not in log.getvalue()
