"""Buckets as websites: pages, folders, pages for errors, rules that send visitors elsewhere."""

import json
from typing import Any

import pytest

from tests.support.s3 import S3, fetch, open_bucket, refused
from tests.support.s3_operations import conforms

BUCKET = "a-site"
DOMAIN = "web.example.org"
HOST = f"{BUCKET}.{DOMAIN}:9000"
PLAIN = {"IndexDocument": {"Suffix": "index.html"}, "ErrorDocument": {"Key": "error.html"}}


@pytest.fixture
def client(s3: S3) -> Any:
    s3.settings(s3_website_domain=DOMAIN)
    made = s3.client()
    open_bucket(made, BUCKET)
    return made


def page(client: Any, key: str, body: str, acl: str = "public-read", **more: Any) -> None:
    client.put_object(Bucket=BUCKET, Key=key, Body=body.encode(), ContentType="text/html", ACL=acl, **more)


def site(client: Any, **more: Any) -> None:
    client.put_bucket_website(Bucket=BUCKET, WebsiteConfiguration={**PLAIN, **more})


def visit(s3: S3, path: str, method: str = "GET", host: str = HOST, **headers: str) -> tuple[int, dict[str, str], bytes]:
    return fetch(f"{s3.url}{path}", method, headers={"Host": host, **headers})


@conforms("GetBucketWebsite", "PutBucketWebsite", "DeleteBucketWebsite")
def test_configuration_comes_back_as_it_was_given(client: Any) -> None:
    refused(lambda: client.get_bucket_website(Bucket=BUCKET), "NoSuchWebsiteConfiguration")
    rules = [
        {"Condition": {"KeyPrefixEquals": "old/", "HttpErrorCodeReturnedEquals": "404"},
         "Redirect": {"HostName": "example.org", "Protocol": "https", "HttpRedirectCode": "302", "ReplaceKeyPrefixWith": "new/"}},
        {"Redirect": {"ReplaceKeyWith": "gone.html", "HttpRedirectCode": "301"}},
    ]  # fmt: skip
    site(client, RoutingRules=rules)
    found = client.get_bucket_website(Bucket=BUCKET)
    assert {name: found[name] for name in ("IndexDocument", "ErrorDocument", "RoutingRules")} == {**PLAIN, "RoutingRules": rules}
    client.put_bucket_website(Bucket=BUCKET, WebsiteConfiguration={"RedirectAllRequestsTo": {"HostName": "example.org", "Protocol": "https"}})
    assert client.get_bucket_website(Bucket=BUCKET)["RedirectAllRequestsTo"] == {"HostName": "example.org", "Protocol": "https"}
    client.delete_bucket_website(Bucket=BUCKET)
    refused(lambda: client.get_bucket_website(Bucket=BUCKET), "NoSuchWebsiteConfiguration")


@pytest.mark.parametrize("wrong", [
    {"IndexDocument": {"Suffix": "a/b"}}, {"ErrorDocument": {"Key": "e"}},
    {"IndexDocument": {"Suffix": "i"}, "RedirectAllRequestsTo": {"HostName": "example.org"}},
    {"RedirectAllRequestsTo": {"HostName": "example.org/path"}},
    {**PLAIN, "RoutingRules": [{"Redirect": {"ReplaceKeyWith": "a", "ReplaceKeyPrefixWith": "b"}}]},
    {**PLAIN, "RoutingRules": [{"Redirect": {"HttpRedirectCode": "200", "HostName": "example.org"}}]},
    {**PLAIN, "RoutingRules": [{"Redirect": {"HttpRedirectCode": "301"}}]},
    {**PLAIN, "RoutingRules": [{"Redirect": {"HostName": "example.org"}}] * 51},
])  # fmt: skip
def test_what_makes_no_sense_is_refused(client: Any, wrong: dict[str, Any]) -> None:
    refused(lambda: client.put_bucket_website(Bucket=BUCKET, WebsiteConfiguration=wrong), "InvalidArgument")


def test_pages_and_folders(client: Any, s3: S3) -> None:
    site(client)
    page(client, "index.html", "home")
    page(client, "docs/index.html", "docs")
    status, headers, body = visit(s3, "/")
    assert (status, headers["Content-Type"], body) == (200, "text/html", b"home")
    assert visit(s3, "/docs/")[2] == b"docs"
    status, headers, _ = visit(s3, "/docs")
    assert (status, headers["Location"]) == (302, f"http://{HOST}/docs/")
    # The path of a visitor never becomes the host of somebody else.
    page(client, "/evil.org/index.html", "x")
    assert visit(s3, "/%2Fevil.org")[1]["Location"].startswith(f"http://{HOST}/")
    status, headers, body = visit(s3, "/", "HEAD")
    assert (status, headers["Content-Length"], body) == (200, "4", b"")
    assert visit(s3, "/", Range="bytes=1-2")[::2] == (206, b"om")
    assert visit(s3, "/", **{"If-None-Match": visit(s3, "/")[1]["ETag"]})[0] == 304
    assert visit(s3, "/", "PUT")[0] == 405
    # Elsewhere the bucket is what it always was.
    assert fetch(f"{s3.url}/{BUCKET}/")[0] == 403


def test_what_is_not_everybodys_is_no_page(client: Any, s3: S3) -> None:
    site(client)
    page(client, "index.html", "secret", acl="private")
    status, headers, body = visit(s3, "/")
    assert (status, headers["Content-Type"], b"secret" in body, b"AccessDenied" in body) == (403, "text/html; charset=utf-8", False, True)
    page(client, "error.html", "sorry")
    assert visit(s3, "/")[::2] == (403, b"sorry")
    assert visit(s3, "/", **{"Range": "bytes=0-0", "If-None-Match": "*"})[::2] == (403, b"sorry")
    client.put_bucket_acl(Bucket=BUCKET, ACL="public-read")
    assert visit(s3, "/nothing")[::2] == (404, b"sorry")
    client.delete_object(Bucket=BUCKET, Key="error.html")
    status, _, body = visit(s3, "/%3Cscript%3E")
    assert (status, b"<script>" in body, b"NoSuchKey" in body) == (404, False, True)


def test_a_policy_of_the_bucket_opens_a_site(client: Any, s3: S3) -> None:
    site(client)
    page(client, "index.html", "home", acl="private")
    statement = {"Effect": "Allow", "Principal": "*", "Action": "s3:GetObject", "Resource": f"arn:aws:s3:::{BUCKET}/*"}
    client.put_bucket_policy(Bucket=BUCKET, Policy=json.dumps({"Version": "2012-10-17", "Statement": [statement]}))
    assert visit(s3, "/")[::2] == (200, b"home")


def test_visitors_are_sent_elsewhere(client: Any, s3: S3) -> None:
    rules = [
        {"Condition": {"KeyPrefixEquals": "old/"}, "Redirect": {"ReplaceKeyPrefixWith": "new/"}},
        {"Condition": {"HttpErrorCodeReturnedEquals": "404", "KeyPrefixEquals": "gone/"},
         "Redirect": {"HostName": "example.org", "Protocol": "https", "HttpRedirectCode": "307", "ReplaceKeyWith": "search ü"}},
    ]  # fmt: skip
    site(client, RoutingRules=rules)
    client.put_bucket_acl(Bucket=BUCKET, ACL="public-read")
    status, headers, _ = visit(s3, "/old/a%0D%0Ab")
    assert (status, headers["Location"]) == (301, f"http://{HOST}/new/a%0D%0Ab")
    status, headers, _ = visit(s3, "/gone/x")
    assert (status, headers["Location"]) == (307, "https://example.org/search%20%C3%BC")
    page(client, "moved", "", WebsiteRedirectLocation="/there")
    status, headers, _ = visit(s3, "/moved")
    assert (status, headers["Location"]) == (301, f"http://{HOST}/there")
    client.put_bucket_website(Bucket=BUCKET, WebsiteConfiguration={"RedirectAllRequestsTo": {"HostName": "example.org"}})
    status, headers, _ = visit(s3, "/any/where?a=b")
    assert (status, headers["Location"]) == (301, "http://example.org/any/where?a=b")


def test_a_bucket_that_is_no_site(client: Any, s3: S3) -> None:
    assert (visit(s3, "/")[0], b"NoSuchWebsiteConfiguration" in visit(s3, "/")[2]) == (404, True)
    status, headers, body = visit(s3, "/", host=f"nobody.{DOMAIN}")
    assert (status, headers["Content-Type"], b"NoSuchBucket" in body) == (404, "text/html; charset=utf-8", True)


def test_a_signature_gives_visitors_nothing(client: Any, s3: S3) -> None:
    site(client)
    page(client, "index.html", "secret", acl="private")
    address = client.generate_presigned_url("get_object", Params={"Bucket": BUCKET, "Key": "index.html"})
    assert fetch(address)[2] == b"secret"
    assert visit(s3, "/index.html?" + address.partition("?")[2])[0] == 403
