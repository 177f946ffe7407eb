"""Both engines for objects: `local` in files of the portal's own, and `s3` at a real Ceph RGW."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flask import Flask

from portal.engines.ports import Engines
from portal.engines.registry import open_objects
from portal.settings import ObjectsDriver, Settings
from tests.support.ceph import Ceph, needs_ceph
from tests.support.draining import TestWorker
from tests.support.object_engines import BUCKETS, Place
from tests.support.people import People
from tests.support.s3 import gateway
from tests.support.servers import running


@pytest.fixture(scope="session")
def ceph() -> Iterator[Ceph]:
    """One for all tests of this process."""
    server = Ceph()
    with running(server):
        yield server


@pytest.fixture(params=["local", pytest.param("s3", marks=needs_ceph)])
def driver(request: pytest.FixtureRequest) -> str:
    """Which engine."""
    return str(request.param)


@pytest.fixture
def settings(settings: Settings, driver: str, request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    """An installation with that engine."""
    if driver == "local":
        return settings.model_copy(update={"s3_port": 9000})
    ceph: Ceph = request.getfixturevalue("ceph")
    key_file = tmp_path / "engine-key.json"
    key_file.write_text(json.dumps(dict(zip(("access_key_id", "secret_access_key"), ceph.key, strict=True))))
    return settings.model_copy(update={"engine_objects": ObjectsDriver.S3, "s3_engine_endpoint": ceph.url, "s3_engine_key_file": str(key_file)})


@pytest.fixture
def engines(engines: Engines, settings: Settings) -> Engines:
    """With the engine for objects."""
    return replace(engines, objects=open_objects(settings))


@pytest.fixture
def place(app: Flask, people: People, worker: TestWorker) -> Iterator[Place]:
    """Ready for use; at a shared engine no bucket of it stays."""
    with gateway(people) as running_gateway:
        made = Place(app, people, worker, running_gateway.url)
        yield made
        if not made.is_local:
            admin = made.api_of(people.user("platform_admin"))
            made.settle()
            for row in admin.get(f"{BUCKETS}?all_projects=true").json["results"]:
                admin("DELETE", f"{BUCKETS}/{row['id']}?force=true")
            made.worker.drain()


@pytest.fixture
def s3(place: Place) -> Any:
    """A project admin's S3 client."""
    return place.s3()
