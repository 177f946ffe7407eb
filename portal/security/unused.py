"""Permissions that are held and not used: what was allowed and is not in the audit log of the last 90 days, and a smaller document without it.

Reading is not audited, so whether somebody reads is not known: permissions to read are never called unused.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, func, or_, select
from sqlalchemy.orm import aliased

from portal.identity.models import Project, User
from portal.kernel.audit import AuditEntry
from portal.kernel.audit_query import AuditQuery, between, readable
from portal.kernel.authz import Target, access_of, authorize
from portal.kernel.context import Context
from portal.kernel.db import now
from portal.kernel.errors import InvalidRequest
from portal.kernel.lookup import find
from portal.kernel.policy import Columns, Statement
from portal.kernel.policy_documents import MAX_VALUES, as_document, statements_in
from portal.security.advice import actions_of
from portal.security.effects import ALL, NOTHING, holding, principal_with, reaches
from portal.security.policies import POLICY
from portal.security.simulator import SIMULATE, user_named

PERIOD = timedelta(days=90)
# Whose doings are looked at for one policy: some milliseconds for a hundred of them.
MAX_HOLDERS = 5000
# Levels of what the audit log does not tell.
SILENT = ("read", "audit")


@dataclass(frozen=True, slots=True)
class Unused:
    """What was used and what was not of what a user or a policy's holders may do; `document` is the smaller policy, None where there is none."""

    subject: str
    used: tuple[str, ...]
    unused: tuple[str, ...]
    document: Mapping[str, Any] | None


def unused(ctx: Context, *, user: str = "", policy: str = "") -> Unused:
    """Of a user in the current project, the caller unless named, or of a policy. Raises InvalidRequest, NotFound or Forbidden."""
    if user and policy:
        raise InvalidRequest.fields({"policy": ["Name a user or a policy, not both."]})
    return _of_policy(ctx, policy) if policy else _of_user(ctx, user or ctx.principal.username)


def _of_user(ctx: Context, named: str) -> Unused:
    found = user_named(ctx, named, Target(ctx.project_id))
    permissions = ctx.registry.permissions
    access = access_of(principal_with(ctx, found))
    found_reaches = {action: much for action, (much, _) in reaches(access, permissions, ctx.project_id).items()}
    held = {action for action, much in found_reaches.items() if much != NOTHING}
    used, idle = _split(held, permissions, _done(ctx, [found.id], ctx.project_id))
    # What holds under a condition only is left out: as a plain permission it would be more than what they have.
    kept = sorted(action for action in held - idle if found_reaches[action] == ALL)
    parts = [tuple(kept[start : start + MAX_VALUES]) for start in range(0, len(kept), MAX_VALUES)]
    smaller = [Statement(f"Used{number}" if number else "Used", allows=True, actions=part) for number, part in enumerate(parts)]
    return Unused(found.username, tuple(sorted(used)), tuple(sorted(idle)), as_document(smaller) if idle and smaller else None)


def _of_policy(ctx: Context, named: str) -> Unused:
    policy = find(ctx, POLICY, named)
    authorize(ctx, SIMULATE, Target(policy.project_id, label="the rights of others"))
    permissions = ctx.registry.permissions
    statements = statements_in(policy.document)
    held = {action for each in statements if each.allows for action in actions_of(each, permissions)}
    holders = holding(ctx, policy)
    if (ctx.db.scalar(select(func.count()).select_from(holders.subquery())) or 0) > MAX_HOLDERS:
        raise InvalidRequest.fields({"policy": [f"is held by more than {MAX_HOLDERS:,} users, which are too many to look at."]})
    used, idle = _split(held, permissions, _done(ctx, holders, policy.project_id))
    smaller = [kept for each in statements if (kept := _without(each, idle, permissions)) is not None]
    return Unused(policy.name, tuple(sorted(used)), tuple(sorted(idle)), as_document(smaller) if idle and smaller else None)


def _without(statement: Statement, idle: set[str], permissions: Mapping[str, str]) -> Statement | None:
    """A statement that allows no more of what is unused; one that denies stays as it is."""
    covered = actions_of(statement, permissions)
    if not statement.allows or not covered & idle:
        return statement
    kept = tuple(sorted(covered - idle))
    return Statement(statement.sid, allows=True, actions=kept, resources=statement.resources, conditions=statement.conditions) if kept else None


def _split(held: set[str], permissions: Mapping[str, str], done: set[str]) -> tuple[set[str], set[str]]:
    """(used, unused) of what can be told from the log."""
    told = {action for action in held if permissions[action] not in SILENT}
    used = {action for action in told if action in done or any(each.startswith(f"{action}.") for each in done)}
    return used, told - used


def _done(ctx: Context, user_ids: Sequence[str] | Select[str], project_id: str | None) -> set[str]:
    """What users did successfully during the period, in a project or anywhere.

    One look at an index for each action that one of them ever did, and for each project in question: what they did a million times, or tried, or did
    elsewhere, costs no more. Of what is in no project, a project's admins are told only what they may read.
    """
    following = aliased(AuditEntry)
    first = select(func.min(AuditEntry.action)).where(AuditEntry.user_id == User.id).correlate(User).scalar_subquery()
    known = select(User.id.label("user_id"), first.label("action")).where(User.id.in_(user_ids)).cte("known", recursive=True)
    known = known.union_all(
        select(known.c.user_id, select(func.min(following.action)).where(following.user_id == known.c.user_id, following.action > known.c.action)
               .correlate(known).scalar_subquery()).where(known.c.action.is_not(None))
    )  # fmt: skip
    done = select(AuditEntry.seq).where(
        AuditEntry.user_id == known.c.user_id, AuditEntry.action == known.c.action, AuditEntry.status == "success",
        *between(ctx.db, AuditQuery(since=now() - PERIOD)),
    )  # fmt: skip
    nowhere = _first(done.where(AuditEntry.project_id.is_(None)).correlate(known))
    if project_id is None:
        anywhere = select(Project.id).where(_first(done.where(AuditEntry.project_id == Project.id).correlate(known, Project)))
        did = or_(nowhere, _first(anywhere.correlate(known)))
    else:
        is_told = readable(ctx, Columns(owner=known.c.user_id))
        did = or_(_first(done.where(AuditEntry.project_id == project_id).correlate(known)), and_(is_told, nowhere))
    return set(ctx.db.scalars(select(known.c.action).where(known.c.action.is_not(None), did).distinct()))


def _first(found: Select[Any]) -> ColumnElement[bool]:
    """Whether there is one; said so that PostgreSQL looks for it in the index and does not read the table once for all."""
    return found.limit(1).scalar_subquery().is_not(None)
