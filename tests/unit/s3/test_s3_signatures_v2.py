"""Signature V2 against botocore's signer."""

import base64
import hmac
from datetime import timedelta
from email.utils import format_datetime
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portal.s3.errors import S3Error
from portal.s3.signatures import verify
from tests.support.s3_wire import (
    ACCESS_KEY,
    HOST,
    SAME_EACH_TIME,
    SECRET,
    environ_of,
    now,
    request_of,
    secret_of,
    sent_by_boto3,
    signed,
    v2,
    v2_query,
)

KEYS = st.lists(st.sampled_from(["", ".", "a b", "ä", "漢字", "%2F", "+", "~", "a=b&c", "?#", "!'()*", "\n", "100%", "1.."]), max_size=5).map(
    "/".join
)
PAIRS = st.lists(
    st.tuples(st.sampled_from(["prefix", "uploads", "versionId", "response-content-type", "acl", "x-id"]), KEYS),
    max_size=5,
    unique_by=lambda pair: pair[0],
)
SIGNERS = pytest.mark.parametrize("signer", [v2, v2_query])


@SIGNERS
@SAME_EACH_TIME
@given(key=KEYS, pairs=PAIRS, method=st.sampled_from(["GET", "PUT", "DELETE", "HEAD"]))
def test_what_botocore_signs_is_accepted(signer, key, pairs, method):
    query = "&".join(f"{name}={quote(value, safe='-_.~')}" if value else name for name, value in pairs)
    url = f"http://{HOST}/bucket/{quote(key, safe='/~')}" + (f"?{query}" if query else "")
    headers = {"x-amz-meta-b": "note", "X-Amz-Acl": "private", "Content-Type": "text/plain", "Content-MD5": "AAAA"}
    request = request_of(signed(signer(), method, url, headers))
    found = verify(request, secret_of, now())
    assert found is not None
    assert (found.access_key, found.chain) == (ACCESS_KEY, None)


@pytest.mark.parametrize(
    "call",
    [
        lambda s3: s3.list_buckets(),
        lambda s3: s3.put_object(Bucket="bucket", Key="a b/ü+%2F~", Body=b"body", Metadata={"a": "b"}),
        lambda s3: s3.list_objects_v2(Bucket="bucket", Prefix="ä b/", Delimiter="/"),
        lambda s3: s3.delete_objects(Bucket="bucket", Delete={"Objects": [{"Key": "a"}]}),
        lambda s3: s3.get_object(Bucket="bucket", Key="k", ResponseContentDisposition='attachment; filename="ü.txt"'),
    ],
)
def test_what_boto3_sends_is_accepted(call):
    assert verify(request_of(sent_by_boto3(call, signature_version="s3")), secret_of, now())


@pytest.mark.parametrize("version", ["s3", "s3v4"])
@pytest.mark.parametrize("operation", ["get_object", "put_object"])
def test_what_boto3_signs_in_advance_is_accepted(operation, version):
    kept = []
    with pytest.raises(IndexError):
        sent_by_boto3(
            lambda s3: kept.append(s3.generate_presigned_url(operation, {"Bucket": "b", "Key": "a b/ü+%2F"}, 60)), signature_version=version
        )
    url = kept[0]
    assert ("X-Amz-Signature" in url) is (version == "s3v4")
    environ = environ_of("GET" if operation == "get_object" else "PUT", url, {})
    assert verify(request_of(environ), secret_of, now())
    with pytest.raises(S3Error, match="SignatureDoesNotMatch"):
        verify(request_of(environ | {"REQUEST_METHOD": "DELETE"}), secret_of, now())
    with pytest.raises(S3Error, match="Request has expired"):
        verify(request_of(environ), secret_of, now() + timedelta(seconds=62))


def test_a_virtual_host_is_part_of_the_path():
    date = format_datetime(now(), usegmt=True)
    text = f"GET\n\n\n{date}\n/my.bucket/a%20b?acl"
    signature = base64.b64encode(hmac.new(SECRET.encode(), text.encode(), "sha1").digest()).decode()
    environ = environ_of("GET", "http://my.bucket.s3.example.org/a%20b?acl", {"Date": date, "Authorization": f"AWS {ACCESS_KEY}:{signature}"})
    assert verify(request_of(environ, "s3.example.org"), secret_of, now())


@pytest.mark.parametrize("value", ["a/b+c=", "a%2Fb%2Bc%3D"])
def test_values_may_be_signed_encoded(value):
    """As s3cmd does."""
    date = format_datetime(now(), usegmt=True)
    text = f"GET\n\n\n{date}\n/b/k?uploadId={value}"
    signature = base64.b64encode(hmac.new(SECRET.encode(), text.encode(), "sha1").digest()).decode()
    headers = {"Date": date, "Authorization": f"AWS {ACCESS_KEY}:{signature}"}
    assert verify(request_of(environ_of("GET", f"http://{HOST}/b/k?uploadId=a%2Fb%2Bc%3D", headers)), secret_of, now())


def test_x_amz_date_stands_for_date():
    date = format_datetime(now(), usegmt=True)
    text = f"GET\n\n\n\nx-amz-date:{date}\n/b/k"
    signature = base64.b64encode(hmac.new(SECRET.encode(), text.encode(), "sha1").digest()).decode()
    headers = {"x-amz-date": date, "Date": "Mon, 01 Jan 2001 00:00:00 GMT", "Authorization": f"AWS {ACCESS_KEY}:{signature}"}
    assert verify(request_of(environ_of("GET", f"http://{HOST}/b/k", headers)), secret_of, now())


def refusal(environ, moment=None):
    with pytest.raises(S3Error) as caught:
        verify(request_of(environ), secret_of, moment or now())
    return caught.value.code


@pytest.mark.parametrize(
    ("name", "change", "code"),
    [
        ("REQUEST_METHOD", lambda _: "DELETE", "SignatureDoesNotMatch"),
        ("RAW_URI", lambda uri: uri.replace("key", "kay"), "SignatureDoesNotMatch"),
        ("RAW_URI", lambda uri: uri + "&uploads", "SignatureDoesNotMatch"),
        ("RAW_URI", lambda uri: uri + "&retention", "SignatureDoesNotMatch"),
        ("CONTENT_TYPE", lambda _: "text/html", "SignatureDoesNotMatch"),
        ("HTTP_CONTENT_MD5", lambda _: "BBBB", "SignatureDoesNotMatch"),
        ("HTTP_X_AMZ_META_NOTE", lambda value: value + "!", "SignatureDoesNotMatch"),
        ("HTTP_X_AMZ_ACL", lambda _: "public-read", "SignatureDoesNotMatch"),
        ("HTTP_DATE", lambda _: "Mon, 01 Jan 2001 00:00:00 GMT", "RequestTimeTooSkewed"),
        ("HTTP_DATE", lambda _: "", "AccessDenied"),
        ("HTTP_DATE", lambda _: "soon", "AccessDenied"),
        ("HTTP_X_AMZ_SECURITY_TOKEN", lambda _: "t", "InvalidToken"),
        ("HTTP_AUTHORIZATION", lambda value: value[:-3] + "A==", "SignatureDoesNotMatch"),
        ("HTTP_AUTHORIZATION", lambda value: value.replace(ACCESS_KEY, "AKNOBODY"), "InvalidAccessKeyId"),
        ("HTTP_AUTHORIZATION", lambda value: value.partition(":")[0], "InvalidArgument"),
        ("HTTP_AUTHORIZATION", lambda value: value.partition(":")[0] + ":", "InvalidArgument"),
    ],
)
def test_tampering_with_a_signed_head_is_refused(name, change, code):
    environ = signed(v2(), "PUT", f"http://{HOST}/bucket/key?acl", {"x-amz-meta-note": "n", "Content-Type": "text/plain", "Content-MD5": "AAAA"})
    assert verify(request_of(environ), secret_of, now())
    assert refusal(environ | {name: change(environ.get(name, ""))}) == code


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda uri: uri.replace("key?", "kay?"), "SignatureDoesNotMatch"),
        (lambda uri: uri + "&acl", "SignatureDoesNotMatch"),
        (lambda uri: uri + "&x-amz-acl=public-read", "SignatureDoesNotMatch"),
        (lambda uri: uri.replace("Expires=", "Expires=1"), "AccessDenied"),
        (lambda uri: uri.replace("Expires=1", "Expires=2"), "SignatureDoesNotMatch"),
        (lambda uri: uri.replace("Expires=", "Expires=x"), "AccessDenied"),
        (lambda uri: uri.replace("Expires=", "Nothing="), "AccessDenied"),
        (lambda uri: uri.replace("Signature=", "Signature=A"), "SignatureDoesNotMatch"),
        (lambda uri: uri.replace("Signature=", "Nothing="), "AccessDenied"),
        (lambda uri: uri.replace(ACCESS_KEY, "AKNOBODY"), "InvalidAccessKeyId"),
    ],
)
def test_tampering_with_a_signed_address_is_refused(change, code):
    environ = signed(v2_query(), "GET", f"http://{HOST}/bucket/key?versionId=7")
    assert verify(request_of(environ), secret_of, now())
    assert refusal(environ | {"RAW_URI": change(environ["RAW_URI"])}) == code
