"""The audit log: complete, append-only, provable, without secrets, read by those who may."""

import json
import math
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session, sessionmaker

from portal.compute.flavors import flavor_create
from portal.compute.images import IMAGE
from portal.compute.instances import INSTANCE, instance_create, instance_start, instance_stop
from portal.compute.key_pairs import key_pair_create, key_pair_delete
from portal.kernel.activity import (
    JobsQuery,
    activity_of,
    events_after,
    jobs_counts,
    jobs_page,
    recent,
)
from portal.kernel.audit import AuditEntry, AuditHead, Subject, masked, record
from portal.kernel.audit_query import AuditQuery, audit_count, audit_entries
from portal.kernel.audit_verify import verify
from portal.kernel.context import ANONYMOUS, Context
from portal.kernel.control import find_job
from portal.kernel.db import now, transaction
from portal.kernel.errors import Conflict, InvalidRequest, NotFound, PortalError
from portal.kernel.events import Event
from portal.kernel.jobs import Job
from portal.kernel.operations import run
from tests.support.people import People
from tests.support.racing import race
from tests.support.scenarios import TINY, Stage, running_instance, stored_image

MOMENT = datetime(2026, 1, 1, 12, 0, 0, 5, tzinfo=UTC)
CREATE = {"flavor": "t3-micro", "image": TINY}


def write(ctx: Context, number: int, **details: object) -> None:
    with transaction(ctx.db):
        record(ctx, "test.thing.do", Subject("test.thing", f"t-{number}", f"thing {number}", ctx.project_id), details={"number": number, **details})


# -- the chain -----------------------------------------------------------------------------------------------------------------------------


def set_column(name: str, value: object) -> Callable[[Session], None]:
    return lambda session: session.execute(update(AuditEntry).where(AuditEntry.seq == 3).values(**{name: value}))


def swap(session: Session) -> None:
    for old, new in ((3, 1000), (4, 3), (1000, 4)):
        session.execute(update(AuditEntry).where(AuditEntry.seq == old).values(seq=new))


def cut_tail(session: Session) -> None:
    session.execute(delete(AuditEntry).where(AuditEntry.seq > 4))


def rehash(session: Session) -> None:
    """Change an entry and make its own hash right again."""
    from portal.kernel.audit import digest

    entry = session.get_one(AuditEntry, 3)
    entry.username = "somebody else"
    entry.entry_hash = digest(entry)


TAMPERING: dict[str, tuple[Callable[[Session], object], int]] = {
    "edited details": (set_column("details", {"number": 99}), 3),
    "edited name": (set_column("username", "innocent"), 3),
    "edited outcome": (set_column("status", "success!"), 3),
    "edited time": (lambda s: s.execute(update(AuditEntry).where(AuditEntry.seq == 3).values(timestamp=now() - timedelta(days=1))), 3),
    "edited hash": (set_column("entry_hash", "0" * 64), 3),
    "edited and hashed anew": (rehash, 4),
    "removed": (lambda s: s.execute(delete(AuditEntry).where(AuditEntry.seq == 3)), 3),
    "removed first": (lambda s: s.execute(delete(AuditEntry).where(AuditEntry.seq == 1)), 1),
    "re-ordered": (swap, 3),
    "cut off": (cut_tail, 5),
    "all removed": (lambda s: s.execute(delete(AuditEntry)), 1),
    "head moved": (lambda s: s.execute(update(AuditHead).values(seq=2)), 7),
    "head gone": (lambda s: s.execute(delete(AuditHead)), 7),
}


@pytest.mark.parametrize("name", TAMPERING)
def test_what_was_tampered_with_is_named(ctx: Context, database: sessionmaker[Session], name: str) -> None:
    for number in range(6):
        write(ctx, number)
    change, seq = TAMPERING[name]
    with database() as session:
        assert verify(session).broken_seq is None
        with transaction(session):
            change(session)
        verdict = verify(session)
    assert (verdict.broken_seq, verdict.entries, bool(verdict.problem)) == (seq, seq - 1, True)


@pytest.mark.parametrize(
    "value",
    [
        0.1, 1.0, -0.0, 1e16, 1e-7, 123456789012345678901234567890, 1e308, math.nan, math.inf, "ä\u2028\U0001f600", "nul\x00", "\ud800", "\\u0000",
        {"b": 1, "a": {"z": None, "y": [1, {"x": True}]}}, [], {"": ""}, {"nul\x00": 1}, MOMENT, b"bytes", {1: 2},
    ],
    ids=repr,
)  # fmt: skip
def test_an_entry_reads_back_as_it_was_written(ctx: Context, database: sessionmaker[Session], value: object) -> None:
    """Whatever the details hold, no database may change it: the hash would be wrong for ever."""
    write(ctx, 1, value=value)
    with database() as session:
        assert verify(session).broken_seq is None
        assert json.dumps(session.scalars(select(AuditEntry.details)).one(), allow_nan=False)


def test_a_price_of_minus_zero_does_not_break_the_log(people: People, database: sessionmaker[Session]) -> None:
    boss = people.context(people.user("platform_admin"))
    data = {"flavor_id": "x1-tiny", "name": "x1.tiny", "vcpus": 1, "memory_mb": 512, "disk_gb": 1, "hourly_cost_usd": -0.0}
    run(boss, flavor_create, None, data)
    with database() as session:
        assert verify(session).broken_seq is None


@pytest.mark.parametrize("text", ["nul\x00 in it", "lone \ud800", "x" * 5000])
def test_what_was_asked_is_recorded_even_if_it_is_no_text(ctx: Context, database: sessionmaker[Session], text: str) -> None:
    odd = replace(ctx, user_agent=text)
    with transaction(ctx.db):
        record(odd, "test.thing.do", Subject("test.thing", text, text), status="failure", error=text, details={"said": text})
    with database() as session:
        assert verify(session).broken_seq is None
        entry = session.scalars(select(AuditEntry)).one()
        assert (len(entry.user_agent) <= 255, len(entry.error_message) <= 2000, len(entry.resource_id) <= 64, len(entry.resource_name) <= 255) == (
            True,
        ) * 4


def test_entries_of_many_at_once_are_one_chain(people: People, database: sessionmaker[Session]) -> None:
    contexts = [people.context(people.user("developer")) for _ in range(6)]

    def several(ctx: Context, first: int) -> None:
        for number in range(first, first + 8):
            write(ctx, number)

    assert race([lambda ctx=ctx, n=n: several(ctx, n * 100) for n, ctx in enumerate(contexts)]) == [None] * 6
    with database() as session:
        verdict = verify(session)
        assert (verdict.broken_seq, verdict.entries) == (None, 48)


def test_verifying_while_others_write_finds_nothing_wrong(people: People, database: sessionmaker[Session]) -> None:
    ctx, stop = people.context(people.user("developer")), threading.Event()
    write(ctx, 0)

    def go_on() -> int:
        number = 0
        while not stop.is_set() and number < 2000:
            number += 1
            write(ctx, number)
        return number

    def look() -> list[int | None]:
        try:
            with database() as session:
                return [verify(session).broken_seq for _ in range(15)]
        finally:
            stop.set()

    written, broken = race([go_on, look])
    assert broken == [None] * 15
    assert written > 0


def test_verifying_does_not_leave_its_isolation_behind(ctx: Context, database: sessionmaker[Session]) -> None:
    write(ctx, 1)
    with database() as session:
        assert verify(session).entries == 1
        write(ctx, 2)
        assert verify(session).entries == 2
        with transaction(session):
            record(replace(ctx, db=session), "test.thing.do", Subject("test.thing"))
    with database() as session:
        assert verify(session).entries == 3


def test_a_rolled_back_change_leaves_no_gap(ctx: Context, database: sessionmaker[Session]) -> None:
    write(ctx, 1)

    def fail() -> None:
        with transaction(ctx.db):
            record(ctx, "test.thing.do", Subject("test.thing"))
            raise OSError("no")

    with pytest.raises(OSError, match="no"):
        fail()
    write(ctx, 2)
    with database() as session:
        assert list(session.scalars(select(AuditEntry.seq).order_by(AuditEntry.seq))) == [1, 2]
        assert verify(session).broken_seq is None


# -- secrets -------------------------------------------------------------------------------------------------------------------------------


def test_secrets_are_masked_at_any_depth() -> None:
    plain = {
        "password": "p1", "new_password": "p2", "Password": "p3", "client_secret": "p4", "api_token": "p5", "private_key": "p6", "user_data": "p7",
        "nested": {"deep": [{"token": "p8"}, [{"secrets": ["p9", {"x": "p10"}]}]]}, "password_list": ["p11", 12345678],
        "token_object": {"value": "p12", "inner": {"more": "p13"}}, "pin_token": 987654,
    }  # fmt: skip
    shown = repr(masked(plain))
    assert [secret for secret in [f"'p{n}'" for n in range(1, 14)] if secret in shown] == []
    assert "12345678" not in shown
    assert "987654" not in shown


def test_what_is_no_secret_is_kept() -> None:
    plain = {"name": "web", "password": "", "token": None, "has_token": True, "public_key": "ssh-ed25519 AAAA", "count": 3, "price": 0.5}
    assert masked(plain) == plain


def test_user_data_is_in_no_entry_job_or_event(ctx: Context, database: sessionmaker[Session]) -> None:
    outcome = run(ctx, instance_create, None, {"name": "web", "user_data": "#!/bin/sh\nPLANTED-USER-DATA", **CREATE})
    with pytest.raises(Conflict):
        run(ctx, instance_create, None, {"name": "web", "user_data": "#!/bin/sh\nPLANTED-USER-DATA", **CREATE})
    with database() as session:
        kept = [*session.scalars(select(AuditEntry.details)), *session.scalars(select(Job.input)), *session.scalars(select(Event.payload))]
        assert "PLANTED" not in repr(kept)
        assert session.get_one(Job, outcome.job_id).input["user_data"] == "********"


# -- reading it ----------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def told(people: People) -> dict[str, Context]:
    """Entries of two projects, of the platform and of nobody."""
    there = people.project()
    made = {
        "here": people.context(people.user("project_admin")), "there": people.context(people.user("project_admin", there), there),
        "developer": people.context(people.user("developer")), "viewer": people.context(people.user("viewer")),
        "boss": people.context(people.user("platform_admin")), "auditor": people.context(people.user("auditor")),
        "nobody": people.context(people.user("")), "system": people.context(None),
    }  # fmt: skip
    for name in ("here", "there", "developer"):
        run(made[name], key_pair_create, None, {"name": f"of {name}"})
    made["anonymous"] = replace(people.context(None), principal=ANONYMOUS)
    with transaction(made["anonymous"].db):
        record(made["anonymous"], "identity.session.create", Subject("identity.user", "", "mallory"), status="failure", error="wrong")
    return made


def names(ctx: Context, **query: Any) -> set[str]:
    return {entry.resource_name for entry in audit_entries(ctx, AuditQuery(**query)).entries}


def test_everybody_reads_what_they_may(told: dict[str, Context]) -> None:
    everything = {"of here", "of there", "of developer", "mallory"}
    assert names(told["boss"]) == names(told["auditor"]) == names(told["system"]) == everything
    assert names(told["here"]) == {"of here", "of developer"}
    assert names(told["there"]) == {"of there"}
    assert names(told["developer"]) == {"of developer"}
    assert names(told["viewer"]) == names(told["nobody"]) == names(told["anonymous"]) == set()
    assert names(told["there"], project_id=told["here"].project_id) == set()
    assert audit_count(told["here"], AuditQuery()) == 2
    assert audit_count(told["boss"], AuditQuery(), at_most=3) == 3


def test_the_log_is_filtered(told: dict[str, Context]) -> None:
    boss, here = told["boss"], told["here"]
    assert names(boss, username=here.principal.username) == names(boss, user_id=here.principal.user_id) == {"of here"}
    assert names(boss, status="failure") == {"mallory"}
    assert names(boss, action="compute.key_pair.create") == names(boss, action="compute.*") == {"of here", "of there", "of developer"}
    assert names(boss, action="compute.") == names(boss, action="compute_*") == names(boss, action="%*") == set()
    assert names(boss, action="*") == names(boss)
    assert names(boss, resource_type="identity.user") == {"mallory"}
    assert names(boss, search="MALLORY") == names(boss, search="session.create") == {"mallory"}
    assert names(boss, search="KEY_PAIR") == names(here, search="key_pair") | {"of there"} == {"of here", "of there", "of developer"}
    assert names(boss, search="mallor") == names(boss, search="\x00") == names(boss, request_id="\ud800") == set()
    assert names(boss, since=now() + timedelta(hours=1)) == names(boss, until=now() - timedelta(hours=1)) == set()
    assert len(names(boss, since=now() - timedelta(hours=1), until=now() + timedelta(hours=1))) == 4
    row_id = next(entry.resource_id for entry in audit_entries(boss, AuditQuery(status="success")).entries)
    assert len(audit_entries(boss, AuditQuery(resource_id=row_id)).entries) == 1


def test_the_log_is_walked_from_the_newest(told: dict[str, Context]) -> None:
    boss, found, before = told["boss"], [], None
    while True:
        page = audit_entries(boss, AuditQuery(limit=1, before_seq=before))
        found += [entry.seq for entry in page.entries]
        before = page.next_before_seq
        if before is None:
            break
    assert found == [4, 3, 2, 1]
    for odd in (10**30, -(10**30), 0, -1):
        assert len(audit_entries(boss, AuditQuery(before_seq=odd)).entries) == (4 if odd > 0 else 0)
    assert len(audit_entries(boss, AuditQuery(limit=0)).entries) == 1
    assert len(events_after(boss, after_id=0)) == 3
    assert events_after(boss, after_id=10**30) == []


def test_events_are_for_members(told: dict[str, Context]) -> None:
    assert {event.resource_name for event in events_after(told["viewer"])} == {"of here", "of developer"}
    assert {event.resource_name for event in events_after(told["there"])} == {"of there"}
    assert events_after(told["nobody"]) == []
    assert [item.resource_name for item in recent(told["viewer"])] == ["of developer", "of here"]
    assert recent(told["nobody"]) == []
    told["viewer"].project_id = None
    assert recent(told["viewer"]) == []
    event = events_after(told["boss"])[0]
    assert [found.id for found in events_after(told["boss"], resource_id=event.resource_id)] == [event.id]


# -- activity and jobs ---------------------------------------------------------------------------------------------------------------------


def test_the_activity_of_a_resource_is_its_entries_and_jobs(stage: Stage, people: People) -> None:
    row = running_instance(stage)
    with pytest.raises(PortalError):
        run(stage.ctx, instance_start, row.id)
    # A job that has not ended is told for itself, how one ended is told once.
    run(stage.ctx, instance_stop, row.id)
    stage.ctx.db.rollback()
    items = activity_of(stage.ctx, INSTANCE, row)
    assert [item.at for item in items] == sorted((item.at for item in items), reverse=True)
    assert {(item.kind, item.title, item.status) for item in items} == {
        ("audit", "Create", "success"), ("audit", "Create: succeeded", "success"), ("audit", "Start", "failure"), ("audit", "Stop", "success"),
        ("job", f"Stop {row.name}", "queued"),
    }  # fmt: skip
    created = next(item for item in items if item.title == "Create" and item.kind == "audit")
    assert created.changes["after"]["name"] == row.name
    assert created.job_id
    viewer = people.context(people.user("viewer"))
    assert {item.kind for item in activity_of(viewer, INSTANCE, row)} == {"event", "job"}
    assert len(activity_of(stage.ctx, INSTANCE, row, limit=2)) == 2


def test_whoever_only_shares_a_resource_does_not_see_who_worked_on_it(people: People, stage: Stage) -> None:
    image = stored_image(stage)
    with transaction(stage.ctx.db):
        stage.ctx.db.get_one(type(image), image.id).is_public = True
    elsewhere = people.project()
    stranger = people.context(people.user("developer", elsewhere), elsewhere)
    assert activity_of(stranger, IMAGE, image) == []
    assert activity_of(people.context(people.user("viewer")), IMAGE, image) != []


def test_jobs_are_walked_and_filtered(stage: Stage, people: People) -> None:
    ids = [run(stage.ctx, instance_create, None, {"name": f"web-{n}", **CREATE}).job_id for n in range(5)]
    stage.worker.run_one()
    stage.ctx.db.rollback()
    found, cursor = [], ""
    while True:
        page = jobs_page(stage.ctx, JobsQuery(limit=2, cursor=cursor))
        found += [job.id for job in page.jobs]
        cursor = page.next_cursor
        if not cursor:
            break
    assert found == ids[::-1]
    assert jobs_counts(stage.ctx) == {"queued": 4, "succeeded": 1}
    assert [job.id for job in jobs_page(stage.ctx, JobsQuery(state="succeeded,failed")).jobs] == [ids[0]]
    assert jobs_page(stage.ctx, JobsQuery(kind="compute.instance.stop")).jobs == []
    assert [job.id for job in jobs_page(stage.ctx, JobsQuery(search="WEB-3")).jobs] == [ids[3]]
    job = stage.worker.job(ids[2] or "")
    assert [one.id for one in jobs_page(stage.ctx, JobsQuery(resource_id=job.resource_id)).jobs] == [job.id]
    elsewhere = people.project()
    stranger = people.context(people.user("project_admin", elsewhere), elsewhere)
    assert jobs_page(stranger, JobsQuery(all_projects=True)).jobs == []
    with pytest.raises(NotFound):
        find_job(stranger, job.id)
    for odd in ("job-nonesuch", "", "\x00", "\ud800"):
        with pytest.raises(NotFound):
            find_job(stage.ctx, odd)


@pytest.mark.parametrize(
    "cursor", ["x", "~", "2026-01-01T00:00:00~job-1", "2026-13-01T00:00:00+00:00~x", "\x00~\x00", "2026-01-01T00:00:00+00:00~\x00", "~~~"]
)
def test_a_cursor_of_jobs_that_nobody_gave_is_refused(ctx: Context, cursor: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        jobs_page(ctx, JobsQuery(cursor=cursor))
    assert "cursor" in refused.value.details


def test_a_cursor_of_jobs_at_the_end_of_time_is_a_place(ctx: Context) -> None:
    for at in ("0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59"):
        assert jobs_page(ctx, JobsQuery(cursor=f"{at}~job-1")).jobs == []


def test_titles_of_what_is_no_operation(ctx: Context, people: People) -> None:
    row = run(ctx, key_pair_create, None, {"name": "k"}).row
    with transaction(ctx.db):
        record(ctx, "core.quota.some_thing", Subject("core.quota", row.id, "x", ctx.project_id))
    run(ctx, key_pair_delete, row.id)
    titles = [item.title for item in activity_of(ctx, ctx.registry.of(type(row)), row)]
    assert titles == ["Delete", "Some thing", "Create"]
