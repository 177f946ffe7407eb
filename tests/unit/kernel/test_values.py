"""The small parts of the kernel: ids, fields, moments, states, transactions."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError
from sqlalchemy import select
from sqlalchemy.exc import OperationalError, StatementError
from sqlalchemy.orm import Session, sessionmaker

from portal.identity.models import Project
from portal.kernel import fields as f
from portal.kernel.db import now, out_of_service, transaction
from portal.kernel.errors import ERRORS, InvalidRequest, PortalError, StateConflict
from portal.kernel.ids import ID_PATTERN, is_storable, new_id, storable
from portal.kernel.jobs import Job, JobStep
from portal.kernel.lifecycle import Lifecycle
from portal.kernel.resource import Registry

CYCLE = Lifecycle(
    "new", {"new": frozenset({"up"}), "up": frozenset({"gone", "bad"}), "bad": frozenset()}, frozenset({"new"}), frozenset({"gone"}), {"bad": "bad"}
)


def test_ids_say_what_they_name_and_differ() -> None:
    made = {new_id("usr") for _ in range(1000)}
    assert len(made) == 1000
    assert all(ID_PATTERN.fullmatch(one) and one.startswith("usr-") for one in made)


@pytest.mark.parametrize(("text", "kept"), [("plain ä\U0001f600\n", True), ("", True), ("nul\x00", False), ("\ud800", False), ("x\udfff", False)])
def test_texts_that_databases_take(text: str, kept: bool) -> None:
    assert is_storable(text) is kept
    assert is_storable(storable(text))
    assert (storable(text) == text) is kept


def test_states_change_as_they_may() -> None:
    assert CYCLE.states == {"new", "up", "bad", "gone"}
    for current, wanted in (("new", "up"), ("up", "gone"), ("up", "up"), ("gone", "gone")):
        CYCLE.check(current, wanted)
    for current, wanted in (("up", "new"), ("gone", "up"), ("bad", "up"), ("new", "nonesuch"), ("nonesuch", "up")):
        with pytest.raises(StateConflict) as refused:
            CYCLE.check(current, wanted)
        assert refused.value.details == {"state": current, "wanted": wanted}
    assert [CYCLE.tone(state) for state in ("new", "up", "bad", "gone")] == ["busy", "ok", "bad", "off"]


def test_every_cycle_of_the_portal_is_closed(registry: Registry) -> None:
    """Whatever a state may become is a state, nothing that has ended goes on, and what a job holds is left again."""
    for rtype in registry:
        cycle = rtype.lifecycle
        if cycle is None:
            continue
        following = set().union(*cycle.transitions.values())
        assert following <= cycle.states, rtype.key
        assert not set(cycle.transitions) & cycle.ended, rtype.key
        assert all(cycle.transitions[state] for state in cycle.transient), rtype.key
        assert set(cycle.tones or {}) <= cycle.states, rtype.key
        for op in rtype.operations:
            for after in filter(None, (op.settles, op.fails)):
                if op.holds:
                    cycle.check(op.holds, after)
            for before in op.when or ():
                if op.holds:
                    cycle.check(before, op.holds)


def test_a_kind_has_to_say_what_it_is() -> None:
    for call in (f.Kind().column_type, f.Kind().annotation):
        with pytest.raises(TypeError):
            call()


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (f.Name(hostname=True), ["web", "a", "web-1", "W" * 63], ["", "-web", "web-", "web_1", "web.example", "w" * 64, "wéb", "web\n"]),
        (f.Name(10), ["x", "two words", "ä"], ["", " x", "x ", "x" * 11, "a\tb", "a\x7fb", "x\n"]),
        (f.Line(5, min_length=2), ["ab", "ab de"], ["a", "abcdef", "a\nb", "a\x00b"]),
        (f.LongText(10), ["", "two\nline", "ääääa"], ["ääääää", "x" * 11, "a\x00", "a\x1b"]),
        (f.Int(-1, 2**40), [-1, 0, 2**40], [-2, 2**40 + 1, "1", 1.0, True, None]),
        (f.Number(0, 10), [0, 0.5, 10.0], [-0.1, 10.1, float("nan"), float("inf"), "1"]),
        (f.Choice(("a", "b")), ["a"], ["A", "", "c", None]),
        (f.Bool(), [True, False], ["true", 1, 0, None]),
        (f.Ref("compute.flavor"), ["t3-micro"], ["", "x" * 256, "a\x00"]),
        (
            f.Tags(),
            [{}, {"a": "b"}, {f"k{n}": "" for n in range(50)}],
            [{f"k{n}": "" for n in range(51)}, {"": "x"}, {"k" * 101: ""}, {"a": 1}, [], {"a": "x\ny"}],
        ),
        (f.TextMap(), [{"a": "b"}], [{"a": {"b": "c"}}]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, f.Kind) else "",
)
def test_fields_take_what_they_say(kind: f.Kind, good: list[Any], bad: list[Any]) -> None:
    adapter: TypeAdapter[Any] = TypeAdapter(kind.annotation())
    for value in good:
        assert adapter.validate_python(value, strict=True) == value
    for value in bad:
        with pytest.raises(ValidationError):
            adapter.validate_python(value, strict=True)
    assert adapter.json_schema()
    assert kind.column_type() is not None


def test_every_field_of_every_type_has_a_label_and_a_schema(registry: Registry) -> None:
    for rtype in registry:
        for name, info in rtype.fields().items():
            assert info.label, f"{rtype.key}.{name}"
            assert TypeAdapter(info.kind.annotation()).json_schema()


def test_moments_keep_their_zone_and_naive_ones_are_refused(database: sessionmaker[Session]) -> None:
    from datetime import timezone

    local = datetime(2026, 6, 1, 12, 0, 0, 123456, tzinfo=timezone(timedelta(hours=2)))
    with database() as session:
        with transaction(session):
            session.add(Project(id="prj-1", name="one", created_at=local))
        session.expire_all()
        found = session.get_one(Project, "prj-1").created_at
        assert (found, found.tzinfo) == (local, UTC)
        session.rollback()
        session.add(Project(id="prj-2", name="two", created_at=local.replace(tzinfo=None)))
        with pytest.raises(StatementError, match="time zone"):
            session.flush()
        session.rollback()
        assert session.scalars(select(Job.id).where(Job.finished_at.is_(None))).all() == []


def test_a_transaction_is_all_or_nothing(database: sessionmaker[Session]) -> None:
    with database() as session:
        for error in (KeyboardInterrupt, ValueError, OperationalError("x", {}, Exception())):
            with pytest.raises(error if isinstance(error, type) else type(error)), transaction(session):  # noqa: PT012 - rolled back at its end
                session.add(Project(id="prj-1", name="one"))
                session.flush()
                raise error
            assert session.get(Project, "prj-1") is None
            session.rollback()
        # What was read or begun before is left behind, not carried into it.
        session.add(Project(id="prj-2", name="two"))
        with transaction(session):
            session.add(Project(id="prj-3", name="three"))
        assert session.get(Project, "prj-2") is None
        assert session.get(Project, "prj-3") is not None


def test_the_progress_of_a_job() -> None:
    steps = [JobStep(position=number, name="x", label="x", state=state) for number, state in enumerate(["done", "done", "running"])]
    assert [Job(state=state, steps=steps).progress for state in ("running", "succeeded")] == [67, 100]
    assert Job(state="queued", steps=[]).progress == 0


def test_errors_have_codes_and_statuses_of_their_own() -> None:
    assert len({error.code for error in ERRORS}) == len(ERRORS)
    assert all(400 <= error.status < 600 for error in ERRORS)
    refused = InvalidRequest.fields({"name": ["is short.", "is odd."], "size": ["is large."]})
    assert refused.message == "name: is short. is odd.; size: is large."
    assert refused.details == {"name": ["is short.", "is odd."], "size": ["is large."]}
    assert PortalError("x").details == {}
    assert now().tzinfo is UTC


def test_a_registry_answers_by_every_name(registry: Registry) -> None:
    rtype = registry.get("compute.instance")
    assert rtype is not None
    assert registry.by_collection("compute", "instances") is rtype
    assert registry.by_collection("compute", "nonesuch") is None
    assert registry.get("compute.nonesuch") is None
    assert registry.model("compute.instance") is rtype.model
    assert registry.of(rtype.model) is rtype
    op = registry.operation("compute.instance.start")
    assert (registry.name_of(op), rtype.operation("start") is op, rtype.operation("fly")) == ("compute.instance.start", True, None)
    assert registry.level("compute.instance.start") == "write"
    assert (rtype.id_name, rtype.states()[0]) == ("instance_id", "cancelled")
    assert all(op.summary and op.summary.endswith(".") for op in registry.operations().values())
    for call in (registry.operation, registry.model, registry.level):
        with pytest.raises(KeyError):
            call("compute.instance.fly")


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("database or disk is full", "The disk is full"),
        ("could not extend file: No space left on device", "The disk is full"),
        ("gone away", "does not answer"),
    ],
)
def test_people_are_told_why_the_database_refuses(said: str, words: str) -> None:
    assert words in out_of_service(OperationalError("INSERT", {}, Exception(said)))
