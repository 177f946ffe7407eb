"""Objects as S3 clients write, read and delete them."""

from dataclasses import replace

from portal.engines.object_ports import Blob
from portal.kernel.errors import PortalError, Unavailable
from portal.s3 import xml
from portal.s3.bodies import MAX_OBJECT, Body
from portal.s3.encryption import asked_of, encryption_headers, read_with
from portal.s3.errors import S3Error
from portal.s3.exchange import Answer, Exchange, document, quoted
from portal.s3.heads import about_of, check_conditions, checksum_headers, condition_of, content_range, headers_of, range_of, version_header
from portal.s3.lock_heads import may_bypass
from portal.s3.refusals import refusal_of
from portal.s3.requests import check_key
from portal.storage.encryption import encryption_for
from portal.storage.errors import ObjectChanged
from portal.storage.facts import BucketFacts, Version
from portal.storage.locks import Lock
from portal.storage.objects import (
    ANY,
    About,
    Condition,
    Content,
    Deleted,
    Found,
    Wanted,
    object_delete,
    object_find,
    object_put,
    objects_delete,
    refuse_early,
)
from portal.storage.reading import object_open

MOST_KEYS = 1000


def put(x: Exchange) -> Answer:
    """Write an object; it is there for good when this answers."""
    about, condition, asked = about_of(x.request), condition_of(x.request), asked_of(x.request)
    target = refuse_early(x.ctx, x.bucket, x.key, condition, size_bytes=x.request.content_length, asked=asked)
    body = x.open_body(limit_bytes=MAX_OBJECT)
    refuse_unprotected(body, target, about.lock, "Put Object")
    about = replace(about, encryption=encryption_for(x.ctx, target, x.key, asked))
    x.ctx.db.rollback()
    found, bucket = keep(x, target, x.key, body, about, condition=condition)
    said = {**version_header(bucket, found), **checksum_headers(found), **encryption_headers(found, asked.customer)}
    return Answer(headers={"ETag": quoted(found.etag), **said})


def refuse_unprotected(body: Body, bucket: BucketFacts, lock: Lock, request: str) -> None:
    """What cannot be deleted again has to be what the client meant: S3 demands a digest of it."""
    if (lock.mode or lock.hold or bucket.lock_rule) and not body.is_protected:
        raise S3Error("InvalidRequest", f"Content-MD5 OR x-amz-checksum- HTTP header is required for {request} requests with Object Lock parameters")


def keep(
    x: Exchange, target: BucketFacts, key: str, body: Body, about: About, *, condition: Condition = ANY, how: str = "Put"
) -> tuple[Version, BucketFacts]:
    """Receive the bytes of an object and write it."""
    blob = receive(x, body, about)
    checksum, etag = body.checksum, about.encryption.etag(body.md5.hex())
    about = replace(about, checksum_algorithm=str(checksum.algorithm), checksum_type="FULL_OBJECT")
    try:
        return object_put(x.ctx, target, key, Content(etag, blob, checksum=checksum.text, how=how), about, condition=condition)
    except PortalError as error:
        forget(x, blob, error)
        raise


def receive(x: Exchange, body: Body, about: About) -> Blob:
    """Have the bytes of a body on the disk, where those of its class are, encrypted if it says so; what is not right with them leaves nothing behind."""
    with x.blobs.writing(about.storage_class, about.encryption.key) as writer:
        for block in body:
            writer.write(block)
        return writer.finish()


def forget(x: Exchange, blob: Blob, error: PortalError) -> None:
    """Remove bytes that no row will name. Where the database did not answer it may name them all the same: the sweep knows."""
    if blob.id and not isinstance(error, Unavailable):
        x.blobs.remove(blob.id)


def get(x: Exchange) -> Answer:
    """Read an object or a part of it, or its headers alone."""
    found = object_find(x.ctx, x.bucket, x.key, x.parameter("versionId"))
    version = found.version
    customer = read_with(x, version)
    check_conditions(x.request, version)
    first, length, headers = _wanted(x, found)
    status = 206 if headers else 200
    headers |= headers_of(x, found.bucket, version) | encryption_headers(version, customer)
    if x.request.header("x-amz-checksum-mode").upper() == "ENABLED" and status == 200:  # noqa: PLR2004 - of a part there is none
        headers |= checksum_headers(version)
    if x.request.method == "HEAD":
        return Answer(status, headers, iter(()), length)
    try:
        return Answer(status, headers, object_open(x.ctx, x.blobs, found, (first, length), customer), length)
    except ObjectChanged:
        # It was written over a moment ago: begin anew with what is there now.
        return get(x)


def _wanted(x: Exchange, found: Found) -> tuple[int, int, dict[str, str]]:
    """(first byte, how many, what to say of that) as range or part number ask for."""
    size = found.version.size_bytes
    if number := x.parameter("partNumber"):
        sizes = [piece.size_bytes for piece in found.pieces()]
        if not number.isascii() or not number.isdigit() or not 1 <= int(number) <= len(sizes):
            raise S3Error("InvalidPartNumber", PartNumberRequested=number[:16], ActualPartCount=len(sizes))
        first, length = sum(sizes[: int(number) - 1]), sizes[int(number) - 1]
        said = {"x-amz-mp-parts-count": str(len(sizes))} if found.version.upload_id else {}
        return first, length, {**content_range(first, length, size), **said} if size else {}
    part = range_of(x.request.header("range"), size) if x.request.header("range") else None
    return (*part, {**content_range(*part, size)}) if part is not None else (0, size, {})


def delete(x: Exchange) -> Answer:
    """Delete an object or one of its versions."""
    if x.request.header("x-amz-if-match-last-modified-time") or x.request.header("x-amz-if-match-size"):
        raise S3Error("NotImplemented", "Deletions under a condition on the time or the size are not implemented; If-Match is.")
    gone = object_delete(x.ctx, x.bucket, x.key, x.parameter("versionId"), condition_of(x.request), bypass=may_bypass(x.request))
    return Answer(204, _said(gone))


def _said(gone: Deleted) -> dict[str, str]:
    found = {"x-amz-version-id": gone.version_id} if gone.version_id else {}
    return found | ({"x-amz-delete-marker": "true"} if gone.is_marker else {})


def delete_many(x: Exchange) -> Answer:
    """Delete up to 1,000 objects; each succeeds or fails on its own."""
    asked = x.protected_document("Delete")
    wanted = [_named(node) for node in asked.children_named("Object")]
    if not wanted or len(wanted) > MOST_KEYS:
        raise S3Error("MalformedXML")
    is_quiet = (asked.value("Quiet") or "").lower() == "true"
    done = _delete(x, wanted)
    return document("DeleteResult", *(_told(each, result, is_quiet=is_quiet) for each, result in done))


def _named(node: xml.Node) -> Wanted:
    """An object to delete, and the entity tag that it has to have."""
    if node.value("LastModifiedTime") or node.value("Size"):
        raise S3Error("NotImplemented", "Deletions under a condition on LastModifiedTime or Size are not implemented; ETag is.")
    return Wanted(node.value("Key") or "", node.value("VersionId") or "", Condition(match=(node.value("ETag") or "").strip('"')))


def _delete(x: Exchange, wanted: list[Wanted]) -> list[tuple[Wanted, Deleted | S3Error]]:
    refused: dict[Wanted, S3Error] = {}
    for each in wanted:
        try:
            check_key(each.key)
        except S3Error as error:
            refused[each] = error
    done = iter(objects_delete(x.ctx, x.bucket, [each for each in wanted if each not in refused], bypass=may_bypass(x.request)))
    results = ((each, refused.get(each) or next(done)) for each in wanted)
    return [(each, refusal_of(result) if isinstance(result, PortalError) else result) for each, result in results]


def _told(each: Wanted, result: Deleted | S3Error, *, is_quiet: bool) -> str:
    named = [xml.leaf("Key", each.key)] + ([xml.leaf("VersionId", each.version_id)] if each.version_id else [])
    if isinstance(result, S3Error):
        return xml.group("Error", *named, xml.leaf("Code", result.code), xml.leaf("Message", result.message))
    if is_quiet:
        return ""
    marker = [xml.leaf("DeleteMarker", True), xml.leaf("DeleteMarkerVersionId", result.version_id)] if result.is_marker else []
    return xml.group("Deleted", *named, *marker)
