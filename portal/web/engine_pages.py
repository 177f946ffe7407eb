"""What the console does with objects where an external engine may keep them: bytes that are sent to it, and the way to those that it has."""

from io import SEEK_END
from typing import IO

from flask import Blueprint, current_app, redirect, request
from flask.typing import ResponseReturnValue

from portal.engines.object_engine_ports import ObjectEngine
from portal.engines.ports import EngineError
from portal.http.guard import Access, access
from portal.http.request import context
from portal.http.s3_address import s3_endpoint
from portal.kernel.context import Context
from portal.kernel.errors import NotFound, PreconditionFailed, Unavailable
from portal.kernel.lookup import find
from portal.storage.buckets import BUCKET
from portal.storage.engine_steps import on_engine
from portal.storage.engine_wanted import key_of
from portal.storage.facts import bucket_named
from portal.storage.listing import Listing
from portal.storage.object_models import Bucket
from portal.storage.objects import About, Condition
from portal.storage.presigning import presign
from portal.storage.receiving import object_receive
from portal.web.object_listing import facts_of, objects_here
from portal.web.object_pages import BASE, place_for_objects

pages = Blueprint("engine_objects", __name__)
ABSENT = Condition(none_match="*")
READ_WITHIN_S = 60


def object_take(ctx: Context, where: tuple[str, str], about: About, stream: IO[bytes], condition: Condition) -> None:
    """Write what a form brought to a (bucket, key), on a condition. An external engine knows none: it is asked whether the key is there before."""
    if not on_engine(ctx.settings):
        object_receive(ctx, place_for_objects(), where, about, stream.read, length=None, condition=condition)
        return
    facts, key = bucket_named(ctx.db, where[0]), where[1]
    if condition is ABSENT and any(row.key == key for row in objects_here().listed(ctx, facts, Listing(key, limit=1)).rows):
        raise PreconditionFailed(f"{key[:200]} is there already.")
    length = stream.seek(0, SEEK_END)
    stream.seek(0)
    objects_here().receive(ctx, facts, key, about, stream.read, length=length)


@pages.get(f"{BASE}/engine/object")
@access(Access.SIGNED_IN)
def read(bucket_id: str) -> ResponseReturnValue:
    """On to the bytes of an object that an external engine keeps, by an address that the portal signs for this once."""
    ctx, key = context(), request.args.get("key", "")
    bucket: Bucket = find(ctx, BUCKET, bucket_id)
    engine: ObjectEngine | None = current_app.extensions["portal_engines"].objects
    if engine is None:
        raise NotFound("There is nothing at this address.")
    facts, name = facts_of(ctx, bucket), key.rstrip("/").rpartition("/")[2] or key
    try:
        signer = key_of(engine, ctx.settings, facts) or engine.own_key()
    except EngineError as error:
        raise Unavailable(error.message) from error
    link, _ = presign(ctx, objects_here(), s3_endpoint(), facts, key, method="GET", expires_in=READ_WITHIN_S, signer=signer, saved_as=name)
    return redirect(link, 303)
