"""What a key does for whoever calls the API: encrypts and decrypts a little, and gives data keys to those who encrypt much themselves."""

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from portal.kernel import audit
from portal.kernel.authz import target_of
from portal.kernel.context import Context
from portal.kernel.errors import InvalidRequest, PortalError
from portal.kernel.lookup import find
from portal.kernel.operations import acting
from portal.security.encryption_keys import KEY, USE
from portal.security.key_models import EncryptionKey
from portal.security.key_store import DataKey, data_key, refuse_unusable, seal, unwrap, wrapped_by
from portal.security.key_usage import note_use

MOST_BYTES = 4096
MOST_CONTEXT = 10
PURPOSE = "security.key"
Said = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Ciphertext:
    """What was encrypted, and by which version of the key."""

    data: bytes = field(repr=False)
    version: int


def key_encrypt(ctx: Context, key_id: str, plaintext: bytes, context: Said) -> Ciphertext:
    """Encrypt at most 4 KiB. Raises NotFound, Forbidden, KeyUnusable or InvalidRequest."""
    with _using(ctx, key_id, "encrypt") as key:
        if len(plaintext) > MOST_BYTES:
            raise InvalidRequest.fields(
                {"plaintext": [f"has {len(plaintext):,} bytes; at most {MOST_BYTES:,} are encrypted. Use a data key for more."]}
            )
        sealed = seal(ctx.db, ctx.settings, key, plaintext, context=_context(context))
        return Ciphertext(sealed, wrapped_by(sealed)[1])


def key_decrypt(ctx: Context, key_id: str, ciphertext: bytes, context: Said) -> bytes:
    """What was encrypted, or a data key that was wrapped; by the same key, with the same context."""
    with _using(ctx, key_id, "decrypt") as key:
        if wrapped_by(ciphertext)[0] != key.id:
            raise InvalidRequest.fields({"ciphertext": [f"was not encrypted by {key.name}."]})
        if len(ciphertext) > 2 * MOST_BYTES:
            raise InvalidRequest.fields({"ciphertext": ["is longer than anything that a key has encrypted."]})
        return unwrap(ctx.db, ctx.settings, ciphertext, context=_context(context))


def key_data_key(ctx: Context, key_id: str, context: Said) -> DataKey:
    """A fresh data key of 32 bytes, plain and wrapped. What wrapped it is unwrapped by `key_decrypt`."""
    with _using(ctx, key_id, "generate_data_key") as key:
        return data_key(ctx.db, ctx.settings, key, context=_context(context))


@contextmanager
def _using(ctx: Context, key_id: str, operation: str) -> Iterator[EncryptionKey]:
    """One use: permitted, audited, and counted however it ends."""
    key: EncryptionKey = find(ctx, KEY, key_id)
    about = audit.Subject(KEY.key, key.id, key.name, key.project_id)
    try:
        with acting(ctx, f"{KEY.key}.{operation}", about, target=target_of(key), permission=USE):
            key = find(ctx, KEY, key_id)
            refuse_unusable(key)
            yield key
    except PortalError as error:
        note_use(ctx, about.id, operation, outcome="denied" if error.status == 403 else "failure")  # noqa: PLR2004 - the status of Forbidden
        raise
    note_use(ctx, about.id, operation)


def _context(said: Said) -> str:
    """What was said of the data, as it is authenticated: whatever the order was."""
    if len(said) > MOST_CONTEXT:
        raise InvalidRequest.fields({"context": [f"has {len(said)} entries; at most {MOST_CONTEXT} are accepted."]})
    text = json.dumps(dict(sorted(said.items())), separators=(",", ":"))
    return f"{PURPOSE}/{hashlib.sha256(text.encode()).hexdigest()}"


def decoded(name: str, text: str) -> bytes:
    """Bytes from base64. Raises InvalidRequest."""
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        raise InvalidRequest.fields({name: ["must be base64."]}) from None
