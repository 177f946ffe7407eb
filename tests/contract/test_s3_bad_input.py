"""What clients get wrong on the wire, and what goes wrong below: the right word of S3, nothing written, nothing left."""

import errno
import json
import os
import socket
from typing import Any
from urllib.parse import quote

import pytest
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from portal.engines import blobs
from tests.support.s3 import S3, fetch, open_bucket, refused, sent
from tests.support.web import Api

BUCKET = "a-bucket"
BOMB = b'<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;">]><Delete><Object><Key>&b;</Key></Object></Delete>'


@pytest.fixture
def client(s3: S3) -> Any:
    made = s3.client()
    made.create_bucket(Bucket=BUCKET)
    return made


def presigned(client: Any, operation: str, **params: Any) -> str:
    return str(client.generate_presigned_url(operation, Params={"Bucket": BUCKET, **params}, ExpiresIn=60))


def code_of(document: bytes) -> str:
    return document.decode().partition("<Code>")[2].partition("</Code>")[0]


def test_a_body_that_breaks_off_leaves_nothing(client: Any, s3: S3) -> None:
    target = presigned(client, "put_object", Key="k").partition(s3.url)[2]
    with socket.create_connection(("127.0.0.1", s3.port)) as link:
        link.sendall(f"PUT {target} HTTP/1.1\r\nHost: 127.0.0.1:{s3.port}\r\nContent-Length: 3000000\r\n\r\n".encode() + b"x" * 2_000_000)
        link.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: link.recv(65536), b""))
    assert (answer.split()[1], code_of(answer)) == (b"400", "IncompleteBody")
    refused(lambda: client.get_object(Bucket=BUCKET, Key="k"), "NoSuchKey")
    assert list(s3.blobs.stored()) == []


@pytest.mark.parametrize(
    "query",
    ["?prefix=%00", "?list-type=2&start-after=a%00", "?versions&key-marker=%00", "?uploads&upload-id-marker=%00&key-marker=a", "/k?versionId=%00"],
)
def test_null_characters_in_parameters(client: Any, s3: S3, query: str) -> None:
    status, _, answer = sent(s3, "GET", f"/{BUCKET}{query}")
    assert (status, code_of(answer)) == (400, "InvalidArgument"), answer


@pytest.mark.parametrize("number", ["0", "10001", "0000000019999999", "1" * 40, "-1", "\u0663", ""])
def test_numbers_of_parts_that_are_none(client: Any, s3: S3, api: Api, number: str) -> None:
    upload = client.create_multipart_upload(Bucket=BUCKET, Key="k")["UploadId"]
    status, _, answer = sent(s3, "PUT", f"/{BUCKET}/k?partNumber={quote(number)}&uploadId={upload}", b"x")
    assert (status, code_of(answer)) == (400, "InvalidArgument"), answer
    bucket = api.get("/storage/buckets").json["results"][0]["id"]
    if number:
        assert api("PUT", f"/storage/buckets/{bucket}/multipart-uploads/{upload}/parts/{quote(number)}", data=b"x").status_code == 400
    assert "Parts" not in client.list_parts(Bucket=BUCKET, Key="k", UploadId=upload)


@pytest.mark.parametrize("field", ["Cache-Control", "Content-Type", "x-amz-meta-a"])
def test_a_form_puts_no_lines_into_headers(client: Any, field: str) -> None:
    fields = {field: "x\r\nSet-Cookie: a=1"}
    form = client.generate_presigned_post(BUCKET, "f", Fields=fields, Conditions=[fields])
    lines = [f'--b\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n' for name, value in form["fields"].items()]
    body = "".join([*lines, '--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\nof a form\r\n--b--\r\n'])
    status, _, answer = fetch(form["url"], "POST", body.encode(), {"Content-Type": "multipart/form-data; boundary=b"})
    assert (status, code_of(answer)) == (400, "InvalidArgument"), answer
    refused(lambda: client.get_object(Bucket=BUCKET, Key="f"), "NoSuchKey")


@pytest.mark.parametrize("body", [BOMB, b"<Delete>", b"<Other/>", b"", b"\xff\xfe", b"<Delete></Delete>"])
def test_documents_that_are_none(client: Any, s3: S3, body: bytes) -> None:
    signed = AWSRequest("POST", f"{s3.url}/{BUCKET}?delete", data=body)
    S3SigV4Auth(Credentials(*s3.key(s3.people.user("project_admin"))), "s3", "us-east-1").add_auth(signed)
    status, _, answer = fetch(f"{s3.url}/{BUCKET}?delete=", "POST", body, dict(signed.headers))
    assert (status, code_of(answer)) == (400, "MalformedXML"), answer


@pytest.mark.parametrize("room", [0, 2])
def test_a_disk_that_is_full_is_said(client: Any, s3: S3, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    """At the beginning or in the middle of a body."""
    client.put_object(Bucket=BUCKET, Key="before", Body=b"x")

    write, written = os.write, iter(range(100))

    def full(descriptor: int, data: bytes) -> int:
        if next(written) < room:
            return write(descriptor, data)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(blobs.os, "write", full)
    refused(lambda: client.put_object(Bucket=BUCKET, Key="k", Body=bytes(5 << 20)), "InsufficientStorage")
    monkeypatch.undo()
    refused(lambda: client.get_object(Bucket=BUCKET, Key="k"), "NoSuchKey")
    assert client.get_object(Bucket=BUCKET, Key="before")["Body"].read() == b"x"
    assert len(list(s3.blobs.stored())) == 1
    client.put_object(Bucket=BUCKET, Key="k", Body=b"x")


def test_what_there_is_not_is_said(client: Any, s3: S3) -> None:
    refused(lambda: client.get_bucket_accelerate_configuration(Bucket=BUCKET), "NotImplemented")
    refused(lambda: client.list_objects_v2(Bucket="no-such-bucket"), "NoSuchBucket")
    assert fetch(f"{s3.url}/", "PUT", b"")[0] == 405
    assert code_of(fetch(f"{s3.url}/{BUCKET}/k", "PATCH", b"")[2]) == "MethodNotAllowed"
    assert code_of(fetch(f"{s3.url}/{BUCKET}/%ff")[2]) == "InvalidURI"
    assert code_of(fetch(f"{s3.url}/")[2]) == "AccessDenied"
    # Even a name that no database can keep is only not there.
    assert code_of(fetch(f"{s3.url}/a%00b/k")[2]) in {"NoSuchBucket", "InvalidURI", "AccessDenied"}


def test_an_address_of_a_client_is_what_trusted_proxies_say(client: Any, s3: S3) -> None:
    """A policy that lets one network in sees the client, not the proxy in front."""
    statement = {"Effect": "Allow", "Principal": "*", "Action": "s3:GetObject", "Resource": f"arn:aws:s3:::{BUCKET}/*",
                 "Condition": {"IpAddress": {"aws:SourceIp": "192.0.2.0/24"}}}  # fmt: skip
    client.put_object(Bucket=BUCKET, Key="k", Body=b"x")
    client.put_bucket_policy(Bucket=BUCKET, Policy=json.dumps({"Version": "2012-10-17", "Statement": [statement]}))
    forwarded = {"X-Forwarded-For": "192.0.2.9"}
    assert fetch(f"{s3.url}/{BUCKET}/k", headers=forwarded)[0] == 403
    s3.trust(1)
    assert fetch(f"{s3.url}/{BUCKET}/k", headers=forwarded)[0] == 200
    assert fetch(f"{s3.url}/{BUCKET}/k", headers={"X-Forwarded-For": "192.0.2.9, 198.51.100.1"})[0] == 403


def test_a_range_beyond_the_end_is_refused_however_long_its_number(client: Any) -> None:
    client.put_object(Bucket=BUCKET, Key="k", Body=b"0123456789")
    beyond = "9" * 30
    refused(lambda: client.get_object(Bucket=BUCKET, Key="k", Range=f"bytes={beyond}-"), "InvalidRange")
    found = client.get_object(Bucket=BUCKET, Key="k", Range=f"bytes=2-{beyond}")
    assert (found["ContentRange"], found["Body"].read()) == ("bytes 2-9/10", b"23456789")
    assert client.get_object(Bucket=BUCKET, Key="k", Range=f"bytes=-{beyond}")["ContentRange"] == "bytes 0-9/10"
    assert client.get_object(Bucket=BUCKET, Key="k", Range=f"bytes={'0' * 30}5-")["ContentRange"] == "bytes 5-9/10"


@pytest.mark.parametrize(
    "query", ["prefix=a%00", "marker=a%00", "versions&key-marker=a%00", "uploads&prefix=%00", "uploads&key-marker=k&upload-id-marker=%00"]
)
def test_a_listing_of_what_no_key_can_be_is_refused(client: Any, s3: S3, query: str) -> None:
    open_bucket(client, "an-open-bucket")
    client.put_bucket_acl(Bucket="an-open-bucket", ACL="public-read")
    assert code_of(fetch(f"{s3.url}/an-open-bucket?{query}")[2]) == "InvalidArgument"


def test_the_number_of_a_part_is_looked_at_whole(client: Any) -> None:
    upload = client.create_multipart_upload(Bucket=BUCKET, Key="k")["UploadId"]
    refused(lambda: client.upload_part(Bucket=BUCKET, Key="k", UploadId=upload, PartNumber=19_999_999, Body=b"x"), "InvalidArgument")


def test_deletions_have_conditions(client: Any) -> None:
    etag = client.put_object(Bucket=BUCKET, Key="k", Body=b"x")["ETag"]
    asked = [{"Key": "k", "ETag": '"00000000000000000000000000000000"'}]
    assert [each["Code"] for each in client.delete_objects(Bucket=BUCKET, Delete={"Objects": asked})["Errors"]] == ["PreconditionFailed"]
    refused(lambda: client.delete_objects(Bucket=BUCKET, Delete={"Objects": [{"Key": "k", "Size": 1}]}), "NotImplemented")
    refused(lambda: client.delete_object(Bucket=BUCKET, Key="k", IfMatchSize=1), "NotImplemented")
    assert client.get_object(Bucket=BUCKET, Key="k")["Body"].read() == b"x"
    assert len(client.delete_objects(Bucket=BUCKET, Delete={"Objects": [{"Key": "k", "ETag": etag}]})["Deleted"]) == 1
