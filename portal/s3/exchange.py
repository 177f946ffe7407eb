"""One request on its way through the gateway: who asks, what for, and the answer."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Any

from sqlalchemy import select

from portal.engines.object_ports import BlobStore
from portal.identity.models import User
from portal.kernel.context import Context
from portal.s3 import xml
from portal.s3.bodies import Body, open_body
from portal.s3.errors import S3Error
from portal.s3.requests import S3Request
from portal.s3.signing import UNSIGNED, SecretOf, Signed

DOCUMENT_BYTES = xml.MAX_BODY
NOBODY = "anonymous"
UNPROTECTED = "Missing required header for this request: Content-MD5 OR x-amz-checksum-*"


@dataclass(frozen=True, slots=True)
class Answer:
    """What goes back. `body` is a whole document, or pieces of `length` bytes."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes | Iterator[bytes] = b""
    length: int | None = None


@dataclass(frozen=True, slots=True)
class Exchange:
    """What an action of the gateway gets."""

    request: S3Request
    signed: Signed | None
    ctx: Context
    blobs: BlobStore
    # Makes the context that of whoever a signature names that does not stand in the head.
    identify: Callable[[Callable[[SecretOf], Signed | None]], Signed | None]

    @property
    def bucket(self) -> str:
        """The bucket that is named."""
        return self.request.bucket

    @property
    def key(self) -> str:
        """The key that is named."""
        return self.request.key

    def parameter(self, name: str, default: str = "") -> str:
        """A parameter of the address."""
        return self.request.parameters.get(name, default)

    def document(self, root: str) -> xml.Node:
        """The XML that the request carries."""
        return xml.parse(self.document_bytes(), root)

    def document_bytes(self) -> bytes:
        """The whole of a short body."""
        return self.open_body(limit_bytes=DOCUMENT_BYTES, md5=False).whole()

    def protected_document(self, root: str) -> xml.Node:
        """The XML of a request that has to say what its bytes are, as S3 demands of some."""
        body = self.open_body(limit_bytes=DOCUMENT_BYTES, md5=False)
        found = xml.parse(body.whole(), root)
        if not body.is_protected and (self.signed is None or self.signed.payload == UNSIGNED):
            raise S3Error("InvalidRequest", UNPROTECTED)
        return found

    def open_body(self, **options: Any) -> Body:
        """The body, to be read in blocks; what is open in the database is let go of, for that may take long."""
        self.ctx.db.rollback()
        return open_body(self.request, self.signed, **options)


def document(name: str, *parts: str, status: int = 200, headers: Mapping[str, str] | None = None) -> Answer:
    """An answer with XML."""
    return Answer(status, {"Content-Type": "application/xml", **(headers or {})}, xml.document(name, *parts))


def http_date(moment: datetime) -> str:
    """A moment as headers have it."""
    return format_datetime(moment.astimezone(UTC).replace(microsecond=0), usegmt=True)


def quoted(etag: str) -> str:
    """An entity tag as it is sent."""
    return f'"{etag}"'


def people(ctx: Context, user_ids: Iterable[str | None]) -> dict[str, str]:
    """The names of users, by id."""
    wanted = {user_id for user_id in user_ids if user_id is not None}
    rows = ctx.db.execute(select(User.id, User.username).where(User.id.in_(wanted))) if wanted else ()
    return {row[0]: row[1] for row in rows}


def person(name: str, user_id: str | None, names: Mapping[str, str]) -> str:
    """An element that says who owns or began something."""
    known = user_id or NOBODY
    return xml.group(name, xml.leaf("ID", known), xml.leaf("DisplayName", names.get(known, known)))
