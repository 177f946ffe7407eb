"""Endpoints of buckets that are not derived: their figures, their settings one by one, and access keys of the S3 interface."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from flask.typing import ResponseReturnValue
from pydantic import Field

from portal.api import body as io
from portal.api.endpoints import PREFIX, Endpoint, Schema
from portal.api.represent import represent
from portal.api.resources import aliases, list_schema, only, ref
from portal.api.schemas import MAYBE, MAYBE_TEXT, NUMBER, TEXT, WHEN, YES, Input, read, thing
from portal.http.object_keys import key_end, key_make
from portal.http.request import context
from portal.identity.models import S3AccessKey, User
from portal.identity.s3_keys import s3_keys_of
from portal.identity.service_accounts import service_account_find
from portal.kernel.declare import Operation
from portal.kernel.lookup import find
from portal.kernel.operations import run
from portal.storage.bucket_encryption import bucket_set_encryption
from portal.storage.buckets import BUCKET, bucket_set_versioning
from portal.storage.configurations import bucket_set_cors
from portal.storage.grants import FLAGS
from portal.storage.lifecycle import bucket_set_lifecycle
from portal.storage.locks import LONGEST, MODES, bucket_set_object_lock
from portal.storage.object_models import ACLS, ENCRYPTION, OWNERSHIP, UNSET, Bucket
from portal.storage.policies import bucket_set_policy
from portal.storage.public_access import bucket_set_acl, bucket_set_ownership, bucket_set_public_access

ITEM = "/storage/buckets/{bucket_id}"
RULES = thing(rules={"type": "array", "items": {"type": "object"}})
KEY = thing(
    access_key_id=TEXT,
    id=TEXT,
    name=TEXT,
    project_id={"type": ["string", "null"]},
    is_active=YES,
    created_at=WHEN,
    last_used_at=WHEN,
    last_used_ip=TEXT,
)
WITH_SECRET: Schema = {**KEY, "properties": {**KEY["properties"], "secret_access_key": TEXT}}
MIB = 1 << 20
BLOCK: Schema = {"type": "object", "properties": dict.fromkeys(FLAGS, YES)}
LOCK = thing(enabled=YES, mode=MAYBE_TEXT, days=MAYBE, years=MAYBE)
DOCUMENT: Schema = {"type": "object"}
ENCRYPTED = thing(encryption_type=TEXT, encryption_enabled=YES, kms_key_id=MAYBE_TEXT, bucket_key_enabled=YES)


class VersioningInput(Input):
    """Whether older versions are kept."""

    enabled: bool


class AclInput(Input):
    """What others may do."""

    acl: str = Field(json_schema_extra={"enum": list(ACLS)})


class EncryptionInput(Input):
    """How new objects are encrypted."""

    type: str = Field(json_schema_extra={"enum": list(ENCRYPTION)})
    key_id: str | None = Field(None, max_length=64, description="For sse-kms; the project's default key unless given.")
    bucket_key_enabled: bool = False


class BlockInput(Input):
    """Which ways to let everybody in are closed."""

    block_public_acls: bool | None = None
    ignore_public_acls: bool | None = None
    block_public_policy: bool | None = None
    restrict_public_buckets: bool | None = None


class OwnershipInput(Input):
    """Who owns what others write."""

    ownership: str = Field(json_schema_extra={"enum": [*OWNERSHIP, UNSET]})


class LockInput(Input):
    """How long every new version is kept that has no retention of its own; without a mode, not at all."""

    mode: str = Field("", json_schema_extra={"enum": ["", *MODES]})
    days: int | None = Field(None, ge=1, le=LONGEST["days"])
    years: int | None = Field(None, ge=1, le=LONGEST["years"])


class RulesInput(Input):
    """Rules, in place of those there are."""

    rules: list[dict[str, Any]]


class KeyInput(Input):
    """A new access key."""

    name: str = Field("S3", max_length=255)


def endpoints() -> Iterator[Endpoint]:
    """All of them."""
    bucket = ref("Bucket")
    figures = thing(
        bucket_id=TEXT, total_objects=NUMBER, total_size_bytes=NUMBER, total_size_gb={"type": "number"}, average_object_size_mb={"type": "number"},
        versioning_enabled=YES, encryption_enabled=YES,
    )  # fmt: skip
    yield _on("GET statistics", statistics, "How much is in the bucket", {200: figures})
    yield _on(
        "PUT versioning", _setting(bucket_set_versioning, VersioningInput), "Keep older versions, or stop doing so", {200: bucket}, VersioningInput
    )
    yield _on("PUT acl", _setting(bucket_set_acl, AclInput), "What those may do whom no policy lets in", {200: bucket}, AclInput)
    yield _on("GET encryption", encryption, "How new objects are encrypted that are sent without a word about it", {200: ENCRYPTED})
    yield _on(
        "PUT encryption",
        encryption_set,
        "Encrypt new objects, or no longer; those that are there stay as they are",
        {200: ENCRYPTED},
        EncryptionInput,
    )
    yield _on("GET cors", _rules("cors_rules"), "Which pages of other origins are let in", {200: RULES})
    yield _on("PUT cors", _setting(bucket_set_cors, RulesInput, "cors_rules"), "Replace the rules for other origins", {200: RULES}, RulesInput)
    yield _on("GET lifecycle", _rules("lifecycle_rules"), "What the portal deletes by itself", {200: RULES})
    change = _setting(bucket_set_lifecycle, RulesInput, "lifecycle_rules")
    yield _on("PUT lifecycle", change, "Replace the rules for the life of objects", {200: RULES}, RulesInput)
    yield _on("GET policy", policy, "The bucket's own policy; an empty object where it has none", {200: DOCUMENT})
    yield _on("PUT policy", policy_set, "Let others in by a policy of the bucket's own, in the language of S3", {200: DOCUMENT}, body=DOCUMENT)
    yield _on("DELETE policy", policy_delete, "Take the bucket's own policy away", {204: None})
    yield _on("GET public-access-block", block, "Which ways to let everybody in are closed; an empty object where none is", {200: BLOCK})
    yield _on("PUT public-access-block", block_set, "Close some, and open the others; an empty object opens all", {200: BLOCK}, BlockInput)
    yield _on("PUT ownership", _setting(bucket_set_ownership, OwnershipInput), "Say who owns what others write, and whether lists of access count",
              {200: bucket}, OwnershipInput)  # fmt: skip
    yield _on("GET object-lock", object_lock, "Whether the bucket has object lock, and how long it keeps what is written", {200: LOCK})
    yield _on("PUT object-lock", object_lock_set, "Switch object lock on, for good, with a default retention or without", {200: LOCK}, LockInput)
    yield from _keys()


def _on(
    route: str, view: Callable[..., ResponseReturnValue], summary: str, answers: Mapping[int, Schema | None], body: type[Input] | Schema | None = None
) -> Endpoint:  # fmt: skip
    method, name = route.split()
    refuses = (403, 404, 409, 412) if method != "GET" else (403, 404)
    return Endpoint(method, f"{ITEM}/{name}", f"storage.buckets.{name}.{method.lower()}", view, summary, "Buckets", answers, refuses,
                    body=body.model_json_schema() if isinstance(body, type) else body, aliases=aliases(BUCKET, f"/{{bucket_id}}/{name}"))  # fmt: skip


def _setting(op: Operation, model: type[Input], rules: str = "") -> Callable[..., ResponseReturnValue]:
    def change(bucket_id: str) -> ResponseReturnValue:
        given = read(model).model_dump()
        row: Bucket = run(context(), op, bucket_id, {"configuration": given} if rules else given).row
        return io.answer({"rules": getattr(row, rules)} if rules else represent(context(), BUCKET, row), headers={"ETag": io.etag(row)})

    return change


def _rules(name: str) -> Callable[..., ResponseReturnValue]:
    def show(bucket_id: str) -> ResponseReturnValue:
        only()
        return io.answer({"rules": getattr(find(context(), BUCKET, bucket_id), name)})

    return show


def policy(bucket_id: str) -> ResponseReturnValue:
    """The document as it was given."""
    only()
    row: Bucket = find(context(), BUCKET, bucket_id)
    return io.answer(row.policy["document"] if row.policy else {})


def policy_set(bucket_id: str) -> ResponseReturnValue:
    """Another document."""
    row: Bucket = run(context(), bucket_set_policy, bucket_id, {"document": io.read_object()}).row
    return io.answer(row.policy["document"] if row.policy else {})


def policy_delete(bucket_id: str) -> ResponseReturnValue:
    """No document."""
    run(context(), bucket_set_policy, bucket_id, {"document": {}})
    return io.empty()


def encryption(bucket_id: str) -> ResponseReturnValue:
    """As it is set."""
    only()
    return io.answer(_encryption(find(context(), BUCKET, bucket_id)))


def encryption_set(bucket_id: str) -> ResponseReturnValue:
    """Another one, as a whole."""
    given: EncryptionInput = read(EncryptionInput)
    inputs = {"type": given.type, "bucket_key_enabled": given.bucket_key_enabled} | ({"kms_key": given.key_id} if given.key_id else {})
    return io.answer(_encryption(run(context(), bucket_set_encryption, bucket_id, inputs).row))


def _encryption(row: Bucket) -> dict[str, Any]:
    return {
        "encryption_type": row.encryption_type, "encryption_enabled": row.encryption_type != "none", "kms_key_id": row.kms_key_id,
        "bucket_key_enabled": row.bucket_key_enabled,
    }  # fmt: skip


def block(bucket_id: str) -> ResponseReturnValue:
    """The block as it is."""
    only()
    return io.answer(find(context(), BUCKET, bucket_id).public_access_block or {})


def block_set(bucket_id: str) -> ResponseReturnValue:
    """Another block."""
    given = read(BlockInput).model_dump(exclude_none=True)
    row: Bucket = run(context(), bucket_set_public_access, bucket_id, {"block": given}).row
    return io.answer(row.public_access_block or {})


def object_lock(bucket_id: str) -> ResponseReturnValue:
    """The lock as it is."""
    only()
    return io.answer(_lock(find(context(), BUCKET, bucket_id)))


def object_lock_set(bucket_id: str) -> ResponseReturnValue:
    """Another default retention."""
    given = {name: value for name, value in read(LockInput).model_dump().items() if value}
    row: Bucket = run(context(), bucket_set_object_lock, bucket_id, {"rule": given}).row
    return io.answer(_lock(row))


def _lock(row: Bucket) -> dict[str, Any]:
    return {"enabled": row.object_lock, "mode": None, "days": None, "years": None, **(row.lock_rule or {})}


def statistics(bucket_id: str) -> ResponseReturnValue:
    """What a bucket holds."""
    only()
    row: Bucket = find(context(), BUCKET, bucket_id)
    objects, size = row.total_objects or 0, row.total_size_bytes or 0
    return io.answer({
        "bucket_id": row.id, "total_objects": objects, "total_size_bytes": size, "total_size_gb": round(size / (1 << 30), 3),
        "average_object_size_mb": round(size / objects / MIB, 3) if objects else 0.0, "versioning_enabled": row.versioning == "enabled",
        "encryption_enabled": row.encryption_type != "none",
    })  # fmt: skip


# -- access keys -----------------------------------------------------------------------------------------------------------------------------


def _keys() -> Iterator[Endpoint]:
    own, theirs = "/auth/s3-keys", "/service-accounts/{service_account_id}/s3-keys"
    body = KeyInput.model_json_schema()
    for base, name, tag, refuses in ((own, "auth", "API keys", (403,)), (theirs, "service-accounts", "Service accounts", (403, 404))):
        yield Endpoint(
            "GET", base, f"{name}.s3-keys", keys, "Access keys of the S3 interface, without their secrets", tag, {200: list_schema(KEY)}, refuses
        )
        yield Endpoint("POST", base, f"{name}.s3-keys.create", key_create, "Make an access key; `secret_access_key` is shown this once", tag,
                       {201: WITH_SECRET}, (*refuses, 409), body=body, body_required=False, idempotent=True)  # fmt: skip
        yield Endpoint("DELETE", f"{base}/{{access_key_id}}", f"{name}.s3-keys.delete", key_delete, "End an access key", tag, {204: None}, (403, 404))


def _owner(service_account_id: str) -> User | None:
    return service_account_find(context(), service_account_id).user if service_account_id else None


def keys(service_account_id: str = "") -> ResponseReturnValue:
    """The caller's own, or those of a service account."""
    only()
    owner = _owner(service_account_id)
    rows = s3_keys_of(context(), owner.id if owner is not None else None)
    return io.answer(io.page_of([_show(row) for row in rows], count=len(rows)))


def key_create(service_account_id: str = "") -> ResponseReturnValue:
    """A new one, for the project that the request is about."""
    ctx = context()
    given: KeyInput = read(KeyInput)
    owner = _owner(service_account_id) or ctx.db.get_one(User, ctx.principal.user_id)
    secret, row = key_make(ctx, owner, given.name, project_id=None if service_account_id else ctx.project_id)
    return io.answer({**_show(row), "secret_access_key": secret}, 201, headers={"Location": f"{PREFIX}/auth/s3-keys"})


def key_delete(access_key_id: str, service_account_id: str = "") -> ResponseReturnValue:
    """End one."""
    key_end(context(), access_key_id, owner=_owner(service_account_id))
    return io.empty()


def _show(row: S3AccessKey) -> dict[str, Any]:
    return {
        "access_key_id": row.id, "id": row.id, "name": row.name, "project_id": row.project_id, "is_active": row.is_active,
        "created_at": io.moment(row.created_at), "last_used_at": io.moment(row.last_used_at), "last_used_ip": row.last_used_ip,
    }  # fmt: skip
