"""Object lock: versions that nobody deletes until a moment, or as long as there is a legal hold on them.

GOVERNANCE gives way to whoever has the permission to pass it and says so; COMPLIANCE to nobody, administrators included. Every deletion of a version
goes through `refuse_locked`, whoever deletes: clients, rules for the life of objects, jobs. A bucket is deleted only once nothing in it is locked.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any

from sqlalchemy import ColumnElement, and_, exists, func, select
from sqlalchemy.orm import Session

from portal.kernel import fields as f
from portal.kernel.context import Context
from portal.kernel.db import now
from portal.kernel.declare import operation
from portal.kernel.errors import InvalidRequest
from portal.kernel.leaving import in_words
from portal.storage.engine_steps import refuse_on_engine
from portal.storage.errors import BucketLocked, NoObjectLock, ObjectLocked
from portal.storage.facts import VERSIONS, BucketFacts, Version, bucket_by_id
from portal.storage.object_models import HELD, Bucket
from portal.storage.usage import usage_locked

if TYPE_CHECKING:
    from portal.kernel.resource import ResourceType

GOVERNANCE, COMPLIANCE = MODES = ("GOVERNANCE", "COMPLIANCE")
LONGEST = {"days": 36_500, "years": 100}
RULE = f.FieldInfo(
    f.Document(),
    "Default retention",
    f'An object with "mode" ({" or ".join(MODES)}) and "days" or "years"; an empty one for none.',
    aliases=("default_retention",),
)


@dataclass(frozen=True, slots=True)
class Lock:
    """What is said of a version's deletion: a mode with the moment until which it holds, or an empty one; a legal hold, or no word of one."""

    mode: str = ""
    until: datetime | None = None
    hold: bool | None = None

    def columns(self) -> dict[str, Any]:
        """As a row keeps it."""
        return {"lock_mode": self.mode, "retain_until": self.until, "legal_hold": self.hold}

    @property
    def is_said(self) -> bool:
        """Whether anything is said."""
        return bool(self.mode) or self.hold is not None


FREE = Lock()


def lock_checked(mode: str, until: datetime | None) -> None:
    """Raise InvalidRequest for a retention that is none."""
    if mode not in MODES or until is None:
        raise InvalidRequest.fields({"retention": [f"needs a mode ({' or '.join(MODES)}) and the moment until which it holds."]})
    if problem := moment_problem(until):
        raise InvalidRequest.fields({"retain_until": [f"{problem}."]})


def moment_problem(until: datetime) -> str:
    """Why nothing can be kept until a moment; empty where it can."""
    if until <= now():
        return "must be in the future"
    return f"must be within {LONGEST['days']:,} days" if until > now() + timedelta(days=LONGEST["days"]) else ""


def refuse_without_lock(bucket: BucketFacts) -> None:
    """Raise NoObjectLock for a bucket that has none."""
    if not bucket.object_lock:
        raise NoObjectLock(f"{bucket.name} has no object lock: switch it on first.")


def lock_of_new(bucket: BucketFacts, asked: Lock) -> Lock:
    """The lock of a version that is written: what is asked for, or what the bucket's rule says where no mode is."""
    rule = bucket.lock_rule
    if asked.mode or not rule:
        return asked
    return Lock(rule["mode"], now() + length_of(rule), asked.hold)


def length_of(rule: Mapping[str, Any]) -> timedelta:
    """How long a rule keeps what is written."""
    return timedelta(days=rule["days"] if "days" in rule else 365 * rule["years"])


def is_retained(version: Version) -> bool:
    """Whether a retention of the version holds now."""
    return bool(version.lock_mode) and version.retain_until is not None and version.retain_until > now()


def refuse_locked(version: Version, *, bypass: bool = False) -> None:
    """Raise ObjectLocked for a version that must not be deleted now; with `bypass`, a retention that gives way does."""
    if version.legal_hold:
        raise ObjectLocked(f"{version.key[:200]} is under a legal hold: version {version.version_id} stays until that is lifted.")
    if is_retained(version) and not (bypass and version.lock_mode == GOVERNANCE):
        raise ObjectLocked(
            f"Version {version.version_id} of {version.key[:200]} is kept by object lock ({version.lock_mode}) until {version.retain_until:%Y-%m-%d %H:%M} UTC.",
            details={"mode": version.lock_mode, "retain_until": str(version.retain_until)},
        )


def refuse_weaker(version: Version, mode: str, until: datetime | None) -> bool:
    """Whether a retention would be weakened in a way that needs the permission to pass it. Raises ObjectLocked where nobody may."""
    if not is_retained(version) or version.retain_until is None:
        return False
    if mode == version.lock_mode and until is not None and until >= version.retain_until:
        return False
    if version.lock_mode == COMPLIANCE:
        raise ObjectLocked(
            f"{version.key[:200]} is kept in mode {COMPLIANCE} until {version.retain_until:%Y-%m-%d %H:%M} UTC, which only grows longer."
        )
    return True


# -- buckets ---------------------------------------------------------------------------------------------------------------------------------


@operation(Bucket, "set_object_lock", label="Set object lock", needs="manage", icon="lock", in_menu=False)
def bucket_set_object_lock(ctx: Context, bucket: Bucket, *, rule: Annotated[dict[str, Any], RULE]) -> None:
    """Switch object lock on, for good, and say how long every new version is kept that has no retention of its own. The bucket keeps versions."""
    refuse_on_engine(ctx, "object lock")
    # Writes see either all of it or nothing.
    usage_locked(ctx.db, bucket.id)
    if bucket.versioning != "enabled":
        raise BucketLocked(f"{bucket.name} keeps no versions: switch versioning on first.")
    targets = dict.fromkeys(str(each["bucket_id"]) for each in bucket.replication or ()) if not bucket.object_lock else {}
    for target in filter(None, (bucket_by_id(ctx.db, each) for each in targets)):
        if not target.object_lock:
            raise BucketLocked(
                f"{bucket.name} is replicated to {target.name}, which has no object lock: switch it on there first, or end the replication."
            )
    bucket.object_lock, bucket.lock_rule = True, rule_checked(rule)


def rule_checked(rule: Mapping[str, Any]) -> dict[str, Any] | None:
    """A rule as it is kept; None for an empty one. Raises InvalidRequest."""
    if not rule:
        return None
    length = next((name for name in LONGEST if name in rule), "")
    if set(rule) != {"mode", length} or rule["mode"] not in MODES:
        raise InvalidRequest.fields({"rule": [f"has a mode ({' or '.join(MODES)}), and days or years."]})
    count = rule[length]
    if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= LONGEST[length]:
        raise InvalidRequest.fields({f"rule.{length}": [f"must be 1 to {LONGEST[length]:,}."]})
    return dict(rule)


def _held() -> ColumnElement[bool]:
    """What is kept now; the first part is that of the index."""
    return and_(HELD, VERSIONS.c.legal_hold.is_(True) | (VERSIONS.c.retain_until > now()))


def refuse_held(session: Session, bucket: Bucket) -> None:
    """Raise BucketLocked for a bucket in which a version is kept from deletion, whatever its mode."""
    kept = select(func.count(), func.max(VERSIONS.c.retain_until)).where(VERSIONS.c.bucket_id == bucket.id, _held())
    count, until = session.execute(kept).one()
    if count:
        raise BucketLocked(f"{count:,} versions in {bucket.name} are kept by object lock{_until(until)}: they go first.", details={"versions": count})


def _until(moment: datetime | None) -> str:
    return f", the last of them until {moment:%Y-%m-%d %H:%M} UTC" if moment is not None and moment > now() else ""


def buckets_held(ctx: Context, rtype: "ResourceType", where: Sequence[ColumnElement[bool]]) -> list[str]:
    """Which of some buckets cannot be deleted because of what is kept in them, in words."""
    kept = exists().where(VERSIONS.c.bucket_id == Bucket.id, _held())
    words = in_words(ctx, rtype, *where, kept)
    if not words:
        return []
    latest = select(func.max(VERSIONS.c.retain_until)).join(Bucket, Bucket.id == VERSIONS.c.bucket_id).where(*where, _held())
    return [f"{words} kept by object lock{_until(ctx.db.scalar(latest))}: a retention or a legal hold on what is in there has not ended."]
