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
from portal.storage.locks import is_retained
from portal.storage.notifications import note
from portal.storage.object_models import Bucket, ObjectUpload
from portal.storage.objects import remove
from portal.storage.uploads import give_up
from portal.storage.versions import take_away
from portal.storage.writing import Writing, write

FIELDS = {
    "id", "enabled", "prefix", "tags", "larger_than", "smaller_than", "expire_days", "expire_at", "expire_markers", "noncurrent_days", "noncurrent_keep",
    "abort_days", "transitions", "noncurrent_transitions",
}  # fmt: skip
ACTIONS = FIELDS - {"id", "enabled", "prefix", "tags", "larger_than", "smaller_than", "noncurrent_keep"}
LOCAL_ONLY = {"larger_than", "smaller_than", "noncurrent_keep", "transitions", "noncurrent_transitions"}
BATCH = 500
EXPIRED = "LifecycleExpiration"
LONGEST_DAYS = 36_500
MOST_TRANSITIONS = 10
Rule = Mapping[str, Any]


def lifecycle_rules_of(ctx: Context, configuration: dict[str, Any]) -> list[dict[str, Any]]:
    """The rules in a document. Raises InvalidRequest with what is wrong."""
    places = set(ctx.settings.tiers())
    kept = []
    for place, rule in enumerate(checked_rules(configuration)):
        problem = _problem(rule) or _transitions_problem(rule, places) or (_unsayable(rule) if on_engine(ctx.settings) else "")
        if problem:
            raise InvalidRequest.fields({f"rules.{place}": [problem]})
        kept.append({"id": f"rule-{place + 1}", "enabled": True, "prefix": "", "tags": {}, **rule})
    if len({each["id"] for each in kept}) != len(kept):
        raise InvalidRequest.fields({"rules": ["two of them have the same id."]})
    return kept


@operation(Bucket, "set_lifecycle", label="Set rules for the life of objects", needs="delete", icon="clock", in_menu=False, **ON_ENGINE)
def bucket_set_lifecycle(ctx: Context, bucket: Bucket, *, configuration: Annotated[dict[str, Any], RULES]) -> None:
    """Say what the portal deletes by itself, and when; without rules it deletes nothing."""
    bucket.lifecycle_rules = lifecycle_rules_of(ctx, configuration)


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


def _transitions_problem(rule: Rule, places: set[str]) -> str:
    """What is wrong with where a rule moves objects to; empty if nothing is."""
    for name in ("transitions", "noncurrent_transitions"):
        listed = rule.get(name, [])
        if not isinstance(listed, list) or len(listed) > MOST_TRANSITIONS or not all(isinstance(each, dict) for each in listed):
            return f"{name} must be a list of at most {MOST_TRANSITIONS} objects."
        if problem := next(filter(None, (_transition_problem(name, each, places) for each in listed)), ""):
            return problem
    return ""


def _transition_problem(name: str, each: Rule, places: set[str]) -> str:
    numbers = [each[number] for number in ("days", "keep") if number in each]
    known = {"storage_class", "days", "at"} if name == "transitions" else {"storage_class", "days", "keep"}
    if set(each) - known or ("days" in each) is ("at" in each):
        return f"{name} need a storage_class and days, or a date at which all are moved."
    if any(not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= LONGEST_DAYS for value in numbers):
        return f"days and keep must be whole numbers from 0 to {LONGEST_DAYS}."
    if not places:
        return "This installation has one kind of disk: there is nothing to move objects to."
    if each.get("storage_class") not in places:
        return f"{str(each.get('storage_class'))[:64]} has no disks of its own here; {', '.join(sorted(places))} have."
    return _date_problem(each.get("at"))


def _date_problem(given: object) -> str:
    try:
        moment = datetime.fromisoformat(str(given)) if given else now()
    except ValueError:
        return "A date must be one such as 2027-01-01T00:00:00Z."
    return "" if moment.tzinfo is not None else "A date needs its time zone."


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
    return sum((_Follow(ctx, bucket_id, rule).run() for bucket_id, rule in Following.rules(ctx)), Followed())


def _take_away(writing: Writing, row: Version) -> None:
    take_away(writing.db, writing.change, row)
    note(writing.ctx, writing.bucket, f"{EXPIRED}:Delete", row)


class Following:
    """One rule of one bucket, which is followed."""

    def __init__(self, ctx: Context, bucket_id: str, rule: Rule) -> None:
        """The moment that counts is now."""
        self.ctx, self._bucket_id, self.rule = ctx, bucket_id, rule
        self.now = now()

    @staticmethod
    def rules(ctx: Context) -> list[tuple[str, Rule]]:
        """(bucket, rule) of all that are followed."""
        # What was read before may be old.
        ctx.db.rollback()
        rows = ctx.db.execute(select(Bucket.id, Bucket.lifecycle_rules).where(Bucket.deleted_at.is_(None)).order_by(Bucket.id)).all()
        ctx.db.rollback()
        return [(bucket_id, rule) for bucket_id, rules in rows for rule in rules or () if rule["enabled"]]

    def before(self, days: int) -> datetime:
        """The moment so many days ago."""
        return self.now - timedelta(seconds=days * self.ctx.settings.s3_lifecycle_day_s)

    def keys(self, *names: str) -> Iterator[Sequence[Version]]:
        """All versions of each key that the rule speaks of, the newest first; none if it says nothing by these names."""
        if not any(self.rule.get(name) for name in names):
            return
        after, end = ("", -1), successor(self.rule["prefix"])
        base = select(*VERSION_COLUMNS).where(VERSIONS.c.bucket_id == self._bucket_id, VERSIONS.c.key >= self.rule["prefix"])
        base = base.where(VERSIONS.c.key < end) if end else base
        held: list[Version] = []
        while True:
            from_here = base.where((VERSIONS.c.key > after[0]) | ((VERSIONS.c.key == after[0]) & (VERSIONS.c.sequence > after[1])))
            rows = [Version(*row) for row in self.ctx.db.execute(from_here.order_by(VERSIONS.c.key, VERSIONS.c.sequence).limit(BATCH))]
            self.ctx.db.rollback()
            groups = [list(group) for _, group in groupby([*held, *rows], key=attrgetter("key"))]
            if len(rows) < BATCH:
                yield from groups
                return
            after = (rows[-1].key, rows[-1].sequence)
            held = groups.pop()
            yield from groups

    def fits(self, version: Version) -> bool:
        """Whether the rule is about a version, as far as its size and tags go."""
        larger, smaller = self.rule.get("larger_than"), self.rule.get("smaller_than")
        fits = (larger is None or version.size_bytes > larger) and (smaller is None or version.size_bytes < smaller)
        return fits and all(version.tags.get(name) == value for name, value in self.rule["tags"].items())


class _Follow(Following):
    """What a rule deletes."""

    def _before(self, name: str) -> datetime | None:
        days = self.rule.get(name)
        return self.before(days) if days else None

    def run(self) -> Followed:
        """All that it asks for."""
        edge = self._before("expire_days")
        if self.rule.get("expire_at") and datetime.fromisoformat(self.rule["expire_at"]) <= self.now:
            edge = self.now
        done = Followed()
        for versions in self.keys("expire_days", "expire_at", "expire_markers", "noncurrent_days"):
            done += self._of_key(versions, edge)
        return done + Followed(uploads=self._give_up(self._before("abort_days")))

    def _of_key(self, versions: Sequence[Version], edge: datetime | None) -> Followed:
        latest, *older = versions
        expired = gone = 0
        if edge is not None and not latest.is_marker and latest.modified_at <= edge and self.fits(latest):
            expired = self._write(latest, lambda writing, row: remove(writing, row.key, "", event=EXPIRED))
        if latest.is_marker and not older and (self.rule.get("expire_markers") or edge is not None):
            expired += self._write(latest, _take_away)
        replaced = self._before("noncurrent_days")
        if replaced is not None:
            keep = self.rule.get("noncurrent_keep") or 0
            # An older version became one when the next newer was written.
            for number, (newer, version) in enumerate(zip(versions, older, strict=False)):
                if number >= keep and newer.modified_at <= replaced and self.fits(version):
                    gone += self._write(version, _take_away, is_latest=False)
        return Followed(expired, gone)

    def _write(self, version: Version, do: Callable[[Writing, Version], object], *, is_latest: bool = True) -> int:
        """Do it if the version is still there, and still the newest where it has to be: somebody may have written meanwhile."""
        bucket = bucket_by_id(self.ctx.db, self._bucket_id)
        if bucket is None:
            return 0

        def work(writing: Writing) -> int:
            row = version_at(writing.db, version.bucket_id, version.key, version.sequence)
            present = newest(writing.db, version.bucket_id, version.key) if is_latest else row
            if row is None or present is None or present.sequence != row.sequence or (not is_latest and (row.legal_hold or is_retained(row))):
                return 0
            do(writing, row)
            return 1

        return write(self.ctx, bucket, DELETE, work)

    def _give_up(self, edge: datetime | None) -> int:
        bucket = bucket_by_id(self.ctx.db, self._bucket_id)
        if edge is None or bucket is None:
            return 0
        old = select(ObjectUpload.id).where(
            ObjectUpload.bucket_id == self._bucket_id, ObjectUpload.key.startswith(self.rule["prefix"], autoescape=True),
            ObjectUpload.completed_at.is_(None), ObjectUpload.created_at <= edge,
        )  # fmt: skip
        ids = self.ctx.db.scalars(old).all()

        def end(writing: Writing) -> int:
            rows = writing.db.scalars(select(ObjectUpload).where(ObjectUpload.id.in_(ids), ObjectUpload.completed_at.is_(None))).all()
            for upload in rows:
                give_up(writing, upload)
            return len(rows)

        return sum(1 for _ in ids) and write(self.ctx, bucket, DELETE, end)
