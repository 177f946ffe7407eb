"""Signature V4, in the header Authorization and in the address.

A client may write the same address in more ways than one, and clients differ in which of them they sign; the address as sent and its
canonical form name the same key, so that either may be signed.
"""

import hashlib
import hmac
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache

from portal.s3.errors import S3Error
from portal.s3.requests import S3Request
from portal.s3.signing import (
    BASIC,
    MAX_SKEW,
    UNSIGNED,
    Chain,
    SecretOf,
    Signed,
    check_expiry,
    check_payload,
    check_skew,
    encoded,
    moment_of,
    parse_basic,
    path_forms,
    same,
    secret_for,
)

ALGORITHM = "AWS4-HMAC-SHA256"
MAX_EXPIRES_S = 7 * 24 * 3600


@dataclass(frozen=True, slots=True)
class Scope:
    """The credential of a V4 signature: key/date/region/s3/aws4_request."""

    access_key: str
    date: str
    region: str

    def __str__(self) -> str:
        return f"{self.date}/{self.region}/s3/aws4_request"


@dataclass(frozen=True, slots=True)
class Claim:
    """What a request says about its signature."""

    scope: Scope
    timestamp: str
    signed_headers: str
    signature: str
    payload: str


def verify_header(request: S3Request, authorization: str, secret_of: SecretOf, now: datetime) -> Signed:
    """Whose request this is by its header Authorization."""
    fields = _header_fields(authorization)
    scope = parse_credential(fields["Credential"], _malformed_header)
    moment = moment_of(request)
    check_skew(moment, now)
    if moment.strftime("%Y%m%d") != scope.date:
        raise _malformed_header(f'Invalid credential date "{scope.date}". This date is not the same as X-Amz-Date.')
    payload = request.headers.get("x-amz-content-sha256")
    if payload is None:
        raise S3Error("InvalidRequest", "Missing required header for this request: x-amz-content-sha256")
    claim = Claim(scope, moment.strftime(BASIC), fields["SignedHeaders"], fields["Signature"], payload)
    return _verified(request, claim, secret_of, without="")


def verify_query(request: S3Request, secret_of: SecretOf, now: datetime) -> Signed:
    """Whose request this is by its address."""
    given = request.parameters
    names = ("X-Amz-Algorithm", "X-Amz-Credential", "X-Amz-Date", "X-Amz-Expires", "X-Amz-SignedHeaders", "X-Amz-Signature")
    if not all(given.get(name) for name in names):
        raise _malformed_query(f"Query-string authentication version 4 requires the {', '.join(names)} parameters.")
    if sum(name in names for name, _ in request.query) > len(names):
        raise _malformed_query("A parameter of the signature stands more than once.")
    if given["X-Amz-Algorithm"] != ALGORITHM:
        raise _malformed_query(f'X-Amz-Algorithm only supports "{ALGORITHM}"')
    scope = parse_credential(given["X-Amz-Credential"], _malformed_query)
    moment = parse_basic(given["X-Amz-Date"])
    if moment is None:
        raise _malformed_query("X-Amz-Date must be in the ISO8601 Long Format \"yyyyMMdd'T'HHmmss'Z'\"")
    if given["X-Amz-Date"][:8] != scope.date:
        raise _malformed_query(f'Invalid credential date "{scope.date}". This date is not the same as X-Amz-Date: "{given["X-Amz-Date"][:8]}".')
    text = given["X-Amz-Expires"]
    if not (text.isascii() and text.isdigit()):
        raise _malformed_query("X-Amz-Expires should be a number")
    if len(text) > len(str(MAX_EXPIRES_S)) or int(text) > MAX_EXPIRES_S:
        raise _malformed_query(
            f"X-Amz-Expires must be less than a week (in seconds); that is, the given X-Amz-Expires must be less than {MAX_EXPIRES_S} seconds"
        )
    if moment > now + MAX_SKEW:
        raise S3Error("AccessDenied", "Request is not valid yet", ServerTime=f"{now:{BASIC}}")
    check_expiry(moment + timedelta(seconds=int(text)), now)
    payload = request.header("x-amz-content-sha256", UNSIGNED)
    claim = Claim(scope, given["X-Amz-Date"], given["X-Amz-SignedHeaders"], given["X-Amz-Signature"], payload)
    return _verified(request, claim, secret_of, without="X-Amz-Signature")


def _verified(request: S3Request, claim: Claim, secret_of: SecretOf, *, without: str) -> Signed:
    """Whether the claim holds; `without` is the parameter that no signature can cover."""
    check_payload(claim.payload)
    names = claim.signed_headers.split(";")
    _check_signed_headers(request, names)
    key = signing_key(secret_for(claim.scope.access_key, secret_of), claim.scope.date, claim.scope.region)
    head = "".join(f"{name}:{_trimmed(request.headers.get(name, ''))}\n" for name in names)
    for path, query in _addresses(request, without):
        wanted = f"{request.method}\n{path}\n{query}\n{head}\n{claim.signed_headers}\n{claim.payload}"
        # What is not of the address is of the head, where a character is a byte; a name that is not cannot have been sent.
        digest = hashlib.sha256(wanted.encode("latin-1", "replace")).hexdigest()
        calculated = hmac.digest(key, f"{ALGORITHM}\n{claim.timestamp}\n{claim.scope}\n{digest}".encode(), "sha256").hex()
        if same(calculated, claim.signature):
            return Signed(claim.scope.access_key, claim.payload, Chain(key, claim.timestamp, str(claim.scope), calculated))
    raise S3Error("SignatureDoesNotMatch", AWSAccessKeyId=claim.scope.access_key[:128], SignatureProvided=claim.signature[:128])


def _trimmed(value: str) -> str:
    # Only the white space of ASCII: other bytes that Unicode would call so are parts of UTF-8.
    return b" ".join(value.encode("latin-1").split()).decode("latin-1") if " " in value or "\t" in value else value


def _check_signed_headers(request: S3Request, names: list[str]) -> None:
    """A header that decides something must not be added to somebody else's request."""
    covered = set(names)
    missing = [name for name in request.headers if name not in covered and (name == "host" or name.startswith("x-amz-"))]
    if "host" not in covered or missing:
        raise S3Error(
            "AccessDenied",
            "There were headers present in the request which were not signed",
            HeadersNotSigned=", ".join(sorted({*missing} or {"host"})),
        )


def _addresses(request: S3Request, without: str) -> Iterator[tuple[str, str]]:
    """Path and query as they may have been signed, the form of the specification first."""
    raw = sorted(pair for pair in request.query_pairs() if pair[0] != without)
    usual = sorted((encoded(name, plus=True), encoded(value, plus=True)) for name, value in raw)
    queries = dict.fromkeys("&".join(f"{name}={value}" for name, value in pairs) for pairs in (usual, raw))
    for path in path_forms(request.raw_path):
        for query in queries:
            yield path, query


@lru_cache(maxsize=1024)
def signing_key(secret: str, date: str, region: str) -> bytes:
    """The key of one day and region, as V4 derives it."""
    key = f"AWS4{secret}".encode()
    for part in (date, region, "s3", "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    return key


def parse_credential(text: str, refusal: Callable[[str], S3Error]) -> Scope:
    """The parts of a credential; a refusal of the caller's kind where it has others."""
    parts = text.rsplit("/", 4)
    if len(parts) != 5 or not all(parts):  # noqa: PLR2004 - as the refusal lists them
        raise refusal('The credential is malformed; expecting "<YOUR-AKID>/YYYYMMDD/REGION/SERVICE/aws4_request".')
    access_key, date, region, service, end = parts
    if service != "s3":
        raise refusal(f'The credential has the service "{service[:32]}"; expecting "s3".')
    if end != "aws4_request":
        raise refusal(f'The credential ends with "{end[:32]}"; expecting "aws4_request".')
    return Scope(access_key, date, region)


def _header_fields(authorization: str) -> Mapping[str, str]:
    pairs = [part.strip().partition("=") for part in authorization[len(ALGORITHM) :].split(",")]
    fields = {name: value for name, _, value in pairs}
    if set(fields) != {"Credential", "SignedHeaders", "Signature"} or len(pairs) != len(fields) or not all(fields.values()):
        raise _malformed_header("The authorization header is malformed; it needs Credential, SignedHeaders and Signature, each once.")
    return fields


def _malformed_header(message: str) -> S3Error:
    return S3Error("AuthorizationHeaderMalformed", message)


def _malformed_query(message: str) -> S3Error:
    return S3Error("AuthorizationQueryParametersError", message)
