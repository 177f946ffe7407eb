"""What is said of a policy's document by itself: problems with their path, and statements that do nothing."""

from typing import Any

import pytest

from portal.kernel.inputs import fields_by_action
from portal.kernel.policy_documents import VERSION
from portal.kernel.resource import Registry
from portal.security.advice import advice


def document(*statements: dict[str, Any]) -> dict[str, Any]:
    return {
        "Version": VERSION,
        "Statement": [{"Effect": "Allow", "Action": "compute.instance.start", "Resource": "*", **each} for each in statements],
    }


def warnings(registry: Registry, *statements: dict[str, Any]) -> list[tuple[str, str]]:
    found = advice(document(*statements), registry.permissions, fields_by_action(registry))
    assert found.problems == ()
    return [(each.path, each.message) for each in found.warnings]


def test_problems_have_a_path(registry: Registry) -> None:
    found = advice(document({}, {"Action": ["compute.instance.start", "compute.banana.*"]}), registry.permissions, {})
    assert [(each.path, each.message) for each in found.problems] == [("Statement[1].Action[1]", "there is no action compute.banana.*")]
    assert (found.warnings, found.statements) == ((), ())


@pytest.mark.parametrize("actions", ["*", "*:*", ["*:read", "*:audit", "*:write", "*:delete", "*:manage", "*:platform"]])
def test_allowing_everything_is_said(registry: Registry, actions: Any) -> None:
    ((path, message),) = warnings(registry, {"Action": actions})
    assert (path, message.startswith("allows every action on every resource")) == ("Statement[0]", True)
    assert warnings(registry, {"Action": actions, "Condition": {"Bool": {"principal.mfa": True}}}) == []


@pytest.mark.parametrize(
    "unbounded",
    [
        {"Resource": "*/*"},
        {"Action": "*.*", "Resource": ["compute.instance/i-1", "*.*/**"]},
        {"Condition": {"StringLike": {"resource.id": "*"}}},
        {"Condition": {"Null": {"request.ip": False}}},
    ],
)
def test_allowing_everything_is_said_however_it_is_written(registry: Registry, unbounded: dict[str, Any]) -> None:
    found = [message for _, message in warnings(registry, {"Action": "*", **unbounded})]
    assert any(message.startswith("allows every action on every resource") for message in found)


@pytest.mark.parametrize("bounded", [{"Resource": "compute.*/*"}, {"Resource": "*/i-*"}, {"Condition": {"StringLike": {"resource.id": "i-*"}}}])
def test_what_is_bounded_is_not_called_everything(registry: Registry, bounded: dict[str, Any]) -> None:
    assert not any(message.startswith("allows every") for _, message in warnings(registry, {"Action": "*", **bounded}))


def test_a_resource_that_no_action_is_on_is_said(registry: Registry) -> None:
    ((path, message),) = warnings(registry, {"Resource": ["compute.instance/i-*", "security.policy/*"]})
    assert (path, "security.policy" in message) == ("Statement[0].Resource[1]", True)
    assert warnings(registry, {"Action": "*", "Resource": ["compute.instance/*", "security.*/*"]}) == []


NEVER: list[dict[str, Any]] = [
    {"StringEquals": {"resource.tag/env": "a"}, "StringNotEquals": {"resource.tag/env": ["a", "b"]}},
    {"StringEquals": {"resource.tag/env": ["a", "b"]}, "StringLike": {"resource.tag/env": "x*"}},
    {"StringLike": {"resource.name": "web-1*"}, "StringNotLike": {"resource.name": "web-*"}},
    {"StringEquals": {"resource.tag/env": "a"}, "Null": {"resource.tag/env": True}},
    {"Null": {"principal.mfa": True}},
    {"NumericGreaterThan": {"request.tag/size": 10}, "NumericLessThan": {"request.tag/size": [5, 10]}},
    {"NumericEquals": {"request.tag/size": 3}, "NumericGreaterThan": {"request.tag/size": 3}},
    {"DateLessThan": {"request.time": "2020-01-01T00:00:00Z"}},
    {"DateLessThan": {"request.time": "2999-01-01T00:00:00Z"}, "DateGreaterThan": {"request.time": "2999-01-02T00:00:00Z"}},
    {"IpAddress": {"request.ip": "10.1.0.0/16"}, "NotIpAddress": {"request.ip": ["192.168.0.0/16", "10.0.0.0/8"]}},
]
MAYBE: list[dict[str, Any]] = [
    {"StringEquals": {"resource.tag/env": ["a", "b"]}, "StringNotEquals": {"resource.tag/env": "a"}},
    {"StringLike": {"resource.name": "web-*"}, "StringNotLike": {"resource.name": "web-1*"}},
    {"StringLike": {"resource.name": "a*"}, "StringNotLike": {"resource.name": "a?*"}},
    {"StringEquals": {"resource.owner": "${principal.id}"}, "StringNotEquals": {"resource.owner": "${principal.id}"}},
    {"NumericGreaterThanEquals": {"request.tag/size": 10}, "NumericLessThanEquals": {"request.tag/size": 10}},
    {"NumericEquals": {"request.tag/size": 5}, "StringLike": {"request.tag/size": "5.0"}},
    {"DateLessThan": {"request.time": ["2020-01-01T00:00:00Z", "2999-01-01T00:00:00Z"]}},
    {"IpAddress": {"request.ip": "10.0.0.0/8"}, "NotIpAddress": {"request.ip": "10.1.0.0/16"}},
    {"StringNotEquals": {"resource.tag/env": "a"}, "Null": {"resource.tag/env": True}},
    {"Bool": {"principal.mfa": True, "resource.shared": False}},
]


@pytest.mark.parametrize("condition", NEVER, ids=str)
def test_a_condition_that_never_holds_is_said(registry: Registry, condition: dict[str, Any]) -> None:
    ((path, message),) = warnings(registry, {"Condition": condition})
    assert (path, message.startswith("can never hold")) == ("Statement[0].Condition", True)


@pytest.mark.parametrize("condition", MAYBE, ids=str)
def test_a_condition_that_may_hold_is_left_alone(registry: Registry, condition: dict[str, Any]) -> None:
    assert warnings(registry, {"Condition": condition}) == []


def test_what_another_statement_denies_anyway_has_no_effect(registry: Registry) -> None:
    wide = {"Sid": "No", "Effect": "Deny", "Action": "compute.instance.*"}
    assert warnings(registry, {}, wide) == [("Statement[0]", "has no effect: No denies all of it")]
    assert warnings(registry, {"Effect": "Deny"}, wide) == [("Statement[0]", "has no effect: No denies all of it")]
    assert warnings(registry, wide, {**wide, "Sid": "Again"}) == [("Statement[1]", "has no effect: No denies all of it")]
    assert warnings(registry, {"Action": "compute.*"}, wide) == []
    assert warnings(registry, {}, {**wide, "Condition": {"Bool": {"principal.mfa": False}}}) == []
