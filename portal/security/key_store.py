"""The key store: what storage asks for when it encrypts or reads.

Data is encrypted with data keys. A data key is wrapped by a version of a project's key, and that by a master key: what is stored beside the data
tells nothing without both. All of this only reads the database, so it is called within a transaction as well as outside of one.
"""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from cryptography.exceptions import InvalidTag
from sqlalchemy import Table, exists, select
from sqlalchemy.orm import Session

from portal.kernel.context import Context
from portal.kernel.errors import InvalidRequest, NotFound, StateConflict
from portal.security.key_models import MOST_VERSIONS, EncryptionKey, KeyVersion
from portal.security.master_keys import KEY_BYTES, NONCE_BYTES, MasterKeyMissing, MasterKeys, decrypt, encrypt, master_keys
from portal.settings import Settings

FORMAT = 1
ID = re.compile(r"[A-Za-z0-9-]{1,64}")
TAG_BYTES = 16
# Of so many versions at least one has to be wrapped by a master key that is there before another is made.
NEWEST = 20


class KeyUnusable(StateConflict):
    """The key is there and must not be used: it is disabled, or about to be deleted."""


class KeyDisabled(KeyUnusable):
    """Somebody has disabled the key."""


class KeyPendingDeletion(KeyUnusable):
    """The key is going to be deleted."""


class KeyGone(NotFound):
    """The key has been deleted: what it wrapped can never be read again."""


class NotWrappedHere(InvalidRequest):
    """The bytes were not wrapped by a key of the portal for this purpose, or have been altered."""


@dataclass(frozen=True, slots=True)
class DataKey:
    """A key for one piece of data: encrypt with `plain` and forget it, keep `wrapped` beside the data."""

    plain: bytes = field(repr=False)
    wrapped: bytes = field(repr=False)
    key_id: str
    version: int


@dataclass(frozen=True, slots=True)
class Holder:
    """A table that keeps wrapped data keys: rotation wraps them again by the newest version, in rounds that can be taken up again.

    `wrapped`, `key_id` and `version` name its columns; `context` gives what was said of a row when its data key was made. Where the rows are no
    resources, `within` is the type of the resource that they are in, and the column that names it.
    """

    label: str
    table: Table
    wrapped: str
    key_id: str
    version: str
    context: Callable[[Any], str]
    within: tuple[str, str] | None = None


HOLDERS: list[Holder] = []


def declare_holder(holder: Holder) -> Holder:
    """Have the wrapped data keys of a table wrapped again when their key is rotated."""
    HOLDERS.append(holder)
    return holder


def data_key(session: Session, settings: Settings, key: EncryptionKey, *, context: str) -> DataKey:
    """A fresh data key, wrapped by the newest version of a key. `context` says what it is for, and has to be said again when it is unwrapped.

    Raises KeyUnusable or MasterKeyMissing.
    """
    refuse_unusable(_as_it_is(session, key.id))
    return _wrapped(session, settings, key, os.urandom(KEY_BYTES), context)


def unwrap(session: Session, settings: Settings, wrapped: bytes, *, context: str) -> bytes:
    """The plain data key, or what `seal` was given. Raises KeyUnusable, KeyGone, MasterKeyMissing, or NotWrappedHere for what is not as it was written."""
    refuse_unusable(key_of(session, wrapped))
    return _plain(session, settings, wrapped, context)


def rewrap(session: Session, settings: Settings, wrapped: bytes, *, context: str) -> DataKey:
    """The same data key, wrapped by the newest version of the same key; of a disabled key as well, since nobody gets to see it."""
    return _wrapped(session, settings, key_of(session, wrapped), _plain(session, settings, wrapped, context), context)


def wrapped_by(wrapped: bytes) -> tuple[str, int]:
    """The id and the version of the key that wrapped something. Raises NotWrappedHere."""
    length = wrapped[1] if len(wrapped) > 1 and wrapped[0] == FORMAT else 0
    end = 2 + length + 4
    named, number = wrapped[2 : 2 + length].decode("ascii", "replace"), int.from_bytes(wrapped[2 + length : end])
    if len(wrapped) < end + NONCE_BYTES + TAG_BYTES or not ID.fullmatch(named) or number > MOST_VERSIONS:
        raise _altered()
    return named, number


def key_of(session: Session, wrapped: bytes) -> EncryptionKey:
    """The key that wrapped something. Raises KeyGone, or NotWrappedHere."""
    key_id, _ = wrapped_by(wrapped)
    return _as_it_is(session, key_id)


def _as_it_is(session: Session, key_id: str) -> EncryptionKey:
    """A key, whatever the session knew of it before."""
    key = session.scalars(select(EncryptionKey).where(EncryptionKey.id == key_id).execution_options(populate_existing=True)).first()
    if key is None or key.deleted_at is not None:
        raise KeyGone(f"The encryption key {key_id[:64]} has been deleted: what it encrypted cannot be read any more.")
    return key


def refuse_unusable(key: EncryptionKey) -> None:
    """Raise KeyUnusable for a key that must not be used now, KeyGone for one that is no more."""
    if key.deleted_at is not None:
        raise KeyGone(f"The encryption key {key.name} has been deleted.")
    if key.state == "disabled":
        raise KeyDisabled(f"The encryption key {key.name} is disabled. Enable it to use what is encrypted with it.", details={"key_id": key.id})
    if key.state != "enabled":
        way_out = "Cancel the deletion and enable it to use what is encrypted with it."
        raise KeyPendingDeletion(f"The encryption key {key.name} is going to be deleted. {way_out}", details={"key_id": key.id})


def default_key(session: Session, project_id: str) -> EncryptionKey | None:
    """The key of a project for what names none; None where it was not needed yet (`encryption_keys.default_key_ensure` makes it)."""
    mine = (EncryptionKey.project_id == project_id, EncryptionKey.is_default, EncryptionKey.deleted_at.is_(None))
    return session.scalars(select(EncryptionKey).where(*mine)).first()


def version_make(ctx: Context, key: EncryptionKey, number: int, origin: str) -> None:
    """Add a version of fresh random bytes, within the caller's transaction. Raises MasterKeyMissing."""
    # The first of an installation makes the master key where none was given; later a missing one is a loss, and no second one hides it.
    masters = master_keys(ctx.settings, may_make=not ctx.db.scalar(select(exists().select_from(KeyVersion))))
    _refuse_unrelated(ctx.db, masters)
    material = masters.wrap(os.urandom(KEY_BYTES), _about_version(key.id, number))
    ctx.db.add(KeyVersion(key_id=key.id, number=number, material=material, master=masters.first, created_by=ctx.principal.username, origin=origin))
    ctx.db.flush()


def master_problem(session: Session, settings: Settings) -> str:
    """Why what is encrypted cannot be read with the master keys that the portal was started with, in words; empty where it can, or nothing is."""
    if not session.scalar(select(exists().select_from(KeyVersion))):
        return ""
    try:
        _refuse_unrelated(session, master_keys(settings))
    except MasterKeyMissing as error:
        return error.message
    return ""


def _refuse_unrelated(session: Session, masters: MasterKeys) -> None:
    """Raise MasterKeyMissing for master keys none of which wrapped any of the newest versions: another one was lost or mistyped."""
    newest = session.scalars(select(KeyVersion.master).order_by(KeyVersion.created_at.desc(), KeyVersion.key_id).limit(NEWEST)).all()
    if newest and not masters.keys.keys() & set(newest):
        raise MasterKeyMissing(
            f"The encryption keys in the database were wrapped by the master key {newest[0]}, and the portal was started with {masters.first}. Nothing that is "
            "encrypted can be read, and no key is made, until an operator has added that one to ENCRYPTION_MASTER_KEY or its file.",
            details={"fingerprint": newest[0]},
        )


def version_rewrap(version: KeyVersion, masters: MasterKeys) -> None:
    """Wrap what a version consists of by the first master key. Raises MasterKeyMissing."""
    about = _about_version(version.key_id, version.number)
    version.material, version.master = masters.wrap(masters.unwrap(version.master, version.material, about), about), masters.first


def seal(session: Session, settings: Settings, key: EncryptionKey, plain: bytes, *, context: str) -> bytes:
    """A few bytes of one's own, encrypted as a data key is: `unwrap` gives them again. Raises KeyUnusable or MasterKeyMissing."""
    refuse_unusable(_as_it_is(session, key.id))
    return _wrapped(session, settings, key, plain, context).wrapped


def _wrapped(session: Session, settings: Settings, key: EncryptionKey, plain: bytes, context: str) -> DataKey:
    number = session.scalars(select(KeyVersion.number).where(KeyVersion.key_id == key.id).order_by(KeyVersion.number.desc()).limit(1)).one()
    head = bytes([FORMAT, len(key.id)]) + key.id.encode("ascii") + number.to_bytes(4)
    return DataKey(plain, head + encrypt(_material(session, settings, key.id, number), plain, _about(head, context)), key.id, number)


def _plain(session: Session, settings: Settings, wrapped: bytes, context: str) -> bytes:
    key_id, number = wrapped_by(wrapped)
    end = 2 + wrapped[1] + 4
    try:
        return decrypt(_material(session, settings, key_id, number), wrapped[end:], _about(wrapped[:end], context))
    except InvalidTag:
        raise _altered() from None


def _material(session: Session, settings: Settings, key_id: str, number: int) -> bytes:
    found = session.execute(select(KeyVersion.material, KeyVersion.master).where(KeyVersion.key_id == key_id, KeyVersion.number == number)).first()
    if found is None:
        raise _altered()
    return master_keys(settings).unwrap(found.master, found.material, _about_version(key_id, number))


def _about(head: bytes, context: str) -> bytes:
    """What is authenticated along with a data key: which version wrapped it, and what for."""
    return b"portal: data key\0" + head + context.encode()


def _about_version(key_id: str, number: int) -> bytes:
    return f"portal: key version\0{key_id}\0{number}".encode()


def _altered() -> NotWrappedHere:
    return NotWrappedHere("This was not encrypted by a key of the portal for this purpose, or it has been altered.")
