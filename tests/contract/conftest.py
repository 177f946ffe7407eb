"""Fixtures of the contract tests."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from flask import Flask
from flask.testing import FlaskClient
from sqlalchemy import select

from portal.engines.fake import FakeCompute
from portal.kernel.context import ANONYMOUS, Context
from portal.kernel.db import transaction
from portal.kernel.jobs import Job
from portal.kernel.resource import Registry
from portal.networking.defaults import bring_defaults
from portal.settings import Settings
from tests.support.draining import TestWorker
from tests.support.people import People
from tests.support.s3 import S3, gateway
from tests.support.scenarios import Stage, qcow2
from tests.support.web import Api, api_client, browser, make_app


class _Publisher(BaseHTTPRequestHandler):
    """Serves one image under every path."""

    def do_GET(self) -> None:
        body = qcow2()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_args: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="session")
def image_url() -> Iterator[str]:
    """Where an image can be fetched on loopback."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Publisher)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/image.qcow2"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Settings that let images be fetched from loopback."""
    return settings.model_copy(update={"image_hosts_allowed": "127.0.0.0/8"})


@pytest.fixture
def stage(people: People, worker: TestWorker, image_url: str) -> Stage:
    """What scenarios play on, as a project admin."""
    return Stage(people.context(people.user("project_admin")), worker, worker.runner.engines.compute, image_url)


@pytest.fixture
def networked(people: People, worker: TestWorker) -> None:
    """The default network is there: its job is none of those that a test looks at."""
    bring_defaults(people.context(None), lambda: None)
    worker.drain()
    with worker.sessions() as session, transaction(session):
        for job in session.scalars(select(Job)):
            session.delete(job)


@pytest.fixture
def worker_with(worker: TestWorker) -> Callable[[Registry], TestWorker]:
    """A worker like the fixture's whose steps come from another registry."""
    return lambda registry: replace(worker, runner=replace(worker.runner, registry=registry))


@pytest.fixture
def visitor(people: People) -> Callable[[], Context]:
    """Contexts of somebody who has not signed in yet."""

    def new() -> Context:
        return replace(people.context(None), principal=ANONYMOUS, project_id=None, source_ip="192.0.2.7", user_agent="tests/1.0")

    return new


@pytest.fixture
def app(database: object, settings: Settings, fake: FakeCompute) -> Iterator[Flask]:
    """The web application."""
    del database
    yield from make_app(settings, fake)


@pytest.fixture
def api_for(app: Flask, people: People) -> Callable[..., Api]:
    """`api_for(role, project_id)`: a client with a token of a new user; `api_for()` is a project admin's."""
    return lambda role="project_admin", project_id=None: api_client(app, people, people.user(role, project_id))


@pytest.fixture
def api(api_for: Callable[..., Api]) -> Api:
    """A project admin's client."""
    return api_for()


@pytest.fixture
def client_for(app: Flask, people: People) -> Callable[..., FlaskClient]:
    """`client_for(role, project_id)`: a browser in which a new user has signed in."""
    return lambda role="project_admin", project_id=None: browser(app, people, people.user(role, project_id))


@pytest.fixture
def s3(people: People) -> Iterator[S3]:
    """The S3 gateway of this installation."""
    with gateway(people) as running:
        yield running
