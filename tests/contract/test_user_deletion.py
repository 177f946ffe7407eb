"""Deleting a user: shown beforehand, what they own goes over to somebody, what they held ends, what they did stays told."""

from collections.abc import Callable

import pytest
from flask.testing import FlaskClient
from sqlalchemy import func, select
from sqlalchemy.orm import Session, sessionmaker

from portal.compute.instances import Instance
from portal.identity.deletion import user_delete
from portal.identity.models import ApiToken, Membership, User, UserSession
from portal.identity.users import user_update
from portal.kernel.audit import AuditEntry
from portal.kernel.errors import Conflict, Forbidden, InvalidRequest, QuotaExceeded
from portal.kernel.limits import user_quota_update
from portal.kernel.quota import Reservation, UserQuota
from tests.support.draining import TestWorker
from tests.support.people import People
from tests.support.web import Api, browser, csrf_of

SMALL = {"flavor": "t3-micro", "image": "atonix-tiny"}


@pytest.fixture
def leaver(api_for: Callable[..., Api], worker: TestWorker) -> Api:
    """A developer who owns an instance and has asked for more quota."""
    api = api_for("developer")
    assert api.post("/compute/instances", {"name": "theirs", **SMALL}).status_code == 202
    worker.drain()
    assert api.post("/quota-requests", {"resource_type": "cpus", "limit": 900, "reason": "More."}).status_code == 201
    return api


@pytest.fixture
def boss(api_for: Callable[..., Api]) -> Api:
    return api_for("platform_admin")


def used(database: sessionmaker[Session], user_id: str) -> int | None:
    with database() as session:
        return session.scalar(select(UserQuota.used).where(UserQuota.user_id == user_id, UserQuota.dimension == "instances"))


def test_everything_is_shown_and_then_gone(leaver: Api, boss: Api, people: People, database: sessionmaker[Session], worker: TestWorker) -> None:
    open_session = browser(leaver.client.application, people, leaver.user)
    seen = boss.get(f"/users/{leaver.user.id}/deletion").json
    assert {"label": "Instance", "count": 1, "names": ["theirs"]} in seen["owned"]
    gone = {each["label"]: each["names"] for each in seen["gone"]}
    assert {"Sessions", "API tokens", "Memberships"} <= gone.keys()
    assert (gone["API tokens"], gone["Requests for more quota"], gone["Memberships"]) == (["test"], ["cpus"], ["default"])
    assert boss("DELETE", f"/users/{leaver.user.id}?heir={boss.user.username}").status_code == 204
    assert open_session.get("/account").status_code == 303
    assert leaver.get("/auth/me").status_code == 401
    with database() as session:
        assert session.get(User, leaver.user.id) is None
        for model in (UserSession, ApiToken, Membership):
            assert session.scalar(select(func.count()).select_from(model).where(model.user_id == leaver.user.id)) == 0
        row = session.scalars(select(Instance).where(Instance.name == "theirs")).one()
        assert row.owner_id == boss.user.id
        assert set(session.scalars(select(Reservation.owner_id).where(Reservation.resource_id == row.id))) == {boss.user.id}
        assert session.scalars(select(AuditEntry).where(AuditEntry.user_id == leaver.user.id)).all() != []
    assert used(database, boss.user.id) == 1
    assert boss.get("/quota-requests").json["results"][0]["state"] == "withdrawn"
    assert boss("DELETE", f"/compute/instances/{row.id}").status_code == 202
    worker.drain()
    assert used(database, boss.user.id) == 0


def test_what_a_service_account_made_can_be_deleted_after_it(
    api_for: Callable[..., Api], database: sessionmaker[Session], worker: TestWorker
) -> None:
    admin = api_for("project_admin")
    account = admin.post("/service-accounts", {"name": "robot", "role": "developer"}).json["id"]
    key = admin.post(f"/service-accounts/{account}/keys", {"name": "ci"}).json["key"]
    robot = Api(admin.client, admin.user, key)
    made = robot.post("/compute/instances", {"name": "robots", **SMALL})
    worker.drain()
    assert admin("DELETE", f"/service-accounts/{account}").status_code == 204
    assert admin("DELETE", f"/compute/instances/{made.json['id']}").status_code == 202
    worker.drain()
    with database() as session:
        assert session.scalars(select(Reservation).where(Reservation.resource_id == made.json["id"])).all() == []


def test_who_may_delete_whom(leaver: Api, people: People) -> None:
    boss = people.context(people.user("platform_admin"))
    for heir in ("", "nobody", leaver.user.username):
        with pytest.raises(InvalidRequest):
            user_delete(boss, leaver.user.id, heir)
    with pytest.raises(Conflict):
        user_delete(boss, str(boss.principal.user_id), people.admin().username)
    with pytest.raises(Forbidden):
        user_delete(people.context(people.user("project_admin")), leaver.user.id, people.admin().username)


def test_an_heir_has_limits_too(leaver: Api, people: People, database: sessionmaker[Session]) -> None:
    boss, heir = people.context(people.user("platform_admin")), people.user()
    user_quota_update(boss, heir.id, "instances", 0)
    with pytest.raises(QuotaExceeded):
        user_delete(boss, leaver.user.id, heir.username)
    with database() as session:
        assert session.get(User, leaver.user.id) is not None


def test_the_last_administrator_is_not_deleted(people: People) -> None:
    boss = people.context(people.user("platform_admin"))
    user_update(boss, people.admin().id, platform_role="auditor")
    with pytest.raises(Conflict):
        user_delete(boss, str(boss.principal.user_id), people.admin().username)


def test_on_its_page(client_for: Callable[..., FlaskClient], leaver: Api, people: People) -> None:
    admin = client_for("platform_admin")
    page = admin.get(f"/users/{leaver.user.id}/delete")
    assert "theirs" in page.text
    form = {"csrf_token": csrf_of(page), "heir": people.admin().username, "confirm": "wrong"}
    assert admin.post(f"/users/{leaver.user.id}/delete", data=form).status_code == 422
    assert admin.post(f"/users/{leaver.user.id}/delete", data={**form, "confirm": leaver.user.username}).location == "/users"
    assert admin.get(f"/users/{leaver.user.id}").status_code == 404


def test_who_owns_nothing_needs_no_heir(people: People) -> None:
    boss, nobody = people.context(people.user("platform_admin")), people.user("viewer")
    user_delete(boss, nobody.id, "")
    with people.sessions() as session:
        assert session.get(User, nobody.id) is None


def test_who_owns_something_needs_one(leaver: Api, people: People) -> None:
    with pytest.raises(InvalidRequest, match="Name the user who takes over"):
        user_delete(people.context(people.user("platform_admin")), leaver.user.id, "")
