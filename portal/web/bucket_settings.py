"""Changing the settings of a bucket from its page. Everything works as plain forms; with scripts a document is looked at while it is typed."""

from flask import Blueprint, request
from flask.typing import ResponseReturnValue

from portal.http.guard import Access, access
from portal.http.request import context
from portal.kernel.context import Context
from portal.kernel.errors import ConfirmationRequired, InvalidRequest, PortalError
from portal.kernel.lookup import find
from portal.kernel.operations import run
from portal.storage.buckets import BUCKET
from portal.storage.emptying import bucket_empty
from portal.storage.object_models import Bucket
from portal.web.bucket_editors import Editor, document_of, editor_of, editors, read, shown
from portal.web.bucket_switches import FORMS, form_in, switches
from portal.web.forms import check_named
from portal.web.object_listing import address
from portal.web.object_pages import BASE
from portal.web.page import form_status, go, render
from portal.web.resource_pages import detail

pages = Blueprint("bucket_settings", __name__)


@pages.post(f"{BASE}/settings/<editor>/check")
@access(Access.SIGNED_IN)
def check(bucket_id: str, editor: str) -> ResponseReturnValue:
    """What the document means as it is now."""
    ctx = context()
    bucket: Bucket = find(ctx, BUCKET, bucket_id)
    return render("storage/bucket/_reading.html", reading=read(ctx, bucket, editor_of(ctx, bucket, editor), request.form.get("document", "")))


@pages.post(f"{BASE}/settings/<editor>/document")
@access(Access.SIGNED_IN)
def document(bucket_id: str, editor: str) -> ResponseReturnValue:
    """Save a document."""
    ctx = context()
    bucket: Bucket = find(ctx, BUCKET, bucket_id)
    chosen, text = editor_of(ctx, bucket, editor), request.form.get("document", "")
    try:
        given = document_of(text)
    except ValueError as error:
        return _again(ctx, bucket, chosen, text, InvalidRequest.fields({editor: [str(error)]}))
    try:
        if given is not None and not isinstance(given, type(chosen.example)):
            raise InvalidRequest.fields({editor: [f"must be {'a list' if isinstance(chosen.example, list) else 'an object'}."]})
        run(ctx, chosen.op, bucket_id, chosen.inputs(given))
    except ConfirmationRequired:
        raise
    except PortalError as error:
        ctx.db.rollback()
        return _again(ctx, find(ctx, BUCKET, bucket_id), chosen, text, error)
    return go(address(find(ctx, BUCKET, bucket_id), "/settings"), f"{chosen.title}: saved.")


def _again(ctx: Context, bucket: Bucket, editor: Editor, text: str, error: PortalError) -> ResponseReturnValue:
    listed = [shown(ctx, bucket, each, text if each.name == editor.name else None) for each in editors(ctx, bucket)]
    return detail(ctx, BUCKET, bucket, "settings", form_status(error), editors=listed, message=error.message)


@pages.post(f"{BASE}/settings")
@access(Access.SIGNED_IN)
def switch(bucket_id: str) -> ResponseReturnValue:
    """Set what has no document."""
    ctx, name = context(), form_in(request.form)
    if not name:
        raise InvalidRequest("The form says nothing that could be set.")
    asked = FORMS[name][1](find(ctx, BUCKET, bucket_id), request.form)
    try:
        run(ctx, asked.op, bucket_id, asked.inputs)
    except ConfirmationRequired:
        raise
    except PortalError as error:
        ctx.db.rollback()
        bucket: Bucket = find(ctx, BUCKET, bucket_id)
        shown = switches(ctx, bucket, typed=request.form, message=error.message)
        return detail(ctx, BUCKET, bucket, "settings", form_status(error), switches=shown)
    return go(address(find(ctx, BUCKET, bucket_id), "/settings"), asked.said)


@pages.post(f"{BASE}/empty")
@access(Access.SIGNED_IN)
def empty(bucket_id: str) -> ResponseReturnValue:
    """Have a job delete all versions of what is in the bucket, or under a prefix, and show how far it is."""
    ctx, prefix = context(), request.form.get("prefix", "")
    bucket: Bucket = find(ctx, BUCKET, bucket_id)
    try:
        check_named(prefix or bucket.name)
        job = bucket_empty(ctx, bucket_id, prefix)
    except ConfirmationRequired:
        raise
    except PortalError as error:
        ctx.db.rollback()
        return detail(ctx, BUCKET, find(ctx, BUCKET, bucket_id), "settings", form_status(error), message=error.message)
    return go(f"/jobs/{job.id}", f"{job.label}: it has begun.")
