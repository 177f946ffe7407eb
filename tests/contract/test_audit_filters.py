"""Filters of the audit log: each finds what it names, through an index, for whoever may read it; pages are walked by key."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from flask.testing import FlaskClient
from sqlalchemy import text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session, sessionmaker

from portal.compute.key_pairs import key_pair_create
from portal.kernel.audit import Subject, record
from portal.kernel.audit_query import AuditQuery, audit_entries, page_statement
from portal.kernel.context import Context
from portal.kernel.db import now, transaction
from portal.kernel.operations import run
from tests.support.people import People
from tests.support.web import Api

SPANS = {"since": {"since": datetime(2026, 1, 1, tzinfo=UTC)}, "until": {"until": datetime(2100, 1, 1, tzinfo=UTC)}}
FILTERS: dict[str, dict[str, Any]] = {
    name: {name: "x-1"}
    for name in ("user_id", "username", "credential", "resource_type", "resource_id", "status", "source_ip", "project_id", "request_id", "search")
}
FILTERS |= {
    "action": {"action": "test.thing.do"},
    "action prefix": {"action": "test.*"},
    **SPANS,
    "both ends": SPANS["since"] | SPANS["until"],
    "nothing": {},
}
FILTERS |= {"person and action": {"user_id": "x-1", "action": "test.thing.do"}, "newer": {"after_seq": 3}}
FILTERS |= {"deep": {"before_seq": 3}, "person and outcome": {"username": "x-1", "status": "denied"}}


def write(ctx: Context, *, verb: str = "do", name: str = "x", status: str = "success") -> None:
    with transaction(ctx.db):
        record(ctx, f"test.thing.{verb}", Subject("test.thing", f"t-{name}", name, ctx.project_id), status=status)


def plan(ctx: Context, query: AuditQuery) -> list[str]:
    """How the database would find a page, a line per step."""
    is_postgresql = ctx.db.get_bind().dialect.name == "postgresql"
    dialect = postgresql.dialect() if is_postgresql else sqlite.dialect()  # type: ignore[no-untyped-call]
    statement = page_statement(ctx, query, 51).compile(dialect=dialect, compile_kwargs={"literal_binds": True})
    sql = str(statement).replace("%%", "%")
    if is_postgresql:
        # A handful of rows is read whole; what counts is what it does where that is dear.
        ctx.db.execute(text("SET LOCAL enable_seqscan = off"))
    prefix = "EXPLAIN" if is_postgresql else "EXPLAIN QUERY PLAN"
    rows = ctx.db.connection().exec_driver_sql(f"{prefix} {sql.replace(chr(37), chr(37) * 2) if is_postgresql else sql}").all()
    return [str(row[-1]) for row in rows]


@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize("role", ["platform_admin", "project_admin", "viewer"])
def test_no_filter_reads_the_whole_table(people: People, name: str, role: str) -> None:
    ctx = people.context(people.user(role))
    for number in range(5):
        write(ctx, name=f"x-{number}")
    lines = plan(ctx, AuditQuery(**FILTERS[name]))
    scans = [line for line in lines if "Seq Scan on audit_entries" in line or ("SCAN audit_entries" in line and "INDEX" not in line)]
    assert scans == []
    if name != "nothing" and role == "platform_admin":
        assert any("SEARCH audit_entries" in line or "Index" in line for line in lines), lines


def test_each_filter_finds_what_it_names(people: People) -> None:
    one, two = people.context(people.user("developer")), people.context(people.user("developer"))
    one.source_ip, two.source_ip = "192.0.2.7", "2001:db8::7"
    write(one, name="web")
    write(two, verb="undo", name="db", status="denied")
    boss = people.context(people.user("auditor"))
    first, second = ({"user_id": c.principal.user_id, "username": c.principal.username, "request_id": c.request_id, "source_ip": c.source_ip}
                     for c in (one, two))  # fmt: skip
    first |= {"resource_id": "t-web", "action": "test.thing.do", "status": "success", "search": "web"}
    second |= {"resource_id": "t-db", "action": "test.thing.un*", "status": "denied", "search": "UNDO"}
    for wanted, values in (("web", first), ("db", second)):
        for name, value in values.items():
            assert [entry.resource_name for entry in audit_entries(boss, AuditQuery(**{name: value})).entries] == [wanted], name
        assert len(audit_entries(boss, AuditQuery(**values)).entries) == 1
    assert len(audit_entries(boss, AuditQuery(credential="session:test", resource_type="test.thing", project_id=one.project_id or "")).entries) == 2
    assert audit_entries(boss, AuditQuery(status="denied", resource_id="t-web")).entries == []


def test_pages_of_a_merged_walk_leave_nothing_out(people: People) -> None:
    boss = people.context(people.user("auditor"))
    admin = people.context(people.user("project_admin"))
    there = people.project()
    elsewhere = people.context(people.user("developer", there), there)
    for number in range(24):
        write([admin, elsewhere, boss][number % 3], verb=["do", "undo", "see"][number % 2], name=f"n-{number}")
    for reader, expected in ((boss, 24), (admin, 16)):
        for query in (AuditQuery(limit=5), AuditQuery(limit=5, action="test.*"), AuditQuery(limit=5, search="test.thing")):
            found, before = [], None
            while True:
                page = audit_entries(reader, AuditQuery(limit=5, action=query.action, search=query.search, before_seq=before))
                found += [entry.seq for entry in page.entries]
                before = page.next_before_seq
                if before is None:
                    break
            assert found == sorted(set(found), reverse=True)
            assert len(found) == expected


def test_a_span_of_time_holds_where_clocks_differ(people: People, database: sessionmaker[Session]) -> None:
    """Hosts number entries in the order of writing; their clocks may be minutes apart."""
    boss, moment = people.context(people.user("auditor")), now() - timedelta(days=1)
    for number in range(6):
        write(boss, name=f"n-{number}")
    with database() as session, transaction(session):
        for seq, minutes in ((1, 0), (2, 4), (3, 1), (4, 5), (5, 2), (6, 3)):
            session.execute(
                text("UPDATE audit_entries SET timestamp = :at WHERE seq = :seq"), {"at": moment + timedelta(minutes=minutes), "seq": seq}
            )

    def between(since: int, until: int) -> set[int]:
        query = AuditQuery(since=moment + timedelta(minutes=since), until=moment + timedelta(minutes=until))
        return {entry.seq for entry in audit_entries(boss, query).entries}

    assert [between(0, 2), between(2, 4), between(4, 9), between(6, 9), between(-9, 0)] == [{1, 3}, {5, 6}, {2, 4}, set(), set()]


def test_the_api_takes_the_same_filters(api_for: Callable[..., Api], people: People) -> None:
    api, me = api_for("auditor"), people.context(people.user("developer"))
    write(me, name="web", status="denied")
    run(people.context(people.user("project_admin")), key_pair_create, None, {"name": "k"})
    log = "/security/audit-logs"
    for question in (
        f"user={me.principal.username}",
        "status=denied",
        "action=test.*",
        f"request_id={me.request_id}",
        "search=web",
        "resource_id=t-web",
    ):
        assert [entry["resource_name"] for entry in api.get(f"{log}?{question}").json["results"]] == ["web"], question
    entry = api.get(f"{log}?status=denied").json["results"][0]
    assert api.get(f"{log}/{entry['log_id']}").json == entry
    assert entry["credential"] == "session:test"
    made = api.get(f"{log}?action=compute.key_pair.create").json["results"][0]
    assert made["details"]["decision"] == {"policy": "project_admin", "statement": "AllInProject"}
    for wrong in ("since=yesterday", "cursor=x", "page=2", "colour=red", f"search={'x' * 256}"):
        assert api.get(f"{log}?{wrong}").status_code == 400, wrong
    assert api_for("viewer").get(f"{log}/{entry['log_id']}").status_code == 404
    first = api.get(f"{log}?limit=1").json
    assert api.get(first["next"].removeprefix("http://localhost")).json["results"][0]["seq"] == first["results"][0]["seq"] - 1


def test_filters_that_can_find_nothing_are_refused(api_for: Callable[..., Api]) -> None:
    api = api_for("auditor")
    for wrong, name in (("status=ok", "status"), ("since=2026-02-01&until=2026-01-01", "until")):
        answer = api.get(f"/security/audit-logs?{wrong}")
        assert (answer.status_code, name in answer.text) == (400, True), answer.text
    assert api.get("/security/audit-logs?status=denied&since=2026-01-01&until=2026-02-01").status_code == 200


def test_an_entry_is_opened_on_the_page_with_ways_to_what_belongs_to_it(client_for: Callable[..., FlaskClient], people: People) -> None:
    me = people.context(people.user("developer"))
    with transaction(me.db):
        changes = {"before": {"size": 1, "tags": {"a": "x"}, "same": 2}, "after": {"size": 3, "tags": {"a": "<b>"}, "same": 2}}
        entry = record(me, "test.thing.do", Subject("test.thing", "t-1", "web", me.project_id), details=changes)
    page = client_for("auditor").get(f"/audit?action=test.*&open={entry.log_id}").text
    for wanted in (f"/audit?resource_id={'t-1'}", f"/audit?user_id={me.principal.user_id}", "/audit?credential=session%3Atest", "tags.a", "&lt;b&gt;",
                   entry.entry_hash, entry.previous_hash, "Show full JSON", 'aria-expanded="true"'):  # fmt: skip
        assert wanted in page, wanted
    assert '<th scope="row">same</th>' not in page
    assert entry.entry_hash not in client_for("auditor").get("/audit").text
