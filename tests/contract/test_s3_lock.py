"""Object lock: what is kept is deleted by nobody and nothing before its time, and only weakened where S3 lets it be."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import select

from portal.identity.models import User
from portal.kernel.audit import AuditEntry
from portal.kernel.operations import run
from portal.storage import lifecycle, locks
from portal.storage.buckets import bucket_delete
from portal.storage.errors import BucketLocked
from portal.storage.object_models import Bucket
from tests.support.s3 import S3, fetch, form_of, refused, sent
from tests.support.s3_operations import conforms
from tests.support.web import Api

BUCKET = "a-vault"
SOON, LATER = (datetime.now(UTC).replace(microsecond=0) + timedelta(days=days) for days in (10, 20))


@pytest.fixture
def client(s3: S3) -> Any:
    """A project admin's, with a bucket that has object lock."""
    made = s3.client()
    made.create_bucket(Bucket=BUCKET, ObjectLockEnabledForBucket=True)
    return made


def kept(client: Any, key: str = "k", **asked: Any) -> str:
    """The id of a version that is kept."""
    found = client.put_object(Bucket=BUCKET, Key=key, Body=b"kept", **(asked or {"ObjectLockMode": "GOVERNANCE", "ObjectLockRetainUntilDate": SOON}))
    return str(found["VersionId"])


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Callable[[datetime], None]:
    """`at(moment)`: from now on it is that moment for whatever looks whether something is kept, or expires."""

    def go(moment: datetime) -> None:
        for module in (locks, lifecycle):
            monkeypatch.setattr(module, "now", lambda: moment)

    return go


def retain(client: Any, version: str, mode: str, until: datetime, **more: Any) -> None:
    client.put_object_retention(Bucket=BUCKET, Key="k", VersionId=version, Retention={"Mode": mode, "RetainUntilDate": until}, **more)


@conforms("GetObjectLockConfiguration", "PutObjectLockConfiguration")
def test_a_bucket_says_that_it_has_object_lock(client: Any, s3: S3) -> None:
    found = client.get_object_lock_configuration(Bucket=BUCKET)["ObjectLockConfiguration"]
    assert found == {"ObjectLockEnabled": "Enabled"}
    assert client.get_bucket_versioning(Bucket=BUCKET)["Status"] == "Enabled"
    refused(lambda: client.put_bucket_versioning(Bucket=BUCKET, VersioningConfiguration={"Status": "Suspended"}), "InvalidBucketState")
    rule = {"ObjectLockEnabled": "Enabled", "Rule": {"DefaultRetention": {"Mode": "COMPLIANCE", "Days": 3}}}
    client.put_object_lock_configuration(Bucket=BUCKET, ObjectLockConfiguration=rule)
    assert client.get_object_lock_configuration(Bucket=BUCKET)["ObjectLockConfiguration"] == rule
    found = client.head_object(Bucket=BUCKET, Key="k", VersionId=kept(client, Metadata={"a": "b"}))
    length = found["ObjectLockRetainUntilDate"] - found["LastModified"]
    assert (found["ObjectLockMode"], timedelta(days=3) <= length <= timedelta(days=3, minutes=1)) == ("COMPLIANCE", True)
    developer = s3.client(s3.people.user("developer"))
    refused(lambda: developer.put_object_lock_configuration(Bucket=BUCKET, ObjectLockConfiguration={"ObjectLockEnabled": "Enabled"}), "AccessDenied")
    refused(lambda: developer.create_bucket(Bucket="another-vault", ObjectLockEnabledForBucket=True), "AccessDenied")


@pytest.mark.parametrize(
    ("default", "code"),
    [
        ({"Mode": "GOVERNANCE", "Days": 0}, "InvalidRetentionPeriod"), ({"Mode": "GOVERNANCE", "Years": -1}, "InvalidRetentionPeriod"),
        ({"Mode": "COMPLIANCE", "Days": 36_501}, "InvalidRetentionPeriod"), ({"Mode": "GOVERNANCE", "Days": 1, "Years": 1}, "MalformedXML"),
        ({"Mode": "governance", "Days": 1}, "MalformedXML"), ({"Mode": "GOVERNANCE"}, "MalformedXML"), ({"Days": 1}, "MalformedXML"),
    ],
)  # fmt: skip
def test_default_retentions_that_are_none(client: Any, default: dict[str, Any], code: str) -> None:
    rule = {"ObjectLockEnabled": "Enabled", "Rule": {"DefaultRetention": default}}
    refused(lambda: client.put_object_lock_configuration(Bucket=BUCKET, ObjectLockConfiguration=rule), code)
    refused(lambda: client.put_object_lock_configuration(Bucket=BUCKET, ObjectLockConfiguration={}), "MalformedXML")
    assert "Rule" not in client.get_object_lock_configuration(Bucket=BUCKET)["ObjectLockConfiguration"]


def test_a_bucket_without_versions_has_no_object_lock(client: Any) -> None:
    client.create_bucket(Bucket="plain")
    refused(lambda: client.get_object_lock_configuration(Bucket="plain"), "ObjectLockConfigurationNotFoundError")
    enable = {"Bucket": "plain", "ObjectLockConfiguration": {"ObjectLockEnabled": "Enabled"}}
    refused(lambda: client.put_object_lock_configuration(**enable), "InvalidBucketState")
    client.put_object(Bucket="plain", Key="k", Body=b"")
    about = {"Bucket": "plain", "Key": "k"}
    for call in (
        lambda: client.get_object_retention(**about),
        lambda: client.get_object_legal_hold(**about),
        lambda: client.put_object_legal_hold(**about, LegalHold={"Status": "ON"}),
        lambda: client.put_object_retention(**about, Retention={"Mode": "GOVERNANCE", "RetainUntilDate": SOON}),
        lambda: client.put_object(**about, Body=b"", ObjectLockLegalHoldStatus="ON"),
        lambda: client.create_multipart_upload(**about, ObjectLockMode="GOVERNANCE", ObjectLockRetainUntilDate=SOON),
    ):
        refused(call, "InvalidRequest")
    client.put_bucket_versioning(Bucket="plain", VersioningConfiguration={"Status": "Enabled"})
    client.put_object_lock_configuration(**enable)
    assert client.get_object_lock_configuration(Bucket="plain")["ObjectLockConfiguration"]["ObjectLockEnabled"] == "Enabled"


@conforms("GetObjectRetention", "PutObjectRetention")
def test_governance_gives_way_to_who_may_and_says_so(client: Any, s3: S3) -> None:
    developer = s3.client(s3.people.user("developer"))
    version = kept(developer)
    for who in (client, developer):
        refused(lambda who=who: who.delete_object(Bucket=BUCKET, Key="k", VersionId=version), "AccessDenied")
    refused(lambda: developer.delete_object(Bucket=BUCKET, Key="k", VersionId=version, BypassGovernanceRetention=True), "AccessDenied")
    retain(developer, version, "GOVERNANCE", LATER)
    refused(lambda: retain(client, version, "GOVERNANCE", SOON), "AccessDenied")
    refused(lambda: retain(developer, version, "GOVERNANCE", SOON, BypassGovernanceRetention=True), "AccessDenied")
    refused(lambda: retain(client, version, "COMPLIANCE", LATER), "AccessDenied")
    retain(client, version, "GOVERNANCE", SOON, BypassGovernanceRetention=True)
    found = client.get_object_retention(Bucket=BUCKET, Key="k", VersionId=version)["Retention"]
    assert found == {"Mode": "GOVERNANCE", "RetainUntilDate": SOON}
    # A mark on top of it deletes nothing.
    marker = client.delete_object(Bucket=BUCKET, Key="k")["VersionId"]
    client.delete_object(Bucket=BUCKET, Key="k", VersionId=marker)
    asked = {"Objects": [{"Key": "k", "VersionId": version}]}
    assert [each["Code"] for each in client.delete_objects(Bucket=BUCKET, Delete=asked)["Errors"]] == ["AccessDenied"]
    assert "Errors" not in client.delete_objects(Bucket=BUCKET, Delete=asked, BypassGovernanceRetention=True)
    refused(lambda: client.get_object(Bucket=BUCKET, Key="k"), "NoSuchKey")
    # Recorded although the bucket records no data events.
    db = s3.people.context(s3.people.admin()).db
    actions = db.scalars(select(AuditEntry.action).where(AuditEntry.resource_type == "storage.object").order_by(AuditEntry.seq)).all()
    assert actions == [f"storage.object.{verb}" for verb in ("retain", "bypass_retention", "retain", "bypass_retention")]


def test_compliance_gives_way_to_nobody(client: Any, s3: S3, at: Callable[[datetime], None]) -> None:
    version = kept(client, ObjectLockMode="COMPLIANCE", ObjectLockRetainUntilDate=SOON)
    boss = s3.client(s3.people.user("platform_admin"))
    for who in (client, boss):
        refused(lambda who=who: who.delete_object(Bucket=BUCKET, Key="k", VersionId=version, BypassGovernanceRetention=True), "AccessDenied")
        for mode, until in (("COMPLIANCE", SOON - timedelta(days=1)), ("GOVERNANCE", LATER)):
            refused(lambda who=who, mode=mode, until=until: retain(who, version, mode, until, BypassGovernanceRetention=True), "AccessDenied")
        empty = {"Bucket": BUCKET, "Key": "k", "VersionId": version, "Retention": {}, "BypassGovernanceRetention": True}
        refused(lambda who=who, empty=empty: who.put_object_retention(**empty), "AccessDenied")
    retain(client, version, "COMPLIANCE", LATER)
    at(LATER + timedelta(seconds=1))
    client.delete_object(Bucket=BUCKET, Key="k", VersionId=version)
    client.delete_bucket(Bucket=BUCKET)


@conforms("GetObjectLegalHold", "PutObjectLegalHold")
def test_a_legal_hold_stays_until_it_is_lifted(client: Any, s3: S3) -> None:
    version = kept(client, Metadata={})
    about = {"Bucket": BUCKET, "Key": "k", "VersionId": version}
    refused(lambda: client.get_object_legal_hold(**about), "NoSuchObjectLockConfiguration")
    refused(lambda: client.get_object_retention(**about), "NoSuchObjectLockConfiguration")
    client.put_object_legal_hold(**about, LegalHold={"Status": "ON"})
    assert client.get_object_legal_hold(**about)["LegalHold"] == {"Status": "ON"}
    assert client.head_object(**about)["ObjectLockLegalHoldStatus"] == "ON"
    refused(lambda: client.delete_object(**about, BypassGovernanceRetention=True), "AccessDenied")
    developer = s3.client(s3.people.user("developer"))
    refused(lambda: developer.put_object_legal_hold(**about, LegalHold={"Status": "OFF"}), "AccessDenied")
    refused(lambda: client.put_object_legal_hold(**about, LegalHold={"Status": "PERHAPS"}), "MalformedXML")
    client.put_object_legal_hold(**about, LegalHold={"Status": "OFF"})
    assert client.get_object_legal_hold(**about)["LegalHold"] == {"Status": "OFF"}
    client.delete_object(**about)


def test_what_headers_ask_for_is_checked(client: Any, s3: S3) -> None:
    past = datetime.now(UTC) - timedelta(days=1)
    for asked in (
        {"ObjectLockMode": "GOVERNANCE"},
        {"ObjectLockRetainUntilDate": SOON},
        {"ObjectLockMode": "FOREVER", "ObjectLockRetainUntilDate": SOON},
        {"ObjectLockMode": "GOVERNANCE", "ObjectLockRetainUntilDate": past},
        {"ObjectLockMode": "GOVERNANCE", "ObjectLockRetainUntilDate": datetime(9999, 12, 31, tzinfo=UTC)},
        {"ObjectLockLegalHoldStatus": "PERHAPS"},
    ):
        refused(lambda asked=asked: kept(client, **asked), "InvalidArgument")
    for odd in ("9999-12-31T23:59:59-12:00", "2040-01-01T00:00:00", "tomorrow"):
        answer = sent(s3, "PUT", f"/{BUCKET}/k", b"", x_amz_object_lock_mode="GOVERNANCE", x_amz_object_lock_retain_until_date=odd)
        assert (answer[0], b"<Code>InvalidArgument</Code>" in answer[2]) == (400, True), answer
    # What cannot be deleted again has to be what the client meant.
    headers = {"x-amz-object-lock-legal-hold": "ON"}
    params = {"Bucket": BUCKET, "Key": "k", "ObjectLockLegalHoldStatus": "ON"}
    address = client.generate_presigned_url("put_object", Params=params, ExpiresIn=60)
    answer = fetch(address, "PUT", b"kept", headers)
    assert (answer[0], b"Content-MD5 OR x-amz-checksum-" in answer[2]) == (400, True), answer
    assert fetch(address, "PUT", b"kept", {**headers, "Content-MD5": "/Zj0AjQfYqFGh3dIMX4jIw=="})[0] == 400
    assert list(s3.blobs.stored()) == []
    client.put_object(Bucket=BUCKET, Key="l", Body=b"x")
    refused(lambda: retain(client, "null", "GOVERNANCE", SOON), "NoSuchVersion")
    version = kept(client, Metadata={})
    refused(lambda: retain(client, version, "FOREVER", SOON), "MalformedXML")
    refused(lambda: retain(client, version, "GOVERNANCE", past), "InvalidArgument")
    marker = client.delete_object(Bucket=BUCKET, Key="k")["VersionId"]
    refused(lambda: retain(client, marker, "GOVERNANCE", SOON), "MethodNotAllowed")


def test_copies_uploads_in_parts_and_forms_are_kept_as_they_ask(client: Any, s3: S3) -> None:
    asked = {"ObjectLockMode": "GOVERNANCE", "ObjectLockRetainUntilDate": SOON, "ObjectLockLegalHoldStatus": "ON"}
    version = kept(client, Metadata={}, **asked)
    copied = client.copy_object(Bucket=BUCKET, Key="copy", CopySource={"Bucket": BUCKET, "Key": "k", "VersionId": version})
    refused(lambda: client.get_object_retention(Bucket=BUCKET, Key="copy", VersionId=copied["VersionId"]), "NoSuchObjectLockConfiguration")
    client.copy_object(Bucket=BUCKET, Key="copy", CopySource=f"{BUCKET}/k", **asked)
    upload = client.create_multipart_upload(Bucket=BUCKET, Key="parts", **asked)["UploadId"]
    of_upload = {"Bucket": BUCKET, "Key": "parts", "UploadId": upload}
    etag = client.upload_part(**of_upload, PartNumber=1, Body=b"x")["ETag"]
    client.complete_multipart_upload(**of_upload, MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": etag}]})
    fields = {"x-amz-object-lock-mode": "GOVERNANCE", "x-amz-object-lock-retain-until-date": SOON.isoformat(), "x-amz-object-lock-legal-hold": "ON"}
    form = client.generate_presigned_post(BUCKET, "form", Fields=dict(fields), Conditions=[{name: value} for name, value in fields.items()])
    assert fetch(form["url"], "POST", *form_of(form["fields"], b"x"))[0] == 204
    for key in ("copy", "parts", "form"):
        found = client.head_object(Bucket=BUCKET, Key=key)
        assert (found["ObjectLockMode"], found["ObjectLockRetainUntilDate"], found["ObjectLockLegalHoldStatus"]) == ("GOVERNANCE", SOON, "ON"), key
        refused(lambda key=key, found=found: client.delete_object(Bucket=BUCKET, Key=key, VersionId=found["VersionId"]), "AccessDenied")


def test_rules_for_the_life_of_objects_leave_what_is_kept(client: Any, s3: S3, at: Callable[[datetime], None]) -> None:
    version, plain = kept(client), kept(client, Metadata={})
    kept(client, Metadata={})
    rule = {"ID": "r", "Status": "Enabled", "Filter": {"Prefix": ""}, "NoncurrentVersionExpiration": {"NoncurrentDays": 1}}
    client.put_bucket_lifecycle_configuration(Bucket=BUCKET, LifecycleConfiguration={"Rules": [rule]})
    at(datetime.now(UTC) + timedelta(days=5))
    assert lifecycle.lifecycle_follow(s3.people.context(s3.people.admin())).versions == 1
    left = [each["VersionId"] for each in client.list_object_versions(Bucket=BUCKET)["Versions"]]
    assert (version in left, plain in left, len(left)) == (True, False, 2)


def test_a_bucket_stays_as_long_as_something_in_it_is_kept(client: Any, s3: S3, at: Callable[[datetime], None]) -> None:
    kept(client)
    refused(lambda: client.delete_bucket(Bucket=BUCKET), "BucketNotEmpty")
    admin = s3.people.context(s3.people.admin())
    bucket_id = admin.db.scalars(select(Bucket.id)).one()
    with pytest.raises(BucketLocked, match="kept by object lock"):
        run(admin, bucket_delete, bucket_id, {"force": True})
    assert client.get_object(Bucket=BUCKET, Key="k")["Body"].read() == b"kept"
    at(SOON + timedelta(seconds=1))
    run(admin, bucket_delete, bucket_id, {"force": True})


def test_a_project_says_what_is_kept_in_it(s3: S3, api_for: Callable[..., Api]) -> None:
    project = s3.people.project("apollo")
    owner = api_for("project_admin", project)
    user: User = owner.user
    client = s3.client(user)
    client.create_bucket(Bucket=BUCKET, ObjectLockEnabledForBucket=True)
    version = kept(client)
    said = owner.signed_in()("DELETE", f"/projects/{project}")
    assert (said.status_code, "Bucket a-vault is kept by object lock" in said.json["message"]) == (409, True), said.json
    client.delete_object(Bucket=BUCKET, Key="k", VersionId=version, BypassGovernanceRetention=True)
    assert owner("DELETE", f"/projects/{project}").status_code == 202
