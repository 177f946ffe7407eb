"""Uploads by forms of browsers, with policies as boto3 signs them."""

import base64
import hashlib
import json
from datetime import timedelta

import pytest
import requests

from portal.s3.errors import S3Error
from portal.s3.forms import MAX_FIELDS_BYTES, open_form
from portal.s3.post_policy import parse_policy, verify_form
from tests.support.s3_wire import ACCESS_KEY, HOST, environ_of, now, request_of, secret_of, sent_by_boto3

DATA = bytes(range(256)) * 20_000
URL = f"http://{HOST}/bucket"


def presigned(version="s3v4", key="up/${filename}", fields=None, conditions=None, seconds=600):
    kept = []
    with pytest.raises(IndexError):
        sent_by_boto3(lambda s3: kept.append(s3.generate_presigned_post("bucket", key, fields, conditions, seconds)), signature_version=version)
    assert kept[0]["url"].rstrip("/") == URL
    return kept[0]["fields"]


def posted(fields, file=("photos/cat.jpg", DATA), more=(), **headers):
    """As an HTTP library writes a form."""
    parts = [(name, (None, value)) for name, value in dict(fields).items()]
    parts += [("file", file)] if file else []
    prepared = requests.Request("POST", URL, files=[*parts, *more]).prepare()
    return request_of(environ_of("POST", URL, dict(prepared.headers) | headers, prepared.body))


def accepted(request, moment=None, **options):
    form = open_form(request)
    found = verify_form(form, request.bucket, secret_of, moment or now())
    body = form.open(**options)
    return form, found, body.whole(), body


def refusal(request, moment=None):
    with pytest.raises(S3Error) as caught:
        accepted(request, moment)
    return caught.value


VERSIONS = pytest.mark.parametrize("version", ["s3v4", "s3"])


@VERSIONS
def test_a_form_as_boto3_signs_it(version):
    fields = presigned(
        version, fields={"acl": "private", "Content-Type": "image/jpeg"}, conditions=[{"acl": "private"}, ["starts-with", "$Content-Type", "image/"]]
    )
    form, found, data, body = accepted(posted(fields))
    assert (found.access_key, form.key, form.file_name) == (ACCESS_KEY, "up/cat.jpg", "cat.jpg")
    assert form.fields["content-type"] == "image/jpeg"
    assert data == DATA
    assert body.md5 == hashlib.md5(DATA, usedforsecurity=False).digest()


def test_a_form_of_nobody():
    form, found, data, _ = accepted(posted({"key": "a b/ü"}, ("", b"")))
    assert (found, form.key, data) == (None, "a b/ü", b"")


@VERSIONS
@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        (lambda fields: fields | {"key": "elsewhere/x"}, "AccessDenied", 'Policy Condition failed: ["starts-with", "$key", "up/"]'),
        (lambda fields: fields | {"acl": "public-read"}, "AccessDenied", "Extra input fields: acl"),
        (
            lambda fields: fields | {"policy": base64.b64encode(b'{"expiration":"2999-01-01T00:00:00Z","conditions":[]}').decode()},
            "SignatureDoesNotMatch",
            "",
        ),
        (lambda fields: fields | {name: "00" for name in fields if "ignature" in name}, "SignatureDoesNotMatch", ""),
        (lambda fields: fields | {name: "ä" for name in fields if "ignature" in name}, "SignatureDoesNotMatch", ""),
        (lambda fields: {name: value for name, value in fields.items() if "ignature" not in name}, "InvalidArgument", "must contain"),
        (lambda fields: {name: value for name, value in fields.items() if name != "policy"}, "InvalidArgument", "named 'policy'"),
        (lambda fields: {name: value for name, value in fields.items() if name in {"key", "policy"}}, "InvalidArgument", "must contain"),
        (lambda fields: {name: value for name, value in fields.items() if name != "key"}, "InvalidArgument", "named 'key'"),
        (lambda fields: {name: value.replace(ACCESS_KEY, "AKNOBODY") for name, value in fields.items()}, "InvalidAccessKeyId", ""),
        (lambda fields: fields | {"x-amz-security-token": "t"}, "InvalidToken", ""),
        (lambda fields: fields | {"KEY": "again"}, "InvalidArgument", "duplicate"),
        (lambda fields: fields | {"key": "../up"}, "InvalidURI", ""),
        (lambda fields: fields | {"key": "up/" + "k" * 1022}, "KeyTooLongError", ""),
        (lambda fields: fields | {"note": "x" * MAX_FIELDS_BYTES}, "MaxPostPreDataLengthExceededError", ""),
        (lambda fields: fields | {f"note{n}": "" for n in range(300)}, "MalformedPOSTRequest", ""),
        (lambda fields: fields | {"note": b"\xff"}, "MalformedPOSTRequest", ""),
        (lambda fields: fields | {"content-md5": "x"}, "AccessDenied", "Extra input fields: content-md5"),
    ],
)
def test_tampering_with_a_form_is_refused(version, change, code, message):
    error = refusal(posted(change(presigned(version))))
    assert error.code == code
    assert message in error.message


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("x-amz-algorithm", "AWS4-HMAC-SHA1"),
        ("x-amz-credential", "nothing"),
        ("x-amz-credential", f"{ACCESS_KEY}/20010101/eu-central-1/s3/aws4_request"),
        ("x-amz-date", "today"),
        ("x-amz-date", ""),
    ],
)
def test_fields_of_the_signature_that_make_no_sense(name, value):
    assert refusal(posted(presigned() | {name: value})).code == "InvalidArgument"


@VERSIONS
def test_a_policy_is_for_one_bucket_and_a_time(version):
    request = posted(presigned(version, seconds=60))
    assert refusal(request, now() + timedelta(seconds=62)).message == "Invalid according to Policy: Policy expired."
    request = posted(presigned(version))
    with pytest.raises(S3Error, match="Policy Condition failed"):
        verify_form(open_form(request), "another", secret_of, now())


def test_what_a_policy_may_ignore_and_what_it_must_name():
    assert accepted(posted(presigned() | {"x-ignore-note": "1"}))[1]
    fields = presigned(fields={"content-type": "text/html"}, conditions=[["starts-with", "$content-type", "text/"]])
    assert refusal(posted(fields | {"content-type": "text/a,image/b"})).code == "AccessDenied"
    assert accepted(posted(fields | {"content-type": "text/a, text/b"}))[1]
    assert accepted(posted(presigned(key="fixed")))[0].key == "fixed"


@pytest.mark.parametrize(
    ("smallest", "largest", "code"), [(len(DATA) + 1, 10**9, "EntityTooSmall"), (0, len(DATA) - 1, "EntityTooLarge"), (len(DATA), len(DATA), None)]
)
def test_sizes_that_a_policy_allows(smallest, largest, code):
    request = posted(presigned(conditions=[["content-length-range", smallest, str(largest)]]))
    assert (refusal(request).code if code else accepted(request)[2] == DATA) == (code or True)


@pytest.mark.parametrize(
    "policy",
    [
        b"",
        b"[]",
        b"\xff",
        b"[" * 100_000,
        b'{"conditions": []}',
        b'{"expiration": 1, "conditions": []}',
        b'{"expiration": "soon", "conditions": []}',
        *(
            json.dumps({"expiration": "2999-01-01T00:00:00Z", "conditions": [one]}).encode()
            for one in (
                "text",
                ["in", "$key", "x"],
                ["eq", "key", "x"],
                ["eq", "$key"],
                {"key": 1},
                ["content-length-range", -1, 5],
                ["content-length-range", "x", 5],
                [[]],
            )
        ),
        b'{"expiration": "2999-01-01T00:00:00Z"}',
    ],
)
def test_policies_that_are_none(policy):
    with pytest.raises(S3Error, match="InvalidPolicyDocument"):
        parse_policy(base64.b64encode(policy).decode())
    with pytest.raises(S3Error, match="InvalidPolicyDocument"):
        parse_policy("no base64")


def test_the_file_is_checked_like_a_body():
    good = {"key": "k", "x-amz-checksum-sha256": base64.b64encode(hashlib.sha256(DATA).digest()).decode()}
    assert accepted(posted(good))[3].checksum.algorithm == "SHA256"
    assert refusal(posted({"key": "k", "x-amz-checksum-crc32": "AAAAAA=="})).code == "BadDigest"
    assert refusal(posted({"key": "k", "Content-MD5": base64.b64encode(bytes(16)).decode()})).code == "BadDigest"
    with pytest.raises(S3Error, match="EntityTooLarge"):
        accepted(posted({"key": "k"}), limit_bytes=len(DATA) - 1)


def test_forms_that_are_none():
    assert refusal(posted({"key": "k"}, file=None)).code == "InvalidArgument"
    assert refusal(posted({"key": "k"}, **{"Content-Type": "text/plain"})).code == "PreconditionFailed"
    assert refusal(posted({"key": "k"}, **{"Content-Type": "multipart/form-data"})).code == "PreconditionFailed"
    assert refusal(posted({"key": "k"}, **{"Content-Length": ""})).code == "MissingContentLength"
    assert refusal(posted({"key": "k"}, **{"Content-Type": "multipart/form-data; boundary=other"})).code in {"IncompleteBody", "MalformedPOSTRequest"}
    assert refusal(posted({"key": "k"}, more=[("file", ("b", b"second"))])).code == "IncorrectNumberOfFilesInPostRequest"
    # What follows the file is not looked at.
    assert accepted(posted({"key": "k"}, more=[("submit", (None, "Upload"))]))[2] == DATA


@pytest.mark.parametrize("kept", [0, 60, 200, 5000, len(DATA), -60, -3])
def test_a_form_cut_off_anywhere_is_incomplete(kept):
    request = posted({"key": "k"})
    whole = request.input.getvalue()
    data = whole[:kept]
    for headers in ({"Content-Length": str(len(whole))}, {"Content-Length": str(len(data))}, {"Transfer-Encoding": "chunked"}):
        environ = environ_of("POST", URL, {"Content-Type": request.headers["content-type"]} | headers, data)
        assert refusal(request_of(environ)).code == "IncompleteBody"
