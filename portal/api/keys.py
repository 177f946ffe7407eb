"""Endpoints of encryption keys that are not derived: what a key does, its versions, and who used it."""

import base64
from collections.abc import Callable, Iterator
from typing import Annotated, Any

from flask import request
from flask.typing import ResponseReturnValue
from pydantic import Field, StringConstraints
from sqlalchemy import select

from portal.api import body as io
from portal.api.endpoints import Endpoint, Query, Schema
from portal.api.resources import aliases, list_schema, only
from portal.api.schemas import MAYBE, NUMBER, TEXT, WHEN, Input, read, thing
from portal.http.audit_filters import moment
from portal.http.request import context
from portal.kernel.authz import authorize, target_of
from portal.kernel.lookup import find
from portal.security.encryption_keys import KEY, READ_USAGE, uses_of, versions_of
from portal.security.key_models import KeyUsage
from portal.security.key_uses import decoded, key_data_key, key_decrypt, key_encrypt

Base64 = Annotated[str, StringConstraints(max_length=16_384)]
Said = Annotated[
    dict[Annotated[str, StringConstraints(max_length=128)], Annotated[str, StringConstraints(max_length=256)]], Field(default_factory=dict)
]
ROTATION = thing(version=NUMBER, at=WHEN, type=TEXT, old_version=MAYBE, new_version=NUMBER, username=TEXT)
USAGE = thing(at=WHEN, operation=TEXT, actor=TEXT, resource_id=TEXT, outcome=TEXT, count=NUMBER, last_at=WHEN, caller_ip=TEXT)
USED_BY = thing(type=TEXT, label=TEXT, id=TEXT, name=TEXT)
SECRET = thing(plaintext=TEXT)
MOST_ROWS = 500
# What these are called below the other paths of keys.
FORMER = {"rotations": "rotation_history", "usage": "usage_logs"}
SINCE = Query("since", "Hours that began at this moment or later.", {"type": "string", "format": "date-time"})


class EncryptInput(Input):
    """What is to be encrypted."""

    plaintext: Base64 = Field(description="Base64 of at most 4,096 bytes.")
    context: Said


class DecryptInput(Input):
    """What was encrypted."""

    ciphertext: Base64
    context: Said


class DataKeyInput(Input):
    """What a data key is for."""

    length: int = Field(32, ge=32, le=32, description="Bytes; data keys have 32.")
    context: Said


def endpoints() -> Iterator[Endpoint]:
    """All of them."""
    version = {"key_version": NUMBER}
    yield _on("POST encrypt", encrypt, "Encrypt a little: at most 4 KiB", thing(ciphertext=TEXT, **version), EncryptInput)
    yield _on("POST decrypt", decrypt, "Decrypt, with the same context", SECRET, DecryptInput)
    yield _on("POST data-key", make_data_key, "A fresh data key: encrypt with the plain one and forget it, keep the wrapped one",
              thing(plaintext=TEXT, ciphertext=TEXT, **version), DataKeyInput)  # fmt: skip
    yield _on("GET rotations", rotations, "Versions of the key, newest first", list_schema(ROTATION))
    yield _on("GET usage", usage, "Who used the key for what, by the hour, newest first", list_schema(USAGE), query=(SINCE,))
    yield _on("GET resources", resources, "What is encrypted with the key, of what you may see", list_schema(USED_BY))


def _on(
    route: str,
    view: Callable[..., ResponseReturnValue],
    summary: str,
    answer: Schema,
    body: type[Input] | None = None,
    *,
    query: tuple[Query, ...] = (),
) -> Endpoint:
    method, name = route.split()
    rest, former = f"/{{key_id}}/{name}", [f"/api/v1/services/kms/keys/{{key_id}}/{FORMER[name]}"] if name in FORMER else []
    return Endpoint(method, f"/security/keys{rest}", f"security.keys.{name}", view, summary, KEY.plural, {200: answer},
                    (403, 404, 409) if body else (403, 404), query=query, body=body.model_json_schema() if body else None,
                    body_required=name != "data-key", aliases=(*aliases(KEY, rest), *former))  # fmt: skip


def encrypt(key_id: str) -> ResponseReturnValue:
    """Plain to cipher."""
    given: EncryptInput = read(EncryptInput)
    made = key_encrypt(context(), key_id, decoded("plaintext", given.plaintext), given.context)
    return _secret(ciphertext=_text(made.data), key_version=made.version)


def decrypt(key_id: str) -> ResponseReturnValue:
    """Cipher to plain."""
    given: DecryptInput = read(DecryptInput)
    return _secret(plaintext=_text(key_decrypt(context(), key_id, decoded("ciphertext", given.ciphertext), given.context)))


def make_data_key(key_id: str) -> ResponseReturnValue:
    """A fresh one."""
    given: DataKeyInput = read(DataKeyInput)
    made = key_data_key(context(), key_id, given.context)
    return _secret(plaintext=_text(made.plain), ciphertext=_text(made.wrapped), key_version=made.version)


def rotations(key_id: str) -> ResponseReturnValue:
    """Versions."""
    only()
    ctx = context()
    rows = versions_of(ctx, find(ctx, KEY, key_id))
    shown = [{"version": row.number, "at": io.moment(row.created_at), "type": row.origin, "old_version": row.number - 1 or None, "new_version": row.number,
              "username": row.created_by} for row in rows]  # fmt: skip
    return io.answer(io.page_of(shown, count=len(shown)))


def usage(key_id: str) -> ResponseReturnValue:
    """Uses."""
    only("since")
    ctx = context()
    key = find(ctx, KEY, key_id)
    authorize(ctx, READ_USAGE, target_of(key))
    query = select(KeyUsage).where(KeyUsage.key_id == key.id)
    if (since := moment(request.args, "since")) is not None:
        query = query.where(KeyUsage.hour >= since)
    rows = ctx.db.scalars(query.order_by(KeyUsage.hour.desc(), KeyUsage.actor, KeyUsage.operation, KeyUsage.outcome).limit(MOST_ROWS)).all()
    shown = [{"at": io.moment(row.hour), "operation": row.operation, "actor": row.actor, "resource_id": row.resource_id, "outcome": row.outcome,
              "count": row.count, "last_at": io.moment(row.last_at), "caller_ip": row.source_ip} for row in rows]  # fmt: skip
    return io.answer(io.page_of(shown, count=len(shown)))


def resources(key_id: str) -> ResponseReturnValue:
    """What it encrypts."""
    only()
    ctx = context()
    found = uses_of(ctx, find(ctx, KEY, key_id))
    shown = [{"type": each.type_key, "label": each.label, "id": each.id, "name": each.name} for each in found]
    return io.answer(io.page_of(shown, count=len(shown)))


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _secret(**fields: Any) -> ResponseReturnValue:
    """An answer that nobody on the way keeps."""
    return io.answer(fields, headers={"Cache-Control": "no-store"})
