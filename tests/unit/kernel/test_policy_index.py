"""Many statements are decided by an index, each alone by what it says: over random statements both say the same."""

import time
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from portal.kernel.context import Grant
from portal.kernel.policy import Asked, Condition, Statement, Target, is_like
from portal.kernel.policy_index import Rule
from portal.kernel.policy_rules import RuleSet

TYPE = "compute.instance"
TEXTS = ("web-1", "web-2", "db-1", "maria", "usr-1", "b", "")
PATTERNS = ("web-*", "*-1", "*b*", "*e*1", "w*b-?", "?eb-1", "web-1", "*", "**", "*${principal.name}*", "${principal.id}", "*ar*a", "w*-*")
DATES = tuple(f"2026-06-0{day}T12:00:00Z" for day in range(1, 5))
TEXT_KEYS = st.sampled_from(
    ("resource.name", "resource.id", "resource.owner", "resource.tag/env", "request.tag/env", "request.input/name", "principal.name")
)


def some(*values: str) -> st.SearchStrategy[tuple[str, ...]]:
    """One to three of these values."""
    return st.lists(st.sampled_from(values), min_size=1, max_size=3).map(tuple)


CONDITIONS = st.one_of(
    st.builds(Condition, st.sampled_from(("StringEquals", "StringNotEquals")), TEXT_KEYS, some(*TEXTS[:-1], "${principal.name}", "x${principal.id}")),
    st.builds(Condition, st.sampled_from(("StringLike", "StringNotLike")), TEXT_KEYS, some(*PATTERNS)),
    st.builds(Condition, st.just("Null"), TEXT_KEYS, st.sampled_from((("true",), ("false",)))),
    st.builds(Condition, st.just("Bool"), st.sampled_from(("resource.shared", "principal.mfa")), some("true", "false")),
    st.builds(Condition, st.sampled_from(("IpAddress", "NotIpAddress")), st.just("request.ip"), some("10.1.0.0/16", "10.1.2.3/32", "0.0.0.0/0", "2001:db8::/32")),
    st.builds(Condition, st.sampled_from([f"Date{a}Than{b}" for a in ("Less", "Greater") for b in ("", "Equals")]), st.just("request.time"), some(*DATES)),
    st.builds(Condition, st.sampled_from(("NumericLessThan", "NumericEquals", "NumericNotEquals")), st.just("request.input/count"), some("1", "2.0", "3")),
)  # fmt: skip
RESOURCES = ("compute.instance/*", "compute.instance/web-1", "compute.instance/db-*", "compute.*/web-2", "*/*b*", "core.job/web-1", "*/**")
STATEMENTS = st.builds(
    Statement, st.just("One"), st.just(True), st.just(("*",)), st.lists(st.sampled_from(RESOURCES), max_size=2).map(tuple),
    st.lists(CONDITIONS, max_size=3).map(tuple),
)  # fmt: skip
MAYBE = st.sampled_from((None, *TEXTS))
TARGETS = st.builds(
    Target, st.sampled_from((None, "prj-1", "prj-2")), MAYBE, st.booleans(), st.just(""), st.sampled_from(TEXTS), st.sampled_from(TEXTS),
    st.dictionaries(st.sampled_from(("env", "x")), st.sampled_from(TEXTS)),
)  # fmt: skip
ASKED = st.builds(
    Asked, st.sampled_from((None, "usr-1", "b")), st.sampled_from(("maria", "", "b")), st.booleans(), st.just("token"),
    st.sampled_from(("10.1.2.3", "10.2.0.1", "2001:db8::1", "nowhere", "")), st.sampled_from((None, *(datetime.fromisoformat(each) for each in DATES))),
    st.dictionaries(st.just("env"), st.sampled_from(TEXTS)), st.fixed_dictionaries({}, optional={"name": MAYBE, "count": st.sampled_from((None, 1, 2, "3", "x"))}),
)  # fmt: skip


def test_the_index_says_what_each_statement_says() -> None:
    compared = {True: 0, False: 0}

    @settings(max_examples=500, deadline=None, derandomize=True, database=None, phases=[Phase.generate])
    @given(
        st.lists(st.tuples(STATEMENTS, st.sampled_from((None, "prj-1"))), max_size=6),
        st.lists(TARGETS, min_size=1, max_size=3),
        st.lists(ASKED, min_size=1, max_size=3),
    )
    def agree(given: list[tuple[Statement, str | None]], targets: list[Target], asking: list[Asked]) -> None:
        rules = [Rule(statement, Grant("pol", scope)) for statement, scope in given]
        several = RuleSet(TYPE, rules)
        for target, asked in [(target, asked) for target in targets for asked in asking]:
            here = [rule for rule in rules if rule.scope in {None, target.project_id} and not rule.statement.mismatch(TYPE, target, asked)]
            found = several.first(target, asked)
            assert (found is not None) is bool(here)
            assert found is None or not found.statement.mismatch(TYPE, target, asked)
            compared[bool(here)] += 1

    agree()
    assert min(compared.values()) > 500


@pytest.mark.parametrize("wanted", ["*a" * 30 + "b", "*" * 60 + "b", "*a?" * 20 + "b"])
def test_no_pattern_takes_long(wanted: str) -> None:
    began = time.process_time()
    assert not is_like("a" * 250, wanted)
    assert time.process_time() - began < 1


def test_statements_that_cannot_apply_are_not_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    def kind(number: int) -> dict[str, Any]:
        name = Condition("StringEquals", "resource.name", (f"x{number}",))
        return [
            {"resources": (f"{TYPE}/i-{number}",)}, {"conditions": (name,)}, {"conditions": (Condition("StringLike", "resource.name", (f"x{number}*",)),)},
            {"conditions": (Condition("StringNotEquals", "resource.owner", ("usr-1",)), name)},
        ][number % 4]  # fmt: skip

    rules = [Rule(Statement(f"S{number}", True, ("*",), **kind(number)), Grant("pol", None)) for number in range(1000)]
    several, asked = RuleSet(TYPE, rules), Asked("usr-1", at=datetime.now(UTC))
    several.first(Target("prj-1"), asked)
    looked: list[object] = []
    monkeypatch.setattr(Statement, "mismatch", lambda *given: looked.append(given))
    monkeypatch.setattr(Condition, "holds", lambda *given: looked.append(given))
    assert several.first(Target("prj-1", id="i-x", name="web"), asked) is None
    assert several.first(Target("prj-1", id="i-x", name="x6-1"), asked) is rules[6]
    assert not looked
