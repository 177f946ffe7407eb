"""Which uploads in parts have not ended, and what has arrived of one: for whoever goes on with it, or gives it up."""

from collections.abc import Iterator

from flask import request
from flask.typing import ResponseReturnValue

from portal.api import body as io
from portal.api.endpoints import Endpoint, Query
from portal.api.resources import only
from portal.api.schemas import NUMBER, TEXT, WHEN, YES, thing
from portal.http.listing import whole
from portal.http.request import context
from portal.kernel.lookup import find
from portal.storage.access import LIST, authorize_object
from portal.storage.buckets import BUCKET
from portal.storage.facts import bucket_named
from portal.storage.listing import Listing, uploads_listed
from portal.storage.object_models import Bucket
from portal.storage.uploads import MOST_PARTS, parts_listed, upload_named

BASE = "/storage/buckets/{bucket_id}/multipart-uploads"
MOST = 1000
UPLOAD = thing(upload_id=TEXT, key=TEXT, created_at=WHEN)
PART = thing(number=NUMBER, etag=TEXT, size_bytes=NUMBER)


def endpoints() -> Iterator[Endpoint]:
    """All of them."""
    asked = [
        Query("prefix", "Only of keys that begin so."), Query("start_after", "Begin after this key."),
        Query("limit", "How many.", {"type": "integer", "minimum": 1, "maximum": MOST, "default": MOST}),
    ]  # fmt: skip
    listed = thing(uploads={"type": "array", "items": UPLOAD}, is_truncated=YES)
    yield Endpoint(
        "GET", BASE, "storage.objects.upload.list", uploads, "Uploads in parts that have not ended", "Objects", {200: listed}, (403, 404), query=asked
    )
    one = thing(upload_id=TEXT, key=TEXT, created_at=WHEN, parts={"type": "array", "items": PART})
    yield Endpoint(
        "GET",
        f"{BASE}/{{upload_id}}",
        "storage.objects.upload.get",
        parts,
        "What has arrived of an upload in parts",
        "Objects",
        {200: one},
        (403, 404),
    )


def uploads(bucket_id: str) -> ResponseReturnValue:
    """Uploads in the order of their keys."""
    only("prefix", "start_after", "limit")
    ctx = context()
    bucket: Bucket = find(ctx, BUCKET, bucket_id)
    prefix, limit = request.args.get("prefix", ""), whole(request.args, "limit", MOST, low=1, high=MOST)
    authorize_object(ctx, bucket_named(ctx.db, bucket.name), LIST, prefix, called="ListBucketMultipartUploads")
    found = uploads_listed(ctx, bucket.id, Listing(prefix, after=request.args.get("start_after", ""), limit=limit))
    rows = [{"upload_id": row.id, "key": row.key, "created_at": io.moment(row.created_at)} for row in found.rows]
    return io.answer({"uploads": rows, "is_truncated": found.is_truncated})


def parts(bucket_id: str, upload_id: str) -> ResponseReturnValue:
    """The parts of one, by number."""
    only()
    ctx = context()
    bucket: Bucket = find(ctx, BUCKET, bucket_id)
    upload, found, _ = parts_listed(ctx, upload_named(ctx.db, bucket.name, upload_id), after=0, limit=MOST_PARTS)
    rows = [{"number": each.number, "etag": each.etag, "size_bytes": each.size_bytes} for each in found]
    return io.answer({"upload_id": upload.id, "key": upload.key, "created_at": io.moment(upload.created_at), "parts": rows})
