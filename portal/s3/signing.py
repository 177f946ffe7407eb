"""What all forms of signature share: whose request it is, when it was signed, and comparing without telling.

Stable: `Signed` (`.access_key`, `.payload`, `.chain`), `SecretOf`.
"""

import hmac
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import lru_cache
from urllib.parse import quote, unquote_to_bytes

from portal.s3.errors import S3Error
from portal.s3.requests import S3Request

UNSIGNED = "UNSIGNED-PAYLOAD"
MAX_SKEW = timedelta(minutes=15)
BASIC = "%Y%m%dT%H%M%SZ"
HEX_DIGEST = re.compile(r"[0-9a-f]{64}")
# What V4 takes the payload for where it is no digest.
PAYLOADS = frozenset({
    UNSIGNED, "STREAMING-UNSIGNED-PAYLOAD-TRAILER", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER",
})  # fmt: skip
BASIC_SHAPE = re.compile(r"[0-9]{8}T[0-9]{6}Z")

# Access key → its secret, or None where there is none of this name.
SecretOf = Callable[[str], str | None]


@dataclass(frozen=True, slots=True)
class Chain:
    """What the signatures of chunks go on from."""

    key: bytes = field(repr=False)
    timestamp: str
    scope: str
    seed: str


@dataclass(frozen=True, slots=True)
class Signed:
    """Whose request it is, and what the signature says about the body."""

    access_key: str
    payload: str = UNSIGNED
    chain: Chain | None = None


def same(one: str, other: str) -> bool:
    """Whether two signatures are equal, in the time of two that are."""
    return hmac.compare_digest(one.encode(), other.encode())


def secret_for(access_key: str, secret_of: SecretOf) -> str:
    """The secret of a key. Raises InvalidAccessKeyId."""
    secret = secret_of(access_key)
    if secret is None:
        raise S3Error("InvalidAccessKeyId", AWSAccessKeyId=access_key[:128])
    return secret


def check_skew(moment: datetime, now: datetime) -> None:
    """Refuse a request signed too long ago, or in the future."""
    if abs(now - moment) > MAX_SKEW:
        skew = int(MAX_SKEW.total_seconds() * 1000)
        raise S3Error(
            "RequestTimeTooSkewed", RequestTime=f"{moment:{BASIC}}", ServerTime=f"{now:%Y-%m-%dT%H:%M:%SZ}", MaxAllowedSkewMilliseconds=skew
        )


def check_expiry(expires: datetime, now: datetime) -> None:
    """Refuse what was signed until a moment that has passed."""
    if now > expires:
        raise S3Error("AccessDenied", "Request has expired", Expires=f"{expires:%Y-%m-%dT%H:%M:%SZ}", ServerTime=f"{now:%Y-%m-%dT%H:%M:%SZ}")


@lru_cache(maxsize=256)
def parse_basic(text: str) -> datetime | None:
    """20260203T164509Z as a moment; None where it is none. Many requests come with the same."""
    if not BASIC_SHAPE.fullmatch(text):
        return None
    try:
        return datetime.strptime(text, BASIC).replace(tzinfo=UTC)
    except ValueError:
        return None


def parse_http_date(text: str) -> datetime | None:
    """A Date header as a moment; None where it is none."""
    try:
        found = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def moment_of(request: S3Request) -> datetime:
    """When a request says that it was signed. Raises AccessDenied where it does not say."""
    text = request.headers.get("x-amz-date") or request.headers.get("date", "")
    found = parse_basic(text) or parse_http_date(text)
    if found is None:
        raise S3Error("AccessDenied", "AWS authentication requires a valid Date or x-amz-date header")
    return found.astimezone(UTC)


# What needs no other form: already encoded as the specification wants it.
PLAIN = re.compile(r"[A-Za-z0-9\-_.~]*")
PLAIN_PATH = re.compile(r"[A-Za-z0-9\-_.~/]*")


def path_forms(raw_path: str) -> Iterable[str]:
    """The ways in which a path may have been signed, the specification's first: clients differ in what they encode."""
    return dict.fromkeys((encoded(raw_path, safe="/-_.~"), raw_path))


def encoded(raw: str, *, safe: str = "-_.~", plus: bool = False) -> str:
    """A part of an address encoded as the specification wants it, however the client did."""
    if (PLAIN_PATH if "/" in safe else PLAIN).fullmatch(raw):
        return raw
    return quote(unquote_to_bytes((raw.replace("+", " ") if plus else raw).encode("latin-1")), safe=safe)


def check_payload(payload: str) -> None:
    """Refuse an x-amz-content-sha256 that says nothing about a body."""
    if payload not in PAYLOADS and not HEX_DIGEST.fullmatch(payload):
        raise S3Error(
            "InvalidArgument",
            "x-amz-content-sha256 must be UNSIGNED-PAYLOAD, STREAMING-UNSIGNED-PAYLOAD-TRAILER, STREAMING-AWS4-HMAC-SHA256-PAYLOAD, "
            "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER or a valid sha256 value.",
            ArgumentName="x-amz-content-sha256",
            ArgumentValue=payload[:128],
        )
