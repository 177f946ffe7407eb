"""A request as the client sent it: nothing decoded that a signature covers, bucket and key found in path or host.

Stable: `read_request(environ, domain)` gives an `S3Request`; `check_key(key)` is for keys that stand elsewhere than in the path.
Text of the head is kept as WSGI gives it, one character for one byte (latin-1); bucket, key and query are decoded as UTF-8.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol
from urllib.parse import unquote_to_bytes

from portal.s3.errors import S3Error
from portal.storage.access import leads_out

KEY_BYTES = 1024
BAD_ESCAPE = re.compile("%(?![0-9A-Fa-f]{2})")
# Parameters that only a request signed in its address has.
SIGNED_IN_QUERY = ("X-Amz-Algorithm", "X-Amz-Signature", "X-Amz-Credential", "Signature", "AWSAccessKeyId")


class Input(Protocol):
    """What is read of wsgi.input."""

    def read(self, size: int, /) -> bytes:
        """As many bytes as asked for, fewer only at the end."""
        ...


@dataclass(frozen=True, eq=False)
class S3Request:
    """One request; `bucket` is empty for the service itself, `key` for the bucket itself."""

    method: str
    raw_path: str
    raw_query: str
    headers: Mapping[str, str]
    host: str
    bucket: str
    key: str
    is_virtual_host: bool
    is_secure: bool
    remote_address: str
    input: Input

    @cached_property
    def query(self) -> tuple[tuple[str, str], ...]:
        """Names and values in the order they were sent, repetitions included. Raises InvalidURI and InvalidArgument."""
        query = tuple((_decoded(name, plus=True), _decoded(value, plus=True)) for name, value in self.query_pairs())
        if any("\x00" in text for pair in query for text in pair):
            # No name here has one, and PostgreSQL would not even look for it.
            raise S3Error("InvalidArgument", "Parameters have no null characters.")
        return query

    def query_pairs(self) -> Iterator[tuple[str, str]]:
        """The parameters undecoded."""
        for pair in self.raw_query.split("&"):
            if pair:
                name, _, value = pair.partition("=")
                yield name, value

    @cached_property
    def parameters(self) -> Mapping[str, str]:
        """The query by name; of repeated parameters the first."""
        return dict(reversed(self.query))

    @cached_property
    def is_signed_in_query(self) -> bool:
        """Whether the address carries the signature (presigned)."""
        return any(name in self.parameters for name in SIGNED_IN_QUERY)

    @cached_property
    def _hoisted(self) -> Mapping[str, str]:
        # Clients that sign an address put headers of Amazon's into it; the signature covers them there.
        if not self.is_signed_in_query:
            return {}
        return {name.lower(): value.encode().decode("latin-1") for name, value in reversed(self.query) if name.lower().startswith("x-amz-")}

    def header(self, name: str, default: str = "") -> str:
        """The value of a header by its lower-case name; x-amz- ones also from a signed address."""
        value = self.headers.get(name)
        return self._hoisted.get(name, default) if value is None else value

    def headers_named(self, prefix: str) -> dict[str, str]:
        """Every header whose lower-case name begins so, those in a signed address included."""
        return {name: value for name, value in {**self._hoisted, **self.headers}.items() if name.startswith(prefix)}

    @property
    def content_length(self) -> int | None:
        """How long the body is on the wire; None where it is chunked or the client does not say. Raises InvalidArgument."""
        return None if self.is_chunked else self.number_of_bytes("content-length")

    def number_of_bytes(self, name: str) -> int | None:
        """A header that holds a length. Raises InvalidArgument."""
        text = self.header(name)
        if not text:
            return None
        if not (text.isascii() and text.isdigit()) or len(text) > 18:  # noqa: PLR2004 - digits of a 64 bit number
            raise S3Error("InvalidArgument", f"{name} must be a number of bytes", ArgumentName=name, ArgumentValue=text[:64])
        return int(text)

    @property
    def has_body(self) -> bool:
        """Whether anything is sent."""
        return self.is_chunked or bool(self.content_length)

    @property
    def is_chunked(self) -> bool:
        """Whether the server has to take the body's end from its transfer coding."""
        return "chunked" in self.headers.get("transfer-encoding", "").lower()

    @property
    def content_encoding(self) -> str:
        """The Content-Encoding to keep with the object: without aws-chunked, which is of the transfer only."""
        tokens = (token.strip() for token in self.headers.get("content-encoding", "").split(","))
        return ",".join(token for token in tokens if token and token.lower() != "aws-chunked")


def read_request(environ: Mapping[str, Any], domain: str | None = None) -> S3Request:
    """The request in a WSGI environment that has the address as sent (RAW_URI or REQUEST_URI).

    With a domain, `bucket.domain` in Host names the bucket. Raises InvalidURI, KeyTooLongError.
    """
    uri: str = environ.get("RAW_URI") or environ["REQUEST_URI"]
    if not uri.startswith("/"):
        # The absolute form, which proxies are sent: http://host/path.
        uri = "/" + uri.partition("://")[2].partition("/")[2]
    raw_path, _, raw_query = uri.partition("#")[0].partition("?")
    headers = {name[5:].replace("_", "-").lower(): value for name, value in environ.items() if name.startswith("HTTP_")}
    for name in ("CONTENT_TYPE", "CONTENT_LENGTH"):
        if environ.get(name):
            headers[name.replace("_", "-").lower()] = environ[name]
    host = headers.get("host", "")
    bucket = _bucket_of_host(host, domain) if domain else ""
    is_virtual_host = bool(bucket)
    if is_virtual_host:
        raw_key = raw_path[1:]
    else:
        raw_bucket, _, raw_key = raw_path[1:].partition("/")
        bucket = _decoded(raw_bucket)
        if raw_key and not bucket:
            raise S3Error("InvalidURI", URI=raw_path[:KEY_BYTES])
    key = _decoded(raw_key)
    check_key(key)
    return S3Request(
        method=environ["REQUEST_METHOD"],
        raw_path=raw_path,
        raw_query=raw_query,
        headers=headers,
        host=host,
        bucket=bucket,
        key=key,
        is_virtual_host=is_virtual_host,
        is_secure=environ["wsgi.url_scheme"] == "https",
        remote_address=environ.get("REMOTE_ADDR", ""),
        input=environ["wsgi.input"],
    )


def _bucket_of_host(host: str, domain: str) -> str:
    name = host.lower()
    if not name.endswith("]"):
        name = name.rpartition(":")[0] or name
    return name.removesuffix("." + domain.lower()) if name.endswith("." + domain.lower()) else ""


def _decoded(raw: str, *, plus: bool = False) -> str:
    if BAD_ESCAPE.search(raw):
        raise S3Error("InvalidURI", URI=raw[:KEY_BYTES])
    try:
        return unquote_to_bytes((raw.replace("+", " ") if plus else raw).encode("latin-1")).decode()
    except UnicodeDecodeError:
        raise S3Error("InvalidURI", URI=raw[:KEY_BYTES]) from None


def check_key(key: str) -> None:
    """Refuse a key nobody can have: over 1,024 bytes, with a NUL, or with `..` that leads out of the bucket."""
    size = len(key.encode())
    if size > KEY_BYTES:
        raise S3Error("KeyTooLongError", Size=size, MaxSizeAllowed=KEY_BYTES)
    if "\x00" in key:
        raise S3Error("InvalidURI", "A key must not contain NUL.")
    if leads_out(key):
        raise S3Error("InvalidURI", "The relative segments of the key lead out of the bucket.")
