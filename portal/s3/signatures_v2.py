"""Signature V2, in the header Authorization and in the address: older clients, and boto3's default for presigned addresses of other endpoints.

V2 covers the path, the date, Content-MD5, Content-Type and every x-amz- header; of the query only the parameters that choose what is done.
A parameter by which the gateway tells operations apart has to be in SIGNED_PARAMETERS: what is not could be added to somebody else's request.
"""

import base64
import hmac
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from operator import itemgetter
from urllib.parse import unquote_to_bytes

from portal.s3.errors import S3Error
from portal.s3.requests import S3Request
from portal.s3.signing import SecretOf, Signed, check_expiry, check_skew, moment_of, path_forms, same, secret_for

# Parameters that are part of what is signed.
SIGNED_PARAMETERS = frozenset({
    "accelerate", "acl", "analytics", "attributes", "cors", "defaultObjectAcl", "delete", "encryption", "intelligent-tiering", "inventory",
    "legal-hold", "lifecycle", "location", "logging", "metrics", "notification", "object-lock", "ownershipControls", "partNumber", "policy",
    "policyStatus", "publicAccessBlock", "replication", "requestPayment", "response-cache-control", "response-content-disposition",
    "response-content-encoding", "response-content-language", "response-content-type", "response-expires", "restore", "retention", "select",
    "select-type", "session", "storageClass", "tagging", "torrent", "uploadId", "uploads", "versionId", "versioning", "versions", "website",
})  # fmt: skip


def verify_header(request: S3Request, authorization: str, secret_of: SecretOf, now: datetime) -> Signed:
    """Whose request this is by its header Authorization: `AWS key:signature`."""
    access_key, colon, signature = authorization.removeprefix("AWS ").strip().rpartition(":")
    if not colon or not access_key or not signature:
        raise S3Error("InvalidArgument", "Authorization header is invalid. Expected AWS AccessKeyId:signature", ArgumentName="Authorization")
    check_skew(moment_of(request), now)
    # A client that cannot set Date sends x-amz-date, which is among the headers below.
    date = "" if "x-amz-date" in request.headers else request.headers.get("date", "")
    return _verified(request, access_key, signature, date, secret_of)


def verify_query(request: S3Request, secret_of: SecretOf, now: datetime) -> Signed:
    """Whose request this is by its address."""
    access_key, expires, signature = (request.parameters.get(name, "") for name in ("AWSAccessKeyId", "Expires", "Signature"))
    if not access_key or not signature or not expires:
        raise S3Error("AccessDenied", "Query-string authentication requires the Signature, Expires and AWSAccessKeyId parameters")
    if not (expires.isascii() and expires.isdigit()) or len(expires) > 10:  # noqa: PLR2004 - digits of a second in the next two centuries
        raise S3Error("AccessDenied", f"Invalid date (should be seconds since epoch): {expires[:32]}")
    check_expiry(datetime.fromtimestamp(int(expires), UTC), now)
    return _verified(request, access_key, signature, expires, secret_of)


def _verified(request: S3Request, access_key: str, signature: str, date: str, secret_of: SecretOf) -> Signed:
    secret = secret_for(access_key, secret_of)
    amazon = "".join(f"{name}:{value.strip()}\n" for name, value in sorted(request.headers_named("x-amz-").items()))
    head = "\n".join((request.method, request.headers.get("content-md5", ""), request.headers.get("content-type", ""), date)) + "\n" + amazon
    for resource in _resources(request):
        if same(signature_of(secret, head.encode("latin-1") + resource), signature):
            return Signed(access_key)
    raise S3Error("SignatureDoesNotMatch", AWSAccessKeyId=access_key[:128], SignatureProvided=signature[:128])


def _resources(request: S3Request) -> Iterator[bytes]:
    """What is asked for, as it may have been signed: the path with its bucket, and the parameters that choose what is done."""
    chosen = sorted((pair for pair in request.query_pairs() if pair[0] in SIGNED_PARAMETERS), key=itemgetter(0))
    pairs = [(name.encode(), value.encode("latin-1")) for name, value in chosen]
    # The specification has the values decoded; s3cmd leaves them as they are.
    queries = dict.fromkeys((_query((name, unquote_to_bytes(value)) for name, value in pairs), _query(pairs)))
    before = f"/{request.bucket}" if request.is_virtual_host else ""
    for path in path_forms(request.raw_path):
        whole = (before + path).encode("latin-1")
        # boto3 asks for /bucket and signs /bucket/.
        paths = [whole] if request.key or path.endswith("/") else [whole, whole + b"/"]
        yield from (one + query for one in paths for query in queries)


def _query(pairs: Iterable[tuple[bytes, bytes]]) -> bytes:
    text = b"&".join(name + (b"=" + value if value else b"") for name, value in pairs)
    return b"?" + text if text else b""


def signature_of(secret: str, text: bytes) -> str:
    """The signature of a text, as V2 makes it."""
    return base64.b64encode(hmac.digest(secret.encode(), text, "sha1")).decode()
