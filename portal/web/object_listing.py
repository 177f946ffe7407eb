"""The folders and objects of a bucket, page by page, as the console lists them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from flask import current_app, request

from portal.http.listing import flag, whole
from portal.kernel.context import Context
from portal.kernel.errors import NotFound, PortalError
from portal.kernel.jobs import active_for
from portal.storage.access import DELETE, LIST, READ, WRITE, check_key, decide_object
from portal.storage.engine_steps import on_engine
from portal.storage.facts import BucketFacts, Version, bucket_by_id
from portal.storage.grants import ENFORCED
from portal.storage.listing import Entry, Listed, Listing, versions_listed
from portal.storage.object_models import Bucket
from portal.storage.object_service import ObjectService, object_service
from portal.storage.removing import FOLDER, KEY, VERSION, Chosen

DELIMITER = "/"
SHOWN = 100
HIGHEST = 2**63 - 1
ACL_WORDS = {
    "private": "Nobody whom no policy lets in", "public-read": "Everybody may read and list", "public-read-write": "Everybody may read, write and delete",
    "authenticated-read": "Whoever is signed in may read and list",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the list: a folder, an object, or one version of an object."""

    name: str
    url: str
    ticked: str
    entry: Entry | Version | None = None
    is_latest: bool = True
    download: str = ""


@dataclass(frozen=True, slots=True)
class Place:
    """Where in a bucket the list is: a folder, what names in it begin with, and the line after which it goes on."""

    prefix: str
    starts: str
    with_versions: bool
    after: str
    after_row: int | None

    @classmethod
    def asked(cls) -> "Place":
        """As the address says. Raises InvalidRequest."""
        args = request.args
        found = cls(args.get("prefix", ""), args.get("starts", ""), flag(args, "versions"), args.get("after", ""), None)
        for text in (found.prefix + found.starts, found.after):
            if text:
                check_key(text)
        row = whole(args, "row", -1, low=0, high=HIGHEST)
        return cls(found.prefix, found.starts, found.with_versions, found.after, row if row >= 0 else None)

    def url(self, bucket: Bucket, **other: str) -> str:
        """The address of another place in the bucket; what is not said stays, but for the page."""
        now = {"prefix": self.prefix, "starts": self.starts, "versions": "true" if self.with_versions else ""}
        query = urlencode({name: value for name, value in {**now, **other}.items() if value})
        return f"{address(bucket)}?{query}" if query else address(bucket)


def address(bucket: Bucket, page: str = "", **query: str) -> str:
    """The address of a page of a bucket."""
    found = urlencode({name: value for name, value in query.items() if value})
    return f"/storage/buckets/{bucket.id}{page}" + (f"?{found}" if found else "")


def object_address(bucket: Bucket, key: str, version_id: str = "", page: str = "/object") -> str:
    """The address of an object's page."""
    return address(bucket, page, key=key, version_id=version_id)


def download_address(bucket: Bucket, key: str, version_id: str = "") -> str:
    """Where the bytes of an object come from."""
    return f"/api/v1{object_address(bucket, key, version_id)}"


def facts_of(ctx: Context, bucket: Bucket) -> BucketFacts:
    """The bucket as operations on objects know it. Raises NotFound."""
    found = bucket_by_id(ctx.db, bucket.id)
    if found is None:
        raise NotFound("The bucket is gone.")
    return found


def crumbs(bucket: Bucket, prefix: str) -> list[tuple[str, str]]:
    """(name, address) of each folder on the way down."""
    parts = prefix.split(DELIMITER)[:-1]
    return [(part or DELIMITER, address(bucket, prefix=DELIMITER.join(parts[: number + 1]) + DELIMITER)) for number, part in enumerate(parts)]


def objects_tab(ctx: Context, bucket: Bucket) -> Mapping[str, Any]:
    """What the tab of objects shows."""
    if bucket.deleted_at is not None:
        return {}
    facts, place = facts_of(ctx, bucket), Place.asked()
    whole_prefix = place.prefix + place.starts
    found, lines, denied = (
        Listed(),
        list[Line](),
        decide_object(ctx, facts, LIST, whole_prefix, called="ListBucketVersions" if place.with_versions else "ListBucket"),
    )
    problem = ""
    if denied.allowed:
        try:
            found = _listed(ctx, facts, place, Listing(whole_prefix, DELIMITER, place.after, place.after_row, SHOWN))
        except PortalError as error:
            # An engine that does not answer is no reason to show nothing of the bucket.
            problem = error.message
        lines = _lines(ctx, bucket, facts, place, found)

    def may(action: str) -> bool:
        return decide_object(ctx, facts, action, place.prefix, owner_id=ctx.principal.user_id).allowed

    said = {"problem": problem} if problem else {}
    sizes = [line.entry.size_bytes for line in lines if line.entry is not None]
    return {
        "place": place, "lines": lines, "denied": "" if denied.allowed else denied.because, "crumbs": crumbs(bucket, place.prefix),
        "folders": len(lines) - len(sizes), "objects": len(sizes), "bytes": sum(sizes), "may_write": may(WRITE), "may_delete": may(DELETE),
        "following": _following(bucket, place, found), "is_later": bool(place.after), "address": address, "user_id": ctx.principal.user_id,
        "others": ACL_WORDS["private"] if bucket.ownership == ENFORCED else ACL_WORDS.get(bucket.acl, "As a list of access says"), "job": active_for(ctx.db, bucket.id),
        "elsewhere": ctx.settings.s3_engine_endpoint if on_engine(ctx.settings) else "", **said,
    }  # fmt: skip


def _listed(ctx: Context, facts: BucketFacts, place: Place, listing: Listing) -> Listed:
    if place.with_versions and not on_engine(ctx.settings):
        return versions_listed(ctx, facts.id, listing)
    return objects_here().listed(ctx, facts, listing)


def objects_here() -> ObjectService:
    """Whoever keeps the objects of this installation."""
    return object_service(current_app.extensions["portal_engines"])


def _lines(ctx: Context, bucket: Bucket, facts: BucketFacts, place: Place, found: Listed) -> list[Line]:
    lines = [
        Line(
            prefix.removeprefix(place.prefix),
            address(bucket, prefix=prefix, versions="true" if place.with_versions else ""),
            str(Chosen(FOLDER, prefix)),
        )
        for prefix in found.prefixes
    ]
    before = place.after if place.after_row is not None else ""
    for row in found.rows:
        is_latest, before = row.key != before, row.key
        if row.key == place.prefix and not place.with_versions:
            # What stands for the folder itself.
            continue
        version_id = "" if is_latest and not row.is_marker else row.version_id
        if on_engine(ctx.settings):
            lines.append(_line_elsewhere(ctx, bucket, facts, place, row))
            continue
        may_read = not row.is_marker and decide_object(ctx, facts, READ, row.key, owner_id=row.owner_id).allowed
        chosen = Chosen(VERSION, row.key, row.version_id) if place.with_versions else Chosen(KEY, row.key)
        url = object_address(bucket, row.key, version_id if place.with_versions and not row.is_marker else "")
        lines.append(
            Line(
                row.key.removeprefix(place.prefix) or row.key,
                url,
                str(chosen),
                row,
                is_latest,
                download_address(bucket, row.key, version_id) if may_read else "",
            )
        )
    return lines


def _line_elsewhere(ctx: Context, bucket: Bucket, facts: BucketFacts, place: Place, row: Version) -> Line:
    """An object on an external engine, which has no page: its name leads to its bytes."""
    may_read = decide_object(ctx, facts, READ, row.key, grants=row.granted).allowed
    url = address(bucket, "/engine/object", key=row.key) if may_read else ""
    return Line(row.key.removeprefix(place.prefix) or row.key, url, str(Chosen(KEY, row.key)), row, download=url)


def _following(bucket: Bucket, place: Place, found: Listed) -> str:
    """The address of the next page; empty on the last."""
    if not found.is_truncated:
        return ""
    row = str(found.rows[-1].sequence) if place.with_versions and found.rows and not found.last_is_prefix else ""
    return place.url(bucket, after=found.last, row=row)
