"""Uploads by forms, as browsers send them: a policy that somebody signed says what may be uploaded."""

import re
from dataclasses import replace
from functools import cache
from threading import BoundedSemaphore
from urllib.parse import quote, urlencode, urlsplit, urlunsplit

from portal.kernel.db import now
from portal.s3 import xml
from portal.s3.encryption import asked_of, encryption_headers
from portal.s3.errors import S3Error
from portal.s3.exchange import Answer, Exchange, document, quoted
from portal.s3.forms import PostForm, open_form
from portal.s3.heads import about_of, version_header
from portal.s3.objects import keep
from portal.s3.post_policy import verify_form
from portal.s3.requests import S3Request
from portal.s3.tagging import tags_in
from portal.storage.encryption import encryption_for
from portal.storage.facts import Version
from portal.storage.objects import ANY, refuse_early

CREATED, REDIRECTED = 201, 303
CONTROL = re.compile("[\x00-\x1f\x7f]")
# Fields that become headers of every answer with the object.
KEPT = ("content-", "cache-control", "expires", "x-amz-meta-")
# Who uploads stands within the form: until that is known, forms have no more than this share of the threads.
SHARE = 4


def post(x: Exchange) -> Answer:
    """Write the file of a form as an object."""
    form = _opened(x.request, x.ctx.settings.s3_threads)
    x.identify(lambda secret_of: verify_form(form, x.bucket, secret_of, now()))
    said = _as_headers(x.request, form)
    about, asked = about_of(said), asked_of(said)
    if tagging := form.fields.get("tagging"):
        about = replace(about, tags=tags_in(xml.parse(tagging.encode(), "Tagging")))
    target = refuse_early(x.ctx, x.bucket, form.key, ANY, size_bytes=x.request.content_length, asked=asked)
    about = replace(about, encryption=encryption_for(x.ctx, target, form.key, asked))
    x.ctx.db.rollback()
    found, bucket = keep(x, target, form.key, form.open(), about, how="Post")
    return _told(x, form, found, version_header(bucket, found) | encryption_headers(found, asked.customer))


def _opened(request: S3Request, threads: int) -> PostForm:
    """The form, up to its file."""
    places = _places(threads)
    if not places.acquire(blocking=False):
        raise S3Error("SlowDown", "Too many forms are being uploaded at the moment. Try again.", headers={"Retry-After": "5"})
    try:
        return open_form(request)
    finally:
        places.release()


@cache
def _places(threads: int) -> BoundedSemaphore:
    return BoundedSemaphore(max(1, threads // SHARE))


def _as_headers(request: S3Request, form: PostForm) -> S3Request:
    """A request whose headers say what the fields of the form say. Raises InvalidArgument for what no header can say."""
    if odd := [name for name, value in form.fields.items() if name.startswith(KEPT) and CONTROL.search(value)]:
        raise S3Error("InvalidArgument", "The field holds characters that no header can have.", ArgumentName=odd[0][:64])
    fields = {name: value.encode().decode("latin-1") for name, value in form.fields.items()}
    renamed = {"x-amz-acl": fields["acl"]} if "acl" in fields else {}
    return replace(request, headers={**fields, **renamed}, raw_query="")


def _told(x: Exchange, form: PostForm, found: Version, headers: dict[str, str]) -> Answer:
    location = f"{'https' if x.request.is_secure else 'http'}://{x.request.host}/{x.bucket}/{quote(form.key)}"
    headers = {**headers, "ETag": quoted(found.etag), "Location": location}
    target = form.fields.get("success_action_redirect") or form.fields.get("redirect", "")
    parts = urlsplit(target)
    if target and parts.scheme in {"http", "https"} and parts.netloc and target.isprintable():
        query = "&".join(filter(None, [parts.query, urlencode({"bucket": x.bucket, "key": form.key, "etag": quoted(found.etag)})]))
        return Answer(REDIRECTED, {**headers, "Location": urlunsplit(parts._replace(query=query)).encode().decode("latin-1")})
    status = form.fields.get("success_action_status", "")
    if status == str(CREATED):
        said = [xml.leaf("Location", location), xml.leaf("Bucket", x.bucket), xml.leaf("Key", form.key), xml.leaf("ETag", quoted(found.etag))]
        return document("PostResponse", *said, status=CREATED, headers=headers)
    return Answer(200 if status == "200" else 204, headers)
