"""Replication: what is written into a bucket is written into other ones of the project as well, a little later, under the same version ids.

Rules say what goes where. For each destination, of the rules that fit the one of the highest priority decides, as S3 has it. A change is written down
for each destination in the transaction in which it is made. Since a version is at the same place among those of its key in all buckets, it does not
matter how often it is carried over, nor in which order.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from sqlalchemy import BigInteger, ForeignKey, Index, Integer, String, Text, UniqueConstraint, delete, func, insert, select
from sqlalchemy.orm import Mapped, mapped_column

from portal.kernel import fields as f
from portal.kernel.context import Context
from portal.kernel.db import Base, UtcDateTime, now
from portal.kernel.declare import AskedWork, operation
from portal.kernel.errors import InvalidRequest, NotFound
from portal.kernel.ids import new_id
from portal.storage.access import WRITE, authorize_object, check_key
from portal.storage.engine_steps import refuse_on_engine
from portal.storage.facts import BucketFacts, Version, bucket_by_id, bucket_named
from portal.storage.object_models import KEY_BYTES, Bucket, Key, table_of
from portal.storage.usage import usage_locked

PENDING, COMPLETED, REPLICA, FAILED = "PENDING", "COMPLETED", "REPLICA", "FAILED"
REPLICATE = "storage.bucket.replicate"
REPLICATING = AskedWork(REPLICATE, cancelled="What was carried over stays; the rest follows in the background.")
MOST_RULES, MOST_DESTINATIONS, MOST_TAGS = 100, 10, 10
RULES = f.FieldInfo(f.Document(), "Rules", 'An object with "rules", a list; an empty one ends the replication.')
Rule = Mapping[str, Any]


class BucketReplication(Base):
    """How far the replication of a bucket into another one is."""

    __tablename__ = "bucket_replications"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    bucket_id: Mapped[str] = mapped_column(ForeignKey("buckets.id"))
    destination_id: Mapped[str] = mapped_column(String(64), server_default="")
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)
    # Where the carrying over of what was there before is; done with all of it.
    cursor_key: Mapped[str] = mapped_column(Key, default="")
    cursor_sequence: Mapped[int] = mapped_column(BigInteger, default=-1)
    is_caught_up: Mapped[bool] = mapped_column(default=False)
    copied: Mapped[int] = mapped_column(BigInteger, default=0)
    failures: Mapped[int] = mapped_column(default=0)
    last_error: Mapped[str] = mapped_column(Text, default="")
    next_try_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)
    synced_at: Mapped[datetime | None] = mapped_column(UtcDateTime)

    __table_args__ = (UniqueConstraint("bucket_id", "destination_id"),)


class ReplicaChange(Base):
    """A version that is to be carried over into a bucket."""

    __tablename__ = "replica_changes"

    id: Mapped[int] = mapped_column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True)
    bucket_id: Mapped[str] = mapped_column(String(64))
    destination_id: Mapped[str] = mapped_column(String(64), server_default="")
    key: Mapped[str] = mapped_column(Key)
    sequence: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, default=now)

    __table_args__ = (
        Index("ix_replica_changes_turn", "bucket_id", "destination_id", "id"),
        # For whether a version waits for another destination.
        Index("ix_replica_changes_key", "bucket_id", "key"),
        {"sqlite_autoincrement": True},
    )


CHANGES = table_of(ReplicaChange)
_INSERT = insert(CHANGES)


class RuleInput(BaseModel):
    """A rule as it is given; without a priority, rules count in their order, the first most."""

    model_config = ConfigDict(extra="forbid", strict=True)

    id: str = Field("", max_length=255)
    priority: int | None = Field(None, ge=0, lt=2**31)
    enabled: bool = True
    destination_bucket: str = Field(max_length=64)
    prefix: str = Field("", max_length=KEY_BYTES)
    tags: dict[Annotated[str, Field(min_length=1, max_length=128)], Annotated[str, Field(max_length=256)]] = Field({}, max_length=MOST_TAGS)
    delete_markers: bool = False
    existing: bool = True


def replication_rules_of(ctx: Context, bucket: Bucket, configuration: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rules in a document with the buckets that they name, the one that counts most first. Raises InvalidRequest with what is wrong."""
    given = configuration.get("rules")
    if set(configuration) != {"rules"} or not isinstance(given, list) or len(given) > MOST_RULES:
        raise InvalidRequest.fields({"rules": [f"must be a list of at most {MOST_RULES} objects."]})
    found = [_rule(place, each) for place, each in enumerate(given)]
    kept = [
        _kept(ctx, bucket, place, each.model_copy(update={"priority": len(given) - place if each.priority is None else each.priority}))
        for place, each in enumerate(found)
    ]
    for name, what in (("id", "id"), ("priority", "priority")):
        if len({each[name] for each in kept}) != len(kept):
            raise InvalidRequest.fields({"rules": [f"two of them have the same {what}."]})
    if len({each["bucket_id"] for each in kept}) > MOST_DESTINATIONS:
        raise InvalidRequest.fields({"rules": [f"they may name {MOST_DESTINATIONS} buckets at most."]})
    return sorted(kept, key=lambda each: -int(each["priority"]))


def _rule(place: int, given: object) -> RuleInput:
    try:
        return RuleInput.model_validate(given)
    except ValidationError as error:
        raise InvalidRequest.fields({f"rules.{place}.{'.'.join(map(str, each['loc']))}": [each["msg"]] for each in error.errors()}) from error


def _kept(ctx: Context, bucket: Bucket, place: int, rule: RuleInput) -> dict[str, Any]:
    def refuse(name: str, what: str) -> InvalidRequest:
        return InvalidRequest.fields({f"rules.{place}.{name}": [what]})

    try:
        target = bucket_by_id(ctx.db, rule.destination_bucket) or bucket_named(ctx.db, rule.destination_bucket)
    except NotFound:
        target = None
    if target is None or target.project_id != bucket.project_id or target.id == bucket.id:
        raise refuse("destination_bucket", "must be another bucket of the same project.")
    if bucket.versioning != "enabled" or target.versioning != "enabled":
        raise refuse("destination_bucket", "needs versions, and so does this bucket: switch versioning on in both.")
    if bucket.object_lock and not target.object_lock:
        raise refuse("destination_bucket", "needs object lock, since this bucket has it.")
    if rule.tags and rule.delete_markers:
        raise refuse("delete_markers", "does not go with tags, which marks of deletion have none of.")
    if rule.prefix:
        check_key(rule.prefix)
    said = rule.model_dump(exclude={"destination_bucket"})
    return {**said, "id": rule.id or f"rule-{place + 1}", "bucket_id": target.id, "bucket_name": target.name}


def shown(rules: Sequence[Rule] | None) -> list[dict[str, Any]]:
    """The rules as they are given."""
    names = ("id", "priority", "enabled", "prefix", "tags", "delete_markers", "existing")
    return [{**{name: each[name] for name in names}, "destination_bucket": each["bucket_name"]} for each in rules or ()]


@operation(Bucket, "set_replication", label="Set replication", needs="manage", icon="copy", in_menu=False)
def bucket_set_replication(ctx: Context, bucket: Bucket, *, configuration: Annotated[dict[str, Any], RULES]) -> None:
    """Carry what is written into a bucket over into others of the project, or end that; all of them keep versions."""
    refuse_on_engine(ctx, "replication")
    # Writes see either all of it or nothing.
    usage_locked(ctx.db, bucket.id)
    rules, before = replication_rules_of(ctx, bucket, configuration), bucket.replication or ()
    for each in rules:
        authorize_object(ctx, bucket_named(ctx.db, each["bucket_name"]), WRITE, each["prefix"])
    present = {row.destination_id: row for row in ctx.db.scalars(select(BucketReplication).where(BucketReplication.bucket_id == bucket.id))}
    wanted = dict.fromkeys(str(each["bucket_id"]) for each in rules)
    for gone in present.keys() - wanted.keys():
        ctx.db.delete(present[gone])
        ctx.db.execute(delete(CHANGES).where(CHANGES.c.bucket_id == bucket.id, CHANGES.c.destination_id == gone))
    for destination in wanted:
        mine, theirs = ([each for each in some if each["bucket_id"] == destination] for some in (rules, before))
        begins = any(each["existing"] and each["enabled"] for each in mine)
        row = present.get(destination)
        if row is None:
            ctx.db.add(BucketReplication(id=new_id("rep"), bucket_id=bucket.id, destination_id=destination, is_caught_up=not begins))
        elif begins and mine != theirs:
            # Whatever another rule says is looked for from the beginning; what is there already is not carried over twice.
            row.cursor_key, row.cursor_sequence, row.is_caught_up, row.created_at, row.next_try_at = "", -1, False, now(), now()
    bucket.replication = rules or None


def destinations_of(bucket: BucketFacts, key: str, tags: Mapping[str, str], *, is_marker: bool = False, existing: bool = False) -> list[str]:
    """Ids of the buckets into which a version is to be carried over; with `existing`, one that was there before the rule."""
    deciding: dict[str, Rule] = {}
    for rule in bucket.replication or ():
        if rule["enabled"] and key.startswith(rule["prefix"]) and all(tags.get(name) == value for name, value in rule["tags"].items()):
            deciding.setdefault(rule["bucket_id"], rule)
    return [name for name, rule in deciding.items() if (rule["delete_markers"] or not is_marker) and (rule["existing"] or not existing)]


def replicate(ctx: Context, bucket: BucketFacts, version: Version) -> None:
    """Write down that a version was written or changed and is to be carried over, within the caller's transaction."""
    if version.replication == REPLICA or not bucket.replication:
        return
    at = {"bucket_id": bucket.id, "key": version.key, "sequence": version.sequence, "created_at": now()}
    found = destinations_of(bucket, version.key, version.tags, is_marker=version.is_marker)
    if found:
        ctx.db.execute(_INSERT, [{**at, "destination_id": each} for each in found])


def replication_state(ctx: Context, bucket: Bucket) -> dict[str, Any]:
    """The rules of a bucket, and how far behind the other buckets are."""
    rows = {row.destination_id: row for row in ctx.db.scalars(select(BucketReplication).where(BucketReplication.bucket_id == bucket.id))}
    query = select(ReplicaChange.destination_id, func.count(), func.min(ReplicaChange.created_at)).where(ReplicaChange.bucket_id == bucket.id)
    waiting = {name: (count, oldest) for name, count, oldest in ctx.db.execute(query.group_by(ReplicaChange.destination_id))}
    rules = [
        {"replication_id": each["id"], **said, "status": _status(each, row), "copied": row.copied, "last_error": row.last_error}
        for each, said in zip(bucket.replication or (), shown(bucket.replication), strict=True)
        if (row := rows.get(each["bucket_id"])) is not None
    ]
    behind = [*(oldest for _, oldest in waiting.values()), *(row.created_at for row in rows.values() if not row.is_caught_up)]
    lag = max(0, round((now() - min(behind)).total_seconds())) if behind else 0
    return {
        "rules": rules, "lag_seconds": lag if rules else None, "waiting": sum(count for count, _ in waiting.values()),
        "last_synced_at": min((row.synced_at for row in rows.values() if row.synced_at), default=None),
        "last_error": next((row.last_error for row in rows.values() if row.last_error), ""),
    }  # fmt: skip


def _status(rule: Rule, row: BucketReplication) -> str:
    return "disabled" if not rule["enabled"] else "failing" if row.last_error else "active" if row.is_caught_up else "copying"
