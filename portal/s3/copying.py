"""Copies made by the portal itself: of whole objects, and of ranges that become parts of an upload."""

import hashlib
from dataclasses import replace
from urllib.parse import unquote_to_bytes

from portal.engines.object_ports import Blob
from portal.kernel.errors import PortalError
from portal.s3 import xml
from portal.s3.bodies import MAX_OBJECT
from portal.s3.checksums import DEFAULT, Algorithm, Checksum, algorithm_named, hasher
from portal.s3.encryption import CUSTOMER_HEADER, SOURCE_HEADER, asked_of, customer_of, encryption_headers
from portal.s3.errors import S3Error
from portal.s3.exchange import Answer, Exchange, document, quoted
from portal.s3.heads import about_of, check_conditions, condition_of, version_header
from portal.s3.objects import forget
from portal.s3.requests import check_key
from portal.storage.asked_encryption import HEADER
from portal.storage.encryption import CustomerKey, customer_check, encryption_for
from portal.storage.errors import ObjectChanged
from portal.storage.objects import About, Content, Found, object_find, object_put, refuse_early
from portal.storage.reading import object_linked
from portal.storage.receiving import Anew, gather, kept_encrypted

SOURCE = "x-amz-copy-source"


def source_of(x: Exchange) -> tuple[Found, CustomerKey | None]:
    """(what is to be copied, the key for it that the client sends along), if the caller may read it and the conditions hold.

    Raises InvalidArgument for what names none.
    """
    path, _, query = x.request.header(SOURCE).partition("?")
    try:
        named = unquote_to_bytes(path.encode("latin-1")).decode().removeprefix("/")
    except UnicodeDecodeError:
        named = ""
    bucket, _, key = named.partition("/")
    version_id = query.removeprefix("versionId=") if query.startswith("versionId=") else ""
    if not bucket or not key:
        raise S3Error("InvalidArgument", "Copy Source must mention the source bucket and key: sourcebucket/sourcekey", ArgumentName=SOURCE)
    check_key(key)
    found, customer = object_find(x.ctx, bucket, key, version_id), customer_of(x.request, SOURCE_HEADER)
    customer_check(found.version, customer)
    check_conditions(x.request, found.version, f"{SOURCE}-")
    return found, customer


def copy(x: Exchange) -> Answer:
    """Copy an object; headers and tags come with it unless the request says that they are replaced."""
    try:
        return _copy(x)
    except ObjectChanged:
        # It was written over a moment ago: begin anew with what is there now.
        return _copy(x)


def _copy(x: Exchange) -> Answer:
    condition = condition_of(x.request)
    asked = asked_of(x.request)
    found, customer = source_of(x)
    source, source_bucket = found.version, found.bucket
    if source.size_bytes > MAX_OBJECT:
        raise S3Error("InvalidRequest", f"The specified copy source is larger than the maximum allowable size for a copy source: {MAX_OBJECT}")
    about = _about(x, found)
    target = refuse_early(x.ctx, x.bucket, x.key, condition, size_bytes=source.size_bytes, asked=asked, encrypts=bool(source.encryption))
    encryption = encryption_for(x.ctx, target, x.key, kept_encrypted(target, source, asked))
    algorithm = _algorithm(x, source.checksum_algorithm)
    is_plain = source.upload_id is None and not source.encryption and not encryption.kind and algorithm == source.checksum_algorithm
    etag, checksum, kind = source.etag, source.checksum, source.checksum_type
    shown = {"x-amz-copy-source-version-id": source.version_id} if source_bucket.versioning != "off" else {}
    if is_plain:
        x.ctx.db.rollback()
        blob = object_linked(x.ctx, x.blobs, found, about.storage_class)
    else:
        anew = Anew(customer, encryption.key, about.storage_class)
        blob, md5, calculated = gathered(x, found, (0, source.size_bytes), algorithm, anew)
        etag, checksum, kind = encryption.etag(md5), calculated.text, "FULL_OBJECT"
    about = replace(about, checksum_algorithm=str(algorithm), checksum_type=kind, encryption=encryption)
    try:
        row, bucket = object_put(x.ctx, target, x.key, Content(etag, blob, checksum=checksum, how="Copy"), about, condition=condition)
    except PortalError as error:
        forget(x, blob, error)
        raise
    said = [xml.leaf("LastModified", xml.timestamp(row.modified_at)), xml.leaf("ETag", quoted(row.etag))]
    if row.checksum:
        said += [xml.leaf(f"Checksum{row.checksum_algorithm}", row.checksum), xml.leaf("ChecksumType", row.checksum_type)]
    return document("CopyObjectResult", *said, headers={**version_header(bucket, row), **shown, **encryption_headers(row, asked.customer)})


def _about(x: Exchange, found: Found) -> About:
    directive, of_tags = (x.request.header(name, "COPY") for name in ("x-amz-metadata-directive", "x-amz-tagging-directive"))
    for name, value in (("x-amz-metadata-directive", directive), ("x-amz-tagging-directive", of_tags)):
        if value not in {"COPY", "REPLACE"}:
            raise S3Error("InvalidArgument", f"Unknown {name}.", ArgumentName=name, ArgumentValue=value[:64])
    given, source = about_of(x.request), found.version
    is_itself = found.bucket.name == x.bucket and source.key == x.key and "versionId" not in x.request.header(SOURCE)
    is_changed = any(x.request.header(name) for name in ("x-amz-storage-class", HEADER, f"{CUSTOMER_HEADER}-algorithm"))
    if is_itself and directive == "COPY" and not is_changed and of_tags == "COPY":
        raise S3Error(
            "InvalidRequest", "This copy request is illegal because it is trying to copy an object to itself without changing the object's metadata, "
            "storage class, website redirect location or encryption attributes.",
        )  # fmt: skip
    kept = given if directive == "REPLACE" else replace(given, headers=dict(source.headers), user_metadata=dict(source.user_metadata))
    if of_tags == "COPY" and source.tags:
        # Tags are read by whoever may read tags.
        of_version = "versionId=" in x.request.header(SOURCE)
        version_id, kind = (source.version_id, "ObjectVersion") if of_version else ("", "Object")
        object_find(x.ctx, found.bucket.name, source.key, version_id, called=f"Get{kind}Tagging")
    return kept if of_tags == "REPLACE" else replace(kept, tags=dict(source.tags))


def _algorithm(x: Exchange, present: str) -> Algorithm:
    asked = x.request.header("x-amz-checksum-algorithm")
    return algorithm_named(asked) if asked else Algorithm(present) if present else DEFAULT


def gathered(x: Exchange, found: Found, span: tuple[int, int], algorithm: Algorithm, anew: Anew) -> tuple[Blob, str, Checksum]:
    """(blob, MD5 in hex, checksum) of a (first byte, length) of an object, written anew."""
    md5, checksum = hashlib.md5(usedforsecurity=False), hasher(algorithm)
    blob = gather(x.ctx, x.blobs, found, span, anew, md5, checksum)
    return blob, md5.hexdigest(), Checksum(algorithm, checksum.digest())
