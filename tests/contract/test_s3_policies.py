"""A bucket's own policy lets others in and keeps somebody out, and is refused where it says what nobody would look at."""

import json
from typing import Any

import pytest

from portal.identity.models import User
from tests.support.s3 import S3, fetch, open_bucket, refused

BUCKET = "a-bucket"
ALL, INSIDE = f"arn:aws:s3:::{BUCKET}", f"arn:aws:s3:::{BUCKET}/*"


@pytest.fixture
def client(s3: S3) -> Any:
    made = s3.client()
    open_bucket(made, BUCKET)
    made.put_object(Bucket=BUCKET, Key="open/k", Body=b"open")
    made.put_object(Bucket=BUCKET, Key="k", Body=b"closed")
    return made


def policy(client: Any, *statements: dict[str, Any]) -> None:
    whole = [{"Effect": "Allow", "Principal": "*", "Action": "s3:GetObject", "Resource": INSIDE, **each} for each in statements]
    client.put_bucket_policy(Bucket=BUCKET, Policy=json.dumps({"Version": "2012-10-17", "Statement": whole}))


def test_a_policy_lets_everybody_in_where_it_says_so(client: Any, s3: S3) -> None:
    refused(lambda: client.get_bucket_policy(Bucket=BUCKET), "NoSuchBucketPolicy")
    policy(client, {"Resource": f"arn:aws:s3:::{BUCKET}/open/*"})
    assert json.loads(client.get_bucket_policy(Bucket=BUCKET)["Policy"])["Statement"][0]["Principal"] == "*"
    assert client.get_bucket_policy_status(Bucket=BUCKET)["PolicyStatus"] == {"IsPublic": True}
    assert fetch(f"{s3.url}/{BUCKET}/open/k")[::2] == (200, b"open")
    assert fetch(f"{s3.url}/{BUCKET}/k")[0] == 403
    assert fetch(f"{s3.url}/{BUCKET}/open/k", "PUT", b"")[0] == 403
    client.delete_bucket_policy(Bucket=BUCKET)
    assert fetch(f"{s3.url}/{BUCKET}/open/k")[0] == 403


def test_a_policy_names_users_of_other_projects(client: Any, s3: S3) -> None:
    friend, other = (s3.people.user("viewer", s3.people.project()) for _ in range(2))
    policy(client, {"Principal": {"AWS": [f"arn:aws:iam::1:user/{friend.username}"]}, "Action": ["s3:GetObject", "s3:ListBucket"], "Resource": [ALL, INSIDE],
                    "Condition": {"IpAddress": {"aws:SourceIp": "127.0.0.0/8"}}})  # fmt: skip
    theirs = s3.client(friend)
    assert theirs.get_object(Bucket=BUCKET, Key="k")["Body"].read() == b"closed"
    assert len(theirs.list_objects_v2(Bucket=BUCKET)["Contents"]) == 2
    refused(lambda: theirs.delete_object(Bucket=BUCKET, Key="k"), "AccessDenied")
    refused(lambda: s3.client(other).get_object(Bucket=BUCKET, Key="k"), "AccessDenied")
    policy(client, {"Principal": {"AWS": friend.id}, "Condition": {"IpAddress": {"aws:SourceIp": "192.0.2.0/24"}}})
    refused(lambda: theirs.get_object(Bucket=BUCKET, Key="k"), "AccessDenied")


def test_who_takes_a_name_later_is_not_meant(client: Any, s3: S3) -> None:
    refused(lambda: policy(client, {"Principal": {"AWS": ["a-name-to-take"]}}), "MalformedPolicy")
    friend, stranger = (s3.people.user("viewer", s3.people.project()) for _ in range(2))
    policy(
        client, {"Principal": {"AWS": [friend.username]}}, {"Effect": "Deny", "Principal": {"AWS": [stranger.username]}, "Resource": f"{ALL}/open/*"}
    )
    theirs, others = s3.client(friend), s3.client(stranger)
    with s3.people.sessions.begin() as session:
        session.get_one(User, friend.id).username = "went-away"
        session.flush()
        session.get_one(User, stranger.id).username = friend.username
    assert theirs.get_object(Bucket=BUCKET, Key="k")["Body"].read() == b"closed"
    refused(lambda: others.get_object(Bucket=BUCKET, Key="k"), "AccessDenied")
    # Whoever was kept out by the name they had still is.
    policy(client, {}, {"Effect": "Deny", "Principal": {"AWS": ["went-away"]}, "Resource": f"{ALL}/open/*"})
    with s3.people.sessions.begin() as session:
        session.get_one(User, friend.id).username = "has-another-name"
    refused(lambda: theirs.get_object(Bucket=BUCKET, Key="open/k"), "AccessDenied")


def test_what_it_denies_nothing_else_allows(client: Any, s3: S3) -> None:
    policy(
        client,
        {"Effect": "Deny", "Action": "s3:Delete*"},
        {"Effect": "Deny", "Action": "s3:ListBucket", "Resource": ALL, "Condition": {"StringNotLike": {"s3:prefix": "open/*"}}},
    )
    refused(lambda: client.delete_object(Bucket=BUCKET, Key="k"), "AccessDenied")
    refused(lambda: client.list_objects_v2(Bucket=BUCKET), "AccessDenied")
    assert [each["Key"] for each in client.list_objects_v2(Bucket=BUCKET, Prefix="open/")["Contents"]] == ["open/k"]
    # Whoever locks themselves out of the objects still has the policy.
    client.delete_bucket_policy(Bucket=BUCKET)
    client.delete_object(Bucket=BUCKET, Key="k")


@pytest.mark.parametrize(
    "wrong",
    [
        {"Effect": "Maybe"}, {"Action": "ec2:Start"}, {"Action": "s3:Nothing"}, {"Resource": "arn:aws:s3:::another/*"}, {"Resource": "*"}, {"Principal": {"Service": "x"}},
        {"Principal": {"AWS": "arn:aws:iam::1:root"}}, {"Condition": {"Bool": {"aws:SecureTransport": "true"}}}, {"Condition": {"IpAddress": {"aws:SourceIp": "here"}}},
        {"NotAction": "s3:GetObject"}, {"Action": ["s3:GetObject", "s3:PutBucketPolicy"]}, {"Resource": INSIDE + "${aws:username}"},
        {"Condition": {"StringLike": {"s3:prefix": "${aws:username}/*"}}}, {"Principal": {"AWS": "arn:aws:iam:::user/*"}}, {"Principal": {"AWS": "adm?n"}},
    ],
)  # fmt: skip
def test_what_nobody_would_look_at_is_refused(client: Any, wrong: dict[str, Any]) -> None:
    refused(lambda: policy(client, wrong), "MalformedPolicy")
    refused(lambda: client.get_bucket_policy(Bucket=BUCKET), "NoSuchBucketPolicy")


def test_only_who_manages_the_project_sets_one(client: Any, s3: S3) -> None:
    developer = s3.client(s3.people.user("developer"))
    refused(lambda: policy(developer, {}), "AccessDenied")


def test_names_of_actions_are_matched_whatever_their_case(client: Any) -> None:
    policy(client, {"Effect": "Deny", "Action": "S3:deleteobject"})
    refused(lambda: client.delete_object(Bucket=BUCKET, Key="k"), "AccessDenied")


def test_kinds_of_an_action_are_told_apart(client: Any, s3: S3) -> None:
    """Versions are often what keeps what others may delete: who may delete objects may not delete versions."""
    client.put_bucket_versioning(Bucket=BUCKET, VersioningConfiguration={"Status": "Enabled"})
    old = client.put_object(Bucket=BUCKET, Key="v", Body=b"old", Tagging="a=b")["VersionId"]
    client.put_object(Bucket=BUCKET, Key="v", Body=b"new", Tagging="a=b")
    one, tagging = f"{s3.url}/{BUCKET}/v", b"<Tagging><TagSet/></Tagging>"

    def status(*asked: Any) -> int:
        return int(fetch(*asked)[0])

    policy(client, {"Action": "s3:GetObject"})
    assert [status(one), status(f"{one}?versionId={old}"), status(f"{one}?tagging")] == [200, 403, 403]
    policy(client, {"Action": "s3:GetObjectVersion"})
    assert [status(one), status(f"{one}?versionId={old}"), status(f"{one}?tagging")] == [403, 200, 403]
    policy(client, {"Action": "s3:GetObjectTagging"})
    assert [status(one), status(f"{one}?tagging")] == [403, 200]
    policy(client, {"Action": "s3:ListBucket", "Resource": ALL})
    assert [status(f"{s3.url}/{BUCKET}{query}") for query in ("", "?versions", "?uploads")] == [200, 403, 403]
    policy(client, {"Action": "s3:PutObject"})
    assert [status(f"{one}?tagging", "PUT", tagging), status(f"{one}2", "PUT", b"x")] == [403, 200]
    policy(client, {"Action": "s3:DeleteObject"})
    assert [status(f"{one}?versionId={old}", "DELETE"), status(f"{one}?tagging", "DELETE"), status(one, "DELETE")] == [403, 403, 204]
    assert client.get_object(Bucket=BUCKET, Key="v", VersionId=old)["Body"].read() == b"old"
    policy(client, {"Effect": "Deny", "Action": "s3:DeleteObjectVersion"})
    client.delete_object(Bucket=BUCKET, Key="k")
    refused(lambda: client.delete_object(Bucket=BUCKET, Key="v", VersionId=old), "AccessDenied")
