"""What the write path is given: fields, names, several at once, references to others."""

from typing import Any

import pytest
from sqlalchemy.orm import Session, sessionmaker

from portal.compute.flavors import Flavor
from portal.compute.images import Image
from portal.compute.instances import Instance, instance_create, instance_terminate
from portal.compute.key_pairs import key_pair_create, key_pair_delete
from portal.kernel.context import Context
from portal.kernel.db import transaction
from portal.kernel.errors import (
    Conflict,
    InvalidRequest,
    QuotaExceeded,
)
from portal.kernel.inputs import input_model_of
from portal.kernel.jobs import Job
from portal.kernel.operations import run
from portal.kernel.quota import Quota
from portal.kernel.resource import Registry
from portal.kernel.tags import ResourceTag
from tests.support.effects import entries_since, last_seq, rows_of, way
from tests.support.people import People
from tests.support.scenarios import TINY, Stage, stored_image

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ5QbRrtIuJtHqYpHcTIhwqgfE3PBqJPOJPg8nGOtMlr me"
CREATE = {"flavor": "t3-micro", "image": TINY}


def database_session(stage: Stage) -> Session:
    return stage.worker.sessions()


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
    update = stage.ctx.registry.operation("compute.instance.update")
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
        run(stage.ctx, stage.ctx.registry.operation("compute.instance.update"), two.id, {"name": "one"})
    assert stage.do(stage.ctx.registry.operation("compute.instance.update"), two.id, name="two").name == "two"


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
