"""Whatever arrives is understood or refused in words of S3; nothing ends in an error of the gateway."""

from urllib.parse import quote

from hypothesis import given
from hypothesis import strategies as st

from portal.s3.bodies import open_body
from portal.s3.errors import S3Error
from portal.s3.forms import open_form
from portal.s3.post_policy import verify_form
from portal.s3.signatures import verify
from portal.s3.signing import PAYLOADS
from portal.s3.xml import error_document, parse
from tests.support.s3_wire import ACCESS_KEY, SAME_EACH_TIME, environ_of, now, request_of, secret_of

DATE = now().strftime("%Y%m%dT%H%M%SZ")
SCOPE = f"{ACCESS_KEY}/{DATE[:8]}/eu/s3/aws4_request"
BYTES = st.text(st.characters(max_codepoint=255, exclude_characters="\r\n\x00"), max_size=30)
VALUES = st.one_of(
    BYTES,
    st.sampled_from(sorted(PAYLOADS)),
    st.sampled_from([
        DATE, SCOPE, "host", "host;x-amz-date", "600", "0" * 64, "AWS4-HMAC-SHA256", "chunked", "aws-chunked", "x-amz-checksum-crc32", "CRC32", "AAAAAA==", "12",
        f"AWS4-HMAC-SHA256 Credential={SCOPE}, SignedHeaders=host;x-amz-date, Signature=00", f"AWS {ACCESS_KEY}:AAAA", "multipart/form-data; boundary=b",
        "Sat, 21 Nov 2026 10:00:00 GMT", "Sat, 99 Nov 99999 10:00:00 +9999", "4294967296000",
    ]),
)  # fmt: skip
HEADERS = st.dictionaries(
    st.sampled_from([
        "Authorization", "Date", "x-amz-date", "x-amz-content-sha256", "x-amz-decoded-content-length", "x-amz-trailer", "x-amz-checksum-crc32", "x-amz-acl",
        "x-amz-sdk-checksum-algorithm", "Content-MD5", "Content-Type", "Content-Length", "Transfer-Encoding", "Content-Encoding", "x-amz-checksum-sha1",
    ]),
    VALUES,
)  # fmt: skip
PARAMETERS = st.lists(
    st.tuples(
        st.sampled_from(
            ["X-Amz-Algorithm", "X-Amz-Credential", "X-Amz-Date", "X-Amz-Expires", "X-Amz-SignedHeaders", "X-Amz-Signature", "AWSAccessKeyId"]
        )
        | st.sampled_from(["Signature", "Expires", "x-amz-content-sha256", "prefix", "acl"]),
        VALUES | st.text(max_size=5),
    ),
    max_size=8,
)
LINES = st.sampled_from(
    [b"0\r\n", b"5\r\nhello\r\n", b"0;chunk-signature=" + b"0" * 64 + b"\r\n", b"\r\n", b"\n", b"x-amz-checksum-crc32:AAAAAA==\r\n"]
) | st.binary(max_size=20)
PARTS = st.sampled_from(
    [
        b"--b\r\n",
        b"--b--\r\n",
        b'Content-Disposition: form-data; name="file"\r\n',
        b'Content-Disposition: form-data; name="key"\r\n',
        b"\r\n",
        b"k\r\n",
    ]
)
BODIES = st.lists(LINES | PARTS, max_size=12).map(b"".join)


def told(call):
    """The code of the refusal, which can be written; nothing where there is none."""
    try:
        call()
    except S3Error as error:
        return parse(error_document(error, "/b", "id"), "Error").value("Code")
    return None


@SAME_EACH_TIME
@given(HEADERS, PARAMETERS, BYTES, BODIES)
def test_any_request(headers, parameters, path, body):
    query = "&".join(f"{name}={quote(value, safe='')}" for name, value in parameters)
    environ = environ_of("PUT", "http://host/", {name: value.encode("latin-1") for name, value in headers.items()}, body)
    environ["RAW_URI"] = f"/b/{path.replace('?', '').replace('#', '')}?{query}"

    def call():
        request = request_of(environ)
        open_body(request, verify(request, secret_of, now())).whole()

    told(call)


@SAME_EACH_TIME
@given(BODIES)
def test_any_form(body):
    headers = {"Content-Type": "multipart/form-data; boundary=b", "Content-Length": str(len(body))}

    def call():
        form = open_form(request_of(environ_of("POST", "http://host/b", headers, body)))
        verify_form(form, "b", secret_of, now())
        form.open().whole()

    told(call)


@SAME_EACH_TIME
@given(st.binary(max_size=200) | st.text(max_size=50).map(lambda text: f"<R>{text}</R>".encode()))
def test_any_document(body):
    assert told(lambda: parse(body, "R")) in {None, "MalformedXML"}
