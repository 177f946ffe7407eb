"""Snapshots and images that are shared with projects: seen and used there, by nobody else, and with nothing else told."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from flask.testing import FlaskClient
from sqlalchemy.orm import selectinload

from portal.identity.models import Membership, User
from portal.kernel.context import Context
from portal.kernel.db import transaction
from portal.kernel.errors import Conflict, Forbidden, InvalidRequest, NotFound
from portal.kernel.lookup import ListQuery, find, list_rows
from portal.kernel.operations import run
from portal.storage.snapshots import SNAPSHOT, snapshot_create, snapshot_delete, snapshot_share
from portal.storage.volumes import volume_create
from tests.support.people import People
from tests.support.scenarios import Stage, assert_sound, snapshot, stored_image
from tests.support.web import Api


@pytest.fixture
def theirs(people: People) -> Context:
    """A developer of another project."""
    project = people.project("theirs")
    return people.context(people.user("developer", project), project)


@pytest.fixture
def stranger(people: People) -> Context:
    """A project admin of a third one."""
    project = people.project("strangers")
    return people.context(people.user("project_admin", project), project)


def names(ctx: Context) -> list[str]:
    return [row.name for row in list_rows(ctx, SNAPSHOT, ListQuery()).rows]


def test_it_is_seen_and_used_where_it_is_shared_and_nowhere_else(stage: Stage, theirs: Context, stranger: Context) -> None:
    kept = snapshot(stage)
    for ctx in (theirs, stranger):
        with pytest.raises(NotFound):
            find(ctx, SNAPSHOT, kept.id)
        ctx.db.rollback()
    stage.do(snapshot_share, kept.id, projects=[theirs.project_id])
    assert (find(theirs, SNAPSHOT, kept.id).id, names(theirs)) == (kept.id, [kept.name])
    made = run(theirs, volume_create, None, {"name": "mine", "snapshot": kept.id}).row
    stage.worker.drain()
    theirs.db.refresh(made)
    assert (made.state, made.project_id, made.size_gb) == ("available", theirs.project_id, kept.size_gb)
    assert names(stranger) == []
    with pytest.raises(NotFound):
        find(stranger, SNAPSHOT, kept.id)
    with pytest.raises(InvalidRequest, match="There is no snapshot"):
        run(stranger, volume_create, None, {"name": "stolen", "snapshot": kept.id})
    # Seen is not owned.
    for op, data in ((snapshot_delete, {}), (snapshot_share, {"projects": [stranger.project_id]})):
        with pytest.raises(Forbidden):
            run(theirs, op, kept.id, data)
    stage.do(snapshot_share, kept.id, projects=[])
    theirs.db.rollback()
    assert names(theirs) == []
    with pytest.raises(NotFound):
        find(theirs, SNAPSHOT, kept.id)
    with pytest.raises(InvalidRequest):
        run(theirs, volume_create, None, {"name": "more", "snapshot": kept.id})
    assert_sound(stage)


def test_whoever_is_in_two_projects_uses_it_in_the_one_it_is_shared_with(stage: Stage, people: People) -> None:
    first, second = people.project("first"), people.project("second")
    user = people.user("developer", first)
    with people.sessions() as session, transaction(session):
        session.add(Membership(user_id=user.id, project_id=second, role="developer"))
        session.flush()
        user = session.get_one(User, user.id, options=[selectinload(User.memberships)])
    kept = snapshot(stage)
    stage.do(snapshot_share, kept.id, projects=[first])
    here, there = people.context(user, first), people.context(user, second)
    assert (names(here), names(there)) == ([kept.name], [])
    assert find(there, SNAPSHOT, kept.id).id == kept.id
    with pytest.raises(InvalidRequest, match="There is no snapshot"):
        run(there, volume_create, None, {"name": "elsewhere", "snapshot": kept.id})


def test_a_project_whose_id_is_part_of_another_gets_nothing(stage: Stage, theirs: Context, people: People) -> None:
    kept = snapshot(stage)
    stage.do(snapshot_share, kept.id, projects=[theirs.project_id])
    part = str(theirs.project_id)[:-2]
    assert names(replace(theirs, project_id=part)) == []
    del people


def test_who_shares_what_with_whom(stage: Stage, theirs: Context, people: People) -> None:
    kept = snapshot(stage)
    with pytest.raises(Forbidden):
        run(people.context(people.user("developer")), snapshot_share, kept.id, {"projects": [theirs.project_id]})
    with pytest.raises(InvalidRequest, match="There is no project prj-unknown"):
        run(stage.ctx, snapshot_share, kept.id, {"projects": ["prj-unknown"]})
    # Names of projects are nobody's to find out.
    with pytest.raises(InvalidRequest, match="There is no project theirs"):
        run(stage.ctx, snapshot_share, kept.id, {"projects": ["theirs"]})
    secret = stage.do(volume_create, name="secret", size_gb=1, encryption_enabled=True)
    locked = stage.do(snapshot_create, name="locked", volume=secret.id)
    with pytest.raises(Conflict, match="encrypted with a key of its project"):
        run(stage.ctx, snapshot_share, locked.id, {"projects": [theirs.project_id]})


def test_the_api_and_the_console_tell_nobody_with_whom_else_it_is_shared(
    stage: Stage, api: Api, people: People, api_for: Callable[..., Api], client_for: Callable[..., FlaskClient]
) -> None:
    first, second = people.project(), people.project()
    kept = snapshot(stage)
    shared = api.post(f"/storage/snapshots/{kept.id}/share", {"account_ids": [first, second, first]})
    assert (shared.status_code, shared.json["shared_with_accounts"], shared.json["visibility"]) == (200, [first, second], "2 other projects")
    other = api_for("viewer", first)
    seen = other.get(f"/storage/snapshots/{kept.id}").json
    assert (seen["shared_with_accounts"], seen["visibility"]) == ([], "Shared with you")
    assert second not in other.get(f"/storage/snapshots/{kept.id}").text
    assert second not in other.get("/storage/snapshots").text
    assert other.get(f"/storage/snapshots/{kept.id}/events").json["results"] == []
    assert other.post(f"/storage/snapshots/{kept.id}/share", {"account_ids": []}).status_code == 403
    assert api_for("viewer", people.project()).get(f"/storage/snapshots/{kept.id}").status_code == 404
    browser = client_for("viewer", first)
    for page in (f"/storage/snapshots/{kept.id}", f"/storage/snapshots/{kept.id}/activity", "/storage/snapshots", "/storage/snapshots.csv"):
        text = browser.get(page).text
        assert kept.name in text
        assert second not in text
        assert stage.ctx.principal.username not in text
    boss = api_for("platform_admin")
    assert boss.post(f"/storage/snapshots/{kept.id}/make-public").status_code == 200
    seen = api_for("viewer", people.project()).get(f"/storage/snapshots/{kept.id}").json
    assert (seen["shared_with_accounts"], seen["visibility"]) == ([], "Everybody")
    form = client_for().get(f"/storage/snapshots/{kept.id}/actions/share")
    assert first in form.text
    assert second in form.text


def test_an_image_is_shared_in_the_same_way(stage: Stage, api: Api, api_for: Callable[..., Api], people: People) -> None:
    image, project = stored_image(stage), people.project()
    other = api_for("developer", project)
    assert other.get(f"/compute/images/{image.id}").status_code == 404
    assert api.post(f"/compute/images/{image.id}/share", {"account_ids": [project]}).status_code == 200
    assert other.get(f"/compute/images/{image.id}").status_code == 200
    assert other.get("/compute/images/mine").json["count"] == 0
    assert image.name in other.get("/compute/images").text
    made = other.post("/compute/instances", {"name": "web", "flavor": "t3-micro", "image": image.id})
    assert made.status_code == 202, made.json
    assert api.post(f"/compute/images/{image.id}/share", {"account_ids": []}).status_code == 200
    assert other.get(f"/compute/images/{image.id}").status_code == 404
    assert api.post("/compute/images/atonix-tiny/share", {"account_ids": [project]}).status_code in {403, 404, 409}
