"""Reading the head of a request: bucket, key and query out of an address."""

import pytest

from portal.s3.errors import ERRORS, S3Error
from portal.s3.requests import check_key
from portal.s3.xml import error_document
from tests.support.s3_wire import environ_of, request_of


def read(uri="/b/k", method="GET", host="s3.example.org:9000", domain=None, scheme="http", **headers):
    environ = environ_of(method, f"{scheme}://{host}/", {name.replace("_", "-"): value for name, value in headers.items()})
    return request_of(environ | {"RAW_URI": uri}, domain)


@pytest.mark.parametrize(
    ("uri", "bucket", "key"),
    [
        ("/", "", ""),
        ("/b", "b", ""),
        ("/b/", "b", ""),
        ("/b?x=/y", "b", ""),
        ("/b/a/b", "b", "a/b"),
        ("/b//", "b", "/"),
        ("/b/a%2Fb%20c+d", "b", "a/b c+d"),
        ("/b/%E4%B8%80", "b", "一"),
        ("/b/\xe4\xb8\x80", "b", "一"),
        ("/b/a/../c", "b", "a/../c"),
        ("/b/...", "b", "..."),
        ("http://elsewhere/b/k?x", "b", "k"),
    ],
)
def test_path_style(uri, bucket, key):
    request = read(uri)
    assert (request.bucket, request.key, request.is_virtual_host) == (bucket, key, False)


@pytest.mark.parametrize(
    ("host", "bucket"),
    [
        ("b.S3.example.org", "b"),
        ("a.b.s3.example.org:9000", "a.b"),
        ("s3.example.org:9000", ""),
        ("10.0.0.1:9000", ""),
        ("[::1]:9000", ""),
        ("xs3.example.org", ""),
        ("", ""),
    ],
)
def test_virtual_host_style(host, bucket):
    request = read("/x/y", host=host, domain="s3.example.org")
    assert (request.bucket, request.key) == ((bucket, "x/y") if bucket else ("x", "y"))


def test_the_query_keeps_order_and_repetitions():
    request = read("/b?uploads&a=1&b=%2B+%20x&a=2&empty=&=nameless&&x=y=z")
    assert request.query == (("uploads", ""), ("a", "1"), ("b", "+  x"), ("a", "2"), ("empty", ""), ("", "nameless"), ("x", "y=z"))
    assert request.parameters["a"] == "1"


@pytest.mark.parametrize(
    ("uri", "code"),
    [
        ("/b/%zz", "InvalidURI"),
        ("/b/%e4", "InvalidURI"),
        ("/b/100%", "InvalidURI"),
        ("/b/%00", "InvalidURI"),
        ("//k", "InvalidURI"),
        ("/b/../k", "InvalidURI"),
        ("/b/a/%2e%2e/../k", "InvalidURI"),
        ("/b/a/.//../../k", "InvalidURI"),
        ("/b/" + "k" * 1025, "KeyTooLongError"),
        ("/b/" + "%C3%A4" * 513, "KeyTooLongError"),
    ],
)
def test_addresses_that_name_nothing(uri, code):
    with pytest.raises(S3Error) as caught:
        read(uri)
    assert caught.value.code == code


def test_a_key_may_have_1024_bytes():
    assert read("/b/" + "k" * 1024).key == "k" * 1024
    check_key("ä" * 512)


def test_a_query_that_cannot_be_decoded():
    with pytest.raises(S3Error, match="InvalidURI"):
        _ = read("/b?prefix=%ff").query


def test_lengths_and_encodings():
    assert read(Content_Length="0012").content_length == 12
    assert read().content_length is None
    assert not read(Content_Length="0").has_body
    chunked = read(Transfer_Encoding="Chunked", Content_Length="5")
    assert (chunked.content_length, chunked.has_body) == (None, True)
    assert read(Content_Encoding="aws-chunked, gzip").content_encoding == "gzip"
    assert read(Content_Encoding="aws-chunked").content_encoding == ""
    for wrong in ("-1", "1e3", "²", "9" * 19):
        with pytest.raises(S3Error, match="InvalidArgument"):
            _ = read(Content_Length=wrong).content_length


def test_every_refusal_can_be_written():
    for code in ERRORS:
        error = S3Error(code, BucketName="a<b")
        assert error.status_line.startswith(f"{error.status} ")
        text = error_document(error, "/b/k&", "id").decode()
        assert f"<Error><Code>{code}</Code>" in text
        assert "<BucketName>a&lt;b</BucketName><Resource>/b/k&amp;</Resource><RequestId>id</RequestId></Error>" in text
