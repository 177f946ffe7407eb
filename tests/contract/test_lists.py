"""Lists: every row once, whatever happens meanwhile; nothing in a URL makes more than a refusal."""

import base64
import json
import math
import random
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session, sessionmaker

from portal.compute.flavors import FLAVOR, Flavor
from portal.compute.images import IMAGE, Image
from portal.compute.instances import INSTANCE, Instance
from portal.compute.key_pairs import KEY_PAIR, KeyPair, key_pair_create, key_pair_delete
from portal.kernel import tags
from portal.kernel.context import Context
from portal.kernel.db import now, transaction
from portal.kernel.errors import InvalidRequest
from portal.kernel.lookup import COUNT_LIMIT, ListQuery, Page, list_rows
from portal.kernel.operations import run
from portal.kernel.resource import Registry, ResourceType
from portal.kernel.search import search
from tests.support.people import People
from tests.support.scenarios import TINY, Stage, running_instance

MOMENT = datetime(2026, 1, 1, 12, 0, tzinfo=UTC)


def add_pairs(sessions: sessionmaker[Session], project_id: str, names: list[str], *, moments: list[datetime] | None = None) -> list[str]:
    with sessions() as session, transaction(session):
        for number, name in enumerate(names):
            made = (moments or [])[number] if moments else MOMENT + timedelta(seconds=number)
            session.add(KeyPair(id=f"kp-{number:04}", name=name, project_id=project_id, created_at=made, updated_at=made))
    return [f"kp-{number:04}" for number in range(len(names))]


def walk(ctx: Context, rtype: ResourceType, query: ListQuery) -> list[str]:
    found, cursor, pages = [], "", 0
    while True:
        page = list_rows(ctx, rtype, ListQuery(**{**as_dict(query), "cursor": cursor}))
        found += [row.id for row in page.rows]
        cursor, pages = page.next_cursor, pages + 1
        if not cursor:
            return found
        assert pages < 500


def as_dict(query: ListQuery) -> dict[str, Any]:
    return {name: getattr(query, name) for name in ListQuery.__dataclass_fields__}


def walk_back(ctx: Context, rtype: ResourceType, query: ListQuery) -> list[str]:
    page = list_rows(ctx, rtype, query)
    while page.next_cursor:
        page = list_rows(ctx, rtype, ListQuery(**{**as_dict(query), "cursor": page.next_cursor}))
    found = [row.id for row in page.rows]
    while page.previous_cursor:
        page = list_rows(ctx, rtype, ListQuery(**{**as_dict(query), "cursor": page.previous_cursor}))
        found = [row.id for row in page.rows] + found
    return found


@pytest.mark.parametrize("order", ["name", "-name", "created_at", "-created_at", "updated_at"])
@pytest.mark.parametrize("limit", [1, 3, 7, 50])
def test_a_walk_visits_every_row_once_also_with_equal_values(ctx: Context, database: sessionmaker[Session], order: str, limit: int) -> None:
    same = [MOMENT + timedelta(microseconds=number // 5) for number in range(23)]
    made = add_pairs(database, ctx.project_id or "", [f"k{number % 23:02}" for number in range(23)], moments=same)
    query = ListQuery(order=order, limit=limit)
    forwards = walk(ctx, KEY_PAIR, query)
    assert sorted(forwards) == sorted(made)
    assert walk_back(ctx, KEY_PAIR, query) == forwards
    with database() as session:
        column = getattr(KeyPair, order.removeprefix("-"))
        keys = (column.desc(), KeyPair.id.desc()) if order.startswith("-") else (column, KeyPair.id)
        assert forwards == list(session.scalars(select(KeyPair.id).order_by(*keys)))


@pytest.mark.parametrize("order", ["vcpus", "-vcpus", "hourly_cost_usd", "-hourly_cost_usd", "memory_mb", "name"])
def test_numbers_sort_as_numbers(ctx: Context, order: str) -> None:
    found = walk(ctx, FLAVOR, ListQuery(order=order, limit=2))
    rows = {row.id: row for row in list_rows(ctx, FLAVOR, ListQuery(limit=100)).rows}
    values = [getattr(rows[row_id], order.removeprefix("-")) for row_id in found]
    assert values == sorted(values, reverse=order.startswith("-"))
    assert sorted(found) == sorted(rows)


def test_a_walk_is_steady_while_others_add_and_delete(ctx: Context, database: sessionmaker[Session]) -> None:
    """What is there from beginning to end is visited once; what comes or goes is visited at most once."""
    chance = random.Random(7)  # noqa: S311 - the same rows in every run
    made = add_pairs(database, ctx.project_id or "", [f"k{number:03}" for number in range(60)])
    deleted, added, found, cursor = set(), 0, [], ""
    while True:
        page = list_rows(ctx, KEY_PAIR, ListQuery(order="name", limit=7, cursor=cursor))
        found += [row.id for row in page.rows]
        if not page.next_cursor:
            break
        cursor = page.next_cursor
        with database() as session, transaction(session):
            for victim in chance.sample([row_id for row_id in made if row_id not in deleted], 2):
                session.execute(update(KeyPair).where(KeyPair.id == victim).values(deleted_at=now()))
                deleted.add(victim)
            session.add(KeyPair(id=f"kp-new{added}", name=f"k{chance.randrange(60):03}x{added}", project_id=ctx.project_id))
            added += 1
        ctx.db.rollback()
    assert len(found) == len(set(found))
    assert set(made) - deleted <= set(found)


def test_the_row_that_a_cursor_names_may_be_gone(ctx: Context, database: sessionmaker[Session]) -> None:
    add_pairs(database, ctx.project_id or "", ["a", "b", "c", "d"])
    page = list_rows(ctx, KEY_PAIR, ListQuery(order="name", limit=2))
    with database() as session, transaction(session):
        session.execute(update(KeyPair).where(KeyPair.name == "b").values(deleted_at=now()))
    ctx.db.rollback()
    assert [row.name for row in list_rows(ctx, KEY_PAIR, ListQuery(order="name", limit=2, cursor=page.next_cursor)).rows] == ["c", "d"]


def test_pages_know_whether_there_are_others(ctx: Context, database: sessionmaker[Session]) -> None:
    add_pairs(database, ctx.project_id or "", ["a", "b", "c", "d"])

    def page(cursor: str = "", offset: int = 0) -> Page:
        return list_rows(ctx, KEY_PAIR, ListQuery(order="name", limit=2, cursor=cursor, offset=offset))

    first = page()
    assert ([row.name for row in first.rows], bool(first.previous_cursor), bool(first.next_cursor)) == (["a", "b"], False, True)
    second = page(first.next_cursor)
    assert ([row.name for row in second.rows], bool(second.previous_cursor), bool(second.next_cursor)) == (["c", "d"], True, False)
    back = page(second.previous_cursor)
    assert ([row.name for row in back.rows], bool(back.previous_cursor), bool(back.next_cursor)) == (["a", "b"], False, True)
    jumped = page(offset=1)
    assert ([row.name for row in jumped.rows], bool(jumped.previous_cursor), bool(jumped.next_cursor)) == (["b", "c"], True, True)
    beyond = page(offset=100)
    assert (list(beyond.rows), beyond.next_cursor, beyond.previous_cursor) == ([], "", "")


# -- cursors -------------------------------------------------------------------------------------------------------------------------------


def cursor_of(content: object, *, pad: bool = False) -> str:
    text = base64.urlsafe_b64encode(json.dumps(content).encode()).decode()
    return text if pad else text.rstrip("=")


TAMPERED: list[str | list[Any]] = [
    "x", "====", "%%%", "é", "\x00", "A" * 100_000, "bnVsbA", cursor_of([]), cursor_of({}), cursor_of(None), cursor_of("text"), cursor_of(5),
    ["ORDER"], ["ORDER", "a", "b"], ["ORDER", "a", "b", "c"], ["ORDER", "a", "b", 1],
    ["ORDER", "a", 5, False], ["ORDER", None, "b", False], ["ORDER", [], "b", False],
    ["ORDER", {"a": 1}, "b", False], ["ORDER", True, "b", False], ["ORDER", math.nan, "b", False],
    ["ORDER", math.inf, "b", False], ["ORDER", 10**40, "b", False], ["ORDER", -(10**40), "b", False],
    ["ORDER", 2**63 - 1, "b", False], ["ORDER", 2**40, "b", True], ["ORDER", -(2**62), "b", False],
    ["ORDER", 1e308, "b", False], ["ORDER", "nul\x00", "b", False], ["ORDER", "a", "nul\x00", False],
    ["ORDER", "x" * 10_000, "b", False], ["ORDER", "\ud800", "b", False], ["ORDER", "a", "\ud800", False],
    ["ORDER", "0001-01-01T00:00:00+23:59", "b", False], ["ORDER", "9999-12-31T23:59:59-23:59", "b", True],
    ["ORDER", "2026-01-01T00:00:00", "b", False], ["ORDER", "2026-13-45", "b", False], ["ORDER", "infinity", "b", False],
    ["other", "a", "b", False], ["ORDER", "a", "b", False, "more"], ["ORDER", "%", "_", False],
]  # fmt: skip


@pytest.mark.parametrize(
    ("rtype", "order"),
    [(INSTANCE, "name"), (INSTANCE, "-created_at"), (INSTANCE, "state"), (FLAVOR, "vcpus"), (FLAVOR, "-hourly_cost_usd"), (FLAVOR, "disk_gb")],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
def test_a_cursor_that_nobody_gave_is_refused_or_a_place(ctx: Context, rtype: ResourceType, order: str) -> None:
    """Whoever writes one of their own gets a refusal or rows that they may see anyway, never a failure of the portal."""
    for content in TAMPERED:
        made = content if isinstance(content, str) else cursor_of([order if part == "ORDER" else part for part in content])
        try:
            page = list_rows(ctx, rtype, ListQuery(order=order, cursor=made))
        except InvalidRequest as refused:
            assert list(refused.details) == ["cursor"]  # noqa: PT017 - a refusal or a page, both are right
        else:
            assert len(page.rows) <= 20
            assert not isinstance(content, str)
            assert len(content) == 4
        ctx.db.rollback()


def test_a_cursor_of_another_order_is_refused(ctx: Context, database: sessionmaker[Session]) -> None:
    add_pairs(database, ctx.project_id or "", ["a", "b", "c"])
    cursor = list_rows(ctx, KEY_PAIR, ListQuery(order="name", limit=1)).next_cursor
    for order in ("-name", "created_at", ""):
        with pytest.raises(InvalidRequest):
            list_rows(ctx, KEY_PAIR, ListQuery(order=order, limit=1, cursor=cursor))


def test_a_cursor_of_another_project_shows_nothing_of_it(ctx: Context, people: People, database: sessionmaker[Session]) -> None:
    add_pairs(database, ctx.project_id or "", ["a", "b", "c"])
    cursor = list_rows(ctx, KEY_PAIR, ListQuery(order="name", limit=1)).next_cursor
    elsewhere = people.project()
    other = people.context(people.user("developer", elsewhere), elsewhere)
    assert list_rows(other, KEY_PAIR, ListQuery(order="name", limit=1, cursor=cursor)).rows == []


# -- filters -------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["id", "user_data", "flavor", "", "--name", "name; DROP TABLE", "__class__", "x" * 5000, "desired_power", "\x00"])
def test_only_sortable_fields_sort(ctx: Context, order: str) -> None:
    if order == "":
        assert list_rows(ctx, INSTANCE, ListQuery(order=order)).order == "-created_at"
        return
    with pytest.raises(InvalidRequest) as refused:
        list_rows(ctx, INSTANCE, ListQuery(order=order))
    assert "created_at" in refused.value.message
    assert len(refused.value.message) < 300


@pytest.mark.parametrize("name", ["owner_id", "user_data", "__table__", "metadata", "id", "desired_power", ""])
def test_only_filterable_fields_filter(ctx: Context, name: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        list_rows(ctx, INSTANCE, ListQuery(filters={name: ["x"]}))
    assert "flavor_id" in refused.value.message


@pytest.mark.parametrize(
    "value", ["", "one", "1.5", "--1", "-", "²", "٣", "1e3", "0x10", " 1", "9" * 18, "9" * 400, "99999999999", "-99999999999", "0", "257", "\x00"]
)
def test_a_number_that_is_none_is_refused(ctx: Context, value: str) -> None:
    if value == "\x00":
        assert list_rows(ctx, FLAVOR, ListQuery(filters={"vcpus": [value]})).rows == []
        return
    with pytest.raises(InvalidRequest, match="whole number"):
        list_rows(ctx, FLAVOR, ListQuery(filters={"vcpus": [value]}))


def test_filters_take_several_values(ctx: Context) -> None:
    assert {row.vcpus for row in list_rows(ctx, FLAVOR, ListQuery(filters={"vcpus": ["1", "8"]}, limit=100)).rows} == {1, 8}
    for text in ("true", "TRUE", "1"):
        assert len(list_rows(ctx, FLAVOR, ListQuery(filters={"is_active": [text]}, limit=100)).rows) == 13
    assert list_rows(ctx, FLAVOR, ListQuery(filters={"is_active": ["false"]})).rows == []
    assert list_rows(ctx, FLAVOR, ListQuery(filters={"is_active": []})).rows == []
    with pytest.raises(InvalidRequest, match="true or false"):
        list_rows(ctx, FLAVOR, ListQuery(filters={"is_active": ["maybe"]}))
    with pytest.raises(InvalidRequest, match="linux"):
        list_rows(ctx, IMAGE, ListQuery(filters={"os_type": ["beos"]}))


def test_odd_text_finds_nothing(ctx: Context) -> None:
    for text in ("\x00", "a\x00b", "\ud800"):
        assert list_rows(ctx, INSTANCE, ListQuery(filters={"state": [text]})).rows == []
        assert list_rows(ctx, INSTANCE, ListQuery(tags=[(text, "")])).rows == []
        assert list_rows(ctx, INSTANCE, ListQuery(tags=[("a", text)])).rows == []
        assert list_rows(ctx, INSTANCE, ListQuery(search=text)).rows == []
        assert search(ctx, f"a{text}") == []


def test_gone_rows_show_only_where_their_state_is_asked_for(stage: Stage) -> None:
    gone, there = running_instance(stage), running_instance(stage)
    stage.do(stage.ctx.registry.operation("compute.instance.terminate"), gone.id)

    def found(*states: str) -> set[str]:
        stage.ctx.db.rollback()
        return {row.id for row in list_rows(stage.ctx, INSTANCE, ListQuery(filters={"state": states} if states else {})).rows}

    assert found() == {there.id}
    assert found("terminated") == {gone.id}
    assert found("terminated", "running") == {gone.id, there.id}
    assert found("running") == {there.id}
    with pytest.raises(InvalidRequest, match="must be one of cancelled, error, pending"):
        found("nonesuch")


def test_tags_filter_by_key_and_by_key_and_value(ctx: Context, database: sessionmaker[Session]) -> None:
    for name, given in (("a", {"env": "prod", "team": "red"}), ("b", {"env": "test"}), ("c", {"team": "red", "env": "prod%"}), ("d", {})):
        run(ctx, key_pair_create, None, {"name": name, "tags": given})

    def found(*pairs: tuple[str, str]) -> list[str]:
        return [row.name for row in list_rows(ctx, KEY_PAIR, ListQuery(tags=pairs, order="name")).rows]

    assert found(("env", "")) == ["a", "b", "c"]
    assert found(("env", "prod")) == ["a"]
    assert found(("env", "prod%")) == ["c"]
    assert found(("env", "prod"), ("team", "red")) == ["a"]
    assert found(("env", "prod"), ("team", "blue")) == []
    assert found(("ENV", "")) == []
    run(ctx, key_pair_delete, list_rows(ctx, KEY_PAIR, ListQuery(tags=[("env", "prod")])).rows[0].id)
    assert found(("env", "prod")) == []
    with database() as session:
        # As long as its record: policies go on speaking of it.
        assert session.scalar(select(func.count()).select_from(tags.ResourceTag).where(tags.ResourceTag.key == "env")) == 3


# -- search --------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("50%", ["50% off"]), ("%", ["50% off"]), ("_", ["under_score"]), ("\\", ["back\\slash"]), ("r_s", ["under_score"]), ("UNDER", ["under_score"]),
        ("Ärger", ["Ärger"]), ("ärger", ["Ärger"]), ("ÄRGER", ["Ärger"]), ("москва", ["Москва"]), ("'", ["o'brien"]), ('"', []), ("kp-000", None),
    ],
)  # fmt: skip
def test_search_takes_text_literally_and_knows_all_letters(ctx: Context, database: sessionmaker[Session], text: str, names: list[str] | None) -> None:
    every = ["50% off", "under_score", "back\\slash", "Ärger", "Москва", "o'brien"]
    add_pairs(database, ctx.project_id or "", every)
    found = [row.name for row in list_rows(ctx, KEY_PAIR, ListQuery(search=text, limit=100)).rows]
    assert sorted(found) == sorted(every if names is None else names)


def test_the_search_finds_what_begins_with_the_text_first(ctx: Context, people: People, database: sessionmaker[Session]) -> None:
    add_pairs(database, ctx.project_id or "", ["a web", "web two", "Web one", "x"])
    assert [hit.name for hit in search(ctx, " web ")] == ["Web one", "web two", "a web"]
    assert [hit.name for hit in search(ctx, "web", limit=1)] == ["Web one"]
    assert search(ctx, "  ") == []
    hit = search(ctx, "Web one")[0]
    assert (hit.type_key, hit.service, hit.collection, hit.project_id, hit.state) == ("compute.key_pair", "compute", "key-pairs", ctx.project_id, "")
    elsewhere = people.project()
    assert [hit.type_key for hit in search(people.context(people.user("developer", elsewhere), elsewhere), "web")] == []
    assert [hit.name for hit in search(people.context(people.user("auditor"), elsewhere), "web two")] == ["web two"]


# -- counts --------------------------------------------------------------------------------------------------------------------------------


def test_counts_are_exact_and_bounded(ctx: Context, database: sessionmaker[Session]) -> None:
    for name in ("one", "two", "three"):
        run(ctx, key_pair_create, None, {"name": name})
    page = list_rows(ctx, KEY_PAIR, ListQuery(limit=1))
    assert (page.count, page.more_than_counted) == (3, False)
    assert list_rows(ctx, KEY_PAIR, ListQuery(search="two")).count == 1
    run(ctx, key_pair_delete, page.rows[0].id)
    assert list_rows(ctx, KEY_PAIR, ListQuery()).count == 2
    add_pairs(database, ctx.project_id or "", [f"many-{number}" for number in range(COUNT_LIMIT + 1)])
    ctx.db.rollback()
    many = list_rows(ctx, KEY_PAIR, ListQuery(search="many-"))
    assert (many.count, many.more_than_counted) == (COUNT_LIMIT, True)


def test_a_stranger_does_not_even_learn_how_many(people: People, ctx: Context) -> None:
    run(ctx, key_pair_create, None, {"name": "a"})
    stranger = people.context(people.user(""))
    assert stranger.project_id == ctx.project_id
    page = list_rows(stranger, KEY_PAIR, ListQuery())
    assert (list(page.rows), page.count) == ([], 0)


def test_another_project_only_where_it_is_asked_for(people: People, database: sessionmaker[Session], ctx: Context) -> None:
    elsewhere = people.project()
    add_pairs(database, ctx.project_id or "", ["here"])
    with database() as session, transaction(session):
        session.add(KeyPair(id="kp-there", name="there", project_id=elsewhere))
        session.add(Image(id="ami-hidden", name="hidden", project_id=elsewhere, state="available"))
        session.add(Image(id="ami-open", name="open", project_id=elsewhere, state="available", is_public=True))
    boss = people.context(people.user("platform_admin"))
    assert [row.name for row in list_rows(boss, KEY_PAIR, ListQuery()).rows] == ["here"]
    assert {row.name for row in list_rows(boss, KEY_PAIR, ListQuery(all_projects=True)).rows} == {"here", "there"}
    images = {row.id for row in list_rows(ctx, IMAGE, ListQuery(all_projects=True)).rows}
    assert images == {TINY, "ami-ubuntu2204", "ami-debian12", "ami-open"}
    assert "ami-hidden" not in {row.id for row in list_rows(boss, IMAGE, ListQuery()).rows}
    assert "ami-hidden" in {row.id for row in list_rows(boss, IMAGE, ListQuery(all_projects=True)).rows}


def test_moments_at_the_ends_of_the_calendar_can_be_asked_for(database: sessionmaker[Session]) -> None:
    early = datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=14)))
    late = datetime(9999, 12, 31, 23, 59, tzinfo=timezone(-timedelta(hours=12)))
    with database() as session:
        assert session.scalar(select(func.count()).select_from(Flavor).where(Flavor.created_at.between(early, late))) == 13
        assert session.scalar(select(func.count()).select_from(Instance).where(Instance.created_at > late)) == 0


def test_the_cost_of_a_page_does_not_depend_on_its_rows(ctx: Context, database: sessionmaker[Session], registry: Registry) -> None:
    from sqlalchemy import event

    counted: list[str] = []
    engine = database.kw["bind"]
    event.listen(engine, "before_cursor_execute", lambda _c, _u, statement, *_r: counted.append(statement))
    costs = []
    for number in (2, 40):
        with database() as session, transaction(session):
            session.execute(update(Instance).values(deleted_at=now()))
            session.add_all(
                Instance(
                    id=f"i-{number}-{n}",
                    name=f"i{number}-{n}",
                    project_id=ctx.project_id,
                    flavor_id="t3-micro",
                    image_id=TINY,
                    root_volume_size_gb=1,
                    state="running",
                )
                for n in range(number)
            )
        ctx.db.rollback()
        ctx.db.expunge_all()
        counted.clear()
        rows = list_rows(ctx, registry.of(Instance), ListQuery(limit=100)).rows
        assert all(row.flavor.name and row.image.name for row in rows)
        assert len(rows) == number
        costs.append(len([statement for statement in counted if statement.startswith("SELECT")]))
    assert costs[0] == costs[1]
