"""The only write path: in its order, in one transaction, or not at all."""

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import event, select
from sqlalchemy.orm import Session, sessionmaker

from portal.compute.flavors import flavor_create
from portal.compute.instances import Instance, instance_create, instance_resize, instance_start, instance_stop, instance_terminate
from portal.compute.key_pairs import KeyPair, key_pair_create
from portal.kernel import audit, events, quota
from portal.kernel.audit import AuditEntry, AuditHead
from portal.kernel.context import Context
from portal.kernel.db import transaction
from portal.kernel.declare import Operation
from portal.kernel.errors import (
    Conflict,
    Forbidden,
    InvalidRequest,
    NotFound,
    PortalError,
    PreconditionFailed,
    StateConflict,
    Unavailable,
)
from portal.kernel.events import Event
from portal.kernel.jobs import Job
from portal.kernel.operations import run
from portal.kernel.quota import Quota
from portal.kernel.resource import Registry
from portal.kernel.tags import ResourceTag
from tests.support.effects import entries_since, last_seq, rows_of
from tests.support.people import People
from tests.support.scenarios import TINY, Stage, running_instance, stopped_instance

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ5QbRrtIuJtHqYpHcTIhwqgfE3PBqJPOJPg8nGOtMlr me"
CREATE = {"flavor": "t3-micro", "image": TINY}


def op_of(registry: Registry, name: str) -> Operation:
    return registry.operation(name)


def test_a_change_is_a_row_a_job_an_entry_and_an_event(ctx: Context, database: sessionmaker[Session]) -> None:
    before = last_seq(database)
    outcome = run(ctx, instance_create, None, {"name": "web", "tags": {"role": "web"}, **CREATE})
    with database() as session:
        row = session.get_one(Instance, outcome.row.id)
        assert (row.state, row.name, row.owner_id, row.project_id, row.version) == ("pending", "web", ctx.principal.user_id, ctx.project_id, 1)
        job = session.get_one(Job, outcome.job_id)
        assert (job.state, job.kind, job.resource_id, job.project_id, job.user_id, job.request_id) == (
            "queued", "compute.instance.create", row.id, ctx.project_id, ctx.principal.user_id, ctx.request_id,
        )  # fmt: skip
        told = session.scalars(select(Event).where(Event.resource_id == row.id)).one()
        assert (told.type, told.project_id, told.actor) == ("compute.instance.create", ctx.project_id, ctx.principal.username)
        assert [(tag.key, tag.value) for tag in session.scalars(select(ResourceTag).where(ResourceTag.resource_id == row.id))] == [("role", "web")]
        assert quota.held_by(session, row.id) == {"cpus": 1, "instances": 1, "memory_gb": 1, "storage_gb": 8, "rows:compute.instance": 1}
    *_, entry = entries_since(database, before)
    assert (entry.action, entry.status, entry.resource_id, entry.username) == ("compute.instance.create", "success", row.id, ctx.principal.username)
    assert entry.details["job_id"] == outcome.job_id
    assert entry.details["after"]["name"] == "web"


def test_jobs_are_delivered_after_the_commit(ctx: Context, database: sessionmaker[Session]) -> None:
    seen = []

    def deliver(job_ids: Any) -> None:
        with database() as session:
            seen.extend(session.get_one(Job, job_id).state for job_id in job_ids)

    ctx.deliver = deliver
    run(ctx, instance_create, None, {"name": "web", "count": 2, **CREATE})
    assert seen == ["queued", "queued"]


def refuse_audit(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_args: object, **_kwargs: object) -> None:
        raise RuntimeError("the log is full")

    monkeypatch.setattr(audit, "record", broken)


@pytest.mark.parametrize("name", ["compute.key_pair.create", "compute.instance.create", "compute.instance.stop", "compute.instance.update"])
def test_what_cannot_be_logged_does_not_happen(stage: Stage, database: sessionmaker[Session], monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    target, data = {
        "compute.key_pair.create": lambda: (None, {"name": "k"}),
        "compute.instance.create": lambda: (None, {"name": "web", **CREATE}),
        "compute.instance.stop": lambda: (running_instance(stage).id, {"force": True}),
        "compute.instance.update": lambda: (running_instance(stage).id, {"name": "other"}),
    }[name]()
    before = rows_of(database)
    refuse_audit(monkeypatch)
    with pytest.raises(RuntimeError, match="full"):
        run(stage.ctx, op_of(stage.ctx.registry, name), target, data)
    assert rows_of(database) == before


@pytest.mark.parametrize("table", [Instance, Job, Event, AuditEntry, AuditHead, Quota, quota.Reservation, ResourceTag])
def test_nothing_stays_when_any_write_fails(ctx: Context, database: sessionmaker[Session], table: type[Any]) -> None:
    before, seq = rows_of(database), last_seq(database)

    def fail(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        if statement.lstrip().upper().startswith(("INSERT INTO", "UPDATE")) and f"{table.__tablename__} " in statement.replace("(", " ("):
            raise OSError("disk full")

    engine = database.kw["bind"]
    event.listen(engine, "before_cursor_execute", fail)
    try:
        with pytest.raises(OSError, match="disk full"):
            run(ctx, instance_create, None, {"name": "web", "tags": {"a": "b"}, **CREATE})
    finally:
        event.remove(engine, "before_cursor_execute", fail)
    assert rows_of(database) == before
    assert last_seq(database) == seq


# -- the order -----------------------------------------------------------------------------------------------------------------------------


def test_the_invisible_is_not_found_before_anything_else(stage: Stage, people: People, database: sessionmaker[Session]) -> None:
    row = running_instance(stage)
    other = people.context(people.user("project_admin", people.project()), people.project())
    before, seq = rows_of(database), last_seq(database)
    with pytest.raises(NotFound):
        run(other, instance_terminate, row.id, {"unknown": "field"}, expected_version=99)
    assert rows_of(database) == before
    assert last_seq(database) == seq


def test_permission_comes_before_validation(stage: Stage, people: People, database: sessionmaker[Session]) -> None:
    row = running_instance(stage)
    seq = last_seq(database)
    viewer = people.context(people.user("viewer"))
    with pytest.raises(Forbidden) as refused:
        run(viewer, instance_stop, row.id, {"unknown": "field"})
    assert "Viewer" in refused.value.message
    assert refused.value.details["action"] == "compute.instance.stop"
    (entry,) = entries_since(database, seq)
    assert (entry.action, entry.status, entry.resource_id, entry.user_id) == ("compute.instance.stop", "denied", row.id, viewer.principal.user_id)


def test_validation_comes_before_version_lock_and_state(stage: Stage) -> None:
    row = running_instance(stage)
    stage.do(op_of(stage.ctx.registry, "compute.instance.lock"), row.id)
    with pytest.raises(InvalidRequest):
        run(stage.ctx, instance_start, row.id, {"unknown": 1}, expected_version=1)


def test_version_comes_before_lock_and_lock_before_state(stage: Stage) -> None:
    row = running_instance(stage)
    locked = stage.do(op_of(stage.ctx.registry, "compute.instance.lock"), row.id)
    with pytest.raises(PreconditionFailed) as stale:
        run(stage.ctx, instance_start, row.id, expected_version=locked.version - 1)
    assert stale.value.details == {"version": locked.version, "expected": locked.version - 1}
    with pytest.raises(Conflict, match="locked") as held:
        run(stage.ctx, instance_start, row.id, expected_version=locked.version)
    assert not isinstance(held.value, StateConflict)
    stage.do(op_of(stage.ctx.registry, "compute.instance.unlock"), row.id)
    with pytest.raises(StateConflict) as wrong:
        run(stage.ctx, instance_start, row.id)
    assert wrong.value.details == {"state": "running", "allowed_states": ["error", "stopped"]}


@pytest.mark.parametrize("verb", ["update", "stop", "terminate", "rebuild", "lock"])
def test_a_locked_row_refuses_every_change_but_unlocking(stage: Stage, database: sessionmaker[Session], verb: str) -> None:
    row = running_instance(stage)
    stage.do(op_of(stage.ctx.registry, "compute.instance.lock"), row.id)
    before, seq = rows_of(database), last_seq(database)
    data = {"update": {"name": "other"}, "rebuild": {"image": TINY}}.get(verb, {})
    with pytest.raises(Conflict, match="locked"):
        run(stage.ctx, op_of(stage.ctx.registry, f"compute.instance.{verb}"), row.id, data)
    assert rows_of(database) == before
    assert [entry.status for entry in entries_since(database, seq)] == ["failure"]
    assert stage.do(op_of(stage.ctx.registry, "compute.instance.unlock"), row.id).locked is False


def test_state_comes_before_quota(stage: Stage, database: sessionmaker[Session]) -> None:
    row = running_instance(stage)
    with database() as session, transaction(session):
        session.query(Quota).filter(Quota.project_id == stage.ctx.project_id).update({"limit": 1})
    with pytest.raises(StateConflict):
        run(stage.ctx, instance_resize, row.id, {"flavor": "t3-xlarge"})


def test_a_busy_row_says_which_job_is_at_work(stage: Stage) -> None:
    row = stopped_instance(stage)
    job_id = run(stage.ctx, instance_start, row.id).job_id
    with pytest.raises(StateConflict, match="starting"):
        run(stage.ctx, instance_stop, row.id)
    create = run(stage.ctx, instance_create, None, {"name": stage.name(), **CREATE})
    with database_session(stage) as session, transaction(session):
        session.get_one(Instance, create.row.id).state = "running"
    with pytest.raises(StateConflict, match="busy") as busy:
        run(stage.ctx, instance_stop, create.row.id)
    assert busy.value.details == {"job_id": create.job_id}
    assert job_id != create.job_id


def database_session(stage: Stage) -> Session:
    return stage.worker.sessions()


def test_what_is_gone_refuses_everything(stage: Stage) -> None:
    row = running_instance(stage)
    stage.do(instance_terminate, row.id)
    for verb, data in (("update", {"name": "x"}), ("start", {}), ("terminate", {}), ("lock", {})):
        with pytest.raises(StateConflict, match="is gone"):
            run(stage.ctx, op_of(stage.ctx.registry, f"compute.instance.{verb}"), row.id, data)


def test_a_database_that_cannot_take_the_change_is_a_503(ctx: Context, database: sessionmaker[Session]) -> None:
    from sqlalchemy.exc import OperationalError

    def fail(_connection: Any, _cursor: Any, statement: str, *_rest: Any) -> None:
        if statement.startswith("INSERT INTO key_pairs"):
            raise OperationalError("INSERT", {}, Exception("locked"))

    engine = database.kw["bind"]
    event.listen(engine, "before_cursor_execute", fail)
    try:
        with pytest.raises(Unavailable):
            run(ctx, key_pair_create, None, {"name": "k"})
    finally:
        event.remove(engine, "before_cursor_execute", fail)


# -- targets -------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["", "i-nonesuch", "i\x00", "\ud800", "x" * 100_000, "%", "'; DROP TABLE users; --"])
def test_a_target_that_cannot_be_is_not_found(ctx: Context, target: str) -> None:
    with pytest.raises(NotFound) as missing:
        run(ctx, instance_stop, target)
    assert len(missing.value.message) < 200


def test_a_row_is_found_by_its_resource_id_too(stage: Stage) -> None:
    row = running_instance(stage)
    assert stage.do(instance_stop, row.resource_id, force=True).state == "stopped"


def test_without_a_project_nothing_can_be_created(people: People) -> None:
    ctx = people.context(people.user("platform_admin"))
    ctx.project_id = None
    with pytest.raises(InvalidRequest, match="Choose a project"):
        run(ctx, key_pair_create, None, {"name": "k"})


def test_a_resource_of_the_platform_belongs_to_no_project(people: People, database: sessionmaker[Session]) -> None:
    boss = people.context(people.user("platform_admin"))
    seq = last_seq(database)
    run(boss, flavor_create, None, {"flavor_id": "x1-tiny", "name": "x1.tiny", "vcpus": 1, "memory_mb": 512, "disk_gb": 1})
    (entry,) = entries_since(database, seq)
    assert (entry.project_id, entry.resource_id) == (None, "x1-tiny")
    with database() as session:
        assert quota.held_by(session, "x1-tiny") == {}
        assert session.scalars(select(events.Event).where(events.Event.resource_id == "x1-tiny")).one().project_id is None


def test_every_refusal_that_is_an_attempt_is_in_the_log(stage: Stage, people: People, database: sessionmaker[Session]) -> None:
    """Denied, in conflict, too late and over the quota are; what is malformed or not there is none."""
    row = running_instance(stage)
    viewer = people.context(people.user("viewer"))
    calls: list[tuple[Callable[[], Any], str | None]] = [
        (lambda: run(viewer, key_pair_create, None, {"name": "k"}), "denied"),
        (lambda: run(stage.ctx, instance_start, row.id), "failure"),
        (lambda: run(stage.ctx, instance_stop, row.id, expected_version=1000), "failure"),
        (lambda: run(stage.ctx, instance_stop, row.id, {"force": 5}), None),
        (lambda: run(stage.ctx, instance_stop, "i-nonesuch"), None),
    ]
    for call, status in calls:
        seq = last_seq(database)
        with pytest.raises(PortalError):
            call()
        assert [entry.status for entry in entries_since(database, seq)] == ([status] if status else [])


def test_an_internal_operation_is_offered_to_nobody_but_still_authorized(stage: Stage, people: People) -> None:
    row = running_instance(stage)
    heal = op_of(stage.ctx.registry, "compute.instance.heal")
    assert heal.internal
    for role in ("viewer", "developer", "project_admin", "auditor"):
        with pytest.raises(Forbidden):
            run(people.context(people.user(role)), heal, row.id, {"reason": "because"})


def test_private_keys_are_given_once_and_kept_nowhere(ctx: Context, database: sessionmaker[Session]) -> None:
    outcome = run(ctx, key_pair_create, None, {"name": "mine"})
    secret = outcome.once["private_key"]
    body = secret.splitlines()[1]
    assert body not in repr(rows_of(database))
    assert body not in repr([entry.details for entry in entries_since(database, 0)])
    with database() as session:
        assert session.get_one(KeyPair, outcome.row.id).public_key.startswith("ssh-ed25519 ")
