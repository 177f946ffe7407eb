"""Projects, members and users: who may, what stays consistent, and what nobody learns."""

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker

from portal.compute.key_pairs import key_pair_create
from portal.identity.accounts import principal_of
from portal.identity.deletion import user_delete
from portal.identity.models import ApiToken, Membership, Project, User
from portal.identity.projects import (
    PROJECT_ROLES,
    member_remove,
    member_set,
    members_of,
    project_create,
    project_find,
    project_update,
    projects_visible,
    role_labels,
)
from portal.identity.service_accounts import service_account_create
from portal.identity.tokens import token_create, token_user
from portal.identity.users import user_create, user_find, user_update, users_list
from portal.kernel.context import Context
from portal.kernel.db import transaction
from portal.kernel.errors import Conflict, Forbidden, InvalidRequest, NotFound, PortalError
from portal.kernel.limits import quota_lines
from portal.kernel.operations import run
from portal.kernel.quota import DIMENSIONS
from tests.support.effects import entries_since, last_seq, rows_of
from tests.support.people import People
from tests.support.racing import race

GOOD = {"username": "ada", "email": "ada@example.org", "password": "a long enough phrase"}


def roles(sessions: sessionmaker[Session], project_id: str) -> dict[str, str]:
    with sessions() as session:
        rows = session.execute(
            select(User.username, Membership.role).join(User, User.id == Membership.user_id).where(Membership.project_id == project_id)
        )
        return {name: role for name, role in rows}  # noqa: C416 - rows are no tuples


# -- projects ------------------------------------------------------------------------------------------------------------------------------


def test_projects_are_seen_by_their_members(people: People) -> None:
    there = people.project("zeta")
    member, boss, nobody = people.user("viewer"), people.user("platform_admin"), people.user("")
    assert [project.id for project in projects_visible(people.context(member))] == [people.project_id]
    assert {project.id for project in projects_visible(people.context(boss))} == {people.project_id, there}
    assert projects_visible(people.context(nobody)) == []
    assert project_find(people.context(boss), there).name == "zeta"
    for project in (there, "prj-nonesuch", "", "\x00", "x" * 10_000):
        for call in (
            project_find,
            members_of,
            project_update,
            lambda ctx, p: member_set(ctx, p, "admin", "viewer"),
            lambda ctx, p: member_remove(ctx, p, "usr-1"),
        ):
            with pytest.raises(NotFound) as missing:
                call(people.context(member), project)
            assert len(missing.value.message) < 150
    with pytest.raises(NotFound):
        project_find(people.context(boss), "\ud800")


def test_a_new_project_has_quotas_and_an_administrator(people: People, database: sessionmaker[Session]) -> None:
    boss = people.user("platform_admin")
    ctx, seq = people.context(boss), last_seq(database)
    project = project_create(ctx, name="  apollo ", description="to the moon")
    assert (project.name, roles(database, project.id)) == ("apollo", {boss.username: "project_admin"})
    assert len(quota_lines(ctx, project.id)) == len(DIMENSIONS)
    *network, entry = entries_since(database, seq)
    assert (entry.action, entry.resource_id, entry.details["name"]) == ("identity.project.create", project.id, "apollo")
    assert {each.action.split(".")[0] for each in network} == {"networking"}
    inside = people.context(boss, project.id)
    assert run(inside, key_pair_create, None, {"name": "k"}).row.project_id == project.id


@pytest.mark.parametrize("name", ["", " ", "x", "x" * 101, "two\nlines", "nul\x00", "\ud800x"])
def test_a_project_needs_a_name(people: People, database: sessionmaker[Session], name: str) -> None:
    ctx, before = people.context(people.user("platform_admin")), rows_of(database)
    for call in (lambda: project_create(ctx, name=name), lambda: project_update(ctx, people.project_id, name=name)):
        with pytest.raises(InvalidRequest) as refused:
            call()
        assert "name" in refused.value.details
    assert rows_of(database) == before


@pytest.mark.parametrize("text", ["x" * 2001, "nul\x00", "\ud800"])
def test_a_description_is_bounded_text(people: People, text: str) -> None:
    ctx = people.context(people.user("platform_admin"))
    with pytest.raises(InvalidRequest):
        project_create(ctx, name="apollo", description=text)


def test_a_name_is_given_once(people: People, database: sessionmaker[Session]) -> None:
    ctx = people.context(people.user("platform_admin"))
    apollo = project_create(ctx, name="apollo")
    with pytest.raises(Conflict, match="taken"):
        project_create(ctx, name="apollo")
    with pytest.raises(Conflict, match="taken"):
        project_update(ctx, people.project_id, name="apollo")
    assert project_update(ctx, apollo.id, name="apollo", description="same name").description == "same name"
    contexts = [people.context(people.user("platform_admin")) for _ in range(4)]
    given = race([lambda c=c: project_create(c, name="gemini") for c in contexts])
    assert sum(isinstance(one, Project) for one in given) == 1
    assert sum(isinstance(one, Conflict) for one in given) == 3, given


def test_members_do_not_make_projects_and_only_their_admin_changes_them(people: People, database: sessionmaker[Session]) -> None:
    seq = last_seq(database)
    for role in ("viewer", "developer", "project_admin", "auditor"):
        with pytest.raises(Forbidden):
            project_create(people.context(people.user(role)), name="apollo")
    for role in ("viewer", "developer", "auditor"):
        with pytest.raises(Forbidden):
            project_update(people.context(people.user(role)), people.project_id, name="other")
    assert {entry.status for entry in entries_since(database, seq)} == {"denied"}
    project_update(people.context(people.user("project_admin")), people.project_id, description="changed")
    last = entries_since(database, seq)[-1]
    assert (last.status, last.details["after"], last.project_id) == ("success", {"description": "changed"}, people.project_id)


# -- members -------------------------------------------------------------------------------------------------------------------------------


def test_an_admin_gives_and_takes_roles(people: People, database: sessionmaker[Session]) -> None:
    ctx, newcomer = people.context(people.user("project_admin")), people.user("")
    for role in PROJECT_ROLES:
        member_set(ctx, people.project_id, newcomer.username, role)
        assert roles(database, people.project_id)[newcomer.username] == role
    assert newcomer.username in [member.user.username for member in members_of(ctx, people.project_id)]
    member_set(ctx, people.project_id, newcomer.username, "viewer")
    member_remove(ctx, people.project_id, newcomer.id)
    assert newcomer.username not in roles(database, people.project_id)
    with pytest.raises(NotFound):
        member_remove(ctx, people.project_id, newcomer.id)
    assert set(role_labels()) == set(PROJECT_ROLES)


@pytest.mark.parametrize("role", ["", "platform_admin", "owner", "PROJECT_ADMIN", "x" * 10_000, "\x00"])
def test_only_roles_of_projects_are_given(people: People, database: sessionmaker[Session], role: str) -> None:
    ctx, newcomer = people.context(people.user("project_admin")), people.user("")
    with pytest.raises(InvalidRequest) as refused:
        member_set(ctx, people.project_id, newcomer.username, role)
    assert "role" in refused.value.details
    assert newcomer.username not in roles(database, people.project_id)


@pytest.mark.parametrize("name", ["nobody", "", "\x00", "\ud800", "x" * 10_000])
def test_who_may_not_manage_members_does_not_learn_who_exists(people: People, name: str) -> None:
    known = people.user("")
    for role in ("viewer", "developer", "auditor"):
        ctx = people.context(people.user(role))
        answers = []
        for username in (known.username, name):
            with pytest.raises(Forbidden) as refused:
                member_set(ctx, people.project_id, username, "viewer")
            answers.append(refused.value.message)
        assert answers[0] == answers[1]
    with pytest.raises(InvalidRequest) as missing:
        member_set(people.context(people.user("project_admin")), people.project_id, name, "viewer")
    assert "username" in missing.value.details


def test_the_last_administrator_stays(people: People, database: sessionmaker[Session]) -> None:
    there = people.project()
    boss = people.user("project_admin", there)
    ctx = people.context(boss, there)
    for call in (lambda: member_remove(ctx, there, boss.id), lambda: member_set(ctx, there, boss.username, "viewer")):
        with pytest.raises(Conflict, match="last administrator"):
            call()
    assert roles(database, there) == {boss.username: "project_admin"}
    second = people.user("project_admin", there)
    member_set(ctx, there, boss.username, "viewer")
    assert roles(database, there) == {boss.username: "viewer", second.username: "project_admin"}


def test_two_administrators_who_remove_each_other_do_not_both_succeed(people: People, database: sessionmaker[Session]) -> None:
    there = people.project()
    one, two = people.user("project_admin", there), people.user("project_admin", there)
    first, second = people.context(one, there), people.context(two, there)
    given = race([lambda: member_remove(first, there, two.id), lambda: member_remove(second, there, one.id)])
    assert sum(isinstance(each, PortalError) for each in given) == 1, given
    assert list(roles(database, there).values()) == ["project_admin"]


# -- users ---------------------------------------------------------------------------------------------------------------------------------


def test_only_platform_admins_know_and_make_users(people: People, database: sessionmaker[Session]) -> None:
    user = people.user("developer")
    for role in ("viewer", "developer", "project_admin", "auditor", ""):
        ctx = people.context(people.user(role))
        for call in (
            lambda c=ctx: users_list(c), lambda c=ctx: user_find(c, user.id), lambda c=ctx: user_find(c, "usr-nonesuch"),
            lambda c=ctx: user_create(c, **GOOD), lambda c=ctx: user_update(c, user.id, platform_role="platform_admin"),
        ):  # fmt: skip
            with pytest.raises(Forbidden):
                call()
    with database() as session:
        assert session.scalars(select(User).where(User.platform_role == "platform_admin")).one().username == "admin"


def test_a_new_user_is_kept_without_the_password(people: People, database: sessionmaker[Session]) -> None:
    ctx, seq = people.context(people.user("platform_admin")), last_seq(database)
    user = user_create(ctx, **GOOD, platform_role="auditor")
    with database() as session:
        row = session.get_one(User, user.id)
        assert (row.username, row.email, row.platform_role, row.is_active, row.must_change_password) == (
            "ada",
            "ada@example.org",
            "auditor",
            True,
            True,
        )
        assert row.password_hash.startswith("$argon2id$")
    assert GOOD["password"] not in repr(rows_of(database)) + repr([entry.details for entry in entries_since(database, seq)])
    assert user_find(ctx, user.id).username == "ada"
    assert user.username in [found.username for found in users_list(ctx)]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("username", ""), ("username", "a"), ("username", "-ada"), ("username", "ada lovelace"), ("username", "ada@example.org"), ("username", "x" * 151),
        ("username", "ada\n"), ("username", "nul\x00"), ("username", "\ud800\ud800"), ("email", ""), ("email", "ada"), ("email", "a@b@c"), ("email", "a b@c"),
        ("email", "x@" + "y" * 300), ("email", "a\x00@b"), ("email", "ada@example.org\n"), ("email", "\ud800@example.org"), ("password", "short"),
        ("password", "xx-ada-xxxxxxxxx"), ("password", "\x00" * 20), ("platform_role", "developer"), ("platform_role", "PLATFORM_ADMIN"),
    ],
)  # fmt: skip
def test_a_user_that_is_none_is_refused(people: People, database: sessionmaker[Session], field: str, value: str) -> None:
    ctx, before = people.context(people.user("platform_admin")), rows_of(database)
    with pytest.raises(InvalidRequest) as refused:
        user_create(ctx, **{**GOOD, field: value})
    assert field in refused.value.details
    assert rows_of(database) == before


@pytest.mark.parametrize("change", [{"email": "other@example.org"}, {"username": "other"}, {"username": "other", "email": "ADA@Example.org"}])
def test_names_and_addresses_are_given_once(people: People, change: dict[str, str]) -> None:
    ctx = people.context(people.user("platform_admin"))
    user_create(ctx, **GOOD)
    with pytest.raises(Conflict, match="taken") as taken:
        user_create(ctx, **{**GOOD, **change})
    assert list(taken.value.details) == ["username" if "username" not in change else "email"]


def test_names_that_differ_in_case_alone_are_one_name(people: People) -> None:
    """Nobody can tell Admin from admin in an audit log."""
    ctx = people.context(people.user("platform_admin"))
    with pytest.raises(Conflict, match="username"):
        user_create(ctx, username="ADMIN", email="other@example.org", password="a long enough phrase")


def test_whoever_is_disabled_is_out_everywhere(people: People, database: sessionmaker[Session]) -> None:
    ctx, user = people.context(people.user("platform_admin")), people.user("developer")
    token, _ = token_create(people.context(user), user, "script")
    seq = last_seq(database)
    user_update(ctx, user.id, is_active=False)
    with database() as session:
        assert token_user(session, token, source_ip="") is None
        assert session.scalars(select(ApiToken).where(ApiToken.user_id == user.id)).all() == []
    (entry,) = entries_since(database, seq)
    assert (entry.details["before"], entry.details["after"]) == ({"is_active": True}, {"is_active": False})
    user_update(ctx, user.id, is_active=True, platform_role="auditor")
    with database() as session:
        row = session.get_one(User, user.id)
        assert (row.is_active, {grant.role for grant in principal_of(row, "x").grants}) == (True, {"developer", "auditor"})
    with pytest.raises(InvalidRequest):
        user_update(ctx, user.id, platform_role="king")
    for odd in ("usr-nonesuch", "", "\x00", "\ud800"):
        with pytest.raises(NotFound):
            user_update(ctx, odd, is_active=False)


def test_the_last_platform_admin_stays(people: People, database: sessionmaker[Session]) -> None:
    admin = people.admin()
    ctx = people.context(admin)
    for call in (lambda: user_update(ctx, admin.id, is_active=False), lambda: user_update(ctx, admin.id, platform_role="")):
        with pytest.raises(Conflict, match="last platform admin"):
            call()
    other = people.user("platform_admin")
    second = people.context(other)
    given = race([lambda: user_update(ctx, other.id, is_active=False), lambda: user_update(second, admin.id, is_active=False)])
    assert sum(isinstance(each, PortalError) for each in given) == 1, given
    with database() as session:
        assert len(session.scalars(select(User).where(User.platform_role == "platform_admin", User.is_active.is_(True))).all()) == 1


def test_an_action_without_permission_is_logged_with_its_name(people: People, database: sessionmaker[Session]) -> None:
    seq = last_seq(database)
    ctx: Context = people.context(people.user("viewer"))
    with pytest.raises(Forbidden):
        user_create(ctx, **GOOD)
    (entry,) = entries_since(database, seq)
    assert (entry.action, entry.status, entry.resource_name, entry.username) == ("identity.user.create", "denied", "ada", ctx.principal.username)


def test_a_project_keeps_somebody_who_administers_it(people: People) -> None:
    boss, project = people.context(people.user("platform_admin")), people.project("lonely")
    alone = people.user("project_admin", project)
    with pytest.raises(Conflict, match="alone administers lonely"):
        user_update(boss, alone.id, is_active=False)
    with pytest.raises(Conflict, match="alone administers lonely"):
        user_delete(boss, alone.id, people.admin().username)
    member_set(boss, project, people.user("viewer").username, "project_admin")
    assert user_update(boss, alone.id, is_active=False).is_active is False


@pytest.mark.parametrize("name", ["anonymous", "System", "unknown"])
def test_nobody_is_called_what_the_audit_log_calls_nobody(people: People, name: str) -> None:
    with pytest.raises(InvalidRequest, match="audit log"):
        user_create(people.context(people.user("platform_admin")), username=name, email="x@example.org", password="tulip-violin-anchor")


def test_who_has_such_a_name_already_can_be_disabled(people: People, database: sessionmaker[Session]) -> None:
    user = people.user("viewer")
    with database() as session, transaction(session):
        session.get_one(User, user.id).username = "system"
    assert user_update(people.context(people.user("platform_admin")), user.id, is_active=False).is_active is False


def test_a_service_account_is_not_called_so_either(people: People) -> None:
    with pytest.raises(Conflict, match="taken"):
        service_account_create(people.context(people.user("project_admin")), name="Anonymous")
