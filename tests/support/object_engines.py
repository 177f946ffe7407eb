"""An installation with one of the engines for objects, and what tests do with it whichever that is."""

from collections.abc import Callable
from typing import Any

from flask import Flask

from portal.identity.models import User
from portal.kernel.runner import TaskRun
from portal.settings import ObjectsDriver, Settings
from portal.storage.engine_tending import tend_engine
from portal.storage.engine_wanted import owner_key
from tests.support.draining import TestWorker
from tests.support.people import People
from tests.support.s3 import client
from tests.support.web import Api, api_client

BUCKETS = "/storage/buckets"
# A bucket that lists of access may open.
OPEN = {"ownership": "ObjectWriter", "public_access": "allowed"}


class Place:
    """`api` is a project admin's."""

    def __init__(self, app: Flask, people: People, worker: TestWorker, gateway_url: str) -> None:
        self.app, self.people, self.worker, self._gateway_url = app, people, worker, gateway_url
        self.api = self.api_of(people.user("project_admin"))

    @property
    def settings(self) -> Settings:
        return self.people.settings

    @property
    def is_local(self) -> bool:
        return self.settings.engine_objects is ObjectsDriver.LOCAL

    @property
    def url(self) -> str:
        """The S3 interface that users are given."""
        return self.settings.s3_engine_endpoint or self._gateway_url

    def api_of(self, user: User) -> Api:
        return api_client(self.app, self.people, user)

    def bucket(self, name: str, api: Api | None = None, **more: Any) -> str:
        """A new one; its id."""
        made = (api or self.api).post(BUCKETS, {"name": name, **more})
        assert made.status_code in {201, 202}, made.json
        self.settle()
        found = (api or self.api).get(f"{BUCKETS}/{made.json['id']}").json
        assert found["state"] == "active", found
        return str(found["id"])

    def settle(self) -> None:
        """Everything that was queued is done, and the engine knows what IAM says."""
        self.worker.drain()
        self.look(tend_engine)

    def look(self, task: Callable[[TaskRun], None]) -> None:
        """One round of a periodic task, and what it queued."""
        task(TaskRun(self.people.context(None), self.worker.runner.engines))
        self.worker.drain()

    def s3(self, api: Api | None = None) -> Any:
        """boto3 with a fresh key."""
        made = (api or self.api).post("/auth/s3-keys", {}).json
        self.settle()
        return client(self.url, made["access_key_id"], made["secret_access_key"])

    def owner(self) -> Any:
        """A client that may see and change settings of buckets: a project admin's, or at the engine the owner's."""
        if self.is_local:
            return self.s3()
        key = owner_key(self.settings, self.people.project_id)
        return client(self.url, key.id, key.secret)
