"""Who may do what in a bucket: the policies of IAM decide, and where these say nothing, what the bucket grants to others."""

from collections.abc import Mapping, Sequence

from portal.kernel import audit
from portal.kernel.authz import Decision, Target, beyond_limits, decide
from portal.kernel.context import Context
from portal.kernel.db import transaction
from portal.kernel.errors import Forbidden
from portal.kernel.ids import is_storable
from portal.storage.actions import BYPASS, DELETE, HOLD, LIST, PUBLISH, READ, READ_ACL, RETAIN, WRITE
from portal.storage.errors import InvalidKey, KeyTooLong
from portal.storage.facts import BucketFacts
from portal.storage.grants import Grant, blocks, granting
from portal.storage.object_models import KEY_BYTES
from portal.storage.policies import policy_is_public, verdict

__all__ = [
    "BYPASS", "DELETE", "HOLD", "LIST", "PUBLISH", "READ", "READ_ACL", "RETAIN", "WRITE", "authorize_object", "check_key", "check_new_key", "decide_object", "leads_out",
    "note_refusal", "subject_of",
]  # fmt: skip
# What no list of access gives.
BY_POLICY_ALONE = {
    "GetObjectTagging",
    "GetObjectVersionTagging",
    "PutObjectTagging",
    "PutObjectVersionTagging",
    "GetObjectAttributes",
    "GetObjectVersionAttributes",
    "DeleteObjectVersion",
}
OWN_POLICY = "the bucket's policy"


def check_key(key: str) -> None:
    """Raise KeyTooLong or InvalidKey for what can be no key."""
    if not is_storable(key) or not key:
        raise InvalidKey("A key is not empty and has neither NUL nor lone surrogates.")
    if len(key.encode()) > KEY_BYTES:
        raise KeyTooLong(f"A key has at most {KEY_BYTES:,} bytes.")


def check_new_key(key: str) -> None:
    """The same for what is to be written: a client that keeps a bucket in a directory must not be led out of it."""
    check_key(key)
    if leads_out(key):
        raise InvalidKey("The relative segments of the key lead out of the bucket.")


def leads_out(key: str) -> bool:
    """Whether `..` in a key leads out of the bucket."""
    depth = 0
    for segment in key.split("/") if ".." in key else ():
        depth += -1 if segment == ".." else segment not in {"", "."}
        if depth < 0:
            return True
    return False


def decide_object(
    ctx: Context, bucket: BucketFacts, action: str, key: str, *, owner_id: str | None = None, tags: Mapping[str, str] | None = None, grants: Sequence[Grant] = (),
    called: str = "",
) -> Decision:  # fmt: skip
    """Whether the caller may do an action on an object, or under a prefix for a listing; `called` is what S3 calls a special kind of it."""
    target = Target(bucket.project_id, owner_id, id=f"{bucket.name}/{key}", name=key, tags=tags or {}, label=f"{bucket.name}/{key}"[:200])
    found = decide(ctx, action, target)
    own, sid = verdict(bucket.policy, ctx, bucket.name, action, key, called=called) if not ctx.principal.is_system else (None, "")
    if own is False:
        return Decision(allowed=False, action=action, policy=OWN_POLICY, statement=sid, because=f"Statement {sid} of {OWN_POLICY} denies it.")
    if found.allowed or found.statement:
        # What a statement denies, nothing else allows.
        return found
    if (beyond := beyond_limits(ctx, action, target)) is not None:
        # Nor what a limit does not: a token's scopes, a project's boundary.
        return beyond
    if own and not (blocks(bucket, "restrict_public_buckets") and policy_is_public(bucket.policy) and not _is_inside(ctx, bucket)):
        return Decision(allowed=True, action=action, policy=OWN_POLICY, statement=sid)
    if called not in BY_POLICY_ALONE and (granted := granting(ctx, bucket, action, key, (owner_id, grants))) is not None:
        return Decision(allowed=True, action=action, policy=f"the ACL of the {granted[0]}", statement=granted[1])
    return found


def _is_inside(ctx: Context, bucket: BucketFacts) -> bool:
    """Whether the caller has a role in the bucket's project."""
    return any(grant.project_id in {None, bucket.project_id} for grant in ctx.principal.grants)


def authorize_object(
    ctx: Context, bucket: BucketFacts, action: str, key: str, *, owner_id: str | None = None, tags: Mapping[str, str] | None = None, grants: Sequence[Grant] = (),
    called: str = "",
) -> Decision:  # fmt: skip
    """Raise Forbidden unless the caller may. A refusal is written down where the bucket records data events."""
    found = decide_object(ctx, bucket, action, key, owner_id=owner_id, tags=tags, grants=grants, called=called)
    if not found.allowed:
        raise Forbidden(
            f"{action} on {bucket.name}/{key[:200]} is not allowed. {found.because}",
            details={"action": action, "reason": found.because, "policy": found.policy, "statement": found.statement},
        )
    return found


def note_refusal(ctx: Context, bucket: BucketFacts, action: str, key: str, error: Forbidden) -> None:
    """Write a refusal down, in a transaction of its own, if the bucket records data events."""
    if bucket.data_events and not error.is_audited:
        with transaction(ctx.db):
            audit.record(ctx, action, subject_of(bucket, key), status="denied", error=error.message, details=error.details)
        error.is_audited = True


def subject_of(bucket: BucketFacts, key: str) -> audit.Subject:
    """An object in the audit log."""
    return audit.Subject("storage.object", bucket.id, f"{bucket.name}/{key}", bucket.project_id)
