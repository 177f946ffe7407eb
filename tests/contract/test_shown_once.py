"""A secret that is shown once is given to no repeated request, and no second one is made for it."""

from collections.abc import Callable

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker

from portal.identity.models import ApiToken
from portal.kernel.idempotency import IdempotencyKey
from tests.support.racing import race
from tests.support.web import Api

AGAIN = {"Idempotency-Key": "once"}
MAKING = {
    "/api/v1/api-keys": ({"name": "backup"}, {"name": "other"}),
    "/auth/s3-keys": ({"name": "backup"}, {"name": "other"}),
}


@pytest.fixture
def person(api_for: Callable[..., Api]) -> Api:
    return api_for("project_admin").signed_in()


@pytest.mark.parametrize("path", MAKING)
def test_a_key_is_made_once_and_its_secret_told_once(person: Api, database: sessionmaker[Session], path: str) -> None:
    body, other = MAKING[path]
    before = len(person.get(path).json["results"])
    made = person.post(path, body, headers=AGAIN)
    assert made.status_code == 201, made.json
    key_id, secret = (made.json[name] for name in (("id", "key") if path == "/api/v1/api-keys" else ("access_key_id", "secret_access_key")))
    again = person.post(path, body, headers=AGAIN)
    assert (again.status_code, again.json["details"]["made"]) == (409, key_id)
    assert "shown then and is kept nowhere" in again.json["message"]
    assert secret not in again.text
    misused = person.post(path, other, headers=AGAIN)
    assert misused.status_code == 409
    assert "used for another request" in misused.json["message"]
    assert len(person.get(path).json["results"]) == before + 1
    assert person.post(path, body, headers={"Idempotency-Key": "another"}).status_code == 201
    with database() as session:
        kept = [repr(vars(row)) for row in session.scalars(select(IdempotencyKey))]
    assert len(kept) == 2
    assert not any(secret in each for each in kept)


def test_a_secret_is_replaced_once(person: Api) -> None:
    made = person.post("/api/v1/api-keys", {"name": "backup"}).json
    path = f"/api/v1/api-keys/{made['id']}/rotate"
    first = person.post(path, {"overlap_hours": 0}, headers=AGAIN)
    assert first.status_code == 200
    again = person.post(path, {"overlap_hours": 0}, headers=AGAIN)
    assert (again.status_code, again.json["details"]["made"]) == (409, made["id"])
    assert person.client.get("/api/v1/api-keys", headers={"Authorization": f"Token {first.json['key']}"}).status_code == 200, "it holds"


def test_a_refused_request_may_be_repeated(person: Api) -> None:
    assert person.post("/api/v1/api-keys", {"name": "backup", "scopes": ["nonsense:read"]}, headers=AGAIN).status_code == 400
    assert person.post("/api/v1/api-keys", {"name": "backup"}, headers=AGAIN).status_code == 201


def test_of_many_at_once_one_is_made(person: Api, database: sessionmaker[Session]) -> None:
    def ask() -> int:
        client = person.client.application.test_client()
        return client.post("/api/v1/api-keys", json={"name": "rush"}, headers={**person.headers, **AGAIN}).status_code

    assert sorted(race([ask] * 4)) == [201, 409, 409, 409]
    with database() as session:
        assert len(session.scalars(select(ApiToken).where(ApiToken.name == "rush")).all()) == 1
