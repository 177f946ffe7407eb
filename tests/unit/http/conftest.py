"""The application on a fresh database, for tests of what lies before its views."""

from collections.abc import Callable, Iterator

import pytest
from flask import Flask
from flask.testing import FlaskClient

from portal.engines.fake import FakeCompute
from portal.settings import Settings
from tests.support.people import People
from tests.support.web import Api, api_client, browser, make_app


@pytest.fixture
def app(database: object, settings: Settings, fake: FakeCompute) -> Iterator[Flask]:
    """The web application."""
    del database
    yield from make_app(settings, fake)


@pytest.fixture
def app_with(database: object, settings: Settings, fake: FakeCompute) -> Iterator[Callable[..., Flask]]:
    """`app_with(rate_limit_per_minute=3)`: the application with other settings."""
    del database
    opened: list[Iterator[Flask]] = []

    def make(**changes: object) -> Flask:
        opened.append(make_app(settings.model_copy(update=changes), fake))
        return next(opened[-1])

    yield make
    for each in opened:
        next(each, None)


@pytest.fixture
def api_for(app: Flask, people: People) -> Callable[..., Api]:
    """`api_for(role, project_id)`: a client with a token of a new user."""
    return lambda role="project_admin", project_id=None: api_client(app, people, people.user(role, project_id))


@pytest.fixture
def client_for(app: Flask, people: People) -> Callable[..., FlaskClient]:
    """`client_for(role, project_id)`: a browser in which a new user has signed in."""
    return lambda role="project_admin", project_id=None: browser(app, people, people.user(role, project_id))
