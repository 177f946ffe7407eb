"""A provider that says what a test tells it to, and portals that know it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from flask import Flask

from portal.engines.fake import FakeCompute
from portal.settings import Settings
from tests.support.openid import Liar, lying_provider
from tests.support.sso import provider
from tests.support.web import make_app


@pytest.fixture
def liar() -> Iterator[Liar]:
    with lying_provider() as liar:
        yield liar


@pytest.fixture
def app_with(database: object, settings: Settings, fake: FakeCompute, tmp_path: Path) -> Iterator[Callable[..., Flask]]:
    del database
    made = []

    def make(*providers: dict[str, Any]) -> Flask:
        path = tmp_path / f"sso-{len(made)}.yaml"
        path.write_text(yaml.safe_dump({"providers": list(providers)}))
        made.append(make_app(settings.model_copy(update={"sso_config": str(path)}), fake))
        return next(made[-1])

    yield make
    for each in made:
        next(each, None)


@pytest.fixture
def app(app_with: Callable[..., Flask], liar: Liar) -> Flask:
    return app_with(provider(liar))
