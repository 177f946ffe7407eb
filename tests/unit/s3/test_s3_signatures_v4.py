"""Signature V4 against botocore's signer: whatever it signs is accepted, and nothing else."""

from datetime import timedelta
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portal.s3.errors import S3Error
from portal.s3.signatures import verify
from tests.support.s3_wire import ACCESS_KEY, HOST, SAME_EACH_TIME, now, request_of, secret_of, sent_by_boto3, signed, v4, v4_query

SEGMENTS = st.sampled_from(
    ["", ".", "..", "a b", "ä", "漢字", "%2F", "+", "~", "a=b&c", "?", "#", "!'()*", "x" * 40, "\u00a0", "\n", "100%", ";:@$,"]
)
KEYS = st.one_of(st.lists(SEGMENTS, max_size=5).map("/".join), st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=40)).filter(
    lambda key: key.count("..") < 2
)
PAIRS = st.lists(st.tuples(st.sampled_from(["prefix", "uploads", "ä b", "versionId", "a+b", "x-id", ""]), KEYS), max_size=5)
SIGNERS = pytest.mark.parametrize("signer", [v4, v4_query])


def address(key: str, pairs: list[tuple[str, str]]) -> str:
    # As SDKs write addresses: everything but what is unreserved is encoded.
    query = "&".join(f"{quote(name, safe='-_.~')}={quote(value, safe='-_.~')}" for name, value in pairs if name)
    return f"http://{HOST}/bucket/{quote('key/' + key, safe='/~')}" + (f"?{query}" if query else "")


@SIGNERS
@SAME_EACH_TIME
@given(key=KEYS, pairs=PAIRS, method=st.sampled_from(["GET", "PUT", "DELETE", "HEAD", "POST"]))
def test_what_botocore_signs_is_accepted(signer, key, pairs, method):
    if signer is v4_query:
        # This signer keeps one parameter of each name.
        pairs = list(dict(pairs).items())
    request = request_of(signed(signer(), method, address(key, pairs), {"x-amz-meta-note": "two  blanks ", "Content-Type": "text/plain"}))
    assert (request.bucket, request.key) == ("bucket", f"key/{key}")
    assert [pair for pair in request.query if not pair[0].startswith("X-Amz-")] == [pair for pair in pairs if pair[0]]
    found = verify(request, secret_of, now())
    assert found is not None
    assert found.access_key == ACCESS_KEY


@SIGNERS
@pytest.mark.parametrize(
    "raw", ["/bucket/a%2Fb", "/bucket/a+b", "/bucket/a(b)!'*", "/bucket//a//", "/bucket/%7Ea/~b", "/bucket/./a", "//bucket", "/bucket/%e4%b8%80"]
)
def test_an_address_is_signed_as_it_is_sent_or_in_its_canonical_form(signer, raw):
    if raw.startswith("//"):
        with pytest.raises(S3Error, match="InvalidURI"):
            request_of(signed(signer(), "GET", f"http://{HOST}{raw}"))
        return
    as_sent = signed(signer(), "GET", f"http://{HOST}{raw}")
    assert verify(request_of(as_sent), secret_of, now())
    # The transport of a client may encode less than was signed.
    loose = signed(signer(), "GET", f"http://{HOST}/bucket/a%28b%29%21%20c?prefix=x%20%28y%29")
    loose["RAW_URI"] = loose["RAW_URI"].replace("%28", "(").replace("%29", ")").replace("%21", "!").replace("x%20", "x+")
    assert verify(request_of(loose), secret_of, now())


def test_a_header_in_utf_8_is_signed_byte_for_byte():
    # à ends in 0xA0, which Unicode calls a blank.
    environ = signed(v4(), "PUT", f"http://{HOST}/b/k", {"x-amz-meta-name": "voilà  là"})
    assert environ["HTTP_X_AMZ_META_NAME"].endswith("\xa0")
    assert verify(request_of(environ), secret_of, now())


def test_date_may_stand_in_for_x_amz_date():
    environ = signed(v4(), "GET", f"http://{HOST}/b/k", {"Date": "Mon, 01 Jan 2024 00:00:00 GMT"})
    assert "HTTP_X_AMZ_DATE" not in environ
    assert verify(request_of(environ), secret_of, now())


def test_a_virtual_host_names_the_bucket():
    environ = signed(v4(), "GET", "http://My.bucket.S3.example.org:9000/a/b")
    environ["HTTP_HOST"] = "my.bucket.s3.example.org:9000"
    request = request_of(environ, "s3.example.org")
    assert (request.bucket, request.key, request.is_virtual_host) == ("my.bucket", "a/b", True)
    assert verify(request, secret_of, now())


def test_nobody_signed_a_request_without_signature():
    assert verify(request_of(signed(v4(), "GET", f"http://{HOST}/b") | {"HTTP_AUTHORIZATION": ""}), secret_of, now()) is None


def refusal(environ, moment=None, secrets=secret_of):
    with pytest.raises(S3Error) as caught:
        verify(request_of(environ), secrets, moment or now())
    return caught.value


@pytest.mark.parametrize(
    ("name", "change", "code"),
    [
        ("REQUEST_METHOD", lambda _: "DELETE", "SignatureDoesNotMatch"),
        ("RAW_URI", lambda uri: uri.replace("key", "kay"), "SignatureDoesNotMatch"),
        ("RAW_URI", lambda uri: uri.replace("list-type=2", "list-type=1"), "SignatureDoesNotMatch"),
        ("RAW_URI", lambda uri: uri + "&versionId=1", "SignatureDoesNotMatch"),
        ("HTTP_HOST", lambda _: "elsewhere.example.org", "SignatureDoesNotMatch"),
        ("HTTP_X_AMZ_META_NOTE", lambda value: value + "!", "SignatureDoesNotMatch"),
        ("HTTP_X_AMZ_CONTENT_SHA256", lambda _: "UNSIGNED-PAYLOAD", "SignatureDoesNotMatch"),
        ("HTTP_X_AMZ_CONTENT_SHA256", lambda _: "anything", "InvalidArgument"),
        ("HTTP_X_AMZ_CONTENT_SHA256", None, "InvalidRequest"),
        ("HTTP_X_AMZ_ACL", lambda _: "public-read", "AccessDenied"),
        ("HTTP_X_AMZ_SECURITY_TOKEN", lambda _: "token", "InvalidToken"),
        ("HTTP_X_AMZ_DATE", lambda _: "20010101T000000Z", "RequestTimeTooSkewed"),
        ("HTTP_X_AMZ_DATE", lambda _: "yesterday", "AccessDenied"),
        ("HTTP_X_AMZ_DATE", lambda _: "20261399T000000Z", "AccessDenied"),
        ("HTTP_X_AMZ_DATE", None, "AccessDenied"),
        ("HTTP_AUTHORIZATION", lambda value: value[:-1] + ("0" if value[-1] != "0" else "1"), "SignatureDoesNotMatch"),
        ("HTTP_AUTHORIZATION", lambda value: value[:-1], "SignatureDoesNotMatch"),
        ("HTTP_AUTHORIZATION", lambda value: value.replace("Signature=", "Signature=\xe4"), "SignatureDoesNotMatch"),
        ("HTTP_AUTHORIZATION", lambda value: value.replace("eu-central-1", "us-east-1"), "SignatureDoesNotMatch"),
        ("HTTP_AUTHORIZATION", lambda value: value.replace(ACCESS_KEY, "AKNOBODY"), "InvalidAccessKeyId"),
        ("HTTP_AUTHORIZATION", lambda value: value.replace("host;", ""), "AccessDenied"),
        ("HTTP_AUTHORIZATION", lambda value: value.replace("x-amz-meta-note", "x-amz-meta-other"), "AccessDenied"),
        ("HTTP_AUTHORIZATION", lambda value: value.replace("/s3/", "/iam/"), "AuthorizationHeaderMalformed"),
        ("HTTP_AUTHORIZATION", lambda value: value.replace("aws4_request", "aws5_request"), "AuthorizationHeaderMalformed"),
        (
            "HTTP_AUTHORIZATION",
            lambda value: value.replace("Credential=", "Credential=/").replace(f"/{ACCESS_KEY}", ""),
            "AuthorizationHeaderMalformed",
        ),
        ("HTTP_AUTHORIZATION", lambda value: value.replace("/20", "/19"), "AuthorizationHeaderMalformed"),
        ("HTTP_AUTHORIZATION", lambda value: value.partition(", Signature")[0], "AuthorizationHeaderMalformed"),
        ("HTTP_AUTHORIZATION", lambda value: value + ", Signature=00", "AuthorizationHeaderMalformed"),
        ("HTTP_AUTHORIZATION", lambda _: "AWS4-HMAC-SHA256", "AuthorizationHeaderMalformed"),
        ("HTTP_AUTHORIZATION", lambda _: "Bearer token", "InvalidArgument"),
        ("HTTP_AUTHORIZATION", lambda _: "AWS nothing", "InvalidArgument"),
    ],
)
def test_tampering_with_a_signed_head_is_refused(name, change, code):
    environ = signed(v4(), "GET", f"http://{HOST}/bucket/key?list-type=2", {"x-amz-meta-note": "n"})
    assert verify(request_of(environ), secret_of, now())
    if change is None:
        del environ[name]
    else:
        environ[name] = change(environ.get(name, ""))
    assert refusal(environ).code == code


def test_another_secret_does_not_match():
    assert refusal(signed(v4(), "GET", f"http://{HOST}/b"), secrets=lambda _: "other").code == "SignatureDoesNotMatch"


@pytest.mark.parametrize("minutes", [-16, 16])
def test_a_clock_that_is_more_than_a_quarter_of_an_hour_off_is_told_so(minutes):
    environ = signed(v4(), "GET", f"http://{HOST}/b")
    assert verify(request_of(environ), secret_of, now() + timedelta(minutes=minutes - minutes // 16 * 2))
    error = refusal(environ, now() + timedelta(minutes=minutes))
    assert (error.code, error.details["MaxAllowedSkewMilliseconds"]) == ("RequestTimeTooSkewed", 900_000)


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        (lambda uri: uri.replace("key?", "kay?"), "SignatureDoesNotMatch", ""),
        (lambda uri: uri + "&x-amz-acl=public-read", "SignatureDoesNotMatch", ""),
        (lambda uri: uri.replace("X-Amz-Signature=", "X-Amz-Signature=0"), "SignatureDoesNotMatch", ""),
        (lambda uri: uri + "&X-Amz-Signature=00", "AuthorizationQueryParametersError", "more than once"),
        (lambda uri: uri + "&X-Amz-Expires=9999", "AuthorizationQueryParametersError", "more than once"),
        (lambda uri: uri.replace("X-Amz-Expires=600", "X-Amz-Expires=601"), "SignatureDoesNotMatch", ""),
        (lambda uri: uri.replace("X-Amz-Expires=600", "X-Amz-Expires=604801"), "AuthorizationQueryParametersError", "less than a week"),
        (lambda uri: uri.replace("X-Amz-Expires=600", "X-Amz-Expires=-1"), "AuthorizationQueryParametersError", "number"),
        (lambda uri: uri.replace("X-Amz-Expires=600", "X-Amz-Expires=%C2%B2"), "AuthorizationQueryParametersError", "number"),
        (lambda uri: uri.replace("X-Amz-Expires=600", "Nothing=1"), "AuthorizationQueryParametersError", "requires"),
        (lambda uri: uri.replace("X-Amz-Date=20", "X-Amz-Date=xx"), "AuthorizationQueryParametersError", "ISO8601"),
        (lambda uri: uri.replace("X-Amz-Date=20", "X-Amz-Date=19"), "AuthorizationQueryParametersError", "not the same"),
        (lambda uri: uri.replace("HMAC-SHA256", "HMAC-SHA1"), "AuthorizationQueryParametersError", "only supports"),
        (lambda uri: uri.replace("%2Fs3%2F", "%2Fec2%2F"), "AuthorizationQueryParametersError", "expecting"),
        (lambda uri: uri.replace("X-Amz-SignedHeaders=host", "X-Amz-SignedHeaders=host%3B%E4%B8%80"), "SignatureDoesNotMatch", ""),
        (lambda uri: uri.replace("X-Amz-SignedHeaders=host", "X-Amz-SignedHeaders=date"), "AccessDenied", "not signed"),
        (lambda uri: uri.replace(ACCESS_KEY, "AKNOBODY"), "InvalidAccessKeyId", ""),
        (lambda uri: uri + "&X-Amz-Security-Token=t", "InvalidToken", ""),
    ],
)
def test_tampering_with_a_signed_address_is_refused(change, code, message):
    environ = signed(v4_query(), "GET", f"http://{HOST}/bucket/key?versionId=7")
    assert verify(request_of(environ), secret_of, now())
    error = refusal(environ | {"RAW_URI": change(environ["RAW_URI"])})
    assert error.code == code
    assert message in error.message


def test_an_address_is_good_from_when_it_was_signed_until_it_expires():
    environ = signed(v4_query(60), "GET", f"http://{HOST}/b/k")
    assert verify(request_of(environ), secret_of, now() + timedelta(seconds=50))
    assert refusal(environ, now() + timedelta(seconds=62)).message == "Request has expired"
    assert refusal(environ, now() - timedelta(minutes=16)).message == "Request is not valid yet"


def test_a_header_that_was_not_signed_cannot_be_added_to_a_signed_address():
    environ = signed(v4_query(), "PUT", f"http://{HOST}/b/k")
    assert refusal(environ | {"HTTP_X_AMZ_ACL": "public-read"}).details == {"HeadersNotSigned": "x-amz-acl"}
    assert refusal(environ | {"HTTP_AUTHORIZATION": "AWS a:b"}).code == "InvalidArgument"


def test_headers_in_a_signed_address_count_as_headers():
    request = request_of(signed(v4_query(), "PUT", f"http://{HOST}/b/k?x-amz-acl=private&x-amz-meta-n%C3%A4me=%C3%A4"))
    assert verify(request, secret_of, now())
    assert request.header("x-amz-acl") == "private"
    # One character for one byte, as in the head.
    assert request.headers_named("x-amz-meta-") == {"x-amz-meta-näme": "Ã¤"}
    assert not request_of(signed(v4(), "PUT", f"http://{HOST}/b/k?x-amz-acl=private")).header("x-amz-acl")


@pytest.mark.parametrize("secure", [False, True])
@pytest.mark.parametrize(
    "call",
    [
        lambda s3: s3.list_buckets(),
        lambda s3: s3.create_bucket(Bucket="bucket", CreateBucketConfiguration={"LocationConstraint": "eu-central-1"}),
        lambda s3: s3.put_object(Bucket="bucket", Key="a b/ü+%2F~", Body=b"body", Metadata={"a": "b"}, ACL="private"),
        lambda s3: s3.copy_object(Bucket="bucket", Key="k", CopySource="bucket/ü b?versionId=7"),
        lambda s3: s3.list_objects_v2(Bucket="bucket", Prefix="ä b/", Delimiter="/", ContinuationToken="a+b/=="),
        lambda s3: s3.delete_objects(Bucket="bucket", Delete={"Objects": [{"Key": "a"}]}),
        lambda s3: s3.upload_part(Bucket="bucket", Key="k", UploadId="u", PartNumber=1, Body=b"part"),
        lambda s3: s3.get_object(Bucket="bucket", Key="k", Range="bytes=0-1", ResponseContentDisposition='attachment; filename="ü.txt"'),
    ],
)
def test_what_boto3_sends_is_accepted(call, secure):
    found = verify(request_of(sent_by_boto3(call, secure=secure)), secret_of, now())
    assert found is not None
    assert found.access_key == ACCESS_KEY


def test_the_host_is_signed_even_where_none_is_sent():
    environ = signed(v4(), "GET", f"http://{HOST}/b/k")
    environ["HTTP_AUTHORIZATION"] = environ["HTTP_AUTHORIZATION"].replace("host;", "")
    del environ["HTTP_HOST"]
    assert refusal(environ).details == {"HeadersNotSigned": "host"}
