"""What is held and not used, and the smaller document that is proposed."""

import re
from collections.abc import Callable
from datetime import timedelta

import pytest
from flask.testing import FlaskClient
from sqlalchemy import func, insert, select, text, update
from sqlalchemy.orm import Session, sessionmaker

from portal.compute.key_pairs import key_pair_create
from portal.kernel import audit
from portal.kernel.audit import AuditEntry
from portal.kernel.authz import Target, decide
from portal.kernel.db import now, transaction
from portal.kernel.errors import Forbidden, InvalidRequest, NotFound
from portal.kernel.operations import run
from portal.kernel.policy_documents import VERSION, parse
from portal.security.effects import principal_with
from portal.security.unused import _done, unused
from tests.support.audited import statements
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


def test_a_smaller_policy_never_grants_more(people: People, api_for: Callable[..., Api], database: sessionmaker[Session]) -> None:
    """Whatever it allows is allowed now, on anything: nothing that is held for one's own only, under a condition or within a boundary becomes more."""
    boss, user = api_for("platform_admin"), people.user("developer")
    statements = [
        {"Sid": "Ips", "Effect": "Allow", "Action": ["security.group.create"], "Resource": "*", "Condition": {"IpAddress": {"request.ip": ["10.0.0.0/8"]}}},
        {"Sid": "One", "Effect": "Allow", "Action": ["security.group.delete"], "Resource": ["security.group/grp-1"]},
        {"Sid": "No", "Effect": "Deny", "Action": ["compute.key_pair.create"], "Resource": "*"},
    ]  # fmt: skip
    policy = boss.post("/security/policies", {"name": "odd", "document": {"Version": VERSION, "Statement": statements}})
    assert policy.status_code == 201, policy.json
    attached = boss.post(f"/security/policies/{policy.json['id']}/attach", {"principal_type": "user", "principal_id": user.id})
    assert attached.status_code == 200, attached.json
    most = {"Sid": "Most", "Effect": "Allow", "Action": ["compute.instance.*", "core.*", "security.*"], "Resource": "*"}
    bound = boss.post("/security/policies", {"name": "bound", "document": {"Version": VERSION, "Statement": [most]}, "whole_platform": True})
    assert boss("PUT", f"/projects/{people.project_id}/boundary", {"policy": bound.json["id"]}).status_code == 200, bound.json
    for action in ("compute.instance.delete", "compute.instance.create", "compute.image.create", "compute.key_pair.create", "security.group.create"):
        with database() as session, transaction(session):
            ctx = people.context(user)
            ctx.db = session
            audit.record(ctx, action, audit.Subject("compute.instance", "i-1", "web", people.project_id))
    ctx = people.context(user)
    found = unused(ctx, user=user.username)
    (statement,) = parse(found.document, ctx.registry.permissions)
    held = principal_with(ctx, user)
    ctx.principal = held
    assert "compute.instance.create" in statement.actions
    for action in statement.actions:
        for target in (Target(people.project_id, "usr-else", tags={"a": "b"}), Target(people.project_id, id="x", name="y")):
            assert decide(ctx, action, target).allowed, action
    assert not {"compute.key_pair.create", "security.group.create", "security.group.delete", "compute.image.create"} & set(statement.actions)


def test_what_is_in_no_project_is_not_told_to_the_admin_of_one(people: People) -> None:
    user, boss = people.user("developer"), people.context(people.user("project_admin"))
    doing = people.context(user)
    with transaction(doing.db):
        audit.record(doing, "compute.key_pair.create", audit.Subject("compute.key_pair", "kp-1", "k"))
    assert "compute.key_pair.create" not in unused(boss, user=user.username).used
    assert "compute.key_pair.create" in unused(people.context(user), user=user.username).used


def test_what_somebody_did_a_million_times_is_not_read_a_million_times(people: People, database: sessionmaker[Session]) -> None:
    """Each action that they ever did is one look at an index."""
    user, boss = people.user("developer"), people.context(people.user("project_admin"))
    doing = people.context(user)
    with transaction(doing.db):
        for _ in range(3):
            audit.record(doing, "compute.key_pair.create", audit.Subject("compute.key_pair", "kp-1", "k", people.project_id))
    with statements(boss.db) as said:
        assert unused(boss, user=user.username).used == ("compute.key_pair.create",)
    (statement,) = [each for each in said if "RECURSIVE" in each]
    assert "min(audit_entries" in statement
    if boss.db.get_bind().dialect.name == "sqlite":
        values = dict.fromkeys(set(re.findall(r":(\w+)", statement)), "x")
        plan = " ".join(row[3] for row in boss.db.execute(text("EXPLAIN QUERY PLAN " + statement.replace("?", "'x'")), values))
        assert ("ix_audit_entries_done" in plan, "SCAN audit_entries" in plan) == (True, False), plan


@pytest.mark.parametrize("kind", ["another project", "no project", "failed", "long ago"])
@pytest.mark.parametrize("is_platform", [False, True], ids=["one project", "platform"])
def test_what_does_not_count_is_not_read(people: People, kind: str, is_platform: bool) -> None:
    """What was done in another project or in none, failed, or is older than the period costs the same however much of it there is."""
    user, boss = people.user("developer"), people.context(people.user("project_admin"))
    if boss.db.get_bind().dialect.name != "sqlite":
        pytest.skip("only SQLite counts its steps")
    doing = people.context(user)
    with transaction(doing.db):
        audit.record(doing, "compute.key_pair.create", audit.Subject("compute.key_pair", "kp-1", "k", people.project_id), status="failure")
    entry = dict(boss.db.execute(select(*AuditEntry.__table__.columns).where(AuditEntry.user_id == user.id)).mappings().one())
    entry |= {
        "another project": {"status": "success", "project_id": people.project()}, "no project": {"status": "success", "project_id": None},
        "failed": {}, "long ago": {"status": "success", "timestamp": now() - timedelta(days=200)},
    }[kind]  # fmt: skip
    boss.db.rollback()

    def steps_with(many: int) -> int:
        with transaction(boss.db):
            top = boss.db.scalar(select(func.max(AuditEntry.seq))) or 0
            boss.db.execute(insert(AuditEntry), [{**entry, "seq": top + n, "log_id": f"log-{top + n}"} for n in range(1, many + 1)])
        ticks: list[None] = []
        counted = boss.db.connection().connection.driver_connection
        assert counted is not None
        counted.set_progress_handler(lambda: ticks.append(None), 20)
        _done(boss, [user.id], None if is_platform else people.project_id)
        counted.set_progress_handler(None, 0)
        boss.db.rollback()
        return len(ticks)

    few = steps_with(20)
    assert steps_with(2000) < few + 50


def test_a_policy_of_very_many_is_refused(api: Api, people: People, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("portal.security.unused.MAX_HOLDERS", 0)
    document = {"Version": VERSION, "Statement": [{"Sid": "A", "Effect": "Allow", "Action": ["compute.image.delete"], "Resource": "*"}]}
    policy = api.post("/security/policies", {"name": "many", "document": document}).json["id"]
    assert api.get(f"/security/unused-permissions?policy={policy}").status_code == 200
    given = {"principal_type": "user", "principal_id": people.user("viewer").id}
    assert api.post(f"/security/policies/{policy}/attach", given).status_code == 200
    answer = api.get(f"/security/unused-permissions?policy={policy}")
    assert (answer.status_code, "too many" in answer.text) == (400, True)
