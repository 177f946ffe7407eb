"""What is done with objects from the console: small files, folders, what is said of an object, its versions, links, copies, and deletion of several."""

from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime, time
from io import BytesIO
from typing import Any

from flask import Blueprint, request
from flask.typing import ResponseReturnValue
from sqlalchemy import or_, select
from werkzeug.datastructures import FileStorage

from portal.http.guard import Access, access, large_form
from portal.http.request import context
from portal.http.s3_address import s3_endpoint
from portal.kernel.authz import decide, reach, target_of
from portal.kernel.context import Context
from portal.kernel.errors import ConfirmationRequired, Conflict, InvalidRequest, PortalError
from portal.kernel.ids import is_storable
from portal.kernel.lookup import find
from portal.storage.access import DELETE, WRITE, authorize_object, check_key
from portal.storage.buckets import BUCKET
from portal.storage.described import checked_metadata, checked_tags, checked_type
from portal.storage.emptying import EMPTY
from portal.storage.engine_steps import on_engine
from portal.storage.facts import newest
from portal.storage.object_models import Bucket
from portal.storage.objects import ANY, About, Condition, object_delete, object_find, object_say, object_set_acl
from portal.storage.presigning import presign
from portal.storage.receiving import object_copy
from portal.storage.removing import FOLDER, Chosen, Removed, at_once, concerned, remove_chosen
from portal.storage.retention import hold_set, retention_set
from portal.web.engine_pages import ABSENT, object_take
from portal.web.forms import from_lines
from portal.web.object_listing import address, facts_of, object_address, objects_here
from portal.web.object_pages import BASE, HOURS, Named, object_page, place_for_objects
from portal.web.page import field_errors, form_status, go, render, toast
from portal.web.resource_pages import detail

pages = Blueprint("object_actions", __name__)
MOST_TICKED = 1000
FIELDS = ("metadata", "tags", "content_type", "destination_bucket", "destination_key", "expires_in", "until")


@pages.post(f"{BASE}/files")
@access(Access.SIGNED_IN)
@large_form
def upload(bucket_id: str) -> ResponseReturnValue:
    """Take files as a plain form sends them: small ones, and without a script."""
    ctx, prefix = context(), request.form.get("prefix", "")
    bucket: Bucket = find(ctx, BUCKET, bucket_id)
    name, files = bucket.name, [each for each in request.files.getlist("files") if each.filename]
    # Where versions are kept nothing is lost by writing over an object; elsewhere only whoever says so does it.
    condition = ANY if "replace" in request.form or bucket.versioning == "enabled" else ABSENT
    if not files:
        return _list_again(ctx, bucket, InvalidRequest.fields({"files": ["choose at least one file."]}))
    for number, file in enumerate(files):
        try:
            _take(ctx, name, prefix, file, condition)
        except PortalError as error:
            ctx.db.rollback()
            if number:
                error.message = f"{number} of {len(files)} files are there. The next one, {file.filename}: {error.message}"
            return _list_again(ctx, find(ctx, BUCKET, bucket_id), error)
    return go(
        address(find(ctx, BUCKET, bucket_id), prefix=prefix),
        f"{files[0].filename} is uploaded." if len(files) == 1 else f"{len(files)} files are uploaded.",
    )


def _take(ctx: Context, bucket: str, prefix: str, file: FileStorage, condition: Condition) -> None:
    # Browsers may send a path; the last part is the name.
    key = prefix + (file.filename or "").replace("\\", "/").rpartition("/")[2]
    headers = {"content-type": file.mimetype} if file.mimetype else {}
    object_take(ctx, (bucket, key), About(headers), file.stream, condition)


@pages.post(f"{BASE}/folder")
@access(Access.SIGNED_IN)
def folder(bucket_id: str) -> ResponseReturnValue:
    """Make an empty folder: an object of no bytes whose key ends with a slash."""
    ctx, prefix, name = context(), request.form.get("prefix", ""), request.form.get("name", "").strip().strip("/")
    bucket: Bucket = find(ctx, BUCKET, bucket_id)
    key = f"{prefix}{name}/"
    try:
        if not name:
            raise InvalidRequest.fields({"name": ["a folder needs a name."]})
        check_key(key)
        object_take(ctx, (bucket.name, key), About(), BytesIO(), ABSENT)
    except PortalError as error:
        ctx.db.rollback()
        return _list_again(ctx, find(ctx, BUCKET, bucket_id), error)
    return go(address(find(ctx, BUCKET, bucket_id), prefix=key), f"The folder {name} is there.")


def _list_again(ctx: Context, bucket: Bucket, error: PortalError) -> ResponseReturnValue:
    return detail(ctx, BUCKET, bucket, "overview", form_status(error), problem=error.message)


# -- one object ------------------------------------------------------------------------------------------------------------------------------


def _changed(bucket_id: str, change: Callable[[Context, Named], ResponseReturnValue]) -> ResponseReturnValue:
    """Do something with an object, or show its page with what is wrong."""
    ctx = context()
    named = Named.asked(ctx, bucket_id)
    try:
        _refuse_another(ctx, named)
        return change(ctx, named)
    except ConfirmationRequired:
        raise
    except PortalError as error:
        ctx.db.rollback()
        errors, message = field_errors(error, FIELDS)
        return object_page(ctx, Named.asked(ctx, bucket_id), form_status(error), errors=errors, message=message, typed=request.form)


def _refuse_another(ctx: Context, named: Named) -> None:
    """Raise Conflict where the newest version is not the one any more that was shown with the form."""
    shown = request.form.get("shown", "")
    latest = newest(ctx.db, named.bucket.id, named.key)
    if shown and not named.version_id and (latest is None or str(latest.sequence) != shown):
        raise Conflict("The object was written over or deleted meanwhile; nothing was changed. This is what is there now.")


@pages.post(f"{BASE}/object/say")
@access(Access.SIGNED_IN)
def say(bucket_id: str) -> ResponseReturnValue:
    """Change metadata, tags and type of a version."""

    def change(ctx: Context, named: Named) -> ResponseReturnValue:
        version = object_find(ctx, named.facts.name, named.key, named.version_id).version
        said: dict[str, Any] = {"user_metadata": checked_metadata(_pairs("metadata")), "tags": checked_tags(_pairs("tags"))}
        content_type = checked_type(request.form.get("content_type", "").strip())
        said["headers"] = {**version.headers, "content-type": content_type} if content_type else dict(version.headers)
        object_say(ctx, named.facts.name, named.key, named.version_id, WRITE, **said)
        return go(named.url, "Saved.")

    return _changed(bucket_id, change)


def _pairs(name: str) -> Mapping[str, str]:
    try:
        return from_lines(request.form.get(name, ""))
    except ValueError as error:
        raise InvalidRequest.fields({name: [str(error)]}) from None


@pages.post(f"{BASE}/object/access")
@access(Access.SIGNED_IN)
def publish(bucket_id: str) -> ResponseReturnValue:
    """Let everybody read an object, or nobody else."""
    acl = "public-read" if request.form.get("public") == "true" else "private"

    def change(ctx: Context, named: Named) -> ResponseReturnValue:
        object_set_acl(ctx, (named.facts.name, named.key, named.version_id), acl)
        return go(named.url, "Everybody may read it now." if acl != "private" else "It is not public any more.")

    return _changed(bucket_id, change)


@pages.post(f"{BASE}/object/lock")
@access(Access.SIGNED_IN)
def lock(bucket_id: str) -> ResponseReturnValue:
    """Keep a version from deletion until a day has passed, or until a legal hold on it is lifted."""
    form = request.form

    def change(ctx: Context, named: Named) -> ResponseReturnValue:
        where = (named.facts.name, named.key, named.version_id)
        if "hold" in form:
            hold_set(ctx, where, hold=form["hold"] == "true")
            return go(named.url, "There is a legal hold on it." if form["hold"] == "true" else "The legal hold is lifted.")
        mode = form.get("mode", "")
        retention_set(ctx, where, mode, _end_of(form.get("until", "")) if mode else None, bypass="bypass" in form)
        return go(named.url, "The retention is set." if mode else "There is no retention any more.")

    return _changed(bucket_id, change)


def _end_of(day: str) -> datetime:
    """The last moment of a day, in UTC. Raises InvalidRequest."""
    try:
        return datetime.combine(date.fromisoformat(day), time.max, UTC)
    except ValueError:
        raise InvalidRequest.fields({"until": ["must be a day such as 2030-01-31."]}) from None


@pages.post(f"{BASE}/object/restore")
@access(Access.SIGNED_IN)
def restore(bucket_id: str) -> ResponseReturnValue:
    """Make an older version the newest again."""

    def change(ctx: Context, named: Named) -> ResponseReturnValue:
        found = object_find(ctx, named.facts.name, named.key, named.version_id)
        object_copy(ctx, place_for_objects(), found, (named.facts.name, named.key))
        return go(object_address(named.bucket, named.key), "The version is the newest again.")

    return _changed(bucket_id, change)


@pages.post(f"{BASE}/object/share")
@access(Access.SIGNED_IN)
def share(bucket_id: str) -> ResponseReturnValue:
    """An address that whoever has it can read the object at, for a while."""

    def change(ctx: Context, named: Named) -> ResponseReturnValue:
        chosen = request.form.get("expires_in", "")
        if chosen not in HOURS:
            raise InvalidRequest.fields({"expires_in": ["choose one of the times."]})
        link, ends = presign(ctx, objects_here(), s3_endpoint(), named.facts, named.key, method="GET", expires_in=int(chosen))
        return object_page(ctx, named, link=link, ends=ends, typed=request.form)

    return _changed(bucket_id, change)


@pages.post(f"{BASE}/object/copy")
@access(Access.SIGNED_IN)
def copy(bucket_id: str) -> ResponseReturnValue:
    """Copy an object to another key, or move it there."""
    form = request.form
    is_move = form.get("way") == "move"

    def change(ctx: Context, named: Named) -> ResponseReturnValue:
        key = form.get("destination_key", "")
        check_key(key)
        to = _bucket_called(ctx, form.get("destination_bucket", "").strip()) or named.bucket
        found = object_find(ctx, named.facts.name, named.key, named.version_id)
        name, same = to.name, (to.id, key) == (named.bucket.id, named.key)
        if same:
            raise InvalidRequest.fields({"destination_key": ["is where it is now."]})
        if is_move:
            authorize_object(ctx, named.facts, DELETE, named.key, owner_id=found.version.owner_id, tags=found.version.tags)
        condition = ANY if "replace" in form else ABSENT
        object_copy(ctx, place_for_objects(), found, (name, key), condition=condition)
        if is_move:
            # Only what was copied goes: whoever wrote meanwhile keeps it.
            object_delete(ctx, named.facts.name, named.key, condition=Condition(match=found.version.etag))
        toast(f"{named.name} is {'moved' if is_move else 'copied'}.")
        return go(object_address(find(ctx, BUCKET, to.id), key))

    return _changed(bucket_id, change)


def _bucket_called(ctx: Context, text: str) -> Bucket | None:
    """A bucket that is named by id or name and that the caller may see; None for no name. Raises InvalidRequest."""
    if not text:
        return None
    named = select(Bucket).where(
        or_(Bucket.id == text, Bucket.name == text), Bucket.deleted_at.is_(None), reach(ctx, f"{BUCKET.key}.read").rows(Bucket)
    )
    found = ctx.db.scalars(named.order_by(Bucket.id)).first() if is_storable(text) else None
    if found is None:
        raise InvalidRequest.fields({"destination_bucket": [f"there is no bucket {text[:64]} here."]})
    return found


# -- deletion --------------------------------------------------------------------------------------------------------------------------------


def _ticked() -> list[Chosen]:
    found = list(dict.fromkeys(request.form.getlist("ids")))
    if not 0 < len(found) <= MOST_TICKED:
        raise InvalidRequest(f"Tick what is to be deleted, at most {MOST_TICKED:,} at a time.")
    return [Chosen.read(text) for text in found]


@pages.post(f"{BASE}/removal")
@access(Access.SIGNED_IN)
def removal(bucket_id: str) -> ResponseReturnValue:
    """What would go, before it does."""
    ctx = context()
    bucket: Bucket = find(ctx, BUCKET, bucket_id)
    return _removal_page(ctx, bucket, _ticked())


@pages.post(f"{BASE}/removal/now")
@access(Access.SIGNED_IN)
def remove(bucket_id: str) -> ResponseReturnValue:
    """Delete what was ticked."""
    ctx, chosen = context(), _ticked()
    bucket: Bucket = find(ctx, BUCKET, bucket_id)
    done = remove_chosen(ctx, objects_here(), facts_of(ctx, bucket), chosen)
    if done.refused or done.is_more:
        return _removal_page(ctx, find(ctx, BUCKET, bucket_id), chosen, done)
    return go(_back(find(ctx, BUCKET, bucket_id)), f"{done.count:,} {'object is' if done.count == 1 else 'objects are'} deleted.")


def _back(bucket: Bucket) -> str:
    return address(bucket, prefix=request.form.get("prefix", ""), versions=request.form.get("versions", ""))


def _removal_page(ctx: Context, bucket: Bucket, chosen: list[Chosen], done: Removed | None = None) -> ResponseReturnValue:
    listed = concerned(ctx, objects_here(), facts_of(ctx, bucket), chosen)
    values = {
        "rtype": BUCKET, "base": "/storage/buckets", "row": bucket, "listed": listed, "done": done, "back": _back(bucket), "at_once": at_once(ctx),
        "objects": sum(each.objects for each in listed), "bytes": sum(each.size_bytes for each in listed), "is_more": any(each.is_more for each in listed),
        "for_good": bucket.versioning == "off" or any(each.version_id for each in chosen), "prefix": request.form.get("prefix", ""),
        "versions": request.form.get("versions", ""), "folder": chosen[0].key if len(chosen) == 1 and chosen[0].kind == FOLDER else "",
        "may_empty": decide(ctx, EMPTY, target_of(bucket)).allowed and not bucket.locked and not on_engine(ctx.settings),
    }  # fmt: skip
    return render("storage/bucket/removal.html", 200 if done is None else 409 if done.refused else 200, **values)
