"""What a request is written down as: a line in the format of S3's access logs, and how many bytes went in and out."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import quote

from portal.s3.errors import S3Error
from portal.s3.exchange import Answer
from portal.s3.requests import S3Request
from portal.s3.routes import SUBRESOURCES
from portal.storage.traffic import Record

TYPES = {"uploads": "UPLOADS", "uploadId": "UPLOAD", "delete": "MULTI_OBJECT_DELETE", "versions": "BUCKETVERSIONS", "policyStatus": "POLICY_STATUS"}
LONGEST = 2048
# Whoever reads a log must not be able to use what was signed.
SECRETS = re.compile(r"((?:^|&)(?:X-Amz-Signature|Signature|X-Amz-Security-Token|X-Amz-[a-z-]*customer-key)=)[^&]*", re.IGNORECASE)


@dataclass(slots=True)
class Asked:
    """What is known of a request when it has been answered. Times are in seconds."""

    request: S3Request | None = None
    is_site: bool = False
    user_id: str | None = None
    address: str = ""
    refused: S3Error | None = None
    begun: float = 0.0
    turned: float = 0.0


class Counted:
    """A body on its way out, which tells how much of it was taken when it ends, however it does."""

    def __init__(self, body: Iterator[bytes], told: Callable[[int], None]) -> None:
        """`told` gets the bytes, once."""
        self._body, self._told, self._sent, self._is_told = body, told, 0, False

    def __iter__(self) -> Iterator[bytes]:
        try:
            for piece in self._body:
                self._sent += len(piece)
                yield piece
        finally:
            self._tell()

    def close(self) -> None:
        """What a server calls at the end, be it that it never began."""
        if (close := getattr(self._body, "close", None)) is not None:
            close()
        self._tell()

    def _tell(self) -> None:
        if not self._is_told:
            self._is_told = True
            self._told(self._sent)


def record_of(asked: Asked, answer: Answer, *, request_id: str, sent: int, ended: float) -> Record | None:
    """How a request is written down; None for one about no bucket."""
    request = asked.request
    if request is None or not request.bucket:
        return None
    at = datetime.now(UTC)
    received = _received(request)
    sizes = (
        f"{sent or '-'} {_object_size(request, answer, received)} {round((ended - asked.begun) * 1000)} {round((asked.turned - asked.begun) * 1000)}"
    )
    line = " ".join((
        request.bucket, at.strftime("[%d/%b/%Y:%H:%M:%S +0000]"), asked.address or "-", asked.user_id or "-", request_id, _operation(asked),
        quote(request.key) or "-", _quoted(f"{request.method} {_address(request)} HTTP/1.1"), str(answer.status),
        asked.refused.code if asked.refused is not None else "-", sizes, _quoted(request.headers.get("referer", "-")),
        _quoted(request.headers.get("user-agent", "-")), _word(answer.headers.get("x-amz-version-id", "-")), "-", _signature(request), "-",
        _authentication(request), _word(request.host or "-"), "-", "-", "-",
    ))  # fmt: skip
    return Record(request.bucket, at.timestamp(), received, sent, line)


def _received(request: S3Request) -> int:
    for name in ("x-amz-decoded-content-length", "content-length"):
        text = request.headers.get(name, "")
        if text.isascii() and text.isdigit() and len(text) <= 18:  # noqa: PLR2004 - digits of a 64 bit number
            return int(text)
    return 0


def _object_size(request: S3Request, answer: Answer, received: int) -> str:
    if not request.key or answer.status >= 300:  # noqa: PLR2004 - success as HTTP has it
        return "-"
    total = answer.headers.get("Content-Range", "").rpartition("/")[2]
    if request.method in {"GET", "HEAD"}:
        return total or str(answer.length or "-")
    return str(received or "-") if request.method == "PUT" else "-"


def _operation(asked: Asked) -> str:
    request = asked.request
    if request is None:
        return "-"
    names = {name for name, _ in request.query_pairs()}
    kind = next((name for name in SUBRESOURCES if name in names), "")
    what = TYPES.get(kind, kind.upper().replace("-", "_")) if kind else "OBJECT" if request.key else "BUCKET"
    is_copy = request.method == "PUT" and "x-amz-copy-source" in request.headers
    if what == "UPLOAD" and request.method == "PUT":
        what = "PART"
    return f"{'WEBSITE' if asked.is_site else 'REST'}.{'COPY' if is_copy else request.method}.{what}"


def _address(request: S3Request) -> str:
    query = SECRETS.sub(r"\1-", request.raw_query)
    return f"{request.raw_path}?{query}" if query else request.raw_path


def _quoted(text: str) -> str:
    """Between quotation marks, of which there are none within."""
    return '"' + "".join(c if c.isprintable() and c != '"' else quote(c) for c in text[:LONGEST]) + '"'


def _word(text: str) -> str:
    return quote(text, safe="-._~:[]") or "-"


def _signature(request: S3Request) -> str:
    is_new = request.headers.get("authorization", "").startswith("AWS4") or "X-Amz-Signature=" in request.raw_query
    return "SigV4" if is_new else "SigV2" if _authentication(request) != "-" else "-"


def _authentication(request: S3Request) -> str:
    if "authorization" in request.headers:
        return "AuthHeader"
    return "QueryString" if "Signature=" in request.raw_query else "-"
