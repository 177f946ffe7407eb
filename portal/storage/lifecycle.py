"""Rules for the life of objects: what expires, which older versions go, which uploads are given up; and the daily work that follows them.

A day lasts as long as `S3_LIFECYCLE_DAY_S` says. Expiry counts from the writing of a version, of older ones from the moment they were replaced.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import chain, groupby, islice, pairwise
from operator import attrgetter
from typing import Annotated, Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from portal.kernel.context import Context
from portal.kernel.db import now
from portal.kernel.declare import operation
from portal.kernel.errors import InvalidRequest, PortalError
from portal.storage.access import DELETE
from portal.storage.configurations import RULES, checked_rules
from portal.storage.engine_steps import ON_ENGINE, on_engine
from portal.storage.facts import VERSION_COLUMNS, VERSIONS, Version, bucket_by_id, version_at
from portal.storage.listing import keys_under
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
# So many are deleted in one transaction: others want to write into the bucket meanwhile.
TOGETHER = 200
EXPIRED = "LifecycleExpiration"
LONGEST_DAYS = 36_500
MOST_TRANSITIONS = 10
Rule = Mapping[str, Any]

log = logging.getLogger("portal.storage")


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
    """Do what the rules of all buckets ask for now. What goes wrong with one of them is written into the log, and stops no other."""
    done = Followed()
    for bucket_id, rule in Following.rules(ctx):
        followed = _Follow(ctx, bucket_id, rule)
        try:
            followed.run()
        except PortalError as error:
            log.warning("the rule %s of %s is not followed to its end today: %s", rule["id"], bucket_id, error.message)
            ctx.db.rollback()
        done += followed.done
    return done


def _expire(writing: Writing, row: Version) -> None:
    remove(writing, row.key, "", event=EXPIRED)


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

    def keys(self, *names: str) -> Iterator[Iterator[Version]]:
        """All versions of each key that the rule speaks of, the newest first, which are read as they are asked for; none if it says nothing by these names."""
        if any(self.rule.get(name) for name in names):
            yield from (versions for _, versions in groupby(self._rows(), key=attrgetter("key")))

    def _rows(self) -> Iterator[Version]:
        after = ("", -1)
        base = select(*VERSION_COLUMNS).where(VERSIONS.c.bucket_id == self._bucket_id, *keys_under(VERSIONS.c.key, self.rule["prefix"]))
        while True:
            from_here = base.where((VERSIONS.c.key > after[0]) | ((VERSIONS.c.key == after[0]) & (VERSIONS.c.sequence > after[1])))
            rows = [Version(*row) for row in self.ctx.db.execute(from_here.order_by(VERSIONS.c.key, VERSIONS.c.sequence).limit(BATCH))]
            self.ctx.db.rollback()
            yield from rows
            if len(rows) < BATCH:
                return
            after = (rows[-1].key, rows[-1].sequence)

    @property
    def is_choosy(self) -> bool:
        """Whether the rule is about some objects only, by their size or tags."""
        return bool(self.rule["tags"]) or any(self.rule.get(name) is not None for name in ("larger_than", "smaller_than"))

    def fits(self, version: Version) -> bool:
        """Whether the rule is about a version, as far as its size and tags go."""
        larger, smaller = self.rule.get("larger_than"), self.rule.get("smaller_than")
        fits = (larger is None or version.size_bytes > larger) and (smaller is None or version.size_bytes < smaller)
        return fits and all(version.tags.get(name) == value for name, value in self.rule["tags"].items())


@dataclass(frozen=True, slots=True)
class _Due:
    """A version that a rule deletes, if it is still what it was when it was looked at: somebody may have written, or restored it, meanwhile."""

    version: Version
    still: Callable[[Session, Version], bool]
    do: Callable[[Writing, Version], None]
    counted: Followed


class _Follow(Following):
    """What a rule deletes."""

    def __init__(self, ctx: Context, bucket_id: str, rule: Rule) -> None:
        super().__init__(ctx, bucket_id, rule)
        self.done = Followed()
        self._edge = self._before("expire_days")
        if rule.get("expire_at") and datetime.fromisoformat(rule["expire_at"]) <= self.now:
            self._edge = self.now
        self._replaced = self._before("noncurrent_days")
        self._keep: int = rule.get("noncurrent_keep") or 0

    def _before(self, name: str) -> datetime | None:
        days = self.rule.get(name)
        return self.before(days) if days else None

    def run(self) -> None:
        """All that it asks for; `done` says how much that was."""
        keys = self.keys("expire_days", "expire_at", "expire_markers", "noncurrent_days")
        due = (each for versions in keys for each in self._of_key(versions))
        while some := list(islice(due, TOGETHER)):
            self._write(some)
        self._give_up(self._before("abort_days"))

    def _of_key(self, versions: Iterator[Version]) -> Iterator[_Due]:
        latest, *second = islice(versions, 2)
        if self._expires(latest):
            yield _Due(latest, self._still_expires, _expire, Followed(expired=1))
        if not second and self._is_spent(latest):
            yield _Due(latest, self._still_spent, _take_away, Followed(expired=1))
        if self._replaced is not None:
            # An older version became one when the next newer was written.
            for number, (newer, version) in enumerate(pairwise(chain((latest, *second), versions))):
                if number >= self._keep and newer.modified_at <= self._replaced and self.fits(version):
                    yield _Due(version, self._still_old, _take_away, Followed(versions=1))

    def _expires(self, latest: Version) -> bool:
        return self._edge is not None and not latest.is_marker and latest.modified_at <= self._edge and self.fits(latest)

    def _is_spent(self, latest: Version) -> bool:
        """Whether a mark of deletion that stands alone goes: a rule for some objects only says nothing of it."""
        is_old = self._edge is not None and latest.modified_at <= self._edge and not self.is_choosy
        return latest.is_marker and bool(self.rule.get("expire_markers") or is_old)

    def _still_expires(self, session: Session, row: Version) -> bool:
        return not self._newer(session, row, 1) and self._expires(row)

    def _still_spent(self, session: Session, row: Version) -> bool:
        count = select(func.count()).where(VERSIONS.c.bucket_id == row.bucket_id, VERSIONS.c.key == row.key)
        return session.scalar(count) == 1 and self._is_spent(row)

    def _still_old(self, session: Session, row: Version) -> bool:
        newer = self._newer(session, row, self._keep + 1)
        is_old = self._replaced is not None and len(newer) > self._keep and newer[0] <= self._replaced
        return is_old and self.fits(row) and not row.legal_hold and not is_retained(row)

    @staticmethod
    def _newer(session: Session, row: Version, most: int) -> Sequence[datetime]:
        """When the versions that replaced one were written, the nearest first."""
        newer = select(VERSIONS.c.modified_at).where(
            VERSIONS.c.bucket_id == row.bucket_id, VERSIONS.c.key == row.key, VERSIONS.c.sequence < row.sequence
        )
        return session.scalars(newer.order_by(VERSIONS.c.sequence.desc()).limit(most)).all()

    def _write(self, some: Sequence[_Due]) -> None:
        """Delete some together."""
        bucket = bucket_by_id(self.ctx.db, self._bucket_id)
        if bucket is not None:
            self.done += write(self.ctx, bucket, DELETE, lambda writing: sum((self._delete(writing, due) for due in some), Followed()))

    def _delete(self, writing: Writing, due: _Due) -> Followed:
        row = version_at(writing.db, due.version.bucket_id, due.version.key, due.version.sequence)
        if row is None or not due.still(writing.db, row):
            return Followed()
        try:
            due.do(writing, row)
        except PortalError as error:
            # Whatever refuses does so before anything is written.
            log.warning("%s/%s stays: %s", writing.bucket.name, row.key, error.message)
            return Followed()
        return due.counted

    def _give_up(self, edge: datetime | None) -> None:
        bucket = bucket_by_id(self.ctx.db, self._bucket_id)
        if edge is None or bucket is None:
            return
        old = select(ObjectUpload).where(
            ObjectUpload.bucket_id == self._bucket_id, *keys_under(ObjectUpload.key, self.rule["prefix"]), ObjectUpload.completed_at.is_(None),
            ObjectUpload.created_at <= edge,
        )  # fmt: skip

        def end(writing: Writing) -> int:
            rows = writing.db.scalars(old.limit(TOGETHER)).all()
            for upload in rows:
                give_up(writing, upload)
            return len(rows)

        # Most of the time there is none, and nobody has to wait.
        while self.ctx.db.scalar(old.with_only_columns(ObjectUpload.id).limit(1)) is not None:
            self.done += Followed(uploads=write(self.ctx, bucket, DELETE, end))
