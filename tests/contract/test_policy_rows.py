"""Lists are filtered in SQL, single rows are decided in Python: over random policies and resources both say the same."""

from dataclasses import replace
from itertools import product
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from sqlalchemy import select
from sqlalchemy.orm import Session, sessionmaker

from portal.compute.images import Image
from portal.compute.instances import Instance
from portal.kernel import tags
from portal.kernel.authz import ROLES, compiled, decide, reach, target_of, trace
from portal.kernel.context import Context, Grant, Limit
from portal.kernel.db import now, transaction
from portal.kernel.jobs import Job
from portal.kernel.policy import Asked, Columns, Condition, Statement, Target
from portal.kernel.policy_documents import VERSION, parse
from tests.support.people import People

NAMES = ("web-1", "web-2", "db_1", "a[b]c", "50%", "Äpfel", "WEB-1", "back\\slash")
VALUES = ("prod", "test", "Prod", "", "p*d", "[prod]")
PATTERNS = st.sampled_from(("*", "web-*", "w?b-1", "WEB*", "*[b]*", "50%", "db_1", "d?_1", "Ä*", "prod", "p*", "P*", "", "back\\*", "p[*]d"))
ACTIONS = st.sampled_from(
    ("*", "compute:read", "*:read", "compute.instance.*", "compute.instance.read", "compute.image.read", "compute:write", "compute.*.read")
)


def texts(*more: str) -> st.SearchStrategy[list[str]]:
    """One or two values of a condition."""
    return st.lists(st.sampled_from((*NAMES, *VALUES, *more)).filter(bool), min_size=1, max_size=2)


def likes() -> st.SearchStrategy[list[str]]:
    """One or two patterns of a condition."""
    return st.lists(PATTERNS.filter(bool), min_size=1, max_size=2)


KEYS = ("resource.name", "resource.tag/env", "resource.tag/none", "request.tag/env", "request.input/name", "principal.name")
FLAGS = st.lists(st.booleans(), min_size=1, max_size=2)
PAIRS = st.one_of(
    st.tuples(st.sampled_from(("StringEquals", "StringNotEquals")), st.sampled_from(KEYS), texts()),
    st.tuples(st.sampled_from(("StringLike", "StringNotLike")), st.sampled_from(KEYS), likes()),
    st.tuples(st.sampled_from(("StringEquals", "StringLike")), st.sampled_from(KEYS[:2]), st.just([*NAMES, *filter(bool, VALUES), "w*1", "${principal.name}"])),
    st.tuples(st.sampled_from(("StringEquals", "StringNotEquals")), st.just("resource.owner"), st.lists(st.sampled_from(("${principal.id}", "usr-other")), min_size=1)),
    st.tuples(st.sampled_from(("StringEquals", "StringNotEquals", "StringLike")), st.just("resource.project"), st.lists(st.sampled_from(("HERE", "THERE", "prj-*")), min_size=1)),
    st.tuples(st.sampled_from(("StringEquals", "StringNotLike")), st.just("resource.id"), st.lists(st.sampled_from(("i-0", "ami-1", "i-*")), min_size=1)),
    st.tuples(st.just("Bool"), st.sampled_from(("resource.shared", "principal.mfa")), FLAGS),
    st.tuples(st.just("Null"), st.sampled_from((*KEYS, "resource.owner", "resource.project", "resource.shared")), st.lists(st.booleans(), min_size=1, max_size=1)),
    st.tuples(st.sampled_from(("IpAddress", "NotIpAddress")), st.just("request.ip"), st.just(["10.0.0.0/8"])),
)  # fmt: skip
RESOURCES = st.lists(
    st.sampled_from(("*", "compute.instance/*", "compute.instance/i-0", "compute.instance/i-1?", "compute.image/ami-*", "compute.*/*", "*/i-2", "core.job/*")),
    min_size=1, max_size=3,
)  # fmt: skip


@st.composite
def statements(draw: st.DrawFn, permissions: dict[str, str], projects: dict[str, str]) -> tuple[Statement, ...]:
    """What a random document says."""
    found = []
    for number in range(draw(st.integers(1, 8))):
        conditions: dict[str, dict[str, Any]] = {}
        for operator, key, values in draw(st.lists(PAIRS, max_size=2)):
            conditions.setdefault(operator, {})[key] = [projects.get(value, value) if isinstance(value, str) else value for value in values]
        found.append({
            "Sid": f"S{number}", "Effect": draw(st.sampled_from(("Allow", "Allow", "Deny"))), "Action": draw(st.lists(ACTIONS, min_size=1, max_size=2)),
            "Resource": draw(RESOURCES), "Condition": conditions,
        })  # fmt: skip
    return parse({"Version": VERSION, "Statement": found}, permissions)


@pytest.fixture
def ctx(people: People, database: sessionmaker[Session]) -> Context:
    """Somebody from 10.1.1.1, in a world of rows of every kind; rows that are gone may share a name."""
    here, there, user, other = people.project_id, people.project(), people.user(""), people.user("")
    ctx = people.context(user)
    with database() as session, transaction(session):
        numbers = iter(range(1000))
        for project, owner, name, value in product((here, there), (user.id, other.id, None), NAMES[:4], (None, *VALUES[:4])):
            row = Instance(id=f"i-{next(numbers)}", name=f"{name}", flavor_id="t3-micro", image_id="atonix-tiny", root_volume_size_gb=1, state="running",
                           project_id=project, owner_id=owner, tags={} if value is None else {"env": value}, deleted_at=now())  # fmt: skip
            session.add(row)
            session.flush()
            tags.store(session, "compute.instance", row)
        numbers = iter(range(1000))
        for project, owner, name, public in product((here, there, None), (user.id, None), NAMES, (True, False)):
            row = Image(id=f"ami-{next(numbers)}", name=name, state="available", project_id=project, owner_id=owner, is_public=public,
                        tags={"env": VALUES[len(name) % 6]}, deleted_at=now())  # fmt: skip
            session.add(row)
            session.flush()
            tags.store(session, "compute.image", row)
        for number, (project, owner) in enumerate(product((here, there, None), (user.id, other.id, None))):
            session.add(Job(id=f"job-{number}", kind="compute.instance.start", label="Start", resource_type="compute.instance", resource_id=f"i-{number}",
                            resource_name="x", project_id=project, user_id=owner, username="x", request_id="", state="queued", input={}))  # fmt: skip
    ctx.source_ip, ctx.inputs = "10.1.1.1", {"name": "web-1", "tags": {"env": "prod"}}
    return ctx


def test_the_sql_says_what_the_decision_says(ctx: Context) -> None:
    here = ctx.project_id
    there = ctx.db.scalars(select(Instance.project_id).where(Instance.project_id != here)).first()
    permissions, projects = ctx.registry.permissions, {"HERE": here, "THERE": there}
    instances, images, jobs = (ctx.db.scalars(select(model)).all() for model in (Instance, Image, Job))
    compared = {True: 0, False: 0}

    @settings(max_examples=120, deadline=None, derandomize=True, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(
        given=st.lists(st.tuples(statements(permissions, projects), st.sampled_from((None, "HERE", "THERE"))), max_size=3),
        role=st.sampled_from((None, *ROLES)),
        boundary=st.none() | st.tuples(statements(permissions, projects), st.sampled_from((None, "HERE"))),
        mfa=st.booleans(),
    )
    def agree(given: Any, role: str | None, boundary: Any, mfa: bool) -> None:
        grants = [Grant(f"pol-{number}", projects.get(scope), statements=each) for number, (each, scope) in enumerate(given)]
        grants += [Grant(role, here)] if role else []
        limits = (Limit("boundary", boundary[0], projects.get(boundary[1])),) if boundary else ()
        ctx.principal = replace(ctx.principal, grants=tuple(grants), limits=limits, mfa=mfa)
        for action in ("compute.instance.read", "compute.instance.start", "compute.image.read", "core.job.read"):
            rows, model = {"instance": (instances, Instance), "image": (images, Image), "job": (jobs, Job)}[action.split(".")[1]]
            covered = reach(ctx, action)
            where = covered.where(Columns(Job.project_id, Job.user_id)) if model is Job else covered.rows(model)
            found = set(ctx.db.scalars(select(model.id).where(where)))
            for row in rows:
                target = Target(row.project_id, row.user_id) if model is Job else target_of(row)
                allowed = decide(ctx, action, target).allowed
                assert (row.id in found) is allowed, (action, row.id, grants, limits, trace(ctx, action, target))
                compared[allowed] += 1
                if covered.everything or (row.project_id is not None and covered.whole(row.project_id)):
                    assert allowed

    agree()
    assert min(compared.values()) > 5000


def names(ctx: Context, statements: list[Statement]) -> set[str]:
    """Names of the instances that statements let one read, which each decision confirms."""
    whole = replace(ctx.principal, grants=(Grant("pol", ctx.project_id, statements=tuple(statements)),), limits=(), access=None)
    ctx.principal = replace(whole, access=compiled(whole))
    return confirmed(ctx)


def confirmed(ctx: Context) -> set[str]:
    """The same for whoever asks now."""
    rows = ctx.db.scalars(select(Instance)).all()
    found = set(ctx.db.scalars(select(Instance.id).where(reach(ctx, "compute.instance.read").rows(Instance))))
    assert found == {row.id for row in rows if decide(ctx, "compute.instance.read", target_of(row)).allowed}
    return {row.name for row in rows if row.id in found}


def several(count: int, *conditions: Condition, allows: bool = True) -> list[Statement]:
    """Statements that differ in the number which stands for N alone."""
    return [
        Statement(f"S{n}", allows, ("*",), (), tuple(replace(each, values=tuple(v.replace("N", str(n)) for v in each.values)) for each in conditions))
        for n in range(count)
    ]  # fmt: skip


@pytest.mark.parametrize("conditions", [
    (Condition("StringEquals", "resource.name", ("web-N",)),),
    (Condition("StringLike", "resource.name", ("?eb-N*",)),),
    (Condition("StringEquals", "resource.name", ("web-N",)), Condition("StringNotEquals", "resource.tag/env", ("xN",))),
    (Condition("StringEquals", "resource.name", ("web-N",)), Condition("Null", "resource.tag/tN", ("true",))),
], ids=["one", "pattern", "two", "keys"])  # fmt: skip
def test_a_list_can_be_filtered_by_very_many_statements(ctx: Context, conditions: tuple[Condition, ...]) -> None:
    """SQLite refuses an expression that is deeper than 1,000."""
    assert names(ctx, several(1200, *conditions)) == {"web-1", "web-2"}
    everything = Statement("All", True, ("*",))
    tagged = [
        Statement(f"T{n}", True, ("*",), (), (Condition("StringEquals", f"resource.tag/{'env' if n == 7 else n}", ("prod", "test")),))
        for n in range(1200)
    ]
    assert names(ctx, tagged) == set(NAMES[:4])
    assert names(ctx, [everything, *several(1200, *conditions, allows=False)]) == {"db_1", "a[b]c"}


def test_what_is_kept_of_a_filter_is_for_the_same_question_only(ctx: Context) -> None:
    inside = Condition("IpAddress", "request.ip", ("10.0.0.0/8",))
    own = Condition("StringEquals", "resource.name", ("${principal.name}",))
    statements = [
        Statement("In", True, ("*",), (), (inside, Condition("StringEquals", "resource.name", ("web-1",)))),
        Statement("Own", True, ("*",), (), (own,)),
    ]
    ctx.principal = replace(ctx.principal, username="db_1")
    assert names(ctx, statements) == {"web-1", "db_1"}
    kept = reach(ctx, "compute.instance.read").rules
    assert kept is not None
    assert kept.where(Instance.facts(), Asked(ip="10.1.1.1")) is kept.where(Instance.facts(), Asked(ip="10.1.1.2"))
    for _ in range(2):
        ctx.source_ip = "10.1.1.1"
        assert confirmed(ctx) == {"web-1", "db_1"}
        ctx.source_ip = "11.1.1.1"
        assert confirmed(ctx) == {"db_1"}
        ctx.principal = replace(ctx.principal, username="web-2")
        assert confirmed(ctx) == {"web-2"}
        ctx.principal = replace(ctx.principal, username="db_1")
