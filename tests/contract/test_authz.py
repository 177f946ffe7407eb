"""Who may do what: the decision and the rows in lists are one rule, and what nobody declared nobody may."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, sessionmaker

from portal.catalogue import PERMISSIONS, build_registry
from portal.compute.flavors import Flavor
from portal.compute.images import IMAGE, Image
from portal.compute.instances import Instance
from portal.compute.key_pairs import KEY_PAIR, KeyPair, key_pair_create, key_pair_delete
from portal.http import guard
from portal.http.guard import Access, access
from portal.identity.models import Membership, User
from portal.kernel import fields as f
from portal.kernel.authz import LEVELS, ROLES, Target, authorize, decide, reach, role_matrix, target_of
from portal.kernel.context import ANONYMOUS, SYSTEM, Context, Grant, Principal
from portal.kernel.db import transaction
from portal.kernel.declare import Effect, Operation, Step, operation
from portal.kernel.errors import Forbidden, NotFound
from portal.kernel.lookup import ListQuery, find, list_rows
from portal.kernel.operations import run
from portal.kernel.policy import Columns
from portal.kernel.resource import ProjectOwned, Registry, Resource, ResourceType
from portal.settings import Settings
from tests.support.people import People
from tests.support.scenarios import TINY

MEMBERS = ("project_admin", "developer", "viewer", "auditor")


@pytest.fixture
def world(people: People, database: sessionmaker[Session]) -> tuple[People, str, str, dict[str, User]]:
    """Two projects, users of every kind, and of every type rows of each project and owner, shared and not, and of the platform."""
    here, there = people.project_id, people.project()
    users = {role: people.user(role, here) for role in ("project_admin", "developer", "viewer", "platform_admin")}
    users["everywhere_auditor"] = people.user("auditor")
    users["foreign_admin"] = people.user("project_admin", there)
    users["nobody"] = people.user("")
    both = people.user("developer", here)
    with database() as session, transaction(session):
        session.add(Membership(user_id=both.id, project_id=there, role="viewer"))
        session.flush()
        both = session.get_one(User, both.id, populate_existing=True)
        session.refresh(both, ["memberships"])
        auditor = people_user_in(session, here)
        users["both"], users["project_auditor"] = both, auditor
        number = 0
        for project in (here, there):
            for owner in (users["developer"].id, users["foreign_admin"].id, both.id, None):
                number += 1
                common: dict[str, Any] = {"project_id": project, "owner_id": owner}
                session.add(KeyPair(id=f"kp-{number}", name=f"k{number}", **common))
                session.add(
                    Instance(
                        id=f"i-{number}", name=f"i{number}", flavor_id="t3-micro", image_id=TINY, root_volume_size_gb=1, state="running", **common
                    )
                )
                for public in (True, False):
                    session.add(Image(id=f"ami-{number}{public}", name=f"m{number}{public}", state="available", is_public=public, **common))
        session.add(Image(id="ami-platform", name="hidden", state="available", project_id=None))
    return people, here, there, users


def people_user_in(session: Session, project_id: str) -> User:
    """An auditor of one project alone."""
    user = User(id="usr-project-auditor", username="project-auditor", email="pa@example.org")
    session.add(user)
    session.flush()
    session.add(Membership(user_id=user.id, project_id=project_id, role="auditor"))
    session.flush()
    session.refresh(user, ["memberships"])
    return user


def test_decision_and_reach_agree_on_every_row(world: tuple[People, str, str, dict[str, User]]) -> None:
    """For every type, permission, kind of user and row: what `decide` says of the row is whether it is within `reach`."""
    people, here, _there, users = world
    contexts = {name: people.context(user, here) for name, user in users.items()}
    contexts["system"] = people.context(None, here)
    contexts["anonymous"] = replace(people.context(None, here), principal=ANONYMOUS)
    compared = 0
    for name, ctx in contexts.items():
        for rtype in ctx.registry:
            rows = ctx.db.scalars(select(rtype.model)).all()
            actions = [action for action in ctx.registry.permissions if action.startswith(f"{rtype.key}.")]
            for action in [*actions, f"{rtype.key}.undeclared"]:
                within = set(ctx.db.scalars(select(rtype.model.id).where(reach(ctx, action).rows(rtype.model))))
                allowed = {row.id for row in rows if decide(ctx, action, target_of(row)).allowed}
                assert within == allowed, (name, action)
                compared += len(rows)
    assert compared > 3000


def test_roles_see_what_they_should(world: tuple[People, str, str, dict[str, User]]) -> None:
    people, here, there, users = world

    def seen(name: str, model: type[Any]) -> set[str | None]:
        ctx = people.context(users[name], here)
        rtype = ctx.registry.of(model)
        return {row.project_id for row in list_rows(ctx, rtype, ListQuery(all_projects=True, limit=100)).rows}

    for name in ("project_admin", "developer", "viewer", "project_auditor"):
        assert seen(name, Instance) == {here}, name
    assert seen("foreign_admin", Instance) == {there}
    assert seen("nobody", Instance) == set()
    for name in ("platform_admin", "everywhere_auditor", "both"):
        assert seen(name, Instance) == {here, there}, name
    nobody = people.context(users["nobody"], here)
    assert {row.is_public for row in list_rows(nobody, IMAGE, ListQuery(all_projects=True, limit=100)).rows} == {True}
    assert len(list_rows(nobody, nobody.registry.of(Flavor), ListQuery(limit=100)).rows) == 13


def test_the_unsigned_see_nothing_at_all(people: People) -> None:
    ctx = replace(people.context(None), principal=ANONYMOUS)
    for rtype in ctx.registry:
        assert list_rows(ctx, rtype, ListQuery(all_projects=True)).rows == []
    with pytest.raises(NotFound):
        find(ctx, ctx.registry.of(Flavor), "t3-micro")


@pytest.mark.parametrize(
    ("role", "may"),
    [
        ("viewer", {"read"}),
        ("auditor", {"read", "audit"}),
        ("developer", {"read", "write"}),
        ("project_admin", {"read", "audit", "write", "delete", "manage"}),
    ],
)
def test_levels_of_roles(people: People, role: str, may: set[str]) -> None:
    ctx = people.context(people.user(role if role != "auditor" else "viewer"))
    ctx.principal = replace(ctx.principal, grants=(Grant(role, ctx.project_id),))
    for action, level in ctx.registry.permissions.items():
        here = decide(ctx, action, Target(ctx.project_id, "usr-other"))
        assert here.allowed == (level in may), action
        assert decide(ctx, action, Target("prj-other", "usr-other")).allowed is False
        assert decide(ctx, action, Target(None, "usr-other")).allowed is False
        if here.allowed:
            assert (here.policy, bool(here.statement)) == (role, True)
        else:
            assert ROLES[role].label in here.because


def test_a_developer_deletes_what_is_their_own(people: People, ctx: Context) -> None:
    one, two = people.context(people.user("developer")), people.context(people.user("developer"))
    mine = run(one, key_pair_create, None, {"name": "mine"}).row
    ownerless = run(ctx, key_pair_create, None, {"name": "admins"}).row
    for target in (mine.id, ownerless.id):
        with pytest.raises(Forbidden, match="Project admin"):
            run(two, key_pair_delete, target)
    run(one, key_pair_delete, mine.id)
    run(ctx, key_pair_delete, ownerless.id)


def test_no_owner_is_nobodys_own(people: People) -> None:
    ctx = people.context(people.user("developer"))
    ctx.principal = replace(ctx.principal, user_id=None)
    assert decide(ctx, "compute.key_pair.delete", Target(ctx.project_id, None)).allowed is False


@pytest.mark.parametrize("action", ["", "compute.instance", "compute.instance.fly", "*", "compute.instance.read ", "COMPUTE.INSTANCE.READ"])
def test_what_was_never_declared_is_denied(people: People, action: str) -> None:
    ctx = people.context(people.user("platform_admin"))
    assert decide(ctx, action, Target(ctx.project_id)).allowed is False
    assert ctx.db.scalars(select(Flavor.id).where(reach(ctx, action).rows(Flavor))).all() == []
    with pytest.raises(Forbidden):
        authorize(ctx, action, Target(ctx.project_id))
    with pytest.raises(KeyError):
        ctx.registry.level(action)


def test_a_refusal_says_who_could(people: People) -> None:
    ctx = people.context(people.user(""))
    refusal = decide(ctx, "compute.instance.create", Target(ctx.project_id))
    assert refusal.because == "You have no role here; no statement of it allows this. Roles that do: Platform admin, Project admin, Developer."
    with pytest.raises(Forbidden) as refused:
        authorize(ctx, "compute.instance.create", Target(ctx.project_id, label="a new instance"))
    assert refused.value.details["resource"] == "a new instance"


def test_the_portal_itself_may(people: People) -> None:
    ctx = people.context(None)
    assert decide(ctx, "compute.instance.heal", Target(None)).policy == "system"
    assert reach(ctx, "compute.instance.read").everything
    assert SYSTEM.is_system


def test_every_level_is_known_to_somebody(registry: Registry) -> None:
    assert set(registry.permissions.values()) <= set(LEVELS)
    roles = [statement for name, policy in ROLES.items() if name != "platform_admin" for statement in policy.statements]
    assert {level for level in LEVELS if any(statement.covers("any.thing.do", level) for statement in roles)} == set(LEVELS) - {"platform"}


def test_the_matrix_for_documents_is_what_decides(registry: Registry, people: People) -> None:
    ctx = people.context(people.user("viewer"))
    for action, answers in role_matrix(list(registry.permissions), list(registry.permissions.values())):
        for role, answer in answers.items():
            ctx.principal = Principal("usr-me", "me", "session:x", (Grant(role, ctx.project_id),))
            own = decide(ctx, action, Target(ctx.project_id, "usr-me")).allowed
            others = decide(ctx, action, Target(ctx.project_id, "usr-other")).allowed
            assert answer == ("yes" if others else "own" if own else ""), (action, role)


# -- whatever forgets a rule does not start ------------------------------------------------------------------------------------------------


def type_with(**changes: Any) -> ResourceType:
    return replace(KEY_PAIR, **changes)


class Unscoped(Resource):
    """A model that says nothing about who sees its rows."""


def other_operation(**options: Any) -> Operation:
    @operation(KeyPair, "other", label="Other", **{"needs": "write", **options})
    def key_pair_other(ctx: Context, key_pair: KeyPair) -> None:
        """Do something else."""
        del ctx, key_pair

    return key_pair_other


def do_nothing(run_: object) -> None:
    """Step that does nothing."""
    del run_


REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "a model without a rule": (lambda: Registry([type_with(model=Unscoped, operations=[])], {}), "what policies may look at"),
    "two types of one name": (lambda: Registry([KEY_PAIR, KEY_PAIR], {}), "same service and name"),
    "an operation twice": (lambda: Registry([type_with(operations=[key_pair_delete, key_pair_delete])], {}), "declared twice"),
    "an operation of another model": (lambda: Registry([replace(IMAGE, operations=[key_pair_delete])], {}), "does not belong"),
    "an operation called read": (lambda: Registry([type_with(operations=[replace(key_pair_delete, verb="read")])], {}), "does not belong"),
    "an unknown level": (lambda: Registry([type_with(operations=[other_operation(needs="anything")])], {}), "unknown level"),
    "an unknown state": (lambda: Registry([type_with(operations=[other_operation(when={"flying"})])], {}), "flying"),
    "steps without an end": (
        lambda: Registry([type_with(operations=[other_operation(steps=(Step(do_nothing, "Nothing", because="nothing"),))])], {}),
        "no final state",
    ),
    "a step without undo or reason": (lambda: Step(do_nothing, "Nothing"), "neither an undo nor a reason"),
}


class OwnBase(DeclarativeBase):
    """Tables that are not the portal's."""


class SortableEmpty(ProjectOwned, OwnBase):
    __tablename__ = "sortable_empties"
    size: Mapped[int | None] = f.field(f.Int(0, 9), label="Size", nullable=True, sortable=True)


def test_a_list_cannot_be_sorted_by_what_may_be_empty() -> None:
    """A page begins after a value, and after none there is nothing."""
    with pytest.raises(TypeError, match="size, which may be empty"):
        Registry([type_with(model=SortableEmpty, operations=[])], {})


@pytest.mark.parametrize("name", REFUSED)
def test_a_type_that_is_not_complete_is_refused(name: str) -> None:
    make, words = REFUSED[name]
    with pytest.raises(TypeError, match=words):
        make()


def test_a_parameter_that_says_nothing_is_refused() -> None:
    def declare() -> None:
        @operation(KeyPair, "odd", label="Odd", needs="write", effect=Effect.CHANGE)
        def key_pair_odd(ctx: Context, key_pair: KeyPair, *, mystery: int) -> None:
            """Do something odd."""
            del ctx, key_pair, mystery

    with pytest.raises(TypeError, match="mystery"):
        declare()


def test_a_reference_needs_a_field_that_is_one() -> None:
    def declare() -> None:
        @operation(KeyPair, "odd", label="Odd", needs="write")
        def key_pair_odd(ctx: Context, key_pair: KeyPair, *, name: Flavor) -> None:
            """Do something odd."""
            del ctx, key_pair, name

    with pytest.raises(TypeError, match="name"):
        declare()


def test_a_model_that_does_not_say_shows_nothing(people: People) -> None:
    assert Resource.facts() == Columns()
    assert (Resource.project_of(KeyPair()), Resource.is_shared(KeyPair())) == (None, False)


# -- routes --------------------------------------------------------------------------------------------------------------------------------


def small_app(settings: Settings) -> Flask:
    app = Flask("small")
    app.extensions["portal"] = (settings, build_registry(), lambda _jobs: None)
    return app


@pytest.mark.parametrize("rule", [None, "compute.instance.fly", ""])
def test_a_route_without_a_valid_rule_keeps_the_portal_from_starting(settings: Settings, rule: str | None) -> None:
    app = small_app(settings)

    def view() -> str:
        return "anybody reads this"

    app.add_url_rule("/odd", "odd", access(rule)(view) if rule is not None else view)
    with pytest.raises(TypeError, match="/odd"):
        guard.check(app)


def test_routes_with_rules_are_let_through(settings: Settings) -> None:
    app = small_app(settings)
    rules = (Access.PUBLIC, Access.SIGNED_IN, "compute.instance.read", next(iter(PERMISSIONS)))
    for number, rule in enumerate(rules):

        def view() -> str:
            return "text"

        app.add_url_rule(f"/{number}", f"v{number}", access(rule)(view))
    guard.check(app)
    assert guard.public_routes(app) == ["/0", "/static/<path:filename>"]
