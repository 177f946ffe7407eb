"""Reading the audit log: filters, pages by key, one entry. What is asked for is found through an index, however long the log is.

A list is walked by entry number, newest first. A filter that covers many values (a prefix of an action, a text, the projects that somebody may
audit) becomes one short walk per value; the walks are then merged.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, Select, and_, false, func, or_, select, text, true, union
from sqlalchemy.orm import Session

from portal.kernel.audit import AuditEntry
from portal.kernel.authz import reach
from portal.kernel.context import Context
from portal.kernel.errors import NotFound
from portal.kernel.ids import is_storable
from portal.kernel.policy import Columns

READ_AUDIT = "security.audit.read"
MAX_LIMIT = 1000
# Counting goes no further: there may be more.
COUNTED = 1000
HIGHEST = 2**63 - 1
# SQLite takes 500 SELECTs in one UNION.
MAX_BRANCHES = 400
# Clocks of several hosts may differ by this much; entries are numbered in the order in which they were written.
CLOCK_SLACK = timedelta(minutes=10)

# One filter per column, each with an index that ends with the entry's number.
EXACT = ("user_id", "username", "credential", "resource_type", "resource_id", "status", "source_ip", "project_id", "request_id")
FILTERS = (*EXACT, "action", "search")
# Those of which each value has few entries, so that looking through them is cheap.
NARROW = ("user_id", "username", "credential", "resource_id", "source_ip", "request_id")
SEARCHED = (
    AuditEntry.username, AuditEntry.resource_name, AuditEntry.resource_id, AuditEntry.request_id, AuditEntry.source_ip, AuditEntry.credential,
    AuditEntry.log_id,
)  # fmt: skip
ACTIONS = text(
    "WITH RECURSIVE known(action) AS (SELECT min(action) FROM audit_entries UNION ALL "
    "SELECT (SELECT min(entry.action) FROM audit_entries AS entry WHERE entry.action > known.action) FROM known WHERE known.action IS NOT NULL) "
    "SELECT action FROM known WHERE action IS NOT NULL"
)


@dataclass(frozen=True, slots=True)
class AuditQuery:
    """Which entries of the audit log are asked for; empty means all.

    `action` may end with `*`. `search` is a whole name, id or address, or a part of an action. `before_seq` is where a page begins, `after_seq` what
    the reader has already.
    """

    resource_id: str = ""
    resource_type: str = ""
    action: str = ""
    username: str = ""
    user_id: str = ""
    credential: str = ""
    status: str = ""
    source_ip: str = ""
    project_id: str = ""
    request_id: str = ""
    since: datetime | None = None
    until: datetime | None = None
    search: str = ""
    before_seq: int | None = None
    after_seq: int | None = None
    limit: int = 50


@dataclass(frozen=True, slots=True)
class AuditPage:
    """Entries, newest first, and where the next page begins."""

    entries: Sequence[AuditEntry]
    next_before_seq: int | None


def audit_entries(ctx: Context, query: AuditQuery) -> AuditPage:
    """A page of the audit log: of the projects whose log the caller may read, and what they did themselves."""
    limit = max(1, min(query.limit, MAX_LIMIT))
    rows = ctx.db.scalars(page_statement(ctx, query, limit + 1)).all()
    more = len(rows) > limit
    return AuditPage(rows[:limit], rows[limit - 1].seq if more else None)


def audit_count(ctx: Context, query: AuditQuery, *, at_most: int = COUNTED) -> int:
    """How many entries a query covers, counted up to a bound."""
    return ctx.db.scalar(select(func.count()).select_from(_numbers(ctx, query, at_most).subquery())) or 0


def audit_entry(ctx: Context, log_id: str) -> AuditEntry:
    """One entry. Raises NotFound unless the caller may read it."""
    found = ctx.db.scalars(select(AuditEntry).where(AuditEntry.log_id == log_id, readable(ctx))).first() if is_storable(log_id) else None
    if found is None:
        raise NotFound(f"There is no entry {log_id[:80]} that you may read.")
    return found


def page_statement(ctx: Context, query: AuditQuery, limit: int) -> Select[AuditEntry]:
    """The query of a page: numbers first, through indexes alone, then the entries."""
    numbers = _numbers(ctx, query, limit).subquery()
    return select(AuditEntry).where(AuditEntry.seq.in_(select(numbers.c.seq))).order_by(AuditEntry.seq.desc())


def readable(ctx: Context, of: Columns | None = None) -> ColumnElement[bool]:
    """What the caller may read of others, and all that is their own; a restricted token reads what its scopes say.

    `of` has project and user where that is not asked of each entry.
    """
    of = of or Columns(AuditEntry.project_id, AuditEntry.user_id)
    covered = reach(ctx, READ_AUDIT)
    if covered.everything:
        return true()
    own = ctx.principal.user_id is not None and not ctx.principal.is_restricted
    mine = of.owner == ctx.principal.user_id if own else false()
    return or_(covered.where(of), mine)


def _numbers(ctx: Context, query: AuditQuery, limit: int) -> Select[int]:
    """Entry numbers of a page, newest first: one walk along an index for each branch of the query, merged."""
    own, is_narrow = _own_branches(ctx), any(getattr(query, name) for name in NARROW)
    # SQLite knows nothing of how often values occur: it must not leave the few entries of a project for the many of an outcome.
    is_told = own is not None and not is_narrow and ctx.db.get_bind().dialect.name == "sqlite"
    common = [*_exact(query, by_index=not is_told), *between(ctx.db, query)]
    if query.search:
        branches = _searched(ctx, query, own)
    elif own is not None and not is_narrow:
        branches = own
    else:
        branches = [true()] if is_narrow else _everybodys(ctx.db, query)
        common.append(readable(ctx))
    if query.before_seq is not None:
        common.append(AuditEntry.seq < max(0, min(query.before_seq, HIGHEST)))
    if query.after_seq is not None:
        common.append(AuditEntry.seq > max(0, min(query.after_seq, HIGHEST)))
    walks = [_walk([*common, branch], limit) for branch in branches]
    if len(walks) == 1:
        return walks[0]
    if not walks:
        return _walk([false()], limit)
    merged = union(*(select(walk.subquery().c.seq) for walk in walks)).subquery()
    return select(merged.c.seq).order_by(merged.c.seq.desc()).limit(limit)


def _walk(conditions: Sequence[ColumnElement[bool]], limit: int) -> Select[int]:
    return select(AuditEntry.seq).where(*conditions).order_by(AuditEntry.seq.desc()).limit(limit)


def _exact(query: AuditQuery, *, by_index: bool) -> list[ColumnElement[bool]]:
    """Filters by whole values; `by_index=False` where another index is to be walked along."""
    parts: list[ColumnElement[bool]] = []
    prefix = _prefix(query)
    given = {name: getattr(query, name) for name in EXACT} | {"action": "" if query.action.endswith("*") else query.action}
    for name, value in given.items():
        column = getattr(AuditEntry, name)
        if value:
            parts.append((column if by_index else func.coalesce(column, "")) == value if is_storable(value) else false())
    if prefix:
        parts.append(AuditEntry.action.startswith(prefix, autoescape=True) if is_storable(prefix) else false())
    return parts


def between(session: Session, query: AuditQuery) -> list[ColumnElement[bool]]:
    """A span of time is a span of numbers, looked up first: so that an old day is found as fast as today."""
    parts: list[ColumnElement[bool]] = []
    at, seq = AuditEntry.timestamp, AuditEntry.seq
    if query.since is not None:
        before = session.scalar(select(seq).where(at < _moved(query.since, -CLOCK_SLACK)).order_by(at.desc(), seq.desc()).limit(1))
        parts += [at >= query.since, *([seq > before] if before is not None else [])]
    if query.until is not None:
        after = session.scalar(select(seq).where(at >= _moved(query.until, CLOCK_SLACK)).order_by(at, seq).limit(1))
        parts += [at < query.until, *([seq < after] if after is not None else [])]
    return parts


def _moved(moment: datetime, by: timedelta) -> datetime:
    try:
        return moment + by
    except OverflowError:
        return moment


def _searched(ctx: Context, query: AuditQuery, own: list[ColumnElement[bool]] | None) -> list[ColumnElement[bool]]:
    """Conditions of which one holds for each entry that a text finds and the caller may read, each found through one index."""
    wanted = query.search[:255]
    values = sorted(each for each in {wanted, wanted.lower()} if is_storable(each))
    named = [and_(column == value, readable(ctx)) for column in SEARCHED for value in values]
    actions = [action for action in ctx.db.scalars(ACTIONS) if wanted.lower() in action]
    if own is not None:
        is_one = (func.coalesce(AuditEntry.action, "") if ctx.db.get_bind().dialect.name == "sqlite" else AuditEntry.action).in_(actions)
        return _bounded([*named, *(and_(branch, is_one) for branch in own)])
    return _bounded([*named, *(and_(AuditEntry.action == action, readable(ctx)) for action in actions)])


def _everybodys(session: Session, query: AuditQuery) -> list[ColumnElement[bool]]:
    """A branch for each action that is in the log and begins as asked for; there are some hundreds, each found with one look at the index."""
    prefix = _prefix(query)
    return _bounded([AuditEntry.action == action for action in session.scalars(ACTIONS) if action.startswith(prefix)]) if prefix else [true()]


def _bounded(branches: list[ColumnElement[bool]]) -> list[ColumnElement[bool]]:
    """One walk through everything where there would be too many: so much of the log is asked for that it soon finds enough."""
    return branches if len(branches) <= MAX_BRANCHES else [or_(*branches)]


def _prefix(query: AuditQuery) -> str:
    return query.action[:-1] if query.action.endswith("*") else ""


def _own_branches(ctx: Context) -> list[ColumnElement[bool]] | None:
    """Where somebody who may not read everything finds what they may: in their projects, and under their own name; None if that is unbounded.

    What a branch says already is not said twice: PostgreSQL would take it for rarer than it is.
    """
    covered, grants = reach(ctx, READ_AUDIT), ctx.principal.grants
    if covered.everything or any(grant.project_id is None for grant in grants):
        return None
    is_somebody = ctx.principal.user_id is not None and not ctx.principal.is_restricted
    found = [AuditEntry.user_id == ctx.principal.user_id] if is_somebody else []
    for project in sorted({grant.project_id for grant in grants if grant.project_id is not None}):
        there = AuditEntry.project_id == project
        found.append(there if covered.whole(project) else and_(there, readable(ctx)))
    return _bounded(found) if found else [false()]
