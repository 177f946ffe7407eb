"""The portal's application under test, and clients that are signed in."""

import secrets
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cache
from typing import Any, ClassVar, Self

import pytest
from flask import Flask
from flask.testing import FlaskClient
from flask_sqlalchemy import SQLAlchemy
from jinja2.bccache import Bucket, BytecodeCache
from pydantic import BaseModel
from pydantic.json_schema import DEFAULT_REF_TEMPLATE
from sqlalchemy import Engine, event
from sqlalchemy.orm import Session, sessionmaker
from werkzeug.routing import BaseConverter, Rule
from werkzeug.routing.rules import RulePart
from werkzeug.test import TestResponse

import portal.app
from portal.app import create_app
from portal.engines.fake import FakeCompute
from portal.engines.ports import Engines
from portal.engines.registry import open_blobs, open_objects
from portal.http.request import SESSION_COOKIE
from portal.identity.accounts import home_project
from portal.identity.models import User, UserSession, digest
from portal.identity.tokens import token_create
from portal.kernel.db import db, now, prepare_engine
from portal.kernel.policy_documents import VERSION
from portal.settings import Settings
from tests.support.people import PASSWORD, People


class Compiled(BytecodeCache):
    """Compiled templates of this process, by source: what is changed is compiled again."""

    def __init__(self) -> None:
        self._kept: dict[str, bytes] = {}

    def load_bytecode(self, bucket: Bucket) -> None:
        """Take what was compiled from the same source."""
        if (kept := self._kept.get(bucket.key)) is not None:
            bucket.bytecode_from_string(kept)

    def dump_bytecode(self, bucket: Bucket) -> None:
        """Keep it; the bucket says which source it is of."""
        self._kept[bucket.key] = bucket.bytecode_to_string()


COMPILED = Compiled()


class QuickRule(Rule):
    """An address that is parsed once for all applications of a run, and whose builder is compiled when it is first built: every application has
    more than a thousand, and a test builds a few."""

    _parsed: ClassVar[dict[str, tuple[list[RulePart], list[tuple[bool, str]], dict[str, BaseConverter]]]] = {}

    def _parse_rule(self, rule: str) -> Iterable[RulePart]:
        if rule not in self._parsed:
            begun, self._converters = len(self._trace), {}
            self._parsed[rule] = list(super()._parse_rule(rule)), self._trace[begun:], self._converters
            return self._parsed[rule][0]
        parts, trace, self._converters = self._parsed[rule]
        self._trace.extend(trace)
        self.arguments.update(self._converters)
        return parts

    def _compile_builder(self, append_unknown: bool = True) -> Callable[..., tuple[str, str]]:
        compiled: list[Callable[..., tuple[str, str]]] = []

        def build(rule: Self, **values: Any) -> tuple[str, str]:
            if not compiled:
                compiled.append(Rule._compile_builder(rule, append_unknown))
            return compiled[0](rule, **values)

        return build


Flask.url_rule_class = QuickRule

_described = cache(BaseModel.model_json_schema.__func__)  # type: ignore[attr-defined] # a class method


def _schema(model: type[BaseModel], ref_template: str = DEFAULT_REF_TEMPLATE) -> dict[str, Any]:
    """Its JSON Schema, made once for all applications of a run."""
    return dict(_described(model, ref_template=ref_template))


BaseModel.model_json_schema = classmethod(_schema)  # type: ignore[assignment,method-assign]

_engines: dict[str, Engine] = {}


def _engine_of(bind_key: str | None, options: dict[str, Any], app: Flask) -> Engine:
    """One engine for all applications of a run on the same database: it compiles each statement once."""
    named = repr(sorted(options.items()))
    if named not in _engines:
        _engines[named] = SQLAlchemy._make_engine(db, bind_key, options, app)
        prepare_engine(_engines[named])
    return _engines[named]


db._make_engine = _engine_of  # type: ignore[method-assign]
portal.app.prepare_engine = lambda _engine: None  # prepared when it was made


@dataclass
class Api:
    """A client with a token."""

    client: FlaskClient
    user: User
    token: str
    headers: dict[str, str] = field(default_factory=dict)

    def __call__(self, method: str, path: str, json: Any = None, *, headers: dict[str, str] | None = None, **more: Any) -> TestResponse:
        """One request; a path that begins with a slash is below /api/v1 unless it says /api itself."""
        full = path if path.startswith("/api") else f"/api/v1{path}"
        given = {"Authorization": f"Token {self.token}", **self.headers, **(headers or {})}
        return self.client.open(full, method=method, json=json, headers=given, **more)

    def get(self, path: str, **more: Any) -> TestResponse:
        """GET."""
        return self("GET", path, **more)

    def post(self, path: str, json: Any = None, **more: Any) -> TestResponse:
        """POST."""
        return self("POST", path, json, **more)

    def signed_in(self) -> "Api":
        """The same user with a session, which may do what a token alone may not."""
        answer = self.client.post("/api/v1/auth/login", json={"username": self.user.username, "password": PASSWORD})
        assert answer.status_code == 200, answer.json
        return Api(self.client.application.test_client(), self.user, self.token, {"Authorization": f"Bearer {answer.json['access_token']}"})


class Queries:
    """Counts the statements that a block sends."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.statements = engine, list[str]()

    def _note(self, _conn: object, _cursor: object, statement: str, *_rest: object) -> None:
        self.statements.append(statement)

    def __enter__(self) -> Self:
        self.statements.clear()
        event.listen(self.engine, "before_cursor_execute", self._note)
        return self

    def __exit__(self, *_: object) -> None:
        event.remove(self.engine, "before_cursor_execute", self._note)

    @property
    def count(self) -> int:
        """How many, without BEGIN and the like."""
        return sum(not statement.startswith(("BEGIN", "SAVEPOINT", "RELEASE", "PRAGMA")) for statement in self.statements)


class WholeAnswers(FlaskClient):
    """Reads every answer to its end, as servers do: one that is streamed and dropped would keep its database connection."""

    def open(self, *args: Any, **options: Any) -> TestResponse:
        """One request."""
        return super().open(*args, **{"buffered": True, **options})


def make_app(settings: Settings, fake: FakeCompute) -> Iterator[Flask]:
    """The application on the test's database and fake engine."""
    app = create_app(settings, engines=Engines(console=fake, blobs=open_blobs(settings), objects=open_objects(settings)), deliver=lambda _ids: None)
    app.test_client_class = WholeAnswers
    # Compiled once for all applications of a run, not by each test anew.
    app.jinja_env.bytecode_cache = COMPILED
    app.config["TESTING"] = False
    app.config["PROPAGATE_EXCEPTIONS"] = False
    yield app
    with app.app_context():
        db.session.remove()
        db.engine.dispose()


def api_client(app: Flask, people: People, user: User) -> Api:
    """A client with a fresh token of a user."""
    secret, _ = token_create(people.context(user), user, "test")
    return Api(app.test_client(), user, secret)


def browser(app: Flask, people: People, user: User) -> FlaskClient:
    """A client with a session of its own, as the sign-in form opens one; without the form, whose argon2 is slow by design."""
    secret = secrets.token_urlsafe(32)
    with people.sessions() as session:
        session.add(UserSession(id_hash=digest(secret), user_id=user.id, project_id=home_project(user), expires_at=now() + timedelta(hours=12)))
        session.commit()
    client = app.test_client()
    client.set_cookie(SESSION_COOKIE, secret, secure=True)
    return client


def one_of_each(owner: Api, drain: Callable[[], object], name: str) -> dict[str, str]:
    """A row of every type under this name, by type; the flavor is one of the installation."""
    document = {"Version": VERSION, "Statement": [{"Effect": "Allow", "Action": "compute.instance.read", "Resource": "*"}]}
    bodies = {
        "compute.instance": ("/compute/instances", {"name": name, "flavor": "t3-micro", "image": "atonix-tiny", "tags": {"a": "b"}}),
        "compute.key_pair": ("/compute/key-pairs", {"name": name}), "compute.image": ("/compute/images", {"name": name}),
        "security.policy": ("/security/policies", {"name": name, "document": document}), "security.group": ("/security/groups", {"name": name}),
        "security.role": ("/security/roles", {"name": name}), "security.key": ("/security/keys", {"name": name}), "storage.bucket": ("/storage/buckets", {"name": name}),
    }  # fmt: skip
    network = {
        "networking.vpc": ("vpcs", {"name": name, "cidr_block": "10.0.0.0/16"}), "networking.subnet": ("subnets", {"name": name, "vpc": name, "cidr_block": "10.0.1.0/24"}),
        "networking.security_group": ("security-groups", {"name": name, "vpc": name}), "networking.route_table": ("route-tables", {"name": name, "vpc": name}),
        "networking.internet_gateway": ("internet-gateways", {"name": name, "vpc": name}), "networking.elastic_ip": ("elastic-ips", {"name": name}),
        "networking.network_interface": ("network-interfaces", {"name": name, "subnet": name}),
    }  # fmt: skip
    bodies |= {"storage.volume": ("/storage/volumes", {"name": name, "size_gb": 1})}
    bodies |= {"storage.webhook": ("/storage/webhooks", {"name": name, "url": "https://example.org/hook"})}
    bodies |= {key: (f"/networking/{path}", body) for key, (path, body) in network.items()}
    made = {key: owner.post(path, body) for key, (path, body) in bodies.items()}
    ids = {key: answer.json["id"] for key, answer in made.items()}
    drain()
    # What needs a way out, and another VPC.
    vpc = owner.get(f"/networking/vpcs/{ids['networking.vpc']}").json
    owner("POST", f"/networking/route-tables/{vpc['main_route_table_id']}/set-default-route", {"target_type": "internet-gateway"})
    owner.post("/networking/vpcs", {"name": f"{name}-peer", "cidr_block": "10.1.0.0/16"})
    nat = owner.post("/networking/nat-gateways", {"name": name, "subnet": name})
    peering = owner.post("/networking/vpc-peerings", {"name": name, "vpc": name, "peer_vpc": f"{name}-peer"})
    snapshot = owner.post("/storage/snapshots", {"name": name, "volume": name})
    drain()
    ids |= {"storage.snapshot": snapshot.json["id"], "storage.volume_type": "vt-ssd"}
    return {"compute.flavor": "t3-micro", **ids, "networking.nat_gateway": nat.json["id"], "networking.vpc_peering": peering.json["id"]}


def csrf_of(page: TestResponse) -> str:
    """The token in a page's first form or meta element."""
    text = page.get_data(as_text=True)
    for marker in ('name="csrf_token" type="hidden" value="', 'name="csrf_token" value="', 'name="csrf-token" content="'):
        if marker in text:
            return text.split(marker, 1)[1].split('"', 1)[0]
    pytest.fail("no CSRF token in the page")


ApiFor = Callable[..., Api]
SessionMaker = sessionmaker[Session]
