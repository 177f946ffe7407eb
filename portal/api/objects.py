"""Endpoints of objects: lists, bytes in and out, versions, copies, uploads in parts. Keys stand in the path, or in the query where they fit no path."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

from flask import Response, current_app, request
from flask.typing import ResponseReturnValue
from werkzeug.http import http_date

from portal.api import body as io
from portal.api.endpoints import Endpoint, Query, Schema
from portal.api.object_bodies import (
    BYTES,
    LIST_OF,
    MOST,
    OBJECT,
    VERSION,
    Change,
    ClassInput,
    CompleteInput,
    CopyInput,
    DeleteInput,
    HoldInput,
    PresignInput,
    RestoreInput,
    RetentionInput,
    UploadInput,
)
from portal.api.resources import aliases, only
from portal.api.schemas import NUMBER, TEXT, WHEN, YES, read, thing
from portal.engines.object_engine_ports import Key, ObjectEngine
from portal.engines.object_ports import BlobStore
from portal.http.listing import flag, whole
from portal.http.request import context
from portal.http.s3_address import s3_endpoint
from portal.kernel.context import Context
from portal.kernel.db import now
from portal.kernel.errors import InvalidRequest, NotFound, PortalError, Unavailable
from portal.kernel.lookup import find
from portal.storage.access import LIST, WRITE, authorize_object
from portal.storage.buckets import BUCKET
from portal.storage.described import checked_metadata, checked_tags, checked_type
from portal.storage.engine_steps import refuse_on_engine
from portal.storage.errors import ObjectChanged
from portal.storage.facts import BucketFacts, Version, bucket_by_id, bucket_named
from portal.storage.grants import is_public
from portal.storage.listing import Listing
from portal.storage.object_service import ObjectService, object_service
from portal.storage.objects import About, Condition, Wanted
from portal.storage.presigning import presign
from portal.storage.retention import hold_set, retention_set
from portal.storage.tiers import object_set_class, refuse_unknown_class
from portal.storage.uploads import MOST_PARTS, Named, PartNamed, part_number

BASE = "/storage/buckets/{bucket_id}"
ONE = f"{BASE}/objects/{{key}}"
META = "x-meta-"
BYPASSING = Query("bypass_retention", "Delete a version although a retention that gives way keeps it.", {"type": "boolean", "default": False})
OF_VERSION = Query("version_id", "A version other than the newest.")


def endpoints() -> Iterator[Endpoint]:
    """All of them."""
    asked = [Query("prefix", "Only keys that begin so."), Query("delimiter", "Roll keys up at it, such as /."), Query("start_after", "Begin after this key."),
             Query("limit", "How many keys and prefixes.", {"type": "integer", "minimum": 1, "maximum": MOST, "default": MOST})]  # fmt: skip
    yield _on(f"GET {BASE}/objects", "list", listed, "List keys", {200: LIST_OF}, query=asked)
    for path, name, own in ((ONE, "", ()), (f"{BASE}/object", "by-key.", ("/api/storage/buckets/{bucket_id}",))):
        query = [OF_VERSION] if not name else [Query("key", "The key, whatever is in it."), OF_VERSION]
        yield _on(
            f"GET {path}", f"{name}get", get, "Read an object; Range is understood", {200: BYTES, 206: BYTES}, query=query, refuses=(416,), also=own
        )
        yield _on(
            f"PUT {path}",
            f"{name}put",
            put,
            "Write an object; X-Meta-* headers are kept with it",
            {200: OBJECT},
            query=query[:-1],
            body=BYTES,
            also=own,
        )
        summary = "Delete an object, or one of its versions"
        yield _on(f"DELETE {path}", f"{name}delete", delete, summary, {204: None}, query=[*query, BYPASSING], also=own)
    yield _on(f"PATCH {ONE}", "patch", change, "Change metadata, tags or type", {200: OBJECT}, body=Change)
    for verb, acl in (("public", "public-read"), ("private", "private")):
        summary = "Let everybody read it" if verb == "public" else "Let nobody else read it"
        yield _on(f"POST {ONE}/make-{verb}", f"make-{verb}", _with_acl(acl), summary, {200: OBJECT})
    yield _on(f"PUT {ONE}/retention", "retention", retain, "Say until when a version is kept", {200: OBJECT}, query=[OF_VERSION], body=RetentionInput)
    yield _on(
        f"PUT {ONE}/legal-hold", "legal-hold", hold, "Put a version under a legal hold, or lift it", {200: OBJECT}, query=[OF_VERSION], body=HoldInput
    )
    yield _on(f"PUT {ONE}/storage-class", "storage-class", move, "Move an object to another class", {200: OBJECT}, body=ClassInput)
    yield _on(f"GET {ONE}/versions", "versions", versions, "The versions of a key", {200: thing(versions={"type": "array", "items": VERSION})})
    yield _on(f"POST {ONE}/restore", "restore", restore, "Make an older version the newest again", {200: OBJECT}, body=RestoreInput)
    yield _on(f"POST {ONE}/copy", "copy", copy, "Copy an object", {200: OBJECT}, body=CopyInput)
    gone = thing(
        deleted={"type": "array", "items": TEXT}, errors={"type": "array", "items": thing(key=TEXT, error=TEXT, message=TEXT)}, is_truncated=YES
    )
    yield _on(f"POST {BASE}/delete-objects", "delete-many", delete_many, "Delete many objects", {200: gone}, body=DeleteInput)
    signed = thing(url=TEXT, expires_at=WHEN)
    yield _on(
        f"POST {BASE}/presigned-urls", "presign", presigned, "An address that is good for one object for a while", {200: signed}, body=PresignInput
    )
    upload = f"{BASE}/multipart-uploads"
    yield _on(f"POST {upload}", "upload.create", upload_begin, "Begin an upload in parts", {201: thing(upload_id=TEXT, key=TEXT)}, body=UploadInput)
    yield _on(
        f"PUT {upload}/{{upload_id}}/parts/{{number}}",
        "upload.part",
        part,
        "Send one part",
        {200: thing(etag=TEXT, number=NUMBER)},
        body=BYTES,
    )
    yield _on(
        f"POST {upload}/{{upload_id}}/complete",
        "upload.complete",
        complete,
        "Make the object of its parts",
        {200: OBJECT},
        body=CompleteInput,
    )
    yield _on(f"DELETE {upload}/{{upload_id}}", "upload.abort", abort, "Give an upload up; its parts go", {204: None})


def _on(
    route: str, name: str, view: Callable[..., ResponseReturnValue], summary: str, answers: Mapping[int, Schema | None], *,
    query: list[Query] | None = None, body: Any = None, refuses: tuple[int, ...] = (), also: tuple[str, ...] = (),
) -> Endpoint:  # fmt: skip
    method, path = route.split()
    is_bytes = body is BYTES
    schema = body if is_bytes or body is None else body.model_json_schema()
    others = aliases(BUCKET, path.removeprefix("/storage/buckets"))
    return Endpoint(method, path, f"storage.objects.{name}", view, summary, "Objects", answers, (403, 404, 405, 409, 412, *refuses), query=query or (), body=schema,
                    media="application/octet-stream" if is_bytes else "application/json", is_large=is_bytes, body_required=not is_bytes,
                    aliases=(*others, *also))  # fmt: skip


# -- what requests name ----------------------------------------------------------------------------------------------------------------------


def _objects() -> ObjectService:
    return object_service(current_app.extensions["portal_engines"])


def _bucket(ctx: Context, bucket_id: str) -> BucketFacts:
    """A bucket that the caller may see."""
    found = bucket_by_id(ctx.db, find(ctx, BUCKET, bucket_id).id)
    if found is None:
        raise NotFound(f"There is no bucket {bucket_id[:80]} here.")
    return found


def _key(given: Mapping[str, str]) -> str:
    return given.get("key") or request.args.get("key", "")


def _condition() -> Condition:
    """What has to hold of the present object for it to be written over."""
    match, none_match = (request.headers.get(name, "").strip().strip('"') for name in ("If-Match", "If-None-Match"))
    if none_match not in {"", "*"}:
        raise InvalidRequest.fields({"If-None-Match": ["of a write must be *."]})
    return Condition(match, none_match)


def _shown(version: Version) -> dict[str, Any]:
    return {
        "key": version.key, "object_key": version.key, "size_bytes": version.size_bytes, "etag": version.etag, "version_id": version.version_id,
        "content_type": version.headers.get("content-type", "application/octet-stream"), "storage_class": version.storage_class, "acl": version.acl,
        "is_public": is_public(version.granted), "last_modified": io.moment(version.modified_at), "metadata": dict(version.user_metadata),
        "tags": dict(version.tags), "retention_mode": version.lock_mode or None,
        "retain_until": io.moment(version.retain_until) if version.retain_until is not None else None, "legal_hold": bool(version.legal_hold),
        "encryption": version.encryption or "none", "kms_key_id": version.kms_key_id,
    }  # fmt: skip


def _without_key(name: str) -> Callable[..., ResponseReturnValue]:
    """The short address of a bucket is that of an object where it names a key. Raises InvalidRequest at the address that is of objects only."""
    if request.path.rstrip("/").endswith("/object"):
        raise InvalidRequest.fields({"key": ["is missing: which object?"]})
    view = current_app.view_functions[f"api.storage.buckets.{name}"]
    return cast("Callable[..., ResponseReturnValue]", view)


def _signer() -> Key | None:
    """With whose key addresses are signed where nobody has one of their own at the engine."""
    engine: ObjectEngine | None = current_app.extensions["portal_engines"].objects
    return engine.own_key() if engine is not None and engine.accounts is None else None


# -- bytes -----------------------------------------------------------------------------------------------------------------------------------


def listed(bucket_id: str) -> ResponseReturnValue:
    """A page of keys."""
    only("prefix", "delimiter", "start_after", "limit")
    ctx = context()
    bucket = _bucket(ctx, bucket_id)
    prefix, limit = request.args.get("prefix", ""), whole(request.args, "limit", MOST, low=1, high=MOST)
    authorize_object(ctx, bucket, LIST, prefix, called="ListBucket")
    found = _objects().listed(ctx, bucket, Listing(prefix, request.args.get("delimiter", ""), request.args.get("start_after", ""), limit=limit))
    rows = [
        {"key": row.key, "object_key": row.key, "size_bytes": row.size_bytes, "etag": row.etag, "storage_class": row.storage_class,
         "last_modified": io.moment(row.modified_at)}
        for row in found.rows
    ]  # fmt: skip
    after = found.last if found.is_truncated else None
    return io.answer({"objects": rows, "common_prefixes": found.prefixes, "is_truncated": found.is_truncated, "next_marker": after})


def get(bucket_id: str, **path: str) -> ResponseReturnValue:
    """The bytes of an object, or some of them."""
    if not _key(path):
        return _without_key("get")(bucket_id=bucket_id)
    ctx, objects = context(), _objects()
    found = objects.find(ctx, _bucket(ctx, bucket_id), _key(path), request.args.get("version_id", ""))
    version = found.version
    etag = f'"{version.etag}"'
    if request.headers.get("If-None-Match", "") in {etag, "*"}:
        return Response(status=304, headers={"ETag": etag})
    asked = request.range.range_for_length(version.size_bytes) if request.range is not None and request.range.units == "bytes" else None
    if request.range is not None and asked is None and len(request.range.ranges) == 1:
        return Response(status=416, headers={"Content-Range": f"bytes */{version.size_bytes}"})
    first, end = asked or (0, version.size_bytes)
    headers = {
        "ETag": etag, "Accept-Ranges": "bytes", "Content-Length": str(end - first), "Last-Modified": http_date(version.modified_at),
        "X-Version-Id": version.version_id, "X-Storage-Class": version.storage_class, "Content-Disposition": "attachment",
        **{META + name: value for name, value in version.user_metadata.items()},
    }  # fmt: skip
    if asked is not None:
        headers["Content-Range"] = f"bytes {first}-{end - 1}/{version.size_bytes}"
    try:
        body = objects.open(ctx, found, first, end - first) if request.method != "HEAD" else ()
    except ObjectChanged:
        # It was written over a moment ago: begin anew with what is there now.
        return get(bucket_id, **path)
    ctx.db.rollback()
    # What somebody else uploaded is no page of the portal: it is given out as bytes, to be saved.
    return Response(body, 206 if asked is not None else 200, headers=headers, content_type="application/octet-stream")


def put(bucket_id: str, **path: str) -> ResponseReturnValue:
    """Write an object."""
    if not _key(path):
        return _without_key("put")(bucket_id=bucket_id)
    ctx = context()
    bucket = _bucket(ctx, bucket_id)
    headers = {"content-type": checked_type(request.content_type)} if request.content_type else {}
    metadata = {name.lower().removeprefix(META): value for name, value in request.headers.items() if name.lower().startswith(META)}
    about = About(headers, checked_metadata(metadata), storage_class=request.headers.get("X-Storage-Class", "STANDARD"))
    if about.storage_class != "STANDARD":
        refuse_unknown_class(ctx.settings, about.storage_class)
    md5 = request.headers.get("Content-MD5", "")
    version = _objects().receive(ctx, bucket, _key(path), about, request.stream.read, length=request.content_length, md5=md5, condition=_condition())
    return io.answer(_shown(version), headers={"ETag": f'"{version.etag}"'})


def delete(bucket_id: str, **path: str) -> ResponseReturnValue:
    """Delete an object or a version."""
    if not _key(path):
        return _without_key("delete")(bucket_id=bucket_id)
    ctx = context()
    bypass = flag(request.args, "bypass_retention")
    gone = _objects().delete(ctx, _bucket(ctx, bucket_id), _key(path), request.args.get("version_id", ""), bypass=bypass)
    response = io.empty()
    response.headers["X-Version-Id"] = gone.version_id
    return response


# -- what is said of objects -----------------------------------------------------------------------------------------------------------------


def change(bucket_id: str, key: str) -> ResponseReturnValue:
    """Change what is said of the newest version."""
    ctx = context()
    given: Change = read(Change)
    bucket = _bucket(ctx, bucket_id)
    present = _objects().find(ctx, bucket, key).version
    said: dict[str, Any] = {}
    if given.metadata is not None:
        said["user_metadata"] = checked_metadata(given.metadata)
    if given.tags is not None:
        said["tags"] = checked_tags(given.tags)
    if given.content_type is not None:
        said["headers"] = {"content-type": checked_type(given.content_type)}
    version = _objects().say(ctx, bucket, key, WRITE, **said) if said else present
    return io.answer(_shown(version))


def _with_acl(acl: str) -> Callable[..., ResponseReturnValue]:
    def view(bucket_id: str, key: str) -> ResponseReturnValue:
        ctx = context()
        return io.answer(_shown(_objects().set_acl(ctx, _bucket(ctx, bucket_id), key, acl)))

    return view


def _version(bucket_id: str, key: str) -> tuple[str, str, str]:
    return _bucket(context(), bucket_id).name, key, request.args.get("version_id", "")


def retain(bucket_id: str, key: str) -> ResponseReturnValue:
    """Keep a version, for longer or, where that may be, for less."""
    refuse_on_engine(context(), "retention")
    given: RetentionInput = read(RetentionInput)
    changed = retention_set(context(), _version(bucket_id, key), given.mode, given.retain_until, bypass=given.bypass_retention)
    return io.answer(_shown(changed[1]))


def hold(bucket_id: str, key: str) -> ResponseReturnValue:
    """Put it under a hold, or lift that."""
    refuse_on_engine(context(), "holds")
    given: HoldInput = read(HoldInput)
    return io.answer(_shown(hold_set(context(), _version(bucket_id, key), hold=given.enabled)[1]))


def move(bucket_id: str, key: str) -> ResponseReturnValue:
    """Move the newest version to another class."""
    ctx = context()
    refuse_on_engine(ctx, "classes of objects")
    blobs: BlobStore | None = current_app.extensions["portal_engines"].blobs
    if blobs is None:
        raise Unavailable("This installation has no place for objects.")
    given: ClassInput = read(ClassInput)
    bucket = _bucket(ctx, bucket_id)
    # The answer says all that there is to read about it.
    _objects().find(ctx, bucket, key)
    version = object_set_class(ctx, blobs, bucket.name, key, given.storage_class)
    return io.answer({**_shown(version), "storage_class_changed_at": io.moment(now())})


def versions(bucket_id: str, key: str) -> ResponseReturnValue:
    """The versions of a key, newest first."""
    only()
    ctx = context()
    bucket = _bucket(ctx, bucket_id)
    authorize_object(ctx, bucket, LIST, key, called="ListBucketVersions")
    rows = _objects().versions(ctx, bucket, key)
    if not rows:
        raise NotFound(f"There is no {key[:200]} in {bucket.name}.")
    shown = [
        {"version_id": row.version_id, "is_latest": number == 0, "size_bytes": row.size_bytes, "etag": row.etag,
         "last_modified": io.moment(row.modified_at), "delete_marker": row.is_marker}
        for number, row in enumerate(rows)
    ]  # fmt: skip
    return io.answer({"versions": shown})


def restore(bucket_id: str, key: str) -> ResponseReturnValue:
    """Copy a version onto the newest."""
    ctx, objects = context(), _objects()
    given: RestoreInput = read(RestoreInput)
    bucket = _bucket(ctx, bucket_id)
    found = objects.find(ctx, bucket, key, given.version_id)
    return io.answer(_shown(objects.copy(ctx, found, bucket, key, _condition())))


def copy(bucket_id: str, key: str) -> ResponseReturnValue:
    """Copy the newest version."""
    ctx, objects = context(), _objects()
    given: CopyInput = read(CopyInput)
    bucket = _bucket(ctx, bucket_id)
    found = objects.find(ctx, bucket, key)
    target = _target(ctx, given.destination_bucket) if given.destination_bucket else bucket
    return io.answer(_shown(objects.copy(ctx, found, target, given.destination_key, _condition())))


def _target(ctx: Context, named: str) -> BucketFacts:
    """A bucket by name or id."""
    return bucket_by_id(ctx.db, named) or bucket_named(ctx.db, named)


def delete_many(bucket_id: str) -> ResponseReturnValue:
    """Delete keys, or what is under a prefix; each succeeds or fails on its own."""
    ctx = context()
    given: DeleteInput = read(DeleteInput)
    bucket = _bucket(ctx, bucket_id)
    keys, is_truncated = given.keys, False
    if given.prefix is not None:
        authorize_object(ctx, bucket, LIST, given.prefix, called="ListBucket")
        found = _objects().listed(ctx, bucket, Listing(given.prefix, limit=MOST))
        keys, is_truncated = [row.key for row in found.rows], found.is_truncated
    elif not keys:
        raise InvalidRequest.fields({"keys": ["name at least one key, or a prefix."]})
    done = _objects().delete_many(ctx, bucket, [Wanted(key) for key in dict.fromkeys(keys)])
    errors = [
        {"key": key, "error": each.code, "message": each.message}
        for key, each in zip(dict.fromkeys(keys), done, strict=True)
        if isinstance(each, PortalError)
    ]
    deleted = [each.key for each in done if not isinstance(each, PortalError)]
    return io.answer({"deleted": deleted, "errors": errors, "is_truncated": is_truncated})


def presigned(bucket_id: str) -> ResponseReturnValue:
    """An address of the S3 interface."""
    ctx = context()
    given: PresignInput = read(PresignInput)
    bucket = _bucket(ctx, bucket_id)
    url, ends = presign(ctx, _objects(), s3_endpoint(), bucket, given.key, method=given.method, expires_in=given.expires_in, signer=_signer())
    return io.answer({"url": url, "expires_at": io.moment(ends)})


# -- uploads in parts ------------------------------------------------------------------------------------------------------------------------


def upload_begin(bucket_id: str) -> ResponseReturnValue:
    """Begin one."""
    ctx = context()
    given: UploadInput = read(UploadInput)
    headers = {"content-type": checked_type(given.content_type)} if given.content_type else {}
    about = About(headers, checked_metadata(given.metadata))
    upload_id = _objects().upload_begin(ctx, _bucket(ctx, bucket_id), given.key, about)
    return io.answer({"upload_id": upload_id, "key": given.key}, 201)


def _upload(ctx: Context, bucket_id: str, upload_id: str) -> Named:
    return _objects().upload_named(ctx, _bucket(ctx, bucket_id), upload_id)


def part(bucket_id: str, upload_id: str, number: str) -> ResponseReturnValue:
    """Receive one part."""
    if (asked := part_number(number)) is None:
        raise InvalidRequest.fields({"number": [f"must be a number from 1 to {MOST_PARTS:,}."]})
    ctx = context()
    etag = _objects().part(ctx, _upload(ctx, bucket_id, upload_id), asked, request.stream.read, length=request.content_length)
    return io.answer({"etag": etag, "number": asked})


def complete(bucket_id: str, upload_id: str) -> ResponseReturnValue:
    """Make the object."""
    ctx = context()
    given: CompleteInput = read(CompleteInput)
    named = _upload(ctx, bucket_id, upload_id)
    wanted = [PartNamed(each.number, each.etag.strip('"')) for each in given.parts]
    version = _objects().complete(ctx, named, wanted, _condition())
    if version is None:
        raise NotFound(f"{named.key[:200]} was written over since.")
    return io.answer(_shown(version))


def abort(bucket_id: str, upload_id: str) -> ResponseReturnValue:
    """Give it up."""
    ctx = context()
    _objects().abort(ctx, _upload(ctx, bucket_id, upload_id))
    return io.empty()
