"""Who may do what, at both engines: policies of IAM, keys that begin and end, buckets of others, and what a bucket says itself."""

import json
from typing import Any

import pytest
from botocore.exceptions import ClientError

from portal.identity.models import User
from portal.kernel.db import transaction
from portal.kernel.policy_documents import VERSION
from tests.support.object_engines import BUCKETS, OPEN, Place
from tests.support.s3 import client, fetch, refused


def give(place: Place, who: str, *statements: dict[str, Any]) -> None:
    """Attach a policy."""
    document = {"Version": VERSION, "Statement": [{"Sid": f"S{number}", "Effect": "Allow", **each} for number, each in enumerate(statements)]}
    made = place.api.post("/security/policies", {"name": f"policy-{len(str(document))}", "document": document})
    assert made.status_code == 201, made.json
    assert place.api.post(f"/security/policies/{made.json['id']}/attach", {"principal_type": "user", "principal_id": who}).status_code < 300
    place.settle()


def objects(*patterns: str) -> dict[str, Any]:
    return {"Resource": [f"storage.object/{each}" for each in patterns]}


def test_roles_mean_the_same(place: Place, s3: Any) -> None:
    place.bucket("by-role", **OPEN)
    s3.put_object(Bucket="by-role", Key="k", Body=b"x")
    viewer, developer = (place.s3(place.api_of(place.people.user(role))) for role in ("viewer", "developer"))
    for reader in (viewer, developer):
        assert reader.get_object(Bucket="by-role", Key="k")["Body"].read() == b"x"
        assert [each["Key"] for each in reader.list_objects_v2(Bucket="by-role")["Contents"]] == ["k"]
        refused(lambda reader=reader: reader.put_bucket_versioning(Bucket="by-role", VersioningConfiguration={"Status": "Suspended"})
                if reader is viewer else reader.delete_object(Bucket="by-role", Key="k"), "AccessDenied")  # fmt: skip
    refused(lambda: viewer.put_object(Bucket="by-role", Key="l", Body=b"x"), "AccessDenied")
    developer.put_object(Bucket="by-role", Key="theirs", Body=b"x")
    # Whoever owns the bucket reads what others wrote into it.
    assert s3.get_object(Bucket="by-role", Key="theirs")["Body"].read() == b"x"
    # Nor is anybody else let in by whoever may only write.
    for said in ({"ACL": "public-read"}, {"GrantRead": 'uri="http://acs.amazonaws.com/groups/global/AllUsers"'}):
        refused(lambda said=said: developer.put_object(Bucket="by-role", Key="open", Body=b"x", **said), "AccessDenied")  # type: ignore[misc]
    refused(lambda: developer.put_object_acl(Bucket="by-role", Key="theirs", ACL="public-read"), "AccessDenied")
    assert fetch(f"{place.url}/by-role/theirs")[0] == 403


def test_a_statement_about_a_prefix(place: Place, s3: Any) -> None:
    place.bucket("reports")
    place.bucket("other")
    for key in ("2026/a", "2025/a"):
        s3.put_object(Bucket="reports", Key=key, Body=b"x")
    reader = place.api.post("/service-accounts", {"name": "reader"}).json["id"]
    made = place.api.post(f"/service-accounts/{reader}/s3-keys", {}).json
    place.settle()
    theirs = client(place.url, made["access_key_id"], made["secret_access_key"])
    refused(lambda: theirs.get_object(Bucket="reports", Key="2026/a"), "AccessDenied")
    give(place, reader, {"Action": ["storage.object.read", "storage.object.list", "storage.object.write"], **objects("reports/2026/*")})
    assert theirs.get_object(Bucket="reports", Key="2026/a")["Body"].read() == b"x"
    assert [each["Key"] for each in theirs.list_objects_v2(Bucket="reports", Prefix="2026/")["Contents"]] == ["2026/a"]
    theirs.put_object(Bucket="reports", Key="2026/b", Body=b"theirs")
    for refusal in (
        lambda: theirs.get_object(Bucket="reports", Key="2025/a"), lambda: theirs.list_objects_v2(Bucket="reports"),
        lambda: theirs.put_object(Bucket="reports", Key="2025/b", Body=b""), lambda: theirs.delete_object(Bucket="reports", Key="2026/a"),
        lambda: theirs.list_objects_v2(Bucket="other"),
    ):  # fmt: skip
        refused(refusal, "AccessDenied")
    give(place, reader, {"Effect": "Deny", "Action": "storage.object.read", **objects("reports/*/b")})
    # Not even what they wrote themselves.
    refused(lambda: theirs.get_object(Bucket="reports", Key="2026/b"), "AccessDenied")
    assert theirs.get_object(Bucket="reports", Key="2026/a")["Body"].read() == b"x"
    give(place, reader, {"Action": "storage.object.delete", **objects("rep*/2026/*")})
    assert len(theirs.delete_objects(Bucket="reports", Delete={"Objects": [{"Key": "2026/b"}, {"Key": "2025/a"}]})["Deleted"]) == 1


def test_buckets_of_another_project(place: Place, s3: Any) -> None:
    elsewhere = place.people.project()
    theirs = place.api_of(place.people.user("project_admin", elsewhere))
    bucket = place.bucket("not-yours")
    s3.put_object(Bucket="not-yours", Key="k", Body=b"x")
    foreign = place.s3(theirs)
    nobody = {"Version": "2012-10-17", "Statement": [{"Effect": "Deny", "Principal": "*", "Action": "s3:*", "Resource": "arn:aws:s3:::not-yours/*"}]}
    for refusal in (
        lambda: foreign.get_object(Bucket="not-yours", Key="k"), lambda: foreign.list_objects_v2(Bucket="not-yours"),
        lambda: foreign.put_object(Bucket="not-yours", Key="k", Body=b"y"), lambda: foreign.delete_object(Bucket="not-yours", Key="k"),
    ):  # fmt: skip
        refused(refusal, "AccessDenied")
    for change in (
        lambda: foreign.put_bucket_policy(Bucket="not-yours", Policy=json.dumps(nobody)),
        lambda: foreign.delete_bucket(Bucket="not-yours"),
    ):
        with pytest.raises(ClientError):
            change()
    assert theirs.get(f"{BUCKETS}/{bucket}/objects/k").status_code == 404
    assert theirs.post(BUCKETS, {"name": "not-yours"}).status_code == 409
    own = place.bucket("theirs", api=theirs)
    assert theirs("PUT", f"{BUCKETS}/{own}/objects/k", data=b"y").status_code == 200
    assert theirs.post(f"{BUCKETS}/{own}/objects/k/copy", {"destination_bucket": "not-yours", "destination_key": "k"}).status_code in {403, 404}
    assert s3.get_object(Bucket="not-yours", Key="k")["Body"].read() == b"x"


def test_keys_end(place: Place, s3: Any) -> None:
    place.bucket("with-keys")
    s3.put_object(Bucket="with-keys", Key="k", Body=b"x")
    member = place.api_of(place.people.user("viewer"))
    made = [member.post("/auth/s3-keys", {}).json for _ in range(2)]
    place.settle()
    first, second = (client(place.url, each["access_key_id"], each["secret_access_key"]) for each in made)
    for each in (first, second):
        assert each.get_object(Bucket="with-keys", Key="k")["Body"].read() == b"x"
    assert member("DELETE", f"/auth/s3-keys/{made[0]['access_key_id']}").status_code == 204
    refused(lambda: first.get_object(Bucket="with-keys", Key="k"), "InvalidAccessKeyId")
    assert second.get_object(Bucket="with-keys", Key="k")["Body"].read() == b"x"
    wrong = client(place.url, made[1]["access_key_id"], "not the secret")
    refused(lambda: wrong.get_object(Bucket="with-keys", Key="k"), "SignatureDoesNotMatch")
    with place.people.sessions() as session, transaction(session):
        session.get_one(User, member.user.id).is_active = False
    place.settle()
    refused(lambda: second.get_object(Bucket="with-keys", Key="k"), "InvalidAccessKeyId")


def test_signed_addresses(place: Place) -> None:
    bucket = place.bucket("by-address")
    place.api("PUT", f"{BUCKETS}/{bucket}/objects/a file/ü+", data=b"shared")
    asked = {"key": "a file/ü+", "expires_in": 60}
    assert place.api.post(f"{BUCKETS}/{bucket}/presigned-urls", asked).status_code == 409
    place.s3()
    addresses = {method: place.api.post(f"{BUCKETS}/{bucket}/presigned-urls", {**asked, "method": method}).json["url"] for method in ("GET", "PUT")}
    if place.is_local:
        port = str(place.settings.s3_port)
        links = {method: place.url + url.partition(f":{port}")[2] for method, url in addresses.items()}
        hosts = {method: {"Host": url.split("/")[2]} for method, url in addresses.items()}
    else:
        links, hosts = addresses, {"GET": {}, "PUT": {}}
    assert fetch(links["GET"], headers=hosts["GET"])[::2] == (200, b"shared")
    assert fetch(links["GET"], "DELETE", headers=hosts["GET"])[0] == 403
    assert fetch(links["PUT"], "PUT", b"uploaded", headers=hosts["PUT"])[0] == 200
    assert place.api.get(f"{BUCKETS}/{bucket}/objects/a file/ü+").data == b"uploaded"


def test_a_bucket_lets_others_in(place: Place, s3: Any) -> None:
    bucket = place.bucket("open-house", **OPEN)
    s3.put_object(Bucket="open-house", Key="open/k", Body=b"x")
    friend = place.api_of(place.people.user("viewer", place.people.project()))
    theirs = place.s3(friend)
    refused(lambda: theirs.get_object(Bucket="open-house", Key="open/k"), "AccessDenied")
    inside = "arn:aws:s3:::open-house/open/*"
    statement = {"Effect": "Allow", "Principal": {"AWS": [friend.user.username]}, "Action": "s3:GetObject", "Resource": inside}
    assert place.api("PUT", f"{BUCKETS}/{bucket}/policy", {"Version": "2012-10-17", "Statement": [statement]}).status_code == 200
    place.settle()
    assert theirs.get_object(Bucket="open-house", Key="open/k")["Body"].read() == b"x"
    assert fetch(f"{place.url}/open-house/open/k")[0] == 403
    assert place.api("DELETE", f"{BUCKETS}/{bucket}/policy").status_code == 204
    place.settle()
    refused(lambda: theirs.get_object(Bucket="open-house", Key="open/k"), "AccessDenied")
    assert place.api("PUT", f"{BUCKETS}/{bucket}/acl", {"acl": "public-read"}).status_code == 200
    place.settle()
    # The bucket's word is about its list of objects.
    assert fetch(f"{place.url}/open-house?list-type=2")[0] == 200
    assert [each["Key"] for each in theirs.list_objects_v2(Bucket="open-house")["Contents"]] == ["open/k"]
    assert fetch(f"{place.url}/open-house/open/k")[0] == 403
    assert fetch(f"{place.url}/open-house/open/k", "PUT", b"y")[0] == 403
    assert place.api("PUT", f"{BUCKETS}/{bucket}/acl", {"acl": "private"}).status_code == 200
    place.settle()
    assert fetch(f"{place.url}/open-house?list-type=2")[0] == 403
