"""Lists of access: who else is let in, to a bucket or to an object, and what keeps such lists from letting everybody in.

A list is one of a few words, or grants one by one. What it gives to the owner is kept and shown and decides nothing: policies do. Where the owner of
the bucket owns all that is in it (`BucketOwnerEnforced`), lists do not count and none is set.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from portal.identity.models import User
from portal.kernel.context import Context
from portal.kernel.errors import Forbidden, InvalidRequest
from portal.storage.actions import DELETE, LIST, PUBLISH, READ, READ_ACL, WRITE
from portal.storage.errors import AclUnsupported
from portal.storage.object_models import CUSTOM, OWNERSHIP

if TYPE_CHECKING:
    from portal.storage.facts import BucketFacts
    from portal.storage.object_models import Bucket

# (the id of a user or one of the groups, permission).
Grant = tuple[str, str]
ALL, SIGNED_IN, LOGGER = "all", "signed-in", "log-delivery"
PUBLIC = frozenset({ALL, SIGNED_IN})
FULL = "FULL_CONTROL"
PERMISSIONS = ("READ", "WRITE", "READ_ACP", "WRITE_ACP", FULL)
CANNED: Mapping[str, tuple[Grant, ...]] = {
    "private": (), "public-read": ((ALL, "READ"),), "public-read-write": ((ALL, "READ"), (ALL, "WRITE")), "authenticated-read": ((SIGNED_IN, "READ"),),
}  # fmt: skip
OWNER_READS, OWNER_CONTROLS = "bucket-owner-read", "bucket-owner-full-control"
# What gives nothing to anybody but the owner of the bucket.
HARMLESS = frozenset({"private", OWNER_READS, OWNER_CONTROLS})
OF_BUCKET: Mapping[str, frozenset[str]] = {LIST: frozenset({"READ", FULL}), WRITE: frozenset({"WRITE", FULL}), DELETE: frozenset({"WRITE", FULL})}
OF_OBJECT: Mapping[str, frozenset[str]] = {READ: frozenset({"READ", FULL})}
OF_LISTS: Mapping[str, frozenset[str]] = {READ_ACL: frozenset({"READ_ACP", FULL}), PUBLISH: frozenset({"WRITE_ACP", FULL})}
# Of what S3 tells apart, lists give this; other things go by policies alone.
GIVEN: Mapping[str, frozenset[str]] = {
    READ: frozenset({"s3:GetObject", "s3:GetObjectVersion"}), WRITE: frozenset({"s3:PutObject", "s3:AbortMultipartUpload", "s3:ListMultipartUploadParts"}),
    DELETE: frozenset({"s3:DeleteObject"}),
}  # fmt: skip
MOST = 100
ENFORCED, PREFERRED = OWNERSHIP[:2]
FLAGS = ("block_public_acls", "ignore_public_acls", "block_public_policy", "restrict_public_buckets")
BLOCKED = dict.fromkeys(FLAGS, True)


def grants_of(acl: str, grants: Sequence[Sequence[str]] | None) -> list[Grant]:
    """What a list gives to others, the owner's own entries included where they are kept."""
    return list(CANNED[acl]) if acl in CANNED else [(each[0], each[1]) for each in grants or ()]


def is_public(grants: Sequence[Grant]) -> bool:
    """Whether everybody, or everybody signed in, is given something."""
    return any(grantee in PUBLIC for grantee, _ in grants)


def blocks(bucket: "BucketFacts | Bucket", flag: str) -> bool:
    """Whether a bucket's public-access block has a flag."""
    return bool((bucket.public_access_block or {}).get(flag))


def granting(
    ctx: Context, bucket: "BucketFacts", action: str, key: str, of_object: tuple[str | None, Sequence[Grant]], *, asked: str
) -> tuple[str, str] | None:  # fmt: skip
    """(whose list, which permission) allows an action, `asked` as S3 calls it; None where none does. `of_object` is its owner and what its list gives."""
    if bucket.ownership == ENFORCED or (action in GIVEN and asked not in GIVEN[action]):
        return None
    on_bucket = action in OF_BUCKET or (action in OF_LISTS and not key)
    wanted = OF_LISTS.get(action) or (OF_BUCKET if on_bucket else OF_OBJECT).get(action, frozenset())
    who: set[str | None] = {ALL} if ctx.principal.user_id is None else {ALL, SIGNED_IN, ctx.principal.user_id}
    who -= PUBLIC if blocks(bucket, "ignore_public_acls") else set()
    # Somebody who has left the project has left their objects to it.
    who -= {bucket.owner_id if on_bucket else of_object[0]}
    for grantee, permission in grants_of(bucket.acl, bucket.grants) if on_bucket else of_object[1]:
        if grantee in who and permission in wanted:
            return "bucket" if on_bucket else "object", permission
    return None


def normalised(acl: str, grants: Sequence[Grant] | None, owner_id: str | None) -> tuple[str, list[list[str]] | None]:
    """(the word, the grants where no word says what they do) as rows keep them."""
    if grants is None:
        return acl, None
    given = set(grants)
    word = next((name for name, of_word in CANNED.items() if given == {(owner_id, FULL), *of_word}), CUSTOM)
    return word, [list(each) for each in grants] if word == CUSTOM else None


def acl_columns(session: Session, bucket: "BucketFacts", acl: str, grants: Sequence[Grant] | None, owner_id: str | None) -> dict[str, Any]:
    """The list of a new object as its row keeps it, and who owns it. Raises AclUnsupported or Forbidden."""
    refuse_acl(bucket, acl, grants)
    if grants is not None or acl not in HARMLESS:
        word, kept = normalised(acl, grants_checked(session, grants) if grants is not None else None, owner_id)
        return {"owner_id": owner_id, "acl": word, "grants": kept}
    if acl == OWNER_CONTROLS and bucket.ownership == PREFERRED:
        owner_id = bucket.owner_id
    if acl == "private" or bucket.owner_id in {None, owner_id} or bucket.ownership == ENFORCED:
        return {"owner_id": owner_id, "acl": "private", "grants": None}
    given = [[bucket.owner_id, "READ" if acl == OWNER_READS else FULL]]
    return {"owner_id": owner_id, "acl": CUSTOM, "grants": [*([[owner_id, FULL]] if owner_id else []), *given]}


def refuse_acl(bucket: "BucketFacts | Bucket", acl: str, grants: Sequence[Grant] | None) -> None:
    """Raise AclUnsupported where lists do not count, and Forbidden for one that lets everybody in where that is blocked."""
    # What clients read of it they may write again: that its owner has full control says nothing new.
    is_new = acl not in {"private", OWNER_CONTROLS} if grants is None else {tuple(each) for each in grants} != {(bucket.owner_id, FULL)}
    if bucket.ownership == ENFORCED and is_new:
        raise AclUnsupported(
            f"{bucket.name} has no lists of access: its owner owns all that is in it. Use a policy, or change the ownership of objects."
        )
    if blocks(bucket, "block_public_acls") and is_public(grants if grants is not None else grants_of(acl, None)):
        raise Forbidden(f"{bucket.name} blocks lists that let everybody in: change its public-access block first.")


def grants_checked(session: Session, grants: Sequence[Sequence[str]]) -> list[Grant]:
    """Grants as they are kept, each once. Raises InvalidRequest for a permission or somebody there is not, and for too many."""
    found = list(dict.fromkeys((each[0], each[1]) for each in grants))
    if len(found) > MOST:
        raise InvalidRequest.fields({"grants": [f"may be {MOST} at most."]})
    if odd := [permission for _, permission in found if permission not in PERMISSIONS]:
        raise InvalidRequest.fields({"grants": [f"{odd[0][:64]} is none of {', '.join(PERMISSIONS)}."]})
    people = {grantee for grantee, _ in found} - {*PUBLIC, LOGGER}
    known = set(session.scalars(select(User.id).where(User.id.in_(people)))) if people else set()
    if unknown := people - known:
        raise InvalidRequest.fields({"grants": [f"Invalid id: nobody has {min(unknown)[:80]!r}."]})
    return found
