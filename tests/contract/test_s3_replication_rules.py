"""Several rules of replication: which of them decides, what goes to which bucket, and that one bucket's trouble is not another's."""

from typing import Any

import pytest
from sqlalchemy import select

from portal.kernel.context import Context
from portal.storage import replicating
from portal.storage.replicating import replication_run
from portal.storage.replication import BucketReplication, ReplicaChange
from tests.support.people import People
from tests.support.s3 import S3, refused
from tests.support.web import Api

SOURCE, ONE, TWO = "a-source", "target-one", "target-two"
Rules = list[dict[str, Any]]


@pytest.fixture
def client(s3: S3) -> Any:
    made = s3.client()
    for name in (SOURCE, ONE, TWO):
        made.create_bucket(Bucket=name)
        made.put_bucket_versioning(Bucket=name, VersioningConfiguration={"Status": "Enabled"})
    return made


@pytest.fixture
def system(people: People) -> Context:
    return people.context(None)


@pytest.fixture
def base(api: Api, client: Any) -> str:
    return f"/storage/buckets/{api.get('/storage/buckets?search=' + SOURCE).json['results'][0]['id']}"


def rule(number: int, target: str = ONE, where: dict[str, Any] | None = None, *, markers: bool = False, **more: Any) -> dict[str, Any]:
    status = {"Status": "Enabled" if markers else "Disabled"}
    return {"ID": f"r{number}", "Priority": number, "Status": "Enabled", "Filter": where if where is not None else {"Prefix": ""},
            "DeleteMarkerReplication": status, "Destination": {"Bucket": f"arn:aws:s3:::{target}"}, **more}  # fmt: skip


def tag(name: str, value: str) -> dict[str, str]:
    return {"Key": name, "Value": value}


def put(client: Any, *rules: dict[str, Any]) -> None:
    client.put_bucket_replication(Bucket=SOURCE, ReplicationConfiguration={"Role": "", "Rules": list(rules)})


def keys(client: Any, bucket: str) -> list[str]:
    found = client.list_object_versions(Bucket=bucket)
    return sorted([each["Key"] for each in found.get("Versions", [])] + [f"{each['Key']} deleted" for each in found.get("DeleteMarkers", [])])


def test_rules_are_told_as_they_were_given(client: Any) -> None:
    both = {"And": {"Prefix": "a/", "Tags": [tag("x", "1"), tag("y", "2")]}}
    given = [rule(7, TWO, both), rule(3, ONE, {"Tag": tag("x", "1")}), rule(2, ONE, {"Prefix": "b/"}, markers=True, Status="Disabled")]
    put(client, *given)
    found = client.get_bucket_replication(Bucket=SOURCE)["ReplicationConfiguration"]["Rules"]
    off = {"Status": "Disabled"}
    assert found == [{**each, "ExistingObjectReplication": off} for each in given]
    # The older schema: no filter, no priority, and marks of deletion come along.
    first = {"ID": "old", "Prefix": "logs/", "Status": "Enabled", "Destination": {"Bucket": f"arn:aws:s3:::{ONE}"}}
    put(client, first, {**first, "ID": "older", "Prefix": "x/"})
    found = client.get_bucket_replication(Bucket=SOURCE)["ReplicationConfiguration"]["Rules"]
    assert [(each["ID"], each["Filter"], each["DeleteMarkerReplication"]["Status"]) for each in found] == [
        ("old", {"Prefix": "logs/"}, "Enabled"), ("older", {"Prefix": "x/"}, "Enabled"),
    ]  # fmt: skip


def test_rules_that_are_refused(client: Any) -> None:
    with_key = {"Bucket": f"arn:aws:s3:::{ONE}", "EncryptionConfiguration": {"ReplicaKmsKeyID": "k"}}
    without = {name: value for name, value in rule(1).items() if name != "Priority"}
    no_markers = {name: value for name, value in rule(1).items() if name != "DeleteMarkerReplication"}
    old = {"Status": "Enabled", "Prefix": "", "Destination": {"Bucket": f"arn:aws:s3:::{ONE}"}}
    unencrypted = {"SseKmsEncryptedObjects": {"Status": "Disabled"}}
    for rules, code in (
        ([rule(1), rule(1, TWO, ID="other")], "InvalidRequest"), ([rule(1), rule(2, ID="r1")], "InvalidRequest"),
        ([rule(1, ONE, {"Tag": tag("a", "b")}, markers=True)], "InvalidRequest"), ([rule(1, "nobodys")], "InvalidRequest"),
        ([without], "InvalidRequest"), ([no_markers], "InvalidRequest"), ([rule(1), old], "MalformedXML"), ([], "MalformedXML"),
        ([rule(1, ONE, {"And": {"Prefix": "a"}})], "MalformedXML"), ([rule(number) for number in range(101)], "InvalidRequest"),
        ([rule(1, Destination=with_key)], "NotImplemented"), ([rule(1, SourceSelectionCriteria=unencrypted)], "NotImplemented"),
    ):  # fmt: skip
        refused(lambda rules=rules: put(client, *rules), code)
    refused(lambda: client.get_bucket_replication(Bucket=SOURCE), "ReplicationConfigurationNotFoundError")
    put(client, rule(1, SourceSelectionCriteria={"SseKmsEncryptedObjects": {"Status": "Enabled"}}))


def test_of_rules_for_one_bucket_the_highest_priority_decides(client: Any, s3: S3, system: Context) -> None:
    put(
        client,
        rule(1, ONE, markers=True),
        rule(2, ONE, {"Prefix": "quiet/"}),
        rule(3, TWO, {"Tag": tag("copy", "yes")}),
        rule(4, TWO, Status="Disabled"),
    )
    for key, tags in (("a", ""), ("quiet/b", "copy=yes"), ("c", "copy=no"), ("d", "copy=yes")):
        client.put_object(Bucket=SOURCE, Key=key, Body=b"x", Tagging=tags)
    for key in ("a", "quiet/b"):
        client.delete_object(Bucket=SOURCE, Key=key)
    assert replication_run(system, s3.blobs) == 7
    assert keys(client, ONE) == ["a", "a deleted", "c", "d", "quiet/b"]
    assert keys(client, TWO) == ["d", "quiet/b"]


def test_a_version_is_done_when_it_is_everywhere(client: Any, s3: S3, system: Context, api: Api, base: str) -> None:
    put(client, rule(1, ONE), rule(2, TWO))
    client.put_object(Bucket=SOURCE, Key="k", Body=b"x")
    client.delete_bucket(Bucket=TWO)
    assert replication_run(system, s3.blobs) == 1
    assert (keys(client, ONE), client.head_object(Bucket=SOURCE, Key="k")["ReplicationStatus"]) == (["k"], "PENDING")
    state = api.get(f"{base}/replication").json
    assert [(each["id"], each["status"]) for each in state["rules"]] == [("r2", "failing"), ("r1", "active")]
    assert ("is gone" in state["rules"][0]["last_error"], state["rules"][1]["last_error"], state["waiting"]) == (True, "", 1)
    # Without the one that is gone nothing is in the way.
    put(client, rule(1, ONE))
    assert api.get(f"{base}/replication").json["waiting"] == 0
    client.put_object(Bucket=SOURCE, Key="k", Body=b"y")
    assert replication_run(system, s3.blobs) == 1
    assert client.head_object(Bucket=SOURCE, Key="k")["ReplicationStatus"] == "COMPLETED"


def test_what_waits_is_not_lost_when_rules_change(client: Any, s3: S3, system: Context) -> None:
    put(client, rule(1, ONE, {"Prefix": "a/"}))
    client.put_object(Bucket=SOURCE, Key="a/k", Body=b"x")
    put(client, rule(1, ONE, {"Prefix": "b/"}), rule(2, TWO))
    client.put_object(Bucket=SOURCE, Key="b/k", Body=b"x")
    replication_run(system, s3.blobs)
    assert (keys(client, ONE), keys(client, TWO)) == (["a/k", "b/k"], ["b/k"])
    client.delete_bucket_replication(Bucket=SOURCE)
    assert (system.db.scalars(select(BucketReplication)).all(), system.db.scalars(select(ReplicaChange)).all()) == ([], [])


def test_rules_by_the_api(client: Any, s3: S3, system: Context, api: Api, base: str) -> None:
    for key, tags in (("a/one", "t=1"), ("b/two", "")):
        client.put_object(Bucket=SOURCE, Key=key, Body=b"x", Tagging=tags)
    given = [{"destination_bucket": ONE, "prefix": "a/", "delete_markers": True}, {"destination_bucket": TWO, "tags": {"t": "1"}, "existing": False}]
    done = api("PUT", f"{base}/replication", {"rules": given})
    assert (done.status_code, [(each["id"], each["priority"], each["status"]) for each in done.json["rules"]]) == (
        200, [("rule-1", 2, "copying"), ("rule-2", 1, "active")],
    ), done.json  # fmt: skip
    replication_run(system, s3.blobs)
    assert (keys(client, ONE), keys(client, TWO)) == (["a/one"], [])
    # One more, of things that are there; the same again replaces it.
    for _ in range(2):
        asked = api.post(f"{base}/replication", {"destination_bucket": TWO, "prefix": "b/"})
        assert asked.status_code == 202, asked.json
    rules = api.get(f"{base}/replication").json["rules"]
    assert [(each["destination_bucket"], each["prefix"], each["priority"]) for each in rules] == [(TWO, "b/", 3), (ONE, "a/", 2), (TWO, "", 1)]
    replication_run(system, s3.blobs)
    assert keys(client, TWO) == ["b/two"]
    for wrong in (
        {"rules": [{}]},
        {"rules": [{"destination_bucket": ONE, "priority": -1}]},
        {"rules": [{"destination_bucket": ONE, "x": 1}]},
        {"rules": 1},
    ):
        assert api("PUT", f"{base}/replication", wrong).status_code == 400, wrong
    eleven = [{"destination_bucket": f"d{number}"} for number in range(11)]
    for each in eleven:
        api.post("/storage/buckets", {"name": each["destination_bucket"] + "-x"})
        each["destination_bucket"] += "-x"
    assert "10 buckets at most" in str(api("PUT", f"{base}/replication", {"rules": eleven}).json)
    assert api("PUT", f"{base}/replication", {"rules": []}).json["rules"] == []


@pytest.mark.parametrize("target", [ONE, TWO])
def test_rules_that_are_set_while_others_are_followed_begin_at_the_beginning(
    client: Any, s3: S3, system: Context, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:  # fmt: skip
    for key in ("a/1", "a/2", "b/1"):
        client.put_object(Bucket=SOURCE, Key=key, Body=b"x")
    existing = {"ExistingObjectReplication": {"Status": "Enabled"}}
    put(client, rule(1, ONE, {"Prefix": "b/"}, **existing))
    copies, done = replicating._Work._copy, list[int]()

    def meanwhile(work: Any, *args: Any) -> Any:
        if not done:
            done.append(1)
            put(client, rule(2, target, {"Prefix": "a/"}, **existing))
        return copies(work, *args)

    monkeypatch.setattr(replicating._Work, "_copy", meanwhile)
    replication_run(system, s3.blobs)
    monkeypatch.undo()
    replication_run(system, s3.blobs)
    assert {"a/1", "a/2"} <= set(keys(client, target))
