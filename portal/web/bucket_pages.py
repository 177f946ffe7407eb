"""Uploads that are given up and access keys, from the page of a bucket."""

from flask import Blueprint, request
from flask.typing import ResponseReturnValue

from portal.http.guard import Access, access
from portal.http.object_keys import key_end as end
from portal.http.object_keys import key_make
from portal.http.request import context
from portal.identity.models import User
from portal.kernel.errors import ConfirmationRequired, PortalError
from portal.kernel.lookup import find
from portal.storage.buckets import BUCKET
from portal.storage.object_models import Bucket
from portal.storage.uploads import Named, upload_abort
from portal.web.object_listing import address
from portal.web.object_pages import BASE
from portal.web.page import field_errors, form_status, go
from portal.web.resource_pages import detail

pages = Blueprint("buckets", __name__)


@pages.post(f"{BASE}/uploads/discard")
@access(Access.SIGNED_IN)
def discard(bucket_id: str) -> ResponseReturnValue:
    """Give an upload up."""
    ctx, form = context(), request.form
    bucket: Bucket = find(ctx, BUCKET, bucket_id)
    upload_abort(ctx, Named(bucket.name, form.get("key", ""), form.get("upload_id", "")))
    return go(address(find(ctx, BUCKET, bucket_id), "/usage"), "The upload is given up.")


@pages.post(f"{BASE}/keys")
@access(Access.SIGNED_IN)
def key_create(bucket_id: str) -> ResponseReturnValue:
    """A new key, whose secret is shown once."""
    ctx, name = context(), request.form.get("name", "").strip()
    bucket: Bucket = find(ctx, BUCKET, bucket_id)
    try:
        secret, key = key_make(ctx, ctx.db.get_one(User, ctx.principal.user_id), name, project_id=bucket.project_id)
    except ConfirmationRequired:
        raise
    except PortalError as error:
        ctx.db.rollback()
        errors, message = field_errors(error, ("name",))
        return detail(ctx, BUCKET, find(ctx, BUCKET, bucket_id), "keys", form_status(error), errors=errors, message=message, typed=name)
    return detail(ctx, BUCKET, find(ctx, BUCKET, bucket_id), "keys", 201, secret=secret, new_key=key)


@pages.post(f"{BASE}/keys/<access_key_id>/end")
@access(Access.SIGNED_IN)
def key_end(bucket_id: str, access_key_id: str) -> ResponseReturnValue:
    """End one of the caller's keys."""
    ctx = context()
    end(ctx, access_key_id)
    return go(address(find(ctx, BUCKET, bucket_id), "/keys"), "The key has ended, and links that were signed with it.")
