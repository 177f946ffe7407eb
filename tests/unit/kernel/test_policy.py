"""The policy language: what is refused, and where; what patterns and comparisons mean."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from portal.catalogue import build_registry
from portal.kernel.authz import ROLES
from portal.kernel.policy import KEYS, LEVELS, OPERATORS, Asked, Condition, Statement, Target, covers, is_like
from portal.kernel.policy_documents import MAX_BYTES, VERSION, PolicyError, as_document, parse
from portal.settings import ROOT

PERMISSIONS = build_registry().permissions
GOOD = {"Sid": "One", "Effect": "Allow", "Action": "compute.instance.start", "Resource": "*"}


def document(**changes: Any) -> dict[str, Any]:
    return {"Version": VERSION, "Statement": [{**GOOD, **changes}]}


@pytest.mark.parametrize(
    ("given", "path", "words"),
    [
        ([], "", "must be an object"),
        (None, "", "must be an object"),
        ({}, "Statement", "at least one"),
        ({"Version": VERSION, "Statement": []}, "Statement", "at least one"),
        ({"Version": "2012-10-17", "Statement": [GOOD]}, "Version", VERSION),
        ({"Version": VERSION, "Statement": [GOOD], "Id": 1}, "Id", "is not known"),
        ({"Version": VERSION, "Statement": ["x"]}, "Statement[0]", "must be an object"),
        ({"Version": VERSION, "Statement": [GOOD] * 101}, "Statement", "at most 100"),
        ({"Version": VERSION, "Statement": [GOOD, GOOD]}, "Statement[1].Sid", "twice"),
        (document(Sid="a b"), "Statement[0].Sid", "letters"),
        (document(Sid=1), "Statement[0].Sid", "letters"),
        (document(Effect="Maybe"), "Statement[0].Effect", "Allow"),
        (document(Effect=None), "Statement[0].Effect", "Allow"),
        (document(Action=None), "Statement[0].Action", "must be a text"),
        (document(Action=[]), "Statement[0].Action", "must be a text"),
        (document(Action=["compute.instance.start", 7]), "Statement[0].Action[1]", "must be a text"),
        (document(Action="compute.instance.fly"), "Statement[0].Action", "there is no action compute.instance.fly"),
        (document(Action="nowhere:read"), "Statement[0].Action", "there is no action nowhere:read"),
        (document(Action="compute:fly"), "Statement[0].Action", "no access level fly"),
        (document(Action="compute instance"), "Statement[0].Action", "must be an action"),
        (document(Action="x" * 256), "Statement[0].Action", "255"),
        (document(Resource=None), "Statement[0].Resource", "must be a text"),
        (document(Resource="i-1234"), "Statement[0].Resource", "must be * or a type and an id"),
        (document(Resource="compute.rocket/x"), "Statement[0].Resource", "no resource type compute.rocket"),
        (document(Resource="a\nb"), "Statement[0].Resource", "printable"),
        (document(NotAction="*"), "Statement[0].NotAction", "is not known"),
        (document(Condition=[]), "Statement[0].Condition", "must be an object"),
        (document(Condition={"StringIs": {}}), "Statement[0].Condition.StringIs", "is no operator"),
        (document(Condition={"StringEquals": {}}), "Statement[0].Condition.StringEquals", "keys and values"),
        (document(Condition={"StringEquals": {"resource.colour": "red"}}), "Statement[0].Condition.StringEquals.resource.colour", "is no key"),
        (document(Condition={"StringEquals": {"resource.tag/": "red"}}), "Statement[0].Condition.StringEquals.resource.tag/", "is no key"),
        (
            document(Condition={"NumericLessThan": {"resource.name": "3"}}),
            "Statement[0].Condition.NumericLessThan.resource.name",
            "cannot be compared",
        ),
        (document(Condition={"StringEquals": {"principal.mfa": "true"}}), "Statement[0].Condition.StringEquals.principal.mfa", "cannot be compared"),
        (document(Condition={"StringLike": {"request.time": "2*"}}), "Statement[0].Condition.StringLike.request.time", "cannot be compared"),
        (
            document(Condition={"NumericLessThan": {"request.input/count": "many"}}),
            "Statement[0].Condition.NumericLessThan.request.input/count",
            "number",
        ),
        (
            document(Condition={"NumericLessThan": {"request.input/count": "nan"}}),
            "Statement[0].Condition.NumericLessThan.request.input/count",
            "number",
        ),
        (document(Condition={"DateLessThan": {"request.time": "soon"}}), "Statement[0].Condition.DateLessThan.request.time", "moment"),
        (document(Condition={"IpAddress": {"request.ip": "10.0.0.1/8"}}), "Statement[0].Condition.IpAddress.request.ip", "network"),
        (document(Condition={"Bool": {"principal.mfa": "yes"}}), "Statement[0].Condition.Bool.principal.mfa", "true or false"),
        (document(Condition={"Null": {"resource.owner": [True, False]}}), "Statement[0].Condition.Null.resource.owner", "not both"),
        (document(Condition={"StringEquals": {"resource.owner": "${user.id}"}}), "Statement[0].Condition.StringEquals.resource.owner", "variable"),
        (document(Condition={"StringEquals": {"resource.owner": {}}}), "Statement[0].Condition.StringEquals.resource.owner", "must be a text"),
        ({"Version": VERSION, "Statement": [{**GOOD, "Resource": ["compute.instance/" + "x" * 200] * 60}]}, "", f"{MAX_BYTES:,}"),
    ],
)
def test_what_is_wrong_is_named_with_its_path(given: Any, path: str, words: str) -> None:
    with pytest.raises(PolicyError) as refused:
        parse(given, PERMISSIONS)
    found = {problem.path: problem.message for problem in refused.value.problems}
    assert path in found
    assert words in found[path]


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(PolicyError) as refused:
        parse(document(Effect="Maybe", Action="fly", Resource="x"), PERMISSIONS)
    assert [problem.path for problem in refused.value.problems] == ["Statement[0].Effect", "Statement[0].Action", "Statement[0].Resource"]


def test_a_document_comes_back_as_it_was() -> None:
    given = document(
        Effect="Deny", Action=["compute:write", "*.read"], Resource=["compute.instance/i-1*"],
        Condition={"StringEquals": {"resource.tag/env": ["prod", "test"]}, "Bool": {"principal.mfa": False}, "NumericLessThan": {"request.input/count": 3}},
    )  # fmt: skip
    again = as_document(parse(given, PERMISSIONS))
    assert parse(again, PERMISSIONS) == parse(given, PERMISSIONS)
    assert json.loads(json.dumps(again)) == again


def test_built_in_roles_are_documents() -> None:
    for role in ROLES.values():
        assert parse(as_document(role.statements), PERMISSIONS) == role.statements


@pytest.mark.parametrize(
    ("wanted", "action", "level", "expected"),
    [
        ("*", "compute.instance.start", "write", True),
        ("compute.*", "compute.instance.start", "write", True),
        ("compute.instance.s*", "compute.instance.start", "write", True),
        ("compute.instance.???rt", "compute.instance.start", "write", True),
        ("compute.instance.?", "compute.instance.start", "write", False),
        ("compute.instance", "compute.instance.start", "write", False),
        ("compute:write", "compute.instance.start", "write", True),
        ("compute:read", "compute.instance.start", "write", False),
        ("storage:write", "compute.instance.start", "write", False),
        ("*:write", "compute.instance.start", "write", True),
        ("compute:*", "compute.instance.start", "write", True),
    ],
)
def test_actions(wanted: str, action: str, level: str, expected: bool) -> None:
    assert covers(wanted, action, level) is expected


def test_patterns_have_two_signs_only() -> None:
    assert is_like("a.b[c]", "a.b[c]")
    assert not is_like("axb[c]", "a.b[c]")
    assert not is_like("a.bc", "a.b[c]")
    assert is_like("two\nlines", "two*")
    assert not is_like("A", "a")
    assert not is_like("ab", "a")


AT = datetime(2026, 6, 1, 12, tzinfo=UTC)
ASKED = Asked("usr-1", "maria", True, "session", "10.1.2.3", AT, {"env": "prod"}, {"count": 3, "name": "web", "size": "8"})
TARGET = Target("prj-1", "usr-1", False, "web-1", "i-1", "web-1", {"env": "prod"})


@pytest.mark.parametrize(
    ("operator", "key", "values", "expected"),
    [
        ("StringEquals", "resource.tag/env", ("test", "prod"), True),
        ("StringEquals", "resource.tag/env", ("Prod",), False),
        ("StringEquals", "resource.tag/none", ("prod",), False),
        ("StringNotEquals", "resource.tag/none", ("prod",), True),
        ("StringNotEquals", "resource.tag/env", ("prod",), False),
        ("StringLike", "resource.name", ("web-*",), True),
        ("StringNotLike", "resource.name", ("web-*",), False),
        ("StringEquals", "resource.owner", ("${principal.id}",), True),
        ("StringEquals", "resource.name", ("${principal.name}-1",), False),
        ("StringEquals", "request.tag/env", ("prod",), True),
        ("StringEquals", "request.input/name", ("web",), True),
        ("NumericLessThan", "request.input/count", ("4",), True),
        ("NumericLessThan", "request.input/count", ("3",), False),
        ("NumericLessThanEquals", "request.input/size", ("8",), True),
        ("NumericGreaterThan", "request.input/name", ("1",), False),
        ("NumericNotEquals", "request.input/count", ("3",), False),
        ("DateLessThan", "request.time", ("2026-07-01",), True),
        ("DateGreaterThan", "request.time", ("2026-06-01T12:00:00Z",), False),
        ("DateGreaterThanEquals", "request.time", ("2026-06-01T14:00:00+02:00",), True),
        ("IpAddress", "request.ip", ("10.0.0.0/8",), True),
        ("IpAddress", "request.ip", ("fd00::/8",), False),
        ("NotIpAddress", "request.ip", ("10.0.0.0/8", "192.168.0.0/16"), False),
        ("Bool", "principal.mfa", ("true",), True),
        ("Bool", "resource.shared", ("true",), False),
        ("Null", "resource.tag/env", ("false",), True),
        ("Null", "resource.tag/none", ("true",), True),
        ("StringEquals", "principal.credential", ("session",), True),
    ],
)
def test_comparisons(operator: str, key: str, values: tuple[str, ...], expected: bool) -> None:
    statement = Statement("S", allows=True, actions=("*",), conditions=(Condition(operator, key, values),))
    assert (statement.mismatch("compute.instance", TARGET, ASKED) == "") is expected


def test_nobody_owns_nothing() -> None:
    statement = ROLES["developer"].statements[1]
    assert statement.mismatch("compute.instance", Target("prj-1", None), Asked()) != ""
    assert statement.mismatch("compute.instance", Target("prj-1", ""), Asked()) != ""


def test_every_operator_key_and_level_is_documented() -> None:
    text = (ROOT / "docs" / "iam.md").read_text()
    assert [name for name in (*OPERATORS, *KEYS, *LEVELS) if f"`{name}`" not in text] == []
