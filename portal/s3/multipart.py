"""Uploads in parts as S3 clients make them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from portal.kernel.errors import PortalError
from portal.s3 import xml
from portal.s3.bodies import MAX_OBJECT
from portal.s3.checksums import BY_HEADER, COMBINE, DEFAULT, Algorithm, Kind, algorithm_named, composite, full_object, kind_for, parse_checksum
from portal.s3.copying import gathered, source_of
from portal.s3.encryption import asked_of, encryption_headers, part_with
from portal.s3.errors import S3Error
from portal.s3.exchange import Answer, Exchange, document, people, person, quoted
from portal.s3.heads import about_of, condition_of, range_of, version_header
from portal.s3.listing import Encoder, encoder, limit_of, listable
from portal.s3.objects import forget, receive, refuse_unprotected
from portal.storage.encryption import encryption_of, key_of_row
from portal.storage.facts import BucketFacts
from portal.storage.listing import Listing, uploads_listed
from portal.storage.locks import Lock
from portal.storage.object_models import ObjectPart, ObjectUpload
from portal.storage.objects import About, Content
from portal.storage.receiving import Anew
from portal.storage.uploads import (
    MOST_PARTS,
    Named,
    PartNamed,
    Whole,
    part_number,
    part_put,
    parts_listed,
    upload_abort,
    upload_complete,
    upload_create,
    upload_find,
)


def _named(x: Exchange) -> Named:
    return Named(x.bucket, x.key, x.parameter("uploadId"))


def create(x: Exchange) -> Answer:
    """Begin an upload."""
    asked = x.request.header("x-amz-checksum-algorithm")
    algorithm = algorithm_named(asked) if asked else None
    kind = kind_for(algorithm, x.request.header("x-amz-checksum-type")) if algorithm is not None else ""
    about, encryption = replace(about_of(x.request), checksum_algorithm=str(algorithm or ""), checksum_type=str(kind)), asked_of(x.request)
    made = upload_create(x.ctx, x.bucket, x.key, about, encryption)
    said = {"x-amz-checksum-algorithm": str(algorithm), "x-amz-checksum-type": str(kind)} if asked else {}
    named = [xml.leaf("Bucket", x.bucket), xml.leaf("Key", x.key), xml.leaf("UploadId", made.id)]
    return document("InitiateMultipartUploadResult", *named, headers={**said, **encryption_headers(made, encryption.customer)})


def number_of(x: Exchange) -> int:
    """The part that is sent. Raises InvalidArgument."""
    text = x.parameter("partNumber")
    if (number := part_number(text)) is None:
        problem = f"Part number must be an integer between 1 and {MOST_PARTS}, inclusive"
        raise S3Error("InvalidArgument", problem, ArgumentName="partNumber", ArgumentValue=text[:64])
    return number


def part(x: Exchange) -> Answer:
    """Receive a part."""
    if x.request.header("x-amz-copy-source"):
        return part_copy(x)
    number = number_of(x)
    opened = _open(x, x.request.content_length or 0)
    body = x.open_body(limit_bytes=MAX_OBJECT, algorithm=opened.algorithm)
    refuse_unprotected(body, opened.bucket, opened.about.lock, "Put Part")
    blob = receive(x, body, opened.about)
    checksum = body.checksum
    etag = opened.about.encryption.etag(body.md5.hex())
    _keep(x, number, Content(etag, blob, checksum_algorithm=str(checksum.algorithm), checksum=checksum.text))
    return Answer(headers={"ETag": quoted(etag), checksum.algorithm.header: checksum.text, **opened.said})


@dataclass(frozen=True, slots=True)
class _Open:
    """An upload to which a part is sent, what its parts are like, and what is told of their encryption."""

    bucket: BucketFacts
    about: About
    algorithm: Algorithm
    said: dict[str, str]


def _open(x: Exchange, size_bytes: int) -> _Open:
    bucket, upload = upload_find(x.ctx, _named(x), size_bytes=size_bytes)
    customer = part_with(x, upload)
    encryption = replace(encryption_of(upload), key=key_of_row(x.ctx, bucket, upload, customer))
    lock = Lock(upload.lock_mode, upload.retain_until, upload.legal_hold)
    about = About(storage_class=upload.storage_class, encryption=encryption, lock=lock)
    return _Open(bucket, about, Algorithm(upload.checksum_algorithm or DEFAULT), encryption_headers(upload, customer))


def part_copy(x: Exchange) -> Answer:
    """Make a part of an object, or of a range of it."""
    number = number_of(x)
    found, customer = source_of(x)
    size, asked = found.version.size_bytes, x.request.header("x-amz-copy-source-range")
    wanted = range_of(asked, size) if asked else (0, size)
    if wanted is None or (asked and _ends_beyond(asked, size)):
        problem = "The x-amz-copy-source-range value must be of the form bytes=first-last where first and last are the zero-based offsets to copy"
        raise S3Error("InvalidArgument", problem, ArgumentName="x-amz-copy-source-range", ArgumentValue=asked[:64])
    opened = _open(x, wanted[1])
    about, algorithm, shown = opened.about, opened.algorithm, opened.said
    blob, md5, checksum = gathered(x, found, wanted, algorithm, Anew(customer, about.encryption.key, about.storage_class))
    etag = about.encryption.etag(md5)
    part = _keep(x, number, Content(etag, blob, checksum_algorithm=str(algorithm), checksum=checksum.text))
    said = [
        xml.leaf("LastModified", xml.timestamp(part.modified_at)),
        xml.leaf("ETag", quoted(etag)),
        xml.leaf(f"Checksum{algorithm}", checksum.text),
    ]
    shown |= {"x-amz-copy-source-version-id": found.version.version_id} if found.bucket.versioning != "off" else {}
    return document("CopyPartResult", *said, headers=shown)


def _ends_beyond(asked: str, size: int) -> bool:
    """A range of a source must be there as a whole."""
    last = asked.rpartition("-")[2]
    return not last or int(last) >= size


def _keep(x: Exchange, number: int, content: Content) -> ObjectPart:
    try:
        return part_put(x.ctx, _named(x), number, content)
    except PortalError as error:
        forget(x, content.blob, error)
        raise


def complete(x: Exchange) -> Answer:
    """Make the object of its parts."""
    condition = condition_of(x.request)
    asked = xml.parse(x.open_body(limit_bytes=xml.MAX_BODY, md5=False, has_checksum=False).whole(), "CompleteMultipartUpload")
    wanted = [_part_named(node) for node in asked.children_named("Part")]
    if not wanted or len(wanted) > MOST_PARTS:
        raise S3Error("MalformedXML")
    done = upload_complete(x.ctx, _named(x), wanted, lambda upload, parts: _whole(x, upload, parts), condition=condition)
    said = [xml.leaf("Location", f"/{x.bucket}/{x.key}"), xml.leaf("Bucket", x.bucket), xml.leaf("Key", x.key), xml.leaf("ETag", quoted(done.etag))]
    if done.version is not None and done.version.checksum:
        said += [xml.leaf(f"Checksum{done.version.checksum_algorithm}", done.version.checksum), xml.leaf("ChecksumType", done.version.checksum_type)]
    shown = {**version_header(done.bucket, done.version), **encryption_headers(done.version)} if done.version is not None else {}
    return document("CompleteMultipartUploadResult", *said, headers=shown)


def _part_named(node: xml.Node) -> PartNamed:
    number, etag = node.value("PartNumber") or "", (node.value("ETag") or "").strip().strip('"')
    if not number.isascii() or not number.isdigit() or len(number) > len(str(MOST_PARTS)) or not etag:
        raise S3Error("MalformedXML")
    checksum = next((value for algorithm in Algorithm if (value := node.value(f"Checksum{algorithm}"))), "")
    return PartNamed(int(number), etag, checksum)


def _whole(x: Exchange, upload: ObjectUpload, parts: Sequence[ObjectPart]) -> Whole:
    """The checksum of the whole, from those of its parts. Raises what is wrong with what the client says of it."""
    said = next((one for name, one in BY_HEADER.items() if x.request.header(name)), None)
    asked = x.request.header("x-amz-checksum-type")
    if upload.checksum_algorithm and (said not in {None, upload.checksum_algorithm} or asked not in {"", upload.checksum_type}):
        raise S3Error(
            "InvalidRequest", f"The upload was created with the {upload.checksum_algorithm.lower()} checksum of type {upload.checksum_type}."
        )
    if (size := x.request.header("x-amz-mp-object-size")) and size != str(sum(part.size_bytes for part in parts)):
        raise S3Error("InvalidRequest", "The provided 'x-amz-mp-object-size' header does not match the size of the object.")
    algorithms = {part.checksum_algorithm for part in parts}
    if len(algorithms) != 1 or not algorithms <= {upload.checksum_algorithm or parts[0].checksum_algorithm}:
        # The client calculated others for some of them than it had announced.
        return Whole()
    algorithm = Algorithm(algorithms.pop())
    # Without a word of the client's: of the bytes, where the algorithm can do that.
    kind = Kind(upload.checksum_type or asked or (Kind.FULL_OBJECT if algorithm in COMBINE else Kind.COMPOSITE))
    known = [parse_checksum(algorithm, part.checksum) for part in parts]
    whole = (
        full_object([(each, part.size_bytes) for each, part in zip(known, parts, strict=True)]).text if kind is Kind.FULL_OBJECT else composite(known)
    )
    if said is algorithm and x.request.header(said.header) not in {whole, whole.partition("-")[0]}:
        raise S3Error("BadDigest", f"The {algorithm} you specified did not match the calculated checksum.")
    return Whole(str(algorithm), str(kind), whole)


def abort(x: Exchange) -> Answer:
    """Give an upload up."""
    upload_abort(x.ctx, _named(x))
    return Answer(204)


def list_parts(x: Exchange) -> Answer:
    """The parts that have arrived."""
    limit, keys = limit_of(x, "max-parts"), encoder(x)
    marker = x.parameter("part-number-marker", "0")
    after = int(marker) if marker.isascii() and marker.isdigit() and len(marker) < 9 else 0  # noqa: PLR2004 - a number of any part
    upload, rows, is_truncated = parts_listed(x.ctx, _named(x), after=after, limit=limit)
    names = people(x.ctx, [upload.owner_id])
    said = [
        xml.leaf("Bucket", x.bucket),
        keys.leaf("Key", x.key),
        xml.leaf("UploadId", upload.id),
        *(person(of, upload.owner_id, names) for of in ("Initiator", "Owner")),
    ]
    said += [xml.leaf("StorageClass", upload.storage_class), xml.leaf("PartNumberMarker", after), xml.leaf("MaxParts", limit)]
    said += [xml.leaf("NextPartNumberMarker", rows[-1].number if rows else after), xml.leaf("IsTruncated", is_truncated)]
    said += _checksums(upload)
    return document("ListPartsResult", *said, *(_part(row) for row in rows))


def _checksums(upload: ObjectUpload) -> list[str]:
    if not upload.checksum_algorithm:
        return []
    return [xml.leaf("ChecksumAlgorithm", upload.checksum_algorithm), xml.leaf("ChecksumType", upload.checksum_type)]


def _part(row: ObjectPart) -> str:
    checksum = [xml.leaf(f"Checksum{row.checksum_algorithm}", row.checksum)] if row.checksum else []
    facts = [xml.leaf("PartNumber", row.number), xml.leaf("LastModified", xml.timestamp(row.modified_at)), xml.leaf("ETag", quoted(row.etag))]
    return xml.group("Part", *facts, xml.leaf("Size", row.size_bytes), *checksum)


def list_uploads(x: Exchange) -> Answer:
    """The uploads of a bucket that have not ended."""
    bucket, limit, keys = listable(x, "ListBucketMultipartUploads"), limit_of(x, "max-uploads"), encoder(x)
    after, marker = x.parameter("key-marker"), x.parameter("upload-id-marker")
    asked = Listing(x.parameter("prefix"), x.parameter("delimiter"), after, marker or None if after else None, limit)
    found = uploads_listed(x.ctx, bucket.id, asked)
    names = people(x.ctx, (row.owner_id for row in found.rows))
    said = [
        xml.leaf("Bucket", bucket.name),
        keys.leaf("KeyMarker", after),
        xml.leaf("UploadIdMarker", marker if after else ""),
        keys.leaf("Prefix", asked.prefix),
    ]
    if found.is_truncated:
        said += [keys.leaf("NextKeyMarker", found.last)] + ([] if found.last_is_prefix else [xml.leaf("NextUploadIdMarker", found.rows[-1].id)])
    said += [xml.leaf("MaxUploads", limit)] + ([keys.leaf("Delimiter", asked.delimiter)] if asked.delimiter else [])
    said += [xml.leaf("IsTruncated", found.is_truncated), keys.said()]
    return document("ListMultipartUploadsResult", *said, *(_upload(row, keys, names) for row in found.rows), keys.prefixes(found))


def _upload(row: ObjectUpload, keys: Encoder, names: dict[str, str]) -> str:
    named = [keys.leaf("Key", row.key), xml.leaf("UploadId", row.id), *(person(of, row.owner_id, names) for of in ("Initiator", "Owner"))]
    facts = [xml.leaf("StorageClass", row.storage_class), xml.leaf("Initiated", xml.timestamp(row.created_at))]
    return xml.group("Upload", *named, *facts, *_checksums(row))
