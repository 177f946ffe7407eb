"""Listings as S3 clients ask for them: of objects in both versions of the call, and of versions."""

import base64
import binascii
from collections.abc import Iterable, Mapping
from urllib.parse import quote

from portal.s3 import xml
from portal.s3.errors import S3Error
from portal.s3.exchange import Answer, Exchange, document, people, person
from portal.storage.access import LIST, authorize_object
from portal.storage.facts import BucketFacts, bucket_named, version_of
from portal.storage.listing import Entry, Listed, Listing, objects_listed, versions_listed
from portal.storage.object_models import NULL_VERSION, sequence_of

MOST = 1000


def listable(x: Exchange, called: str = "ListBucket") -> BucketFacts:
    """The bucket, if the caller may list what is under the prefix; `called` is what S3 calls that."""
    bucket = bucket_named(x.ctx.db, x.bucket)
    authorize_object(x.ctx, bucket, LIST, x.parameter("prefix"), called=called)
    return bucket


def encoder(x: Exchange) -> "Encoder":
    """How keys are written in this answer."""
    kind = x.parameter("encoding-type")
    if kind not in {"", "url"}:
        raise S3Error("InvalidArgument", "Invalid Encoding Method specified in Request", ArgumentName="encoding-type", ArgumentValue=kind[:64])
    return Encoder(is_url=kind == "url")


class Encoder:
    """Writes keys as they are, or as parts of an address, which XML can carry whatever is in them."""

    def __init__(self, *, is_url: bool) -> None:
        self.is_url = is_url

    def leaf(self, name: str, key: str) -> str:
        """An element with a key."""
        return xml.leaf(name, quote(key, safe="/-_.~*") if self.is_url else key)

    def said(self) -> str:
        """The element that says so."""
        return xml.leaf("EncodingType", "url") if self.is_url else ""

    def prefixes(self, listed: Listed) -> str:
        """Everything that was rolled up."""
        return "".join(xml.group("CommonPrefixes", self.leaf("Prefix", prefix)) for prefix in listed.prefixes)


def limit_of(x: Exchange, name: str) -> int:
    """How many at most. Raises InvalidArgument."""
    text = x.parameter(name, str(MOST))
    if not text.isascii() or not text.isdigit() or int(text) > 2**31 - 1:
        problem = (
            "Provided value not an integer or within integer range" if not text.lstrip("-").isdigit() else "Argument must be between 0 and 2147483647"
        )
        raise S3Error("InvalidArgument", problem, ArgumentName=name, ArgumentValue=text[:64])
    return min(int(text), MOST)


def objects(x: Exchange) -> Answer:
    """The objects of a bucket."""
    kind = x.parameter("list-type", "1")
    if kind not in {"1", "2"}:
        raise S3Error("InvalidArgument", ArgumentName="list-type", ArgumentValue=kind[:16])
    bucket, limit, keys = listable(x), limit_of(x, "max-keys"), encoder(x)
    is_second = kind == "2"
    after = (
        (_place_of(x.parameter("continuation-token")) if "continuation-token" in x.request.parameters else x.parameter("start-after"))
        if is_second
        else x.parameter("marker")
    )
    asked = Listing(x.parameter("prefix"), x.parameter("delimiter"), after, limit=limit)
    found = objects_listed(x.ctx, bucket.id, asked)
    has_owner = not is_second or x.parameter("fetch-owner") == "true"
    owners = _owners(x, found.rows) if has_owner else {}
    contents = [xml.group("Contents", keys.leaf("Key", row.key), *_facts(row, owners)) for row in found.rows]
    said = [xml.leaf("Name", bucket.name), keys.leaf("Prefix", asked.prefix)]
    if is_second:
        said += [xml.leaf("KeyCount", len(found.rows) + len(found.prefixes))]
        said += [xml.leaf("ContinuationToken", token)] if (token := x.parameter("continuation-token")) else []
        said += [keys.leaf("StartAfter", start)] if (start := x.parameter("start-after")) else []
        said += [xml.leaf("NextContinuationToken", _token_of(found.last))] if found.is_truncated else []
    else:
        said += [keys.leaf("Marker", asked.after)]
        said += [keys.leaf("NextMarker", found.last)] if found.is_truncated and asked.delimiter else []
    said += [xml.leaf("MaxKeys", limit)] + ([keys.leaf("Delimiter", asked.delimiter)] if asked.delimiter else [])
    return document("ListBucketResult", *said, xml.leaf("IsTruncated", found.is_truncated), keys.said(), *contents, keys.prefixes(found))


def _facts(row: Entry, owners: Mapping[str | None, str]) -> list[str]:
    """What a listing says of a version; written out, since a page has a thousand of them."""
    checksum = (
        f"<ChecksumAlgorithm>{row.checksum_algorithm}</ChecksumAlgorithm><ChecksumType>{row.checksum_type}</ChecksumType>" if row.checksum else ""
    )
    return [
        f"<LastModified>{xml.timestamp(row.modified_at)}</LastModified><ETag>&quot;{row.etag}&quot;</ETag>{checksum}<Size>{row.size_bytes}</Size>",
        owners.get(row.owner_id, ""), f"<StorageClass>{row.storage_class}</StorageClass>",
    ]  # fmt: skip


def _owners(x: Exchange, rows: Iterable[Entry]) -> dict[str | None, str]:
    """The element of each owner."""
    owner_ids = {row.owner_id for row in rows}
    names = people(x.ctx, owner_ids)
    return {owner_id: person("Owner", owner_id, names) for owner_id in owner_ids}


def _token_of(place: str) -> str:
    return base64.urlsafe_b64encode(place.encode()).decode()


def _place_of(token: str) -> str:
    try:
        return base64.b64decode(token.encode(), altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError):
        raise S3Error("InvalidArgument", "The continuation token provided is incorrect", ArgumentName="continuation-token") from None


def versions(x: Exchange) -> Answer:
    """All versions of the objects of a bucket, with the marks of deletion."""
    bucket, limit, keys = listable(x, "ListBucketVersions"), limit_of(x, "max-keys"), encoder(x)
    after, version_id = x.parameter("key-marker"), x.parameter("version-id-marker")
    row = None
    if version_id:
        if not after:
            raise S3Error("InvalidArgument", "A version-id marker cannot be specified without a key marker.", ArgumentName="version-id-marker")
        row = _row_of(x, bucket, after, version_id)
    asked = Listing(x.parameter("prefix"), x.parameter("delimiter"), after, row, limit)
    found = versions_listed(x.ctx, bucket.id, asked)
    owners = _owners(x, found.rows)
    listed, previous = [], after if row is not None else ""
    for each in found.rows:
        listed.append(_version(each, keys, owners, is_latest=each.key != previous))
        previous = each.key
    said = [xml.leaf("Name", bucket.name), keys.leaf("Prefix", asked.prefix), keys.leaf("KeyMarker", after), xml.leaf("VersionIdMarker", version_id)]
    if found.is_truncated:
        said += [keys.leaf("NextKeyMarker", found.last)]
        said += [] if found.last_is_prefix else [xml.leaf("NextVersionIdMarker", found.rows[-1].version_id)]
    said += [xml.leaf("MaxKeys", limit)] + ([keys.leaf("Delimiter", asked.delimiter)] if asked.delimiter else [])
    return document("ListVersionsResult", *said, xml.leaf("IsTruncated", found.is_truncated), keys.said(), *listed, keys.prefixes(found))


def _row_of(x: Exchange, bucket: BucketFacts, key: str, version_id: str) -> int:
    """The place of a version, which its name tells although it may be gone; where the one without a name is gone, its key begins again."""
    row = sequence_of(version_id)
    if row is None:
        if version_id != NULL_VERSION:
            raise S3Error("InvalidArgument", "Invalid version id specified", ArgumentName="version-id-marker", ArgumentValue=version_id[:64])
        marker = version_of(x.ctx.db, bucket.id, key, version_id)
        row = marker.sequence if marker is not None else -1
    return row


def _version(row: Entry, keys: Encoder, owners: Mapping[str | None, str], *, is_latest: bool) -> str:
    named = [keys.leaf("Key", row.key), xml.leaf("VersionId", row.version_id), xml.leaf("IsLatest", is_latest)]
    if row.is_marker:
        return xml.group("DeleteMarker", *named, xml.leaf("LastModified", xml.timestamp(row.modified_at)), owners[row.owner_id])
    return xml.group("Version", *named, *_facts(row, owners))
