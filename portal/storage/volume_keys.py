"""What volumes and snapshots are encrypted with: a data key each, wrapped by a key of the project, which their whole chain of files shares."""

import base64
from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from portal.engines.ports import EngineRefused
from portal.engines.volume_ports import Keyring
from portal.kernel.context import Context
from portal.kernel.errors import InvalidRequest, PortalError
from portal.security.encryption_keys import default_key_along, key_authorize, use_authorize
from portal.security.key_models import EncryptionKey
from portal.security.key_store import Holder, data_key, declare_holder, key_of, refuse_unusable, unwrap
from portal.security.key_usage import note_system_use, note_use
from portal.settings import Settings
from portal.storage.volume_models import Encrypted, Snapshot, Volume

# Volumes and snapshots that begin as one another have the same data key: it is bound to what kind of data it encrypts.
PURPOSE = "storage.volume"

for _label, _model in (("volumes", Volume), ("snapshots", Snapshot)):
    declare_holder(Holder(_label, _model.__table__, "wrapped_key", "kms_key_id", "key_version", lambda _row: PURPOSE))  # type: ignore[arg-type] # a Table


def encrypt(ctx: Context, row: Encrypted, key: EncryptionKey | None) -> None:
    """Have a new volume encrypted, with the project's default key if none is named. Raises Forbidden or KeyUnusable."""
    if key is None:
        key = default_key_along(ctx, ctx.project_id or "")
    else:
        key_authorize(ctx, key)
    made = data_key(ctx.db, ctx.settings, key, context=PURPOSE)
    row.encryption_enabled, row.kms_key_id, row.wrapped_key, row.key_version = True, made.key_id, made.wrapped, made.version
    note_use(ctx, key.id, "generate_data_key", resource_id=PURPOSE)


def inherit(ctx: Context, row: Encrypted, origin: Any) -> None:
    """Encrypt a row as what it begins with is, or not. Raises Forbidden or KeyUnusable: its content has to be read."""
    check_use(ctx, origin)
    for name in ("encryption_enabled", "kms_key_id", "wrapped_key", "key_version"):
        setattr(row, name, getattr(origin, name))


def check_encryption(origin: Any, key: EncryptionKey | None, *, wanted: bool) -> None:
    """Raise InvalidRequest for a volume that is to be encrypted otherwise than what it begins with."""
    if wanted and not origin.encryption_enabled:
        problem = f"{origin.name} is not encrypted, and a volume that begins with it is neither. Make an empty one and copy what it holds."
        raise InvalidRequest.fields({"encryption_enabled": [problem]})
    if key is not None and key.id != origin.kms_key_id:
        raise InvalidRequest.fields({"kms_key": [f"{origin.name} is encrypted with another key, and so is a volume that begins with it."]})


def check_use(ctx: Context, row: Encrypted) -> None:
    """Raise Forbidden for somebody who may not use the key of a volume or snapshot, unless it is the project's default key; KeyUnusable if nobody may."""
    if row.encryption_enabled:
        key = key_of(ctx.db, row.wrapped_key or b"")
        if not key.is_default:
            use_authorize(ctx, key)
        refuse_unusable(key)


def refuse_locked(ctx: Context, *rows: Encrypted) -> None:
    """Raise KeyUnusable if one of them is encrypted with a key that must not be used now."""
    for row in rows:
        if row.encryption_enabled:
            refuse_unusable(key_of(ctx.db, row.wrapped_key or b""))


def locked_among(ctx: Context, instance_id: str) -> Sequence[Volume]:
    """The encrypted volumes of an instance."""
    mine = (Volume.instance_id == instance_id, Volume.deleted_at.is_(None), Volume.encryption_enabled)
    return ctx.db.scalars(select(Volume).where(*mine).order_by(Volume.id)).all()


def keyring(sessions: Callable[[], Session], settings: Settings) -> Keyring:
    """The passphrases of volumes and snapshots, for the engine: unwrapped whenever they are asked for, and kept nowhere."""

    def key_for(content_id: str) -> bytes:
        # What a copy shares with the volume that it is made from has its passphrase.
        named = f"vol-{content_id.removeprefix('copy-')}" if content_id.startswith("copy-") else content_id
        with sessions() as session:
            found: Volume | Snapshot | None = session.get(Volume, named) or session.get(Snapshot, named)
            if found is None or found.wrapped_key is None:
                raise EngineRefused("Nobody knows what the disk is encrypted with.")
            try:
                plain = unwrap(session, settings, found.wrapped_key, context=PURPOSE)
            except PortalError as error:
                raise EngineRefused(error.message) from error
            note_system_use(session, found.kms_key_id or "", "decrypt", found.id)
            return base64.b64encode(plain)

    return key_for
