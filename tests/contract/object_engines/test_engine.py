"""What only an external engine has: jobs that are repeated, drift, keys and accounts that somebody made there, an engine that is silent."""

import json
from typing import Any

import pytest

from portal.engines.object_engine_ports import BucketWanted, EngineObject, Key, ObjectRefused, Sent
from portal.engines.ports import EngineUnavailable
from portal.engines.registry import open_objects
from portal.kernel.jobs import Job
from portal.settings import ObjectsAdmin
from portal.storage.engine_tending import look_at_engine, tend_engine
from portal.storage.engine_wanted import HOLDER, OWNER, owner_key
from tests.support.ceph import Ceph, needs_ceph
from tests.support.object_engines import BUCKETS, OPEN, Place
from tests.support.s3 import client, refused
from tests.support.web import browser, csrf_of


@pytest.fixture(params=[pytest.param("s3", marks=needs_ceph)])
def driver(request: pytest.FixtureRequest) -> str:
    """This one alone."""
    return str(request.param)


def engine_of(place: Place) -> Any:
    found = place.worker.runner.engines.objects
    assert found is not None
    return found


def test_what_somebody_changed_there_is_mended(place: Place) -> None:
    bucket = place.bucket("drifted")
    rules = [{"id": "old", "prefix": "log/", "expire_days": 3, "tags": {"a": "b"}}, {"id": "new", "noncurrent_days": 2}]
    place.api("PUT", f"{BUCKETS}/{bucket}/lifecycle", {"rules": rules})
    place.settle()
    place.api("PUT", f"{BUCKETS}/{bucket}/cors", {"rules": [{"methods": ["PUT", "GET"], "origins": ["https://b.example", "https://a.example"]}]})
    place.settle()
    owner = place.owner()

    def jobs() -> int:
        with place.people.sessions() as session:
            return session.query(Job).filter(Job.kind == "storage.bucket.refit").count()

    before = jobs()
    place.look(look_at_engine)
    assert jobs() == before
    owner.put_bucket_policy(Bucket="drifted", Policy=json.dumps({"Version": "2012-10-17", "Statement": [
        {"Effect": "Allow", "Principal": "*", "Action": "s3:GetObject", "Resource": "arn:aws:s3:::drifted/*"}]}))  # fmt: skip
    owner.delete_bucket_lifecycle(Bucket="drifted")
    owner.put_bucket_versioning(Bucket="drifted", VersioningConfiguration={"Status": "Suspended"})
    place.look(look_at_engine)
    assert jobs() == before + 1
    assert "*" not in [each["Principal"] for each in json.loads(owner.get_bucket_policy(Bucket="drifted")["Policy"])["Statement"]]
    assert len(owner.get_bucket_lifecycle_configuration(Bucket="drifted")["Rules"]) == 2
    assert owner.get_bucket_versioning(Bucket="drifted")["Status"] == "Enabled"
    assert owner.delete_bucket_policy(Bucket="drifted")["ResponseMetadata"]["HTTPStatusCode"] in {200, 204}


def test_accounts_and_keys_that_the_portal_does_not_know_of_go(place: Place) -> None:
    accounts = engine_of(place).accounts
    place.s3()
    accounts.ensure(f"{HOLDER}nobody", "Nobody", lambda: [Key("STRAY000000000000000", "stray-secret")])
    user = f"{HOLDER}{place.api.user.id}"
    assert {user, f"{HOLDER}nobody"} <= set(accounts.names())
    place.look(tend_engine)
    assert user in accounts.names()
    assert f"{HOLDER}nobody" not in accounts.names()
    refused(lambda: client(place.url, "STRAY000000000000000", "stray-secret").list_buckets(), "InvalidAccessKeyId")
    # The one that the portal itself comes with is none of its accounts.
    engine_of(place).buckets().ping()


def test_a_bucket_that_the_portal_did_not_make(place: Place, ceph: Ceph) -> None:
    foreign = client(ceph.url, *ceph.key)
    foreign.create_bucket(Bucket="was-there-before")
    made = place.api.post(BUCKETS, {"name": "was-there-before"}).json
    place.settle()
    found = place.api.get(f"{BUCKETS}/{made['id']}").json
    assert (found["state"], "Choose another name" in found["state_reason"]) == ("error", True), found
    place.api("DELETE", f"{BUCKETS}/{made['id']}?force=true")
    place.settle()
    assert place.api.get(f"{BUCKETS}/{made['id']}").json["state"] == "deleted"
    assert [each["Name"] for each in foreign.list_buckets()["Buckets"]] == ["was-there-before"]
    foreign.delete_bucket(Bucket="was-there-before")


def test_the_portals_own_key_takes_no_bucket_over(place: Place, ceph: Ceph) -> None:
    engine = engine_of(place).buckets()
    wanted = BucketWanted("taken-over", "bkt-1")
    assert not engine.is_there("taken-over")
    for _ in range(2):
        engine.ensure_bucket(wanted)
    assert engine.is_there("taken-over")
    with pytest.raises(ObjectRefused) as caught:
        engine.ensure_bucket(BucketWanted("taken-over", "bkt-2"))
    assert caught.value.code == "BucketAlreadyExists"
    engine.remove_bucket("taken-over", "bkt-2", force=True)
    assert not engine.differs(wanted)
    foreign = client(ceph.url, *ceph.key)
    foreign.delete_bucket_tagging(Bucket="taken-over")
    # Empty, and nevertheless somebody else's.
    with pytest.raises(ObjectRefused):
        engine.ensure_bucket(wanted)
    # A crash between the bucket and its mark.
    engine.ensure_bucket(wanted, is_begun=True)
    foreign.delete_bucket_tagging(Bucket="taken-over")
    foreign.put_object(Bucket="taken-over", Key="k", Body=b"somebody's")
    with pytest.raises(ObjectRefused):
        engine.ensure_bucket(wanted, is_begun=True)
    engine.remove_bucket("taken-over", "bkt-1", force=True)
    assert foreign.get_object(Bucket="taken-over", Key="k")["Body"].read() == b"somebody's"
    foreign.delete_object(Bucket="taken-over", Key="k")
    foreign.delete_bucket(Bucket="taken-over")


def test_an_upload_that_breaks_off_leaves_nothing(place: Place) -> None:
    place.bucket("broken-off")
    buckets = engine_of(place).buckets(owner_key(place.settings, place.people.project_id))
    pieces = iter([b"x" * 100_000, b""])
    with pytest.raises(ObjectRefused) as caught:
        buckets.put("broken-off", "k", Sent(lambda _size: next(pieces), 1_000_000), EngineObject("k", ""))
    assert caught.value.code == "IncompleteBody"
    assert buckets.list("broken-off", "").objects == []


def test_the_quota_is_the_engines(place: Place, s3: Any) -> None:
    place.bucket("held-to-it")
    accounts, key = engine_of(place).accounts, owner_key(place.settings, place.people.project_id)
    owner = client(place.url, key.id, key.secret)
    accounts.limit(OWNER + place.people.project_id, 1 << 20)
    refused(lambda: owner.put_object(Bucket="held-to-it", Key="k", Body=b"x" * (2 << 20)), "QuotaExceeded")
    refused(lambda: s3.put_object(Bucket="held-to-it", Key="k", Body=b"x" * (2 << 20)), "QuotaExceeded")
    place.look(look_at_engine)
    s3.put_object(Bucket="held-to-it", Key="k", Body=b"x" * (2 << 20))


def test_an_engine_without_an_interface_for_users(place: Place) -> None:
    settings = place.settings.model_copy(update={"s3_engine_admin": ObjectsAdmin.NONE})
    engine = open_objects(settings)
    assert engine is not None
    assert engine.accounts is None
    assert engine.capability().available
    place.app.extensions["portal_engines"] = type(place.app.extensions["portal_engines"])(objects=engine)
    assert place.api.post("/auth/s3-keys", {}).status_code == 409


def test_an_engine_that_is_silent(place: Place, ceph: Ceph) -> None:
    bucket = place.bucket("silent")
    place.api("PUT", f"{BUCKETS}/{bucket}/objects/k", data=b"x")
    ceph.kill()
    try:
        found = engine_of(place).capability()
        assert (found.available, "does not answer" in found.reason, bool(found.remedy)) == (False, True, True)
        assert place.api.get(f"{BUCKETS}/{bucket}/objects/k").status_code == 503
        assert place.api("PUT", f"{BUCKETS}/{bucket}/objects/l", data=b"x").status_code == 503
        with pytest.raises(EngineUnavailable):
            engine_of(place).accounts.names()
        made = place.api.post(BUCKETS, {"name": "made-later"}).json
        place.worker.run_one()
        assert place.api.get(f"{BUCKETS}/{made['id']}").json["state"] == "creating"
    finally:
        ceph.start()
    place.worker.drain()
    assert place.api.get(f"{BUCKETS}/{made['id']}").json["state"] == "active"
    assert place.api.get(f"{BUCKETS}/{bucket}/objects/k").data == b"x"


def test_the_console_says_where_the_objects_are(place: Place) -> None:
    bucket = place.bucket("seen-in-console")
    console = browser(place.app, place.people, place.people.user("project_admin"))
    page = console.get(f"/storage/buckets/{bucket}")
    assert (page.status_code, place.url in page.text, "gives them out itself" in page.text) == (200, True, True)
    assert place.url in console.get(f"/storage/buckets/{bucket}/connect").text
    assert console.get(f"/storage/buckets/{bucket}/object?key=k").status_code == 503
    for tab in ("settings", "usage", "keys"):
        assert console.get(f"/storage/buckets/{bucket}/{tab}").status_code == 200, tab
    made = console.post(f"/storage/buckets/{bucket}/keys", data={"csrf_token": csrf_of(console.get(f"/storage/buckets/{bucket}/keys")), "name": "k"})
    assert made.status_code == 201, made.text
    assert any(name.startswith(HOLDER) for name in engine_of(place).accounts.names())


def test_what_the_portal_does_not_ask_of_an_engine_is_refused(place: Place) -> None:
    bucket = place.bucket("not-all")
    for path, document in (("object-lock", {"enabled": True}), ("lifecycle", {"rules": [{"id": "a", "expire_days": 1, "larger_than": 5}]})):
        assert place.api("PUT", f"{BUCKETS}/{bucket}/{path}", document).status_code in {400, 503}, path
    assert place.api.post(BUCKETS, {"name": "with-a-lock", "object_lock": True}).status_code == 503
    assert place.api.post(f"{BUCKETS}/{bucket}/empty", {}).status_code == 503


def test_what_the_engine_refuses_keeps_nobody_in(place: Place, s3: Any) -> None:
    bucket = place.bucket("refused-rules", **OPEN)
    s3.put_object(Bucket="refused-rules", Key="k", Body=b"x")
    reader = place.s3(place.api_of(place.people.user("viewer", place.people.project())))
    letting_in = {"Effect": "Allow", "Principal": "*", "Action": "s3:GetObject", "Resource": "arn:aws:s3:::refused-rules/*"}
    assert place.api("PUT", f"{BUCKETS}/{bucket}/policy", {"Version": "2012-10-17", "Statement": [letting_in]}).status_code == 200
    place.settle()
    assert reader.get_object(Bucket="refused-rules", Key="k")["Body"].read() == b"x"
    # RGW knows no such rule with tags.
    rules = [{"id": "a", "tags": {"a": "b"}, "expire_markers": True}]
    assert place.api("PUT", f"{BUCKETS}/{bucket}/lifecycle", {"rules": rules}).status_code == 200
    place.settle()
    assert place.api("DELETE", f"{BUCKETS}/{bucket}/policy").status_code == 204
    place.settle()
    refused(lambda: reader.get_object(Bucket="refused-rules", Key="k"), "AccessDenied")

    def failed() -> int:
        with place.people.sessions() as session:
            return session.query(Job).filter(Job.resource_id == bucket, Job.state == "failed").count()

    before = failed()
    assert before
    # What was refused is not asked for again and again.
    for _ in range(2):
        place.look(tend_engine)
        place.look(look_at_engine)
    assert failed() == before
