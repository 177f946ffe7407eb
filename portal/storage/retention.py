"""Retention and legal holds of versions: said, weakened by whoever may, and told. What they keep is in `locks`."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from portal.kernel.context import Context
from portal.storage.access import BYPASS, HOLD, RETAIN
from portal.storage.errors import ObjectLocked
from portal.storage.facts import BucketFacts, Version
from portal.storage.locks import lock_checked, refuse_weaker, refuse_without_lock
from portal.storage.objects import object_say
from portal.storage.writing import Writing

Changed = tuple[BucketFacts, Version]


def retention_set(
    ctx: Context, where: tuple[str, str, str], mode: str, until: datetime | None, *, bypass: bool = False
) -> Changed:  # fmt: skip
    """Say until when the version at a (bucket, key, version) is kept, or with an empty mode that it is not.

    Raises NoObjectLock, InvalidRequest, Forbidden, ObjectLocked for what nobody may weaken, or not without `bypass`, and what `object_say` raises.
    """
    if mode:
        lock_checked(mode, until)

    def say(writing: Writing, row: Version) -> Mapping[str, Any]:
        refuse_without_lock(writing.bucket)
        is_weaker = refuse_weaker(row, mode, until)
        if is_weaker and not bypass:
            raise ObjectLocked(
                f"{row.key[:200]} is kept until {row.retain_until:%Y-%m-%d %H:%M} UTC; to keep it for less, ask to pass the retention."
            )
        if is_weaker:
            writing.authorize(BYPASS, row.key, owner_id=row.owner_id, tags=row.tags)
            writing.tell(BYPASS, row.key, {"version_id": row.version_id}, always=True)
        return {"lock_mode": mode, "retain_until": until if mode else None}

    return object_say(ctx, *where, RETAIN, say=say)


def hold_set(ctx: Context, where: tuple[str, str, str], *, hold: bool) -> Changed:
    """Put a legal hold on the version at a (bucket, key, version), or lift it. Raises NoObjectLock, Forbidden and what `object_say` raises."""

    def say(writing: Writing, _row: Version) -> Mapping[str, Any]:
        refuse_without_lock(writing.bucket)
        return {"legal_hold": hold}

    return object_say(ctx, *where, HOLD, say=say)
