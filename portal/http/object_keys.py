"""Access keys that API and console make and end: where an external engine keeps the objects, they count there as soon as they do here."""

from flask import current_app

from portal.engines.object_engine_ports import ObjectEngine
from portal.identity.models import S3AccessKey, User
from portal.identity.s3_keys import s3_key_create, s3_key_revoke
from portal.kernel.context import Context
from portal.kernel.errors import Conflict
from portal.storage.engine_tending import keys_follow, refuse_keys


def key_make(ctx: Context, owner: User, name: str, *, project_id: str | None) -> tuple[str, S3AccessKey]:
    """(secret, key). Raises what `s3_key_create` raises, and Unavailable if the engine does not answer."""
    engine, owner_id = _engine(), owner.id
    refuse_keys(engine)
    secret, key = s3_key_create(ctx, owner, name, project_id=project_id)
    if engine is not None:
        keys_follow(ctx, engine, owner_id)
    return secret, key


def why_no_keys() -> str:
    """Why no keys can be made here; empty where they can."""
    try:
        refuse_keys(_engine())
    except Conflict as error:
        return error.message
    return ""


def key_end(ctx: Context, key_id: str, *, owner: User | None = None) -> None:
    """End one. Raises what `s3_key_revoke` raises, and Unavailable if the engine does not answer."""
    engine, owner_id = _engine(), owner.id if owner is not None else str(ctx.principal.user_id)
    s3_key_revoke(ctx, key_id, owner=owner)
    if engine is not None:
        keys_follow(ctx, engine, owner_id)


def _engine() -> ObjectEngine | None:
    found: ObjectEngine | None = current_app.extensions["portal_engines"].objects
    return found
