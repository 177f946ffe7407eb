"""Headers of objects: what is kept of those that come in, what goes out, conditions and ranges."""

import re
from collections.abc import Mapping
from urllib.parse import parse_qsl

from portal.s3.acl_heads import Asked, asked_in_headers
from portal.s3.checksums import BY_HEADER
from portal.s3.errors import S3Error
from portal.s3.exchange import Exchange, http_date, quoted
from portal.s3.lock_heads import lock_asked, lock_headers
from portal.s3.requests import S3Request
from portal.s3.signing import parse_http_date
from portal.storage.facts import BucketFacts, Version
from portal.storage.objects import About, Condition

META = "x-amz-meta-"
KEPT = {
    "content-type": "Content-Type", "cache-control": "Cache-Control", "content-disposition": "Content-Disposition", "content-language": "Content-Language",
    "expires": "Expires", "x-amz-website-redirect-location": "x-amz-website-redirect-location",
}  # fmt: skip
BREAKS = frozenset("\r\n\0")
USUAL_TYPE = "binary/octet-stream"
METADATA_BYTES = 2048
STORAGE_CLASSES = ("STANDARD", "REDUCED_REDUNDANCY", "STANDARD_IA", "ONEZONE_IA", "INTELLIGENT_TIERING", "GLACIER", "GLACIER_IR", "DEEP_ARCHIVE")
MOST_TAGS, TAG_KEY, TAG_VALUE = 10, 128, 256
RANGE = re.compile(r"bytes=([0-9]*)-([0-9]*)")
# More digits than these are beyond the end of everything.
DIGITS = 18
# What a signed request may have an answer say instead of what is kept.
OVERRIDES = {
    f"response-{name}": header for name, header in (("content-encoding", "Content-Encoding"), *KEPT.items()) if not name.startswith("x-amz-")
}


def about_of(request: S3Request) -> About:
    """What the headers of a request say of the object that it writes."""
    headers = {name: value for name in KEPT if (value := request.header(name))}
    if encoding := request.content_encoding:
        headers["content-encoding"] = encoding
    metadata = {name.removeprefix(META): value for name, value in request.headers_named(META).items()}
    if sum(len(name) + len(value) for name, value in metadata.items()) > METADATA_BYTES:
        raise S3Error("MetadataTooLarge", MaxSizeAllowed=METADATA_BYTES)
    if any(char in BREAKS for value in (*headers.values(), *metadata.values()) for char in value):
        # In a form they can stand; in answers they would begin headers of their own.
        raise S3Error("InvalidArgument", "What is kept as a header of the object has no line break and no NUL.")
    storage_class = request.header("x-amz-storage-class", "STANDARD")
    if storage_class not in STORAGE_CLASSES:
        raise S3Error("InvalidStorageClass", StorageClassRequested=storage_class[:64])
    asked = asked_in_headers(request, of_bucket=False) or Asked()
    tags = tags_of(request.header("x-amz-tagging"))
    return About(headers, metadata, tags, storage_class, asked.acl, lock=lock_asked(request), grants=asked.grants)


def tags_of(text: str) -> dict[str, str]:
    """The tags in a header, which are written like a query."""
    try:
        pairs = parse_qsl(text, keep_blank_values=True, strict_parsing=True) if text else []
    except ValueError:
        raise S3Error("InvalidArgument", "The header 'x-amz-tagging' shall be encoded as UTF-8 then URLEncoded URL query parameters.") from None
    return checked_tags(pairs)


def checked_tags(pairs: list[tuple[str, str]], most: int = MOST_TAGS) -> dict[str, str]:
    """Tags within the limits of S3. Raises InvalidTag."""
    if len(pairs) > most:
        raise S3Error("InvalidTag", f"Object tags cannot be greater than {most}" if most == MOST_TAGS else f"At most {most} tags are accepted.")
    if len({name for name, _ in pairs}) != len(pairs):
        raise S3Error("InvalidTag", "Cannot provide multiple Tags with the same key")
    for name, value in pairs:
        if not 1 <= len(name) <= TAG_KEY or len(value) > TAG_VALUE or "\x00" in name + value or name.startswith("aws:"):
            raise S3Error("InvalidTag", TagKey=name[:TAG_KEY])
    return dict(pairs)


def condition_of(request: S3Request) -> Condition:
    """The condition under which a write may replace what is there."""
    match, none_match = (request.header(name).strip().strip('"') for name in ("if-match", "if-none-match"))
    if none_match and none_match != "*":
        raise S3Error("NotImplemented", "If-None-Match of a write must be *.")
    return Condition(match, none_match)


def headers_of(x: Exchange, bucket: BucketFacts, version: Version) -> dict[str, str]:
    """What an answer says of a version."""
    found = {
        "ETag": quoted(version.etag), "Last-Modified": http_date(version.modified_at), "Accept-Ranges": "bytes",
        "Content-Type": version.headers.get("content-type", USUAL_TYPE),
    }  # fmt: skip
    found |= {KEPT[name]: value for name, value in version.headers.items() if name in KEPT}
    if encoding := version.headers.get("content-encoding"):
        found["Content-Encoding"] = encoding
    found |= {META + name: value for name, value in version.user_metadata.items()}
    found |= version_header(bucket, version)
    if version.storage_class != "STANDARD":
        found["x-amz-storage-class"] = version.storage_class
    if version.replication:
        found["x-amz-replication-status"] = version.replication
    if version.tags:
        found["x-amz-tagging-count"] = str(len(version.tags))
    return found | lock_headers(version) | _overrides(x)


def version_header(bucket: BucketFacts, version: Version) -> dict[str, str]:
    """The id of a version, where the bucket has versions."""
    return {} if bucket.versioning == "off" else {"x-amz-version-id": version.version_id}


def _overrides(x: Exchange) -> dict[str, str]:
    asked = {header: x.request.parameters[name] for name, header in OVERRIDES.items() if name in x.request.parameters}
    if asked and x.signed is None:
        raise S3Error("InvalidRequest", "Request specific response headers cannot be used for anonymous GET requests.")
    # A line break would begin a header of somebody else's.
    return {header: "".join(c for c in value if c.isprintable()).encode().decode("latin-1") for header, value in asked.items()}


def checksum_headers(version: Version) -> dict[str, str]:
    """The checksum of a version, for whoever asks for it."""
    if not version.checksum:
        return {}
    name = next(name for name, algorithm in BY_HEADER.items() if algorithm == version.checksum_algorithm)
    return {name: version.checksum, "x-amz-checksum-type": version.checksum_type}


def check_conditions(request: S3Request, version: Version, prefix: str = "") -> None:
    """Raise PreconditionFailed or NotModified, as the conditions of a read ask for; `prefix` is for those on the source of a copy."""
    modified = version.modified_at.replace(microsecond=0)
    match, none_match = (request.header(f"{prefix}{name}") for name in ("if-match", "if-none-match"))
    since, unmodified = (parse_http_date(request.header(f"{prefix}{name}")) for name in ("if-modified-since", "if-unmodified-since"))
    if match and not _names(match, version.etag):
        raise S3Error("PreconditionFailed", Condition="If-Match")
    if not match and unmodified is not None and modified > unmodified:
        raise S3Error("PreconditionFailed", Condition="If-Unmodified-Since")
    is_same = _names(none_match, version.etag) if none_match else since is not None and modified <= since
    if is_same and prefix:
        raise S3Error("PreconditionFailed", Condition=f"{prefix}if-none-match")
    if is_same:
        raise S3Error("NotModified", headers={"ETag": quoted(version.etag), "Last-Modified": http_date(version.modified_at)})


def _names(header: str, etag: str) -> bool:
    wanted = {each.strip().removeprefix("W/").strip('"') for each in header.split(",")}
    return bool(wanted & {"*", etag})


def range_of(text: str, size_bytes: int) -> tuple[int, int] | None:
    """(first byte, how many) of a range; None for one that is not understood, or of several: then all is given. Raises InvalidRange."""
    found = RANGE.fullmatch(text.strip())
    if found is None or found.groups() == ("", ""):
        return None
    first, last = (text.lstrip("0") or text[-1:] for text in found.groups())
    first, last = (text if len(text) <= DIGITS else "9" * DIGITS for text in (first, last))
    if first and last and int(last) < int(first):
        return None
    begin = int(first) if first else max(0, size_bytes - int(last))
    end = min(int(last) + 1, size_bytes) if first and last else size_bytes
    if begin >= size_bytes or (not first and not int(last)):
        raise S3Error("InvalidRange", headers={"Content-Range": f"bytes */{size_bytes}"}, ActualObjectSize=size_bytes, RangeRequested=text[:64])
    return begin, end - begin


def content_range(first: int, length: int, size_bytes: int) -> Mapping[str, str]:
    """What tells where a part of an object is from."""
    return {"Content-Range": f"bytes {first}-{first + length - 1}/{size_bytes}"}
