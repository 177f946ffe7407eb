"""What is held and not used, and the smaller document that is proposed."""

from collections.abc import Callable
from datetime import timedelta

import pytest
from flask.testing import FlaskClient
from sqlalchemy import update
from sqlalchemy.orm import Session, sessionmaker

from portal.compute.key_pairs import key_pair_create
from portal.kernel import audit
from portal.kernel.audit import AuditEntry
from portal.kernel.db import now, transaction
from portal.kernel.errors import Forbidden, InvalidRequest, NotFound
from portal.kernel.operations import run
from portal.kernel.policy_documents import VERSION, parse
from portal.security.unused import unused
from tests.support.people import People
from tests.support.web import Api


def test_what_a_user_did_is_used_and_nothing_else(people: People, database: sessionmaker[Session]) -> None:
    user, boss = people.user("developer"), people.context(people.user("project_admin"))
    run(people.context(user), key_pair_create, None, {"name": "k"})
    found = unused(boss, user=user.username)
    assert (found.used, "compute.instance.create" in found.unused) == (("compute.key_pair.create",), True)
    assert not any(action.endswith(".read") for action in found.unused)
    (statement,) = parse(found.document, boss.registry.permissions)
    assert {"compute.key_pair.create", "compute.instance.read"} <= set(statement.actions)
    assert not set(statement.actions) & set(found.unused)
    with database() as session, transaction(session):
        session.execute(update(AuditEntry).where(AuditEntry.user_id == user.id).values(timestamp=now() - timedelta(days=91)))
    boss.db.rollback()
    assert unused(boss, user=user.id).used == ()


def test_a_policy_keeps_conditions_and_denials(api: Api, people: People, monkeypatch: pytest.MonkeyPatch) -> None:
    # What any of the holders did counts, however many there are.
    monkeypatch.setattr("portal.security.effects.MAX_HOLDERS", 0)
    user = people.user("viewer")
    tagged = {
        "Sid": "Keys",
        "Effect": "Allow",
        "Action": ["compute.key_pair.*"],
        "Resource": ["*"],
        "Condition": {"Bool": {"principal.mfa": ["false"]}},
    }
    denied = {"Sid": "No", "Effect": "Deny", "Action": ["compute.image.delete"], "Resource": ["*"]}
    idle = {"Sid": "Idle", "Effect": "Allow", "Action": ["compute.instance.stop"], "Resource": ["*"]}
    document = {"Version": VERSION, "Statement": [tagged, denied, idle]}
    policy = api.post("/security/policies", {"name": "keys", "document": document}).json["id"]
    assert api.post(f"/security/policies/{policy}/attach", {"principal_type": "user", "principal_id": user.id}).status_code == 200
    owner = people.context(user)
    with pytest.raises(InvalidRequest):
        unused(owner, user=user.id, policy=policy)
    found = api.get(f"/security/unused-permissions?policy={policy}").json
    assert (found["used"], found["days"]) == ([], 90)
    with transaction(owner.db):
        audit.record(owner, "compute.key_pair.create", audit.Subject("compute.key_pair", "kp-1", "k", people.project_id))
    found = api.get(f"/security/unused-permissions?policy={policy}").json
    assert found["used"] == ["compute.key_pair.create"]
    assert found["unused"] == ["compute.instance.stop", "compute.key_pair.delete", "compute.key_pair.update"]
    assert found["document"]["Statement"] == [{**tagged, "Action": ["compute.key_pair.create", "compute.key_pair.read"]}, denied]


def test_who_may_ask(people: People, api_for: Callable[..., Api], client_for: Callable[..., FlaskClient]) -> None:
    user, other = people.user("developer"), people.user("developer")
    ctx = people.context(user)
    assert unused(ctx, user=user.username).subject == user.username
    with pytest.raises(Forbidden):
        unused(ctx, user=other.username)
    with pytest.raises(NotFound):
        unused(ctx, policy="pol-none")
    api = api_for("project_admin")
    assert api.get("/security/unused-permissions").json["subject"] == api.user.username
    client = client_for("project_admin")
    page = client.get(f"/security/unused?user={user.username}")
    assert (page.status_code, "compute.instance.create" in page.text, "A smaller policy" in page.text) == (200, True, True)
    assert client.get("/security/unused").status_code == 200
    assert client.get("/security/unused?user=nobody-there").status_code == 422
