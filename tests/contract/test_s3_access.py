"""Who else is let in: lists of access, who owns what is written, and what keeps a bucket from being everybody's."""

import json
from typing import Any

import pytest

from portal.identity.models import User
from portal.storage.grants import FLAGS
from tests.support.s3 import S3, fetch, open_bucket, refused, sent
from tests.support.s3_operations import conforms

BUCKET = "a-bucket"
GROUPS = "http://acs.amazonaws.com/groups/global/"
ALL, SIGNED_IN = {"Type": "Group", "URI": f"{GROUPS}AllUsers"}, {"Type": "Group", "URI": f"{GROUPS}AuthenticatedUsers"}
PUBLIC = {"Effect": "Allow", "Principal": "*", "Action": "s3:GetObject", "Resource": f"arn:aws:s3:::{BUCKET}/*"}
EVERYTHING = {"BlockPublicAcls": True, "IgnorePublicAcls": True, "BlockPublicPolicy": True, "RestrictPublicBuckets": True}


@pytest.fixture
def client(s3: S3) -> Any:
    """A project admin's, with a bucket in which lists of access count."""
    made = s3.client()
    open_bucket(made, BUCKET)
    made.put_object(Bucket=BUCKET, Key="k", Body=b"open")
    return made


@pytest.fixture
def stranger(s3: S3) -> User:
    """Somebody of another project."""
    return s3.people.user("project_admin", s3.people.project())


def block(client: Any, **flags: bool) -> None:
    client.put_public_access_block(Bucket=BUCKET, PublicAccessBlockConfiguration=flags)


def policy(*statements: dict[str, Any]) -> str:
    return json.dumps({"Version": "2012-10-17", "Statement": list(statements)})


def by_list(owner: dict[str, str], *grants: tuple[dict[str, str], str]) -> dict[str, Any]:
    return {"Owner": owner, "Grants": [{"Grantee": grantee, "Permission": permission} for grantee, permission in grants]}


def person(user: User) -> dict[str, str]:
    return {"Type": "CanonicalUser", "ID": user.id}


@conforms("GetPublicAccessBlock", "GetBucketOwnershipControls")
def test_a_new_bucket_is_nobody_elses(s3: S3) -> None:
    client = s3.client()
    client.create_bucket(Bucket=BUCKET)
    client.put_object(Bucket=BUCKET, Key="k", Body=b"", ACL="bucket-owner-full-control")
    assert client.get_public_access_block(Bucket=BUCKET)["PublicAccessBlockConfiguration"] == EVERYTHING
    rules = client.get_bucket_ownership_controls(Bucket=BUCKET)["OwnershipControls"]["Rules"]
    assert rules == [{"ObjectOwnership": "BucketOwnerEnforced"}]
    for call in (
        lambda: client.put_bucket_acl(Bucket=BUCKET, ACL="public-read"),
        lambda: client.put_object_acl(Bucket=BUCKET, Key="k", ACL="public-read"),
        lambda: client.put_object(Bucket=BUCKET, Key="k", Body=b"", ACL="public-read"),
        lambda: client.put_object(Bucket=BUCKET, Key="k", Body=b"", GrantRead='id="x"'),
        lambda: client.create_multipart_upload(Bucket=BUCKET, Key="k", ACL="authenticated-read"),
        lambda: client.copy_object(Bucket=BUCKET, Key="l", CopySource=f"{BUCKET}/k", ACL="public-read"),
    ):
        refused(call, "AccessControlListNotSupported")
    refused(lambda: client.put_bucket_policy(Bucket=BUCKET, Policy=policy(PUBLIC)), "AccessDenied")
    found = client.get_object_acl(Bucket=BUCKET, Key="k")
    assert [(each["Grantee"]["ID"], each["Permission"]) for each in found["Grants"]] == [(found["Owner"]["ID"], "FULL_CONTROL")]


def test_what_is_read_of_a_bucket_without_lists_may_be_written_again(s3: S3) -> None:
    """Clients copy an object with its list."""
    client = s3.client()
    client.create_bucket(Bucket=BUCKET)
    client.put_object(Bucket=BUCKET, Key="k", Body=b"")
    for read, write, about in (
        (client.get_object_acl, client.put_object_acl, {"Bucket": BUCKET, "Key": "k"}),
        (client.get_bucket_acl, client.put_bucket_acl, {"Bucket": BUCKET}),
    ):
        found = read(**about)
        wanted = {"Owner": found["Owner"], "Grants": found["Grants"]}
        write(**about, AccessControlPolicy=wanted)
        assert read(**about)["Grants"] == found["Grants"]
        open_one = {**wanted, "Grants": [*found["Grants"], {"Grantee": ALL, "Permission": "READ"}]}
        refused(lambda write=write, about=about, open_one=open_one: write(**about, AccessControlPolicy=open_one), "AccessControlListNotSupported")


@conforms("PutBucketOwnershipControls", "DeleteBucketOwnershipControls", "DeletePublicAccessBlock")
def test_what_a_new_bucket_is_asked_to_be_must_fit(s3: S3) -> None:
    client = s3.client()
    for acl in ("public-read", "authenticated-read", "log-delivery-write"):
        refused(lambda acl=acl: client.create_bucket(Bucket=BUCKET, ACL=acl), "InvalidBucketAclWithObjectOwnership")
    for acl in ("public-read", "authenticated-read"):
        refused(
            lambda acl=acl: client.create_bucket(Bucket=BUCKET, ACL=acl, ObjectOwnership="ObjectWriter"), "InvalidBucketAclWithBlockPublicAccessError"
        )
    client.create_bucket(Bucket=BUCKET, ACL="log-delivery-write", ObjectOwnership="BucketOwnerPreferred")
    granted = {(each["Grantee"].get("URI"), each["Permission"]) for each in client.get_bucket_acl(Bucket=BUCKET)["Grants"]}
    assert granted == {("http://acs.amazonaws.com/groups/s3/LogDelivery", permission) for permission in ("WRITE", "READ_ACP")}
    refused(
        lambda: client.put_bucket_ownership_controls(Bucket=BUCKET, OwnershipControls={"Rules": [{"ObjectOwnership": "BucketOwnerEnforced"}]}),
        "InvalidBucketAclWithObjectOwnership",
    )
    refused(lambda: s3.client(s3.people.user("developer")).delete_public_access_block(Bucket=BUCKET), "AccessDenied")
    client.delete_bucket_ownership_controls(Bucket=BUCKET)
    refused(lambda: client.get_bucket_ownership_controls(Bucket=BUCKET), "OwnershipControlsNotFoundError")
    client.delete_public_access_block(Bucket=BUCKET)
    refused(lambda: client.get_public_access_block(Bucket=BUCKET), "NoSuchPublicAccessBlockConfiguration")


def test_words_let_in_as_they_say(client: Any, s3: S3, stranger: User) -> None:
    address, theirs = f"{s3.url}/{BUCKET}/k", s3.client(stranger)
    assert fetch(address)[0] == 403
    client.put_object_acl(Bucket=BUCKET, Key="k", ACL="public-read")
    assert fetch(address)[::2] == (200, b"open")
    assert fetch(f"{s3.url}/{BUCKET}/none")[0] == 403
    assert fetch(f"{s3.url}/{BUCKET}")[0] == 403
    client.put_object_acl(Bucket=BUCKET, Key="k", ACL="authenticated-read")
    assert (fetch(address)[0], theirs.get_object(Bucket=BUCKET, Key="k")["Body"].read()) == (403, b"open")
    client.put_object_acl(Bucket=BUCKET, Key="k", ACL="private")
    # The list of a bucket says what is in it, and not what that says.
    client.put_bucket_acl(Bucket=BUCKET, ACL="public-read")
    assert b"<Key>k</Key>" in fetch(f"{s3.url}/{BUCKET}?list-type=2")[2]
    assert (fetch(address)[0], fetch(address, "PUT", b"")[0], fetch(address, "DELETE")[0]) == (403, 403, 403)
    client.put_bucket_acl(Bucket=BUCKET, ACL="public-read-write")
    assert (fetch(f"{s3.url}/{BUCKET}/in", "PUT", b"")[0], fetch(f"{s3.url}/{BUCKET}/in", "DELETE")[0]) == (200, 204)


def test_who_may_list_a_bucket_reads_none_of_its_settings(client: Any, s3: S3) -> None:
    """Tags say what something is for, and rules who uses it: a list that everybody may read is of keys."""
    client.put_bucket_tagging(Bucket=BUCKET, Tagging={"TagSet": [{"Key": "cost-centre", "Value": "secret"}]})
    client.put_bucket_cors(Bucket=BUCKET, CORSConfiguration={"CORSRules": [{"AllowedMethods": ["GET"], "AllowedOrigins": ["https://a.example"]}]})
    client.put_bucket_acl(Bucket=BUCKET, ACL="public-read")
    assert [fetch(f"{s3.url}/{BUCKET}?{each}")[0] for each in ("list-type=2", "tagging", "cors")] == [200, 403, 403]


def test_no_list_of_access_deletes_versions(client: Any, s3: S3) -> None:
    client.put_bucket_versioning(Bucket=BUCKET, VersioningConfiguration={"Status": "Enabled"})
    first = client.put_object(Bucket=BUCKET, Key="k", Body=b"first")["VersionId"]
    client.put_bucket_acl(Bucket=BUCKET, ACL="public-read-write")
    assert fetch(f"{s3.url}/{BUCKET}/k", "DELETE")[0] == 204
    assert fetch(f"{s3.url}/{BUCKET}/k?versionId={first}", "DELETE")[0] == 403
    assert client.get_object(Bucket=BUCKET, Key="k", VersionId=first)["Body"].read() == b"first"


def test_the_documents_have_the_shape_of_s3(client: Any, s3: S3) -> None:
    client.put_bucket_acl(Bucket=BUCKET, ACL="public-read-write")
    found = client.get_bucket_acl(Bucket=BUCKET)
    me = found["Owner"]
    assert set(me) == {"ID", "DisplayName"}
    assert [(each["Grantee"], each["Permission"]) for each in found["Grants"]] == [
        ({"Type": "CanonicalUser", **me}, "FULL_CONTROL"), (ALL, "READ"), (ALL, "WRITE"),
    ]  # fmt: skip
    # What a client reads it can write again.
    client.put_bucket_acl(Bucket=BUCKET, AccessControlPolicy={"Owner": me, "Grants": found["Grants"]})
    assert client.get_bucket_acl(Bucket=BUCKET)["Grants"] == found["Grants"]
    client.put_object_acl(Bucket=BUCKET, Key="k", AccessControlPolicy={"Owner": me, "Grants": []})
    assert client.get_object_acl(Bucket=BUCKET, Key="k")["Grants"] == []


def test_grants_let_one_person_in(client: Any, s3: S3, stranger: User) -> None:
    me, theirs = client.get_bucket_acl(Bucket=BUCKET)["Owner"], s3.client(stranger)
    mine = ({"Type": "CanonicalUser", **me}, "FULL_CONTROL")
    client.put_object_acl(Bucket=BUCKET, Key="k", AccessControlPolicy=by_list(me, mine, (person(stranger), "READ")))
    assert theirs.get_object(Bucket=BUCKET, Key="k")["Body"].read() == b"open"
    refused(lambda: theirs.get_object_acl(Bucket=BUCKET, Key="k"), "AccessDenied")
    client.put_object_acl(Bucket=BUCKET, Key="k", GrantReadACP=f'id="{stranger.id}"', GrantWriteACP=f"id={stranger.id}")
    grants = theirs.get_object_acl(Bucket=BUCKET, Key="k")["Grants"]
    name = {"Type": "CanonicalUser", "ID": stranger.id, "DisplayName": stranger.username}
    assert [(each["Grantee"], each["Permission"]) for each in grants] == [(name, "READ_ACP"), (name, "WRITE_ACP")]
    refused(lambda: theirs.get_object(Bucket=BUCKET, Key="k"), "AccessDenied")
    theirs.put_object_acl(Bucket=BUCKET, Key="k", ACL="public-read")
    assert fetch(f"{s3.url}/{BUCKET}/k")[0] == 200
    client.put_bucket_acl(Bucket=BUCKET, GrantWrite=f'id="{stranger.id}"', GrantRead=f'uri="{SIGNED_IN["URI"]}"')
    theirs.put_object(Bucket=BUCKET, Key="theirs", Body=b"x", ACL="bucket-owner-read")
    assert [each["Permission"] for each in client.get_object_acl(Bucket=BUCKET, Key="theirs")["Grants"]] == ["FULL_CONTROL", "READ"]
    assert len(theirs.list_objects_v2(Bucket=BUCKET)["Contents"]) == 2
    refused(lambda: theirs.get_bucket_acl(Bucket=BUCKET), "AccessDenied")
    refused(lambda: theirs.put_bucket_acl(Bucket=BUCKET, ACL="private"), "AccessDenied")
    client.put_bucket_acl(Bucket=BUCKET, GrantFullControl=f'id="{stranger.id}"')
    theirs.put_bucket_acl(Bucket=BUCKET, GrantWriteACP=f'uri="{SIGNED_IN["URI"]}"')
    assert [each["Permission"] for each in client.get_bucket_acl(Bucket=BUCKET)["Grants"]] == ["WRITE_ACP"]
    # A list gives no more than S3 says: neither the bucket's policy nor its end.
    refused(lambda: theirs.put_bucket_policy(Bucket=BUCKET, Policy=policy(PUBLIC)), "AccessDenied")
    assert fetch(f"{s3.url}/{BUCKET}?acl", "PUT", b"", {"x-amz-acl": "public-read"})[0] == 403
    s3.client(s3.people.user("viewer", s3.people.project())).put_bucket_acl(Bucket=BUCKET, ACL="private")
    refused(lambda: theirs.list_objects_v2(Bucket=BUCKET), "AccessDenied")


def test_who_prefers_to_own_owns_what_others_leave(client: Any, s3: S3, stranger: User) -> None:
    client.put_bucket_ownership_controls(Bucket=BUCKET, OwnershipControls={"Rules": [{"ObjectOwnership": "BucketOwnerPreferred"}]})
    client.put_bucket_acl(Bucket=BUCKET, GrantWrite=f'id="{stranger.id}"')
    theirs, me = s3.client(stranger), client.get_bucket_acl(Bucket=BUCKET)["Owner"]
    theirs.put_object(Bucket=BUCKET, Key="given", Body=b"", ACL="bucket-owner-full-control")
    theirs.put_object(Bucket=BUCKET, Key="kept", Body=b"")
    owners = [client.get_object_acl(Bucket=BUCKET, Key=key)["Owner"]["ID"] for key in ("given", "kept")]
    assert owners == [me["ID"], stranger.id]


@pytest.mark.parametrize(
    ("asked", "code"),
    [
        ({"GrantRead": 'id="nobody"'}, "InvalidArgument"), ({"GrantRead": 'uri="http://example.org/"'}, "InvalidArgument"), ({"GrantRead": "all"}, "InvalidArgument"),
        ({"GrantRead": 'emailAddress="a@example.org"'}, "NotImplemented"), ({"GrantRead": 'id="all"'}, "InvalidArgument"), ({"ACL": "everybody"}, "InvalidArgument"),
        ({"ACL": "private", "GrantRead": 'id="x"'}, "InvalidRequest"), ({}, "MissingSecurityHeader"),
        ({"AccessControlPolicy": {"Grants": [{"Grantee": ALL, "Permission": "EVERYTHING"}]}}, "MalformedACLError"),
        ({"AccessControlPolicy": {"Grants": [{"Permission": "READ"}]}}, "MalformedACLError"),
        ({"AccessControlPolicy": {"Grants": [{"Grantee": ALL, "Permission": "READ"}] * 101}}, ""),
        ({"AccessControlPolicy": {}}, "MalformedACLError"),
    ],
)  # fmt: skip
def test_lists_that_are_none(client: Any, asked: dict[str, Any], code: str) -> None:
    for call in (lambda: client.put_bucket_acl(Bucket=BUCKET, **asked), lambda: client.put_object_acl(Bucket=BUCKET, Key="k", **asked)):
        if code:
            refused(call, code)
        else:
            call()


@conforms("PutPublicAccessBlock")
def test_the_block_refuses_lists_that_let_everybody_in(client: Any, stranger: User) -> None:
    block(client, BlockPublicAcls=True)
    found = client.get_public_access_block(Bucket=BUCKET)["PublicAccessBlockConfiguration"]
    assert found == {**dict.fromkeys(EVERYTHING, False), "BlockPublicAcls": True}
    for call in (
        lambda: client.put_bucket_acl(Bucket=BUCKET, ACL="public-read"),
        lambda: client.put_object_acl(Bucket=BUCKET, Key="k", ACL="authenticated-read"),
        lambda: client.put_object(Bucket=BUCKET, Key="k", Body=b"", ACL="public-read"),
        lambda: client.put_object(Bucket=BUCKET, Key="k", Body=b"", GrantRead=f'uri="{ALL["URI"]}"'),
    ):
        refused(call, "AccessDenied")
    client.put_bucket_acl(Bucket=BUCKET, GrantRead=f'id="{stranger.id}"')
    client.put_bucket_policy(Bucket=BUCKET, Policy=policy(PUBLIC))


def test_the_block_reads_over_lists_that_let_everybody_in(client: Any, s3: S3, stranger: User) -> None:
    client.put_object_acl(Bucket=BUCKET, Key="k", ACL="public-read")
    client.put_bucket_acl(Bucket=BUCKET, GrantRead=f'uri="{SIGNED_IN["URI"]}",id="{stranger.id}"')
    block(client, IgnorePublicAcls=True)
    assert fetch(f"{s3.url}/{BUCKET}/k")[0] == 403
    other = s3.client(s3.people.user("viewer", s3.people.project()))
    refused(lambda: other.list_objects_v2(Bucket=BUCKET), "AccessDenied")
    assert len(s3.client(stranger).list_objects_v2(Bucket=BUCKET)["Contents"]) == 1
    client.put_object_acl(Bucket=BUCKET, Key="k", ACL="public-read-write")
    block(client)
    assert fetch(f"{s3.url}/{BUCKET}/k")[0] == 200


def test_the_block_refuses_policies_that_let_everybody_in(client: Any, s3: S3, stranger: User) -> None:
    block(client, BlockPublicPolicy=True)
    networks = {"Condition": {"IpAddress": {"aws:SourceIp": ["198.51.100.0/24", "0.0.0.0/1"]}}}
    for public in (PUBLIC, {**PUBLIC, **networks}, {**PUBLIC, "Condition": {"NotIpAddress": {"aws:SourceIp": "198.51.100.0/24"}}}):
        refused(lambda public=public: client.put_bucket_policy(Bucket=BUCKET, Policy=policy(public)), "AccessDenied")
    narrow = {**PUBLIC, "Condition": {"IpAddress": {"aws:SourceIp": "127.0.0.0/8"}}}
    client.put_bucket_policy(Bucket=BUCKET, Policy=policy(narrow, {**PUBLIC, "Effect": "Deny", "Action": "s3:DeleteObject"}))
    assert client.get_bucket_policy_status(Bucket=BUCKET)["PolicyStatus"] == {"IsPublic": False}
    assert fetch(f"{s3.url}/{BUCKET}/k")[0] == 200


def test_the_block_keeps_a_public_policy_to_the_project(client: Any, s3: S3, stranger: User) -> None:
    client.put_bucket_policy(Bucket=BUCKET, Policy=policy(PUBLIC, {**PUBLIC, "Principal": {"AWS": stranger.id}}))
    theirs, viewer = s3.client(stranger), s3.client(s3.people.user("viewer"))
    assert (fetch(f"{s3.url}/{BUCKET}/k")[0], theirs.get_object(Bucket=BUCKET, Key="k")["ContentLength"]) == (200, 4)
    block(client, RestrictPublicBuckets=True)
    assert client.get_bucket_policy_status(Bucket=BUCKET)["PolicyStatus"] == {"IsPublic": True}
    assert fetch(f"{s3.url}/{BUCKET}/k")[0] == 403
    refused(lambda: theirs.get_object(Bucket=BUCKET, Key="k"), "AccessDenied")
    assert viewer.get_object(Bucket=BUCKET, Key="k")["ContentLength"] == 4
    client.put_bucket_policy(Bucket=BUCKET, Policy=policy({**PUBLIC, "Principal": {"AWS": stranger.id}}))
    assert theirs.get_object(Bucket=BUCKET, Key="k")["ContentLength"] == 4


def test_flags_are_true_or_false(client: Any, s3: S3) -> None:
    assert len(FLAGS) == len(EVERYTHING)
    for wrong in (b"<BlockPublicAcls>yes</BlockPublicAcls>", b"<BlockEverything>true</BlockEverything>"):
        body = b"<PublicAccessBlockConfiguration>" + wrong + b"</PublicAccessBlockConfiguration>"
        status, _, answer = sent(s3, "PUT", f"/{BUCKET}?publicAccessBlock=", body)
        assert (status, b"<Code>MalformedXML</Code>" in answer) == (400, True), answer


def test_whoever_may_list_a_bucket_does_not_see_what_is_set_for_it(s3: S3) -> None:
    client = s3.client()
    open_bucket(client, "a-listed-bucket")
    client.put_bucket_acl(Bucket="a-listed-bucket", ACL="public-read")
    client.put_bucket_tagging(Bucket="a-listed-bucket", Tagging={"TagSet": [{"Key": "cost-center", "Value": "7"}]})
    assert client.get_bucket_tagging(Bucket="a-listed-bucket")["TagSet"][0]["Value"] == "7"
    assert [fetch(f"{s3.url}/a-listed-bucket?{setting}")[0] for setting in ("tagging", "cors")] == [403, 403]
    assert fetch(f"{s3.url}/a-listed-bucket")[0] == 200
