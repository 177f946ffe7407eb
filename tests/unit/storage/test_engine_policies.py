"""What IAM says, as a bucket policy: never more than IAM says."""

import json
from dataclasses import replace
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from portal.catalogue import build_registry
from portal.kernel.context import SYSTEM, Context, Grant, Limit, Principal
from portal.kernel.policy import is_like
from portal.kernel.policy_documents import VERSION, statements_in
from portal.settings import Settings
from portal.storage.buckets import BUCKET
from portal.storage.engine_policies import document, rest_of, rights
from portal.storage.engine_steps import on_engine
from portal.storage.facts import BucketFacts

REGISTRY = build_registry()
FACTS = BucketFacts(
    "bkt-1", "logs", "prj-1", None, "private", "off", data_events=False, tags={}, policy=None, grants=None, object_lock=False, lock_rule=None,
    public_access_block=None, ownership="ObjectWriter", notifications=None, replication=None, encryption_type="none", kms_key_id=None,
    bucket_key_enabled=False,
)  # fmt: skip
# Operations on buckets that concern rows alone, whoever keeps the objects.
ROWS_ALONE = {"update", "lock", "unlock"}
REFUSED_THERE = {"set_object_lock", "set_website", "set_logging", "set_notifications", "set_replication", "set_encryption"}


def context() -> Context:
    return Context(cast("Any", None), Settings(), REGISTRY, SYSTEM)


def holder(*statements: dict[str, Any], project_id: str | None = "prj-1", limits: tuple[Limit, ...] = ()) -> Principal:
    return Principal("usr-1", "alice", "s3:AK", (Grant("pol-1", project_id, "a policy", said(*statements)),), limits=limits)


def said(*statements: dict[str, Any]) -> Any:
    return statements_in(
        {"Version": VERSION, "Statement": [{"Sid": f"S{n}", "Effect": "Allow", "Action": "*", **each} for n, each in enumerate(statements)]}
    )


def patterns(principal: Principal, verb: str, *, allows: bool = True) -> list[str]:
    return [pattern for each in rights(context(), principal, FACTS, verb).said if each.allows is allows for pattern in each.patterns]


@settings(deadline=None)
@given(st.text("ab*?", max_size=8), st.text("ab", max_size=4), st.text("ab", max_size=4))
def test_what_is_left_of_a_pattern_matches_what_is_left_of_a_text(pattern: str, start: str, end: str) -> None:
    assert is_like(start + end, pattern) is any(is_like(end, rest) for rest in rest_of(pattern, start))


@pytest.mark.parametrize(
    ("resource", "expected"),
    [("storage.object/logs/2026/*", ["2026/*"]), ("storage.object/*", ["*"]), ("*", ["*"]), ("storage.object/other/*", []), ("compute.*/*", []),
     ("storage.object/l*/x", ["*/x", "x"]), ("storage.*/logs/?", ["?"]), ("storage.object/logs", [])],
)  # fmt: skip
def test_resources_become_keys_of_the_bucket(resource: str, expected: list[str]) -> None:
    assert patterns(holder({"Resource": resource}), "read") == expected


def test_conditions_that_s3_knows_are_kept_and_others_never_allow() -> None:
    inside = {"IpAddress": {"request.ip": "10.0.0.0/8"}}
    found = rights(context(), holder({"Condition": inside}), FACTS, "read").said
    assert [json.loads(each.conditions) for each in found] == [{"IpAddress": {"aws:SourceIp": ["10.0.0.0/8"]}}]
    for unsayable in ({"StringEquals": {"resource.owner": "${principal.id}"}}, {"StringEquals": {"resource.tag/a": "b"}}):
        left_out = rights(context(), holder({"Condition": unsayable}), FACTS, "read")
        assert (left_out.said, len(left_out.left_out)) == ([], 1)
        assert patterns(holder({"Effect": "Deny", "Condition": unsayable}), "read", allows=False) == ["*"]
    assert patterns(holder({"Condition": {"StringEquals": {"principal.name": "alice"}}}), "read") == ["*"]
    assert patterns(holder({"Condition": {"StringEquals": {"principal.name": "bob"}}}), "read") == []
    assert patterns(holder({"Condition": {"Bool": {"principal.mfa": "true"}}}), "read") == []


def test_other_projects_and_boundaries() -> None:
    assert patterns(holder({}, project_id="prj-2"), "read") == []
    assert patterns(holder({}, project_id=None), "read") == ["*"]
    limit = Limit("boundary", said({"Resource": "storage.object/logs/a/*"}), "prj-1")
    assert patterns(holder({}, limits=(limit,)), "read") == ["a/*"]
    # Both speak of some keys: what is in both cannot be said.
    assert patterns(holder({"Resource": "storage.object/logs/*/b"}, limits=(limit,)), "read") == []
    assert patterns(holder({"Resource": "storage.object/logs/b"}, limits=(Limit("all", said({}), "prj-1"),)), "read") == ["b"]
    assert patterns(holder({}, limits=(Limit("elsewhere", said({"Action": "compute.*"}), "prj-2"),)), "read") == ["*"]


def test_whoever_may_not_is_told_so() -> None:
    made = document(
        context(), FACTS, "arn:owner", {"arn:alice": holder({"Action": "storage.object.read", "Resource": "storage.object/logs/a/*"})}, {}
    )
    denied = {action: each for each in made["Statement"] if each["Effect"] == "Deny" for action in each["Action"]}
    assert denied["s3:GetObject"]["NotResource"] == ["arn:aws:s3:::logs/a/*"]
    assert denied["s3:PutObjectAcl"]["Resource"] == denied["s3:DeleteObject"]["Resource"] == ["arn:aws:s3:::logs/*"]
    assert [each["Principal"] for each in made["Statement"] if "s3:*" in each["Action"]] == [{"AWS": ["arn:owner"]}]
    public = replace(FACTS, acl="public-read")
    made = document(context(), public, "arn:owner", {"arn:alice": holder()}, {})
    assert [each["Effect"] for each in made["Statement"] if "s3:ListBucket" in each["Action"]] == ["Allow"]
    for closed in (replace(public, ownership="BucketOwnerEnforced"), replace(public, public_access_block={"ignore_public_acls": True})):
        made = document(context(), closed, "arn:owner", {"arn:alice": holder({"Action": "storage.object.*"})}, {})
        assert [each for each in made["Statement"] if each["Principal"] == "*"] == []
        assert "s3:PutObjectAcl" in [action for each in made["Statement"] if each["Effect"] == "Deny" for action in each["Action"]]


def test_people_with_the_same_rights_share_their_statements() -> None:
    people = {f"arn:{number}": holder({"Action": "storage.object.*"}) for number in range(100)}
    made = document(context(), FACTS, "arn:owner", people, {})
    assert len(made["Statement"]) < 10
    assert len(json.dumps(made)) < 20_000


def test_every_change_of_a_bucket_reaches_an_external_engine() -> None:
    forgotten = {op.verb for op in BUCKET.operations if op.by_job is not on_engine} - ROWS_ALONE - REFUSED_THERE
    assert forgotten == set(), (
        "Give them ON_ENGINE, and say in engine_wanted what the engine is to be told; or refuse them there with refuse_on_engine"
    )
