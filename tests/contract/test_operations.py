"""The only write path: in its order, in one transaction, or not at all."""

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import event, select
from sqlalchemy.orm import Session, sessionmaker

from portal.compute.flavors import Flavor, flavor_create
from portal.compute.images import Image
from portal.compute.instances import Instance, instance_create, instance_resize, instance_start, instance_stop, instance_terminate
from portal.compute.key_pairs import KeyPair, key_pair_create, key_pair_delete
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
    QuotaExceeded,
    StateConflict,
    Unavailable,
)
from portal.kernel.events import Event
from portal.kernel.inputs import input_model_of
from portal.kernel.jobs import Job
from portal.kernel.operations import run
from portal.kernel.quota import Quota
from portal.kernel.resource import Registry
from portal.kernel.tags import ResourceTag
from tests.support.effects import entries_since, last_seq, rows_of, way
from tests.support.people import People
from tests.support.scenarios import TINY, Stage, running_instance, stopped_instance, stored_image

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


# -- input ---------------------------------------------------------------------------------------------------------------------------------


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"colour": "blue"}, "colour", "is not a field"),
    ({"name": ""}, "name", "at least 1"),
    ({"name": " lead"}, "name", "control characters"),
    ({"name": "two\nlines"}, "name", "control characters"),
    ({"name": "nul\x00"}, "name", "control characters"),
    ({"name": "lone \ud800"}, "name", "unicode"),
    ({"name": "n" * 256}, "name", "at most 255"),
    ({"name": 5}, "name", "valid string"),
    ({"name": None}, "name", "valid string"),
    ({"count": "2"}, "count", "valid integer"),
    ({"count": 0}, "count", "greater than or equal to 1"),
    ({"count": 21}, "count", "less than or equal to 20"),
    ({"count": True}, "count", "valid integer"),
    ({"count": 1.5}, "count", "valid integer"),
    ({"enable_monitoring": "yes"}, "enable_monitoring", "valid boolean"),
    ({"tags": {f"k{i}": "v" for i in range(10_000)}}, "tags", "at most 50"),
    ({"tags": {"k": "v" * 256}}, "tags", "at most 255"),
    ({"tags": {"": "v"}}, "tags", "at least 1"),
    ({"tags": {"k": 1}}, "tags", "valid string"),
    ({"tags": ["a"]}, "tags", "valid dictionary"),
    ({"tags": {"k": "a\x00b"}}, "tags", "control characters"),
    ({"user_data": "x" * 16_385}, "user_data", "16384"),
    ({"user_data": "ä" * 8_193}, "user_data", "16,386 bytes"),
    ({"user_data": "#!/bin/sh\x00"}, "user_data", "control characters"),
    ({"user_data": "\udc80"}, "user_data", "unicode"),
    ({"root_volume_size_gb": 0}, "root_volume_size_gb", "greater than or equal to 1"),
    ({"root_volume_size_gb": 10**30}, "root_volume_size_gb", "less than or equal to"),
    ({"flavor": "nonesuch"}, "flavor", "no flavor nonesuch"),
    ({"flavor": "\x00"}, "flavor", "control characters"),
    ({"image": "nonesuch"}, "image", "no image nonesuch"),
    ({"key_pair": "nonesuch"}, "key_pair", "no key pair nonesuch"),
    ({"vpc_id": "vpc-other"}, "vpc_id", "vpc-12345678"),
    ({"public_key": "rm -rf"}, "public_key", "one line"),
    ({"flavor_id": "t3-micro"}, "flavor_id", "is not a field"),
    ({"project_id": "prj-other"}, "project_id", "is not a field"),
    ({"owner_id": "usr-other"}, "owner_id", "is not a field"),
    ({"state": "running"}, "state", "is not a field"),
    ({"x" * 5000: 1}, "x" * 100, "is not a field"),
]


@pytest.mark.parametrize(("data", "field", "words"), REFUSED, ids=[f"{field[:12]}-{number}" for number, (_, field, _) in enumerate(REFUSED)])
def test_bad_input_names_the_field_and_leaves_nothing(
    ctx: Context, database: sessionmaker[Session], data: dict[str, Any], field: str, words: str
) -> None:
    before = rows_of(database)
    with pytest.raises(InvalidRequest) as refused:
        run(ctx, instance_create, None, {"name": "web", **CREATE, **data})
    assert words in str(refused.value.details[field])
    assert rows_of(database) == before


def test_all_problems_are_said_at_once(ctx: Context) -> None:
    with pytest.raises(InvalidRequest) as refused:
        run(ctx, instance_create, None, {"name": "", "count": 0, "colour": "blue"})
    assert set(refused.value.details) == {"name", "count", "colour", "flavor", "image"}
    assert "name:" in refused.value.message


def test_forms_may_say_numbers_and_switches_as_text(ctx: Context) -> None:
    data = {"name": "web", **CREATE, "count": "2", "enable_monitoring": "false", "root_volume_size_gb": "9"}
    outcome = run(ctx, instance_create, None, data, strict=False)
    assert [(row.name, row.enable_monitoring, row.root_volume_size_gb) for row in outcome.rows] == [("web-1", False, 9), ("web-2", False, 9)]
    with pytest.raises(InvalidRequest):
        run(ctx, instance_create, None, {**data, "count": "two"}, strict=False)


def test_aliases_are_names_of_the_same_field(ctx: Context, database: sessionmaker[Session]) -> None:
    outcome = run(ctx, instance_create, None, {"name": "web", "instance_type": "t3-micro", "image_id": TINY, "metadata": {"a": "b"}})
    with database() as session:
        row = session.get_one(Instance, outcome.row.id)
        assert (row.flavor_id, row.image_id, row.extra) == ("t3-micro", TINY, {"a": "b"})
        assert session.get_one(Job, outcome.job_id).input == {"name": "web", "flavor": "t3-micro", "image": TINY, "extra": {"a": "b"}}


def test_an_update_changes_what_it_names_and_nothing_else(stage: Stage) -> None:
    update = op_of(stage.ctx.registry, "compute.instance.update")
    row = stage.do(instance_create, name="web", description="first", tags={"a": "b"}, **CREATE)
    version = row.version
    changed = stage.do(update, row.id, tags={"c": "d"})
    assert (changed.name, changed.description, changed.tags, changed.version) == ("web", "first", {"c": "d"}, version + 1)
    with database_session(stage) as session:
        assert [(t.key, t.value) for t in session.query(ResourceTag).filter_by(resource_id=row.id)] == [("c", "d")]
    renamed = stage.do(update, row.id, name="web-2")
    assert (renamed.name, renamed.tags) == ("web-2", {"c": "d"})
    with pytest.raises(InvalidRequest):
        run(stage.ctx, update, row.id, {"flavor_id": "t3-small"})
    with pytest.raises(InvalidRequest):
        run(stage.ctx, update, row.id, {"name": None})


def test_input_models_belong_to_their_operation(registry: Registry) -> None:
    for name, op in registry.operations().items():
        assert set(input_model_of(op).model_fields) == set(op.params), name
        assert input_model_of(op) is input_model_of(op)


# -- names ---------------------------------------------------------------------------------------------------------------------------------


def test_a_live_name_is_taken_and_a_gone_one_is_free(stage: Stage, people: People) -> None:
    row = stage.do(instance_create, name="web", **CREATE)
    with pytest.raises(Conflict, match="taken") as taken:
        run(stage.ctx, instance_create, None, {"name": "web", **CREATE})
    assert "taken" in taken.value.details["name"][0]
    elsewhere = people.project()
    assert run(people.context(people.user("developer", elsewhere), elsewhere), instance_create, None, {"name": "web", **CREATE}).row.name == "web"
    stage.do(instance_terminate, row.id)
    assert stage.do(instance_create, name="web", **CREATE).state == "running"


def test_renaming_to_a_taken_name_is_refused(stage: Stage) -> None:
    stage.do(instance_create, name="one", **CREATE)
    two = stage.do(instance_create, name="two", **CREATE)
    with pytest.raises(Conflict, match="taken"):
        run(stage.ctx, op_of(stage.ctx.registry, "compute.instance.update"), two.id, {"name": "one"})
    assert stage.do(op_of(stage.ctx.registry, "compute.instance.update"), two.id, name="two").name == "two"


def test_the_longest_name_goes_all_the_way(stage: Stage) -> None:
    name = "n" * 255
    row = stage.do(instance_create, name=name, **CREATE)
    assert (row.name, row.state) == (name, "running")
    assert stage.do(instance_terminate, row.id).state == "terminated"


def test_a_number_that_makes_the_name_too_long_is_refused(ctx: Context, database: sessionmaker[Session]) -> None:
    before = rows_of(database)
    with pytest.raises(InvalidRequest, match="name"):
        run(ctx, instance_create, None, {"name": "n" * 254, "count": 2, **CREATE})
    assert rows_of(database) == before


# -- several at once -----------------------------------------------------------------------------------------------------------------------


def test_several_at_once_are_all_or_none(ctx: Context, database: sessionmaker[Session]) -> None:
    with database() as session, transaction(session):
        session.query(Quota).filter(Quota.project_id == ctx.project_id, Quota.dimension == "instances").update({"limit": 3})
    outcome = run(ctx, instance_create, None, {"name": "web", "count": 2, **CREATE})
    assert [row.name for row in outcome.rows] == ["web-1", "web-2"]
    assert len(outcome.jobs) == 2
    before, seq = rows_of(database), last_seq(database)
    with pytest.raises(QuotaExceeded) as full:
        run(ctx, instance_create, None, {"name": "db", "count": 2, **CREATE})
    assert full.value.details == {"dimension": "instances", "limit": 3, "used": 3, "requested": 1, **way("instances")}
    assert rows_of(database) == before
    (entry,) = entries_since(database, seq)
    assert (entry.status, entry.details["dimension"]) == ("failure", "instances")


# -- references ----------------------------------------------------------------------------------------------------------------------------


def test_references_are_found_by_id_resource_id_and_name(stage: Stage) -> None:
    with database_session(stage) as session:
        flavor, image = session.get_one(Flavor, "t3-micro"), session.get_one(Image, TINY)
    for number, (one, other) in enumerate([(flavor.id, image.id), (flavor.resource_id, image.resource_id), (flavor.name, image.name)]):
        row = run(stage.ctx, instance_create, None, {"name": f"web{number}", "flavor": one, "image": other}).row
        assert (row.flavor_id, row.image_id) == (flavor.id, image.id)


def test_what_is_of_another_project_cannot_be_referred_to(stage: Stage, people: People, database: sessionmaker[Session]) -> None:
    """Not even by somebody who is a member of both: what a project uses is its own or shared with everybody."""
    image = stored_image(stage)
    pair = stage.do(key_pair_create, name="mine", public_key=KEY)
    elsewhere = people.project()
    stranger = people.context(people.user("project_admin", elsewhere), elsewhere)
    boss = people.context(people.user("platform_admin"), elsewhere)
    before = rows_of(database)
    for who in (stranger, boss):
        for data in ({"image": image.id}, {"image": image.name}, {"image": image.resource_id}, {"key_pair": pair.id}, {"key_pair": pair.name}):
            with pytest.raises(InvalidRequest, match="There is no") as refused:
                run(who, instance_create, None, {"name": "web", **CREATE, **data})
            assert set(refused.value.details) == set(data)
    assert rows_of(database) == before


def test_a_reference_by_id_is_found_however_many_share_its_name(people: People, stage: Stage) -> None:
    """Others may name their images after an id."""
    image = stored_image(stage)
    homes = [people.project() for _ in range(4)]
    with database_session(stage) as session, transaction(session):
        session.add_all(Image(id=f"ami-{home}", name=image.id, project_id=home, state="available", is_public=True) for home in homes)
    row = run(stage.ctx, instance_create, None, {"name": "web", "flavor": "t3-micro", "image": image.id}).row
    assert row.image_id == image.id
    with database_session(stage) as session, transaction(session):
        session.add_all(Image(id=f"ami-twin-{home}", name="twin", project_id=home, state="available", is_public=True) for home in homes[:2])
    with pytest.raises(InvalidRequest, match="names several; use the id"):
        run(stage.ctx, instance_create, None, {"name": "web2", "flavor": "t3-micro", "image": "twin"})


def test_what_is_gone_cannot_be_referred_to(stage: Stage) -> None:
    pair = stage.do(key_pair_create, name="mine", public_key=KEY)
    stage.do(key_pair_delete, pair.id)
    for value in (pair.id, pair.name):
        with pytest.raises(InvalidRequest, match="no key pair"):
            run(stage.ctx, instance_create, None, {"name": "web", "key_pair": value, **CREATE})


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
