"""Several facts of an object at once, without its bytes."""

from collections.abc import Sequence

from portal.s3 import xml
from portal.s3.encryption import read_with
from portal.s3.errors import S3Error
from portal.s3.exchange import Answer, Exchange, document, http_date
from portal.s3.heads import version_header
from portal.storage.facts import Version
from portal.storage.object_models import ObjectPart
from portal.storage.objects import object_find

KNOWN = ("ETag", "Checksum", "ObjectParts", "StorageClass", "ObjectSize")
MOST_PARTS = 1000


def get(x: Exchange) -> Answer:
    """The facts that a header names, of an object or one of its versions."""
    asked = [each.strip() for each in x.request.header("x-amz-object-attributes").split(",")]
    if wrong := next((each for each in asked if each and each not in KNOWN), None):
        raise S3Error("InvalidArgument", "Invalid attribute name specified.", ArgumentName="x-amz-object-attributes", ArgumentValue=wrong[:64])
    if not asked[0]:
        raise S3Error("InvalidRequest", "The x-amz-object-attributes header specifying the attributes to be retrieved is either missing or empty")
    where = x.bucket, x.key, x.parameter("versionId")
    found = object_find(x.ctx, *where)
    # S3 wants both: reading, and this.
    object_find(x.ctx, *where, called="GetObjectVersionAttributes" if where[2] else "GetObjectAttributes")
    version = found.version
    read_with(x, version)
    facts = {
        "ETag": lambda: xml.leaf("ETag", version.etag),
        "Checksum": lambda: _checksum(version),
        "ObjectParts": lambda: _parts(x, found.parts) if version.upload_id is not None else "",
        "StorageClass": lambda: xml.leaf("StorageClass", version.storage_class),
        "ObjectSize": lambda: xml.leaf("ObjectSize", version.size_bytes),
    }
    said = {"Last-Modified": http_date(version.modified_at), **version_header(found.bucket, version)}
    return document("GetObjectAttributesResponse", *(facts[name]() for name in KNOWN if name in asked), headers=said)


def _checksum(version: Version) -> str:
    if not version.checksum:
        return ""
    # What tells the number of parts is not of the checksum here.
    value = version.checksum.partition("-")[0]
    return xml.group("Checksum", xml.leaf(f"Checksum{version.checksum_algorithm}", value), xml.leaf("ChecksumType", version.checksum_type))


def _parts(x: Exchange, parts: Sequence[ObjectPart]) -> str:
    most, after = (_number(x, name, usual) for name, usual in (("x-amz-max-parts", MOST_PARTS), ("x-amz-part-number-marker", 0)))
    rest = [part for part in parts if part.number > after]
    shown = rest[: min(most, MOST_PARTS)]
    said = [xml.leaf("PartsCount", len(parts)), xml.leaf("PartNumberMarker", after), xml.leaf("MaxParts", min(most, MOST_PARTS))]
    said += [xml.leaf("NextPartNumberMarker", shown[-1].number if shown else after), xml.leaf("IsTruncated", len(shown) < len(rest))]
    return xml.group("ObjectParts", *said, *(_part(part) for part in shown))


def _part(part: ObjectPart) -> str:
    checksum = [xml.leaf(f"Checksum{part.checksum_algorithm}", part.checksum)] if part.checksum else []
    return xml.group("Part", xml.leaf("PartNumber", part.number), xml.leaf("Size", part.size_bytes), *checksum)


def _number(x: Exchange, header: str, usual: int) -> int:
    text = x.request.header(header, str(usual))
    if not (text.isascii() and text.isdigit() and len(text) < 10):  # noqa: PLR2004 - more than there can be of anything here
        raise S3Error("InvalidArgument", ArgumentName=header, ArgumentValue=text[:64])
    return int(text)
