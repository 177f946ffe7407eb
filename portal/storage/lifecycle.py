"""Rules for the life of objects: what expires, which older versions go, which uploads are given up; and the daily work that follows them.

A day lasts as long as `S3_LIFECYCLE_DAY_S` says. Expiry counts from the writing of a version, of older ones from the moment they were replaced.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import groupby
from operator import attrgetter
from typing import Annotated, Any

from sqlalchemy import select

from portal.kernel.context import Context
from portal.kernel.db import now
from portal.kernel.declare import operation
from portal.kernel.errors import InvalidRequest
from portal.storage.access import DELETE
from portal.storage.configurations import RULES, checked_rules
from portal.storage.engine_steps import ON_ENGINE, on_engine
from portal.storage.facts import VERSION_COLUMNS, VERSIONS, Version, bucket_by_id, newest, version_at
from portal.storage.listing import successor
from portal.storage.object_models import Bucket, ObjectUpload
from portal.storage.objects import remove
from portal.storage.uploads import give_up
from portal.storage.versions import take_away
from portal.storage.writing import Writing, write

FIELDS = {
    "id", "enabled", "prefix", "tags", "larger_than", "smaller_than", "expire_days", "expire_at", "expire_markers", "noncurrent_days", "noncurrent_keep",
    "abort_days",
}  # fmt: skip
ACTIONS = FIELDS - {"id", "enabled", "prefix", "tags", "larger_than", "smaller_than", "noncurrent_keep"}
LOCAL_ONLY = {"larger_than", "smaller_than", "noncurrent_keep"}
BATCH = 500
LONGEST_DAYS = 36_500
Rule = Mapping[str, Any]


@operation(Bucket, "set_lifecycle", label="Set rules for the life of objects", needs="delete", icon="clock", in_menu=False, **ON_ENGINE)
def bucket_set_lifecycle(ctx: Context, bucket: Bucket, *, configuration: Annotated[dict[str, Any], RULES]) -> None:
    """Say what the portal deletes by itself, and when; without rules it deletes nothing."""
    kept = []
    for place, rule in enumerate(checked_rules(configuration)):
        problem = _problem(rule) or (_unsayable(rule) if on_engine(ctx.settings) else "")
        if problem:
            raise InvalidRequest.fields({f"rules.{place}": [problem]})
        kept.append({"id": f"rule-{place + 1}", "enabled": True, "prefix": "", "tags": {}, **rule})
    if len({each["id"] for each in kept}) != len(kept):
        raise InvalidRequest.fields({"rules": ["two of them have the same id."]})
    bucket.lifecycle_rules = kept


def _unsayable(rule: Rule) -> str:
    """What an external engine does not do; empty if it does all of it."""
    if asked := LOCAL_ONLY & {name for name, value in rule.items() if value is not None}:
        return f"{', '.join(sorted(asked))}: the engine for objects of this installation cannot do that."
    if len({"expire_days", "expire_at", "expire_markers"} & {name for name, value in rule.items() if value}) > 1:
        return "the engine for objects takes one of expire_days, expire_at and expire_markers in a rule."
    return ""


def _problem(rule: Rule) -> str:
    """What is wrong with a rule; empty if nothing is."""
    if set(rule) - FIELDS or not ACTIONS & {name for name, value in rule.items() if value}:
        return f"may have {', '.join(sorted(FIELDS))}, and needs one of {', '.join(sorted(ACTIONS))}."
    for name in ("expire_days", "noncurrent_days", "abort_days", "noncurrent_keep", "larger_than", "smaller_than"):
        value = rule.get(name)
        lowest, highest = (0, 2**53) if name in {"larger_than", "smaller_than"} else (1, LONGEST_DAYS)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or not lowest <= value <= highest):
            return f"{name} must be a whole number from {lowest} to {highest}."
    if not isinstance(rule.get("id", ""), str) or len(rule.get("id", "")) > 255 or not isinstance(rule.get("prefix", ""), str):  # noqa: PLR2004 - a name's length
        return "id and prefix must be texts."
    tags = rule.get("tags", {})
    if not isinstance(tags, dict) or not all(isinstance(each, str) for pair in tags.items() for each in pair):
        return "tags must be an object of texts."
    return _date_problem(rule.get("expire_at"))


def _date_problem(given: object) -> str:
    try:
        moment = datetime.fromisoformat(str(given)) if given else now()
    except ValueError:
        return "expire_at must be a date such as 2027-01-01T00:00:00Z."
    return "" if moment.tzinfo is not None else "expire_at needs its time zone."


@dataclass(frozen=True, slots=True)
class Followed:
    """What the rules of all buckets led to."""

    expired: int = 0
    versions: int = 0
    uploads: int = 0

    def __add__(self, other: "Followed") -> "Followed":
        return Followed(self.expired + other.expired, self.versions + other.versions, self.uploads + other.uploads)


def lifecycle_follow(ctx: Context) -> Followed:
    """Do what the rules of all buckets ask for now."""
    rules = select(Bucket.id, Bucket.lifecycle_rules).where(Bucket.deleted_at.is_(None)).order_by(Bucket.id)
    found = Followed()
    # What was read before may be old.
    ctx.db.rollback()
    for bucket_id, of_bucket in ctx.db.execute(rules).all():
        for rule in (each for each in of_bucket or () if each["enabled"]):
            found += _Follow(ctx, bucket_id, rule).run()
    return found


class _Follow:
    """One rule of one bucket."""

    def __init__(self, ctx: Context, bucket_id: str, rule: Rule) -> None:
        self._ctx, self._bucket_id, self._rule = ctx, bucket_id, rule
        self._now = now()

    def _before(self, name: str) -> datetime | None:
        days = self._rule.get(name)
        return self._now - timedelta(seconds=days * self._ctx.settings.s3_lifecycle_day_s) if days else None

    def run(self) -> Followed:
        """All that it asks for."""
        edge = self._before("expire_days")
        if self._rule.get("expire_at") and datetime.fromisoformat(self._rule["expire_at"]) <= self._now:
            edge = self._now
        done = Followed()
        for versions in self._keys():
            done += self._of_key(versions, edge)
        return done + Followed(uploads=self._give_up(self._before("abort_days")))

    def _keys(self) -> Iterator[Sequence[Version]]:
        """All versions of each key that the rule speaks of, the newest first."""
        if not any(self._rule.get(name) for name in ("expire_days", "expire_at", "expire_markers", "noncurrent_days")):
            return
        after, end = ("", -1), successor(self._rule["prefix"])
        base = select(*VERSION_COLUMNS).where(VERSIONS.c.bucket_id == self._bucket_id, VERSIONS.c.key >= self._rule["prefix"])
        base = base.where(VERSIONS.c.key < end) if end else base
        held: list[Version] = []
        while True:
            from_here = base.where((VERSIONS.c.key > after[0]) | ((VERSIONS.c.key == after[0]) & (VERSIONS.c.sequence > after[1])))
            rows = [Version(*row) for row in self._ctx.db.execute(from_here.order_by(VERSIONS.c.key, VERSIONS.c.sequence).limit(BATCH))]
            self._ctx.db.rollback()
            groups = [list(group) for _, group in groupby([*held, *rows], key=attrgetter("key"))]
            if len(rows) < BATCH:
                yield from groups
                return
            after = (rows[-1].key, rows[-1].sequence)
            held = groups.pop()
            yield from groups

    def _fits(self, version: Version) -> bool:
        larger, smaller = self._rule.get("larger_than"), self._rule.get("smaller_than")
        fits = (larger is None or version.size_bytes > larger) and (smaller is None or version.size_bytes < smaller)
        return fits and all(version.tags.get(name) == value for name, value in self._rule["tags"].items())

    def _of_key(self, versions: Sequence[Version], edge: datetime | None) -> Followed:
        latest, *older = versions
        expired = gone = 0
        if edge is not None and not latest.is_marker and latest.modified_at <= edge and self._fits(latest):
            expired = self._write(latest, lambda writing, row: remove(writing, row.key, ""))
        if latest.is_marker and not older and (self._rule.get("expire_markers") or edge is not None):
            expired += self._write(latest, lambda writing, row: take_away(writing.db, writing.change, row))
        replaced = self._before("noncurrent_days")
        if replaced is not None:
            keep = self._rule.get("noncurrent_keep") or 0
            # An older version became one when the next newer was written.
            for number, (newer, version) in enumerate(zip(versions, older, strict=False)):
                if number >= keep and newer.modified_at <= replaced and self._fits(version):
                    gone += self._write(version, lambda writing, row: take_away(writing.db, writing.change, row), is_latest=False)
        return Followed(expired, gone)

    def _write(self, version: Version, do: Callable[[Writing, Version], object], *, is_latest: bool = True) -> int:
        """Do it if the version is still there, and still the newest where it has to be: somebody may have written meanwhile."""
        bucket = bucket_by_id(self._ctx.db, self._bucket_id)
        if bucket is None:
            return 0

        def work(writing: Writing) -> int:
            row = version_at(writing.db, version.bucket_id, version.key, version.sequence)
            present = newest(writing.db, version.bucket_id, version.key) if is_latest else row
            if row is None or present is None or present.sequence != row.sequence:
                return 0
            do(writing, row)
            return 1

        return write(self._ctx, bucket, DELETE, work)

    def _give_up(self, edge: datetime | None) -> int:
        bucket = bucket_by_id(self._ctx.db, self._bucket_id)
        if edge is None or bucket is None:
            return 0
        old = select(ObjectUpload.id).where(
            ObjectUpload.bucket_id == self._bucket_id, ObjectUpload.key.startswith(self._rule["prefix"], autoescape=True),
            ObjectUpload.completed_at.is_(None), ObjectUpload.created_at <= edge,
        )  # fmt: skip
        ids = self._ctx.db.scalars(old).all()

        def end(writing: Writing) -> int:
            rows = writing.db.scalars(select(ObjectUpload).where(ObjectUpload.id.in_(ids), ObjectUpload.completed_at.is_(None))).all()
            for upload in rows:
                give_up(writing, upload)
            return len(rows)

        return sum(1 for _ in ids) and write(self._ctx, bucket, DELETE, end)
