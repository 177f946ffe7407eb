"""The page of one object: what it is, what can be shown of it, its versions, and what may be done with it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from flask import Blueprint, Response, current_app, request
from flask.typing import ResponseReturnValue

from portal.engines.object_ports import BlobStore
from portal.http.guard import Access, access
from portal.http.request import context
from portal.kernel.context import Context
from portal.kernel.errors import NotFound, Unavailable
from portal.kernel.lookup import find
from portal.storage.access import DELETE, HOLD, LIST, PUBLISH, READ, RETAIN, WRITE, check_key, decide_object
from portal.storage.buckets import BUCKET
from portal.storage.engine_steps import refuse_on_engine
from portal.storage.errors import NoSuchKey, ObjectDamaged
from portal.storage.facts import BucketFacts, Version
from portal.storage.grants import ENFORCED, blocks
from portal.storage.listing import Entry, Listing, versions_listed
from portal.storage.locks import MODES, is_retained
from portal.storage.object_models import Bucket
from portal.storage.objects import Found, object_find
from portal.web.forms import as_lines
from portal.web.object_listing import crumbs, download_address, facts_of, object_address
from portal.web.page import render
from portal.web.previews import HEADERS, image_of, preview_of

pages = Blueprint("objects", __name__)
BASE = "/storage/buckets/<bucket_id>"
VERSIONS_SHOWN = 100
HOURS = {"900": "15 minutes", "3600": "1 hour", "86400": "1 day", "604800": "7 days"}


FROM_HERE = "single objects from its console, only by its API,"


@dataclass(frozen=True, slots=True)
class Named:
    """The object that a request is about, which the caller may see the bucket of."""

    bucket: Bucket
    facts: BucketFacts
    key: str
    version_id: str

    @classmethod
    def asked(cls, ctx: Context, bucket_id: str) -> "Named":
        """As address or form say. Raises NotFound, InvalidKey or KeyTooLong."""
        refuse_on_engine(ctx, FROM_HERE)
        bucket: Bucket = find(ctx, BUCKET, bucket_id)
        key = request.values.get("key", "")
        check_key(key)
        return cls(bucket, facts_of(ctx, bucket), key, request.values.get("version_id", "")[:64])

    @property
    def name(self) -> str:
        """The last part of the key."""
        return self.key.rstrip("/").rpartition("/")[2] or self.key

    @property
    def folder(self) -> str:
        """The prefix that it stands under."""
        return self.key.rstrip("/").rpartition("/")[0] + "/" if "/" in self.key.rstrip("/") else ""

    @property
    def url(self) -> str:
        """The address of the page."""
        return object_address(self.bucket, self.key, self.version_id)


def place_for_objects() -> BlobStore:
    """Where bytes are. Raises Unavailable."""
    found: BlobStore | None = current_app.extensions["portal_engines"].blobs
    if found is None:
        raise Unavailable("This installation has no place for objects.")
    return found


@dataclass(frozen=True, slots=True)
class Rights:
    """What the caller may do with an object."""

    read: bool
    list: bool
    write: bool
    delete: bool
    publish: bool
    retain: bool
    hold: bool


def rights_of(ctx: Context, facts: BucketFacts, key: str, version: Version | Entry | None) -> Rights:
    """What the caller may do with a version, or with a key whose newest version is the mark of a deletion."""
    owner = version.owner_id if version is not None else ctx.principal.user_id
    tags = version.tags if isinstance(version, Version) else None
    grants = version.granted if isinstance(version, Version) else ()
    actions = (READ, LIST, WRITE, DELETE, PUBLISH, RETAIN, HOLD)
    return Rights(*(decide_object(ctx, facts, each, key, owner_id=owner, tags=tags, grants=grants).allowed for each in actions))


def why_not_public(facts: BucketFacts) -> str:
    """Why no list of access lets everybody read what is in a bucket; empty where one can."""
    if facts.ownership == ENFORCED:
        return "The bucket's owner owns all that is in it, and lists of access do not count: a policy of the bucket lets others in."
    return "The bucket blocks lists that let everybody in." if blocks(facts, "block_public_acls") or blocks(facts, "ignore_public_acls") else ""


@pages.get(f"{BASE}/object")
@access(Access.SIGNED_IN)
def show(bucket_id: str) -> ResponseReturnValue:
    """One object."""
    ctx = context()
    return object_page(ctx, Named.asked(ctx, bucket_id))


def object_page(ctx: Context, named: Named, status: int = 200, **more: Any) -> Response:
    """The page of an object, also of one that was deleted and has older versions. Raises what `object_find` raises."""
    versions = _versions(ctx, named)
    try:
        found = object_find(ctx, named.facts.name, named.key, named.version_id)
    except NoSuchKey:
        if not versions:
            raise
        found = None
    values: dict[str, Any] = {
        "base": "/storage/buckets",
        "rtype": BUCKET,
        "row": named.bucket,
        "named": named,
        "crumbs": crumbs(named.bucket, named.folder),
    }
    values |= {
        "found": found, "item": found.version if found is not None else None, "versions": versions, "hours": HOURS, "typed": {}, "errors": {}, "message": "",
        "rights": rights_of(ctx, named.facts, named.key, found.version if found is not None else versions[0] if versions else None),
        "older": lambda version_id: object_address(named.bucket, named.key, version_id),
        "download": lambda version_id: download_address(named.bucket, named.key, version_id),
        "why_not_public": why_not_public(named.facts), "modes": MODES, "is_kept": found is not None and is_retained(found.version),
        "image": object_address(named.bucket, named.key, named.version_id, "/object/image"),
    }  # fmt: skip
    if found is not None:
        values["preview"] = preview_of(ctx, place_for_objects(), found)
        values |= _said(found)
    return render("storage/bucket/object.html", status, **{**values, **more})


def _said(found: Found) -> Mapping[str, Any]:
    version = found.version
    return {
        "metadata": as_lines(version.user_metadata), "tags": as_lines(version.tags),
        "content_type": version.headers.get("content-type", "application/octet-stream"),
        "headers": {name: value for name, value in version.headers.items() if name != "content-type"},
    }  # fmt: skip


def _versions(ctx: Context, named: Named) -> Sequence[Entry]:
    if not decide_object(ctx, named.facts, LIST, named.key).allowed:
        return ()
    rows = versions_listed(ctx, named.bucket.id, Listing(named.key, limit=VERSIONS_SHOWN)).rows
    return [row for row in rows if row.key == named.key]


@pages.get(f"{BASE}/object/image")
@access(Access.SIGNED_IN)
def image(bucket_id: str) -> ResponseReturnValue:
    """A picture, for the page of its object."""
    ctx = context()
    named = Named.asked(ctx, bucket_id)
    found = object_find(ctx, named.facts.name, named.key, named.version_id)
    try:
        kind, pieces = image_of(ctx, place_for_objects(), found)
    except ObjectDamaged:
        raise NotFound("The picture is damaged.") from None
    ctx.db.rollback()
    disposition = f"inline; filename*=UTF-8''{quote(named.name[:200], safe='')}"
    headers = {**HEADERS, "Content-Disposition": disposition, "Content-Length": str(found.version.size_bytes)}
    return Response(() if request.method == "HEAD" else pieces, headers=headers, content_type=kind)
